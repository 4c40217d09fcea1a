"""Phase maps: a column of a zoo over load and temperature, with the borders and names of its phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import QueryError
from zoo.plots import style
from zoo.plots.columns import NO_BREAK, check_columns, labelled, phase_order, shown, spoken, wrapped
from zoo.plots.grid import Grid, borders, cell_flags, cell_means, cell_names, grid_of, place_of, regions, tick_step
from zoo.plots.scales import scale_of

CELL = 0.27  # inches high, as long as the picture stays within HEIGHTS
HEIGHTS = (1.5, 2.7)  # inches of all cells: room for the label of the axis at least
LETTER = 0.68  # width of a bold letter over its height
# With serifs, as a bare I is a mere bar.
NAME = {"family": "DejaVu Serif", "weight": "bold", "fontsize": style.NORMAL}


@dataclass(frozen=True)
class _Phases:
    """What is drawn on top of the cells: (temperatures, loads) names, and which cells are outliers."""

    names: np.ndarray
    outliers: np.ndarray


def phase_map(
    rows: pl.DataFrame,
    column: str = "phase",
    load: str = "load",
    temperature: str = "temperature",
    *,
    phase: str = "phase",
    outlier: str = "phase_outlier",
    units: Mapping[str, str] | None = None,
    width: str | float = "single",
    title: str = "",
) -> Any:
    """A heat map of one column, a matplotlib Figure.

    Cells are means over the runs of a cell, each at its last row with a value; both axes are ordinal, hot at the top
    (as in Yang et al. 2021, figure 2). Lines divide cells of different phase, each phase is named in its largest part
    (in a map of the phases: in every part that has room), a small x marks outliers, hatched cells have no data. The
    colour scale is chosen by `scale_of`; its label says when it is not linear.

    Args:
        rows: of `Zoo.scan().collect()`, with the columns named.
        column: numbers, or names of phases: `phase`, or another column of text that begins so.
        phase, outlier: columns for what is drawn on top; left out where the rows lack them.
        units: of columns, for labels.
        width: "single" or "double" column of a paper, or inches.

    Raises:
        UnknownNameError: no such column. QueryError: no rows, no numbers. InvalidSpecError: no matplotlib.
    """
    return phase_maps(
        rows, [column], load, temperature, phase=phase, outlier=outlier, units=units, width=width, title=title
    )


def phase_maps(
    rows: pl.DataFrame,
    columns: Sequence[str],
    load: str = "load",
    temperature: str = "temperature",
    *,
    phase: str = "phase",
    outlier: str = "phase_outlier",
    units: Mapping[str, str] | None = None,
    width: str | float = "double",
    title: str = "",
) -> Any:
    """Heat maps of several columns on shared axes, a matplotlib Figure; see `phase_map`."""
    if not columns:
        raise QueryError("no columns to draw; name one or more")
    for name in columns:
        check_columns(rows, [name], numeric=not _is_phase(rows, name, phase))
    grid = grid_of(rows, load, temperature)
    over = _phases(rows, phase, outlier, grid, load, temperature)
    across = min(len(columns), max(1, round(style.inches(width) / 2.25))) if len(columns) > 1 else 1
    down = -(-len(columns) // across)
    height = float(np.clip(CELL * len(grid.temperatures) * (1 if across < 3 else 0.75), *HEIGHTS))
    with style.styled():
        figure = style.new_figure(style.inches(width), down * (height + 0.45) + 0.35 + (0.2 if title else 0))
        panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        drawn: list[tuple[Any, _Phases, bool]] = []
        handles: list[Any] = []
        for place, axes in enumerate(panels.flat):
            if place >= len(columns):
                axes.set_visible(False)
                continue
            name = columns[place]
            if _is_phase(rows, name, phase):
                own = over if name == phase else _phases(rows, name, outlier, grid, load, temperature)
                handles += _names(figure, axes, own, name, alone=len(columns) == 1)
                drawn.append((axes, own, True))
            else:
                values = cell_means(rows, name, grid, load, temperature)
                _numbers(figure, axes, values, name, units, aside=len(columns) == 1)
                drawn.append((axes, over, False))
            last_of_column = place + across >= len(columns)
            axes.tick_params(labelbottom=last_of_column, labelleft=place % across == 0)
            if last_of_column:
                axes.set_xlabel(wrapped(_axis(grid.x, "load"), 34))
            if place % across == 0:
                axes.set_ylabel(wrapped(_axis(grid.y, f"temperature{NO_BREAK}↑"), int(height * 17)))
        style.heading(figure, handles, title)
        _ticks([axes for axes, _, _ in drawn], grid, _inches_a_cell(figure, drawn[0][0], grid.shape))
        room = _inches_a_cell(figure, drawn[0][0], grid.shape)
        for axes, own, every in drawn:
            _on_top(axes, own, every, room)
        return style.settled(figure)


def _is_phase(rows: pl.DataFrame, column: str, phase: str) -> bool:
    texts = (pl.String, pl.Categorical, pl.Enum)
    return column in rows.columns and column.startswith(phase) and rows[column].dtype in texts


def _axis(name: str, role: str) -> str:
    return role if name == role.split()[0] else f"{spoken(name)} ({role})"


def _phases(rows: pl.DataFrame, phase: str, outlier: str, grid: Grid, load: str, temperature: str) -> _Phases:
    if not _is_phase(rows, phase, phase):
        return _Phases(np.full(grid.shape, "", object), np.zeros(grid.shape, bool))
    names = cell_names(rows, phase, grid, load, temperature)
    return _Phases(names, cell_flags(rows, outlier, grid, load, temperature) & (names != ""))


def _numbers(
    figure: Any, axes: Any, values: np.ndarray, name: str, units: Mapping[str, str] | None, aside: bool
) -> None:
    """Cells of numbers and their colour bar: beside a single map, above each of several."""
    from matplotlib.ticker import MaxNLocator

    scale = scale_of(values)
    mesh = _cells(axes, np.ma.masked_invalid(values), cmap=scale.colours, norm=scale.norm())
    if aside:
        bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=18)
    else:
        bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=22, location="top")
    _finish(bar, labelled(name, units, scale.note), aside)
    if ticks := scale.ticks():
        bar.set_ticks(ticks, labels=[shown(tick) for tick in ticks])
        bar.minorticks_off()
    elif scale.kind != "log":
        bar.locator = MaxNLocator(5 if aside else 4, steps=[1, 2, 5, 10])
        bar.update_ticks()


def _finish(bar: Any, label: str, aside: bool) -> None:
    size = style.NORMAL if aside else style.SMALL
    bar.set_label(wrapped(label, 34), fontsize=size)
    bar.ax.tick_params(pad=1.5)
    bar.outline.set_linewidth(0.4)


def _names(figure: Any, axes: Any, phases: _Phases, name: str, alone: bool) -> list[Any]:
    """Cells of phases, and what the colours mean: entries for a legend of a single map, a bar above each of several."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    known = phase_order(set(phases.names.ravel()) - {""})
    colours = style.colours(known)
    places = {name: place for place, name in enumerate(known)}
    numbers = np.array([[places.get(n, np.nan) for n in line] for line in phases.names], float)
    palette = ListedColormap([colours[n] for n in known])
    mesh = _cells(axes, np.ma.masked_invalid(numbers), cmap=palette, vmin=-0.5, vmax=len(known) - 0.5)
    if alone:
        patches = [Patch(facecolor=colours[n], label=n) for n in known]
        if (phases.names == "").any():
            patches.append(Patch(**style.MISSING, label="no data"))
        return patches
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=22, location="top")
    _finish(bar, spoken(name), aside=False)
    bar.set_ticks(range(len(known)), labels=known)
    bar.ax.tick_params(length=0)
    bar.minorticks_off()
    return []


def _cells(axes: Any, values: Any, **colours: Any) -> Any:
    lines, columns = values.shape
    axes.spines[:].set_visible(True)
    if np.ma.getmaskarray(values).any():
        axes.patch.set(**style.MISSING)
    edges = np.arange(columns + 1) - 0.5, np.arange(lines + 1) - 0.5
    # Edges in the colour of the cell: without them viewers of SVG show hairlines between cells.
    return axes.pcolormesh(*edges, values, edgecolors="face", linewidth=0.4, **colours)


def _ticks(panels: Sequence[Any], grid: Grid, room: tuple[float, float]) -> None:
    """Values of the cells as labels; every second, third, ... where all do not fit. `room` is inches a cell."""
    x, y = [shown(value) for value in grid.loads], [shown(value) for value in grid.temperatures]
    step_x = tick_step(x, room[0], 0.62 * style.SMALL / 72)
    step_y = tick_step(["0"], room[1], 0.72 * style.SMALL / 72)
    for axes in panels:
        axes.set_xticks(range(0, len(x), step_x), x[::step_x])
        axes.set_yticks(range(0, len(y), step_y), y[::step_y])


def _inches_a_cell(figure: Any, axes: Any, shape: tuple[int, int]) -> tuple[float, float]:
    figure.draw_without_rendering()  # lays out
    box = axes.get_window_extent()
    return box.width / figure.dpi / shape[1], box.height / figure.dpi / shape[0]


def _on_top(axes: Any, phases: _Phases, every: bool, room: tuple[float, float]) -> None:
    """Borders, names in the middle of their regions where there is room, marks of outliers."""
    from matplotlib.collections import LineCollection

    lines = borders(phases.names)
    thin = float(np.clip(72 * 0.14 * min(room), 0.6, 1.2))  # points: thinner between small cells
    for thickness, colour in ((2 * thin, "white"), (thin, "black")):
        axes.add_collection(
            LineCollection(list(lines), colors=colour, linewidths=thickness, capstyle="round"), autolim=False
        )
    taken = np.zeros((0, 4))
    for name, parts in regions(phases.names).items():
        for part in parts if every else parts[:1]:
            x, y, wide, high = place_of(part)
            size = style.NORMAL / 72
            half = np.array([len(name) * LETTER * size / room[0], 1.1 * size / room[1]]) / 2  # in cells
            most = (wide, high) if part is not parts[0] else phases.names.shape[::-1]
            if (2 * half > most).any():
                continue
            box = np.array([x - half[0], y - half[1], x + half[0], y + half[1]])
            if ((box[:2] < taken[:, 2:]).all(1) & (taken[:, :2] < box[2:]).all(1)).any():
                continue
            taken = np.vstack((taken, box))
            axes.text(x, y, name, ha="center", va="center", path_effects=style.halo(), **NAME)
    i, j = np.nonzero(phases.outliers)
    if len(i):
        marks = axes.scatter(j + 0.3, i + 0.28, s=9, marker="x", color="black", linewidths=0.9, zorder=3)
        marks.set_path_effects(style.halo(2.2))
