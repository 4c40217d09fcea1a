"""Numbers with their standard errors: shares, means, medians and means over pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from catalog.errors import GeneratorError

CONFIDENCE = 0.95  # of the one-sided bound that is given for a share of 0 or 1


@dataclass(frozen=True)
class Estimate:
    """A number found from a sample.

    Args:
        value: NaN where nothing could be measured.
        se: its standard error, NaN where there are too few for one.
        count: how many it was found from.
        bound: of a share of 0 the largest, of a share of 1 the smallest that would still give such a sample in 5 % of
            cases; the standard error of such shares is 0, which says nothing. None for everything else.
    """

    value: float
    se: float
    count: int
    bound: float | None = None

    def to_json(self) -> dict[str, Any]:
        """value, se, count and, where there is one, bound; None for what is not finite."""
        found: dict[str, Any] = {"value": number(self.value), "se": number(self.se), "count": self.count}
        return found | ({} if self.bound is None else {"bound": self.bound})


def number(value: float) -> float | None:
    """As JSON has it: None for what is not finite."""
    return float(value) if math.isfinite(value) else None


def share(flags: np.ndarray) -> Estimate:
    """Share of what is true, with the binomial standard error sqrt(p (1-p) / n).

    >>> share(np.array([True, False, False, False])).se  # sqrt(.25 * .75 / 4)
    0.21650635094610965
    >>> round(share(np.zeros(1024, bool)).bound, 5)  # 1 - .05^(1/1024)
    0.00292
    """
    flags = np.asarray(flags, bool).ravel()
    count = len(flags)
    if not count:
        return Estimate(math.nan, math.nan, 0)
    p = float(flags.mean())
    return Estimate(p, math.sqrt(p * (1 - p) / count), count, bound_of(p, count))


def bound_of(p: float, count: int) -> float | None:
    """The one-sided bound of a share of 0 or 1 among `count`, see `Estimate`."""
    if 0 < p < 1:
        return None
    above = 1 - (1 - CONFIDENCE) ** (1 / count)
    return above if p == 0 else 1 - above


def mean(values: np.ndarray) -> Estimate:
    """Mean of the values that are finite, with std / sqrt(n); `count` says how many those are."""
    values = _finite(values)
    if not len(values):
        return Estimate(math.nan, math.nan, 0)
    se = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), se, len(values))


def median(values: np.ndarray) -> Estimate:
    """Median of the values that are finite; its standard error is half the way between order statistics.

    Those of ranks n/2 -+ sqrt(n)/2, which is a deviation of the binomial number of values below the median.
    """
    values = np.sort(_finite(values))
    count = len(values)
    if not count:
        return Estimate(math.nan, math.nan, 0)
    low, high = (round((count - 1) / 2 + side * math.sqrt(count) / 2) for side in (-1, 1))
    se = float(values[min(high, count - 1)] - values[max(low, 0)]) / 2 if count > 1 else math.nan
    return Estimate(float(np.median(values)), se, count)


def pair_mean(row_sums: np.ndarray) -> Estimate:
    """Mean of a symmetric quantity over all pairs of models, with the jackknife's standard error over models.

    Args:
        row_sums: (models,), of each model the sum of its values with all others. Models with NaN are to be left out
            before, in the sums of the others too.

    >>> pair_mean(np.array([3.0, 3.0, 3.0, 3.0]))  # six pairs of 1
    Estimate(value=1.0, se=0.0, count=4, bound=None)
    """
    sums = np.asarray(row_sums, np.float64)
    n = len(sums)
    if n < 2:
        return Estimate(math.nan, math.nan, n)
    total = sums.sum()
    value = float(total / (n * (n - 1)))
    if n < 3:
        return Estimate(value, math.nan, n)
    without = (total - 2 * sums) / ((n - 1) * (n - 2))
    return Estimate(value, math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum())), n)


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64).ravel()
    return values[np.isfinite(values)]


def as_column(values: Any, count: int | None, what: str) -> np.ndarray:
    """(count,) float64; None for any number of them.

    Raises:
        GeneratorError: another shape, or no numbers.
    """
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise GeneratorError(f"{what} must be numbers: {error}") from error
    if array.ndim != 1 or (count is not None and len(array) != count):
        raise GeneratorError(f"{what} must be one number for each of {count or 'the'} models, got {array.shape}")
    return array


def as_weights(weights: Any, size: int | None, what: str) -> np.ndarray:
    """(models, size) of floats, numpy; None for any size.

    Raises:
        GeneratorError: another shape, or no floats.
    """
    array = np.asarray(weights)
    if array.ndim != 2 or array.dtype.kind != "f" or (size is not None and array.shape[1] != size):
        expected = "(models, size)" if size is None else f"(models, {size})"
        raise GeneratorError(
            f"{what} must be {expected} floats of one architecture, got {array.shape} {array.dtype}; "
            "compare networks of the same layout"
        )
    return array
