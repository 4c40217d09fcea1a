"""Permuted gather of torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.dispatch import checked_name, has, on_gpu
from kernels.permute.gather import Gather, checked, worth


def permute_population(weights: Tensor, gathers: Sequence[Gather], *, impl: str | None = None) -> Tensor:
    """The population with these tensors moved, all others as they are.

    Args:
        weights: (models, size), of any type.
        gathers: indices may be numpy arrays or tensors.
        impl: "reference" (torch), "compiled" (numba, on a CPU) or "triton" (CUDA); None chooses. Under torch.func
            transforms and torch.compile it is always the reference.

    Returns:
        (models, size), differentiable in the weights as often as wanted.

    Raises:
        ValueError: gathers that do not fit the weights. IndexError: an index outside its axis.
    """
    checked_name(impl, weights)
    ordered = checked(tuple(weights.shape), gathers)
    move = _implementation(weights, impl)
    if move is None:
        return reference(weights, ordered)
    if weights.requires_grad and torch.is_grad_enabled():
        back = inverse(ordered)
        if back is None:  # something is taken twice: gradients add up, which torch's own gather knows
            return reference(weights, ordered)
        moved: Tensor = _Moved.apply(weights, ordered, back, impl)
        return moved
    return move(weights, ordered)


def reference(weights: Tensor, gathers: Sequence[Gather]) -> Tensor:
    """The definition, on any device; gathers in the order of the flat vector."""
    parts, end = [], 0
    for offset, rows, cols, inner, row, col in gathers:
        parts.append(weights[:, end:offset])
        end = offset + rows * cols * inner
        part = weights[:, offset:end].reshape(len(weights), rows, cols, inner)
        if row is not None:
            part = _take(part, row, 1)
        if col is not None:
            part = _take(part, col, 2)
        parts.append(part.reshape(len(weights), -1))
    return torch.cat([*parts, weights[:, end:]], 1)


def inverse(gathers: Sequence[Gather]) -> list[Gather] | None:
    """The gathers that undo these; None if an index is no permutation."""
    found = []
    for gather in gathers:
        row, col = _inverse(gather.row), _inverse(gather.col)
        if (gather.row is not None and row is None) or (gather.col is not None and col is None):
            return None
        found.append(gather._replace(row=row, col=col))
    return found


class _Moved(torch.autograd.Function):
    """A permutation of each model; its gradient moves back."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, gathers: list[Gather], back: list[Gather], impl: str | None) -> Tensor:
        ctx.gathers, ctx.impl = back, impl
        return permute_population(weights.detach(), gathers, impl=impl)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return permute_population(gradients[0], ctx.gathers, impl=ctx.impl), None, None, None


def _implementation(weights: Tensor, impl: str | None) -> Callable[[Tensor, Sequence[Gather]], Tensor] | None:
    """What moves these weights; None for the reference."""
    if impl == "reference" or torch.compiler.is_compiling() or not _has_memory(weights):
        return None
    if impl == "triton" or (impl is None and on_gpu(weights)):
        from kernels.permute.triton_gather import gather_triton

        return gather_triton
    size = weights.element_size()
    pays = size <= 8 and worth(weights.numel() * size) and has("numba")
    if impl == "compiled" or (weights.device.type == "cpu" and pays):
        return _compiled
    return None


def _has_memory(weights: Tensor) -> bool:
    """Whether there are numbers to point at: not on the meta device, and not inside vmap or grad of torch.func."""
    try:
        return weights.data_ptr() is not None and weights.device.type != "meta"
    except RuntimeError:
        return False


def _compiled(weights: Tensor, gathers: Sequence[Gather]) -> Tensor:
    from kernels.permute.compiled import WIDTHS, gather_compiled

    if weights.element_size() not in WIDTHS:
        raise ValueError(f"weights must be numbers of 1, 2, 4 or 8 bytes, got {weights.dtype}")
    same = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weights.element_size()]
    numbers = weights.detach().view(same).numpy()
    plain = [gather._replace(row=_numpy(gather.row), col=_numpy(gather.col)) for gather in gathers]
    return torch.from_numpy(gather_compiled(numbers, plain, torch.get_num_threads())).view(weights.dtype)


def _numpy(index: Any) -> Any:
    return index.cpu().numpy() if isinstance(index, Tensor) else index


def _inverse(index: Any) -> Any:
    """Of the permutation of each model, int64; None if it is none."""
    if index is None:
        return None
    array = np.asarray(_numpy(index), np.int64)
    order = np.argsort(array, 1)
    return order if np.array_equal(np.take_along_axis(array, order, 1), _counted(array)) else None


def _counted(array: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(array.shape[1]), array.shape)


def _take(part: Tensor, index: Any, axis: int) -> Tensor:
    where = index if isinstance(index, Tensor) else torch.from_numpy(np.asarray(index, np.int64))
    where = where.to(part.device, torch.int64)
    models = torch.arange(len(part), device=part.device)[:, None]
    return part[models, where] if axis == 1 else part[models, :, where].transpose(1, 2)
