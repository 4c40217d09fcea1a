"""Prices to begin an assignment from: the duals of an entropic transport problem."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON, ITERATIONS = 0.03, 60  # of the costs' standard deviation


def sinkhorn_prices(cost: Tensor, epsilon: float = EPSILON, iterations: int = ITERATIONS) -> Tensor:
    """Prices v (batch, n) of the columns, nearly those of an optimal assignment of costs (batch, n, n).

    Any prices are a valid start of `kernels.assignment.assign.assign`; from these its searches are short.

    Source: Cuturi 2013, "Sinkhorn distances", arXiv 1306.0895, in logarithms; Mena et al. 2018, arXiv 1802.08665,
    section 3. Here only the duals are used, never the plan.
    """
    v = cost.new_zeros(cost.shape[:2])
    if not cost.numel() or cost.shape[1] == 1:
        return v
    width = epsilon * cost.flatten(1).std(1).clamp_min(torch.finfo(cost.dtype).tiny)[:, None]
    scaled = cost / width[..., None]
    for _ in range(iterations):
        u = -torch.logsumexp(v[:, None] - scaled, 2)
        v = -torch.logsumexp(u[..., None] - scaled, 1)
    return v * width
