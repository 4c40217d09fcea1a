"""Traces of the Hessians of piecewise linear networks without sampling, in plain torch.

Between the kinks of ReLU and pooling the outputs of such a network are linear in each single weight, the others being
fixed. So d2L/dw^2 = (df/dw)' S (df/dw), S the loss's second derivative in the outputs f: the trace of the Hessian is
that of the generalised Gauss-Newton matrix (Schraudolph 2002, "Fast curvature matrix-vector products for second-order
gradient descent", section 3). With S = sum over classes of s_c u_c u_c', it is the sum over samples and classes of
s_c |J' u_c|^2: per-sample gradients, which a convolution sums over positions before they are squared.

BatchNorm in eval mode is linear in its inputs and in each of its weights, so it may stand between.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.curvature.autograd import activations, tensors_of
from kernels.curvature.chunks import parts, room
from kernels.curvature.preactivations import loss_columns
from kernels.mlp.network import UnsupportedError
from kernels.population import Dropout

KEPT = 8  # numbers, for each of the forward pass: activations, gradients, patches of convolutions
LINEAR = (nn.Linear, nn.Conv2d, nn.BatchNorm2d)
PIECEWISE = (
    nn.ReLU, nn.LeakyReLU, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout,
    nn.Dropout2d, Dropout,
)  # fmt: skip  # a table


def piecewise_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Layers by name, in their order.

    Raises:
        UnsupportedError: not a Sequential of piecewise linear layers, each used once.
    """
    everything = module.named_modules(remove_duplicate=False)
    layers = {name: layer for name, layer in everything if type(layer) is not nn.Sequential}
    for name, layer in layers.items():
        if type(layer) not in (*LINEAR, *PIECEWISE):
            raise UnsupportedError(f"layer {name!r}, {type(layer).__name__}, is not linear in its weights and inputs")
        if isinstance(layer, nn.Conv2d) and (layer.groups, layer.padding_mode) != (1, "zeros"):
            raise UnsupportedError(f"layer {name!r} is a convolution in groups or without zeros around")
        if isinstance(layer, nn.Conv2d) and isinstance(layer.padding, str):
            raise UnsupportedError(f"layer {name!r} pads by name; give numbers")
        if isinstance(layer, nn.BatchNorm2d) and not (layer.affine and layer.track_running_stats):
            raise UnsupportedError(f"layer {name!r} is BatchNorm without weights or running statistics")
        if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
            raise UnsupportedError(f"layer {name!r} does not flatten all but the samples")
    weighed = [parameter for layer in layers.values() for parameter in layer.parameters()]
    if not layers or len({id(parameter) for parameter in weighed}) < len(weighed):
        raise UnsupportedError("there are no layers, or a weight is used twice")
    return layers


def trace(module: nn.Module, weights: Tensor, x: Tensor, y: Tensor, loss_function: str) -> Tensor:
    """tr H of the mean loss of each model, (models,). Arguments as for `kernels.curvature.surface.surface`.

    Raises:
        UnsupportedError: see `piecewise_layers`.
    """
    layers, y = piecewise_layers(module), y.expand(len(weights), -1)
    together, samples = parts(KEPT * activations(module, x), len(weights), len(x), room(weights))
    found = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    was_training = module.training
    module.train(False)
    try:
        for models in together:
            tensors = tensors_of(module, weights[models])
            for these in samples:
                sums = _samples_traces(layers, tensors, x[these], y[models, these], loss_function)
                found[models] += sums.sum(1, dtype=torch.float64)
    finally:
        module.train(was_training)
    return (found / len(x)).to(weights.dtype)


def _samples_traces(
    layers: dict[str, nn.Module], tensors: dict[str, Tensor], x: Tensor, y: Tensor, loss_function: str
) -> Tensor:
    """(models, samples) of each sample's own loss."""
    here, shared, weighed = x, True, []
    with torch.enable_grad():
        for name, layer in layers.items():
            own = {
                key: tensors[f"{name}.{key}" if name else key]
                for key, _ in (*layer.named_parameters(), *layer.named_buffers())
            }

            def one(own: dict[str, Tensor], a: Tensor, layer: nn.Module = layer) -> Tensor:
                return torch.func.functional_call(layer, own, (a,))

            if own:
                out = torch.vmap(one, in_dims=(0, None if shared else 0))(own, here)
                out = out if out.requires_grad else out.requires_grad_()
                weighed.append((out, _Squares(layer, own, here.detach())))
                here, shared = out, False
            else:
                here = layer(here) if shared else layer(here.flatten(0, 1)).unflatten(0, here.shape[:2])
    _, columns, shares = loss_columns(here.detach(), y, loss_function)
    outs = [out for out, _ in weighed]
    total = torch.zeros_like(shares[..., 0])
    classes = columns.shape[-2]
    for c in range(classes):
        gradients = torch.autograd.grad(here, outs, columns[..., c, :], retain_graph=c < classes - 1)
        for (_, squares), gradient in zip(weighed, gradients, strict=True):
            total += shares[..., c] * squares(gradient)
    return total


class _Squares:
    """|gradient of a layer's weights|^2, (models, samples), from the gradient of its outputs and what it saw."""

    def __init__(self, layer: nn.Module, own: dict[str, Tensor], seen: Tensor) -> None:
        self.bias = own.get("bias") is not None
        self.layer, self.kind = layer, type(layer)
        if isinstance(layer, nn.Linear):
            self.seen = seen.square().sum(-1) + self.bias
        elif isinstance(layer, nn.Conv2d):
            images = seen.flatten(0, -4)
            patches = F.unfold(images, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]  # torch takes pairs
            patches = patches.unflatten(0, seen.shape[:-3])
            self.inner = patches.shape[-1] < patches.shape[-2]  # fewer positions than weights: products of positions
            self.seen = patches.transpose(-1, -2) @ patches if self.inner else patches.transpose(-1, -2)
        else:
            mean, var = (own[f"running_{name}"][:, None, :, None, None] for name in ("mean", "var"))
            assert isinstance(layer, nn.BatchNorm2d)
            self.seen = (seen - mean) / torch.sqrt(var + layer.eps)

    def __call__(self, gradient: Tensor) -> Tensor:
        if self.kind is nn.Linear:
            return self.seen * gradient.square().sum(-1)
        if self.kind is nn.BatchNorm2d:
            return ((gradient * self.seen).sum((-1, -2)).square() + gradient.sum((-1, -2)).square()).sum(-1)
        flat = gradient.flatten(-2)
        if self.inner:
            found = ((flat.transpose(-1, -2) @ flat) * self.seen).sum((-1, -2))
        else:
            found = (flat @ self.seen).square().sum((-1, -2))
        return found + flat.sum(-1).square().sum(-1) if self.bias else found
