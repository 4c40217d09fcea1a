"""Cells of a zoo: means over seeds, and which cells stand out from their neighbours in the grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from catalog.errors import QueryError

BUILT = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "load", "temperature", "cell", "status")
POSITIONS = ("checkpoint", "progress", "epoch")
NEIGHBOURS = 3  # fewer say nothing about a cell
STEPS = [step for step in itertools.product((-1, 0, 1), repeat=2) if step != (0, 0)]


def require(rows: pl.DataFrame, columns: Sequence[str], *, numbers: bool = False) -> None:
    """Check that the table has these columns, and with `numbers` that they hold some.

    Raises:
        QueryError: it lacks some, and how each is made; or one holds something else.
    """
    missing = [name for name in dict.fromkeys(columns) if name not in rows.columns]
    if missing:
        ways = "; ".join(_way(name) for name in missing)
        raise QueryError(f"the table has no column {', '.join(map(repr, missing))}: {ways}")
    for name in columns if numbers else ():
        if not (rows.schema[name].is_numeric() or rows.schema[name] in (pl.Boolean, pl.Null)):
            raise QueryError(f"column {name!r} must hold numbers, got {rows.schema[name]}; cast it first")


def _way(name: str) -> str:
    if name in ("load", "temperature"):
        return f"{name} is the axis that the spec names so; rename the column that is the {name} here"
    if name in BUILT:
        return f"{name} is written by `weightscape build`; rename the column that holds it here"
    return f"measure it first: `weightscape measure ZOO --metric {name}`"


def finite(column: str) -> pl.Expr:
    """The column as float64, null where it is no finite number."""
    value = pl.col(column).cast(pl.Float64)
    return pl.when(value.is_finite()).then(value)


def place(rows: pl.DataFrame) -> str | None:
    """The column that says where in training a row is.

    The number of the checkpoint, where there is one: the kept epochs of a spec are rounded for each cell, so that equal
    checkpoints of two cells differ a little in progress, and much in epochs when one trains for more of them.
    """
    return next((name for name in POSITIONS if name in rows.columns), None)


def keys(rows: pl.DataFrame) -> list[str]:
    """Columns that say which cell and checkpoint a row is of, and where the cell lies in the grid.

    Raises:
        QueryError: neither a column `cell` nor both `load` and `temperature`.
    """
    if "cell" not in rows.columns:
        require(rows, ("load", "temperature"))
    return [name for name in ("cell", "load", "temperature", *POSITIONS) if name in rows.columns]


def cell_means(rows: pl.DataFrame, columns: Sequence[str], by: Sequence[str] = ("cell",)) -> pl.DataFrame:
    """Mean over the seeds of each cell.

    Args:
        rows: one a run, or a run and checkpoint; then `by` has to name what tells the checkpoints apart.
        columns: numbers to average. What is null, NaN or infinite is left out of that column's mean.
        by: columns that make a cell.

    Returns:
        One row a cell, sorted by `by`: these, `num_seeds` (rows), and for each column its mean under its own name,
        `<column>_se`, the standard error over seeds (null with fewer than two), `<column>_seeds`, how many rows have a
        value, and `<column>_missing`, how many were left out. Values of pairs of seeds share seeds, which makes their
        errors a little too small: three pairs in a circle are not three independent draws.

    Raises:
        QueryError: a column that is not there, is no number, or would be there twice.
    """
    require(rows, (*by, *columns))
    made = [name + end for name in columns for end in ("", "_se", "_seeds", "_missing")]
    if twice := sorted({name for name in made if (*made, *by, "num_seeds").count(name) > 1}):
        raise QueryError(f"columns {twice} would be there twice; ask for their means one after the other")
    require(rows, columns, numbers=True)
    aggregates = [pl.len().alias("num_seeds")]
    for name in columns:
        # Sorted, so that no bit depends on the order of rows; as steps above the least, so that the mean of equal
        # values is that value and a border stays where it is.
        value = finite(name).drop_nulls().sort()
        aggregates += [
            (value.first() + (value - value.first()).mean()).alias(name),
            (value.std(ddof=1) / value.len().sqrt()).alias(f"{name}_se"),
            value.len().alias(f"{name}_seeds"),
            (pl.len() - value.len()).alias(f"{name}_missing"),
        ]
    return rows.group_by(by).agg(aggregates).sort(by)


def distances(cells: pl.DataFrame, values: np.ndarray) -> np.ndarray:
    """How far each cell stands out from its neighbours in the grid of loads and temperatures.

    Neighbours are the up to eight cells one step away in the sorted distinct values of the two axes, of the same
    checkpoint. A cell inside their range has distance 0, else it is that to the range, in units of 1.4826 times the
    median absolute deviation (over the grid) of a cell from the median of its neighbours. Where a neighbour is missing,
    at an edge say, the range is widened by its own width on both sides, for a trend goes on there. Measured from the
    median, 25 of the 169 cells of Yang et al. 2021 are beyond 5: whole edges and both sides of steep phase borders.
    From the range none is beyond 1.5. One scale serves the whole grid: where most of it is far quieter than the rest,
    the rest is flagged for its noise; compare with the errors over seeds.

    Args:
        cells: columns `load`, `temperature` and, for several checkpoints, one of `POSITIONS`.
        values: (cells,), NaN for unknown.

    Returns:
        (cells,), signed; NaN where fewer than three neighbours or the cell itself have a value, or where there is no
        grid: axes that are no numbers, two cells at one place, cells drawn at random.
    """
    found = np.full(len(cells), np.nan)
    axes = [name for name in ("load", "temperature") if name in cells.columns and cells.schema[name].is_numeric()]
    if len(axes) < 2:
        return found
    at = place(cells)
    groups = [np.arange(len(cells))] if at is None else cells.with_row_index("row").group_by(at).agg("row")["row"]
    loads, temperatures = (cells[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in axes)
    for group in groups:
        members = np.asarray(group)
        found[members] = _in_grid(loads[members], temperatures[members], values[members])
    return found


def _in_grid(loads: np.ndarray, temperatures: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`distances` of the cells of one checkpoint."""
    nowhere = np.full(len(values), np.nan)
    places = [np.unique(axis, return_inverse=True) for axis in (loads, temperatures)]
    shape = (len(places[0][0]), len(places[1][0]))
    rows, columns = places[0][1], places[1][1]
    twice = len(np.unique(rows * shape[1] + columns)) < len(values)
    if twice or math.prod(shape) > 16 * len(values) or np.isnan(loads).any() or np.isnan(temperatures).any():
        return nowhere
    padded = np.full((shape[0] + 2, shape[1] + 2), np.nan)
    padded[rows + 1, columns + 1] = values
    around = np.stack([padded[rows + 1 + i, columns + 1 + j] for i, j in STEPS], axis=1)
    judged = (np.isfinite(around).sum(1) >= NEIGHBOURS) & np.isfinite(values)
    if not judged.any():
        return nowhere
    near, own = around[judged], values[judged]
    residuals = own - np.nanmedian(near, axis=1)
    low, high = np.nanmin(near, axis=1), np.nanmax(near, axis=1)
    one_sided = np.where(np.isfinite(near).all(axis=1), 0.0, high - low)  # a trend goes on beyond them
    outside = np.maximum(own - high - one_sided, 0) + np.minimum(own - low + one_sided, 0)
    spread = np.abs(residuals - np.median(residuals))
    # Where most cells are equal the median deviation is 0; the mean one of a normal distribution is sigma / 1.2533.
    scale = 1.4826 * np.median(spread) or 1.2533 * spread.mean()
    nowhere[judged] = outside / scale if scale else 0.0
    return nowhere
