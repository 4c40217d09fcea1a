"""All metrics of all models of `phases_small`, and the phases that come out: `python -m benchmarks.landscape`."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl

import catalog
from benchmarks.record import bar, record
from zoo.build import build
from zoo.label import label
from zoo.landscape.measure import measure
from zoo.landscape.metrics import METRICS
from zoo.presets import PRESETS

BAR = 300.0  # seconds
READ = ("test_accuracy", "mode_connectivity", "cka_yang", "linear_barrier", "hessian_trace", "hessian_top_eigenvalue")


def main(argv: Sequence[str] | None = None) -> int:
    """A row: seconds, cells and means of each phase."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.landscape", description=__doc__)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--preset", default="phases_small")
    given = parser.parse_args(argv)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        zoo = Path(folder) / "bench.zoo"
        build(PRESETS[given.preset](), zoo)
        for turn in range(given.turns):
            begin = time.perf_counter()
            measure(zoo, metrics_at=Path(folder) / str(turn))
            seconds.append(round(time.perf_counter() - begin, 1))
        labels = label(zoo, "median", metrics_at=Path(folder) / "0")
        runs = catalog.open(zoo).table()["run"].n_unique()
    median = statistics.median(seconds)
    record(
        "landscape",
        {
            "operation": f"measure {given.preset}",
            "setting": {"models": runs, "metrics": len(METRICS)},
            "ours": f"{median:.3g} s ({min(seconds):.3g} to {max(seconds):.3g})",
            **bar(median, most=BAR),
            "seconds": median,
            "all_seconds": seconds,
            "phases": phases(labels.rows),
        },
    )
    return 0


def phases(rows: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Cells of each phase, and means over its cells with their standard errors."""
    cells = rows.group_by("phase", "cell").agg(pl.col(name).mean() for name in READ)
    found = {}
    for (phase,), mine in sorted(cells.group_by("phase"), key=lambda item: str(item[0])):
        means = {name: round(float(mine[name].mean()), 4) for name in READ}
        errors = {f"{name}_se": round(float(mine[name].std() or 0) / len(mine) ** 0.5, 4) for name in READ}
        found[str(phase)] = {"cells": len(mine), **means, **errors}
    return found


if __name__ == "__main__":
    sys.exit(main())
