"""Compiled assignment against scipy: totals, never columns, as equal totals may come in any way."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from kernels.assignment.assign import certificate
from kernels.assignment.compiled import solve

SIZES = (1, 2, 7, 15, 16, 17, 33, 70)  # one column, a register of either type less and more one, many
TYPES = (np.float32, np.float64)


def random(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.normal(size=(n, n))


def structured(generator: np.random.Generator, n: int) -> np.ndarray:
    """Similarities of two layers, with units that are dead, and some that come twice, in both."""
    a, b = generator.normal(size=(2, n, 5))
    for layer in (a, b):
        layer[: n // 5] = 0
        layer[n // 5 : 2 * (n // 5)] = layer[n - n // 5 :]
    return -a @ b.T


def tied(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.integers(0, 4, (n, n)).astype(float)


def constant(generator: np.random.Generator, n: int) -> np.ndarray:
    return np.full((n, n), generator.normal())


KINDS = (random, structured, tied, constant)


def batch(dtype: Any, n: int, seed: int = 0) -> np.ndarray:
    """A problem of each kind."""
    generator = np.random.default_rng(seed)
    return np.stack([kind(generator, n) for kind in KINDS]).astype(dtype)


def totals(costs: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(batch,) float64; the columns must be permutations."""
    assert columns.dtype == np.int32
    np.testing.assert_array_equal(np.sort(columns, 1), np.broadcast_to(np.arange(costs.shape[1]), columns.shape))
    return np.take_along_axis(costs.astype(np.float64), columns[..., None].astype(int), 2)[..., 0].sum(1)


def assert_least(costs: np.ndarray, columns: np.ndarray, dtype: Any = None) -> None:
    """Each total is the least. A row may be a few roundings of prices, which are of the costs' size, off its best."""
    n = costs.shape[1]
    least = totals(costs, np.array([linear_sum_assignment(cost)[1] for cost in costs], np.int32))
    largest = np.abs(costs).max((1, 2)).astype(np.float64)
    allowed = 4 * np.finfo(dtype or costs.dtype).eps * n * largest
    assert (totals(costs, columns) <= least + allowed).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", SIZES)
def test_totals_are_the_least_and_prices_prove_it(n: int, dtype: Any) -> None:
    costs = batch(dtype, n)
    columns, prices = solve(costs)
    assert_least(costs, columns)
    assert prices.dtype == dtype
    gap, _ = certificate(*map(torch.from_numpy, (costs, columns, prices)))
    largest = np.abs(costs).max((1, 2)).astype(np.float64)
    assert (gap.numpy() <= 16 * np.finfo(dtype).eps * n * largest).all()  # a bound in place of the least total


@pytest.mark.parametrize("dtype", TYPES)
def test_whole_numbers_are_exact(dtype: Any) -> None:
    costs = np.random.default_rng(1).integers(-50, 50, (20, 40, 40)).astype(dtype)
    columns, _ = solve(costs)  # all sums are whole, and below 2^24
    least = [cost[linear_sum_assignment(cost)].sum(dtype=np.float64) for cost in costs]
    np.testing.assert_array_equal(totals(costs, columns), least)


@settings(max_examples=60)
@given(st.data(), st.integers(1, 12), st.sampled_from(TYPES))
def test_any_prices_begin(data: st.DataObject, n: int, dtype: Any) -> None:
    """Any numbers, NaN and infinity too; with costs of few values, where whatever can tie does."""
    numbers = st.floats(width=32) if dtype == np.float32 else st.floats()
    drawn = data.draw(st.lists(st.integers(-2, 2), min_size=n * n, max_size=n * n))
    costs = np.array([drawn], np.int64).astype(dtype).reshape(1, n, n)
    start = np.array([data.draw(st.lists(numbers, min_size=n, max_size=n))], np.float64).astype(dtype)
    columns, _ = solve(costs, start)
    assert_least(costs, columns)


def test_prices_of_a_solution_begin_a_similar_problem() -> None:
    costs = batch(np.float32, 40)
    _, prices = solve(costs)
    generator = np.random.default_rng(2)
    for near in (costs, costs + generator.normal(0, 0.01, costs.shape).astype(np.float32)):
        columns, _ = solve(near, prices)
        assert_least(near, columns)


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(np.float32, 2.0**120), (np.float32, 2.0**-120), (np.float64, 2.0**1000), (np.float64, 2**-990)],
)
def test_size_changes_nothing(dtype: Any, factor: float) -> None:
    costs = batch(dtype, 20)
    columns, prices = solve(costs)
    large, theirs = solve(costs * dtype(factor))
    np.testing.assert_array_equal(large, columns)
    np.testing.assert_array_equal(theirs, prices * dtype(factor))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_smallest_and_the_largest_numbers(dtype: Any) -> None:
    limits = np.finfo(dtype)
    costs = np.zeros((2, 9, 9), dtype)
    costs[0] = limits.smallest_subnormal * np.random.default_rng(0).integers(0, 9, (9, 9))
    costs[1] = np.where(np.random.default_rng(1).random((9, 9)) < 0.5, limits.max, -limits.max)
    columns, _ = solve(costs)
    exact = np.stack([costs[0] / limits.smallest_subnormal, np.sign(costs[1])])
    assert_least(exact, columns)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_costs_that_are_not_finite_end_with_a_permutation(bad: float) -> None:
    costs = np.random.default_rng(0).normal(size=(3, 20, 20)).astype(np.float32)
    costs[0, 3], costs[1, :, 4], costs[2] = bad, bad, bad
    columns, _ = solve(costs)
    assert (np.sort(columns, 1) == np.arange(20)).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_no_bit_depends_on_companions_or_threads(dtype: Any) -> None:
    costs = np.concatenate([batch(dtype, 21, seed) for seed in range(3)])
    whole = solve(costs)
    for threads, order in itertools.product((1, 2, 30), (slice(None), slice(None, None, -1), slice(4, 7))):
        for one, other in zip(whole, solve(costs[order], threads=threads), strict=True):
            np.testing.assert_array_equal(one[order], other)


def test_factors_and_another_type() -> None:
    """Negative factors maximise; arithmetic in float64 proves what is exact there."""
    costs = batch(np.float32, 30)
    columns, prices = solve(costs, dtype=np.float64, factors=np.full(len(costs), -0.5))
    assert prices.dtype == np.float64
    assert_least(-0.5 * costs.astype(np.float64), columns)
    gap, _ = certificate(*map(torch.from_numpy, (-0.5 * costs.astype(np.float64), columns, prices)))
    assert (gap.numpy() < 1e-12).all()


def test_nothing_to_assign() -> None:
    for shape in ((0, 5, 5), (3, 0, 0)):
        columns, prices = solve(np.zeros(shape))
        assert columns.shape == prices.shape == shape[:2]


def test_errors_say_what_came() -> None:
    with pytest.raises(ValueError, match=r"\(batch, n, n\).*\(2, 3, 4\)"):
        solve(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"float32 or float64.*int64"):
        solve(np.zeros((2, 3, 3), np.int64))
    with pytest.raises(ValueError, match=r"prices must be \(2, 3\), got \(3,\)"):
        solve(np.zeros((2, 3, 3)), np.zeros(3))
