"""Weight matching of a whole population in one call.

Source: Ainsworth, Hayase and Srinivasa 2023, "Git Re-Basin", arXiv 2209.04836, section 3.2 and algorithm 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.matching.match import Matched
from weightspace.rebasin import starts
from weightspace.rebasin.alignment import Alignment, AlignmentError
from weightspace.rebasin.compiled import descend_compiled, fits
from weightspace.rebasin.descent import SWEEPS, Descent, descend, over
from weightspace.rebasin.heads import PAIRED
from weightspace.rebasin.objective import checked, checked_start, chosen_groups, counted, objective, pick
from weightspace.rebasin.steps import HEADS, plan_steps
from weightspace.symmetry import Permutations, Symmetry

ROUNDING = 1e-14  # of an objective: compiled code sums in another order
IMPLEMENTATIONS = ("compiled", "reference")


@dataclass(frozen=True)
class Settings:
    """What a match was asked for; see `match_weights`."""

    names: Sequence[str]
    heads: str
    layerwise: bool
    restarts: int
    seed: int
    sweeps: int
    deadline: float | None
    compiled: bool
    threads: int | None


MEMORY = 2**28  # bytes that the models worked on at once may take; more is no faster


def match_weights(
    symmetry: Symmetry,
    weights: Any,
    reference: Any,
    *,
    start: Permutations | None = None,
    groups: Iterable[str] | None = None,
    layers: Iterable[str] | None = None,
    heads: str = "joint",
    layerwise: bool | None = None,
    restarts: int = 0,
    seed: int = 0,
    sweeps: int = SWEEPS,
    budget: float | None = None,
    impl: str | None = None,
    threads: int | None = None,
    on_models: Callable[[int], None] | None = None,
) -> Alignment:
    """Permute each model so that its parameters lie as near to the reference as possible; buffers move along.

    Coordinate descent: each step finds the best order of one group, given all others, and counts only if the objective
    in float64 rises; so the result is never below the start. With one hidden layer it is the best there is. No
    model's result depends on which others are there.

    Args:
        weights: (models, size), numpy or torch; on CUDA they stay there. Half precision is widened to float32.
        reference: (size,), or (models, size) for one of each.
        start: permutations to begin from, None for the identity.
        groups: those that may move, None for all.
        layers: the same by layers or tensors: the groups that move any of them.
        heads: how a group with groups inside its units (attention heads) is ordered: "joint" with them, which is best;
            "singular" by singular values first, then what is inside (TransFusion); "plain", each group by itself.
        layerwise: a further descent, from an order found layer by layer, and the best counts; None: where there is a
            residual stream and no start was given, as descents from arbitrary orders get stuck there.
        restarts: further descents from random orders.
        seed: of the order of groups in each sweep and of restarts, the same for all models.
        sweeps: at most, of each descent.
        budget: seconds, looked at between sweeps: what is not finished by then is as good as it is.
        impl: "compiled", for float32 on a CPU and groups that lie in no other and meet at most one other in a tensor;
            "reference", anything, on any device; None chooses.
        threads: of compiled code, None for all cores.
        on_models: called with a number of models each time so many are done.

    Raises:
        AlignmentError: weights that are not finite or do not fit, a symmetry without groups, unknown names.
    """
    names = chosen_groups(symmetry, groups, layers)
    symmetry = counted(symmetry)
    if heads not in HEADS or impl not in (None, *IMPLEMENTATIONS) or restarts < 0 or sweeps < 0:
        raise AlignmentError(
            f"heads must be one of {', '.join(HEADS)}, impl one of {', '.join(IMPLEMENTATIONS)} or None, restarts and "
            f"sweeps 0 or more; got {heads!r}, {impl!r}, {restarts!r}, {sweeps!r}"
        )
    population, target = checked(symmetry, weights, "weights"), checked(symmetry, reference, "the reference", (1, 2))
    models = len(population)
    if target.dim() == 2 and len(target) != models:
        raise AlignmentError(f"there must be one reference, or one for each of {models} models, got {len(target)}")
    target = (target if target.dim() == 2 else target[None]).to(population.device)
    whole = checked_start(symmetry, start, models)
    deadline = None if budget is None else time.monotonic() + budget
    counts, finished = np.zeros(models, np.int64), np.zeros(models, bool)
    before, after = np.empty(models), np.empty(models)
    if layerwise is None:
        layerwise = start is None and starts.has_stream(symmetry, names)
    compiled = takes_compiled(symmetry, population, target, impl)
    settings = Settings(names, heads, layerwise, restarts, seed, sweeps, deadline, compiled, threads)
    size = working_bytes(symmetry, names, heads, population.element_size(), compiled)
    some = max(1, MEMORY // max(1, size))
    for first in range(0, models, some):
        here = slice(first, min(first + some, models))
        mine = target if len(target) == 1 else target[here]
        order = pick(whole, here)
        begin = None
        if start is not None or not compiled:
            before[here] = begin = objective(symmetry, population[here], mine)
        if start is not None:
            begin = objective(symmetry, symmetry.permute(population[here], order), mine)
        found = _best_of(symmetry, population[here], mine, order, begin, settings)
        if begin is None:
            before[here] = found.before
        for name, p in found.permutations.items():
            whole[name][here] = p
        after[here], counts[here], finished[here] = found.after, found.sweeps, found.finished
        if on_models:
            on_models(here.stop - here.start)
    universe = (target[0] if len(target) == 1 and models != 1 else checked(symmetry, reference, "", (1, 2))).cpu()
    return Alignment(whole, before, after, counts, universe.numpy(), finished)


def takes_compiled(symmetry: Symmetry, weights: Tensor, reference: Tensor, impl: str | None) -> bool:
    """Whether compiled code does it; raise AlignmentError if it is asked to and cannot."""
    able = fits(symmetry) and weights.device.type == "cpu" and weights.dtype == reference.dtype == torch.float32
    if impl == "compiled" and not able:
        raise AlignmentError(
            "compiled code takes float32 on a CPU and groups that lie in no other group and meet at most one other in "
            f"a tensor, got {weights.dtype} on {weights.device} and {len(symmetry.groups)} groups; use impl=None"
        )
    return able and impl != "reference"


def working_bytes(
    symmetry: Symmetry, names: Iterable[str], heads: str = "joint", itemsize: int = 4, compiled: bool = False
) -> int:
    """Bytes held for each model that is worked on: weights, trials and the largest step."""
    largest = 0
    if compiled:  # its own room is one model's a thread
        return symmetry.layout.size * itemsize * 3
    for step in plan_steps(symmetry, list(names), heads):
        shape = symmetry.permutation_shape(step.group)
        entries = sum(np.prod([size for _, size, _ in place.block.dims]) for place in step.places)
        pairs = shape[-1] if step.children else 1
        inner = max((symmetry.groups[child].size for child in step.children), default=0)
        square = int(np.prod(shape)) * shape[-1] * (1 + inner**2)
        numbers = min(int(entries) * pairs, max(PAIRED, int(entries)))
        largest = max(largest, numbers * (16 + (4 * itemsize if step.children else 0)) + 16 * square)
    return symmetry.layout.size * itemsize * 4 + largest


def _best_of(
    symmetry: Symmetry,
    weights: Tensor,
    reference: Tensor,
    start: dict[str, np.ndarray],
    begin: np.ndarray | None,
    settings: Settings,
) -> Alignment:
    """The best of the start, whose objective is `begin` if that is known, and of descents from it and other orders."""
    models = len(weights)
    best, after = start, None if begin is None else begin.copy()
    counts, finished = np.zeros(models, np.int64), np.full(models, True)
    for fresh in _starts(symmetry, weights, reference, pick(start, slice(None)), settings):
        common: Any = {"names": settings.names, "seed": settings.seed, "sweeps": settings.sweeps}
        common |= {"deadline": settings.deadline}
        found: Descent | Matched
        if settings.compiled:
            order, found = descend_compiled(symmetry, weights, reference, fresh, threads=settings.threads, **common)
            value = found.after
            if after is None:  # the first is the descent from the start
                begin, after = found.before, found.before.copy()
        else:
            found = descend(symmetry, weights, reference, fresh, heads=settings.heads, **common)
            order, value = found.permutations, objective(symmetry, found.moved, reference)
        assert after is not None
        better = value - after > ROUNDING * np.abs(after)
        for name, p in order.items():
            best[name][better] = p[better]
        after[better] = value[better]
        counts += found.sweeps
        finished &= found.finished
    assert begin is not None
    assert after is not None
    return Alignment(best, begin, after, counts, np.empty(0), finished)


def _starts(
    symmetry: Symmetry, weights: Tensor, reference: Tensor, start: Permutations, settings: Settings
) -> Iterator[Permutations]:
    """Orders to begin from, one at a time: time may be over before the last is asked for."""
    names = settings.names

    def prepared(order: Permutations) -> Permutations:
        if settings.heads != "singular" or over(settings.deadline):
            return order
        return starts.singular(symmetry, weights, reference, order, names)

    yield prepared(start)
    if settings.layerwise and not over(settings.deadline):
        yield starts.layerwise(symmetry, weights, reference, prepared(start), names, settings.heads)
    for number in range(0 if over(settings.deadline) else settings.restarts):
        yield prepared(starts.random(symmetry, start, names, settings.seed, number))
