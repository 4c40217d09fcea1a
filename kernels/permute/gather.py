"""What a permuted gather is told, and how numpy does it. Imports neither torch nor numba."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

WORTH = 1 << 20  # bytes of weights from which loading numba (about a second, once a process) pays


class Gather(NamedTuple):
    """How one tensor of a population moves: out[m, r, c, :] = in[m, row[m, r], col[m, c], :].

    Args:
        offset: of its first element in the flat vector.
        rows, cols, inner: its elements as a contiguous (rows, cols, inner).
        row: (models, rows) integers of any type, None where rows stay.
        col: (models, cols) integers of any type, None where columns stay.
    """

    offset: int
    rows: int
    cols: int
    inner: int
    row: Any
    col: Any

    @property
    def end(self) -> int:
        """One past its last element in the flat vector."""
        return self.offset + self.rows * self.cols * self.inner


def gather_numpy(weights: np.ndarray, gathers: Sequence[Gather], impl: str | None = None) -> np.ndarray:
    """The population with these tensors moved, all others as they are: weights (models, size) -> (models, size).

    Args:
        impl: "reference" or "compiled" (numba); None takes the compiled one where numba is there and the population is
            large enough to load it for.

    Raises:
        ValueError: gathers that do not fit the weights. IndexError: an index outside its axis.
    """
    if impl not in (None, "reference", "compiled"):
        raise ValueError(f"impl must be 'reference' or 'compiled', got {impl!r}")
    ordered = checked(weights.shape, gathers)
    if impl == "compiled" or (impl is None and worth(weights.nbytes)):
        try:
            from kernels.permute.compiled import gather_compiled, takes
        except ImportError:  # no numba
            if impl is not None:
                raise
        else:
            if impl is not None or takes(weights.dtype):
                return gather_compiled(weights, ordered)
    return _plain(weights, ordered)


def worth(size: int) -> bool:
    """Whether compiled code pays for so many bytes of weights: always, once it is loaded."""
    return size >= WORTH or "kernels.permute.compiled" in sys.modules


def checked(shape: tuple[int, ...], gathers: Sequence[Gather]) -> list[Gather]:
    """The gathers in the order of the flat vector.

    Raises:
        ValueError: weights are not (models, size), gathers overlap or lie outside, or indices have another shape.
    """
    if len(shape) != 2:
        raise ValueError(f"weights must be (models, size), got {tuple(shape)}")
    ordered, last = sorted(gathers, key=lambda gather: gather.offset), 0
    for gather in ordered:
        if gather.offset < last or gather.end > shape[1]:
            raise ValueError(
                f"gathers must not overlap and lie in 0..{shape[1]}; one is at {gather.offset}..{gather.end}, "
                f"what is before it ends at {last}"
            )
        last = gather.end
        for index, count in ((gather.row, gather.rows), (gather.col, gather.cols)):
            if index is not None and tuple(index.shape) != (shape[0], count):
                raise ValueError(f"indices must be (models, entries) = {(shape[0], count)}, got {tuple(index.shape)}")
    return ordered


def _plain(weights: np.ndarray, gathers: Sequence[Gather]) -> np.ndarray:
    out: np.ndarray[Any, Any] = weights.copy()
    for gather in gathers:
        offset, rows, cols, inner, row, col = gather
        part = weights[:, offset : gather.end].reshape(len(weights), rows, cols, inner)
        if row is not None:
            part = np.take_along_axis(part, np.asarray(row, np.int64)[:, :, None, None], 1)
        if col is not None:
            part = np.take_along_axis(part, np.asarray(col, np.int64)[:, None, :, None], 2)
        out[:, offset : gather.end] = part.reshape(len(weights), -1)
    return out
