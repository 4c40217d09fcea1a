"""Symmetries as data: what moves where, whatever the shape of the tensors; and descriptions that lie."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import population, seeds
from weightspace.layout import Layout
from weightspace.symmetry import Group, Scale, Symmetry, SymmetryError, plain

GROUPS = {"a": Group(2), "b": Group(3), "head": Group(2), "row": Group(3, "head"), "deep": Group(2, "row")}
FIXED = {"pack": Group(2, fixed=True), "own": Group(3, "pack")}
AXES: dict[int, list[str | None]] = {
    2: [None, "a", "2"], 3: [None, "b", "1 + a"], 5: ["a + b", "b + 2"], 6: ["a b", "head row", "b 2", "pack own"],
    12: ["head row deep", "head row 2", "a b 2", "head row + head row"],
}  # fmt: skip
SIZE = {text: size for size, texts in AXES.items() for text in texts if text}


@st.composite
def symmetries(draw: st.DrawFn) -> Symmetry:
    """Tensors of up to four axes, with groups alone, in products, in sums, in heads; some twice on one tensor.

    Heads and their rows may stand on two axes of one tensor: each row then belongs to the head before it. Rows may
    stand on an axis without heads where the tensor has one axis with them.
    """
    shapes, axes = [], []
    for _ in range(draw(st.integers(1, 4))):
        texts = draw(st.lists(st.sampled_from(sorted(SIZE)), max_size=3))
        if sum(text.count("head") for text in texts) == 1 and draw(st.booleans()):
            texts.append("row")
        sizes = [3 if text == "row" else SIZE[text] for text in texts]
        unmoved = draw(st.integers(0, len(texts)))
        shapes.append((*sizes[:unmoved], draw(st.integers(1, 2)), *sizes[unmoved:]))
        axes.append((*texts[:unmoved], None, *texts[unmoved:]))
    names = tuple(f"tensor{n}" for n in range(len(shapes)))
    standing = {word for entry in axes for text in entry if text for word in text.replace("+", " ").split()}
    groups = {name: group for name, group in (GROUPS | FIXED).items() if name in standing}
    return Symmetry(Layout(names, tuple(shapes)), dict(zip(names, axes, strict=True)), groups)


@settings(max_examples=60, deadline=None)
@given(symmetries(), seeds)
def test_permute_is_the_index(symmetry: Symmetry, seed: int) -> None:
    """numpy, torch and the definition agree on every number, and nothing is lost."""
    models = 2 if symmetry.moving else 1
    weights = population(symmetry.layout, (models,))
    permutations = symmetry.random(models, seed)
    moved = symmetry.permute(weights, permutations)
    np.testing.assert_array_equal(moved, np.take_along_axis(weights, symmetry.index(permutations), 1))
    np.testing.assert_array_equal(np.sort(moved), np.sort(weights))
    np.testing.assert_array_equal(symmetry.permute(torch.from_numpy(weights), permutations).numpy(), moved)


@settings(max_examples=60, deadline=None)
@given(symmetries(), seeds)
def test_permutations_are_a_group(symmetry: Symmetry, seed: int) -> None:
    models = 2
    weights = population(symmetry.layout, (models,))
    first, then, last = (symmetry.random(models, seed + n) for n in range(3))
    twice = symmetry.permute(symmetry.permute(weights, first), then)
    if symmetry.moving:
        np.testing.assert_array_equal(symmetry.permute(weights, symmetry.compose(first, then)), twice)
        back = symmetry.permute(symmetry.permute(weights, first), symmetry.invert(first))
        np.testing.assert_array_equal(back, weights)
        same(symmetry.compose(first, symmetry.invert(first)), symmetry.identity(models))
        same(symmetry.compose(symmetry.invert(first), first), symmetry.identity(models))
        left = symmetry.compose(symmetry.compose(first, then), last)
        same(left, symmetry.compose(first, symmetry.compose(then, last)))
        second = symmetry.compose(symmetry.pick(first, [1]), symmetry.pick(then, [1]))
        same(symmetry.pick(symmetry.compose(first, then), [1]), second)
    np.testing.assert_array_equal(symmetry.permute(weights, symmetry.identity(models)), weights)


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


@settings(max_examples=60, deadline=None)
@given(symmetries())
def test_blocks_cover_the_flat_vector_once(symmetry: Symmetry) -> None:
    seen = np.zeros(symmetry.layout.size, int)
    for block in symmetry.blocks:
        places = np.array(block.offset)
        for _, size, stride in block.dims:
            places = places[..., None] + np.arange(size) * stride
        seen[places] += 1
        assert all(block in symmetry.touching(group) for group in block.groups)
    assert (seen == 1).all()


@settings(max_examples=30, deadline=None)
@given(symmetries())
def test_json_round_trip(symmetry: Symmetry) -> None:
    text = json.dumps(symmetry.to_json(), sort_keys=True)
    back = Symmetry.from_json(symmetry.layout, json.loads(text))
    assert back == symmetry
    assert (hash(back), back.fingerprint) == (hash(symmetry), symmetry.fingerprint)
    assert list(back.groups) == list(symmetry.groups)  # so that drawn permutations are the same
    assert list(back.axes) == list(symmetry.axes)


def test_permutations_differ_between_models_and_seeds() -> None:
    symmetry = plain({"w": ("a",)}, {"w": (50,)})
    drawn = symmetry.random(2, seed=1)["a"]
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn, symmetry.random(2, seed=2)["a"])
    np.testing.assert_array_equal(drawn, symmetry.random(2, seed=1)["a"])


def test_rows_inside_heads() -> None:
    """Entry [h, i] says which row of the head that comes to place h comes to place i."""
    symmetry = Symmetry(Layout(("w",), ((6,),)), {"w": ("head row",)}, {"head": Group(2), "row": Group(3, "head")})
    permutations = {"head": np.array([[1, 0]]), "row": np.array([[[2, 0, 1], [0, 1, 2]]])}
    np.testing.assert_array_equal(symmetry.permute(np.arange(6.0)[None], permutations), [[5, 3, 4, 0, 1, 2]])


def test_rows_whose_heads_stand_on_another_axis() -> None:
    """As in a grouped convolution: its weight is (groups x outputs, inputs of the group)."""
    groups = {"group": Group(2), "own": Group(2, "group")}
    symmetry = Symmetry(Layout(("w",), ((2, 2),)), {"w": ("group", "own")}, groups)
    permutations = {"group": np.array([[1, 0]]), "own": np.array([[[1, 0], [0, 1]]])}
    np.testing.assert_array_equal(symmetry.permute(np.arange(4.0)[None], permutations), [[3, 2, 0, 1]])


def test_torch_keeps_gradients() -> None:
    symmetry = plain({"w": ("a", "b")}, {"w": (3, 4), "rest": (2,)})
    weights = torch.randn(2, 14, requires_grad=True)
    symmetry.permute(weights, symmetry.random(2)).mul(torch.arange(14.0)).sum().backward()
    assert weights.grad is not None
    np.testing.assert_array_equal(np.sort(weights.grad.numpy()), np.broadcast_to(np.arange(14.0), (2, 14)))


# --- scales

SCALED = Symmetry(
    Layout(("w", "b", "v"), ((3, 2), (3,), (2, 12))),
    {"w": ("a", None), "b": ("a",), "v": (None, "a 4")},
    scales=(Scale("a", "positive", (("w", 0, 1), ("b", 0, 1), ("v", 1, -1))),),
)


def test_scales_multiply_what_comes_in_and_divide_what_goes_out() -> None:
    weights = np.ones((1, SCALED.layout.size))
    out = SCALED.layout.unflatten(SCALED.scale(weights, {"a": np.array([[1.0, 2.0, 4.0]])}))
    np.testing.assert_array_equal(out["w"][0], [[1, 1], [2, 2], [4, 4]])
    np.testing.assert_array_equal(out["b"][0], [1, 2, 4])
    np.testing.assert_array_equal(out["v"][0], np.broadcast_to([1] * 4 + [0.5] * 4 + [0.25] * 4, (2, 12)))
    assert (weights == 1).all(), "the weights given stay"


@given(st.lists(st.integers(-20, 20), min_size=6, max_size=6), seeds)
def test_powers_of_two_are_exactly_reversible(exponents: list[int], seed: int) -> None:
    weights = np.random.default_rng(seed).standard_normal((2, SCALED.layout.size)).astype(np.float32)
    scales = {"a": 2.0 ** np.reshape(exponents, (2, 3))}
    there = SCALED.scale(weights, scales)
    np.testing.assert_array_equal(SCALED.scale(there, scales, inverse=True), weights)
    torch_there = SCALED.scale(torch.from_numpy(weights), scales)
    np.testing.assert_array_equal(torch_there.numpy(), there)


def test_scales_of_rows_inside_heads() -> None:
    groups = {"head": Group(2), "row": Group(2, "head")}
    symmetry = Symmetry(
        Layout(("w",), ((5,),)), {"w": ("head row + 1",)}, groups, (Scale("row", "sign", (("w", 0, 1),)),)
    )
    signs = np.array([[[1.0, -1.0], [-1.0, 1.0]]])
    np.testing.assert_array_equal(symmetry.scale(np.arange(1.0, 6)[None], {"row": signs}), [[1, -2, -3, 4, 5]])


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"b": np.ones((1, 3))}, "has no scale symmetry"),
        ({"a": np.ones((2, 3))}, r"must be an array of numbers \(1, 3\)"),
        ({"a": [[1.0, 1.0, 1.0]]}, "must be an array"),
        ({"a": np.array([["1", "1", "1"]])}, "must be an array"),
        ({"a": np.array([[1.0, np.nan, 1.0]])}, "above 0"),
        ({"a": np.array([[1.0, np.inf, 1.0]])}, "above 0"),
        ({"a": np.array([[1.0, 0.0, 1.0]])}, "above 0"),
        ({"a": np.array([[1.0, -1.0, 1.0]])}, "above 0"),
    ],
)
def test_scales_that_do_not_fit(scales: Any, message: str) -> None:
    with pytest.raises(SymmetryError, match=message):
        SCALED.scale(np.ones((1, SCALED.layout.size)), scales)


def test_signs_are_one_or_minus_one() -> None:
    symmetry = dataclasses.replace(SCALED, scales=(dataclasses.replace(SCALED.scales[0], kind="sign"),))
    weights = np.ones((1, symmetry.layout.size))
    flipped = symmetry.scale(weights, {"a": np.array([[1.0, -1.0, 1.0]])})
    assert (flipped == -1).sum() == 2 + 1 + 2 * 4
    with pytest.raises(SymmetryError, match=r"must be \+-1"):
        symmetry.scale(weights, {"a": np.array([[1.0, 2.0, 1.0]])})


# --- what does not fit

TWO = plain({"w": ("a", "b")}, {"w": (3, 2)})
GOOD = {"a": np.array([[0, 2, 1]]), "b": np.array([[1, 0]])}


@pytest.mark.parametrize(
    ("permutations", "message"),
    [
        ({"a": GOOD["a"]}, "missing 'b'"),
        (GOOD | {"c": GOOD["b"]}, "unknown 'c'"),
        (GOOD | {"b": [[1, 0]]}, "numpy array of integers"),
        (GOOD | {"b": np.array([[1.0, 0.0]])}, "numpy array of integers"),
        (GOOD | {"b": np.array(0)}, r"must be \(models, 2\)"),
        (GOOD | {"b": np.array([[1, 0], [1, 0]])}, r"must be \(models, 2\)"),
        (GOOD | {"b": np.array([[1, 0, 2]])}, r"must be \(models, 2\)"),
        (GOOD | {"b": np.array([[1, 1]])}, "no permutation"),
        (GOOD | {"b": np.array([[-1, 0]])}, "no permutation"),
        (GOOD | {"b": np.array([[2, 1]], np.uint8)}, "no permutation"),
    ],
)
def test_permutations_that_do_not_fit(permutations: Any, message: str) -> None:
    assert TWO.check(GOOD) == 1
    for call in (TWO.check, TWO.invert, lambda p: TWO.permute(np.ones((1, 6)), p), lambda p: TWO.compose(p, GOOD)):
        with pytest.raises(SymmetryError, match=message):
            call(permutations)


def test_weights_that_do_not_fit() -> None:
    for shape in ((6,), (1, 5), (1, 6, 1)):
        with pytest.raises(ValueError, match=r"weights must be \(models, 6\)"):
            TWO.permute(np.ones(shape), GOOD)
    with pytest.raises(SymmetryError, match="must be"):
        TWO.permute(np.ones((2, 6)), GOOD)


def test_a_symmetry_of_nothing() -> None:
    empty = Symmetry(Layout(("w",), ((2,),)), {})
    weights = np.ones((3, 2))
    assert empty.moving == {}
    np.testing.assert_array_equal(empty.permute(weights, {}), weights)
    assert empty.permute(weights, {}) is not weights
    with pytest.raises(SymmetryError, match="how many models"):
        empty.check({})
    with pytest.raises(SymmetryError, match="unknown 'a'"):
        empty.permute(weights, {"a": np.zeros((3, 1), int)})


Change = Callable[[dict[str, Any]], Any]


def _set(*path: Any) -> Change:
    """Put the last of these at the place that the others name."""

    def change(content: dict[str, Any]) -> None:
        at: Any = content
        for key in path[:-2]:
            at = at[key]
        at[path[-2]] = path[-1]

    return change


HOSTILE: dict[str, Change] = {
    "no axes": lambda c: c.pop("axes"),
    "axes a list": _set("axes", []),
    "axes of an unknown tensor": _set("axes", "zzz", ["head row"]),
    "too few axes": _set("axes", "w", ["head row"]),
    "too many axes": _set("axes", "w", ["head row", None, None]),
    "an axis a number": _set("axes", "w", [6, None]),
    "an axis a list": _set("axes", "w", [["head"], None]),
    "an axis of another length": _set("axes", "w", ["head", None]),
    "an empty part": _set("axes", "w", ["head row +", None]),
    "an empty expression": _set("axes", "w", ["", None]),
    "thousands of digits": _set("axes", "w", ["9" * 5000, None]),
    "a negative number": _set("axes", "w", ["head row + -3", None]),
    "an unknown group": _set("axes", "w", ["head column", None]),
    "a child without its parent": _set("axes", "b", ["row 2"]),
    "a parent twice": _set("axes", "w", ["head 3", "head row"]),
    "thousands of factors": _set("axes", "w", ["head row" + " 1" * 10_000, None]),
    "no groups": lambda c: c.pop("groups"),
    "a group a list": _set("groups", "head", [2]),
    "a name with a plus": _set("groups", "a+b", {"size": 2, "parent": None, "fixed": False}),
    "a size of a half": _set("groups", "head", "size", 1.5),
    "a size of nothing": _set("groups", "head", "size", 0),
    "a size of true": _set("groups", "head", "size", True),
    "a size of everything": _set("groups", "head", "size", 2**80),
    "fixed a word": _set("groups", "head", "fixed", "no"),
    "a parent of itself": _set("groups", "row", "parent", "row"),
    "parents in a circle": _set("groups", "head", "parent", "row"),
    "a parent that is not there": _set("groups", "row", "parent", "zzz"),
    "a parent a list": _set("groups", "row", "parent", []),
    "scales a number": _set("scales", 3),
    "a scale of an unknown group": _set("scales", 0, "group", "zzz"),
    "a scale of a list": _set("scales", 0, "group", []),
    "a scale of another kind": _set("scales", 0, "kind", "complex"),
    "a scale twice": lambda c: c["scales"].append(c["scales"][0]),
    "an axis scaled twice": lambda c: c["scales"][0]["tensors"].append(c["scales"][0]["tensors"][0]),
    "a scale of an unknown tensor": _set("scales", 0, "tensors", 0, 0, "zzz"),
    "a scale of an axis that is not there": _set("scales", 0, "tensors", 0, 1, 7),
    "a scale of an axis before the first": _set("scales", 0, "tensors", 0, 1, -1),
    "a scale of an axis without the group": _set("scales", 0, "tensors", 0, 1, 1),
    "a scale of half an axis": _set("scales", 0, "tensors", 0, 1, 0.5),
    "a scale to the power of two": _set("scales", 0, "tensors", 0, 2, 2),
    "a scale to the power of true": _set("scales", 0, "tensors", 0, 2, True),
    "a scale of two numbers": _set("scales", 0, "tensors", 0, [0, 1]),
}
HONEST = Symmetry(
    Layout(("w", "b"), ((6, 6), (6,))),
    {"w": ("head row", None), "b": ("head row",)},
    {"head": Group(2), "row": Group(3, "head")},
    (Scale("row", "positive", (("w", 0, 1), ("b", 0, 1))),),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_descriptions_that_lie(name: str) -> None:
    content = copy.deepcopy(HONEST.to_json())
    assert Symmetry.from_json(HONEST.layout, content) == HONEST
    HOSTILE[name](content)
    with pytest.raises(SymmetryError):
        Symmetry.from_json(HONEST.layout, content)


@pytest.mark.parametrize("content", [None, [], "axes", 3, {}])
def test_what_is_no_description(content: Any) -> None:
    with pytest.raises(SymmetryError, match="axes, groups and scales"):
        Symmetry.from_json(HONEST.layout, content)


def test_groups_that_stand_nowhere_are_left_out() -> None:
    content = HONEST.to_json()
    content["groups"]["idle"] = {"size": 2**60, "parent": None, "fixed": False}
    assert Symmetry.from_json(HONEST.layout, content) == HONEST


def test_many_parts_are_refused_before_they_are_made() -> None:
    text = " + ".join(["1"] * 1000)
    with pytest.raises(SymmetryError, match="more than 65536 blocks"):
        Symmetry(Layout(("w",), ((1000, 1000),)), {"w": (text, text)})


def test_long_lines_of_parents_are_refused() -> None:
    names = [f"g{n}" for n in range(40)]
    groups = {name: Group(1, parent) for name, parent in zip(names, [None, *names], strict=False)}
    with pytest.raises(SymmetryError, match="more than 32"):
        Symmetry(Layout(("w",), ((1,),)), {"w": (" ".join(names),)}, groups)
