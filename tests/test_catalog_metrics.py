"""Measured columns: versions, joining, merging, damage, packing. No torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import catalog
from catalog.errors import CorruptError, FormatError, QueryError
from catalog.folder import Folder
from catalog.fragments import write_parquet
from catalog.metrics import KEY, NAME, Measurement, compact, measurements, version_of, write_measurement
from catalog.store import Zoo
from catalog.verify import verify
from tests.catalog_zoos import fill, net

RUNS = ("net-0", "net-2", "net-3")


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    made, _ = fill(tmp_path / "zoo", net())
    return made


def measured(
    values: dict[str, float | None],
    metric: str = "trace",
    settings: dict[str, Any] | None = None,
    default: bool = True,
    definition: int = 1,
    **columns: Any,
) -> Measurement:
    """Values of runs at epoch 10."""
    rows = pl.DataFrame(
        {
            "run": list(values),
            "epoch": pl.Series([10] * len(values), dtype=pl.Int64),
            metric: pl.Series(list(values.values()), dtype=pl.Float64),
            f"{metric}_se": 0.5,
            f"{metric}_reason": ["" if value is not None else "no partner" for value in values.values()],
            **columns,
        }
    )
    settings = {"probes": 100} if settings is None else settings
    return Measurement(metric, version_of(definition, settings), settings, default, rows, {"maker": "test"})


def values(zoo: Zoo, column: str = "trace") -> dict[tuple[str, int], float]:
    rows = zoo.table().filter(pl.col(column).is_not_null())
    return {(run, epoch): value for run, epoch, value in rows.select("run", "epoch", column).iter_rows()}


def test_columns_are_joined_by_run_and_epoch(zoo: Zoo) -> None:
    before = zoo.table()
    write_measurement(zoo, measured({"net-0": 1.0, "net-3": 3.0}))
    after = zoo.table()
    assert after.select(before.columns).equals(before)
    assert after.columns == [*before.columns, "trace", "trace_se"]  # no reason to tell, no column for it
    assert values(zoo) == {("net-0", 10): 1.0, ("net-3", 10): 3.0}
    found = catalog.query(catalog.open(zoo.url), "trace > 2")
    assert found["run"].to_list() == ["net-3"]
    assert zoo.read(found).shape == (1, 9)


def test_reasons_show_where_there_are_some(zoo: Zoo) -> None:
    write_measurement(zoo, measured({"net-0": 1.0, "net-3": None}))
    rows = zoo.scan().filter(pl.col("epoch") == 10, pl.col("run") == "net-3").collect()
    assert rows["trace"].to_list() == [None]
    assert rows["trace_reason"].to_list() == ["no partner"]


def test_other_settings_are_another_version_beside_the_first(zoo: Zoo) -> None:
    write_measurement(zoo, measured({"net-0": 1.0}))
    write_measurement(zoo, measured({"net-0": 2.0}, settings={"probes": 7}, default=False))
    other = version_of(1, {"probes": 7})
    assert values(zoo) == {("net-0", 10): 1.0}  # the default keeps the plain name
    assert values(zoo, f"trace@{other}") == {("net-0", 10): 2.0}
    chosen = catalog.open(zoo.url, versions={"trace": other})
    assert values(chosen) == {("net-0", 10): 2.0}
    with pytest.raises(QueryError, match=r"trace@1-00000000 is not measured.*its versions: 1-"):
        catalog.open(zoo.url, versions={"trace": "1-00000000"}).table()


def test_the_newest_definition_has_the_plain_name_and_none_if_it_is_open_which(zoo: Zoo) -> None:
    write_measurement(zoo, measured({"net-0": 1.0}))
    write_measurement(zoo, measured({"net-0": 2.0}, definition=2))
    assert values(zoo) == {("net-0", 10): 2.0}
    for default in (False, True):
        for probes in (7, 8):
            write_measurement(zoo, measured({"net-0": 1.0}, f"open_{default}".lower(), {"probes": probes}, default))
    names = [name for name in zoo.table().columns if name.startswith("open")]
    assert len(names) == 8
    assert all("@1-" in name for name in names)


def test_a_value_goes_before_a_reason_and_files_become_one(zoo: Zoo) -> None:
    write_measurement(zoo, measured({"net-0": None, "net-2": 2.0}))
    write_measurement(zoo, measured({"net-0": 1.0, "net-2": 2.0, "net-3": 3.0}))
    expected = {("net-0", 10): 1.0, ("net-2", 10): 2.0, ("net-3", 10): 3.0}
    assert values(zoo) == expected
    name = measured({}).name
    compact(zoo, name)
    files = list((Path(zoo.url) / "metrics" / name).iterdir())
    assert len(files) == 1
    assert values(catalog.open(zoo.url)) == expected
    compact(zoo, name)
    assert list((Path(zoo.url) / "metrics" / name).iterdir()) == files


@given(parts=st.lists(st.dictionaries(st.sampled_from(RUNS), st.floats(-5, 5), min_size=1), min_size=1, max_size=4))
def test_compacting_changes_nothing_whatever_the_parts(
    parts: list[dict[str, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    made, _ = fill(tmp_path_factory.mktemp("zoo") / "zoo", net())
    for part in parts:
        write_measurement(made, measured(dict(part)))
    before = values(catalog.open(made.url))
    compact(made, measured({}).name)
    assert values(catalog.open(made.url)) == before
    assert set(before) == {(run, 10) for part in parts for run in part}
    shutil.rmtree(made.url)


def test_a_reader_lists_again_when_a_file_has_just_become_part_of_another(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ({"net-0": 1.0}, {"net-3": 3.0}):
        write_measurement(zoo, measured(dict(part)))
    expected, fresh = values(zoo), catalog.open(zoo.url)
    read = Folder.read
    others: list[str] = []

    def slow(folder: Folder, name: str, limit: int | None = None) -> bytes:
        if name.startswith("metrics/") and not others:
            others.append(name)
            compact(catalog.open(zoo.url), measured({}).name)
        return read(folder, name, limit)

    monkeypatch.setattr(Folder, "read", slow)
    assert values(fresh) == expected
    assert others


def test_verify_covers_them_and_every_changed_byte_is_found(zoo: Zoo) -> None:
    name = write_measurement(zoo, measured({"net-0": 1.0}))
    assert verify(zoo.url).ok
    path = Path(zoo.url) / name
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        problems = verify(zoo.url).problems
        assert [problem.file for problem in problems] == [name]
        with pytest.raises(CorruptError, match="damaged"):
            catalog.open(zoo.url).table()
    path.write_bytes(whole)
    (path.parent / "x.parquet").write_bytes(whole)
    assert [problem.kind for problem in verify(zoo.url).problems] == ["unknown"]
    with pytest.raises(FormatError, match="no file of a metric"):
        catalog.open(zoo.url).table()


def test_a_file_of_another_zoo_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    other, _ = fill(tmp_path / "other", net("else"))
    name = write_measurement(other, measured({"net-0": 1.0}))
    target = Path(zoo.url) / name
    target.parent.mkdir(parents=True)
    shutil.copy(Path(other.url) / name, target)
    with pytest.raises(CorruptError, match="of another zoo"):
        zoo.table()


def hostile(zoo: Zoo, rows: pl.DataFrame, **changed: Any) -> None:
    """A file with a right name and digest."""
    import hashlib

    good = measured({})
    content = {
        "format": 1,
        "zoo": zoo.record.digest,
        "metric": good.metric,
        "version": good.version,
        "settings": dict(good.settings),
        "default": True,
        "software": {},
        **changed,
    }
    data = write_parquet(rows, {KEY: json.dumps(content)})
    name = f"metrics/{good.name}/{hashlib.sha256(data).hexdigest()[:32]}.parquet"
    assert NAME.fullmatch(name)
    zoo.folder.write(name, data)


GOOD = measured({"net-0": 1.0}).rows


@pytest.mark.parametrize(
    ("rows", "changed", "message"),
    [
        (GOOD, {"format": 2}, "format 2"),
        (GOOD, {"settings": {"probes": 5}}, "not those of its name"),
        (GOOD, {"settings": 5}, "not iterable"),
        (GOOD, {"default": 1}, "default is true or false"),
        (GOOD, {"metric": "other"}, "not those of its name"),
        (GOOD.drop("run"), {}, "column run is None"),
        (GOOD.with_columns(pl.col("epoch").cast(pl.Int32)), {}, "column epoch is Int32"),
        (GOOD.with_columns(run=pl.lit(None, pl.String)), {}, "column run has nulls"),
        (pl.concat([GOOD, GOOD]), {}, "stand twice"),
        (
            pl.concat([GOOD.with_columns(epoch=pl.lit(n, pl.Int64)) for n in range(99)]),
            {},
            "99 rows, expected at most",
        ),
        (GOOD.with_columns(x=pl.lit([1.0])), {}, "columns are numbers"),
        (GOOD.rename({"trace_se": "a b"}), {}, "names are letters"),
        (GOOD.with_columns(status=pl.lit("ok")), {}, "has the column status"),
        (GOOD.with_columns(zoo=pl.lit("ok")), {}, "has the column zoo"),
    ],
)
def test_hostile_files_are_refused(zoo: Zoo, rows: pl.DataFrame, changed: dict[str, Any], message: str) -> None:
    hostile(zoo, rows, **changed)
    with pytest.raises(FormatError, match=message):
        zoo.table()


def test_two_metrics_with_one_column_are_an_error(zoo: Zoo) -> None:
    write_measurement(zoo, measured({"net-0": 1.0}, shared=1.0))
    write_measurement(zoo, measured({"net-0": 1.0}, "other", shared=1.0))
    with pytest.raises(FormatError, match="has the column shared, which is there already"):
        zoo.table()


def test_bad_rows_are_not_written(zoo: Zoo) -> None:
    good = measured({"net-0": 1.0})
    with pytest.raises(FormatError, match="stand twice"):
        write_measurement(zoo, Measurement("trace", good.version, {}, True, pl.concat([GOOD, GOOD]), {}))
    with pytest.raises(FormatError, match="not the name"):
        write_measurement(zoo, Measurement("Trace", good.version, {}, True, GOOD, {}))
    assert not (Path(zoo.url) / "metrics").exists()


def test_columns_in_another_folder(zoo: Zoo, tmp_path: Path) -> None:
    beside = catalog.open(zoo.url, metrics_at=tmp_path / "mine")
    write_measurement(beside, measured({"net-0": 1.0}))
    assert "trace" not in catalog.open(zoo.url).table().columns
    assert values(catalog.open(zoo.url, metrics_at=tmp_path / "mine")) == {("net-0", 10): 1.0}
    assert verify(zoo.url).ok


def test_several_zoos_have_null_where_one_is_not_measured(zoo: Zoo, tmp_path: Path) -> None:
    other, _ = fill(tmp_path / "other", net())
    write_measurement(zoo, measured({"net-0": 1.0}))
    both = catalog.open({"a": zoo.url, "b": other.url})
    rows = both.scan().filter(pl.col("run") == "net-0", pl.col("epoch") == 10).collect()
    assert dict(zip(rows["zoo"], rows["trace"], strict=True)) == {"a": 1.0, "b": None}


def test_packing_carries_them_and_unpacking_gives_every_byte_back(zoo: Zoo, tmp_path: Path) -> None:
    for part in ({"net-0": 1.0}, {"net-3": 3.0}):
        write_measurement(zoo, measured(dict(part)))
    expected = values(zoo)
    packed = catalog.pack(zoo.url, tmp_path / "packed").zoo
    assert values(packed) == expected
    assert verify(packed.url).ok
    catalog.unpack(packed.url, tmp_path / "back")
    names = sorted(path.relative_to(zoo.url) for path in (Path(zoo.url) / "metrics").rglob("*.parquet"))
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (Path(zoo.url) / name).read_bytes()


def test_summary_says_what_is_measured(zoo: Zoo) -> None:
    from catalog.summary import summary

    write_measurement(zoo, measured({"net-0": 1.0}))
    assert summary(zoo)["metrics"] == {measured({}).name: {"rows": 1, "default": True, "settings": {"probes": 100}}}
    assert list(measurements(zoo, ["else"])) == []
