"""The training split as baselines use it: some of its members, its moments, its principal components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from generators.population import Population

KEPT = 1 << 30  # bytes of members kept in memory; more are read from the store as draws need them
ENOUGH = 0.01  # of the variance that all components explain on held-out lineages, that fewer may leave out


@dataclass(frozen=True, eq=False)
class Members:
    """Networks of the training split, kept in memory or read when they are needed.

    Args:
        kept: (members, size) float32, None where they are too many.
    """

    population: Population
    kept: np.ndarray | None

    @classmethod
    def of(cls, population: Population) -> Members:
        return cls(population, population.read("train") if population.bytes("train") <= KEPT else None)

    @property
    def count(self) -> int:
        return len(self.population.split("train"))

    def at(self, places: np.ndarray) -> np.ndarray:
        """Weights (places, size) float32, a copy; a member may stand there more than once."""
        if self.kept is not None:
            return self.kept[places]
        wanted, where = np.unique(places, return_inverse=True)
        return np.asarray(self.population.read("train", wanted)[where])


def moments(population: Population) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance of each weight over the training split, (size,) float64 twice, in one pass."""
    count, shift, sums, squares = 0, None, np.zeros(population.layout.size), np.zeros(population.layout.size)
    for batch in population.batches("train"):
        if shift is None:
            shift = batch[0].astype(np.float64)  # near the others, so that squares lose no digits
        count += len(batch)
        for row in batch:  # not all at once in float64
            deviation = row - shift
            sums += deviation
            squares += deviation * deviation
    assert shift is not None, "a population has a training split"
    return shift + sums / count, np.maximum(squares - sums * sums / count, 0) / max(count - 1, 1)


def principal_components(population: Population, components: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, orthonormal basis and deviations along it of the training split's parameters.

    By the Gram matrix of the members, as they are fewer than parameters.

    Args:
        components: how many; 0 for the fewest whose squared error on the validation split is above that of all of them
            by no more than `ENOUGH` of what all explain there.

    Returns:
        (size,), (components, parameters), (components,), float64.
    """
    parameters = population.layout.num_parameters
    weights = population.read("train").astype(np.float64)
    mean = weights.mean(0)
    centred = weights[:, :parameters] - mean[:parameters]
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = int((values > values[0] * 1e-10).sum())
    basis = (vectors[:, :rank] / np.sqrt(values[:rank])).T @ centred
    if not components:
        held = population.read("validation")[:, :parameters] - mean[:parameters]
        explained = np.cumsum(((held @ basis.T) ** 2).sum(0))
        components = 1 + int(np.argmax(explained >= (1 - ENOUGH) * explained[-1]))
    some = min(components, rank)
    return mean, basis[:some], np.sqrt(values[:some] / max(len(weights) - 1, 1))
