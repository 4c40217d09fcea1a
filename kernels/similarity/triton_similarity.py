"""Inner products of units on a GPU: weights of any float type are read as they are and summed in full float32.

Not measured on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
NARROW, WIDE, INNER = 32, 64, 16  # rows and columns of a tile, and terms that are read at once


def tile(rows: int, columns: int) -> tuple[dict[str, int], int]:
    """Constants and warps of the program for results of this shape."""
    side = NARROW if min(rows, columns) <= NARROW else WIDE
    return {"ROWS": side, "COLUMNS": side, "INNER": INNER}, 4 if side == WIDE else 2


def configurations() -> list[tuple[str, dict[str, int], int]]:
    """(type of weights, constants, warps) of every program that can be launched."""
    return [(kind, *tile(side, side)) for kind in TYPES.values() for side in (NARROW, WIDE)]


@triton.jit
def similarity_kernel(  # type: ignore[no-untyped-def]
    a, b, out, rows, columns, inner, units, a_model, a_unit, b_model, b_unit,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """One tile of out[model] = a[model] b[model]'. Row r of a is unit r % units of model + r // units."""
    across = tl.cdiv(columns, COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(rows, ROWS).to(tl.int64) * across
    model = program // tiles
    rest = program % tiles
    row = (rest // across) * ROWS + tl.arange(0, ROWS)
    column = (rest % across) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, INNER)
    left = a + (model + row // units) * a_model + (row % units) * a_unit
    right = b + model * b_model + column * b_unit
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, inner, INNER):
        here = start + k
        x = tl.load(left[:, None] + here[None, :], mask=(row < rows)[:, None] & (here < inner)[None, :], other=0.0)
        y = tl.load(
            right[None, :] + here[:, None], mask=(column < columns)[None, :] & (here < inner)[:, None], other=0.0
        )
        total = tl.dot(x.to(tl.float32), y.to(tl.float32), total, input_precision="ieee")
    target = out + model * rows * columns + row[:, None] * columns + column[None, :]
    tl.store(target, total, mask=(row < rows)[:, None] & (column < columns)[None, :])


def similarity_triton(a: Tensor, b: Tensor) -> Tensor:
    """(models, n, p) float32 of a (models, n, inner) and b (models, p, inner) or (p, inner)."""
    if a.dtype != b.dtype or a.dtype not in TYPES:
        a, b = a.float(), b.float()
    a, b = (side if side.stride(-1) == 1 else side.contiguous() for side in (a, b))
    models, n, inner = a.shape
    shared, p = b.dim() == 2, b.shape[-2]
    out = torch.empty(models, n, p, dtype=torch.float32, device=a.device)
    if not out.numel():
        return out
    batch, rows = (1, models * n) if shared else (models, n)  # one reference: all units are rows of one product
    constants, num_warps = tile(rows, p)
    count = batch * triton.cdiv(rows, constants["ROWS"]) * triton.cdiv(p, constants["COLUMNS"])
    similarity_kernel[(count,)](
        a, b, out, rows, p, inner, n, a.stride(0), a.stride(1), 0 if shared else b.stride(0), b.stride(-2),
        **constants, num_warps=num_warps,
    )  # fmt: skip
    return out
