"""Run benchmarks: `python -m benchmarks [NAME...]`, without a name all but the long ones. That is `make bench`.

Each runs in a process of its own, appends rows to benchmarks/results/ and prints them; `weightscape bench --summary`
shows the latest. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

BUSY = 0.7  # processes that run, before anything is measured
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Benchmark:
    """A module of this folder with a `main`.

    Args:
        minutes: about, on two cores. needs: a library beyond the development ones. always: part of `make bench`.
    """

    what: str
    minutes: float
    needs: str | None = None
    always: bool = True
    module: str | None = None


BENCHMARKS = {
    "training": Benchmark("populations against PyTorch loops, all cores", 4),
    "evaluation": Benchmark("evaluating populations against load_state_dict and forward, one core", 2.4),
    "generation": Benchmark("evaluating generated networks, a card of a generator, drawing from flows", 2),
    "landscape": Benchmark("all metrics of the 168 models of phases_small", 1.3),
    "connectivity": Benchmark("Bezier curves of 100 pairs against one pair after the other, one core", 1),
    "curvature": Benchmark("Hessians of 100 networks against PyHessian, one core", 1.8, needs="pyhessian"),
    "storage": Benchmark("writing and reading against .pt files and zarr-python", 4),
    "packing": Benchmark("packed against raw weights, size and time", 2, always=False),
    "scaling": Benchmark("from 10 to 100,000 models and widths 8 to 512; building presets", 5.4),
    "agreement": Benchmark("population training against one network at a time, float64", 1, always=False),
    "alignment": Benchmark("populations against one model at a time with scipy, one core and all; growth", 2.2),
    "assignment": Benchmark("linear assignment on costs of matching against scipy, lapx and torch, one core", 0.8),
    "rebasin": Benchmark("what alignment gives on digits MLPs, the table of views", 12, always=False),
    "distributions": Benchmark("accuracies of 1,000 long runs, compiled against reference", 17, always=False),
    "gpu": Benchmark("kernels on a GPU against scipy, torch-linear-assignment and torch", 3, always=False),
    "planted": Benchmark("permutations found again, objectives of trained pairs against scipy ports", 5, always=False),
    "remote": Benchmark("a published zoo on S3 and on our server, against polars and zarr by URL", 2, always=False),
    "verifying": Benchmark("verify against sha256sum, MiB/s a core", 1, always=False),
    "explorer": Benchmark("making and opening the page of 1,000 models", 1, needs="playwright", always=False),
    "ray": Benchmark("a build against Ray Tune with a trial a model", 8, needs="ray", always=False, module="ray_tune"),
}


def run(names: Sequence[str], start: Callable[[list[str]], int]) -> int:
    """Run these benchmarks, all usual ones when there are none; how many failed.

    Args:
        start: runs a command and returns its exit status.
    """
    chosen = {name: BENCHMARKS[name] for name in names} or {n: b for n, b in BENCHMARKS.items() if b.always}
    print(f"{len(chosen)} benchmarks, about {sum(one.minutes for one in chosen.values()):g} minutes in all", flush=True)
    if (load := os.getloadavg()[0]) > BUSY:
        print(
            f"the machine is busy (load {load:.1f}): PyTorch on several threads may be tens of times slower than alone"
        )
    failed = []
    for name, one in chosen.items():
        module = f"benchmarks.{one.module or name}"
        if importlib.util.find_spec(module) is None:
            print(f"{name}: not here yet", flush=True)
            continue
        if one.needs and importlib.util.find_spec(one.needs) is None:
            print(f'{name}: left out, it needs {one.needs}: pip install "{one.needs}[tune]"', flush=True)
            continue
        print(f"{name}: {one.what}; about {one.minutes:g} min", flush=True)
        if start([sys.executable, "-m", module]):
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    listed = "; ".join(f"{name}: {one.what} ({one.minutes:g} min)" for name, one in BENCHMARKS.items())
    parser.add_argument("names", nargs="*", metavar="NAME", help=listed)
    names = parser.parse_args(argv).names
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"unknown benchmark {unknown[0]!r}; known: {', '.join(BENCHMARKS)}")
    return int(bool(run(names, lambda command: subprocess.run(command, cwd=ROOT, check=False).returncode)))


if __name__ == "__main__":
    sys.exit(main())
