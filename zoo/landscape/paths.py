"""Evaluating a path between the networks of each pair, point by point: what curves and lines have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from catalog.errors import InvalidSpecError
from zoo.architectures import Architecture
from zoo.evaluate import evaluate
from zoo.landscape.metric import Measured
from zoo.landscape.norms import FLOATS, reestimate


@dataclass(frozen=True)
class Path:
    """What was found at each point, the ends first and last.

    Args:
        counts: (pairs, points) int64, samples misclassified.
        losses: (pairs, points) float64.
        wrong: (pairs, points, ceil(samples / 8)) uint8, `zoo.evaluate.Evaluation.error_bits`.
        samples: how many.
    """

    counts: np.ndarray
    losses: np.ndarray
    wrong: np.ndarray
    samples: int

    @property
    def errors(self) -> np.ndarray:
        """(pairs, points) percent."""
        return self.counts * 100 / self.samples

    @property
    def rise(self) -> np.ndarray:
        """Error less the mean of the ends, (pairs, points) in percentage points: equal ones are equal to the bit."""
        return (2 * self.counts - self.counts[:, :1] - self.counts[:, -1:]) * 50 / self.samples

    @property
    def climb(self) -> np.ndarray:
        """Loss less the mean of the ends, (pairs, points)."""
        with np.errstate(invalid="ignore"):  # losses that overflow
            return self.losses - (self.losses[:, :1] + self.losses[:, -1:]) / 2

    def standard_error(self, place: np.ndarray) -> np.ndarray:
        """Of `rise` at one point a pair, (pairs,), over the samples, paired: as if they were drawn anew."""
        if self.samples < 2:
            return np.full(len(place), math.nan)
        rows = np.arange(len(place))[:, None]
        wrong = self.wrong[rows, np.stack([0 * place, 0 * place - 1, place], 1)]
        first, last, here = np.moveaxis(np.unpackbits(wrong, axis=-1, count=self.samples).astype(np.int8), 1, 0)
        return np.asarray(50 * (2 * here - first - last).std(1, ddof=1) / math.sqrt(self.samples))


def walk(
    architecture: Architecture,
    point: Callable[[slice, float], Tensor],
    pairs: int,
    x: Tensor,
    y: Tensor,
    ts: Sequence[float] | np.ndarray,
    loss_function: str,
    train_x: Tensor | None = None,
) -> Path:
    """Evaluate all pairs at each t; BatchNorm is re-estimated everywhere, at the ends too.

    Args:
        point: (pairs, t) -> weights (pairs, size), for some of the pairs at a time.
        x: (samples, *input_shape). y: (samples,) or (pairs, samples) int64.
        train_x: inputs of the training split, for the statistics; None for `x`, which is then of that split.
    """
    counts, losses = np.empty((pairs, len(ts)), np.int64), np.empty((pairs, len(ts)))
    wrong = np.empty((pairs, len(ts), -(-len(x) // 8)), np.uint8)
    each = max(FLOATS // architecture.layout.size, 1)
    for first in range(0, pairs, each):
        part = slice(first, min(first + each, pairs))
        labels = y if y.dim() == 1 else y[part]
        for number, t in enumerate(ts):
            weights = reestimate(architecture, point(part, float(t)), x if train_x is None else train_x)
            found = evaluate(architecture, weights, x, labels, loss_functions=loss_function)
            losses[part, number], wrong[part, number] = found.loss, found.error_bits
            counts[part, number] = np.bitwise_count(found.error_bits).sum(1)
    return Path(counts, losses, wrong, len(x))


def measured(
    path: Path, value: np.ndarray, error: np.ndarray, numbers: dict[str, np.ndarray], curves: dict[str, np.ndarray]
) -> Measured:
    """What a metric found on the path: NaN, and a reason, where a loss on it is not finite.

    Args:
        numbers: further columns, (pairs,). curves: and some of bytes, (pairs, points).
    """
    lost = ~np.isfinite(path.losses).all(1)
    value, error, *columns = (np.where(lost, math.nan, found) for found in (value, error, *numbers.values()))
    others = dict(zip(numbers, columns, strict=True)) | {
        name: [row.tobytes() for row in values.astype("<f8")] for name, values in curves.items()
    }
    reasons = ["a loss on the path is not finite" if bad else "" for bad in lost]
    return Measured(value, error, others, reasons if lost.any() else None)


def check_points(points: int) -> None:
    """Raise InvalidSpecError unless a path can have so many points."""
    if type(points) is not int or points < 3:
        raise InvalidSpecError(f"points of a path must be an integer from 3, got {points!r}")


def check_frame(frame: str | None) -> None:
    """Raise InvalidSpecError for what is no name of an alignment."""
    if frame is not None and (not isinstance(frame, str) or not frame):
        raise InvalidSpecError(
            f"frame must be the name of an alignment, or None for weights as they are; got {frame!r}"
        )
