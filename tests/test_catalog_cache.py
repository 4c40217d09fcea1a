"""The cache: resumed after SIGKILL, fetched once for all, never wrong, the same without a network."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import catalog
from catalog import cache
from catalog.errors import CorruptError, MissingDataError, OfflineError, StorageError, ZooError
from catalog.folder import Folder
from catalog.fragments import StoredFile
from tests.catalog_zoos import check_reads, fill, manifest_of, net
from tests.faulty import FaultyServer, serving

pytest.importorskip("aiohttp")
from catalog import download
from catalog.web import Web

ROOT = Path(__file__).parent.parent
SIZE, PIECE = 1_000_000, 1 << 15


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHTSCAPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PIECE", PIECE)
    return tmp_path / "cache"


class Far:
    """A file on a server."""

    def __init__(self, server: FaultyServer, data: bytes) -> None:
        self.server, self.data = server, data
        self.file = StoredFile("some/file", len(data), hashlib.sha256(data).hexdigest())
        self.web, url = Web.at(server.url, {"retries": 1, "backoff": 0.001})
        self.path = f"{url}/file"

    def fetch(self, **options: Any) -> Path:
        return cache.fetch(self.web, self.path, self.file, "the zoo", **options)

    def read(self) -> bytes:
        return cache.read(self.web, self.path, self.file, "the zoo")

    @property
    def asked(self) -> int:
        """Requests since this was last looked at."""
        count = len(self.server.requests)
        self.server.requests.clear()
        return count


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    data = np.random.default_rng(0).bytes(SIZE)
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "file").write_bytes(data)
    with serving(tmp_path / "www") as server:
        yield Far(server, data)


def started(far: Far) -> Path:
    return cache.root() / "partial" / far.file.sha256


# --- whole files


def test_a_file_is_fetched_once(far: Far, cache_folder: Path) -> None:
    seen: list[int] = []
    path = far.fetch(progress=seen.append)
    assert path.read_bytes() == far.data
    assert path == cache_folder / "files" / far.file.sha256[:2] / far.file.sha256
    assert seen == [*range(PIECE, SIZE, PIECE), SIZE]
    assert far.asked == -(-SIZE // PIECE)
    assert not started(far).exists()
    seen.clear()
    assert far.fetch(progress=seen.append) == path
    assert far.read() == far.data
    assert seen == [SIZE]
    assert far.asked == 0


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1])
def test_files_of_all_sizes(size: int, far: Far) -> None:
    (far.server.folder / "file").write_bytes(far.data[:size])
    some = Far(far.server, far.data[:size])
    assert some.read() == far.data[:size]
    assert some.server.sent == size


@pytest.mark.parametrize("here", [1, PIECE, 3 * PIECE + 5, SIZE - 1, SIZE])
def test_what_is_here_is_not_fetched_again(here: int, far: Far) -> None:
    started(far).parent.mkdir(parents=True)
    started(far).write_bytes(far.data[:here])
    assert far.read() == far.data
    assert far.server.sent == SIZE - here


@pytest.mark.parametrize("here", [b"wrong", b"x" * (SIZE + 1), bytes(SIZE)])
def test_what_is_here_and_wrong_is_fetched_anew(here: bytes, far: Far) -> None:
    started(far).parent.mkdir(parents=True)
    started(far).write_bytes(here)
    assert far.read() == far.data
    assert far.asked <= 2 * -(-SIZE // PIECE)


@pytest.mark.parametrize("size", [100, SIZE])
@pytest.mark.parametrize("change", [b"short", b"x" * SIZE, bytes(100), b"x" * (SIZE + 5)])
def test_a_file_that_is_another_one(size: int, change: bytes, far: Far) -> None:
    some = Far(far.server, far.data[:size])
    (far.server.folder / "file").write_bytes(change)
    with pytest.raises(ZooError, match=r"is not what its manifest says|more than the") as caught:
        some.read()
    assert isinstance(caught.value, CorruptError) or len(change) > size
    assert cache.find(some.file.sha256) is None
    (far.server.folder / "file").write_bytes(some.data)
    assert some.read() == some.data


def test_a_file_that_is_not_there(far: Far) -> None:
    (far.server.folder / "file").unlink()
    with pytest.raises(MissingDataError, match="some/file of the zoo is in its manifest and not there"):
        far.fetch()


def test_a_server_that_fails_midway(far: Far) -> None:
    far.server.go_wrong("503", left=-1)
    with pytest.raises(StorageError, match="answer 503"):
        far.fetch()
    far.server.go_wrong("")

    def stop(here: int) -> None:
        if here > SIZE // 2:
            raise KeyboardInterrupt  # requests under way come to their end

    with pytest.raises(KeyboardInterrupt):
        far.fetch(progress=stop)
    assert SIZE // 2 < started(far).stat().st_size < SIZE
    sent = far.server.sent
    assert far.read() == far.data
    assert far.server.sent - sent <= SIZE // 2 + download.TOGETHER * PIECE


def test_a_server_without_ranges(far: Far) -> None:
    far.server.go_wrong("no ranges")
    started(far).parent.mkdir(parents=True)
    started(far).write_bytes(far.data[:PIECE])
    assert far.read() == far.data


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "folder", "link"])
@pytest.mark.parametrize("use", ["read", "fetch"])
def test_a_damaged_copy_is_fetched_anew(
    damage: str, use: str, far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil() -> None:
        path = far.fetch()
        path.chmod(0o644)
        if damage in ("folder", "link"):
            path.unlink()
            path.mkdir() if damage == "folder" else path.symlink_to(tmp_path / "nowhere")
        else:
            data = bytearray(far.data)
            data[500_000] ^= 1
            path.write_bytes({"flip": bytes(data), "truncate": far.data[:-1], "empty": b""}[damage])

    spoil()
    if damage == "folder":  # which we do not remove: it is none of ours
        with pytest.raises(StorageError):
            far.read()
        return
    assert (far.read() if use == "read" else far.fetch().read_bytes()) == far.data
    spoil()
    monkeypatch.setenv("WEIGHTSCAPE_OFFLINE", "1")
    with pytest.raises(OfflineError):
        far.read() if use == "read" else far.fetch()


def test_a_full_disk(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: what was written before stays, and is taken up again."""
    real, left = os.pwrite, [5]

    def full(descriptor: int, data: Any, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match=r"No space left .*weightscape cache clear.*WEIGHTSCAPE_CACHE") as caught:
            far.fetch()
    assert caught.value.errno == errno.ENOSPC
    assert started(far).stat().st_size == 5 * PIECE
    sent = far.server.sent
    assert far.read() == far.data
    assert far.server.sent - sent <= SIZE - 5 * PIECE + download.TOGETHER * PIECE  # with what was under way before


def test_a_cache_that_cannot_be_written(far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("WEIGHTSCAPE_CACHE", str(tmp_path / "a file" / "cache"))
    path = far.fetch()
    assert path.read_bytes() == far.data
    assert far.asked > 0
    assert far.fetch() == path
    assert far.read() == far.data
    assert far.asked == 0
    cache.keep("0" * 64, b"data")
    cache.keep_piece("0" * 32, b"data")
    cache.remember("url", "name", b"data")
    assert cache.recall("url", "name") is None
    assert (list(cache.entries()), cache.clear()) == ([], (0, 0))


FETCH = """
import hashlib, os, random, signal, sys, threading, time
from catalog import cache, download
from catalog.fragments import StoredFile
from catalog.web import Web

url, sha256, size, piece, seed = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
points = list(map(int, sys.argv[6:]))  # where each process is killed; those of 0 run to their end
download.PIECE = piece
chance = random.Random(seed)

def die(after):
    time.sleep(after)
    os.kill(os.getpid(), signal.SIGKILL)

def work(point, after):
    thread = threading.Thread(target=die, args=[after])
    def progress(here):
        if point and here >= point:
            if not after:
                die(0)  # with other requests under way
            if not thread.ident:
                thread.start()
    web, root = Web.at(url, {})
    path = cache.fetch(web, root + "/file", StoredFile("file", size, sha256), "zoo", progress)
    with open(path, "rb") as file:
        os._exit(0 if hashlib.file_digest(file, "sha256").hexdigest() == sha256 else 3)

def fork(point):
    after = chance.uniform(0, 0.002) if chance.random() < 0.25 else 0  # then anywhere, as in a write
    child = os.fork()
    if child == 0:
        try:
            work(point, after)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        os._exit(1)
    return child

def code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

together = seed % 2
if together:
    print(*[code(child) for child in [fork(point) for point in points]])
else:
    print(*[code(fork(point)) for point in points])
"""


def run(far: Far, seed: int, points: list[int]) -> list[int]:
    """How processes ended, which ran one after the other (even seed) or together (odd seed)."""
    arguments = [far.server.url, far.file.sha256, SIZE, PIECE, seed, *points]
    command = [sys.executable, "-W", "ignore", "-c", FETCH, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    return list(map(int, done.stdout.split()))


def test_killed_at_random_points(far: Far) -> None:
    """Twenty real kills within one file; what came before each is kept, and the file is right in the end."""
    far.server.delay = 0.004  # so that there is time to die in
    points = sorted(random.Random(0).choices(range(1, SIZE * 2 // 3), k=26))
    codes = run(far, 0, [*points, 0])
    assert codes[-1] == 0
    assert codes.count(-9) >= 20
    lost = codes.count(-9) * (download.TOGETHER + 1) * PIECE  # under way when it was killed
    assert far.server.sent <= SIZE + lost
    assert far.read() == far.data


def test_eight_processes_fetch_one_copy(far: Far) -> None:
    assert run(far, 1, [0] * 8) == [0] * 8
    assert far.server.sent == SIZE
    assert far.read() == far.data


def test_when_the_one_that_fetches_dies_another_goes_on(far: Far) -> None:
    far.server.delay = 0.004
    codes = run(far, 1, [SIZE // 3] * 3 + [0] * 5)
    assert codes[3:] == [0] * 5
    assert set(codes[:3]) <= {0, -9}
    assert far.server.sent <= SIZE + 3 * (download.TOGETHER + 1) * PIECE


# --- pieces, pointers, the cache as a whole


def test_pieces(cache_folder: Path) -> None:
    digest = hashlib.sha256(b"column").hexdigest()[:32]
    assert cache.find_piece(digest) is None
    cache.keep_piece(digest, memoryview(b"column"))
    assert cache.find_piece(digest) == b"column"
    (path,) = (entry.path for entry in cache.entries())
    path.write_bytes(b"columm")
    assert cache.find_piece(digest) is None
    assert not path.exists()


def test_pointers() -> None:
    cache.remember("url", "manifest.json", b"1")
    cache.remember("url", "manifest.json", b"2")
    assert cache.recall("url", "manifest.json") == b"2"
    assert cache.recall("other", "manifest.json") is None


def test_what_the_cache_holds(far: Far) -> None:
    assert (cache.size(), cache.clear()) == (0, (0, 0))
    old = far.fetch()
    os.utime(old, (1e9, 1e9))
    cache.keep_piece(hashlib.sha256(b"new").hexdigest()[:32], b"new")
    cache.remember("url", "name", b"pointer")
    assert sorted((entry.kind, entry.size) for entry in cache.entries()) == [
        ("files", SIZE),
        ("pieces", 3),
        ("pointers", 7),
    ]
    assert cache.size() == SIZE + 10
    assert cache.clear(older_than=3600) == (1, SIZE)
    assert cache.clear() == (2, 10)
    assert cache.size() == 0
    assert far.read() == far.data


def test_what_is_being_fetched_is_not_cleared(far: Far) -> None:
    started(far).parent.mkdir(parents=True)
    started(far).write_bytes(b"begun")
    with open(started(far), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert cache.clear() == (0, 0)
    assert cache.clear() == (1, 5)


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("yes", True), ("", False), ("0", False), ("No", False)])
def test_offline(value: str, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSCAPE_OFFLINE", value)
    assert cache.offline() is offline


# --- published zoos


def test_offline_is_the_same_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near, truth = fill(tmp_path / "zoo", net())
    catalog.publish(near, tmp_path / "www" / "zoo")
    with serving(tmp_path / "www") as server:
        url = f"{server.url}/zoo"
        monkeypatch.setenv("WEIGHTSCAPE_OFFLINE", "1")
        with pytest.raises(OfflineError, match="was not opened before"):
            catalog.open(url)
        monkeypatch.delenv("WEIGHTSCAPE_OFFLINE")
        far = catalog.open(url)
        rows = far.scan().collect()
        for name in far.folder.files():
            far.folder.read(name)
        far.folder.fetch(["zoo.json"] * 3, [None, 5, 9], [None, 7, 9])
        monkeypatch.setenv("WEIGHTSCAPE_OFFLINE", "1")
        server.requests.clear()
        again = catalog.open(url)
        assert again.scan().collect().equals(rows)
        check_reads(again, truth)
        shard = next(name for name in far.folder.files() if "/c/" in name)
        assert again.folder.fetch([shard], [3], [8]) == [far.folder.read(shard)[3:8]]
        cache.drop(manifest_of(far).files[shard].sha256)
        with pytest.raises(OfflineError):
            catalog.open(url).read(rows)
        with pytest.raises(OfflineError):
            catalog.open(f"{server.url}/other")
        assert server.requests == []


def test_without_ranges_each_file_comes_once(tmp_path: Path) -> None:
    near, truth = fill(tmp_path / "zoo", net())
    catalog.publish(near, tmp_path / "www")
    with serving(tmp_path / "www") as server:
        server.go_wrong("no ranges")
        far = catalog.open(server.url)
        for _ in range(3):
            check_reads(far, truth)
        whole = [path for _, path, wanted in server.requests if "/c/" in path and not wanted]
        assert len(whole) == len(set(whole)) == 2


def test_a_damaged_copy_of_a_shard_gives_the_right_weights(tmp_path: Path, cache_folder: Path) -> None:
    near, truth = fill(tmp_path / "zoo", net())
    catalog.publish(near, tmp_path / "www")
    with serving(tmp_path / "www") as server:
        far = catalog.open(server.url)
        shards = [name for name in far.folder.files() if "/c/" in name]
        for name in shards:
            far.folder.read(name)
            digest = manifest_of(far).files[name].sha256
            path = cache.find(digest)
            assert path is not None
            data = bytearray(path.read_bytes())
            data[10] ^= 1
            path.write_bytes(data)
        check_reads(catalog.open(server.url), truth)
        with contextlib.suppress(FileNotFoundError):
            assert Folder.at(server.url).read("nothing") == b""
