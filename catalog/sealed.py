"""JSON files that check themselves: the last member is the sha256 of all bytes before it. Read strictly."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from catalog.errors import CorruptError, FormatError

DEPTH = 64  # of nested lists and objects; a spec has five


def seal(content: Mapping[str, Any]) -> bytes:
    """Indented JSON of these members in their order, and `digest`, the sha256 of all bytes before it, as the last."""
    body = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).removesuffix("\n}").encode()
    return body + _tail(body)


def sealed_body(data: bytes) -> bytes | None:
    """The bytes that the digest at the end covers, None when they are not those it was made of."""
    body = data[: -len(_tail(b""))]
    return body if data and data[len(body) :] == _tail(body) else None


def unseal(data: bytes, name: str, where: str, limit: int) -> tuple[dict[str, Any], str]:
    """The members of a sealed file, and the sha256 of its body.

    Raises:
        CorruptError: the bytes are not what was written.
        FormatError: more than `limit` bytes, or not the JSON of an object.
    """
    if len(data) > limit:
        raise FormatError(f"{name} of {where} has {len(data):,} bytes, more than the {limit:,} allowed")
    body = sealed_body(data)
    if body is None:
        raise CorruptError(f"{name} of {where} is damaged: its bytes do not match its own sha256; restore it")
    try:
        content = strict_json(data)
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise FormatError(f"{name} of {where} is not the JSON it should be: {error}") from error
    return content, hashlib.sha256(body).hexdigest()


def _tail(body: bytes) -> bytes:
    return f',\n "digest": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def strict_json(data: bytes | str) -> Any:
    """JSON without what its readers disagree about: UTF-8 and no mark, each key once, finite numbers, few levels.

    Raises:
        ValueError: saying which of these it is not.
    """
    text = data.decode() if isinstance(data, bytes) else data  # json.loads would guess among eight encodings
    try:
        content = json.loads(
            text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite_float
        )
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deeply") from error
    level, depth = [content], 0
    while level:
        if depth > DEPTH:
            raise ValueError(f"lists or objects are nested deeper than {DEPTH}")
        inside = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level = [item for items in inside if isinstance(items, list) for item in items]
        depth += 1
    return content


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:80]!r} stands twice")
    return content


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:80]} is too large for a float")
    return number


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
