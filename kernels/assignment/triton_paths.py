"""Linear assignment on a GPU: shortest augmenting paths, one problem a program, all its state in registers.

Source: Crouse 2016, "On implementing 2D rectangular assignment algorithms", IEEE Trans. AES 52 (4). Differs: prices of
the columns alone (a row's is what its column leaves), from any start; rows begin greedily. In float32 one reduction of
64-bit keys, distance | free columns first | row + 1 | column, finds the nearest column, its row and whether it is free.
Not measured on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PACKED_UP_TO = 16383  # columns in float32: what a key has bits for
EXACT_UP_TO = 4096  # columns in float64: what fits into registers
BOUND = {"ROWS": 8, "COLUMNS": 128}
FARTHEST = 1e4  # of the largest cost: prices beyond that are of another problem, and would cost digits


def configurations() -> list[tuple[str, dict[str, int | bool], int]]:
    """(type of costs, constants, warps) of every program of `solve_triton`."""
    sizes = [32, *(1 << power for power in range(7, 15))]
    exact = [size for size in sizes if size <= EXACT_UP_TO]
    return [
        *(("fp32", {"N": size, "PACKED": True}, warps(size, True)) for size in sizes),
        *((kind, {"N": size, "PACKED": False}, warps(size, False)) for kind in ("fp32", "fp64") for size in exact),
    ]


def lanes(n: int) -> int:
    """Columns that a program for n columns has: 32, 128, or a power of two from there."""
    return 32 if n <= 32 else max(128, triton.next_power_of_2(n))


def warps(size: int, packed: bool) -> int:
    """Eight columns a thread, four in float64: reductions inside a warp need no barrier, more would not fit.

    Beyond 4,096 columns there are not enough registers, and a part of the state lies outside.
    """
    return min(32, max(1, size // 256)) if packed else min(16, max(1, size // 128))


@triton.jit
def _nearest(distance, row_of, lane, N: tl.constexpr, PACKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Smallest distance, its column (a free one first), and the row that has it, -1 for none."""
    if PACKED:
        bits = distance.to(tl.int32, bitcast=True)
        ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)  # integers in the order of the floats
        taken = tl.where(row_of < 0, 0, 1 << 30).to(tl.int64)
        key = (ordered << 32) | taken | ((row_of + 1).to(tl.int64) << 14) | lane.to(tl.int64)
        least = tl.min(key, axis=0)
        column = (least & 16383).to(tl.int32)
        row = ((least >> 14) & 65535).to(tl.int32) - 1
        bits_low = (least >> 32).to(tl.int32)
        low = (bits_low ^ ((bits_low >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    else:
        low = tl.min(distance, axis=0)
        choice = tl.min(tl.where(distance == low, tl.where(row_of < 0, lane, lane + N), 2 * N), axis=0)
        column = choice % N
        row = tl.max(tl.where(lane == column, row_of, -1), axis=0)
    return low, column, row


@triton.jit
def _reduced(cost, row, n, lane, factor, v, PACKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Costs of a row, scaled, less the prices; infinite beyond the last column."""
    c = tl.load(cost + row * n + lane, mask=lane < n, other=0.0)
    if PACKED:
        return tl.where(lane < n, c * factor - v, float("inf"))
    else:
        return tl.where(lane < n, c.to(tl.float64) * factor - v, float("inf"))


@triton.jit
def assign_kernel(  # type: ignore[no-untyped-def]
    costs, factors, starts, columns, prices, scans, n, N: tl.constexpr, PACKED: tl.constexpr
):
    """Columns, prices and the number of scans of one problem (n, n), of which the costs are taken times a factor."""
    problem = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, N)
    inside = lane < n
    cost = costs + problem * n * n
    INF = float("inf")
    factor = tl.load(factors + problem)
    v = tl.load(starts + problem * n + lane, mask=inside, other=0.0)
    if PACKED:
        factor = factor.to(tl.float32)
        v = v.to(tl.float32)
    row_of = tl.full((N,), -1, tl.int32)
    for i in range(0, n):
        reduced = _reduced(cost, i, n, lane, factor, v, PACKED)
        low, column, row = _nearest(reduced, row_of, lane, N, PACKED)
        row_of = tl.where((lane == column) & (row < 0), i, row_of)
    count = n
    for start in range(0, n):
        if tl.max((row_of == start).to(tl.int32), axis=0) == 0:
            distance = _reduced(cost, start, n, lane, factor, v, PACKED)
            before = tl.full((N,), 0, tl.int32) + start
            done = lane >= n
            low, column, row = _nearest(distance, row_of, lane, N, PACKED)
            while row >= 0:
                done = done | (lane == column)
                reduced = _reduced(cost, row, n, lane, factor, v, PACKED)
                less = tl.sum(tl.where(lane == column, reduced, 0.0), axis=0) - low
                reduced = reduced - less
                nearer = (reduced < distance) & (~done)
                distance = tl.where(nearer, reduced, distance)
                before = tl.where(nearer, row, before)
                low, column, row = _nearest(tl.where(done, INF, distance), row_of, lane, N, PACKED)
                count += 1
            v = tl.where(done & inside, v + (distance - low), v)
            row = start - 1
            while row != start:  # turn the path: each column to the row before it, which leaves its own
                row = tl.max(tl.where(lane == column, before, -1), axis=0)
                left = tl.max(tl.where(row_of == row, lane, -1), axis=0)
                row_of = tl.where(lane == column, row, row_of)
                column = left
            count += 1
    tl.store(columns + problem * n + row_of, lane, mask=inside)
    tl.store(prices + problem * n + lane, v, mask=inside)
    tl.store(scans + problem, count)


@triton.jit
def bound_kernel(  # type: ignore[no-untyped-def]
    costs, factors, prices, minima, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """min_j (c_ij - v_j) in float64 of some rows i of one problem."""
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(n, ROWS)
    problem = program // tiles
    row = (program % tiles) * ROWS + tl.arange(0, ROWS)
    factor = tl.load(factors + problem)
    least = tl.full((ROWS, COLUMNS), float("inf"), tl.float64)
    for first in range(0, n, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = (row < n)[:, None] & (column < n)[None, :]
        c = tl.load(costs + problem * n * n + row[:, None] * n + column[None, :], mask=inside, other=0.0)
        v = tl.load(prices + problem * n + column, mask=column < n, other=0.0)
        here = c.to(tl.float64) * factor - v[None, :]
        least = tl.where(inside, tl.minimum(least, here), least)
    tl.store(minima + problem * n + row, tl.min(least, axis=1), mask=row < n)


def solve_triton(
    cost: Tensor, v0: Tensor, factor: Tensor | None = None, *, exact: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns (batch, n) int32, prices (batch, n) float64, and scans of a row (batch,) int32.

    Args:
        cost: (batch, n, n) float32 or float64, finite.
        v0: (batch, n), prices to begin from; those far beyond the costs are cut off.
        factor: (batch,) float64. The problems, and all prices, are those of cost times factor, which must be near 1 so
            that no sum overflows.
        exact: float64 inside, not float32 with packed keys.

    Raises:
        ValueError: n beyond what a program holds: 16,383 in float32, 4,096 in float64.
    """
    batch, n, _ = cost.shape
    if n > (EXACT_UP_TO if exact else PACKED_UP_TO):
        raise ValueError(
            f"a GPU program holds {PACKED_UP_TO} columns, {EXACT_UP_TO} in float64, got {n}; use impl='compiled'"
        )
    factor = torch.ones(batch, dtype=torch.float64, device=cost.device) if factor is None else factor
    if cost.dtype == torch.float64 and not exact:  # not compiled for: float64 costs of usual size go to the exact one
        cost, factor = (cost * factor[:, None, None]).float(), torch.ones_like(factor)
    columns = torch.empty(batch, n, dtype=torch.int32, device=cost.device)
    prices = torch.empty(batch, n, dtype=torch.float64, device=cost.device)
    scans = torch.empty(batch, dtype=torch.int32, device=cost.device)
    if columns.numel():
        start, size = v0.double().clamp(-FARTHEST, FARTHEST).contiguous(), lanes(n)
        assign_kernel[(batch,)](
            cost.contiguous(), factor.contiguous(), start, columns, prices, scans, n, N=size, PACKED=not exact,
            num_warps=warps(size, not exact),
        )  # fmt: skip
    return columns, prices, scans.zero_() if n == 0 else scans


def row_minima(cost: Tensor, factor: Tensor, v: Tensor) -> Tensor:
    """min_j (c_ij - v_j), (batch, n) float64; c is cost (batch, n, n), float32 or float64, times factor (batch,)."""
    batch, n, _ = cost.shape
    minima = torch.empty(batch, n, dtype=torch.float64, device=cost.device)
    if minima.numel():
        grid = (batch * triton.cdiv(n, BOUND["ROWS"]),)
        bound_kernel[grid](cost.contiguous(), factor.contiguous(), v.contiguous(), minima, n, **BOUND, num_warps=4)
    return minima
