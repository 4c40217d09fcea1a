"""The cells of a phase diagram as arrays: means over seeds, borders between phases, regions and where to name them.

Arrays are (temperatures, loads): a row of the picture is a row of the array, the first at the bottom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from zoo.plots.columns import BATCH, axis_title, check_columns, last, phase_order


@dataclass(frozen=True)
class Grid:
    """Where the cells are.

    Args:
        loads: values along x, rising.
        temperatures: values along y, from cold (bottom) to hot.
        x, y: what the axes are called.
    """

    loads: tuple[float, ...]
    temperatures: tuple[float, ...]
    x: str
    y: str

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.temperatures), len(self.loads)


def grid_of(rows: pl.DataFrame, load: str = "load", temperature: str = "temperature") -> Grid:
    """The grid that the rows span. Hot is at the top: small batches, else large values (a learning rate).

    The arrangement is that of Yang et al. 2021, "Taxonomizing local versus global structure in neural network loss
    landscapes", figure 2: load (width) on x, temperature (batch size, small on top) on y. Differs: axes are ordinal.

    Raises:
        UnknownNameError, QueryError: as for `check_columns`.
    """
    check_columns(rows, (load, temperature))
    found = rows.select(pl.col(load).cast(pl.Float64), pl.col(temperature).cast(pl.Float64))
    x, y = axis_title(rows, load), axis_title(rows, temperature)
    loads, temperatures = (
        sorted(v for v in set(found[name]) if v is not None and np.isfinite(v)) for name in (load, temperature)
    )
    return Grid(tuple(loads), tuple(temperatures[::-1] if y == BATCH else temperatures), x, y)


def cell_means(rows: pl.DataFrame, column: str, grid: Grid, load: str, temperature: str) -> np.ndarray:
    """(temperatures, loads) float64: mean of the finite values of each run's last row; NaN where there is none."""
    check_columns(rows, (column,))
    value = pl.col(column).cast(pl.Float64)
    kept = last(rows, [column]).filter(value.is_finite())
    means = np.full(grid.shape, np.nan)
    for place, mean in _placed(kept.group_by(load, temperature).agg(value.mean().alias("value")), grid):
        means[place] = mean
    return means


def cell_names(rows: pl.DataFrame, column: str, grid: Grid, load: str, temperature: str) -> np.ndarray:
    """(temperatures, loads) of str: what most runs of the cell say in their last row, "" where none does.

    Of names equally frequent the first in the order of phases counts.
    """
    names = np.full(grid.shape, "", object)
    check_columns(rows, (column,), numeric=False)
    kept = last(rows, [column]).with_columns(pl.col(column).cast(pl.String))
    order = {name: place for place, name in enumerate(phase_order(kept[column]))}
    for place, said in _placed(kept.group_by(load, temperature).agg(pl.col(column).alias("value")), grid):
        names[place] = min(set(said), key=lambda name: (-list(said).count(name), order[name]))
    return names


def cell_flags(rows: pl.DataFrame, column: str, grid: Grid, load: str, temperature: str) -> np.ndarray:
    """(temperatures, loads) bool: cells where a run's last row says true; all false without the column."""
    flags = np.zeros(grid.shape, bool)
    if column in rows.columns:
        value = pl.col(column).cast(pl.Boolean).any().alias("value")
        for place, flag in _placed(last(rows, [column]).group_by(load, temperature).agg(value), grid):
            flags[place] = flag
    return flags


def _placed(cells: pl.DataFrame, grid: Grid) -> Iterator[tuple[tuple[int, int], Any]]:
    columns = {value: place for place, value in enumerate(grid.loads)}
    lines = {value: place for place, value in enumerate(grid.temperatures)}
    for x, y, value in cells.iter_rows():
        if x in columns and y in lines:  # a cell whose load is null has no place
            yield (lines[y], columns[x]), value


def borders(names: np.ndarray) -> np.ndarray:
    """Edges between neighbouring cells of different names, (edges, 2, 2): ends (x, y), cell (i, j) at j ± .5, i ± .5.

    Cells without a name have no borders.

    >>> borders(np.array([["I", "I"], ["I", "III"]], object)).tolist()
    [[[0.5, 0.5], [0.5, 1.5]], [[0.5, 0.5], [1.5, 0.5]]]
    """
    across = (names[:, 1:] != names[:, :-1]) & (names[:, 1:] != "") & (names[:, :-1] != "")
    along = (names[1:] != names[:-1]) & (names[1:] != "") & (names[:-1] != "")
    upright = [((j + 0.5, i - 0.5), (j + 0.5, i + 0.5)) for i, j in np.argwhere(across)]
    level = [((j - 0.5, i + 0.5), (j + 0.5, i + 0.5)) for i, j in np.argwhere(along)]
    return np.array(upright + level, float).reshape(-1, 2, 2)


def regions(names: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Connected parts (by edges) of each name, as masks of the grid, the largest first; of equal ones the lower one."""
    from scipy.ndimage import label

    found = {}
    for name in phase_order(set(names.ravel()) - {""}):
        numbers, count = label(names == name)
        parts = [numbers == number for number in range(1, count + 1)]
        found[name] = sorted(parts, key=lambda part: -int(part.sum()))
    return found


def place_of(part: np.ndarray) -> tuple[float, float, int, int]:
    """Where in a region its name has most room: centre (x, y), and the width and height of the room in cells.

    The room is the largest rectangle of the region; a wide one goes before a high one, the more central before others.

    >>> place_of(np.array([[1, 1, 1], [1, 0, 0]], bool))
    (1.0, 0.0, 3, 1)
    """
    lines, columns = part.shape
    middle = np.argwhere(part).mean(0)
    best: tuple[float, float, float, float, int, int] | None = None
    for low in range(lines):
        whole = np.ones(columns, bool)
        for high in range(low, lines):
            whole &= part[high]
            if not whole.any():
                break
            edges = np.flatnonzero(np.diff(np.concatenate(([0], whole.view(np.int8), [0]))))
            for start, stop in zip(edges[::2], edges[1::2], strict=True):
                width, height = int(stop - start), high - low + 1
                x, y = (start + stop - 1) / 2, (low + high) / 2
                room = min(width, 2.5 * height) * min(height, width)  # a name is wider than high
                away = (x - middle[1]) ** 2 + (y - middle[0]) ** 2
                if best is None or (room, -away) > best[:2]:
                    best = (room, -away, float(x), float(y), width, height)
    assert best is not None, "a region has at least one cell"
    return best[2:]


def tick_step(labels: Sequence[str], room: float, size: float) -> int:
    """Every how many-th label to show: `room` inches a cell, `size` inches a character (height for upright stacks)."""
    longest = max((len(label) for label in labels), default=1)
    return max(1, int(np.ceil((longest + 0.8) * size / room)))
