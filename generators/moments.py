"""Mean, deviation and products of the parameters of a split, batch by batch: a zoo is never held whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from generators.population import Population

FLOOR = 1e-6  # of the next coarser deviation: what varies less is taken as constant, and gets the coarser one
COLUMNS = 1 << 20  # float64 numbers worked on at once, 8 MiB


@dataclass(frozen=True)
class Moments:
    """Of the networks of a split.

    Args:
        mean: (size,) float64, of parameters and buffers. variance: (size,) float64, over the models, not the unbiased.
    """

    models: int
    mean: np.ndarray
    variance: np.ndarray


def moments(population: Population, split: str = "train") -> Moments:
    """Mean and variance of every number of the vectors, in one pass.

    Source: moments of batches are merged as in Chan et al. 1983, "Algorithms for computing the sample variance",
    section 3, in float64.
    """
    count, mean, squares = 0, np.zeros(population.layout.size), np.zeros(population.layout.size)
    for some in population.batches(split):
        added, step = len(some), max(1, COLUMNS // len(some))
        for first in range(0, some.shape[1], step):
            here = slice(first, first + step)
            part = some[:, here].astype(np.float64)
            centre = part.mean(axis=0)
            shift = centre - mean[here]
            squares[here] += np.square(part - centre).sum(axis=0) + shift**2 * (count * added / (count + added))
            mean[here] += shift * (added / (count + added))
        count += added
    return Moments(count, mean, squares / max(count, 1))


def deviations(population: Population, variance: np.ndarray, scaling: str, places: np.ndarray) -> np.ndarray:
    """What each parameter is divided by, (parameters,) float64.

    Tensors and coordinates that hardly vary (less than `FLOOR` of the deviation of all, or of their tensor) are divided
    by that instead, so that nothing is divided by zero; if nothing varies at all, by 1.

    Args:
        variance: (size,), see `moments`. places: (parameters,) where the parameters are in the vectors.
    """
    if scaling == "none":
        return np.ones(len(places))
    whole = np.sqrt(variance[places].mean()) if len(places) else 0.0
    whole = whole if whole > 0 else 1.0
    out = np.full(len(variance), whole)
    layout = population.layout
    for name, role in zip(layout.names, layout.roles, strict=True):
        here = layout.slice(name)
        if scaling == "global" or role != "parameter" or here.start == here.stop:
            continue
        tensor = np.sqrt(variance[here].mean())
        tensor = tensor if tensor > FLOOR * whole else whole
        out[here] = tensor
        if scaling == "coordinate":
            each = np.sqrt(variance[here])
            out[here] = np.where(each > FLOOR * tensor, each, tensor)
    return out[places]


@dataclass(frozen=True)
class Standard:
    """Parameters out of whole vectors, centred and scaled.

    Args:
        places: (parameters,) where they are in the vectors. mean, scale: (parameters,) float32.
    """

    places: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def parts(self, *arrays: np.ndarray) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """Some parameters at a time of vectors (models, size), as float64 (models, some)."""
        step = max(1, COLUMNS // max(sum(map(len, arrays)), 1))
        for first in range(0, len(self.places), step):
            here = slice(first, first + step)
            columns, mean, scale = self.places[here], self.mean[here].astype(np.float64), self.scale[here]
            yield here, [(array[:, columns] - mean) / scale for array in arrays]


def gram(population: Population, standard: Standard, memory: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Inner products of the scaled parameters, (train, train) and (validation, train), accumulated in float64.

    One pass where the training split fits into `memory` bytes; else as many of its networks as do are held, and the
    others read by for each such block: about half of (bytes of the split / memory) passes.

    Returns:
        both matrices, squared lengths (validation,), and how often the training split was read.
    """
    rows, size = len(population.split("train")), 4 * population.layout.size
    held = len(population.split("validation"))
    inner, outer = np.zeros((rows, rows)), np.zeros((held, rows))
    lengths, read = np.zeros(held), 0
    block = max(1, min(rows, memory // size))
    some = max(1, min(block, (1 << 26) // size))
    for first in range(0, rows, block):
        last = min(first + block, rows)
        mine = population.read("train", slice(first, last))
        read += last - first
        for _, (x,) in standard.parts(mine):
            inner[first:last, first:last] += x @ x.T
        for start in range(last, rows, some):
            here = slice(start, min(start + some, rows))
            others = population.read("train", here)
            read += len(others)
            for _, (x, y) in standard.parts(mine, others):
                inner[first:last, here] += x @ y.T
            inner[here, first:last] = inner[first:last, here].T
        for start in range(0, held, some):
            here = slice(start, min(start + some, held))
            others = population.read("validation", here)
            for _, (x, y) in standard.parts(mine, others):
                outer[here, first:last] += y @ x.T
                if not first:
                    lengths[here] += np.square(y).sum(axis=1)
    return inner, outer, lengths, read / max(rows, 1)


def second_moment(population: Population, standard: Standard, split: str) -> np.ndarray:
    """Mean of outer products of the scaled parameters, (parameters, parameters) float64, in one pass."""
    total = np.zeros((len(standard.places), len(standard.places)))
    for some in population.batches(split):
        step = max(1, COLUMNS // len(standard.places))
        for first in range(0, len(some), step):
            part = (some[first : first + step, standard.places] - standard.mean.astype(np.float64)) / standard.scale
            total += part.T @ part
    return total / max(len(population.split(split)), 1)
