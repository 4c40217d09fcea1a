"""Sums of two matrix products by register tiles, added to what is there: `kernels.mlp.tiles` with two chains in one.

The second derivative of a layer is a sum of two products (weights times a change, a change of weights times what it
meets), summed over blocks of samples. A block of such a sum stays in registers from its start to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types

from kernels.lanes.vectors import Vectors, instructions, once, pointers, times
from kernels.mlp.tiles import OPTIONS, REGISTER, ROWS, compiled

# Sums may be split over lanes: LLVM may change their order, which is the same in every call of the same length.
summing = njit(**(OPTIONS | {"fastmath": {"contract", "reassoc"}}))


def _tile(rows: int, vectors: int) -> Any:
    """An intrinsic: y[r, :] = start[r, :] + sum over k of x[r, k] * w[k, :] + sum over k of u[r, k] * v[k, :]."""

    @instructions
    def tile(
        typing: Any, x: Any, x0: Any, x_row: Any, x_k: Any, w: Any, w0: Any, w_k: Any, terms: Any, u: Any, u0: Any,
        u_row: Any, u_k: Any, v: Any, v0: Any, v_k: Any, more: Any, start: Any, s0: Any, s_row: Any, y: Any, y0: Any,
        y_row: Any,
    ) -> Any:  # fmt: skip  # intrinsics take no *args
        i = types.int64
        signature = types.void(x, i, i, i, w, i, i, i, u, i, i, i, v, i, i, i, start, i, i, y, i, i)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            (x, x0, x_row, x_k, w, w0, w_k, terms, u, u0, u_row, u_k, v, v0, v_k, more, start, s0, s_row, y, y0,
             y_row) = pointers(context, builder, signature, arguments)  # fmt: skip
            registers = Vectors(builder, x.type.pointee)

            def place(begin: Any, step: Any, row: int, vector: int) -> Any:
                return builder.add(builder.add(begin, times(builder, step, row)), begin.type(vector * registers.width))

            def adding(left: Any, l0: Any, l_row: Any, l_k: Any, right: Any, r0: Any, r_k: Any) -> Callable[..., Any]:
                def body(k: Any, sums: list[Any]) -> list[Any]:
                    l_at, r_at = builder.add(l0, builder.mul(k, l_k)), builder.add(r0, builder.mul(k, r_k))
                    columns = [registers.load(right, place(r_at, r_k, 0, c)) for c in range(vectors)]
                    added = []
                    for r in range(rows):
                        one = registers.splat(left, place(l_at, l_row, r, 0))
                        for c in range(vectors):
                            product = builder.fmul(one, columns[c], flags=["contract"])  # fuse, and nothing else
                            added.append(builder.fadd(product, sums[r * vectors + c], flags=["contract"]))
                    return added

                return body

            both = [(r, c) for r in range(rows) for c in range(vectors)]
            sums = [registers.load(start, place(s0, s_row, r, c)) for r, c in both]
            sums = registers.loop(terms, sums, adding(x, x0, x_row, x_k, w, w0, w_k))
            sums = registers.loop(more, sums, adding(u, u0, u_row, u_k, v, v0, v_k))
            for (r, c), value in zip(both, sums, strict=True):
                registers.store(value, y, place(y0, y_row, r, c))
            return context.get_dummy_value()

        return signature, generate

    return tile


_wide, _narrow = _tile(ROWS, 2), _tile(ROWS, 1)


@compiled
def products(
    x: np.ndarray, x0: int, x_row: int, x_k: int, w: np.ndarray, w0: int, w_k: int, terms: int, u: np.ndarray, u0: int,
    u_row: int, u_k: int, v: np.ndarray, v0: int, v_k: int, more: int, start: np.ndarray, s0: int, s_row: int,
    y: np.ndarray, y0: int, y_row: int, rows: int, columns: int,
) -> None:  # fmt: skip  # as the intrinsic
    """y[r, c] = start[r, c] + sum over k < terms of x[r, k] * w[k, c] + sum over k < more of u[r, k] * v[k, c].

    Flat arrays with offsets and distances, as `kernels.mlp.tiles.matmul`; y may be start. Rows are written in whole
    tiles of `ROWS`, columns in whole registers: buffers have that much room.
    """
    once()
    lane = REGISTER // x.itemsize
    c = 0
    while c < columns:
        wide = c + lane < columns
        for r in range(0, rows, ROWS):
            if wide:
                _wide(
                    x, x0 + r * x_row, x_row, x_k, w, w0 + c, w_k, terms, u, u0 + r * u_row, u_row, u_k, v, v0 + c,
                    v_k, more, start, s0 + r * s_row + c, s_row, y, y0 + r * y_row + c, y_row,
                )  # fmt: skip
            else:
                _narrow(
                    x, x0 + r * x_row, x_row, x_k, w, w0 + c, w_k, terms, u, u0 + r * u_row, u_row, u_k, v, v0 + c,
                    v_k, more, start, s0 + r * s_row + c, s_row, y, y0 + r * y_row + c, y_row,
                )  # fmt: skip
        c += 2 * lane if wide else lane


@compiled
def product(
    x: np.ndarray, x0: int, x_row: int, x_k: int, w: np.ndarray, w0: int, w_k: int, start: np.ndarray, s0: int,
    s_row: int, y: np.ndarray, y0: int, y_row: int, rows: int, terms: int, columns: int,
) -> None:  # fmt: skip  # as above
    """`products` without the second sum."""
    products(
        x, x0, x_row, x_k, w, w0, w_k, terms, x, x0, x_row, x_k, w, w0, w_k, 0, start, s0, s_row, y, y0, y_row, rows,
        columns,
    )  # fmt: skip


@summing
def dot(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of x * y, (count,)."""
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


@summing
def dot_squares(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of x * y^2, (count,)."""
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i] * (y[i] * y[i])
    return total
