"""Curves of low loss between pairs of networks: the middle control point of each, trained by SGD for many at once.

phi(t) = (1 - t)^2 start + 2 t (1 - t) middle + t^2 end: a quadratic Bezier curve through both networks, whose middle
point minimises the mean loss at t ~ U[0, 1]. All pairs see the same t and the same batches: what differs between two
pairs is then the pairs, and none depends on its companions. The reference is plain torch; compiled code takes one pair
after the other and a step of `kernels.mlp.training` or `kernels.lanes.training` at a time.

Source: Garipov et al. 2018, "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", arXiv 1802.10026, section
3, and for the schedule and weight decay their code. Differs: the learning rate changes step by step, not by epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernels.losses import LOSSES
from kernels.optimizers import sgd
from kernels.population import forward_of
from kernels.random import permutation, uniform

ORDER_SITE, POINT_SITE = 5, 6  # of the random streams
LOWEST = 0.01  # of the learning rate, at the end


@dataclass(frozen=True)
class Recipe:
    """How curves are trained: SGD, the rate constant for half of the steps, then falling in a line to a hundredth.

    Args:
        epochs: passes over the samples in whole batches; what they leave over waits for another epoch.
        batch_size: all samples if there are fewer.
        weight_decay: of phi(t), not of the middle point. seed: of t and of the order of samples.
        loss: a name in `kernels.losses.LOSSES`.
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    loss: str = "cross_entropy"

    def batch(self, samples: int) -> int:
        return min(self.batch_size, samples)

    def steps(self, samples: int) -> int:
        return self.epochs * (samples // self.batch(samples))

    @property
    def key(self) -> np.ndarray:
        """Of the random streams, (1,) uint64."""
        return np.array([self.seed], np.uint64)

    def points(self, samples: int) -> np.ndarray:
        """t of each step, (steps,) float64."""
        return uniform(self.key, POINT_SITE, count=self.steps(samples))[0]

    def rates(self, samples: int) -> np.ndarray:
        """Learning rate of each step, (steps,) float64."""
        done = np.arange(self.steps(samples)) / max(self.steps(samples), 1)
        return self.learning_rate * (1 - (1 - LOWEST) * np.clip((done - 0.5) / 0.4, 0, 1))


def shares(t: Any) -> tuple[Any, Any, Any]:
    """Of start, middle and end in phi(t); they sum to one, and at 0 and 1 one of them is all.

    >>> shares(0.5)
    (0.25, 0.5, 0.25)
    """
    return (1 - t) ** 2, 2 * t * (1 - t), t**2


def at(t: float, start: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    """phi(t) of all pairs, (pairs, size)."""
    a, b, c = shares(t)
    return a * start + b * middle + c * end


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


def compiled(network: Any, start: np.ndarray, end: np.ndarray, x: np.ndarray, y: np.ndarray, recipe: Recipe) -> Any:
    """As `reference`, of networks without buffers, in one thread of a CPU.

    Args:
        network: `kernels.mlp.network.MLP` or `kernels.lanes.network.Network`.
        start, end: (pairs, size), float32 or float64. x: (samples, *input_shape), of the same type.
        y: (samples,) or (pairs, samples) int64.

    Raises:
        ValueError: what does not fit.
    """
    import kernels.lanes.training
    import kernels.mlp.training
    from kernels.mlp.network import MLP

    training: Any = kernels.mlp.training if isinstance(network, MLP) else kernels.lanes.training
    x = x.reshape(len(x), -1) if isinstance(network, MLP) else x
    space = training.Workspace.of(network, recipe.batch(len(x)), start.dtype)
    labels = np.broadcast_to(y, (len(start), len(x)))
    # a step of SGD at rate 0 without momentum changes no weight, and leaves gradient and decay in its first average
    hyper = {"momentum": 0.0, "beta2": 0.0, "epsilon": 0.0, "weight_decay": recipe.weight_decay, "dropout": 0.0}
    theta = np.empty_like(start)
    for pair, ends in enumerate(zip(start, end, strict=True)):
        rows = (*ends, ends[0] / 2 + ends[1] / 2)
        first, last, model = (
            training.Model(space, row, "sgd", hyper, recipe.seed, x, labels[pair], len(x), ORDER_SITE, recipe.loss)
            for row in rows
        )
        with np.errstate(over="ignore", invalid="ignore"):  # of a pair that diverges
            _descend(first, last, model, recipe)
        theta[pair] = model.weights
    return theta


def _descend(start: Any, end: Any, model: Any, recipe: Recipe) -> None:
    """Train the middle point of one pair; the three come and go as models of the compiled code, in its own order."""
    first, last = start.learner.weights, end.learner.weights
    phi, gradient, samples = model.learner.weights, model.learner.first, len(model.learner.inputs)
    middle, velocity, kind = phi.copy(), np.zeros_like(phi), phi.dtype.type
    keep, still = kind(recipe.momentum), np.zeros(1)
    for step, (t, rate) in enumerate(zip(recipe.points(samples).tolist(), recipe.rates(samples).tolist(), strict=True)):
        a, b, c = (kind(share) for share in shares(t))
        np.multiply(first, a, out=phi)
        phi += b * middle
        phi += c * last
        if model.train(step, step + 1, still) >= 0:
            phi[:] = np.nan
            return
        velocity *= keep
        velocity += b * gradient
        middle -= kind(rate) * velocity
    phi[:] = middle
