"""Durations and sizes to read."""

from __future__ import annotations


def seconds(value: float) -> str:
    """A duration.

    >>> seconds(42.3), seconds(180), seconds(9000)
    ('42 s', '3 min', '2.5 h')
    """
    if value < 100:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.1f} h"


def size(value: int) -> str:
    """Bytes.

    >>> size(12), size(27_700_000)
    ('12 bytes', '27.7 MB')
    """
    number = float(value)
    if value < 1000:
        return f"{value} bytes"
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 1000:
            return f"{number:.1f} {unit}"
    return f"{number / 1000:.1f} TB"
