"""Do samples look like weights at all: finite, of the right size, and networks that say more than one thing?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from catalog.errors import GeneratorError
from generators.evaluation.estimate import Estimate, as_weights, mean, share
from generators.evaluation.novelty import check_finite
from weightspace.layout import Layout


@dataclass(frozen=True)
class Health:
    """Of a set of samples beside the training population.

    Args:
        failed: share with a weight that is not finite. What follows is of the others.
        rms_ratio: root mean square of all parameters over that of the training models.
        tensors: the same by tensor. smallest, largest: the tensors with the lowest and highest of those, None where
            no tensor has one.
        norm_ratio: mean norm of the samples over the mean norm of the training models; standard error of the former.
        outside: share of parameters below the smallest or above the largest value of their coordinate in training;
            standard error over samples.
        outside_expected: what an independent run would have, 2 / (models + 1).
        constant: share of networks that give one answer to everything.
    """

    failed: Estimate
    rms_ratio: float
    tensors: Mapping[str, float]
    smallest: str | None
    largest: str | None
    norm_ratio: Estimate
    outside: Estimate
    outside_expected: float
    constant: Estimate


def health(samples: np.ndarray, training: np.ndarray, predictions: np.ndarray, layout: Layout) -> Health:
    """Measure it.

    Args:
        samples: (samples, size). training: (models, size), in the same frame.
        predictions: (samples, test samples) classes, of `functions.predictions`.

    Raises:
        GeneratorError: shapes that do not fit, no training models, or some that are not finite.
    """
    values, known = as_weights(samples, layout.size, "samples"), as_weights(training, layout.size, "training weights")
    check_finite(known, "training weights")
    if not len(known) or np.asarray(predictions).ndim != 2 or len(predictions) != len(values):
        raise GeneratorError(
            f"needs training models and predictions of each sample, got {len(known)} and {np.shape(predictions)} for "
            f"{len(values)}"
        )
    good = np.isfinite(values).all(1)
    some = values[good]
    names = [name for name, role in zip(layout.names, layout.roles, strict=True) if role == "parameter"]
    energy = {name: (_squares(layout, some, name), _squares(layout, known, name)) for name in names}
    ratios = {name: _rms_ratio(*pair) for name, pair in energy.items()}
    told = {name: ratio for name, ratio in ratios.items() if math.isfinite(ratio)}
    one, other = (np.sum([pair[side] for pair in energy.values()], axis=0) for side in (0, 1))
    norms, usual = mean(np.sqrt(one)), float(np.sqrt(other).mean())
    weight = np.array([math.prod(layout.shapes[layout.names.index(name)]) for name in names], float)
    outside = np.average([_outside(layout, some, known, name) for name in names], axis=0, weights=weight)
    answers = np.asarray(predictions)[good]
    return Health(
        share(~good),
        _rms_ratio(one, other),
        ratios,
        min(told, key=told.__getitem__, default=None),
        max(told, key=told.__getitem__, default=None),
        Estimate(norms.value / usual, norms.se / usual, norms.count) if usual else Estimate(math.nan, math.nan, 0),
        mean(outside),
        2 / (len(known) + 1),
        share((answers == answers[:, :1]).all(1)),
    )


def _squares(layout: Layout, weights: np.ndarray, name: str) -> np.ndarray:
    """(models,) float64 sums of squares of a tensor."""
    flat = _flat(layout, weights, name)
    return np.asarray(np.einsum("ms,ms->m", flat, flat, dtype=np.float64))


def _flat(layout: Layout, weights: np.ndarray, name: str) -> np.ndarray:
    """(models, entries) of a tensor, of no models too."""
    return weights[:, layout.slice(name)]


def _rms_ratio(squares: np.ndarray, usual: np.ndarray) -> float:
    """NaN where there are no samples, or training has zeros alone."""
    if not len(squares) or not usual.sum():
        return math.nan
    return math.sqrt(float(squares.mean() / usual.mean()))


def _outside(layout: Layout, weights: np.ndarray, known: np.ndarray, name: str) -> np.ndarray:
    """(models,) share of a tensor outside the range of training."""
    flat, usual = _flat(layout, weights, name), _flat(layout, known, name)
    if not flat.shape[1]:
        return np.zeros(len(flat))
    return np.asarray(((flat < usual.min(0)) | (flat > usual.max(0))).mean(1))
