"""Time and condition as the vector that modulates a network's layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FREQUENCIES = 32
LOW, HIGH = 0.25, 32.0  # cycles over t in [0, 1]


class Embedding(nn.Module):
    """(t (batch,), condition (batch, condition_width) or None) -> (batch, width).

    Sines and cosines of t go through a two-layer network, the condition through another, and both are added: as in
    DiT, Peebles and Xie 2023, arXiv 2212.09748, section 3.2, whose conditions are a table of classes. A condition that
    is left out is one of zeros.
    """

    frequencies: Tensor

    def __init__(self, width: int, condition_width: int = 0) -> None:
        super().__init__()
        spaced = torch.logspace(math.log2(LOW), math.log2(HIGH), FREQUENCIES, base=2.0)
        self.register_buffer("frequencies", 2 * math.pi * spaced, persistent=False)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES + 1, width), nn.SiLU(), nn.Linear(width, width))
        self.condition_width = condition_width
        self.condition = (
            nn.Sequential(nn.Linear(condition_width, width), nn.SiLU(), nn.Linear(width, width))
            if condition_width
            else None
        )

    def forward(self, t: Tensor, condition: Tensor | None) -> Tensor:
        phase = t[:, None] * self.frequencies
        out: Tensor = self.time(torch.cat((t[:, None], phase.sin(), phase.cos()), 1))
        if self.condition is not None:
            out = out + self.condition(given(condition, t, self.condition_width))
        return nn.functional.silu(out)


def given(condition: Tensor | None, t: Tensor, width: int) -> Tensor:
    """The condition (batch, width), zeros if it is left out."""
    return t.new_zeros(len(t), width) if condition is None else condition


def zeroed(linear: nn.Linear) -> nn.Linear:
    """The same layer, with weights and biases of zero."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
