"""Which colour scale or axis fits a column: chosen from its values, and said in the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

DECADES = 100.0  # from this ratio of largest to smallest a linear scale shows little but the largest


@dataclass(frozen=True)
class Scale:
    """How values become colours or places.

    Args:
        kind: "linear" and "log" for values of one sign, in a sequential map; "signed" and "signed log" for values of
            both signs, in a diverging map with zero in its middle.
        low, high: limits.
        linear: of "signed log": up to this magnitude the scale is linear.
    """

    kind: str
    low: float
    high: float
    linear: float = 0.0

    @property
    def note(self) -> str:
        """What a reader must know beside the name."""
        return {"log": "log scale", "signed log": f"log scale beyond ±{self.linear:g}"}.get(self.kind, "")

    @property
    def colours(self) -> str:
        """The colour map: viridis (perceptually uniform, colour-blind-safe), or red to blue through white."""
        return "RdBu_r" if self.kind.startswith("signed") else "viridis"

    def ticks(self) -> list[float]:
        """Where a colour bar has its labels; empty where matplotlib's own choice is good."""
        if self.kind != "signed log":
            return []
        powers = np.arange(np.log10(self.linear) + 1, np.floor(np.log10(self.high)) + 1)
        kept = [float(10.0**power) for power in powers[:: -(-len(powers) // 2)]]
        return [-value for value in kept[::-1]] + [0.0] + kept

    def norm(self) -> Any:
        """The matplotlib norm."""
        from matplotlib import colors

        if self.kind == "log":
            return colors.LogNorm(self.low, self.high)
        if self.kind == "signed log":
            return colors.SymLogNorm(self.linear, vmin=self.low, vmax=self.high, base=10)
        return colors.Normalize(self.low, self.high)


def scale_of(values: np.ndarray) -> Scale:
    """The scale for these values; those that are not finite are left out, at least one must be.

    Negative values make it signed, with limits symmetric about 0. It is logarithmic where positive values span more
    than two decades, or more than one with half of them in the lowest tenth of the range; and where half of the signed
    ones would hide within a hundredth of the largest.

    >>> scale_of(np.array([0.5, 1.0])), scale_of(np.array([0.01, 10.0])).kind, scale_of(np.array([-2.0, 1.0]))
    (Scale(kind='linear', low=0.5, high=1.0, linear=0.0), 'log', Scale(kind='signed', low=-2.0, high=2.0, linear=0.0))
    """
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    low, high = float(finite.min()), float(finite.max())
    if low < 0:
        top = max(-low, high)
        median = float(np.median(np.abs(finite[finite != 0])))
        if top > DECADES * median:
            return Scale("signed log", -top, top, float(10 ** np.floor(np.log10(median))))
        return Scale("signed", -top, top)
    lopsided = np.median(finite) < low + (high - low) / 10
    if low > 0 and high / low > (10 if lopsided else DECADES):
        return Scale("log", low, high)
    if low == high:  # one cell, or a constant: the colour is the middle of the map
        low, high = (low * 0.9, high * 1.1) if low else (-0.1, 0.1)
    return Scale("linear", low, high)
