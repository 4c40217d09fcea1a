"""Losses of a population some models and vectors at a time, so that a metric's memory grows with neither.

Surfaces work through the samples in parts of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from catalog.errors import InvalidSpecError, unknown_name
from kernels.curvature.autograd import activations
from kernels.curvature.surface import Surface, surface
from kernels.losses import LOSSES
from zoo.architectures import Architecture
from zoo.landscape.metric import Measured, Values

VECTORS = 1 << 28  # bytes of flat vectors held at once
STATES = 1 << 28  # bytes of activations and slopes of all samples at once: so many surfaces may keep between calls
OVERFLOW = "not finite: the loss or a derivative of it overflows at these weights"


@dataclass(frozen=True)
class Problem:
    """What every metric of the loss begins with.

    Args:
        x: (samples, *input_shape), on the device of the weights.
        y: (samples,), or (models, samples) where each model has its own.
        loss_function: a name in `kernels.losses.LOSSES`.

    Raises:
        ValueError: no samples, inputs of another shape, or labels that do not fit them. UnknownNameError: another loss
            function.
    """

    architecture: Architecture
    x: Tensor
    y: Tensor
    loss_function: str

    def __post_init__(self) -> None:
        if self.loss_function not in LOSSES:
            raise unknown_name("loss function", self.loss_function, LOSSES)
        if not len(self.x):
            raise ValueError("no samples to measure the loss on; give one or more")
        if self.x.shape[1:] != self.architecture.input_shape:
            raise ValueError(f"inputs must be (samples, *{self.architecture.input_shape}), got {tuple(self.x.shape)}")
        if self.y.dim() not in (1, 2) or self.y.shape[-1] != len(self.x):
            raise ValueError(f"labels must be of {len(self.x)} samples, got {tuple(self.y.shape)}")

    @cached_property
    def module(self) -> nn.Module:
        return self.architecture.build("meta").eval()

    @cached_property
    def parameters(self) -> int:
        """How many; in a flat vector they come before the buffers."""
        return self.architecture.layout.num_parameters

    def chunks(self, weights: Tensor, vectors: int) -> Iterator[slice]:
        """Models to work on at once when each needs so many flat vectors of memory beside its activations.

        Raises:
            ValueError: weights that do not fit the architecture, or labels that do not fit the weights.
        """
        check_weights(self.architecture, weights)
        if self.y.dim() == 2 and len(self.y) != len(weights):
            raise ValueError(f"expected labels for each of {len(weights)} models, got {len(self.y)} rows")
        here = self.x[:1].to("meta")
        state = (activations(self.module, here) + here.numel()) * len(self.x) * weights.element_size()
        return chunks(len(weights), min(STATES // (2 * state), fitting(weights, vectors)))

    def surface(self, weights: Tensor, models: slice | Tensor) -> Surface:
        """The surface at these weights, where `models` tells whose labels they have."""
        labels = self.y if self.y.dim() == 1 else self.y[models]
        return surface(self.module, weights, self.x.to(weights.dtype), labels, loss_function=self.loss_function)


def chunks(count: int, length: int) -> Iterator[slice]:
    """range(count) in slices of `length`, or of one."""
    length = max(length, 1)
    return (slice(first, min(first + length, count)) for first in range(0, count, length))


def fitting(weights: Tensor, vectors: int) -> int:
    """How many times the budget holds so many flat vectors; may be 0."""
    return VECTORS // (vectors * weights.shape[1] * weights.element_size())


def measured(
    value: np.ndarray,
    standard_error: np.ndarray | None = None,
    others: dict[str, Values] | None = None,
    reasons: Sequence[str] | None = None,
) -> Measured:
    """What was found. A value that is not finite is missing, for one of the `reasons` or for OVERFLOW.

    Args:
        standard_error: None for exact values.
    """
    found = np.isfinite(value)
    error = np.zeros(len(value)) if standard_error is None else standard_error
    value, error = np.where(found, value, np.nan), np.where(found, error, np.nan)
    said = [OVERFLOW] * len(value) if reasons is None else reasons
    return Measured(value, error, others or {}, ["" if one else why for one, why in zip(found, said, strict=True)])


def check_weights(architecture: Architecture, weights: Tensor) -> None:
    """Raise ValueError unless they are (models, size) of this architecture."""
    size = architecture.layout.size
    if weights.dim() != 2 or weights.shape[1] != size:
        raise ValueError(f"weights must be (models, {size}) for {architecture.name}, got {tuple(weights.shape)}")


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise InvalidSpecError unless a setting is a whole number, `least` or more."""
    if type(value) is not int or value < least:
        raise InvalidSpecError(f"{name} must be a whole number, {least} or more, got {value!r}")


def check_positive(name: str, value: object) -> None:
    """Raise InvalidSpecError unless a setting is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InvalidSpecError(f"{name} must be a number above zero, got {value!r}")
