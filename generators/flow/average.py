"""A running average of a network's parameters, which samples instead of the last ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of parameters: a <- d a + (1 - d) p, d = min(decay, (1 + n) / (10 + n)) at update n.

    The first updates thus average over what there is yet, and the network's initialisation is soon forgotten. Decay 0
    follows the parameters.

    Source: the warm-up is that of TensorFlow's `ExponentialMovingAverage(num_updates=n)`; Polyak and Juditsky 1992.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.values = {name: value.detach().clone() for name, value in module.named_parameters()}

    def decay_at(self, count: int) -> float:
        """Of update number `count`, from 0."""
        return min(self.decay, (1 + count) / (10 + count))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the parameters as they are now."""
        now = dict(module.named_parameters())
        share = 1 - self.decay_at(self.count)
        torch._foreach_lerp_(list(self.values.values()), [now[name].detach() for name in self.values], share)
        self.count += 1

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Give the average to the parameters of a module like the one averaged."""
        for name, value in module.named_parameters():
            value.copy_(self.values[name])

    def to(self, device: torch.device | str) -> Average:
        """Move the average to a device, in place."""
        self.values = {name: value.to(device) for name, value in self.values.items()}
        return self

    def state_dict(self) -> dict[str, Any]:
        """Everything but the decay, which is the recipe's: {"count", "values"}."""
        return {"count": self.count, "values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, on the devices of the module's parameters.

        Raises:
            ValueError: parameters of another module.
        """
        values: Mapping[str, Tensor] = state["values"]
        known = {name: tuple(value.shape) for name, value in self.values.items()}
        if (came := {name: tuple(value.shape) for name, value in values.items()}) != known:
            raise ValueError(f"the average is of other parameters: expected {known}, got {came}")
        for name, value in self.values.items():
            value.copy_(values[name])
        self.count = int(state["count"])
