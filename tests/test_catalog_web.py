"""Whatever a web server answers, rows and weights are right or there is a typed error; and no other host is asked."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest

import catalog
from catalog.errors import CorruptError, FormatError, StorageError, ZooError
from catalog.folder import Folder
from catalog.listings import listed_in
from catalog.retry import LONGEST, again, again_each, pause, retry_after, transient
from catalog.store import Zoo
from tests.catalog_zoos import fill, net
from tests.faulty import FAULTS, SLOW, TRANSIENT, FaultyServer, serving

pytest.importorskip("aiohttp")
from catalog.serve import Serving
from catalog.web import Web

ROOT = Path(__file__).parent.parent
QUICK = {"retries": 1, "backoff": 0.001, "timeout": 10.0, "total": 20.0, "limit": 1 << 20}
SHARD = "weights/net/c/0/0/0"


@dataclass(frozen=True)
class Place:
    """A zoo on a server: bare or published; what is right there."""

    server: FaultyServer
    name: str
    near: Zoo
    zoo: Zoo  # opened far away
    rows: pl.DataFrame
    weights: np.ndarray
    shard: bytes

    @property
    def url(self) -> str:
        return f"{self.server.url}/{self.name}"

    def fresh(self, **options: Any) -> Zoo:
        """As just opened, without the requests of that."""
        folder = self.zoo.folder
        web = Web(**{**{"origin": folder.fs.origin}, **options})
        return Zoo(Folder(folder.url, folder.root, web, folder.manifest), self.zoo.record)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    folder = tmp_path_factory.mktemp("served")
    near, _ = fill(folder / "bare", net())
    catalog.publish(near, folder / "published")
    shard = (folder / "bare" / SHARD).read_bytes()
    with serving(folder) as server, serving(folder) as other, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHTSCAPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        server.other = other
        found = {}
        for name in ("bare", "published"):
            rows = catalog.open(folder / name).scan().collect()
            zoo = catalog.open(f"{server.url}/{name}")
            found[name] = Place(server, name, near, zoo, rows, near.read(rows), shard)
        yield found


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHTSCAPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WEIGHTSCAPE_OFFLINE", raising=False)
    return tmp_path / "cache"


# --- the corpus: faults x what is done x zoos


def opens(place: Place, options: dict[str, Any]) -> None:
    assert catalog.open(place.url, **options).record.digest == place.near.record.digest


def scans(place: Place, options: dict[str, Any]) -> None:
    assert place.fresh(**options).scan().collect().equals(place.rows)


def reads(place: Place, options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(place.fresh(**options).read(place.rows), place.weights)


def reads_a_file(place: Place, options: dict[str, Any]) -> None:
    assert place.fresh(**options).folder.read(SHARD) == place.shard


def lists(place: Place, options: dict[str, Any]) -> None:
    assert place.fresh(**options).folder.files("index") == place.near.folder.files("index")


CASES: dict[str, tuple[Callable[[Place, dict[str, Any]], None], str]] = {  # what is done, and the paths that go wrong
    "open": (opens, r"(zoo|manifest)\.json"),
    "scan": (scans, r"\.parquet"),
    "read": (reads, "/c/"),
    "file": (reads_a_file, "/c/"),
    "list": (lists, r"index/?$"),
}


def outcome(place: Place, case: str, fault: str, left: int) -> str:
    """right, or the name of the error; anything else fails the test."""
    work, where = CASES[case]
    options = {**QUICK, **({"timeout": 0.2} if fault in SLOW else {}), **({"retries": 6} if left == 1 else {})}
    place.server.go_wrong(fault, where, left)
    try:
        work(place, options)
    except ZooError as error:
        return type(error).__name__
    finally:
        place.server.go_wrong("")
    return "right"


# Where a fault for ever does no harm. A listing is a page itself; nothing is asked to list a published version.
HARMLESS: dict[str, set[tuple[str, str]]] = {
    "405 to HEAD": {(name, case) for name in ("bare", "published") for case in CASES},
    "redirect": {(name, case) for name in ("bare", "published") for case in CASES},
    "no ranges": {(name, case) for name in ("bare", "published") for case in CASES} - {("bare", "read")},
    "length too large": {("bare", "open"), ("bare", "scan")},
    "bytes behind the end": {("bare", "list")},
    "page as range": {("bare", "list")},
    "a flipped bit": {("published", "scan")},  # it lies between the columns
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_answer_is_right_or_an_error(fault: str, places: dict[str, Place], cache_folder: Path) -> None:
    """A fault for ever gives right bytes or a typed error, one that passes right bytes."""
    for left in (-1, 1):
        found = {}
        for name, place in places.items():
            for case in ("open", "read") if fault in SLOW else CASES:
                if (name, case) == ("bare", "file") or (case, fault) == ("list", "a flipped bit"):
                    continue  # nothing says there what is right
                shutil.rmtree(cache_folder, ignore_errors=True)
                found[name, case] = outcome(place, case, fault, left)
        right = {key for key, said in found.items() if said == "right"}
        if left == -1:
            assert right == (HARMLESS.get(fault, set()) | {("published", "list")}) & set(found), found
        elif fault in TRANSIENT:
            assert right == set(found), found
    assert places["bare"].server.other.requests == []


# --- one request at a time


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[FaultyServer, bytes]]:
    """A server of one file of 100,000 bytes."""
    data = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "file").write_bytes(data)
    with serving(tmp_path / "www") as server:
        yield server, data


def client(server: FaultyServer, **options: Any) -> tuple[Web, str]:
    web, url = Web.at(server.url, {"retries": 3, "backoff": 0.001, **options})
    return web, f"{url}/file"


@pytest.mark.parametrize(
    ("start", "stop"), [(None, None), (0, None), (7, 7), (0, 1), (99_999, 100_000), (99_990, 100_010), (10**6, 10**7)]
)
def test_ranges_are_those_of_slices(start: int | None, stop: int | None, served: tuple[FaultyServer, bytes]) -> None:
    server, data = served
    web, url = client(server)
    assert web.cat_file(url, start, stop) == data[start:stop]
    assert web.cat_ranges([url, url], [start, 5], [stop, 9]) == [data[start:stop], data[5:9]]
    assert web.size(url) == len(data)


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (5, 4)])
def test_ranges_that_are_none(start: int, stop: int | None, served: tuple[FaultyServer, bytes]) -> None:
    web, url = client(served[0])
    with pytest.raises(ValueError, match="0 <= start <= stop"):
        web.cat_file(url, start, stop)


def test_a_truncated_file_goes_on_where_it_stopped(served: tuple[FaultyServer, bytes]) -> None:
    server, data = served
    web, url = client(server)
    server.go_wrong("truncated", left=2)
    assert web.cat_file(url) == data
    assert [wanted for _, _, wanted in server.requests] == ["", "bytes=50000-", "bytes=75000-"]
    assert server.seen["If-Range"].startswith('"')
    assert server.sent == len(data)


def test_an_answer_that_ends_well_and_early(served: tuple[FaultyServer, bytes]) -> None:
    server, data = served
    web, url = client(server)
    server.go_wrong("short, chunked", left=2)
    assert web.cat_file(url, 100, 900) == data[100:900]
    assert [wanted for _, _, wanted in server.requests] == ["bytes=100-899", "bytes=500-899", "bytes=700-899"]


def test_a_file_that_changes_while_it_is_read(served: tuple[FaultyServer, bytes]) -> None:
    server, data = served
    for start, stop in ((None, None), (10, 90_000)):
        web, url = client(server, retries=9)
        server.go_wrong("another file")
        with pytest.raises(CorruptError, match="changes while it is read"):
            web.cat_file(url, start, stop)
        server.go_wrong("another file", left=1)  # the second answer is of another file than the first
        assert web.cat_file(url, start, stop) == data[start:stop]


@pytest.mark.parametrize("fault", ["other range", "later range", "no content-range", "page as range", "416"])
def test_ranges_that_are_not_those_asked_for(fault: str, served: tuple[FaultyServer, bytes]) -> None:
    """Told at once, not only when a digest does not fit."""
    server, _ = served
    web, url = client(server)
    server.go_wrong(fault)
    with pytest.raises(FormatError, match=r"and answered|more than was asked|without saying|web page|416"):
        web.cat_file(url, 10, 20)
    assert len(server.requests) == 1


def test_no_more_bytes_than_allowed(served: tuple[FaultyServer, bytes]) -> None:
    server, data = served
    web, url = client(server, limit=len(data) - 1)
    for fault in ("", "endless", "truncated"):
        server.go_wrong(fault)
        for call in (lambda: web.cat_file(url), lambda: web.cat_file(url, 0, None)):
            with pytest.raises(FormatError, match="more than the 99,999 bytes allowed"):
                call()
    server.go_wrong("endless")
    with pytest.raises(FormatError, match="sent more than the 10 bytes"):
        web.cat_file(url, 10, 20)
    server.go_wrong("")
    assert web.cat_file(url, limit=len(data)) == data


def test_as_many_attempts_as_allowed(served: tuple[FaultyServer, bytes]) -> None:
    server, data = served
    web, url = client(server)
    server.go_wrong("503", left=3)
    assert web.cat_file(url) == data
    server.requests.clear()
    server.go_wrong("503")
    with pytest.raises(StorageError, match=r"/file: 4 attempts failed, at last: answer 503; try again later"):
        web.cat_file(url)
    assert len(server.requests) == 4
    with pytest.raises(StorageError, match=r"took more than 0\.2 s"):
        client(server, retries=10**6, total=0.2)[0].cat_file(url)


def test_no_more_at_once_than_allowed(served: tuple[FaultyServer, bytes]) -> None:
    server, data = served
    web, url = client(server, connections=3)
    parts = web.cat_ranges([url] * 60, list(range(60)), [at + 20_000 for at in range(60)])
    assert parts == [data[at : at + 20_000] for at in range(60)]
    assert 2 <= server.most <= 3


def test_a_server_that_is_not_there(served: tuple[FaultyServer, bytes]) -> None:
    server, _ = served
    web, url = client(server)
    server.server_close()
    for call in (web.cat_file, web.size, web.exists, web.ls, web.find):
        with pytest.raises(StorageError, match="attempts failed, at last: ClientConnectorError"):
            call(url)
    assert isinstance(web.cat_ranges([url], [0], [1])[0], StorageError)


def test_proxies_of_the_environment_are_asked_for(
    served: tuple[FaultyServer, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, data = served
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    web, url = client(server)
    assert web.cat_file(url) == data
    with pytest.raises(StorageError):
        client(server, trust_env=True)[0].cat_file(url)


def test_names_and_passwords_are_sent_and_not_shown(served: tuple[FaultyServer, bytes]) -> None:
    server, _ = served
    place = server.url.replace("http://", "HTTP://ann:s%3Acret@")
    folder = Folder.at(place, retries=0, headers={"X-Lab": "key"})
    folder.read("file")
    assert server.seen["Authorization"] == "Basic YW5uOnM6Y3JldA=="
    assert server.seen["X-Lab"] == "key"
    server.go_wrong("503")
    with pytest.raises(StorageError) as caught:
        folder.read("file")
    for text in (str(caught.value), repr(folder), folder.url):
        assert "cret" not in text
        assert "YW5u" not in text
        assert "key" not in text


@pytest.mark.parametrize(
    "url",
    ["http://", "https:///zoo", "http://host/zoo?token=1", "http://host/#zoo", "http://host:port/", "http://[::1"],
)
def test_urls_that_name_no_folder(url: str) -> None:
    with pytest.raises(FormatError, match="expected a URL such as"):
        Folder.at(url)


@pytest.mark.parametrize("options", [{"retries": -1}, {"timeout": 0}, {"backoff": -1}, {"connections": 0}])
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="more than 0"):
        Folder.at("http://host/zoo", **options)


def test_another_server_is_not_asked(served: tuple[FaultyServer, bytes], tmp_path: Path) -> None:
    web, _ = client(served[0])
    with serving(tmp_path) as other:
        for url in (f"{other.url}/file", f"{served[0].url}0/file", f"{served[0].url}@{other.url[7:]}/file"):
            with pytest.raises(FormatError, match="got one of another server"):
                web.cat_file(url)
        assert other.requests == []


def test_a_web_server_is_not_written(served: tuple[FaultyServer, bytes]) -> None:
    folder = Folder.at(served[0].url)
    for call in (lambda: folder.write("new", b"data"), lambda: folder.remove("file")):
        with pytest.raises(StorageError, match="read-only"):
            call()


def test_names_that_need_escapes(tmp_path: Path) -> None:
    names = ["a b", "50%", "what?", "#1", "ü/ß", "a+b=c;d,e", "'q'", "x%20y"]
    for name in names:
        (tmp_path / "a zoo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a zoo" / name).write_text(name)
    (tmp_path / "a zoo" / "zoo.json").write_text("{}")
    with serving(tmp_path) as server:
        for url in (f"{server.url}/a zoo/", f"{server.url}/a%20zoo"):
            folder = Folder.at(url)
            assert folder.files() == sorted([*names, "zoo.json"])
            for name in names:
                assert folder.read(name).decode() == name
                assert folder.size(name) == len(name.encode())
            assert folder.exists("50%")
            assert not folder.exists("50%25")


IN_A_CHILD = """
import base64, os, pickle, sys, warnings
folder = pickle.loads(base64.b64decode(sys.argv[1]))
print(len(folder.read("file")), folder.fetch(["file"], [5], [9])[0].hex(), flush=True)
warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside threads
child = os.fork()
if child == 0:
    os._exit(7 if folder.fetch(["file"], [5], [9])[0] else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_it_travels_to_other_processes(served: tuple[FaultyServer, bytes]) -> None:
    """Spawned ones and forked ones, which find connections there that are not theirs."""
    server, data = served
    folder = Folder.at(server.url, headers={"X-Lab": "key"})
    folder.read("file")
    text = b64encode(pickle.dumps(folder)).decode()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_A_CHILD, text], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.split(), done.stderr) == (["100000", data[5:9].hex(), "7"], "")
    assert server.seen["X-Lab"] == "key"


def test_threads_share_it(served: tuple[FaultyServer, bytes]) -> None:
    server, data = served
    web, url = client(server)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda at: web.cat_file(url, at, at + 1000), range(0, 50_000, 1000)))
    assert b"".join(parts) == data[:50_000]


# --- listings, and what is tried again


def test_our_own_server_is_listed(tmp_path: Path) -> None:
    for name in ("zoo.json", "a b", "index/1", "c/d/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty").mkdir()
    with Serving(tmp_path) as url:
        folder = Folder.at(url)
        assert folder.files() == ["a b", "c/d/e", "index/1", "zoo.json"]
        assert folder.top() == ["a b", "zoo.json"]
        assert folder.files("c") == ["c/d/e"]
        assert folder.files("empty") == folder.files("nothing") == []
        assert folder.fetch(["a b", "nothing"], [1, 0], [2, 5])[0] == b" "


@pytest.mark.parametrize(
    "link",
    [
        "http://evil.example/zoo/a", "//evil.example/zoo/a", "../a", "../../etc/passwd", "/etc/passwd", "a/b", "a%2Fb",
        "%2e%2e/", "..%5Ca", "?C=N;O=D", "a?b", "#top", "javascript:alert(1)", "data:text/plain,a", "http://[", "", ".",
        "a%00b", "https://host/zoo/a", "http://host:81/zoo/a", "http://host/zoology",
    ],
)  # fmt: skip
def test_links_that_are_no_entries(link: str) -> None:
    page = f'<html><a href="{link}">x</a><a href="good">y</a><a name="z">z</a></html>'.encode()
    assert listed_in(page, "http://host/zoo/") == ["http://host/zoo/good"]


@pytest.mark.parametrize("link", ["b", "./b", "/zoo/b", "http://host/zoo/b", "//host/zoo/b", " b "])
def test_links_that_are_entries(link: str) -> None:
    assert listed_in(f"<A class=x HREF='{link}'>b</A>".encode() * 2, "http://host/zoo/") == ["http://host/zoo/b"]


@pytest.mark.parametrize(
    ("here", "location", "followed"),
    [
        ("http://host/a", "/b", "http://host/b"),
        ("http://host/a/b", "c", "http://host/a/c"),
        ("http://host/a", "http://HOST/b", "http://HOST/b"),
        ("http://host:81/a", "http://host:81/b", "http://host:81/b"),
        ("http://host/a", "https://host/a", "https://host/a"),
        ("http://host:81/a", "https://host:81/a", "https://host:81/a"),
        ("http://host/a", "https://other/a", None),
        ("http://host/a", "https://host:444/a", None),
        ("https://host/a", "http://host/a", None),
        ("http://host/a", "http://host:81/a", None),
        ("http://host/a", "//other/a", None),
        ("http://host/a", "http://host@other/a", None),
        ("http://host/a", "http://ann@host/a", None),
        ("http://host/a", "http://host.other/a", None),
        ("http://host/a", "ftp://host/a", None),
        ("http://host/a", "file:///a", None),
        ("http://host/a", "", None),
    ],
)
def test_redirects(here: str, location: str, followed: str | None) -> None:
    from catalog.transfer import _redirected

    if followed:
        assert _redirected(here, here, location) == followed
    else:
        with pytest.raises(FormatError, match="redirects to another place"):
            _redirected(here, here, location)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0), (" 120 ", 120.0), ("99999999999999999", 999999999.0), ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("Thu, 01 Jan 1970 00:02:00 -0000", 20.0), ("-1", None), ("1.5", None),
        ("", None), (None, None), ("²", None), ("Thu, 99 Jan 1970 00:00:00 GMT", None), ("\0", None),
    ],
)  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, 100.0) == seconds


def test_pauses_double_with_jitter_and_wait_as_asked() -> None:
    for attempt in range(12):
        waits = [pause(attempt, 0.5) for _ in range(200)]
        limit = min(0.5 * 2**attempt, LONGEST)
        assert 0 <= min(waits) < 0.2 * limit
        assert 0.8 * limit < max(waits) <= limit
    assert 7 <= pause(0, 0.5, 7.0) <= 7.5
    assert pause(0, 0.5, 1e9) == LONGEST
    assert pause(10**6, 0.5) <= LONGEST


class SlowDown(Exception):
    response: ClassVar[dict[str, Any]] = {"ResponseMetadata": {"HTTPStatusCode": 503}}


class ReadTimeoutError(Exception):
    """By the name alone, as of botocore or urllib3."""


def caused(error: Exception) -> Exception:
    wrapped = OSError(5, "translated")
    wrapped.__cause__ = error
    return wrapped


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError(),
        SlowDown(),
        caused(SlowDown()),
        type("ReadTimeoutError", (Exception,), {})(),
    ],
)
def test_what_is_tried_again(error: Exception) -> None:
    calls: list[int] = []

    def call() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise error
        return 7

    assert transient(error)
    assert again(call, attempts=3, backoff=0.0) == 7
    calls.clear()
    with pytest.raises(type(error)):
        again(call, attempts=2, backoff=0.0)
    assert len(calls) == 2

    def several(which: list[int]) -> list[Any]:
        calls.append(1)
        return [error if at % 2 and len(calls) < 3 else at for at in which]

    calls.clear()
    assert again_each(several, 5, backoff=0.0) == [0, 1, 2, 3, 4]
    assert len(calls) == 3


@pytest.mark.parametrize("error", [FileNotFoundError(), PermissionError(), ValueError(), caused(KeyError())])
def test_what_is_not_tried_again(error: Exception) -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        again(call, backoff=0.0)
    assert len(calls) == 1


def test_a_store_that_slows_down(served: tuple[FaultyServer, bytes]) -> None:
    """S3 by fsspec: after what botocore tries itself, we do."""
    pytest.importorskip("s3fs")
    server, data = served
    options = {"endpoint_url": server.url, "key": "k", "secret": "s", "client_kwargs": {"region_name": "x"}}
    folder = Folder.at("s3://bucket", config_kwargs={"retries": {"max_attempts": 0}}, **options)
    (server.folder / "bucket").mkdir()
    (server.folder / "bucket" / "file").write_bytes(data)
    server.go_wrong("503", left=2)
    assert folder.read("file") == data
    server.go_wrong("503", left=2)
    assert folder.fetch(["file", "file"], [0, 7], [5, 9]) == [data[:5], data[7:9]]
    server.go_wrong("503")
    with pytest.raises(StorageError):
        folder.read("file")
