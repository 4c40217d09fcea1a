"""Permuted gather of torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.permute.gather import Gather


def permute_population(weights: Tensor, gathers: Sequence[Gather], *, impl: str | None = None) -> Tensor:
    """The population with these tensors moved, all others as they are.

    Args:
        weights: (models, size).
        impl: "reference"; None chooses.

    Returns:
        (models, size), differentiable in the weights.
    """
    return reference(weights, gathers)


def reference(weights: Tensor, gathers: Sequence[Gather]) -> Tensor:
    """The definition, on any device."""
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


def _take(part: Tensor, index: object, axis: int) -> Tensor:
    where = torch.as_tensor(index, device=part.device).long()
    models = torch.arange(len(part), device=part.device)[:, None]
    return part[models, where] if axis == 1 else part[models, :, where].transpose(1, 2)
