"""What the page says about a zoo as a whole: its card, its health."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import polars as pl

from catalog.store import Zoo

LINES, LINE = 80, 300  # lines of a summary, characters of a line
VARIANTS = 100
REASONS = 20


def card_of(zoo: Zoo, table: pl.DataFrame) -> dict[str, Any]:
    """Name, licence, citation, digest, counts, variants, summaries of spec, info and metrics: not more than fits."""
    record = zoo.record
    info = {key: value for key, value in record.info.items() if key not in ("licence", "citation")}
    variants = [
        {
            "name": name,
            "family": str(variant.architecture.get("family", ""))[:LINE],
            "weights": variant.grid.shape[2],
            "models": variant.grid.shape[0],
            "checkpoints": variant.grid.shape[1],
            "tensors": len(variant.layout),
        }
        for name, variant in list(record.variants.items())[:VARIANTS]
    ]
    return {
        "name": record.name,
        "licence": _text(record.info.get("licence")),
        "citation": _text(record.info.get("citation"), 4000),
        "digest": record.digest,
        "dtype": record.dtype,
        "tier": record.tier,
        "shards": len(record.shards),
        "committed": len(zoo.committed()),
        "bytes": sum(math.prod(v.grid.shape) * v.grid.itemsize for v in record.variants.values()),
        "runs": table["run"].n_unique(),
        "rows": len(table),
        "num_variants": len(record.variants),
        "variants": variants,
        "spec": _lines(record.spec),
        "info": _lines(info),
        "metrics": [
            {"name": name, "rows": len(one.rows), "settings": _text(dict(one.settings))}
            for name, one in zoo.measurements().items()
        ],
    }


def health_of(table: pl.DataFrame) -> dict[str, Any]:
    """Rows and runs by status, and the most frequent reasons. A run has the worst status among its rows."""
    runs = table.group_by("variant", "run").agg(pl.col("status"))["status"].to_list()
    worst = [next(s for s in ("failed", "diverged", "ok") if s in found) for found in runs]
    reasons = table.filter(pl.col("reason") != "").group_by("status", "reason").agg(pl.len().alias("rows"))
    reasons = reasons.sort(["rows", "reason"], descending=[True, False])
    return {
        "rows": {status: int((table["status"] == status).sum()) for status in ("ok", "diverged", "failed")},
        "runs": {status: worst.count(status) for status in ("ok", "diverged", "failed")},
        "reasons": [[status, _text(reason), rows] for status, reason, rows in reasons.head(REASONS).iter_rows()],
        "more_reasons": max(0, len(reasons) - REASONS),
    }


def place_of(url: str) -> str:
    """What stands in code to copy: the address without a name, password or signature; of a local path the last part."""
    parts = urlsplit(url)
    if "://" in url and parts.scheme != "file":
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    path = url.removeprefix("file://").rstrip(os.sep) or url
    return path if not os.path.isabs(path) else os.path.basename(path)


def _lines(content: Mapping[str, Any]) -> list[list[str]]:
    """Nested objects as (dotted key, value as JSON); at most `LINES`, and then a line that says how many more."""
    found = list(_flat(content, "")) if content else []
    lines = [[key[:LINE], value] for key, value in found[:LINES]]
    return lines + ([["", f"and {len(found) - LINES} more"]] if len(found) > LINES else [])


def _flat(content: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(content, Mapping) and content:
        for name, value in content.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, _text(content)


def _text(value: Any, length: int = LINE) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= length else text[: length - 1] + "…"
