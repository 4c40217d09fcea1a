"""The loss: a function of (seed, step) alone, its closed forms, and a flow that learns what it should."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from generators.flow.average import Average
from generators.flow.guidance import velocity_of
from generators.flow.loss import flow_loss, flow_losses, generator_at
from generators.flow.networks import NETWORKS, build_network
from generators.flow.paths import PATHS
from generators.flow.solvers import integrate
from generators.flow.source import Source, make_source
from generators.recipe import FlowRecipe
from weightspace.layout import Layout
from weightspace.symmetry import Symmetry

LAYOUT = Layout(("a.weight", "a.bias"), ((2, 3), (2,)))
DIM = LAYOUT.size
SYMMETRY = Symmetry(LAYOUT, {"a.weight": ("h", None), "a.bias": ("h",)})


class Recorder(nn.Module):
    """A velocity of zero that keeps what it was asked for."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        self.asked = x, t, condition
        return torch.zeros_like(x)


def codes(batch: int = 16) -> Tensor:
    return 1 + 0.5 * torch.randn(batch, DIM, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("coupling", ["independent", "optimal_transport"])
def test_the_loss_is_a_function_of_seed_and_step(name: str, coupling: str) -> None:
    recipe = FlowRecipe(
        network=name, width=8, depth=1, dropout=0.3, noise=0.1, times="beta", coupling=coupling, condition_dropout=0.5
    )
    torch.manual_seed(0)
    network = build_network(recipe, DIM, 2, LAYOUT, SYMMETRY).train()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    data, condition, source = codes(), torch.ones(16, 2), make_source(recipe, torch.ones(DIM), 0)

    def loss(seed: int, step: int) -> float:
        return float(flow_loss(network, data, condition, source, recipe, seed, step).detach())

    torch.manual_seed(1)
    state, first = torch.get_rng_state(), [loss(0, step) for step in range(4)]
    assert torch.equal(torch.get_rng_state(), state), "the loss must leave torch's own generator alone"
    torch.manual_seed(2)
    assert [loss(0, step) for step in (3, 2, 1, 0)] == first[::-1]
    assert len({*first, loss(1, 0)}) == 5
    each, t = flow_losses(network, data, condition, source, recipe, 0, 2)
    assert float(each.detach().mean()) == pytest.approx(first[2], rel=1e-6)
    assert each.shape == t.shape == (16,)


def test_generators_of_near_seeds_and_steps_are_apart() -> None:
    drawn = [float(torch.rand((), generator=generator_at(seed, step))) for seed in range(20) for step in range(20)]
    assert len(set(drawn)) == 400
    assert abs(np.mean(drawn) - 0.5) < 4 * math.sqrt(1 / 12 / 400)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4 / math.sqrt(400)
    generator_at(2**64 - 1, 2**31)


@pytest.mark.parametrize(
    ("path", "of_data", "of_noise"), [("linear", 1.0, 1.0), ("variance_preserving", math.pi**2 / 8, math.pi**2 / 8)]
)
def test_loss_of_a_zero_network(path: str, of_data: float, of_noise: float) -> None:
    """E |target|^2 = E signal_rate^2 E x_1^2 + E noise_rate^2 scale^2, since the noise has mean zero."""
    recipe, data, scale = FlowRecipe(path=path), codes(20_000), 0.7
    each, _ = flow_losses(Recorder(), data, None, Source(torch.full((DIM,), scale)), recipe, 0, 0)
    expected = of_data * float(data.square().mean()) + of_noise * scale**2
    assert abs(float(each.mean()) - expected) < 4 * float(each.std()) / math.sqrt(len(each))


@pytest.mark.parametrize("name", NETWORKS)
def test_without_noise_an_untrained_network_loses_the_data(name: str) -> None:
    recipe, data = FlowRecipe(network=name, width=8), codes()
    network = build_network(recipe, DIM, 0, LAYOUT, SYMMETRY)
    loss = flow_loss(network, data, None, Source(torch.zeros(DIM)), recipe, 0, 0)
    torch.testing.assert_close(loss.detach(), data.square().mean())


@pytest.mark.parametrize("path", PATHS)
def test_what_the_network_sees(path: str) -> None:
    """x_t of the same (seed, step) with and without noise differ by it; without the source it is the signal."""
    network, data, source = Recorder(), codes(4000), Source(torch.zeros(DIM))
    recipe = FlowRecipe(path=path)
    flow_loss(network, data, None, source, recipe, 5, 6)
    x, t, condition = network.asked
    torch.testing.assert_close(x, PATHS[path].signal(t)[:, None] * data)
    assert condition is None
    flow_loss(network, data, None, source, dataclasses.replace(recipe, noise=0.3), 5, 6)
    noisy, again, _ = network.asked
    assert torch.equal(again, t)
    assert float((noisy - x).std()) == pytest.approx(0.3, rel=4 / math.sqrt(2 * x.numel()))  # 4 standard errors


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_conditions_are_dropped_whole(share: float) -> None:
    network, condition = Recorder(), torch.rand(4000, 3) + 1
    recipe = FlowRecipe(condition_dropout=share)
    flow_loss(network, codes(4000), condition, Source(torch.ones(DIM)), recipe, 0, 1)
    seen = network.asked[2]
    assert seen is not None
    dropped = (seen == 0).all(1)
    assert torch.equal(seen[~dropped], condition[~dropped])
    assert abs(float(dropped.float().mean()) - share) <= 4 * math.sqrt(share * (1 - share) / 4000)


def test_gradients_reach_every_parameter_through_the_loss() -> None:
    recipe = FlowRecipe(width=8)
    network = build_network(recipe, DIM, 2)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    flow_loss(network, codes(), torch.ones(16, 2), Source(torch.ones(DIM)), recipe, 0, 0).backward()
    assert [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def trained(recipe: FlowRecipe, data: Tensor, condition: Tensor | None = None, seed: int = 0) -> nn.Module:
    """A flow of this recipe, in a plain loop, with its averaged weights."""
    torch.manual_seed(seed)
    network = build_network(recipe, data.shape[1], 0 if condition is None else condition.shape[1])
    source, average = make_source(recipe, data.std(0), seed), Average(network, 0.98)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, betas=(recipe.beta1, recipe.beta2))
    for step in range(recipe.iterations):
        chosen = torch.randint(len(data), (recipe.batch_size,), generator=generator_at(seed + 1, step))
        given = None if condition is None else condition[chosen]
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 - step / recipe.iterations)
        optimizer.zero_grad()
        flow_loss(network, data[chosen], given, source, recipe, seed, step).backward()
        optimizer.step()
        average.update(network)
    average.copy_to(network)
    return network.eval()


MIXTURE = FlowRecipe(width=32, depth=2, iterations=500, batch_size=256, learning_rate=3e-3, condition_dropout=0.2)


@pytest.mark.parametrize(
    "recipe",
    [MIXTURE, dataclasses.replace(MIXTURE, path="variance_preserving", coupling="optimal_transport")],
    ids=["linear", "variance_preserving"],
)
def test_two_modes_are_learned_and_chosen_by_condition(recipe: FlowRecipe) -> None:
    """A third of the data around -2 and two thirds around 2, deviation .3; the condition says which."""
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(3000, 1, generator=generator) < 2 / 3
    data = torch.where(right, 2.0, -2.0) + 0.3 * torch.randn(3000, 1, generator=generator)
    condition = torch.cat((2 * right.float() - 1, torch.ones(3000, 1)), 1)  # a value, and that it is given
    network, source = trained(recipe, data, condition), make_source(recipe, torch.ones(1), 0)
    x_0 = source.at(np.arange(1000), 9)

    @torch.no_grad()
    def drawn(asked: list[float], guidance: float = 1.0) -> Tensor:
        given = torch.tensor(asked).expand(len(x_0), 2)
        return integrate(velocity_of(network, given, guidance), x_0)[:, 0]

    free = drawn([0.0, 0.0])
    for side, share in ((-1, 1 / 3), (1, 2 / 3)):
        mode = free[free.sign() == side]
        assert abs(len(mode) / len(free) - share) < 0.1  # 4 standard errors of 1000 draws are .06
        assert abs(float(mode.median()) - 2 * side) < 0.15
        assert float((mode - 2 * side).abs().median()) < 0.35  # .2 of the data
        asked = drawn([side, 1.0])
        assert float((asked.sign() == side).float().mean()) > 0.97
        assert float((drawn([side, 1.0], 2.0).sign() == side).float().mean()) >= 0.97
    assert torch.equal(drawn([0.0, 0.0], 3.0), free)  # guidance towards nothing
