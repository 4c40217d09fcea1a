"""The one cell that stands for many: how networks like these are trained, and on what."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

import polars as pl

from catalog.errors import InvalidSpecError, ZooError
from catalog.store import Zoo
from zoo.plan import TRAINED_LIKE
from zoo.spec import HYPERPARAMETERS, ZooSpec


def typical_spec(zoo: Zoo, rows: pl.DataFrame) -> ZooSpec:
    """A spec of one cell, trained like most of these rows: of each number and hyperparameter the (lower) median of the
    rows, of names the most frequent one.

    Args:
        rows: of one variant, with the columns of the spec. Of samples it is what their parent says.

    Raises:
        InvalidSpecError: the zoo was not made by `weightscape build` or `weightscape sample`.
    """
    stored: Mapping[str, Any] = zoo.record.spec
    try:
        if TRAINED_LIKE in stored:
            return ZooSpec.from_json(stored[TRAINED_LIKE])
        spec = ZooSpec.from_json(stored)
    except ZooError as error:
        raise InvalidSpecError(
            f"{zoo.url} has no spec of `weightscape build`, which says on what data and how to train: {error}"
        ) from error
    values = {name: _typical(rows[name]) if name in rows.columns else spec.value(name) for name in spec.known}
    return dataclasses.replace(
        spec,
        numbers={name: value for name, value in values.items() if name not in HYPERPARAMETERS},
        hyperparameters={name: value for name, value in values.items() if name in HYPERPARAMETERS},
        axes={},
        load=None,
        temperature=None,
        cells=None,
        seeds=(0,),
        checkpoints=(),
    )


def _typical(column: pl.Series) -> Any:
    values = column.drop_nulls().to_list()
    return statistics.mode(sorted(values)) if column.dtype == pl.String else statistics.median_low(values)
