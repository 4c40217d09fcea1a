"""Sums of products in register tiles, with one sample in each lane of a vector register.

A tile is a block of sums, rows by columns, that stays in registers while the terms go by. Which numbers a term
multiplies is read from a table of taps, so that one piece of code is a convolution with any kernel, padding and stride,
a linear layer, and the gradients of both. Each sum is one chain of multiply-adds in the order of the table, whatever
the shape of the tile: no bit depends on how sums are laid into tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from kernels.lanes.vectors import INDEX, Vectors, instructions, once, pointers, switch, times
from kernels.mlp.tiles import REGISTER, compiled

# Accumulators, and columns of a tile: with the columns' operands and one of the rows they fill 32 registers, or 16.
ACCUMULATORS, COLUMNS = (24, 6) if REGISTER == 64 else (12, 3)
ROWS = 8
SHAPES = [(r, c) for c in range(1, COLUMNS + 1) for r in range(1, min(ROWS, ACCUMULATORS // c) + 1)]


def _tile(builder: Any, rows: int, columns: int, splat: bool, arguments: Any) -> None:
    """One tile; the arguments are those of the intrinsics, arrays as pointers."""
    left, l0, l_row, right, r0, r_column, table, t0, terms, start, s0, s_row, y, y0, y_row, y_column = arguments
    vectors = Vectors(builder, right.type.pointee)
    sums = [(r, c) for r in range(rows) for c in range(columns)]
    places = [builder.add(builder.add(y0, times(builder, y_row, r)), times(builder, y_column, c)) for r, c in sums]
    if splat:
        begins = [vectors.splat(start, builder.add(s0, times(builder, s_row, r))) for r in range(rows)]
        initial = [begins[r] for r, _ in sums]
    else:
        initial = [vectors.load(y, place) for place in places]

    def term(k: Any, running: list[Any]) -> list[Any]:
        entry = builder.add(t0, times(builder, k, 2))
        l_tap = builder.load(builder.gep(table, [entry]))
        r_tap = builder.load(builder.gep(table, [builder.add(entry, ir.Constant(INDEX, 1))]))
        l_at, r_at = builder.add(l0, l_tap), builder.add(r0, r_tap)
        across = [vectors.load(right, builder.add(r_at, times(builder, r_column, c))) for c in range(columns)]
        added = []
        for r in range(rows):
            offset = builder.add(l_at, times(builder, l_row, r))
            down = vectors.splat(left, offset) if splat else vectors.load(left, offset)
            for c in range(columns):
                product = builder.fmul(down, across[c], flags=["contract"])  # fuse, and nothing else
                added.append(builder.fadd(product, running[r * columns + c], flags=["contract"]))
        return added

    for total, place in zip(vectors.loop(terms, initial, term), places, strict=True):
        vectors.store(total, y, place)


def _tiles(splat: bool) -> Callable[..., None]:
    """An intrinsic: y[r, c] = start[r, c] + sum over k of left[r, k] * right[k, c], for a tile of any of `SHAPES`.

    All arrays are flat; each comes with the offset of its block and the distances of its rows and columns, the table
    with where its pairs (offset in left, offset in right) begin. With `splat` left and start are single numbers for all
    lanes; else they are vectors, and start is y.
    """

    @instructions
    def tiles(
        typing: Any, rows: Any, columns: Any, left: Any, l0: Any, l_row: Any, right: Any, r0: Any, r_column: Any,
        table: Any, t0: Any, terms: Any, start: Any, s0: Any, s_row: Any, y: Any, y0: Any, y_row: Any, y_column: Any,
    ) -> Any:  # fmt: skip  # intrinsics take no *args
        i = types.int64
        signature = types.void(i, i, left, i, i, right, i, i, table, i, i, start, i, i, y, i, i, i)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            flat = pointers(context, builder, signature, arguments)
            code = builder.add(times(builder, arguments[0], 16), arguments[1])
            shapes = {16 * r + c: (r, c) for r, c in SHAPES}
            switch(builder, code, shapes, lambda shape: _tile(builder, shape[0], shape[1], splat, flat[2:]))
            return context.get_dummy_value()

        return signature, generate

    return tiles


_gathered, _outer = _tiles(True), _tiles(False)


@compiled
def _share(count: int, most: int) -> int:
    """How many of `count` the next tile takes, so that tiles are about equal and none has more than `most`."""
    if count <= most:
        return count
    tiles = (count + most - 1) // most
    return (count + tiles - 1) // tiles


@compiled
def gathered(
    rows: int, columns: int, left: np.ndarray, l0: int, l_row: int, right: np.ndarray, r0: int, r_column: int,
    table: np.ndarray, t0: int, terms: int, start: np.ndarray, s0: int, s_row: int, y: np.ndarray, y0: int, y_row: int,
    y_column: int,
) -> None:  # fmt: skip  # as the intrinsic
    """y[r, c] = start[r] + sum over taps of left[r, tap] * right[tap, c]; `left` and `start` are the same in all lanes.

    Offsets and distances are in numbers. The table is flat, pairs of offsets (left, right) from t0 on.
    """
    once()
    c = 0
    while c < columns:
        across = _share(columns - c, COLUMNS)
        most = min(ROWS, ACCUMULATORS // across)
        r = 0
        while r < rows:
            down = _share(rows - r, most)
            _gathered(
                down, across, left, l0 + r * l_row, l_row, right, r0 + c * r_column, r_column, table, t0, terms, start,
                s0 + r * s_row, s_row, y, y0 + r * y_row + c * y_column, y_row, y_column,
            )  # fmt: skip
            r += down
        c += across


@compiled
def outer(
    rows: int, columns: int, left: np.ndarray, l0: int, l_row: int, right: np.ndarray, r0: int, r_column: int,
    table: np.ndarray, t0: int, terms: int, y: np.ndarray, y0: int, y_row: int, y_column: int,
) -> None:  # fmt: skip  # as the intrinsic
    """y[r, c] += sum over taps of left[r, tap] * right[tap, c], lane by lane; the table is as in `gathered`."""
    once()
    c = 0
    while c < columns:
        across = _share(columns - c, COLUMNS)
        most = min(ROWS, ACCUMULATORS // across)
        r = 0
        while r < rows:
            down = _share(rows - r, most)
            _outer(
                down, across, left, l0 + r * l_row, l_row, right, r0 + c * r_column, r_column, table, t0, terms, y, 0,
                0, y, y0 + r * y_row + c * y_column, y_row, y_column,
            )  # fmt: skip
            r += down
        c += across
