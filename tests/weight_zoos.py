"""Zoos of given weights, one run each: for tests that know what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import catalog
from catalog.grid import Grid
from catalog.record import Variant
from catalog.store import Zoo
from weightspace.layout import Layout

# Parameters on both sides of buffers, of which one is a whole number.
MIXED = Layout(
    ("first", "mean", "second", "steps"),
    ((3, 4), (3,), (5,), ()),
    ("float32", "float32", "float32", "int64"),
    ("parameter", "buffer", "parameter", "buffer"),
)


def store(path: Path, weights: np.ndarray, layout: Layout | None = None, **columns: Sequence[Any]) -> Zoo:
    """A zoo of these networks (models, size): runs r000, r001, ..., with these columns."""
    models, size = weights.shape
    layout = layout or Layout(("w",), ((size,),))
    grid = Grid((models, 1, size), (min(models, 4), 1, size), (-(-models // 4) * 4, 1, size), "float32")
    zoo = catalog.create(path, name="given", variants=(Variant("net", {}, layout, grid),), spec={})
    rows: Mapping[str, Any] = {
        "run": [f"r{model:03d}" for model in range(models)],
        "epoch": [1] * models,
        "status": ["ok"] * models,
        "reason": [""] * models,
        "stored": [True] * models,
        **columns,
    }
    catalog.write_shard(zoo, "net", 0, weights.astype(np.float32)[:, None], pl.DataFrame(rows), {"maker": "test"})
    catalog.rebuild_table(zoo)
    return zoo


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Yields how many rows each call of `Zoo.read` reads, as they come."""
    seen: list[int] = []
    read = Zoo.read

    def spy(zoo: Zoo, rows: pl.DataFrame, *args: Any, **options: Any) -> Any:
        seen.append(len(rows))
        return read(zoo, rows, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Zoo, "read", spy)
        yield seen
