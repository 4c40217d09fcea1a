"""Inner products of units, for whole populations: the operation and its definition in torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels.dispatch import checked_name, has

SUMS = (torch.float32, torch.float64)
TOGETHER = 1 << 20  # numbers that are converted at once


def similarity(a: Tensor, b: Tensor, *, dtype: torch.dtype = torch.float32, impl: str | None = None) -> Tensor:
    """What weight matching assigns by: a_m b_m' for each model m.

    Sums are in full float32, never TF32, which can turn near-ties round and let an objective fall; or in float64.

    Args:
        a: (models, n, inner), of any real type; views into flat vectors of weights are not copied on a GPU.
        b: (models, p, inner), or (p, inner), one reference for all.
        dtype: of the sums and the result, float32 or float64.
        impl: "reference" (torch) or "triton"; None takes Triton on a GPU for weights of 16 bits, which torch would copy
            to float32 first, and otherwise torch, whose library does large float32 products well.

    Returns:
        (models, n, p), differentiable by the reference.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    checked_name(impl, a, ("reference", "triton"))
    if a.dim() != 3 or b.dim() not in (2, 3) or a.shape[2] != b.shape[-1] or (b.dim() == 3 and len(a) != len(b)):
        raise ValueError(
            f"a must be (models, n, inner), b (models, p, inner) or (p, inner); got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    if dtype not in SUMS:
        raise ValueError(f"sums are float32 or float64, got {dtype}")
    if impl == "triton" and dtype != torch.float32:
        raise ValueError("Triton sums in float32; take impl='reference' for float64")
    half = a.is_cuda and has("triton") and a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16)
    wanted = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    if impl == "triton" or (impl is None and half and dtype == torch.float32 and not wanted):
        from kernels.similarity.triton_similarity import similarity_triton

        return similarity_triton(a.detach(), b.detach())
    return reference(a, b, dtype)


def reference(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The definition, on any device. With a shared b it is one large product, else one for each model."""
    shared = b.dim() == 2
    same = a.dtype == b.dtype == dtype
    step = len(a) if same else max(1, TOGETHER // max(1, a[0].numel() if len(a) else 1))
    with highest():
        fixed = b.to(dtype) if shared else b
        parts = [
            a[first : first + step].to(dtype)
            @ (fixed if shared else b[first : first + step].to(dtype)).transpose(-1, -2)
            for first in range(0, len(a), max(1, step))
        ]
    return (
        parts[0]
        if len(parts) == 1
        else torch.cat(parts)
        if parts
        else a.new_zeros((0, a.shape[1], b.shape[-2]), dtype=dtype)
    )


@contextmanager
def highest() -> Iterator[None]:
    """Products of float32 in full precision, whatever the user allows elsewhere."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
