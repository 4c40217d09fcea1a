"""Hidden units as tokens: every weight in the token of each unit it belongs to, and back."""

import numpy as np
import pytest
import torch

from tests.hand_symmetries import flattened, heads, mlp
from weightspace.layout import Layout
from weightspace.symmetry import Symmetry
from weightspace.units import REST, Units
from zoo.architectures import Architecture
from zoo.symmetries import symmetry_of

MLP = Architecture("mlp", {"depth": 2, "width": 5}, (3,), 4)
CNN = Architecture("cnn", {"norm": "batch", "channels": 4}, (1, 8, 8), 3)


@pytest.mark.parametrize("architecture", [MLP, CNN], ids=str)
def test_join_is_the_inverse_of_split(architecture: Architecture) -> None:
    units = Units.of(symmetry_of(architecture))
    weights = torch.randn(3, units.size, dtype=torch.float64)
    torch.testing.assert_close(units.join(units.split(weights)), weights, rtol=0, atol=1e-15)
    assert units.size == architecture.layout.num_parameters
    assert len(units) == sum(len(tokens[0]) for tokens in units.split(weights).values())


def test_tokens_are_rows_biases_and_columns() -> None:
    layout = MLP.layout
    weights = torch.arange(layout.size, dtype=torch.float32)[None]
    tokens = Units.of(symmetry_of(MLP)).split(weights)
    for unit in range(5):
        own = [layout.tensor(weights, "hidden0.weight")[0, unit], layout.tensor(weights, "hidden0.bias")[0, unit, None]]
        own.append(layout.tensor(weights, "hidden1.weight")[0, :, unit])
        assert sorted(tokens["hidden0"][0, unit].tolist()) == sorted(torch.cat(own).tolist())
    assert tokens[REST][0, 0].tolist() == layout.tensor(weights, "output.bias")[0].tolist()


@pytest.mark.parametrize("architecture", [MLP, CNN], ids=str)
def test_permuting_units_permutes_tokens(architecture: Architecture) -> None:
    """Of a group, tokens move with their units; the numbers inside of them by what happens to the other groups."""
    symmetry = symmetry_of(architecture)
    units, layout = Units.of(symmetry), architecture.layout
    weights = np.random.default_rng(0).standard_normal((1, layout.size)).astype(np.float32)
    order = symmetry.random(1, seed=1)
    kept = layout.indices(n for n, role in zip(layout.names, layout.roles, strict=True) if role == "parameter")
    before, after = (
        units.split(torch.from_numpy(w[:, kept])) for w in (weights, np.asarray(symmetry.permute(weights, order)))
    )
    for name in symmetry.moving:
        moved = before[name][0, order[name][0].tolist()]
        assert torch.equal(moved.sort(1).values, after[name][0].sort(1).values)


def test_gradients_flow_to_every_number() -> None:
    units = Units.of(symmetry_of(MLP))
    x = torch.randn(2, units.size, dtype=torch.float64, requires_grad=True)
    scales = {name: torch.rand(index.shape, dtype=torch.float64) + 0.5 for name, index in units.index.items()}
    assert torch.autograd.gradcheck(
        lambda x: units.join({n: v.tanh() * scales[n] for n, v in units.split(x).items()}), x
    )


def test_what_two_units_say_of_a_weight_is_averaged() -> None:
    units = Units.of(symmetry_of(MLP))
    said = {
        name: torch.full((1, *index.shape), float(place)) for place, (name, index) in enumerate(units.index.items())
    }
    joined = units.join(said)
    layout = MLP.layout  # parameters alone, so that places agree
    assert layout.tensor(joined, "hidden1.weight").unique().tolist() == [0.5]
    assert layout.tensor(joined, "output.weight").unique().tolist() == [1.0]
    assert layout.tensor(joined, "hidden0.weight").unique().tolist() == [0.0]


@pytest.mark.parametrize("symmetry", [mlp(3, 4, 4, 2), flattened(), heads()], ids=["mlp", "flattened", "heads"])
def test_every_parameter_is_in_a_token(symmetry: Symmetry) -> None:
    """Where a channel is several inputs, and where groups are inside of others, too."""
    units = Units.of(symmetry)
    weights = torch.randn(2, units.size)
    torch.testing.assert_close(units.join(units.split(weights)), weights)
    assert (units.counts >= 1).all()


def test_a_head_is_one_token_with_all_its_rows() -> None:
    symmetry = heads(3, 2)
    inside = {name for name in symmetry.groups if symmetry.ancestors(name)}
    assert inside
    assert not inside & set(Units.of(symmetry).index)


def test_bad_input() -> None:
    layout = Layout(("w",), ((2, 3),))
    with pytest.raises(ValueError, match="no hidden units"):
        Units.of(Symmetry(layout, {}))
    with pytest.raises(ValueError, match=r"must be \(batch, 74\), got \(1, 3\)"):
        Units.of(symmetry_of(MLP)).split(torch.zeros(1, 3))
