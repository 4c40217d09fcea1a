"""Weight matching: coordinate descent over groups, each step one linear assignment, for a whole population.

Source: Ainsworth, Hayase and Srinivasa 2023, "Git Re-Basin", arXiv 2209.04836, section 3.2 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.optimize import linear_sum_assignment

from weightspace.rebasin.alignment import Alignment, AlignmentError
from weightspace.symmetry import Block, Permutations, Symmetry, SymmetryError

SWEEPS = 100
RELATIVE = 1e-9  # a sweep that gains less of the objective is the last


def match_weights(
    symmetry: Symmetry,
    weights: np.ndarray,
    reference: np.ndarray,
    *,
    start: Permutations | None = None,
    groups: Iterable[str] | None = None,
    seed: int = 0,
    sweeps: int = SWEEPS,
) -> Alignment:
    """Permute each model so that it lies as near to the reference as possible.

    Args:
        weights: (models, size). reference: (size,).
        start: permutations to begin from, None for the identity.
        groups: those that may move, None for all.
        seed: of the order of the groups in each sweep, the same for all models.

    Raises:
        AlignmentError: weights that are not finite or do not fit, or a symmetry without groups.
    """
    if not symmetry.moving:
        raise AlignmentError("this symmetry has no groups to permute: nothing can be aligned")
    if weights.ndim != 2 or weights.shape[1] != symmetry.layout.size or reference.shape != weights.shape[1:]:
        raise AlignmentError(
            f"weights must be (models, {symmetry.layout.size}), got {weights.shape}, {reference.shape}"
        )
    if not np.isfinite(weights).all() or not np.isfinite(reference).all():
        raise AlignmentError("weights must be finite; leave diverged models out")
    names = list(symmetry.moving) if groups is None else list(groups)
    permutations = symmetry.identity(len(weights)) if start is None else {n: p.copy() for n, p in start.items()}
    before, after = objective(symmetry, weights, reference), np.empty(len(weights))
    counts, finished = np.zeros(len(weights), np.int64), np.zeros(len(weights), bool)
    for model in range(len(weights)):
        one = {name: p[model : model + 1] for name, p in permutations.items()}
        after[model], counts[model], finished[model] = _match_one(
            symmetry, weights[model : model + 1], reference, one, names, seed, sweeps
        )
        for name, p in one.items():
            permutations[name][model] = p[0]
    return Alignment(permutations, before, after, counts, reference, finished)


def objective(symmetry: Symmetry, weights: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(models,) float64: inner product with the reference over the tensors that move."""
    places = symmetry.layout.indices(symmetry.axes)
    return weights[:, places].astype(np.float64) @ reference[places].astype(np.float64)


def _match_one(
    symmetry: Symmetry,
    weights: np.ndarray,
    reference: np.ndarray,
    permutations: dict[str, np.ndarray],
    names: list[str],
    seed: int,
    sweeps: int,
) -> tuple[float, int, bool]:
    """Objective, sweeps and whether it came to an end; permutations change in place."""
    generator = np.random.default_rng(seed)
    best = float(objective(symmetry, symmetry.permute(weights, permutations), reference)[0])
    for sweep in range(1, sweeps + 1):
        last = best
        for number in generator.permutation(len(names)):
            name = names[number]
            trial = dict(permutations)
            trial[name] = _assigned(symmetry, weights, reference, permutations, name)
            value = float(objective(symmetry, symmetry.permute(weights, trial), reference)[0])
            if value > best:
                permutations[name][...] = trial[name]
                best = value
        if best - last <= RELATIVE * abs(best):
            return best, sweep, True
    return best, sweeps, False


def _assigned(
    symmetry: Symmetry, weights: np.ndarray, reference: np.ndarray, permutations: Permutations, name: str
) -> np.ndarray:
    """The group's best permutation with all others as they are."""
    moved = dict(permutations)
    moved[name] = symmetry.identity(1)[name]
    candidate = symmetry.permute(weights, moved)[0]
    shape = symmetry.permutation_shape(name)
    cost = np.zeros((*shape, shape[-1]))
    for block in symmetry.touching(name):
        cost += _similarity(symmetry, block, name, reference, candidate)
    flat = cost.reshape(-1, shape[-1], shape[-1])
    return np.array([linear_sum_assignment(-c)[1] for c in flat], np.int32).reshape(1, *shape)


def _similarity(
    symmetry: Symmetry, block: Block, name: str, reference: np.ndarray, candidate: np.ndarray
) -> np.ndarray:
    """(its parents' sizes, size, size): inner products of the reference's units with the candidate's."""
    names = [group for group, _, _ in block.dims]
    if names.count(name) > 1:
        raise SymmetryError(f"group {name!r} stands on two axes of {block.tensor!r}")
    kept = [names.index(ancestor) for ancestor in symmetry.ancestors(name)]
    mine = names.index(name)
    rest = [number for number in range(len(names)) if number not in (*kept, mine)]
    a, b = (_view(block, vector).transpose(*kept, mine, *rest).astype(np.float64) for vector in (reference, candidate))
    sides = a.shape[: len(kept) + 1]
    product: np.ndarray = a.reshape(*sides, -1) @ b.reshape(*sides, -1).swapaxes(-1, -2)
    return product


def _view(block: Block, vector: np.ndarray) -> np.ndarray:
    """A block of a flat vector, with an axis a factor."""
    sizes = tuple(size for _, size, _ in block.dims)
    strides = tuple(stride * vector.strides[0] for _, _, stride in block.dims)
    return np.lib.stride_tricks.as_strided(vector[block.offset :], sizes, strides, writeable=False)
