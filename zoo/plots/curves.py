"""Losses and errors along paths between two models: straight lines and Bezier curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from catalog.errors import QueryError
from zoo.plots import style
from zoo.plots.scales import scale_of

ENDS = (
    "o",
    "s",
    "^",
    "D",
    "v",
    "p",
    "P",
    "X",
)  # marks of the models, by pair: colours alone are not told apart in grey
NEUTRAL = "#707070"  # of legends that are about no single pair
MANY = len(ENDS)  # from more curves on, single ones are grey and their median stands out


def curves_of(values: Any, t: np.ndarray, what: str) -> np.ndarray:
    """(pairs, len(t)) float64 from that or (len(t),).

    Raises:
        QueryError: of another shape, no pairs, or not one finite value.
    """
    found = np.atleast_2d(np.asarray(values, float))
    if t.ndim != 1 or len(t) < 2 or found.ndim != 2 or found.shape[1] != len(t) or not len(found):
        raise QueryError(f"{what} must be (pairs, {t.size}), one value a point of t, got {np.shape(values)}")
    if not np.isfinite(found).any():
        raise QueryError(f"{what} have no finite value")
    return found


def interpolation(
    t: Any,
    losses: Any,
    errors: Any,
    *,
    names: Sequence[str] = (),
    loss_unit: str = "nats",
    width: str | float = "single",
    title: str = "",
) -> Any:
    """Loss (above) and error (below) on the straight line between the models of each pair; a Figure.

    Dots are the models. Up to 8 pairs have a colour each; of more, the median over pairs stands out of grey.

    Args:
        t: (points,), 0 is the first model, 1 the second; points beyond are drawn too.
        losses: (pairs, points) or (points,).
        errors: as many, fractions of wrong samples; drawn in percent.
        names: of the pairs, for a legend.

    Raises:
        QueryError: shapes that do not fit. InvalidSpecError: no matplotlib.
    """
    at = np.asarray(t, float)
    losses, errors = curves_of(losses, at, "losses"), curves_of(errors, at, "errors")
    if len(losses) != len(errors):
        raise QueryError(f"losses and errors must be of the same pairs, got {len(losses)} and {len(errors)}")
    label = f"loss [{loss_unit}]" if loss_unit else "loss"
    return _drawn(at, [(label, losses, None), ("error [%]", 100 * errors, None)], names, width, title)


def bezier(
    t: Any,
    values: Any,
    straight: Any = None,
    *,
    label: str = "train error [%]",
    names: Sequence[str] = (),
    width: str | float = "single",
    title: str = "",
) -> Any:
    """Values on trained curves between the models of each pair, and dashed on the straight lines; a Figure.

    Args:
        t: (points,) in [0, 1].
        values: (pairs, points) or (points,), drawn as they are.
        straight: as many, on the straight line; None for none.
        label: what the values are, with their unit.
        names: of the pairs, for a legend.

    Raises: as `interpolation`.
    """
    at = np.asarray(t, float)
    found = curves_of(values, at, "values")
    lines = None if straight is None else curves_of(straight, at, "straight values")
    if lines is not None and len(lines) != len(found):
        raise QueryError(f"curves and straight lines must be of the same pairs, got {len(found)} and {len(lines)}")
    return _drawn(at, [(label, found, lines)], names, width, title)


def _drawn(
    t: np.ndarray,
    panels: Sequence[tuple[str, np.ndarray, np.ndarray | None]],
    names: Sequence[str],
    width: str | float,
    title: str,
) -> Any:
    pairs = len(panels[0][1])
    if names and len(names) != pairs:
        raise QueryError(f"expected a name a pair, {pairs}, got {len(names)}")
    with style.styled():
        from matplotlib.lines import Line2D

        handles: list[Any] = []
        if names and pairs <= MANY:
            look: dict[str, Any] = {"markersize": 3.2, "markeredgewidth": 0}
            handles += [
                Line2D([], [], color=colour_of(k, pairs), marker=ENDS[k], label=name, **look)
                for k, name in enumerate(names)
            ]
        if any(straight is not None for _, _, straight in panels):
            handles += [Line2D([], [], color=NEUTRAL, label="curve")]
            handles += [Line2D([], [], color=NEUTRAL, linestyle="--", linewidth=0.9, label="straight line")]
        if pairs > MANY:
            handles += [Line2D([], [], color="black", linewidth=1.8, label=f"median of {pairs} pairs")]
        above = style.heading_height([handle.get_label() for handle in handles], style.inches(width), title)
        figure = style.new_figure(style.inches(width), 1.45 * len(panels) + 0.45 + above)
        for axes, (label, curves, straight) in zip(
            figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0], panels, strict=True
        ):
            _panel(axes, t, curves, straight)
            axes.set_ylabel(label)
        axes.set_xlabel("t, from one model to the other")
        figure.align_ylabels()
        style.heading(figure, handles, title)
        return style.settled(figure)


def colour_of(place: int, count: int) -> str:
    """A colour of a curve: grey where there are many."""
    return style.CYCLE[place % len(style.CYCLE)] if count <= MANY else "#b0b0b0"


def _panel(axes: Any, t: np.ndarray, curves: np.ndarray, straight: np.ndarray | None) -> None:
    ends = np.isin(t, (0.0, 1.0))
    many = len(curves) > MANY
    for values, dashes in ((straight, "--"), (curves, "-")):
        if values is None:
            continue
        for place, line in enumerate(values):
            colour = colour_of(place, len(curves))
            axes.plot(t, line, dashes, color=colour, linewidth=0.6 if many else 0.9 if dashes == "--" else 1.2)
            look: dict[str, Any] = {
                "marker": "o" if many else ENDS[place],
                "markersize": 2 if many else 3.6,
                "markeredgewidth": 0,
            }
            axes.plot(t[ends], line[ends], linestyle="none", color=colour, clip_on=False, zorder=3, **look)
        if many:
            axes.plot(t, np.nanmedian(values, 0), dashes, color="black", linewidth=1.8)
    every = curves if straight is None else np.concatenate((curves, straight))
    if scale_of(every).kind == "log":
        axes.set_yscale("log")
    elif np.nanmin(every[np.isfinite(every)]) >= 0:
        axes.set_ylim(bottom=0)
    axes.set_xlim(t.min(), t.max())
    for end in (0.0, 1.0):
        axes.axvline(end, color="#c0c0c0", linewidth=0.6, zorder=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.4)
