"""The whole evaluation contract in one call: a generator, its baselines and its zoo on one card."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from catalog.errors import GeneratorError, InvalidSpecError, unknown_name
from generators.baselines import BASELINES
from generators.evaluation.asked import asked_for
from generators.evaluation.beside import about_of, codec_of, cost_of, health_of, protocol_of
from generators.evaluation.card import Card, FineTuned, Row, Spread, write_json
from generators.evaluation.finetune import EPOCHS, starts
from generators.evaluation.finetune import finetune as train_on
from generators.evaluation.quotient import Search
from generators.evaluation.verdicts import verdicts
from generators.evaluation.yardstick import Drawn, Yardstick, yardstick
from generators.generator import Generator
from generators.kinds import fit
from generators.population import Population
from generators.samples import finish
from zoo.shards import one_thread

SAMPLES = 1024
FINETUNE = 32
CANDIDATES, REFINED = 4, 2  # of each kind that a baseline's sample is matched with, and that are matched again
Stage = Callable[[str], None]


def judge(
    generator: Generator,
    population: Population | None = None,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    baselines: Sequence[str] | None = None,
    frames: Sequence[str | None] | None = None,
    conditions: Mapping[str, Any] | None = None,
    finetune: int = FINETUNE,
    threads: int | None = None,
    on_stage: Stage | None = None,
    device: str = "cpu",
) -> Card:
    """Draw from a generator and from every baseline, measure all alike, and say what it is worth.

    Args:
        population: that it learned from; opened from its source when left out.
        samples: networks drawn of each, numbers 0 to `samples` of the seed.
        baselines: names in `generators.baselines.BASELINES`, None for all.
        frames: that baselines are fitted in, None being raw weights; raw and the generator's when left out.
        conditions: asked of the samples that are judged, as for `Generator.sample`.
        finetune: networks of each kind that are trained on, 0 for none.
        threads: of compiled code and torch, None for as many as torch uses.
        on_stage: called with what begins now, in words.
        device: where networks are evaluated.

    Raises:
        GeneratorError: another population than it learned from, fewer than two samples, a zoo of other data.
        UnknownNameError: such a baseline or frame there is not.
    """
    names = list(BASELINES if baselines is None else dict.fromkeys(baselines))
    for name in names:
        if name not in BASELINES:
            raise unknown_name("baseline", name, BASELINES)
    _check(samples, seed, finetune, device)
    found = _own_population(generator, population)
    wanted = list(dict.fromkeys([None, found.frame] if frames is None else frames))
    clock, many = _Clock(on_stage), threads or torch.get_num_threads()
    with one_thread():  # of torch: two sets of networks at once are faster than one on two threads
        with clock("read the zoo"):
            stick = yardstick(found, wanted, Search(threads=many))
        with clock("the zoo's own spacing"):
            training = stick.training_row()
        mine, held_out, drawn = _judged(generator, stick, samples, seed, conditions, clock, many)
        with clock("baselines", f"{len(names) * len(wanted)} baselines"):
            rows = _baselines(names, wanted, stick, samples, seed, many)
        with clock("fine-tune"):
            curves = _finetuned(stick, drawn, finetune, seed, many)
        with clock("conditions"):
            fidelity = asked_for(generator, stick, seed)
        with clock("codec"):
            codec = codec_of(generator, stick)
        with clock("cost"):
            cost = cost_of(generator, found, mine)
        healthy = health_of(generator, stick, drawn)
    card = Card(
        generator=about_of(generator, found),
        protocol=protocol_of(stick, samples, seed, 2 * CANDIDATES),
        samples=mine,
        held_out=held_out,
        training=training,
        baselines=tuple(rows),
        finetuned=curves,
        fidelity=fidelity,
        codec=codec,
        cost=cost,
        health=healthy,
        seconds=clock.seconds,
    )
    return replace(card, verdicts=verdicts(card))


def write_card(card: Card, folder: str | os.PathLike[str]) -> None:
    """Write card.json and its page, card.png, into a folder; each is whole or not there.

    Raises:
        InvalidSpecError: no matplotlib; card.json is written then all the same. StorageError: the disk refused.
    """
    write_json(card, folder)
    from generators.evaluation.page import card_page
    from zoo.plots.style import save

    save(card_page(card), os.path.join(os.fspath(folder), "card.png"))


class _Clock:
    """What each stage takes, in seconds."""

    def __init__(self, on_stage: Stage | None) -> None:
        self.on_stage = on_stage
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str, text: str = "") -> Iterator[None]:
        if self.on_stage:
            self.on_stage(text or stage)
        begin = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin


def _check(samples: int, seed: int, finetune: int, device: str) -> None:
    for name, value, least in (("samples", samples, 2), ("seed", seed, 0), ("finetune", finetune, 0)):
        if type(value) is not int or value < least:
            raise GeneratorError(f"{name} must be a whole number of {least} or more, got {value!r}")
    if torch.device(device).type != "cpu":
        raise InvalidSpecError(f"networks are judged on the CPU, got device {device!r}; leave it out")


def _own_population(generator: Generator, population: Population | None) -> Population:
    """The population given, or that of the generator's source.

    Raises:
        GeneratorError: it is another one.
    """
    if population is None:
        from generators.stored import population_of

        return population_of(generator.source)
    if population.fingerprint != generator.source["population"]:
        raise GeneratorError(
            f"a generator is judged against what it learned from, the population {generator.source['population']} of "
            f"{generator.source['url']}; got {population.fingerprint} of {population.zoo.url}"
        )
    return population


def _draw(
    generator: Generator,
    stick: Yardstick,
    samples: int,
    seed: int,
    conditions: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> Drawn:
    """Samples that are ready to be used, and what they do."""
    population, begin = stick.population, time.perf_counter()
    weights = generator.sample(samples, seed=seed, conditions=conditions, threads=threads)
    seconds = (time.perf_counter() - begin) / samples
    weights = finish(population, weights, population.data)
    reference = stick.references[generator.source["frame"]]
    return Drawn(generator.kind, generator.fingerprint, reference, weights, stick.behaviour(weights), seconds)


def _judged(
    generator: Generator,
    stick: Yardstick,
    samples: int,
    seed: int,
    conditions: Mapping[str, Any] | None,
    clock: _Clock,
    many: int,
) -> tuple[Row, Row, Drawn]:
    """The generator's row, that of networks held out, and the samples."""
    with clock("draw and evaluate", f"draw {samples} networks and evaluate them"):
        drawn = _draw(generator, stick, samples, seed, conditions, many)
        weights = np.concatenate([stick.population.read(split) for split in ("validation", "test")])
        held = Drawn("held out", "", stick.reference, weights, stick.behaviour(weights), math.nan)
    with clock("compare", "compare them with the training networks"):
        return stick.row(drawn), stick.row(held), drawn


def _baselines(
    names: Sequence[str], frames: Sequence[str | None], stick: Yardstick, samples: int, seed: int, many: int
) -> list[Row]:
    """A row for each baseline in each frame, so many at once as there are threads."""
    search = replace(stick.search, limit=0, candidates=CANDIDATES, refined=REFINED, restarts=0, threads=1)

    def work(pair: tuple[str, str | None]) -> Row:
        baseline = fit(pair[0], stick.references[pair[1]].population)
        return stick.row(_draw(baseline, stick, samples, seed), search)

    pairs = [(name, frame) for name in names for frame in frames]
    with ThreadPoolExecutor(many) as pool:
        return list(pool.map(work, pairs))


def _finetuned(stick: Yardstick, drawn: Drawn, count: int, seed: int, threads: int) -> tuple[FineTuned, ...]:
    """Curves of the first samples, and of as many of what they are compared with; none without a recipe."""
    if not count:
        return ()
    population = stick.population
    some = drawn.weights[:count]
    given = {"samples": some, **starts(population, some, seed=seed)}
    curves = []
    for name, weights in given.items():  # one by one: network n of each sees the same batches
        ready = finish(population, weights, population.data)
        try:
            accuracy = train_on(population, ready, EPOCHS, seed=seed, threads=threads)
        except InvalidSpecError:  # of a zoo that was not built from a spec, which says how to train
            return ()
        each = [Spread.of(column) for column in accuracy.T]
        mean, error = (tuple(getattr(one, part) for one in each) for part in ("mean", "error"))
        curves.append(FineTuned(name, len(accuracy), EPOCHS, mean, error))
    return tuple(curves)
