"""Which noise goes with which data within a batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from catalog.errors import unknown_name


def independent(x_0: Tensor, x_1: Tensor) -> Tensor:
    """As drawn."""
    return x_0


def optimal_transport(x_0: Tensor, x_1: Tensor) -> Tensor:
    """Noise (batch, width) rearranged so that the squared distances to the data sum to the least.

    Paths then cross less, and fewer steps follow them. The pairs of a batch are biased estimates of optimal transport,
    the less the larger the batch. With conditions, noise is paired without looking at them.

    Source: Tong et al. 2024, "Improving and generalizing flow-based generative models with minibatch optimal
        transport", arXiv 2302.00482, section 3.2.3, algorithm 3. The assignment is exact, as theirs.
    """
    from kernels.assignment.assign import assign  # numba takes a while to import

    # |x_1 - x_0|^2 sums to the same but for the products, whichever way they are paired
    products = (x_1 @ x_0.T).detach()
    return x_0[assign(products[None], maximize=True).columns[0].long()]


COUPLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "independent": independent,
    "optimal_transport": optimal_transport,
}


def couple(x_0: Tensor, x_1: Tensor, kind: str) -> Tensor:
    """x_0 (batch, width), rearranged to go with x_1 row by row.

    Raises:
        UnknownNameError: a kind that is not in `COUPLINGS`.
    """
    if kind not in COUPLINGS:
        raise unknown_name("coupling", kind, COUPLINGS)
    return COUPLINGS[kind](x_0, x_1)
