"""Metrics against a result, one panel each, with their rank correlations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import InvalidSpecError, QueryError, unknown_name
from zoo.plots import style
from zoo.plots.columns import MINUS, check_columns, labelled, last, phase_order, shown, spoken, wrapped
from zoo.plots.scales import Scale, scale_of

OVER = ("cell", "run")


def spearman(
    rows: pl.DataFrame,
    columns: Sequence[str],
    against: str = "test_accuracy",
    *,
    over: str = "cell",
    resamples: int = 1000,
    seed: int = 0,
) -> pl.DataFrame:
    """Spearman's rank correlation of each column with one, as columns column, spearman, standard_error, n.

    Args:
        over: "cell" for the means of cells over their seeds, which are independent of each other; "run" for each run.
        resamples: of the bootstrap (Efron and Tibshirani 1993, "An introduction to the bootstrap", section 6.4):
            cells or runs are drawn with replacement and ranked again; the error is the standard deviation.

    Returns:
        One row a column in the order given. n counts what has finite values in both. NaN where there are fewer than
        3, or all are equal; the standard error leaves out resamples in which all are equal.

    Raises:
        UnknownNameError: no such column, or another `over`. QueryError: no rows, or no numbers.
    """
    if resamples < 2:
        raise InvalidSpecError(f"resamples must be 2 or more, got {resamples}")
    found = []
    for name in columns:
        x, y, _ = points(rows, name, against, over)
        value, error = _rank_correlation(x, y, resamples, seed)
        found.append((name, value, error, len(x)))
    schema = {"column": pl.String, "spearman": pl.Float64, "standard_error": pl.Float64, "n": pl.Int64}
    return pl.DataFrame(found, schema, orient="row")


def points(
    rows: pl.DataFrame, column: str, against: str, over: str = "cell", phase: str = "phase"
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Finite values of a column and of `against`, and phases ("" for none), of cells (means over seeds) or runs."""
    if over not in OVER:
        raise unknown_name("unit of points", over, OVER)
    check_columns(rows, (column, against))
    pair = [pl.col(column).cast(pl.Float64).alias("x"), pl.col(against).cast(pl.Float64).alias("y")]
    named = pl.col(phase).cast(pl.String).fill_null("") if phase in rows.columns else pl.lit("")
    keys = next((k for k in (["cell"], ["load", "temperature"]) if set(k) <= set(rows.columns)), [])
    if "zoo" in rows.columns and keys:
        keys = ["zoo", *keys]
    kept = last(rows, [column, against]).select(
        *pair, named.alias("phase"), *(pl.col(k).alias(f"key_{k}") for k in keys)
    )
    kept = kept.filter(pl.col("x").is_finite() & pl.col("y").is_finite())
    if over == "cell" and keys:
        means = pl.col("x").mean(), pl.col("y").mean(), pl.col("phase").mode().min()
        kept = kept.group_by([f"key_{k}" for k in keys], maintain_order=True).agg(*means)
    return kept["x"].to_numpy(), kept["y"].to_numpy(), kept["phase"].to_list()


def _rank_correlation(x: np.ndarray, y: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Spearman's coefficient (Pearson's of the ranks, ties at their mean) and its bootstrap standard error."""
    if len(x) < 3:
        return np.nan, np.nan
    drawn = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    values = _of_ranks(x[drawn], y[drawn])
    values = values[np.isfinite(values)]
    return float(_of_ranks(x[None], y[None])[0]), float(values.std(ddof=1)) if len(values) > 1 else np.nan


def _of_ranks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    a, b = (rankdata(values, axis=1) for values in (x, y))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norms = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.divide((a * b).sum(1), norms, out=np.full(len(a), np.nan), where=norms > 0)


def metric_scatter(
    rows: pl.DataFrame,
    columns: Sequence[str],
    against: str = "test_accuracy",
    *,
    phase: str = "phase",
    over: str = "cell",
    units: Mapping[str, str] | None = None,
    width: str | float = "double",
    title: str = "",
) -> Any:
    """A panel a column with `against` on y, marks by phase, and a table of rank correlations below; a Figure.

    Axes are logarithmic where `scale_of` finds that values span decades. The table is that of `spearman`, strongest
    first: value, bootstrap standard error as a whisker and a number, count.

    Raises: as `spearman`; QueryError for no columns; InvalidSpecError without matplotlib.
    """
    if not columns:
        raise QueryError("no columns to draw; name one or more")
    found = [points(rows, name, against, over, phase) for name in columns]
    table = spearman(rows, columns, against, over=over)
    for name, (x, _, _) in zip(columns, found, strict=True):
        if not len(x):
            raise QueryError(
                f"no {over} has finite values of both {name!r} and {against!r}; measure them on the same runs"
            )
    across = min(len(columns), max(1, round(style.inches(width) / 2.2)))
    down = -(-len(columns) // across)
    lines = [wrapped(spoken(name), 34 if across > 1 else 18) for name in columns]
    rest = 0.15 * sum(line.count("\n") + 1 for line in lines) + 0.6
    with style.styled():
        figure = style.new_figure(style.inches(width), 1.75 * down + rest + 0.25 + (0.2 if title else 0))
        upper, lower = figure.subfigures(2, 1, height_ratios=(1.75 * down + 0.25, rest))
        panels = upper.subplots(down, across, squeeze=False, sharey=True)
        known = phase_order(name for _, _, names in found for name in names if name)
        colours, markers = style.colours(known), style.markers(known)
        upright = scale_of(np.concatenate([y for _, y, _ in found]))
        for place, axes in enumerate(panels.flat):
            if place >= len(columns):
                axes.set_visible(False)
                continue
            x, y, names = found[place]
            for name in ["", *known]:
                mine = np.array([other == name for other in names], bool)
                look = {"color": colours.get(name, style.CYCLE[0]), "marker": markers.get(name, "o")}
                axes.scatter(x[mine], y[mine], s=12, edgecolors="white", linewidths=0.3, clip_on=False, **look)
            level = scale_of(x)
            _scaled(axes, level, "x")
            _scaled(axes, upright, "y")
            axes.set_xlabel(wrapped(labelled(columns[place], units), 30), fontsize=style.SMALL)
            axes.grid(color="#dddddd", linewidth=0.4)
            if place % across == 0:
                axes.set_ylabel(wrapped(labelled(against, units), 26))
        upper.align_xlabels()
        style.heading(figure, [_mark(colours[name], markers[name], name) for name in known], title)
        heading = f"Spearman correlation with {spoken(against)} over {over}s"
        _table(lower, table, lines, wrapped(heading, 80 if across > 1 else 36))
        return style.settled(figure)


def _mark(colour: str, marker: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=4, markeredgewidth=0.3, label=label)


def _scaled(axes: Any, scale: Scale, which: str) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator

    choose, axis = (axes.set_xscale, axes.xaxis) if which == "x" else (axes.set_yscale, axes.yaxis)
    if scale.kind == "log":
        choose("log")
    elif scale.kind == "signed log":
        choose("symlog", linthresh=scale.linear)
        axis.set_ticks(scale.ticks(), [shown(tick) for tick in scale.ticks()])
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _table(part: Any, table: pl.DataFrame, lines: Sequence[str], heading: str) -> None:
    """Coefficients from -1 to 1 as dots with whiskers, names to the left, numbers to the right, strongest first."""
    order = table.with_columns(label=pl.Series(lines)).sort(
        pl.col("spearman").abs().fill_nan(-1.0), descending=True, maintain_order=True
    )
    heights = np.array([label.count("\n") + 1 for label in order["label"]], float)
    places = np.cumsum(heights) - heights / 2
    axes = part.subplots()
    numbers = []
    for place, (_, value, error, count, _) in zip(places, order.iter_rows(), strict=True):
        if np.isfinite(value):
            whisker = None if np.isnan(error) else error
            axes.errorbar(value, place, xerr=whisker, fmt="o", color="black", markersize=3, linewidth=0.9, capsize=1.8)
        said = f"{value:+.2f} ± {error:.2f}".replace("-", MINUS) if np.isfinite(value) else "undefined"
        numbers.append(f"{said}, n = {count}")
    right = axes.twinx()
    for side, labels in ((axes, order["label"].to_list()), (right, numbers)):
        side.set_yticks(places, labels)
        side.set_ylim(heights.sum(), 0)
        side.tick_params(axis="y", length=0)
        side.spines[["left", "bottom"]].set_visible(side is axes)
    axes.set_xlim(-1.05, 1.05)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    axes.axvline(0, color="#a0a0a0", linewidth=0.6)
    axes.set_xlabel(heading, fontsize=style.SMALL)
