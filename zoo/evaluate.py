"""Loss, accuracy and error bits of a population on one set of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.population import forward
from zoo.architectures import Architecture

ACTIVATIONS = 1 << 21  # floats of input and activations worked on at once, to stay near the caches


@dataclass(frozen=True)
class Evaluation:
    """Results of a population.

    Args:
        loss: (models,) float64, mean cross-entropy in nats.
        accuracy: (models,) float64.
        error_bits: (models, ceil(samples / 8)) uint8; bit i (most significant first) is 1 where sample i is misclassified.
    """

    loss: np.ndarray
    accuracy: np.ndarray
    error_bits: np.ndarray


def evaluate(
    architecture: Architecture, weights: Tensor, x: Tensor, y: Tensor, samples: Tensor | None = None
) -> Evaluation:
    """Evaluate all models, in eval mode.

    Args:
        weights: (models, size).
        x: (samples, *input_shape) on the device of `weights`.
        y: (samples,) labels, or (models, samples) where models have labels of their own.
        samples: (models,) how many of the first samples count for a model's loss and accuracy; None for all. The error
            bits cover all samples.

    Raises:
        ValueError: weights that do not fit the architecture.
    """
    layout = architecture.layout
    if weights.shape[-1] != layout.size:
        raise ValueError(f"last axis must hold {layout.size} weights ({architecture.name}), got {weights.shape[-1]}")
    module = architecture.build("meta")
    widest = max([x[0].numel(), *(layer.numel() for layer in _activations(architecture))])
    models = max(min(64, ACTIVATIONS // (widest * min(len(x), 256))), 1)
    batch = max(ACTIVATIONS // (widest * models), 1)
    losses, wrongs = [], []
    with torch.inference_mode():
        for first in range(0, len(weights), models):
            tensors = layout.unflatten(weights[first : first + models])
            count = len(weights[first : first + models])
            parts = []
            for start in range(0, len(x), batch):
                logits = forward(module, tensors, x[start : start + batch], shared=True)
                target = y[..., start : start + batch]
                target = target[first : first + models] if y.dim() == 2 else target.expand(count, -1)
                loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
                parts.append((loss, logits.argmax(-1) != target))
            losses.append(torch.cat([part[0] for part in parts], 1))
            wrongs.append(torch.cat([part[1] for part in parts], 1))
    loss, wrong = torch.cat(losses).double().cpu().numpy(), torch.cat(wrongs).cpu().numpy()
    counted = np.full(len(weights), len(x)) if samples is None else samples.cpu().numpy()
    weight = np.arange(len(x)) < counted[:, None]
    mean_loss = np.where(weight, loss, 0).sum(1) / counted
    accuracy = 1 - (wrong & weight).sum(1) / counted
    return Evaluation(mean_loss, accuracy, np.packbits(wrong, axis=1))


def _activations(architecture: Architecture) -> list[Tensor]:
    """One sample's activations after each layer, as shapes."""
    module = architecture.build("meta")
    found: list[Tensor] = []
    for layer in module.children():
        layer.register_forward_hook(lambda _layer, _inputs, output: found.append(output))
    module.eval()(torch.empty(1, *architecture.input_shape, device="meta"))
    return found
