"""Pulling zoos and parts of them: what is fetched, what is there then, and that nothing stops it for good."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import catalog
from catalog import cache
from catalog.errors import (
    CorruptError,
    FormatError,
    MissingDataError,
    OfflineError,
    QueryError,
    SpecMismatchError,
    StorageError,
)
from catalog.fragments import decode_fragment, encode_fragment
from catalog.pull import Pulled, pull
from catalog.slices import Slice, decode_slice, read_slice
from catalog.store import Zoo
from tests.catalog_zoos import Truth, check_reads, fill, long, net, tree
from tests.servers import Server

ROOT = Path(__file__).resolve().parent.parent
HALF = "variant = 'net' and model >= 4"  # the second of two shards of net


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Zoo, Truth, Path]:
    """A zoo with a measured column, the truth, and where it is published."""
    folder = tmp_path_factory.mktemp("pull")
    zoo, truth = fill(folder / "zoo", net(models=8), long())
    catalog.split(zoo)
    catalog.publish(zoo, folder / "pub")
    return zoo, truth, folder / "pub"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHTSCAPE_CACHE", os.fspath(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pub(made: tuple[Zoo, Truth, Path], tmp_path: Path, web: tuple[Server, str]) -> tuple[str, Server]:
    """A copy of the published zoo on a web server, and that."""
    shutil.copytree(made[2], tmp_path / "pub")
    return f"{web[1]}/pub", web[0]


def files(folder: Path) -> dict[str, str]:
    """Name -> sha256, without the table, which is made there, and the slice, which has its URL in it."""
    return {name: digest for name, digest in tree(folder).items() if not name.startswith(("table.", "slice."))}


def slice_of(found: Pulled) -> Slice:
    assert found.zoo is not None
    known = read_slice(found.zoo.folder, found.zoo.record)
    assert known is not None
    return known


def test_a_whole_zoo_from_anywhere_is_the_same_zoo(
    made: tuple[Zoo, Truth, Path], pub: tuple[str, Server], tmp_path: Path
) -> None:
    zoo, truth, published = made
    digests = set()
    sources: list[Any] = [zoo.url, published, pub[0], f"{pub[0]}/versions/1.json", f"file://{published}"]
    for at, url in enumerate(sources):
        found = pull(url, tmp_path / f"{at}.zoo")
        assert found.zoo is not None
        check_reads(found.zoo, truth)
        assert files(tmp_path / f"{at}.zoo") == files(Path(zoo.url))
        assert found.zoo.scan().collect().equals(zoo.scan().collect())
        assert (found.shards, found.all_shards, found.rows) == (5, 5, 22)
        checked = catalog.verify(found.zoo.url)
        assert checked.problems == ()
        digests.add(checked.digest)
        assert not (tmp_path / f"{at}.zoo" / "slice.json").exists()
    assert len(digests) == 1
    again = pull(pub[0], tmp_path / "0.zoo")
    assert (again.files, again.bytes, again.there) == (0, 0, 17)


def test_a_slice_is_a_zoo_of_the_shards_that_a_query_needs(
    made: tuple[Zoo, Truth, Path], pub: tuple[str, Server], tmp_path: Path
) -> None:
    zoo, truth, _ = made
    told: list[Pulled] = []
    seen: list[tuple[int, int]] = []
    dry = pull(pub[0], tmp_path / "part.zoo", where=HALF, dry_run=True)
    assert not (tmp_path / "part.zoo").exists()
    assert dry.zoo is None
    found = pull(
        pub[0], tmp_path / "part.zoo", where=HALF, on_cost=told.append, progress=lambda *done: seen.append(done)
    )
    assert told == [found] == [dry]
    assert (found.rows, found.shards, found.all_shards, found.parts) == (8, 1, 5, (("net", 1),))
    assert (found.files, found.there) == (3, 0)
    assert found.bytes == sum((tmp_path / "part.zoo" / name).stat().st_size for name in tree(tmp_path / "part.zoo")
                              if name.startswith(("index/", "metrics/", "weights/net/c")))  # fmt: skip
    assert seen[-1] == (found.bytes, found.bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    part = catalog.open(tmp_path / "part.zoo")
    wanted = zoo.scan(None).filter(pl.col("variant") == "net", pl.col("model") >= 4).collect()
    assert part.scan(None).collect().equals(wanted)
    check_reads(part, truth)
    assert "split" in wanted.columns
    assert catalog.verify(part.url).problems == ()
    known = slice_of(found)
    manifest = catalog.open(pub[0]).folder.manifest
    assert manifest is not None
    assert (known.of, known.version, known.tree) == (pub[0], 1, manifest.tree)
    assert (known.where, known.shards) == ((HALF,), {("net", 1)})
    assert json.loads(json.dumps(found.to_json()))["parts"] == [["net", 1]]


def test_queries_add_up_and_the_whole_is_no_slice(
    made: tuple[Zoo, Truth, Path], pub: tuple[str, Server], tmp_path: Path
) -> None:
    dest = tmp_path / "part.zoo"
    first = slice_of(pull(pub[0], dest, where=HALF))
    before = tree(dest)
    same = pull(pub[0], dest, where=HALF)
    assert tree(dest) == before
    assert (same.files, slice_of(same)) == (0, first)
    more = pull(pub[0], dest, where="variant = 'long' and model = 2", metrics=False)
    assert more.files == 4  # three files of the shard and its fragment
    known = slice_of(more)
    assert (known.where, known.shards) == ((HALF, "variant = 'long' and model = 2"), {("net", 1), ("long", 2)})
    assert len(catalog.open(dest).scan(None).collect()) == 10
    assert catalog.verify(dest).problems == ()
    os.unlink(dest / "weights/net/c/1/0/0")
    assert [problem.kind for problem in catalog.verify(dest).problems] == ["missing"]
    whole = pull(pub[0], dest)
    assert whole.zoo is not None
    check_reads(whole.zoo, made[1])
    assert files(dest) == files(Path(made[0].url))
    assert not (dest / "slice.json").exists()
    assert catalog.verify(dest).problems == ()


def test_slices_lack_nothing_they_should_have(made: tuple[Zoo, Truth, Path], tmp_path: Path) -> None:
    pull(made[2], tmp_path / "part.zoo", where=HALF)
    (fragment,) = (tmp_path / "part.zoo" / "index").iterdir()
    fragment.unlink()
    problems = catalog.verify(tmp_path / "part.zoo").problems
    assert "incomplete" in {problem.kind for problem in problems}
    again = pull(made[2], tmp_path / "part.zoo", where=HALF)
    assert again.files == 1
    assert catalog.verify(tmp_path / "part.zoo").problems == ()


def test_only_what_is_needed_is_asked_for(pub: tuple[str, Server], tmp_path: Path) -> None:
    url, server = pub
    pull(url, tmp_path / "part.zoo", where=HALF)
    asked = {path for path in server.requests if "/weights/" in path or "/index/" in path}
    assert {path.split("/", 3)[3].split(".")[0] for path in asked} == {"weights/net/c/1/0/0", "index/net"}
    server.requests.clear()
    found = pull(url, tmp_path / "other.zoo", where=HALF)  # from the cache, but for what may have changed
    assert found.cached_bytes == found.bytes > 0
    assert {path.rsplit("/", 1)[1] for path in server.requests} <= {"manifest.json"}
    one, other = (path / "weights/net/c/1/0/0" for path in (tmp_path / "part.zoo", tmp_path / "other.zoo"))
    assert os.path.samefile(one, other)


def test_offline_it_comes_from_the_cache_alone(
    made: tuple[Zoo, Truth, Path], pub: tuple[str, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(pub[0], tmp_path / "first.zoo", where=HALF)
    pub[1].requests.clear()
    monkeypatch.setenv("WEIGHTSCAPE_OFFLINE", "1")
    found = pull(pub[0], tmp_path / "second.zoo", where=HALF)
    assert tree(tmp_path / "second.zoo") == tree(tmp_path / "first.zoo")
    assert found.cached_bytes == found.bytes
    with pytest.raises(OfflineError):
        pull(pub[0], tmp_path / "third.zoo")
    assert pub[1].requests == []


def test_a_later_version_takes_the_place_of_what_it_replaced(made: tuple[Zoo, Truth, Path], tmp_path: Path) -> None:
    """Who is in which split changed: rows of both together would put some runs in the old one."""
    shutil.copytree(made[0].url, tmp_path / "zoo")
    zoo, dest = catalog.open(tmp_path / "zoo"), tmp_path / "part.zoo"
    catalog.publish(zoo, tmp_path / "pub")
    pull(tmp_path / "pub", dest, where=HALF)
    (old,) = (dest / "metrics").rglob("*.parquet")
    rows = zoo.measurements()["split@" + old.parent.name.split("@")[1]].rows
    from catalog.metrics import replace_measurement

    measured = next(iter(zoo.measurements().values()))
    swapped = rows.with_columns(split=pl.lit("train"))
    replace_measurement(zoo, type(measured)(**{**vars(measured), "rows": swapped}))
    mine = type(measured)(**{**vars(measured), "metric": "mine", "rows": rows.rename({"split": "mine"})})
    replace_measurement(catalog.open(dest), mine)  # measured in the slice: nobody published it
    catalog.publish(zoo, tmp_path / "pub")
    found = pull(tmp_path / "pub", dest, where=HALF)
    assert slice_of(found).version == 2
    assert not old.exists()
    after = catalog.open(dest).scan().collect()
    assert after["split"].unique().to_list() == ["train"]
    assert "mine" in after.columns
    back = pull(tmp_path / "pub" / "versions" / "1.json", dest, where=HALF)
    assert slice_of(back).version == 1
    assert sorted(path.name for path in (dest / "metrics").rglob("*.parquet"))[0]
    assert old.exists()
    assert len(list((dest / "metrics").rglob("*.parquet"))) == 2


def test_damage_at_the_source_stops_it_and_leaves_nothing(
    made: tuple[Zoo, Truth, Path], pub: tuple[str, Server], tmp_path: Path
) -> None:
    base = next(path for path in (tmp_path / "pub").iterdir() if len(path.name) == 12)
    shutil.copytree(made[0].url, tmp_path / "zoo")
    bare, errors = tmp_path / "zoo", {"flip": CorruptError, "cut": CorruptError, "gone": MissingDataError}
    cases: list[tuple[Any, Path, tuple[str, ...]]] = [
        (pub[0], base, ("flip", "cut", "gone")),
        (tmp_path / "pub", base, ("flip",)),
        (bare, bare, ("cut", "gone")),
        (f"{pub[0].rsplit('/', 1)[0]}/zoo", bare, ("flip",)),
    ]
    for at, (url, folder, damages) in enumerate(cases):
        for damage in damages:
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            target = folder / "weights/net/c/1/0/0"
            good = target.read_bytes()
            dest = tmp_path / f"{at}-{damage}.zoo"
            if damage == "gone":
                target.unlink()
            else:
                target.write_bytes(good[:-1] if damage == "cut" else bytes([good[0] ^ 1]) + good[1:])
            with pytest.raises(errors[damage], match="weights/net/c/1/0/0"):
                pull(url, dest)
            assert not (dest / "weights/net/c/1/0/0").exists()
            assert not (dest / "index").exists()
            target.write_bytes(good)
            found = pull(url, dest)
            assert found.zoo is not None
            check_reads(found.zoo, made[1])
            assert not list(dest.rglob(".tmp-*"))


def test_damage_in_the_copy_is_mended(made: tuple[Zoo, Truth, Path], pub: tuple[str, Server], tmp_path: Path) -> None:
    """A bit that changed on this disk changed in the cache too: both names are of one file."""
    pull(pub[0], tmp_path / "a.zoo")
    target = tmp_path / "a.zoo" / "weights/net/c/0/0/0"
    data = bytearray(target.read_bytes())
    data[7] ^= 1
    target.write_bytes(data)
    (tmp_path / "a.zoo" / "zarr.json").write_text("{}")
    found = pull(pub[0], tmp_path / "a.zoo")
    assert found.files == 1
    assert found.zoo is not None
    check_reads(found.zoo, made[1])
    assert catalog.verify(tmp_path / "a.zoo").problems == ()


def test_places_that_are_no_place_for_it(made: tuple[Zoo, Truth, Path], tmp_path: Path) -> None:
    zoo, _, published = made
    other, _ = fill(tmp_path / "other.zoo", net(), name="other")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    cases: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
        (published, other.url, {}, SpecMismatchError, "holds the zoo 'other'"),
        (published, tmp_path / "full", {}, SpecMismatchError, "holds other files, such as thesis.txt"),
        (published, tmp_path / "full" / "thesis.txt", {}, StorageError, "is a file"),
        (zoo.url, zoo.url, {}, SpecMismatchError, "lie in each other"),
        (zoo.url, published, {}, SpecMismatchError, "holds a published zoo"),
        (published, f"{zoo.url}/weights", {}, SpecMismatchError, "holds other files"),
        (zoo.url, f"{zoo.url}/new", {}, SpecMismatchError, "lie in each other"),
        (published, "memory://zoo", {}, StorageError, "is elsewhere"),
        (published, tmp_path / "new", {"where": "model > 100"}, QueryError, "no ok row"),
        (published, tmp_path / "new", {"where": "model >"}, QueryError, "cannot evaluate"),
    ]
    for source, dest, options, error, message in cases:
        with pytest.raises(error, match=message):
            pull(source, dest, **options)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "new").exists()


def test_a_disk_without_space_is_told_before_anything_is_fetched(
    pub: tuple[str, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = types.SimpleNamespace(free=(16 << 20) + 5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(StorageError, match=r"needs 2\d,\d{3} bytes and 16,782,216 are free") as caught:
        pull(pub[0], tmp_path / "all.zoo")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "all.zoo").exists()
    assert not [path for path in pub[1].requests if "/c/" in path]
    free.free += 30_000
    assert pull(pub[0], tmp_path / "all.zoo").files == 17
    free.free = 0
    assert pull(pub[0], tmp_path / "again.zoo").files == 17  # links take no space


def test_names_and_digests_of_strangers_lead_nowhere(made: tuple[Zoo, Truth, Path], tmp_path: Path) -> None:
    """The digest of a file names it in the cache: one that is a path would be written there."""
    shutil.copytree(made[0].url, tmp_path / "zoo")
    zoo = catalog.open(tmp_path / "zoo")
    name = zoo.committed()["net", 0]
    fragment = decode_fragment(zoo.record, name, (tmp_path / "zoo" / name).read_bytes(), "")
    forged = type(fragment.files[0])(fragment.files[0].path, fragment.files[0].size, "../../../../evil")
    (tmp_path / "zoo" / name).unlink()
    name, data = encode_fragment(zoo.record, type(fragment)(**{**vars(fragment), "files": (forged,)}))
    (tmp_path / "zoo" / name).write_bytes(data)
    with pytest.raises(FormatError, match="which is no sha256"):
        pull(tmp_path / "zoo", tmp_path / "copy.zoo")
    assert not (tmp_path / "copy.zoo").exists()


def forge_slice(**changes: Any) -> Any:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in (content | changes).items() if value is not ...}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"format": True}, "format True"),
        ({"shards": [["net", 0], ["net", 0]]}, "stands twice"),
        ({"shards": [["net", 2]]}, "has no shard 2"),
        ({"shards": [["net", -1]]}, "has no shard -1"),
        ({"shards": [["net", True]]}, "a shard is a variant and a number"),
        ({"shards": [["../net", 0]]}, "a shard is a variant and a number"),
        ({"shards": [[["net"], 0]]}, "a shard is"),
        ({"shards": [3]}, "unpack"),
        ({"shards": None}, "NoneType"),
        ({"zoo": "0" * 64}, "of another zoo"),
        ({"tree": "x"}, "tree is"),
        ({"tree": ""}, "tree is"),
        ({"version": -1}, "version is 0 or more"),
        ({"version": 1.5}, "version is no number"),
        ({"where": ["x" * 10_001]}, "where is too long"),
        ({"where": [1]}, "are text"),
        ({"of": "a\nb"}, "of is no URL"),
        ({"date": "today"}, "date is a date"),
        ({"date": ...}, "date"),
    ],
)
def test_a_slice_of_a_stranger_is_checked(made: tuple[Zoo, Truth, Path], change: dict[str, Any], message: str) -> None:
    from catalog.sealed import seal

    record = made[0].record
    good = Slice("https://x/zoo", 1, "a" * 64, record.digest, (HALF,), frozenset({("net", 1)}), "2026-01-02")
    assert decode_slice(good.encode(), record, "here") == good
    content = json.loads(good.encode())
    del content["digest"]
    with pytest.raises(FormatError, match=message):
        decode_slice(seal(forge_slice(**change)(content)), record, "here")


def test_a_damaged_slice_is_a_problem_and_mended(made: tuple[Zoo, Truth, Path], tmp_path: Path) -> None:
    dest = tmp_path / "part.zoo"
    pull(made[2], dest, where=HALF)
    good = (dest / "slice.json").read_bytes()
    (dest / "slice.json").write_bytes(good.replace(b'"net"', b'"neu"'))
    assert "slice.json" in {problem.file for problem in catalog.verify(dest).problems}
    pull(made[2], dest, where=HALF)
    assert (dest / "slice.json").read_bytes() == good


KILLED = """
import os, signal, sys
from catalog import pull
url, dest, where, step = sys.argv[1:]
calls = ("open", "write", "fsync", "replace", "link", "unlink", "mkdir")

def die_at(nth):
    seen = [0]
    def wrap(real):
        def call(*args, **kwargs):
            seen[0] += 1
            if seen[0] == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in calls:
        setattr(os, name, wrap(getattr(os, name)))

def child(nth):
    pid = os.fork()
    if not pid:
        die_at(nth)
        pull(url, dest, where=where or None)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

nth, killed = 3, 0
while child(nth) == signal.SIGKILL:
    killed += 1
    nth += int(step)
print(killed)
"""


@pytest.mark.parametrize(("where", "step"), [("", 17), (HALF, 5)])
def test_killed_at_any_point_the_same_call_goes_on(
    made: tuple[Zoo, Truth, Path], pub: tuple[str, Server], tmp_path: Path, where: str, step: int
) -> None:
    """Each kill comes a few system calls later than the one before; what is there is never wrong, and grows."""
    code = textwrap.dedent(KILLED)
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, pub[0], tmp_path / "killed.zoo", where, str(step)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(told.stdout) >= 5
    shutil.rmtree(tmp_path / "cache")
    pull(pub[0], tmp_path / "whole.zoo", where=where or None)
    assert tree(tmp_path / "killed.zoo") == tree(tmp_path / "whole.zoo")
    checked = catalog.verify(tmp_path / "killed.zoo")
    assert (checked.problems, checked.digest) == ((), catalog.verify(tmp_path / "whole.zoo").digest)
    assert not list((tmp_path / "killed.zoo").rglob(".tmp-*"))


def test_eight_processes_share_one_transfer(
    made: tuple[Zoo, Truth, Path], pub: tuple[str, Server], tmp_path: Path
) -> None:
    code = "import sys, catalog; sys.stdin.read(); catalog.pull(sys.argv[1], sys.argv[2])"
    running = [
        subprocess.Popen([sys.executable, "-c", code, pub[0], tmp_path / f"{at}.zoo"], cwd=ROOT, stdin=subprocess.PIPE)
        for at in range(8)
    ]
    for process in running:  # which are all ready, or will be while the first pulls
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(timeout=120) for process in running] == [0] * 8
    asked = [path for path in pub[1].requests if "/c/" in path or "/index/" in path]
    fetched = {digest for name, digest in tree(tmp_path / "0.zoo").items() if "/c/" in name or "index/" in name}
    assert len(asked) == len(set(asked)) == len(fetched)  # two shards have a part in common, which comes once
    digests = {catalog.verify(tmp_path / f"{at}.zoo").digest for at in range(8)}
    assert len(digests) == 1
    assert all(catalog.verify(tmp_path / f"{at}.zoo").ok for at in (0, 7))


def test_two_queries_at_once_into_one_folder(
    made: tuple[Zoo, Truth, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each adds its shards to the slice that it found: without a lock, both would find none."""
    module = sys.modules["catalog.pull"]
    real, meeting = module._before, threading.Barrier(2)

    def slowly(zoo: Zoo) -> Slice | None:
        found: Slice | None = real(zoo)
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait(1)  # where they exclude each other, the first waits in vain
        return found

    monkeypatch.setattr(module, "_before", slowly)
    queries = [f"variant = 'long' and model = {model}" for model in (0, 2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda where: pull(made[2], tmp_path / "one.zoo", where=where), queries))
    zoo = catalog.open(tmp_path / "one.zoo")
    known = read_slice(zoo.folder, zoo.record)
    assert known is not None
    assert known.shards == {("long", 0), ("long", 2)}
    assert set(known.where) == set(queries)
    assert catalog.verify(zoo.url).problems == ()


class Interrupted(Exception):
    pass


def test_an_interruption_ends_all_and_the_rest_comes_later(pub: tuple[str, Server], tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        pull(pub[0], tmp_path / "part.zoo", progress=stop)
    found = pull(pub[0], tmp_path / "part.zoo")
    assert found.there > 0
    assert catalog.verify(tmp_path / "part.zoo").problems == ()


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)


def test_a_cache_on_another_disk_is_copied(
    made: tuple[Zoo, Truth, Path], pub: tuple[str, Server], tmp_path: Path, no_links: None
) -> None:
    found = pull(pub[0], tmp_path / "copy.zoo")
    assert found.zoo is not None
    check_reads(found.zoo, made[1])
    kept = cache.find(tree(tmp_path / "copy.zoo")["weights/net/c/0/0/0"])
    assert kept is not None
    assert not os.path.samefile(kept, tmp_path / "copy.zoo" / "weights/net/c/0/0/0")
