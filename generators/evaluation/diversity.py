"""Are samples different from each other, and does an ensemble of them gain by it?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from catalog.errors import GeneratorError
from generators.evaluation.estimate import Estimate, mean, pair_mean
from generators.evaluation.functions import TOGETHER, Behaviour, pairwise_disagreement, pairwise_iou
from generators.evaluation.novelty import parameters
from kernels.random import permutation
from weightspace.layout import Layout

VOTES = 16
REPEATS = 64
VOTE_SITE = 7  # of the random streams


@dataclass(frozen=True)
class Diversity:
    """Of a population, to be held beside the training population's own.

    Args:
        distance: mean Euclidean distance of pairs. iou: mean error-IoU of pairs. disagreement: mean share of samples
            on which pairs differ. Standard errors by the jackknife over models.
        ensemble_gain: accuracy of a majority vote less the mean accuracy of the voters; standard error over repeats.
        votes: networks in a vote, fewer than asked for where there are no more.
    """

    distance: Estimate
    iou: Estimate
    disagreement: Estimate
    ensemble_gain: Estimate
    votes: int


def diversity(
    weights: np.ndarray,
    seen: Behaviour,
    labels: np.ndarray,
    layout: Layout,
    *,
    votes: int = VOTES,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Diversity:
    """Of the networks that have not failed; `count` of the estimates says how many those are.

    Args:
        weights: (models, size). seen: of the same models. labels: (samples,).
        votes, repeats, seed: see `ensemble_gain`.

    Raises:
        GeneratorError: weights, behaviour and labels that do not fit.
    """
    values = parameters(weights, layout, "weights")
    if len(seen.failed) != len(values):
        raise GeneratorError(f"behaviour is of {len(seen.failed)} models, and there are {len(values)}")
    good = ~seen.failed
    some = seen.pick(good)
    return Diversity(
        pair_mean(distance_sums(values[good])),
        pair_mean(_sums(some.bits, pairwise_iou, 1.0)),
        pair_mean(_sums(some.predictions, pairwise_disagreement, 0.0)),
        ensemble_gain(some.predictions, labels, votes=votes, repeats=repeats, seed=seed),
        min(votes, len(some.failed)),
    )


def ensemble_gain(
    predictions: np.ndarray, labels: np.ndarray, *, votes: int = VOTES, repeats: int = REPEATS, seed: int = 0
) -> Estimate:
    """Accuracy of a majority vote of random networks less their own mean accuracy.

    A tie counts as the chance that a random choice among the first is right. With fewer networks than votes all vote.

    Args:
        predictions: (models, samples) classes. labels: (samples,).
        repeats: so many draws of `votes` different networks; their spread gives the standard error.

    Raises:
        GeneratorError: labels that do not fit, votes or repeats below 1.
    """
    answers, truth = np.asarray(predictions), np.asarray(labels)
    if answers.ndim != 2 or truth.shape != answers.shape[1:] or not len(truth):
        raise GeneratorError(f"predictions must be (models, samples) with labels, got {answers.shape}, {truth.shape}")
    if votes < 1 or repeats < 1:
        raise GeneratorError(f"votes and repeats must be 1 or more, got {votes} and {repeats}")
    if not len(answers):
        return mean(np.empty(0))
    key = np.array([seed], np.uint64)
    orders = permutation(key, VOTE_SITE, np.arange(repeats)[:, None], count=len(answers))[:, 0, :votes]
    right = (answers == truth).mean(1)
    classes = np.arange(int(max(answers.max(), truth.max())) + 1)
    gains = np.empty(repeats)
    for number, voters in enumerate(orders):
        ballots = (answers[voters][:, :, None] == classes).sum(0)  # (samples, classes)
        first = ballots == ballots.max(1, keepdims=True)
        won = first[np.arange(len(truth)), truth] / first.sum(1)
        gains[number] = won.mean() - right[voters].mean()
    return mean(gains)


def distance_sums(values: np.ndarray) -> np.ndarray:
    """(models,) float64, of each model the sum of its Euclidean distances to all others."""
    centred = values - values.mean(0, dtype=np.float64)
    squares = np.einsum("ms,ms->m", centred, centred)
    sums = np.empty(len(values))
    for part in _parts(len(values), len(values)):
        apart = squares[part, None] + squares - 2 * centred[part] @ centred.T
        apart[np.arange(len(apart)), np.arange(part.start, part.start + len(apart))] = 0
        sums[part] = np.sqrt(np.maximum(apart, 0)).sum(1)
    return sums


def _sums(rows: np.ndarray, compare: Callable[[np.ndarray, np.ndarray], np.ndarray], own: float) -> np.ndarray:
    """(models,) sums of a comparison with all others; `own` is what one has with itself."""
    sums = np.empty(len(rows))
    for part in _parts(len(rows), max(len(rows), 8 * rows.shape[1])):
        sums[part] = compare(rows[part], rows).sum(1) - own
    return sums


def _parts(count: int, each: int) -> Iterator[slice]:
    step = max(1, TOGETHER // max(each, 1))
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))
