"""Training populations against the loop over networks: `python -m benchmarks.training`.

MLPs on all cores, against the loop as users run it (one process, PyTorch's own number of threads) and against as many
such processes as there are cores, a thread each. CNNs on one core each. The loop trains a sample of the models for as
many epochs: ratios are of model-steps a second.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.populations import (
    GEMM_FLOPS,
    MODEL_ZOO,
    SMALL_CNN_ZOO,
    Population,
    mlp_flops,
    multiply,
    train_loop,
    train_ours,
)
from benchmarks.record import bar, record
from benchmarks.sides import PAIRS, Turns, compare, measure
from benchmarks.team import Team, cores

LOOP, MANY = "loop", "loops"
AGAINST = {LOOP: "the PyTorch loop", MANY: "PyTorch loops, one a core"}
BARS = {
    ("mlp 64-32-32-10", 8, LOOP): 150,
    ("mlp 64-32-32-10", 32, LOOP): 60,
    ("mlp 64-32-32-10", 32, MANY): 35,
    ("cnn model_zoo, 8 channels, 28x28", 32, LOOP): 6,
}
SAMPLE = {8: 6, 32: 20, 128: 48}  # networks of the loop a turn, for about two seconds


PRODUCTS = 4  # of matrices a turn and core, for what torch.mm reaches


def mlps(population: Population, sample: int, pairs: int = PAIRS) -> None:
    """MLPs on all cores against both loops; with the share of what torch.mm reaches in the same run.

    Args:
        sample: networks that the loop trains a turn.
    """
    count = cores()
    each = max(sample // count, 1)
    with Team(1, None, plain=True) as one, Team(count, plain=True) as many:
        sides = {
            LOOP: lambda: one.each(train_loop, [(population, sample)]),
            MANY: lambda: many.each(train_loop, [(population, each, each * n) for n in range(count)]),
            "ours": lambda: train_ours(population, count),
            "torch.mm": lambda: many.each(multiply, [(PRODUCTS,)] * count),
        }
        turns = measure(sides, pairs)
    flops, products = population.steps * mlp_flops(population), count * PRODUCTS * GEMM_FLOPS
    seconds = statistics.median(turns["ours"].wall)
    fraction = compare(turns, "torch.mm", "ours", products, flops)["median"]
    speed = {
        "gflops": round(flops / seconds / 1e9, 1),
        "torch_mm_gflops": round(products / statistics.median(turns["torch.mm"].wall) / 1e9, 1),
        "fraction_of_torch_mm": fraction,
    }
    shown = f", {speed['gflops']:.0f} GFLOP/s, {fraction:.0%} of torch.mm"
    setting = {"models": population.models, "batch": population.batch, "epochs": population.epochs, "cores": count}
    for name, trained in ((LOOP, sample), (MANY, each * count)):
        _record(population, setting, turns, name, trained, shown, speed)


def cnns(population: Population, sample: int, pairs: int = PAIRS) -> None:
    """CNNs on one core, against the loop on one."""
    with Team(1, plain=True) as one:
        sides = {
            "loop": lambda: one.each(train_loop, [(population, sample)]),
            "ours": lambda: train_ours(population, 1),
        }
        turns = measure(sides, pairs)
    setting = {"models": population.models, "batch": population.batch, "epochs": population.epochs, "cores": 1}
    _record(population, setting, turns, "loop", sample, "", {})


def _record(
    population: Population,
    setting: Mapping[str, int],
    turns: Mapping[str, Turns],
    name: str,
    sample: int,
    shown: str,
    speed: Mapping[str, float],
) -> None:
    """A row for ours against the side of this name, which trained a sample of the models."""
    steps = sample * population.steps / population.models
    found = compare(turns, name, "ours", steps, population.steps)
    rate = population.steps / statistics.median(turns["ours"].wall)
    peer = steps / statistics.median(turns[name].wall)
    key = (population.name, population.batch, name)
    row = {
        "operation": f"train {population.name}",
        "setting": dict(setting),
        "ours": f"{rate:,.0f} model-steps/s{shown}",
        "against": AGAINST[name],
        "theirs": f"{peer:,.0f} model-steps/s",
        "ratio": found,
        **bar(found["median"], BARS.get(key)),
        "sampled": f"{sample} models by the side compared with, {population.models} by ours",
        "model_steps_per_second": {"ours": round(rate), "against": round(peer)},
        **speed,
    }
    record("training", row)


def main(argv: Sequence[str] | None = None) -> None:
    """Every batch size and both CNNs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--models", type=int, default=1024, help="MLPs")
    pairs, models = (given := parser.parse_args(argv)).pairs, given.models
    for batch, sample in SAMPLE.items():
        mlps(Population(models, batch, epochs=10), sample, pairs)
    for numbers in (MODEL_ZOO, SMALL_CNN_ZOO):
        cnns(Population(32, 32, epochs=1, family="cnn", numbers=numbers, size=28), 16, pairs)


if __name__ == "__main__":
    main()
