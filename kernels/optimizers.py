"""Optimisers of a population: one update for all models, each with its own hyperparameters and its own turn.

State and parameters are (models, size); hyperparameters (models, 1). A model whose turn it is not keeps parameters and
state. Formulas and order of operations are those of `torch.optim`: the same numbers, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Update = Callable[[Tensor, Tensor, dict[str, Tensor], Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class Optimizer:
    """A stacked optimiser.

    Args:
        update: changes parameters and state in place, given gradients and hyperparameters.
        state: names of its (models, size) buffers. scalars: names of its (models, 1) ones, float64. Zero at the start.
        hyperparameters: names it reads.
    """

    update: Update
    state: tuple[str, ...]
    hyperparameters: tuple[str, ...]
    scalars: tuple[str, ...] = ()

    def start(self, parameters: Tensor) -> dict[str, Tensor]:
        """State before the first step; `steps` (models, 1) counts updates."""
        scalars = ("steps", *self.scalars)
        return {name: torch.zeros_like(parameters) for name in self.state} | {
            name: parameters.new_zeros(len(parameters), 1, dtype=torch.float64) for name in scalars
        }

    def step(
        self,
        parameters: Tensor,
        gradients: Tensor,
        state: dict[str, Tensor],
        hyperparameters: Mapping[str, Tensor],
        turn: Tensor | None = None,
    ) -> None:
        """Update in place.

        Args:
            turn: (models,) bool, which models update; None for all.
        """
        if turn is None:
            self.update(parameters, gradients, state, hyperparameters)
            return
        rows = turn.nonzero()[:, 0]
        some = parameters[rows]
        some_state = {name: value[rows] for name, value in state.items()}
        self.update(some, gradients[rows], some_state, {name: value[rows] for name, value in hyperparameters.items()})
        parameters[rows] = some
        for name, value in some_state.items():
            state[name][rows] = value


def sgd(parameters: Tensor, gradients: Tensor, state: dict[str, Tensor], hyper: Mapping[str, Tensor]) -> None:
    """SGD with momentum (Sutskever et al. 2013 as in torch.optim.SGD, dampening 0); decay is added to the gradient."""
    state["steps"] += 1
    gradients = torch.addcmul(gradients, parameters, hyper["weight_decay"])
    state["momentum"].mul_(hyper["momentum"]).add_(gradients)
    parameters.addcmul_(state["momentum"], hyper["learning_rate"], value=-1)


def adamw(parameters: Tensor, gradients: Tensor, state: dict[str, Tensor], hyper: Mapping[str, Tensor]) -> None:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2, as in torch.optim.AdamW): decoupled decay, scaled by the rate."""
    state["steps"] += 1
    rate, beta1, beta2 = (hyper[name] for name in ("learning_rate", "momentum", "beta2"))
    parameters.mul_(1 - rate * hyper["weight_decay"])
    state["first"].lerp_(gradients, 1 - beta1)
    state["second"].mul_(beta2).addcmul_(gradients * gradients, 1 - beta2)
    # 1 - beta ** steps as the same average of ones: products and sums round alike in every lane of a processor, powers
    # do not, and the lane of a model depends on its companions
    for name, beta in (("first_ones", beta1.double()), ("second_ones", beta2.double())):
        state[name].mul_(beta).add_(1 - beta)
    first, second = (state[name].to(parameters.dtype) for name in ("first_ones", "second_ones"))
    denominator = (state["second"].sqrt() / second.sqrt()).add_(hyper["epsilon"])
    parameters.addcdiv_(state["first"] * (rate / first), denominator, value=-1)


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(sgd, ("momentum",), ("learning_rate", "momentum", "weight_decay")),
    "adamw": Optimizer(
        adamw,
        ("first", "second"),
        ("learning_rate", "momentum", "beta2", "epsilon", "weight_decay"),
        ("first_ones", "second_ones"),
    ),
}
