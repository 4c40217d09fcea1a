"""Novelty once symmetries are removed: a copy whose units were reordered, rescaled or flipped is still a copy.

The quotient distance of two networks a and b is

    d(a, b) = min over permutations P and signs S of | P S bal(a) - bal(b) |

over parameters, where bal gives each network the positive scales of least norm (`weightspace.balance`, exact), of which
there is one form. The minimum is what a search finds: weight matching from a common frame, with restarts for the models
that come out nearest. So what is given is an UPPER bound of d, exact for one hidden layer without signs; the spacing is
found the same way, so that ratios compare like with like.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from generators.evaluation.estimate import as_weights
from generators.evaluation.novelty import (
    Novelty,
    Spacing,
    check_finite,
    checked_spacing,
    distances,
    lineage_codes,
    novelty,
    parameters,
    spacing,
)
from generators.evaluation.signs import match_signed, signed
from weightspace.balance import balance
from weightspace.duplicates import invariants
from weightspace.layout import Layout
from weightspace.rebasin.matching import match_weights
from weightspace.rebasin.objective import counted, dots, spans
from weightspace.rebasin.universe import align_universe, join
from weightspace.symmetry import Symmetry

LIMIT = 200_000  # pairs that are all matched; of more only the candidates are
CANDIDATES = 8  # training models of each kind that are matched with each sample above the limit
REFINED = 4  # of the nearest training models of each sample that are searched again
RESTARTS = 2
MEMBERS = 256  # training models that make the common frame; the others join it
TOGETHER = 1 << 25  # numbers of weights of pairs held at once


@dataclass(frozen=True)
class Search:
    """How hard the minimum is looked for.

    Args:
        limit: pairs of sample and training model up to which all are matched.
        candidates: above it, so many training models nearest in the common frame, and so many by invariants.
        refined: so many of those that came out nearest are matched again, with `restarts` random orders.
        seed: of the common frame and of restarts. threads: of compiled code.
    """

    limit: int = LIMIT
    candidates: int = CANDIDATES
    refined: int = REFINED
    restarts: int = RESTARTS
    seed: int = 0
    threads: int | None = None


def quotient_spacing(
    training: np.ndarray,
    lineages: Sequence[object] | np.ndarray,
    layout: Layout,
    symmetry: Symmetry | None,
    search: Search = Search(),
) -> Spacing:
    """Quotient distance of each training model to the nearest one of another lineage.

    Args:
        training: (models, size) float32. lineages: (models,) run of each.
        symmetry: of the architecture; None, for one without hidden units, gives the raw spacing.

    Raises:
        GeneratorError: see `generators.evaluation.novelty.spacing`.
    """
    if symmetry is None or not symmetry.moving:
        return spacing(training, lineages, layout)
    values, codes = as_weights(training, layout.size, "training weights"), lineage_codes(lineages, len(training))
    check_finite(values, "training weights")
    frame = _frame(symmetry, canonical(symmetry, values), search)
    return checked_spacing(Spacing(*_nearest(symmetry, frame.weights, frame.weights, search, codes, codes)))


def quotient_novelty(
    samples: np.ndarray,
    training: np.ndarray,
    lineages: Sequence[object] | np.ndarray,
    layout: Layout,
    symmetry: Symmetry | None,
    search: Search = Search(),
    *,
    own: Spacing | None = None,
) -> Novelty:
    """Quotient distance of each sample to the nearest training model, and the quotient spacing to measure it by.

    Args:
        samples: (samples, size). training: (models, size) float32. lineages: (models,) run of each training model.
        symmetry: of the architecture; None, for one without hidden units, gives raw novelty.
        own: quotient spacing of the training models, if it is known already.

    Raises:
        GeneratorError: see `generators.evaluation.novelty.spacing`.
    """
    if symmetry is None or not symmetry.moving:
        return novelty(samples, training, lineages, layout, own=own)
    values, known = as_weights(samples, layout.size, "samples"), as_weights(training, layout.size, "training weights")
    check_finite(known, "training weights")
    good = np.isfinite(values).all(1)
    frame = _frame(symmetry, canonical(symmetry, known), search)
    if own is None:
        codes = lineage_codes(lineages, len(known))
        own = checked_spacing(Spacing(*_nearest(symmetry, frame.weights, frame.weights, search, codes, codes)))
    distance, index = np.full(len(values), np.nan), np.full(len(values), -1, np.int64)
    if good.any():
        some = _joined(symmetry, canonical(symmetry, values[good]), frame.universe, search)
        distance[good], index[good] = _nearest(symmetry, some, frame.weights, search)
    return Novelty(distance, index, own)


def canonical(symmetry: Symmetry, weights: np.ndarray) -> np.ndarray:
    """(models, size) float32 of the same functions, with balanced scales and canonical signs; units stay in place."""
    values = np.ascontiguousarray(weights, np.float32)
    if not symmetry.scales:
        return values
    scaled: np.ndarray = symmetry.scale(values, balance(symmetry, values, exact=True, signs=True))
    return scaled


@dataclass(frozen=True)
class _Frame:
    """Training models in a common order of units, (models, size), and their mean, (size,)."""

    weights: np.ndarray
    universe: np.ndarray


def _frame(symmetry: Symmetry, weights: np.ndarray, search: Search) -> _Frame:
    members = weights[np.linspace(0, len(weights) - 1, min(len(weights), MEMBERS)).astype(int)]
    universe = align_universe(symmetry, members, seed=search.seed, threads=search.threads).universe
    return _Frame(_joined(symmetry, weights, universe, search), universe)


def _joined(symmetry: Symmetry, weights: np.ndarray, universe: np.ndarray, search: Search) -> np.ndarray:
    found = join(symmetry, weights, universe, seed=search.seed, threads=search.threads)
    moved: np.ndarray = symmetry.permute(weights, found.permutations)
    return moved


def _nearest(
    symmetry: Symmetry,
    a: np.ndarray,
    b: np.ndarray,
    search: Search,
    groups_a: np.ndarray | None = None,
    groups_b: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Distance to and index of the nearest of b for each of a, leaving out those of the same group."""
    same = None if groups_a is None or groups_b is None else groups_a[:, None] == groups_b
    if len(a) * len(b) <= search.limit:
        table = _all_pairs(symmetry, a, b, search)
        if same is not None:
            table[same] = np.inf
        nearest = np.argsort(table, 1, kind="stable")[:, : search.refined]
    else:
        nearest = _candidates(symmetry, a, b, search, same)
    rows = np.repeat(np.arange(len(a)), nearest.shape[1])
    apart = _matched(symmetry, a, b, rows, nearest.ravel(), search).reshape(nearest.shape)
    if same is not None:
        apart[np.take_along_axis(same, nearest, 1)] = np.inf
    best = apart.argmin(1)[:, None]
    return np.take_along_axis(apart, best, 1)[:, 0], np.take_along_axis(nearest, best, 1)[:, 0]


def _all_pairs(symmetry: Symmetry, a: np.ndarray, b: np.ndarray, search: Search) -> np.ndarray:
    """(models a, models b) float64 distances after matching from the orders given."""
    import torch

    layout, moving = symmetry.layout, counted(symmetry).axes
    roles = zip(layout.names, layout.roles, strict=True)
    still = spans(symmetry, [name for name, role in roles if role == "parameter" and name not in moving])
    one, other = ((parameters(x, layout, "").astype(np.float64) ** 2).sum(1) for x in (a, b))
    table = np.empty((len(a), len(b)))
    for place, reference in enumerate(b):
        inner = match_weights(symmetry, a, reference, seed=search.seed, threads=search.threads).after
        inner = inner + dots(torch.from_numpy(reference[None]), torch.from_numpy(a), still).numpy()
        table[:, place] = np.sqrt(np.maximum(one + other[place] - 2 * inner, 0))
    return table


def _candidates(
    symmetry: Symmetry, a: np.ndarray, b: np.ndarray, search: Search, same: np.ndarray | None
) -> np.ndarray:
    """(models a, candidates) int64: those of b nearest as they are, and by what no permutation changes."""
    found = []
    for one, other in (
        (parameters(a, symmetry.layout, ""), parameters(b, symmetry.layout, "")),
        (invariants(symmetry, a), invariants(symmetry, b)),
    ):
        centre = other.mean(0, dtype=np.float64)
        other = other - centre
        apart = (other**2).sum(1) - 2 * (one - centre) @ other.T
        if same is not None:
            apart[same] = np.inf
        count = min(search.candidates, len(b))
        found.append(np.argpartition(apart, count - 1, 1)[:, :count])
    return np.concatenate(found, 1)


def _matched(
    symmetry: Symmetry, a: np.ndarray, b: np.ndarray, rows: np.ndarray, columns: np.ndarray, search: Search
) -> np.ndarray:
    """(pairs,) float64 distances after matching with restarts, by differences: 0 for equal ones."""
    found = np.empty(len(rows))
    for part in _parts(len(rows), a.shape[1]):
        moved, target = a[rows[part]], b[columns[part]]
        found_order = match_weights(
            symmetry, moved, target, restarts=search.restarts, seed=search.seed, threads=search.threads
        )
        moved = symmetry.permute(moved, found_order.permutations)
        if signed(symmetry):
            moved = match_signed(symmetry, moved, target)
        found[part] = distances(parameters(moved, symmetry.layout, ""), parameters(target, symmetry.layout, ""))
    return found


def _parts(count: int, each: int) -> Iterator[slice]:
    step = max(1, TOGETHER // each)
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))
