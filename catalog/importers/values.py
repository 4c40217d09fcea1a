"""Tables and JSON of strangers as columns of plain types: strict numbers, tame names, limits."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from catalog.errors import SourceError
from catalog.fragments import ADDRESS, PLAIN
from catalog.record import brief

TABLE_BYTES = 128 << 20  # of a csv, after decompression; that of the largest zoo published so has 100 MB
CELLS = 1 << 23  # of a table; that has 7 million. A cell may take two bytes in a file and takes 16 in memory
MAX_COLUMNS = 200  # a fragment has at most 256
MAX_NAMES = 5000  # of columns that are looked at
MAX_TEXT = 4096  # characters of a value
TAKEN = {*ADDRESS, "run", "epoch", "status", "reason", "source", "zoo", "layout", "split", "duplicate_of", "trial_id"}
WHOLE = r"^[+-]?(0|[1-9][0-9]{0,18})$"  # 007 is a name, and so are more digits than an integer has
REAL = (
    r"^[+-]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+|(0|[1-9][0-9]{0,14}))$|^[+-]?(?i:nan|inf|infinity)$"
    r"|^[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)[eE][+-]?[0-9]{1,4}$"
)
TRUE, FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")


def tame(names: Iterable[str]) -> dict[str, str]:
    """Names of any kind -> distinct column names of letters, digits and underscores that nothing else uses.

    >>> tame(["optim::lr", "2nd", "epoch", "optim/lr", "größe"])
    {'optim::lr': 'optim_lr', '2nd': '_2nd', 'epoch': 'source_epoch', 'optim/lr': 'optim_lr_2', 'größe': 'gr_e'}
    """
    out: dict[str, str] = {}
    used: set[str] = set()
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:100] or "column"
        plain = f"_{plain}" if plain[0].isdigit() else plain
        plain = f"source_{plain}" if plain in TAKEN else plain
        count, free = 2, plain
        while free in used:
            free, count = f"{plain}_{count}", count + 1
        used.add(free)
        out[name] = free
    return out


def read_table(path: Path) -> pl.DataFrame:
    """A csv, tsv (each also .gz) or Parquet file with its own column names; numbers and truths where all values are.

    Raises:
        SourceError: too large, too many rows, or not what its name says.
    """
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        text = _bytes(path)
        separator = "\t" if ".tsv" in path.suffixes else ","
        columns = text[: text.find(b"\n")].count(separator.encode()) + 1
        _check_cells(path, text.count(b"\n") + text.count(b"\r") + 1, columns)
        found = pl.read_csv(text, separator=separator, infer_schema=False, null_values=[""])
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path.name} is not a table that can be read: {brief(error)}") from error
    return found.select(typed(column) for column in found)


def _bytes(path: Path) -> bytes:
    """Content of a text file, decompressed, within the limit."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        source: Any = gzip.GzipFile(fileobj=file) if zipped else file
        data = bytearray()
        while part := source.read(1 << 20):
            data += part
            if len(data) > TABLE_BYTES:
                raise SourceError(f"{path.name} holds more than the {TABLE_BYTES:,} bytes allowed for a table")
    return bytes(data)


def _read_parquet(path: Path) -> pl.DataFrame:
    if path.stat().st_size > TABLE_BYTES:
        raise SourceError(f"{path.name} holds more than the {TABLE_BYTES:,} bytes allowed for a table")
    schema = pl.read_parquet_schema(io.BytesIO(data := path.read_bytes()))
    rows = pl.scan_parquet(io.BytesIO(data)).select(pl.len()).collect().item()
    _check_cells(path, rows, len(schema))  # run lengths make many rows of few bytes
    plain = [name for name, dtype in schema.items() if dtype in PLAIN and dtype != pl.Binary]
    return pl.read_parquet(io.BytesIO(data), columns=plain)


def _check_cells(path: Path, rows: int, columns: int) -> None:
    """Raise SourceError for a table that would take much more memory than it has bytes."""
    if rows * columns > CELLS or columns > MAX_NAMES:
        raise SourceError(f"{path.name} has {rows:,} rows of {columns:,} columns, more than is read")


def typed(column: pl.Series) -> pl.Series:
    """A column of text as whole numbers, numbers or truths where every value is one; else as it is.

    >>> typed(pl.Series("a", ["1", None, "-20"])).to_list(), typed(pl.Series("a", ["007", "1"])).to_list()
    ([1, None, -20], ['007', '1'])
    >>> typed(pl.Series("a", ["1e-3", "nan"])).to_list(), typed(pl.Series("a", ["1_000", "1"])).to_list()
    ([0.001, nan], ['1_000', '1'])
    """
    present = column.drop_nulls()
    if not len(present):
        return column
    if present.str.contains(WHOLE).all():
        whole = column.str.strip_chars_start("+").cast(pl.Int64, strict=False)
        if whole.null_count() == column.null_count():  # 19 digits may pass the range
            return whole
    if present.str.contains(REAL).all():
        return column.str.to_lowercase().str.replace("infinity", "inf").cast(pl.Float64)
    if present.is_in([*TRUE, *FALSE]).all():
        return column.is_in(list(TRUE)).alias(column.name) if not column.null_count() else _truths(column)
    return column.str.slice(0, MAX_TEXT)


def _truths(column: pl.Series) -> pl.Series:
    return pl.Series(column.name, [None if value is None else value in TRUE for value in column.to_list()])


def tabulate(rows: Sequence[Mapping[str, Any]]) -> tuple[pl.DataFrame, list[str]]:
    """Values of many members as columns of one plain type each, with tame names; and notes on what was left out.

    Whole numbers and others together become floats; numbers and text together become text.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = pl.DataFrame([_column(name, [row.get(name) for row in rows]) for name in names[:MAX_NAMES]])
    return limited(columns)


def _column(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    if int in kinds and any(type(value) is int and not -(2**63) <= value < 2**63 for value in values):
        kinds.add(float)
    if kinds <= {bool}:
        return pl.Series(name, values, pl.Boolean)
    if kinds <= {int}:
        return pl.Series(name, values, pl.Int64)
    if kinds <= {int, float}:
        return pl.Series(name, [None if value is None else _float(value) for value in values], pl.Float64)
    return pl.Series(name, [None if value is None else str(value)[:MAX_TEXT] for value in values], pl.String)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def limited(columns: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Columns under tame names, the first `MAX_COLUMNS` of those that have a value; and notes on the others."""
    empty = [name for name in columns.columns if columns[name].null_count() == len(columns)]
    kept = [name for name in columns.columns if name not in set(empty)]
    notes = []
    if len(kept) > MAX_COLUMNS:
        notes.append(f"{len(kept) - MAX_COLUMNS} of {len(kept)} columns left out: at most {MAX_COLUMNS} are stored")
        kept = kept[:MAX_COLUMNS]
    if renamed := {old: new for old, new in tame(kept).items() if old != new and new.startswith("source_")}:
        notes.append("columns renamed, their names are taken: " + ", ".join(f"{o} -> {n}" for o, n in renamed.items()))
    return columns.select(kept).rename(tame(kept)), notes


def flat(content: Mapping[str, Any], depth: int = 4) -> dict[str, Any]:
    """JSON objects inside one another as one: {"a": {"b": 1}} gives a_b. Short lists become text, long ones are left.

    >>> flat({"lr": 0.1, "model": {"width": 4, "shape": [1, 2]}, "none": None})
    {'lr': 0.1, 'model_width': 4, 'model_shape': '[1, 2]'}
    """
    out: dict[str, Any] = {}
    for name, value in content.items():
        if len(out) >= MAX_NAMES:
            break
        if isinstance(value, Mapping) and depth:
            out |= {f"{name}_{inner}": v for inner, v in flat(value, depth - 1).items()}
        elif isinstance(value, list | Mapping):
            text = json.dumps(value)
            out |= {name: text} if len(text) <= 200 else {}
        elif value is not None:
            out[name] = value
    return out
