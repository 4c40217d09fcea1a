"""Coordinate descent over groups for a whole population, for any symmetry, in torch on any device: the definition.

Source: Ainsworth, Hayase and Srinivasa 2023, "Git Re-Basin", arXiv 2209.04836, section 3.2 and algorithm 1. Differs: a
step counts only if the objective in float64 rises; steps that nothing around has changed are left out; a sweep that
gains less than 1e-9 of the objective is the last.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from weightspace.rebasin.costs import Place, best_order, similarity
from weightspace.rebasin.heads import joint_order
from weightspace.rebasin.objective import dots, pick, spans
from weightspace.rebasin.steps import Step, neighbours, plan_steps
from weightspace.symmetry import Permutations, Symmetry

SWEEPS = 100
RELATIVE = 1e-9  # a sweep that gains less of the objective is the last


@dataclass(frozen=True)
class Descent:
    """Where a descent came to an end: permutations, weights that they moved, sweeps and whether nothing improved."""

    permutations: dict[str, np.ndarray]
    moved: Tensor
    sweeps: np.ndarray
    finished: np.ndarray


def descend(
    symmetry: Symmetry,
    weights: Tensor,
    reference: Tensor,
    start: Permutations | None = None,
    *,
    names: Sequence[str],
    seed: int = 0,
    sweeps: int = SWEEPS,
    heads: str = "joint",
    deadline: float | None = None,
) -> Descent:
    """Weight matching of (models, size) to (1 or models, size).

    Args:
        start: permutations to begin from, None for the identity. names: groups that may move, parents first.
        seed: of the order of steps in each sweep, the same for all models.
        heads: see `plan_steps`. deadline: of `time.monotonic`, looked at between sweeps.
    """
    models = len(weights)
    state = State.at(symmetry, weights, reference, start)
    counts, finished = np.zeros(models, np.int64), np.zeros(models, bool)
    steps = plan_steps(symmetry, names, heads)
    concerned = neighbours(steps, symmetry)
    dirty = np.ones((models, len(steps)), bool)
    best = dots(reference, state.moved, spans(symmetry, symmetry.axes)).cpu().numpy()
    generator = np.random.default_rng(seed)
    for _ in range(sweeps):
        if finished.all() or over(deadline):
            break
        gained = np.zeros(models)
        for number in generator.permutation(len(steps)):
            rows = np.flatnonzero(dirty[:, number] & ~finished)
            dirty[rows, number] = False
            better, gain = state.improve(steps[number], rows)
            gained[better] += gain
            dirty[np.ix_(better, concerned[number])] = True
        counts[~finished] += 1
        best += gained
        finished |= (gained <= RELATIVE * np.abs(best)) | ~dirty.any(1)
    return Descent(state.permutations, state.moved, counts, finished)


@dataclass
class State:
    """A population on its way.

    Args:
        moved: weights as `permutations` moved them.
        prices: group -> (models, ...), of its units in their present order in the last assignment: where the next
            begins. Any numbers do.
    """

    symmetry: Symmetry
    reference: Tensor
    moved: Tensor
    permutations: dict[str, np.ndarray]
    prices: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def at(cls, symmetry: Symmetry, weights: Tensor, reference: Tensor, start: Permutations | None) -> State:
        """With copies of both."""
        if start is None:
            return cls(symmetry, reference, weights.clone(), symmetry.identity(len(weights)))
        return cls(symmetry, reference, symmetry.permute(weights, start), pick(start, slice(None)))

    def improve(self, step: Step, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take one step of some models; those that it made better, and by how much."""
        if not len(rows):
            return rows, np.zeros(0)
        then = self.order(step, step.places, rows)
        changed = np.zeros(len(rows), bool)
        for p in then.values():
            changed |= (p != np.arange(p.shape[-1])).reshape(len(rows), -1).any(1)
        rows, then = rows[changed], pick(then, changed)
        if not len(rows):
            return rows, np.zeros(0)
        reference, moved = self._of(rows)
        trial = step.symmetry.permute(moved, then)
        gain = (dots(reference, trial, step.spans) - dots(reference, moved, step.spans)).cpu().numpy()
        better = gain > 0
        self.accept(rows[better], trial[torch.from_numpy(better)], pick(then, better))
        return rows[better], gain[better]

    def order(self, step: Step, where: tuple[Place, ...], rows: np.ndarray) -> dict[str, np.ndarray]:
        """The best order of a step's groups, relative to the present one, by the weights at some of its places."""
        reference, moved = self._of(rows)
        if step.children:
            return joint_order(self.symmetry, where, step.children, reference, moved)
        worth = similarity(where, reference, moved)
        index = torch.from_numpy(rows).to(worth.device)
        last = self.prices.get(step.group)
        order, prices = best_order(worth, None if last is None else last[index])
        if last is None:
            last = self.prices[step.group] = prices.new_zeros(len(self.moved), *prices.shape[1:])
        last[index] = prices
        return {step.group: order}

    def _of(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """References and weights of some models."""
        if len(rows) == len(self.moved):
            return self.reference, self.moved
        index = torch.from_numpy(rows).to(self.moved.device)
        return self.reference if len(self.reference) == 1 else self.reference[index], self.moved[index]

    def accept(self, rows: np.ndarray, moved: Tensor, then: Permutations) -> None:
        """Some models now are `moved`, which came about by `then`; groups that are not in it stayed."""
        if not len(rows):
            return
        index = torch.from_numpy(rows).to(self.moved.device)
        self.moved[index] = moved
        for name, p in then.items():
            if name in self.prices:  # they move with their units
                order = torch.from_numpy(p).long().to(index.device)
                self.prices[name][index] = self.prices[name][index].gather(-1, order)
        whole = self.symmetry.identity(len(rows)) | dict(then)
        for name, p in self.symmetry.compose(pick(self.permutations, rows), whole).items():
            self.permutations[name][rows] = p


def over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline
