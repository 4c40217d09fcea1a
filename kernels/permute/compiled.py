"""Permuted gather in compiled code: each model is read once and written once, all its tensors in one call.

Weights move as integers of their width, so that any type, NaN and bfloat16 included, keeps its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kernels.permute.gather import Gather
from kernels.programs import Program, sources
from kernels.threads import cores, in_parts

WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # bytes of a weight -> what it moves as
PART = 1 << 20  # bytes that a thread is worth
# Columns of a plan, one line a gather. An index is described by the address of its first number, the bytes from model
# to model and from entry to entry, and the bytes of a number, negative where it is signed and 0 where nothing moves.
BEGIN, ROWS, COLS, INNER, ROW, COL = 0, 1, 2, 3, 4, 8
FIELDS = 12
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
compiled = njit(**OPTIONS)


def _reader(bits: int, signed: bool) -> Any:
    """An intrinsic: the integer at an address, as int64."""

    @intrinsic
    def read(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            value = builder.load(pointer)
            value.align = 1
            if bits == 64:
                return value
            return (builder.sext if signed else builder.zext)(value, ir.IntType(64))

        return types.int64(types.int64), generate

    return read


_u8, _u16, _u32 = (_reader(bits, False) for bits in (8, 16, 32))
_i8, _i16, _i32, _i64 = (_reader(bits, True) for bits in (8, 16, 32, 64))


@compiled
def _copy(source: np.ndarray, target: np.ndarray) -> None:
    for at in range(np.uint64(len(target))):
        target[at] = source[at]


@compiled
def _pick(source: np.ndarray, index: np.ndarray, target: np.ndarray) -> None:
    for at in range(np.uint64(len(target))):  # unsigned: no test for places counted from the end
        target[at] = source[np.uint64(index[at])]


@compiled
def spread(rows: int, inner: int) -> bool:
    """Whether runs are so short, and rows so many, that an index for each number is faster."""
    return rows > 1 and 1 < inner <= 32


@compiled
def _indices(index: np.ndarray, model: int, count: int, kept: np.ndarray) -> bool:
    """Put the indices of a model, described as in a plan, into `kept`; whether one of them is outside 0..count - 1."""
    address, step, kind = index[0] + model * index[1], index[2], index[3]
    if kind == 0:
        for at in range(count):
            kept[at] = at
    elif kind == -8 or kind == 8:  # beyond int64 they read as negative
        for at in range(count):
            kept[at] = _i64(address + at * step)
    elif kind == -4:
        for at in range(count):
            kept[at] = _i32(address + at * step)
    elif kind == 4:
        for at in range(count):
            kept[at] = _u32(address + at * step)
    elif kind == -2:
        for at in range(count):
            kept[at] = _i16(address + at * step)
    elif kind == 2:
        for at in range(count):
            kept[at] = _u16(address + at * step)
    elif kind == -1:
        for at in range(count):
            kept[at] = _i8(address + at * step)
    else:
        for at in range(count):
            kept[at] = _u8(address + at * step)
    bad = 0
    for at in range(count):
        bad += kept[at] < 0 or kept[at] >= count
    return bad > 0


def _move(digest: str) -> Any:
    """The compiled program. `digest` is part of what its cache is found by: numba looks at this file only."""

    def move(
        weights: np.ndarray, out: np.ndarray, plan: np.ndarray, first: int, row: np.ndarray, col: np.ndarray
    ) -> int:
        """0, or 1 + the number of the gather with an index outside its axis.

        Args:
            weights, out: (models, size) of these models. plan: (gathers, FIELDS) int64. first: of these models, among
                those that the indices are of. row, col: room for the indices of one model.
        """
        digest  # noqa: B018  # makes it a part of the function
        for model in range(len(weights)):
            source, target, done = weights[model], out[model], 0
            for number in range(len(plan)):
                begin, rows, cols, inner = plan[number, 0], plan[number, 1], plan[number, 2], plan[number, 3]
                _copy(source[done:begin], target[done:begin])
                done = begin + rows * cols * inner
                if _indices(plan[number, ROW:COL], first + model, rows, row):
                    return number + 1
                if _indices(plan[number, COL:FIELDS], first + model, cols, col):
                    return number + 1
                line, run = cols * inner, inner
                if spread(rows, inner):  # an index for each number: faster than short runs
                    for c in range(cols - 1, -1, -1):
                        for at in range(inner - 1, -1, -1):
                            col[c * inner + at] = col[c] * inner + at
                    run = 1
                for r in range(rows):
                    to, start = begin + r * line, begin + row[r] * line
                    here, there = source[start : start + line], target[to : to + line]
                    if plan[number, COL + 3] == 0:
                        _copy(here, there)
                    elif run == 1:
                        _pick(here, col, there)
                    else:
                        for c in range(cols):
                            block = col[c] * inner
                            _copy(here[block : block + inner], there[c * inner : (c + 1) * inner])
            _copy(source[done:], target[done:])
        return 0

    return move


MOVE = Program(_move, sources("permute/compiled.py"), OPTIONS)


def takes(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type can be moved."""
    return dtype.itemsize in WIDTHS and not dtype.hasobject


def gather_compiled(weights: np.ndarray, gathers: Sequence[Gather], threads: int | None = None) -> np.ndarray:
    """(models, size) moved; gathers as from `kernels.permute.gather.checked`.

    Args:
        threads: None for as many as there are cores, and fewer for little work.

    Raises:
        ValueError: weights of a type that is not 1, 2, 4 or 8 bytes wide. IndexError: an index outside its axis.
    """
    if not takes(weights.dtype):
        raise ValueError(f"weights must be numbers of 1, 2, 4 or 8 bytes, got {weights.dtype}")
    out = np.empty(weights.shape, weights.dtype)
    if not out.size:
        return out
    kind = WIDTHS[weights.dtype.itemsize]
    read, written = np.ascontiguousarray(weights).view(kind), out.view(kind)
    plan, alive = planned(gathers)
    row = max((one[ROWS] for one in plan.tolist()), default=0)
    col = max((one[COLS] * (one[INNER] if spread(one[ROWS], one[INNER]) else 1) for one in plan.tolist()), default=0)
    failed = []

    def work(models: slice) -> None:
        room = np.empty(row, np.int64), np.empty(col, np.int64)
        failed.append(MOVE(read[models], written[models], plan, models.start, *room))

    in_parts(work, len(weights), min(threads or cores(), -(-weights.nbytes // PART)))
    del alive  # the indices stayed as long as their addresses were used
    if any(failed):
        gather = gathers[max(failed) - 1]
        raise IndexError(f"the gather at {gather.offset} has an index outside {gather.rows} rows, {gather.cols} cols")
    return out


def planned(gathers: Sequence[Gather]) -> tuple[np.ndarray, list[np.ndarray]]:
    """(gathers, FIELDS) int64, and the arrays that its addresses point into."""
    plan, alive = np.zeros((len(gathers), FIELDS), np.int64), []
    for line, (offset, rows, cols, inner, row, col) in zip(plan, gathers, strict=True):
        if col is None:  # whole rows move: as columns of one row, which a row of one number needs in order to be fast
            rows, cols, inner, row, col = 1, rows, cols * inner, None, row
        line[:4] = offset, rows, cols, inner
        for where, index in ((ROW, row), (COL, col)):
            if index is not None:
                array = _plain_integers(index)
                alive.append(array)
                size = array.itemsize if array.dtype.kind == "u" else -array.itemsize
                line[where : where + 4] = array.ctypes.data, *array.strides, size
    return plan, alive


def _plain_integers(index: Any) -> np.ndarray:
    """As an array of integers of this machine's byte order, without a copy where it is one."""
    array = np.asarray(index)
    if array.dtype.kind not in "iu":
        raise ValueError(f"indices must be integers, got {array.dtype}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
