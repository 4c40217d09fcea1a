"""Networks of the training split, kept in memory where they fit, else read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from generators.population import Population

KEPT = 1 << 30  # bytes of members kept in memory; more are read from the store as draws need them


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

    def batches(self) -> Iterator[np.ndarray]:
        """All members in order, some at a time."""
        return self.population.batches("train") if self.kept is None else iter([self.kept])
