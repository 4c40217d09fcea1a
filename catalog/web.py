"""Files behind a web server: byte ranges, many at once, checked and tried again. What `Folder` uses for http(s)."""

from __future__ import annotations

import asyncio
import atexit
import errno
import os
from base64 import b64encode
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import fsspec.asyn

from catalog.errors import FormatError
from catalog.folder import PLAIN
from catalog.listings import listed_in, says_it_lists
from catalog.transfer import Transfer, file_size

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

PAGE = 64 << 20  # bytes of a listing
LISTED = 1 << 21  # files below a folder
DEPTH = 32  # folders inside each other

_sessions: dict[tuple[int, bool, asyncio.AbstractEventLoop], aiohttp.ClientSession] = {}  # of this and older processes


@dataclass(frozen=True)
class Web:
    """A client of one web server, with the methods of an fsspec filesystem that read. Paths are URLs.

    It opens its connections when first used, in each process for itself; threads may share it.

    Args:
        origin: scheme, host and port; nothing else is ever asked.
        retries: attempts after the first that failed.
        timeout: seconds without a byte, after which an attempt has failed.
        total: seconds for one file or range, with all attempts.
        backoff: seconds; the mean wait before attempt n is half of backoff * 2**n.
        connections: ranges fetched at once by one call.
        limit: bytes of a file that is read whole.
        trust_env: use the proxies that the environment names.
        headers: sent with every request.
    """

    origin: str
    retries: int = 5
    timeout: float = 30.0
    total: float = 1800.0
    backoff: float = 0.5
    connections: int = 16
    limit: int = 1 << 30
    trust_env: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    protocol: ClassVar[tuple[str, ...]] = ("http", "https")

    @classmethod
    def at(cls, text: str, options: dict[str, Any]) -> tuple[Web, str]:
        """The client for a URL, and the URL as this writes it, without a name and password in it.

        Options that are not of this class are passed over: those of a call may be for several kinds of places.

        Raises:
            FormatError: no URL of a folder, or options that make no sense.
        """
        try:
            parts = urlsplit(text)
            scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
        except ValueError as error:
            raise FormatError(f"expected a URL such as https://host/zoo: {error}") from error
        if scheme not in cls.protocol or not host or parts.query or parts.fragment:
            raise FormatError("expected a URL such as https://host/zoo, without ? and # behind it")
        known = {entry.name for entry in fields(cls)} - {"origin", "headers"}
        given = {name: value for name, value in options.items() if name in known}
        headers = dict(options.get("headers") or {})
        if parts.username is not None and "authorization" not in map(str.lower, headers):
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
        place = f"[{host}]" if ":" in host else host
        origin = urlunsplit((scheme, f"{place}:{port}" if port else place, "", "", ""))
        web = cls(origin, **given, headers=tuple(headers.items()))
        if web.retries < 0 or min(web.timeout, web.total, web.connections, web.limit) <= 0 or web.backoff < 0:
            raise FormatError("retries and backoff are 0 or more, timeout, total, connections and limit more than 0")
        return web, origin + quote(unquote(parts.path), safe=PLAIN).rstrip("/")

    @property
    def storage_options(self) -> dict[str, Any]:
        """What to call `catalog.open` with for another client like this; passwords too."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**{name: value for name, value in given.items() if name != "origin"}, "headers": dict(self.headers)}

    # --- what fsspec filesystems have

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, limit: int | None = None) -> bytes:
        """Bytes [start, end) of a file; None stands for its beginning and its end. A short file gives short bytes.

        Args:
            limit: bytes of a whole file, for once; a FormatError before more are in memory.

        Raises:
            FileNotFoundError: the server says so.
            StorageError: it could not be had, after all attempts.
            FormatError: the answer is not what was asked for, as a page, or the whole file in the place of a range.
            CorruptError: the file changed while it was read, twice.
        """
        transfer = Transfer(self._mine(path), start, end, self.limit if limit is None else limit)
        return self._run(lambda session: transfer.run(self, session))

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Sequence[int | None],
        ends: Sequence[int | None],
        on_error: str = "return",
    ) -> list[Any]:
        """As `cat_file` for several ranges, requested together; what failed gives its exception in that place."""

        async def fetch(session: aiohttp.ClientSession) -> list[Any]:
            gate = asyncio.Semaphore(self.connections)

            async def one(path: str, start: int | None, end: int | None) -> bytes:
                async with gate:
                    return await Transfer(self._mine(path), start, end, self.limit).run(self, session)

            return await asyncio.gather(*map(one, paths, starts, ends), return_exceptions=True)

        found = self._run(fetch)
        if on_error != "return" and (errors := [item for item in found if isinstance(item, BaseException)]):
            raise errors[0]
        return found

    def size(self, path: str) -> int | None:
        """Bytes of a file, None when the server does not say; raises as `cat_file`."""
        return self._run(lambda session: file_size(self, session, self._mine(path)))

    def exists(self, path: str) -> bool:
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path: str, detail: bool = True) -> list[Any]:
        """What lies directly in a folder, from the page on which the server lists it; FormatError for another page."""
        entries = self._run(lambda session: self._listed(session, self._mine(path)))
        if not detail:
            return [url.rstrip("/") for url in entries]
        kinds = [(url.rstrip("/"), "directory" if url.endswith("/") else "file") for url in entries]
        return [{"name": name, "type": kind, "size": None} for name, kind in kinds]

    def find(self, path: str) -> list[str]:
        """All files below a folder, sorted; only what its pages list."""
        return sorted(self._run(lambda session: self._below(session, self._mine(path))))

    def invalidate_cache(self, path: str | None = None) -> None:
        """Nothing: no listing is kept."""

    def pipe_file(self, path: str, data: bytes) -> NoReturn:
        raise OSError(errno.EROFS, "a web server is only read here")

    def rm_file(self, path: str) -> NoReturn:
        raise OSError(errno.EROFS, "a web server is only read here")

    # --- how

    def _mine(self, path: str) -> str:
        if path != self.origin and not path.startswith(f"{self.origin}/"):
            raise FormatError(f"expected a URL of {self.origin}, got one of another server")
        return path

    async def _listed(self, session: aiohttp.ClientSession, path: str) -> list[str]:
        folder = f"{path.rstrip('/')}/"
        page = await Transfer(folder, None, None, min(PAGE, self.limit), page=True).run(self, session)
        found = listed_in(page, folder)
        if not found and not says_it_lists(page):
            raise FormatError(
                f"{folder} cannot be listed; use a server that lists its folders, or copy the zoo here (it is answered "
                "with a page that is no listing)"
            )
        return found

    async def _below(self, session: aiohttp.ClientSession, path: str) -> list[str]:
        gate = asyncio.Semaphore(self.connections)

        async def listed(folder: str) -> list[str]:
            try:
                async with gate:
                    return await self._listed(session, folder)
            except FileNotFoundError as error:
                if folder == path:
                    raise
                raise FormatError(f"{folder} is listed by its server, which says then that it is not there") from error

        files: list[str] = []
        folders = [path]
        for _ in range(DEPTH):
            found = [url for urls in await asyncio.gather(*map(listed, folders)) for url in urls]
            folders = [url for url in found if url.endswith("/")]
            files += [url for url in found if not url.endswith("/")]
            if len(files) + len(folders) > LISTED:
                raise FormatError(f"{path} lists more than {LISTED:,} files")
            if not folders:
                return files
        raise FormatError(f"{path} lists folders more than {DEPTH} deep")

    def _run(self, work: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, T]]) -> T:
        """Do this in the thread that fsspec keeps for connections, one of each process."""
        loop = fsspec.asyn.get_loop()

        async def run() -> T:
            return await work(_session(self.trust_env))

        future = asyncio.run_coroutine_threadsafe(run(), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # somebody interrupts: the connections are given up too
            raise


def _session(trust_env: bool) -> aiohttp.ClientSession:
    """The connections of this process; called in the thread that has the loop."""
    import aiohttp

    key = os.getpid(), trust_env, asyncio.get_running_loop()
    if key not in _sessions:
        _sessions[key] = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # each call has its own limit, and waits for no other
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=trust_env,
            read_bufsize=1 << 20,
            headers={"User-Agent": "weightscape", "Accept": "*/*", "Accept-Encoding": "identity"},
        )
    return _sessions[key]


@atexit.register
def _close() -> None:
    """End the connections of this process while their loop still runs."""
    for (process, _, loop), session in _sessions.items():
        if process == os.getpid() and loop.is_running():
            with suppress(Exception):
                asyncio.run_coroutine_threadsafe(session.close(), loop).result(5)
