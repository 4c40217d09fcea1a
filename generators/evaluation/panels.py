"""The parts of a card's page, each drawn into axes that it is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from generators.evaluation.card import BINS, Card, FineTuned, Row

MINE, OWN = "#D55E00", "#009E73"  # the generator; the zoo's own networks
COLOURS = ("#0072B2", "#56B4E9", "#000000", "#E69F00", "#CC79A7", "#8c8c8c", "#332288", "#999933")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">")
RAW = "white"  # the inside of marks of what was fitted to raw weights
GRID = {"color": "#dddddd", "linewidth": 0.4}
MERGED = (1, 2, 4, 5, 8, 10)  # bins of a histogram drawn as one, so that no more than
SEEN = 30  # of these are drawn
FLOOR = 5e-4  # of the N&P axis: half a sample in 1,000


def plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and mark of each baseline, by the order of their names."""
    distinct = list(dict.fromkeys(names))
    return {name: (COLOURS[n % len(COLOURS)], MARKS[n % len(MARKS)]) for n, name in enumerate(distinct)}


def frontier(axes: Any, card: Card) -> list[Any]:
    """Accuracy against novelty: medians with quartiles, the generator's samples as dots; handles of a legend."""
    look = looks([row.name for row in card.baselines])
    points = np.array(card.samples.points).reshape(-1, 2)
    axes.scatter(points[:, 0], points[:, 1], s=3, color=MINE, alpha=0.35, linewidths=0, rasterized=True)
    handles = [cross(axes, card.samples, MINE, "*", 9, plain(card.samples.label))]
    for row in card.baselines:
        colour, mark = look[row.name]
        handle = cross(axes, row, colour, mark, 4.5, "")
        if row.frame is None or not any(one.name == row.name and one.frame is None for one in card.baselines):
            handle.set_label(plain(row.name))
            handles.append(handle)
    handles.append(cross(axes, card.held_out, OWN, "d", 6, "held-out lineages"))
    novelty_axes(axes, card.protocol.alpha, [*card.baselines, card.samples, card.held_out])
    return handles


def novelty_axes(axes: Any, alpha: float, rows: Sequence[Row]) -> None:
    """Names, limits and the corner where networks are novel and performant."""
    right = max([1.3, *(row.quotient.third for row in rows if math.isfinite(row.quotient.third))])
    axes.set_xlim(-0.03 * right, 1.05 * right)
    axes.set_ylim(-0.02, 1.03)
    axes.axhspan(alpha, 1.03, xmin=(1 + 0.03 * right) / (1.08 * right), color=OWN, alpha=0.12, linewidth=0, zorder=0)
    axes.axhline(alpha, color="#a0a0a0", linewidth=0.6, linestyle=":", zorder=0)
    axes.axvline(1, color="#a0a0a0", linewidth=0.6, linestyle=":", zorder=0)
    axes.set_xlabel("distance to the nearest training network\n(quotient, over the zoo's own spacing)")
    axes.set_ylabel("accuracy")
    axes.grid(**GRID)


def cross(axes: Any, row: Row, colour: str, mark: str, size: float, label: str) -> Any:
    """Medians with their quartiles; the mark is hollow for what was fitted to raw weights. A handle of a legend."""
    from matplotlib.lines import Line2D

    x, y = row.quotient, row.accuracy
    arms = ([[x.median - x.first], [x.third - x.median]], [[y.median - y.first], [y.third - y.median]])
    inside = colour if row.frame is not None or mark in "*d" else RAW
    look: dict[str, Any] = {"color": colour, "markerfacecolor": inside, "markersize": size, "markeredgewidth": 0.8}
    if math.isfinite(x.median) and math.isfinite(y.median):
        axes.errorbar(x.median, y.median, yerr=arms[1], xerr=arms[0], fmt=mark, elinewidth=0.7, zorder=3, **look)
    return Line2D([], [], marker=mark, linestyle="none", label=label, **look)


def novel_and_performant(axes: Any, card: Card) -> None:
    """N&P curves in the quotient with bands of one standard error; grey behind: the same on raw distances."""
    look = looks([row.name for row in card.baselines])
    multiples = card.protocol.multiples
    at = np.arange(len(multiples))  # at equal distances: below 1 there is most to see
    lines = [(row, *look[row.name]) for row in card.baselines]
    lines += [(card.held_out, OWN, "d"), (card.samples, MINE, "*")]
    for row, colour, mark in lines:
        share, error = (np.array(part) for part in (row.novel_quotient.share, row.novel_quotient.error))
        seen = np.maximum(share, FLOOR)
        mine = row is card.samples
        if row is not card.held_out:  # of a handful of networks: the band would hide the rest
            low, high = (np.clip(share + side * error, FLOOR, 1) for side in (-1, 1))
            axes.fill_between(at, low, high, color=colour, alpha=0.25 if mine else 0.12, linewidth=0)
        inside = colour if row.frame is not None or mine or row is card.held_out else RAW
        weight = {"linewidth": 1.6 if mine else 0.8, "zorder": 4 if mine else 2, "markeredgewidth": 0.7}
        axes.plot(
            at, seen, marker=mark, markersize=7 if mine else 3, color=colour, markerfacecolor=inside, clip_on=False,
            linestyle="-" if row.frame is not None or mine else "--", **weight,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(FLOOR, 1.1)
    axes.set_yticks([FLOOR, 0.001, 0.01, 0.1, 1], ["0", "0.1 %", "1 %", "10 %", "100 %"])
    axes.set_xticks(at, [f"{multiple:g}" for multiple in multiples])
    axes.set_xlim(-0.2, len(at) - 0.8)
    axes.set_xlabel("m, multiples of the zoo's own spacing\n(quotient)")
    axes.set_ylabel(f"share with accuracy ≥ {card.protocol.alpha:.3f}\nand distance ≥ m", linespacing=1.1)
    axes.grid(**GRID)


def histograms(axes: Any, pairs: Sequence[tuple[str, str, Sequence[int]]], label: str) -> None:
    """Shares of networks over a quantity from 0 to 1.

    Args:
        pairs: (name, colour, counts), the last on top.
    """
    filled = [np.flatnonzero(counts) for _, _, counts in pairs]
    width = max((found[-1] for found in filled if len(found)), default=BINS) - min(
        (found[0] for found in filled if len(found)), default=0
    )
    some = next(n for n in MERGED if width <= SEEN * n)
    edges = np.linspace(0, 1, BINS // some + 1)
    merged = [np.reshape(counts, (-1, some)).sum(1) for _, _, counts in pairs]
    filled = [np.flatnonzero(counts) for counts in merged]
    low = min((edges[found[0]] for found in filled if len(found)), default=0.0)
    high = max((edges[found[-1] + 1] for found in filled if len(found)), default=1.0)
    for (name, colour, _), counts in zip(pairs, merged, strict=True):
        share = counts / max(counts.sum(), 1)
        axes.stairs(share, edges, color=colour, linewidth=1, label=plain(name))
        axes.stairs(share, edges, color=colour, alpha=0.18, fill=True, linewidth=0)
    axes.set_xlim(low - 0.5 * some / BINS, high + 0.5 * some / BINS)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("share of networks")
    axes.grid(axis="y", **GRID)
    _legend(axes)


FINETUNED = {
    "samples": (MINE, "*", "samples"),
    "nearest": ("#0072B2", "o", "nearest checkpoint"),
    "soup": ("#000000", "s", "soup"),
    "random": ("#8c8c8c", "v", "random init."),
}


def finetuning(axes: Any, curves: Sequence[FineTuned]) -> None:
    """Accuracy over epochs, which stand at equal distances, with standard errors."""
    epochs = sorted({epoch for one in curves for epoch in one.epochs})
    for one in sorted(curves, key=lambda one: one.name == "samples"):
        colour, mark, name = FINETUNED.get(one.name, ("#999933", "P", one.name))
        at = [epochs.index(epoch) for epoch in one.epochs]
        axes.errorbar(
            at, one.accuracy, yerr=one.error, color=colour, marker=mark, label=plain(name), linewidth=1,
            markersize=6 if one.name == "samples" else 3, elinewidth=0.7, clip_on=False,
        )  # fmt: skip
    axes.set_xticks(range(len(epochs)), [str(epoch) for epoch in epochs])
    axes.set_xlabel("epochs of fine-tuning")
    axes.set_ylabel("accuracy")
    axes.grid(**GRID)
    _legend(axes, 2)


def fidelity(axes: Any, card: Card) -> None:
    """Obtained against requested, one line a column; each over its own range, for they have different units."""
    measured = [one for one in card.fidelity if one.requested]
    for number, one in enumerate(measured):
        colour = COLOURS[number % len(COLOURS)]
        places = np.arange(len(one.requested)) / max(len(one.requested) - 1, 1)
        rank = "" if math.isnan(one.spearman) else f", rank correlation {one.spearman:.2f}"
        label = f"{one.column}{rank}"
        axes.errorbar(places, one.obtained, yerr=one.error, color=colour, marker="o", markersize=3, label=plain(label))
    if len(measured) == 1:
        one = measured[0]
        step = -(-len(one.requested) // 5)
        axes.set_xticks(places[::step], [plain(text) for text in one.requested[::step]])
    else:
        axes.set_xticks([0, 1], ["lowest", "highest"])
    axes.set_xlabel("asked for")
    axes.set_ylabel("obtained")
    axes.grid(**GRID)
    _legend(axes)


def _legend(axes: Any, columns: int = 1) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, handlelength=1.2, borderaxespad=0.1, labelspacing=0.25,
        columnspacing=0.8,
    )  # fmt: skip
