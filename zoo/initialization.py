"""Initial weights of a population, each run from its own counter-based stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import ndtr, ndtri
from torch import nn

from kernels.random import normal, uniform
from zoo.architectures import Architecture

SITE = 1  # of the random streams
Scheme = Callable[[np.ndarray, int, tuple[int, ...], int, int], np.ndarray]


def _uniform(bound: float, key: np.ndarray, step: int, count: int) -> np.ndarray:
    return (2 * uniform(key, SITE, step, count=count) - 1) * bound


def torch_default(key: np.ndarray, step: int, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as torch initialises linear and convolution layers (their biases too)."""
    return _uniform(1 / math.sqrt(fan_in), key, step, math.prod(shape))


def kaiming_uniform(key: np.ndarray, step: int, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """Variance 2 / fan_in (He et al. 2015, equation 10), uniform."""
    return _uniform(math.sqrt(6 / fan_in), key, step, math.prod(shape))


def kaiming_normal(key: np.ndarray, step: int, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """Variance 2 / fan_in (He et al. 2015, equation 10), normal."""
    return normal(key, SITE, step, count=math.prod(shape)) * math.sqrt(2 / fan_in)


def xavier_uniform(key: np.ndarray, step: int, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """Variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, equation 16)."""
    return _uniform(math.sqrt(6 / (fan_in + fan_out)), key, step, math.prod(shape))


def xavier_normal(key: np.ndarray, step: int, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """Variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, equation 12), normal."""
    return normal(key, SITE, step, count=math.prod(shape)) * math.sqrt(2 / (fan_in + fan_out))


def truncated_normal(key: np.ndarray, step: int, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """Standard deviation 0.05 before truncation at two of them (Keras TruncatedNormal, used by the Small CNN Zoo)."""
    low = ndtr(-2.0)
    return np.asarray(0.05 * ndtri(low + uniform(key, SITE, step, count=math.prod(shape)) * (1 - 2 * low)))


def orthogonal(key: np.ndarray, step: int, shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """Rows or columns orthonormal after flattening to (out, rest) (Saxe et al. 2014)."""
    rows, columns = shape[0], math.prod(shape[1:])
    tall, wide = max(rows, columns), min(rows, columns)
    q, r = np.linalg.qr(normal(key, SITE, step, count=rows * columns).reshape(len(key), tall, wide))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
    return np.asarray((q if rows >= columns else q.swapaxes(1, 2)).reshape(len(key), -1))


INITIALIZATIONS: dict[str, Scheme] = {
    "torch": torch_default,
    "kaiming_uniform": kaiming_uniform,
    "kaiming_normal": kaiming_normal,
    "xavier_uniform": xavier_uniform,
    "xavier_normal": xavier_normal,
    "truncated_normal": truncated_normal,
    "orthogonal": orthogonal,
}


def initial_weights(
    architecture: Architecture, keys: np.ndarray, schemes: Sequence[str], gains: np.ndarray
) -> np.ndarray:
    """Weights before training.

    Args:
        keys: (models,) uint64, the runs' streams.
        schemes: (models,) names in INITIALIZATIONS. Weights are scaled by `gains` (models,); biases are zero except in
            "torch". Norms start as the identity.

    Returns:
        (models, size), float64.
    """
    layout = architecture.layout
    module = architecture.build("meta")
    out = np.zeros((len(keys), layout.size))
    for step, (name, shape) in enumerate(zip(layout.names, layout.shapes, strict=True)):
        owner, kind = name.rpartition(".")[::2]
        layer = module.get_submodule(owner)
        where = layout.slice(name)
        if isinstance(layer, nn.GroupNorm | nn.BatchNorm2d):
            out[:, where] = 1.0 if kind in ("weight", "running_var") else 0.0
            continue
        fan_in, fan_out = _fans(layer)
        for scheme in sorted(set(schemes)):
            rows = np.array([s == scheme for s in schemes])
            if kind == "weight":
                drawn = INITIALIZATIONS[scheme](keys[rows], step, shape, fan_in, fan_out)
                out[rows, where] = drawn * gains[rows, None]
            elif scheme == "torch":
                out[rows, where] = torch_default(keys[rows], step, shape, fan_in, fan_out)
    return out


def _fans(layer: nn.Module) -> tuple[int, int]:
    assert isinstance(layer, nn.Linear | nn.Conv2d), f"no initialisation for {type(layer).__name__}"
    field = math.prod(layer.weight.shape[2:])
    return int(layer.weight.shape[1] * field), int(layer.weight.shape[0] * field)
