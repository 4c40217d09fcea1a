"""The data of pictures of a zoo: rows and weights in, a figure of `zoo.plots` out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch

from catalog.errors import MissingDataError, QueryError, unknown_name
from catalog.store import Zoo
from catalog.summary import find_row
from zoo.landscape.measure import plan_of
from zoo.landscape.metrics import METRICS
from zoo.landscape.select import chosen_rows
from zoo.plots import KINDS, draw

MEASURED = ("hessian_trace", "hessian_top_eigenvalue", "mode_connectivity", "cka_yang", "linear_barrier", "sharpness")
MOST = 6  # models or pairs in one picture
UNITS = {name: metric.unit for name, metric in METRICS.items() if metric.unit} | {"mc_peak": "percentage points"}
GRID = 800  # points of a density


def picture(
    zoo: Zoo,
    kind: str,
    *,
    columns: Sequence[str] = (),
    against: str = "test_accuracy",
    where: str | None = None,
    epoch: int | None = None,
    runs: Sequence[str] = (),
    **options: Any,
) -> Any:
    """A picture of a zoo, a matplotlib Figure; `zoo.plots.style.save` writes it.

    Args:
        kind: map (columns over load and temperature), scatter (columns against another), line (between the models of
            pairs), plane (the loss around a model), bezier (trained curves between pairs), spectrum (eigenvalues).
        columns: of a map (phase by default) or scatter (what is measured of `MEASURED`).
        where, epoch: which rows, as for `zoo.landscape.measure.measure`.
        runs: for line, plane, bezier, spectrum: ids of runs, otherwise the first rows that fit, at most `MOST`. To a
            line or bezier two runs are a pair; other rows have the partners there that they were measured with.
        options: of the kind's function in `zoo.plots`.

    Raises:
        UnknownNameError: no such kind or column. QueryError: no rows, or two runs of two variants. MissingDataError:
            what it shows is not measured.
    """
    if kind not in KINDS:
        raise unknown_name("kind of picture", kind, KINDS)
    rows = chosen_rows(zoo, where, epoch).filter(pl.col("status") == "ok")
    if not len(rows):
        raise QueryError(f"no rows of {zoo.url} with status ok to draw")
    if kind == "map":
        chosen = columns or (("phase",) if "phase" in rows.columns else ("test_accuracy",))
        return draw(kind, rows, chosen, units=UNITS, **options)
    if kind == "scatter":
        there = [name for name in MEASURED if name in rows.columns]
        if not (columns or there):
            raise MissingDataError(f"nothing is measured in {zoo.url}; `weightscape measure {zoo.url}` does")
        return draw(kind, rows, list(columns) or there, against, units=UNITS, **options)
    rows = rows.head(MOST)
    if runs:
        rows = pl.concat([find_row(zoo, run, epoch) for run in runs], how="diagonal_relaxed")
    if kind in ("plane", "spectrum"):
        return (_plane if kind == "plane" else _spectrum)(zoo, rows, **options)
    pairs = (rows[:1], rows[1:]) if len(runs) == 2 else _measured_pairs(zoo, rows)
    if len(runs) == 2 and rows["variant"].n_unique() == 2:
        raise QueryError(f"runs {', '.join(runs)} are of two variants, {rows['variant'].to_list()}; choose two of one")
    return (_line if kind == "line" else _bezier)(zoo, *pairs, **options)


def _measured_pairs(zoo: Zoo, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows, of the variant of the first, and those of the partners that some metric had."""
    names = [name for name in rows.columns if name.endswith("_partner") and "@" not in name]
    if not names:
        raise MissingDataError(f"no pairs are measured in {zoo.url}: name two runs, or measure mode_connectivity first")
    rows = rows.filter(pl.col(names[0]).is_not_null())
    if not len(rows):
        raise MissingDataError(f"none of these rows of {zoo.url} has a partner in {names[0]}; name two runs")
    rows = rows.filter(pl.col("variant") == rows["variant"][0])
    everything = zoo.table(metrics=False)
    wanted = rows.select(run=names[0], checkpoint="checkpoint", variant="variant")
    partners = wanted.join(everything, on=["run", "checkpoint", "variant"], how="left", maintain_order="left")
    return rows, partners


def _training(zoo: Zoo, rows: pl.DataFrame) -> tuple[Any, torch.Tensor, torch.Tensor, str]:
    """Architecture of the rows, training data, and the loss of the first."""
    plan = plan_of(zoo)
    run = plan.runs[rows["variant"][0]][rows["model"][0]]
    x, y = torch.from_numpy(plan.data.train_x), torch.from_numpy(plan.data.train_y)
    return run.architecture, x[: run.samples], y[: run.samples], run.values["loss_function"]


def _names(zoo: Zoo, rows: pl.DataFrame, partners: pl.DataFrame | None = None) -> list[str]:
    """What tells the rows apart: load, temperature and seeds."""
    others = [None] * len(rows) if partners is None else partners["seed"].to_list()
    axes = [name for role in ("load", "temperature") if (name := zoo.record.spec.get(role)) in rows.columns]
    axes = [name for name in axes if rows[name].n_unique() > 1] or axes[:1]
    spoken = []
    for row, other in zip(rows.iter_rows(named=True), others, strict=True):
        cell = ", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in axes)
        spoken.append(f"{cell}, seed {row['seed']}" if other is None else f"{cell}, seeds {row['seed']} and {other}")
    return spoken


def _line(zoo: Zoo, rows: pl.DataFrame, partners: pl.DataFrame, **options: Any) -> Any:
    architecture, x, y, loss = _training(zoo, rows)
    weights, partner = (zoo.read(part, dtype="float32", torch=True) for part in (rows, partners))
    return draw(
        "line", architecture, weights, partner, x, y, loss_function=loss, names=_names(zoo, rows, partners), **options
    )


def _bezier(zoo: Zoo, rows: pl.DataFrame, partners: pl.DataFrame, *, points: int = 21, **options: Any) -> Any:
    from zoo.landscape.connectivity import DEFAULT, along, curve

    architecture, x, y, loss = _training(zoo, rows)
    weights, partner = (zoo.read(part, dtype="float32", torch=True) for part in (rows, partners))
    theta = curve(architecture, weights, partner, x, y, recipe=replace(DEFAULT, loss=loss))
    ts = np.linspace(0, 1, points)
    bent, straight = (
        along(architecture, weights, middle, partner, x, y, ts, loss_function=loss)[0]
        for middle in (theta, (weights + partner) / 2)
    )
    return draw("bezier", ts, bent, straight, names=_names(zoo, rows, partners), **options)


def _plane(zoo: Zoo, rows: pl.DataFrame, **options: Any) -> Any:
    rows = rows.head(1)
    architecture, x, y, loss = _training(zoo, rows)
    weights = zoo.read(rows, dtype="float32", torch=True)[0]
    options = {**options, "title": options.get("title") or _names(zoo, rows)[0]}
    return draw("plane", architecture, weights, x, y, loss_function=loss, **options)


def _spectrum(zoo: Zoo, rows: pl.DataFrame, **options: Any) -> Any:
    from zoo.landscape.spectrum import decode, density

    names = ("hessian_spectrum_nodes", "hessian_spectrum_weights")
    if names[0] not in rows.columns or not len(rows := rows.filter(pl.col(names[0]).is_not_null())):
        raise MissingDataError(
            f"no spectrum is measured of these rows; `weightscape measure {zoo.url} --metric hessian_spectrum` does"
        )
    curves = [tuple(map(decode, pair)) for pair in rows.select(names).iter_rows()]
    low, high = min(nodes.min() for nodes, _ in curves), max(nodes.max() for nodes, _ in curves)
    width = max(high - low, 1e-12) / 200
    grid = np.linspace(low - 5 * width, high + 5 * width, GRID)
    densities = np.stack([density(nodes, weights, grid, width) for nodes, weights in curves])
    return draw("spectrum", grid, densities, names=_names(zoo, rows), **options)
