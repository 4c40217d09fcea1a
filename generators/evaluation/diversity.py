"""Are samples different from each other, and does an ensemble of them gain by it?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from catalog.errors import GeneratorError
from generators.evaluation.estimate import Estimate, mean, pair_mean
from generators.evaluation.functions import Behaviour, pairwise_disagreement
from generators.evaluation.novelty import parameters
from kernels.distance.distance import pairwise_distance
from kernels.overlap.overlap import error_overlap
from kernels.random import permutation
from weightspace.layout import Layout

VOTES = 16
REPEATS = 64
VOTE_SITE = 7  # of the random streams
TOGETHER = 1 << 23  # pairs compared at once


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
        pair_mean(_sums(values[good], pairwise_distance)),
        pair_mean(_sums(some.bits, error_overlap)),
        pair_mean(_sums(some.predictions, pairwise_disagreement)),
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


def _sums(rows: np.ndarray, compare: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """(models,) of each model the sum of a comparison with all others."""
    sums = np.empty(len(rows))
    step = max(1, TOGETHER // max(1, len(rows)))
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        table = compare(some, rows)
        table[np.arange(len(some)), np.arange(first, first + len(some))] = 0
        sums[first : first + step] = table.sum(1, dtype=np.float64)
    return sums
