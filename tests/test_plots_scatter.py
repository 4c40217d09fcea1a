"""Rank correlations against scipy, their bootstrap errors against theory, and which points there are."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from catalog.errors import InvalidSpecError, UnknownNameError
from zoo.plots.scatter import points, spearman


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 40), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_as_scipy_with_ties(count: int, values: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.integers(values, size=(2, count)) / values
    x[0], x[1], y[0], y[1] = 0.1, 0.2, 0.1, 0.2  # scipy warns about constants
    rows = pl.DataFrame({"x": x, "test_accuracy": y})
    found = spearman(rows, ["x"], resamples=20)
    assert found["spearman"][0] == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert found["n"][0] == count


def test_bootstrap_error_as_known_for_independent_values() -> None:
    # Of independent values the coefficient has variance 1 / (n - 1) (Kendall and Gibbons 1990, section 4.15). The
    # bootstrap of one sample is within a quarter of its root, as seen over 200 seeds.
    x, y = np.random.default_rng(0).standard_normal((2, 200))
    found = spearman(pl.DataFrame({"x": x, "test_accuracy": y}), ["x"], resamples=2000)
    assert found["standard_error"][0] == pytest.approx(199**-0.5, rel=0.25)


def test_bootstrap_error_as_drawn_one_by_one() -> None:
    generator = np.random.default_rng(3)
    x, y = generator.standard_normal((2, 25))
    y += x
    drawn = np.random.default_rng(5).integers(25, size=(300, 25))
    expected = np.std([spearmanr(x[k], y[k]).statistic for k in drawn], ddof=1)
    found = spearman(pl.DataFrame({"x": x, "test_accuracy": y}), ["x"], resamples=300, seed=5)
    assert found["standard_error"][0] == pytest.approx(expected, rel=1e-10)


def test_rows_and_order_of_the_table() -> None:
    rows = pl.DataFrame({"up": [1.0, 2, 3], "down": [3.0, 2, 1], "flat": [1.0] * 3, "test_accuracy": [1.0, 2, 3]})
    found = spearman(rows, ["up", "flat", "down"])
    assert found.columns == ["column", "spearman", "standard_error", "n"]
    assert found["column"].to_list() == ["up", "flat", "down"]
    assert found["spearman"].to_list() == [pytest.approx(1.0), pytest.approx(np.nan, nan_ok=True), pytest.approx(-1.0)]
    assert found["n"].to_list() == [3, 3, 3]
    assert spearman(rows.head(2), ["up"])["spearman"].is_nan().all()


def test_points_are_cells_or_runs_at_their_last_epoch() -> None:
    rows = pl.DataFrame(
        {
            "run": ["a", "a", "b", "c", "d"],
            "epoch": [0, 4, 4, 4, 4],
            "cell": ["p", "p", "p", "q", "q"],
            "phase": ["II", "II", "I", None, "I"],
            "mc": [9.0, 1.0, 3.0, 5.0, None],
            "test_accuracy": [0.0, 0.5, 0.7, 0.9, 1.0],
        }
    )
    x, y, phases = points(rows, "mc", "test_accuracy")
    assert (x.tolist(), y.tolist(), phases) == ([2.0, 5.0], [pytest.approx(0.6), 0.9], ["I", ""])
    x, y, phases = points(rows, "mc", "test_accuracy", "run")
    assert (x.tolist(), y.tolist(), phases) == ([1.0, 3.0, 5.0], [0.5, 0.7, 0.9], ["II", "I", ""])
    x, _, _ = points(rows, "test_accuracy", "test_accuracy", "run")
    assert x.tolist() == [0.5, 0.7, 0.9, 1.0]


def test_without_cells_the_grid_says_what_a_cell_is() -> None:
    rows = pl.DataFrame({"load": [1, 1, 2], "temperature": [1, 1, 1], "mc": [1.0, 3, 5], "test_accuracy": [0.0, 1, 2]})
    assert points(rows, "mc", "test_accuracy")[0].tolist() == [2.0, 5.0]


def test_settings_without_sense() -> None:
    rows = pl.DataFrame({"mc": [1.0], "test_accuracy": [1.0]})
    with pytest.raises(InvalidSpecError, match="resamples must be 2 or more, got 0"):
        spearman(rows, ["mc"], resamples=0)
    with pytest.raises(UnknownNameError, match="known: cell, run"):
        spearman(rows, ["mc"], over="seed")
