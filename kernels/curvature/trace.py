"""Traces of Hessians without sampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.curvature import piecewise, preactivations
from kernels.curvature.surface import compilable, surface
from kernels.losses import LOSSES
from kernels.mlp.network import UnsupportedError, mlp_of

TOGETHER = 64  # unit vectors at once


def dense_trace(
    module: nn.Module, weights: Tensor, x: Tensor, y: Tensor, *, loss_function: str = "cross_entropy"
) -> Tensor:
    """tr H of each model's mean loss, (models,), by one product a parameter: the definition, for small networks."""
    here = surface(module, weights, x, y, loss_function=loss_function, impl="reference")
    count = sum(parameter.numel() for parameter in module.parameters())
    total = weights.new_zeros(len(weights))
    for first in range(0, count, TOGETHER):
        number = min(TOGETHER, count - first)
        units = weights.new_zeros(number, weights.shape[1])
        units[torch.arange(number), first + torch.arange(number)] = 1
        total += here.forms(units.expand(len(weights), -1, -1)).sum(1)
    return total


def exact_trace(
    module: nn.Module,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    loss_function: str = "cross_entropy",
    impl: str | None = None,
    threads: int | None = None,
) -> Tensor:
    """tr H of each model's mean loss, (models,), without sampling. Arguments as for `surface`.

    For MLPs of all activations from the second derivatives in each layer's inputs (`columns`; compiled code on a CPU,
    else `preactivations`), for other piecewise linear networks from per-sample gradients (`piecewise`), both with their
    sources. At kinks of ReLU and pooling the second derivative counts as zero, as it does for `surface`.

    Raises:
        UnsupportedError: there is no way that costs less than a product a parameter, see `has_exact_trace`; or
            "compiled" was asked for what it cannot do.
        ValueError: shapes, types or labels that do not fit; names that are none.
    """
    if loss_function not in LOSSES:
        raise ValueError(f"loss_function must be one of {', '.join(LOSSES)}, got {loss_function!r}")
    network = compilable(module, weights, impl)
    if network is not None:
        from kernels.curvature.columns import trace

        return trace(network, weights, x, y, loss_function, threads)
    try:
        network = mlp_of(module)
    except UnsupportedError:
        return piecewise.trace(module, weights, x, y, loss_function)
    return preactivations.trace(network, weights, x, y, loss_function)


def has_exact_trace(module: nn.Module) -> bool:
    """Whether `exact_trace` takes this module.

    It takes MLPs of any activation of `kernels.mlp.network`, and Sequentials of layers that are piecewise linear (ReLU,
    pooling) or linear in each weight (convolutions, linear layers, BatchNorm in eval mode). GroupNorm, and smooth
    activations behind convolutions, are neither.
    """
    for check in (mlp_of, piecewise.piecewise_layers):
        try:
            check(module)
        except UnsupportedError:
            continue
        return True
    return False
