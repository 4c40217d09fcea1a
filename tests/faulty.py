"""A web server whose answers go wrong on demand, on real sockets: a fault is a function and a line in FAULTS."""

from __future__ import annotations

import hashlib
import html
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def but(self, **headers: str | None) -> Answer:
        """With other headers; None leaves one out. `content_type` stands for Content-Type."""
        given = {name.replace("_", "-").title().replace("Etag", "ETag"): value for name, value in headers.items()}
        merged = {**self.headers, **given}
        return replace(self, headers={name: value for name, value in merged.items() if value is not None})


class FaultyServer(ThreadingHTTPServer):
    """Serves a folder with byte ranges, etags and listings.

    Attributes:
        fault: a name in FAULTS, or empty.
        where: pattern of the paths that have it.
        left: answers that have it still, a negative number for all.
        requests: (method, path, Range header) of all.
        delay: seconds before each answer.
        sent: bytes of bodies.
        seen: headers of the last request.
        busy, most: requests being answered now, and the most that ever were.
        other: another server, which nobody should ask.
    """

    daemon_threads = True
    fault, where, left, delay = "", "", -1, 0.0
    other: FaultyServer

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requests: list[tuple[str, str, str]] = []
        self.seen: dict[str, str] = {}
        self.sent = self.busy = self.most = 0
        self.lock, self.closing = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def go_wrong(self, fault: str, where: str = "", left: int = -1) -> None:
        with self.lock:
            self.fault, self.where, self.left = fault, where, left

    def takes_fault(self, path: str) -> str:
        with self.lock:
            if not self.fault or not self.left or path.startswith("/moved") or not re.search(self.where, path):
                return ""
            self.left -= 1
            return self.fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients hang up


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes
    server: FaultyServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.requests.append((self.command, self.path, self.headers.get("Range", "")))
            server.seen = dict(self.headers.items())
            server.busy += 1
            server.most = max(server.most, server.busy)
        try:
            self.answer()
        finally:
            with server.lock:
                server.busy -= 1

    def answer(self) -> None:
        server = self.server
        time.sleep(server.delay)
        answer = self.right(self.path.removeprefix("/moved"))
        fault = server.takes_fault(self.path)
        if fault and not (self.command == "HEAD" and fault in BODIES):
            FAULTS[fault](self, answer)
        else:
            self.send(answer)

    def right(self, path: str) -> Answer:
        """The right answer to a request for a path."""
        found = self.server.folder / unquote(path).strip("/")
        if found.is_dir():
            names = [f"{p.name}/" if p.is_dir() else p.name for p in sorted(found.iterdir())]
            links = "".join(f'<a href="{quote(name)}">{html.escape(name)}</a>\n' for name in names)
            return Answer(200, {"Content-Type": "text/html"}, f"<html>{links}</html>".encode())
        if not found.is_file():
            return Answer(404, {"Content-Type": "text/html"}, b"<html>not found</html>")
        data = found.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {"Content-Type": "application/octet-stream", "ETag": etag, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted or self.headers.get("If-Range", etag) != etag:
            return Answer(200, headers, data)
        start, stop = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
        if start >= len(data):
            return Answer(416, {**headers, "Content-Range": f"bytes */{len(data)}"}, b"")
        return Answer(206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop])

    def send(self, answer: Answer, upto: int | None = None, hang_up: bool = False) -> None:
        """Send it, or its body up to there. The length is announced as of the whole body, unless the headers say."""
        self.send_response(answer.status)
        headers = {"Content-Length": str(len(answer.body)), **answer.headers}
        for name, value in headers.items():
            if not (name == "Content-Length" and "Transfer-Encoding" in headers):
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.put(answer.body[:upto])
        if hang_up:
            self.close_connection = True

    def put(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        with self.server.lock:
            self.server.sent += len(data)

    def reset(self) -> None:
        """End the connection the hard way."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def wait(self) -> None:
        """Say nothing until the server is closed."""
        self.server.closing.wait(20)
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


# --- what goes wrong

Fault = Callable[[Handler, Answer], None]
PAGE = b"<!doctype html><html><body>Please log in</body></html>" * 9


def plain(status: int, **headers: str) -> Fault:
    return lambda handler, _: handler.send(Answer(status, {}, b"try later").but(**headers))


def half(answer: Answer) -> int:
    return len(answer.body) // 2


def reset_midway(handler: Handler, answer: Answer) -> None:
    handler.send(answer, upto=half(answer))
    handler.reset()


def stall(handler: Handler, answer: Answer) -> None:
    handler.send(answer, upto=half(answer))
    handler.wait()


def chunked_and_cut(handler: Handler, answer: Answer) -> None:
    handler.send(replace(answer, body=b"").but(transfer_encoding="chunked"))
    handler.put(b"%x\r\n" % len(answer.body) + answer.body[: half(answer)])
    handler.close_connection = True


def chunked_and_short(handler: Handler, answer: Answer) -> None:
    handler.send(replace(answer, body=b"").but(transfer_encoding="chunked"))
    data = answer.body[: half(answer)]
    handler.put((b"%x\r\n" % len(data) + data + b"\r\n" if data else b"") + b"0\r\n\r\n")


def another_file(handler: Handler, answer: Answer) -> None:
    """Each answer is of a file with another etag, and ends early."""
    answer = answer.but(etag=f'"{time.monotonic_ns()}"')
    handler.send(answer, upto=half(answer), hang_up=True)


def no_ranges(handler: Handler, answer: Answer) -> None:
    del handler.headers["Range"]
    handler.send(handler.right(handler.path).but(accept_ranges=None))


def other_range(handler: Handler, answer: Answer) -> None:
    shifted = re.sub(r"\d+", lambda m: str(int(m[0]) + 1), answer.headers.get("Content-Range", "bytes 1-9/10"))
    handler.send(replace(answer, status=206).but(content_range=shifted))


def later_range(handler: Handler, answer: Answer) -> None:
    """All of the range but its first byte, which a server may not leave out."""
    start, stop = map(int, re.findall(r"\d+", answer.headers.get("Content-Range", "bytes 0-9/10"))[:2])
    later = f"bytes {start + 1}-{stop}/{10**6}"
    handler.send(replace(answer, status=206, body=answer.body[1:]).but(content_range=later))


def no_content_range(handler: Handler, answer: Answer) -> None:
    handler.send(replace(answer, status=206).but(content_range=None))


def endless(handler: Handler, answer: Answer) -> None:
    handler.send(replace(answer, body=b"").but(transfer_encoding="chunked"))
    for _ in range(1 << 10):  # 64 MiB, far more than anybody takes
        handler.put(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
    handler.close_connection = True


def drip(handler: Handler, answer: Answer) -> None:
    handler.send(answer, upto=0)
    for at in range(len(answer.body)):
        if handler.server.closing.wait(0.05):
            return
        handler.put(answer.body[at : at + 1])


def many_headers(handler: Handler, answer: Answer) -> None:
    handler.send(replace(answer, headers={**answer.headers, **{f"X-{i}": "x" * 50 for i in range(20_000)}}))


def long_header(handler: Handler, answer: Answer) -> None:
    handler.send(answer.but(x_long="x" * (1 << 20)))


def not_http(handler: Handler, answer: Answer) -> None:
    handler.put(b"\0\1\2 what?\r\n\r\n" * 9)
    handler.close_connection = True


def redirect(place: Callable[[Handler], str]) -> Fault:
    return lambda handler, _: handler.send(Answer(302, {"Location": place(handler)}, b""))


def no_head(handler: Handler, answer: Answer) -> None:
    handler.send(replace(answer, status=405) if handler.command == "HEAD" else answer)


def bottomless(handler: Handler, answer: Answer) -> None:
    """Every folder lists one inside it."""
    handler.send(replace(answer, status=200, body=b'<html><a href="deeper/">deeper/</a></html>'))


def flipped(handler: Handler, answer: Answer) -> None:
    """One bit of the body is another one."""
    at = half(answer)
    body = answer.body[:at] + bytes([answer.body[at] ^ 16]) + answer.body[at + 1 :] if answer.body else b""
    handler.send(replace(answer, body=body))


FAULTS: dict[str, Fault] = {
    "503": plain(503),
    "503 with a date": plain(503, retry_after="Thu, 01 Jan 1970 00:00:00 GMT"),
    "429": plain(429, retry_after="0"),
    "500": plain(500),
    "closed": lambda handler, _: setattr(handler, "close_connection", True),
    "reset": lambda handler, _: handler.reset(),
    "reset midway": reset_midway,
    "stall": stall,
    "silence": lambda handler, _: handler.wait(),
    "drip": drip,
    "truncated": lambda handler, a: handler.send(a, upto=half(a), hang_up=True),
    "truncated, chunked": chunked_and_cut,
    "short, chunked": chunked_and_short,
    "length too small": lambda handler, a: handler.send(replace(a, body=a.body[: half(a)])),
    "length too large": lambda handler, a: handler.send(a.but(content_length=str(len(a.body) + 9)), hang_up=True),
    "length in words": lambda handler, a: handler.send(a.but(content_length="many"), hang_up=True),
    "bytes behind the end": lambda handler, a: handler.send(replace(a, body=a.body + b"and more")),
    "nothing": lambda handler, a: handler.send(replace(a, body=b"")),
    "zeros": lambda handler, a: handler.send(replace(a, body=bytes(len(a.body)))),
    "a flipped bit": flipped,
    "page": lambda handler, _: handler.send(Answer(200, {"Content-Type": "text/html; charset=utf-8"}, PAGE)),
    "page as data": lambda handler, a: handler.send(replace(a, status=200, body=PAGE).but(content_range=None)),
    "page as range": lambda handler, a: handler.send(a.but(content_type="text/html")),
    "compressed": lambda handler, a: handler.send(a.but(content_encoding="gzip")),
    "401": plain(401),
    "403": plain(403),
    "404": plain(404),
    "416": plain(416),
    "418": plain(418),
    "405 to HEAD": no_head,
    "bottomless": bottomless,
    "another file": another_file,
    "no ranges": no_ranges,
    "other range": other_range,
    "later range": later_range,
    "no content-range": no_content_range,
    "endless": endless,
    "many headers": many_headers,
    "long header": long_header,
    "not http": not_http,
    "redirect": redirect(lambda handler: f"/moved{handler.path}"),
    "redirect to itself": redirect(lambda handler: handler.path),
    "redirect to another host": redirect(lambda handler: f"{handler.server.other.url}{handler.path}"),
    "redirect to a file": redirect(lambda handler: "file:///etc/hostname"),
    "redirect to nowhere": redirect(lambda handler: "http://[::1"),
}
# These show in a body only: to HEAD the right answer is given.
BODIES = frozenset(
    {"drip", "stall", "endless", "truncated", "truncated, chunked", "short, chunked", "another file", "not http"}
)
# After these the right bytes come when the next answer is right.
TRANSIENT = frozenset(
    "503|503 with a date|429|500|closed|reset|reset midway|stall|silence|drip|truncated|truncated, chunked|"
    "length in words|many headers|long header|not http|another file".split("|")
)
SLOW = frozenset({"stall", "silence", "drip"})  # need a short timeout to be noticed


@contextmanager
def serving(folder: Path) -> Iterator[FaultyServer]:
    server = FaultyServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
