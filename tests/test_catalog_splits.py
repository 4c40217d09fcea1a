"""Splits by lineage, stored with the zoo: whole lineages, exact counts, the same from any order. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import catalog
from catalog.errors import QueryError, UnknownNameError, ZooError
from catalog.grid import Grid
from catalog.record import Variant
from catalog.splits import SPLITS, stored_split, whole_counts
from catalog.store import Zoo
from tests.catalog_zoos import LAYOUT

RUNS = 40  # runs 0 to 39; run 7 failed and has no weights, run 9 diverged behind its first checkpoint
FIXED = ["run-14", "run-16", "run-18", "run-35"]  # the last four by the sha256 of "0\n<run>"


def make(folder: Any, order: list[int] | None = None, shards: int = 4, **columns: list[Any]) -> Zoo:
    """A zoo of 40 runs with two checkpoints, in this order, in four shards; columns have a value a run."""
    order = list(range(RUNS)) if order is None else order
    grid = Grid((RUNS, 2, 9), (5, 1, 9), (10, 2, 9), "float32")
    zoo = catalog.create(folder, name="lab", variants=[Variant("net", {"family": "mlp"}, LAYOUT, grid)])
    given = {"parent": [None] * RUNS} | columns
    for shard in range(shards):
        runs = [run for run in order[10 * shard : 10 * shard + 10] for _ in range(2)]
        rows = pl.DataFrame(
            {
                "run": [f"run-{run}" for run in runs],
                "epoch": [0, 5] * 10,
                "status": ["failed" if run == 7 else "diverged" if run == 9 else "ok" for run in runs],
                "reason": ["lost" if run in (7, 9) else "" for run in runs],
                "stored": [run != 7 and (run != 9 or not at % 2) for at, run in enumerate(runs)],
                "width": [run % 4 for run in runs],
                "seed": [run // 8 for run in runs],
                **{name: pl.Series([values[run] for run in runs]) for name, values in given.items()},
            },
            schema_overrides={"parent": pl.String},
        )
        catalog.write_shard(zoo, "net", shard, np.ones((10, 2, 9), np.float32), rows, {})
    return zoo


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return make(tmp_path / "lab.zoo")


def runs_of(rows: pl.DataFrame) -> dict[str, str]:
    """run -> its split, which must be one."""
    pairs = rows.filter(pl.col("split").is_not_null()).select("run", "split").unique().rows()
    assert len({run for run, _ in pairs}) == len(pairs)
    return dict(pairs)


def counts(found: dict[str, str]) -> list[int]:
    return [list(found.values()).count(name) for name in SPLITS]


def test_whole_lineages_with_exact_counts_and_found_again(zoo: Zoo) -> None:
    made = catalog.split(zoo)
    found = runs_of(made)
    assert counts(found) == [31, 4, 4]  # of 39: 31.2, 3.9, 3.9
    assert set(found) == {f"run-{run}" for run in range(RUNS)} - {"run-7"}
    assert made.columns == ["run", "epoch", "split"]
    assert len(made) == 2 * 39
    rows = catalog.open(zoo.url).scan(None).collect()
    assert runs_of(rows) == found
    assert rows.filter(pl.col("split").is_null())["run"].unique().to_list() == ["run-7"]
    assert catalog.query(zoo, "split = 'test'")["run"].n_unique() == 4
    stored = stored_split(zoo)
    assert stored is not None
    assert dict(stored.rows()) == found
    assert catalog.verify(zoo.url).ok


def test_who_goes_where_is_the_seeds_and_the_names(zoo: Zoo, tmp_path: Path) -> None:
    first = runs_of(catalog.split(zoo))
    shuffled = make(tmp_path / "other.zoo", order=np.random.default_rng(0).permutation(RUNS).tolist())
    assert runs_of(catalog.split(shuffled)) == first
    assert runs_of(catalog.split(zoo, seed=1)) != first
    assert sorted(run for run, name in first.items() if name == "test") == FIXED  # on every machine, for ever


def test_the_same_settings_replace_and_others_stand_beside(zoo: Zoo) -> None:
    first = runs_of(catalog.split(zoo))
    catalog.split(zoo)
    assert len(zoo.folder.files("metrics")) == 1
    other = runs_of(catalog.split(zoo, seed=1))
    rows = zoo.scan(None).collect()
    beside = [name for name in rows.columns if name.startswith("split@")]
    assert runs_of(rows) == first
    assert len(beside) == 1
    chosen = catalog.open(zoo.url, versions={"split": beside[0].removeprefix("split@")})
    assert runs_of(chosen.scan(None).collect()) == other
    stored = stored_split(chosen)
    assert stored is not None
    assert dict(stored.rows()) == other


def test_runs_that_came_later_are_split_anew(tmp_path: Path) -> None:
    zoo = make(tmp_path / "lab.zoo", shards=3)
    early = runs_of(catalog.split(zoo))
    assert counts(early) == [23, 3, 3]
    whole = make(tmp_path / "whole.zoo")
    for name in whole.folder.files():
        if not zoo.folder.exists(name):
            zoo.folder.write(name, whole.folder.read(name))
    assert runs_of(zoo.scan(None).collect()) == early
    assert runs_of(catalog.split(tmp_path / "lab.zoo")) == runs_of(catalog.split(whole))
    assert len(zoo.folder.files("metrics")) == 1
    assert runs_of(zoo.scan(None).collect()) == runs_of(whole.scan(None).collect())


def test_two_splits_of_which_none_is_the_default(zoo: Zoo) -> None:
    assert stored_split(zoo) is None
    catalog.split(zoo, seed=1)
    assert stored_split(zoo) is not None
    catalog.split(zoo, seed=2)
    with pytest.raises(QueryError, match="has several splits"):
        stored_split(zoo)


def test_runs_of_one_initialisation_stay_together(zoo: Zoo) -> None:
    found = runs_of(catalog.split(zoo, by="seed", fractions=(0.6, 0.2, 0.2)))
    for seed in range(5):
        assert len({found[f"run-{run}"] for run in range(8 * seed, 8 * seed + 8) if run != 7}) == 1
    assert {counts(found)[0] // 8, *[count // 8 for count in counts(found)[1:]]} <= {1, 2, 3}
    both = runs_of(catalog.split(zoo, by=("seed", "width")))
    assert counts(both) == [31, 4, 4]  # 20 pairs of runs, one of which lost its other half


def test_children_stay_with_their_parents_along_a_chain(tmp_path: Path) -> None:
    parents = [None if run % 4 == 0 else f"run-{run - 1}" for run in range(RUNS)]
    zoo = make(tmp_path / "lab.zoo", parent=parents)
    found = runs_of(catalog.split(zoo, by="parent"))
    families = [{found[f"run-{run}"] for run in range(4 * family, 4 * family + 4) if run != 7} for family in range(10)]
    assert all(len(family) == 1 for family in families)
    assert counts({str(at): family.pop() for at, family in enumerate(families)}) == [8, 1, 1]


def test_strata_have_like_shares(zoo: Zoo) -> None:
    found = runs_of(catalog.split(zoo, fractions=(0.5, 0.25, 0.25), stratify="width"))
    total = counts(found)
    assert total == [19, 10, 10]  # as without: 19.5, 9.75, 9.75
    for width in range(4):
        some = {run: name for run, name in found.items() if int(run[4:]) % 4 == width}
        assert counts(some)[0] in (4, 5)
        assert {*counts(some)[1:]} <= {2, 3}


@settings(max_examples=200)
@given(st.lists(st.integers(1, 100), min_size=3, max_size=3), st.integers(3, 500))
def test_counts_are_the_nearest_whole_ones(shares: list[int], count: int) -> None:
    fractions = [share / sum(shares) for share in shares]
    found = whole_counts(fractions, count)
    assert sum(found) == count
    assert min(found) >= 1
    exact = [share * count / sum(shares) for share in shares]
    if min(exact) >= 1:
        assert all(abs(number - wanted) < 1 for number, wanted in zip(found, exact, strict=True))


def test_arguments_that_make_no_sense(zoo: Zoo, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], type[ZooError], str]] = [
        ({"fractions": (0.8, 0.2)}, QueryError, "shares of train, validation, test"),
        ({"fractions": (0.8, 0.1, 0.2)}, QueryError, "add up to 1"),
        ({"fractions": (1.1, -0.05, -0.05)}, QueryError, "above 0"),
        ({"fractions": (float("nan"),) * 3}, QueryError, "above 0"),
        ({"seed": -1}, QueryError, "seed of a split"),
        ({"seed": True}, QueryError, "seed of a split"),
        ({"by": "sed"}, UnknownNameError, "did you mean 'seed'"),
        ({"by": ()}, QueryError, "by names the columns"),
        ({"stratify": "phase"}, UnknownNameError, "unknown column 'phase'"),
        ({"by": "epoch"}, QueryError, "column epoch has several values in run run-0"),
        (
            {"by": "seed", "stratify": "width"},
            QueryError,
            "column width has several values in the lineage of run run-0",
        ),
    ]
    for options, error, message in cases:
        with pytest.raises(error, match=message):
            catalog.split(zoo, **options)
    assert zoo.folder.files("metrics") == []
    pair = make(tmp_path / "pair.zoo", parent=["run-0"] * 20 + ["run-20"] * 20)
    with pytest.raises(QueryError, match="3 splits need as many lineages with weights or more, got 2"):
        catalog.split(pair, by="parent")
    own = make(tmp_path / "own.zoo", split=["train"] * RUNS)
    with pytest.raises(QueryError, match="was written with a column split"):
        catalog.split(own)
