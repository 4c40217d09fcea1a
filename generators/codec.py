"""Weights as the vectors that a generator works on, and back: centred, scaled, projected. Fitted on training alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from generators.population import Population
from weightspace.layout import Layout


@dataclass(frozen=True)
class Codec:
    """A portable encoder and decoder: samples decode without the zoo.

    codes = ((parameters - mean) / scale) @ basis' / spread; buffers (statistics of BatchNorm) are not encoded: they
    decode to those of the mean network.

    Args:
        mean: (size,) float32 of the training split; zeros in its parameters with scaling "none".
        scale: (parameters,) float32, what each is divided by.
        basis: (components, parameters) float32 of orthonormal rows, None for all coordinates.
        spread: (width,) float32, deviation of the codes of the training split, what they are divided by with a basis;
            with "identity" it is only what a matched source uses.
        population: fingerprint of what it was fitted on. settings: what it was asked for.
        report: held-out reconstruction by components, explained variance, round-trip accuracy; JSON.
    """

    layout: Layout
    mean: np.ndarray
    scale: np.ndarray
    basis: np.ndarray | None
    spread: np.ndarray
    population: str
    settings: Mapping[str, Any]
    report: Mapping[str, Any]

    @property
    def width(self) -> int:
        """Numbers in a code."""
        return len(self.spread)

    def encode(self, weights: np.ndarray) -> np.ndarray:
        """(models, size) -> (models, width) float32."""
        raise NotImplementedError

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(models, width) -> (models, size) float32."""
        raise NotImplementedError


def fit_codec(
    population: Population, *, codec: str = "identity", scaling: str = "global", components: int = 0
) -> Codec:
    """Fit on the training split, in one pass over it (two with a basis); components chosen on the validation split."""
    raise NotImplementedError
