"""Puts the page together: template, style, data, library, our code; and says what a browser may run."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from typing import Any

SCRIPTS = ("columns.js", "filters.js", "map.js", "table.js", "model.js", "page.js")  # one after the other
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; connect-src 'none'; "
    "base-uri 'none'; form-action 'none'"
)


def page(content: dict[str, Any], bundle: str) -> bytes:
    """The HTML with this content; `bundle` defines vega, vegaLite and vegaEmbed.

    Only the two scripts and the style of the page itself are allowed, by their sha256; anything else that a zoo might
    bring in is refused by the browser, after it was escaped. Nothing can be loaded from anywhere.
    """
    code = "(() => {\n'use strict';\n" + "\n".join(_text(name) for name in SCRIPTS) + "\n})();"
    style = _text("page.css")
    scripts = [_script(bundle), _script(code)]
    policy = POLICY.format(scripts=" ".join(map(_hash, scripts)), styles=_hash(style))
    parts = {
        "policy": policy,
        "title": html.escape(shown(content["title"])),
        "style": style,
        "data": as_json(content),
        "bundle": scripts[0],
        "code": scripts[1],
    }
    pieces = _text("page.html").split("%%")  # text, name, text, name, ..., text
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    return "".join(pieces).encode()


def as_json(content: Any) -> str:
    """JSON that cannot end the element it stands in: ASCII without <, > and &."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def shown(text: str) -> str:
    """Text with what cannot be seen, or turns what follows around, written out.

    >>> shown("abc\\u202etxt.exe")
    'abc[U+202E]txt.exe'
    """
    return "".join(c if c.isprintable() else f"[U+{ord(c):04X}]" for c in text)


def _script(code: str) -> str:
    """Code that can stand between script tags. A browser changes carriage returns, and with them the hash."""
    return code.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")
