"""Zoos on the Hugging Face Hub: the real `HfFileSystem` against a server that speaks what it needs of the Hub."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import polars as pl
import pytest

import catalog
from catalog.errors import NotAZooError, ZooError
from catalog.store import Zoo
from tests.catalog_zoos import Truth, check_reads, fill, long, net

pytest.importorskip("huggingface_hub")

REPO = "lab/zoos"
REVISIONS = {"main": "2" * 40, "old": "1" * 40, "2" * 40: "2" * 40, "1" * 40: "1" * 40}  # name -> commit


class Hub(BaseHTTPRequestHandler):
    """One repository of data sets, whose commits are folders: `server.folder / <commit>`."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if match := re.fullmatch(rf"/datasets/{REPO}/resolve/([^/]+)/(.+)", path):
            return self.file(match[1], match[2])
        match = re.fullmatch(rf"/api/datasets/{REPO}(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path)
        if not match:
            return self.refuse("RepoNotFound", "Repository not found")
        kind, revision, below = match[1] or "revision", match[2] or "main", match[3] or ""
        if revision not in REVISIONS:
            return self.refuse("RevisionNotFound", "Invalid rev id")
        root = self.server.folder / REVISIONS[revision]
        if kind == "revision":
            return self.json({"id": REPO, "sha": REVISIONS[revision], "private": False, "tags": [], "downloads": 0})
        if kind == "paths-info":
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
            return self.json([self.entry(root, root / name) for name in asked if (root / name).exists()])
        if not (root / below).is_dir():
            return self.refuse("EntryNotFound", f"{below} does not exist on {revision}")
        every = "recursive=True" in self.path or "recursive=true" in self.path
        found = (root / below).rglob("*") if every else (root / below).iterdir()
        self.json([self.entry(root, path) for path in sorted(found)])

    do_HEAD = do_POST = do_GET

    def entry(self, root: Path, path: Path) -> dict[str, Any]:
        kind = "directory" if path.is_dir() else "file"
        name, oid = path.relative_to(root).as_posix(), hashlib.sha1(os.fsencode(path)).hexdigest()
        return {"type": kind, "path": name, "oid": oid, "size": path.stat().st_size if kind == "file" else 0}

    def file(self, revision: str, name: str) -> None:
        path = self.server.folder / REVISIONS.get(revision, "none") / name
        if not path.is_file():
            return self.refuse("EntryNotFound", "Entry not found")
        data, headers, status = path.read_bytes(), {"X-Repo-Commit": REVISIONS[revision]}, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(wanted[1]), min(int(wanted[2] or len(data) - 1) + 1, len(data))
            headers["Content-Range"], status = f"bytes {start}-{stop - 1}/{len(data)}", 206
            data = data[start:stop]
        self.reply(status, data, headers)

    def json(self, content: Any) -> None:
        self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def refuse(self, code: str, message: str) -> None:
        self.reply(404, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    def reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"ETag": '"e"', "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


class HubServer(ThreadingHTTPServer):
    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.folder = folder
        self.requests: list[str] = []


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, Zoo, Truth]]:
    """A zoo published in the folder `moons` of a repository, twice: the branch `old` has the first version alone."""
    folder = tmp_path_factory.mktemp("hub")
    zoo, truth = fill(folder / "zoo", net(), long())
    catalog.publish(zoo, folder / "1" / "moons")
    (folder / "1").rename(folder / ("1" * 40))
    catalog.split(zoo)
    catalog.publish(zoo, folder / ("2" * 40) / "moons")
    server = HubServer(folder)
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield server, zoo, truth
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSCAPE_CACHE", os.fspath(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


def options(server: HubServer) -> dict[str, Any]:
    return {"endpoint": f"http://127.0.0.1:{server.server_port}", "token": False}


def test_a_zoo_is_opened_queried_and_read(hub: tuple[HubServer, Zoo, Truth]) -> None:
    server, zoo, truth = hub
    found = catalog.open(f"hf://datasets/{REPO}/moons", **options(server))
    ours = zoo.scan(None).collect()
    assert found.scan(None).select(ours.columns).collect().equals(ours)
    check_reads(found, truth)
    rows = catalog.query(catalog.open(f"hf://datasets/{REPO}/moons", **options(server)), "width = 2", columns=["run"])
    assert set(rows["run"]) == {"net-2", "net-5", "long-2"}


def test_a_revision_is_a_revision(hub: tuple[HubServer, Zoo, Truth]) -> None:
    server, _, truth = hub
    for revision, columns in (("main", {"split"}), ("old", set()), ("1" * 40, set())):
        found = catalog.open(f"hf://datasets/{REPO}@{revision}/moons", **options(server))
        assert {"split"} & set(found.scan().collect_schema().names()) == columns
        check_reads(found, truth)


def test_a_slice_is_pulled(hub: tuple[HubServer, Zoo, Truth], tmp_path: Path) -> None:
    server, _, truth = hub
    url = f"hf://datasets/{REPO}/moons"
    made = catalog.pull(url, tmp_path / "part.zoo", where="variant = 'net' and model >= 4", **options(server))
    assert made.zoo is not None
    check_reads(made.zoo, truth)
    assert catalog.verify(tmp_path / "part.zoo").problems == ()
    assert not [path for path in server.requests if "weights/long/c" in path and "2" * 40 in path]


def test_workers_open_it_themselves(hub: tuple[HubServer, Zoo, Truth]) -> None:
    import multiprocessing.reduction

    server, zoo, _ = hub
    found = catalog.open(f"hf://datasets/{REPO}/moons", **options(server))
    rows = zoo.scan().filter(pl.col("variant") == "net").collect()
    sent = bytes(multiprocessing.reduction.ForkingPickler.dumps(found))
    back: Zoo = multiprocessing.reduction.ForkingPickler.loads(sent)
    assert (back.read(rows) == zoo.read(rows)).all()


@pytest.mark.parametrize(
    ("url", "error"),
    [
        (f"hf://datasets/{REPO}/nothing", NotAZooError),
        ("hf://datasets/lab/nothing/moons", ZooError),
        (f"hf://datasets/{REPO}@nothing/moons", ZooError),
        ("hf://datasets/nothing", ZooError),
        ("hf://", ZooError),
    ],
)
def test_what_is_not_there(hub: tuple[HubServer, Zoo, Truth], url: str, error: type[ZooError]) -> None:
    with pytest.raises(error) as caught:
        catalog.open(url, **options(hub[0]))
    assert url.rstrip("/") in str(caught.value)
