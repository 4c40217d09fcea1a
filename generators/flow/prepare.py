"""What a training of a flow needs before it begins: recipe, codec with its round trip, batches, network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from catalog.errors import GeneratorError
from generators.codec import Codec
from generators.covariance import with_covariance
from generators.data import WeightDataModule
from generators.flow.drawing import network_of, source_of
from generators.flow.looks import MODELS, accuracies
from generators.flow.module import FlowModule
from generators.population import Population
from generators.recipe import FlowRecipe
from generators.requests import digest_of
from generators.round_trip import with_round_trip
from zoo.splits import with_validation

MARGIN = 0.25  # of the way from chance to the networks' own accuracy, which a codec must keep


@dataclass(frozen=True, eq=False)
class Prepared:
    """A training that could begin.

    Args:
        codec: with its round trip in the report.
    """

    data: WeightDataModule
    codec: Codec
    module: FlowModule

    @property
    def recipe(self) -> FlowRecipe:
        return self.module.recipe


def prepare(
    population: Population,
    recipe: FlowRecipe,
    seed: int,
    codec: Codec | None = None,
    force: bool = False,
    request: Mapping[str, Any] | None = None,
) -> Prepared:
    """Fit codec and conditions, check what the codec keeps, make the network, which depends on the seed alone.

    Args:
        codec: a fitted one. force: go on although it loses the networks. request: what the folder is for, if any.

    Raises:
        GeneratorError: a codec of another population or one that loses the networks; columns that cannot be conditions.
    """
    data = WeightDataModule(
        population, codec=codec or recipe.codec, scaling=recipe.scaling, components=recipe.components,
        conditions=recipe.conditions, batch_size=recipe.batch_size, seed=seed,
    )  # fmt: skip
    data.setup()
    kept = data.codec
    if recipe.source == "gaussian" and kept.factor is None:
        kept = with_covariance(kept, population)
    if "ceiling" not in kept.report:
        judged = with_round_trip(kept, population)
        kept = replace(judged, report={**judged.report, "ceiling": ceiling(kept, population)})
    if not force:
        check_ceiling(kept.report["ceiling"])
    width = data.conditions.width if data.conditions else 0
    network = network_of(recipe, kept, width, population.architecture, seed)
    purpose = digest_of({**(request or {}), "fitted": kept.fingerprint})
    return Prepared(data, kept, FlowModule(network, source_of(kept, recipe, seed), recipe, seed, purpose))


def ceiling(codec: Codec, population: Population) -> dict[str, float]:
    """Median accuracy on validation data of held-out networks, before and after the codec, and that of chance.

    BatchNorm is re-estimated after it, as it is for samples. What the codec loses no sample can have. This is what
    is decided by; what is reported, on test data, is `generators.round_trip.round_trip`.
    """
    fitting, samples = with_validation(population.data)
    weights = population.read("validation", slice(MODELS))
    decoded = codec.decode(codec.encode(weights))
    return {
        "models": len(weights),
        "before": float(np.median(accuracies(population.architecture, weights, samples))),
        "after": float(np.median(accuracies(population.architecture, decoded, samples, fitting))),
        "chance": float(torch.bincount(samples.y).max() / len(samples.y)),
    }


def check_ceiling(trip: Mapping[str, float]) -> None:
    """Raise GeneratorError if little more than chance is left of networks that were better than that."""
    before, after, chance = trip["before"], trip["after"], trip["chance"]
    if after < chance + MARGIN * (before - chance):
        raise GeneratorError(
            f"the codec loses the networks: held-out ones have accuracy {before:.3f}, {after:.3f} after encoding and "
            f"decoding, chance is {chance:.3f}; no sample can be better than that. Take codec='identity', more "
            "components, an aligned frame or more lineages; force=True trains all the same"
        )
