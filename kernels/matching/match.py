"""Weight matching of whole populations on a CPU in compiled code, one program a model.

Source: Ainsworth, Hayase and Srinivasa 2023, "Git Re-Basin", arXiv 2209.04836, algorithm 1. Differs: costs are updated
for the units that moved, not computed anew; groups whose neighbours stay are left out; prices of the last assignment
begin the next; what is not strictly better in float64 is not taken.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.assignment.compiled import powers_of_two
from kernels.assignment.paths import likely_prices
from kernels.assignment.paths import solve as shortest_paths
from kernels.learning import part
from kernels.matching.plan import Plan
from kernels.matching.problem import Problem
from kernels.matching.steps import (
    COST,
    PRICES,
    STRIDE,
    UNITS,
    N,
    constant_costs,
    copy_model,
    copy_reference,
    gain,
    objective,
    renew_costs,
)  # fmt: skip
from kernels.mlp.tiles import OPTIONS
from kernels.programs import Program, sources

SOURCES = sources(
    "matching/*.py", "assignment/paths.py", "assignment/scan.py", "lanes/vectors.py", "learning.py", "mlp/tiles.py"
)
TOGETHER = 1 << 25  # multiply-adds, about: the models that a thread takes at once, if there are enough for all


@dataclass(frozen=True)
class Matched:
    """Permutations of a population.

    Args:
        permutations: for each group (models, n) int32.
        before, after: (models,) float64, the objective.
        sweeps: (models,) int64. finished: (models,) whether nothing improved any more.
        solves: (models,) int64, assignments.
    """

    permutations: list[np.ndarray]
    before: np.ndarray
    after: np.ndarray
    sweeps: np.ndarray
    finished: np.ndarray
    solves: np.ndarray


def _match(digest: str) -> Any:
    """The compiled program. `digest` is part of what its cache is found by: numba looks at this file only."""

    def match_models(
        groups: np.ndarray, tables: np.ndarray, blocks: np.ndarray, inner: np.ndarray, references: np.ndarray,
        reference_factors: np.ndarray, weights: np.ndarray, factors: np.ndarray, orders: np.ndarray, tolerance: float,
        permutations: np.ndarray, before: np.ndarray, after: np.ndarray, sweeps: np.ndarray, finished: np.ndarray,
        solves: np.ndarray, stop: np.ndarray, ready: np.ndarray, room: np.ndarray, packed: np.ndarray,
        terms: np.ndarray, used: np.ndarray, since: np.ndarray, norms: np.ndarray, columns: np.ndarray,
        distances: np.ndarray, previous: np.ndarray, rows: np.ndarray, waiting: np.ndarray, order: np.ndarray,
        kept: np.ndarray, reached: np.ndarray,
    ) -> None:  # fmt: skip
        """Matches all models given; see `match`.

        Args:
            orders: (sweeps, groups that may move). permutations: (models, units of all groups) int32, replaced.
            ready: (1,) whether the room holds the one reference. stop: (1,) nonzero when time is up.
        """
        digest  # noqa: B018  # makes it a part of the function
        at, new, old = terms[0], terms[1], terms[2]
        for model in range(len(weights)):
            mine, flat = permutations[model], weights[model]
            which = model % len(references)
            if not ready[0]:
                copy_reference(groups, tables, inner, references[which], reference_factors[which], room, norms)
                ready[0] = len(references) == 1
            best = objective(groups, blocks, inner, references[which], flat, mine)
            before[model] = after[model] = best
            if stop[0]:
                continue
            scale = np.float64(reference_factors[which]) * np.float64(factors[model])
            best *= scale
            copy_model(groups, tables, inner, flat, factors[model], room)
            since[:] = -1
            for sweep in range(len(orders)):
                gained, stopped = 0.0, False
                for g in orders[sweep]:
                    if stop[0]:
                        stopped = True
                        break
                    n = groups[g, N]
                    prices = part(room, groups[g, PRICES], groups[g, STRIDE])
                    fresh = since[g] < 0
                    if fresh:
                        constant_costs(groups, tables, g, room, at, new, old, packed)
                        norms[len(groups) + g] = norms[g] - 2 * prices[:n].min()
                    updates = renew_costs(groups, tables, g, mine, used, since[g], room, at, new, old, packed)
                    if updates < 0:
                        continue
                    since[g] = updates
                    if fresh:
                        likely_prices(room, groups[g, COST], groups[g, STRIDE], n, prices, distances)
                    shortest_paths(
                        room, groups[g, COST], groups[g, STRIDE], n, prices, columns, distances, previous, rows,
                        waiting, order, kept, reached,
                    )  # fmt: skip
                    solves[model] += 1
                    more = gain(groups, tables, g, mine, columns, norms[len(groups) + g], room)
                    if more > 0:
                        mine[groups[g, UNITS] : groups[g, UNITS] + n] = columns[:n]
                        gained += more
                if stopped:
                    break
                best += gained
                sweeps[model] = sweep + 1
                if gained <= tolerance * abs(best):
                    finished[model] = True
                    break
            after[model] = objective(groups, blocks, inner, references[which], flat, mine)

    return match_models


MATCH = Program(_match, SOURCES, OPTIONS)


def match(
    reference: np.ndarray,
    weights: np.ndarray,
    problem: Problem,
    *,
    start: Sequence[np.ndarray] | None = None,
    movable: Sequence[bool] | None = None,
    seed: int = 0,
    sweeps: int = 100,
    tolerance: float = 1e-9,
    threads: int = 1,
    deadline: float | None = None,
) -> Matched:
    """Permute each model so that it lies as near to its reference as possible.

    No bit of a model depends on its companions or on `threads`, unless time runs out.

    Args:
        reference: (size,) or, one for each model, (models, size), float32. weights: (models, size) float32.
        start: for each group (models, n) permutations to begin from, None for the identity.
        movable: for each group whether it may move, None for all.
        seed: of the order of the groups in each sweep, the same for all models.
        tolerance: a sweep that gains less than this of the objective is the last.
        deadline: seconds, None for no limit; what is not matched by then keeps what it has.

    Raises:
        ValueError: shapes or types that do not fit each other or the problem.
    """
    references, weights = _usable(np.atleast_2d(reference)), _usable(weights)
    _check(references, weights, problem, start, movable)
    plan = Plan.of(problem, None if movable is None else tuple(map(bool, movable)))
    models = len(weights)
    permutations = plan.identity(models) if start is None else np.concatenate(start, 1, dtype=np.int32)
    orders = plan.movable[_orders(seed, sweeps, len(plan.movable))]
    found = Matched(
        np.split(permutations, plan.ends, 1), np.zeros(models), np.zeros(models), np.zeros(models, np.int64),
        np.zeros(models, np.bool_), np.zeros(models, np.int64),
    )  # fmt: skip
    reference_factors, factors = _factors(references), _factors(weights)
    stop = np.zeros(1, np.int64)
    together = max(1, min(TOGETHER // plan.work, -(-models // (4 * threads))))
    parts = iter([slice(first, first + together) for first in range(0, models, together)])
    taking = threading.Lock()

    def work(_: int) -> None:
        rooms = plan.rooms()
        while True:
            with taking:
                some = next(parts, None)
            if some is None:
                return
            if len(references) > 1:
                rooms[0][0] = 0
            own = some if len(references) > 1 else slice(None)
            MATCH(
                plan.groups, plan.tables, plan.blocks, plan.inner, references[own], reference_factors[own],
                weights[some], factors[some], orders, tolerance, permutations[some], found.before[some],
                found.after[some], found.sweeps[some], found.finished[some], found.solves[some], stop, *rooms,
            )  # fmt: skip

    _on_threads(work, min(threads, -(-models // together)), stop, deadline)
    return found


@functools.lru_cache(maxsize=16)
def _orders(seed: int, sweeps: int, count: int) -> np.ndarray:
    """(sweeps, count) int64: an order for each sweep."""
    generator = np.random.default_rng(seed)
    return np.array([generator.permutation(count) for _ in range(sweeps)], np.int64).reshape(sweeps, count)


def _usable(vectors: np.ndarray) -> np.ndarray:
    """The same in one piece, and writable: numba would compile once more for arrays that are not."""
    return np.require(vectors, requirements=("C", "W"))


def _factors(vectors: np.ndarray) -> np.ndarray:
    """(vectors,) float32: what makes the largest number of each about 1."""
    if not vectors.size:
        return np.ones(len(vectors), np.float32)
    return powers_of_two(np.maximum(vectors.max(1), -vectors.min(1)))


def _on_threads(work: Any, threads: int, stop: np.ndarray, deadline: float | None) -> None:
    """Runs `work` as often as there are threads, and sets `stop` when time is up."""
    if deadline is not None and deadline <= 0:
        stop.fill(1)
    timer = None if deadline is None or stop[0] else threading.Timer(deadline, lambda: stop.fill(1))
    if timer:
        timer.daemon = True
        timer.start()
    try:
        if threads < 2:
            work(0)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, range(threads)))
    finally:
        if timer:
            timer.cancel()


def _check(
    references: np.ndarray,
    weights: np.ndarray,
    problem: Problem,
    start: Sequence[np.ndarray] | None,
    movable: Sequence[bool] | None,
) -> None:
    """Raise ValueError unless these fit each other."""
    if weights.ndim != 2 or references.dtype != np.float32 or weights.dtype != np.float32:
        raise ValueError(f"weights must be (models, size) float32, got {weights.shape} {weights.dtype}")
    size = weights.shape[1]
    if references.ndim != 2 or references.shape[1] != size or len(references) not in (1, len(weights)):
        raise ValueError(f"references must be ({size},) or {weights.shape}, got {references.shape}")
    if not problem.sizes or max(block.last for block in problem.blocks) >= size:
        raise ValueError(f"the problem has no groups, or its blocks reach beyond {size} weights")
    if movable is not None and len(movable) != len(problem.sizes):
        raise ValueError(f"movable must say it for {len(problem.sizes)} groups, got {len(movable)}")
    if start is not None:
        shapes = [(len(weights), n) for n in problem.sizes]
        if [p.shape for p in start] != shapes:
            raise ValueError(f"start must be permutations {shapes}, got {[p.shape for p in start]}")
        if any((np.sort(p, 1) != np.arange(p.shape[1])).any() for p in start):
            raise ValueError("start is no permutation: an index is missing or comes twice")
