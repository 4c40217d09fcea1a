"""REPAIR: a merged network whose hidden units have again the mean and spread that they had in those it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from catalog.errors import InvalidSpecError
from kernels.population import POINTWISE
from zoo.architectures import Architecture
from zoo.evaluate import widest
from zoo.landscape.norms import BATCH_NORM, FLOATS, channel_moments, layers_of, set_statistics
from zoo.merging.averages import check_weights, shares
from zoo.splits import Split, fitting

CONSTANT = 1e-6  # deviation over mean below which a unit is constant: float32 rounds it to no less than 6e-8


def repair(
    architecture: Architecture,
    merged: Tensor,
    endpoints: Tensor,
    alphas: Tensor | Sequence[float] | None,
    train: Split,
) -> Tensor:
    """The merged networks with the statistics of their hidden units set to what lies between those of the endpoints.

    Units of a mean of networks vary less than those of each, layer by layer less, and the barrier is mostly that. Here
    the pre-activations of each channel get the mean `sum a_i mean_i` and the standard deviation `sum a_i std_i` over
    `train`, by new weights and biases of the last affine layer before each activation function: a linear layer, a
    convolution or a GroupNorm. Layers are done in order, each on what the repaired ones before it give. A BatchNorm
    layer gets new running statistics instead, which is the same where the endpoints' own are accurate. The last layer,
    with no activation function behind it, stays. A unit that is constant in the merged network gets the mean alone.

    Args:
        merged: (models, size), means of the endpoints.
        endpoints: (models, ends, size), what each was made of, in one frame: channel by channel the same units.
        alphas: (ends,) or (models, ends), the shares of the endpoints in it, with sum 1; None for equal ones.
        train: samples of the training split.

    Returns:
        (models, size).

    Raises:
        InvalidSpecError: weights or shares that do not fit; a layer without bias or scale, into which nothing can be
            folded; a network that is no sequence of layers; the test split.

    Source: Jordan et al. 2022, "REPAIR: REnormalizing Permuted Activations for Interpolation Repair", arXiv 2211.08403,
    its definition by means and standard deviations, the variant with passes through the merged network. Differs:
    statistics of all samples given, layer by layer in eval mode, where their code inserts BatchNorm layers, takes the
    running means of a pass in training mode and folds them in; no epsilon is added to variances.
    """
    check_weights(architecture, merged, (2,))
    check_weights(architecture, endpoints, (3,))
    if len(endpoints) != len(merged):
        raise InvalidSpecError(
            f"expected the endpoints of {len(merged)} merged networks, got those of {len(endpoints)}"
        )
    given = shares(alphas, endpoints.shape[:2]).to(merged.device)
    inputs = fitting(train, merged)[0]
    targets = affine_layers(architecture)
    out = merged.clone()
    each = max(FLOATS // 4 // (widest(architecture) * min(len(inputs), 256) * endpoints.shape[1]), 1)
    for first in range(0, len(out), each):
        part = slice(first, first + each)
        _repair(architecture, out[part], endpoints[part], given[part], inputs, targets)
    return out


def affine_layers(architecture: Architecture) -> dict[str, nn.Module]:
    """The layers whose output is repaired, by name: BatchNorm layers, and the last affine one before each activation.

    Raises:
        InvalidSpecError: one without bias or scale, or a network that is no sequence of layers.
    """
    found: dict[str, nn.Module] = {}
    last: tuple[str, nn.Module] | None = None
    for name, layer in layers_of(architecture).items():
        if isinstance(layer, BATCH_NORM):
            found[name], last = layer, None
        elif isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm):
            last = name, layer
        elif isinstance(layer, POINTWISE) and last is not None:
            found[last[0]], last = last[1], None
    for name, layer in found.items():
        if layer.weight is None or layer.bias is None:
            raise InvalidSpecError(
                f"layer {name!r} of {architecture.name} has no bias or no scale, into which statistics could be folded"
            )
    return found


def _repair(
    architecture: Architecture,
    merged: Tensor,
    endpoints: Tensor,
    alphas: Tensor,
    inputs: Tensor,
    targets: Mapping[str, nn.Module],
) -> None:
    """Changes `merged` in place."""
    tensors = architecture.layout.unflatten(merged)
    for name, layer in targets.items():
        if isinstance(layer, BATCH_NORM):
            set_statistics(architecture, merged, inputs, name)
            continue
        mean, var = channel_moments(architecture, merged, inputs, name)
        ends = channel_moments(architecture, endpoints.flatten(0, 1), inputs, name)
        means, deviations = ends[0].unflatten(0, alphas.shape), ends[1].sqrt().unflatten(0, alphas.shape)
        wanted_mean, wanted = (torch.einsum("me,mec->mc", alphas, found) for found in (means, deviations))
        deviation = var.sqrt()
        gain = torch.where(deviation > CONSTANT * mean.abs(), wanted / deviation, 1)
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        weight.copy_(weight.double() * gain.view(*gain.shape, *(1 for _ in weight.shape[2:])))
        bias.copy_((bias.double() - mean) * gain + wanted_mean)
