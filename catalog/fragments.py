"""Index fragments: a Parquet file per committed shard, named by its digest: the rows, and digests of the files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import CorruptError, FormatError
from catalog.record import FORMAT, Record, brief
from catalog.sealed import strict_json

NAME = re.compile(r"index/(?P<variant>[^/]+)\.(?P<shard>[0-9]{5,9})\.(?P<digest>[0-9a-f]{32})\.parquet")
ADDRESS = ("variant", "model", "checkpoint", "stored", "crc32c")
REQUIRED = ("run", "epoch", "status", "reason")  # what the maker of a shard must give for each row
STATUSES = ("ok", "diverged", "failed")
KEY = "weightscape"  # in the Parquet key-value metadata
MAX_COLUMNS = 256  # of rows, which MAX_ROWS of a shard bounds: run lengths make many rows of few bytes
INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
PLAIN = (pl.Boolean, pl.String, pl.Binary, pl.Float32, pl.Float64, *INTEGERS)  # nested columns can hide any amount


@dataclass(frozen=True)
class StoredFile:
    """A file of a shard as committed."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Fragment:
    """A committed shard: its rows, sorted by (model, checkpoint), its files, and the versions of what wrote it."""

    variant: str
    shard: int
    rows: pl.DataFrame
    files: tuple[StoredFile, ...]
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
        FormatError: rows or files that are not those of its shard.
    """
    match = NAME.fullmatch(name)
    if not match:
        raise FormatError(f"{name} in {where} is not the name of a fragment")
    if hashlib.sha256(data).hexdigest()[:32] != match["digest"]:
        raise CorruptError(
            f"fragment {name} of {where} is damaged ({len(data):,} bytes); restore it, or remove it and build again"
        )
    try:
        content = read_content(data)
        found = content["format"], content["zoo"], content["variant"], content["shard"]
        files = tuple(_stored_file(entry) for entry in content["files"])
        software = dict(content["software"])
        if found[0] != FORMAT:
            raise ValueError(f"format {found[0]!r}, this weightscape reads {FORMAT}")
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"fragment {name} of {where} does not follow format {FORMAT}: {brief(error)}") from error
    variant, shard = match["variant"], int(match["shard"])
    if found[1:] != (record.digest, variant, shard):
        raise CorruptError(f"fragment {name} of {where} belongs to another zoo or shard; restore the right one")
    grid = record.variant(variant).grid
    try:
        rows = read_table(data, len(grid.models(shard)) * grid.shape[1])
    except ValueError as error:
        raise FormatError(f"fragment {name} of {where} does not follow format {FORMAT}: {brief(error)}") from error
    fragment = Fragment(variant, shard, rows, files, software)
    check_fragment(record, fragment, where)
    return fragment


def check_fragment(record: Record, fragment: Fragment, where: str) -> None:
    """Raise FormatError unless the fragment names exactly the rows and files of its shard, in order."""
    variant = record.variant(fragment.variant)
    grid, rows = variant.grid, fragment.rows
    problem = columns_problem(rows)
    if not problem:
        models = np.array(grid.models(fragment.shard))
        expected = np.repeat(models, grid.shape[1]), np.tile(np.arange(grid.shape[1]), len(models))
        came = rows["model"].to_numpy(), rows["checkpoint"].to_numpy()
        paths = [f"{variant.path}/{key}" for key, _ in grid.parts(fragment.shard)]
        if not all(map(np.array_equal, came, expected)):
            problem = "rows are not those of the shard in order"
        elif set(rows["variant"].unique()) != {variant.name}:
            problem = f"rows of another variant than {variant.name}"
        elif rows.select(pl.struct("run", "epoch").is_duplicated().any()).item():
            problem = "a run and epoch stand twice"
        elif [f.path for f in fragment.files] != paths:
            problem = f"files {[f.path for f in fragment.files][:3]}, expected {paths[:3]}"
    if problem:
        raise FormatError(f"fragment of shard {fragment.shard} of {fragment.variant} in {where}: {problem}")


def columns_problem(rows: pl.DataFrame) -> str | None:
    """What is wrong with the columns that every row has, or None."""
    missing = [name for name in (*ADDRESS, *REQUIRED) if name not in rows.columns]
    if missing:
        return f"columns {missing} are missing"
    if "zoo" in rows.columns:
        return "column zoo is there, which scan() adds"
    if odd := [name for name, dtype in rows.schema.items() if dtype not in PLAIN]:
        return f"column {odd[0]!r} is {rows.schema[odd[0]]}; columns are numbers, truths, text or bytes"
    if len(rows.columns) > MAX_COLUMNS:
        return f"{len(rows.columns)} columns, at most {MAX_COLUMNS} are read"
    types = {"variant": pl.String, "model": pl.Int64, "checkpoint": pl.Int64, "stored": pl.Boolean, "crc32c": pl.UInt32}
    types |= {"run": pl.String, "epoch": pl.Int64, "status": pl.String, "reason": pl.String}
    for name, dtype in types.items():
        if rows.schema[name] != dtype:
            return f"column {name} is {rows.schema[name]}, expected {dtype}"
        if rows[name].null_count():
            return f"column {name} has nulls"
    if unknown := set(rows["status"].unique()) - set(STATUSES):
        return f"status {sorted(unknown)[:3]}, known are {STATUSES}"
    if len(rows.filter((pl.col("status") == "ok") & ~pl.col("stored"))):
        return "a row has status ok and no weights"
    return None


def _stored_file(entry: Any) -> StoredFile:
    path, size, digest = entry["path"], entry["size"], entry["sha256"]
    if type(path) is not str or type(size) is not int or size < 0 or type(digest) is not str:
        raise ValueError(f"a file is a path, a size and a sha256, got {entry!r:.100}")
    return StoredFile(path, size, digest)


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
        if key[1] >= record.variants[key[0]].grid.num_shards or f"{key[1]:05d}" != match["shard"]:
            raise FormatError(f"{name} in {where} names a shard that {key[0]} does not have; move it away")
        if key in found:
            raise CorruptError(
                f"{where} has two fragments for shard {key[1]} of {key[0]}: {found[key]} and {name}; remove one"
            )
        found[key] = name
    return found


def read_content(data: bytes) -> dict[str, Any]:
    """Our metadata in the bytes of a Parquet file, which may come from a stranger.

    Raises:
        ValueError: it is no Parquet file of ours.
    """
    from catalog.parquet import metadata_of

    try:
        metadata_of(data)  # polars believes what a footer says of its own lengths
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"not a Parquet file: {error}") from error
    with _parquet_errors():
        metadata = pl.read_parquet_metadata(io.BytesIO(data))
    content = strict_json(metadata[KEY]) if KEY in metadata else None
    if not isinstance(content, dict):
        raise ValueError(f"the Parquet file has no metadata called {KEY}")
    return content


def read_table(data: bytes, count: int, fewer: bool = False, more: int = 0) -> pl.DataFrame:
    """The rows of a Parquet file, which must be `count` (or `fewer`); else ValueError, before they are decoded.

    Args:
        more: bytes that the rows may need besides what is usual (see `catalog.pages`).
    """
    from catalog.pages import check_pages  # which imports manifests, and these fragments

    with _parquet_errors():
        schema = pl.read_parquet_schema(io.BytesIO(data))
        if odd := [name for name, dtype in schema.items() if dtype not in PLAIN]:
            raise ValueError(f"column {odd[0]!r} is {schema[odd[0]]}; columns are numbers, truths, text or bytes")
        if len(schema) > MAX_COLUMNS:
            raise ValueError(f"{len(schema)} columns, at most {MAX_COLUMNS} are read")
        found = pl.scan_parquet(io.BytesIO(data)).select(pl.len()).collect().item()
        if found > count or (found < count and not fewer):
            raise ValueError(f"{found:,} rows, expected {'at most ' if fewer else ''}{count:,}")
        check_pages(data, count, more)
        return pl.read_parquet(io.BytesIO(data))


@contextlib.contextmanager
def _parquet_errors() -> Iterator[None]:
    try:
        yield
    # PanicException: polars meets some malformed files with an assertion of Rust, which is no Exception in Python
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise ValueError(f"not a Parquet file: {error}") from error


def write_parquet(rows: pl.DataFrame, metadata: dict[str, str], row_group_size: int | None = None) -> bytes:
    """Parquet bytes with key-value metadata; deterministic for one polars version."""
    out = io.BytesIO()
    how: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "statistics": True}
    rows.write_parquet(out, **how, row_group_size=row_group_size, metadata=metadata)
    return out.getvalue()


def software(**more: Any) -> dict[str, str]:
    """Versions of what wrote a shard."""
    from importlib.metadata import version

    return {name: version(name) for name in ("numpy", "polars")} | {name: str(value) for name, value in more.items()}
