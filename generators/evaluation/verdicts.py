"""What a card says in words: sentences with their numbers, by thresholds stated here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from generators.evaluation.card import Card, Fidelity, FineTuned, Row
from generators.evaluation.frontier import Curve, above

COPIES = 0.1  # median distance to the nearest training network over the zoo's spacing: below it, copies
COPY_NOISE = "noise_small"  # whoever shares as many errors with one training network as this baseline copies, too
COLLAPSED = 0.3  # rms of deviations from the mean network over the zoo's; a soup of 16 has 0.25
ALIKE = 0.1  # mean distance between samples over that between training networks: below it, nearly one network
ERRORS = 2.0  # combined standard errors that make a difference
CLAIM = 1024  # samples that a claim of being better than the baselines takes
NOVEL = 1.0  # multiple of the zoo's spacing from which a network is as new as an independent run
FOLLOWS = 0.5  # rank correlation of what was asked with what came
CODEC = 0.005  # accuracy that a round trip through the codec may take


def verdicts(card: Card) -> tuple[str, ...]:
    """Sentences on copying, collapse, baselines, conditions, codec and broken samples; pure, from the card alone."""
    found = [
        *_copying(card),
        *_collapse(card),
        *_novel_and_performant(card),
        *_accuracy(card),
        *_finetuning(card),
        *(sentence for one in card.fidelity for sentence in _condition(one)),
        *_codec(card),
        *_broken(card),
    ]
    if card.samples.count < CLAIM:
        found.append(f"judged on {card.samples.count} samples: a claim to beat the baselines takes {CLAIM:,}")
    return tuple(found)


def _copying(card: Card) -> list[str]:
    mine = card.samples
    noise = [row for row in _rivals(card) if row.name == COPY_NOISE]
    near = mine.quotient.median < COPIES
    shared = any(mine.error_iou.median >= row.error_iou.median for row in noise)
    if not near and not shared:
        return []
    why = (
        f"its median sample lies {mine.quotient.median:.2f} of the zoo's spacing from a training network and shares "
        f"{mine.error_iou.median:.2f} of its errors with one"
    )
    least = min((row.error_iou.median for row in noise), default=math.nan)
    least_said = f", noise around members {least:.2f}" if shared else ""
    return [f"copies its training set: {why}{least_said}"]


def _collapse(card: Card) -> list[str]:
    found = []
    if card.samples.rms < COLLAPSED:
        found.append(
            f"collapses to the mean: its samples deviate from the mean network by {card.samples.rms:.2f} of what the "
            "training networks do"
        )
    if card.samples.diversity.distance < ALIKE:
        found.append(
            f"draws nearly one network: its samples lie {card.samples.diversity.distance:.2f} of the training networks'"
            " distance apart"
        )
    return found


def _novel_and_performant(card: Card) -> list[str]:
    """N&P in the quotient: where it is above all baselines, where below one, and whether there is anything at all."""
    above: dict[bool, list[str]] = {True: [], False: []}
    below: dict[str, list[str]] = {}
    rivals = _rivals(card)
    enough = rivals and min(row.count for row in (card.samples, *rivals)) >= CLAIM
    for multiple in card.protocol.multiples:
        if not rivals:
            break
        mine, best = card.share(card.samples, multiple), max(rivals, key=lambda row: card.share(row, multiple)[0])
        text = f"{_share(*mine)} against {_share(*card.share(best, multiple))}"
        if enough and all(_above(card, card.samples, row, multiple) for row in rivals):
            above[multiple >= NOVEL].append(f"at m = {multiple:g}, {text} of {best.label}")
        if _above(card, best, card.samples, multiple):
            below.setdefault(best.label, []).append(f"at m = {multiple:g}, {text}")
    found = []
    if above[True]:
        found.append(f"beats every baseline at N&P m >= 1: {'; '.join(above[True])}")
    if above[False]:
        found.append(f"above every baseline at N&P m < 1: {'; '.join(above[False])}")
    novel = [multiple for multiple in card.protocol.multiples if multiple >= NOVEL]
    if novel and not any(card.share(card.samples, multiple)[0] > 0 for multiple in novel):
        found.append(
            f"no sample is both novel and performant at m >= 1: none of {card.samples.count} has both an accuracy of "
            f"{_percent(card.protocol.alpha)} and the zoo's own spacing from its training networks"
        )
    return found + [f"loses to {label} at N&P: {'; '.join(texts)}" for label, texts in below.items()]


def _accuracy(card: Card) -> list[str]:
    mine = card.samples.accuracy
    better = [row for row in _rivals(card) if _clearly(row.accuracy.mean, row.accuracy.error, mine.mean, mine.error)]
    if not better:
        return []
    better.sort(key=lambda row: (row.name != "soup", -row.accuracy.mean))
    first = list({row.name: row for row in reversed(better)}.values())[::-1]  # of a baseline's frames the best
    said = _list([f"{row.label} {_percent(row.accuracy.mean, row.accuracy.error)}" for row in first])
    return [f"loses in accuracy, with {_percent(mine.mean, mine.error)}, to {said}"]


def _finetuning(card: Card) -> list[str]:
    """After each number of epochs: who is better than the samples, trained on for as long."""
    curves = {one.name: one for one in card.finetuned}
    if "samples" not in curves:
        return []
    mine, found = curves["samples"], []
    for epoch in mine.epochs:
        if epoch == 0:
            continue
        better = [one for one in card.finetuned if one is not mine and _better(one, mine, epoch)]
        if better:
            said = ", ".join(f"{FINETUNED.get(one.name, one.name)} {_percent(*_at(one, epoch))}" for one in better)
            epochs = f"{epoch} epoch{'s' if epoch > 1 else ''}"
            found.append(f"fine-tuned for {epochs}, loses to {said}: {_percent(*_at(mine, epoch))}")
    return found


FINETUNED = {"nearest": "the nearest checkpoints", "soup": "soup", "random": "random initialisation"}


def _condition(one: Fidelity) -> list[str]:
    """Numbers must be ranked as asked; all columns must come nearer to what was asked than without asking."""
    if one.reason is not None:
        return []
    ranked = math.isnan(one.spearman) or one.spearman >= FOLLOWS
    nearer = math.isnan(one.without) or one.difference < one.without
    if ranked and nearer:
        return []
    rank = "" if math.isnan(one.spearman) else f"rank correlation of asked and obtained {one.spearman:.2f}, "
    return [
        f"does not follow its condition {one.column}: {rank}{one.difference:.3g} off what was asked, "
        f"{one.without:.3g} without asking"
    ]


def _codec(card: Card) -> list[str]:
    one = card.codec
    if one is None or not one.before - one.after > CODEC:
        return []
    return [
        f"codec loses {100 * (one.before - one.after):.1f} points: held-out networks score {_percent(one.after)} after "
        f"the round trip, {_percent(one.before)} before"
    ]


def _broken(card: Card) -> list[str]:
    if not card.samples.broken > 0:
        return []
    return [f"{100 * card.samples.broken:.3g} % of the samples are broken: weights or outputs that are not finite"]


def _rivals(card: Card) -> list[Row]:
    """Baselines other than the generator itself."""
    return [row for row in card.baselines if row.fingerprint != card.generator.fingerprint]


def _clearly(high: float, high_error: float, low: float, low_error: float) -> bool:
    """Whether one number is above another by more than two combined standard errors; an error of NaN counts as 0."""
    error = math.hypot(*(0.0 if math.isnan(one) else one for one in (high_error, low_error)))
    return high - low > ERRORS * error


def _above(card: Card, one: Row, other: Row, multiple: float) -> bool:
    """Whether one row has clearly more novel and performant networks, by the errors of `frontier.above`."""
    curves = []
    for row in (one, other):
        share, error = (np.array([value]) for value in card.share(row, multiple))
        curves.append(Curve(np.array([multiple]), share, error, error, row.count, card.protocol.alpha))
    return bool(above(curves[0], curves[1], ERRORS)[0])


def _better(one: FineTuned, other: FineTuned, epoch: int) -> bool:
    return epoch in one.epochs and _clearly(*_at(one, epoch), *_at(other, epoch))


def _at(one: FineTuned, epoch: int) -> tuple[float, float]:
    place = one.epochs.index(epoch)
    return one.accuracy[place], one.error[place]


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _share(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


def _percent(value: float, error: float = math.nan) -> str:
    if math.isnan(error):
        return f"{100 * value:.1f} %"
    digits = 1 if 100 * error >= 0.05 else 2
    return f"{100 * value:.{digits}f} ± {100 * error:.{digits}f} %"
