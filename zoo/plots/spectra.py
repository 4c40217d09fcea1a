"""Densities of Hessian eigenvalues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from catalog.errors import QueryError
from zoo.plots import style
from zoo.plots.curves import MANY, colour_of

FLOOR = 1e-7  # of the highest density: below it the picture ends


def spectrum(
    grid: Any,
    density: Any,
    *,
    names: Sequence[str] = (),
    width: str | float = "single",
    title: str = "",
) -> Any:
    """Densities of eigenvalues on a log axis, models on top of each other, a line at zero; a Figure.

    As in Yao et al. 2020, "PyHessian", figure 2. Up to 8 models have a colour each, more are grey.

    Args:
        grid: (points,) eigenvalues for all models, or (models, points).
        density: (points,) or (models, points), 0 or more; a model with a value that is not finite is left out.
        names: of the models, for a legend.

    Raises:
        QueryError: shapes that do not fit, or no density above 0. InvalidSpecError: no matplotlib.
    """
    found, at = np.atleast_2d(np.asarray(density, float)), np.asarray(grid, float)
    if found.ndim != 2 or at.ndim not in (1, 2) or at.shape not in (found.shape, found.shape[1:]) or found.shape[1] < 2:
        raise QueryError(f"grid and density must be of the same points, got {np.shape(grid)} and {np.shape(density)}")
    if names and len(names) != len(found):
        raise QueryError(f"expected a name a model, {len(found)}, got {len(names)}")
    at = np.broadcast_to(at, found.shape)
    whole = np.isfinite(found).all(1) & np.isfinite(at).all(1) & (found > 0).any(1)
    if not whole.any():
        raise QueryError("no model has a finite density with a value above 0")
    top = float(found[whole].max())
    seen = found[whole] > FLOOR * top
    low, high = float(at[whole][seen].min()), float(at[whole][seen].max())
    pad = 0.03 * max(high - low, 1e-12, abs(high) * 1e-6)
    dashes = ("-", "--", "-.", ":")
    with style.styled():
        labelled = bool(names) and len(found) <= MANY
        above = style.heading_height(names if labelled else (), style.inches(width), title)
        figure = style.new_figure(style.inches(width), 2.1 + above)
        axes = figure.subplots()
        axes.axvline(0, color="#808080", linewidth=0.6, zorder=0)
        handles = []
        for model in np.flatnonzero(whole).tolist():
            (line,) = axes.plot(
                at[model],
                np.maximum(found[model], FLOOR * top / 10),
                color=colour_of(model, len(found)),
                linestyle=dashes[model % len(dashes)] if len(found) <= MANY else "-",
                linewidth=1.1 if len(found) <= MANY else 0.5,
                label=names[model] if names else "",
            )
            handles.append(line)
        axes.set_yscale("log")
        axes.set_ylim(FLOOR * top, 3 * top)
        axes.set_xlim(low - pad, high + pad)
        axes.set_xlabel("eigenvalue of the Hessian")
        axes.set_ylabel("density, log scale")
        axes.grid(axis="y", color="#dddddd", linewidth=0.4)
        style.heading(figure, handles if labelled else (), title)
        return style.settled(figure)
