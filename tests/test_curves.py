"""Trained curves between networks: the reference against a loop over one pair in float64, compiled code against it."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from kernels.curves.compiled import compiled
from kernels.curves.recipe import ORDER_SITE, Recipe, at, shares
from kernels.curves.reference import reference
from kernels.lanes.network import network_of
from kernels.mlp.network import mlp_of
from kernels.random import permutation
from zoo.architectures import Architecture

PAIRS, SAMPLES = 3, 40
MLP = Architecture("mlp", {"depth": 2, "width": 5, "activation": "tanh"}, (1, 8, 8), 4)
CNN = Architecture("cnn", {"channels": 4}, (1, 8, 8), 4)
NORM = Architecture("cnn", {"channels": 4, "norm": "batch", "activation": "silu"}, (1, 8, 8), 4)
GROUP = Architecture("cnn", {"style": "small_cnn_zoo", "norm": "group", "channels": 4}, (3, 8, 8), 4)
RECIPE = Recipe(epochs=3, batch_size=16, weight_decay=0.01, seed=7)
every = pytest.mark.parametrize("architecture", [MLP, CNN, NORM, GROUP], ids=lambda one: one.name)
plain = pytest.mark.parametrize("architecture", [MLP, CNN], ids=lambda one: one.name)


def pairs(architecture: Architecture, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both ends, inputs and labels."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(2, PAIRS, architecture.layout.size, dtype=torch.float64, generator=generator) / 4
    x = torch.randn(SAMPLES, *architecture.input_shape, dtype=torch.float64, generator=generator)
    y = torch.randint(4, (PAIRS, SAMPLES), generator=generator)
    return ends[0].to(dtype), ends[1].to(dtype), x.to(dtype), y


def network(architecture: Architecture) -> Any:
    module = architecture.build("meta")
    return mlp_of(module) if architecture.family == "mlp" else network_of(module, architecture.input_shape)


def one_by_hand(architecture: Architecture, start: Tensor, end: Tensor, x: Tensor, y: Tensor, recipe: Recipe) -> Tensor:
    """The middle point of one pair as usually written: torch.optim, autograd through phi(t), one module."""
    module, layout = architecture.build().double().train(), architecture.layout
    count, batch = layout.num_parameters, recipe.batch(len(x))
    middle = ((start + end) / 2)[:count].clone().requires_grad_()
    optimizer = torch.optim.SGD([middle], lr=0.0, momentum=recipe.momentum)
    orders = [order_of(recipe, epoch, len(x)) for epoch in range(recipe.epochs)]
    updates = len(x) // batch
    for step, (t, rate) in enumerate(zip(recipe.points(len(x)), recipe.rates(len(x)), strict=True)):
        rows = orders[step // updates][step % updates * batch :][:batch]
        phi = (1 - t) ** 2 * start[:count] + 2 * t * (1 - t) * middle + t**2 * end[:count]
        tensors = layout.unflatten(torch.cat([phi, phi.new_ones(layout.size - count)]))
        tensors = {name: tensors[name].detach() if "running" in name else tensors[name] for name in tensors}
        logits = functional_call(module, tensors, (x[rows],))
        optimizer.zero_grad()
        (F.cross_entropy(logits, y[rows]) + recipe.weight_decay / 2 * phi.square().sum()).backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return middle.detach()


def order_of(recipe: Recipe, epoch: int, samples: int) -> Tensor:
    return torch.from_numpy(permutation(recipe.key, ORDER_SITE, epoch, count=samples)[0])


@every
def test_the_reference_is_the_loop_over_one_pair(architecture: Architecture) -> None:
    start, end, x, y = pairs(architecture)
    theta = reference(architecture.build("meta"), start, end, x, y, RECIPE)
    count = architecture.layout.num_parameters
    for pair in range(PAIRS):
        alone = one_by_hand(architecture, start[pair], end[pair], x, y[pair], RECIPE)
        torch.testing.assert_close(theta[pair, :count], alone, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(theta[:, count:], ((start + end) / 2)[:, count:])


@plain
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_compiled_is_the_reference(architecture: Architecture, loss: str, dtype: torch.dtype, least: float) -> None:
    """Two epochs and more: rounding of float32 grows in training, to 1e-6 of a weight here."""
    start, end, x, y = pairs(architecture, dtype)
    recipe = Recipe(epochs=3, batch_size=16, weight_decay=0.01, seed=7, loss=loss)
    true = reference(architecture.build("meta"), start, end, x, y, recipe)
    found = compiled(network(architecture), start.numpy(), end.numpy(), x.numpy(), y.numpy(), recipe)
    assert found.dtype == start.numpy().dtype
    assert np.abs(found - true.numpy()).max() < least
    assert np.abs(found - ((start + end) / 2).numpy()).max() > 100 * least


@plain
def test_a_pair_does_not_depend_on_its_companions(architecture: Architecture) -> None:
    start, end, x, y = (part.numpy() for part in pairs(architecture, torch.float32))
    together = compiled(network(architecture), start, end, x, y, RECIPE)
    for pair in range(PAIRS):
        only = slice(pair, pair + 1)
        alone = compiled(network(architecture), start[only], end[only], x, y[only], RECIPE)
        assert (alone == together[only]).all()


@plain
def test_a_curve_that_diverges_is_nan_and_its_companions_are_not(architecture: Architecture) -> None:
    start, end, x, y = pairs(architecture, torch.float32)
    start[1] = 3e38  # with the bias more than float32 holds
    for theta in (
        reference(architecture.build("meta"), start, end, x, y, RECIPE).numpy(),
        compiled(network(architecture), start.numpy(), end.numpy(), x.numpy(), y.numpy(), RECIPE),
    ):
        assert np.isnan(theta[1]).all()
        assert np.isfinite(theta[[0, 2]]).all()


def test_shares_are_those_of_bernstein() -> None:
    t = np.linspace(0, 1, 101)
    assert np.abs(sum(shares(t)) - 1).max() < 1e-15
    start, middle, end = torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(at(0.0, start, middle, end), start)
    assert torch.equal(at(1.0, start, middle, end), end)
    step = 1e-6  # the curve leaves its start towards the middle point
    torch.testing.assert_close(
        (at(step, start, middle, end) - start) / step, 2 * (middle - start), rtol=1e-4, atol=1e-4
    )


def test_points_and_rates_are_as_published() -> None:
    recipe = Recipe(epochs=1000, batch_size=100, learning_rate=0.1)
    points, rates = recipe.points(250), recipe.rates(250)
    assert len(points) == len(rates) == recipe.steps(250) == 2000
    assert abs(points.mean() - 0.5) < 4 / np.sqrt(12 * 2000)
    assert abs(np.corrcoef(points[:-1], points[1:])[0, 1]) < 0.1
    assert np.allclose(rates[[0, 999, 1000, 1400, 1800, 1999]], [0.1, 0.1, 0.1, 0.0505, 0.001, 0.001])
    assert (recipe.points(250) == points).all()
    assert (Recipe(epochs=1000, batch_size=100, seed=1).points(250) != points).all()


def test_few_samples_are_one_batch() -> None:
    assert Recipe(epochs=3, batch_size=128).batch(7) == 7
    assert Recipe(epochs=3, batch_size=128).steps(7) == 3
