"""Losses on straight lines between models, and on planes through one."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from catalog.errors import InvalidSpecError
from kernels.random import normal
from zoo.architectures import Architecture
from zoo.evaluate import evaluate

SITE = 0x51  # of the random words: directions of planes
FLOATS = 1 << 22  # weights held at once, 16 MB of float32, besides the population itself
MAX_POINTS = 1001  # along an axis


def line(
    architecture: Architecture,
    weights: Tensor,
    partner: Tensor,
    x: Tensor,
    y: Tensor,
    ts: np.ndarray,
    loss_function: str = "cross_entropy",
) -> tuple[np.ndarray, np.ndarray]:
    """Loss and error at (1 - t) w + t w' for each pair and t.

    All tensors are interpolated, running statistics of BatchNorm too: at t = 0 and 1 the values are those of the
    models, between them statistics do not fit the weights, which raises the barrier (Jordan et al. 2023, "REPAIR").
    Statistics estimated anew along the line are the metric linear_barrier's matter.

    Args:
        weights, partner: (pairs, size).
        x, y: as for `evaluate`; y may be (pairs, samples).
        ts: (points,) finite, 0 is `weights`, 1 is `partner`.

    Returns:
        losses, errors: (pairs, points) float64; errors are fractions of wrong samples. NaN or infinite where the
        loss is.

    Raises:
        InvalidSpecError: no or too many points, or points that are not finite.
        ValueError: weights that do not fit the architecture or each other. UnknownNameError: the loss function.
    """
    at = np.asarray(ts, float)
    if at.ndim != 1 or not 1 <= len(at) <= MAX_POINTS or not np.isfinite(at).all():
        raise InvalidSpecError(f"ts must be 1 to {MAX_POINTS} finite numbers, got {np.shape(ts)}")
    _check(architecture, weights, "weights")
    if weights.shape != partner.shape:
        raise ValueError(f"pairs need weights of one shape, got {tuple(weights.shape)} and {tuple(partner.shape)}")
    found = np.full((2, len(weights), len(at)), np.nan)
    steps = torch.from_numpy(at).to(weights.device, weights.dtype)[:, None]
    together = max(1, FLOATS // weights.shape[1])  # points at once
    for pair in range(len(weights)):
        labels = y if y.dim() == 1 else y[pair]
        for first in range(0, len(at), together):
            part = slice(first, first + together)
            # Both ends come out exactly, unlike w + t (w' - w).
            population = (1 - steps[part]) * weights[pair] + steps[part] * partner[pair]
            found[:, pair, part] = _evaluated(architecture, population, x, labels, loss_function)
    return found[0], found[1]


def plane(
    architecture: Architecture,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    radius: float = 1.0,
    points: int = 25,
    seed: int = 0,
    loss_function: str = "cross_entropy",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Loss and error of one model on a plane of two random directions, filter-normalised.

    Source: Li et al. 2018, "Visualizing the loss landscape of neural nets", section 4. Gaussian directions; each
    filter (first axis of a kernel or matrix) is scaled to the norm of the model's own, tensors of one axis (biases,
    scales and shifts of norms) stay where they are. Running statistics of BatchNorm are the checkpoint's everywhere.

    Args:
        weights: (size,) of one model.
        x, y: as for `evaluate`; y (samples,).
        radius: how far the plane reaches to each side, in units of the filters' norms.
        points: along each side; odd, so that the model itself is the one in the middle.
        seed: of the directions, which are the same for every model of an architecture before they are scaled.

    Returns:
        alphas, betas: (points,) from -radius to radius, 0 in the middle.
        losses, errors: (points, points) float64, alphas by betas; errors are fractions of wrong samples.

    Raises:
        InvalidSpecError: an even or too large number of points, a radius that is not positive and finite.
        ValueError: weights that do not fit. UnknownNameError: the loss function.
    """
    if type(points) is not int or not 3 <= points <= MAX_POINTS or points % 2 == 0:
        raise InvalidSpecError(f"points must be an odd number from 3 to {MAX_POINTS}, got {points!r}")
    if not 0 < radius < math.inf:
        raise InvalidSpecError(f"radius must be a finite number above 0, got {radius!r}")
    _check(architecture, weights[None], "weights")
    half = np.arange(1, points // 2 + 1) * (radius / (points // 2))
    at = np.concatenate((-half[::-1], [0.0], half))
    one, two = directions(architecture, weights, seed)
    steps = torch.from_numpy(at).to(weights.device, weights.dtype)
    corners = torch.cartesian_prod(steps, steps)
    found = np.full((2, points * points), np.nan)
    together = max(1, FLOATS // len(weights))
    for first in range(0, len(corners), together):
        part = slice(first, first + together)
        population = weights + corners[part, :1] * one + corners[part, 1:] * two
        found[:, part] = _evaluated(architecture, population, x, y, loss_function)
    losses, errors = found.reshape(2, points, points)
    return at, at.copy(), losses, errors


def directions(architecture: Architecture, weights: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The two directions of `plane`, (size,) each, of the type and device of the weights (size,)."""
    layout = architecture.layout
    drawn = []
    for step in range(2):
        raw = normal(np.array(seed, np.int64), SITE, step, count=layout.size)
        direction = torch.from_numpy(raw).to(weights.device, weights.dtype)
        for name, shape, role in zip(layout.names, layout.shapes, layout.roles, strict=True):
            tensor = layout.tensor(direction, name)
            if role == "buffer" or len(shape) < 2:
                tensor.zero_()
                continue
            own, mine = (t.reshape(shape[0], -1) for t in (layout.tensor(weights, name), tensor))
            ratio = own.norm(dim=1) / mine.norm(dim=1).clamp_min(torch.finfo(weights.dtype).tiny)
            tensor.mul_(ratio.reshape(-1, *[1] * (len(shape) - 1)))
        drawn.append(direction)
    return drawn[0], drawn[1]


def _check(architecture: Architecture, weights: Tensor, what: str) -> None:
    if weights.dim() != 2 or weights.shape[1] != architecture.layout.size:
        shape = tuple(weights.shape)
        raise ValueError(f"{what} must hold {architecture.layout.size} a model ({architecture.name}), got {shape}")


def _evaluated(
    architecture: Architecture, population: Tensor, x: Tensor, y: Tensor, loss_function: str
) -> tuple[np.ndarray, np.ndarray]:
    found = evaluate(architecture, population, x, y, loss_functions=loss_function)
    return found.loss, 1 - found.accuracy
