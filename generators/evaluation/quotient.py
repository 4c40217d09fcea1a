"""Novelty once symmetries are removed: a copy whose units were reordered, rescaled or flipped is still a copy.

The quotient distance of two networks a and b is

    d(a, b) = min over permutations P and signs S of | P S bal(a) - bal(b) |

over parameters, where bal gives each network the positive scales of least norm (`weightspace.balance`, exact), of which
there is one form. The minimum is what a search finds: weight matching from a common frame, and from an order found
layer by layer for the models that come out nearest. So what is given is an UPPER bound of d; the spacing is found
by the same search, so that ratios compare like with like.

Against all 100 training models with ten random restarts each it is above by 0.1 % (ReLU) and 0.9 % (tanh; at most 3 %)
on digits MLPs 64-32-32-10, by 0.02 % at width 128 (20, 20 and 6 held-out runs, November 2026).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catalog.errors import GeneratorError
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
from kernels.distance.distance import nearest
from weightspace.balance import balance
from weightspace.duplicates import invariants
from weightspace.layout import Layout
from weightspace.rebasin.matching import match_weights
from weightspace.rebasin.universe import align_universe, join
from weightspace.symmetry import Symmetry

LIMIT = 64  # training models of which all are matched with each sample; of more only the candidates are
CANDIDATES = 16  # training models of each kind that are matched with each sample above the limit
REFINED = 6  # of those that came out nearest are searched again
RESTARTS = 0
MEMBERS = 256  # training models that make the common frame; the others join it
TOGETHER = 1 << 23  # numbers of weights of pairs held at once

SPACED = 2048  # training models at most whose spacing is found: its median is known to a percent from far fewer
Groups = tuple[np.ndarray, np.ndarray]  # of the models of a and of b, int64


@dataclass(frozen=True)
class Search:
    """How hard the minimum is looked for, the same for samples and for the spacing.

    Args:
        limit: training models up to which all are matched with each sample.
        candidates: above it, so many nearest in the common frame, and so many nearest by invariants.
        refined: so many of those that came out nearest are searched again: from an order found layer by
            layer, from `restarts` random ones, and over signs.
        seed: of the common frame and of restarts. threads: of compiled code.
    """

    limit: int = LIMIT
    candidates: int = CANDIDATES
    refined: int = REFINED
    restarts: int = RESTARTS
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        if min(self.limit, self.restarts, self.seed) < 0 or min(self.candidates, self.refined) < 1:
            raise GeneratorError(
                f"limit, restarts and seed must be 0 or more, candidates and refined 1 or more; got {self}"
            )


@dataclass(frozen=True)
class Quotient:
    """A training population made ready to be compared with; see `quotient_of`.

    Args:
        symmetry: None where there is none to remove.
        weights: (models, size) float32, balanced and in a common order of units, or as they are without a symmetry.
        universe: (size,) that they are aligned to.
        spacing: quotient distances to the nearest of another lineage, of the models at `spaced`: all, or of more than
            `SPACED` so many, evenly spread.
    """

    layout: Layout
    symmetry: Symmetry | None
    search: Search
    weights: np.ndarray
    universe: np.ndarray
    spacing: Spacing
    spaced: np.ndarray


def quotient_of(
    training: np.ndarray,
    lineages: Sequence[object] | np.ndarray,
    layout: Layout,
    symmetry: Symmetry | None,
    search: Search | None = None,
) -> Quotient:
    """Make a training population ready, once for many sets of samples.

    Args:
        training: (models, size) float32, in any frame. lineages: (models,) run of each.
        symmetry: of the architecture; None, for one without hidden units, makes raw distances of it all.

    Raises:
        GeneratorError: see `generators.evaluation.novelty.spacing`.
    """
    search = search or Search()
    if symmetry is None or not symmetry.moving:
        own = spacing(training, lineages, layout)
        return Quotient(layout, None, search, training, np.empty(0, np.float32), own, np.arange(len(training)))
    values, codes = as_weights(training, layout.size, "training weights"), lineage_codes(lineages, len(training))
    check_finite(values, "training weights")
    balanced = canonical(symmetry, values)
    members = balanced[np.linspace(0, len(balanced) - 1, min(len(balanced), MEMBERS)).astype(int)]
    universe = align_universe(symmetry, members, seed=search.seed, threads=search.threads).universe
    joined = _joined(symmetry, balanced, universe, search)
    spaced = np.linspace(0, len(joined) - 1, min(len(joined), SPACED)).round().astype(np.int64)
    own = checked_spacing(Spacing(*_nearest(symmetry, joined[spaced], joined, search, (codes[spaced], codes))))
    return Quotient(layout, symmetry, search, joined, universe, own, spaced)


def quotient_novelty(samples: np.ndarray, known: Quotient) -> Novelty:
    """Quotient distance of each sample to the nearest training model, with the spacing to measure it by.

    Args:
        samples: (samples, size), in any frame. NaN and -1 for those that are not finite.

    Raises:
        GeneratorError: samples that do not fit.
    """
    if known.symmetry is None:
        return novelty(samples, known.weights, (), known.layout, own=known.spacing)
    values = as_weights(samples, known.layout.size, "samples")
    good = np.isfinite(values).all(1)
    distance, index = np.full(len(values), np.nan), np.full(len(values), -1, np.int64)
    if good.any():
        some = _joined(known.symmetry, canonical(known.symmetry, values[good]), known.universe, known.search)
        distance[good], index[good] = _nearest(known.symmetry, some, known.weights, known.search)
    return Novelty(distance, index, known.spacing)


def canonical(symmetry: Symmetry, weights: np.ndarray) -> np.ndarray:
    """(models, size) float32 of the same functions, with balanced scales and canonical signs; units stay in place."""
    values = np.ascontiguousarray(weights, np.float32)
    if not symmetry.scales:
        return values
    scaled: np.ndarray = symmetry.scale(values, balance(symmetry, values, exact=True, signs=True))
    return scaled


def _joined(symmetry: Symmetry, weights: np.ndarray, universe: np.ndarray, search: Search) -> np.ndarray:
    found = join(symmetry, weights, universe, seed=search.seed, threads=search.threads)
    moved: np.ndarray = symmetry.permute(weights, found.permutations)
    return moved


def _nearest(
    symmetry: Symmetry, a: np.ndarray, b: np.ndarray, search: Search, groups: Groups | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distance to and index of the nearest of b for each of a; with groups of both, none of the same group."""
    places = _candidates(symmetry, a, b, search, groups)
    first = _apart(symmetry, a, b, places, groups, lambda x, y: _by_order(symmetry, x, y, search))
    kept = np.argsort(first, 1, kind="stable")[:, : search.refined]
    places = np.take_along_axis(places, kept, 1)
    apart = _apart(symmetry, a, b, places, groups, lambda x, y: _by_search(symmetry, x, y, search))
    best = apart.argmin(1)[:, None]
    return np.take_along_axis(apart, best, 1)[:, 0], np.take_along_axis(places, best, 1)[:, 0]


def _candidates(symmetry: Symmetry, a: np.ndarray, b: np.ndarray, search: Search, groups: Groups | None) -> np.ndarray:
    """(models a, candidates) int64, -1 where there is none: all, or those nearest as they are and by invariants."""
    if len(b) <= search.limit:
        return np.tile(np.arange(len(b)), (len(a), 1))
    layout, count = symmetry.layout, min(search.candidates, len(b))
    (own, theirs), found = groups or (None, None), []
    for one, other in (
        (parameters(a, layout, "samples"), parameters(b, layout, "training weights")),
        (invariants(symmetry, a), invariants(symmetry, b)),
    ):
        found.append(nearest(one, other, count, groups_a=own, groups_b=theirs)[1])
    places = np.sort(np.concatenate(found, 1), 1)
    places[:, 1:][places[:, 1:] == places[:, :-1]] = -1
    return places


def _apart(
    symmetry: Symmetry,
    a: np.ndarray,
    b: np.ndarray,
    places: np.ndarray,
    groups: Groups | None,
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Distances to the models of b at these places, infinite where there is none or one of the same group."""
    known = places >= 0
    if groups is not None:
        known &= groups[0][:, None] != groups[1][places]
    rows, columns = np.nonzero(known)
    found = np.empty(len(rows))
    step = max(1, TOGETHER // symmetry.layout.size)
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        found[part] = measure(a[rows[part]], b[places[rows[part], columns[part]]])
    apart = np.full(places.shape, np.inf)
    apart[known] = found
    return apart


def _by_order(symmetry: Symmetry, a: np.ndarray, b: np.ndarray, search: Search) -> np.ndarray:
    """(pairs,) distances after one descent from the order given, from inner products: to rank by."""
    moved = match_weights(symmetry, a, b, seed=search.seed, threads=search.threads)
    one, other = (parameters(side, symmetry.layout, "weights") for side in (a, b))
    squares = [np.einsum("ms,ms->m", *pair) for pair in ((one, one), (other, other), (one, other))]
    apart = squares[0] + squares[1] - 2 * (squares[2] + moved.after - moved.before)
    return np.asarray(np.sqrt(np.maximum(apart, 0)))


def _by_search(symmetry: Symmetry, a: np.ndarray, b: np.ndarray, search: Search) -> np.ndarray:
    """(pairs,) distances after descents from other orders too (layer by layer, random), and over signs."""
    options: Any = {"restarts": search.restarts, "seed": search.seed, "threads": search.threads}
    found = match_weights(symmetry, a, b, layerwise=True, **options)
    moved = symmetry.permute(a, found.permutations)
    if signed(symmetry):
        moved = match_signed(symmetry, moved, b)
    return _distances(symmetry, moved, b)


def _distances(symmetry: Symmetry, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    layout = symmetry.layout
    return distances(parameters(a, layout, "samples"), parameters(b, layout, "training weights"))
