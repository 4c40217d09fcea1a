"""How time grows with the number of models and their width, and how long presets take: `python -m benchmarks.scaling`.

All cores, batch size 32, one epoch, at most 4,096 models at once: they are laid out before time is taken, and their
weights are let go of afterwards. Compiled code and the reference, a process a core, take turns where that is bearable.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.populations import Population, mlp_flops, prepare, train_ours, train_reference_on_all_cores
from benchmarks.record import bar, record
from benchmarks.sides import PAIRS, Side, compare, measure
from benchmarks.team import Team, cores
from zoo.build import build
from zoo.presets import PRESETS

MODELS = (10, 100, 1_000, 10_000, 100_000)
WIDTHS = (8, 16, 32, 64, 128, 256, 512)
BEARABLE = 150_000  # model-steps that the reference is made to take a turn: some ten seconds
SLOW = 3  # pairs at the largest width, a turn of which takes ten seconds
CHUNK = 4096  # models that are laid out and trained at once
BARS = {"phases_small": 60.0}  # seconds


def models(population: Population, pairs: int) -> None:
    """A row: seconds, and against the reference where that is bearable."""
    whole, rest = divmod(population.models, CHUNK)
    chunks = [population.share(CHUNK)] * whole + [population.share(rest)] * (rest > 0)
    prepare(*chunks)
    with Team(cores()) as team:
        sides: dict[str, Side] = {"ours": lambda: [train_ours(chunk, cores()) for chunk in chunks]}
        if population.steps <= BEARABLE:
            sides["reference"] = lambda: train_reference_on_all_cores(population, team)
        chunked = len(chunks) > 1
        warm = {"ours": lambda: train_ours(chunks[-1], cores())} if chunked else None
        turns = measure(sides, 1 if chunked else pairs, warm=warm)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    seconds = statistics.median(turns["ours"].wall)
    rate, flops = population.steps / seconds, population.steps * mlp_flops(population) / seconds / 1e9
    found = compare(turns, "reference", "ours") if "reference" in turns else None
    slow = statistics.median(turns["reference"].wall) if found else 0.0
    record(
        "scaling",
        {
            "operation": f"train {population.name}, growth",
            "setting": {"models": population.models, "batch": population.batch, "epochs": 1, "cores": cores()},
            "ours": f"{seconds:.3g} s, {rate:,.0f} model-steps/s, {flops:.0f} GFLOP/s",
            **({"against": "the reference", "theirs": f"{slow:.3g} s", "ratio": found} if found else {}),
            "seconds": round(seconds, 4),
            "cpu_seconds": round(statistics.median(turns["ours"].cpu), 4),
            "turns": len(turns["ours"].wall),
            "model_steps_per_second": round(rate),
            "gflops": round(flops, 1),
            "peak_megabytes_so_far": memory,
        },
    )


def preset(name: str, turns: int) -> None:
    """A row: how long building a preset takes, processes and evaluation included."""
    seconds = []
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            build(PRESETS[name](), Path(folder) / "bench.zoo")
            seconds.append(round(time.perf_counter() - begin, 2))
    median = statistics.median(seconds)
    runs = PRESETS[name]().num_runs
    record(
        "scaling",
        {
            "operation": f"build {name}",
            "setting": {"models": runs, "cores": cores()},
            "ours": f"{median:.3g} s ({min(seconds):.3g} to {max(seconds):.3g})",
            **bar(median, most=BARS.get(name)),
            "seconds": median,
            "all_seconds": seconds,
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Numbers of models, widths, presets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--most", type=int, default=MODELS[-1], help="models")
    parser.add_argument("--widest", type=int, default=WIDTHS[-1])
    given = parser.parse_args(argv)
    for count in MODELS:
        if count <= given.most:
            models(Population(count), given.pairs)
    for width in WIDTHS:
        if width <= given.widest:
            numbers = (("depth", 2), ("width", width), ("activation", "relu"))
            models(Population(64, numbers=numbers), given.pairs if width < WIDTHS[-1] else min(SLOW, given.pairs))
    build_turns = min(2, given.pairs)
    for name in ("demo", "phases_small"):
        preset(name, build_turns)


if __name__ == "__main__":
    main()
