"""Does a conditional generator give what is asked for? Requested against obtained, and against not asking at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from catalog.errors import GeneratorError
from generators.evaluation.estimate import Estimate, as_column, mean, share

MEASURABLE = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")  # by one pass over data


@dataclass(frozen=True)
class Level:
    """Samples that were asked for with one value.

    Args:
        obtained: of a number the mean; of a category the share that have it. count: samples asked for, failed too.
    """

    requested: Any
    obtained: Estimate
    count: int


@dataclass(frozen=True)
class Fidelity:
    """Of one column.

    Args:
        levels: one a requested value, in order.
        spearman, kendall: rank correlation of requested and obtained over samples, None for categories.
        error: of numbers the mean absolute difference, in the column's units; of categories the share that have
            another one than was asked for.
        without: the same error of samples that were drawn without conditions; None where there are none.
        failed: share for which nothing could be obtained.
        reason: why nothing could be measured; then all else is empty.
    """

    column: str
    levels: tuple[Level, ...] = ()
    spearman: Estimate | None = None
    kendall: Estimate | None = None
    error: Estimate | None = None
    without: Estimate | None = None
    failed: Estimate | None = None
    reason: str | None = None


def not_measurable(column: str) -> str | None:
    """Why a column cannot be measured on samples, None if it can."""
    if column in MEASURABLE:
        return None
    return (
        f"{column} is how a network was made or takes more than its outputs to measure; measured on samples are "
        f"{', '.join(MEASURABLE)}"
    )


def fidelity(
    column: str,
    requested: Sequence[Any] | np.ndarray,
    obtained: Sequence[Any] | np.ndarray | None,
    unconditional: Sequence[Any] | np.ndarray | None = None,
) -> Fidelity:
    """Compare what was asked for with what came.

    Numbers are compared as numbers; text and truth values as categories.

    Args:
        requested: (samples,) value that each sample was asked for with.
        obtained: (samples,) measured value of each, NaN or None for failed ones; None if it cannot be measured.
        unconditional: (other samples,) measured values of samples that were drawn without conditions.

    Raises:
        GeneratorError: columns that do not fit, or fewer than two samples.
    """
    if obtained is None:
        return Fidelity(column, reason=not_measurable(column) or f"{column} was not measured")
    if len(requested) != len(obtained) or len(requested) < 2:
        raise GeneratorError(
            f"fidelity of {column} needs two samples or more with a value each, got {len(requested)} requested and "
            f"{len(obtained)} obtained"
        )
    if np.asarray(requested).dtype.kind in "fiu":
        return _of_numbers(column, requested, obtained, unconditional)
    return _of_categories(column, list(requested), list(obtained), unconditional)


def _of_numbers(column: str, requested: Any, obtained: Any, unconditional: Any) -> Fidelity:
    asked, got = as_column(requested, None, f"requested {column}"), as_column(obtained, None, f"obtained {column}")
    if not np.isfinite(asked).all():
        raise GeneratorError(f"requested values of {column} must be finite")
    values = np.unique(asked)
    levels = tuple(Level(float(v), mean(got[asked == v]), int((asked == v).sum())) for v in values)
    good = np.isfinite(got)
    without = None
    if unconditional is not None:
        free = as_column(unconditional, None, f"unconditional {column}")
        shares = [(asked == value).mean() for value in values]  # each free sample against all that was asked for
        without = mean(sum(p * np.abs(free - value) for p, value in zip(shares, values, strict=True)))
    return Fidelity(
        column,
        levels,
        _rank(spearmanr, asked[good], got[good], _spearman_se),
        _rank(kendalltau, asked[good], got[good], _kendall_se),
        mean(np.abs(asked - got)),
        without,
        share(~good),
    )


def _of_categories(column: str, requested: list[Any], obtained: list[Any], unconditional: Any) -> Fidelity:
    names = sorted(set(requested), key=str)
    came = np.array([a == b for a, b in zip(requested, obtained, strict=True)])
    asked = np.array([names.index(value) for value in requested])
    levels = tuple(
        Level(name, share(came[asked == place]), int((asked == place).sum())) for place, name in enumerate(names)
    )
    without = None
    if unconditional is not None:
        free = list(unconditional)
        right = sum((asked == place).mean() * np.array([v == name for v in free]) for place, name in enumerate(names))
        without = mean(1 - np.asarray(right, np.float64))
    failed = share(np.array([value is None for value in obtained]))
    return Fidelity(column, levels, None, None, share(~came), without, failed)


def _rank(correlate: Any, one: np.ndarray, other: np.ndarray, error: Any) -> Estimate:
    """A rank correlation; NaN where one side is constant."""
    count = len(one)
    if count < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return Estimate(math.nan, math.nan, count)
    value = float(correlate(one, other).statistic)
    return Estimate(value, error(value, count), count)


def _spearman_se(value: float, count: int) -> float:
    """Bonett and Wright 2000, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations"."""
    return (1 - value**2) * math.sqrt((1 + value**2 / 2) / (count - 3)) if count > 3 else math.nan


def _kendall_se(value: float, count: int) -> float:
    """As `_spearman_se`: Fieller's .437 / (n - 4) on Fisher's scale."""
    return (1 - value**2) * math.sqrt(0.437 / (count - 4)) if count > 4 else math.nan
