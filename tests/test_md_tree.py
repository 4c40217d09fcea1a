"""MD trees: planted splits are found, no threshold is better, truths are those of the grid, losers are said to lose."""

import itertools
import json
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import InvalidSpecError, QueryError, SpecMismatchError, UnknownNameError
from zoo.diagnosis import diagnose, failure_source, judge
from zoo.md_tree import SHAPES, fit_md_tree, read_md_tree

NAMES = {"accuracy": "train_accuracy", "connectivity": "mc_peak", "sharpness": "hessian_trace"}


def cells(count: int, seed: int = 0) -> pl.DataFrame:
    """Columns of a tree, drawn at random."""
    generator = np.random.default_rng(seed)
    columns = {
        "train_accuracy": generator.uniform(0.3, 1, count),
        "mc_peak": generator.normal(-5, 4, count),
        "hessian_trace": generator.normal(50, 30, count),
        "test_accuracy": generator.uniform(0.3, 0.9, count),
        "train_loss": generator.uniform(0, 1, count),
    }
    return pl.DataFrame(columns).with_columns(
        load=2 ** (pl.int_range(pl.len()) % 8), temperature=2 ** (pl.int_range(pl.len()) // 8)
    )


def planted(table: pl.DataFrame, shape: str) -> pl.Series:
    """Labels by a tree of this shape."""
    accurate, connected = pl.col("train_accuracy") > 0.7, pl.col("mc_peak") > -4
    if shape == "source":
        label = pl.when(accurate == connected).then(pl.lit("temperature")).otherwise(pl.lit("load"))
    else:
        flat = pl.col("hessian_trace") <= 45
        label = pl.when(~accurate & (connected | flat)).then(pl.lit("low")).otherwise(pl.lit("high"))
    return table.select(label.alias("label")).to_series()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_planted_tree_is_found(shape: str) -> None:
    table = cells(40)  # fewer distinct values than candidates
    tree = fit_md_tree(table, planted(table, shape), shape)
    found = tree.predict(table)
    assert found["diagnosis"].equals(planted(table, shape).alias("diagnosis"))
    assert found["diagnosis_reason"].to_list() == [""] * 40
    assert tree.root.column == "train_accuracy"
    accuracy = table["train_accuracy"].to_numpy()
    assert accuracy[accuracy <= 0.7].max() < tree.root.threshold < accuracy[accuracy > 0.7].min()
    many = cells(400, 1)
    assert (tree.predict(many)["diagnosis"] == planted(many, shape)).to_numpy().mean() > 0.8


def best_by_hand(table: pl.DataFrame, labels: list[str]) -> int:
    """Cells that the best tree of shape `source` gets right: all pairs of thresholds, one by one."""
    x, y = table["train_accuracy"].to_numpy(), table["mc_peak"].to_numpy()

    def right(members: np.ndarray) -> int:
        found = [labels[i] for i in members]
        return max((found.count(name) for name in set(found)), default=0)

    def split(members: np.ndarray) -> int:
        return max(right(members[y[members] <= t]) + right(members[y[members] > t]) for t in [*y, math.inf])

    everyone = np.arange(len(x))
    return max(split(everyone[x <= t]) + split(everyone[x > t]) for t in [*x, math.inf])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from("abc")), min_size=1, max_size=12))
def test_no_thresholds_are_better(drawn: list[tuple[int, int, str]]) -> None:
    table = pl.DataFrame([(float(x), float(y)) for x, y, _ in drawn], ["train_accuracy", "mc_peak"], orient="row")
    labels = [label for _, _, label in drawn]
    tree = fit_md_tree(table, labels)
    assert (tree.predict(table)["diagnosis"] == pl.Series(labels)).sum() == best_by_hand(table, labels)
    assert fit_md_tree(table[::-1], labels[::-1]) == tree  # the order of cells decides nothing


def test_what_separates_nothing_is_a_leaf_and_the_first_of_equals_is_taken() -> None:
    table = cells(40)
    alike = fit_md_tree(table, ["load"] * 40)
    assert alike.root.column is None
    assert alike.predict(table)["diagnosis"].to_list() == ["load"] * 40
    table = pl.DataFrame({"train_accuracy": [0.0, 1.0, 2.0, 3.0, 4.0], "mc_peak": [0.0] * 5})
    tree = fit_md_tree(table, ["b", "a", "b", "a", "a"])
    assert tree.root.threshold == 0.5
    assert tree.root.high is not None
    assert tree.root.high.column is None


@pytest.mark.parametrize("shape", SHAPES)
def test_json_round_trip(shape: str) -> None:
    table = cells(40)
    tree = fit_md_tree(table, planted(table, shape), shape)
    settings = json.loads(json.dumps(tree.settings()))
    assert read_md_tree(settings) == tree
    with pytest.raises(SpecMismatchError, match="fit the tree again"):
        read_md_tree({**settings, "version": 0})
    with pytest.raises(UnknownNameError, match="known: side, source"):
        read_md_tree({**settings, "shape": "round"})
    for root in (None, {}, {"label": "a", "cells": 1, "share": 1, "column": "x"}, {**settings["root"], "low": 3}):
        with pytest.raises(InvalidSpecError, match="no node of an MD tree"):
            read_md_tree({**settings, "root": root})


def test_a_missing_value_gets_no_diagnosis() -> None:
    table = cells(40)
    tree = fit_md_tree(table, planted(table, "side"), "side")
    gone = table.with_columns(mc_peak=pl.lit(math.nan))
    found = tree.predict(gone)
    high = table["train_accuracy"] > tree.root.threshold  # settled by the first split
    assert found["diagnosis"].is_not_null().equals(high.alias("diagnosis"))
    assert set(found["diagnosis_reason"]) == {"", "mc_peak is missing"}
    with pytest.raises(QueryError, match="weightscape measure ZOO --metric mc_peak"):
        tree.predict(table.drop("mc_peak"))


def test_fits_leave_out_what_they_cannot_use() -> None:
    table = cells(40)
    labels = planted(table, "source")
    tree = fit_md_tree(table, labels)
    extra = pl.concat([table, table[:3].with_columns(mc_peak=None), table[:4]], how="vertical_relaxed")
    assert fit_md_tree(extra, [*labels, "load", "load", "load", None, "none", None, "none"]) == tree
    renamed = table.rename({"mc_peak": "mode_connectivity"})
    assert fit_md_tree(renamed, labels, connectivity="mode_connectivity").root.high != tree.root.high
    for bad, match in ((["none"] * 40, "no cell has a label"), (["load"], "expected 40 labels")):
        with pytest.raises(InvalidSpecError, match=match):
            fit_md_tree(table, bad)
    with pytest.raises(InvalidSpecError, match="roles of an MD tree are accuracy, connectivity, sharpness; got cka"):
        fit_md_tree(table, labels, cka="cka_yang")
    with pytest.raises(UnknownNameError, match="known: side, source"):
        fit_md_tree(table, labels, "round")


def by_hand(table: list[dict[str, Any]], tolerance: float) -> list[tuple[str | None, str | None]]:
    """failure_source and failure_side, cell by cell."""
    found: list[tuple[str | None, str | None]] = []
    for cell in table:
        if cell["test_accuracy"] is None:
            found.append((None, None))
            continue

        def gain(axis: str, fixed: str, sign: int, own: dict[str, Any] = cell) -> float:
            others = [c for c in table if c[fixed] == own[fixed] and sign * (c[axis] - own[axis]) > 0]
            better = [c["test_accuracy"] - own["test_accuracy"] for c in others if c["test_accuracy"] is not None]
            return max([0.0, *better])

        load = gain("load", "temperature", 1)
        lower, higher = gain("temperature", "load", -1), gain("temperature", "load", 1)
        temperature = max(lower, higher)
        source = "none" if load == temperature else "load" if load > temperature else "temperature"
        side = "none" if lower == higher else "high" if lower > higher else "low"
        source = "none" if max(load, temperature) <= tolerance else source
        found.append((source, "none" if temperature <= tolerance else side))
    return found


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 20)), min_size=12, max_size=12),
    st.sampled_from([0.0, 3.0]),
    st.permutations(range(12)),
)
def test_truth_is_that_of_the_grid(accuracies: list[int | None], tolerance: float, order: list[int]) -> None:
    grid = list(itertools.product((2, 4, 8), (4, 16, 64, 256)))
    rows = [
        {
            "load": load,
            "temperature": t,
            "test_accuracy": accuracies[i] if accuracies[i] is None else float(accuracies[i] or 0),
        }
        for i, (load, t) in enumerate(grid)
    ]
    rows = [rows[i] for i in order]
    schema = {"load": pl.Int64, "temperature": pl.Int64, "test_accuracy": pl.Float64}
    found = failure_source(pl.DataFrame(rows, schema), tolerance=tolerance)
    assert found.select("failure_source", "failure_side").rows() == by_hand(rows, tolerance)


def test_truth_needs_one_grid() -> None:
    table = cells(64)
    with pytest.raises(QueryError, match="two rows at one load and temperature; filter to one checkpoint"):
        failure_source(pl.concat([table, table]))
    with pytest.raises(QueryError, match="load is the axis that the spec names so"):
        failure_source(table.drop("load"))


@pytest.mark.parametrize("by", [None, "load", "temperature"])
def test_a_tree_that_knows_wins_and_one_that_does_not_is_said_to_lose(by: str | None) -> None:
    table = cells(64)
    knows = judge(table, planted(table, "source"), by=by, repeats=6)
    assert knows["rule"].to_list() == ["majority", "validation", "md_tree"]
    majority, _, md_tree = knows.iter_rows(named=True)
    assert md_tree["accuracy"] > 0.8
    assert md_tree["gain"] == pytest.approx(md_tree["accuracy"] - majority["accuracy"])
    assert md_tree["gain"] > 2 * md_tree["gain_se"] > 0
    assert (majority["gain"], majority["gain_se"]) == (0, 0)
    noise = np.random.default_rng(1).choice(["load", "temperature"], len(table), p=[0.8, 0.2])
    guesses = judge(table, noise.tolist(), by=by, repeats=6)
    assert guesses["gain"][2] < 0


def test_standard_errors_count_that_splits_overlap() -> None:
    table = cells(64)
    few, many = (judge(table, planted(table, "source"), repeats=repeats) for repeats in (10, 40))
    assert many["accuracy_se"][2] > 0.6 * few["accuracy_se"][2]  # naive ones would halve
    again = judge(table, planted(table, "source"), repeats=10)
    assert again.equals(few)


def test_judging_needs_something_to_judge() -> None:
    table = cells(64)
    labels = planted(table, "source")
    wrongs: list[dict[str, Any]] = [{"repeats": 1}, {"share": 0.0}, {"share": 1.0}]
    for wrong in wrongs:
        with pytest.raises(InvalidSpecError, match="two or more repeats and a share"):
            judge(table, labels, **wrong)
    with pytest.raises(InvalidSpecError, match="two are needed"):
        judge(table, ["none"] * 63 + ["load"])
    with pytest.raises(QueryError, match="no column 'mc_peak'"):
        judge(table.drop("mc_peak"), labels)


def test_diagnose_takes_runs() -> None:
    table = cells(64)
    runs = pl.concat([table.with_columns(seed=pl.lit(seed), status=pl.lit("ok")) for seed in range(3)])
    lost = runs.with_columns(status=pl.when(pl.col("seed") == 2).then(pl.lit("diverged")).otherwise("status"))
    lost = lost.with_columns(mc_peak=pl.when(pl.col("seed") == 2).then(math.nan).otherwise("mc_peak"))
    truth = failure_source(table)
    tree = fit_md_tree(truth, truth["failure_source"])
    found = diagnose(lost, tree)
    assert found["num_seeds"].to_list() == [2] * 64
    both = found.join(truth.hstack(tree.predict(truth)), on=["load", "temperature"], suffix="_direct")
    for name in ("failure_source", "failure_side", "diagnosis"):
        assert both[name].equals(both[f"{name}_direct"].alias(name))
