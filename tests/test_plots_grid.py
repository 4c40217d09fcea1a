"""Cells of a phase diagram: means, borders, regions and where names go, against counting by hand and by brute force."""

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zoo.plots.columns import axis_title, phase_order, shown, wrapped
from zoo.plots.grid import (
    Grid,
    borders,
    cell_flags,
    cell_means,
    cell_names,
    grid_of,
    place_of,
    regions,
    tick_step,
)
from zoo.plots.style import PHASE_COLOURS, colours, legend_columns, markers

NAMES = np.array(
    [  # the first row is at the bottom
        ["I", "I", "III", "IV-B"],
        ["I", "I", "III", "IV-B"],
        ["II", "", "I", "IV-B"],
    ],
    object,
)
grids = arrays(
    object, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.sampled_from(["", "I", "II", "IV-A"])
)


def test_borders_of_a_known_grid() -> None:
    upright = {(1.5, 0), (1.5, 1), (2.5, 0), (2.5, 1), (2.5, 2)}  # x, row
    level = {(0, 1.5), (2, 1.5)}  # column, y: none towards the cell without a name
    found = borders(NAMES)
    assert len(found) == len(upright) + len(level)
    assert {(a[0], (a[1] + b[1]) / 2) for a, b in found if a[0] == b[0]} == upright
    assert {((a[0] + b[0]) / 2, a[1]) for a, b in found if a[1] == b[1]} == level


@given(grids)
def test_borders_are_between_different_neighbours(names: np.ndarray) -> None:
    expected = 0
    for (i, j), (k, m) in itertools.combinations(np.ndindex(names.shape), 2):
        if abs(i - k) + abs(j - m) == 1 and names[i, j] and names[k, m]:
            expected += names[i, j] != names[k, m]
    found = borders(names)
    assert found.shape == (expected, 2, 2)
    np.testing.assert_array_equal(np.abs(found[:, 1] - found[:, 0]).sum(1), 1.0)


def test_regions_of_a_known_grid() -> None:
    found = regions(NAMES)
    assert {name: [int(part.sum()) for part in parts] for name, parts in found.items()} == {
        "I": [4, 1],
        "II": [1],
        "III": [2],
        "IV-B": [3],
    }
    assert found["I"][0][0, 0]
    assert found["I"][1][2, 2]


@given(grids)
def test_regions_cover_every_named_cell_once_and_names_lie_inside(names: np.ndarray) -> None:
    found = regions(names)
    total = np.zeros(names.shape, int)
    for name, parts in found.items():
        sizes = [int(part.sum()) for part in parts]
        assert sizes == sorted(sizes, reverse=True)
        for part in parts:
            assert (names[part] == name).all()
            total += part
            x, y, width, height = place_of(part)
            low = round(y - (height - 1) / 2), round(x - (width - 1) / 2)
            assert part[low[0] : low[0] + height, low[1] : low[1] + width].sum() == width * height
    np.testing.assert_array_equal(total, names != "")


def test_a_name_goes_where_there_is_room() -> None:
    part = np.zeros((6, 8), bool)
    part[:, 0] = part[4:, 2:] = part[5, :] = True  # an L whose centre of mass is no part of it
    assert place_of(part) == (4.5, 4.5, 6, 2)


def table(**columns: list[object]) -> pl.DataFrame:
    return pl.DataFrame(columns)


def test_cells_are_means_of_finite_values_of_the_last_epoch() -> None:
    rows = table(
        run=["a", "a", "b", "c", "d"],
        epoch=[0, 4, 4, 4, 4],
        load=[1, 1, 1, 2, 2],
        temperature=[8, 8, 8, 8, 16],
        mc=[100.0, 1.0, 2.0, float("nan"), float("inf")],
        phase=["I", "II", "III", "I", None],
        outlier=[True, False, True, False, None],
    )
    grid = grid_of(rows)
    assert grid == Grid((1.0, 2.0), (8.0, 16.0), "load", "temperature")
    axes = grid, "load", "temperature"
    np.testing.assert_array_equal(cell_means(rows, "mc", *axes), [[1.5, np.nan], [np.nan, np.nan]])
    assert cell_names(rows, "phase", *axes).tolist() == [["II", "I"], ["", ""]]  # of a tie the first
    assert cell_flags(rows, "outlier", *axes).tolist() == [[True, False], [False, False]]
    assert not cell_flags(rows, "phase_outlier", *axes).any()


def test_most_seeds_decide_the_phase() -> None:
    rows = table(load=[1] * 3, temperature=[8] * 3, phase=["I", "III", "III"])
    assert cell_names(rows, "phase", grid_of(rows), "load", "temperature").tolist() == [["III"]]


@pytest.mark.parametrize(("axis", "order"), [("batch_size", (8.0, 4.0, 2.0)), ("learning_rate", (2.0, 4.0, 8.0))])
def test_hot_is_at_the_top(axis: str, order: tuple[float, ...]) -> None:
    rows = table(load=[1, 2, 3], temperature=[4, 2, 8], width=[1, 2, 3]).with_columns(pl.col("temperature").alias(axis))
    assert grid_of(rows) == Grid((1.0, 2.0, 3.0), order, "width", axis)  # the first is at the bottom


def test_names_of_axes() -> None:
    rows = table(seed=[8, 8], width=[8, 8], load=[8, 8], temperature=[1, 2], rate=[1.0, 2.0])
    assert [axis_title(rows, axis) for axis in ("load", "temperature", "rate")] == ["width", "rate", "rate"]
    assert axis_title(rows.drop("width"), "load") == "load"  # one value equals any column by chance


@pytest.mark.parametrize(
    ("labels", "room", "step"), [(["2", "4"], 0.3, 1), (["1024"] * 9, 0.1, 5), (["1"] * 40, 0.05, 4), ([], 1.0, 1)]
)
def test_labels_that_do_not_fit_are_left_out(labels: list[str], room: float, step: int) -> None:
    assert tick_step(labels, room, 0.1) == step


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_shown_values_are_near_the_values(value: float) -> None:
    assert float(shown(value).replace("\N{MINUS SIGN}", "-")) == pytest.approx(value, rel=5.1e-4)


@given(st.text(st.characters(codec="ascii", categories=("Ll", "Zs")), max_size=200), st.integers(5, 40))
def test_wrapped_text_is_short(text: str, length: int) -> None:
    lines = wrapped(text, length).splitlines()
    assert len(lines) <= 3
    assert all(len(line) <= length for line in lines)


def test_phases_keep_their_look_whatever_others_there_are() -> None:
    names = phase_order({"IV-B", "basin", "I", "arid"})
    assert names == ["I", "IV-B", "arid", "basin"]
    for look in (colours(names), markers(names)):
        assert len(set(look.values())) == 4
    assert colours(names)["IV-B"] == PHASE_COLOURS["IV-B"]


@pytest.mark.parametrize("width", [2.0, 3.3, 6.8])
def test_a_legend_fits(width: float) -> None:
    assert legend_columns(["x" * 300] * 3, width) == 1
    assert legend_columns(["I"] * 3, width) == 3
