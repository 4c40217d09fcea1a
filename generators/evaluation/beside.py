"""What a card says beside its rows: of the generator, the protocol, the codec, cost and health."""

from __future__ import annotations

import math

from catalog.errors import InvalidSpecError
from generators.evaluation.card import About, CodecReport, Cost, Protocol, Row
from generators.evaluation.health import health
from generators.evaluation.honesty import honesty
from generators.evaluation.yardstick import MULTIPLES, Drawn, Yardstick
from generators.generator import Generator
from generators.population import Population
from generators.samples import finish
from zoo.build import estimate
from zoo.landscape.measure import plan_of

NOTES = (
    "distances in the quotient are upper bounds: a search over orders and scales of units finds them",
    "test inputs are for this report alone: nothing was chosen by them",
)


def codec_of(generator: Generator, stick: Yardstick) -> CodecReport | None:
    """What the generator's codec does to networks that it was not fitted on; None for one without."""
    codec = getattr(generator.draw, "codec", None)
    if codec is None:
        return None
    architecture, data = stick.population.architecture, stick.population.data
    weights = stick.population.read("test")
    found = honesty(
        lambda given: finish(architecture, codec.decode(codec.encode(given)), data),
        architecture,
        stick.symmetry,
        weights,
        stick.report.x,
        stick.report.y,
    )
    disguised = [one.accuracy.value if one else math.nan for one in (found.permuted, found.rescaled)]
    before = found.plain.accuracy.value - found.plain.change.value
    return CodecReport(before, found.plain.accuracy.value, found.plain.lost.value, *disguised)


def cost_of(generator: Generator, population: Population, mine: Row) -> Cost:
    """What is known, and what training networks of the zoo instead would take here."""
    known = {name: float(value) for name, value in generator.cost.items() if isinstance(value, int | float)}
    training, model = known.get("seconds", math.nan), math.nan
    try:
        plan = plan_of(population.zoo)
        if population.variant in plan.runs:
            expected = estimate(plan, [(population.variant, 0)], 0)
            model = expected.seconds / max(expected.runs, 1)
    except InvalidSpecError:  # of a zoo that was not built from a spec
        pass
    gain = model - mine.seconds
    even = training / gain if gain > 0 else math.nan
    peak, read = (known.get(name, math.nan) for name in ("peak_bytes", "bytes_read"))
    return Cost(mine.seconds, training, peak, read, model, even)


def health_of(generator: Generator, stick: Yardstick, drawn: Drawn) -> dict[str, float]:
    """Beside broken samples: norms, weights out of range, constant networks, and the watchdogs' last look."""
    base = stick.reference.weights
    found = health(drawn.weights, base, drawn.seen.predictions, stick.population.layout)
    named = {
        "rms_ratio": found.rms_ratio,
        "norm_ratio": found.norm_ratio.value,
        "outside": found.outside.value,
        "outside_expected": found.outside_expected,
        "constant": found.constant.value,
    }
    looks = [look for look in generator.history if look.get("chosen")] or list(generator.history)[-1:]
    for name, value in (looks[-1] if looks else {}).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            named[f"look_{name}"] = float(value)
    return named


def about_of(generator: Generator, population: Population) -> About:
    source = generator.source
    return About(
        kind=generator.kind,
        settings=dict(generator.settings),
        fingerprint=generator.fingerprint,
        zoo=str(source["zoo"]),
        url=str(source["url"]),
        digest=str(source["digest"]),
        variant=population.variant,
        architecture=population.architecture.name,
        parameters=population.layout.num_parameters,
        population=population.fingerprint,
        frame=population.frame,
        lineages=dict(source["lineages"]),
        conditions=tuple(generator.conditions.names) if generator.conditions else (),
    )


def protocol_of(stick: Yardstick, samples: int, seed: int, candidates: int) -> Protocol:
    return Protocol(
        samples=samples,
        seed=seed,
        alpha=stick.alpha,
        tau_raw={frame or "raw": one.own.tau for frame, one in stick.references.items()},
        tau_quotient=stick.quotient.spacing.tau,
        candidates=candidates,
        multiples=MULTIPLES,
        data=stick.report.name,
        inputs=len(stick.report.x),
        batch_norm=stick.population.architecture.has_batch_norm,
        notes=NOTES,
    )
