"""Columns of a table for pictures: which there are, which are numbers, what they are called."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from catalog.errors import QueryError, unknown_name

BATCH = "batch_size"
NO_BREAK, MINUS = "\u00a0", "\u2212"
PHASES = ("I", "II", "III", "IV-A", "IV-B", "diverged")  # in this order in legends; others follow by name
USUAL = {"load": ("width", "channels", "depth"), "temperature": (BATCH, "learning_rate")}
UNITS = {  # of columns every zoo has; metrics bring their own
    "train_loss": "nats",
    "test_loss": "nats",
    "mode_connectivity": "pp",
    "mc": "pp",
    "linear_barrier": "pp",
}


def check_columns(rows: pl.DataFrame, names: Iterable[str], *, numeric: bool = True) -> None:
    """Raise unless the table has rows and these columns, of finite numbers if asked.

    Raises:
        UnknownNameError: no such column; lists those there are.
        QueryError: no rows; a column of text; one without any finite number. Lists the columns of numbers.
    """
    for name in names:
        if name not in rows.columns:
            raise unknown_name("column", name, rows.columns)
        if numeric and not (rows[name].dtype.is_numeric() or rows[name].dtype in (pl.Boolean, pl.Null)):
            raise QueryError(f"column {name!r} holds {rows[name].dtype}, not numbers; {_of_numbers(rows)}")
    if rows.is_empty():
        raise QueryError("no rows to draw; loosen the condition, or measure the zoo first")
    for name in names:
        if not numeric and rows[name].null_count() == len(rows):
            raise QueryError(f"column {name!r} is empty in all {len(rows)} rows; {_of_numbers(rows)}")
        if numeric and not rows.select(pl.col(name).cast(pl.Float64).is_finite().any()).item():
            raise QueryError(f"column {name!r} has no finite number in {len(rows)} rows; {_of_numbers(rows)}")


def _of_numbers(rows: pl.DataFrame) -> str:
    return f"columns of numbers: {', '.join(name for name, dtype in rows.schema.items() if dtype.is_numeric())}"


def last(rows: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Of every run the last row that has a value in all these columns, so that no picture mixes epochs of a run.

    A table without the columns run and epoch is taken as it is, without rows that lack a value.
    """
    rows = rows.drop_nulls(names)
    if not {"run", "epoch"} <= set(rows.columns):
        return rows
    keys = [name for name in ("zoo", "run") if name in rows.columns]
    return rows.filter(pl.col("epoch") == pl.col("epoch").max().over(keys))


def axis_title(rows: pl.DataFrame, axis: str) -> str:
    """What the axis "load" or "temperature" stands for: the hyperparameter that equals it on every row.

    One that varies goes before one that does not, then `USUAL` before others. Another axis has its own name.

    >>> axis_title(pl.DataFrame({"width": [2, 4], "seed": [0, 1], "load": [2, 4]}), "load")
    'width'
    """
    if axis not in USUAL:
        return axis
    values = rows[axis].cast(pl.Float64)
    same = [
        name
        for name, dtype in rows.schema.items()
        if dtype.is_numeric() and name not in USUAL and rows[name].cast(pl.Float64).equals(values, check_names=False)
    ]
    if values.n_unique() == 1:  # by chance many columns equal it
        same = [name for name in USUAL[axis] if name in same]
    return min(same, key=lambda name: (name not in USUAL[axis], rows.columns.index(name)), default=axis)


def spoken(name: str) -> str:
    """A column's name as text in a picture.

    >>> spoken("hessian_top_eigenvalue")
    'hessian top eigenvalue'
    """
    return name.replace("_", " ").strip() or name


def labelled(name: str, units: Mapping[str, str] | None = None, note: str = "") -> str:
    """Name, unit in brackets, note after a comma; unit and note are not broken over lines.

    >>> labelled("train_loss", note="log scale").replace(NO_BREAK, " ")
    'train loss [nats], log scale'
    """
    unit = (UNITS | dict(units or {})).get(name, "").replace(" ", NO_BREAK)
    return spoken(name) + (f" [{unit}]" if unit else "") + (", " + note.replace(" ", NO_BREAK) if note else "")


def phase_order(names: Iterable[str]) -> list[str]:
    """Phases in the order of the rule, then others by name.

    >>> phase_order(["IV-B", "I", "basin"])
    ['I', 'IV-B', 'basin']
    """
    distinct = set(names)
    return [name for name in PHASES if name in distinct] + sorted(distinct - set(PHASES))


def shown(value: float) -> str:
    """A tick label: whole numbers below 100,000 as they are, others to four digits.

    >>> [shown(value) for value in (1024, 12345, 0.05, 0.123456, 0.0001, 1e6)]
    ['1024', '12345', '0.05', '0.1235', '1e-4', '1e6']
    """
    text = f"{value:.0f}" if value == int(value) else f"{value:.4g}"
    if abs(value) >= 1e5 or 0 < abs(value) < 1e-3:
        digits, _, power = f"{value:.3e}".partition("e")
        text = f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return MINUS + text[1:] if text.startswith("-") else text


def wrapped(text: str, length: int) -> str:
    """In lines of up to so many characters; three at most, the last cut short.

    >>> print(wrapped("hessian top eigenvalue of the training loss", 24))
    hessian top eigenvalue
    of the training loss
    """
    return "\n".join(textwrap.wrap(text, length, max_lines=3, placeholder=" …"))
