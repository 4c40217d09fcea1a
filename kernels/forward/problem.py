"""What a forward of many dense networks is given, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.losses import LOSSES

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
}
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Layers(NamedTuple):
    """Weights (models, out, in) and biases (models, out) of each layer, the first one first."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]


@dataclass(frozen=True)
class Problem:
    """What the implementations are given, checked.

    Args:
        x: (T, D). y: (rows, T) int64, each row for models / rows consecutive ones.
        other: the second end of the segments; None without alphas. alphas: (A,) in the type of the sums.
        counted: (models,) int64. squared: (models,) bool, whose loss is "mse".
    """

    x: Tensor
    y: Tensor
    layers: Layers
    activation: str
    counted: Tensor
    squared: Tensor
    other: Layers | None
    alphas: Tensor | None

    @property
    def sums(self) -> torch.dtype:
        """Type that is computed in."""
        return torch.float64 if self.layers.weights[0].dtype == torch.float64 else torch.float32

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the layers' outputs; the last are the classes."""
        return tuple(weight.shape[1] for weight in self.layers.weights)


def checked(
    x: Tensor,
    y: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    loss: str | Sequence[str],
    other: tuple[Sequence[Tensor], Sequence[Tensor]] | None,
    alphas: Sequence[float] | Tensor | None,
    counted: Tensor | None,
) -> Problem:
    """Arguments of `mlp_forward` as a problem; ValueError for what does not fit."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if x.dim() != 2 or not len(x):
        raise ValueError(f"x must be (samples, inputs) of one sample or more, got {tuple(x.shape)}")
    layers = _checked_layers(x, weights, biases)
    models, samples = len(layers.weights[0]), len(x)
    rows = y if y.dim() == 2 else y[None]
    if y.dim() not in (1, 2) or rows.shape[1] != samples or not len(rows) or models % len(rows):
        raise ValueError(
            f"y must be ({samples},) or (rows, {samples}), rows a divisor of {models} models, got {tuple(y.shape)}"
        )
    classes = layers.weights[-1].shape[1]
    if not 0 <= int(rows.min()) <= int(rows.max()) < classes:
        raise ValueError(f"labels must be classes from 0 to {classes - 1}, got {int(rows.min())} to {int(rows.max())}")
    names = [loss] if isinstance(loss, str) else list(loss)
    if set(names) - set(LOSSES) or (not isinstance(loss, str) and len(names) != models):
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, or one for each of {models} models, got {loss!r}")
    squared = torch.tensor([name == "mse" for name in names], device=x.device).expand(models)
    count = torch.full((models,), samples, device=x.device) if counted is None else counted.to(x.device, torch.int64)
    if count.shape != (models,) or (models and not 0 <= int(count.min()) <= int(count.max()) <= samples):
        raise ValueError(f"counted must be {models} numbers from 0 to {samples}")
    if (other is None) != (alphas is None):
        raise ValueError("give other and alphas, or neither")
    ends, points = None, None
    if other is not None and alphas is not None:
        ends = _checked_layers(x, *other)
        if [w.shape for w in ends.weights] != [w.shape for w in layers.weights]:
            raise ValueError("both ends of the segments must be populations of the same shapes")
        kind = torch.float64 if layers.weights[0].dtype == torch.float64 else torch.float32
        points = torch.as_tensor(alphas, dtype=torch.float64).to(x.device, kind)
    return Problem(x, rows.long(), layers, activation, count, squared, ends, points)


def _checked_layers(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Layers:
    """As tuples, where they are a network on x: one type, one device, widths that follow each other."""
    if not weights or len(weights) != len(biases):
        raise ValueError(f"weights and biases must be of the same layers, got {len(weights)} and {len(biases)}")
    models, inputs = len(weights[0]), x.shape[1]
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.dim() != 3 or weight.shape[::2] != (models, inputs) or bias.shape != weight.shape[:2]:
            raise ValueError(
                f"layer {number} must have weights ({models}, out, {inputs}) and biases ({models}, out), "
                f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        if weight.dtype not in TYPES or {weight.dtype, bias.dtype} != {weights[0].dtype}:
            raise ValueError(f"weights must be of one float type, got {weight.dtype} and {bias.dtype}")
        if weight.device != x.device or bias.device != x.device:
            raise ValueError(f"weights must be on {x.device} as the inputs, got {weight.device} and {bias.device}")
        inputs = weight.shape[1]
    return Layers(tuple(weight.detach() for weight in weights), tuple(bias.detach() for bias in biases))
