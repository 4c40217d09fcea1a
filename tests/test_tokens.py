"""Layer tokens: exact both ways for any layout, differentiable, and units are what they are made of."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import batches, layouts, population, seeds
from weightspace.layout import Layout
from weightspace.tokens import Tokens

MLP = Layout(
    ("norm.weight", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "norm.bias", "temperature"),
    ((3,), (5, 3), (5,), (2, 5), (2,), (3,), ()),
)


@given(layouts(), st.integers(1, 9), st.sampled_from(["parameter", "buffer", "all"]), batches, seeds)
def test_round_trip_of_any_layout(layout: Layout, width: int, roles: str, batch: list[int], seed: int) -> None:
    tokens = Tokens.of(layout, width, roles)
    chosen = [n for n, role in zip(layout.names, layout.roles, strict=True) if roles in ("all", role)]
    weights = population(layout, tuple(batch), seed)[..., layout.indices(chosen)] + 1  # no weight is 0, as padding is
    pieces = tokens.split(weights)
    assert pieces.shape == (*batch, len(tokens), width)
    assert pieces.dtype == weights.dtype
    np.testing.assert_array_equal(pieces != 0, np.broadcast_to(tokens.mask, pieces.shape))
    np.testing.assert_array_equal(tokens.join(pieces), weights)
    in_torch = tokens.split(torch.from_numpy(weights))
    np.testing.assert_array_equal(in_torch.numpy(), pieces)
    np.testing.assert_array_equal(tokens.join(in_torch).numpy(), weights)


@given(layouts(), st.integers(1, 9))
def test_tokens_of_a_layer_follow_each_other(layout: Layout, width: int) -> None:
    tokens = Tokens.of(layout, width, "all")
    assert tokens.places.tolist() == sorted(tokens.places.tolist())
    assert len({tuple(place) for place in tokens.places.tolist()}) == len(tokens)
    covered = [number for span in tokens.spans for number in range(len(tokens))[span]]
    assert covered == list(range(len(tokens)))
    for layer, span in enumerate(tokens.spans):
        assert set(tokens.places[span, 0]) == {layer}


def test_a_token_is_a_row_with_its_bias() -> None:
    tokens = Tokens.of(MLP, 4)
    assert tokens.layers == (
        ("norm.weight",), ("fc1.weight", "fc1.bias"), ("fc2.weight", "fc2.bias"), ("norm.bias",), ("temperature",)
    )  # fmt: skip
    weights = population(MLP, (2,)) + 1
    pieces, of = tokens.split(weights), MLP.unflatten(weights)
    first = pieces[:, tokens.spans[1]]  # rows of 3 and a bias: a token each
    np.testing.assert_array_equal(first, np.concatenate((of["fc1.weight"], of["fc1.bias"][..., None]), -1))
    second = pieces[:, tokens.spans[2]].reshape(2, 2, 8)  # rows of 5 and a bias: two tokens each
    np.testing.assert_array_equal(second[..., :5], of["fc2.weight"])
    np.testing.assert_array_equal(second[..., 5], of["fc2.bias"])
    assert not second[..., 6:].any()
    assert tokens.places[tokens.spans[2]].tolist() == [[2, 0, 0], [2, 0, 1], [2, 1, 0], [2, 1, 1]]
    np.testing.assert_array_equal(pieces[:, -1, 0], of["temperature"])
    finer = Tokens.of(MLP, 2)  # three tokens for each of the two units
    assert finer.places[finer.spans[2], 1:].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


@pytest.mark.parametrize(
    ("names", "shapes", "layers"),
    [
        (("in_proj_weight", "in_proj_bias"), ((6, 2), (6,)), 1),  # as attention calls them
        (("a.bias", "a.weight"), ((2,), (2, 3)), 1),  # whatever the order
        (("a.weight", "a.bias"), ((2, 3), (3,)), 2),  # a bias of another length is none
        (("a.weight", "b.bias"), ((2, 3), (2,)), 2),
        (("weight", "bias"), ((2, 3, 2, 2), (2,)), 1),
        (("a.weight", "a.bias"), ((0, 3), (0,)), 0),
    ],
)
def test_which_bias_goes_with_which_weight(names: tuple[str, ...], shapes: tuple[tuple[int, ...]], layers: int) -> None:
    assert len(Tokens.of(Layout(names, shapes), 4).layers) == layers


@pytest.mark.parametrize("width", [2, 4, 16])
def test_permuting_units_permutes_tokens(width: int) -> None:
    tokens, rng = Tokens.of(MLP, width), np.random.default_rng(0)
    weights, order = population(MLP, (3,)), rng.permutation(5)
    tensors = dict(MLP.unflatten(weights))
    for name in ("fc1.weight", "fc1.bias"):
        tensors[name] = tensors[name][:, order]
    before, after = tokens.split(weights), tokens.split(MLP.flatten(tensors))
    span = tokens.spans[1]
    by_unit = before[:, span].reshape(3, 5, -1, width)
    np.testing.assert_array_equal(after[:, span].reshape(by_unit.shape), by_unit[:, order])
    others = np.r_[: span.start, span.stop : len(tokens)]
    np.testing.assert_array_equal(after[:, others], before[:, others])


def test_derivatives() -> None:
    tokens = Tokens.of(MLP, 4)
    weights = torch.randn(2, MLP.size, dtype=torch.float64, requires_grad=True)
    pieces = torch.randn(2, len(tokens), 4, dtype=torch.float64, requires_grad=True)
    for function, value in ((tokens.split, weights), (tokens.join, pieces)):
        assert torch.autograd.gradcheck(function, (value,))
        assert torch.autograd.gradgradcheck(function, (value,))


@pytest.mark.parametrize(("width", "roles", "said"), [(0, "parameter", "1 or more"), (4, "norms", "buffer, all")])
def test_impossible_cuts(width: int, roles: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Tokens.of(MLP, width, roles)


def test_wrong_shapes() -> None:
    tokens = Tokens.of(MLP, 4)
    with pytest.raises(ValueError, match=f"must hold {MLP.size} weights, got 7"):
        tokens.split(np.zeros((2, 7)))
    with pytest.raises(ValueError, match=r"\(12, 4\) \(tokens, width\), got \(12, 3\)"):
        tokens.join(np.zeros((2, 12, 3)))
