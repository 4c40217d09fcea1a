"""Byte ranges far away, joined into fewer requests at the price of some bytes that nobody asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

GAP = 256 << 10  # bytes between two ranges that are never fetched with them: as dear as another request
REQUEST = 8 << 20  # ranges side by side are one request up to this many bytes: several run at once
SPARE = 4  # ranges are joined while this often the bytes between them are at most those asked for

Range = tuple[int, int, int]  # number of a file, first byte, and the one behind the last


def joined(ranges: Sequence[Range], free: int = 0) -> list[slice]:
    """Which of the ranges, which come sorted, are fetched by one request each.

    Ranges that touch or overlap are joined, then those with the smallest gaps, while all gaps together are at most a
    quarter of the bytes asked for, or `free` bytes. So what comes is at most 1.25 times what was asked for.

    >>> joined([(0, 0, 100), (0, 110, 210), (0, 350, 450), (1, 0, 100)])
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    if not ranges:
        return []
    gaps: list[int | None] = []
    covered = ranges[0][2] - ranges[0][1]
    end = ranges[0][2]
    for before, (number, start, stop) in pairwise(ranges):
        same = number == before[0]
        gaps.append(max(start - end, 0) if same else None)
        covered += max(stop - (max(start, end) if same else start), 0)
        end = max(end, stop) if same else stop
    left = max(covered // SPARE, free)
    spent = sorted((gap, at) for at, gap in enumerate(gaps, 1) if gap is not None and gap <= GAP)
    together = set()
    for gap, at in spent:
        left -= gap
        if left < 0:
            break
        together.add(at)
    cuts = [0]
    first = ranges[0][1]
    for at in range(1, len(ranges)):
        if at not in together or ranges[at][2] - first > REQUEST:
            cuts.append(at)
            first = ranges[at][1]
    return [slice(a, b) for a, b in pairwise([*cuts, len(ranges)])]
