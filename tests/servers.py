"""Places far away that are near: a web server and S3, real ones, and copying a folder there.

The fixtures are known to all tests through `conftest.py`. Imports nothing of ours, which is loaded later.
"""

from __future__ import annotations

import functools
import html
import os
import re
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder with byte ranges and listings; `server.mode` makes it a worse server."""

    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path, mode = Path(self.translate_path(self.path)), self.server.mode
        self.server.requests.append(self.path)
        if mode == "down":
            return self.reply(503, b"try later", body)
        if path.is_dir():
            if mode == "unlisted":
                return self.reply(404, b"no such page", body)
            if mode == "blank":
                return self.reply(200, b"<html>Welcome</html>", body)
            names = [f"{p.name}/" if p.is_dir() else p.name for p in sorted(path.iterdir())]
            links = "".join(f'<a href="{html.escape(name)}">{html.escape(name)}</a>\n' for name in names)
            return self.reply(200, f'<html><a href="?C=N;O=D">Name</a> {links}</html>'.encode(), body)
        if not path.is_file():
            return self.reply(404, b"no such page", body)
        data = path.read_bytes()
        asked = self.headers.get("Range", "")
        if last := re.fullmatch(r"bytes=-(\d+)", asked):
            asked = f"bytes={max(len(data) - int(last[1]), 0)}-"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        if not wanted or mode == "no ranges":
            return self.reply(200, data, body)
        start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
        self.reply(206, data[start:stop], body, f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}")

    def reply(self, status: int, data: bytes, body: bool, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "text/html" if data.startswith(b"<html") else "application/octet-stream")
        if content_range:
            self.send_header("Content-Range", content_range)
        if self.server.mode != "no ranges":
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.server.sent += len(data)
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    mode = ""
    requests: list[str]
    sent = 0  # bytes of bodies

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients hang up when they have seen enough


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Server, str]]:
    """A server of tmp_path, and its address."""
    pytest.importorskip("aiohttp")
    server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=os.fspath(tmp_path)))
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def memory() -> Iterator[str]:
    """An empty place in the memory of this process."""
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    filesystem, root = fsspec.core.url_to_fs(url)
    if filesystem.exists(root):
        filesystem.rm(root, recursive=True)


@pytest.fixture(scope="module")
def s3_options() -> Iterator[dict[str, Any]]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {"endpoint_url": f"http://{host}:{port}", "key": "k", "secret": "s", "client_kwargs": {"region_name": "x"}}
    server.stop()


@dataclass
class Counted:
    """An S3 server that counts: fsspec options for it, what was asked (GET with its query), bytes of answers."""

    options: dict[str, Any]
    requests: list[str]
    sent: int = 0


@pytest.fixture(scope="module")
def counted_s3() -> Iterator[Counted]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)
    counted = Counted({"key": "k", "secret": "s", "client_kwargs": {"region_name": "x"}}, [])

    def counting(environ: Any, start_response: Any) -> Iterator[bytes]:
        counted.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        for part in application(environ, start_response):
            counted.sent += len(part)
            yield part

    server = make_server("127.0.0.1", 0, counting, threaded=True)
    counted.options["endpoint_url"] = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield counted
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def bucket(s3_options: dict[str, Any]) -> str:
    name = f"lab-{uuid.uuid4().hex[:8]}"
    fsspec.filesystem("s3", **s3_options).mkdir(name)
    return f"s3://{name}"


def put(folder: Path, url: str, **options: Any) -> Any:
    """Copy a folder there; returns the filesystem."""
    filesystem, root = fsspec.core.url_to_fs(url, **options)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        filesystem.pipe_file(f"{root}/{name}", path.read_bytes())
    return filesystem
