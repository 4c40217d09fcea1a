"""A read-only web server for zoos, with byte ranges: what polars, zarr, fsspec and `catalog.open` need.

Not a server for the open internet: it knows no users and no encryption. It listens on this machine alone unless told
otherwise, and gives nothing but the files of zoos.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import html
import ipaddress
import logging
import os
import re
import signal
import stat
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, NoReturn
from urllib.parse import quote, unquote_to_bytes

from aiohttp import web

from catalog.errors import NotAZooError, StorageError

CONNECTIONS = 512  # open at a time; each needs two file descriptors
IDLE = 30.0  # seconds a connection may take for its next request, or to say all of it
STALLED = 60.0  # seconds for the next piece of a file to go
PIECE = 1 << 20  # bytes
ZOO_FILES = ("zoo.json", "manifest.json")  # what makes a folder a zoo, or a published one
BESIDE = "registry.json"  # the one file that is served beside several zoos
PLAIN = "/@!$()*+,=~"  # stay as they are in links, which fsspec takes for names; & and ' would be escaped in HTML
TYPES = {".json": "application/json", ".md": "text/plain; charset=utf-8"}  # never HTML: a zoo's author is a stranger
RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]{0,19})\s*-\s*([0-9]{0,19})\s*", re.ASCII | re.IGNORECASE)
Log = Callable[[str, str, int, int], None]  # method, path, status, bytes of the body

NO_FILE = {errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL, errno.EISDIR}

_quiet = logging.getLogger(__name__)  # requests that are none are no news
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


def serve(
    folder: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    on_ready: Callable[[str], None] | None = None,
    log: Log | None = None,
    origins: str | None = None,
) -> None:
    """Serve a zoo, a published zoo, or a folder of them until SIGINT or SIGTERM. For the main thread.

    Args:
        folder: a local one. Beside several zoos nothing is served but `registry.json`.
        host: an address of this machine; others than loopback let everybody who reaches it read the zoo (a warning).
        port: 0 for any that is free.
        on_ready: called with the URL once it answers.
        log: called after each request with method, path, status and bytes of the body.
        origins: value of Access-Control-Allow-Origin, for pages that are allowed to read; None for none.

    Raises:
        NotAZooError: no zoo there. StorageError: the port is taken, or not allowed.
    """
    if not _is_loopback(host):
        warnings.warn(
            f"everybody who reaches {host} can read {os.fspath(folder)}; there are no passwords", stacklevel=2
        )

    async def until_stopped() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await _run(site, host, port, stop, on_ready)

    site = _Site.of(folder, host, log, origins)
    asyncio.run(until_stopped())


class Serving:
    """A server in a thread of this process, for notebooks and tests: `with Serving(folder) as url:`.

    Errors and arguments are those of `serve`; without a port it takes one that is free.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        log: Log | None = None,
        origins: str | None = None,
    ) -> None:
        self._site, self._host, self._port = _Site.of(folder, host, log, origins), host, port
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self.url = ""

    def __enter__(self) -> str:
        self._thread = threading.Thread(target=self._run, name="weightscape serve", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error:
            self._thread.join()
            raise self._error
        return self.url

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        async def until_stopped() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            await _run(self._site, self._host, self._port, self._stop, self._set)

        try:
            asyncio.run(until_stopped())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    def _set(self, url: str) -> None:
        self.url = url
        self._ready.set()


async def _run(site: _Site, host: str, port: int, stop: asyncio.Event, on_ready: Callable[[str], None] | None) -> None:
    """Answer until `stop`."""
    server = _Server(site.answer, logger=_quiet, access_log=None, keepalive_timeout=IDLE, max_headers=64)
    runner = web.ServerRunner(server, shutdown_timeout=1.0)
    await runner.setup()
    watch = asyncio.create_task(server.hang_up())
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, OverflowError) as error:
            said = getattr(error, "strerror", None) or error
            raise StorageError(f"cannot listen on {host}, port {port}: {said}; choose another port") from error
        address = runner.addresses[0]
        if on_ready:
            on_ready(f"http://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}")
        await stop.wait()
    finally:
        watch.cancel()
        await runner.cleanup()


class _Server(web.Server):
    """Counts connections, and hangs up on those that take their time to ask."""

    def __init__(self, answer: Callable[..., Any], **options: Any) -> None:
        super().__init__(self._answer, **options)
        self._site_answer = answer
        self._waiting: dict[Any, float] = {}  # transport -> since when it has no request

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        self._waiting[transport] = self._loop.time()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        self._waiting.pop(transport, None)
        try:
            found: web.StreamResponse = await self._site_answer(request)
            return found
        finally:
            if transport is not None and not transport.is_closing():
                self._waiting[transport] = self._loop.time()

    async def hang_up(self) -> None:
        while True:
            await asyncio.sleep(IDLE / 10)
            for transport, since in list(self._waiting.items()):
                if transport.is_closing() or self._loop.time() - since > IDLE:
                    self._waiting.pop(transport, None)
                    transport.abort()


@dataclass(frozen=True)
class _Site:
    """What is served, to whom.

    Args:
        root: real path of the folder.
        several: whether the zoos are its folders, not itself.
        hosts: names by which clients may call; None for all. On loopback a page from elsewhere could else make its
            name point here (DNS rebinding) and read.
    """

    root: str
    several: bool
    hosts: frozenset[str] | None
    log: Log | None
    headers: Mapping[str, str]

    @classmethod
    def of(cls, folder: str | os.PathLike[str], host: str, log: Log | None, origins: str | None) -> _Site:
        root = os.path.realpath(folder)
        several = not _is_zoo(root)
        if several and not (os.path.isdir(root) and any(_is_zoo(f"{root}/{name}") for name in os.listdir(root))):
            raise NotAZooError(f"{os.fspath(folder)} is no zoo and has none directly inside; name the folder of a zoo")
        hosts = frozenset({"localhost", "127.0.0.1", "::1", host}) if _is_loopback(host) else None
        headers = {"X-Content-Type-Options": "nosniff", "Server": "weightscape"}
        headers["Content-Security-Policy"] = "default-src 'none'; base-uri 'self'; style-src 'unsafe-inline'"
        if origins is not None:
            exposed = "Accept-Ranges, Content-Range, Content-Length, ETag"
            headers |= {"Access-Control-Allow-Origin": origins, "Access-Control-Expose-Headers": exposed}
        return cls(root, several, hosts, log, headers)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to a request; for a file it has gone already."""
        sent = 0
        try:
            response = await self._answer(request)
            sent = response.content_length or 0
        except (TimeoutError, ConnectionError):  # it went away, or does not read on
            _drop(request)
        except OSError:  # too many open files, a disk that fails
            response = _say(503)
            response.headers["Retry-After"] = "1"
        if not response.prepared:
            response.headers.update(self.headers)
        if self.log:
            self.log(request.method, request.raw_path, response.status, 0 if request.method == "HEAD" else sent)
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.hosts is not None and "Host" in request.headers:
            name = re.sub(r":[0-9]*$", "", request.headers["Host"]).strip("[]").lower()
            if name not in self.hosts:
                return _say(421)
        if request.method not in ("GET", "HEAD"):
            response = _say(405)
            response.headers["Allow"] = "GET, HEAD"
            return response
        if request.can_read_body:  # asked for nothing, and would be read as the next request by some
            return _say(400)
        parts = split_target(request.raw_path)
        found = None if parts is None else await asyncio.to_thread(self._find, parts)
        if isinstance(found, _File) and request.raw_path.partition("?")[0].endswith("/"):
            found.__exit__()
            found = None  # only folders are called so
        if found is None:
            return _say(404)
        if isinstance(found, str):
            return web.Response(text=found, content_type="text/html")
        with found:
            return await self._send(request, found)

    def _find(self, parts: tuple[str, ...]) -> _File | str | None:
        """A file, opened; the page of a folder; None where nothing is served."""
        path = os.path.realpath(os.path.join(self.root, *parts))
        if path != self.root and not path.startswith(self.root.rstrip("/") + "/"):
            return None  # a link that leads out
        if self.several and parts and not (_is_zoo(os.path.join(self.root, parts[0])) or parts == (BESIDE,)):
            return None
        try:
            # O_NONBLOCK: opening a pipe would wait for its other end
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        except OSError as error:
            if error.errno in NO_FILE:
                return None
            raise
        file = _File(descriptor, os.fstat(descriptor), os.path.splitext(path)[1])
        if stat.S_ISREG(file.stat.st_mode):
            return file
        with file:
            return self._page(path, parts) if stat.S_ISDIR(file.stat.st_mode) else None

    def _page(self, path: str, parts: tuple[str, ...]) -> str:
        """A folder as HTML: a link for each file and folder that is served."""
        names = []
        with os.scandir(path) as entries:
            for entry in entries:
                # in the way of `_find`; a link that leads nowhere, or round in circles, is no file
                with contextlib.suppress(OSError):
                    if self._shown(entry, top=not parts) and (entry.is_dir() or entry.is_file()):
                        names.append(entry.name + "/" * entry.is_dir())
        items = ((quote(name, safe=PLAIN), html.escape(name)) for name in sorted(names))
        links = "\n".join(f'<li><a href="{target}">{shown}</a></li>' for target, shown in items)
        here = "/".join(["", *map(quote, parts), ""]) if parts else "/"
        title = html.escape("/".join(parts) or os.path.basename(self.root) or "/")
        # the base makes the links right also without a slash at the end of the address, and saves a redirect
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><base href="{here}">'
            f"<title>Index of {title}</title></head>\n<body><h1>{title}</h1>\n<ul>\n{links}\n</ul></body></html>\n"
        )

    def _shown(self, entry: os.DirEntry[str], top: bool) -> bool:
        if split_target("/" + quote(entry.name, errors="surrogateescape")) is None:
            return False
        if entry.is_symlink() and not os.path.realpath(entry.path).startswith(self.root.rstrip("/") + "/"):
            return False
        return not (self.several and top) or _is_zoo(entry.path) or entry.name == BESIDE

    async def _send(self, request: web.BaseRequest, file: _File) -> web.StreamResponse:
        headers, size = request.headers, file.stat.st_size
        response = web.StreamResponse(headers=self.headers)
        response.headers["Accept-Ranges"] = "bytes"
        response.headers["ETag"] = file.etag
        response.headers["Last-Modified"] = file.modified
        response.headers["Content-Type"] = TYPES.get(file.suffix, "application/octet-stream")
        start, stop = 0, size
        if "If-Match" in headers and not _names(headers["If-Match"], file.etag):
            response.set_status(412)
            stop = 0
        elif "If-None-Match" in headers and _names(headers["If-None-Match"].replace("W/", ""), file.etag):
            response.set_status(304)
            stop = 0
        # a range of what the file was before is no use: then all of it
        elif request.method == "GET" and headers.get("If-Range", file.etag) in (file.etag, file.modified):
            wanted = parse_range(headers.get("Range", ""), size)
            if wanted is not None:
                start, stop = wanted
                response.set_status(206 if stop > start else 416)
                said = f"{start}-{stop - 1}" if stop > start else "*"
                response.headers["Content-Range"] = f"bytes {said}/{size}"
        response.content_length = None if response.status == 304 else stop - start
        await response.prepare(request)
        if request.method == "GET" and stop > start and not await _pour(request, file, start, stop):
            _drop(request)  # the file became shorter: a whole answer of other bytes must not come of it
        await response.write_eof()
        return response


@dataclass(frozen=True)
class _File:
    """An open file."""

    descriptor: int
    stat: os.stat_result
    suffix: str

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    @property
    def etag(self) -> str:
        """Changes with every replacement and every write."""
        return f'"{self.stat.st_size:x}-{self.stat.st_mtime_ns:x}-{self.stat.st_ino:x}"'

    @property
    def modified(self) -> str:
        return formatdate(self.stat.st_mtime, usegmt=True)


def split_target(target: str) -> tuple[str, ...] | None:
    """The names in a request's target, None for anything that is no plain path.

    >>> split_target("/weights/net/c/0/0/0?x=1"), split_target("/"), split_target("/index/")
    (('weights', 'net', 'c', '0', '0', '0'), (), ('index',))
    >>> [split_target(x) for x in ("/../x", "/%2e%2e/x", "/a%2fb", "/.tmp-1", "/a//b", "http://other/x", "/%ff")]
    [None, None, None, None, None, None, None]
    """
    path = re.split(r"[?#]", target, maxsplit=1)[0]
    if not path.startswith("/") or len(path) > 4096:
        return None
    names = path[1:].split("/")
    if names[-1] == "":  # of a folder
        names.pop()
    parts = []
    for name in names:
        try:
            part = unquote_to_bytes(name).decode()
        except UnicodeError:
            return None
        # a dot in front: hidden files, half-written ones, and the folders . and ..
        if not part or part.startswith(".") or set("/\\:") & set(part) or not part.isprintable():
            return None
        parts.append(part)
    return tuple(parts)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Bytes [start, stop) that a Range header asks of a file; None to send it all, equal ones where it has none.

    Several ranges, and what is no range, are answered by the whole file, as RFC 9110 allows.

    >>> parse_range("bytes=2-4", 10), parse_range("bytes=2-", 10), parse_range("bytes=-3", 10)
    ((2, 5), (2, 10), (7, 10))
    >>> parse_range("bytes=10-", 10), parse_range("bytes=-0", 10), parse_range("bytes=0-1,4-5", 10)
    ((0, 0), (0, 0), None)
    """
    match = RANGE.fullmatch(text)
    if not match or match[1] == match[2] == "":
        return None
    if not match[1]:
        last = int(match[2])
        return (max(size - last, 0), size) if last and size else (0, 0)
    start, stop = int(match[1]), int(match[2] or size - 1) + 1
    if match[2] and stop <= start:
        return None
    return (start, min(stop, size)) if start < size else (0, 0)


async def _pour(request: web.BaseRequest, file: _File, start: int, stop: int) -> bool:
    """Send bytes of a file behind the headers; False when it ended before.

    Raises:
        TimeoutError, ConnectionError: nobody takes them.
    """
    loop = asyncio.get_running_loop()
    with open(file.descriptor, "rb", buffering=0, closefd=False) as source:
        while start < stop:
            transport = request.transport
            if transport is None:
                raise ConnectionResetError("the client is gone")
            piece = min(PIECE, stop - start)
            sent = await asyncio.wait_for(loop.sendfile(transport, source, start, piece), STALLED)
            start += sent
            if sent < piece:
                return False
    return True


def _drop(request: web.BaseRequest) -> NoReturn:
    """Cut the connection: the client sees that what it has is not all."""
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError("connection cut")


def _say(status: int) -> web.Response:
    return web.Response(status=status, text=f"{status}\n")


def _names(header: str, etag: str) -> bool:
    """Whether a list of entity tags holds this one."""
    return etag in {one.strip() for one in header.split(",")} | ({etag} if header.strip() == "*" else set())


def _is_zoo(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, name)) for name in ZOO_FILES)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
