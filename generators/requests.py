"""What a folder was asked to hold, so that the same call goes on and another one is told what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from catalog.errors import SpecMismatchError


def request_of(kind: str, settings: Mapping[str, Any], source: Mapping[str, Any], codec: str = "") -> dict[str, Any]:
    """Kind, complete settings and population of a generator, as JSON.

    Args:
        codec: fingerprint of one that was given, rather than fitted by the settings.
    """
    about = {name: source[name] for name in ("zoo", "variant", "frame", "population")}
    content = {"kind": kind, "settings": dict(settings), "source": about, **({"codec": codec} if codec else {})}
    request: dict[str, Any] = json.loads(json.dumps(content))
    return request


def digest_of(request: Mapping[str, Any]) -> str:
    """16 digits of a request."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]


def check_request(found: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    """Raise SpecMismatchError, saying what differs, unless both are the same."""
    there, wanted = _flat(found), _flat(asked)
    differing = [
        f"{name} is {there.get(name)!r} there, {wanted.get(name)!r} was asked for"
        for name in (sorted({*there, *wanted}) if there["kind"] == wanted["kind"] else ["kind"])
        if there.get(name) != wanted.get(name)
    ]
    if differing:
        more = f" and {len(differing) - 6} more" if len(differing) > 6 else ""
        raise SpecMismatchError(
            f"{where} holds another generator: {'; '.join(differing[:6])}{more}. Give another folder, or the same "
            "settings"
        )


def _flat(request: Mapping[str, Any]) -> dict[str, Any]:
    """Names of all values, without the parts they are in; `codec` is a setting too, so a given one is `given codec`."""
    given = {"given codec": request["codec"]} if "codec" in request else {}
    return {"kind": request.get("kind"), **request.get("settings", {}), **request.get("source", {}), **given}
