"""Paths from noise to data: x_t = signal(t) x_1 + noise(t) x_0, with t from 0 (noise) to 1 (data)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Schedule = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Path:
    """A conditional probability path, affine in noise x_0 and data x_1.

    Args:
        signal, noise: of t (batch,), what x_1 and x_0 are multiplied by; (0, 1) at t = 0 and (1, 0) at t = 1.
        signal_rate, noise_rate: their derivatives.

    Source: Lipman et al. 2023, "Flow matching for generative modeling", arXiv 2210.02747, section 4; their
        x_0 and x_1 are ours.
    """

    signal: Schedule
    noise: Schedule
    signal_rate: Schedule
    noise_rate: Schedule

    def between(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Where the path is at t (batch,) and its velocity there, the target of training: two of (batch, width)."""
        column = t[:, None]
        x_t = self.signal(column) * x_1 + self.noise(column) * x_0
        return x_t, self.signal_rate(column) * x_1 + self.noise_rate(column) * x_0


def _quarter(t: Tensor) -> Tensor:
    return 0.5 * math.pi * t


PATHS: dict[str, Path] = {
    # straight lines at constant speed: Lipman et al., example II with sigma_min = 0; rectified flow
    "linear": Path(lambda t: t, lambda t: 1 - t, torch.ones_like, lambda t: -torch.ones_like(t)),
    # signal^2 + noise^2 = 1: Albergo and Vanden-Eijnden 2023, arXiv 2209.15571 (the trigonometric one)
    "variance_preserving": Path(
        lambda t: torch.sin(_quarter(t)),
        lambda t: torch.cos(_quarter(t)),
        lambda t: 0.5 * math.pi * torch.cos(_quarter(t)),
        lambda t: -0.5 * math.pi * torch.sin(_quarter(t)),
    ),
}
