"""How much the loss can rise in a ball around each model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from catalog.errors import InvalidSpecError
from zoo.architectures import Architecture
from zoo.landscape.chunks import Problem, check_count, check_positive, measured
from zoo.landscape.lanczos import norms, unit
from zoo.landscape.metric import Measured


def sharpness(
    architecture: Architecture,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    loss_function: str,
    radius: float = 0.05,
    steps: int = 20,
    adaptive: bool = False,
) -> Measured:
    """Worst rise of the loss in a Euclidean ball of parameters, in loss units: max of L(w + e) - L(w), |e| <= radius.

    Found by projected gradient ascent from the point where the first-order model of the loss is largest. A step that
    does not rise is taken back and halved, so the value is that of the best point seen: a lower bound of the maximum,
    never below zero or the first-order value. A stationary point has no direction to rise in and gets 0. Weights, x, y
    and loss_function as for `zoo.landscape.hessian.hessian_trace`; nothing is drawn, the standard error is 0.

    Args:
        radius: of the ball, in the units of the weights; if adaptive, a fraction.
        steps: points tried, each at one gradient; the first is the first-order one.
        adaptive: the ball is |e / w| <= radius, taken entry by entry: the same for networks that differ only by
            rescaling units between layers. An entry that is zero stays.

    Returns:
        The value, and column sharpness_first_order: the rise at the first point, radius * gradient / |gradient|; it may
        be negative.

    Raises:
        InvalidSpecError: a radius not above 0, steps below 1, or adaptive neither true nor false.

    Source: Foret et al. 2021, SAM, arXiv 2010.01412, equation (1) is the value, equation (2) the first point; adaptive:
        Kwon et al. 2021, ASAM, arXiv 2102.11600, definition 2 with element-wise T_w. Differs: no constant is added to
        |w|, and biases are scaled as weights are.
    """
    check_positive("radius", radius)
    check_count("steps", steps)
    if type(adaptive) is not bool:
        raise InvalidSpecError(f"adaptive must be true or false, got {adaptive!r}")
    problem = Problem(architecture, x, y, loss_function)
    value, first = np.empty((2, len(weights)))
    for part in problem.chunks(weights, 8):
        rise = _ascend(problem, weights[part], part, radius, steps, adaptive)
        value[part], first[part] = rise.cpu().numpy()
    return measured(value, None, {"sharpness_first_order": first})


def _ascend(problem: Problem, weights: Tensor, models: slice, radius: float, steps: int, adaptive: bool) -> Tensor:
    """Largest rise and the rise at the first point, (2, models) float64."""
    scale = weights.abs() if adaptive else torch.ones_like(weights)  # buffers stay: their gradient is zero
    here = problem.surface(weights, models)
    start = here.losses().double()
    best, rise, uphill = torch.zeros_like(weights), torch.zeros_like(start), _direction(here.gradients() * scale)
    length, first = torch.full_like(start, radius), start
    for step in range(steps):
        point = _into_ball(best + uphill * length[:, None].to(weights.dtype), radius)
        here = problem.surface(weights + point * scale, models)
        found = here.losses().double() - start
        better = found > rise
        first = found if step == 0 else first
        length = torch.where(better, length, length / 2)
        if step + 1 < steps:
            slope = _direction(here.gradients() * scale)
            uphill = torch.where(better[:, None], slope, uphill)
        best = torch.where(better[:, None], point, best)
        rise = torch.where(better, found, rise)
    return torch.stack([torch.where(start.isfinite() & first.isfinite(), rise, torch.nan), first])


def _direction(vectors: Tensor) -> Tensor:
    return unit(vectors, norms(vectors))


def _into_ball(points: Tensor, radius: float) -> Tensor:
    """The nearest points, by Euclidean distance, that are within the radius."""
    return points * (radius / norms(points)).clamp(max=1)[:, None].to(points.dtype)
