"""Disks fill, processes die, files rot: nothing committed is lost, and nothing wrong passes for weights."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import catalog
from catalog.errors import CorruptError, FormatError, MissingDataError, NotAZooError, StorageError
from catalog.folder import ABANDONED, TEMPORARY, Folder, _host
from tests.catalog_zoos import (
    Stop,
    Truth,
    check_reads,
    create,
    files_by_kind,
    fill,
    long,
    net,
    stopping,
    tree,
    truth_of,
    write,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """A complete zoo, to be copied, never changed."""
    folder = tmp_path_factory.mktemp("whole") / "zoo"
    _, truth = fill(folder)
    return folder, truth


@pytest.fixture
def copy(whole: tuple[Path, Truth], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole[0], tmp_path / "zoo"))


# --- a failure at every step


def refuse() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def stop() -> None:
    raise Stop


@pytest.mark.parametrize(("how", "raised"), [(stop, Stop), (refuse, StorageError)])
def test_create_fails_at_every_step(
    how: Callable[[], None], raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "undisturbed")
    for nth in range(1, 200):
        place = tmp_path / str(nth)
        with stopping(nth, how, monkeypatch) as seen:
            try:
                create(place)
            except raised:
                pass
        create(place)
        assert tree(place) == tree(tmp_path / "undisturbed")
        assert not list(place.rglob(f"{TEMPORARY}*"))
        if len(seen) < nth:
            assert nth > 20  # there were that many steps to fail at
            return
    pytest.fail("no run passed without a failure")


@pytest.mark.parametrize(("how", "raised"), [(stop, Stop), (refuse, StorageError)])
@pytest.mark.parametrize("variant", ["net", "long"])
def test_write_shard_fails_at_every_step(
    how: Callable[[], None],
    raised: type[Exception],
    variant: str,
    whole: tuple[Path, Truth],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = {"net": net(), "long": long()}[variant]
    create(tmp_path / "start")
    write(catalog.open(tmp_path / "start"), variant, 0)
    before = truth_of(entry, 0)
    for nth in range(1, 200):
        place = Path(shutil.copytree(tmp_path / "start", tmp_path / str(nth)))
        zoo = catalog.open(place)
        with stopping(nth, how, monkeypatch) as seen:
            try:
                write(zoo, variant, 1)
            except raised:
                pass
        after = catalog.open(place)
        committed = (variant, 1) in after.committed()  # an error at the very last fsync comes when it is
        check_reads(after, before | (truth_of(entry, 1) if committed else {}))
        assert not list(place.rglob(f"{TEMPORARY}*"))
        for name, shard in after.record.shards:
            if (name, shard) not in after.committed():
                write(after, name, shard)
        catalog.rebuild_table(after)
        assert tree(place) == tree(whole[0])
        if len(seen) < nth:
            assert nth > (6 if variant == "net" else 15)
            return
    pytest.fail("no run passed without a failure")


def test_the_steps_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written and synced under another name, renamed, the folder synced: absent or complete, also after a power cut."""
    with stopping(0, stop, monkeypatch) as seen:
        Folder.at(tmp_path).write("file", b"data")
    assert seen == ["open", "write", "fsync", "replace", "open", "fsync"]
    with stopping(0, stop, monkeypatch) as seen:
        Folder.at(tmp_path).write("new/file", b"data")
    assert seen == [
        "open",
        "fsync",
        *("open", "write", "fsync", "replace", "open", "fsync"),
    ]  # the new folder's name too


KILLED = """
import os, sys
import pytest
from tests.catalog_zoos import create, stopping, write
import catalog
folder, log, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for nth in range(first, last):  # one child a step, forked: it dies and takes only its own work with it
    place = f"{folder}/{nth}"
    child = os.fork()
    if child == 0:
        with stopping(nth, lambda: os._exit(9), pytest.MonkeyPatch()):
            write(create(place), "long", 1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_at_every_step(tmp_path: Path) -> None:
    """Really killed: no `finally` runs, half-written files stay; the next build sweeps them."""
    create(tmp_path / "undisturbed")
    write(catalog.open(tmp_path / "undisturbed"), "long", 1)
    last = 100
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), "-", "1", str(last)]
    environment = {**os.environ, "POLARS_MAX_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    codes = list(map(int, done.stdout.split()))
    assert codes == sorted(codes, reverse=True)  # killed at each step, until there were no more steps
    assert codes[0] == 9
    assert codes[-1] == 0
    left = 0
    for nth in range(1, last):
        place = tmp_path / str(nth)
        left += len(list(place.rglob(f"{TEMPORARY}*"))) if place.exists() else 0
        zoo = create(place)
        assert not list(place.rglob(f"{TEMPORARY}*"))
        if ("long", 1) in zoo.committed():
            check_reads(zoo, truth_of(long(), 1))
        write(zoo, "long", 1)
        assert tree(place) == tree(tmp_path / "undisturbed")
    assert left > 5  # so there was something to sweep


def test_only_what_is_abandoned_is_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        f"{TEMPORARY}{_host()}-{os.getpid()}-00000000-mine": True,
        f"{TEMPORARY}{_host()}-{dead.pid}-00000000-dead": False,
        f"{TEMPORARY}00000000-{dead.pid}-00000000-elsewhere": True,
        f"{TEMPORARY}00000000-{dead.pid}-00000000-elsewhere-old": False,
        f"{TEMPORARY}strange": False,
    }
    for name in names:
        (tmp_path / name).write_text("half")
    old = (tmp_path / f"{TEMPORARY}00000000-{dead.pid}-00000000-elsewhere-old").stat().st_mtime - 2 * ABANDONED
    os.utime(tmp_path / f"{TEMPORARY}00000000-{dead.pid}-00000000-elsewhere-old", (old, old))
    assert Folder.at(tmp_path).files() == []
    assert Folder.at(tmp_path).sweep() == 3
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of zombies")
def test_what_a_zombie_left_is_swept(tmp_path: Path) -> None:
    """A killed writer whose parent has not asked how it ended still has a process id."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    while Path(f"/proc/{ended.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    (tmp_path / f"{TEMPORARY}{_host()}-{ended.pid}-00000000-half").write_text("half")
    assert Folder.at(tmp_path).sweep() == 1
    ended.wait()


# --- disks that refuse


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EIO, "run the same command again"),
    ],
)
def test_what_the_disk_refuses(number: int, advice: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(copy)
    zoo = catalog.open(copy)

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    for nth in (1, 2, 3):
        with stopping(nth, fail, monkeypatch), pytest.raises(StorageError, match=advice) as caught:
            write(zoo, "net", 0)
        assert caught.value.errno == number
        assert "weights/net/c/0/0/0" in str(caught.value)
        assert str(copy) in str(caught.value)
    with stopping(1, fail, monkeypatch), pytest.raises(StorageError, match=advice):
        create(copy.parent / "new")
    assert tree(copy) == before


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "size=160k")


def test_a_disk_that_is_full(small_disk: Path, whole: tuple[Path, Truth]) -> None:
    zoo = create(small_disk / "zoo")
    write(zoo, "net", 0)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(StorageError, match=r"No space left.*free space"):
        write(zoo, "net", 1)
    with pytest.raises(StorageError, match=r"No space left.*free space"):
        zoo.export(zoo.table()[:1], small_disk / "model.safetensors")
    check_reads(catalog.open(zoo.url), truth_of(net(), 0))
    ballast.unlink()
    for variant, shard in zoo.record.shards[1:]:
        write(zoo, variant, shard)
    catalog.rebuild_table(zoo)
    assert tree(small_disk / "zoo") == tree(whole[0])


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    for folder in mounted(tmp_path / "disk", "size=1m"):
        fill(folder / "zoo", net())
        create(folder / "unfinished", net())
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder


def test_a_disk_that_is_read_only(read_only_disk: Path) -> None:
    check_reads(catalog.open(read_only_disk / "zoo"), truth_of(net(), 0) | truth_of(net(), 1))
    assert catalog.verify(read_only_disk / "zoo").ok
    with pytest.raises(StorageError, match=r"read-only; choose"):
        write(catalog.open(read_only_disk / "unfinished"), "net", 0)
    with pytest.raises(StorageError, match=r"read-only; choose"):
        create(read_only_disk / "new")


def test_places_that_cannot_be_a_zoo(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/zoo", "file/a/b"):
        with pytest.raises(FormatError, match=r"is a file; choose another folder"):
            create(tmp_path / place)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    with pytest.raises(FormatError, match=r"is no zoo and not empty \(\['cat.jpg'\]\)"):
        create(tmp_path / "photos")
    assert os.listdir(tmp_path / "photos") == ["cat.jpg"]
    (tmp_path / "empty").mkdir()
    create(tmp_path / "empty")


# --- files that are not what was committed


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "zero bytes": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": make_folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["weights/net/c/0/0/0", "weights/long/c/1/0/1"])
def test_damaged_shards(damage: str, name: str, copy: Path, whole: tuple[Path, Truth]) -> None:
    zoo = catalog.open(copy)
    variant, shard = name.split("/")[1], int(name.split("/")[3])
    DAMAGES[damage](copy / name)
    rows = zoo.scan(None).filter("stored", variant=variant).collect()
    gone = damage in ("missing", "a folder")
    said = rf"shard {shard} of {variant} in {copy}: .*{name}.*restore it from a copy \(reading .* of runs {variant}-"
    with pytest.raises(MissingDataError if gone else CorruptError, match=said):
        zoo.read(rows)
    cut = zoo.record.variant(variant).grid.shard[0]
    others = [key for key in whole[1] if key[0] == variant and key[1] // cut != shard]
    kept = pl.DataFrame(others, schema=["variant", "model", "checkpoint"], orient="row")
    np.testing.assert_array_equal(zoo.read(kept), np.stack([whole[1][key] for key in others]))
    (problem,) = catalog.verify(copy).problems
    assert (problem.kind, problem.file) == ("missing" if gone else "corrupt", name)
    if damage == "a folder":
        (copy / name).rmdir()
    write(zoo, variant, shard)  # committed, and the same again: mends
    assert tree(copy) == tree(whole[0])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_fragments(damage: str, copy: Path) -> None:
    (copy / files_by_kind(copy)["table"][0]).unlink()
    name = next(name for name in files_by_kind(copy)["fragment"] if "net.00000" in name)
    DAMAGES[damage](copy / name)
    zoo = catalog.open(copy)
    if damage in ("missing", "a folder"):  # then it is not committed, and so it is said
        assert zoo.table().filter(variant="net")["model"].min() == 4
        with pytest.raises(MissingDataError, match=r"shard 0 of net .* is not built yet"):
            zoo.read(pl.DataFrame({"variant": "net", "model": [0], "checkpoint": [0]}))
        kinds = {(problem.kind, problem.file) for problem in catalog.verify(copy).problems}
        assert kinds == {("incomplete", "index/net.00000"), ("unknown", "weights/net/c/0/0/0")}
        return
    for call in (zoo.table, zoo.scan, lambda: catalog.query(zoo), lambda: catalog.rebuild_table(zoo)):
        with pytest.raises(CorruptError, match=rf"fragment {name} of {copy} is damaged.*remove it and build again"):
            call()
    with pytest.raises(CorruptError, match=name):
        zoo.read(pl.DataFrame({"variant": "net", "model": [0], "checkpoint": [0]}))
    assert [(problem.kind, problem.file) for problem in catalog.verify(copy).problems] == [("corrupt", name)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_zoo_json(damage: str, copy: Path) -> None:
    DAMAGES[damage](copy / "zoo.json")
    gone = damage in ("missing", "a folder")
    for call in (catalog.open, catalog.verify):
        with pytest.raises(NotAZooError if gone else CorruptError, match=str(copy)):
            call(copy)
    with pytest.raises(FormatError if gone else CorruptError, match=r"is no zoo and not empty|damaged"):
        create(copy)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["zarr.json", "weights/zarr.json", "weights/net/zarr.json"])
def test_damaged_zarr_metadata(damage: str, name: str, copy: Path, whole: tuple[Path, Truth]) -> None:
    DAMAGES[damage](copy / name)
    check_reads(catalog.open(copy), whole[1])  # zoo.json says the same
    gone = damage in ("missing", "a folder")
    (problem,) = catalog.verify(copy).problems
    assert (problem.kind, problem.file) == ("missing" if gone else "corrupt", name)
    if not gone:
        (copy / name).unlink()
    if damage != "a folder":
        create(copy)  # as the message says
        assert tree(copy) == tree(whole[0])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_table(damage: str, copy: Path, whole: tuple[Path, Truth]) -> None:
    (name,) = files_by_kind(copy)["table"]
    DAMAGES[damage](copy / name)
    zoo = catalog.open(copy)
    if damage in ("missing", "a folder"):
        check_reads(zoo, whole[1])
        assert catalog.verify(copy).ok
        return
    with pytest.raises(CorruptError, match=rf"{name} of {copy} is damaged; delete it"):
        zoo.table()
    assert [(problem.kind, problem.file) for problem in catalog.verify(copy).problems] == [("corrupt", name)]
    (copy / name).unlink()
    assert catalog.rebuild_table(zoo) == name
    assert tree(copy) == tree(whole[0])


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def test_swapped_shards(copy: Path) -> None:
    zoo = catalog.open(copy)
    swap(copy / "weights/long/c/0/0/0", copy / "weights/long/c/1/0/0")  # of the same length
    for model in (0, 2):
        if model == 2:
            swap(copy / "weights/long/c/1/0/0", copy / "weights/long/c/2/0/0")
        with pytest.raises(CorruptError, match=rf"shard {model} of long in .*not those committed.*long-{model}"):
            zoo.read(zoo.scan().filter(variant="long", model=model))
    assert {problem.kind for problem in catalog.verify(copy).problems} == {"corrupt"}


def test_swapped_fragments(copy: Path) -> None:
    (copy / files_by_kind(copy)["table"][0]).unlink()
    one, other = (name for name in files_by_kind(copy)["fragment"] if "net." in name)
    swap(copy / one, copy / other)
    zoo = catalog.open(copy)
    with pytest.raises(CorruptError, match=rf"fragment {one} .* is damaged"):
        zoo.table()
    assert {problem.file for problem in catalog.verify(copy).problems} == {one, other}
    # whole names exchanged too: each digest is right and the shard another one
    digests = [name.split(".")[2] for name in (one, other)]
    swap(copy / one, copy / other)
    (copy / one).rename(copy / one.replace("00000", "00001"))
    with pytest.raises(CorruptError, match="two fragments for shard 1 of net"):
        zoo.table()
    (copy / other).rename(copy / other.replace("00001", "00000"))
    with pytest.raises(CorruptError, match="belongs to another zoo or shard"):
        zoo.table()
    assert len(set(digests)) == 2


@pytest.mark.parametrize("kind", ["fragment", "shard", "zoo.json", "table"])
def test_files_of_another_zoo(kind: str, copy: Path, tmp_path: Path) -> None:
    fill(tmp_path / "other", name="other", seed=1)
    if kind in ("fragment", "table"):
        for name in files_by_kind(copy)["table"] + (files_by_kind(copy)[kind] if kind == "fragment" else []):
            (copy / name).unlink()
    for name in files_by_kind(tmp_path / "other")[kind]:
        shutil.copy(tmp_path / "other" / name, copy / name)
    if kind == "table":  # not of these fragments: stale
        assert len(catalog.open(copy).table()) == 18
        return
    said = {"shard": "not those committed"}.get(kind, "belongs to another zoo or shard")
    rows = pl.DataFrame({"variant": "net", "model": [0], "checkpoint": [0]})
    with pytest.raises(CorruptError, match=said):
        catalog.open(copy).read(rows)
    assert not catalog.verify(copy).ok


def test_strangers_are_found(copy: Path) -> None:
    for name in ("note.txt", "index/note.txt", "weights/net/c/7/0/0", "cards/x.json"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("x")
    problems = catalog.verify(copy).problems
    assert {problem.kind for problem in problems} == {"unknown"}
    assert len(problems) == 4
    (copy / "index" / "strange.parquet").write_text("x")
    with pytest.raises(FormatError, match=r"index/strange.parquet .* is not a fragment of this zoo; move it away"):
        catalog.open(copy).table()
    assert not catalog.verify(copy).ok


# --- single bits


def found_by_verify(folder: Path) -> bool:
    try:
        return not catalog.verify(folder).ok
    except (CorruptError, FormatError):
        return True


@pytest.mark.parametrize("kind", ["zoo.json", "zarr.json", "shard", "fragment", "table"])
def test_every_flipped_bit_is_found(kind: str, whole: tuple[Path, Truth], copy: Path) -> None:
    """90 flips in each kind of file: `verify` finds all; whatever can be read is the truth, never anything else."""
    chosen = random.Random(kind)
    names = files_by_kind(copy)[kind]
    missed, silent = [], []
    for _ in range(90):
        name = chosen.choice(names)
        data = bytearray((copy / name).read_bytes())
        bit = chosen.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        good = (copy / name).read_bytes()
        (copy / name).write_bytes(data)
        if not found_by_verify(copy):
            missed.append((name, bit))
        with contextlib.suppress(CorruptError, FormatError):
            check_reads(catalog.open(copy), whole[1])
            silent.append(name)
        (copy / name).write_bytes(good)
    assert missed == []
    # not used in reading: the Zarr metadata, and the chunks of a checkpoint
    # that holds no weights
    if kind == "zarr.json":
        assert len(silent) == 90
    else:
        assert {name.rsplit("/", 1)[0] for name in silent} <= {"weights/long/c/1/0"}
        assert len(silent) < 15


def test_every_flipped_bit_of_a_shard_is_found(whole: tuple[Path, Truth], copy: Path) -> None:
    """Every byte of a half-full shard: weights, padding, checksums, index."""
    name = "weights/net/c/1/0/0"
    good = (copy / name).read_bytes()
    zoo = catalog.open(copy)
    rows = zoo.scan().filter(variant="net").collect()
    for byte in range(len(good)):
        data = bytearray(good)
        data[byte] ^= 1 << byte % 8
        (copy / name).write_bytes(data)
        with pytest.raises(CorruptError, match=r"shard 1 of net"):
            zoo.read(rows)
        if byte % 16 == 0:
            assert [(problem.kind, problem.file) for problem in catalog.verify(copy).problems] == [("corrupt", name)]


# --- several at once

WRITER = """
import sys
import catalog
from tests.catalog_zoos import create, write
zoo = create(sys.argv[1])
sys.stdin.readline()
for _ in range(3):
    for variant, shard in zoo.record.shards:
        write(zoo, variant, shard)
    catalog.rebuild_table(zoo)
"""


def test_two_processes_write_the_same_zoo(tmp_path: Path, whole: tuple[Path, Truth]) -> None:
    place = tmp_path / "zoo"
    command = [sys.executable, "-c", WRITER, str(place)]
    writers = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.close()
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert tree(place) == tree(whole[0])
    assert not list(place.rglob(f"{TEMPORARY}*"))
    assert catalog.verify(place).ok


def test_a_reader_sees_whole_shards_alone(tmp_path: Path, whole: tuple[Path, Truth]) -> None:
    zoo = create(tmp_path / "zoo")
    seen: set[int] = set()
    problems: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        reader = catalog.open(tmp_path / "zoo")
        while not done.is_set() or len(seen) == 0:
            try:
                table = reader.table()
                seen.add(len(table))
                assert len(table) in (0, 8, 12, 14, 16, 18)  # as shards are committed
                check_reads(reader, whole[1])
            except BaseException as error:
                problems.append(error)
                return

    thread = threading.Thread(target=read)
    thread.start()
    for variant, shard in zoo.record.shards:
        write(zoo, variant, shard)
        catalog.rebuild_table(zoo)
    done.set()
    thread.join()
    assert problems == []
    check_reads(catalog.open(tmp_path / "zoo"), whole[1])
