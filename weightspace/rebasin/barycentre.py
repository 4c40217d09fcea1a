"""Each model of a population aligned to the mean of all others, round after round (MergeMany)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.rebasin.matching import match_weights
from weightspace.rebasin.objective import counted, objective, spans
from weightspace.symmetry import Symmetry

MEMORY = 2**28  # bytes that references of single models may take at once


@dataclass(frozen=True)
class Work:
    """What every step needs.

    Args:
        options: of `match_weights`. deadline: by `time.monotonic`, None for none.
    """

    symmetry: Symmetry
    weights: Tensor
    seed: int
    rounds: int
    tolerance: float
    deadline: float | None
    options: Mapping[str, Any]
    on_round: Callable[[int, float], None] | None

    @property
    def left(self) -> float | None:
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)

    @property
    def over(self) -> bool:
        return self.left == 0.0


@dataclass
class Frame:
    """Where the models stand: permutations, the moved weights (models, size), their sum (size,) in float64."""

    permutations: dict[str, np.ndarray]
    canonical: Tensor
    total: Tensor = field(init=False)
    finished: bool = False
    rounds: int = 0

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.total = added(self.canonical)


def barycentre(work: Work, frame: Frame) -> Frame:
    """Rounds over all models until they gain nothing."""
    generator = np.random.default_rng(work.seed)
    own = float(objective(work.symmetry, frame.canonical, frame.canonical).sum())
    most = together = max(1, MEMORY // (8 * max(work.symmetry.layout.size, 1)))
    for number in range(1, work.rounds + 1):
        before = squared(work.symmetry, frame.total)
        order = generator.permutation(len(frame.canonical))
        smallest, moved = together, False
        for begin in range(0, len(order), together):
            some = np.sort(order[begin : begin + together])
            went, size = _step(work, frame, some, int(generator.integers(2**31)))
            smallest, moved = min(smallest, size), moved or went
        together = min(2 * smallest, most)
        frame.renew()
        frame.rounds = number
        after = squared(work.symmetry, frame.total)
        if work.on_round:
            work.on_round(number, per_pair(after, own, len(order)))
        if work.over:
            return frame
        if not moved or after - before <= work.tolerance * abs(after - own):
            frame.finished = True
            return frame
    return frame


def _step(work: Work, frame: Frame, some: np.ndarray, seed: int) -> tuple[bool, int]:
    """Align some models, each to the mean of all others, at once if the sum over pairs rises, else half of them after
    the other half; whether any moved, and how many went at once."""
    if work.over:
        return False, len(some)
    symmetry, others = work.symmetry, max(len(frame.canonical) - 1, 1)
    weights, old = work.weights[some], frame.canonical[some]
    reference = ((frame.total - old) / others).to(weights.dtype)
    start = {name: p[some] for name, p in frame.permutations.items()}
    found = match_weights(
        symmetry, weights, reference, start=start, layerwise=False, seed=seed, sweeps=1, **work.options
    ).permutations
    if all(np.array_equal(p, start[name]) for name, p in found.items()):
        return False, len(some)
    new = symmetry.permute(weights, found)
    total = frame.total + added(new) - added(old)
    if squared(symmetry, total) > squared(symmetry, frame.total):
        frame.canonical[some], frame.total = new, total
        for name, p in found.items():
            frame.permutations[name][some] = p
        return True, len(some)
    if len(some) == 1:
        return False, 1
    halves = [_step(work, frame, half, seed) for half in np.array_split(some, 2)]
    return any(moved for moved, _ in halves), min(size for _, size in halves)


def added(weights: Tensor) -> Tensor:
    """Sum over models (size,) in float64, without a float64 copy of them all."""
    total = torch.zeros(weights.shape[1], dtype=torch.float64, device=weights.device)
    step = max(1, (1 << 22) // max(weights.shape[1], 1))
    for begin in range(0, len(weights), step):
        total += weights[begin : begin + step].double().sum(0)
    return total


def squared(symmetry: Symmetry, total: Tensor) -> float:
    """Squared norm over the tensors that move."""
    return sum(float(total[span] @ total[span]) for span in spans(symmetry, counted(symmetry).axes))


def per_pair(squared: float, own: float, models: int) -> float:
    return own if models == 1 else (squared - own) / (models * (models - 1))
