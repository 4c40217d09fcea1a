"""Aligning populations against the usual loop, one model after the other: `python -m benchmarks.alignment`.

Trained digits MLPs 64-n-n-10 are matched to the first of them, on one core and on all, by `match_weights` and by the
loops of `benchmarks.weight_matching` in as many processes, some of the models each; all in the same order of layers.
Objectives in float64 must not be below theirs; when one is, by more than 1e-6, the exit status is 1. Then how time
grows, ours alone. The package `rebasin` (0.0.47) is no peer here: it imports torchview, which needs graphviz.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.families import mlp
from benchmarks.populations import Population, lay_out
from benchmarks.record import bar, record
from benchmarks.sides import PAIRS, Turns, alternate, compare, measure
from benchmarks.team import Team, cores
from benchmarks.weight_matching import lean, one_by_one, usual
from weightspace.rebasin.matching import match_weights
from weightspace.rebasin.objective import objective
from weightspace.symmetry import Permutations, Symmetry
from zoo.shards import one_thread
from zoo.train import train

POPULATIONS = {32: (1001, 20, 150), 128: (100, 20, 30), 512: (24, 10, 4)}  # width: models, epochs, models of the loops
LEAST = {32: 30.0, 128: 15.0, 512: 8.0}
SPREAD = 0.02  # of the noise in populations larger than what is trained, relative to a network's weights
BELOW = 1e-6  # of an objective
MODELS = (10, 100, 1_000, 10_000)
WIDTHS = (32, 64, 128, 256, 512, 1024, 2048)  # of two models
LOOPS: dict[str, Callable[..., Any]] = {"usual": usual, "lean": lean}
NAMES = {"usual": "one model at a time, PyTorch and scipy", "lean": "one model at a time, numpy and scipy"}


def trained(width: int, models: int, epochs: int) -> np.ndarray:
    """(models, size) weights of MLPs after so many epochs of digits."""
    numbers = (("depth", 2), ("width", width), ("activation", "relu"))
    plan = lay_out(Population(models, epochs=epochs, numbers=numbers))
    (runs,) = plan.runs.values()
    with one_thread():
        return train(runs, plan.data).weights[:, -1].numpy().copy()


@functools.lru_cache(maxsize=4)
def loaded(file: str) -> np.ndarray:
    weights: np.ndarray = np.load(file)
    return weights


def loop(name: str, width: int, file: str, first: int, last: int) -> Permutations:
    """Match some models of a file to its first."""
    weights = loaded(file)
    return one_by_one(LOOPS[name], mlp(width).symmetry, weights[0], weights[first:last])


def alignment(width: int, models: int, epochs: int, some: int, pairs: int = PAIRS) -> int:
    """Rows for a width, against both loops on one core and on all; how many objectives are below theirs."""
    symmetry, weights = mlp(width).symmetry, trained(width, models, epochs)
    below = 0
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "weights.npy")
        np.save(file, weights)
        for used in sorted({1, cores()}):
            with Team(used, plain=True) as team:
                for name in LOOPS:
                    ends = [1 + some * part // used for part in range(used + 1)]
                    parts = [(name, width, file, *ends[part : part + 2]) for part in range(used)]
                    ours = functools.partial(match_weights, symmetry, weights[1:], weights[0], threads=used)
                    turns = measure({name: functools.partial(team.each, loop, parts), "ours": ours}, pairs)
                    higher = gains(symmetry, weights[: 1 + some], team.each(loop, parts))
                    setting = {"models": models - 1, "cores": used, "epochs": epochs, "models_of_the_loop": some}
                    record("alignment", row(width, setting, name, turns, higher))
                    below += int((higher < -BELOW).sum())
    return below


def gains(symmetry: Symmetry, weights: np.ndarray, theirs: Sequence[Permutations]) -> np.ndarray:
    """How much higher than theirs our objectives are, of all models but the first, relative to theirs."""
    joined = {name: np.concatenate([part[name] for part in theirs]) for name in symmetry.moving}
    peer = objective(symmetry, symmetry.permute(weights[1:], joined), weights[0])
    higher: np.ndarray = match_weights(symmetry, weights[1:], weights[0]).after / peer - 1
    return higher


def row(
    width: int, setting: dict[str, int], name: str, turns: dict[str, Turns], higher: np.ndarray
) -> dict[str, object]:
    """What is recorded of one comparison."""
    some, models = setting["models_of_the_loop"], setting["models"]
    ratio = compare(turns, name, "ours", some, models)
    seconds = {side: statistics.median(turn.wall) for side, turn in turns.items()}
    equal = float((np.abs(higher) <= BELOW).mean())
    return {
        "operation": f"align mlp 64-{width}-{width}-10 to one of them",
        "setting": setting,
        "ours": f"{1e3 * seconds['ours'] / models:.3g} ms a model, {equal:.0%} of the objectives the same",
        "against": NAMES[name],
        "theirs": f"{1e3 * seconds[name] / some:.3g} ms a model",
        "ratio": ratio,
        **(bar(ratio["median"], LEAST[width]) if name == "usual" else {}),
        "equal_objectives": equal,
        "lowest_gain_of_objective": float(higher.min()),
        "highest_gain_of_objective": float(higher.max()),
    }


def growth(models: int, width: int, weights: np.ndarray, repeats: int = 3) -> None:
    """A row: seconds for so many models of a width, copies of `weights` with noise, all cores."""
    symmetry = mlp(width).symmetry
    many = np.tile(weights[1:], (-(-models // (len(weights) - 1)), 1))[:models]
    noise = np.random.default_rng(0).standard_normal(many.shape, np.float32)
    many += SPREAD * weights.std(1).mean() * noise
    side = functools.partial(match_weights, symmetry, many, weights[0], threads=cores())
    seconds = alternate({"ours": side}, repeats)["ours"]
    found = side()
    median = statistics.median(seconds)
    record(
        "alignment",
        {
            "operation": f"align mlp 64-{width}-{width}-10, growth",
            "setting": {"models": models, "cores": cores()},
            "ours": f"{median:.3g} s, {1e3 * median / models:.3g} ms a model",
            "seconds": round(median, 4),
            "turns": len(seconds),
            "mean_sweeps": round(float(found.sweeps.mean()), 2),
            "finished": float(found.finished.mean()),
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Both loops at three widths, then growth; 1 when an objective is below that of a loop."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--widths", type=int, nargs="*", default=list(POPULATIONS), choices=list(POPULATIONS))
    parser.add_argument("--no-growth", action="store_true")
    given = parser.parse_args(argv)
    below = sum(alignment(width, *POPULATIONS[width], given.pairs) for width in given.widths)
    if not given.no_growth:
        small = trained(32, 200, 20)
        for models in MODELS:
            growth(models, 32, small)
        for width in WIDTHS:
            growth(2, width, trained(width, 3, 4))
    return int(below > 0)


if __name__ == "__main__":
    sys.exit(main())
