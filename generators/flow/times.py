"""Times at which a flow is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from generators.recipe import FlowRecipe

EDGE = 2.0**-20  # t stays so far from 0 and 1: the schedules of some paths divide by zero there


def draw_times(
    recipe: FlowRecipe, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """(count,) float32 in (0, 1) by the recipe's `times`; a function of the generator alone.

    Beta(2, 5) has its mode at .2, where the velocity must tell the networks of the population apart (DeepWeightFlow).
    """
    if recipe.times == "uniform":
        t = torch.rand(count, generator=generator, device=device)
    else:
        t = torch.sigmoid(
            _log_gamma_variates(recipe.alpha, count, generator, device)
            - _log_gamma_variates(recipe.beta, count, generator, device)
        ).float()
    return t.clamp(EDGE, 1 - EDGE)


def _log_gamma_variates(shape: float, count: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Logarithms of Gamma(shape) variates, (count,) float64; of two, the sigmoid of the difference is a Beta variate.

    Source: Gamma(a) = Gamma(a + 1) U^(1/a), Marsaglia and Tsang 2000, "A simple method for generating gamma variables",
        section 6. In logarithms, since Gamma(.001) is below the least float64 half of the time.
    """
    above = torch.full((count,), shape + 1, dtype=torch.float64, device=device)
    # what torch.distributions.Gamma calls, which takes no generator
    log_above = torch._standard_gamma(above, generator=generator).log()
    uniform = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    return log_above + torch.log1p(-uniform) / shape
