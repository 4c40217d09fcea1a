"""Inputs for kernels, such that a mask that was dropped or a grid that is too short shows: NaN lies all around."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

POISON = {torch.uint8: 250, torch.int16: 32000, torch.int32: 2**31 - 5, torch.int64: 2**62}  # what NaN is for integers


def surrounded(values: Tensor, margin: int = 37) -> Tensor:
    """The values as a view into a larger buffer, with NaN (integers: a large number) before, behind and between rows.

    The last axis keeps stride 1; of three axes or more the first ones stay contiguous over padded rows.
    """
    *front, last = values.shape
    count = 1
    for side in front:
        count *= side
    width = last + 5
    buffer = torch.full((2 * margin + count * width,), poison(values.dtype), dtype=values.dtype, device=values.device)
    rows = buffer[margin : margin + count * width].view(count, width)
    rows[:, :last] = values.reshape(count, last)
    return rows.view(*front, width)[..., :last]


def between(values: Tensor, margin: int = 37) -> Tensor:
    """The values as a contiguous view into a larger buffer, with NaN before and behind."""
    buffer = torch.full((2 * margin + values.numel(),), poison(values.dtype), dtype=values.dtype, device=values.device)
    inside = buffer[margin : margin + values.numel()].view(values.shape)
    return inside.copy_(values)


def poison(dtype: torch.dtype) -> float:
    """A number that no result may hold."""
    return float("nan") if dtype.is_floating_point else POISON[dtype]


@contextmanager
def empty_is_nan() -> Iterator[None]:
    """Buffers from torch.empty start as NaN, so that what a kernel does not write shows."""
    plain = torch.empty

    def filled(*shape: Any, **options: Any) -> Tensor:
        made: Tensor = plain(*shape, **options)
        return made.fill_(poison(made.dtype))

    torch.empty = filled
    try:
        yield
    finally:
        torch.empty = plain
