"""Model soups: the mean of all models, or of those that do a validation split good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from catalog.errors import InvalidSpecError, unknown_name
from zoo.architectures import Architecture
from zoo.evaluate import evaluate
from zoo.merging.averages import check_weights, combined, with_statistics
from zoo.splits import Split, fitting

KINDS = ("uniform", "greedy")


@dataclass(frozen=True)
class Soup:
    """A soup, or several.

    Args:
        weights: (size,), or (soups, size).
        members: (models,) or (soups, models) bool: which models are in it.
        accuracy: of the soup on the split that it was chosen on, and best, of the best model alone; numbers in [0, 1],
            or (soups,) float64. They are no estimate for new samples, since the members were chosen by them.
    """

    weights: Tensor
    members: np.ndarray
    accuracy: np.ndarray
    best: np.ndarray


def soup(
    architecture: Architecture,
    weights: Tensor,
    validation: Split,
    *,
    kind: str = "uniform",
    train: Split | None = None,
) -> Soup:
    """The mean of several models, many such means at once.

    "uniform" takes all of them. "greedy" takes the best one, then tries the others from the best to the worst (of equal
    ones the first) and keeps those with which the mean is no worse: it is never below the best model.

    Args:
        weights: (models, size), best in one frame; or (soups, models, size), each a soup of its own.
        validation: the samples that members are chosen on, the same for all soups.
        train: what statistics of BatchNorm are taken from, for means of two models or more; one alone stays as it is.

    Raises:
        InvalidSpecError: the test split; weights that do not fit or are not finite; BatchNorm layers and no `train`.
        UnknownNameError: another kind.

    Source: Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy
    without increasing inference time", arXiv 2203.05482, section 2, recipe 1.
    """
    if kind not in KINDS:
        raise unknown_name("kind of soup", kind, KINDS)
    check_weights(architecture, weights, (2, 3))
    pots = weights if weights.dim() == 3 else weights[None]
    if not pots.isfinite().all():
        at = int((~pots.isfinite()).any(-1).flatten().int().argmax())
        raise InvalidSpecError(f"weights of model {at} are not finite; leave diverged models out of a soup")
    x, y = fitting(validation, pots)

    def correct(some: Tensor) -> np.ndarray:
        return np.rint(evaluate(architecture, some, x, y).accuracy * len(x)).astype(np.int64)

    alone = correct(pots.flatten(0, 1)).reshape(pots.shape[:2])
    members = np.ones(alone.shape, bool)
    if kind == "greedy":
        mean, members, right = _greedy(architecture, pots, alone, correct, train)
    else:
        mean = _mean(architecture, pots, members, train)
        right = correct(mean)
    accuracy, best = right / len(x), alone.max(1) / len(x)
    if weights.dim() == 2:
        return Soup(mean[0], members[0], accuracy[0], best[0])
    return Soup(mean, members, accuracy, best)


def _greedy(
    architecture: Architecture,
    weights: Tensor,
    alone: np.ndarray,
    correct: Callable[[Tensor], np.ndarray],
    train: Split | None,
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """All soups step by step together: their weights, members, and how many samples they have right."""
    order, every = np.argsort(-alone, 1, kind="stable"), np.arange(len(alone))
    members = np.zeros(alone.shape, bool)
    members[every, order[:, 0]] = True
    best, right = _mean(architecture, weights, members, train), alone[every, order[:, 0]]
    for candidate in order[:, 1:].T:
        trial = members.copy()
        trial[every, candidate] = True
        mean = _mean(architecture, weights, trial, train)
        found = correct(mean)
        kept = found >= right
        members[kept], right[kept] = trial[kept], found[kept]
        best = torch.where(torch.from_numpy(kept).to(mean.device)[:, None], mean, best)
    return best, members, right


def _mean(architecture: Architecture, weights: Tensor, members: np.ndarray, train: Split | None) -> Tensor:
    """(soups, size): means of the members; a member that is alone is taken as it is."""
    mean = combined(weights, torch.from_numpy(members / members.sum(1, keepdims=True)))
    several = torch.from_numpy(members.sum(1) > 1).to(mean.device)
    if several.any():
        mean[several] = with_statistics(architecture, mean[several], train)
    return mean
