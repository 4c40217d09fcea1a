"""A zoo built against Ray Tune with a trial a model, as published zoos were made: `python -m benchmarks.ray_tune`.

MLPs 64-32-32-10 on digits, 10 epochs with evaluation on both splits after each, 11 checkpoints on disk, all cores on
both sides. Ours is `zoo.build.build`, from the first worker's start to the table; Ray Tune runs a sample of trials in a
cluster that is up and has run trials before, and is scaled to as many models. It needs `pip install "ray[tune]"`. The
ratio of processor times is a lower bound: what Ray's processes leave behind when they end is not all counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.ray_trial import BATCH, EPOCHS, PARTS, tune_trials
from benchmarks.record import bar, record
from benchmarks.sides import compare, measure
from benchmarks.team import cores
from zoo.build import build
from zoo.plan import make_plan
from zoo.spec import ZooSpec

LEAST = 300.0


def spec(models: int) -> ZooSpec:
    """Models that differ in their seeds; a checkpoint before training and after every epoch."""
    return ZooSpec(
        "bench",
        numbers={"depth": 2, "width": 32, "activation": "relu"},
        hyperparameters={"epochs": EPOCHS, "batch_size": BATCH},
        checkpoints=tuple(range(EPOCHS + 1)),
        seeds=tuple(range(models)),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_tune", description=__doc__)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--trials", type=int, default=16, help="of Ray Tune a turn")
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args(argv)
    import ray

    count, work = cores(), []
    with tempfile.TemporaryDirectory() as folder:
        root, data = Path(folder), str(Path(folder) / "data.npz")
        split = make_plan(spec(1)).data
        np.savez(data, **{name: getattr(split, name) for name in PARTS})
        ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False, configure_logging=False)

        def theirs(trials: int) -> None:
            with tempfile.TemporaryDirectory(dir=root) as place:
                work.append(tune_trials(trials, data, place))

        def ours(models: int) -> None:
            with tempfile.TemporaryDirectory(dir=root) as place:
                build(spec(models), Path(place) / "bench.zoo")

        try:
            turns = measure(
                {"ray tune": lambda: theirs(given.trials), "ours": lambda: ours(given.models)},
                given.pairs,
                warm={"ray tune": lambda: theirs(2 * count), "ours": lambda: ours(count)},
            )
        finally:
            ray.shutdown()
    found = compare(turns, "ray tune", "ours", given.trials, given.models)
    seconds, slow = (statistics.median(turns[name].wall) for name in ("ours", "ray tune"))
    at_work = statistics.median(sum(trials) for trials in work[1:])
    record(
        "ray",
        {
            "operation": f"build a zoo of MLPs, {EPOCHS} epochs, evaluated, {EPOCHS + 1} checkpoints",
            "setting": {"models": given.models, "batch": BATCH, "cores": count},
            "ours": f"{seconds:.3g} s",
            "against": "Ray Tune, a trial a model",
            "theirs": f"{slow / given.trials * given.models:,.0f} s, scaled from {given.trials} trials",
            "ratio": found,
            **bar(found["median"], LEAST),
            "seconds": round(seconds, 2),
            "cpu_seconds": round(statistics.median(turns["ours"].cpu), 2),
            "seconds_a_trial": round(slow / given.trials, 3),
            "start_up_share_of_a_trial": round(1 - at_work / (slow * count), 3),
        },
        libraries=("ray",),
    )


if __name__ == "__main__":
    main()
