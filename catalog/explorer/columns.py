"""Columns of a table as JSON for the page: exact values, small. `columns.js` reads them."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import polars as pl

TEXT = 300  # characters of a text that are kept
EXACT = 2**53  # integers up to here are numbers in JavaScript


def encode_columns(rows: pl.DataFrame) -> tuple[list[dict[str, Any]], int]:
    """Each column of plain type, and the bytes that all of them take as JSON.

    Values are those of the table to the bit, so that a filter on the page finds the rows that it finds in polars; texts
    beyond `TEXT` characters are cut.
    """
    columns = [_encode(rows[name]) for name, dtype in rows.schema.items() if dtype != pl.Binary]
    return columns, sum(len(json.dumps(column)) for column in columns)


def _encode(column: pl.Series) -> dict[str, Any]:
    """A column as a list of distinct values with a code a row (0 for null), or as floats, whichever is smaller.

    Codes are left out (width 0) where all rows have the only value, or none has any.
    """
    about = {"name": column.name, "type": _type_of(column), "single": column.dtype == pl.Float32}
    values = column.cast(pl.String) if about["type"] in ("text", "large") else column
    if about["type"] == "text":
        values = pl.Series(column.name, [_cut(value) for value in values.to_list()], pl.String)
    known = values.drop_nulls()
    distinct = known.unique(maintain_order=True)
    width = 1 if len(distinct) < 2**8 else 2 if len(distinct) < 2**16 else 4
    if len(distinct) <= 1 and len(known) in (0, len(column)):
        width = 0
    if about["type"] == "number" and (12 * len(distinct) + width * len(column) > 6 * len(known) or not _finite(known)):
        return about | _floats(column, known)
    codes = values.replace_strict(distinct, range(1, len(distinct) + 1), default=0, return_dtype=pl.UInt32)
    packed = codes.fill_null(0).to_numpy().astype(f"<u{width}") if width else np.zeros(0, "u1")
    return about | {"values": distinct.to_list(), "codes": _base64(packed), "width": width}


def _type_of(column: pl.Series) -> str:
    """number, truth, text, or large: integers that JavaScript has no exact number for."""
    if column.dtype == pl.Boolean:
        return "truth"
    if not column.dtype.is_numeric() and column.dtype != pl.Null:
        return "text"
    if column.dtype.is_integer() and len(column.drop_nulls()):
        low, high = (int(str(value)) for value in (column.min(), column.max()))
        return "large" if low < -EXACT or high > EXACT else "number"
    return "number"


def _finite(known: pl.Series) -> bool:
    return bool(known.cast(pl.Float64).is_finite().all())  # JSON has no others


def _floats(column: pl.Series, known: pl.Series) -> dict[str, Any]:
    """Values that are not null as float32 where that is exact, else float64; a bit a row says where nulls are."""
    values = known.cast(pl.Float64).to_numpy()
    with np.errstate(over="ignore"):
        small = values.astype("<f4")
    exact = np.array_equal(small.astype(np.float64), values, equal_nan=True)
    nulls = np.packbits(column.is_null().to_numpy(), bitorder="little") if column.null_count() else np.zeros(0, "u1")
    return {
        "floats": _base64(small if exact else values.astype("<f8")),
        "width": 4 if exact else 8,
        "nulls": _base64(nulls),
    }


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= TEXT else text[: TEXT - 1] + "…"


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()
