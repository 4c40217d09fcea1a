"""What a permuted gather is told, and how numpy does it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Gather(NamedTuple):
    """How one tensor of a population moves: out[m, r, c, :] = in[m, row[m, r], col[m, c], :].

    Args:
        offset: of its first element in the flat vector.
        rows, cols, inner: its elements as a contiguous (rows, cols, inner).
        row: (models, rows) integers, None where rows stay.
        col: (models, cols) integers, None where columns stay.
    """

    offset: int
    rows: int
    cols: int
    inner: int
    row: np.ndarray | None
    col: np.ndarray | None


def gather_numpy(weights: np.ndarray, gathers: Sequence[Gather]) -> np.ndarray:
    """The population with these tensors moved, all others as they are: weights (models, size) -> (models, size)."""
    out: np.ndarray[Any, Any] = weights.copy()
    for offset, rows, cols, inner, row, col in gathers:
        here = slice(offset, offset + rows * cols * inner)
        part = weights[:, here].reshape(len(weights), rows, cols, inner)
        if row is not None:
            part = np.take_along_axis(part, row[:, :, None, None], 1)
        if col is not None:
            part = np.take_along_axis(part, col[:, None, :, None], 2)
        out[:, here] = part.reshape(len(weights), -1)
    return out
