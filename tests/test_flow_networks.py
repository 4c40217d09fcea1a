"""Velocity networks: zero at first, ignoring nothing, and the published one layer by layer."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from catalog.errors import InvalidSpecError
from generators.flow.networks import MLP, NETWORKS, build_network
from generators.flow.transformer import TokenBlock
from generators.recipe import CHOICES, FlowRecipe
from weightspace.layout import Layout
from weightspace.symmetry import Symmetry

LAYOUT = Layout(
    ("a.weight", "a.bias", "norm.weight", "norm.mean", "b.weight", "b.bias"),
    ((4, 3), (4,), (4,), (4,), (2, 4), (2,)),
    roles=("parameter", "parameter", "parameter", "buffer", "parameter", "parameter"),
)
OF_UNITS = ("a.bias", "norm.weight", "norm.mean")
AXES = {"a.weight": ("h", None), "b.weight": (None, "h"), **dict.fromkeys(OF_UNITS, ("h",))}
SYMMETRY = Symmetry(LAYOUT, AXES)
DIM, GIVEN = LAYOUT.num_parameters, 3


def built(name: str, condition_width: int = GIVEN, seed: int = 0, shaken: bool = True, **changes: object) -> nn.Module:
    """A small network; shaken, no parameter of it is 0, as after some training."""
    recipe = dataclasses.replace(FlowRecipe(network=name, width=16, depth=2, token=5), **changes)  # type: ignore[arg-type]
    torch.manual_seed(seed)
    network = build_network(recipe, DIM, condition_width, LAYOUT, SYMMETRY)
    if shaken:
        for parameter in network.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return network.eval()


def inputs(batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, condition = (torch.randn(batch, width, generator=generator) for width in (DIM, GIVEN))
    return x, torch.rand(batch, generator=generator), condition


def test_every_choice_of_a_recipe_is_there() -> None:
    assert set(NETWORKS) == set(CHOICES["network"])


@pytest.mark.parametrize("name", NETWORKS)
def test_zero_at_first(name: str) -> None:
    x, t, condition = inputs()
    network = built(name, shaken=False)
    assert torch.equal(network(x, t, condition), torch.zeros_like(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_it_learns_from_zero(name: str) -> None:
    """Zero at first is no dead end: after a few steps every parameter has moved."""
    network = built(name, shaken=False)
    before = {key: value.clone() for key, value in network.named_parameters()}
    optimizer, (x, t, condition) = torch.optim.SGD(network.parameters(), 0.5), inputs(32)
    for _ in range(4):
        optimizer.zero_grad()
        (network(x, t, condition) - x * t[:, None] - 1).square().mean().backward()
        optimizer.step()
    assert [key for key, value in network.named_parameters() if torch.equal(value, before[key])] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_ignored(name: str) -> None:
    """Every output depends on every number of x, t and condition; and samples do not depend on each other."""
    network, (x, t, condition) = built(name), inputs()
    for jacobian in torch.autograd.functional.jacobian(network, (x, t, condition)):
        of_input = jacobian.reshape(4, DIM, 4, -1)
        own = torch.stack([of_input[i, :, i] for i in range(4)])
        assert bool((own != 0).all())
        assert int((of_input != 0).sum()) == own.numel()


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_of_a_batch_are_apart(name: str) -> None:
    network, (x, t, condition) = built(name), inputs()
    together = network(x, t, condition)
    for i in range(len(x)):
        alone = network(x[i : i + 1], t[i : i + 1], condition[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)  # float32 adds up in another order


@pytest.mark.parametrize("name", NETWORKS)
def test_no_condition_is_one_of_zeros(name: str) -> None:
    network, (x, t, condition) = built(name), inputs()
    assert torch.equal(network(x, t, None), network(x, t, torch.zeros_like(condition)))
    assert not torch.allclose(network(x, t, condition), network(x, t, None))
    assert built(name, condition_width=0)(x, t, None).shape == x.shape


@pytest.mark.parametrize("name", NETWORKS)
def test_initialisation_is_of_the_seed(name: str) -> None:
    first, same, other = (built(name, seed=seed, shaken=False) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_stored_network_is_the_same(name: str) -> None:
    network, (x, t, condition) = built(name), inputs()
    again = built(name, seed=5)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x, t, condition), network(x, t, condition))


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_for_training_alone(name: str) -> None:
    network, (x, t, condition) = built(name, dropout=0.5), inputs()
    assert torch.equal(network(x, t, condition), network(x, t, condition))
    network.train()
    assert not torch.equal(network(x, t, condition), network(x, t, condition))
    plain = built(name).train()
    assert torch.equal(plain(x, t, condition), plain(x, t, condition))


def test_the_published_network_layer_by_layer() -> None:
    """Built again from the page, with the same weights."""
    h, (x, t, condition) = 16, inputs()
    network = built("mlp", dropout=0.1)
    time = nn.Sequential(nn.Linear(1, 64), nn.GELU(), nn.Linear(64, 64))
    net = nn.Sequential(
        *(nn.Linear(DIM + 64 + GIVEN, h), nn.LayerNorm(h), nn.GELU(), nn.Dropout(0.1)),
        *(nn.Linear(h, h // 2), nn.LayerNorm(h // 2), nn.GELU(), nn.Dropout(0.1)),
        *(nn.Linear(h // 2, h), nn.LayerNorm(h), nn.GELU()),
        nn.Linear(h, DIM),
    ).eval()
    assert isinstance(network, MLP)
    with torch.no_grad():
        ours = [
            torch.cat((network.first.weight, network.beside.weight), 1),
            network.first.bias,
            *network.layers.parameters(),
        ]
        for parameter, value in zip(net.parameters(), ours, strict=True):
            parameter.copy_(value)
        for parameter, value in zip(time.parameters(), network.time.parameters(), strict=True):
            parameter.copy_(value)
        page = net(torch.cat((x, time(t[:, None]), condition), 1))
        kinds = [[type(module).__name__ for module in layers] for layers in (network.layers, net)]
        assert kinds[0] == kinds[1][1:]  # dropout on the first two hidden layers alone
        torch.testing.assert_close(network(x, t, condition), page, rtol=1e-4, atol=1e-5)


def test_the_first_layer_begins_as_one() -> None:
    """It is held in two parts; both are drawn as torch draws a layer over x, time and condition together."""
    torch.manual_seed(0)
    network, bound = MLP(900, 64), 1 / math.sqrt(900 + 64)
    for weight in (network.first.weight, network.beside.weight, network.first.bias):
        assert float(weight.detach().abs().max()) <= bound
    for weight in (network.first.weight, network.beside.weight):
        assert float(weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    block, x = TokenBlock(16, 4, 0.0).eval(), torch.randn(2, 7, 16)
    peer = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    peer.load_state_dict(
        {
            "in_proj_weight": block.queries.weight.detach(),
            "in_proj_bias": block.queries.bias.detach(),
            "out_proj.weight": block.mixed.weight.detach(),
            "out_proj.bias": block.mixed.bias.detach(),
        }
    )
    torch.testing.assert_close(block._attention(x), peer(x, x, x)[0])


@pytest.mark.parametrize("layout", [None, Layout(("a",), ((DIM + 1,),))])
def test_a_transformer_needs_the_layout_of_its_codes(layout: Layout | None) -> None:
    with pytest.raises(InvalidSpecError, match=f"over {DIM} weights needs the layout"):
        build_network(FlowRecipe(network="transformer", width=16), DIM, 0, layout)


def test_a_transformer_grows_slowly() -> None:
    """Twice as many units of twice as many inputs each: four times the weights, far from as many more parameters."""
    counts = []
    for units in (64, 128):
        layout = Layout(("a.weight", "b.weight"), ((units, units), (units, units)))
        network = build_network(FlowRecipe(network="transformer", width=32, token=64), layout.size, 0, layout)
        counts.append(sum(parameter.numel() for parameter in network.parameters()))
    assert counts[1] < 1.3 * counts[0]
