"""Linear assignment by shortest augmenting paths, for numba: one problem, in place.

Source: Crouse 2016, "On implementing 2D rectangular assignment algorithms", IEEE Trans. AES 52 (4); Jonker and
Volgenant 1987, Computing 38. Differs: prices of the columns alone, from any start; rows begin greedily; no row
reduction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.assignment.scan import leave, nearest, relax
from kernels.lanes.vectors import lanes_of
from kernels.learning import aligned, part
from kernels.mlp.tiles import compiled, padded


def rooms(n: int, dtype: Any) -> tuple[np.ndarray, ...]:
    """What `solve` works in for problems up to this size: distances, before, rows, waiting, order, kept, reached."""
    width, integer = padded(max(n, 1), dtype), np.int32 if np.dtype(dtype) == np.float32 else np.int64
    return (
        aligned(width, dtype), aligned(width, integer), np.empty(width, np.int64), np.empty(width, np.int64),
        np.empty(width, np.int64), np.empty(width, dtype), np.empty(width, dtype),
    )  # fmt: skip


@compiled
def solve(
    cost: np.ndarray, c0: int, stride: int, n: int, v: np.ndarray, columns: np.ndarray, distances: np.ndarray,
    before: np.ndarray, rows: np.ndarray, waiting: np.ndarray, order: np.ndarray, kept: np.ndarray,
    reached: np.ndarray,
) -> int:  # fmt: skip
    """Assigns each row the column of the least total cost; how many scans of a row that took.

    Args:
        cost: flat; row i begins at c0 + i * stride, whole registers, infinite beyond column n.
        v: prices of the columns, in whole registers; they become those of the solution.
        columns: (n,), the result. rows: (n,), the row of each column. The rest: see `rooms`.

    It always ends with a permutation. Where costs are not finite or overflow, that may be any.
    """
    lane = lanes_of(cost)
    count = (n + lane - 1) // lane
    free = 0
    for j in range(n):
        rows[j] = -1
    for i in range(n):
        _, j = nearest(cost, c0 + i * stride, v, count)
        if rows[j] < 0:
            rows[j] = i
            columns[i] = j
        else:
            columns[i] = -1
            waiting[free] = i
            free += 1
    scans = n
    for k in range(free):
        scans += _augment(
            cost, c0, stride, waiting[k], v, columns, distances, before, rows, order, kept, reached, count
        )
    return scans


@compiled
def likely_prices(cost: np.ndarray, c0: int, stride: int, n: int, v: np.ndarray, squares: np.ndarray) -> None:
    """Prices to begin from where none are known: of each column the mean cost less its standard deviation.

    On costs of trained networks paths are then a third shorter than from zeros.
    """
    squares[:n] = 0
    v[:n] = 0
    mean, square = part(v, 0, n), part(squares, 0, n)
    for i in range(n):
        row = part(cost, c0 + i * stride, n)
        for j in range(n):
            mean[j] += row[j]
            square[j] += row[j] * row[j]
    share = v.dtype.type(1.0 / n)
    for j in range(n):
        average = mean[j] * share
        mean[j] = average - v.dtype.type(np.sqrt(max(square[j] * share - average * average, v.dtype.type(0))))


@compiled
def _augment(
    cost: np.ndarray, c0: int, stride: int, start: int, v: np.ndarray, columns: np.ndarray,
    distances: np.ndarray, before: np.ndarray, rows: np.ndarray, order: np.ndarray, kept: np.ndarray,
    reached: np.ndarray, count: int,
) -> int:  # fmt: skip
    """One more row gets a column, along the shortest path; scans. At most n, as a column that was reached stays so.

    What is reached has an infinite distance and a price of minus infinity, so that no scan looks at it again.
    """
    infinity = distances.dtype.type(np.inf)
    distance, j = leave(cost, c0 + start * stride, v, distances, before, start, count)
    done = 0
    while distance < infinity and rows[j] >= 0:
        order[done], kept[done], reached[done] = j, v[j], distance
        done += 1
        i = rows[j]
        row = c0 + i * stride
        less = cost[row + j] - v[j] - distance
        distances[j], v[j] = infinity, -infinity
        distance, j = relax(cost, row, v, distances, before, i, less, count)
    lost = not distance < infinity
    for k in range(done):
        v[order[k]] = kept[k] if lost else kept[k] + (reached[k] - distance)
    if lost:  # no column can be reached: the first that is free
        j = 0
        while rows[j] >= 0:
            j += 1
        rows[j], columns[start] = start, j
        return done + 1
    while True:
        i = np.int64(before[j])
        rows[j] = i
        following = columns[i]
        columns[i] = j
        j = np.int64(following)
        if i == start:
            return done + 1
