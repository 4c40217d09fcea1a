"""One file or byte range from a web server: asked for until it is all here, every answer checked."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from catalog.errors import CorruptError, FormatError, NoRangesError, StorageError, ZooError
from catalog.listings import is_whole
from catalog.retry import STATUSES, pause, retry_after

if TYPE_CHECKING:
    from catalog.web import Web

T = TypeVar("T")

REDIRECTS = 5
SLOWEST = 1000  # bytes a second on average, over the time that an attempt may be silent
CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)")


class Again(Exception):
    """An answer that may be better the next time, not before `wait` seconds."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


@dataclass
class Transfer:
    """What is here of bytes [start, stop) of a file; None for its beginning and end.

    Args:
        limit: bytes of a whole file.
        page: a web page is what is wanted.
    """

    url: str
    start: int | None
    stop: int | None
    limit: int
    page: bool = False
    data: bytearray = field(default_factory=bytearray)
    validator: str = ""  # the etag of the first answer, or its date
    total: int | None = None  # bytes of the file, as it said
    changes: int = 0

    def __post_init__(self) -> None:
        if (self.start or 0) < 0 or (self.stop is not None and self.stop < (self.start or 0)):
            raise ValueError(f"expected 0 <= start <= stop, got {self.start} and {self.stop}")

    @property
    def whole(self) -> bool:
        return self.start is None and self.stop is None

    @property
    def begin(self) -> int:
        """The byte to ask for next."""
        return (self.start or 0) + len(self.data)

    async def run(self, web: Web, session: aiohttp.ClientSession) -> bytes:
        """The bytes; fewer only where the file ends. Raises as `Web.cat_file`."""

        async def attempt() -> bytes:
            while self.begin != self.stop:
                before = len(self.data)
                if await self._ask(web, session):
                    break
                if len(self.data) <= before:
                    raise Again("the answer held nothing")
            if self.page and not is_whole(self.data):
                self.data.clear()
                raise Again("the page has no end")
            return bytes(self.data)

        return await persist(web, self.url, attempt)

    async def _ask(self, web: Web, session: aiohttp.ClientSession) -> bool:
        """Ask for what is lacking and add what comes. Whether all is here then; a server may give a part of a range."""
        headers = {}
        if not self.whole or self.data:
            headers["Range"] = f"bytes={self.begin}-{'' if self.stop is None else self.stop - 1}"
        if self.data and self.validator.startswith('"'):
            headers["If-Range"] = self.validator
        async with ask(web, session, "GET", self.url, headers) as answer:
            if answer.status == 416:
                return self._beyond(answer)
            check_kind(self.url, answer, self.page)
            self._same_file(answer)
            expected = self._expected(answer)
            came = await self._take(answer, web.timeout, expected)
            if expected is not None and came < expected:
                raise Again(f"the answer ended after {came:,} of {expected:,} bytes")
            ends = [end for end in (self.stop, self.total) if end is not None]
            return answer.status == 200 or (bool(ends) and self.begin >= min(ends))

    def _same_file(self, answer: aiohttp.ClientResponse) -> None:
        """Begin anew, once, when this answer is of another file than the first one was."""
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        total = answer.content_length if answer.status == 200 else content_range(self.url, answer)[2]
        known = ((self.validator, validator), (self.total, total))
        if self.data and any(old and new and old != new for old, new in known):
            self._anew()
            if answer.status == 206 or not self.whole:
                raise Again("the file changed while it was read", 0.0)
        self.validator, self.total = self.validator or validator, self.total or total

    def _anew(self) -> None:
        self.changes += 1
        if self.changes > 1:
            raise CorruptError(f"{self.url} changes while it is read; try again when nobody writes there")
        self.data.clear()
        self.validator, self.total = "", None

    def _expected(self, answer: aiohttp.ClientResponse) -> int | None:
        """Bytes that this answer should hold, None where it does not say."""
        length = answer.content_length
        if answer.status == 200:
            if not self.whole:
                raise NoRangesError(
                    f"the server of {self.url} does not answer byte ranges; use one that does, or copy the zoo here"
                )
            self.data.clear()  # it cannot go on where it stopped
            self._check_limit(length or 0)
            return length
        first, last, total = content_range(self.url, answer)
        asked = "the file" if self.whole and not self.data else f"bytes {self.begin}-"
        if first is None or last is None or first != self.begin or not first <= last:
            raise FormatError(f"{self.url} was asked for {asked}, and answered {answer.headers.get('Content-Range')}")
        if (self.stop is not None and last >= self.stop) or (total is not None and last >= total):
            raise FormatError(f"{self.url} answered {answer.headers.get('Content-Range')}, more than was asked for")
        if length is not None and length != last - first + 1:
            raise Again(f"the answer should hold {last - first + 1:,} bytes, and announces {length:,}")
        if self.stop is None:
            self._check_limit(total or last + 1)
        return last - first + 1

    def _beyond(self, answer: aiohttp.ClientResponse) -> bool:
        """An answer that no byte of the range exists: the file ended, or the server makes no sense."""
        total = content_range(self.url, answer)[2]
        if self.data and total is not None and total < self.begin:
            self._anew()
            raise Again("the file became shorter while it was read", 0.0)
        if total is None or total > self.begin:
            raise FormatError(f"{self.url} answered 416 (no such range) to bytes {self.begin}-; use another server")
        return True

    async def _take(self, answer: aiohttp.ClientResponse, timeout: float, expected: int | None) -> int:
        """Add the bytes of an answer as they come; how many came."""
        came = lately = 0
        since = time.monotonic()
        async for chunk in answer.content.iter_any():
            came += len(chunk)
            lately += len(chunk)
            if expected is not None and came > expected:
                raise FormatError(f"{self.url} sent more than the {expected:,} bytes that it announced")
            self.data += chunk
            if self.stop is None:
                self._check_limit(len(self.data))
            if (now := time.monotonic()) - since > timeout:
                if lately < SLOWEST * (now - since):
                    raise Again(f"{lately:,} bytes came in {now - since:.0f} s")
                since, lately = now, 0
        return came

    def _check_limit(self, size: int) -> None:
        if size > self.limit:
            raise FormatError(f"{self.url} has more than the {self.limit:,} bytes allowed")


@asynccontextmanager
async def ask(
    web: Web, session: aiohttp.ClientSession, method: str, url: str, headers: dict[str, str]
) -> AsyncIterator[aiohttp.ClientResponse]:
    """An answer of status 200, 206 or 416, from this server alone. Redirects are followed here, one by one.

    Raises:
        Again, FileNotFoundError, StorageError, FormatError: for all other answers.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_read=web.timeout)
    sent = {**dict(web.headers), **headers}
    target = url
    for _ in range(REDIRECTS + 1):
        async with asyncio.timeout(web.timeout):
            answer = await session.request(
                method, URL(target, encoded=True), headers=sent, allow_redirects=False, timeout=timeout
            )
        async with answer:
            if answer.status not in (301, 302, 303, 307, 308):
                _check_status(url, answer)
                yield answer
                return
            target = _redirected(url, target, answer.headers.get("Location", ""))
    raise FormatError(f"{url} redirects more than {REDIRECTS} times")


def _redirected(url: str, here: str, location: str) -> str:
    """Where a redirect leads, which is the same server, or the same host with https."""
    try:
        target = urljoin(here, location.strip())
        old, new = urlsplit(here), urlsplit(target)
        same = (new.scheme, new.hostname, new.port) == (old.scheme, old.hostname, old.port)
        ports = (old.port or 80, new.port or 443)
        safer = (old.scheme, new.scheme) == ("http", "https") and ports in ((80, 443), (ports[0], ports[0]))
    except ValueError:
        same = safer = False
        new = urlsplit("")
    if not location or new.username is not None or not (same or (safer and new.hostname == old.hostname)):
        raise FormatError(
            f"{url} redirects to another place, {_place(new)}, which is not followed; open that one if you trust it"
        )
    return target


def _place(parts: Any) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"[:200] if parts.netloc else "which is no URL"


def _check_status(url: str, answer: aiohttp.ClientResponse) -> None:
    status = answer.status
    if status in (200, 206, 416):
        return
    if status in (404, 410):
        raise FileNotFoundError(errno.ENOENT, "no such file on the server", url)
    if status in STATUSES:
        raise Again(f"answer {status}", retry_after(answer.headers.get("Retry-After"), time.time()))
    advice = "; pass what it wants as headers={...}" if status in (401, 403, 407) else ""
    raise StorageError(f"{url} was answered with status {status}{advice}")


def check_kind(url: str, answer: aiohttp.ClientResponse, page: bool = False) -> None:
    """FormatError unless the bytes of an answer are those of the file."""
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise FormatError(f"{url} was answered compressed ({encoding[:40]}), which was not asked for")
    kind = answer.headers.get("Content-Type", "").strip().lower()
    if kind.startswith(("text/html", "application/xhtml")) and not page and not url.endswith((".html", ".htm")):
        raise FormatError(
            f"{url} was answered with a web page: a login, or what this server shows for files it does not have"
        )


def content_range(url: str, answer: aiohttp.ClientResponse) -> tuple[int | None, int | None, int | None]:
    """First byte, last byte and length of the file, as an answer says; None where it does not."""
    text = answer.headers.get("Content-Range", "").strip()
    match = CONTENT_RANGE.fullmatch(text)
    if match is None:
        if answer.status == 206:
            raise FormatError(f"{url} answered a range without saying which (Content-Range {text[:80]!r})")
        return None, None, None
    first, last, total = (int(group) if group and group != "*" else None for group in match.groups())
    return first, last, total


async def file_size(web: Web, session: aiohttp.ClientSession, url: str) -> int | None:
    """Bytes of a file, None when the server does not say; raises as `Web.cat_file`."""

    async def look(method: str, headers: dict[str, str]) -> int | None:
        async with ask(web, session, method, url, headers) as answer:
            check_kind(url, answer)
            total = content_range(url, answer)[2]
            if answer.status == 200 and "Content-Length" in answer.headers:
                total = int(answer.headers["Content-Length"])  # aiohttp takes none but digits
            return total

    with contextlib.suppress(StorageError):  # some servers refuse HEAD, or do not say the length there
        if (size := await persist(web, url, lambda: look("HEAD", {}))) is not None:
            return size
    return await persist(web, url, lambda: look("GET", {"Range": "bytes=0-0"}))


async def persist(web: Web, url: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """What an attempt gives, after as many as are allowed.

    Raises:
        StorageError: all failed, or it took too long.
    """
    failures = 0
    try:
        async with asyncio.timeout(web.total):
            while True:
                try:
                    return await attempt()
                except Again as again:
                    failure, wait = str(again), again.wait
                except (ZooError, FileNotFoundError):
                    raise
                except (aiohttp.ClientSSLError, aiohttp.InvalidURL) as error:
                    raise StorageError(f"{url} cannot be reached: {_words(error)}") from error
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    failure, wait = _words(error), None
                if failures == web.retries:
                    raise StorageError(f"{url}: {failures + 1} attempts failed, at last: {failure}; try again later")
                await asyncio.sleep(pause(failures, web.backoff, wait))
                failures += 1
    except TimeoutError as error:
        raise StorageError(f"{url} took more than {web.total:g} s; try again, or allow a larger total") from error


def _words(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip()[:200]
