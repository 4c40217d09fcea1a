"""Codes of a flow: each of its number alone, to the bit."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from generators.flow.guidance import velocity_of
from generators.flow.networks import NETWORKS, build_network
from generators.flow.sampling import draw_codes
from generators.flow.solvers import SOLVERS, integrate
from generators.flow.source import Source, make_source
from generators.recipe import FlowRecipe
from weightspace.layout import Layout

LAYOUT = Layout(("a.weight", "a.bias", "b.weight", "b.bias"), ((20, 31), (20,), (10, 20), (10,)))


def flow(network: str, **changes: object) -> tuple[nn.Module, Source, FlowRecipe]:
    """A network with random weights: what matters here is which number gets what."""
    recipe = dataclasses.replace(FlowRecipe(network=network, width=48, depth=1, steps=2, tolerance=1e-2), **changes)  # type: ignore[arg-type]
    torch.manual_seed(0)
    built = build_network(recipe, LAYOUT.size, 2, LAYOUT)
    for parameter in built.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    return built, make_source(recipe, torch.ones(LAYOUT.size), 0), recipe


@pytest.mark.parametrize(
    ("network", "solver"), [*((name, "midpoint") for name in NETWORKS), *(("mlp", s) for s in SOLVERS)]
)
def test_a_sample_has_the_same_bits_in_any_company(network: str, solver: str) -> None:
    built, source, recipe = flow(network, solver=solver, guidance=2.0)
    condition = torch.randn(130, 2, generator=torch.Generator().manual_seed(0))
    whole = draw_codes(built, source, recipe, np.arange(130), 4, condition)
    assert whole.shape == (130, LAYOUT.size)
    for chosen in ([0], [129], [77, 3, 128, 64], list(range(1, 120))):
        assert torch.equal(draw_codes(built, source, recipe, np.array(chosen), 4, condition[chosen]), whole[chosen])
    assert not torch.allclose(draw_codes(built, source, recipe, np.arange(2), 5, condition[:2]), whole[:2])


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_is_the_integral_of_the_velocity(solver: str) -> None:
    built, source, recipe = flow("residual", solver=solver, guidance=3.0)
    condition, numbers = torch.ones(5, 2), np.array([9, 1, 2, 8, 5])
    with torch.no_grad():
        velocity = velocity_of(built, condition, 3.0)
        direct = integrate(velocity, source.at(numbers, 1), solver, 2, 1e-2)
    # rounding of float32; "adaptive" chooses other steps for five than for one
    allowed = 2e-2 if solver == "adaptive" else 1e-4
    torch.testing.assert_close(draw_codes(built, source, recipe, numbers, 1, condition), direct, rtol=0, atol=allowed)


def test_dropout_is_off_while_sampling() -> None:
    built, source, recipe = flow("mlp", dropout=0.5)
    built.train()
    first = draw_codes(built, source, recipe, np.arange(3), 0)
    assert built.training
    assert torch.equal(draw_codes(built, source, recipe, np.arange(3), 0), first)
    assert not first.requires_grad


def test_nothing_to_draw() -> None:
    built, source, recipe = flow("mlp")
    assert draw_codes(built, source, recipe, np.arange(0), 0).shape == (0, LAYOUT.size)
