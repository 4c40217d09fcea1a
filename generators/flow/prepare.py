"""What a training of a flow needs before it begins: recipe, codec with its round trip, batches, network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from catalog.errors import GeneratorError, InvalidSpecError, unknown_name
from generators.codec import Codec
from generators.covariance import with_covariance
from generators.data import WeightDataModule
from generators.flow.drawing import source_of
from generators.flow.looks import MODELS, accuracies
from generators.flow.module import FlowModule
from generators.flow.networks import build_network
from generators.population import Population
from generators.recipe import RECIPES, FlowRecipe
from generators.requests import digest_of, request_of
from zoo.architectures import Architecture
from zoo.splits import with_validation
from zoo.symmetries import symmetry_of

MARGIN = 0.25  # of the way from chance to the networks' own accuracy, which a codec must keep
SEEDS = 1 << 48


@dataclass(frozen=True, eq=False)
class Prepared:
    """A training that could begin.

    Args:
        codec: with its round trip in the report. request: what the folder of the training is for.
    """

    data: WeightDataModule
    codec: Codec
    module: FlowModule
    settings: Mapping[str, Any]
    request: Mapping[str, Any]

    @property
    def recipe(self) -> FlowRecipe:
        return self.module.recipe


def recipe_of(preset: str | None, settings: Mapping[str, Any]) -> FlowRecipe:
    """A named recipe, "weightscape" without a name, with some fields replaced.

    Raises:
        UnknownNameError: no such recipe or setting. InvalidSpecError: a value that is none.
    """
    name = preset or "weightscape"
    if name not in RECIPES:
        raise unknown_name("preset of a flow", name, RECIPES)
    return FlowRecipe.from_json({**RECIPES[name]().to_json(), **settings})


def flow_settings(recipe: FlowRecipe, seed: int) -> dict[str, Any]:
    """What is stored as the settings of a generator.

    Raises:
        InvalidSpecError: a seed that is none.
    """
    if type(seed) is not int or not 0 <= seed < SEEDS:
        raise InvalidSpecError(f"seed must be an integer from 0 and below {SEEDS}, got {seed!r}")
    return {**recipe.to_json(), "seed": seed}


def prepare(
    population: Population, recipe: FlowRecipe, seed: int, codec: Codec | None = None, force: bool = False
) -> Prepared:
    """Fit codec and conditions, check the round trip, make the network, which depends on the seed alone.

    Args:
        codec: a fitted one, which goes before what the recipe says. force: go on although it loses the networks.

    Raises:
        GeneratorError: a codec of another population or one that loses the networks; columns that cannot be conditions.
    """
    if codec is not None:
        recipe = replace(recipe, **{name: codec.settings[name] for name in ("codec", "scaling", "components")})
    settings = flow_settings(recipe, seed)
    data = WeightDataModule(
        population, codec=codec or recipe.codec, scaling=recipe.scaling, components=recipe.components,
        conditions=recipe.conditions, batch_size=recipe.batch_size, seed=seed,
    )  # fmt: skip
    data.setup()
    fitted = with_covariance(data.codec, population) if recipe.source == "gaussian" else data.codec
    trip = round_trip(fitted, population)
    if not force:
        check_round_trip(trip)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = data.conditions.width if data.conditions else 0
        network = network_of(recipe, fitted, width, population.architecture)
    request = request_of("flow", settings, population.source())
    module = FlowModule(network, source_of(fitted, recipe, seed), recipe, seed, digest_of(request))
    report = {**fitted.report, "round_trip": trip}
    return Prepared(data, replace(fitted, report=report), module, settings, request)


def network_of(recipe: FlowRecipe, codec: Codec, condition_width: int, architecture: Architecture) -> nn.Module:
    """The velocity network of a recipe for codes of an architecture, by torch's seed.

    Raises:
        InvalidSpecError: "units" for an architecture without hidden units.
    """
    symmetry = symmetry_of(architecture) if recipe.network == "units" else None
    return build_network(recipe, codec.width, condition_width, codec.layout, symmetry)


def round_trip(codec: Codec, population: Population) -> dict[str, float]:
    """Median accuracy on validation data of held-out networks, before and after the codec, and that of chance.

    BatchNorm is re-estimated after it, as it is for samples. What the codec loses no sample can have.
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


def check_round_trip(trip: Mapping[str, float]) -> None:
    """Raise GeneratorError if little more than chance is left of networks that were better than that."""
    before, after, chance = trip["before"], trip["after"], trip["chance"]
    if after < chance + MARGIN * (before - chance):
        raise GeneratorError(
            f"the codec loses the networks: held-out ones have accuracy {before:.3f}, {after:.3f} after encoding and "
            f"decoding, chance is {chance:.3f}; no sample can be better than that. Take codec='identity', more "
            "components, an aligned frame or more lineages; force=True trains all the same"
        )
