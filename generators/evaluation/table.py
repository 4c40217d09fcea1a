"""A card's rows as text, for its page and for the terminal."""

from __future__ import annotations

import math

from generators.evaluation.card import Card, Row, Spread

COLUMNS = ("", "accuracy %", "novelty, quotient", "raw", "error-IoU", "disagree %", "rms", "N&P")


def cells(card: Card, row: Row) -> list[str]:
    """The numbers of a row as text, in the order of `COLUMNS`."""
    shown = [m for m in card.protocol.multiples if m >= 1][:1] or list(card.protocol.multiples[-1:])
    share, error = card.share(row, shown[0])
    accuracy = f"{100 * row.accuracy.mean:.1f} ± {100 * _deviation(row.accuracy):.1f}"
    return [
        row.label,
        accuracy if row.accuracy.count else "none",
        _quartiles(row.quotient),
        _number(row.raw.median),
        _number(row.error_iou.median),
        _number(100 * row.disagreement.median, 1),
        _number(row.rms),
        f"{share:.3f} ± {error:.3f}" if math.isfinite(share) else "",
    ]


def headings(card: Card) -> list[str]:
    """What the columns are, the last with its multiple."""
    shown = [m for m in card.protocol.multiples if m >= 1][:1] or list(card.protocol.multiples[-1:])
    return [*COLUMNS[:-1], f"N&P, m = {shown[0]:g}"]


def _deviation(spread: Spread) -> float:
    """Standard deviation over networks, from the standard error of their mean."""
    return spread.error * math.sqrt(spread.count) if spread.count > 1 else math.nan


def _quartiles(spread: Spread) -> str:
    if not spread.count:
        return ""
    return f"{spread.median:.2f} ({spread.first:.2f} to {spread.third:.2f})"


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else ""
