"""The web server of zoos: right bytes to every client, and to nobody a file that is no zoo's."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest

import catalog
from catalog.errors import NotAZooError, StorageError
from catalog.store import Zoo
from tests.catalog_zoos import Truth, check_reads, fill
from tests.processes import wait_until

pytest.importorskip("aiohttp")
serving = pytest.importorskip("catalog.serve")

SECRET = b"a secret"
SHARD = "weights/net/c/0/0/0"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo, with things inside and beside it that nobody may see."""
    home = tmp_path_factory.mktemp("home")
    (home / "secret.txt").write_bytes(SECRET)
    zoo = home / "zoo"
    fill(zoo)
    (home / "zoo-beside").mkdir()
    (home / "zoo-beside" / "zoo.json").write_bytes(SECRET)
    for name in (".hidden", ".tmp-1-zoo.json", "a\nb", "back\\slash", "weights/.env"):
        (zoo / name).write_bytes(SECRET)
    (zoo / ".git").mkdir()
    (zoo / ".git" / "config").write_bytes(SECRET)
    (zoo / "out.txt").symlink_to(home / "secret.txt")
    (zoo / "out").symlink_to(home)
    (zoo / "beside").symlink_to(home / "zoo-beside")
    (zoo / "weights" / "loop").symlink_to(zoo / "weights" / "loop")
    (zoo / "gone").symlink_to(zoo / "nothing")
    (zoo / "inside.json").symlink_to(zoo / "zoo.json")
    os.mkfifo(zoo / "pipe")
    (zoo / "empty").write_bytes(b"")
    (zoo / "ü & <b>'\".md").write_bytes(b"text")
    (zoo / "100%41.json").write_bytes(b"percent")
    (zoo / "page.html").write_bytes(b"<script>alert(1)</script>")
    (zoo / "zoo.json.gz").write_bytes(b"other bytes than the zoo's")
    return home


@pytest.fixture(scope="module")
def seen() -> list[tuple[str, str, int, int]]:
    return []


@pytest.fixture(scope="module")
def url(home: Path, seen: list[Any]) -> Iterator[str]:
    with serving.Serving(home / "zoo", log=lambda *said: seen.append(said)) as url:
        yield url


def ask(url: str, request: str | bytes, patience: float = 30.0) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what a server answers to these bytes; 0 when it does not, in `patience` seconds."""
    host, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()  # type: ignore[union-attr]
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        data = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            connection.sendall(request.encode() if isinstance(request, str) else request)
            connection.settimeout(patience)
            while part := connection.recv(1 << 16):
                data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not data:
        return 0, {}, b""
    return int(lines[0].split()[1]), dict(line.lower().split(": ", 1) for line in lines[1:]), body


def get(url: str, target: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return ask(url, f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n")


def test_every_file_and_its_headers(home: Path, url: str) -> None:
    kinds = {"zoo.json": "application/json", SHARD: "application/octet-stream", "page.html": "application/octet-stream"}
    for name, kind in {**kinds, "%C3%BC%20%26%20%3Cb%3E%27%22.md": "text/plain; charset=utf-8"}.items():
        status, headers, body = get(url, f"/{name}", Accept_Encoding="gzip, br")
        file = home / "zoo" / (name if "%" not in name else "ü & <b>'\".md")
        assert (status, body) == (200, file.read_bytes())
        assert (headers["content-length"], headers["content-type"]) == (str(len(body)), kind)
        assert (headers["x-content-type-options"], headers["accept-ranges"]) == ("nosniff", "bytes")
        assert "access-control-allow-origin" not in headers
        assert "content-encoding" not in headers
        again = get(url, f"/{name}", "HEAD")
        assert (again[0], again[1]["content-length"], again[2]) == (200, str(len(body)), b"")
    assert get(url, "/100%2541.json")[2] == b"percent"
    assert get(url, "/inside.json")[2] == (home / "zoo" / "zoo.json").read_bytes()
    assert get(url, "/empty") == (200, get(url, "/empty")[1], b"")


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=5-14", 206, slice(5, 15)),
        ("bytes=300-", 206, slice(300, None)),
        ("bytes=-68", 206, slice(-68, None)),
        ("bytes=-99999", 206, slice(None)),
        ("bytes=360-99999", 206, slice(360, None)),
        ("Bytes = 5 - 14", 206, slice(5, 15)),
        (f"bytes=0-{'9' * 19}", 206, slice(None)),
        ("bytes=372-", 416, None),
        ("bytes=372-400", 416, None),
        ("bytes=-0", 416, None),
        (f"bytes={'9' * 19}-", 416, None),
        ("bytes=0-4,10-14", 200, slice(None)),
        ("bytes=14-5", 200, slice(None)),
        ("bytes=-", 200, slice(None)),
        ("bytes=", 200, slice(None)),
        ("bytes=a-b", 200, slice(None)),
        ("bytes=--5", 200, slice(None)),
        ("bytes=+1-5", 200, slice(None)),
        ("bytes=\u0661-5".encode().decode("latin-1"), 200, slice(None)),
        (f"bytes={'9' * 5000}-", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
    ],
)
def test_ranges(wanted: str, status: int, part: slice | None, home: Path, url: str) -> None:
    data = (home / "zoo" / SHARD).read_bytes()
    assert len(data) == 372
    expected = b"" if part is None else data[part]
    found, headers, body = get(url, f"/{SHARD}", Range=wanted)
    assert (found, body, headers["content-length"]) == (status, expected, str(len(expected)))
    if part is None:
        assert headers["content-range"] == "bytes */372"
    elif status == 206:
        start = range(372)[part].start
        assert headers["content-range"] == f"bytes {start}-{start + len(body) - 1}/372"
    whole = get(url, f"/{SHARD}", "HEAD", Range=wanted)
    assert (whole[0], whole[1]["content-length"]) == (200, "372")


def test_an_empty_file_has_no_ranges(url: str) -> None:
    assert [get(url, "/empty", Range=wanted)[0] for wanted in ("bytes=0-", "bytes=-5", "bytes=0-0")] == [416] * 3


def test_conditions(home: Path, url: str) -> None:
    """A download goes on only with the same file: with another one it begins again."""
    path = home / "zoo" / "changing"
    path.write_bytes(b"0123456789")
    tag = get(url, "/changing")[1]["etag"]
    date = get(url, "/changing")[1]["last-modified"].title().replace("Gmt", "GMT")
    for same in (tag, date):
        assert get(url, "/changing", Range="bytes=5-", If_Range=same)[::2] == (206, b"56789")
    assert get(url, "/changing", If_None_Match=f'"x", W/{tag}')[0::2] == (304, b"")
    assert get(url, "/changing", If_Match=tag)[0] == get(url, "/changing", If_Match="*")[0] == 200
    assert get(url, "/changing", If_Match='"x"')[0::2] == (412, b"")
    other = path.with_name("other")
    other.write_bytes(b"abcdefghij")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)  # the same length and date
    for stale in (tag, '"x"', f"W/{tag}", "Thu, 01 Jan 1970 00:00:00 GMT", ""):
        assert get(url, "/changing", Range="bytes=5-", If_Range=stale)[::2] == (200, b"abcdefghij")
    assert get(url, "/changing", If_None_Match=tag)[0] == 200
    path.unlink()


ESCAPES = [
    *("/../secret.txt", "/../../secret.txt", "/weights/../../secret.txt", "/weights/../zoo.json", "/./zoo.json"),
    *("/%2e%2e/secret.txt", "/%2E%2E/%2e%2e/secret.txt", "/.%2e/secret.txt", "/%2e%2e%2fsecret.txt"),
    *("/..%2fsecret.txt", "/..%5csecret.txt", "/..\\secret.txt", "/%252e%252e/secret.txt", "/weights%2fzarr.json"),
    *("/%c0%ae%c0%ae/secret.txt", "/%c0%af..%c0%afsecret.txt", "/%uff0e%uff0e/secret.txt", "/%ff"),
    *("//secret.txt", "//etc/passwd", "/zoo.json%00.png", "/zoo.json%00", "/%00", "/zoo.json/", "/zoo.json/x"),
    *("/%2fetc%2fpasswd", "/C:/x", "/C:%5cx", "/%5c%5chost%5cshare", "/file:///etc/passwd", "/~/secret.txt", "/~root"),
    *(
        "/out.txt",
        "/out/secret.txt",
        "/out",
        "/out/",
        "/beside/zoo.json",
        "/weights/loop",
        "/gone",
        "/pipe",
        "/out/zoo/out.txt",
    ),
    *("/.hidden", "/.tmp-1-zoo.json", "/.git/config", "/.git", "/.git/", "/weights/.env", "/%2egit/config", "/..."),
    *("/a%0ab", "/back%5cslash", "/nothing", "/" + "a" * 300, "/" + "a/" * 2500, "/zoo.json%0d%0aX:%20y", "/%"),
    *("/%zz", "/%2", "/*", "/zoo.json;x", "/\u202e", "/..;/secret.txt", "/..%00/secret.txt", "/.%00./secret.txt"),
    *("/%20zoo.json", "/ZOO.JSON/../../secret.txt", "/../zoo-beside/zoo.json", "/proc/self/environ"),
]


@pytest.mark.parametrize("target", ESCAPES)
def test_nothing_else_is_served(target: str, url: str) -> None:
    encoded = target.encode().decode("latin-1")
    for method in ("GET", "HEAD"):
        status, headers, body = ask(url, f"{method} {encoded} HTTP/1.0\r\n\r\n".encode("latin-1"))
        assert status in (400, 404), (status, body)
        assert SECRET not in body
        assert "x" not in headers


LINES: list[str | bytes] = [
    *(
        "",
        "\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\n",
        "nonsense\r\n\r\n",
    ),
    *("GET zoo.json HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET ../secret.txt HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    *("GET http://localhost/../secret.txt HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01"),
    *(
        "CONNECT secret:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET file:///etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ),
    *("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes(range(256)) * 8),
    "GET /zoo.json HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "GET /zoo.json HTTP/1.1\r\nHost: localhost.evil.example:80\r\n\r\n",
    "GET /zoo.json HTTP/1.1\r\nHost: localhost@evil.example\r\n\r\n",
    "GET /zoo.json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nGET /",
    "GET /zoo.json HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "GET /zoo.json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "GET /zoo.json HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n",
    "GET /zoo.json HTTP/1.1\r\nHost: localhost\r\n" + "".join(f"A{i}: b\r\n" for i in range(5000)) + "\r\n",
    "GET /zoo.json HTTP/1.1\r\nHost: localhost\r\nA: " + "b" * 1_000_000 + "\r\n\r\n",
    "GET /zoo.json HTTP/1.1\r\nHost: localhost\r\nA\0: b\r\n\r\n",
    "GET /zoo.json HTTP/1.1\r\nHost: localhost\r\n : b\r\n\r\n",
    "GET /" + "a" * 1_000_000 + " HTTP/1.1\r\nHost: localhost\r\n\r\n",
    *(
        f"{method} /zoo.json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "PROPFIND", "MKCOL", "get", "X" * 100)
    ),
]


@pytest.mark.parametrize("request_", LINES, ids=lambda line: repr(line)[:40])
def test_requests_that_are_none(request_: str | bytes, home: Path, url: str) -> None:
    before = (home / "zoo" / "zoo.json").read_bytes()
    status, headers, body = ask(url, request_, patience=0.2)
    assert status == 0 or 400 <= status < 500 or status in (501, 505), (status, body)
    assert (status == 405) <= (headers.get("allow") == "get, head")
    assert SECRET not in body
    assert (home / "zoo" / "zoo.json").read_bytes() == before
    assert get(url, "/zoo.json")[2] == before  # it still serves


def test_listings(url: str, home: Path) -> None:
    status, headers, body = get(url, "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["content-security-policy"]
    links = re.findall(r'href="([^"]*)"', body.decode())
    expected = ["/", "100%2541.json", "empty", "index/", "inside.json", "page.html"]
    table = next((home / "zoo").glob("table.*")).name
    expected += [table, "weights/", "zarr.json", "zoo.json", "zoo.json.gz", "%C3%BC%20%26%20%3Cb%3E%27%22.md"]
    assert links == expected
    assert b"<b>" not in body
    assert get(url, "/weights/")[2] == get(url, "/weights")[2]
    filesystem = fsspec.filesystem("http", skip_instance_cache=True)
    for root in (f"{url}/weights", f"{url}/weights/"):
        names = {entry["name"].removeprefix(f"{url}/weights/"): entry["type"] for entry in filesystem.ls(root)}
        assert names == {"long/": "directory", "net/": "directory", "zarr.json": "file"}
    found = {name.removeprefix(f"{url}/") for name in filesystem.find(f"{url}/weights")}
    assert found == {
        p.relative_to(home / "zoo").as_posix() for p in (home / "zoo/weights").rglob("[!.]*") if p.is_file()
    }


def test_clients(home: Path, url: str, seen: list[tuple[str, str, int, int]]) -> None:
    zarr = pytest.importorskip("zarr")
    local = catalog.open(home / "zoo")
    far = catalog.open(url)
    check_reads(far, truth_of_all(local))
    name = next((home / "zoo").glob("table.*")).name
    size = (home / "zoo" / name).stat().st_size
    del seen[:]
    rows = pl.scan_parquet(f"{url}/{name}").filter(variant="net").select("run", "epoch").collect()
    assert rows.equals(pl.read_parquet(home / "zoo" / name).filter(variant="net").select("run", "epoch"))
    assert {status for _, _, status, _ in seen} <= {200, 206}
    assert all(count <= size for *_, count in seen)
    filesystem = fsspec.filesystem("http")
    data = (home / "zoo" / SHARD).read_bytes()
    del seen[:]
    assert filesystem.cat_ranges([f"{url}/{SHARD}"] * 3, [0, 7, -9], [5, 9, None]) == [data[:5], data[7:9], data[-9:]]
    wait_until(lambda: len(seen) >= 3)  # it is told of behind the last byte
    assert sorted((status, count) for _, _, status, count in seen) == [(206, 2), (206, 5), (206, 9)]
    assert filesystem.size(f"{url}/{SHARD}") == 372
    with filesystem.open(f"{url}/{SHARD}", block_size=16) as file:
        file.seek(100)
        assert file.read(50) == data[100:150]
    import numpy as np

    group = zarr.open(url, mode="r", zarr_format=3)
    expected = zarr.open(home / "zoo", mode="r", zarr_format=3)
    np.testing.assert_array_equal(group["weights/net"][:], expected["weights/net"][:])


def truth_of_all(zoo: Zoo) -> Truth:
    truth: Truth = {}
    for name in zoo.record.variants:
        rows = zoo.scan(None).filter(pl.col("stored"), pl.col("variant") == name).collect()
        truth |= dict(zip(rows.select("variant", "model", "checkpoint").iter_rows(), zoo.read(rows), strict=True))
    return truth


def test_several_zoos_below_one_folder(home: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(home / "zoo")  # leads out: not served
    fill(tmp_path / "mine")
    (tmp_path / "registry.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_bytes(SECRET)
    (tmp_path / "passwords.json").write_bytes(SECRET)
    with serving.Serving(tmp_path) as url:
        assert re.findall(r'<a href="([^"]*)"', get(url, "/")[2].decode()) == ["mine/", "registry.json"]
        assert [get(url, path)[0] for path in ("/registry.json", "/mine/zoo.json", "/mine/")] == [200] * 3
        assert [get(url, p)[0] for p in ("/notes/diary.txt", "/notes", "/passwords.json", "/a/zoo.json")] == [404] * 4
        assert len(catalog.open(f"{url}/mine").scan().collect()) == 14


def test_what_cannot_be_served(tmp_path: Path, home: Path) -> None:
    (tmp_path / "zoo").write_bytes(b"")
    for folder in (tmp_path, tmp_path / "zoo", tmp_path / "nothing"):
        with pytest.raises(NotAZooError, match="is no zoo"):
            serving.Serving(folder)
    with serving.Serving(home / "zoo") as url, pytest.raises(StorageError, match="choose another port"):
        serving.Serving(home / "zoo", port=int(url.rpartition(":")[2])).__enter__()
    for host, port in (("127.0.0.1", 70_000), ("203.0.113.1", 0)):
        with pytest.raises(StorageError, match="cannot listen"):
            serving.Serving(home / "zoo", host, port).__enter__()


def test_pages_of_others(home: Path) -> None:
    with serving.Serving(home / "zoo", origins="https://lab.example") as url:
        headers = get(url, "/zoo.json")[1]
    assert headers["access-control-allow-origin"] == "https://lab.example"
    assert "content-range" in headers["access-control-expose-headers"]


def test_a_file_that_becomes_shorter_is_no_whole_answer(tmp_path: Path) -> None:
    fill(tmp_path / "zoo")
    path = tmp_path / "zoo" / "large"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    with serving.Serving(tmp_path / "zoo") as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            got = len(connection.recv(1000))  # the first bytes are here, most wait for us
            os.truncate(path, 32 << 20)
            with contextlib.suppress(ConnectionResetError):  # or it ends early, without an error
                while part := connection.recv(1 << 20):
                    got += len(part)
        assert got < 64 << 20
        assert get(url, "/zoo.json")[0] == 200


def test_slow_and_many_clients(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that never finish asking, or never read, are cut off; too many at once as well. Others are served."""
    monkeypatch.setattr(serving, "IDLE", 0.5)
    monkeypatch.setattr(serving, "STALLED", 0.5)
    monkeypatch.setattr(serving, "CONNECTIONS", 20)
    with (home / "zoo" / "huge").open("wb") as file:
        file.truncate(256 << 20)
    with serving.Serving(home / "zoo") as url:
        host, port = url.removeprefix("http://").split(":")
        address = host, int(port)
        drip = socket.create_connection(address, timeout=30)
        drip.sendall(b"GET /zoo.json HTTP/1.1\r\nHost: loc")
        silent = socket.create_connection(address, timeout=30)
        deaf = socket.create_connection(address, timeout=30)
        deaf.sendall(b"GET /huge HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert get(url, "/zoo.json")[0] == 200
        for one in (drip, silent):
            assert hung_up(one)
        time.sleep(1.5)
        assert hung_up(deaf)
        crowd = [socket.create_connection(address, timeout=30) for _ in range(40)]
        for one in crowd:
            assert hung_up(one)
        assert get(url, "/zoo.json")[0] == 200
    (home / "zoo" / "huge").unlink()


def hung_up(connection: socket.socket) -> bool:
    """Whether the server ends a connection, and has not sent all of the huge file."""
    got = 0
    with connection:
        try:
            while part := connection.recv(1 << 20):
                got += len(part)
        except ConnectionResetError:
            pass
    return got < 256 << 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_told_to(number: signal.Signals, home: Path) -> None:
    code = "import sys, catalog.serve as s; s.serve(sys.argv[1], port=0, on_ready=lambda url: print(url, flush=True))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, os.fspath(home / "zoo")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    url = process.stdout.readline().strip()
    assert get(url, "/zoo.json")[0] == 200
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


def test_a_warning_when_others_can_reach_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.asyncio, "run", lambda coroutine: coroutine.close())
    with pytest.warns(UserWarning, match="no passwords"):
        serving.serve(home / "zoo", "0.0.0.0")
    serving.serve(home / "zoo", "127.0.0.1")
