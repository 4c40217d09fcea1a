"""Which noise goes with which data within a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from catalog.errors import unknown_name

APART = 100.0  # weight of conditions against data, both in units of their mean squared distance


def independent(x_0: Tensor, x_1: Tensor, condition: Tensor | None = None) -> Tensor:
    """As drawn."""
    return x_0


def optimal_transport(x_0: Tensor, x_1: Tensor, condition: Tensor | None = None) -> Tensor:
    """Noise (batch, width) rearranged so that the squared distances to the data sum to the least.

    Paths then cross less, and fewer steps follow them. The pairs of a batch are biased estimates of optimal transport,
    the less the larger the batch.

    Noise must not tell the condition, or sampling, where they are independent, asks for what was never trained: on two
    modes chosen by a condition, pairs that ignore it gave the wrong mode half of the time. So each noise comes with the
    condition of its row, and exchanging two costs 100 times the squared distance of their conditions: classes never
    mix, and of a number only near values do.

    Source: Tong et al. 2024, "Improving and generalizing flow-based generative models with minibatch optimal
        transport", arXiv 2302.00482, section 3.2.3, algorithm 3; the assignment is exact, as theirs. Conditions: Cheng
        and Schwing 2025, "The curse of conditions", arXiv 2503.10636 (C2OT). Differs: their weight is searched for
        in each batch, ours is fixed in units of the mean squared distances.
    """
    from kernels.assignment.assign import assign  # numba takes a while to import

    # |x_1 - x_0|^2 sums to the same but for the products, whichever way they are paired
    gain = (x_1 @ x_0.T).detach()
    if condition is not None:
        apart = torch.cdist(condition, condition).square().to(gain)
        between = x_1.square().sum(1).mean() + x_0.square().sum(1).mean() - 2 * gain.mean()
        gain = gain - 0.5 * APART * between * apart / apart.mean().clamp_min(torch.finfo(apart.dtype).tiny)
    return x_0[assign(gain[None], maximize=True).columns[0].long()]


COUPLINGS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "independent": independent,
    "optimal_transport": optimal_transport,
}


def couple(x_0: Tensor, x_1: Tensor, kind: str, condition: Tensor | None = None) -> Tensor:
    """x_0 (batch, width), rearranged to go with x_1 row by row.

    Args:
        condition: (batch, condition_width) of x_1, or None.

    Raises:
        UnknownNameError: a kind that is not in `COUPLINGS`.
    """
    if kind not in COUPLINGS:
        raise unknown_name("coupling", kind, COUPLINGS)
    return COUPLINGS[kind](x_0, x_1, condition)
