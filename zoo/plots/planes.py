"""The loss on a plane through a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from catalog.errors import QueryError
from zoo.plots import style

LEVELS = 16
DEEPEST = 1e-4  # of the highest loss: what lies below is one colour


def plane(
    alphas: Any,
    betas: Any,
    losses: Any,
    *,
    label: str = "loss [nats]",
    width: str | float = "single",
    title: str = "",
) -> Any:
    """Contours of the loss at equal ratios (a log scale), the model as a white star in the middle; a Figure.

    Args:
        alphas, betas: (points,) steps along the two directions, as of `zoo.landscape.slices.plane`.
        losses: (len(alphas), len(betas)); what is not finite is hatched.
        label: what is drawn, with its unit.

    Raises:
        QueryError: shapes that do not fit, negative values, or none that is finite. InvalidSpecError: no matplotlib.
    """
    x, y, values = (np.asarray(a, float) for a in (alphas, betas, losses))
    if x.ndim != 1 or y.ndim != 1 or min(len(x), len(y)) < 2 or values.shape != (len(x), len(y)):
        raise QueryError(f"losses must be ({x.size}, {y.size}), alphas by betas, 2 or more each; got {values.shape}")
    if not np.isfinite(values).any():
        raise QueryError("losses have no finite value")
    if (values < 0).any():
        raise QueryError("losses must be 0 or more for contours at equal ratios")
    shown = np.ma.masked_invalid(values.T)
    levels = levels_of(values)
    with style.styled():
        from matplotlib.colors import LogNorm
        from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator, NullLocator

        inches = style.inches(width)
        figure = style.new_figure(inches, 0.78 * inches + (0.2 if title else 0))
        figure.set_layout_engine("compressed")  # as the plane is square
        axes = figure.subplots()
        axes.spines[:].set_visible(True)
        if np.ma.getmaskarray(shown).any():
            axes.patch.set(**style.MISSING)
        norm = LogNorm(levels[0], levels[-1])
        shown = np.ma.clip(shown, levels[0], levels[-1])
        filled = axes.contourf(x, y, shown, levels=levels, norm=norm, cmap="viridis")
        axes.contour(x, y, shown, levels=levels[1:-1], colors="black", linewidths=0.35)
        star = {"marker": "*", "markersize": 9, "color": "white", "markeredgecolor": "black", "markeredgewidth": 0.7}
        axes.plot(0, 0, linestyle="none", **star)
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlabel(r"$\alpha$, along direction 1")
        axes.set_ylabel(r"$\beta$, along direction 2")
        bar = figure.colorbar(filled, ax=axes, pad=0.02, aspect=18)
        bar.set_label(f"{label}, log scale")
        bar.outline.set_linewidth(0.4)
        if levels[-1] / levels[0] >= 100:
            bar.set_ticks(LogLocator(numticks=6), format=LogFormatterSciNotation())
        else:
            few = levels[:: (len(levels) - 1) // 5]
            bar.set_ticks(few, labels=[f"{level:.2g}" for level in few])
        bar.ax.yaxis.set_minor_locator(NullLocator())
        style.heading(figure, title=title)
        return style.settled(figure)


def levels_of(values: np.ndarray) -> np.ndarray:
    """Values of contours, (LEVELS,), each the same ratio above the one before, over all finite values above 0.

    >>> levels_of(np.array([1.0, 8.0]))[[0, 5, 15]]
    array([1., 2., 8.])
    """
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):  # zero everywhere
        return np.geomspace(0.1, 1, LEVELS)
    high = float(positive.max())
    low = max(float(positive.min()), DEEPEST * high)
    if high / low < 1.01:  # nearly flat: a ratio of its own around it
        low, high = low / 1.1, high * 1.1
    return np.geomspace(low, high, LEVELS)
