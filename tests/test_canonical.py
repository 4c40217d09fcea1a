from __future__ import annotations

import itertools
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from tests.hand_symmetries import drawn, flattened, heads, mlp, shuffled
from weightspace import duplicates
from weightspace.canonical import canonical_hash, canonical_order, unit_colours
from weightspace.duplicates import Duplicates, find_duplicates, invariants
from weightspace.layout import Layout
from weightspace.rebasin.alignment import AlignmentError
from weightspace.symmetry import Group, Symmetry, plain
from zoo.plan import make_plan
from zoo.spec import ZooSpec
from zoo.symmetries import symmetry_of
from zoo.train import train

NETWORKS = {
    "mlp": mlp(6, 10, 10, 4),
    "deep": mlp(3, 8, 8, 8, 8, 8, 2),
    "flattened": flattened(6, 3, 8),
    "heads": heads(3, 4),
    "fixed heads": Symmetry(
        Layout(("q", "k", "scalar"), ((6, 4), (6, 4), ())),
        {"q": ("heads qk", None), "k": ("heads qk", None)},
        {"heads": Group(2, fixed=True), "qk": Group(3, "heads")},
    ),
    "recurrent": plain({"in": ("h", None), "step": ("h", "h")}, {"in": (5, 3), "step": (5, 5)}),
    "nothing moves": plain({}, {"w": (3, 2)}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_orders_of_units_change_no_hash_and_any_number_does(name: str) -> None:
    symmetry = NETWORKS[name]
    weights = drawn(symmetry, 6)
    found = canonical_hash(symmetry, weights)
    assert len(set(found.tolist())) == 6
    assert {len(digest) for digest in found.tolist()} == {16}
    for seed in range(3):
        moved = symmetry.permute(weights, symmetry.random(6, seed))
        np.testing.assert_array_equal(canonical_hash(symmetry, moved), found)
    changed = np.repeat(weights[:1], symmetry.layout.size, 0)
    np.fill_diagonal(changed, np.nextafter(weights[0], np.float32(9)))
    assert len({found[0], *canonical_hash(symmetry, changed).tolist()}) == 1 + symmetry.layout.size


def test_two_numbers_that_change_places_change_the_hash() -> None:
    symmetry = NETWORKS["mlp"]
    weights = drawn(symmetry, 1)
    swapped, generator = np.repeat(weights, 200, 0), np.random.default_rng(0)
    for row in swapped:
        places = generator.choice(symmetry.layout.size, 2, replace=False)
        row[places] = row[places[::-1]]
    assert canonical_hash(symmetry, weights)[0] not in canonical_hash(symmetry, swapped)


def test_alone_or_among_many_torch_or_numpy_and_minus_zero() -> None:
    symmetry = NETWORKS["mlp"]
    weights = drawn(symmetry, 40)
    found = canonical_hash(symmetry, weights)
    np.testing.assert_array_equal(canonical_hash(symmetry, torch.from_numpy(weights)), found)
    assert canonical_hash(symmetry, weights[33:34])[0] == found[33]
    weights[0, :50] = 0
    zero = canonical_hash(symmetry, weights[:1])
    weights[0, :50] = -0.0
    assert canonical_hash(symmetry, weights[:1])[0] == zero[0] != found[0]
    assert canonical_hash(symmetry, weights[:1].astype(np.float64))[0] != zero[0]
    assert canonical_hash(symmetry, weights[:0]).shape == (0,)


@pytest.mark.parametrize("name", ["mlp", "deep", "flattened", "heads", "recurrent"])
def test_networks_that_differ_in_order_become_equal(name: str) -> None:
    symmetry = NETWORKS[name]
    weights = shuffled(symmetry, drawn(symmetry, 1)[0], 5)
    canonical = symmetry.permute(weights, canonical_order(symmetry, weights))
    assert (canonical == canonical[:1]).all()
    assert not (weights == weights[:1]).all()


def test_colours_move_with_their_units_and_tell_them_apart() -> None:
    symmetry = NETWORKS["mlp"]
    weights = drawn(symmetry, 3)
    tensors = symmetry.layout.unflatten(weights)
    for name, axis in (("0.weight", 1), ("0.bias", 1), ("1.weight", 2)):  # unit 4 of the first layer is a copy of 2
        np.moveaxis(tensors[name], axis, 1)[:, 4] = np.moveaxis(tensors[name], axis, 1)[:, 2]
    colours, moves = unit_colours(symmetry, weights), symmetry.random(3)
    after = unit_colours(symmetry, symmetry.permute(weights, moves))
    for name, colour in colours.items():
        np.testing.assert_array_equal(after[name], np.take_along_axis(colour, moves[name], 1))
    assert [len(set(row)) for row in colours["h0"].tolist()] == [9, 9, 9]
    assert [len(set(row)) for row in colours["h1"].tolist()] == [10, 10, 10]
    assert (colours["h0"][:, 4] == colours["h0"][:, 2]).all()


def planted(symmetry: Symmetry) -> tuple[np.ndarray, np.ndarray]:
    """Nine independent networks; then a permuted copy of 1, two noisy ones of 2, and a scaled one of 3."""
    weights = drawn(symmetry, 9)
    near = shuffled(symmetry, weights[2], 2, seed=4, noise=[0.02, 0.02])
    scales = {
        s.group: np.random.default_rng(5).uniform(0.3, 3, (1, *symmetry.permutation_shape(s.group)))
        for s in symmetry.scales
    }
    scaled = shuffled(symmetry, symmetry.scale(weights[3:4], scales)[0], 1, seed=6)
    return weights, np.concatenate([weights, shuffled(symmetry, weights[1], 1, seed=3), near, scaled])


@pytest.mark.parametrize("name", ["mlp", "flattened"])
def test_planted_copies_are_found_and_nothing_else(name: str) -> None:
    symmetry = NETWORKS[name]
    alone, weights = planted(symmetry)
    assert find_duplicates(symmetry, alone) == []
    exact, near = find_duplicates(symmetry, weights)
    assert (exact, (near.models, near.kind)) == (Duplicates((1, 9), "exact", 0.0), ((2, 10, 11), "near"))
    assert 0.01 < near.distance < 0.04  # noise of 0.02 on normal weights, twice for a pair of copies
    assert find_duplicates(symmetry, weights, near=None) == [exact]
    found = find_duplicates(symmetry, weights, scale=True)
    assert [(group.models, group.kind) for group in found] == [
        ((1, 9), "exact"), ((2, 10, 11), "near"), ((3, 12), "near")
    ]  # fmt: skip
    assert found[2].distance < 1e-5  # float32 rounding


def test_near_groups_hold_all_members_of_exact_ones() -> None:
    symmetry = NETWORKS["mlp"]
    one = drawn(symmetry, 1)[0]
    weights = np.concatenate([shuffled(symmetry, one, 2), shuffled(symmetry, one, 1, noise=[0.05]), -one[None]])
    found = find_duplicates(symmetry, weights)
    assert [(group.models, group.kind) for group in found] == [((0, 1), "exact"), ((0, 1, 2), "near")]


def test_a_collision_is_not_reported() -> None:
    symmetry = NETWORKS["mlp"]
    weights = drawn(symmetry, 4)
    weights[2] = symmetry.permute(weights[:1], symmetry.random(1))[0]
    with patch.object(duplicates, "canonical_hash", lambda *_: np.array(["0" * 16] * 4)):
        assert find_duplicates(symmetry, weights) == [Duplicates((0, 2), "exact", 0.0)]


def test_regular_networks_that_refinement_cannot_tell_apart() -> None:
    """Rings of six units, and two rings of three: equal colours, equal hashes, and not the same network."""
    symmetry = plain({"step": ("h", "h"), "bias": ("h",)}, {"step": (6, 6), "bias": (6,)})
    around = np.roll(np.eye(6), 1, 0)
    two = np.kron(np.eye(2), np.roll(np.eye(3), 1, 0))
    weights = np.array([[*matrix.ravel(), *[1.0] * 6] for matrix in (around, two)], np.float32)
    assert len(set(canonical_hash(symmetry, weights).tolist())) == 1
    assert find_duplicates(symmetry, weights, near=None) == []


def test_dead_and_duplicate_units_are_no_obstacle() -> None:
    symmetry = NETWORKS["mlp"]
    one = drawn(symmetry, 1)[0]
    tensors = symmetry.layout.unflatten(one)
    for unit in (2, 3, 7):
        tensors["0.weight"][unit], tensors["0.bias"][unit], tensors["1.weight"][:, unit] = 0, 0, 0
    weights = shuffled(symmetry, one, 3)
    assert find_duplicates(symmetry, weights) == [Duplicates((0, 1, 2), "exact", 0.0)]
    weights[1:] = 0
    assert find_duplicates(symmetry, weights) == [Duplicates((1, 2), "exact", 0.0)]


@pytest.mark.parametrize("name", NETWORKS)
def test_invariants_stay_and_are_no_further_apart_than_any_order(name: str) -> None:
    symmetry = NETWORKS[name]
    weights = drawn(symmetry, 6, dtype=np.float64)
    found = invariants(symmetry, weights)
    np.testing.assert_allclose((found**2).sum(1), (weights**2).sum(1), rtol=1e-12)
    for seed, entries in itertools.product(range(3), (4096, 2)):
        with patch.object(duplicates, "ENTRIES", entries):
            before = invariants(symmetry, weights)
            moved = symmetry.permute(weights, symmetry.random(6, seed))
            np.testing.assert_allclose(invariants(symmetry, moved), before, rtol=1e-12, atol=1e-14)
            apart = np.linalg.norm(before[1:] - before[:-1], axis=1)
            assert (apart <= np.linalg.norm(moved[1:] - weights[:-1], axis=1) + 1e-12).all()
            assert apart.max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"near": -1.0}, "from 0"),
        ({"near": float("nan")}, "from 0"),
        ({"neighbours": 0}, "from 1"),
        ({"restarts": -1}, "restarts"),
        ({"weights": np.full((2, 224), np.inf, np.float32)}, "finite"),
        ({"weights": np.zeros((2, 224), np.int64)}, "float32"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    symmetry = NETWORKS["mlp"]
    given: dict[str, Any] = {"weights": np.ones((2, symmetry.layout.size), np.float32)} | change
    with pytest.raises(AlignmentError, match=message):
        find_duplicates(symmetry, given.pop("weights"), **given)
    with pytest.raises(ValueError, match="must be"):
        canonical_hash(symmetry, np.zeros((2, 3), np.float32))


def test_populations_of_none_and_one() -> None:
    symmetry = NETWORKS["mlp"]
    assert find_duplicates(symmetry, drawn(symmetry, 1)) == []
    assert find_duplicates(symmetry, drawn(symmetry, 0)) == []


def test_restarts_find_copies_that_one_descent_misses() -> None:
    symmetry = mlp(3, 6, 6, 6, 6, 2)
    weights = drawn(symmetry, 30, 2)
    copies = np.concatenate([shuffled(symmetry, one, 1, seed, [0.02]) for seed, one in enumerate(weights)])
    both = np.concatenate([weights, copies])

    def found(restarts: int) -> list[tuple[int, ...]]:
        return [group.models for group in find_duplicates(symmetry, both, restarts=restarts)]

    some, most = found(0), found(10)
    assert set(some) < set(most) <= {(k, k + 30) for k in range(30)}


def test_trained_networks_are_no_copies_of_each_other_and_later_epochs_are_near_copies() -> None:
    plan = make_plan(ZooSpec("zoo", hyperparameters={"epochs": 12}, checkpoints=(10, 12), seeds=tuple(range(20))))
    (runs,) = plan.runs.values()
    symmetry = symmetry_of(runs[0].architecture)
    weights = train(runs, plan.data, impl="compiled").weights.numpy()
    assert find_duplicates(symmetry, weights[:, 0], near=0.6) == []
    later = symmetry.permute(weights[:3, 1], symmetry.random(3))
    found = find_duplicates(symmetry, np.concatenate([weights[:, 0], later]))
    assert [(group.models, group.kind) for group in found] == [((k, 20 + k), "near") for k in range(3)]
