"""Columns that a generator is conditioned on, as numbers: standardised, or one place for each category."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import GeneratorError, unknown_name

MOST = 256  # categories of a column: more is a name of each row, not a kind of network
LARGEST = 1e6  # deviations from the mean: nothing sensible lies beyond, and float32 must not overflow
WORDS = {True: "true", False: "false"}


@dataclass(frozen=True)
class Conditions:
    """How rows become condition vectors, fitted on the training split alone.

    A numeric column is one number, standardised; a text or boolean one is a one-hot vector, never one scalar. Behind
    the values of each column stands one more number, 1 where it is given and 0 where it is not (then its values are 0).

    Args:
        names: the columns, in order.
        centres, scales: of numeric columns, name -> number. categories: of others, name -> values in order.
    """

    names: tuple[str, ...]
    centres: Mapping[str, float]
    scales: Mapping[str, float]
    categories: Mapping[str, tuple[str, ...]]

    @property
    def width(self) -> int:
        """Numbers in a condition vector."""
        return sum(len(self.categories.get(name, ("",))) + 1 for name in self.names)

    @classmethod
    def fit(cls, rows: pl.DataFrame, names: Sequence[str]) -> Conditions:
        """From the rows of the training split. A column that is constant there keeps scale 1.

        Raises:
            UnknownNameError: no such column. GeneratorError: a name given twice, nulls, NaN or infinity, a column that
                is neither numbers nor text nor boolean, more than `MOST` categories.
        """
        if isinstance(names, str):
            raise GeneratorError(f"conditions must be several names of columns, got the string {names!r}")
        if twice := [name for name in dict.fromkeys(names) if list(names).count(name) > 1]:
            raise GeneratorError(f"a condition is named once, got {', '.join(twice)} twice")
        centres: dict[str, float] = {}
        scales: dict[str, float] = {}
        categories: dict[str, tuple[str, ...]] = {}
        for name in names:
            if not len(rows):
                raise GeneratorError("conditions are fitted to rows of the training split, got none")
            column = _column(rows, name)
            if column.dtype == pl.String:
                categories[name] = tuple(sorted(column.unique().to_list()))
                if len(categories[name]) > MOST:
                    raise GeneratorError(
                        f"column {name!r} has {len(categories[name])} different values in {len(rows)} rows, at most "
                        f"{MOST} can be conditions; leave it out"
                    )
                continue
            values = column.to_numpy()
            constant = values.min() == values.max()
            centres[name] = float(values[0]) if constant else float(values.mean())
            scales[name] = 1.0 if constant else float(values.std())
            if not math.isfinite(centres[name]) or not math.isfinite(scales[name]) or scales[name] <= 0:
                raise GeneratorError(
                    f"column {name!r} has no usable mean and deviation (values from {values.min():g} to "
                    f"{values.max():g}); rescale it, for example by its logarithm"
                )
        return cls(tuple(names), centres, scales, categories)

    def encode(self, rows: pl.DataFrame) -> np.ndarray:
        """(rows, width) float32, all columns given.

        Raises:
            UnknownNameError: a column that the rows lack. GeneratorError: nulls, NaN or infinity, another type than in
                training, or a category that the training split does not have.
        """
        columns = {name: _column(rows, name) for name in self.names}
        return self._vectors({name: column.to_numpy() for name, column in columns.items()}, len(rows), "the rows")

    def request(self, values: Mapping[str, Any], count: int) -> np.ndarray:
        """(count, width) float32 of what a user asks for; columns left out are marked as not given.

        Args:
            values: column -> one value for all, or one for each of `count`.

        Raises:
            UnknownNameError: a column it was not trained with. GeneratorError: a value of another type, not finite, or
                as many as there are no networks; a category that the training split does not have.
        """
        for name in values:
            if name not in self.names:
                raise unknown_name("condition", name, self.names)
        return self._vectors(
            {name: self._asked(name, value, count) for name, value in values.items()}, count, "the request"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "centres": dict(self.centres),
            "scales": dict(self.scales),
            "categories": {name: list(values) for name, values in self.categories.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Conditions:
        """What `to_json` gave, trusting none of it.

        Raises:
            GeneratorError: it is not that.
        """
        if problem := _problem(content):
            raise GeneratorError(f"these are no stored conditions: {problem}")
        return cls(
            tuple(content["names"]),
            {name: float(value) for name, value in content["centres"].items()},
            {name: float(value) for name, value in content["scales"].items()},
            {name: tuple(values) for name, values in content["categories"].items()},
        )

    def _vectors(self, columns: Mapping[str, np.ndarray], count: int, where: str) -> np.ndarray:
        """(count, width) from checked values of some columns; the others are marked as not given."""
        out = np.zeros((count, self.width), np.float32)
        place = 0
        for name in self.names:
            known = self.categories.get(name)
            end = place + (1 if known is None else len(known))
            if name in columns:
                out[:, end] = 1
                values = columns[name]
                text = values.dtype.kind not in "iuf"
                if text != (known is not None):
                    kinds = ("numbers", "categories")
                    raise GeneratorError(
                        f"column {name!r} held {kinds[not text]} in training, {where} hold {kinds[text]} in all "
                        f"{count} rows"
                    )
                if known is None:
                    numbers = (values.astype(np.float64) - self.centres[name]) / self.scales[name]
                    out[:, place] = np.clip(numbers, -LARGEST, LARGEST)
                else:
                    out[np.arange(count), place + _codes(name, known, values, where)] = 1
            place = end + 1
        return out

    def _asked(self, name: str, value: Any, count: int) -> np.ndarray:
        """One column of a request as (count,) numbers or texts."""
        values = np.asarray(value, object)  # as they are: a list of texts and numbers would become texts
        if values.ndim > 1 or (values.ndim == 1 and len(values) != count):
            raise GeneratorError(
                f"condition {name!r} must be one value or one for each of {count} networks, got {values.shape}"
            )
        text = name in self.categories
        one_by_one = [one.item() if isinstance(one, np.generic) else one for one in values.reshape(-1)]
        good = (str, bool) if text else (int, float)
        wrong = [one for one in one_by_one if not isinstance(one, good) or (isinstance(one, bool) and not text)]
        if wrong:
            kind = f"one of {', '.join(self.categories[name])}" if text else "a number"
            raise GeneratorError(
                f"condition {name!r} must be {kind}, got {wrong[0]!r} in {len(wrong)} of {len(one_by_one)} values"
            )
        most = sys.float_info.max
        if not text and (bad := sum(not -most <= one <= most for one in one_by_one)):
            raise GeneratorError(f"condition {name!r} must be finite, {bad} of {len(one_by_one)} values are not")
        kept = np.array([WORDS.get(one, one) if isinstance(one, bool) else one for one in one_by_one], object)
        kept = kept if text else kept.astype(np.float64)
        return np.broadcast_to(kept if values.ndim else kept[0], (count,))


def _column(rows: pl.DataFrame, name: str) -> pl.Series:
    """A column as float64 or text, without nulls."""
    if name not in rows.columns:
        raise unknown_name("column", name, rows.columns)
    column = rows[name]
    if column.dtype == pl.Boolean or column.dtype in (pl.String, pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    elif not column.dtype.is_numeric() and column.dtype != pl.Null:
        raise GeneratorError(
            f"column {name!r} must hold numbers, text or booleans to be a condition, got {rows[name].dtype}"
        )
    if nulls := column.null_count():
        raise GeneratorError(
            f"column {name!r} is null in {nulls} of {len(rows)} rows: measure it there, or filter by "
            f'"{name} is not null"'
        )
    if column.dtype == pl.String:
        return column
    column = column.cast(pl.Float64)
    if bad := len(rows) - int(column.is_finite().sum()):
        raise GeneratorError(f"column {name!r} is NaN or infinite in {bad} of {len(rows)} rows; filter them out")
    return column


def _codes(name: str, known: Sequence[str], values: np.ndarray, where: str) -> np.ndarray:
    """Place of each value among the known ones."""
    places = {value: place for place, value in enumerate(known)}
    codes = np.array([places.get(value, -1) for value in values], np.int64)
    if strange := sorted({str(value) for value, code in zip(values, codes, strict=True) if code < 0}):
        raise GeneratorError(
            f"column {name!r} is {', '.join(strange[:3])} in {int((codes < 0).sum())} of {len(values)} values of "
            f"{where}, which the training split does not have; it has {', '.join(known)}"
        )
    return codes


def _problem(content: Any) -> str | None:
    """What is wrong with stored conditions, or None."""
    keys = ("names", "centres", "scales", "categories")
    if not isinstance(content, Mapping) or set(content) != set(keys):
        return f"expected the keys {', '.join(keys)}"
    names, centres, scales, categories = (content[key] for key in keys)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return "names must be a list of columns"
    if not all(isinstance(part, Mapping) for part in (centres, scales, categories)):
        return "centres, scales and categories must be objects"
    if len(set(names)) != len(names) or set(centres) != set(scales) or set(centres) & set(categories):
        return "a column is named once, and is either numbers, with centre and scale, or categories"
    if set(names) != set(centres) | set(categories):
        return f"names are {', '.join(names)}, and there is something on {', '.join([*centres, *categories])}"
    for name, value in [*centres.items(), *scales.items()]:
        if type(value) not in (int, float) or not math.isfinite(value):
            return f"centre and scale of {name!r} must be finite numbers, got {value!r}"
    if low := [name for name, value in scales.items() if value <= 0]:
        return f"the scale of {low[0]!r} must be above 0"
    for name, values in categories.items():
        good = isinstance(values, list | tuple) and values and all(isinstance(value, str) for value in values)
        if not good or len(set(values)) != len(values) or len(values) > MOST:
            return f"categories of {name!r} must be 1 to {MOST} different texts"
    return None
