"""Trying again: after which failures, and how long to wait before."""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

T = TypeVar("T")

STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})  # which a server may not give the next time
LONGEST = 120.0  # seconds waited before an attempt, whatever the server asks for
ATTEMPTS = 4
BACKOFF = 0.25  # seconds
# Classes of botocore, aiohttp, requests, urllib3 and httpx, by name: none of them need be installed.
NAMES = frozenset(
    (
        "EndpointConnectionError ConnectTimeoutError ReadTimeoutError ConnectionClosedError IncompleteReadError "
        "ResponseStreamingError HTTPClientError ClientPayloadError ClientConnectionError ServerDisconnectedError "
        "ClientOSError ConnectTimeout ReadTimeout ChunkedEncodingError ProtocolError RemoteProtocolError ReadError "
        "ConnectError PoolTimeout FSTimeoutError"
    ).split()
)


def pause(attempt: int, backoff: float, asked: float | None = None) -> float:
    """Seconds to wait after failure number `attempt` (0, 1, ...): exponential, with full jitter.

    Args:
        backoff: seconds; the mean wait doubles from half of it.
        asked: by the server, in Retry-After; waited for on top, up to LONGEST.
    """
    jitter = random.uniform(0.0, min(backoff * 2.0 ** min(attempt, 30), LONGEST))
    return min(max(asked or 0.0, 0.0) + jitter, LONGEST)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, which is a number of them or a date; None for anything else.

    >>> retry_after("7", 0.0), retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 50.0), retry_after("soon", 0.0)
    (7.0, 10.0, None)
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(parsedate_to_datetime(text).timestamp() - now, 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def transient(error: BaseException | None) -> bool:
    """Whether the same call may succeed a moment later: resets, timeouts, throttling, of any client library."""
    for _ in range(8):  # the translated error, and what it was made of
        if error is None:
            return False
        response = getattr(error, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        status = metadata.get("HTTPStatusCode") or getattr(error, "status", None) or getattr(error, "status_code", None)
        if status in STATUSES or getattr(response, "status_code", None) in STATUSES:
            return True
        if isinstance(error, ConnectionError | TimeoutError | http.client.IncompleteRead):
            return True
        if NAMES & {kind.__name__ for kind in type(error).__mro__}:
            return True
        error = error.__cause__
    return False


def again(call: Callable[[], T], attempts: int = ATTEMPTS, backoff: float = BACKOFF) -> T:
    """What a call gives, tried again after transient failures; the last failure is raised."""
    for attempt in range(attempts - 1):
        try:
            return call()
        except Exception as error:
            if not transient(error):
                raise
        time.sleep(pause(attempt, backoff))
    return call()


def again_each(
    call: Callable[[list[int]], list[Any]], count: int, attempts: int = ATTEMPTS, backoff: float = BACKOFF
) -> list[Any]:
    """As `again`, for a call that does several things: those whose result is a transient exception are done again.

    Args:
        call: positions of what to do -> results in that order, exceptions among them.
    """
    results = call(list(range(count)))
    for attempt in range(attempts - 1):
        failed = [at for at, result in enumerate(results) if isinstance(result, Exception) and transient(result)]
        if not failed:
            break
        time.sleep(pause(attempt, backoff))
        for at, result in zip(failed, call(failed), strict=True):
            results[at] = result
    return results
