"""What a look at a flow in training sees: whether its samples work, and whether they are new. Never on test data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from generators.codec import Codec
from generators.conditions import Conditions
from generators.flow.drawing import follow
from generators.flow.loss import flow_losses, generator_at
from generators.flow.paths import PATHS
from generators.flow.source import Source
from generators.flow.times import draw_times
from generators.population import Population
from generators.recipe import SEEDS, FlowRecipe
from kernels.distance.distance import nearest_streamed
from zoo.architectures import Architecture
from zoo.evaluate import evaluate
from zoo.landscape.norms import reestimate
from zoo.splits import Split, with_validation

SAMPLES = 128  # drawn at a look
MODELS = 256  # of the population at most that spacing, accuracy and losses are taken from
EVALUATIONS = 64  # of the network at most for a sample of a look: it takes fewer solver steps than the final samples
PERFORMANT = 0.92  # of the median accuracy of training networks, as the contract of evaluation has it
NEW = 0.5  # of the spacing
COPIES, COLLAPSED = 0.25, 0.5
MEMORY = 1 << 28  # bytes of training weights that are kept for distances; more are read again at each look
VALUES = ("held_out_loss", "seen_loss", "accuracy", "nearest", "rms", "velocity", "share", "finite")


@dataclass(frozen=True, eq=False)
class Bench:
    """What looks compare with: all of a population that they need, worked out once.

    Args:
        samples, fitting: data to judge on, the last fifth of the training data, and to re-estimate BatchNorm on.
        device: where networks and codes are.
    """

    population: Population
    codec: Codec
    conditions: Conditions | None
    source: Source
    recipe: FlowRecipe
    seed: int
    samples: Split
    fitting: Split
    device: torch.device

    @classmethod
    def of(
        cls, population: Population, codec: Codec, conditions: Conditions | None, source: Source, recipe: FlowRecipe,
        seed: int, device: torch.device,
    ) -> Bench:  # fmt: skip
        """On the part of the data set that validates."""
        fitting, samples = with_validation(population.data)
        return cls(population, codec, conditions, source.to(device), recipe, seed, samples, fitting, device)

    @cached_property
    def _kept(self) -> np.ndarray | None:
        return self._parameters(self.population.read()) if self.population.bytes() <= MEMORY else None

    def training(self) -> Iterator[np.ndarray]:
        """Parameters of all training networks, some at a time."""
        if self._kept is not None:
            yield self._kept
            return
        yield from map(self._parameters, self.population.batches())

    def _parameters(self, weights: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(weights[:, self.codec.places])

    def _some(self, split: str) -> np.ndarray:
        """Places of networks of a split, evenly spaced."""
        count = len(self.population.split(split))
        return np.unique(np.linspace(0, count - 1, min(count, MODELS)).round().astype(np.int64))

    def distances(self, weights: np.ndarray) -> np.ndarray:
        """Of networks (models, size) to the nearest training network, (models,)."""
        distance: np.ndarray = nearest_streamed(self._parameters(weights), self.training())[0][:, 0]
        return distance

    @cached_property
    def spacing(self) -> float:
        """Median distance of training networks to the nearest one of another lineage."""
        _, runs = np.unique(self.population.split("train")["run"].to_numpy(), return_inverse=True)
        chosen = self._some("train")
        some = self._parameters(self.population.read("train", chosen))
        distance, _ = nearest_streamed(some, self.training(), groups_a=runs[chosen], groups_b=runs)
        return float(np.median(distance))

    @cached_property
    def least(self) -> float:
        """The accuracy from which on a network counts as performant."""
        weights = self.population.read("train", self._some("train"))
        return PERFORMANT * float(np.median(accuracies(self.population.architecture, weights, self.samples)))

    @cached_property
    def held(self) -> tuple[Tensor, Tensor | None]:
        """Codes and conditions of validation networks."""
        return self._codes("validation")

    @cached_property
    def seen(self) -> tuple[Tensor, Tensor | None]:
        """The same of training networks."""
        return self._codes("train")

    def _codes(self, split: str) -> tuple[Tensor, Tensor | None]:
        chosen = self._some(split)
        codes = torch.from_numpy(self.codec.encode(self.population.read(split, chosen))).to(self.device)
        if self.conditions is None:
            return codes, None
        rows = self.population.split(split)[chosen.tolist()]
        return codes, torch.from_numpy(self.conditions.encode(rows)).to(self.device)

    @cached_property
    def centre(self) -> tuple[Tensor, float]:
        """Mean of the training codes, and their root mean square deviation from it."""
        codes = self.seen[0].double()
        mean = codes.mean(0)
        return mean, float((codes - mean).square().mean().sqrt())


def look(network: nn.Module, bench: Bench) -> dict[str, float]:
    """Draw networks with a velocity network in eval mode, and compare; the same network gives the same values.

    held_out_loss, seen_loss: of flow matching, on validation and on training networks, same noise and times.
    accuracy: median over the samples, on validation data. nearest: median distance to the nearest training network over
    the zoo's spacing, 0 for copies, 1 for independent runs. rms: deviation of the samples' codes from the training mean
    over that of training codes, 0 for a collapse to the mean. velocity: mean norm over that of its target, on
    validation networks. share: of samples that are performant (accuracy of 92 % of the training networks' median) and
    new (half the spacing away from all of them). finite: share of samples.
    """
    recipe = quick(bench.recipe)
    numbers = np.arange(SAMPLES)
    x_0 = bench.source.at(numbers, bench.seed + SEEDS).to(bench.device)
    condition = None if bench.held[1] is None else bench.held[1][torch.arange(SAMPLES) % len(bench.held[1])]
    codes = follow(network, x_0, condition, recipe)
    weights = bench.codec.decode(codes.cpu().numpy())
    finite = np.isfinite(weights).all(1)
    distance = np.full(SAMPLES, np.nan)
    distance[finite] = bench.distances(weights[finite]) / max(bench.spacing, 1e-30)
    accuracy = np.zeros(SAMPLES)  # what is not finite does not work
    accuracy[finite] = accuracies(bench.population.architecture, weights[finite], bench.samples, bench.fitting)
    good = finite & (accuracy >= bench.least)
    good[finite] &= distance[finite] >= NEW
    mean, spread = bench.centre
    deviation = (codes.double()[torch.from_numpy(finite)] - mean).square().mean().sqrt()
    return {
        "held_out_loss": _loss(network, bench, *bench.held),
        "seen_loss": _loss(network, bench, *bench.seen),
        "accuracy": float(np.median(accuracy)),
        "nearest": float(np.median(distance[finite])) if finite.any() else math.nan,
        "rms": float(deviation) / max(spread, 1e-30),
        "velocity": _velocity(network, bench),
        "share": float(good.mean()),
        "finite": float(finite.mean()),
    }


def quick(recipe: FlowRecipe) -> FlowRecipe:
    """The recipe with at most so many evaluations a sample as a look may take."""
    if recipe.solver == "adaptive":
        return replace(recipe, solver="midpoint", steps=EVALUATIONS // 2)
    return replace(recipe, steps=min(recipe.steps, EVALUATIONS // {"euler": 1, "midpoint": 2, "rk4": 4}[recipe.solver]))


def verdict(values: Mapping[str, Any], least: float) -> str:
    """What a look says, in words.

    Args:
        values: see `look`. least: accuracy from which on a sample counts as performant.
    """
    found = []
    if values["finite"] < 1:
        found.append(f"{1 - values['finite']:.0%} of the samples are not finite")
    if values["nearest"] < COPIES:
        found.append("copies its training set")
    elif values["nearest"] < NEW:
        found.append("stays close to its training set")
    if values["rms"] < COLLAPSED:
        found.append("collapses to the mean")
    if values["accuracy"] < least:
        found.append("most samples do not work")
    if values["velocity"] < COLLAPSED / 2:
        found.append("the velocity has all but vanished")
    return "; ".join(found) or "makes networks that work and are new"


def score(values: Mapping[str, Any]) -> tuple[float, float]:
    """What the best look is largest in: the share of samples performant and new, then accuracy. Never a train loss."""
    return values["share"], values["accuracy"]


def accuracies(
    architecture: Architecture, weights: np.ndarray, samples: Split, fitting: Split | None = None
) -> np.ndarray:
    """(models,) on the samples, with BatchNorm re-estimated on `fitting` where that is given."""
    if not len(weights):
        return np.empty(0)
    tensor = torch.from_numpy(weights)
    if fitting is not None:
        tensor = reestimate(architecture, tensor, fitting.x)
    return evaluate(architecture, tensor, samples.x, samples.y).accuracy


def _loss(network: nn.Module, bench: Bench, codes: Tensor, condition: Tensor | None) -> float:
    """Of flow matching over some draws of noise and times, always the same ones."""
    draws = -(-2 * MODELS // len(codes))
    with torch.inference_mode():
        found = [
            flow_losses(network, codes, condition, bench.source, bench.recipe, bench.seed + SEEDS, draw)[0].mean()
            for draw in range(min(draws, 16))
        ]
    return float(torch.stack(found).mean())


def _velocity(network: nn.Module, bench: Bench) -> float:
    """Mean norm of the velocity over that of its target, on the paths to validation networks."""
    codes, condition = bench.held
    codes = codes.repeat(-(-64 // len(codes)), 1)
    condition = None if condition is None else condition.repeat(-(-64 // len(condition)), 1)
    generator = generator_at(bench.seed + SEEDS, 1 << 20, bench.device)
    t = draw_times(replace(bench.recipe, times="uniform"), len(codes), generator, bench.device)
    x_t, target = PATHS[bench.recipe.path].between(bench.source.draw(len(codes), generator), codes, t)
    with torch.inference_mode():
        return float(network(x_t, t, condition).norm(dim=1).mean() / target.norm(dim=1).mean())
