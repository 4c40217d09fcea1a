"""README.md of a published zoo."""

from __future__ import annotations

from typing import Any

from catalog.manifest import Manifest

MARK = "<!-- written by weightscape publish -->"


def datacard(manifest: Manifest, record: Any, rows: Any, url: str) -> str:
    return f"{MARK}\n"
