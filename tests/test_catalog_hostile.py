"""A zoo from a stranger: every digest in it is right, and nothing in it may crash, hang or mislead the reader."""

from __future__ import annotations

import hashlib
import io
import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import catalog
from catalog.errors import CorruptError, FormatError
from catalog.folder import Folder
from catalog.fragments import KEY
from catalog.grid import ABSENT, checksum
from catalog.record import LIMIT
from catalog.sealed import strict_json
from tests.catalog_zoos import Truth, check_reads, fill, forge, forge_fragment, forge_text, long, net, truth_of

HERE = "zoo.json of"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "zoo"
    fill(folder)
    for table in folder.glob("table.*"):
        table.unlink()
    return folder


@pytest.fixture
def zoo(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "zoo"))


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """No file here is larger than a few MB, and no test makes the peak memory of the process grow by a GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before < 1 << 30


def refused(folder: Path, said: str) -> None:
    """Both ways in refuse it."""
    for call in (catalog.open, catalog.verify):
        with pytest.raises(FormatError, match=said):
            call(folder)


# --- zoo.json


def test_the_forger_forges_well(zoo: Path) -> None:
    forge(zoo, lambda content: content["info"].update(by="a stranger"))
    assert catalog.open(zoo).record.info == {"by": "a stranger"}
    with pytest.raises(CorruptError, match="belongs to another zoo"):
        catalog.open(zoo).table()


def nested(depth: int) -> Any:
    out: list[Any] = []
    for _ in range(depth):
        out = [out]
    return out


def edited(*path: Any, to: Any = None) -> Callable[[dict[str, Any]], None]:
    """A change of one entry; without `to` it is deleted."""

    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        if to is None:
            del content[path[-1]]
        else:
            content[path[-1]] = to

    return change


NET: tuple[Any, ...] = ("variants", 0)
TENSOR: tuple[Any, ...] = (*NET, "layout", "tensors", 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *((edited(key), f"{key}' is missing") for key in ("name", "dtype", "spec", "variants", "info")),
        (edited("format"), "names no format"),
        (edited("format", to=True), "names no format"),
        (edited("format", to=1.0), "names no format"),
        (edited("format", to="1"), "names no format"),
        (edited("format", to=2), "zoo of format 2; this weightscape reads format 1: install a newer"),
        (edited("name", to=7), "follow"),
        (edited("name", to=""), "printable"),
        (edited("name", to="a\u202eb"), "printable"),
        (edited("name", to="\ud800"), "printable"),
        (edited("name", to=["x"]), "follow"),
        (edited("dtype", to="float8"), "dtype must be one of"),
        (edited("dtype", to="<f4"), "dtype must be one of"),
        (edited("dtype", to="object"), "dtype must be one of"),
        (edited("dtype", to="bfloat16x"), "dtype must be one of"),
        (edited("dtype", to=["float32"]), "follow"),
        (edited("spec", to=[1]), "spec must be an object"),
        (edited("info", to="x"), "info must be an object"),
        (edited("spec", to={"x": nested(70)}), "nested deeper"),
        (edited("variants", to={}), "at least one variant"),
        (edited("variants", to=[]), "at least one variant"),
        (edited("variants", to=7), "follow"),
        (edited("variants", 0, to="net"), "follow"),
        (edited("variants", 1, "name", to="net"), "named twice|holds"),
        *(
            (edited(*NET, "name", to=name), "follow")
            for name in ("../net", "..", "/etc", "C:\\x", "a\0b", "Net", "nét", "", 7, "zarr.json", "x" * 500)
        ),
        (edited(*NET, "architecture", to=["import os"]), "architecture of net must be an object"),
        *(
            (edited(*NET, key, to=value), "follow")
            for key in ("shape", "chunk", "shard")
            for value in (
                [6, 2],
                [6, 2, 9, 1],
                [-6, 2, 9],
                [6.0, 2, 9],
                [True, 2, 9],
                [0, 2, 9],
                ["6", 2, 9],
                [10**15, 10**15, 9],
                [2**63, 2, 9],
                [10**40, 2, 9],
                "629",
                {"6": 1},
                7,
                [None, 2, 9],
            )
        ),
        (edited(*NET, "shape", to=[2**40, 2, 9]), "shard files"),
        (edited(*NET, "chunk", to=[2, 1, 4]), "not a multiple"),
        (edited(*NET, "layout"), "layout' is missing"),
        (edited(*NET, "layout", to=[]), "follow"),
        (edited(*NET, "layout", "size", to=10), "size must be 9"),
        (edited(*TENSOR, "offset", to=5), "overlap or gap"),
        (edited(*TENSOR, "offset", to=7), "overlap or gap"),
        (edited(*TENSOR, "offset", to=6.0), "overlap or gap"),
        (edited(*TENSOR, "shape", to=[3]), "overlap or gap"),
        (edited(*TENSOR, "shape", to=[-2]), "shape must be"),
        (edited(*TENSOR, "shape", to=[2**40, 2**40]), "more than"),
        (edited(*TENSOR, "dtype", to="object"), "dtype must be one of"),
        (edited(*TENSOR, "role", to="code"), "role must be one of"),
        (edited(*TENSOR, "name", to="w"), "two tensors"),
        (edited(*NET, "layout", "aliases", to=[["x", "nothing"]]), "alias"),
    ],
)
def test_hostile_zoo_json(change: Callable[[dict[str, Any]], None], said: str, zoo: Path) -> None:
    forge(zoo, change)
    refused(zoo, said)


def test_huge_arrays_cost_nothing(zoo: Path) -> None:
    """What passes the checks may still claim much; nobody allocates by a claim."""

    def claim(content: dict[str, Any]) -> None:
        del content["variants"][1]
        entry = content["variants"][0]
        size = 2**40
        entry["layout"] = {
            "tensors": [{"name": "w", "shape": [size], "offset": 0, "dtype": "float32", "role": "parameter"}],
            "aliases": [],
            "size": size,
        }
        entry |= {"shape": [1000, 1, size], "chunk": [1, 1, 2**26], "shard": [1, 1, 2**35]}

    forge(zoo, claim)
    opened = catalog.open(zoo)
    assert opened.layout.size == 2**40
    for fragment in (zoo / "index").iterdir():
        if "long" in fragment.name:
            fragment.unlink()
    with pytest.raises(CorruptError, match="another zoo"):
        opened.table()
    assert not catalog.verify(zoo).ok


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"lr"', '"x": NaN, "lr"', "NaN is not a JSON number"),
        ('"lr"', '"x": -Infinity, "lr"', "-Infinity is not a JSON number"),
        ('"lr"', '"x": 1e400, "lr"', "1e400 is too large"),
        ('"lr"', '"lr": 1, "lr"', "'lr' stands twice"),
        ('"name": "tiny"', '"name": "tiny", "name": "tiny"', "'name' stands twice"),
        ('"lr"', f'"x": {"[" * 100_000}{"]" * 100_000}, "lr"', "nested"),
        ('"lr"', f'"x": {"[" * 100_000}, "lr"', "nested|JSON"),
        ('"lr"', '"x": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + ', "lr"', "nested"),
        ('"lr"', f'"x": {"9" * 10_000}, "lr"', "JSON"),
        ('"lr"', "'lr'", "JSON"),
        ('"lr"', '// x\n"lr"', "JSON"),
    ],
)
def test_hostile_json(old: str, new: str, said: str, zoo: Path) -> None:
    content = json.loads((zoo / "zoo.json").read_bytes())
    del content["digest"]
    text = json.dumps(content)
    assert old in text
    forge_text(zoo, text.replace(old, new, 1))
    refused(zoo, said)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "latin-1"])
def test_other_encodings(encoding: str, zoo: Path) -> None:
    content = json.loads((zoo / "zoo.json").read_bytes())
    del content["digest"]
    content["name"] = "tinyü"
    forge_text(zoo, json.dumps(content, ensure_ascii=False).encode(encoding))
    refused(zoo, "is not the JSON of a zoo")


@pytest.mark.parametrize("text", ["{}", "[]", "[}", '{"format": 1}', "{", "7}", '"}', "null}"])
def test_json_that_is_no_zoo(text: str, zoo: Path) -> None:
    forge_text(zoo, text)
    refused(zoo, HERE)


def test_a_zoo_json_too_large_is_not_loaded(zoo: Path) -> None:
    with (zoo / "zoo.json").open("r+b") as file:
        file.truncate(LIMIT + 1)  # a hole, which costs the stranger nothing
    refused(zoo, "more than the")
    with (zoo / "zoo.json").open("r+b") as file:
        file.truncate(8 << 30)
    refused(zoo, "more than the")


def test_json_of_the_standard_is_read() -> None:
    text = '{"a": [1, 2.5, -0.0, 1e-400, true, null, "ü\\u00fc"], "b": {}}'
    assert strict_json(text) == json.loads(text) == strict_json(text.encode())


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a\0b", ".."])
def test_names_stay_inside(name: str, tmp_path: Path) -> None:
    for call in (Folder.at(tmp_path).read, Folder.at(tmp_path).size, Folder.at("memory://zoo").read):
        with pytest.raises(FormatError, match="leads out of the zoo"):
            call(name)


# --- fragments


def fragment(zoo: Path, variant: str = "net", shard: int = 0) -> str:
    return f"index/{next((zoo / 'index').glob(f'{variant}.{shard:05d}.*')).name}"


def forged(
    zoo: Path,
    rows: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
    content: Callable[[dict[str, Any]], Any] | None = None,
    text: str | None = None,
    variant: str = "net",
) -> str:
    """A fragment changed, with the right digest."""
    name = fragment(zoo, variant)
    data = (zoo / name).read_bytes()
    table, said = pl.read_parquet(io.BytesIO(data)), json.loads(pl.read_parquet_metadata(io.BytesIO(data))[KEY])
    if content:
        content(said)
    out = io.BytesIO()
    (rows(table) if rows else table).write_parquet(out, metadata={KEY: text if text is not None else json.dumps(said)})
    return forge_fragment(zoo, name, out.getvalue())


def all_refuse(zoo: Path, name: str, said: str, error: type[Exception] = FormatError) -> None:
    opened = catalog.open(zoo)
    rows = pl.DataFrame({"variant": "net", "model": [0, 0], "checkpoint": [0, 1]})
    for call in (opened.table, lambda: catalog.query(opened), lambda: opened.read(rows), lambda: opened.fragment(name)):
        with pytest.raises(error, match=said):
            call()
    assert name in {problem.file for problem in catalog.verify(zoo).problems}


def with_column(name: str, values: Any, dtype: Any = None) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return lambda rows: rows.with_columns(pl.lit(values, dtype).alias(name))


def nulled(name: str) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return lambda rows: rows.with_columns(pl.when(pl.col("model") == 0).then(pl.col(name)).alias(name))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[[0, 0, 2, 3, 4, 5, 6, 7]], "not those of the shard in order"),
        (lambda rows: rows[::-1], "not those of the shard in order"),
        (lambda rows: rows[:7], "7 rows, expected 8"),
        (lambda rows: pl.concat([rows, rows]), "16 rows, expected 8"),
        (lambda rows: rows.clear(), "0 rows, expected 8"),
        (lambda _: pl.select(pl.repeat(0, 20_000_000, dtype=pl.Int8)), "20,000,000 rows, expected 8"),
        (with_column("model", pl.Series([4, 4, 5, 5, 6, 6, 7, 7])), "not those of the shard in order"),
        (with_column("variant", "long"), "rows of another variant"),
        (with_column("variant", "../net"), "rows of another variant"),
        (with_column("status", "fine"), "status .'fine'."),
        (with_column("status", "ok"), "status ok and no weights"),
        (with_column("run", "same"), "stand twice"),
        (with_column("zoo", "x"), "column zoo"),
        (with_column("x", [[1]]), "column 'x' is List"),
        (with_column("x", 1, pl.Datetime), "column 'x' is Datetime"),
        (lambda rows: rows.with_columns(pl.lit(0).alias(f"c{i}") for i in range(300)), "at most 256"),
        *(
            ((lambda rows, name=name: rows.drop(name)), f"'{name}'.* are missing")
            for name in ("variant", "model", "checkpoint", "stored", "crc32c", "run", "epoch", "status", "reason")
        ),
        *(
            (nulled(name), f"column {name} has nulls")
            for name in ("model", "stored", "crc32c", "run", "epoch", "status")
        ),
        (with_column("model", 0.0), "column model is Float64, expected Int64"),
        (with_column("model", "0"), "column model is String"),
        (with_column("crc32c", -1, pl.Int64), "column crc32c is Int64"),
        (with_column("stored", 1), "column stored is Int"),
        (with_column("epoch", True), "column epoch is Boolean"),
        (with_column("run", b"x"), "column run is Binary"),
    ],
)
def test_hostile_rows(change: Callable[[pl.DataFrame], pl.DataFrame], said: str, zoo: Path) -> None:
    all_refuse(zoo, forged(zoo, rows=change), said)


FILE: tuple[Any, ...] = ("files", 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *((edited(key), f"'{key}' is missing") for key in ("format", "zoo", "variant", "shard", "files", "software")),
        (edited("format", to=2), "format 2"),
        (edited("files", to={}), "files"),
        (edited("files", to=[]), r"files \[\], expected"),
        (edited("files", to=7), "follow"),
        (edited("files", 0, to="x"), "follow"),
        (edited("files", to=[None]), "follow"),
        (edited("software", to=7), "follow"),
        *((edited(*FILE, key), f"'{key}' is missing") for key in ("path", "size", "sha256")),
        *((edited(*FILE, "size", to=size), "a path, a size") for size in (-1, "372", 3.5, True, [1])),
        *((edited(*FILE, "sha256", to=digest), "a path, a size") for digest in (7, [1], True)),
        *(
            (edited(*FILE, "path", to=path), "files .*expected|a path, a size")
            for path in (
                "../../etc/passwd",
                "/etc/passwd",
                "weights/net/../net/c/0/0/0",
                "weights/net/c/1/0/0",
                "weights/long/c/0/0/0",
                "zoo.json",
                "C:\\x",
                "http://example.org/x",
                "",
                7,
                None or ["x"],
            )
        ),
    ],
)
def test_hostile_files_of_a_fragment(change: Callable[[dict[str, Any]], None], said: str, zoo: Path) -> None:
    all_refuse(zoo, forged(zoo, content=change), said)


@pytest.mark.parametrize(
    "change",
    [edited("zoo", to="0" * 64), edited("variant", to="long"), edited("variant", to="../x"), edited("shard", to=1)],
)
def test_fragments_of_something_else(change: Callable[[dict[str, Any]], None], zoo: Path) -> None:
    all_refuse(zoo, forged(zoo, content=change), "belongs to another zoo or shard", CorruptError)


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "{", '{"format": NaN}', "[" * 100_000, '{"files": ' + "[" * 100_000, "\ufeff{}", "null"]
)
def test_hostile_metadata_of_a_fragment(text: str, zoo: Path) -> None:
    all_refuse(zoo, forged(zoo, text=text), "does not follow format 1")


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"PAR1PAR1", bytes(1000), b"PAR1" + bytes(64) + b"\xff\xff\xff\x7fPAR1"]
)
def test_fragments_that_are_no_parquet(data: bytes, zoo: Path) -> None:
    all_refuse(zoo, forge_fragment(zoo, fragment(zoo), data), "not a Parquet file")


def test_parquet_without_our_metadata(zoo: Path) -> None:
    out = io.BytesIO()
    pl.read_parquet(zoo / fragment(zoo)).write_parquet(out)
    all_refuse(zoo, forge_fragment(zoo, fragment(zoo), out.getvalue()), "no metadata called weightscape")


@pytest.mark.parametrize(
    "name", ["net.00009", "net.000000", "nut.00000", "net." + 5 * "\u0660", "net.0000", "net.-0001"]
)
def test_hostile_names_of_fragments(name: str, zoo: Path) -> None:
    old = zoo / fragment(zoo)
    old.rename(old.with_name(f"{name}.{old.name.split('.')[2]}.parquet"))
    with pytest.raises(FormatError, match="move it away"):
        catalog.open(zoo).table()
    assert not catalog.verify(zoo).ok


def test_columns_that_do_not_fit_together(zoo: Path) -> None:
    forged(zoo, rows=with_column("width", b"x"))
    with pytest.raises(FormatError, match="do not make one table"):
        catalog.open(zoo).table()
    assert catalog.verify(zoo).problems == ()  # each file is as committed


# --- the table


def forge_table(zoo: Path, change: Callable[[pl.DataFrame], pl.DataFrame], text: str | None = None) -> str:
    catalog.rebuild_table(catalog.open(zoo))
    (path,) = zoo.glob("table.*")
    metadata = {KEY: pl.read_parquet_metadata(path)[KEY] if text is None else text}
    out = io.BytesIO()
    change(pl.read_parquet(path)).write_parquet(out, metadata=metadata)
    path.unlink()
    return forge_fragment(zoo, f"{path.name}", out.getvalue())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.drop("status"), "missing"),
        (lambda rows: rows[:3], "3 rows, expected 18"),
        (with_column("model", "x"), "column model is String"),
        (with_column("zoo", "x"), "column zoo"),
        (with_column("x", [[1]]), "List"),
    ],
)
def test_hostile_tables(change: Callable[[pl.DataFrame], pl.DataFrame], said: str, zoo: Path) -> None:
    name = forge_table(zoo, change)
    with pytest.raises(FormatError, match=rf"{name} .*is no table: .*{said}.*; delete it"):
        catalog.open(zoo).table()
    assert [problem.file for problem in catalog.verify(zoo).problems] == [name]


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_hostile_metadata_of_a_table(text: str, zoo: Path) -> None:
    name = forge_table(zoo, lambda rows: rows, text)
    with pytest.raises(FormatError, match="is no table"):
        catalog.open(zoo).table()
    assert [problem.file for problem in catalog.verify(zoo).problems] == [name]


def test_a_table_that_lies_is_found(zoo: Path) -> None:
    name = forge_table(zoo, with_column("accuracy", 1.0))
    assert [problem.file for problem in catalog.verify(zoo).problems] == [name]
    forge(zoo, lambda content: None)


def test_a_table_that_lies_about_addresses_gives_no_wrong_weights(zoo: Path) -> None:
    forge_table(zoo, with_column("model", 10**6, pl.Int64))
    opened = catalog.open(zoo)
    with pytest.raises(ValueError, match="asks for model 1000000"):
        opened.read(opened.scan().filter(variant="net"))


# --- shards


def forge_shard(zoo: Path, change: Callable[[np.ndarray, bytearray], object], crc: bool = True) -> str:
    """Change the index of a shard, and all checksums with it; returns the file's name."""
    name = "weights/net/c/0/0/0"
    data = bytearray((zoo / name).read_bytes())
    index = np.frombuffer(bytes(data[-68:-4]), "<u8").reshape(4, 2).copy()
    body = data[:-68]
    change(index, body)
    tail = index.tobytes()
    data = body + tail + checksum(tail).to_bytes(4, "little")
    (zoo / name).write_bytes(data)

    def claim(content: dict[str, Any]) -> None:
        content["files"][0] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    forged(zoo, content=claim)
    return name


def rows_of_net(zoo: Path) -> pl.DataFrame:
    return catalog.open(zoo).scan().filter(variant="net").collect()


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ((0, 0), 10**6, "points outside the file"),
        ((0, 0), 2**63, "points outside the file"),
        ((0, 0), ABSENT - 1, "points outside the file"),
        ((0, 0), 305, "points outside the file"),
        ((0, 0), 1, "are damaged"),
        ((0, 1), 10**9, "not raw"),
        ((0, 1), 0, "not raw"),
        ((0, 1), 75, "not raw"),
        ((0, 1), ABSENT, "not raw"),
        ((0, 0), ABSENT, "lacks the chunk of model 0"),
        ((0, 0), 76, "not those committed"),
    ],
)
def test_hostile_index(entry: tuple[int, int], value: int, said: str, zoo: Path) -> None:
    name = forge_shard(zoo, lambda index, _: index.__setitem__(entry, value))
    with pytest.raises(CorruptError, match=rf"shard 0 of net in .*{said}"):
        catalog.open(zoo).read(rows_of_net(zoo))
    assert [(problem.kind, problem.file) for problem in catalog.verify(zoo).problems] == [("corrupt", name)]


def test_an_absent_chunk_where_there_are_weights(zoo: Path) -> None:
    forge_shard(zoo, lambda index, _: index.fill(ABSENT))
    with pytest.raises(CorruptError, match="lacks the chunk"):
        catalog.open(zoo).read(rows_of_net(zoo))
    assert not catalog.verify(zoo).ok


def test_a_shard_shorter_than_its_index(zoo: Path) -> None:
    name = "weights/net/c/0/0/0"
    (zoo / name).write_bytes(b"x" * 10)
    forged(zoo, content=edited("files", 0, "size", to=10))
    with pytest.raises(CorruptError, match="too few for its index"):
        catalog.open(zoo).read(rows_of_net(zoo))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_none(value: float, zoo: Path) -> None:
    """Every checksum is right, and the row says that it holds weights."""
    row = np.full(9, value, "<f4").tobytes()

    def poison(_: np.ndarray, body: bytearray) -> None:
        body[:36] = row
        body[72:76] = checksum(bytes(body[:72])).to_bytes(4, "little")

    name = forge_shard(zoo, poison)
    digests = [checksum(row), *pl.read_parquet(zoo / fragment(zoo))["crc32c"][1:]]
    forged(zoo, rows=lambda rows: rows.with_columns(pl.Series("crc32c", digests, pl.UInt32)))
    with pytest.raises(CorruptError, match="NaN or infinity"):
        catalog.open(zoo).read(rows_of_net(zoo))
    assert [(problem.kind, problem.file) for problem in catalog.verify(zoo).problems] == [("corrupt", name)]


def test_untouched_zoos_still_read(zoo: Path) -> None:
    """The helpers above, changing nothing, give a good zoo: what was refused was refused for a reason."""
    forge_shard(zoo, lambda index, body: None)
    forged(zoo, variant="long")
    catalog.rebuild_table(catalog.open(zoo))
    truth: Truth = {}
    for entry in (net(), long()):
        for shard in range(entry.grid.num_shards):
            truth |= truth_of(entry, shard)
    check_reads(catalog.open(zoo), truth)
    assert catalog.verify(zoo).ok
