"""Overlap of error bits on a GPU: a tile of pairs a program, 32 samples of each counted at once.

Counts are of integers, quotients rounded as IEEE 754 says: the same numbers as the definition. Not measured on a GPU
yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE, WARPS = {"ROWS": 32, "COLUMNS": 64}, 4
NOBODY = tl.constexpr(2**31 - 1)


def configurations() -> list[tuple[str, dict[str, int | bool], int]]:
    """(kernel, constants, warps) of every program that can be launched."""
    grouped = [("largest", {**TILE, "GROUPED": flag}, WARPS) for flag in (False, True)]
    return [("overlap", dict(TILE), WARPS), *grouped]


@triton.jit
def _ones(word):  # type: ignore[no-untyped-def]
    """How many bits of each 32-bit word are 1, by sums of neighbours in words of all."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    word = word + (word >> 8)
    return ((word + (word >> 16)) & 0x3F).to(tl.int32)


@triton.jit
def _overlaps(a, b, row, column, rows, columns, words, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of rows and columns, (ROWS, COLUMNS) float32; words (models, words) int32."""
    both = tl.zeros((ROWS, COLUMNS), tl.int32)
    either = tl.zeros((ROWS, COLUMNS), tl.int32)
    for word in range(0, words):
        x = tl.load(a + row * words + word, mask=row < rows, other=0).to(tl.uint32, bitcast=True)[:, None]
        y = tl.load(b + column * words + word, mask=column < columns, other=0).to(tl.uint32, bitcast=True)[None, :]
        both += _ones(x & y)
        either += _ones(x | y)
    return tl.div_rn(both.to(tl.float32), tl.maximum(either, 1).to(tl.float32))


@triton.jit
def overlap_kernel(  # type: ignore[no-untyped-def]
    a, b, out, rows, columns, words, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """One tile of all pairs."""
    across = tl.cdiv(columns, COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    row = (program // across) * ROWS + tl.arange(0, ROWS)
    column = (program % across) * COLUMNS + tl.arange(0, COLUMNS)
    found = _overlaps(a, b, row, column, rows, columns, words, ROWS, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(out + row[:, None] * columns + column[None, :], found, mask=inside)


@triton.jit
def largest_kernel(  # type: ignore[no-untyped-def]
    a, b, groups_a, groups_b, best, index, rows, columns, words,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUPED: tl.constexpr,
):  # fmt: skip
    """The largest of each row in one tile and the first column that has it, into (rows, tiles); -1 where none may."""
    across = tl.cdiv(columns, COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    part = program % across
    row = (program // across) * ROWS + tl.arange(0, ROWS)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    found = _overlaps(a, b, row, column, rows, columns, words, ROWS, COLUMNS)
    allowed = (row < rows)[:, None] & (column < columns)[None, :]
    if GROUPED:
        mine = tl.load(groups_a + row, mask=row < rows, other=0)
        theirs = tl.load(groups_b + column, mask=column < columns, other=0)
        allowed = allowed & (mine[:, None] != theirs[None, :])
    found = tl.where(allowed, found, -1.0)
    most = tl.max(found, axis=1)
    places = tl.where(found == most[:, None], column[None, :].to(tl.int32), NOBODY)
    tl.store(best + row * across + part, most, mask=row < rows)
    tl.store(index + row * across + part, tl.min(places, axis=1), mask=row < rows)


def overlap_triton(a: Tensor, b: Tensor) -> Tensor:
    """(M, N) float32 of error bits (M, bytes) and (N, bytes)."""
    out = torch.empty(len(a), len(b), device=a.device)
    if out.numel():
        x, y = _words(a), _words(b)
        count = triton.cdiv(len(a), TILE["ROWS"]) * triton.cdiv(len(b), TILE["COLUMNS"])
        overlap_kernel[(count,)](x, y, out, len(a), len(b), x.shape[1], **TILE, num_warps=WARPS)
    return out


def largest_triton(a: Tensor, b: Tensor, groups_a: Tensor | None, groups_b: Tensor | None) -> tuple[Tensor, Tensor]:
    """Largest overlaps (M,) float32 and whose they are, (M,) int64, the first of equal ones; 0 and -1 for nobody's."""
    if not (len(a) and len(b)):
        return torch.zeros(len(a), device=a.device), torch.full((len(a),), -1, device=a.device)
    x, y = _words(a), _words(b)
    across = triton.cdiv(len(b), TILE["COLUMNS"])
    best = torch.empty(len(a), across, device=a.device)
    index = torch.empty(len(a), across, dtype=torch.int32, device=a.device)
    none = torch.zeros(1, dtype=torch.int64, device=a.device)
    groups = [none if one is None else one.contiguous() for one in (groups_a, groups_b)]
    largest_kernel[(triton.cdiv(len(a), TILE["ROWS"]) * across,)](
        x, y, *groups, best, index, len(a), len(b), x.shape[1], **TILE, GROUPED=groups_a is not None, num_warps=WARPS
    )
    most = best.amax(1)
    first = torch.where(best == most[:, None], index, NOBODY.value).amin(1).long()
    return most.clamp(min=0), torch.where(most < 0, -1, first)


def _words(bits: Tensor) -> Tensor:
    """(models, words) int32 of (models, bytes), zeros behind; their order does not matter here."""
    padded = torch.zeros(len(bits), max(1, -(-bits.shape[1] // 4)) * 4, dtype=torch.uint8, device=bits.device)
    padded[:, : bits.shape[1]] = bits
    return padded.view(torch.int32)
