"""Batched linear assignment on a CPU in compiled code: one problem after the other, in float32 or float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.assignment.paths import likely_prices, rooms
from kernels.assignment.paths import solve as shortest_paths
from kernels.learning import aligned, part
from kernels.mlp.tiles import OPTIONS, padded
from kernels.programs import Program, sources
from kernels.threads import in_parts

PARTS = ("assignment/compiled.py", "assignment/paths.py", "assignment/scan.py")
SOURCES = sources(*PARTS, "lanes/vectors.py", "learning.py", "mlp/tiles.py")
FARTHEST = 8.0  # of the largest cost: prices beyond that are of another problem, and would cost digits


def _assign(digest: str) -> Any:
    """The compiled program. `digest` is part of what its cache is found by: numba looks at this file only."""

    def assign(
        costs: np.ndarray, factors: np.ndarray, columns: np.ndarray, prices: np.ndarray, warm: np.ndarray, stride: int,
        cost: np.ndarray, v: np.ndarray, distances: np.ndarray, before: np.ndarray, rows: np.ndarray,
        waiting: np.ndarray, order: np.ndarray, kept: np.ndarray, reached: np.ndarray,
    ) -> int:  # fmt: skip
        """Scans of all problems. `prices` (batch, n), of use where `warm`, are replaced; `cost` begins as infinity."""
        digest  # noqa: B018  # makes it a part of the function
        n, scans = costs.shape[1], 0
        for problem in range(len(costs)):
            factor, mine = factors[problem], prices[problem]
            for i in range(n):
                row, given = part(cost, i * stride, n), costs[problem, i]
                for j in range(n):
                    row[j] = given[j] * factor
            if warm[problem]:
                v[:n] = mine
            else:
                likely_prices(cost, 0, stride, n, v, distances)
            scans += shortest_paths(
                cost, 0, stride, n, v, columns[problem], distances, before, rows, waiting, order, kept, reached
            )
            mine[:] = v[:n]
        return scans

    return assign


ASSIGN = Program(_assign, SOURCES, OPTIONS)


def solve(
    cost: np.ndarray,
    v0: np.ndarray | None = None,
    threads: int = 1,
    *,
    dtype: Any = None,
    factors: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Columns (batch, n) int32 of the least total costs, and prices (batch, n) of the columns.

    In float32 a total may end a rounding error above the least, and prices prove nothing beyond that, see
    `kernels.assignment.assign`. No bit of a problem depends on its companions or on `threads`.

    Args:
        cost: (batch, n, n) float32 or float64; with costs that are not finite, columns are still a permutation, any.
        v0: (batch, n), prices to begin from; any numbers will do. Those far beyond the costs are not used,
            nor are zeros.
        threads: parts of the batch that are worked on at once.
        dtype: of the arithmetic and the prices, None for that of the costs.
        factors: (batch,), of that type. The problems are then those of the costs times these, and so are all prices.
            Negative ones maximise; powers of two that bring costs near 1 keep sums from overflowing.

    Raises:
        ValueError: costs that are not square or of another type, prices of another shape.
    """
    if cost.ndim != 3 or cost.shape[1] != cost.shape[2] or cost.dtype not in (np.float32, np.float64):
        raise ValueError(f"costs must be (batch, n, n) float32 or float64, got {cost.shape} {cost.dtype}")
    batch, n = cost.shape[:2]
    if v0 is not None and v0.shape != (batch, n):
        raise ValueError(f"prices must be {(batch, n)}, got {v0.shape}")
    dtype = cost.dtype if dtype is None else np.dtype(dtype)
    columns, prices = np.zeros((batch, n), np.int32), np.zeros((batch, n), dtype)
    if not cost.size:
        return columns, prices
    cost = np.require(cost, requirements=("C", "W"))  # numba would compile once more for other arrays
    flat = cost.reshape(batch, -1)
    largest = np.maximum(flat.max(1), -flat.min(1)).astype(dtype)
    own = powers_of_two(largest) if factors is None else np.ones_like(largest)
    factors = own if factors is None else factors
    warm = np.zeros(batch, np.bool_)
    if v0 is not None:
        with np.errstate(all="ignore"):  # any numbers will do
            start = v0 * own[:, None].astype(np.float64)
            size, farthest = np.abs(start).max(1), FARTHEST * (largest * np.abs(factors)).astype(np.float64)
        warm = (size > 0) & (size <= farthest)  # not where one is NaN; zeros are what others begin from
        prices[warm] = start[warm]

    def work(some: slice) -> None:
        stride = padded(n, dtype)
        ASSIGN(
            cost[some], factors[some], columns[some], prices[some], warm[some], stride,
            aligned(n * stride, dtype, np.inf), aligned(stride, dtype), *rooms(n, dtype),
        )  # fmt: skip

    in_parts(work, batch, threads)
    with np.errstate(over="ignore"):  # prices may be larger than any cost
        return columns, prices / own[:, None]


def powers_of_two(largest: np.ndarray) -> np.ndarray:
    """Factors that bring numbers of this size near 1 and change no digit, so that no sum of them overflows."""
    limit = 126 if largest.dtype == np.float32 else 1022
    exponent = np.frexp(np.where(np.isfinite(largest), largest, 0))[1]
    return np.ldexp(np.ones_like(largest), np.clip(-exponent, -limit, limit))
