"""The loss of flow matching, a function of (seed, step): nothing drawn before changes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from generators.flow.coupling import couple
from generators.flow.paths import PATHS
from generators.flow.source import Source
from generators.flow.times import draw_times
from generators.recipe import FlowRecipe
from kernels.random import words

LOSS_SITE = 0x62  # of the random streams


def flow_loss(
    network: nn.Module,
    codes: Tensor,
    condition: Tensor | None,
    source: Source,
    recipe: FlowRecipe,
    seed: int,
    step: int,
) -> Tensor:
    """Mean squared error of the velocity over a batch and its coordinates, a scalar.

    Times, noise, what is added to x_t, dropped conditions and the dropout of the network are drawn from one generator
    of (seed, step), so that an interrupted training goes on with the same bits. With probability `condition_dropout` a
    condition is replaced by zeros.

    Args:
        network: (x (batch, width), t (batch,), condition) -> (batch, width).
        codes: (batch, width), the data x_1. condition: (batch, condition_width) or None.
        source: on the device of the codes.

    Source: Lipman et al. 2023, arXiv 2210.02747, and Tong et al. 2024, arXiv 2302.00482 (the conditional objective);
        dropped conditions: Ho and Salimans 2022, arXiv 2207.12598, algorithm 1.
    """
    velocity, target, _ = _compare(network, codes, condition, source, recipe, seed, step)
    return nn.functional.mse_loss(velocity, target)


def flow_losses(
    network: nn.Module,
    codes: Tensor,
    condition: Tensor | None,
    source: Source,
    recipe: FlowRecipe,
    seed: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    """What `flow_loss` is the mean of, sample by sample, and the time of each: two of (batch,)."""
    velocity, target, t = _compare(network, codes, condition, source, recipe, seed, step)
    return (velocity - target).square().mean(1), t


def generator_at(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on (seed, step) and the kind of device alone."""
    low, high = (int(word) for word in words(np.array(seed, np.uint64), LOSS_SITE, step, count=2))
    return torch.Generator(device).manual_seed(low | (high & 0x7FFFFFFF) << 32)


def _compare(
    network: nn.Module,
    codes: Tensor,
    condition: Tensor | None,
    source: Source,
    recipe: FlowRecipe,
    seed: int,
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Velocity that the network gives and the one it should, (batch, width) each, and times (batch,)."""
    generator = generator_at(seed, step, codes.device)
    t = draw_times(recipe, len(codes), generator, codes.device).to(codes.dtype)
    x_0 = couple(source.draw(len(codes), generator), codes, recipe.coupling, condition)
    x_t, target = PATHS[recipe.path].between(x_0, codes, t)
    if recipe.noise:
        x_t = x_t + recipe.noise * torch.randn(x_t.shape, generator=generator, device=x_t.device, dtype=x_t.dtype)
    if condition is not None and recipe.condition_dropout:
        kept = torch.rand(len(codes), 1, generator=generator, device=codes.device) >= recipe.condition_dropout
        condition = condition * kept
    with _seeded(generator) if recipe.dropout else contextlib.nullcontext():
        velocity = network(x_t, t, condition)
    return velocity, target, t


@contextlib.contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Let torch's own generator, which dropout uses, begin from a draw of this one; it is as before afterwards.

    Only that of the device: torch.manual_seed takes a millisecond, and remembers each call for devices never used.
    """
    device = generator.device
    own = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
    before = own.get_state()
    own.manual_seed(int(torch.randint(2**62, (), generator=generator, device=device)))
    try:
        yield
    finally:
        own.set_state(before)
