"""Is a sample new, or a copy? Its distance to the nearest training model, in units of the zoo's own spacing.

Source: Zeng et al. 2025, "Generative modeling of weights: generalization or memorization?", arXiv 2506.07998, section
4 (nearest training model by L2). Differs: the unit is the distance of independent runs, left out a lineage at a time,
so that checkpoints of one run never vouch for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from catalog.errors import GeneratorError
from generators.evaluation.estimate import Estimate, as_weights, mean, median, share
from kernels.distance.distance import nearest
from weightspace.layout import Layout

COPY = 0.1  # of the spacing: nearer than that to a training model is a copy
TOGETHER = 1 << 22  # numbers of weights worked on at once


@dataclass(frozen=True)
class Spacing:
    """How far from each other the lineages of a population lie.

    Args:
        distance: (models,) float64, to the nearest model of another lineage.
        nearest: (models,) int64, which that is.
    """

    distance: np.ndarray
    nearest: np.ndarray

    @cached_property
    def tau(self) -> float:
        """Median distance to the nearest model of another lineage."""
        return float(np.median(self.distance))

    @cached_property
    def tau_estimate(self) -> Estimate:
        return median(self.distance)


@dataclass(frozen=True)
class Novelty:
    """How far samples are from what was trained on.

    Args:
        distance: (samples,) float64, to the nearest training model; NaN for samples that are not finite.
        nearest: (samples,) int64, which that is; -1 for samples that are not finite.
        spacing: of the training models themselves.
    """

    distance: np.ndarray
    nearest: np.ndarray
    spacing: Spacing

    @cached_property
    def ratio(self) -> np.ndarray:
        """(samples,) distance over tau: 0 for a copy, about 1 for another run."""
        return self.distance / self.spacing.tau

    @cached_property
    def mean(self) -> Estimate:
        """Of the ratios of samples that are finite."""
        return mean(self.ratio)

    @cached_property
    def median(self) -> Estimate:
        """Of the ratios of samples that are finite."""
        return median(self.ratio)

    def copies(self, below: float = COPY) -> Estimate:
        """Share of all samples with a ratio below this; those that are not finite are copies of nothing."""
        return share(self.ratio < below)


def spacing(training: np.ndarray, lineages: Sequence[object] | np.ndarray, layout: Layout) -> Spacing:
    """Distance of each model to the nearest one of another lineage.

    Args:
        training: (models, size). lineages: (models,) run of each.
        layout: parameters count, buffers take no part.

    Raises:
        GeneratorError: shapes that do not fit, weights that are not finite, fewer than two lineages, lineages that are
            all the same network.
    """
    values, codes = parameters(training, layout, "training weights"), lineage_codes(lineages, len(training))
    check_finite(values, "training weights")
    distance, index = nearest(values, values, groups_a=codes, groups_b=codes)
    return checked_spacing(Spacing(distance[:, 0], index[:, 0]))


def novelty(
    samples: np.ndarray,
    training: np.ndarray,
    lineages: Sequence[object] | np.ndarray,
    layout: Layout,
    *,
    own: Spacing | None = None,
) -> Novelty:
    """Distance of each sample to the nearest training model, and the spacing to measure it by.

    Args:
        samples: (samples, size). training: (models, size), in the same frame. lineages: (models,) run of each model.
        own: spacing of the training models, if it is known already.

    Raises:
        GeneratorError: see `spacing`.
    """
    values = parameters(samples, layout, "samples")
    known = parameters(training, layout, "training weights")
    check_finite(known, "training weights")
    own = own or spacing(training, lineages, layout)
    distance, index = nearest(values, known)
    return Novelty(distance[:, 0], index[:, 0], own)


def parameters(weights: np.ndarray, layout: Layout, what: str) -> np.ndarray:
    """(models, parameters) without the buffers, a view where these come last."""
    array = as_weights(weights, layout.size, what)
    if all(role == "parameter" for role in layout.roles[: _parameter_tensors(layout)]):
        return array[:, : layout.num_parameters]
    names = [name for name, role in zip(layout.names, layout.roles, strict=True) if role == "parameter"]
    return array[:, layout.indices(names)]


def _parameter_tensors(layout: Layout) -> int:
    return sum(role == "parameter" for role in layout.roles)


def lineage_codes(lineages: Sequence[object] | np.ndarray, models: int) -> np.ndarray:
    """(models,) int64, a number for each lineage.

    Raises:
        GeneratorError: not one a model, or fewer than two different ones.
    """
    names = np.asarray(lineages)
    if names.shape != (models,):
        raise GeneratorError(f"lineages must be one for each of {models} training models, got {names.shape}")
    found, codes = np.unique(names, return_inverse=True)
    if len(found) < 2:
        raise GeneratorError(
            f"spacing is the distance between lineages (runs), and {models} training models are of {len(found)}; "
            "use two runs or more"
        )
    return codes.astype(np.int64)


def check_finite(values: np.ndarray, what: str) -> None:
    if not (good := np.isfinite(values).all(1)).all():
        raise GeneratorError(
            f"{what} must be finite, {int((~good).sum())} of {len(good)} are not; leave diverged models out"
        )


def checked_spacing(found: Spacing) -> Spacing:
    """Raises GeneratorError if more than half of the models have a twin in another lineage."""
    if not found.tau > 0:
        raise GeneratorError(
            "half of the training models or more are equal to one of another lineage, so that there is no spacing to "
            "measure novelty by; `weightscape duplicates` names them"
        )
    return found


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(models,) float64 Euclidean distances of rows, by differences: 0 for equal rows."""
    found = np.empty(len(a))
    step = max(1, TOGETHER // max(a.shape[1], 1))
    for first in range(0, len(a), step):
        part = slice(first, first + step)
        apart = a[part].astype(np.float64) - b[part]
        found[part] = np.sqrt(np.einsum("ms,ms->m", apart, apart))
    return found
