"""A population of networks as one batch, in plain torch: the definition that faster implementations are compared with.

Weights of all models are stacked, (models, *shape) a tensor. A module that is a Sequential of the layers below, in the
order of a usual network, runs as batched matrix products and grouped convolutions; any other module runs under vmap.
Both give the same numbers, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.random import keep_mask

POINTWISE = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.Identity)
EXACT = (nn.ReLU, nn.LeakyReLU, nn.Identity)  # the same to the bit by any instruction
REGISTERS = 64  # elements: what a loop of torch works on at once, two registers of 512 bits or fewer, in any type


@dataclass(frozen=True)
class Noise:
    """What dropout draws from at one step.

    Args:
        key: (models,) int64, the stream of each run.
        step: (models,) int64, its optimiser step.
        position: (models, batch) int64, each sample's place in the run's batch.
        rate: (models,) float64, probability to drop.
    """

    key: Tensor
    step: Tensor
    position: Tensor
    rate: Tensor

    def mask(self, site: int, count: int, dtype: torch.dtype) -> Tensor:
        """(models, batch, count): 0 for dropped, 1 / (1 - rate) for kept features."""
        threshold = torch.ceil(self.rate * 2.0**32).to(torch.int64)[:, None, None]
        kept = keep_mask(self.key[:, None], site, self.step[:, None], self.position, threshold, count=count)
        return kept.to(dtype) / (1 - self.rate).to(dtype)[:, None, None]


class Dropout(nn.Module):
    """Dropout whose mask is a function of (run, step, sample, feature). Outside population training it does nothing.

    Args:
        site: which dropout layer of the network this is, 0..255.
    """

    SITE = 256  # sites 256..511 of the random streams belong to dropout layers

    def __init__(self, site: int) -> None:
        super().__init__()
        self.site = self.SITE + site
        self.mask: Callable[[int, int], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The input; multiplied by the mask while `forward_vmap` runs a training step."""
        if self.mask is None:
            return x
        return x * self.mask(self.site, x[0].numel()).view(x.shape)


def forward(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    x: Tensor,
    *,
    shared: bool = False,
    training: bool = False,
    noise: Noise | None = None,
) -> Tensor:
    """Outputs of all models.

    Args:
        module: one network; only its structure is used, it may be on the meta device.
        tensors: name -> (models, *shape), parameters and buffers. In training BatchNorm statistics change in place.
        x: inputs, (models, batch, ...), or (batch, ...) when `shared` by all models.
        training: BatchNorm uses the batch's statistics.
        noise: dropout streams; None for no dropout.

    Returns:
        (models, batch, outputs).
    """
    return forward_of(module)(module, tensors, x, shared=shared, training=training, noise=noise)


class Forward(Protocol):
    """What `forward`, `forward_batched` and `forward_vmap` are."""

    def __call__(
        self,
        module: nn.Module,
        tensors: Mapping[str, Tensor],
        x: Tensor,
        *,
        shared: bool = ...,
        training: bool = ...,
        noise: Noise | None = ...,
    ) -> Tensor: ...


def forward_of(module: nn.Module) -> Forward:
    """Which way `forward` takes; who calls it many times asks once.

    Batched are linear layers, behind one Flatten if there are images, and before it convolutions, norms and pooling.
    """
    if type(module) is not nn.Sequential:
        return forward_vmap
    layers = list(module)
    ends = [number for number, layer in enumerate(layers) if isinstance(layer, nn.Flatten)]
    before, after = (layers[: ends[0]], layers[ends[0] :]) if ends else ([], layers)
    batched = (
        all(_is_on_images(layer) for layer in before)
        and all(_is_on_vectors(layer) for layer in after)
        and (not before or isinstance(before[0], nn.Conv2d))
    )
    return forward_batched if batched else forward_vmap


def forward_vmap(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    x: Tensor,
    *,
    shared: bool = False,
    training: bool = False,
    noise: Noise | None = None,
) -> Tensor:
    """`forward` of any module by torch.func.vmap.

    Raises:
        ValueError: in training, BatchNorm (its statistics cannot be updated under vmap) or dropout of torch (its masks
            would not be reproducible; use `kernels.population.Dropout`).
    """
    if training:
        _refuse_in_vmap(module)
    layers = [layer for layer in module.modules() if isinstance(layer, Dropout)]
    streams = () if noise is None else (noise.key, noise.step, noise.position, noise.rate)

    def one(state: dict[str, Tensor], inputs: Tensor, *stream: Tensor) -> Tensor:
        if stream:
            alone = Noise(*(value[None] for value in stream))
            for layer in layers:
                layer.mask = lambda site, count: alone.mask(site, count, inputs.dtype)[0]
        return torch.func.functional_call(module, state, (inputs,))

    was_training = module.training
    module.train(False)
    try:
        return torch.vmap(one, in_dims=(0, None if shared else 0, *(0 for _ in streams)))(dict(tensors), x, *streams)
    finally:
        module.train(was_training)
        for layer in layers:
            layer.mask = None


def forward_batched(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    x: Tensor,
    *,
    shared: bool = False,
    training: bool = False,
    noise: Noise | None = None,
) -> Tensor:
    """`forward` of a Sequential that `forward_of` finds fit, layer by layer.

    Vectors travel as (models, batch, features), images as (batch, models * channels, height, width), so that a
    convolution of all models is one grouped convolution.
    """
    models = len(next(iter(tensors.values())))
    layers = dict(module.named_modules(remove_duplicate=False))  # a layer may stand in several places
    layers.pop("")
    images = any(isinstance(layer, nn.Conv2d) for layer in layers.values())
    if images and not shared:
        x = x.transpose(0, 1).flatten(1, 2)
    for name, layer in layers.items():
        if isinstance(layer, nn.Flatten):
            if images:
                images = False
                x = x.unflatten(1, (models, -1)).transpose(0, 1).flatten(2)
            else:
                x = x.flatten(1 if shared else 2)
        elif isinstance(layer, nn.Linear):
            x, shared = _linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"), shared), False
        elif isinstance(layer, nn.Conv2d):
            x, shared = _conv2d(layer, x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"), shared), False
        elif isinstance(layer, nn.GroupNorm):
            scale, shift = (tensors[f"{name}.{kind}"].reshape(-1) for kind in ("weight", "bias"))
            x = F.group_norm(x, models * layer.num_groups, scale, shift, layer.eps)
        elif isinstance(layer, nn.BatchNorm2d):
            x = _batch_norm(layer, x, {kind: tensors[f"{name}.{kind}"] for kind in NORM_TENSORS}, training)
        elif isinstance(layer, Dropout):
            if noise is not None:
                x, shared = _dropout(layer, x, noise, images), False
        elif training and isinstance(layer, POINTWISE):
            x = _in_whole_registers(layer, x)
        else:
            x = layer(x)
    return x.expand(models, *x.shape) if shared else x


NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


def _is_on_images(layer: nn.Module) -> bool:
    """Whether the batched path knows this layer on images. A subclass may do anything, so types are exact."""
    kind = type(layer)
    if isinstance(layer, nn.Conv2d):
        return kind is nn.Conv2d and (layer.groups, layer.dilation, layer.padding_mode) == (1, (1, 1), "zeros")
    if isinstance(layer, nn.BatchNorm2d):
        tracked = layer.affine and layer.track_running_stats and layer.momentum is not None
        return kind is nn.BatchNorm2d and tracked
    if isinstance(layer, nn.GroupNorm):
        return kind is nn.GroupNorm and layer.affine
    if isinstance(layer, nn.MaxPool2d):
        return kind is nn.MaxPool2d and not layer.return_indices
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return kind is nn.AdaptiveAvgPool2d and layer.output_size in (1, (1, 1))
    return kind in (Dropout, *POINTWISE)


def _is_on_vectors(layer: nn.Module) -> bool:
    """Whether the batched path knows this layer on vectors."""
    if isinstance(layer, nn.Flatten):
        return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)
    return type(layer) in (nn.Linear, Dropout, *POINTWISE)


def _in_whole_registers(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer on a tensor padded to whole vector registers, so that no bit of a model depends on its companions.

    On CPUs torch computes the last few elements of an array, those that fill no register, by other instructions, whose
    tanh differs in the last bit.
    """
    short = -x.numel() % REGISTERS
    if not short or x.device.type != "cpu" or isinstance(layer, EXACT):
        return layer(x)
    return layer(F.pad(x.flatten(), (0, short)))[: x.numel()].view(x.shape)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, shared: bool) -> Tensor:
    """(models, batch, out). On shared inputs all models are one matrix product."""
    if shared:
        models, outputs, inputs = weight.shape
        product = (x @ weight.reshape(models * outputs, inputs).T).unflatten(1, (models, outputs)).transpose(0, 1)
        return product if bias is None else product + bias[:, None]
    if bias is None:
        return torch.bmm(x, weight.transpose(1, 2))
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


def _conv2d(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, shared: bool) -> Tensor:
    groups = 1 if shared else len(weight)
    flat = None if bias is None else bias.flatten()
    return F.conv2d(x, weight.flatten(0, 1), flat, layer.stride, layer.padding, groups=groups)


def _batch_norm(layer: nn.BatchNorm2d, x: Tensor, tensors: Mapping[str, Tensor], training: bool) -> Tensor:
    # torch 2.13 on a CPU differentiates batch_norm wrongly for scales with gaps, as those of one channel are in views
    flat = {kind: tensor.reshape(-1).contiguous() for kind, tensor in tensors.items()}
    mean, var = flat["running_mean"].clone(), flat["running_var"].clone()
    assert layer.momentum is not None
    out = F.batch_norm(x, mean, var, flat["weight"], flat["bias"], training, layer.momentum, layer.eps)
    if training:
        with torch.no_grad():
            for kind, value in (("running_mean", mean), ("running_var", var)):
                tensors[kind].copy_(value.view_as(tensors[kind]))
    return out


def _dropout(layer: Dropout, x: Tensor, noise: Noise, images: bool) -> Tensor:
    if not images:
        return x * noise.mask(layer.site, x.shape[-1], x.dtype)
    mask = noise.mask(layer.site, math.prod(x.shape[1:]) // len(noise.key), x.dtype)
    return x * mask.transpose(0, 1).reshape(x.shape)


def _refuse_in_vmap(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"layer {name!r} is BatchNorm, which trains as a population only in nn.Sequential; use GroupNorm"
            )
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise ValueError(
                f"layer {name!r} is nn.{type(layer).__name__}; use kernels.population.Dropout, whose masks repeat"
            )
