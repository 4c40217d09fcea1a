"""How curves are trained, and where on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from kernels.random import uniform

ORDER_SITE, POINT_SITE = 5, 6  # of the random streams
LOWEST = 0.01  # of the learning rate, at the end


@dataclass(frozen=True)
class Recipe:
    """How curves are trained: SGD, the rate constant for half of the steps, then falling in a line to a hundredth.

    Args:
        epochs: passes over the samples in whole batches; what they leave over waits for another epoch.
        batch_size: all samples if there are fewer.
        weight_decay: of phi(t), not of the middle point. seed: of t and of the order of samples.
        loss: a name in `kernels.losses.LOSSES`.
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    loss: str = "cross_entropy"

    def batch(self, samples: int) -> int:
        return min(self.batch_size, samples)

    def steps(self, samples: int) -> int:
        return self.epochs * (samples // self.batch(samples))

    @property
    def key(self) -> np.ndarray:
        """Of the random streams, (1,) uint64."""
        return np.array([self.seed], np.uint64)

    def points(self, samples: int) -> np.ndarray:
        """t of each step, (steps,) float64."""
        return uniform(self.key, POINT_SITE, count=self.steps(samples))[0]

    def rates(self, samples: int) -> np.ndarray:
        """Learning rate of each step, (steps,) float64."""
        done = np.arange(self.steps(samples)) / max(self.steps(samples), 1)
        return self.learning_rate * (1 - (1 - LOWEST) * np.clip((done - 0.5) / 0.4, 0, 1))


def shares(t: Any) -> tuple[Any, Any, Any]:
    """Of start, middle and end in phi(t); they sum to one, and at 0 and 1 one of them is all.

    >>> shares(0.5)
    (0.25, 0.5, 0.25)
    """
    return (1 - t) ** 2, 2 * t * (1 - t), t**2


def at(t: float, start: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    """phi(t) of all pairs, (pairs, size)."""
    a, b, c = shares(t)
    return a * start + b * middle + c * end
