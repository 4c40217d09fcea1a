"""Evaluating populations against loading one network after the other: `python -m benchmarks.evaluation`.

1,000 networks on 360 samples, one core each side: loss, accuracy and which samples are misclassified. Predictions must
be identical; when some are not, the row says how many and how near the two largest outputs are there, and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.populations import MODEL_ZOO, Population, lay_out, plain_module
from benchmarks.record import bar, record
from benchmarks.sides import PAIRS, compare, measure
from benchmarks.team import Team
from kernels.population import forward
from zoo.evaluate import evaluate
from zoo.shards import one_thread
from zoo.train import train

TRAINED = 8  # networks that are trained; the others are near them
SPREAD = 0.02  # of the noise that makes them differ, relative to a network's weights
LEAST = 6.0
SLOW = 3  # pairs of the CNN on large images: a turn of its loop takes a quarter of a minute


def population_weights(population: Population) -> torch.Tensor:
    """Weights (models, size) of networks that classify most samples right, no two the same."""
    plan = lay_out(population.share(TRAINED))
    (runs,) = plan.runs.values()
    few = train(runs, plan.data).weights[:, -1]
    weights = few.repeat(-(-population.models // len(few)), 1)[: population.models]
    noise = torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    return weights + SPREAD * weights.std(1, keepdim=True) * noise


@functools.lru_cache(maxsize=1)
def state_dicts(population: Population, file: str) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    """A module and what it loads, network by network, as it would come out of a file."""
    architecture = population.architecture
    return plain_module(architecture).eval(), [
        architecture.layout.unflatten(one) for one in torch.from_numpy(np.load(file))
    ]


def loop(population: Population, file: str) -> tuple[np.ndarray, np.ndarray]:
    """Losses (models,) and error bits of networks that are loaded one by one."""
    module, states = state_dicts(population, file)
    data = lay_out(population.share(1)).data
    x, y = torch.from_numpy(data.test_x), torch.from_numpy(data.test_y)
    losses, wrong = [], []
    with torch.inference_mode():
        for state in states:
            module.load_state_dict(state)
            logits = module(x)
            losses.append(F.cross_entropy(logits, y).item())
            wrong.append((logits.argmax(1) != y).numpy())
    return np.array(losses), np.packbits(np.stack(wrong), axis=1)


def evaluation(
    population: Population,
    pairs: int = PAIRS,
    weights: torch.Tensor | None = None,
    *,
    least: float = LEAST,
    name: str = "evaluation",
    what: str = "evaluate",
) -> int:
    """A row for one population; how many predictions differ.

    Args:
        weights: (models, size) of its networks, None for some near trained ones. least: ratio to be reached.
        name: of the file of results. what: the row says that was done.
    """
    with one_thread(), tempfile.TemporaryDirectory() as folder, Team(1, plain=True) as one:
        weights = population_weights(population) if weights is None else weights
        file = str(Path(folder) / "weights.npy")
        np.save(file, weights.numpy())
        data = lay_out(population.share(1)).data
        x, y = torch.from_numpy(data.test_x), torch.from_numpy(data.test_y)
        turns = measure(
            {
                "loop": lambda: one.each(loop, [(population, file)]),
                "ours": lambda: evaluate(population.architecture, weights, x, y, threads=1),
            },
            pairs,
        )
        ((losses, bits),) = one.each(loop, [(population, file)])
        found = evaluate(population.architecture, weights, x, y, threads=1)
        differ = np.unpackbits(found.error_bits ^ bits, axis=1)[:, : len(x)].astype(bool)
        margin = _largest_margin(population, weights, x, differ)
    compared = compare(turns, "loop", "ours")
    rates = {side: population.models / statistics.median(turn.wall) for side, turn in turns.items()}
    accuracy = float(found.accuracy.mean())
    same = "the same predictions" if not differ.any() else f"{differ.sum()} of {differ.size} predictions differ"
    row = {
        "operation": f"{what} {population.name}",
        "setting": {"models": population.models, "samples": len(x), "cores": 1},
        "ours": f"{rates['ours']:,.0f} models/s, {same}",
        "against": "load_state_dict and forward, model by model",
        "theirs": f"{rates['loop']:,.0f} models/s",
        "ratio": compared,
        **bar(compared["median"], least),
        "different_predictions": int(differ.sum()),
        "predictions": differ.size,
        "largest_margin_where_different": margin,
        "largest_loss_difference": float(np.abs(losses - found.loss).max()),
        "mean_accuracy": round(accuracy, 4),
    }
    record(name, row)
    return int(differ.sum())


def _largest_margin(population: Population, weights: torch.Tensor, x: torch.Tensor, differ: np.ndarray) -> float | None:
    """Between the two largest outputs, in float64, where predictions differ; rounding alone moves 1e-6 of them."""
    margins = []
    module, layout = population.architecture.build("meta"), population.architecture.layout
    for model in np.flatnonzero(differ.any(1)).tolist():
        tensors = layout.unflatten(weights[model : model + 1].double())
        logits = forward(module, tensors, x[torch.from_numpy(differ[model])].double(), shared=True)[0]
        top = logits.topk(2, dim=1).values
        margins.append(float((top[:, 0] - top[:, 1]).max()))
    return max(margins, default=None)


def main(argv: Sequence[str] | None = None) -> int:
    """MLPs, and CNNs on large and small images; 1 when predictions differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--models", type=int, default=1000)
    given = parser.parse_args(argv)
    populations = [
        Population(given.models, epochs=3, test=360),
        Population(given.models, epochs=3, test=360, family="cnn", numbers=MODEL_ZOO, size=28),
        Population(given.models, epochs=3, test=360, family="cnn", numbers=MODEL_ZOO),
    ]
    pairs = [given.pairs, min(given.pairs, SLOW), given.pairs]
    return int(sum(map(evaluation, populations, pairs)) > 0)


if __name__ == "__main__":
    sys.exit(main())
