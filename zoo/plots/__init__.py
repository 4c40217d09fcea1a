"""Pictures of zoos for papers: data in, a matplotlib Figure out, `zoo.plots.style.save` writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.errors import unknown_name
from zoo.plots.curves import bezier, interpolation
from zoo.plots.maps import phase_map, phase_maps
from zoo.plots.planes import plane
from zoo.plots.scatter import metric_scatter
from zoo.plots.spectra import spectrum

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

    from zoo.architectures import Architecture


def draw(kind: str, *data: Any, **options: Any) -> Any:
    """A picture of one of the `KINDS`, a matplotlib Figure; data and options are those of its function.

    Raises:
        UnknownNameError: no such kind.
    """
    if kind not in KINDS:
        raise unknown_name("kind of picture", kind, KINDS)
    return KINDS[kind](*data, **options)


def draw_map(rows: pl.DataFrame, columns: Sequence[str] = ("phase",), **options: Any) -> Any:
    """One phase map, in one column of a paper, or several side by side, in two; options of `phase_map`."""
    return phase_map(rows, columns[0], **options) if len(columns) == 1 else phase_maps(rows, columns, **options)


def draw_line(
    architecture: Architecture,
    weights: Tensor,
    partner: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    points: int = 41,
    loss_function: str = "cross_entropy",
    **options: Any,
) -> Any:
    """Loss and error between the models of each pair, (pairs, size) both; options of `interpolation`."""
    from zoo.landscape import slices

    ts = np.linspace(0, 1, points)
    losses, errors = slices.line(architecture, weights, partner, x, y, ts, loss_function)
    return interpolation(ts, losses, errors, loss_unit=_unit(loss_function), **options)


def draw_plane(
    architecture: Architecture,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    radius: float = 1.0,
    points: int = 25,
    seed: int = 0,
    loss_function: str = "cross_entropy",
    **options: Any,
) -> Any:
    """The loss around one model, weights (size,), as `zoo.landscape.slices.plane` measures it; options of `plane`."""
    from zoo.landscape import slices

    measured = slices.plane(
        architecture, weights, x, y, radius=radius, points=points, seed=seed, loss_function=loss_function
    )
    unit = _unit(loss_function)
    return plane(*measured[:3], label=f"loss [{unit}]" if unit else "loss", **options)


def _unit(loss_function: str) -> str:
    return "nats" if loss_function == "cross_entropy" else ""


KINDS: dict[str, Callable[..., Any]] = {
    "map": draw_map,
    "scatter": metric_scatter,
    "line": draw_line,
    "plane": draw_plane,
    "bezier": bezier,
    "spectrum": spectrum,
}
