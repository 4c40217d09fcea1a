"""The reference: products of the Hessian by differentiating twice through the forward pass of all models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from kernels.curvature.chunks import parts, room
from kernels.losses import LOSSES
from kernels.population import forward_of

KEPT = 8  # times the room of a chunk: graphs that stay from call to call
GRAPH = 6  # numbers kept for a derivative of a gradient, for each of the forward pass


class Autograd:
    """A `kernels.curvature.surface.Surface` of any module, on any device, exact to rounding.

    Models and samples are worked on in chunks that bound memory; where few chunks hold all, what products share stays
    from call to call. Forms are products too: two forward derivatives instead take twice as long (measured 2026-11-22
    on a CPU, CNNs and MLPs), because the gradient's graph serves all vectors.

    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian", by automatic differentiation: the product is
    the derivative of the inner product of gradient and vector.
    """

    def __init__(self, module: nn.Module, weights: Tensor, x: Tensor, y: Tensor, loss_function: str) -> None:
        self.module, self.x, self.loss = module, x, LOSSES[loss_function]
        self.weights, self.y = weights.detach(), y.expand(len(weights), -1)
        self.forward = forward_of(module)
        each = GRAPH * (x[0].numel() + activations(module, x))
        self.models, self.samples = parts(each, len(weights), len(x), room(weights))
        self.keeps = each * len(weights) * len(x) <= KEPT * room(weights)
        self.kept: list[tuple[slice, Tensor, Tensor]] = []

    def losses(self) -> Tensor:
        out = self.weights.new_zeros(len(self.weights))
        for models in self.models:
            for samples in self.samples:
                with torch.no_grad():
                    out[models] += self._losses(self.weights[models], models, samples)
        return out

    def gradients(self) -> Tensor:
        out = torch.zeros_like(self.weights)
        for models in self.models:
            for samples in self.samples:
                weights, losses = self._start(models, samples)
                out[models] += torch.autograd.grad(losses.sum(), weights)[0]
        return out

    def products(self, vectors: Tensor) -> Tensor:
        out = torch.zeros_like(vectors)

        def add(models: slice, k: int, product: Tensor) -> None:
            out[models, k] += product

        self._each_product(vectors, add)
        return out

    def forms(self, vectors: Tensor) -> Tensor:
        out = vectors.new_zeros(vectors.shape[:2])

        def add(models: slice, k: int, product: Tensor) -> None:
            out[models, k] += (product * vectors[models, k]).sum(-1)

        self._each_product(vectors, add)
        return out

    def _each_product(self, vectors: Tensor, add: Callable[[slice, int, Tensor], None]) -> None:
        """Calls add(models, k, part of the product with vector k) for all chunks of models and samples."""
        count = vectors.shape[1]
        for models, weights, gradient in self._gradients():
            for k in range(count):
                again = self.keeps or k < count - 1
                add(models, k, torch.autograd.grad(gradient, weights, vectors[models, k], retain_graph=again)[0])

    def _gradients(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Models, their weights, their gradient with its graph, chunk by chunk."""
        if self.kept:
            yield from self.kept
            return
        made = []
        for models in self.models:
            for samples in self.samples:
                weights, losses = self._start(models, samples)
                (gradient,) = torch.autograd.grad(losses.sum(), weights, create_graph=True)
                if self.keeps:
                    made.append((models, weights, gradient))
                yield models, weights, gradient
        self.kept = made

    def _start(self, models: slice, samples: slice) -> tuple[Tensor, Tensor]:
        """Weights of some models, and the part of their losses that comes from some samples, with its graph."""
        weights = self.weights[models].requires_grad_()
        with torch.enable_grad():
            return weights, self._losses(weights, models, samples)

    def _losses(self, weights: Tensor, models: slice, samples: slice) -> Tensor:
        x, y = self.x[samples], self.y[models, samples]
        logits = self.forward(self.module, tensors_of(self.module, weights), x, shared=True)
        return self.loss(logits.flatten(0, 1), y.flatten()).view(y.shape).sum(1) / len(self.x)


def tensors_of(module: nn.Module, weights: Tensor) -> dict[str, Tensor]:
    """name -> (models, *shape), of flat weights (models, size); buffers take no part in differentiation."""
    tensors, place = {}, 0
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        part = weights[:, place : place + tensor.numel()]
        part = part if isinstance(tensor, nn.Parameter) else part.detach()
        # A copy: the derivative of torch 2.13's batch_norm on a CPU reads weights with gaps between them wrongly.
        tensors[name] = part.contiguous().reshape(-1, *tensor.shape)
        place += math.prod(tensor.shape)
    return tensors


def activations(module: nn.Module, x: Tensor) -> int:
    """Numbers that the layers of a module put out for one of these samples."""
    sizes: list[int] = []

    def note(_layer: nn.Module, _inputs: object, out: object) -> None:
        sizes.append(out.numel() if isinstance(out, Tensor) else 0)

    hooks = [layer.register_forward_hook(note) for layer in module.modules() if not any(layer.children())]
    was_training = module.training
    module.train(False)
    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    try:
        torch.func.functional_call(module, state, (torch.empty(1, *x.shape[1:], device="meta"),))
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return sum(sizes)
