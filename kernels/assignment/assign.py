"""Batched linear assignment: the operation, its certificate, and the reference, which is scipy's solver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

EXACT = 1e-12  # of n * max|cost|: the gap below which a solution counts as optimal


@dataclass(frozen=True)
class Assignment:
    """Optimal assignments of a batch.

    Args:
        columns: (batch, n) int32, the column of each row.
        v: (batch, n), dual prices of the columns, of the costs as they are minimised: a start for similar problems.
        gap: (batch,) float64, how much better than this any assignment can be at most.
        certified: (batch,) bool, whether the gap is rounding alone.
    """

    columns: Tensor
    v: Tensor
    gap: Tensor
    certified: Tensor


def assign(cost: Tensor, v0: Tensor | None = None, *, maximize: bool = False, impl: str | None = None) -> Assignment:
    """The assignment of rows to columns with the least total cost, for each problem of a batch.

    Args:
        cost: (batch, n, n), finite.
        v0: (batch, n), prices to begin from, those of the last sweep say; any numbers do, good ones are faster.
        maximize: the greatest total instead.
        impl: "reference"; None chooses.

    Raises:
        ValueError: costs that are not square, or not finite.
    """
    if cost.dim() != 3 or cost.shape[1] != cost.shape[2]:
        raise ValueError(f"costs must be (batch, n, n), got {tuple(cost.shape)}")
    if not bool(torch.isfinite(cost).all()):
        raise ValueError("costs must be finite, got NaN or infinity; look at the weights they come from")
    least = -cost if maximize else cost
    columns = reference(least)
    v = prices(least, columns)
    gap, certified = certificate(least, columns, v)
    return Assignment(columns, v, gap, certified)


def reference(cost: Tensor) -> Tensor:
    """(batch, n) int32 by scipy in float64, one problem after the other."""
    problems = cost.detach().double().cpu().numpy()
    found = [linear_sum_assignment(problem)[1] for problem in problems]
    columns = np.array(found, np.int32).reshape(cost.shape[0], cost.shape[1])
    return torch.from_numpy(columns).to(cost.device)


def prices(cost: Tensor, columns: Tensor) -> Tensor:
    """Dual prices v (batch, n) float64 of a solution: v_j <= c_ij - u_i everywhere, with equality where assigned.

    The shortest distances in the graph of exchanges (Bellman-Ford), which exist where the solution is optimal.
    """
    c = cost.detach().double()
    chosen = c.gather(2, columns.long()[..., None])  # (batch, n, 1)
    v = torch.zeros(c.shape[:2], dtype=torch.float64, device=c.device)
    place = columns.long()
    for _ in range(c.shape[1]):
        u = chosen[..., 0] - v.gather(1, place)  # of the rows
        lower = torch.minimum(v, (c - u[..., None]).amin(1))
        if torch.equal(lower, v):
            break
        v = lower
    return v


def certificate(cost: Tensor, columns: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Gap (batch,) float64 and whether it is rounding alone, from any prices v.

    For any v the total of no assignment is below sum_j v_j + sum_i min_j (c_ij - v_j); the gap is what lies between
    that and the total of this one.
    """
    c, v = cost.detach().double(), v.double()
    total = c.gather(2, columns.long()[..., None])[..., 0].sum(1)
    bound = v.sum(1) + (c - v[:, None]).amin(2).sum(1) if c.shape[1] else total
    gap = (total - bound).clamp_min(0)
    largest = c.abs().flatten(1).amax(1) if c.shape[1] else torch.zeros_like(gap)
    return gap, gap <= EXACT * c.shape[1] * largest
