"""Traces of the Hessians of multilayer perceptrons without sampling, in plain torch: the reference of `columns`, whose
formulas and source these are, and what runs on a GPU.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.curvature.chunks import parts, room
from kernels.mlp.network import MLP


def trace(network: MLP, weights: Tensor, x: Tensor, y: Tensor, loss_function: str) -> Tensor:
    """tr H of the mean loss of each model, (models,). Arguments as for `kernels.curvature.surface.surface`."""
    widths = network.widths
    columns = widths[-1] + (sum(widths[2:-1]) if network.activation != "relu" else 0)
    x, y = x.flatten(1), y.expand(len(weights), -1)
    together, samples = parts(columns * max(widths), len(weights), len(x), room(weights))
    found = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    for models in together:
        for these in samples:
            sums = _samples_traces(network, weights[models], x[these], y[models, these], loss_function)
            found[models] += sums.sum(1, dtype=torch.float64)
    return (found / len(x)).to(weights.dtype)


@torch.no_grad()
def _samples_traces(network: MLP, weights: Tensor, x: Tensor, y: Tensor, loss_function: str) -> Tensor:
    """(models, samples) of each sample's own loss."""
    layers, outputs = _layers(network, weights), [x.expand(len(weights), -1, -1)]
    slopes: list[Tensor] = []
    bends: list[Tensor] = []
    logits = outputs[0]
    for number, (matrix, bias) in enumerate(layers):
        logits = torch.baddbmm(bias[:, None], outputs[-1], matrix.transpose(1, 2))
        if number < len(layers) - 1:
            for kept, value in zip((outputs, slopes, bends), derivatives(network.activation, logits), strict=True):
                kept.append(value)
    sizes = [a.square().sum(-1) + 1 for a in outputs]
    delta, columns, shares = loss_columns(logits, y, loss_function)
    total = sizes[-1] * (shares * columns.square().sum(-1)).sum(-1)
    for number in range(len(layers) - 2, -1, -1):
        matrix, slope = layers[number + 1][0], slopes[number]
        columns = torch.bmm(columns.flatten(1, 2), matrix).unflatten(1, columns.shape[1:3]) * slope[:, :, None]
        gradient = torch.bmm(delta, matrix)
        bend, delta = bends[number] * gradient, slope * gradient
        total += sizes[number] * ((shares * columns.square().sum(-1)).sum(-1) + bend.sum(-1))
        if network.activation != "relu" and number > 0:  # the diagonal part as columns, for the layers below
            units = torch.eye(bend.shape[-1], dtype=bend.dtype, device=bend.device).expand(*bend.shape, -1)
            columns, shares = torch.cat([columns, units], 2), torch.cat([shares, bend], 2)
    return total


def loss_columns(logits: Tensor, y: Tensor, loss_function: str) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of each sample's loss in its logits, and its second derivative as a sum of columns u of u u' times s.

    Args:
        logits: (..., classes). y: (...) labels.

    Returns:
        gradient (..., classes), columns u (..., columns, classes) and their shares s (..., columns).
    """
    classes = logits.shape[-1]
    target = F.one_hot(y, classes).to(logits.dtype)
    units = torch.eye(classes, dtype=logits.dtype, device=logits.device)
    if loss_function == "mse":
        shares = logits.new_full((), 2 / classes).expand_as(logits)
        return 2 / classes * (logits - target), units.expand(*logits.shape, -1), shares
    odds = torch.softmax(logits, -1)
    return odds - target, units - odds[..., None, :], odds


def derivatives(kind: str, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of the activation of this name."""
    if kind == "relu":
        slope = (z > 0).to(z.dtype)
        return torch.relu(z), slope, torch.zeros_like(z)
    if kind == "tanh":
        y = torch.tanh(z)
        slope = 1 - y * y
        return y, slope, -2 * y * slope
    if kind == "gelu":
        below, density = torch.special.ndtr(z), torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return z * below, below + z * density, density * (2 - z * z)
    gate = torch.sigmoid(z)
    return z * gate, gate * (1 + z * (1 - gate)), gate * (1 - gate) * (2 + z * (1 - 2 * gate))


def _layers(network: MLP, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Matrix (models, outputs, inputs) and bias (models, outputs) of each layer, views."""
    layers, place = [], 0
    for inputs, outputs in itertools.pairwise(network.widths):
        middle = place + inputs * outputs
        matrix = weights[:, place:middle].unflatten(1, (outputs, inputs))
        layers.append((matrix, weights[:, middle : middle + outputs]))
        place = middle + outputs
    return layers
