"""Rows come back whole from any grid, order, place and disk; stock zarr and we read each other's shards."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import pickle
import random
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import google_crc32c
import google_crc32c.python
import numpy as np
import polars as pl
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

import catalog
from catalog import files as catalog_files
from catalog import gather
from catalog import ranges as catalog_ranges
from catalog.errors import CorruptError, MissingDataError
from catalog.fragments import StoredFile, encode_fragment
from catalog.grid import ABSENT, STORED_AS, Grid, checksum, extend, from_stored, to_stored
from catalog.record import Variant
from catalog.shards import decode_index, join_crcs
from catalog.store import Zoo
from tests.catalog_zoos import SOFTWARE, Truth, check_reads, fill, long, net, tree, write
from weightspace.layout import Layout


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """All that a grid can be, small: rows in one chunk or several, in one file or several, edges everywhere."""
    models, checkpoints, size = draw(st.integers(1, 12)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    m, p = draw(st.integers(1, 5)), draw(st.one_of(st.just(size), st.integers(1, size)))
    shard = m * draw(st.integers(1, 3)), checkpoints, p * draw(st.integers(1, 3) if p < size else st.just(1))
    return Grid((models, checkpoints, size), (m, 1, p), shard, draw(st.sampled_from(sorted(STORED_AS))))


def layout_of(size: int) -> Layout:
    """Tensors of 1, 2, 3, ... weights, and what remains."""
    sizes: list[int] = []
    while sum(sizes) < size:
        sizes.append(min(len(sizes) + 1, size - sum(sizes)))
    return Layout(tuple(f"t{n}" for n in range(len(sizes))), tuple((n,) for n in sizes))


def make(url: Any, grid: Grid, seed: int, lost: float = 0.2, **options: Any) -> tuple[Zoo, np.ndarray, np.ndarray]:
    """A zoo on this grid; its weights (models, checkpoints, size), and which rows hold some (models, checkpoints)."""
    chosen = np.random.default_rng(seed)
    weights = from_stored(to_stored(chosen.normal(size=grid.shape), grid.dtype), grid.dtype)
    stored = chosen.random(grid.shape[:2]) >= lost
    variant = Variant("net", {}, layout_of(grid.shape[2]), grid)
    zoo = catalog.create(url, name="grid", variants=[variant], **options)
    for shard in range(grid.num_shards):
        models = grid.models(shard)
        places = [(model, checkpoint) for model in models for checkpoint in range(grid.shape[1])]
        kept = [bool(stored[place]) for place in places]
        rows = pl.DataFrame(
            {
                "run": [str(model) for model, _ in places],
                "epoch": [checkpoint for _, checkpoint in places],
                "status": ["ok" if k else "diverged" for k in kept],
                "reason": "",
                "stored": kept,
            }
        )
        catalog.write_shard(zoo, "net", shard, weights[models.start : models.stop], rows, SOFTWARE)
    return zoo, weights, stored


def rewrite_with_zarr(folder: Path, zoo: Zoo, weights: np.ndarray, stored: np.ndarray) -> int:
    """Let stock zarr write all shards in the place of ours, and commit its files; how many have other bytes."""
    grid = zoo.record.variant("net").grid
    values = to_stored(np.where(stored[..., None], weights, np.nan), grid.dtype)
    before = tree(folder)
    shutil.rmtree(folder / "weights/net/c")
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.open_array(folder / "weights/net", mode="r+")
        array[:] = values if grid.dtype != "float32" else values.astype(np.float32)
    for name in zoo.committed().values():
        fragment = zoo.fragment(name)
        files = []
        for file in fragment.files:
            data = (folder / file.path).read_bytes()
            files.append(StoredFile(file.path, len(data), hashlib.sha256(data).hexdigest()))
        (folder / name).unlink()
        new, data = encode_fragment(zoo.record, replace(fragment, files=tuple(files)))
        (folder / new).write_bytes(data)
    after = tree(folder)
    return sum(before.get(name) != digest for name, digest in after.items() if "/c/" in name)


def check_some(zoo: Zoo, weights: np.ndarray, stored: np.ndarray, data: st.DataObject) -> None:
    """Any rows in any order, with repeats, whole or some tensors."""
    places = np.argwhere(stored)
    if not len(places):
        return
    layout = zoo.layout
    picks = data.draw(st.lists(st.integers(0, len(places) - 1), min_size=1, max_size=2 * len(places)), "rows")
    if data.draw(st.booleans(), "in order"):
        picks = sorted(set(picks))
    names = data.draw(st.none() | st.lists(st.sampled_from(layout.names), unique=True), "tensors")
    model, checkpoint = places[picks].T
    rows = pl.DataFrame({"variant": "net", "model": model, "checkpoint": checkpoint})
    expected = weights[model, checkpoint]
    if names is not None:
        expected = expected[:, layout.indices(names)]
    np.testing.assert_array_equal(zoo.read(rows, tensors=names), expected)


# --- any grid, both ways with stock zarr


@given(grid=grids(), seed=st.integers(0, 99), data=st.data())
@example(grid=Grid((5, 2, 3), (2, 1, 3), (4, 2, 3), "float32"), seed=0, data=None)
@settings(max_examples=30)
def test_zarr_reads_what_we_write_and_the_reverse(grid: Grid, seed: int, data: st.DataObject | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        zoo, weights, stored = make(folder, grid, seed)
        array = zarr.open_array(Path(folder) / "weights/net", mode="r")
        values = from_stored(np.asarray(array[:]), grid.dtype)
        np.testing.assert_array_equal(values, np.where(stored[..., None], weights, np.nan))
        rewrite_with_zarr(Path(folder), zoo, weights, stored)
        theirs = catalog.open(folder)
        for _ in range(2):
            if data is None:
                model, checkpoint = np.nonzero(stored)
                rows = pl.DataFrame({"variant": "net", "model": model, "checkpoint": checkpoint})
                np.testing.assert_array_equal(theirs.read(rows), weights[stored])
            else:
                check_some(theirs, weights, stored, data)
        assert [p for p in catalog.verify(folder).problems if p.kind != "unknown"] == []


def test_zarr_puts_chunks_in_another_order(tmp_path: Path) -> None:
    """So that the test above is one of the index: where a chunk lies is not computed."""
    zoo, weights, stored = make(tmp_path, Grid((8, 2, 3), (2, 1, 3), (8, 2, 3), "float32"), 0)
    assert rewrite_with_zarr(tmp_path, zoo, weights, stored) == 1


@given(grid=grids(), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=30)
def test_any_rows_of_any_grid(grid: Grid, seed: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        zoo, weights, stored = make(folder, grid, seed)
        for _ in range(4):
            check_some(zoo, weights, stored, data)


@given(grid=grids(), seed=st.integers(0, 99), gap=st.sampled_from([0, 40, 1 << 16]), data=st.data())
@settings(max_examples=150)
def test_any_rows_of_any_grid_far_away(grid: Grid, seed: int, gap: int, data: st.DataObject) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    try:
        zoo, weights, stored = make(url, grid, seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(catalog_ranges, "GAP", gap)
            patch.setattr(catalog_ranges, "REQUEST", 4 * gap)
            patch.setattr(catalog_ranges, "SPARE", 1)
            patch.setattr(catalog_files.RemoteFiles, "together", gap)
            for _ in range(3):
                check_some(zoo, weights, stored, data)
    finally:
        fsspec.filesystem("memory").rm(url, recursive=True)


# --- checksums


@given(rows=st.lists(st.binary(min_size=7, max_size=7), min_size=1, max_size=9), more=st.binary(max_size=9))
def test_checksums_join(rows: list[bytes], more: bytes) -> None:
    crcs = np.array([[checksum(row)] for row in rows], np.uint32)
    whole = b"".join(rows)
    assert join_crcs(crcs, 7).tolist() == [checksum(whole)]
    assert extend(checksum(whole), more) == checksum(whole + more)


@pytest.mark.parametrize("implementation", ["c", "python"])
def test_checksums_of_anything(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if implementation == "python":  # where the library was built without its C code
        monkeypatch.setattr(google_crc32c, "implementation", "python")
        monkeypatch.setattr(google_crc32c, "extend", google_crc32c.python.extend)
    assert checksum(b"123456789") == 0xE3069283  # of the standard
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    data = values.tobytes()
    for same in (values, data, bytearray(data), memoryview(data), memoryview(bytearray(data)), values.data):
        assert checksum(same) == checksum(data)
    for nothing in (b"", bytearray(), memoryview(b""), np.empty(0)):
        assert checksum(nothing) == 0


# --- what is read


def wide(folder: Path) -> tuple[Zoo, np.ndarray, pl.DataFrame]:
    """One shard of 4 chunks of 8 rows."""
    zoo, weights, _ = make(folder, Grid((16, 2, 9), (8, 1, 9), (16, 2, 9), "float32"), 1, lost=0)
    return zoo, weights, zoo.scan().collect()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(offset, bytes) of each positioned read."""
    seen: list[tuple[int, int]] = []
    real = os.preadv

    def preadv(descriptor: int, arrays: Any, offset: int, flags: int = 0) -> int:
        count = real(descriptor, arrays, offset, flags)
        seen.append((offset, count))
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    return seen


def test_only_what_is_needed_is_read(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    zoo, weights, rows = wide(tmp_path)
    chunk = 8 * 36 + 4
    row = rows.filter(model=9, checkpoint=1)
    np.testing.assert_array_equal(zoo.read(row), weights[[9], 1])
    assert asked == [(4 * chunk, 4 * 16 + 4), (3 * chunk + 36, 36)]  # the index, then the row
    asked.clear()
    np.testing.assert_array_equal(
        zoo.read(rows.filter(pl.col("model").is_in([0, 2, 4]), checkpoint=0)), weights[:5:2, 0]
    )
    assert asked == [(0, 36), (72, 36), (144, 36)]  # the index is kept
    asked.clear()
    np.testing.assert_array_equal(zoo.read(rows.filter(checkpoint=0)), weights[:, 0])
    assert asked == [(0, chunk), (2 * chunk, chunk)]
    asked.clear()
    np.testing.assert_array_equal(
        zoo.read(rows.filter(pl.col("model") < 4, checkpoint=1), tensors=["t1"]), weights[:4, 1, 1:3]
    )
    assert asked == [(chunk, chunk)]  # half of a chunk comes with the rest


def num_open(folder: Path) -> int:
    """Open files below a folder, those removed since too; other tests' connections come and go meanwhile."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no list of open files")
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing itself
            found += os.readlink(f"/proc/self/fd/{name}").startswith(f"{folder}/")
    return found


def test_few_files_stay_open_and_none_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_files, "KEPT", 3)
    zoo, weights, _ = make(tmp_path, Grid((9, 1, 9), (1, 1, 9), (1, 1, 9), "float32"), 1, lost=0)
    rows = zoo.scan().collect()
    assert num_open(tmp_path) == 0
    np.testing.assert_array_equal(zoo.read(rows), weights[:, 0])
    assert num_open(tmp_path) == 3
    (tmp_path / "weights/net/c/8/0/0").write_bytes(b"x")
    with pytest.raises(CorruptError):
        zoo.read(rows)
    (tmp_path / "weights/net/c/8/0/0").unlink()
    with pytest.raises(MissingDataError):
        zoo.read(rows)
    del zoo
    gc.collect()
    assert num_open(tmp_path) == 0


def test_a_pipe_in_the_place_of_a_shard_keeps_nobody_waiting(tmp_path: Path) -> None:
    zoo, _, rows = wide(tmp_path)
    (tmp_path / "weights/net/c/0/0/0").unlink()
    os.mkfifo(tmp_path / "weights/net/c/0/0/0")
    with pytest.raises(MissingDataError, match="is no file"):
        zoo.read(rows)


def blocking(*_: Any) -> int:
    raise BlockingIOError


def unsupported(*_: Any) -> int:
    raise OSError(errno.EOPNOTSUPP, "not on this disk")


@pytest.mark.parametrize("answer", [blocking, unsupported, lambda real, *args: real(*args) // 2])
@pytest.mark.parametrize("advice", [True, False])
def test_disks_that_are_cold(
    answer: Callable[..., int], advice: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not in memory is announced, then waited for, also where a read gives less than was asked."""
    truths = [fill(tmp_path / "zoo")[1]]
    zoo, real = catalog.open(tmp_path / "zoo"), os.preadv
    waited: list[int] = []

    def preadv(descriptor: int, arrays: Any, offset: int, flags: int = 0) -> int:
        if flags:
            return answer(real, descriptor, arrays, offset)
        waited.append(offset)
        return real(descriptor, [memoryview(arrays[0])[:5]], offset)

    monkeypatch.setattr(os, "preadv", preadv)
    if not advice:
        monkeypatch.delattr(os, "posix_fadvise")
    check_reads(zoo, truths[0])
    assert len(waited) > 20


def test_systems_without_positioned_reads_into_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, truth = fill(tmp_path)
    monkeypatch.setattr(catalog_files, "NOWAIT", 0)
    monkeypatch.delattr(os, "preadv")
    check_reads(catalog.open(tmp_path), truth)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo, _, rows = wide(tmp_path)
    zoo.read(rows)
    real = os.preadv

    def preadv(*args: Any) -> int:
        os.truncate(tmp_path / "weights/net/c/0/0/0", 100)
        return real(*args)

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(CorruptError, match=r"shard 0 of net in .*/c/0/0/0 ends at byte .*restore it"):
        zoo.read(rows)


# --- what changes while a zoo is open


def test_a_file_in_the_place_of_another_is_read_with_its_own_index(tmp_path: Path) -> None:
    """Stock zarr's chunks lie elsewhere in a file of the same size."""
    zoo, weights, _ = make(tmp_path, Grid((8, 2, 3), (2, 1, 3), (8, 2, 3), "float32"), 0, lost=0)
    rows = zoo.scan().collect()
    np.testing.assert_array_equal(zoo.read(rows), weights.reshape(-1, 3))
    shutil.copytree(tmp_path, tmp_path / "other")
    rewrite_with_zarr(tmp_path / "other", zoo, weights, np.ones((8, 2), bool))
    name = "weights/net/c/0/0/0"
    assert (tmp_path / name).stat().st_size == (tmp_path / "other" / name).stat().st_size
    for overwrite in (os.replace, shutil.copyfile):
        other = catalog.open(tmp_path)
        aside = shutil.copyfile(tmp_path / name, tmp_path / "aside")
        np.testing.assert_array_equal(other.read(rows), weights.reshape(-1, 3))
        overwrite(shutil.copyfile(tmp_path / "other" / name, tmp_path / "new"), tmp_path / name)
        for chosen in (rows, rows[3:4]):
            np.testing.assert_array_equal(
                other.read(chosen),
                weights.reshape(-1, 3)[chosen.select(i="model").to_series() * 2 + chosen["checkpoint"]],
            )
        os.replace(aside, tmp_path / name)


def test_a_file_far_away_in_the_place_of_another(tmp_path: Path) -> None:
    """Nobody says that it changed: its checksums do."""
    near, weights, _ = make(tmp_path, Grid((8, 2, 3), (2, 1, 3), (8, 2, 3), "float32"), 0, lost=0)
    url = f"memory://{uuid.uuid4().hex}"
    far, _, _ = make(url, Grid((8, 2, 3), (2, 1, 3), (8, 2, 3), "float32"), 0, lost=0)
    rows = near.scan().collect()
    try:
        far.read(rows[:1])
        rewrite_with_zarr(tmp_path, near, weights, np.ones((8, 2), bool))
        name = "weights/net/c/0/0/0"
        far.folder.fs.pipe_file(far.folder.path(name), (tmp_path / name).read_bytes())
        for chosen in (rows[5:6], rows):
            np.testing.assert_array_equal(far.read(chosen), weights[chosen["model"], chosen["checkpoint"]])
    finally:
        far.folder.fs.rm(url, recursive=True)


def test_new_shards_are_seen_whatever_the_clock_says(tmp_path: Path) -> None:
    zoo = catalog.create(tmp_path, name="tiny", variants=[net()])
    reader = catalog.open(tmp_path)
    write(zoo, "net", 0)
    first = pl.DataFrame({"variant": "net", "model": [0], "checkpoint": [0]})
    reader.read(first)
    before = (tmp_path / "index").stat()
    write(zoo, "net", 1)
    os.utime(tmp_path / "index", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert reader.read(first.with_columns(model=pl.lit(4))).shape == (1, 9)


# --- many readers


def test_several_threads_read_one_zoo(tmp_path: Path) -> None:
    _, truth = fill(tmp_path)
    zoo = catalog.open(tmp_path)
    problems: list[BaseException] = []
    start = threading.Barrier(4)

    def read(seed: int) -> None:
        chosen = random.Random(seed)
        start.wait()
        try:
            for _ in range(40):
                name = chosen.choice(["net", "long"])
                keys = [chosen.choice([key for key in truth if key[0] == name]) for _ in range(5)]
                rows = pl.DataFrame(keys, schema=["variant", "model", "checkpoint"], orient="row")
                np.testing.assert_array_equal(zoo.read(rows), np.stack([truth[key] for key in keys]))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_zoo_can_be_pickled(tmp_path: Path) -> None:
    zoo, truth = fill(tmp_path)
    check_reads(zoo, truth)
    data = pickle.dumps(zoo)
    assert len(data) == len(pickle.dumps(catalog.open(tmp_path)))  # what it keeps stays here
    again = pickle.loads(data)
    assert again == zoo
    check_reads(again, truth)


# --- requests


def test_few_requests_far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All fragments, all indices, all rows: three waits however many shards, then one."""
    url = f"memory://{uuid.uuid4().hex}"
    try:
        grid = Grid((40, 1, 9), (2, 1, 9), (2, 1, 9), "float32")
        _, weights, _ = make(url, grid, 0, lost=0)
        zoo = catalog.open(url)
        calls: list[int] = []
        real = zoo.folder.fs.cat_ranges

        def cat_ranges(paths: list[str], *args: Any, **options: Any) -> Any:
            calls.append(len(paths))
            return real(paths, *args, **options)

        monkeypatch.setattr(zoo.folder.fs, "cat_ranges", cat_ranges)
        monkeypatch.setattr(zoo.folder.fs, "size", lambda *_: pytest.fail("asked for a size"))
        rows = pl.DataFrame({"variant": "net", "model": list(range(40)), "checkpoint": [0] * 40})
        np.testing.assert_array_equal(zoo.read(rows), weights[:, 0])
        assert calls == [20, 20, 20]
        monkeypatch.setattr(zoo.folder.fs, "find", lambda *_: pytest.fail("listed again"))
        np.testing.assert_array_equal(zoo.read(rows[::3]), weights[::3, 0])
        assert calls == [20, 20, 20, 14]
    finally:
        monkeypatch.undo()
        fsspec.filesystem("memory").rm(url, recursive=True)


# --- a stranger's index


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    folder = tmp_path_factory.mktemp("honest") / "zoo"
    _, truth = fill(folder)
    return folder, truth


@pytest.mark.parametrize(("variant", "name"), [("net", "weights/net/c/0/0/0"), ("long", "weights/long/c/2/0/1")])
def test_a_hostile_index_gives_the_truth_or_an_error(variant: str, name: str, honest: tuple[Path, Truth]) -> None:
    """300 indices with the right checksum: offsets and lengths moved, swapped, doubled, out of all bounds."""
    folder, truth = honest
    good = (folder / name).read_bytes()
    grid = {"net": net(), "long": long()}[variant].grid
    length = int(np.prod(grid.chunks_per_shard)) * 16 + 4
    chunk = grid.chunk[0] * grid.chunk[2] * 4 + 4
    chosen = random.Random(variant)
    keys = [key for key in truth if key[0] == variant]
    rows = pl.DataFrame(keys, schema=["variant", "model", "checkpoint"], orient="row")
    outcomes = {"right": 0, "refused": 0}
    strange = (0, 1, 4, chunk, 2 * chunk, len(good), 2**31, 2**32, 2**63 - 1, 2**63, ABSENT - chunk, ABSENT - 1, ABSENT)
    try:
        for _ in range(300):
            index = np.frombuffer(good[-length:-4], "<u8").reshape(-1, 2).copy()
            for _ in range(chosen.choice([1, 1, 2, 5])):
                at, side = chosen.randrange(len(index)), chosen.randrange(2)
                match chosen.randrange(4):
                    case 0:
                        index[at, side] = chosen.choice(strange)
                    case 1:
                        index[at] = index[chosen.randrange(len(index))]
                    case 2:
                        index[at, side] ^= np.uint64(1 << chosen.randrange(64))
                    case 3:
                        index[[at, -1]] = index[[-1, at]]
            tail = index.tobytes()
            (folder / name).write_bytes(good[:-length] + tail + checksum(tail).to_bytes(4, "little"))
            zoo = catalog.open(folder)
            for some in (rows, rows[chosen.randrange(len(rows)) :][:1]):
                expected = [truth[key] for key in some.iter_rows()]
                try:
                    np.testing.assert_array_equal(zoo.read(some), np.stack(expected))
                    outcomes["right"] += 1
                except CorruptError:
                    outcomes["refused"] += 1
    finally:
        (folder / name).write_bytes(good)
    assert min(outcomes.values()) > 30


def test_an_index_in_a_file_without_room_for_chunks() -> None:
    index = np.array([[0, 76]] + 3 * [[ABSENT, ABSENT]], "<u8").tobytes()
    tail = np.frombuffer(index + checksum(index).to_bytes(4, "little"), np.uint8)
    assert decode_index(net().grid, tail, len(tail) + 76).tolist() == [[0], [-1], [-1], [-1]]
    for room in (0, 75):
        with pytest.raises(ValueError, match="points outside"):
            decode_index(net().grid, tail, len(tail) + room)


@pytest.mark.parametrize("tensors", [None, ["b"]])
def test_rows_that_are_not_finite_are_refused_every_time(tensors: list[str] | None, tmp_path: Path) -> None:
    """Checksums all right, and the rest of the chunk as well; alone, with the chunk, in part, and again."""
    zoo, truth = fill(tmp_path, net())
    path, (name, *_) = tmp_path / "weights/net/c/1/0/0", sorted(zoo.committed().values())[1:]
    data = bytearray(path.read_bytes())
    row = np.full(9, 1, "<f4")
    row[3] = np.inf
    data[36:72] = row.tobytes()  # model 5, checkpoint 0
    data[72:76] = checksum(data[:72]).to_bytes(4, "little")
    path.write_bytes(data)
    fragment = zoo.fragment(name)
    crc = [checksum(row) if place == 2 else value for place, value in enumerate(fragment.rows["crc32c"])]
    file = replace(fragment.files[0], sha256=hashlib.sha256(data).hexdigest())
    rows = fragment.rows.with_columns(crc32c=pl.Series(crc, dtype=pl.UInt32))
    (tmp_path / name).unlink()
    forged, content = encode_fragment(zoo.record, replace(fragment, rows=rows, files=(file,)))
    (tmp_path / forged).write_bytes(content)
    opened = catalog.open(tmp_path)
    address = pl.DataFrame({"variant": "net", "model": [4, 5], "checkpoint": [0, 0]})
    for _ in range(2):
        for some in (address, address[1:], address[::-1]):
            with pytest.raises(CorruptError, match="NaN or infinity"):
                opened.read(some, tensors)
        np.testing.assert_array_equal(opened.read(address[:1])[0], truth["net", 4, 0])


def test_checksums_of_rows_without_weights_do_not_matter(tmp_path: Path) -> None:
    """The chunk of a run that diverged: another writer may say anything of the row that holds nothing."""
    zoo, truth = fill(tmp_path, net())
    name = min(zoo.committed().values())
    fragment = zoo.fragment(name)
    assert fragment.rows["stored"].to_list().index(False) == 3
    crc = [0 if place == 3 else value for place, value in enumerate(fragment.rows["crc32c"])]
    (tmp_path / name).unlink()
    rows = fragment.rows.with_columns(crc32c=pl.Series(crc, dtype=pl.UInt32))
    forged, content = encode_fragment(zoo.record, replace(fragment, rows=rows))
    (tmp_path / forged).write_bytes(content)
    for _ in range(2):
        check_reads(catalog.open(tmp_path), truth)


def test_batches_of_scattered_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo, weights, rows = wide(tmp_path)
    monkeypatch.setattr(gather, "BATCH", 80)  # two rows
    some = rows.filter(pl.col("model") % 3 == 1)[::-1]
    np.testing.assert_array_equal(zoo.read(some), weights[some["model"], some["checkpoint"]])
    np.testing.assert_array_equal(zoo.read(some, ["t2"]), weights[some["model"], some["checkpoint"], 3:6])
    data = bytearray((tmp_path / "weights/net/c/0/0/0").read_bytes())
    data[36] ^= 1
    (tmp_path / "weights/net/c/0/0/0").write_bytes(data)
    with pytest.raises(CorruptError, match="not those committed"):
        zoo.read(some)
