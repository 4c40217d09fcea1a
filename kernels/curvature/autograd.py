"""The reference: products of the Hessian by differentiating twice through the forward pass of all models."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kernels.losses import LOSSES
from kernels.population import forward_of


class Autograd:
    """A `kernels.curvature.surface.Surface` of any module, on any device, exact to rounding.

    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian", by automatic differentiation: the product is
    the derivative of the inner product of gradient and vector.
    """

    def __init__(self, module: nn.Module, weights: Tensor, x: Tensor, y: Tensor, loss_function: str) -> None:
        self.module, self.x, self.loss = module, x, LOSSES[loss_function]
        self.weights = weights.detach().requires_grad_()
        self.y = y.expand(len(weights), -1)
        self.forward = forward_of(module)

    def losses(self) -> Tensor:
        with torch.no_grad():
            return self._losses()

    def gradients(self) -> Tensor:
        return torch.autograd.grad(self._losses().sum(), self.weights)[0]

    def products(self, vectors: Tensor) -> Tensor:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self._losses().sum(), self.weights, create_graph=True)
            last = vectors.shape[1] - 1
            found = [
                torch.autograd.grad(gradient, self.weights, vectors[:, k], retain_graph=k < last)[0]
                for k in range(vectors.shape[1])
            ]
        return torch.stack(found, 1)

    def forms(self, vectors: Tensor) -> Tensor:
        return (self.products(vectors) * vectors).sum(-1)

    def _losses(self) -> Tensor:
        logits = self.forward(self.module, self._tensors(), self.x, shared=True)
        return self.loss(logits.flatten(0, 1), self.y.flatten()).view(logits.shape[:2]).mean(1)

    def _tensors(self) -> dict[str, Tensor]:
        """name -> (models, *shape): views of the weights; buffers take no part in differentiation."""
        tensors, place = {}, 0
        for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            part = self.weights[:, place : place + tensor.numel()]
            part = part if isinstance(tensor, nn.Parameter) else part.detach()
            tensors[name] = part.reshape(-1, *tensor.shape)
            place += math.prod(tensor.shape)
        return tensors
