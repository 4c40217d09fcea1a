"""A population in one common frame, its universe: each model aligned to the mean of all others, or all at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from weightspace.rebasin.alignment import Alignment, AlignmentError
from weightspace.rebasin.barycentre import Frame, Work, added, barycentre, squared
from weightspace.rebasin.frank_wolfe import frank_wolfe
from weightspace.rebasin.matching import SWEEPS, match_weights
from weightspace.rebasin.objective import checked, checked_start, chosen_groups, objective
from weightspace.symmetry import Permutations, Scales, Symmetry

METHODS = ("barycentre", "frank_wolfe")
ROUNDS = 200
RELATIVE = 1e-5  # a round that gains less of the agreement is the last; 20 to 40 rounds on populations of digits


def align_universe(
    symmetry: Symmetry,
    weights: Any,
    *,
    method: str = "barycentre",
    start: Permutations | None = None,
    scales: Scales | None = None,
    restarts: int = 0,
    seed: int = 0,
    rounds: int = ROUNDS,
    tolerance: float = RELATIVE,
    budget: float | None = None,
    impl: str | None = None,
    threads: int | None = None,
    on_round: Callable[[int, float], None] | None = None,
) -> Alignment:
    """Permute all models so that they agree with each other as much as possible: no model is the reference.

    What rises is the sum over all pairs of inner products, with each step. The maps from model to model go through the
    universe (`between`), so that those around a cycle undo each other exactly.

    Args:
        weights: (models, size), numpy or torch.
        method: "barycentre": models against the mean of all others, all at once as long as the sum rises, fewer at a
            time where it would fall, down to one. "frank_wolfe": all permutations relaxed together, see `frank_wolfe`;
            not for groups with parents.
        start: permutations to begin from; None: all models aligned to one of them, drawn by the seed.
        scales: applied first, `balance(symmetry, weights)` say.
        restarts: further starts from other models; what agrees most is kept.
        rounds: at most, of each start. tolerance: relative, of the agreement: a round that gains less is the last.
        budget: seconds, looked at between steps. impl, threads: see `match_weights`.
        on_round: called with the number of the round and the agreement, see `agreement`.

    Returns:
        `universe` is the mean of the canonical models, `sweeps` counts rounds.

    Raises:
        AlignmentError: weights that are not finite or do not fit, a symmetry without groups, groups that the method
            cannot align, an unknown method.

    Source: Ainsworth, Hayase and Srinivasa 2023, "Git Re-Basin", arXiv 2209.04836, section 5 and algorithm 3
        (MergeMany). Differs: that starts from the models as they are and takes one at a time, with a whole descent
        each. On digits MLPs ours agree as well (within 0.4 % at widths 32 and 128, 2.6 % better at 512) in a ninth to
        a third of its time; Frank-Wolfe agrees within 0.4 % of the barycentre and takes 2 to 12 times as long
        (benchmarks.rebasin).
    """
    chosen_groups(symmetry)
    if method not in METHODS or restarts < 0 or rounds < 0:
        raise AlignmentError(
            f"method must be one of {', '.join(METHODS)}, restarts and rounds 0 or more; "
            f"got {method!r}, {restarts!r}, {rounds!r}"
        )
    population = checked(symmetry, weights, "weights")
    if not len(population):
        raise AlignmentError("a universe needs a model or more, got none")
    scaled = symmetry.scale(population, scales) if scales else population
    deadline = None if budget is None else time.monotonic() + budget
    options = {"impl": impl, "threads": threads}
    work = Work(symmetry, scaled, seed, rounds, tolerance, deadline, options, on_round)
    firsts = np.random.default_rng(seed).permutation(len(population))[: restarts + 1]
    best: Frame | None = None
    for number, first in enumerate(firsts.tolist()):
        if best is not None and work.over:
            break
        begin = _start(work, start if number == 0 else None, first)
        frame = barycentre(work, begin) if method == "barycentre" else _relaxed(work, begin)
        if best is None or squared(symmetry, frame.total) > squared(symmetry, best.total):
            best = frame
    assert best is not None
    return _result(symmetry, scaled, best, scales or {})


def join(
    symmetry: Symmetry,
    weights: Any,
    universe: Any,
    *,
    start: Permutations | None = None,
    scales: Scales | None = None,
    restarts: int = 0,
    seed: int = 0,
    sweeps: int = SWEEPS,
    budget: float | None = None,
    impl: str | None = None,
    threads: int | None = None,
    on_models: Callable[[int], None] | None = None,
) -> Alignment:
    """New models in the frame of a population; its members and its universe stay as they are.

    A model's place depends on the universe alone, not on who joins with it or before it.

    Args:
        weights: (models, size). universe: (size,), an alignment's `universe`. Others: see `match_weights`.
        scales: of the new models, made as those of the population were.

    Raises:
        AlignmentError: see `match_weights`.
    """
    population = checked(symmetry, weights, "weights")
    scaled = symmetry.scale(population, scales) if scales else population
    fixed = checked(symmetry, universe, "the universe", (1,))
    found = match_weights(
        symmetry,
        scaled,
        fixed,
        start=start,
        restarts=restarts,
        seed=seed,
        sweeps=sweeps,
        budget=budget,
        impl=impl,
        threads=threads,
        on_models=on_models,
    )
    return replace(found, universe=fixed.cpu().numpy(), scales=dict(scales or {}))


def agreement(symmetry: Symmetry, canonical: Any) -> float:
    """Mean over all pairs of models of their inner product over the tensors that move; of one model its own.

    Args:
        canonical: (models, size).
    """
    population = checked(symmetry, canonical, "weights")
    models = len(population)
    own = objective(symmetry, population, population).sum()
    if models == 1:
        return float(own)
    return float((squared(symmetry, added(population)) - own) / (models * (models - 1)))


def between(symmetry: Symmetry, permutations: Permutations, model: int, other: int) -> dict[str, np.ndarray]:
    """Permutations (1, ...) that bring the units of one model into the order of another, through the universe."""
    first, then = (symmetry.pick(permutations, slice(k, k + 1)) for k in (model, other))
    return symmetry.compose(first, symmetry.invert(then))


def _start(work: Work, start: Permutations | None, first: int) -> Frame:
    """Models as a start has them, or aligned to one of them."""
    symmetry, weights = work.symmetry, work.weights
    if start is not None:
        permutations = checked_start(symmetry, start, len(weights))
    else:
        found = match_weights(symmetry, weights, weights[first], seed=work.seed, budget=work.left, **work.options)
        permutations = dict(found.permutations)
    return Frame(permutations, symmetry.permute(weights, permutations))


def _relaxed(work: Work, frame: Frame) -> Frame:
    """Frank-Wolfe from here."""
    found = frank_wolfe(
        work.symmetry,
        work.weights,
        frame.permutations,
        rounds=work.rounds,
        tolerance=work.tolerance,
        deadline=work.deadline,
        on_round=work.on_round,
    )
    relaxed = Frame(found.permutations, work.symmetry.permute(work.weights, found.permutations))
    relaxed.finished, relaxed.rounds = found.finished, found.rounds
    return relaxed


def _result(symmetry: Symmetry, weights: Tensor, frame: Frame, scales: Scales) -> Alignment:
    models = len(weights)
    universe = frame.total / models
    universe = universe.to(weights.dtype)
    return Alignment(
        frame.permutations,
        objective(symmetry, weights, universe),
        objective(symmetry, frame.canonical, universe),
        np.full(models, frame.rounds, np.int64),
        universe.cpu().numpy(),
        np.full(models, frame.finished),
        dict(scales),
    )
