"""Losses of a population some models, samples and vectors at a time, so that a metric's memory grows with none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from catalog.errors import InvalidSpecError, unknown_name
from kernels.curvature.surface import Surface, surface
from kernels.losses import LOSSES
from zoo.architectures import Architecture
from zoo.landscape.metric import Measured, Values

VECTORS = 1 << 28  # bytes of flat vectors held at once
ACTIVATIONS = 1 << 28  # bytes of activations held at once, by estimate
KEPT = 8  # arrays of its size that differentiating twice keeps of an activation, roughly
OVERFLOW = "not finite: the loss or a derivative of it overflows at these weights"


@dataclass(frozen=True)
class Problem:
    """What every metric of the loss begins with.

    Args:
        x: (samples, *input_shape), on the device of the weights.
        y: (samples,), or (models, samples) where each model has its own.
        loss_function: a name in `kernels.losses.LOSSES`.

    Raises:
        ValueError: no samples, or labels that do not fit them. UnknownNameError: another loss function.
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
        by_samples = ACTIVATIONS // (self._bytes(weights) * len(self.x))
        return chunks(len(weights), min(by_samples, fitting(weights, vectors)))

    def surface(self, weights: Tensor, models: slice | Tensor) -> Surface:
        """The surface at these weights, where `models` tells whose labels they have."""
        parts = self.samples(weights, models)

        def part(number: int) -> Surface:
            _, x, y = parts[number]
            return surface(self.module, weights, x, y, loss_function=self.loss_function)

        return part(0) if len(parts) == 1 else Slices(part, [share for share, _, _ in parts])

    def samples(self, weights: Tensor, models: slice | Tensor) -> list[tuple[float, Tensor, Tensor]]:
        """The samples to work on at once with these models: their share of all, inputs, labels."""
        x, y = self.x.to(weights.dtype), self.y if self.y.dim() == 1 else self.y[models]
        length = ACTIVATIONS // (self._bytes(weights) * max(len(weights), 1))
        return [((s.stop - s.start) / len(x), x[s], y[..., s]) for s in chunks(len(x), length)]

    def _bytes(self, weights: Tensor) -> int:
        """Of one model's activations for one sample."""
        return KEPT * self._activations * weights.element_size()

    @cached_property
    def _activations(self) -> int:
        module, counts = self.architecture.build("meta").eval(), [self.x[0].numel()]
        for layer in module.children():
            layer.register_forward_hook(lambda _layer, _inputs, output: counts.append(output.numel()))
        module(torch.empty(1, *self.architecture.input_shape, device="meta"))
        return sum(counts)


@dataclass(frozen=True)
class Slices:
    """The `Surface` of more samples than fit into memory at once: a mean over slices, each made when it is needed.

    Args:
        part: the surface of each slice, by number.
        shares: of all samples, what each slice holds.
    """

    part: Callable[[int], Surface]
    shares: Sequence[float]

    def losses(self) -> Tensor:
        return self._mean(lambda here: here.losses())

    def gradients(self) -> Tensor:
        return self._mean(lambda here: here.gradients())

    def products(self, vectors: Tensor) -> Tensor:
        return self._mean(lambda here: here.products(vectors))

    def forms(self, vectors: Tensor) -> Tensor:
        return self._mean(lambda here: here.forms(vectors))

    def _mean(self, value: Callable[[Surface], Tensor]) -> Tensor:
        total = value(self.part(0)) * self.shares[0]
        for number, share in enumerate(self.shares[1:], 1):
            total += value(self.part(number)) * share
        return total


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
