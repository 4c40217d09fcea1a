"""The generator card: what a generator was found to be worth, with every number that its verdict rests on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catalog.errors import FormatError, MissingDataError
from catalog.folder import Folder
from generators.evaluation.records import from_json, to_json

FORMAT = 1
FILE = "card.json"
LIMIT = 64 << 20  # bytes of a card.json
BINS = 200  # of the histograms, from 0 to 1
POINTS = 256  # samples whose accuracy and novelty are kept one by one


@dataclass(frozen=True)
class Spread:
    """How a quantity is distributed over samples, those left out where it is not finite (`count` is of the others)."""

    count: int
    low: float
    first: float
    median: float
    third: float
    high: float
    mean: float
    error: float  # standard error of the mean

    @classmethod
    def of(cls, values: Any) -> Spread:
        """Of (samples,) numbers; NaN where there are none.

        >>> Spread.of([1, 2, 3, float("nan")]).median
        2.0
        """
        found = np.asarray(values, np.float64).ravel()
        found = found[np.isfinite(found)]
        if not len(found):
            return cls(0, *[math.nan] * 7)
        low, first, median, third, high = np.quantile(found, (0, 0.25, 0.5, 0.75, 1)).tolist()
        error = float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else math.nan
        return cls(len(found), low, first, median, third, high, float(found.mean()), error)


@dataclass(frozen=True)
class Shares:
    """The N&P curve: share of samples that are novel and performant, for each multiple of the protocol.

    Args:
        share: of all samples, broken ones too. error: binomial standard error.
    """

    share: tuple[float, ...]
    error: tuple[float, ...]


@dataclass(frozen=True)
class Diversity:
    """How samples differ from each other, means over pairs.

    Args:
        distance: L2 over that between training networks of the same frame. error_iou: of misclassified sets.
        disagreement: share of inputs with another class. ensemble_gain: accuracy of a vote of 16 less that of its
            members.
    """

    distance: float
    error_iou: float
    disagreement: float
    ensemble_gain: float


@dataclass(frozen=True)
class Row:
    """A set of networks on the table: the generator's samples, a baseline's, or networks of the zoo.

    Args:
        name: kind of generator, or "held out", "training". frame: of what it learned from, None for raw weights.
        count: networks, broken ones (not finite) among them.
        accuracy, loss: on the reporting split, as drawn, no gradient step.
        raw, quotient: distance to the nearest training network over the zoo's own median of the same: 0 is a copy, 1 as
            new as an independent run. In the quotient both are compared in the best common order of units.
        error_iou: largest over training networks, intersection over union of misclassified inputs.
        disagreement: with the nearest in the quotient.
        rms: root mean square of deviations from the mean training network, over that of training networks.
        broken: share of networks with weights or outputs that are not finite.
        novel_raw, novel_quotient: the N&P curves.
        accuracies, ious: histograms over BINS equal bins from 0 to 1, counts. points: (quotient ratio, accuracy) of the
            first samples.
        seconds: of drawing one.
    """

    name: str
    frame: str | None
    fingerprint: str
    count: int
    accuracy: Spread
    loss: Spread
    raw: Spread
    quotient: Spread
    error_iou: Spread
    disagreement: Spread
    rms: float
    broken: float
    novel_raw: Shares
    novel_quotient: Shares
    diversity: Diversity
    accuracies: tuple[int, ...]
    ious: tuple[int, ...]
    points: tuple[tuple[float, ...], ...]
    seconds: float

    @property
    def label(self) -> str:
        return self.name if self.frame is None else f"{self.name} ({self.frame})"


@dataclass(frozen=True)
class About:
    """Which generator: kind, settings, fingerprint, and where its networks come from."""

    kind: str
    settings: Mapping[str, Any]
    fingerprint: str
    zoo: str
    url: str
    digest: str
    variant: str
    architecture: str
    parameters: int
    population: str
    frame: str | None
    lineages: Mapping[str, int]
    conditions: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """How it was judged.

    Args:
        samples: networks drawn of each generator. seed: theirs.
        alpha: accuracy from which a network is performant, fixed by the zoo before any sample was drawn.
        tau_raw: frame ("raw" for none) -> the zoo's own median distance from a training network to the nearest one of
            another lineage. tau_quotient: the same in the quotient, where there are no frames.
        candidates: training networks that a baseline's sample is matched with, 0 for all; the fewer, the newer it may
            seem, which is in the baseline's favour.
        multiples: of tau, at which the N&P curves are given.
        data: name of the split that accuracies, losses and errors are of. inputs: how many it has.
        batch_norm: whether statistics of BatchNorm were re-estimated, on training inputs.
        notes: what is a bound or an approximation.
    """

    samples: int
    seed: int
    alpha: float
    tau_raw: Mapping[str, float]
    tau_quotient: float
    candidates: int
    multiples: tuple[float, ...]
    data: str
    inputs: int
    batch_norm: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FineTuned:
    """Accuracy of networks trained on for some epochs: means over `count` networks, with their standard errors.

    Args:
        name: "samples", "nearest" (checkpoints), "soup", "random".
    """

    name: str
    count: int
    epochs: tuple[int, ...]
    accuracy: tuple[float, ...]
    error: tuple[float, ...]


@dataclass(frozen=True)
class Fidelity:
    """Whether samples are as was asked, for one column.

    Args:
        requested: levels as text, empty where the column cannot be measured on samples; then `reason` says why.
        obtained, error: means with their standard errors; of categories the share that came out as asked.
        spearman: rank correlation of asked and obtained over samples, NaN for categories.
        difference: mean absolute one of asked and obtained; of categories the share that came out as another.
        without: the same of samples drawn without the condition.
    """

    column: str
    requested: tuple[str, ...]
    obtained: tuple[float, ...]
    error: tuple[float, ...]
    spearman: float
    difference: float
    without: float
    reason: str | None


@dataclass(frozen=True)
class CodecReport:
    """What encoding and decoding does to held-out networks: the ceiling of whatever is generated through it.

    Args:
        before, after: mean accuracy. lost: 1 - IoU of misclassified sets before and after, mean.
        permuted, rescaled: mean accuracy after the round trip of the same networks under a random permutation and
            rescaling of their units, which change no output; NaN where there is no such symmetry.
    """

    before: float
    after: float
    lost: float
    permuted: float
    rescaled: float


@dataclass(frozen=True)
class Cost:
    """What it costs, NaN where it is not known.

    Args:
        sample_seconds: to draw one network. training_seconds, peak_bytes, bytes_read: of fitting the generator.
        model_seconds: to train one network of the zoo instead. break_even: networks from which on generating is
            cheaper, NaN for never.
    """

    sample_seconds: float
    training_seconds: float
    peak_bytes: float
    bytes_read: float
    model_seconds: float
    break_even: float


@dataclass(frozen=True)
class Card:
    """All that is known of a generator. `verdicts` are sentences that follow from the rest.

    Args:
        samples: the generator's. baselines: a row each. held_out: networks of lineages that nobody learned from, which
            is what a perfect generator's samples would look like. training: the networks learned from, each against
            those of other lineages.
        health: further measurements, name -> number. seconds: stage of judging -> what it took.
    """

    generator: About
    protocol: Protocol
    samples: Row
    held_out: Row
    training: Row
    baselines: tuple[Row, ...]
    finetuned: tuple[FineTuned, ...]
    fidelity: tuple[Fidelity, ...]
    codec: CodecReport | None
    cost: Cost
    health: Mapping[str, float]
    seconds: Mapping[str, float]
    verdicts: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """Generator, baselines, then the zoo's own."""
        return (self.samples, *self.baselines, self.held_out, self.training)

    def share(self, row: Row, multiple: float) -> tuple[float, float]:
        """N&P in the quotient at a multiple of the protocol, and its standard error."""
        place = self.protocol.multiples.index(multiple)
        return row.novel_quotient.share[place], row.novel_quotient.error[place]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **to_json(self)}

    @classmethod
    def from_json(cls, content: Any) -> Card:
        """Raises FormatError for what is no card, or one of another format."""
        if not isinstance(content, Mapping) or type(content.get("format")) is not int:
            raise FormatError("not a generator card: a JSON object with a member format was expected")
        if content["format"] != FORMAT:
            raise FormatError(f"a card of format {content['format']}; this version reads {FORMAT}")
        card = from_json(cls, {name: value for name, value in content.items() if name != "format"}, "card")
        _check(card)
        return card


def _check(card: Card) -> None:
    """Raise FormatError unless lists that belong together are of one length."""
    lengths = {len(card.protocol.multiples)}
    lengths |= {len(part) for row in card.rows for one in (row.novel_raw, row.novel_quotient) for part in _both(one)}
    if len(lengths) > 1:
        raise FormatError("a card's N&P curves must have a value at each multiple of its protocol")
    together: list[Sequence[Sequence[Any]]] = [(one.epochs, one.accuracy, one.error) for one in card.finetuned]
    together += [(one.requested, one.obtained, one.error) for one in card.fidelity]
    if any(len({len(part) for part in parts}) > 1 for parts in together):
        raise FormatError("a card's curves must have as many values as errors")
    if any(len(point) != 2 for row in card.rows for point in row.points):
        raise FormatError("a card's points are pairs of novelty and accuracy")


def _both(shares: Shares) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return shares.share, shares.error


def histogram(values: Any) -> tuple[int, ...]:
    """Counts over BINS equal bins from 0 to 1; what is not finite is left out."""
    found = np.asarray(values, np.float64).ravel()
    counts, _ = np.histogram(np.clip(found[np.isfinite(found)], 0, 1), BINS, (0, 1))
    return tuple(counts.tolist())


def write_json(card: Card, folder: str | os.PathLike[str]) -> None:
    """Write card.json into a folder or fsspec URL: all of it, or nothing."""
    text = json.dumps(card.to_json(), indent=1, allow_nan=False)
    Folder.at(folder).write(FILE, text.encode())


def read_card(folder: str | os.PathLike[str]) -> Card:
    """The card in a folder.

    Raises:
        FormatError: it is none. MissingDataError, StorageError: there is none, or it cannot be read.
    """
    place = Folder.at(folder)
    try:
        body = place.read(FILE, LIMIT)
    except FileNotFoundError as error:
        raise MissingDataError(f"{place.url} holds no card: no {FILE}; `weightscape card` makes one") from error
    try:
        content = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{FILE} of {place.url} is not JSON: {error}") from error
    return Card.from_json(content)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")
