"""Networks of the training split, kept in memory where they fit, else read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from generators.conditions import Conditions
from generators.draws import choose, parts
from generators.population import Population

KEPT = 1 << 30  # bytes of members kept in memory; more are read from the store as draws need them


@dataclass(frozen=True, eq=False)
class Members:
    """Networks of the training split, kept in memory or read when they are needed.

    Args:
        kept: (members, size) float32, None where they are too many.
        conditions: by which draws choose among them; None to choose among all.
    """

    population: Population
    kept: np.ndarray | None
    conditions: Conditions | None = None

    @classmethod
    def of(cls, population: Population, conditions: Conditions | None = None) -> Members:
        kept = population.read("train") if population.bytes("train") <= KEPT else None
        return cls(population, kept, conditions)

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

    @cached_property
    def known(self) -> np.ndarray:
        """Condition vectors of all members, (members, width) float32."""
        assert self.conditions is not None
        return self.conditions.encode(self.population.split("train"))

    def choose(
        self, seed: int, site: int, numbers: np.ndarray, some: int, wanted: np.ndarray | None = None, near: int = 1
    ) -> np.ndarray:
        """Places of different members for each sample, (samples, some) int64: of all, or of those near what is wanted.

        Args:
            wanted: (samples, width) condition vectors; samples that want nothing choose among all.
            near: how many members, those whose conditions are nearest in the columns wanted, are chosen among.
        """
        places = choose(seed, site, numbers, self.count, some)
        if wanted is None or self.conditions is None:
            return places
        near = min(max(near, some), self.count)
        given = _given(self.conditions, wanted)
        for part in parts(len(numbers), 8 * self.count * (1 + wanted.shape[1])):
            apart = (np.square(wanted[part, None] - self.known) * given[part, None]).sum(-1)
            nearest = np.argsort(apart, axis=1, kind="stable")[:, :near]
            mine = np.take_along_axis(nearest, choose(seed, site, numbers[part], near, some), axis=1)
            places[part] = np.where(given[part].any(1, keepdims=True), mine, places[part])
        return places


def _given(conditions: Conditions, wanted: np.ndarray) -> np.ndarray:
    """Which numbers of condition vectors belong to columns that are given, (samples, width) bool."""
    out, place = np.zeros(wanted.shape, bool), 0
    for name in conditions.names:
        flag = place + len(conditions.categories.get(name, ("",)))
        out[:, place : flag + 1] = wanted[:, flag, None] > 0
        place = flag + 1
    return out
