"""Permuted gather on a GPU: one launch for a whole population, a program per model and tile of 1,024 weights.

Weights move as integers of their width, so that any type keeps its bits. Not measured on a GPU yet.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.permute.gather import Gather

BLOCK, WARPS = 1024, 4
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a weight -> what it moves as
LARGEST = 2**31 - 1  # numbers of a tensor: places inside one are int32
FIELDS = tl.constexpr(6)


def configurations() -> list[tuple[str, dict[str, int], int]]:
    """(type of the weights, constants, warps) of every program that can be launched."""
    return [(f"i{8 * size}", {"BLOCK": BLOCK}, WARPS) for size in INTEGERS]


@triton.jit
def gather_kernel(  # type: ignore[no-untyped-def]
    source, target, index, segments, tiles, tile_count, size, source_stride, index_width, BLOCK: tl.constexpr
):
    """target[m, begin + at] = source[m, begin + row * line + col * inner + k] for one tile of one model."""
    program = tl.program_id(0).to(tl.int64)
    model = program // tile_count
    tile = program % tile_count
    segment = segments + tl.load(tiles + 2 * tile) * FIELDS
    begin = tl.load(segment)
    count = tl.load(segment + 1)
    line = tl.load(segment + 2).to(tl.int32)
    inner = tl.load(segment + 3).to(tl.int32)
    row_at = tl.load(segment + 4)
    col_at = tl.load(segment + 5)
    at = tl.load(tiles + 2 * tile + 1) + tl.arange(0, BLOCK)
    inside = at < count
    place = at.to(tl.int32)
    row = place // line
    rest = place - row * line
    col = rest // inner
    within = rest - col * inner
    indices = index + model * index_width
    row = tl.where(row_at >= 0, tl.load(indices + row_at + row, mask=inside & (row_at >= 0), other=0), row)
    col = tl.where(col_at >= 0, tl.load(indices + col_at + col, mask=inside & (col_at >= 0), other=0), col)
    found = begin + row.to(tl.int64) * line + col.to(tl.int64) * inner + within
    value = tl.load(source + model * source_stride + found, mask=inside)
    tl.store(target + model * size + begin + at, value, mask=inside)


def gather_triton(weights: Tensor, gathers: Sequence[Gather]) -> Tensor:
    """(models, size) moved; gathers as from `kernels.permute.gather.checked`.

    Raises:
        ValueError: weights of more than 8 bytes a number, or a tensor of 2^31 numbers or more.
        IndexError: an index outside its axis.
    """
    if weights.element_size() not in INTEGERS:
        raise ValueError(f"weights must be numbers of 1, 2, 4 or 8 bytes, got {weights.dtype}")
    shapes = tuple(
        (one.offset, one.rows, one.cols, one.inner, one.row is not None, one.col is not None) for one in gathers
    )
    out = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    if not out.numel():
        return out
    segments, tiles = _tables(shapes, weights.shape[1], weights.device)
    index = _indices(gathers, len(weights), weights.device)
    kind = INTEGERS[weights.element_size()]
    rows = weights.detach() if weights.stride(1) == 1 else weights.detach().contiguous()
    together = max(1, LARGEST // len(tiles))  # models a launch: programs are counted in int32
    for start in range(0, len(weights), together):
        part = slice(start, start + together)
        read, written = rows[part].view(kind), out[part].view(kind)
        gather_kernel[(len(tiles) * len(read),)](
            read, written, index[part], segments, tiles, len(tiles), weights.shape[1], rows.stride(0),
            index.shape[1], BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return out


@functools.lru_cache(maxsize=64)
def _tables(shapes: tuple[tuple[int, int, int, int, bool, bool], ...], size: int, device: Any) -> tuple[Tensor, Tensor]:
    """(segments, 6): begin, numbers, numbers a row, numbers a column, where its indices begin; (tiles, 2): segment and
    first number. What no gather moves is a segment without indices."""
    segments: list[tuple[int, int, int, int, int, int]] = []
    done = width = 0
    for offset, rows, cols, inner, has_row, has_col in (*shapes, (size, 0, 0, 0, False, False)):
        if offset > done:
            segments.append((done, offset - done, offset - done, 1, -1, -1))
        done = offset + rows * cols * inner
        if done > offset:
            row = width if has_row else -1
            width += rows if has_row else 0
            col = width if has_col else -1
            width += cols if has_col else 0
            segments.append((offset, done - offset, cols * inner, inner, row, col))
    if max(one[1] for one in segments) > LARGEST:
        raise ValueError(f"a tensor must have at most {LARGEST} numbers; use impl='reference'")
    tiles = [(number, start) for number, one in enumerate(segments) for start in range(0, one[1], BLOCK)]
    return torch.tensor(segments, device=device), torch.tensor(tiles, device=device)


def _indices(gathers: Sequence[Gather], models: int, device: torch.device) -> Tensor:
    """All indices of each model one behind the other, (models, entries) int32."""
    found, low, high = [], [], []
    for gather in gathers:
        for index, count in ((gather.row, gather.rows), (gather.col, gather.cols)):
            if index is not None and count:
                here = index if isinstance(index, Tensor) else np.clip(index, -1, LARGEST).astype(np.int64)
                here = torch.as_tensor(here, device=device).long()
                low.append(here.amin())
                high.append(here.amax() - count)
                found.append(here.to(torch.int32))
    if not found:
        return torch.zeros(models, 1, dtype=torch.int32, device=device)
    if bool((torch.stack(low).amin() < 0) | (torch.stack(high).amax() >= 0)):  # one wait for the device
        raise IndexError("a gather has an index outside its axis")
    return torch.cat(found, 1)
