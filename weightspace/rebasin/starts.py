"""Orders to begin a descent from, found from the weights without regard to any order they are in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from weightspace.rebasin.costs import Place
from weightspace.rebasin.descent import State
from weightspace.rebasin.heads import singular_order
from weightspace.rebasin.steps import Step, alone, plan_steps
from weightspace.symmetry import Permutations, Symmetry


def has_stream(symmetry: Symmetry, names: Iterable[str]) -> bool:
    """Whether a group meets more than two others that may move, as a residual stream does."""
    names = set(names)
    met: dict[str, set[str]] = {}
    for block in symmetry.blocks:
        outermost = {next(one for one in (*symmetry.ancestors(g), g) if one in names) for g in names & {*block.groups}}
        for name in outermost:
            met.setdefault(name, set()).update(outermost - {name})
    return any(len(others) > 2 for others in met.values())


def layerwise(
    symmetry: Symmetry, weights: Tensor, reference: Tensor, start: Permutations, names: Sequence[str], heads: str
) -> dict[str, np.ndarray]:
    """Order group after group, each by weights alone that lead to units already in order, whatever that costs.

    The group with the largest share of such weights is next, so that order spreads from inputs and outputs inwards. A
    descent from an arbitrary order fits the first groups to the disorder of the others, and a residual stream, which
    all others meet, seldom gets loose from that: of 200 planted permutations of a transformer of four blocks it found
    60, and all 200 from this order (benchmarks/planted.py).

    Args:
        weights: (models, size). reference: (1 or models, size).
        start: where groups that are in no step stay. names: groups that may move, parents first.
        heads: see `plan_steps`.
    """
    state = State.at(symmetry, weights, reference, start)
    left = plan_steps(symmetry, names, heads)
    unsettled = {name for step in left for name in step.groups}
    while left:
        known = {step: tuple(place for place in step.places if _is_known(place, step, unsettled)) for step in left}
        step = max(left, key=lambda step: _entries(known[step]) / _entries(step.places))
        if known[step]:
            then = state.order(step, known[step], np.arange(len(weights)))
            state.accept(np.arange(len(weights)), step.symmetry.permute(state.moved, then), then)
        left.remove(step)
        unsettled -= set(step.groups)
    return state.permutations


def singular(
    symmetry: Symmetry, weights: Tensor, reference: Tensor, start: Permutations, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Order the groups that have groups inside by singular values, whatever that costs; arguments as of `layerwise`."""
    state = State.at(symmetry, weights, reference, start)
    for name in names:
        if any(name in symmetry.ancestors(child) for child in names):
            then = {name: singular_order(symmetry, name, reference, state.moved)}
            state.accept(np.arange(len(weights)), alone(symmetry, [name]).permute(state.moved, then), then)
    return state.permutations


def random(
    symmetry: Symmetry, start: Permutations, names: Iterable[str], seed: int, number: int
) -> dict[str, np.ndarray]:
    """A random order of the groups that may move, the same for all models, drawn for this seed and number."""
    models = len(next(iter(start.values())))
    drawn = symmetry.random(1, int(np.random.default_rng((seed, number)).integers(2**31)))
    return dict(start) | {name: np.repeat(drawn[name], models, 0) for name in names}


def _entries(where: Iterable[Place]) -> int:
    return sum(place.entries for place in where)


def _is_known(place: Place, step: Step, unsettled: set[str]) -> bool:
    """Whether all other groups in a place's block are settled."""
    others = {name for axis, (name, _, _) in enumerate(place.block.dims) if axis != place.at and name is not None}
    return step.group not in others and not (others - {*step.children}) & unsettled
