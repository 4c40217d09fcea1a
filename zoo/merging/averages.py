"""Means of networks, and what lies between two: all models at once, statistics of BatchNorm from training data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from catalog.errors import InvalidSpecError
from zoo.architectures import Architecture
from zoo.landscape.norms import reestimate
from zoo.splits import Split, fitting

ROUNDING = 1e-6  # of coefficients given in float32: their sum is not 1 to the last bit


def average(
    architecture: Architecture,
    weights: Tensor,
    *,
    coefficients: Tensor | Sequence[float] | None = None,
    train: Split | None = None,
) -> Tensor:
    """The weighted mean of models, which are best given in one frame: units at the same place should mean the same.

    Summed in float64, in the models' order, all tensors alike (biases too). The statistics of BatchNorm belong to no
    mean: they are re-estimated, see `zoo.landscape.norms.reestimate`.

    Args:
        weights: (models, size), or (means, models, size) for many means at once.
        coefficients: (models,) or (means, models), with sum 1; below 0 they extrapolate. None for all equal.
        train: what the statistics of BatchNorm are taken from; not needed without BatchNorm layers.

    Returns:
        (size,), or (means, size).

    Raises:
        InvalidSpecError: weights or coefficients that do not fit or are not finite, BatchNorm layers and no `train`,
            the test split.

    Source: Izmailov et al. 2018, arXiv 1803.05407, section 3; for aligned models Ainsworth et al. 2023, "Git Re-Basin",
    arXiv 2209.04836.
    """
    check_weights(architecture, weights, (2, 3))
    given = shares(coefficients, weights.shape[:-1])
    mean = combined(weights if weights.dim() == 3 else weights[None], given.reshape(-1, given.shape[-1]))
    mean = with_statistics(architecture, mean, train)
    return mean if weights.dim() == 3 else mean[0]


def interpolate(
    architecture: Architecture,
    a: Tensor,
    b: Tensor,
    ts: Sequence[float] | np.ndarray,
    *,
    train: Split | None = None,
) -> Tensor:
    """The networks at (1 - t) a + t b, (models, points, size). BatchNorm is re-estimated everywhere, at 0 and 1 too.

    Args:
        a, b: (models, size). ts: in any range; outside [0, 1] it extrapolates.
        train: as for `average`.

    Raises:
        InvalidSpecError: see `average`.
    """
    for ends in (a, b):
        check_weights(architecture, ends, (2,))
    if a.shape != b.shape:
        raise InvalidSpecError(f"both ends must be as many models, got {len(a)} and {len(b)}")
    places = np.asarray(ts, np.float64)
    if places.ndim != 1 or not len(places) or not np.isfinite(places).all():
        raise InvalidSpecError(f"points must be a list of finite numbers, got {ts!r}")
    both, between = torch.stack([a, b], 1), torch.from_numpy(np.stack([1 - places, places], 1))
    points = torch.stack([combined(both, some[None]) for some in between], 1)
    return with_statistics(architecture, points.flatten(0, 1), train).view_as(points)


def combined(weights: Tensor, shares: Tensor) -> Tensor:
    """Sums of models in these shares: weights (means, models, size), shares (means or 1, models) -> (means, size)."""
    total = torch.zeros(len(weights), weights.shape[2], dtype=torch.float64, device=weights.device)
    shares = shares.to(weights.device, torch.float64)
    for model in range(weights.shape[1]):
        some = shares[:, model] != 0  # infinite weights of a model that is not in it must not make NaN
        if some.any():
            total += torch.where(some[:, None], shares[:, model, None] * weights[:, model].double(), 0)
    return total.to(weights.dtype)


def with_statistics(architecture: Architecture, weights: Tensor, train: Split | None) -> Tensor:
    """The weights (models, size) with statistics of BatchNorm from `train`, where there are such layers.

    Raises:
        InvalidSpecError: there are, and `train` is None or the test split.
    """
    inputs = None if train is None else fitting(train, weights)[0]  # a test split is refused in any case
    if not architecture.has_batch_norm:
        return weights
    if inputs is None:
        raise InvalidSpecError(
            f"{architecture.name} has BatchNorm layers, whose statistics a merged network takes from training data;"
            " give train=zoo.splits.train_split(data)"
        )
    return reestimate(architecture, weights, inputs)


def shares(coefficients: Tensor | Sequence[float] | None, shape: Sequence[int]) -> Tensor:
    """Coefficients as float64 of this shape, (models,) or (means, models); equal ones for None.

    Raises:
        InvalidSpecError: another shape, not finite, or a sum that is not 1.
    """
    if coefficients is None:
        return torch.full(tuple(shape), 1 / shape[-1], dtype=torch.float64)
    given = torch.as_tensor(coefficients, dtype=torch.float64, device="cpu")
    if given.shape not in (torch.Size(shape), torch.Size(shape[-1:])):
        raise InvalidSpecError(f"coefficients must be one a model, {tuple(shape)}, got {tuple(given.shape)}")
    if not bool(((given.sum(-1) - 1).abs() <= ROUNDING).all()):  # not finite ones too
        raise InvalidSpecError(f"coefficients of a mean must be finite with sum 1, got {given.tolist()}")
    return given.expand(tuple(shape))


def check_weights(architecture: Architecture, weights: Tensor, dims: Sequence[int]) -> None:
    """Raise InvalidSpecError unless these are weights of one or more models of this architecture.

    Whole numbers in a layout have no mean, so that such an architecture is refused.
    """
    layout = architecture.layout
    if weights.dim() not in dims or weights.shape[-1] != layout.size or not math.prod(weights.shape[:-1]):
        raise InvalidSpecError(
            f"weights must be of one or more models, (..., {layout.size}) of {architecture.name} with"
            f" {' or '.join(map(str, dims))} axes; got {tuple(weights.shape)}"
        )
    if not weights.is_floating_point():
        raise InvalidSpecError(f"weights must be floating point numbers, got {weights.dtype}")
    if whole := [name for name, dtype in zip(layout.names, layout.dtypes, strict=True) if "int" in dtype]:
        raise InvalidSpecError(f"{architecture.name} keeps whole numbers, which have no mean, in {', '.join(whole)}")
