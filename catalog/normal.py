"""Weights made to have mean 0 and variance 1, with the statistics kept so that it can be undone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from catalog.errors import QueryError, unknown_name
from weightspace.layout import Layout

KINDS = ("standard", "layer", "global")


@dataclass(frozen=True, eq=False)  # eq=False: `==` on arrays has no truth value
class Normaliser:
    """(weights - mean) / scale.

    Args:
        kind: one of `KINDS`. layout: fingerprint of the layout of the vectors.
        mean, scale: float64, a number for each of `repeats` runs of neighbouring weights.
        repeats: how many weights each number is for.
        rows: networks that it was fitted to.
    """

    kind: str
    layout: str
    mean: np.ndarray
    scale: np.ndarray
    repeats: np.ndarray
    rows: int

    def apply(self, weights: Any) -> Any:
        """Normalised weights (..., size) of the same type, an array or a tensor."""
        mean, scale = self._like(weights)
        return (weights - mean) / scale

    def undo(self, weights: Any) -> Any:
        """The weights that `apply` had, up to rounding."""
        mean, scale = self._like(weights)
        return weights * scale + mean

    def _like(self, weights: Any) -> tuple[Any, Any]:
        """mean and scale (size,), of the type of the weights and where they are."""
        whole = [np.repeat(part, self.repeats) for part in (self.mean, self.scale)]
        if weights.shape[-1] != len(whole[0]):
            raise QueryError(f"this normaliser is for vectors of {len(whole[0])} weights, got {weights.shape[-1]}")
        if isinstance(weights, np.ndarray):
            kind = weights.dtype if weights.dtype.kind == "f" else np.float64
            return whole[0].astype(kind), whole[1].astype(kind)
        mean, scale = (weights.new_tensor(part) for part in whole)
        return mean, scale


def fit_normaliser(kind: str, layout: Layout, batches: Iterable[np.ndarray]) -> Normaliser:
    """Statistics of all weights of the batches (models, size), each of which is seen once and then let go.

    What does not vary gets the scale 1. Buffers are weights as all others.

    Source: the pairwise update of mean and squared deviations of Chan, Golub and LeVeque 1979, equations 2.1.
    """
    if kind not in KINDS:
        raise unknown_name("normalisation", kind, KINDS)
    rows, mean, squares = 0, np.zeros(layout.size), np.zeros(layout.size)
    for batch in batches:
        wide = batch.astype(np.float64)
        count = len(wide)
        here = wide.mean(0)
        wide -= here
        step = here - mean
        squares += np.einsum("ij,ij->j", wide, wide) + step**2 * (rows * count / (rows + count))
        mean += step * (count / (rows + count))
        rows += count
    repeats = {
        "standard": np.ones(layout.size, np.int64),
        "layer": np.array([int(np.prod(shape)) for shape in layout.shapes], np.int64),
        "global": np.array([layout.size], np.int64),
    }[kind]
    owner = np.repeat(np.arange(len(repeats)), repeats)
    whole = np.bincount(owner, mean, len(repeats)) / np.maximum(repeats, 1)
    apart = squares + rows * (mean - whole[owner]) ** 2
    scale = np.sqrt(np.bincount(owner, apart, len(repeats)) / np.maximum(repeats * rows, 1))
    scale[scale <= 1e-12 * np.abs(whole)] = 1.0  # rounding of a constant
    return Normaliser(kind, layout.fingerprint, whole, np.where(scale > 0, scale, 1.0), repeats, rows)
