"""Small matrix products by register tiles: a block of the result stays in vector registers while the sum runs.

LLVM does not find this arrangement in plain loops (15 GFLOP/s a core where tiles reach 50 and more), so the inner loop
is written as LLVM instructions on vectors. Each element of a result is one chain of multiply-adds in the order of the
sum, whatever the shape of the tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


def _registers() -> tuple[int, int]:
    """Bytes of a vector register here, and rows of a tile, such that accumulators and operands fit in the registers."""
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 8  # 16 accumulators of 32 registers
    return (32, 4) if features.get("avx2") else (16, 4)  # 8 of 16


REGISTER, ROWS = _registers()


def lanes(dtype: Any) -> int:
    """Numbers in a vector register."""
    return REGISTER // np.dtype(dtype).itemsize


def padded(width: int, dtype: Any) -> int:
    """Columns a row of so many numbers takes in buffers: whole registers, and as a number of rows whole tiles.

    Wide rows are no multiple of 512 bytes, which would put what is below each other in the same few sets of the cache.
    """
    unit = max(lanes(dtype), ROWS)
    columns = -(-width // unit) * unit
    return columns + unit if columns * np.dtype(dtype).itemsize % 512 == 0 else columns


# Division by zero gives infinities and NaN, which show as divergence; no test for it stands in the way of vector code.
# Of fast mathematics only fused multiply-adds: the rest may lose NaN.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
compiled = njit(**OPTIONS)


def _pointer(builder: Any, data: Any, offset: Any, element: Any) -> Any:
    return builder.bitcast(builder.gep(data, [offset]), element.as_pointer())


def _tile(rows: int, vectors: int) -> Callable[..., None]:
    """An intrinsic: y[r, :] = start[:] + sum over k of x[r, k] * w[k, :], for `rows` r and `vectors` registers.

    All arrays are flat; each comes with the offset of its block and the distances of its rows and of its k. The sum
    has one term or more.
    """

    @intrinsic
    def tile(
        typing: Any, x: Any, x0: Any, x_row: Any, x_k: Any, w: Any, w0: Any, w_k: Any, start: Any, s0: Any, y: Any,
        y0: Any, y_row: Any, terms: Any,
    ) -> Any:  # fmt: skip  # intrinsics take no *args
        i64 = types.int64
        signature = types.void(x, i64, i64, i64, w, i64, i64, start, i64, y, i64, i64, i64)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, x0, x_row, x_k, w, w0, w_k, start, s0, y, y0, y_row, terms = arguments
            x, w, start, y = (
                context.make_array(signature.args[at])(context, builder, array).data
                for at, array in zip((0, 4, 7, 9), (x, w, start, y), strict=True)
            )
            scalar = x.type.pointee
            width = REGISTER // (8 if isinstance(scalar, ir.DoubleType) else 4)
            vector, index = ir.VectorType(scalar, width), ir.IntType(64)
            undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
            splat = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
            align = REGISTER // width

            def load(data: Any, offset: Any, kind: Any) -> Any:
                value = builder.load(_pointer(builder, data, offset, kind))
                value.align = align
                return value

            def shifted(offset: Any, by: int) -> Any:
                return builder.add(offset, ir.Constant(index, by * width))

            initial = [load(start, shifted(s0, v), vector) for v in range(vectors)] * rows
            before = builder.block
            loop, after = builder.append_basic_block("terms"), builder.append_basic_block("done")
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(index)
            k.add_incoming(ir.Constant(index, 0), before)
            sums = [builder.phi(vector) for _ in initial]
            w_at, x_at = builder.add(w0, builder.mul(k, w_k)), builder.add(x0, builder.mul(k, x_k))
            right = [load(w, shifted(w_at, v), vector) for v in range(vectors)]
            added = []
            for r in range(rows):
                left = load(x, builder.add(x_at, builder.mul(x_row, ir.Constant(index, r))), scalar)
                left = builder.shuffle_vector(builder.insert_element(undefined, left, first), undefined, splat)
                for v in range(vectors):
                    product = builder.fmul(left, right[v], flags=["contract"])  # fuse, and nothing else
                    added.append(builder.fadd(product, sums[r * vectors + v], flags=["contract"]))
            following = builder.add(k, ir.Constant(index, 1))
            k.add_incoming(following, loop)
            for one, begin, end in zip(sums, initial, added, strict=True):
                one.add_incoming(begin, before)
                one.add_incoming(end, loop)
            builder.cbranch(builder.icmp_signed("<", following, terms), loop, after)
            builder.position_at_end(after)
            for r in range(rows):
                row = builder.add(y0, builder.mul(y_row, ir.Constant(index, r)))
                for v in range(vectors):
                    stored = builder.store(added[r * vectors + v], _pointer(builder, y, shifted(row, v), vector))
                    stored.align = align
            return context.get_dummy_value()

        return signature, generate

    return tile


_wide, _narrow, _row_wide, _row_narrow = _tile(ROWS, 2), _tile(ROWS, 1), _tile(1, 2), _tile(1, 1)


@compiled
def matmul(
    x: np.ndarray, x0: int, x_row: int, x_k: int, w: np.ndarray, w0: int, w_k: int, start: np.ndarray, s0: int,
    y: np.ndarray, y0: int, y_row: int, rows: int, terms: int, columns: int,
) -> None:  # fmt: skip  # as the intrinsic
    """y[r, c] = start[c] + sum over k < terms of x[r, k] * w[k, c]: flat arrays with offsets and distances.

    Rows are written in whole tiles of `ROWS`, columns in whole registers: buffers have that much room.
    """
    lane = REGISTER // x.itemsize
    c = 0
    while c < columns:
        wide = c + lane < columns
        for r in range(0, rows, ROWS):
            if wide:
                _wide(x, x0 + r * x_row, x_row, x_k, w, w0 + c, w_k, start, s0 + c, y, y0 + r * y_row + c, y_row, terms)
            else:
                _narrow(
                    x, x0 + r * x_row, x_row, x_k, w, w0 + c, w_k, start, s0 + c, y, y0 + r * y_row + c, y_row, terms
                )
        c += 2 * lane if wide else lane


@compiled
def column_sums(
    one: np.ndarray, x: np.ndarray, x0: int, x_row: int, zeros: np.ndarray, y: np.ndarray, y0: int, rows: int,
    columns: int,
) -> None:  # fmt: skip  # as matmul
    """y[c] = sum over rows of x[r, c], in whole registers: a product with rows of ones, all of them `one`[0]."""
    lane = REGISTER // x.itemsize
    c = 0
    while c < columns:
        if c + lane < columns:
            _row_wide(one, 0, 0, 0, x, x0 + c, x_row, zeros, c, y, y0 + c, 0, rows)
            c += 2 * lane
        else:
            _row_narrow(one, 0, 0, 0, x, x0 + c, x_row, zeros, c, y, y0 + c, 0, rows)
            c += lane
