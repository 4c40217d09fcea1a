"""What a generator learns from: split by lineage, in a frame that covers it, refused where it is not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import catalog
from catalog.errors import GeneratorError, QueryError, UnknownNameError
from generators.population import LEAST, SPLITS, Population, population
from zoo.alignment.align import align
from zoo.build import build
from zoo.spec import ZooSpec


def moons(seeds: int, **changes: Any) -> ZooSpec:
    """MLPs on two moons, one cell, three checkpoints."""
    spec: dict[str, Any] = {
        "numbers": {"depth": 1, "width": 6},
        "dataset": "moons",
        "hyperparameters": {"epochs": 2, "learning_rate": 0.1},
        "checkpoints": (0, 1, 2),
    }
    return ZooSpec(name="moons", seeds=tuple(range(seeds)), **spec | changes)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> catalog.Zoo:
    """20 runs of width 6, all in the frame "universe", 12 of them in "some"."""
    path = tmp_path_factory.mktemp("population") / "moons.zoo"
    build(moons(20), path, workers=0)
    align(path)
    align(path, "some", where="seed < 12")
    return catalog.open(path)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> catalog.Zoo:
    """Two widths, eight seeds each, those of width 3 aligned."""
    path = tmp_path_factory.mktemp("population") / "two.zoo"
    build(moons(8, numbers={"depth": 1}, axes={"width": (3, 5)}), path, workers=0)
    align(path, where="width = 3")
    return catalog.open(path)


def runs(found: Population) -> dict[str, set[str]]:
    return {name: set(found.split(name)["run"]) for name in SPLITS}


def test_each_lineage_is_in_one_split_with_all_its_checkpoints(zoo: catalog.Zoo) -> None:
    found = population(zoo, every_epoch=True)
    lineages = runs(found)
    assert [len(lineages[name]) for name in SPLITS] == [16, 2, 2]
    assert len(set().union(*lineages.values())) == 20
    assert [len(found.split(name)) for name in SPLITS] == [48, 6, 6]
    assert found.rows["epoch"].to_list() == [0, 1, 2] * 20
    assert found.rows["run"].is_sorted()


def test_the_last_checkpoint_or_the_one_asked_for(zoo: catalog.Zoo) -> None:
    assert population(zoo).rows["epoch"].unique().to_list() == [2]
    assert population(zoo, epoch=1).rows["epoch"].unique().to_list() == [1]
    assert population(zoo, "epoch < 2").rows["epoch"].unique().to_list() == [1]
    last = population(zoo, "epoch < 2 or seed < 5").rows  # of each run
    assert sorted(last["epoch"]) == [1] * 15 + [2] * 5
    with pytest.raises(QueryError, match="no rows"):
        population(zoo, epoch=7)


def test_the_split_is_the_seeds_alone(zoo: catalog.Zoo) -> None:
    first, again, other = population(zoo), population(zoo, every_epoch=True), population(zoo, seed=1)
    assert runs(first) == runs(again) != runs(other)
    shuffled = zoo.scan().collect().sample(fraction=1, shuffle=True, seed=3)
    assert runs(population(zoo, rows=shuffled)) == runs(first)
    assert population(zoo, rows=shuffled.lazy()).fingerprint == first.fingerprint


def test_weights_are_those_of_the_rows_in_the_frame(zoo: catalog.Zoo) -> None:
    for frame in (None, "universe"):
        found = population(zoo, frame=frame)
        whole = zoo.read(found.split("train"), dtype="float32", frame=frame)
        np.testing.assert_array_equal(found.read(), whole)
        np.testing.assert_array_equal(found.read("train", [5, 2]), whole[[5, 2]])
        np.testing.assert_array_equal(found.read("train", slice(3, 6)), whole[3:6])
        assert found.read("test", []).shape == (0, found.layout.size)
        batches = list(found.batches("train", 3 * 4 * found.layout.size))
        assert [len(some) for some in batches] == [3] * 5 + [1]
        np.testing.assert_array_equal(np.concatenate(batches), whole)
        assert found.bytes() == whole.nbytes
    assert not np.array_equal(population(zoo).read(), whole)


def test_the_fingerprint_says_which_networks_in_which_split_and_frame(zoo: catalog.Zoo) -> None:
    found = [
        population(zoo, **options)
        for options in (
            {},
            {"seed": 1},
            {"frame": "universe"},
            {"epoch": 1},
            {"every_epoch": True},
            {"where": "seed < 19"},
        )
    ]
    assert len({one.fingerprint for one in found}) == len(found)
    assert population(catalog.open(zoo.url)).fingerprint == found[0].fingerprint


def test_what_is_stored_of_it(zoo: catalog.Zoo) -> None:
    found = population(zoo, frame="universe")
    source = found.source()
    assert source["lineages"] == {"train": 16, "validation": 2, "test": 2}
    assert source["members"]["test"] == [(row["run"], 2) for row in found.split("test").to_dicts()]
    assert (source["zoo"], source["frame"], source["population"]) == ("moons", "universe", found.fingerprint)


def test_a_split_of_ones_own(zoo: catalog.Zoo) -> None:
    names = zoo.scan().collect()["run"].unique().sort().to_list()
    mine = {"train": names[:9], "validation": names[9:10], "test": names[10:12]}
    found = population(zoo, split=mine, every_epoch=True)
    assert runs(found) == {name: set(some) for name, some in mine.items()}
    shared = mine | {"test": names[8:12]}
    with pytest.raises(GeneratorError, match="2 lineages are in two splits"):
        population(zoo, split=shared)
    with pytest.raises(GeneratorError, match="1 runs of the split are not among the rows: nobody"):
        population(zoo, split=mine | {"test": ["nobody"]})
    for lacking in ({"train": names[:9]}, mine | {"train": names[:3]}, mine | {"validation": []}):
        with pytest.raises(GeneratorError, match="needs 4 lineages or more to train on"):
            population(zoo, split=lacking)
    with pytest.raises(UnknownNameError, match="known: test, train, validation"):
        population(zoo, split=mine | {"val": []})


def test_the_split_that_the_zoo_has(zoo: catalog.Zoo, tmp_path: Path) -> None:
    drawn = population(zoo)
    mine = catalog.open(zoo.url, metrics_at=tmp_path / "beside")
    stored = catalog.split(mine, fractions=(0.5, 0.3, 0.2))
    found = population(mine, every_epoch=True)
    assert [len(runs(found)[name]) for name in SPLITS] == [10, 6, 4]
    assert set(found.rows.select("run", "epoch", "split").rows()) == set(stored.rows())
    assert runs(population(mine, rows=mine.scan().collect())) == runs(found)
    for options in ({"seed": 0}, {"held_out": 0.1}):  # drawn, as where none is stored
        assert population(mine, **options).fingerprint == drawn.fingerprint
    with pytest.raises(GeneratorError, match="needs 4 lineages or more to train on"):
        population(mine, "seed < 3")


def test_too_few_lineages(zoo: catalog.Zoo) -> None:
    assert len(population(zoo, f"seed < {LEAST}").split("train")) == 6
    with pytest.raises(GeneratorError, match=r"needs 8 lineages .* got 7"):
        population(zoo, f"seed < {LEAST - 1}", every_epoch=True)  # 21 rows
    with pytest.raises(GeneratorError, match="leaves 2 to train on and 4 are needed"):
        population(zoo, "seed < 10", held_out=0.4)


@pytest.mark.parametrize("share", [0, 0.5, -1, float("nan"), True, "some"])
def test_a_share_that_is_none(zoo: catalog.Zoo, share: Any) -> None:
    with pytest.raises(GeneratorError, match="held_out must be a share"):
        population(zoo, held_out=share)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True])
def test_a_seed_that_is_none(zoo: catalog.Zoo, seed: Any) -> None:
    with pytest.raises(GeneratorError, match="seed of a split"):
        population(zoo, seed=seed)


def test_rows_of_several_variants(two: catalog.Zoo) -> None:
    with pytest.raises(GeneratorError, match="learns one variant, and the rows are of 2"):
        population(two)
    assert population(two, "width = 3").layout != population(two, "width = 5").layout
    with pytest.raises(QueryError, match="no rows"):
        population(two, variant="mlp")


def test_rows_that_are_not_of_this_zoo(zoo: catalog.Zoo, two: catalog.Zoo) -> None:
    rows = zoo.scan().collect()
    with pytest.raises(QueryError, match="48 of 48 rows are not of"):
        population(zoo, rows=two.scan().collect())
    with pytest.raises(QueryError, match="1 of 60 rows are not of"):
        population(zoo, rows=rows.with_columns(epoch=pl.when(pl.int_range(60) > 0).then("epoch").otherwise(9)))
    with pytest.raises(QueryError, match="2 of 61 rows are there more than once"):
        population(zoo, rows=pl.concat([rows, rows[:1]]))
    with pytest.raises(QueryError, match="'crc32c'"):
        population(zoo, rows=rows.drop("crc32c"))
    with pytest.raises(QueryError, match="rows must be those of scan"):
        population(zoo, rows=rows.with_columns(pl.col("epoch").cast(pl.String)))
    with pytest.raises(GeneratorError, match="not both"):
        population(zoo, "seed < 9", rows=rows)
    once = population(zoo, rows=rows)
    assert population(zoo, rows=once.rows, every_epoch=True).rows.columns == once.rows.columns


def test_a_frame_that_is_not_there_or_lacks_rows(zoo: catalog.Zoo, two: catalog.Zoo) -> None:
    with pytest.raises(UnknownNameError, match="no frame 'nobody'; it has some, universe"):
        population(zoo, frame="nobody")
    assert len(population(zoo, "seed < 12", frame="some").rows) == 12
    with pytest.raises(GeneratorError, match=r"'some' .* lacks 8 of the 20 rows"):
        population(zoo, frame="some")
    with pytest.raises(GeneratorError, match=r"does not have .*width5.*; align that variant first"):
        population(two, "width = 5", frame="universe")
