"""Activations of a population at any layer, and the statistics of its BatchNorm layers taken anew from samples.

Weights between checkpoints, averaged or permuted ones, come with running statistics that belong to none of them.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from catalog.errors import InvalidSpecError, unknown_name
from kernels.population import forward
from zoo.architectures import Architecture
from zoo.evaluate import widest

BATCH_NORM = nn.modules.batchnorm._BatchNorm
FLOATS = 1 << 24  # of activations held at once, 64 MiB in float32


def layers_of(architecture: Architecture) -> OrderedDict[str, nn.Module]:
    """The layers by name, in order, on the meta device.

    Raises:
        InvalidSpecError: a network that is no sequence of layers.
    """
    module = architecture.build("meta")
    if type(module) is not nn.Sequential:
        raise InvalidSpecError(f"{architecture.name} is no sequence of layers, so that none has a place in it")
    return OrderedDict(module.named_children())


def up_to(architecture: Architecture, layer: str | None) -> nn.Sequential:
    """The network up to a layer and with it, flattened; None for all of it.

    Raises:
        UnknownNameError: no layer of that name; it lists those there are.
    """
    layers = layers_of(architecture)
    if layer is None:
        return nn.Sequential(layers)
    if layer not in layers:
        raise unknown_name(f"layer of {architecture.name}", layer, layers)
    names = list(layers)
    # behind a Flatten `kernels.population.forward` gives (models, samples, features) whatever the last layer is
    kept = OrderedDict((name, layers[name]) for name in names[: names.index(layer) + 1])
    return nn.Sequential(OrderedDict(kept, **{"last": nn.Flatten()}))


def activations(architecture: Architecture, weights: Tensor, x: Tensor, layer: str | None = None) -> Tensor:
    """Activations behind a layer in eval mode, (models, samples, features); None for the logits.

    Samples go through some at a time, so that no other layer's activations are held for all of them.

    Args:
        weights: (models, size). x: (samples, *input_shape).

    Raises:
        UnknownNameError: no layer of that name.
    """
    network, tensors = up_to(architecture, layer), architecture.layout.unflatten(weights)
    with torch.inference_mode():
        return torch.cat([forward(network, tensors, some, shared=True) for some in _parts(architecture, weights, x)], 1)


def _parts(architecture: Architecture, weights: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """The samples, some at a time: four layers' activations of all models fit into memory."""
    return x.split(max(FLOATS // 4 // (max(len(weights), 1) * widest(architecture)), 1))


def reestimate(architecture: Architecture, weights: Tensor, x: Tensor) -> Tensor:
    """The weights with running_mean and running_var of every BatchNorm layer set to the statistics of `x`.

    Mean and unbiased variance (as torch.nn.BatchNorm2d keeps it) of all samples as one batch, layer by layer: each sees
    what the layers before it give in eval mode with their new statistics. Models and samples are worked off in parts,
    whose moments are merged in float64 (Chan et al. 1983, "Algorithms for computing the sample variance", section 3).
    Doing it twice changes nothing but rounding. Without BatchNorm layers the weights come back as they are.

    Args:
        weights: (models, size). x: (samples, *input_shape), samples x pixels two or more.

    Returns:
        (models, size), a copy if anything changed.

    Raises:
        InvalidSpecError: one number a channel, which has no variance.
    """
    if not architecture.has_batch_norm:
        return weights
    out = weights.clone()
    norms = [name for name, layer in layers_of(architecture).items() if isinstance(layer, BATCH_NORM)]
    models = max(FLOATS // 4 // (widest(architecture) * min(len(x), 256)), 1)
    for part in out.split(models):  # views: what is written below stays
        for name in norms:
            set_statistics(architecture, part, x, name)
    return out


def set_statistics(architecture: Architecture, weights: Tensor, x: Tensor, layer: str) -> None:
    """Set the running statistics of one BatchNorm layer, in place, to those of what comes to it."""
    names = list(layers_of(architecture))
    at = names.index(layer)
    network = up_to(architecture, names[at - 1]) if at else nn.Sequential(nn.Flatten())
    mean, var = _moments(architecture, network, weights, x, layer)
    for kind, values in (("mean", mean), ("var", var)):
        architecture.layout.tensor(weights, f"{layer}.running_{kind}").copy_(values)


def channel_moments(architecture: Architecture, weights: Tensor, x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over samples and pixels of each channel that a layer gives, in eval mode.

    Args:
        weights: (models, size). x: (samples, *input_shape). layer: a linear layer, a convolution or a norm.

    Returns:
        (models, channels) float64, twice.

    Raises:
        UnknownNameError: no layer of that name. InvalidSpecError: one number a channel, which has no variance.
    """
    return _moments(architecture, up_to(architecture, layer), weights, x, layer)


def _moments(
    architecture: Architecture, network: nn.Sequential, weights: Tensor, x: Tensor, layer: str
) -> tuple[Tensor, Tensor]:
    """Of each channel behind `network`, as many as the layer has biases."""
    tensors = architecture.layout.unflatten(weights)
    channels = tensors[f"{layer}.bias"].shape[-1]
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for some in _parts(architecture, weights, x):
            found = forward(network, tensors, some, shared=True)
            found = found.unflatten(2, (channels, -1)).transpose(1, 2).flatten(2).double()
            here, added = found.mean(-1), found.shape[-1]
            shift = here - mean
            squares = squares + (found - here[..., None]).square().sum(-1)
            squares = squares + shift.square() * (count * added / (count + added))
            mean = mean + shift * (added / (count + added))
            count += added
    if count < 2:
        raise InvalidSpecError("one number a channel has no variance; give two samples or more")
    return mean, squares / (count - 1)
