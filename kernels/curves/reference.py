"""The definition: the middle points of many curves at once, in plain torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kernels.curves.recipe import ORDER_SITE, Recipe, at, shares
from kernels.losses import LOSSES
from kernels.optimizers import sgd
from kernels.population import forward_of
from kernels.random import permutation


def reference(module: nn.Module, start: Tensor, end: Tensor, x: Tensor, y: Tensor, recipe: Recipe) -> Tensor:
    """Middle points of all pairs, in plain torch on any device; BatchNorm by the statistics of the batch.

    Args:
        module: one network; only its structure is used, it may be on the meta device.
        start, end: (pairs, size), parameters, then buffers.
        x: (samples, ...) inputs, shared by all pairs. y: (samples,) or (pairs, samples) int64 labels.

    Returns:
        (pairs, size), the buffers half-way between both ends; parameters are NaN if a loss was not finite.
    """
    samples, forward = len(x), forward_of(module)
    batch, labels = recipe.batch(samples), y.expand(len(start), -1)
    updates = samples // batch
    theta, finite = start / 2 + end / 2, start.new_ones(len(start), dtype=torch.bool)
    count = sum(parameter.numel() for parameter in module.parameters())
    middle, buffers = theta[:, :count], theta[:, count:].clone()
    state = {"steps": theta.new_zeros(1), "momentum": torch.zeros_like(middle)}
    hyper = {"momentum": theta.new_tensor(recipe.momentum), "weight_decay": theta.new_tensor(0.0)}
    for step, (t, rate) in enumerate(zip(recipe.points(samples).tolist(), recipe.rates(samples).tolist(), strict=True)):
        if step % updates == 0:
            drawn = permutation(recipe.key, ORDER_SITE, step // updates, count=samples)[0]
            order = torch.from_numpy(drawn).to(start.device)
        rows = order[step % updates * batch :][:batch]
        phi = at(t, start[:, :count], middle, end[:, :count])
        loss, gradient = _gradient(module, forward, phi, buffers, x[rows], labels[:, rows], recipe.loss)
        finite &= loss.isfinite()
        hyper["learning_rate"] = theta.new_tensor(rate)
        sgd(middle, shares(t)[1] * (gradient + recipe.weight_decay * phi), state, hyper)
    middle[~finite] = torch.nan
    return theta


def _gradient(
    module: nn.Module, forward: Any, phi: Tensor, buffers: Tensor, x: Tensor, y: Tensor, loss_name: str
) -> tuple[Tensor, Tensor]:
    """Mean loss of each network on its batch, (pairs,), and its gradient, (pairs, parameters)."""
    tensors, leaves = {}, []
    for tensor_list, flat in ((module.named_parameters(), phi), (module.named_buffers(), buffers)):
        place = 0
        for name, tensor in tensor_list:
            part = flat[:, place : place + tensor.numel()].reshape(-1, *tensor.shape)
            place += math.prod(tensor.shape)
            if isinstance(tensor, nn.Parameter):
                leaves.append(part := part.detach().requires_grad_())
            tensors[name] = part
    with torch.enable_grad():
        logits = forward(module, tensors, x, shared=True, training=True)
        loss = LOSSES[loss_name](logits.flatten(0, 1), y.flatten()).view(y.shape).mean(1)
        found = torch.autograd.grad(loss.sum(), leaves)
    return loss.detach(), torch.cat([part.flatten(1) for part in found], 1)
