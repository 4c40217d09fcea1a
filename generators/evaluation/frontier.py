"""New AND good: the share of samples that reach an accuracy fixed beforehand and lie far enough from all training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from catalog.errors import GeneratorError
from generators.evaluation.estimate import CONFIDENCE, as_column

MARGINS = (1.0, 2.0, 3.0, 4.0, 6.0)  # at which curves are reported
FINE = tuple(round(0.05 * step, 2) for step in range(121))  # 0 to 6, for plots
SHARE = 0.92  # of the median accuracy of the zoo
ABOVE = 2.0  # standard errors


@dataclass(frozen=True)
class Curve:
    """N&P(m): share of samples with accuracy >= alpha and distance >= m tau.

    Args:
        margins: (margins,) float64, m. share, se: (margins,) float64, with the binomial standard error.
        bound: (margins,) where the share is 0 the one-sided 95 % bound 1 - .05^(1/n), NaN elsewhere.
        count: samples, failed ones too. alpha: the accuracy asked for.
    """

    margins: np.ndarray
    share: np.ndarray
    se: np.ndarray
    bound: np.ndarray
    count: int
    alpha: float

    def at(self, margin: float) -> float:
        """The share at one of the margins; raises GeneratorError if it is none."""
        places = np.flatnonzero(self.margins == margin)
        if not len(places):
            raise GeneratorError(f"the curve was not measured at m = {margin}; it was at {self.margins.tolist()[:10]}")
        return float(self.share[places[0]])


def alpha_of(training_accuracy: np.ndarray, share: float = SHARE) -> float:
    """The accuracy that counts as performing: a share of the training population's median.

    Args:
        training_accuracy: (models,), on the samples that generated networks will be judged on.

    Raises:
        GeneratorError: no finite accuracies, those outside [0, 1], a share outside (0, 1].
    """
    accuracy = as_column(training_accuracy, None, "training accuracies")
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise GeneratorError(f"share must be a number above 0 and at most 1, got {share!r}")
    accuracy = accuracy[np.isfinite(accuracy)]
    if not len(accuracy) or accuracy.min() < 0 or accuracy.max() > 1:
        raise GeneratorError("training accuracies must be one or more finite numbers from 0 to 1")
    return share * float(np.median(accuracy))


def frontier(accuracy: np.ndarray, ratio: np.ndarray, alpha: float, margins: Sequence[float] = MARGINS) -> Curve:
    """The curve of a set of samples. Samples whose accuracy or ratio is NaN have failed: they count, as neither.

    Args:
        accuracy: (samples,) in [0, 1]. ratio: (samples,) distance over tau, of `novelty` (raw or quotient).
        alpha: of `alpha_of`.

    Raises:
        GeneratorError: columns that do not fit, no samples, an alpha outside (0, 1], margins below 0 or not finite.
    """
    accuracy = as_column(accuracy, None, "accuracies")
    ratio = as_column(ratio, len(accuracy), "ratios")
    if not isinstance(alpha, int | float) or not 0 < alpha <= 1:
        raise GeneratorError(f"alpha must be an accuracy above 0 and at most 1, got {alpha!r}; see alpha_of")
    m = as_column(margins, None, "margins")
    if not len(accuracy) or not len(m) or not (np.isfinite(m) & (m >= 0)).all():
        raise GeneratorError(f"needs samples, and margins that are finite and 0 or more; got {len(accuracy)}, {m}")
    good = accuracy >= alpha  # NaN is not
    count = len(accuracy)
    p = (good[:, None] & (ratio[:, None] >= m)).mean(0)
    bound = np.where(p == 0, 1 - (1 - CONFIDENCE) ** (1 / count), np.nan)
    return Curve(m, p, np.sqrt(p * (1 - p) / count), bound, count, float(alpha))


def above(one: Curve, other: Curve, z: float = ABOVE) -> np.ndarray:
    """(margins,) bool: where one curve lies above another by more than z combined standard errors.

    The standard errors are of shares with one more sample that is and one that is not, so that a share of 0 has one
    too; with the plain ones 5 of 1,024 would lie above 0 of 1,024 by 2.2, and Fisher's exact test says 1.9.

    Raises:
        GeneratorError: curves at different margins, or for another accuracy.

    Source: Agresti and Caffo 2000, "Simple and effective confidence intervals for proportions and differences of
        proportions". Differs: the difference itself is of the shares as they are.
    """
    if not np.array_equal(one.margins, other.margins) or one.alpha != other.alpha:
        raise GeneratorError(
            f"curves must be at the same margins and for the same accuracy, got {len(one.margins)} and "
            f"{len(other.margins)} margins, alpha {one.alpha:.4f} and {other.alpha:.4f}"
        )
    squares = [_smoothed(curve) for curve in (one, other)]
    apart: np.ndarray = one.share - other.share > z * np.sqrt(squares[0] + squares[1])
    return apart


def _smoothed(curve: Curve) -> np.ndarray:
    """Squared standard errors with one success and one failure added."""
    p = (curve.share * curve.count + 1) / (curve.count + 2)
    squares: np.ndarray = p * (1 - p) / (curve.count + 2)
    return squares
