"""Index fragments: one Parquet file per committed shard, named by its own digest, holding the rows and the files' digests."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import CorruptError, FormatError
from catalog.record import FORMAT, Record

NAME = re.compile(r"index/(?P<variant>[^/]+)\.(?P<shard>\d{5,9})\.(?P<digest>[0-9a-f]{32})\.parquet")
ADDRESS = ("variant", "model", "checkpoint", "stored", "crc32c")
REQUIRED = ("run", "epoch", "status", "reason")  # what the maker of a shard must give for each row
STATUSES = ("ok", "diverged", "failed")
KEY = "weightscape"  # in the Parquet key-value metadata


@dataclass(frozen=True)
class ShardFile:
    """A file of a shard as committed."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Fragment:
    """A committed shard: its rows, sorted by (model, checkpoint), and its files."""

    variant: str
    shard: int
    rows: pl.DataFrame
    files: tuple[ShardFile, ...]
    software: Mapping[str, str]

    def column(self, name: str, checkpoints: int) -> np.ndarray:
        """A column as (models of the shard, checkpoints)."""
        return self.rows[name].to_numpy().reshape(-1, checkpoints)


def encode_fragment(record: Record, fragment: Fragment) -> tuple[str, bytes]:
    """Name and bytes of a fragment; the same rows and files give the same bytes."""
    content = {
        "format": FORMAT,
        "zoo": record.digest,
        "variant": fragment.variant,
        "shard": fragment.shard,
        "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in fragment.files],
        "software": dict(fragment.software),
    }
    data = write_parquet(fragment.rows, {KEY: json.dumps(content)})
    digest = hashlib.sha256(data).hexdigest()[:32]
    return f"index/{fragment.variant}.{fragment.shard:05d}.{digest}.parquet", data


def decode_fragment(record: Record, name: str, data: bytes, where: str) -> Fragment:
    """The fragment in a file's bytes.

    Raises:
        CorruptError: bytes that do not match the digest in the name, or a fragment of another zoo or shard.
    """
    match = NAME.fullmatch(name)
    if not match:
        raise FormatError(f"{name} in {where} is not the name of a fragment")
    if hashlib.sha256(data).hexdigest()[:32] != match["digest"]:
        raise CorruptError(
            f"fragment {name} of {where} is damaged ({len(data):,} bytes); restore it, or remove it and build again"
        )
    try:
        content = json.loads(pl.read_parquet_metadata(io.BytesIO(data))[KEY])
        found = (content["zoo"], content["variant"], content["shard"])
        files = tuple(ShardFile(f["path"], f["size"], f["sha256"]) for f in content["files"])
        fragment = Fragment(
            content["variant"], content["shard"], pl.read_parquet(io.BytesIO(data)), files, content["software"]
        )
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this weightscape reads {FORMAT}")
    except (KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise FormatError(f"fragment {name} of {where} does not follow format {FORMAT}: {error!r}") from error
    if found != (record.digest, match["variant"], int(match["shard"])):
        raise CorruptError(f"fragment {name} of {where} belongs to another zoo or shard; restore the right one")
    check_rows(record, fragment, where)
    return fragment


def check_rows(record: Record, fragment: Fragment, where: str) -> None:
    """Raise FormatError unless the fragment names exactly the rows and files of its shard, in order."""
    variant = record.variant(fragment.variant)
    grid, rows = variant.grid, fragment.rows
    problem = _shape_problem(rows, fragment.shard, grid.num_shards)
    if not problem:
        models = np.array(grid.models(fragment.shard))
        expected = np.repeat(models, grid.shape[1]), np.tile(np.arange(grid.shape[1]), len(models))
        paths = [f"{variant.path}/{key}" for key, _ in grid.parts(fragment.shard)]
        if len(rows) != len(expected[0]):
            problem = f"{len(rows)} rows, expected {len(expected[0])}"
        elif not all(
            np.array_equal(rows[c].to_numpy(), e) for c, e in zip(("model", "checkpoint"), expected, strict=True)
        ):
            problem = "rows are not those of the shard in order"
        elif set(rows["variant"].unique()) != {variant.name}:
            problem = f"rows of another variant than {variant.name}"
        elif [f.path for f in fragment.files] != paths:
            problem = f"files {[f.path for f in fragment.files]}, expected {paths}"
    if problem:
        raise FormatError(f"fragment of shard {fragment.shard} of {fragment.variant} in {where}: {problem}")


def _shape_problem(rows: pl.DataFrame, shard: int, num_shards: int) -> str | None:
    missing = [name for name in (*ADDRESS, *REQUIRED) if name not in rows.columns]
    if missing:
        return f"columns {missing} are missing"
    if not 0 <= shard < num_shards:
        return f"shard {shard} of {num_shards}"
    types = {"variant": pl.String, "model": pl.Int64, "checkpoint": pl.Int64, "stored": pl.Boolean, "crc32c": pl.UInt32}
    types |= {"run": pl.String, "epoch": pl.Int64, "status": pl.String, "reason": pl.String}
    for name, dtype in types.items():
        if rows.schema[name] != dtype:
            return f"column {name} is {rows.schema[name]}, expected {dtype}"
        if rows[name].null_count():
            return f"column {name} has nulls"
    unknown = set(rows["status"].unique()) - set(STATUSES)
    return f"status {sorted(unknown)}, known are {STATUSES}" if unknown else None


def listed(names: Sequence[str], record: Record, where: str) -> dict[tuple[str, int], str]:
    """(variant, shard) -> name of its fragment.

    Raises:
        CorruptError: two different fragments claim one shard.
        FormatError: a name that is not a fragment's.
    """
    found: dict[tuple[str, int], str] = {}
    for name in names:
        match = NAME.fullmatch(name)
        if not match or match["variant"] not in record.variants:
            raise FormatError(f"{name} in {where} is not a fragment of this zoo; move it away")
        key = match["variant"], int(match["shard"])
        if key in found:
            raise CorruptError(
                f"{where} has two fragments for shard {key[1]} of {key[0]}: {found[key]} and {name}; remove one"
            )
        found[key] = name
    return found


def write_parquet(rows: pl.DataFrame, metadata: dict[str, str]) -> bytes:
    """Parquet bytes with key-value metadata; deterministic for one polars version."""
    out = io.BytesIO()
    rows.write_parquet(out, compression="zstd", compression_level=3, statistics=True, metadata=metadata)
    return out.getvalue()


def software(**more: Any) -> dict[str, str]:
    """Versions of what wrote a shard."""
    from importlib.metadata import version

    return {name: version(name) for name in ("numpy", "polars")} | {name: str(value) for name, value in more.items()}
