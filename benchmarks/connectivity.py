"""Bezier curves between pairs of networks against one pair after the other: `python -m benchmarks.connectivity`.

100 pairs of an MLP on digits, one core each side, the same number of optimiser steps: the middle point of each curve is
trained for some epochs of batches of 128. The other side is the loop that people write, after the code of Garipov et
al. 2018: one pair after the other, the parameters at t mixed from three points, forward, backward, `torch.optim.SGD`.
Both find curves that are as good: the rows say the mean of the highest error along them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call

from benchmarks.evaluation import population_weights
from benchmarks.populations import Population, lay_out, plain_module
from benchmarks.record import bar, record
from benchmarks.sides import PAIRS, compare, measure
from benchmarks.team import Team
from kernels.curves.recipe import Recipe
from zoo.landscape.connectivity import along, curve
from zoo.shards import one_thread

LEAST = 5.0
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def loop(population: Population, recipe: Recipe, file: str, pairs: int) -> np.ndarray:
    """Middle points (pairs, size), trained one after the other in plain PyTorch."""
    data = lay_out(population.share(1)).data
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    module, layout, found = plain_module(population.architecture), population.architecture.layout, []
    for number, (start, end) in enumerate(torch.from_numpy(np.load(file))[:, :pairs].transpose(0, 1)):
        torch.manual_seed(number)
        first, last = layout.unflatten(start), layout.unflatten(end)
        middle = {name: ((first[name] + last[name]) / 2).requires_grad_() for name in first}
        optimizer = torch.optim.SGD(middle.values(), lr=recipe.learning_rate, momentum=recipe.momentum)
        rates = iter(recipe.rates(len(x)).tolist())
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(x))[: len(x) // recipe.batch_size * recipe.batch_size].split(
                recipe.batch_size
            ):
                t = torch.rand(()).item()
                a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
                phi = {name: a * first[name] + b * middle[name] + c * last[name] for name in first}
                loss = F.cross_entropy(functional_call(module, phi, (x[rows],)), y[rows])
                loss = loss + recipe.weight_decay / 2 * sum(part.square().sum() for part in phi.values())
                optimizer.zero_grad()
                loss.backward()
                optimizer.param_groups[0]["lr"] = next(rates)
                optimizer.step()
        found.append(torch.cat([part.detach().flatten() for part in middle.values()]))
    return torch.stack(found).numpy()


def curves(population: Population, recipe: Recipe, few: int, turns: int = PAIRS, least: float | None = None) -> float:
    """A row for the curves of all pairs, the loop over the first `few` of them; the ratio.

    Networks are trained ones with noise, paired across the population so that no pair is of near neighbours.
    """
    pairs = population.models // 2
    with one_thread(), tempfile.TemporaryDirectory() as folder, Team(1, plain=True) as one:
        weights = population_weights(population)
        start, end = weights[0 : 2 * pairs : 2], weights[1 : 2 * pairs : 2]
        file = str(Path(folder) / "ends.npy")
        np.save(file, torch.stack([start, end]).numpy())
        data = lay_out(population.share(1)).data
        x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
        architecture = population.architecture
        measured = measure(
            {
                "loop": lambda: one.each(loop, [(population, recipe, file, few)]),
                "ours": lambda: curve(architecture, start, end, x, y, recipe=recipe, threads=1),
            },
            turns,
        )
        (theirs,) = one.each(loop, [(population, recipe, file, few)])
        ours = curve(architecture, start, end, x, y, recipe=recipe, threads=1)
        peaks = [
            float(along(architecture, start[:few], theta[:few], end[:few], x, y, POINTS)[0].max(1).mean())
            for theta in (torch.from_numpy(theirs), ours)
        ]
        steps = recipe.steps(len(x))
    compared = compare(measured, "loop", "ours", few, pairs)
    rates = {
        name: count * steps / statistics.median(measured[name].wall) for name, count in (("loop", few), ("ours", pairs))
    }
    row = {
        "operation": f"Bezier curves {population.name}",
        "setting": {"pairs": pairs, "epochs": recipe.epochs, "batch": recipe.batch_size, "cores": 1},
        "ours": f"{60 * rates['ours'] / steps:,.0f} curves/min",
        "against": "one pair after the other in PyTorch",
        "theirs": f"{60 * rates['loop'] / steps:,.0f} curves/min",
        "ratio": compared,
        **bar(compared["median"], least),
        "microseconds_per_step": {"ours": round(1e6 / rates["ours"], 1), "theirs": round(1e6 / rates["loop"], 1)},
        "pairs_of_the_loop": few,
        "mean_highest_error_percent": {"ours": round(peaks[1], 2), "theirs": round(peaks[0], 2)},
    }
    record("connectivity", row)
    return compared["median"]


def main(argv: Sequence[str] | None = None) -> int:
    """MLPs of 32 and 128 units a layer; 1 if the curves of the smaller are less than five times as fast."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.connectivity", description=__doc__)
    parser.add_argument("--turns", type=int, default=PAIRS)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args(argv)
    recipe = Recipe(epochs=given.epochs)
    few = min(given.pairs, 10)
    widths = {width: (("depth", 2), ("width", width), ("activation", "tanh")) for width in (32, 128)}
    populations = [Population(2 * given.pairs, epochs=30, numbers=numbers) for numbers in widths.values()]
    small, large = populations
    curves(large, recipe, few, given.turns)  # no bar: most of its time is products of matrices
    return int(curves(small, recipe, few, given.turns, LEAST) < LEAST)


if __name__ == "__main__":
    sys.exit(main())
