"""Small zoos for the tests of `catalog`, with the truth about what is in them. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import catalog
from catalog.grid import Grid, from_stored, to_stored
from catalog.manifest import Manifest
from catalog.record import Record, Variant
from catalog.store import Zoo
from weightspace.layout import Layout

LAYOUT = Layout(
    ("w", "b", "steps"),
    ((2, 3), (2,), ()),
    ("float32", "float32", "int64"),
    ("parameter", "parameter", "buffer"),
    (("tied", "w"),),
)
SOFTWARE = {"maker": "test"}
Truth = dict[tuple[str, int, int], np.ndarray]


def net(name: str = "net", dtype: str = "float32", models: int = 6) -> Variant:
    """Several models a chunk, several chunks a shard, two shards, the second half full."""
    return Variant(name, {"family": "mlp"}, LAYOUT, Grid((models, 2, 9), (2, 1, 9), (4, 2, 9), dtype))


def long(name: str = "long", dtype: str = "float32") -> Variant:
    """Vectors that are split: two chunks a file, three files a shard, one model a shard; padding at the end."""
    return Variant(name, {"family": "mlp"}, LAYOUT, Grid((3, 2, 9), (1, 1, 2), (1, 2, 4), dtype))


def rows_of(variant: Variant, shard: int) -> pl.DataFrame:
    """Rows of a shard; the run of model 1 diverged behind its first checkpoint."""
    models, checkpoints = variant.grid.models(shard), variant.grid.shape[1]
    places = [(model, checkpoint) for model in models for checkpoint in range(checkpoints)]
    return pl.DataFrame(
        {
            "run": [f"{variant.name}-{model}" for model, _ in places],
            "epoch": [10 * checkpoint for _, checkpoint in places],
            "status": ["diverged" if model == 1 else "ok" for model, _ in places],
            "reason": ["loss is NaN" if model == 1 else "" for model, _ in places],
            "stored": [model != 1 or checkpoint == 0 for model, checkpoint in places],
            "width": [model % 3 for model, _ in places],
            "accuracy": [model / 8 for model, _ in places],
            "bits": [bytes([model, checkpoint]) for model, checkpoint in places],
        }
    )


def weights_of(variant: Variant, shard: int, seed: int = 0) -> np.ndarray:
    """(models, checkpoints, size) as they come back from the stored type; the last weight is an integer."""
    models = variant.grid.models(shard)
    kind = sum(map(ord, variant.name))
    weights = np.random.default_rng([seed, kind, shard]).normal(size=(len(models), *variant.grid.shape[1:]))
    weights[..., -1] = np.arange(1, weights[..., -1].size + 1).reshape(weights.shape[:2])
    return from_stored(to_stored(weights, variant.grid.dtype), variant.grid.dtype)


def manifest_of(zoo: Zoo) -> Manifest:
    """Of a published zoo."""
    assert zoo.folder.manifest is not None
    return zoo.folder.manifest


def write(zoo: Zoo, variant: str, shard: int, seed: int = 0) -> None:
    entry = zoo.record.variant(variant)
    catalog.write_shard(zoo, variant, shard, weights_of(entry, shard, seed), rows_of(entry, shard), SOFTWARE)


def truth_of(variant: Variant, shard: int, seed: int = 0) -> Truth:
    """(variant, model, checkpoint) -> weights of every row that has some."""
    weights, rows = weights_of(variant, shard, seed), rows_of(variant, shard)
    stored = rows["stored"].to_numpy().reshape(weights.shape[:2])
    start = variant.grid.models(shard).start
    return {(variant.name, start + m, c): weights[m, c] for m, c in np.argwhere(stored).tolist()}


def create(url: Any, *variants: Variant, name: str = "tiny", **options: Any) -> Zoo:
    return catalog.create(url, name=name, variants=variants or (net(), long()), spec={"lr": [0.1]}, **options)


def fill(url: Any, *variants: Variant, name: str = "tiny", seed: int = 0, **options: Any) -> tuple[Zoo, Truth]:
    """A complete zoo with its table, and the truth."""
    zoo = create(url, *variants, name=name, **options)
    truth: Truth = {}
    for variant, shard in zoo.record.shards:
        write(zoo, variant, shard, seed)
        truth |= truth_of(zoo.record.variant(variant), shard, seed)
    catalog.rebuild_table(zoo)
    return zoo, truth


def check_reads(zoo: Zoo, truth: Truth) -> None:
    """Every row that holds weights gives the true ones; raises what `read` raises."""
    for name in zoo.record.variants:
        rows = zoo.scan(None).filter(pl.col("stored"), pl.col("variant") == name).collect()
        expected = [truth[key] for key in rows.select("variant", "model", "checkpoint").iter_rows()]
        if expected:
            np.testing.assert_array_equal(zoo.read(rows), np.stack(expected))


def tree(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every whole file."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".tmp-"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def files_by_kind(folder: Path) -> dict[str, list[str]]:
    """The files of a zoo, by what they are."""
    kinds: dict[str, list[str]] = {"zoo.json": [], "zarr.json": [], "shard": [], "fragment": [], "table": []}
    for name in sorted(tree(folder)):
        last = name.rsplit("/", 1)[-1]
        kind = "fragment" if name.startswith("index/") else "table" if last.startswith("table.") else "shard"
        kinds[last if last in kinds else kind].append(name)
    return kinds


def forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change zoo.json and give it the right digest, as a stranger would."""
    content = json.loads((folder / "zoo.json").read_bytes())
    del content["digest"]
    change(content)
    forge_text(folder, json.dumps(content))


def forge_text(folder: Path, text: str | bytes) -> None:
    """Write a zoo.json of this text, which ends with }, with the right digest."""
    body = (text if isinstance(text, bytes) else text.encode()).removesuffix(b"}")
    (folder / "zoo.json").write_bytes(body + f',\n "digest": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode())


def forge_fragment(folder: Path, name: str, data: bytes) -> str:
    """Put a fragment with these bytes in the place of another one, under the name its digest gives; returns that."""
    (folder / name).unlink(missing_ok=True)
    stem = name.rsplit(".", 2)[0]
    forged = f"{stem}.{hashlib.sha256(data).hexdigest()[:32]}.parquet"
    (folder / forged).write_bytes(data)
    return forged


CALLS = ("open", "write", "fsync", "replace")


class Stop(Exception):
    """Raised in the place of a system call."""


@contextmanager
def stopping(nth: int, how: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let the nth of the calls that make a file durable do `how` first; yields the list of calls seen."""
    seen: list[str] = []

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            if len(seen) == nth:
                how()
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrap(name))
        yield seen


def empty_record(variant: Variant) -> Record:
    return Record("tiny", {}, {variant.name: variant}, variant.grid.dtype)


def one(rows: pl.DataFrame, **columns: Any) -> Mapping[str, Any]:
    """The one row with these values."""
    return rows.filter(**columns).row(0, named=True)
