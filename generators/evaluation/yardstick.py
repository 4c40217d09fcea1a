"""What samples are measured against: the training networks, in each frame and in the quotient, worked out once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from catalog.errors import GeneratorError, InvalidSpecError
from generators.evaluation.card import POINTS, Diversity, Row, Shares, Spread, histogram
from generators.evaluation.diversity import diversity
from generators.evaluation.frontier import alpha_of, frontier
from generators.evaluation.functions import Behaviour, behaviour, disagreement, error_iou, own_error_iou
from generators.evaluation.novelty import Spacing, novelty, parameters, spacing
from generators.evaluation.quotient import Quotient, Search, quotient_novelty, quotient_of
from generators.population import SPLITS, Population
from generators.population import population as choose
from weightspace.symmetry import Symmetry
from zoo.splits import Split, test_split
from zoo.symmetries import symmetry_of

MULTIPLES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0)  # below 1 curves show what copies


@dataclass(frozen=True, eq=False)
class Reference:
    """The training networks in one frame.

    Args:
        weights: (models, size) float32. centre: (parameters,) their mean. deviation: root mean square from it.
        distance: mean between two of them.
    """

    population: Population
    weights: np.ndarray
    own: Spacing
    centre: np.ndarray
    deviation: float
    distance: float

    @classmethod
    def of(cls, population: Population) -> Reference:
        weights, layout = population.read("train"), population.layout
        values = parameters(weights, layout, "training weights")
        centre = values.mean(0, dtype=np.float64)
        squares = float(((values - centre) ** 2).sum(1).mean())
        pairs = len(values) / max(len(values) - 1, 1)
        own = spacing(weights, population.split("train")["run"].to_list(), layout)
        # of the mean square of distances, which is twice the variance: within a percent of the mean in many dimensions
        distance = float(np.sqrt(2 * squares * pairs))
        return cls(population, weights, own, centre, float(np.sqrt(squares / values.shape[1])), distance)

    def rms(self, weights: np.ndarray) -> float:
        """Root mean square deviation of finite samples from the mean training network, over that of training."""
        values = parameters(weights, self.population.layout, "samples")
        values = values[np.isfinite(values).all(1)]
        if not len(values):
            return float("nan")
        return float(np.sqrt(((values - self.centre) ** 2).mean()) / self.deviation)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Networks to be measured.

    Args:
        weights: (models, size) in the frame of `reference`. seen: what they do on the reporting split.
    """

    name: str
    fingerprint: str
    reference: Reference
    weights: np.ndarray
    seen: Behaviour
    seconds: float

    @property
    def frame(self) -> str | None:
        return self.reference.population.frame


@dataclass(frozen=True, eq=False)
class Yardstick:
    """All of a population that its generators and their baselines are measured by.

    Args:
        population: in the generator's frame. references: frame -> training networks in it.
        search: how hard the nearest in the quotient is looked for.
    """

    population: Population
    references: Mapping[str | None, Reference]
    search: Search

    @cached_property
    def report(self) -> Split:
        """The split that all accuracies, losses and errors are of. Nothing is chosen by it."""
        return test_split(self.population.data)

    @property
    def reference(self) -> Reference:
        return self.references[self.population.frame]

    @cached_property
    def symmetry(self) -> Symmetry | None:
        """None for an architecture without hidden units."""
        try:
            return symmetry_of(self.population.architecture)
        except InvalidSpecError:
            return None

    @cached_property
    def lineages(self) -> list[str]:
        return list(self.population.split("train")["run"])

    @cached_property
    def training(self) -> Behaviour:
        """What the training networks do; no frame changes it."""
        return self.behaviour(self.reference.weights)

    @cached_property
    def alpha(self) -> float:
        return alpha_of(self.training.accuracy)

    @cached_property
    def quotient(self) -> Quotient:
        """The training networks without their symmetry; no frame changes it."""
        layout = self.population.layout
        return quotient_of(self.reference.weights, self.lineages, layout, self.symmetry, self.search)

    def behaviour(self, weights: np.ndarray) -> Behaviour:
        return behaviour(self.population.architecture, weights, self.report.x, self.report.y)

    def row(self, drawn: Drawn, search: Search | None = None) -> Row:
        """Everything about a set of networks.

        Args:
            search: in the quotient, where it is another one than for the training networks.
        """
        reference, seen = drawn.reference, drawn.seen
        known = self.quotient if search is None else replace(self.quotient, search=search)
        quotient = quotient_novelty(drawn.weights, known)
        raw = novelty(drawn.weights, reference.weights, self.lineages, self.population.layout, own=reference.own)
        shared = error_iou(seen.bits, self.training.bits, seen.failed)
        apart = disagreement(seen.predictions, self.training.predictions[np.maximum(quotient.nearest, 0)])
        apart[seen.failed] = np.nan
        return self._row(drawn, raw.ratio, quotient.ratio, shared.iou, apart)

    def training_row(self) -> Row:
        """The training networks, each against those of other lineages: what independent runs look like."""
        base, own, places = self.reference, self.quotient.spacing, self.quotient.spaced
        seen = self.training.pick(places)
        drawn = Drawn("training", "", base, base.weights[places], seen, float("nan"))
        shared = own_error_iou(self.training.bits, self.lineages).iou[places]
        apart = disagreement(seen.predictions, self.training.predictions[own.nearest])
        raw = base.own.distance[places] / base.own.tau
        return self._row(drawn, raw, own.distance / own.tau, shared, apart)

    def _row(self, drawn: Drawn, raw: np.ndarray, quotient: np.ndarray, shared: np.ndarray, apart: np.ndarray) -> Row:
        seen, count = drawn.seen, len(drawn.weights)
        pairs = np.stack([quotient, seen.accuracy], 1)[:POINTS]
        curves = [frontier(seen.accuracy, ratio, self.alpha, MULTIPLES) for ratio in (raw, quotient)]
        novel = [Shares(tuple(curve.share.tolist()), tuple(curve.se.tolist())) for curve in curves]
        return Row(
            name=drawn.name,
            frame=drawn.frame,
            fingerprint=drawn.fingerprint,
            count=count,
            accuracy=Spread.of(seen.accuracy),
            loss=Spread.of(seen.loss),
            raw=Spread.of(raw),
            quotient=Spread.of(quotient),
            error_iou=Spread.of(shared),
            disagreement=Spread.of(apart),
            rms=drawn.reference.rms(drawn.weights),
            broken=float(seen.failed.mean()),
            novel_raw=novel[0],
            novel_quotient=novel[1],
            diversity=self._diversity(drawn),
            accuracies=histogram(seen.accuracy),
            ious=histogram(shared),
            points=tuple((float(x), float(y)) for x, y in pairs if np.isfinite(x) and np.isfinite(y)),
            seconds=drawn.seconds,
        )

    def _diversity(self, drawn: Drawn) -> Diversity:
        found = diversity(drawn.weights, drawn.seen, self.report.y.numpy(), self.population.layout)
        values = (found.distance.value / drawn.reference.distance, found.iou, found.disagreement, found.ensemble_gain)
        return Diversity(values[0], *(one.value for one in values[1:]))


def yardstick(population: Population, frames: Sequence[str | None], search: Search) -> Yardstick:
    """For a population, with the training networks in these frames and its own.

    Raises:
        GeneratorError: a frame that does not cover the population, training networks that are all alike.
        UnknownNameError: no such frame.
    """
    wanted = dict.fromkeys([population.frame, *frames])
    seen = {frame: population if frame == population.frame else reframed(population, frame) for frame in wanted}
    return Yardstick(population, {name: Reference.of(one) for name, one in seen.items()}, search)


def reframed(population: Population, frame: str | None) -> Population:
    """The same networks and split, seen in another frame."""
    split = {name: population.split(name)["run"].unique().to_list() for name in SPLITS}
    rows = population.rows.drop("split")
    found = choose(population.zoo, rows=rows, variant=population.variant, every_epoch=True, frame=frame, split=split)
    if len(found.rows) != len(population.rows):  # only a bug of ours
        raise GeneratorError(f"{len(found.rows)} rows in frame {frame!r}, {len(population.rows)} were expected")
    return found
