"""Costs of an assignment by register tiles: sums over chosen rows of the reference and of the model are added up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from kernels.lanes.vectors import INDEX, Vectors, instructions, lanes_of, once, pointers, times
from kernels.mlp.tiles import ROWS, compiled

TERMS = 192  # of a sum at once: what is packed of them stays in the first cache


def _tile(count: int) -> Callable[..., None]:
    """An intrinsic: y[r, :] += sum over t < terms of x[x0 + at[t] * ROWS + r] * w[w0 + t, :], for ROWS rows r.

    A row of w and of y is `count` registers; those of w lie one behind the other.
    """

    @instructions
    def tile(typing: Any, x: Any, x0: Any, at: Any, w: Any, w0: Any, y: Any, y0: Any, y_row: Any, terms: Any) -> Any:
        i = types.int64

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, x0, at, w, w0, y, y0, y_row, terms = pointers(context, builder, signature, arguments)
            vectors = Vectors(builder, x.type.pointee)

            def places(row: int) -> list[Any]:
                start = builder.add(y0, times(builder, y_row, row))
                return [builder.add(start, ir.Constant(INDEX, v * vectors.width)) for v in range(count)]

            def body(t: Any, sums: list[Any]) -> list[Any]:
                term = builder.load(builder.gep(at, [t]))
                left = builder.add(x0, times(builder, term, ROWS))
                right = builder.add(w0, times(builder, t, count * vectors.width))
                columns = [
                    vectors.load(w, builder.add(right, ir.Constant(INDEX, v * vectors.width))) for v in range(count)
                ]
                added = []
                for row in range(ROWS):
                    one = vectors.splat(x, builder.add(left, ir.Constant(INDEX, row)))
                    for v in range(count):
                        product = builder.fmul(one, columns[v], flags=["contract"])  # fuse, and nothing else
                        added.append(builder.fadd(product, sums[row * count + v], flags=["contract"]))
                return added

            start = [vectors.load(y, place) for row in range(ROWS) for place in places(row)]
            sums = vectors.loop(terms, start, body)
            for row in range(ROWS):
                for v, place in enumerate(places(row)):
                    vectors.store(sums[row * count + v], y, place)
            return context.get_dummy_value()

        return types.void(x, i, at, w, i, y, i, i, i), generate

    return tile


def _difference(count: int) -> Callable[..., None]:
    """An intrinsic: `count` registers, y[y0] = x[a0] - x[b0]."""

    @instructions
    def difference(typing: Any, x: Any, a0: Any, b0: Any, y: Any, y0: Any) -> Any:
        i = types.int64

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, a0, b0, y, y0 = pointers(context, builder, signature, arguments)
            vectors = Vectors(builder, x.type.pointee)
            for v in range(count):
                step = ir.Constant(INDEX, v * vectors.width)
                a, b = (vectors.load(x, builder.add(start, step)) for start in (a0, b0))
                vectors.store(builder.fsub(a, b), y, builder.add(y0, step))
            return context.get_dummy_value()

        return types.void(x, i, i, y, i), generate

    return difference


_wide, _narrow = _tile(2), _tile(1)
_wide_difference, _narrow_difference = _difference(2), _difference(1)


@compiled
def add_products(
    room: np.ndarray, c0: int, stride: int, n: int, panels: int, all_terms: int, terms: int, at: np.ndarray,
    new: np.ndarray, old: np.ndarray, packed: np.ndarray,
) -> None:  # fmt: skip
    """cost[i, j] += sum over t of reference[at[t], i] * (model[new[t], j] - model[old[t], j]), for t < terms.

    Args:
        room: flat; costs begin at c0, with rows of `stride`; the reference's at `panels`, ROWS units of all its
            `all_terms` terms after one another. new, old: where rows of the model begin.
        packed: (TERMS, two registers), to work in.
    """
    once()
    lane = lanes_of(room)
    for t0 in range(0, terms, TERMS):
        some, here = min(TERMS, terms - t0), at[t0:]
        for c in range(0, n, 2 * lane):
            if c + lane < n:
                for t in range(some):
                    _wide_difference(room, new[t0 + t] + c, old[t0 + t] + c, packed, t * 2 * lane)
                for i in range(0, n, ROWS):
                    _wide(room, panels + i * all_terms, here, packed, 0, room, c0 + i * stride + c, stride, some)
            else:
                for t in range(some):
                    _narrow_difference(room, new[t0 + t] + c, old[t0 + t] + c, packed, t * lane)
                for i in range(0, n, ROWS):
                    _narrow(room, panels + i * all_terms, here, packed, 0, room, c0 + i * stride + c, stride, some)
