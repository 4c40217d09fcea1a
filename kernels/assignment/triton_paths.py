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

PACKED_UP_TO, EXACT_UP_TO = (
    16383,
    4096,
)  # units: the most that a key has bits for; the most that fits into registers in float64
FARTHEST = 1e4  # of the largest cost: prices beyond that are of another problem, and would cost digits


def configurations() -> list[tuple[str, dict[str, int | bool], int]]:
    """(type of costs, constants, warps) of every program that can be launched."""
    sizes = [1 << power for power in range(5, 15)]
    return [
        *(("fp32", {"N": size, "PACKED": True}, warps(size, True)) for size in sizes),
        *(("fp64", {"N": size, "PACKED": False}, warps(size, False)) for size in sizes if size <= EXACT_UP_TO),
    ]


def lanes(n: int) -> int:
    """Columns that a program for n columns has: a power of two, 32 at least."""
    return max(32, triton.next_power_of_2(n))


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
def assign_kernel(  # type: ignore[no-untyped-def]
    costs, starts, columns, prices, scans, n, N: tl.constexpr, PACKED: tl.constexpr
):
    """Columns, prices and the number of scans of one problem (n, n) with finite costs."""
    problem = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, N)
    inside = lane < n
    cost = costs + problem * n * n
    INF = float("inf")
    v = tl.load(starts + problem * n + lane, mask=inside, other=0.0)
    row_of = tl.full((N,), -1, tl.int32)
    for i in range(0, n):
        reduced = tl.load(cost + i * n + lane, mask=inside, other=INF) - v
        low, column, row = _nearest(reduced, row_of, lane, N, PACKED)
        row_of = tl.where((lane == column) & (row < 0), i, row_of)
    count = n
    for start in range(0, n):
        if tl.max((row_of == start).to(tl.int32), axis=0) == 0:
            distance = tl.load(cost + start * n + lane, mask=inside, other=INF) - v
            before = tl.full((N,), 0, tl.int32) + start
            done = lane >= n
            low, column, row = _nearest(distance, row_of, lane, N, PACKED)
            while row >= 0:
                done = done | (lane == column)
                reduced = tl.load(cost + row * n + lane, mask=inside, other=INF) - v
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


def solve_triton(cost: Tensor, v0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns (batch, n) int32, prices (batch, n) in the costs' type, and scans of a row (batch,) int32.

    Args:
        cost: (batch, n, n), finite, float32 (packed keys) or float64, the largest about 1 so that no sum overflows.
        v0: (batch, n), prices to begin from; those far beyond the costs are cut off.

    Raises:
        ValueError: n beyond what a program holds: 16,383 in float32, 4,096 in float64.
    """
    batch, n, _ = cost.shape
    packed = cost.dtype == torch.float32
    if n > (PACKED_UP_TO if packed else EXACT_UP_TO):
        raise ValueError(
            f"a GPU program holds {PACKED_UP_TO} columns, {EXACT_UP_TO} in float64, got {n}; use impl='compiled'"
        )
    columns = torch.empty(batch, n, dtype=torch.int32, device=cost.device)
    prices = torch.empty(batch, n, dtype=cost.dtype, device=cost.device)
    scans = torch.empty(batch, dtype=torch.int32, device=cost.device)
    if columns.numel():
        start = v0.clamp(-FARTHEST, FARTHEST).to(cost.dtype).contiguous()
        size = lanes(n)
        assign_kernel[(batch,)](
            cost.contiguous(), start, columns, prices, scans, n, N=size, PACKED=packed, num_warps=warps(size, packed)
        )
    return columns, prices, scans.zero_() if n == 0 else scans
