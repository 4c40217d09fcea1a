"""Generated networks: evaluating them, a whole card, drawing them from a flow: `python -m benchmarks.generation`.

Evaluation is of 1,000 networks between trained ones against loading one after the other, a core each side. The card is
of 1,024 samples of MLPs 64-32-32-10 against 100 lineages, with all baselines raw and aligned, fine-tuning and page.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import catalog
from benchmarks.evaluation import evaluation
from benchmarks.populations import MODEL_ZOO, Population, lay_out
from benchmarks.record import bar, record
from benchmarks.sides import compare, measure
from benchmarks.team import cores
from generators.generator import TOGETHER, Generator
from generators.judge import SAMPLES, judge, write_card
from generators.kinds import fit
from generators.population import population as choose
from zoo.alignment.align import align
from zoo.build import build

PAIRS = 3
FASTER = 8.0  # than a loop
LONGEST = 60.0  # seconds, of a card
LINEAGES = 125  # of which 101 are learned from
STEPS = 20  # of training: how good a flow is changes nothing of what it takes to draw from it
LIBRARIES = ("lightning",)


def generated(population: Population, folder: Path) -> torch.Tensor:
    """So many networks between trained ones, (models, size)."""
    zoo = build(lay_out(population.share(16)).spec, folder / "small.zoo", workers=0)
    return torch.from_numpy(fit("mix", choose(zoo)).sample(population.models))


def evaluate_generated(population: Population, pairs: int) -> int:
    """A row; how many predictions differ."""
    with tempfile.TemporaryDirectory() as folder:
        weights = generated(population, Path(folder))
    return evaluation(population, pairs, weights, least=FASTER, name="generation", what="evaluate generated")


def card(generator: Generator, turns: int, samples: int = SAMPLES) -> None:
    """A row: seconds of a card with its page, and of each stage."""
    seconds, found = [], None
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(turns):
            begin = time.perf_counter()
            found = judge(generator, samples=samples, threads=cores())
            write_card(found, folder)
            seconds.append(round(time.perf_counter() - begin, 1))
    assert found
    median = statistics.median(seconds)
    row = {
        "operation": f"card of a {generator.kind}, {generator.architecture.name}",
        "setting": {"samples": samples, "lineages": LINEAGES, "baselines": len(found.baselines), "cores": cores()},
        "ours": f"{median:.3g} s ({min(seconds):.3g} to {max(seconds):.3g})",
        **bar(median, most=LONGEST),
        "seconds": median,
        "all_seconds": seconds,
        "stages": {name: round(value, 2) for name, value in found.seconds.items()},
    }
    record("generation", row, LIBRARIES)


def drawing(published: Generator, ours: Generator, pairs: int) -> None:
    """A row: networks a second of two flows in turn."""
    sides = {"ours": lambda: ours.sample(TOGETHER), "published": lambda: published.sample(TOGETHER)}
    turns = measure(sides, pairs, warm={name: lambda: None for name in sides})
    rates = {name: TOGETHER / statistics.median(turn.wall) for name, turn in turns.items()}
    steps = {name: f"{one.settings['solver']}, {one.settings['steps']} steps" for name, one in
             (("ours", ours), ("published", published))}  # fmt: skip
    row = {
        "operation": f"draw from a flow, {ours.architecture.name}",
        "setting": {"networks": TOGETHER, "width": ours.settings["width"], "cores": cores()},
        "ours": f"{rates['ours']:,.0f} networks/s ({steps['ours']})",
        "against": f"deepweightflow, d_h {published.settings['width']} ({steps['published']})",
        "theirs": f"{rates['published']:,.0f} networks/s",
        "ratio": compare(turns, "published", "ours"),
    }
    record("generation", row, LIBRARIES)


def main(argv: Sequence[str] | None = None) -> int:
    """All rows; 1 when predictions differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of the card")
    parser.add_argument("--turns", type=int, default=1, help="of the card")
    given = parser.parse_args(argv)
    populations = [
        Population(given.models, epochs=3, test=360),
        Population(given.models, epochs=3, test=360, family="cnn", numbers=MODEL_ZOO),
    ]
    differ = sum(evaluate_generated(one, given.pairs) for one in populations)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.zoo"
        build(lay_out(Population(LINEAGES, epochs=10)).spec, path, workers=0)
        align(path)
        known = choose(catalog.open(path), frame="universe")
        # a codec that loses the networks is none of this benchmark's business
        flows = [
            fit("flow", known, {"preset": name, "iterations": STEPS, "force": True})
            for name in ("deepweightflow", "weightscape")
        ]
        drawing(flows[0], flows[1], min(given.pairs, 2))
        card(flows[1], given.turns, given.samples)
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
