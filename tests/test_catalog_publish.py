"""Publishing: every file as it was committed, readers see one version whole, whatever happens meanwhile. No torch."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pytest
import zarr

import catalog
import catalog.inventory
from catalog.errors import FormatError, PublishError, StorageError, UnknownNameError
from catalog.folder import Folder
from catalog.fragments import read_content
from catalog.frames import write_rows, write_universe
from catalog.manifest import Manifest
from catalog.metrics import Measurement, version_of, write_measurement
from catalog.parquet import columns_of
from catalog.publish import publish
from catalog.store import Zoo
from tests.catalog_zoos import Truth, check_reads, create, fill, manifest_of, net, tree, write
from tests.processes import ROOT
from tests.test_catalog_frames import aligned

Made = tuple[Zoo, Truth]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSCAPE_CACHE", os.fspath(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return fill(tmp_path_factory.mktemp("source") / "a zoo")


@pytest.fixture
def own(source: Made, tmp_path: Path) -> Zoo:
    """A copy of the source that a test may change."""
    return catalog.open(shutil.copytree(source[0].url, tmp_path / "own"))


def measure(zoo: Zoo, value: float = 1.0, metric: str = "trace") -> str:
    rows = pl.DataFrame({"run": ["net-0", "long-2"], "epoch": [10, 0], metric: [value, 2 * value]})
    return write_measurement(zoo, Measurement(metric, version_of(1, {"v": value}), {"v": value}, True, rows, {}))


def check_whole(url: Any, manifest: Manifest, **options: Any) -> None:
    """All files of a version are there, as it says; nothing is half-written."""
    base = Folder.at(f"{url}/{manifest.base}", **options)
    for path, file in manifest.files.items():
        data = base.read(path)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256), path


def same_rows(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    return one.drop("zoo", strict=False).equals(other.select(c for c in one.columns if c != "zoo"))


# --- what is published


def test_a_published_zoo_is_the_zoo(source: Made, tmp_path: Path) -> None:
    zoo, truth = source
    seen: list[tuple[int, int]] = []
    done = publish(zoo.url, tmp_path / "to", licence="MIT", progress=lambda *now: seen.append(now))
    assert (done.version, done.changed, done.left_out) == (1, True, ())
    assert seen[-1] == (done.uploaded_bytes, done.manifest.size)
    assert set(done.uploaded) == set(done.manifest.files.values())
    check_whole(tmp_path / "to", done.manifest)
    far = catalog.open(tmp_path / "to")
    assert far.folder.manifest == done.manifest
    assert done.manifest.counts == {"ok": 14, "diverged": 4}
    assert done.manifest.licence == "MIT"
    check_reads(far, truth)
    assert same_rows(zoo.table(), far.table())
    base = done.manifest.base
    mine = {f"{base}/{name}" for name in tree(Path(zoo.url)) if not name.startswith("table.")}
    named = {f"{base}/{done.manifest.columns.path}", "manifest.json", "versions/1.json", "README.md", "croissant.json"}
    assert set(tree(tmp_path / "to")) == mine | named
    assert (tmp_path / "to/manifest.json").read_bytes() == (tmp_path / "to/versions/1.json").read_bytes()
    found = catalog.verify(tmp_path / "to")
    assert (found.problems, found.digest) == ((), done.manifest.tree)


def test_without_a_change_there_is_no_new_version(own: Zoo, tmp_path: Path) -> None:
    publish(own, tmp_path / "to", licence="MIT")
    before = tree(tmp_path / "to")
    again = publish(own, tmp_path / "to")
    assert (again.version, again.changed, again.uploaded) == (1, False, ())
    catalog.rebuild_table(own)  # an index: not published, so its coming and going is no change
    for table in Path(own.url).glob("table.*"):
        table.unlink()
    assert not publish(own, tmp_path / "to").changed
    assert tree(tmp_path / "to") == before


def test_a_new_version_adds_what_is_new(own: Zoo, tmp_path: Path) -> None:
    first = publish(own, tmp_path / "to", licence="MIT", citation="A. Author", description="Small ones.")
    before = tree(tmp_path / "to")
    name = measure(own)
    planned = publish(own, tmp_path / "to", dry_run=True)
    assert tree(tmp_path / "to") == before
    second = publish(own, tmp_path / "to")
    assert planned.uploaded == second.uploaded
    assert planned.manifest == second.manifest
    assert {file.path for file in second.uploaded} == {name, second.manifest.columns.path}
    assert second.manifest.previous == first.manifest.digest
    assert catalog.open(tmp_path / "to/versions/1.json").folder.manifest == first.manifest
    assert (second.manifest.licence, second.manifest.citation) == ("MIT", "A. Author")
    after = tree(tmp_path / "to")
    assert {name for name in before if after[name] != before[name]} == {"manifest.json", "README.md", "croissant.json"}
    assert same_rows(own.table(), catalog.open(tmp_path / "to").table())
    assert "trace" not in catalog.open(tmp_path / "to/versions/1.json").table().columns
    third = publish(own, tmp_path / "to", licence="CC0-1.0")
    assert (third.version, third.uploaded) == (3, ())
    assert publish(own, tmp_path / "to", licence="").manifest.licence == ""


def test_a_zoo_built_anew_gets_a_folder_of_its_own(source: Made, own: Zoo, tmp_path: Path) -> None:
    publish(own, tmp_path / "to")
    other, truth = fill(tmp_path / "other", net(), seed=5)
    done = publish(other, tmp_path / "to")
    assert done.version == 2
    check_reads(catalog.open(tmp_path / "to"), truth)
    check_reads(catalog.open(tmp_path / "to/versions/1.json"), source[1])
    back = publish(own, tmp_path / "to")  # its files are there still
    assert (back.version, back.uploaded) == (3, ())


def test_frames_cards_and_columns_from_another_folder_are_published(tmp_path: Path) -> None:
    zoo, truth = fill(tmp_path / "one", net())
    write_universe(zoo, "universe", aligned())
    write_rows(zoo, "universe", aligned())
    for name in ("cards/flow.json", "cards/evil.pkl", "note.txt"):
        path = Path(zoo.url, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    beside = catalog.open(zoo.url, metrics_at=tmp_path / "beside")
    measure(beside)
    here = publish(zoo, tmp_path / "to")
    assert here.left_out == ("cards/evil.pkl", "note.txt")
    assert catalog.open(tmp_path / "to").frames() == {"universe": ("net",)}
    assert catalog.open(tmp_path / "to").folder.read("cards/flow.json") == b"{}"
    publish(beside, tmp_path / "there")
    assert same_rows(beside.table(), catalog.open(tmp_path / "there").table())
    check_reads(catalog.open(tmp_path / "there"), truth)


def test_a_packed_zoo_is_published(source: Made, tmp_path: Path) -> None:
    catalog.pack(source[0].url, tmp_path / "packed")
    publish(tmp_path / "packed", tmp_path / "to")
    check_reads(catalog.open(tmp_path / "to"), source[1])


def test_a_mirror_has_the_same_files(own: Zoo, memory: str, tmp_path: Path) -> None:
    measure(own)
    first = publish(own, memory, licence="MIT")
    mirrored = publish(memory, tmp_path / "mirror", licence="MIT")
    assert mirrored.manifest.tree == first.manifest.tree
    check_whole(tmp_path / "mirror", mirrored.manifest)
    assert not publish(own, tmp_path / "mirror").changed


def test_on_s3(own: Zoo, source: Made, bucket: str, s3_options: dict[str, Any]) -> None:
    first = publish(own, f"{bucket}/zoos/tiny", **s3_options)
    measure(own)
    second = publish(own, f"{bucket}/zoos/tiny", verify="sizes", **s3_options)
    assert (second.version, len(second.uploaded)) == (2, 2)
    check_whole(f"{bucket}/zoos/tiny", second.manifest, **s3_options)
    check_reads(catalog.open(f"{bucket}/zoos/tiny", **s3_options), source[1])
    assert catalog.open(f"{bucket}/zoos/tiny/versions/1.json", **s3_options).folder.manifest == first.manifest
    text = Folder.at(f"{bucket}/zoos/tiny", **s3_options).read("README.md").decode()
    assert f'url = "{bucket}/zoos/tiny"' in text


# --- the table and the metadata of the arrays


def test_the_table_has_what_reads_need_first(own: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.inventory, "GROUP", 4)
    measure(own)
    done = publish(own, tmp_path / "to")
    columns = done.manifest.columns
    assert columns.groups == (4, 4, 4, 4, 2)
    data = (tmp_path / "to" / done.manifest.base / columns.path).read_bytes()
    assert columns.path == f"catalog.{hashlib.sha256(data).hexdigest()[:32]}.parquet"
    rows = pl.read_parquet(io.BytesIO(data))
    names = ["variant", "model", "checkpoint", "run", "epoch", "status", "reason", "stored", "crc32c"]
    assert rows.columns == list(columns.chunks) == [*names, "width", "accuracy", "trace", "bits"]
    assert same_rows(own.table(), rows)
    assert read_content(data)["zoo"] == own.record.digest
    monkeypatch.setattr(catalog.inventory, "GROUPS", 2)
    assert publish(own, tmp_path / "few").manifest.columns.groups == (9, 9)


def test_plain_zarr_reads_the_consolidated_metadata(source: Made, tmp_path: Path) -> None:
    done = publish(source[0], tmp_path / "to")
    base = tmp_path / "to" / done.manifest.base
    ours = json.loads((base / "zarr.json").read_bytes())
    group = zarr.open_group(str(base), mode="r", use_consolidated=True)
    shutil.rmtree(base / "weights/net")  # the metadata of the array come from the root alone
    weights: Any = group["weights"]
    assert {name: array.shape for name, array in weights.arrays()} == {"net": (6, 2, 9), "long": (3, 2, 9)}
    truth = source[1]["long", 2, 1]
    array: Any = zarr.open_group(str(base), mode="r")["weights/long"]
    np.testing.assert_array_equal(array[2, 1], truth)
    theirs = tmp_path / "theirs"
    for name, content in source[0].record.metadata_files().items():
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_bytes(content)
    with pytest.warns(UserWarning, match="Consolidated"):
        zarr.consolidate_metadata(str(theirs))
    expected = json.loads((theirs / "zarr.json").read_bytes())
    for nodes in (expected, ours):
        for node in nodes["consolidated_metadata"]["metadata"].values():
            node.pop("storage_transformers", None)
    assert ours == expected


def parquet(rows: pl.DataFrame, **how: Any) -> bytes:
    out = io.BytesIO()
    rows.write_parquet(out, **how)
    return out.getvalue()


def tables() -> dict[str, pl.DataFrame]:
    generator = np.random.default_rng(0)
    count = 1000
    kinds = {
        "integers": generator.integers(0, 9, count),
        "floats": generator.normal(size=count),
        "a.b c": [f"run {i % 7}" for i in range(count)],
        "long text": ["x" * i for i in range(count)],
        "truths": generator.random(count) < 0.5,
        "bytes": [bytes([i % 256]) * 3 for i in range(count)],
        "nulls": [None if i % 3 else i for i in range(count)],
        "nothing": pl.Series([None] * count, dtype=pl.Float32),
        "ünïcode \N{GRINNING FACE}": [1] * count,
    }
    whole = pl.DataFrame(kinds)
    return {
        "whole": whole,
        "one row": whole.head(1),
        "one column": whole.select("floats"),
        "many": whole.select(pl.col("integers").alias(f"c{i}") for i in range(250)),
    }


@pytest.mark.parametrize("rows", tables().values(), ids=tables())
@pytest.mark.parametrize("compression", ["zstd", "uncompressed", "snappy", "lz4"])
def test_columns_lie_where_arrow_says(rows: pl.DataFrame, compression: Any) -> None:
    arrow = pytest.importorskip("pyarrow.parquet")
    for size, statistics in ((None, True), (300, "full"), (1, False)):
        if size == 1 and len(rows) * len(rows.columns) > 10_000:
            continue
        data = parquet(rows, compression=compression, row_group_size=size, statistics=statistics)
        found = columns_of("x.parquet", data)
        metadata = arrow.read_metadata(io.BytesIO(data))
        assert found.groups == tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        assert list(found.chunks) == metadata.schema.names
        covered = 4
        for number in range(metadata.num_row_groups):
            for place, name in enumerate(found.chunks):
                theirs, chunk = metadata.row_group(number).column(place), found.chunks[name][number]
                starts = (theirs.dictionary_page_offset, theirs.data_page_offset)
                assert chunk.offset == min(start for start in starts if start)
                assert chunk.size == theirs.total_compressed_size
                part = data[chunk.offset : chunk.offset + chunk.size]
                assert chunk.digest == hashlib.sha256(part).hexdigest()[:32]
                covered = max(covered, chunk.offset + chunk.size)
        assert found.footer == data[covered:]


def test_what_is_no_parquet_file_is_refused() -> None:
    whole = parquet(tables()["whole"].head(20).select("floats", "a.b c", "nulls"), row_group_size=7)
    sound = columns_of("x", whole)
    length = int.from_bytes(whole[-8:-4], "little")
    odd = [b"", b"PAR1", b"PAR1" * 3, whole[:-1], whole[1:], whole[:-8] + (2**31).to_bytes(4, "little") + b"PAR1"]
    odd.append(b"PAR1" + b"\x1c" * 100_000 + (100_000).to_bytes(4, "little") + b"PAR1")  # structs in structs
    odd.append(b"PAR1" + b"\x19\xfc\xff\xff\xff\xff\x0f" + (7).to_bytes(4, "little") + b"PAR1")  # a list of 2^32
    odd.append(parquet(pl.DataFrame({"a": [[1, 2]]})))
    odd.append(parquet(pl.DataFrame({"a": [{"b": 1, "c": 2}]})))
    for data in odd:
        with pytest.raises(FormatError, match="flat columns"):
            columns_of("x", data)
    for place in range(len(whole) - 8 - length, len(whole)):  # each byte of the footer: refused, or harmless
        for bit in (0, 6):
            spoilt = bytearray(whole)
            spoilt[place] ^= 1 << bit
            try:
                found = columns_of("x", bytes(spoilt))
            except FormatError:
                continue
            chunks = [chunk for some in found.chunks.values() for chunk in some]
            assert all(chunk.offset + chunk.size <= len(whole) for chunk in chunks)
            assert len(chunks) == len(sound.chunks) * 3


# --- what is not published


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_a_damaged_zoo_is_never_published(own: Zoo, tmp_path: Path) -> None:
    metric = measure(own)
    publish(own, tmp_path / "before")
    shown = tree(tmp_path / "before")
    fragment = sorted(name for name in tree(Path(own.url)) if name.startswith("index/"))[0]
    for name in ("weights/net/c/0/0/0", "weights/long/c/1/0/2", fragment, metric):
        for damage in (flip, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x" * 9)):
            path = Path(own.url, name)
            sound = path.read_bytes()
            damage(path)
            if not (name == metric and damage is Path.unlink):  # nobody can tell that it was there
                where = tmp_path / "new"
                with pytest.raises(PublishError, match=r"not built yet|damaged|not what was committed|not there"):
                    publish(own.url, where)
                assert not (where / "manifest.json").exists()
                assert not (where / "versions").exists()
                shutil.rmtree(where, ignore_errors=True)
            path.write_bytes(sound)
    # what is published already is not read again: the damage here is no harm there
    flip(Path(own.url, "weights/net/c/0/0/0"))
    assert not publish(own.url, tmp_path / "before").changed
    assert tree(tmp_path / "before") == shown


def test_an_incomplete_zoo_only_when_asked(tmp_path: Path) -> None:
    zoo = create(tmp_path / "zoo")
    with pytest.raises(PublishError, match="5 of 5 shards"):
        publish(zoo, tmp_path / "to")
    with pytest.raises(PublishError, match="no rows"):
        publish(zoo, tmp_path / "to", allow_incomplete=True)
    write(zoo, "net", 1)
    with pytest.raises(PublishError, match="4 of 5 shards"):
        publish(zoo, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    done = publish(zoo, tmp_path / "to", allow_incomplete=True)
    assert catalog.open(tmp_path / "to").read(zoo.scan()).shape == (4, 9)
    assert "Incomplete: 4 of 18 rows" in (tmp_path / "to/README.md").read_text()
    fill(zoo.url)
    whole = publish(zoo, tmp_path / "to")
    assert whole.version == 2
    assert set(whole.manifest.files) > set(done.manifest.files) - {done.manifest.columns.path}


def test_another_build_of_the_zoo_does_not_change_what_is_published(own: Zoo, tmp_path: Path) -> None:
    publish(own, tmp_path / "to")
    before = tree(tmp_path / "to")
    other, _ = fill(tmp_path / "other", seed=1)
    assert other.record.digest == own.record.digest
    with pytest.raises(PublishError, match="has other bytes than in version 1"):
        publish(other, tmp_path / "to")
    assert tree(tmp_path / "to") == before


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("own", "lie in each other"),
        ("own/inside", "lie in each other"),
        (".", "lie in each other"),
        ("other", "is a zoo itself"),
        ("http://127.0.0.1:9/x", "web server"),
    ],
)
def test_places_for_no_zoo(own: Zoo, tmp_path: Path, place: str, said: str) -> None:
    if place.startswith("http"):
        pytest.importorskip("aiohttp")
    create(tmp_path / "other")
    before = tree(tmp_path)
    with pytest.raises(PublishError, match=said):
        publish(own, place if "://" in place else tmp_path / place)
    assert tree(tmp_path) == before


def test_texts_that_cannot_be_shown(own: Zoo, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="licence"):
        publish(own, tmp_path / "to", licence="MIT\n- x")
    with pytest.raises(PublishError, match="citation"):
        publish(own, tmp_path / "to", citation="a\x1b[31m")
    with pytest.raises(UnknownNameError, match="full"):
        publish(own, tmp_path / "to", verify="ful")
    assert not (tmp_path / "to").exists()


def test_offline_nothing_is_published(own: Zoo, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSCAPE_OFFLINE", "1")
    with pytest.raises(StorageError, match="OFFLINE"):
        publish(own, memory)


# --- interrupted


def test_going_on_where_it_was_stopped(own: Zoo, source: Made, tmp_path: Path) -> None:
    total = len(publish(own, tmp_path / "to", dry_run=True).uploaded)
    late = Path(own.url, "weights/net/c/1/0/0")
    sound = late.read_bytes()
    flip(late)
    with pytest.raises(PublishError, match=r"net/c/1/0/0 .* not what was committed"):
        publish(own, tmp_path / "to")
    late.write_bytes(sound)
    assert not (tmp_path / "to/versions").exists()
    left = tree(tmp_path / "to")
    assert 10 < len(left) < total
    times = {name: os.stat(tmp_path / "to" / name).st_mtime_ns for name in left}
    spoilt = next(name for name in left if "weights/long/c/0/0/0" in name)
    flip(tmp_path / "to" / spoilt)  # a leftover that is not what it should be is written again
    done = publish(own, tmp_path / "to")
    assert len(done.uploaded) == total - len(left) + 1
    for name, time in times.items():
        assert name == spoilt or os.stat(tmp_path / "to" / name).st_mtime_ns == time
    check_whole(tmp_path / "to", done.manifest)
    check_reads(catalog.open(tmp_path / "to"), source[1])


KILLED = """
import os, shutil, sys
import pytest
import tests.catalog_zoos as zoos
import catalog
zoos.CALLS = ("open", "write", "fsync", "replace", "link", "unlink")
source, start, place = sys.argv[1:4]
first, last = int(sys.argv[4]), int(sys.argv[5])
for nth in range(first, last):
    shutil.copytree(start, f"{place}/{nth}") if os.path.exists(start) else None
    child = os.fork()
    if child == 0:
        with zoos.stopping(nth, lambda: os._exit(9), pytest.MonkeyPatch()):
            catalog.publish(source, f"{place}/{nth}")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, flush=True)
    if code == 0:
        break
"""


def test_killed_at_every_step(tmp_path: Path) -> None:
    """Really killed: readers see the version before or the new one, whole; publishing again makes it whole."""
    own, _ = fill(tmp_path / "own", net(models=2))
    start = tmp_path / "start"
    publish(own, start)
    old = catalog.open(start).table()
    measure(own)
    publish(own, shutil.copytree(start, tmp_path / "undisturbed"))
    command = [sys.executable, "-W", "ignore", "-c", KILLED, own.url, str(start), str(tmp_path / "k"), "1", "200"]
    environment = {**os.environ, "POLARS_MAX_THREADS": "1"}
    (tmp_path / "k").mkdir()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    codes = list(map(int, done.stdout.split()))
    assert codes == [9] * (len(codes) - 1) + [0]
    assert len(codes) > 30
    seen = []
    for nth in range(1, len(codes)):
        place = tmp_path / "k" / str(nth)
        zoo = catalog.open(place)
        assert zoo.folder.manifest is not None
        seen.append(zoo.folder.manifest.version)
        check_whole(place, zoo.folder.manifest)
        assert same_rows(old if seen[-1] == 1 else own.table(), zoo.table())
        assert publish(own, place).version == 2
        assert tree(place) == tree(tmp_path / "undisturbed")
        assert not list(place.rglob(".tmp-*"))
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


def test_a_store_that_fails_at_every_write(own: Zoo, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nth PUT is refused; what readers see is a version, and the next call makes it whole."""
    from fsspec.implementations.memory import MemoryFileSystem

    first = publish(own, memory).manifest
    first_files = Folder.at(memory).files()
    name = measure(own)
    real = MemoryFileSystem.pipe_file
    calls: list[str] = []

    def failing(nth: int) -> Callable[..., Any]:
        def pipe_file(self: Any, path: str, value: bytes, **how: Any) -> None:
            calls.append(path)
            if len(calls) == nth:
                raise TimeoutError("the store does not answer")
            real(self, path, value, **how)

        return pipe_file

    filesystem, root = fsspec.core.url_to_fs(memory)
    for nth in range(1, 20):
        calls.clear()
        url = f"{memory}/{nth}"
        for path in first_files:
            real(filesystem, f"{root}/{nth}/{path}", filesystem.cat_file(f"{root}/{path}"))
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "pipe_file", failing(nth))
            if nth > 6:  # metric, table, version, README, Croissant, pointer
                assert publish(own, url).version == 2
                break
            with pytest.raises(StorageError, match="does not answer"):
                publish(own, url)
        shown = catalog.open(url).folder.manifest
        assert shown == first
        check_whole(url, first)
        assert publish(own, url).version == 2
        check_whole(url, catalog.open(url).folder.manifest or first)
        assert catalog.open(url).folder.read(name)


def test_what_comes_back_otherwise_is_not_published(own: Zoo, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    real = MemoryFileSystem.pipe_file

    def spoiling(how: Callable[[bytes], bytes]) -> Callable[..., Any]:
        def pipe_file(self: Any, path: str, value: bytes, **options: Any) -> None:
            real(self, path, how(value) if "weights/long/c/1" in path else value, **options)

        return pipe_file

    for verify, how in (("full", lambda data: data[:-1] + b"x"), ("sizes", lambda data: data[:-1])):
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "pipe_file", spoiling(how))
            with pytest.raises(PublishError, match="comes back"):
                publish(own, memory, verify=verify)
        assert not Folder.at(memory).exists("manifest.json")
        assert Folder.at(memory).files("versions") == []
    publish(own, memory)
    check_whole(memory, manifest_of(catalog.open(memory)))


# --- several at once


@pytest.mark.parametrize("where", ["local", "memory", "s3"])
def test_of_several_writers_of_a_new_file_one_wins(request: pytest.FixtureRequest, tmp_path: Path, where: str) -> None:
    options = request.getfixturevalue("s3_options") if where == "s3" else {}
    url = {"local": lambda: tmp_path, "memory": lambda: request.getfixturevalue("memory")}.get(
        where, lambda: request.getfixturevalue("bucket")
    )()
    folder = Folder.at(url, **options)
    if where != "memory":  # which looks, then writes
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda n: folder.write_new("versions/1.json", b"%d" % n * 1000), range(8)))
        assert sum(won) == 1
        assert folder.read("versions/1.json") == b"%d" % won.index(True) * 1000
    else:
        assert folder.write_new("versions/1.json", b"first")
    data = folder.read("versions/1.json")
    assert folder.write_new("versions/1.json", data)  # the answer was lost, and it is sent again
    assert not folder.write_new("versions/1.json", b"other")
    assert folder.read("versions/1.json") == data
    assert folder.files() == ["versions/1.json"]


def test_who_writes_the_pointer_last_has_seen_all(
    own: Zoo, source: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version is published whole between a publisher's look at the versions and its pointer."""
    other, truth = fill(tmp_path / "other", net(models=2), name="other")
    real = Folder.write
    seen: list[str] = []

    def write(self: Folder, name: str, data: Any) -> None:
        if name == "manifest.json" and not seen:
            seen.append(name)
            assert publish(other, tmp_path / "to").version == 2
        real(self, name, data)

    monkeypatch.setattr(Folder, "write", write)
    assert publish(own, tmp_path / "to").version == 1
    check_reads(catalog.open(tmp_path / "to"), truth)
    check_reads(catalog.open(tmp_path / "to/versions/1.json"), source[1])
    assert (tmp_path / "to/manifest.json").read_bytes() == (tmp_path / "to/versions/2.json").read_bytes()
    assert "# other\n" in (tmp_path / "to/README.md").read_text()


def test_two_publish_on_s3_at_once(tmp_path: Path, bucket: str, s3_options: dict[str, Any]) -> None:
    made = {name: fill(tmp_path / name, net(models=2), name=name, seed=seed) for seed, name in enumerate("ab")}
    with ThreadPoolExecutor(2) as pool:
        options = [{**s3_options, "default_block_size": 5 << 20 | number} for number in range(2)]  # a client each
        done = list(pool.map(lambda name, how: publish(made[name][0], bucket, **how), made, options))
    assert {one.version for one in done} == {1, 2}
    for one in done:
        check_reads(catalog.open(f"{bucket}/versions/{one.version}.json", **s3_options), made[one.manifest.name][1])
    newest = catalog.open(bucket, **s3_options).folder.manifest
    assert newest in [one.manifest for one in done]
    assert newest
    assert newest.version == 2


def test_a_listing_from_before_does_not_hide_what_others_wrote(bucket: str, s3_options: dict[str, Any]) -> None:
    mine = Folder.at(bucket, **s3_options)
    other = Folder.at(bucket, **s3_options, skip_instance_cache=True)  # as in another process
    assert mine.write_new("versions/1.json", b"1")
    assert mine.files("versions") == ["versions/1.json"]
    assert other.write_new("versions/2.json", b"other")
    assert not mine.write_new("versions/2.json", b"mine")
    assert mine.read("versions/2.json") == b"other"
    assert mine.files("versions") == ["versions/1.json", "versions/2.json"]


PUBLISHER = """
import sys
import catalog
source, url, times = sys.argv[1:4]
for number in range(int(times)):
    catalog.publish(source, url, licence=f"{source[-1]}-{number}")
"""


def test_two_publish_and_others_read(tmp_path: Path) -> None:
    """Real processes: every publication is a version, and a reader sees one of them whole at any time."""
    truths = {name: fill(tmp_path / name, net(), name=name, seed=seed)[1] for seed, name in enumerate("ab")}
    publish(tmp_path / "a", tmp_path / "to", licence="first")
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PUBLISHER, tmp_path / name, tmp_path / "to", "6"], cwd=ROOT
        )
        for name in "ab"
    ]
    versions = []
    while any(process.poll() is None for process in running):
        zoo = catalog.open(tmp_path / "to")
        assert set(zoo.table()["zoo"]) == {manifest_of(zoo).name}
        check_reads(zoo, truths[zoo.name])
        versions.append(manifest_of(zoo).version)
    assert [process.returncode for process in running] == [0, 0]
    assert len(set(versions)) > 2
    manifests = [manifest_of(catalog.open(tmp_path / f"to/versions/{n}.json")) for n in range(1, 14)]
    assert {m.licence for m in manifests} == {"first", *(f"{name}-{n}" for name in "ab" for n in range(6))}
    for before, after in itertools.pairwise(manifests):
        assert after.previous == before.digest
    assert catalog.open(tmp_path / "to").folder.manifest == manifests[-1]
    assert f"Version {manifests[-1].version}," in (tmp_path / "to/README.md").read_text()
    assert not list((tmp_path / "to").rglob(".tmp-*"))
