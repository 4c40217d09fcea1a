"""How flows do against trivial generators, on digits: `python -m benchmarks.flows table` and `... prize`.

table: the published recipe on 100 MLPs 64-32-32-10, raw, aligned to one of them, in a universe, by width, some seeds
each, with every baseline. prize: the recipe "weightscape" on thousands of lineages, against every baseline. Choices are
made on validation lineages and the last fifth of the training data; what is reported is on test data.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import catalog
from benchmarks.record import record
from generators.baselines import BASELINES
from generators.evaluation.card import Row
from generators.evaluation.quotient import Quotient, Search, quotient_novelty
from generators.evaluation.yardstick import MULTIPLES, Drawn, Yardstick, yardstick
from generators.flow.looks import accuracies
from generators.generator import Generator
from generators.judge import judge, write_card
from generators.kinds import fit
from generators.population import Population, population
from zoo.alignment.align import align
from zoo.alignment.settings import Settings
from zoo.build import build
from zoo.spec import ZooSpec
from zoo.splits import with_validation

FRAMES: dict[str, Settings | None] = {
    "raw": None,
    "first": Settings("reference"),
    "universe": Settings("universe", balance=True, members=256),
}
SGD: dict[str, Any] = {"epochs": 20}  # learning rate 0.05, momentum 0.9, batches of 32: 97.1 % at width 32
ZOOS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "64-32-32-10": ({"depth": 2, "width": 32}, SGD),
    "64-16-10": ({"depth": 1, "width": 16}, {"epochs": 30, "weight_decay": 5e-3}),
}
SEARCH = Search(limit=0, candidates=8, refined=3)  # of the table: a fifth of the time of the thorough one


def zoo_of(name: str, models: int, folder: str) -> catalog.Zoo:
    """A digits zoo of ReLU MLPs that differ in their seeds, with its frames; built once a folder."""
    numbers, trained = ZOOS[name]
    url = str(Path(folder) / f"{name}-{models}.zoo")
    spec = ZooSpec(name, numbers=numbers, hyperparameters=trained, seeds=tuple(range(models)))
    build(spec, url, workers=0)
    for frame, settings in FRAMES.items():
        if settings is not None:
            align(url, frame, settings)
    return catalog.open(url)


def chosen(zoo: catalog.Zoo, frame: str, held_out: int) -> Population:
    """All lineages, so many of them for validation and as many for reports."""
    runs = zoo.scan().select("run").unique().collect().height
    return population(zoo, frame=None if frame == "raw" else frame, held_out=held_out / runs)


def measured(stick: Yardstick, generator: Generator, frame: str | None, samples: int) -> Row:
    """Samples 0 to `samples` of seed 0 on the table."""
    begin = time.perf_counter()
    weights = generator.sample(samples)
    seconds = (time.perf_counter() - begin) / samples
    drawn = Drawn(
        generator.kind, generator.fingerprint, stick.references[frame], weights, stick.behaviour(weights), seconds
    )
    return stick.row(drawn)


def told(row: Row) -> dict[str, Any]:
    """What a line of results says of a set of networks."""
    novel = dict(
        zip(map(str, MULTIPLES), zip(row.novel_quotient.share, row.novel_quotient.error, strict=True), strict=True)
    )
    return {
        "samples": row.count,
        "accuracy": round(row.accuracy.mean, 4),
        "accuracy_se": round(row.accuracy.error, 4),
        "nearest_raw": round(row.raw.median, 3),
        "nearest_quotient": round(row.quotient.median, 3),
        "error_iou": round(row.error_iou.mean, 3),
        "disagreement": round(row.disagreement.mean, 3),
        "rms": round(row.rms, 3),
        "novel_and_performant": {m: [round(share, 4), round(se, 4)] for m, (share, se) in novel.items()},
    }


def in_words(row: Row) -> str:
    return f"{row.accuracy.mean:.1%} accurate, nearest {row.quotient.median:.2f}, error-IoU {row.error_iou.mean:.2f}"


def table(models: int, widths: Sequence[int], seeds: int, iterations: int, samples: int, folder: str) -> None:
    """Rows of the flows, one a frame, width and seed, and of every baseline in every frame."""
    held = max(1, models // 10)
    zoo = zoo_of("64-32-32-10", models + 2 * held, folder)
    for frame in FRAMES:
        found = chosen(zoo, frame, held)
        stick = yardstick(found, [found.frame], SEARCH)
        setting = {"models": models, "zoo": "64-32-32-10", "frame": frame}
        for kind in BASELINES:
            row = measured(stick, fit(kind, found), found.frame, samples)
            record(
                "flows", {"operation": f"generate by {kind}", "setting": setting, "ours": in_words(row), **told(row)}
            )
        held_out = stick.behaviour(weights := found.read("test"))
        drawn = Drawn("held out", "", stick.reference, weights, held_out, float("nan"))
        row = stick.row(drawn)
        record("flows", {"operation": "independent runs", "setting": setting, "ours": in_words(row), **told(row)})
        for width, seed in itertools.product(widths, range(seeds)):
            made = fit("flow", found, {"preset": "deepweightflow", "width": width, "iterations": iterations}, seed=seed)
            row = measured(stick, made, found.frame, samples)
            own = {**setting, "width": width, "iterations": iterations, "seed": seed}
            line = {"operation": "generate by deepweightflow", "setting": own, "ours": in_words(row), **told(row)}
            record("flows", {**line, "training_seconds": round(made.cost["seconds"], 1)})


def prize(name: str, models: int, settings: dict[str, Any], temperatures: Sequence[float], samples: int,
          folder: str, out: str | None) -> None:  # fmt: skip
    """The recipe "weightscape" against every baseline; the temperature is chosen on validation data."""
    zoo = zoo_of(name, models, folder)
    found = chosen(zoo, "universe", max(64, models // 32))
    made = fit("flow", found, settings)
    known = yardstick(found, [], Search()).quotient
    choices = {t: validated(made, found, known, t) for t in temperatures}
    best = max(choices, key=lambda t: choices[t])
    print({"validation, share novel and performant at m = 1": choices}, flush=True)
    card = judge(heated(made, best), found, samples=samples, finetune=0)
    for row in (card.samples, *card.baselines, card.held_out):
        line = {"operation": f"prize: {row.name}", "ours": in_words(row), **told(row)}
        setting = {"models": models, "zoo": name, "frame": row.frame or "raw"}
        if row is card.samples:
            setting |= {"temperature": best, "iterations": made.settings["iterations"]}
            line |= {"chosen_among": choices, "cost": dict(made.cost), "verdicts": list(card.verdicts)}
        record("flows", {**line, "setting": setting})
    if out:
        write_card(card, out)


def heated(generator: Generator, temperature: float) -> Generator:
    """The same flow from noise of another temperature."""
    draw: Any = generator.draw
    source = dataclasses.replace(draw.source, temperature=temperature)
    recipe = dataclasses.replace(draw.recipe, temperature=temperature)
    settings = {**generator.settings, "temperature": temperature}
    return dataclasses.replace(
        generator, settings=settings, draw=dataclasses.replace(draw, source=source, recipe=recipe)
    )


def validated(
    generator: Generator, found: Population, known: Quotient, temperature: float, samples: int = 256
) -> float:
    """Share of samples, of another seed, performant on validation data and as new as half the independent runs are."""
    weights = heated(generator, temperature).sample(samples, seed=1)
    validation = with_validation(found.data)[1]
    train = found.read("train", np.linspace(0, len(found.split("train")) - 1, 256).astype(int))
    least = 0.92 * np.median(accuracies(found.architecture, train, validation))
    good = accuracies(found.architecture, weights, validation) >= least
    return float((good & (quotient_novelty(weights, known).ratio >= 1)).mean())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flows", description=__doc__)
    parser.add_argument("what", choices=("table", "prize"))
    parser.add_argument("--zoo", default="64-16-10", choices=tuple(ZOOS))
    parser.add_argument("--models", type=int)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 512])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 1.1, 1.2, 1.3])
    parser.add_argument("--samples", type=int, default=1024, help="256 in the table that is published")
    parser.add_argument("--folder", help="keep the zoos here")
    parser.add_argument("--out", help="folder for the card of the prize")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)  # two on busy cores are ten times slower than one
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or temporary
        if given.what == "table":
            iterations = given.iterations or 10_000
            table(given.models or 100, given.widths, given.seeds, iterations, given.samples, folder)
        else:
            settings = {"iterations": given.iterations} if given.iterations else {}
            prize(given.zoo, given.models or 16_384, settings, given.temperatures, given.samples, folder, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
