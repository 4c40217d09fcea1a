"""What alignment gives for populations of digits MLPs: `python -m benchmarks.rebasin`.

Each population as it is, aligned to its first model, and in a universe, with and without balanced scales; a row each:
midpoints with the first model, midpoints of pairs, the mean of all models. Figures are of the test split; those of the
training split stand beside them: by these the defaults were chosen. Standard errors leave out one model at a time.
Fails if a universe keeps less than 85 % accuracy at midpoints of pairs at width 32, 95 % at 128.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.record import record
from benchmarks.weight_matching import lean, one_by_one
from weightspace.balance import balance
from weightspace.rebasin.matching import match_weights
from weightspace.rebasin.universe import agreement, align_universe, join
from weightspace.symmetry import Symmetry
from zoo.evaluate import evaluate
from zoo.plan import Plan, make_plan
from zoo.shards import one_thread
from zoo.spec import ZooSpec
from zoo.symmetries import symmetry_of
from zoo.train import train

PAIRS = 1000  # midpoints evaluated of each population, drawn from all pairs
MODELS = {32: 100, 128: 30, 512: 8}  # of each width
LEAST = {32: 0.85, 128: 0.95}
ZOOS = 5  # for what is compared over zoos
HELD_OUT = 20  # of the models, in percent, that join a universe of the others
TRAININGS: dict[str, dict[str, Any]] = {
    "sgd": {"epochs": 20},  # learning rate 0.05, momentum 0.9, batches of 32
    "adamw": {"epochs": 60, "optimizer": "adamw", "learning_rate": 1e-3},
}


@dataclass(frozen=True)
class Zoo:
    """A trained population of 64-width-width-10 ReLU MLPs that differ in their seeds only."""

    width: int
    training: str
    plan: Plan
    symmetry: Symmetry
    weights: np.ndarray

    @property
    def name(self) -> str:
        return f"{len(self.weights)} x 64-{self.width}-{self.width}-10"

    def measure(self, weights: np.ndarray, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
        """Losses and accuracies (models,)."""
        data = self.plan.data
        x, y = (data.test_x, data.test_y) if split == "test" else (data.train_x, data.train_y)
        (runs,) = self.plan.runs.values()
        found = evaluate(
            runs[0].architecture, torch.from_numpy(weights), torch.from_numpy(x), torch.from_numpy(y), threads=1
        )
        return found.loss, found.accuracy


def make_zoo(width: int, models: int, training: str, first_seed: int = 0) -> Zoo:
    """Train a population, on one core."""
    spec = ZooSpec(
        "rebasin",
        numbers={"depth": 2, "width": width, "activation": "relu"},
        hyperparameters=TRAININGS[training],
        seeds=tuple(range(first_seed, first_seed + models)),
    )
    plan = make_plan(spec)
    (runs,) = plan.runs.values()
    symmetry = symmetry_of(runs[0].architecture)
    return Zoo(width, training, plan, symmetry, train(runs, plan.data, threads=1).weights[:, -1].numpy())


def to_reference(symmetry: Symmetry, weights: np.ndarray) -> np.ndarray:
    """Aligned to the first model."""
    found: np.ndarray = symmetry.permute(weights, match_weights(symmetry, weights, weights[0], threads=1).permutations)
    return found


def to_universe(symmetry: Symmetry, weights: np.ndarray, **options: Any) -> np.ndarray:
    """In a universe, on one core."""
    found: np.ndarray = symmetry.permute(weights, align_universe(symmetry, weights, threads=1, **options).permutations)
    return found


def merge_many(symmetry: Symmetry, weights: np.ndarray, seed: int = 0) -> np.ndarray:
    """Algorithm 3 of Git Re-Basin as it is published: one model after the other, scipy's assignment, from the models as
    they are, until no distance to the mean of the others falls."""
    canonical, generator = weights.astype(np.float64), np.random.default_rng(seed)
    total, progress = canonical.sum(0), True
    while progress:
        progress = False
        for model in generator.permutation(len(canonical)):
            old = canonical[model : model + 1]
            mean = (total - old[0]) / (len(canonical) - 1)
            new = symmetry.permute(old, one_by_one(lean, symmetry, mean, old))
            if np.linalg.norm(mean - new[0]) < np.linalg.norm(mean - old[0]) - 1e-9:
                total += new[0] - old[0]
                canonical[model], progress = new[0], True
    return canonical.astype(np.float32)


def balanced(symmetry: Symmetry, weights: np.ndarray, exact: bool = False) -> np.ndarray:
    found: np.ndarray = symmetry.scale(weights, balance(symmetry, weights, exact=exact))
    return found


View = Callable[[Symmetry, np.ndarray], np.ndarray]
VIEWS: dict[str, View] = {
    "raw": lambda symmetry, weights: weights,
    "reference": to_reference,
    "universe": to_universe,
    "universe, frank_wolfe": lambda s, w: to_universe(s, w, method="frank_wolfe"),
    "universe, plain MergeMany": merge_many,
    "balanced, reference": lambda s, w: to_reference(s, balanced(s, w)),
    "balanced, universe": lambda s, w: to_universe(s, balanced(s, w)),
    "balanced, universe, 5 restarts": lambda s, w: to_universe(s, balanced(s, w), restarts=5),
    "balanced exactly, universe": lambda s, w: to_universe(s, balanced(s, w, exact=True)),
}


@dataclass(frozen=True)
class Midpoints:
    """Accuracies at midpoints, with standard errors that leave out one model at a time, in percent."""

    accuracy: float
    error: float


def pair_midpoints(zoo: Zoo, canonical: np.ndarray, split: str = "test") -> Midpoints:
    """Mean accuracy at midpoints of pairs."""
    pairs = np.array(list(itertools.combinations(range(len(canonical)), 2)))
    pairs = np.random.default_rng(0).permutation(pairs)[:PAIRS]
    middle = (canonical[pairs[:, 0]] + canonical[pairs[:, 1]]) / 2
    accuracy = 100 * zoo.measure(middle, split)[1]
    without = np.array([accuracy[(pairs != model).all(1)].mean() for model in range(len(canonical))])
    n = len(canonical)
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    return Midpoints(float(accuracy.mean()), float(error))


def show(zoo: Zoo, view: str) -> bool:
    """A row of the table; whether it reaches what it should."""
    begin = time.process_time()
    canonical = np.ascontiguousarray(VIEWS[view](zoo.symmetry, zoo.weights))
    seconds = time.process_time() - begin
    ends, accuracies = zoo.measure(canonical)
    losses, middle = zoo.measure((canonical[1:] + canonical[:1]) / 2)
    barriers = losses - (ends[1:] + ends[0]) / 2
    pairs, learned = pair_midpoints(zoo, canonical), pair_midpoints(zoo, canonical, "train")
    mean = canonical.mean(0, keepdims=True)
    drift = float(np.abs(zoo.measure(zoo.weights)[0] - ends).max())
    least = LEAST.get(zoo.width) if "universe" in view else None
    row = {
        "operation": f"align {zoo.name}",
        "setting": {"view": view, "training": zoo.training},
        "ours": f"midpoints of pairs {pairs.accuracy:.2f} +- {pairs.error:.2f} %, {seconds:.2f} s on one core",
        "accuracy": _percent(accuracies.mean()),
        "accuracy_sd": _percent(accuracies.std()),
        "reference_barrier": round(float(barriers.mean()), 4),
        "reference_barrier_se": round(float(barriers.std() / np.sqrt(len(barriers))), 4),
        "reference_midpoints": _percent(middle.mean()),
        "pair_midpoints": round(pairs.accuracy, 3),
        "pair_midpoints_se": round(pairs.error, 3),
        "pairs": min(PAIRS, len(canonical) * (len(canonical) - 1) // 2),
        "mean_model": _percent(zoo.measure(mean)[1][0]),
        "train_pair_midpoints": round(learned.accuracy, 3),
        "train_mean_model": _percent(zoo.measure(mean, "train")[1][0]),
        "agreement": round(agreement(zoo.symmetry, canonical), 4),
        "cpu_seconds": round(seconds, 3),
        "largest_loss_difference_of_a_model": drift,
        **({"bar": f">= {100 * least:g} %", "met": pairs.accuracy >= 100 * least} if least else {}),
    }
    record("rebasin", row)
    return (least is None or pairs.accuracy >= 100 * least) and drift < 1e-4  # float32: a function that stays


def joining(zoo: Zoo) -> None:
    """How far new members, aligned to a universe that stays, are from those of a universe made with them."""
    symmetry, weights = zoo.symmetry, balanced(zoo.symmetry, zoo.weights)
    members = len(weights) - len(weights) * HELD_OUT // 100
    old = align_universe(symmetry, weights[:members], threads=1)
    begin = time.process_time()
    new = join(symmetry, weights[members:], old.universe, threads=1)
    seconds = time.process_time() - begin
    grown = np.concatenate(
        [symmetry.permute(weights[:members], old.permutations), symmetry.permute(weights[members:], new.permutations)]
    )
    anew = to_universe(symmetry, weights)
    held = np.arange(members, len(weights))
    pairs = np.array([(a, b) for a in range(members) for b in held])
    pairs = np.random.default_rng(0).permutation(pairs)[:PAIRS]
    found = {
        name: 100 * zoo.measure((moved[pairs[:, 0]] + moved[pairs[:, 1]]) / 2)[1].mean()
        for name, moved in (("joined", grown), ("anew", anew))
    }
    values = {"joined": agreement(symmetry, grown), "anew": agreement(symmetry, anew)}
    row = {
        "operation": f"join {len(held)} models to {members} x 64-{zoo.width}-{zoo.width}-10",
        "setting": {"training": zoo.training},
        "ours": f"agreement {values['joined']:.2f}, midpoints of old and new {found['joined']:.2f} %",
        "against": "aligning all of them anew",
        "theirs": f"agreement {values['anew']:.2f}, midpoints of old and new {found['anew']:.2f} %",
        "agreement_kept": round(values["joined"] / values["anew"], 4),
        "cpu_seconds": round(seconds, 3),
    }
    record("rebasin", row)


def scaling(width: int, models: int, training: str) -> None:
    """What balancing gives in a universe, and what powers of two cost of it, over zoos that share no seed."""
    views = ("universe", "balanced exactly, universe", "balanced, universe")
    found = []
    for number in range(ZOOS):
        zoo = make_zoo(width, models, training, first_seed=1000 + number * models)
        moved = [VIEWS[view](zoo.symmetry, zoo.weights) for view in views]
        found.append([[pair_midpoints(zoo, m, split).accuracy for m in moved] for split in ("test", "train")])
    values = np.array(found)  # (zoos, splits, views)
    gains = {"exact_gain": values[:, :, 1] - values[:, :, 0], "powers_of_two_gain": values[:, :, 2] - values[:, :, 0]}
    columns: dict[str, float] = {}
    for name, gain in gains.items():
        for split, part in zip(("", "train_"), gain.T, strict=True):
            columns[f"{split}{name}"] = round(float(part.mean()), 3)
            columns[f"{split}{name}_se"] = round(float(part.std(ddof=1) / np.sqrt(ZOOS)), 3)
    row = {
        "operation": f"balance scales of {models} x 64-{width}-{width}-10",
        "setting": {"training": training, "zoos": ZOOS},
        "ours": f"midpoints of pairs {columns['powers_of_two_gain']:+.2f} +- {columns['powers_of_two_gain_se']:.2f} "
        f"points by powers of two, {columns['exact_gain']:+.2f} +- {columns['exact_gain_se']:.2f} exactly",
        "against": "no balancing",
        **columns,
    }
    record("rebasin", row)


def _percent(fraction: float) -> float:
    return round(100 * float(fraction), 2)


def main(argv: Sequence[str] | None = None) -> int:
    """All populations and views; 1 when one misses its goal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rebasin", description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--trainings", nargs="+", default=list(TRAININGS), choices=list(TRAININGS))
    parser.add_argument("--views", nargs="+", default=list(VIEWS), choices=list(VIEWS), metavar="VIEW")
    given = parser.parse_args(argv)
    good = True
    with one_thread():
        for width, training in itertools.product(given.widths, given.trainings):
            zoo = make_zoo(width, MODELS[width], training)
            to_universe(zoo.symmetry, zoo.weights[:2])  # compiles what is not compiled yet
            for view in given.views:
                good = show(zoo, view) and good
            joining(zoo)
            if width in LEAST:
                scaling(width, MODELS[width], training)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
