"""Novelty and the novel-and-performant curve on populations made by hand, by loops and closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from catalog.errors import GeneratorError
from generators.evaluation.estimate import mean, median, pair_mean, share
from generators.evaluation.frontier import FINE, MARGINS, above, alpha_of, frontier
from generators.evaluation.novelty import novelty, spacing
from weightspace.layout import Layout

LAYOUT = Layout(("w", "b"), ((10, 5), (10,)))
MIXED = Layout(("w", "mean", "b"), ((4, 5), (20,), (4,)), roles=("parameter", "buffer", "parameter"))
RNG = np.random.default_rng(0)


def population(models: int, layout: Layout = LAYOUT, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((models, layout.size)).astype(np.float32)


# Estimates


def test_a_share_has_the_binomial_error_and_a_bound_where_that_is_zero() -> None:
    some = share(np.arange(10) < 3)
    assert (some.value, some.count, some.bound) == (0.3, 10, None)
    assert some.se == pytest.approx(math.sqrt(0.3 * 0.7 / 10))
    none, all_ = share(np.zeros(50, bool)), share(np.ones(50, bool))
    assert (none.value, none.se, all_.value, all_.se) == (0, 0, 1, 0)
    assert none.bound is not None
    assert all_.bound is not None
    assert binom.pmf(0, 50, none.bound) == pytest.approx(0.05)  # what is still seen in 5 % of cases
    assert binom.pmf(50, 50, all_.bound) == pytest.approx(0.05)
    assert share(np.empty(0, bool)).to_json() == {"value": None, "se": None, "count": 0}
    assert none.to_json()["bound"] == none.bound


def test_means_leave_out_what_is_not_finite_and_say_so() -> None:
    values = np.array([1.0, 2.0, 6.0, math.nan, math.inf])
    found = mean(values)
    assert (found.value, found.count) == (3.0, 3)
    assert found.se == pytest.approx(np.std([1, 2, 6], ddof=1) / math.sqrt(3))
    assert math.isnan(mean(np.array([1.0])).se)
    assert mean(np.array([math.nan])).count == median(np.array([])).count == 0


def test_the_error_of_a_median_is_the_spread_of_medians() -> None:
    draws = RNG.standard_normal((400, 201))
    found = [median(draw) for draw in draws]
    spread = np.std([one.value for one in found])
    assert np.mean([one.se for one in found]) == pytest.approx(spread, rel=0.15)  # 400 draws: 4 % and the bias of 201
    assert all(one.value == np.median(draw) for one, draw in zip(found, draws, strict=True))


def test_pairs_by_the_jackknife_are_as_leaving_each_model_out() -> None:
    points = RNG.standard_normal((9, 3))
    table = np.linalg.norm(points[:, None] - points, axis=2)
    found = pair_mean(table.sum(1))
    assert found.value == pytest.approx(table[np.triu_indices(9, 1)].mean())
    without = [np.delete(np.delete(table, k, 0), k, 1)[np.triu_indices(8, 1)].mean() for k in range(9)]
    assert found.se == pytest.approx(math.sqrt(8 / 9 * ((without - np.mean(without)) ** 2).sum()))
    assert math.isnan(pair_mean(np.zeros(1)).value)


# Novelty


@pytest.mark.parametrize("layout", [LAYOUT, MIXED], ids=["plain", "buffers between"])
def test_spacing_is_the_nearest_of_another_lineage_by_a_loop(layout: Layout) -> None:
    training, lineages = population(12, layout), [f"run{number // 3}" for number in range(12)]
    training[1] = training[0] + 1e-3  # checkpoints of one run do not vouch for each other
    training[:, layout.slice("mean") if "mean" in layout.names else slice(0, 0)] *= 100  # nor do buffers count
    parts = [layout.slice(name) for name in ("w", "b")]
    weights = np.concatenate([training[:, part] for part in parts], 1).astype(np.float64)
    found = spacing(training, lineages, layout)
    for model in range(12):
        others = [k for k in range(12) if lineages[k] != lineages[model]]
        apart = [float(np.linalg.norm(weights[model] - weights[k])) for k in others]
        assert found.distance[model] == pytest.approx(min(apart), rel=1e-6)
        assert found.nearest[model] == others[int(np.argmin(apart))]
    assert found.tau == np.median(found.distance) == found.tau_estimate.value


def test_copies_have_ratio_0_and_independent_networks_about_1() -> None:
    training, fresh = population(60), population(200, seed=1)
    lineages = np.arange(60)
    copies = novelty(training[7:20], training, lineages, LAYOUT)
    assert (copies.ratio == 0).all()
    assert copies.nearest.tolist() == list(range(7, 20))
    assert (copies.copies().value, copies.mean.value, copies.median.value) == (1, 0, 0)
    independent = novelty(fresh, training, lineages, LAYOUT, own=copies.spacing)
    assert abs(independent.mean.value - 1) < 4 * independent.mean.se + 0.02  # tau has an error of its own
    assert independent.copies().value == 0
    near = training[3] + copies.spacing.tau * 0.05 * np.eye(1, LAYOUT.size, 2, dtype=np.float32)
    assert novelty(near, training, lineages, LAYOUT).ratio[0] == pytest.approx(0.05, rel=1e-3)


def test_what_is_not_finite_has_no_distance_and_is_no_copy() -> None:
    samples = population(4)
    samples[1, 3], samples[2, 0] = math.nan, math.inf
    found = novelty(samples, samples[[0, 3]], ["a", "b"], LAYOUT)
    assert np.isnan(found.ratio).tolist() == [False, True, True, False]
    assert found.nearest.tolist() == [0, -1, -1, 1]
    assert found.copies().value == 0.5
    assert found.mean.count == 2


def test_what_has_no_spacing_is_refused() -> None:
    training = population(6)
    with pytest.raises(GeneratorError, match="two runs or more"):
        spacing(training, ["a"] * 6, LAYOUT)
    with pytest.raises(GeneratorError, match="one for each of 6"):
        spacing(training, ["a"] * 5, LAYOUT)
    with pytest.raises(GeneratorError, match="equal to one of another lineage"):
        spacing(np.repeat(training[:1], 6, 0), range(6), LAYOUT)  # type: ignore[arg-type]
    with pytest.raises(GeneratorError, match="leave diverged models out"):
        spacing(np.where(np.arange(6)[:, None] == 2, np.float32(np.nan), training), np.arange(6), LAYOUT)
    with pytest.raises(GeneratorError, match=r"samples must be \(models, 60\)"):
        novelty(training[:, :-1], training, np.arange(6), LAYOUT)
    with pytest.raises(GeneratorError, match="floats"):
        novelty(training.astype(int), training, np.arange(6), LAYOUT)


# The frontier


def test_the_curve_counts_what_is_new_and_good() -> None:
    accuracy = np.array([0.95, 0.9, 0.5, 0.95, math.nan, 0.95, 0.95, 0.9])
    ratio = np.array([0.0, 1.0, 9.0, 2.5, 3.0, math.nan, 7.0, 3.0])
    curve = frontier(accuracy, ratio, 0.9)
    assert tuple(curve.margins) == MARGINS == (1, 2, 3, 4, 6)
    assert (curve.share * 8).tolist() == [4, 3, 2, 1, 1]  # of eight, the failed ones too
    assert curve.se[0] == pytest.approx(math.sqrt(0.25 / 8))
    assert np.isnan(curve.bound).all()
    assert (curve.at(3.0), curve.count) == (0.25, 8)
    assert frontier(accuracy, ratio, 0.9, [0]).share.tolist() == [5 / 8]  # what failed is not new either
    with pytest.raises(GeneratorError, match="not measured at"):
        curve.at(5.0)
    none = frontier(accuracy, ratio, 0.99)
    assert none.share.tolist() == [0] * 5
    assert none.bound[0] == pytest.approx(1 - 0.05 ** (1 / 8))
    fine = frontier(accuracy, ratio, 0.9, FINE)
    assert (fine.margins[0], fine.margins[-1]) == (0, 6)
    assert (np.diff(fine.share) <= 0).all()
    assert set(MARGINS) <= set(FINE)


def test_alpha_is_a_share_of_the_median() -> None:
    assert alpha_of(np.array([0.9, 1.0, 0.5, math.nan])) == pytest.approx(0.92 * 0.9)
    assert alpha_of(np.array([0.8]), 1) == 0.8
    for bad in (0, -0.1, 1.01, math.nan, "half"):
        with pytest.raises(GeneratorError, match="share must be"):
            alpha_of(np.array([0.9]), bad)  # type: ignore[arg-type]
    for accuracy in ([], [math.nan], [97.0], [-0.1]):
        with pytest.raises(GeneratorError, match="from 0 to 1"):
            alpha_of(np.array(accuracy))
    for bad in (0.0, 1.2, math.nan, -1):
        with pytest.raises(GeneratorError, match="alpha must be"):
            frontier(np.array([0.9]), np.array([1.0]), bad)


@pytest.mark.parametrize("margins", [[-1.0], [math.nan], [math.inf], []])
def test_margins_are_finite_and_not_below_0(margins: Any) -> None:
    with pytest.raises(GeneratorError, match="margins"):
        frontier(np.array([0.9]), np.array([1.0]), 0.5, margins)
    with pytest.raises(GeneratorError, match="one number for each of 1"):
        frontier(np.array([0.9]), np.array([1.0, 2.0]), 0.5)


def curve_of(hits: int, count: int, alpha: float = 0.9) -> Any:
    return frontier(np.where(np.arange(count) < hits, 0.95, 0.1), np.ones(count), alpha, [1.0])


@pytest.mark.parametrize(
    ("hits", "others", "count", "expected"),
    [(300, 200, 1024, True), (230, 200, 1024, False), (5, 0, 1024, False), (8, 0, 1024, True), (0, 0, 64, False)],
)
def test_a_curve_is_above_another_by_two_combined_errors(hits: int, others: int, count: int, expected: bool) -> None:
    assert above(curve_of(hits, count), curve_of(others, count)).tolist() == [expected]
    assert above(curve_of(others, count), curve_of(hits, count)).tolist() == [False]


def test_two_equal_samples_are_rarely_told_apart() -> None:
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(400):
        a, b = (curve_of(int(rng.binomial(200, 0.02)), 200) for _ in range(2))
        wrong += bool(above(a, b)[0])
    assert wrong <= 18  # one side of 2 standard errors is 2.3 % of 400, and 3 deviations of that


def test_curves_must_be_of_one_kind() -> None:
    with pytest.raises(GeneratorError, match="same accuracy"):
        above(curve_of(1, 4), curve_of(1, 4, alpha=0.5))
    with pytest.raises(GeneratorError, match="same margins"):
        above(curve_of(1, 4), frontier(np.ones(4), np.ones(4), 0.9))
