"""Compiled weight matching: against the plain implementation, and what must hold for any population."""

import itertools
from typing import Any

import numpy as np
import pytest

from benchmarks.families import FAMILIES, mlp
from kernels.matching.match import Matched, match
from kernels.matching.problem import Block, Problem
from weightspace.layout import Layout
from weightspace.rebasin.compiled import problem_of
from weightspace.rebasin.matching import match_weights
from weightspace.rebasin.objective import counted, objective
from weightspace.symmetry import Symmetry

SYMMETRIES = {
    "mlp": mlp(33).symmetry,
    "three hidden layers": mlp(12, depth=3).symmetry,
    "cnn": counted(FAMILIES["cnn"](8).symmetry),
    "resnet": counted(FAMILIES["resnet"](6).symmetry),
    "width one": Symmetry(
        Layout(("a", "b", "c"), ((1, 4), (5, 1), (2, 5))), {"a": ("h", None), "b": ("k", "h"), "c": (None, "k")}
    ),
}


def pairs(symmetry: Symmetry, models: int, noise: float = 0.7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A reference (size,), and models (models, size) near to it in another order."""
    generator = np.random.default_rng(seed)
    reference = generator.normal(size=symmetry.layout.size).astype(np.float32)
    weights = (reference + noise * generator.normal(size=(models, len(reference)))).astype(np.float32)
    return reference, symmetry.permute(weights, symmetry.random(models, seed))


def named(symmetry: Symmetry, found: Matched) -> dict[str, np.ndarray]:
    return dict(zip(symmetry.moving, found.permutations, strict=True))


def assert_same(found: Matched, other: Matched, models: Any = slice(None)) -> None:
    """Bit by bit."""
    for one, same in zip(found.permutations, other.permutations, strict=True):
        np.testing.assert_array_equal(one[models], same)
    for name in ("before", "after", "sweeps", "finished", "solves"):
        np.testing.assert_array_equal(getattr(found, name)[models], getattr(other, name))


@pytest.mark.parametrize("name", SYMMETRIES)
@pytest.mark.parametrize("noise", [0.7, 30.0])  # near, and as far from each other as any two
def test_as_the_plain_implementation(name: str, noise: float) -> None:
    symmetry = SYMMETRIES[name]
    reference, weights = pairs(symmetry, 8, noise)
    found = match(reference, weights, problem_of(symmetry), seed=5)
    plain = match_weights(symmetry, weights, reference, seed=5, impl="reference", layerwise=False)

    moved = symmetry.permute(weights, named(symmetry, found))
    np.testing.assert_allclose(found.after, objective(symmetry, moved, reference), rtol=1e-10)  # sums of 1e4, float64
    np.testing.assert_allclose(found.before, objective(symmetry, weights, reference), rtol=1e-10)
    np.testing.assert_allclose(found.after, plain.after, rtol=1e-10)  # the same descent, step by step
    assert (found.after >= found.before).all()
    assert found.finished.all()


@pytest.mark.parametrize("width", [32, 128])
def test_planted_permutations_are_recovered(width: int) -> None:
    symmetry = mlp(width).symmetry
    reference, weights = pairs(symmetry, 4, noise=0.0)
    found = match(reference, weights, problem_of(symmetry))
    np.testing.assert_array_equal(symmetry.permute(weights, named(symmetry, found)), np.tile(reference, (4, 1)))


def test_no_bit_depends_on_companions_or_threads() -> None:
    symmetry = SYMMETRIES["mlp"]
    reference, weights = pairs(symmetry, 9, noise=3.0)
    whole = match(reference, weights, problem_of(symmetry))
    for threads, models in itertools.product((1, 2, 20), (slice(None), slice(None, None, -1), slice(4, 6))):
        assert_same(whole, match(reference, weights[models], problem_of(symmetry), threads=threads), models)


def test_a_reference_for_each_model() -> None:
    symmetry = SYMMETRIES["cnn"]
    _, references = pairs(symmetry, 5, seed=1)
    _, weights = pairs(symmetry, 5, seed=2)
    found = match(references, weights, problem_of(symmetry), threads=2)
    for model in range(5):
        one = match(references[model], weights[model : model + 1], problem_of(symmetry))
        assert_same(found, one, slice(model, model + 1))


def test_each_sweep_is_a_step_up_and_the_next_goes_on_from_there() -> None:
    """A sweep at a time comes to an end like all at once: what prices and costs are kept decides nothing."""
    symmetry = SYMMETRIES["three hidden layers"]
    reference, weights = pairs(symmetry, 10, noise=30.0)
    problem = problem_of(symmetry)
    whole, one = match(reference, weights, problem), match(reference, weights, problem, sweeps=1)
    assert not one.finished.all()
    assert (one.sweeps == 1).all()
    assert (whole.sweeps > 2).any()
    for sweeps in range(2, 30):
        more = match(reference, weights, problem, sweeps=sweeps)
        assert (more.after >= one.after).all()
        one = more
    assert_same(whole, one)


def test_costs_that_are_updated_stay_those_that_are_computed_anew() -> None:
    """Where few units move a sweep, updates follow each other: from a start two swaps away from the end."""
    symmetry = mlp(64, depth=4).symmetry
    reference, weights = pairs(symmetry, 6, noise=0.3)
    problem = problem_of(symmetry)
    end = match(reference, weights, problem)
    start = [p.copy() for p in end.permutations]
    for p in start:
        p[:, :4] = p[:, [1, 0, 3, 2]]
    again = match(reference, weights, problem, start=start)
    for p, q in zip(again.permutations, end.permutations, strict=True):
        np.testing.assert_array_equal(p, q)
    np.testing.assert_array_equal(again.after, end.after)


def test_groups_that_may_not_move_stay_as_they_begin() -> None:
    symmetry = SYMMETRIES["three hidden layers"]
    reference, weights = pairs(symmetry, 4)
    start = symmetry.random(4, seed=7)
    names = list(symmetry.moving)
    found = match(
        reference, weights, problem_of(symmetry), start=list(start.values()), movable=[False, True, False], threads=2
    )
    plain = match_weights(symmetry, weights, reference, start=start, groups=[names[1]], impl="reference")
    for name in (names[0], names[2]):
        np.testing.assert_array_equal(named(symmetry, found)[name], start[name])
    np.testing.assert_array_equal(named(symmetry, found)[names[1]], plain.permutations[names[1]])
    np.testing.assert_allclose(found.after, plain.after, rtol=1e-10)
    still = match(reference, weights, problem_of(symmetry), movable=[False] * 3)
    np.testing.assert_array_equal(still.after, still.before)


def test_size_changes_nothing() -> None:
    """Products of weights of 1e30 overflow float32; powers of two lose no digit."""
    symmetry = SYMMETRIES["mlp"]
    reference, weights = pairs(symmetry, 3, noise=3.0)
    found = match(reference, weights, problem_of(symmetry))
    for mine, theirs in ((2.0**100, 2.0**90), (2.0**-100, 2.0**-90)):
        other = match(reference * np.float32(mine), weights * np.float32(theirs), problem_of(symmetry))
        for p, q in zip(found.permutations, other.permutations, strict=True):
            np.testing.assert_array_equal(p, q)
        np.testing.assert_array_equal(other.after, found.after * (mine * theirs))


def test_what_ties_stays() -> None:
    """Weights of zero, units that come twice and dead ones: nothing strictly better is there to be taken."""
    symmetry = SYMMETRIES["mlp"]
    reference, _ = pairs(symmetry, 1)
    zeros = match(reference, np.zeros((2, len(reference)), np.float32), problem_of(symmetry))
    np.testing.assert_array_equal(zeros.permutations[0], np.tile(np.arange(33), (2, 1)))
    assert zeros.finished.all()
    twice = symmetry.layout.unflatten(reference[None].copy())
    for tensor in ("hidden0.weight", "hidden0.bias"):
        twice[tensor][:, 20:30] = twice[tensor][:, :10]
        twice[tensor][:, 30:] = 0
    twice["hidden1.weight"][:, :, 20:30] = twice["hidden1.weight"][:, :, :10]
    twice["hidden1.weight"][:, :, 30:] = 0
    same = symmetry.layout.flatten(twice)
    found = match(same[0], same, problem_of(symmetry))
    np.testing.assert_array_equal(found.permutations[0][0], np.arange(33))
    np.testing.assert_array_equal(found.after, found.before)


def test_time_runs_out() -> None:
    symmetry = SYMMETRIES["mlp"]
    reference, weights = pairs(symmetry, 3)
    start = list(symmetry.random(3).values())
    found = match(reference, weights, problem_of(symmetry), start=start, deadline=0.0)
    for p, q in zip(found.permutations, start, strict=True):
        np.testing.assert_array_equal(p, q)
    np.testing.assert_array_equal(found.after, found.before)
    assert not found.finished.any()
    assert match(reference, weights, problem_of(symmetry), deadline=1e4).finished.all()


def test_no_models_and_arrays_of_any_kind() -> None:
    symmetry = SYMMETRIES["mlp"]
    reference, weights = pairs(symmetry, 4)
    problem = problem_of(symmetry)
    assert match(reference, weights[:0], problem).permutations[1].shape == (0, 33)
    whole = match(reference, weights, problem)
    fixed = np.asfortranarray(weights)
    fixed.setflags(write=False)
    assert_same(whole, match(reference, fixed, problem))


def test_errors_say_what_came() -> None:
    symmetry = SYMMETRIES["mlp"]
    reference, weights = pairs(symmetry, 2)
    problem = problem_of(symmetry)
    with pytest.raises(ValueError, match=r"float32, got .* float64"):
        match(reference.astype(np.float64), weights.astype(np.float64), problem)
    with pytest.raises(ValueError, match="references must be"):
        match(reference[:-1], weights, problem)
    with pytest.raises(ValueError, match="beyond 100 weights"):
        match(reference[:100], weights[:, :100], problem)
    with pytest.raises(ValueError, match="movable must say it for 2 groups, got 1"):
        match(reference, weights, problem, movable=[True])
    with pytest.raises(ValueError, match="no permutation"):
        match(reference, weights, problem, start=[np.zeros((2, 33), np.int32)] * 2)
    with pytest.raises(ValueError, match="start must be permutations"):
        match(reference, weights, problem, start=[np.zeros((1, 33), np.int32)] * 2)
    inner = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="fits none"):
        Problem((4,), (Block(0, 0, 5, 1, -1, 1, 0, inner),))
    with pytest.raises(ValueError, match="must differ"):
        Problem((4,), (Block(0, 0, 4, 4, 0, 4, 1, inner),))
    with pytest.raises(ValueError, match="inner offsets"):
        Problem((4,), (Block(0, 0, 4, 4, -1, 1, 0, inner[:0]),))
