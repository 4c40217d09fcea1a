"""The store gives back what was put in: rows, weights, models; alone, several at once, and through other tools."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import zarr
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import catalog
from catalog import grid as grids
from catalog.errors import FormatError, MissingDataError, NotAZooError, QueryError, SpecMismatchError, UnknownNameError
from catalog.fragments import software
from catalog.grid import STORED_AS, from_stored
from catalog.record import LIMIT, Record, Variant
from catalog.store import Zoo
from tests.catalog_zoos import (
    LAYOUT,
    SOFTWARE,
    Stop,
    Truth,
    check_reads,
    create,
    empty_record,
    fill,
    long,
    net,
    one,
    rows_of,
    stopping,
    tree,
    truth_of,
    weights_of,
    write,
)
from weightspace.layout import Layout

dtypes = pytest.mark.parametrize("dtype", sorted(STORED_AS))


# --- round trips


@dtypes
def test_what_is_written_is_read(dtype: str, tmp_path: Path) -> None:
    zoo, truth = fill(tmp_path / "a b ü.zoo", net(dtype=dtype), long(dtype=dtype))
    for opened in (zoo, catalog.open(zoo.url), catalog.open(Path(zoo.url)), catalog.open(f"file://{zoo.url}")):
        check_reads(opened, truth)
    verification = catalog.verify(zoo.url)
    assert verification.problems == ()
    assert verification.rows == 18


@dtypes
def test_vectors_cut_by_bytes(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant, value in (("CHUNK_BYTES", 64), ("LONG_BYTES", 32), ("SHARD_BYTES", 128), ("SHARD_LIMIT", 256)):
        monkeypatch.setattr(grids, constant, value)
    layout = Layout(("w",), ((70,),))
    variant = catalog.make_variant("cut", layout, 3, 2, dtype)
    assert variant.grid.num_parts > 1
    assert variant.grid.chunk[2] < variant.grid.shard[2] <= 70
    zoo, truth = fill(tmp_path, variant)
    check_reads(zoo, truth)
    assert catalog.verify(tmp_path).ok


def test_rows_come_back(tmp_path: Path) -> None:
    zoo, _ = fill(tmp_path)
    table = zoo.table()
    expected = pl.concat([rows_of(v, s) for v in (net(), long()) for s in range(v.grid.num_shards)])
    assert table.select(expected.columns).equals(expected)
    assert set(table["zoo"]) == {"tiny"}
    assert table.select("variant", "model", "checkpoint").n_unique() == len(table)
    assert zoo.scan().collect().equals(table.filter(status="ok"))
    assert zoo.scan("diverged").collect().equals(table.filter(status="diverged"))
    with pytest.raises(UnknownNameError, match=r"unknown status 'OK'; known: diverged, failed, ok"):
        zoo.scan("OK")


def test_order_and_repeats_are_kept(tmp_path: Path) -> None:
    zoo, truth = fill(tmp_path)
    rows = zoo.scan().filter(variant="net").collect()
    mixed = rows[[7, 0, 7, 3, 9, 1, 0]]
    expected = [truth[key] for key in mixed.select("variant", "model", "checkpoint").iter_rows()]
    np.testing.assert_array_equal(zoo.read(mixed), np.stack(expected))
    np.testing.assert_array_equal(zoo.read(mixed.lazy()), np.stack(expected))
    np.testing.assert_array_equal(zoo.read(mixed.select("checkpoint", "variant", "model")), np.stack(expected))


def test_some_tensors(tmp_path: Path) -> None:
    zoo, _ = fill(tmp_path)
    rows = zoo.scan().filter(variant="net").collect()
    whole = zoo.read(rows)
    np.testing.assert_array_equal(zoo.read(rows, tensors=["steps", "b"]), whole[:, 6:])  # in layout order
    np.testing.assert_array_equal(zoo.read(rows, tensors=("tied",)), whole[:, :6])
    np.testing.assert_array_equal(zoo.read(rows, tensors="b"), whole[:, 6:8])
    assert zoo.read(rows, tensors=[]).shape == (len(rows), 0)
    with pytest.raises(UnknownNameError, match=r"^unknown tensor 'wb'; known: b, steps, tied, w; did you mean"):
        zoo.read(rows, tensors=["b", "wb"])


@dtypes
def test_read_as_another_type(dtype: str, tmp_path: Path) -> None:
    zoo, _ = fill(tmp_path, net(dtype=dtype))
    rows = zoo.scan()
    plain = zoo.read(rows)
    assert plain.dtype == ("float32" if dtype == "bfloat16" else dtype)
    for wanted in ("float16", "float32", "float64"):
        read = zoo.read(rows, dtype=wanted)
        assert read.dtype == wanted
        np.testing.assert_array_equal(read, plain.astype(wanted))
    with pytest.raises(QueryError, match="bfloat16 needs torch"):
        zoo.read(rows, dtype="bfloat16")
    with pytest.raises(QueryError, match="got 'int8'"):
        zoo.read(rows, dtype="int8")


@dtypes
def test_read_into_torch(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    zoo, _ = fill(tmp_path, net(dtype=dtype))
    read = zoo.read(zoo.scan(), torch=True)
    assert read.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(read.float().numpy(), zoo.read(zoo.scan(), dtype="float32"))
    assert zoo.read(zoo.scan(), dtype="bfloat16", torch=True).dtype == torch.bfloat16
    read += 1  # it is ours: nothing it could break


def test_weights_beyond_a_type_are_no_infinities(tmp_path: Path) -> None:
    variant = net(models=1)
    zoo = create(tmp_path, variant)
    weights = np.full((1, 2, 9), 1e30, np.float32)
    catalog.write_shard(zoo, "net", 0, weights, rows_of(variant, 0), SOFTWARE)
    with pytest.raises(QueryError, match="pass the range of float16"):
        zoo.read(zoo.scan(), dtype="float16")


def test_weights_beyond_a_type_are_no_infinities_in_torch(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    variant = net(models=1)
    zoo = create(tmp_path, variant)
    catalog.write_shard(zoo, "net", 0, np.full((1, 2, 9), 1e30, np.float32), rows_of(variant, 0), SOFTWARE)
    with pytest.raises(QueryError, match="pass the range of float16"):
        zoo.read(zoo.scan(), dtype="float16", torch=True)


@dtypes
def test_state_dict(dtype: str, tmp_path: Path) -> None:
    zoo, truth = fill(tmp_path, net(dtype=dtype), long(dtype=dtype))
    for variant in ("net", "long"):
        row = one(zoo.table(), variant=variant, model=2, checkpoint=1)
        tensors = zoo.state_dict(row)
        expected = truth[variant, 2, 1]
        assert list(tensors) == ["w", "b", "steps", "tied"]
        assert [tensors[name].dtype for name in tensors] == ["float32", "float32", "int64", "float32"]
        np.testing.assert_array_equal(tensors["w"], expected[:6].reshape(2, 3))
        np.testing.assert_array_equal(tensors["tied"], tensors["w"])
        np.testing.assert_array_equal(tensors["b"], expected[6:8])
        assert tensors["steps"] == expected[8]
    with pytest.raises(QueryError, match="expected one row, got 18"):
        zoo.state_dict(zoo.table())
    with pytest.raises(QueryError, match="need the column 'model'"):
        zoo.state_dict({"variant": "net", "checkpoint": 0})


def test_state_dict_of_a_bfloat16_module_without_torch(tmp_path: Path) -> None:
    layout = Layout(("w",), ((3,),), ("bfloat16",))
    zoo = create(tmp_path, catalog.make_variant("m", layout, 1, 1, "bfloat16"))
    rows = pl.DataFrame({"run": ["a"], "epoch": [0], "status": ["ok"], "reason": [""], "stored": [True]})
    catalog.write_shard(zoo, "m", 0, np.ones((1, 1, 3)), rows, SOFTWARE)
    assert zoo.state_dict(zoo.table())["w"].dtype == np.float32


def test_state_dict_loads_into_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    layout = Layout.from_module(module)
    zoo = create(tmp_path, catalog.make_variant("module", layout, 1, 1))
    rows = pl.DataFrame({"run": ["a"], "epoch": [0], "status": ["ok"], "reason": [""], "stored": [True]})
    flat = layout.flatten(module.state_dict()).detach().numpy()
    catalog.write_shard(zoo, "module", 0, flat.reshape(1, 1, -1), rows, SOFTWARE)
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    module.load_state_dict(catalog.open(zoo.url).state_dict(zoo.table(), torch=True))
    np.testing.assert_array_equal(layout.flatten(module.state_dict()).detach().numpy(), flat)


def safetensors_header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@dtypes
def test_export(dtype: str, tmp_path: Path) -> None:
    zoo, truth = fill(tmp_path / "zoo", net(dtype=dtype))
    path = tmp_path / "new folder" / "model.safetensors"
    row = one(zoo.table(), model=2, checkpoint=1)
    zoo.export(row, path)
    header, data = safetensors_header(path)
    metadata = header.pop("__metadata__")
    assert metadata["run"] == "net-2"
    assert metadata["epoch"] == "10"
    assert metadata["tied.tied"] == "w"
    assert "bits" not in metadata
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    assert {name: entry["dtype"] for name, entry in header.items()} == {
        "w": kinds[dtype],
        "b": kinds[dtype],
        "steps": "I64",
    }
    start, stop = header["w"]["data_offsets"]
    stored = np.frombuffer(data[start:stop], STORED_AS[dtype])
    np.testing.assert_array_equal(from_stored(stored, dtype), truth["net", 2, 1][:6])
    assert header["w"]["shape"] == [2, 3]
    assert os.listdir(path.parent) == ["model.safetensors"]  # nothing half-written beside it
    zoo.export(zoo.table().filter(model=2, checkpoint=1), path)  # a DataFrame of one row, over what was there


def test_export_opens_in_safetensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    zoo, truth = fill(tmp_path / "zoo", net(dtype="bfloat16"))
    zoo.export(one(zoo.table(), model=0, checkpoint=0), tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    assert tensors["b"].dtype == torch.bfloat16
    np.testing.assert_array_equal(tensors["b"].float().numpy(), truth["net", 0, 0][6:8])


# --- what cannot be read says so


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    zoo, _ = fill(tmp_path)
    rows = zoo.scan().collect()
    mine = rows.filter(variant="net")
    for bad, said in (
        (rows, r"one variant, got 2: \['long', 'net'\]"),
        (rows.clear(), "matched none"),
        (mine.drop("model"), "need the column 'model'"),
        (mine.drop("variant"), "need the column 'variant'"),
        (mine.with_columns(model=pl.lit(99)), "model 99"),
        (mine.with_columns(checkpoint=pl.lit(-1)), "checkpoint -1"),
        (mine.with_columns(model=pl.lit(None, pl.Int64)), "null"),
        (mine.with_columns(model=pl.lit("x")), "text and integers"),
        (mine.with_columns(zoo=pl.lit("other")), "rows of zoo other were given to zoo 'tiny'"),
        (mine.with_columns(variant=pl.lit("other")), "unknown variant 'other'; known: long, net"),
        ([1, 2], "got list"),
    ):
        with pytest.raises(QueryError, match=said):
            zoo.read(bad)  # type: ignore[arg-type]  # one of them is a list, on purpose
    with pytest.raises(QueryError, match="2 variants"):
        _ = zoo.layout
    assert fill(tmp_path / "one", net())[0].layout == LAYOUT


def test_rows_without_weights_are_hidden_and_refused(tmp_path: Path) -> None:
    zoo, truth = fill(tmp_path, net())
    assert 1 not in zoo.scan().collect()["model"]
    early = zoo.scan(None).filter(model=1, checkpoint=0).collect()
    np.testing.assert_array_equal(zoo.read(early)[0], truth["net", 1, 0])
    late = zoo.scan(None).filter(model=1)
    with pytest.raises(MissingDataError, match=r"net-1 in shard 0 of net in .* no weights at epoch 10.*loss is NaN"):
        zoo.read(late)
    with pytest.raises(MissingDataError, match="net-1"):
        zoo.state_dict(one(zoo.table(), model=1, checkpoint=1))
    array = zarr.open_array(tmp_path / "weights" / "net", mode="r")
    assert np.isnan(np.asarray(array[1, 1])).all()  # for tools that do not look at the rows


def test_shards_not_built_yet(tmp_path: Path) -> None:
    zoo = create(tmp_path, net())
    rows = zoo.table()
    assert len(rows) == 0
    assert len(zoo.scan().collect()) == len(catalog.query(zoo, "status = 'ok' and epoch > 3")) == 0
    write(zoo, "net", 1)
    assert zoo.table()["model"].unique().to_list() == [4, 5]
    with pytest.raises(MissingDataError, match=r"shard 0 of net .* is not built yet"):
        zoo.read(pl.DataFrame({"variant": "net", "model": [0], "checkpoint": [0]}))
    assert [problem.kind for problem in catalog.verify(tmp_path).problems] == ["incomplete"]


# --- queries


def test_query(tmp_path: Path) -> None:
    zoo, _ = fill(tmp_path)
    rows = catalog.query(zoo, "width >= 1 and accuracy > 0.2", columns=["run", "width"], sort=["run"], limit=3)
    assert rows.columns == ["run", "width"]
    assert rows["run"].to_list() == ["long-2", "long-2", "net-2"]
    assert "bits" not in catalog.query(zoo).columns
    assert len(catalog.query(zoo, " ", status=None)) == 18
    assert catalog.query(zoo, "variant = 'net'", columns="model", sort="model", descending=True)["model"][0] == 5
    for where in ("nope > 3", "width > 1 or nope = 2"):
        with pytest.raises(UnknownNameError, match=r"unknown column 'nope'; known: .*width"):
            catalog.query(zoo, where)
    for columns, sort in ((["nope"], []), (None, ["nope"])):
        with pytest.raises(UnknownNameError, match="unknown column 'nope'"):
            catalog.query(zoo, columns=columns, sort=sort)
    for bad in ("width >", "width", "(" * 500, "1 +", "width; drop", "nosuch(width) > 1", "cast(width as stone) = 1"):
        with pytest.raises(QueryError, match="cannot evaluate"):
            catalog.query(zoo, bad)
    with pytest.raises(QueryError, match="limit"):
        catalog.query(zoo, limit=-1)


# --- several zoos


def test_several_zoos_are_one_table(tmp_path: Path) -> None:
    first, truth_1 = fill(tmp_path / "1", net(), name="first", seed=1)
    second, truth_2 = fill(tmp_path / "2", net(), long(), name="second", seed=2)
    zoos = catalog.open([first.url, second.url])
    rows = zoos.scan().filter(variant="net").collect().sample(fraction=1, shuffle=True, seed=0)
    truths = {"first": truth_1, "second": truth_2}
    expected = [truths[z][v, m, c] for z, v, m, c in rows.select("zoo", "variant", "model", "checkpoint").iter_rows()]
    np.testing.assert_array_equal(zoos.read(rows), np.stack(expected))
    np.testing.assert_array_equal(zoos.read(rows.lazy(), tensors=["b"], dtype="float64"), np.stack(expected)[:, 6:8])
    assert set(catalog.query(zoos)["zoo"]) == {"first", "second"}
    row = one(rows, zoo="second", model=3, checkpoint=1)
    np.testing.assert_array_equal(zoos.state_dict(row)["b"], truth_2["net", 3, 1][6:8])
    zoos.export(row, tmp_path / "m.safetensors")
    assert safetensors_header(tmp_path / "m.safetensors")[0]["__metadata__"]["zoo"] == "second"


def test_several_zoos_say_what_is_wrong(tmp_path: Path) -> None:
    first, _ = fill(tmp_path / "1", net(), name="same")
    other = Variant("net", {}, Layout(("v",), ((9,),)), net().grid)
    second, _ = fill(tmp_path / "2", other, name="same")
    with pytest.raises(QueryError, match="distinct names"):
        catalog.open([first.url, second.url])
    zoos = catalog.open({"a": first.url, "b": second.url})
    rows = zoos.scan().collect()
    assert set(rows["zoo"]) == {"a", "b"}
    assert zoos.read(rows.filter(zoo="b")).shape == (10, 9)
    with pytest.raises(QueryError, match="2 different layouts"):
        zoos.read(rows)
    with pytest.raises(UnknownNameError, match="unknown zoo 'c'; known: a, b"):
        zoos.read(rows.with_columns(zoo=pl.lit("c")))
    with pytest.raises(UnknownNameError, match="unknown zoo 'c'"):
        zoos.state_dict({**one(rows, zoo="a", model=0, checkpoint=0), "zoo": "c"})
    for call in (zoos.read, zoos.state_dict):
        with pytest.raises(QueryError, match="need the column 'zoo'"):
            call(rows[:1].drop("zoo"))
    with pytest.raises(QueryError, match="matched none"):
        zoos.read(rows.clear())
    with pytest.raises(QueryError, match="none"):
        catalog.open([])
    with pytest.raises(QueryError, match="none"):
        catalog.open({})


def test_zoos_of_different_types_lose_nothing(tmp_path: Path) -> None:
    half, truth_1 = fill(tmp_path / "1", net(dtype="float16"), name="half")
    full, truth_2 = fill(tmp_path / "2", net(), name="full")
    zoos = catalog.open([half.url, full.url])
    rows = zoos.scan().collect()
    read = zoos.read(rows)
    assert read.dtype == np.float32
    expected = [
        {"half": truth_1, "full": truth_2}[z][v, m, c]
        for z, v, m, c in rows.select("zoo", "variant", "model", "checkpoint").iter_rows()
    ]
    np.testing.assert_array_equal(read, np.stack([weights.astype(np.float32) for weights in expected]))


def test_zoos_of_different_types_lose_nothing_in_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    urls = [fill(tmp_path / kind, net(dtype=kind), name=kind)[0].url for kind in ("float16", "bfloat16")]
    zoos = catalog.open(urls)
    read = zoos.read(zoos.scan(), torch=True)
    assert read.dtype == torch.float32
    np.testing.assert_array_equal(read.numpy(), zoos.read(zoos.scan(), dtype="float32"))


# --- the table is an index


def test_the_table_can_be_deleted_and_rebuilt(tmp_path: Path) -> None:
    zoo, _ = fill(tmp_path)
    with_table, before = zoo.table(), tree(tmp_path)
    (table,) = tmp_path.glob("table.*.parquet")
    table.unlink()
    assert catalog.open(tmp_path).table().equals(with_table)
    assert catalog.rebuild_table(catalog.open(tmp_path)) == table.name
    assert tree(tmp_path) == before


def test_a_stale_table_is_ignored_then_replaced(tmp_path: Path) -> None:
    zoo = create(tmp_path, net())
    write(zoo, "net", 0)
    old = catalog.rebuild_table(zoo)
    write(zoo, "net", 1)
    assert len(zoo.table()) == len(catalog.open(tmp_path).scan(None).collect()) == 12
    assert catalog.verify(tmp_path).ok
    new = catalog.rebuild_table(zoo)
    assert new != old
    assert [path.name for path in tmp_path.glob("table.*")] == [new]
    assert len(catalog.open(tmp_path).table()) == 12


def test_the_table_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    monkeypatch.setattr(Zoo, "fragment", lambda *_: pytest.fail("a fragment was read"))
    assert len(catalog.open(tmp_path).table()) == 18


def test_columns_may_differ_between_shards(tmp_path: Path) -> None:
    zoo = create(tmp_path, net())
    write(zoo, "net", 0)
    entry = zoo.record.variant("net")
    catalog.write_shard(
        zoo, "net", 1, weights_of(entry, 1), rows_of(entry, 1).drop("accuracy").with_columns(new=pl.lit(1)), SOFTWARE
    )
    assert zoo.table()["accuracy"].null_count() == 4
    assert zoo.table()["new"].null_count() == 8


def test_more_fragments_than_are_kept(tmp_path: Path) -> None:
    _, truth = fill(tmp_path)
    reader = catalog.open(tmp_path)
    some = reader.fragment(next(iter(reader.committed().values())))
    reader._fragments.update({str(number): some for number in range(600)})
    check_reads(reader, truth)
    assert len(reader._fragments) <= 512


# --- other people's tools


def test_stock_zarr(tmp_path: Path) -> None:
    _, truth = fill(tmp_path)
    group = zarr.open_group(tmp_path, mode="r")
    for variant in ("net", "long"):
        array = group["weights"][variant]  # type: ignore[index]  # zarr types a member as array or group
        assert isinstance(array, zarr.Array)
        assert array.metadata.dimension_names == ("models", "checkpoints", "size")  # type: ignore[union-attr]  # format 3
        values = np.asarray(array[:])
        for (name, model, checkpoint), weights in truth.items():
            if name == variant:
                np.testing.assert_array_equal(values[model, checkpoint], weights)
    assert dict(group["weights/net"].attrs) == {"weightscape": {"dtype": "float32"}}


def test_stock_polars(tmp_path: Path) -> None:
    zoo, _ = fill(tmp_path)
    columns = ["variant", "model", "checkpoint"]
    scanned = pl.scan_parquet(tmp_path / "index" / "*.parquet").collect().sort(columns)
    assert scanned.equals(zoo.table().drop("zoo").sort(columns))


def test_duckdb(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    zoo, _ = fill(tmp_path)
    query = "select run, epoch, accuracy, status from read_parquet(?) order by run, epoch"
    table = zoo.table().sort("run", "epoch")
    for pattern in ("index/*.parquet", "table.*.parquet"):
        found = duckdb.execute(query, [str(tmp_path / pattern)]).fetchall()
        assert found == table.select("run", "epoch", "accuracy", "status").rows()


# --- writing


def test_writing_what_does_not_fit(tmp_path: Path) -> None:
    zoo = create(tmp_path, net())
    entry = zoo.record.variant("net")
    weights, rows = weights_of(entry, 0), rows_of(entry, 0)
    nan = weights.copy()
    nan[2, 1, 3] = np.nan
    cases: list[tuple[int, np.ndarray, pl.DataFrame, str]] = [
        (0, weights[:3], rows, r"holds weights \(4, 2, 9\), got \(3, 2, 9\)"),
        (0, weights, rows[:7], "has 8 rows, got 7"),
        (0, nan, rows, "model 2, checkpoint 1 of shard 0 of net is not finite as float32"),
        (2, weights, rows, "shards 0 to 1, got 2"),
        (-1, weights, rows, "shards 0 to 1, got -1"),
        (0, weights, rows.drop("stored"), "stored"),
        (0, weights, rows.drop("run", "epoch"), r"need the columns \['run', 'epoch'\]"),
        (0, weights, rows.with_columns(stored=pl.lit(None, pl.Boolean)), "true or false"),
        (0, weights, rows.with_columns(status=pl.lit("fine")), "status .*fine"),
        (0, weights, rows.with_columns(status=pl.lit("ok")), "status ok and no weights"),
        (0, weights, rows.with_columns(epoch=pl.lit(1.5)), "column epoch is Float64"),
        (0, weights, rows.with_columns(run=pl.lit("same")), "stand twice"),
        (0, weights, rows.with_columns(zoo=pl.lit("x")), "column zoo"),
        (0, weights, rows.with_columns(nested=pl.lit([[1]])), "nested"),
    ]
    for shard, bad_weights, bad_rows, said in cases:
        with pytest.raises(ValueError, match=said):
            catalog.write_shard(zoo, "net", shard, bad_weights, bad_rows, SOFTWARE)
    with pytest.raises(UnknownNameError, match="unknown variant 'nut'; known: net; did you mean 'net'"):
        catalog.write_shard(zoo, "nut", 0, weights, rows, SOFTWARE)
    assert not list((tmp_path / "weights" / "net").glob("c/**/*"))  # nothing was written
    with pytest.raises(ValueError, match="not finite as float16"):
        catalog.write_shard(
            create(tmp_path / "half", net(dtype="float16")), "net", 0, weights + np.float32(1e6), rows, SOFTWARE
        )


def test_what_is_committed_never_changes(tmp_path: Path) -> None:
    zoo, truth = fill(tmp_path)
    before = tree(tmp_path)
    write(zoo, "net", 0)  # the same again is nothing new
    assert tree(tmp_path) == before
    with pytest.raises(ValueError, match="committed with another content"):
        write(zoo, "net", 0, seed=1)
    assert tree(tmp_path) == before
    check_reads(zoo, truth)


def test_writing_again_mends_a_lost_stored_file(tmp_path: Path) -> None:
    zoo, truth = fill(tmp_path)
    before = tree(tmp_path)
    shutil.rmtree(tmp_path / "weights" / "long" / "c" / "1")
    write(zoo, "long", 1)
    assert tree(tmp_path) == before
    check_reads(zoo, truth)


def test_create_again(tmp_path: Path) -> None:
    _, truth = fill(tmp_path)
    before = tree(tmp_path)
    (tmp_path / "weights" / "zarr.json").unlink()
    check_reads(create(tmp_path), truth)
    assert tree(tmp_path) == before
    for change, said in (
        ({"name": "other"}, r'name: there "tiny", asked "other"'),
        ({"spec": {"lr": [0.2]}}, r"spec.lr: there \[0.1\], asked \[0.2\]"),
        ({"spec": {}}, "spec.lr: there .*, asked nothing"),
        ({"info": {"licence": "x"}}, "info.licence: there nothing"),
        ({"variants": [net()]}, "variants: there .*long"),
        ({"variants": [net(models=7), long()]}, "net.shape"),
        ({"variants": [net(dtype="float16"), long(dtype="float16")]}, "dtype: there .float32., asked .float16."),
    ):
        wanted: dict[str, Any] = {"name": "tiny", "variants": [net(), long()], "spec": {"lr": [0.1]}} | change
        with pytest.raises(SpecMismatchError, match=said):
            catalog.create(tmp_path, **wanted)
    assert tree(tmp_path) == before


def test_create_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="share one dtype"):
        create(tmp_path / "z", net(), long(dtype="float16"))
    with pytest.raises(ValueError, match="distinct names"):
        create(tmp_path / "z", net(), net())
    with pytest.raises(ValueError, match="at least one"):
        catalog.create(tmp_path / "z", name="x", variants=[])
    for name in ("", "a\nb", "x" * 201):
        with pytest.raises(ValueError, match="printable"):
            create(tmp_path / "z", name=name)
    with pytest.raises(ValueError, match=r"JSON|nan"):
        catalog.create(tmp_path / "z", name="x", variants=[net()], spec={"lr": float("nan")})
    assert not (tmp_path / "z").exists()
    for name in ("Net", "a/b", "..", "", "a..b", "zarr.json", "-a", "x" * 100):
        with pytest.raises(ValueError, match="variant name"):
            net(name)
    with pytest.raises(ValueError, match="holds 9 weights, its array 8"):
        Variant("net", {}, LAYOUT, catalog.make_variant("n", Layout(("w",), ((8,),)), 1, 1).grid)


def test_a_record_survives_its_file() -> None:
    record = Record("tiny ü", {"a": {"b": [1, 2.5, None, True]}}, {"net": net(), "long": long()}, "float32", {"x": "<"})
    from catalog.record import decode

    data = record.encode()
    assert decode(data, "here") == record
    assert decode(data, "here").encode() == data
    assert len(data) < LIMIT


def test_places_that_are_no_zoo(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in ("absent", ".", "file", "file/below"):
        with pytest.raises(NotAZooError, match=r"is no zoo.*weightscape build"):
            catalog.open(tmp_path / place)
    with pytest.raises(FormatError, match=r"drop the part before '::'"):
        catalog.open("simplecache::https://example.org/zoo")
    with pytest.raises(FormatError, match="nosuch"):
        catalog.open("nosuch://example/zoo")


def test_software_names_versions() -> None:
    assert software(torch="2.0")["torch"] == "2.0"
    assert software()["numpy"] == np.__version__


# --- the store behaves as a dict of arrays


class StoreIsADict(RuleBasedStateMachine):
    """Shard writes in any order, writers killed at any step, re-opens and reads, against a dict."""

    @initialize(dtype=st.sampled_from(sorted(STORED_AS)))
    def make(self, dtype: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.zoo = create(self.folder, net(dtype=dtype), long(dtype=dtype))
        self.truth: Truth = {}
        self.committed: set[tuple[str, int]] = set()

    @rule(pick=st.integers(0, 4))
    def write(self, pick: int) -> None:
        variant, shard = self.zoo.record.shards[pick]
        write(self.zoo, variant, shard)
        self.remember(variant, shard)

    @rule(pick=st.integers(0, 4), nth=st.integers(1, 20))
    def write_killed(self, pick: int, nth: int) -> None:
        variant, shard = self.zoo.record.shards[pick]

        def die() -> None:
            raise Stop

        with pytest.MonkeyPatch.context() as patch, stopping(nth, die, patch) as seen:
            try:
                write(self.zoo, variant, shard)
            except Stop:
                pass
        # the last rename commits; an error at the fsync of its folder comes when the fragment stands already
        if len(seen) < nth or (variant, shard) in catalog.open(self.folder).committed():
            self.remember(variant, shard)

    def remember(self, variant: str, shard: int) -> None:
        self.committed.add((variant, shard))
        self.truth |= truth_of(self.zoo.record.variant(variant), shard)

    @rule()
    def reopen(self) -> None:
        self.zoo = catalog.open(self.folder)

    @rule()
    def create_again(self) -> None:
        dtype = self.zoo.record.dtype
        self.zoo = create(self.folder, net(dtype=dtype), long(dtype=dtype))

    @rule()
    def rebuild(self) -> None:
        catalog.rebuild_table(self.zoo)

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def read_some(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted({key[0] for key in self.truth})))
        keys = data.draw(st.lists(st.sampled_from([key for key in self.truth if key[0] == name]), min_size=1))
        rows = pl.DataFrame(keys, schema=["variant", "model", "checkpoint"], orient="row")
        np.testing.assert_array_equal(self.zoo.read(rows), np.stack([self.truth[key] for key in keys]))

    @invariant()
    def rows_are_those_committed(self) -> None:
        assert set(self.zoo.committed()) == self.committed
        stored = self.zoo.table()
        if self.committed:
            keys = stored.filter("stored").select("variant", "model", "checkpoint").rows()
            assert sorted(keys) == sorted(self.truth)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            check_reads(catalog.open(self.folder), self.truth)
            kinds = {problem.kind for problem in catalog.verify(self.folder).problems}
            assert kinds <= {"incomplete", "unknown"}  # unknown: shard files whose writer was killed
            shutil.rmtree(self.folder)


TestStoreIsADict = StoreIsADict.TestCase
TestStoreIsADict.settings = settings(max_examples=25, stateful_step_count=12)


def test_an_empty_record_has_shards() -> None:
    assert empty_record(net()).shards == [("net", 0), ("net", 1)]
