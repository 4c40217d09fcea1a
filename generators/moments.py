"""Mean, deviation and products of the parameters of a split, batch by batch: a zoo is never held whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from generators.population import BYTES, Population

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

    def rows(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """Some vectors at a time of (models, size), as float64 (some, parameters)."""
        step = max(1, COLUMNS // max(len(self.places), 1))
        for first in range(0, len(array), step):
            yield (array[first : first + step, _as_slice(self.places)] - self.mean.astype(np.float64)) / self.scale

    def parts(self, *arrays: np.ndarray) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """Some parameters at a time of vectors (models, size), as float64 (models, some)."""
        step = max(1, COLUMNS // max(sum(map(len, arrays)), 1))
        for first in range(0, len(self.places), step):
            here = slice(first, first + step)
            columns, mean, scale = _as_slice(self.places[here]), self.mean[here].astype(np.float64), self.scale[here]
            yield here, [(array[:, columns] - mean) / scale for array in arrays]


@dataclass(frozen=True)
class Products:
    """Inner products of scaled parameters, float64.

    Args:
        train: (train, train). validation: (validation, train). lengths: (validation,) squared.
        reads: how often the training split was read.
    """

    train: np.ndarray
    validation: np.ndarray
    lengths: np.ndarray
    reads: float


def gram(population: Population, standard: Standard, memory: int) -> Products:
    """Inner products of all networks of the training split with each other and with those of the validation split.

    One pass where the training split fits into `memory` bytes; else as many of its networks as do are held at a time
    while those behind them are read: about (bytes of the split / memory) / 2 passes. Reading some columns of all
    networks instead would take twice that, since a checksum covers a whole vector.
    """
    rows, held = (len(population.split(name)) for name in ("train", "validation"))
    inner, outer, lengths, read = np.zeros((rows, rows)), np.zeros((held, rows)), np.zeros(held), 0
    blocks = gram_blocks(population, memory)
    block = blocks[0].stop
    for here in blocks:
        mine = population.read("train", here)
        for _, (x,) in standard.parts(mine):
            inner[here, here] += x @ x.T
        for there, others in _pieces(population, "train", here.stop, block):
            for _, (x, y) in standard.parts(mine, others):
                inner[here, there] += x @ y.T
            inner[there, here] = inner[here, there].T
            read += len(others)
        for there, others in _pieces(population, "validation", 0, block):
            for _, (x, y) in standard.parts(mine, others):
                outer[there, here] += y @ x.T
                if not here.start:
                    lengths[there] += np.square(y).sum(axis=1)
        read += len(mine)
    return Products(inner, outer, lengths, read / max(rows, 1))


def gram_blocks(population: Population, memory: int) -> list[slice]:
    """Networks of the training split that `gram` holds together."""
    rows = len(population.split("train"))
    block = max(1, min(rows, memory // (4 * population.layout.size)))
    return [slice(first, min(first + block, rows)) for first in range(0, rows, block)]


def _pieces(population: Population, split: str, first: int, most: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The networks of a split from a place on, about `BYTES` and at most so many at a time."""
    rows, some = len(population.split(split)), max(1, min(most, BYTES // (4 * population.layout.size)))
    for start in range(first, rows, some):
        here = slice(start, min(start + some, rows))
        yield here, population.read(split, here)


def second_moment(population: Population, standard: Standard) -> np.ndarray:
    """Mean over the training split of outer products of scaled parameters, (parameters, parameters), in one pass."""
    total = np.zeros((len(standard.places), len(standard.places)))
    for some in population.batches("train"):
        for part in standard.rows(some):
            total += part.T @ part
    return total / len(population.split("train"))


def _as_slice(places: np.ndarray) -> slice | np.ndarray:
    """Places that follow each other as a slice, which copies nothing."""
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first == len(places) - 1 else places
