"""Random numbers of samples, by counter: those of a sample follow from its seed and number alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import ndtri

from kernels.random import words

COLUMNS = 1 << 12  # numbers drawn at once for a sample; part of what a sample is, so this never changes
BYTES = 1 << 26  # worked on at once


def keys(seed: int) -> np.ndarray:
    """The stream of a seed, a scalar uint64 array."""
    return np.array(seed, np.uint64)


def choose(seed: int, site: int, numbers: np.ndarray, count: int, some: int) -> np.ndarray:
    """Different places of range(count) for each sample, all sets and orders alike, (samples, some) int64."""
    drawn = words(keys(seed), site, numbers, count=some)
    out = np.empty((len(numbers), some), np.int64)
    for at in range(some):
        place = drawn[:, at] * (count - at) >> 32  # among those not taken yet
        for taken in np.sort(out[:, :at], axis=1).T:
            place += place >= taken
        out[:, at] = place
    return out


def normals(seed: int, site: int, numbers: np.ndarray, count: int, block: int = 0) -> np.ndarray:
    """Standard normals (samples, count) float64; other blocks of a sample hold others."""
    return np.asarray(ndtri((words(keys(seed), site, numbers, block, count=count) + 0.5) * 2.0**-32))


def add_normal(out: np.ndarray, deviation: float | np.ndarray, seed: int, site: int, numbers: np.ndarray) -> None:
    """Add normals of this deviation, a number or (columns,), to the samples (samples, columns) in place."""
    columns = out.shape[1]
    deviations = np.broadcast_to(np.asarray(deviation, np.float64), columns)
    for first in range(0, columns, COLUMNS):
        here = slice(first, min(first + COLUMNS, columns))
        for part in parts(len(out), 16 * COLUMNS * 8):
            drawn = normals(seed, site, numbers[part], here.stop - first, first // COLUMNS)
            out[part, here] += drawn * deviations[here]


def parts(count: int, each: int) -> Iterator[slice]:
    """range(count) in slices of so many as fit into memory at `each` bytes, one or more."""
    some = max(1, BYTES // max(each, 1))
    return (slice(first, min(first + some, count)) for first in range(0, count, some))
