"""Classifier-free guidance: how much a condition counts when samples are drawn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Velocity = Callable[[Tensor, Tensor], Tensor]


def velocity_of(network: nn.Module, condition: Tensor | None, guidance: float = 1.0) -> Velocity:
    """(x (batch, width), t, a scalar or (batch,)) -> velocity (batch, width).

    v = v(x, t, 0) + guidance (v(x, t, condition) - v(x, t, 0)), where a condition of zeros is none. Guidance 1 (the
    conditional velocity), 0 (the unconditional one) and no condition cost one evaluation of the network, others two.

    Source: Ho and Salimans 2022, "Classifier-free diffusion guidance", arXiv 2207.12598, equation 6, with guidance = 1
        + w; for flows, Zheng et al. 2023, arXiv 2311.13443.
    """
    if condition is None or guidance == 1:
        return lambda x, t: network(x, _times(t, x), condition)
    nothing = torch.zeros_like(condition)
    if guidance == 0:
        return lambda x, t: network(x, _times(t, x), nothing)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        t = _times(t, x)
        free = network(x, t, nothing)
        return torch.lerp(free, network(x, t, condition), guidance)

    return guided


def _times(t: Tensor | float, x: Tensor) -> Tensor:
    """t for each row of x, (batch,) in its dtype."""
    return torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
