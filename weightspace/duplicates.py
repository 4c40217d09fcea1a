"""Networks that come twice in a population: exactly, but for the order of their units, or nearly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from weightspace.arrays import is_torch
from weightspace.balance import balance
from weightspace.canonical import canonical_hash, canonical_order
from weightspace.rebasin.alignment import AlignmentError
from weightspace.rebasin.matching import match_weights
from weightspace.symmetry import Block, Symmetry

NEAR = 0.2  # digits MLPs of width 4 to 512: independent runs 0.89 and more, a run trained 40 epochs further 0.03
ENTRIES = 4096  # of a block's invariants: of more only norms are kept
TOGETHER = 1 << 24  # distances, or weights of pairs, held at once


@dataclass(frozen=True)
class Duplicates:
    """Models that are one.

    Args:
        models: indices, ascending.
        kind: "exact": one network, its units in another order, verified number by number. "near": each is linked to
            another one of them by a distance below the threshold.
        distance: the largest on such links; see `find_duplicates`. 0 for exact ones.
    """

    models: tuple[int, ...]
    kind: str
    distance: float


def find_duplicates(
    symmetry: Symmetry,
    weights: Any,
    *,
    near: float | None = NEAR,
    scale: bool = False,
    neighbours: int = 8,
    restarts: int = 2,
    seed: int = 0,
    impl: str | None = None,
    threads: int | None = None,
) -> list[Duplicates]:
    """Groups of models that are the same network, or nearly, once their units are in the same order.

    Exact ones by `canonical_hash`, then verified: a collision is never reported. Near ones: of pairs that lie near by
    invariants, those whose distance after weight matching is below `near`, so that none is reported without its
    permutation having been found; what matching, a local search, does not find is missing.

    The distance of two models is |a - b| / sqrt((|a|^2 + |b|^2) / 2) over parameters: about 1 for independent runs.

    Args:
        weights: (models, size), numpy or torch, finite.
        near: threshold; None for exact ones only.
        scale: look for near ones among balanced weights, so that scaled copies (and, where signs are a symmetry,
            flipped ones) are found too. They differ by rounding, so that they are near, not exact.
        neighbours: how many of the nearest by invariants are compared with each model.
        restarts: further descents of pairs that are not found near at once.

    Returns:
        Groups of two or more by their first model; a near group has all members of the exact ones in it.

    Raises:
        AlignmentError: weights that are not finite, a threshold or numbers below 0.
    """
    if (near is not None and not 0 <= near < math.inf) or neighbours < 1 or restarts < 0:
        raise AlignmentError(
            f"near must be None or from 0, neighbours from 1, restarts from 0; got {near}, {neighbours}, {restarts}"
        )
    values = _as_numpy(weights)
    options = {"seed": seed, "impl": impl, "threads": threads, "restarts": restarts}
    classes = _exact(symmetry, values, options)
    found = [Duplicates(tuple(members), "exact", 0.0) for members in classes if len(members) > 1]
    if near is not None and len(classes) > 1:
        firsts = np.array([members[0] for members in classes])
        if scale:
            values = symmetry.scale(values, balance(symmetry, values, exact=True, signs=True))
        found += _near(symmetry, values[firsts], classes, near, neighbours, options)
    return sorted(found, key=lambda group: (group.models[0], group.kind))


def invariants(symmetry: Symmetry, weights: np.ndarray) -> np.ndarray:
    """(models, entries) float64 that no permutation changes, no further apart than the models, however ordered.

    Of each part of a parameter, for each group on it: its numbers (norms over the axes that other groups permute)
    sorted along the group's units. Sorting brings two lists as near to each other as any order can (rearrangement
    inequality), and norms differ by no more than what they are norms of.
    """
    roles = dict(zip(symmetry.layout.names, symmetry.layout.roles, strict=True))
    parts = [
        part.reshape(len(weights), -1)
        for block in symmetry.blocks
        if roles[block.tensor] == "parameter"
        for part in _invariants(symmetry, block, weights)
    ]
    return np.concatenate([np.empty((len(weights), 0)), *parts], 1)


def _invariants(symmetry: Symmetry, block: Block, weights: np.ndarray) -> Iterator[np.ndarray]:
    """One array a group that is inside no other; they share the block's distance."""
    sizes = [size for _, size, _ in block.dims]
    strides = [stride * weights.itemsize for _, _, stride in block.dims]
    view = np.lib.stride_tricks.as_strided(
        weights[:, block.offset :], (len(weights), *sizes), (weights.strides[0], *strides), writeable=False
    ).astype(np.float64)
    moving = [axis for axis, (name, _, _) in enumerate(block.dims) if name is not None and name in symmetry.moving]
    free = [axis for axis in moving if not set(symmetry.ancestors(str(block.dims[axis][0]))) & set(symmetry.moving)]
    still = math.prod(size for axis, size in enumerate(sizes) if axis not in moving)
    if not moving:
        yield view if still <= ENTRIES else np.sqrt((view**2).reshape(len(view), -1).sum(1))
    for axis in free:
        others = [1 + a for a in moving if a != axis]
        if still * sizes[axis] > ENTRIES:
            above = symmetry.ancestors(str(block.dims[axis][0]))  # fixed: there is an order for each of their units
            others = [1 + a for a in range(len(sizes)) if a != axis and block.dims[a][0] not in above]
        kept = np.sqrt((view**2).sum(tuple(others), keepdims=True)) if others else view
        yield np.sort(kept, 1 + axis) / math.sqrt(len(free))


def _exact(symmetry: Symmetry, values: np.ndarray, options: dict[str, Any]) -> list[list[int]]:
    """All models in classes of equal ones, each verified against the first of its class."""
    hashes = canonical_hash(symmetry, values)
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    classes: list[list[int]] = []
    for number in np.argsort(first):
        same: list[list[int]] = []
        for model in np.flatnonzero(which == number).tolist():
            home = next((members for members in same if _equal(symmetry, values, members[0], model, options)), None)
            if home is None:
                same.append([model])
            else:
                home.append(model)
        classes += same
    return classes


def _equal(symmetry: Symmetry, values: np.ndarray, model: int, other: int, options: dict[str, Any]) -> bool:
    """Whether the units of two models can be ordered so that all numbers are equal; True is certain."""
    pair = values[[model, other]]
    if not symmetry.moving:
        return bool((pair[0] == pair[1]).all())
    sorted_ = symmetry.permute(pair, canonical_order(symmetry, pair))
    if (sorted_[0] == sorted_[1]).all():
        return True
    found = match_weights(symmetry, sorted_[1:], sorted_[0], **options)  # units of equal colour, in the wrong order
    return bool((symmetry.permute(sorted_[1:], found.permutations)[0] == sorted_[0]).all())


def _near(
    symmetry: Symmetry,
    values: np.ndarray,
    classes: Sequence[list[int]],
    near: float,
    neighbours: int,
    options: dict[str, Any],
) -> list[Duplicates]:
    """Groups of classes, given a model of each, that are linked by distances below the threshold."""
    a, b = _candidates(symmetry, values, near, neighbours)
    distance = _distances(symmetry, values, a, b, {**options, "restarts": 0})
    again = np.flatnonzero(distance >= near)
    if options["restarts"] and len(again) and symmetry.moving:
        better = _distances(symmetry, values, a[again], b[again], options)
        distance[again] = np.minimum(distance[again], better)
    a, b, distance = (column[distance < near] for column in (a, b, distance))
    links = coo_array((np.ones(len(a)), (a, b)), shape=(len(values), len(values)))
    _, which = connected_components(links, directed=False)
    found = []
    for group in np.unique(which[a]).tolist():
        members = sorted(model for number in np.flatnonzero(which == group).tolist() for model in classes[number])
        found.append(Duplicates(tuple(members), "near", float(distance[which[a] == group].max())))
    return found


def _candidates(symmetry: Symmetry, values: np.ndarray, near: float, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs a < b that may be near: of each model those nearest by invariants, as far as these do not rule it out."""
    features, squares = invariants(symmetry, values), _squares(symmetry, values)
    norms = (features**2).sum(1)
    pairs: set[tuple[int, int]] = set()
    step = max(1, TOGETHER // len(values))
    count = min(neighbours, len(values) - 1)
    for begin in range(0, len(values), step):
        rows = np.arange(begin, min(begin + step, len(values)))
        apart = norms[rows, None] + norms - 2 * features[rows] @ features.T
        limit = near**2 * (squares[rows, None] + squares) / 2
        rounding = 1e-12 * (norms[rows, None] + norms)
        apart[np.arange(len(rows)), rows] = np.inf
        nearest = np.argpartition(apart, count - 1, axis=1)[:, :count]
        good = np.take_along_axis(apart <= limit + rounding, nearest, 1)
        for row, column in zip(*np.nonzero(good), strict=True):
            one, other = int(rows[row]), int(nearest[row, column])
            pairs.add((min(one, other), max(one, other)))
    found = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _distances(
    symmetry: Symmetry, values: np.ndarray, a: np.ndarray, b: np.ndarray, options: dict[str, Any]
) -> np.ndarray:
    """(pairs,) relative distances after matching."""
    places = _parameters(symmetry)
    squares = _squares(symmetry, values)
    found = np.empty(len(a))
    step = max(1, TOGETHER // max(1, symmetry.layout.size))
    for begin in range(0, len(a), step):
        one, other = a[begin : begin + step], b[begin : begin + step]
        moved = values[other]
        if symmetry.moving:
            moved = symmetry.permute(moved, match_weights(symmetry, moved, values[one], **options).permutations)
        apart = ((moved[:, places].astype(np.float64) - values[one][:, places]) ** 2).sum(1)
        scale = (squares[one] + squares[other]) / 2
        found[begin : begin + step] = np.sqrt(np.divide(apart, scale, out=np.zeros_like(apart), where=scale > 0))
    return found


def _parameters(symmetry: Symmetry) -> np.ndarray:
    roles: Iterable[tuple[str, str]] = zip(symmetry.layout.names, symmetry.layout.roles, strict=True)
    return symmetry.layout.indices([name for name, role in roles if role == "parameter"])


def _squares(symmetry: Symmetry, values: np.ndarray) -> np.ndarray:
    return np.array([float((one[_parameters(symmetry)].astype(np.float64) ** 2).sum()) for one in values])


def _as_numpy(weights: Any) -> np.ndarray:
    if is_torch(weights):
        weights = weights.detach().cpu()
        weights = (weights.float() if str(weights.dtype) == "torch.bfloat16" else weights).numpy()
    array: np.ndarray = np.ascontiguousarray(weights)
    return array
