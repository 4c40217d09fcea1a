"""Codes from a trained flow, each a function of its number alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from generators.flow.guidance import velocity_of
from generators.flow.solvers import integrate
from generators.flow.source import Source
from generators.recipe import FlowRecipe

ROWS = 64  # integrated at once
NUMBERS = 1 << 24  # and at most so many numbers, where networks are large


def draw_codes(
    network: nn.Module,
    source: Source,
    recipe: FlowRecipe,
    numbers: np.ndarray,
    seed: int,
    condition: Tensor | None = None,
) -> Tensor:
    """Codes (numbers, width): number n of a seed has the same bits whatever else is drawn with it, on one machine.

    Sums of a matrix product are added up in an order that depends on how many rows there are: of 100 samples drawn as
    one batch, or alone, the last bits differ. So every batch here has the same number of rows, the last one filled up
    with repetitions; where a sample stands in it changes nothing. The steps of "adaptive" depend on all samples of a
    batch, so each is integrated by itself, which costs tens of times as much.

    Args:
        network: the velocity. source: on its device. numbers: (numbers,) int64.
        condition: (numbers, condition_width), or None.
    """
    device, width = source.scale.device, len(source.scale)
    rows = 1 if recipe.solver == "adaptive" else max(1, min(ROWS, NUMBERS // max(1, width)))
    out, training = torch.empty(len(numbers), width, dtype=source.scale.dtype, device=device), network.training
    network.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(numbers), rows):
                these = np.arange(start, min(start + rows, len(numbers)))
                filled = np.resize(these, rows)
                given = None if condition is None else condition[torch.from_numpy(filled).to(condition.device)]
                velocity = velocity_of(network, None if given is None else given.to(device), recipe.guidance)
                x_0 = source.at(np.asarray(numbers)[filled], seed)
                codes = integrate(velocity, x_0, recipe.solver, recipe.steps, recipe.tolerance)
                out[start : start + len(these)] = codes[: len(these)]
    finally:
        network.train(training)
    return out
