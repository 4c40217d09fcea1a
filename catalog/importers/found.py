"""What an importer says of a source: its networks, their layouts, and how to read them. Nothing is written here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from weightspace.layout import Layout

OWN = {"run": pl.String, "epoch": pl.Int64, "source": pl.String, "layout": pl.Int64, "reason": pl.String}
NO_LAYOUT = -1  # of a network that could not be read, or that is not there
SPARSE = 2  # times as many rows as networks, above which checkpoints are not lined up by epoch
SMALL, SMALL_WEIGHTS = 4096, 1 << 24  # rows, and weights of rows, that do no harm
MAX_NOTES = 50
Tensors = dict[str, np.ndarray]


class DoesNotFitError(Exception):
    """The source is not of the format of this importer; says what it lacks. Caught where formats are tried."""


class BrokenError(Exception):
    """One network cannot be read, and why; it becomes a failed row."""


@dataclass(frozen=True)
class Options:
    """How to read a source.

    Args:
        allow_pickle_subset: read `.pt` files, which are pickles: tensors and plain values alone, in another process.
        memory_limit: bytes that reading one pickle may take.
        time_limit: seconds that reading one pickle may take.
        table: name of the table of properties in a folder, None to look for it.
        file_column, run_column, epoch_column: of that table, None to look for them.
        storage: for fsspec, of sources that are URLs.
    """

    allow_pickle_subset: bool = False
    memory_limit: int = 4 << 30
    time_limit: float = 120.0
    table: str | None = None
    file_column: str | None = None
    run_column: str | None = None
    epoch_column: str | None = None
    storage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """All that was found in a source.

    Args:
        members: a row a network: `OWN`, then columns of plain types. `source` is its file in the source, empty where
            a run lacks a checkpoint that others have; `reason` says why there is no layout.
        layouts: what `layout` counts.
        load: row number in members -> tensors by name; numpy has no bfloat16, which comes as float32.
        skipped: what was passed over: (name, reason).
        notes: what else is to know, for people.
    """

    format: str
    members: pl.DataFrame
    layouts: tuple[Layout, ...]
    load: Callable[[int], Tensors]
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Layouts:
    """Distinct layouts; the order of tensors in a file makes no difference, the first one seen counts."""

    found: list[Layout] = field(default_factory=list)
    _places: dict[Any, int] = field(default_factory=dict)

    def add(self, layout: Layout) -> int:
        """Number of this layout."""
        tensors = zip(layout.names, layout.shapes, layout.dtypes, layout.roles, strict=True)
        key = frozenset(tensors), frozenset(layout.aliases)
        if key not in self._places:
            self._places[key] = len(self.found)
            self.found.append(layout)
        return self._places[key]


@dataclass
class Notes:
    """Remarks that many files share, each told once with the number of files."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, remarks: Iterable[str]) -> None:
        for remark in remarks:
            self.counts[remark] = self.counts.get(remark, 0) + 1

    def told(self) -> tuple[str, ...]:
        most = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        more = len(most) - MAX_NOTES
        return (
            *(f"{remark} ({count:,} files)" for remark, count in most[:MAX_NOTES]),
            *([f"and {more:,} other remarks on single files"] if more > 0 else ()),
        )


def make_members(rows: Iterable[Mapping[str, Any]], columns: pl.DataFrame | None = None) -> pl.DataFrame:
    """Members from the values of `OWN`, with columns beside them, in the same order."""
    own = pl.DataFrame(list(rows), schema=OWN)
    return own if columns is None or not columns.width else pl.concat([own, columns], how="horizontal")
