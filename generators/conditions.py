"""Columns that a generator is conditioned on, as numbers: standardised, or one place for each category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl


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
        """From the rows of the training split."""
        raise NotImplementedError

    def encode(self, rows: pl.DataFrame) -> np.ndarray:
        """(rows, width) float32, all columns given."""
        raise NotImplementedError

    def request(self, values: Mapping[str, Any], count: int) -> np.ndarray:
        """(count, width) float32 of what a user asks for; columns left out are marked as not given."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Conditions:
        raise NotImplementedError
