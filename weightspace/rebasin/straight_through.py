"""Straight-through refinement of permutations by the loss half way to the reference.

Source: Ainsworth et al. 2023, "Git Re-Basin", arXiv 2209.04836, section 3.3. Differs: permutations kept are those of
the least loss over all batches given, not those of the best single batch; the optimiser is Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from weightspace.rebasin.alignment import Alignment, AlignmentError
from weightspace.rebasin.matching import match_weights
from weightspace.rebasin.objective import checked, checked_start, chosen_groups, objective
from weightspace.symmetry import Permutations, Symmetry

Batch = TypeVar("Batch")
SWEEPS = 10  # of the match after each step, which begins from the last one


@dataclass(frozen=True)
class Refined:
    """Permutations of the least loss half way to the reference.

    Args:
        alignment: these permutations. Its objective is that of weight matching, which is not what is lowered here.
        before, after: (models,) float64, mean loss half way, over all batches: with the start, and now.
    """

    alignment: Alignment
    before: np.ndarray
    after: np.ndarray


def refine_straight_through(
    symmetry: Symmetry,
    weights: Any,
    reference: Any,
    batches: Sequence[Batch],
    loss: Callable[[Tensor, Batch], Tensor],
    *,
    start: Permutations | None = None,
    epochs: int = 1,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> Refined:
    """Permute each model so that the loss half way between it and the reference is low, also where weights lie far off.

    Free weights t, at first the reference, choose the permutations: those that bring the model nearest to t. The loss
    is taken at the middle of the reference and the permuted model, and its gradient there moves t. After every pass
    over the batches the permutations are kept for the models whose mean loss has fallen.

    Args:
        weights: (models, size), numpy or torch. reference: (size,).
        batches: training data, gone through `epochs` times in this order, and once more after each to compare.
        loss: of (models, size) weights on a batch, (models,), differentiable in the weights.
        start: permutations to begin from; None for those of weight matching.
        learning_rate: of Adam, in weight units a step.
        seed: of the order of groups in the matches.

    Raises:
        AlignmentError: what does not fit, no batches, or a loss that is not one number a model.
    """
    chosen_groups(symmetry)
    population = checked(symmetry, weights, "weights")
    target = checked(symmetry, reference, "the reference", (1,)).to(population.device, population.dtype)
    if not len(batches):
        raise AlignmentError("straight-through refinement needs batches of training data, got none")
    if start is None:
        start = match_weights(symmetry, population, target, seed=seed).permutations
    present = checked_start(symmetry, start, len(population))
    free = target.repeat(len(population), 1).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=learning_rate)
    best = {name: p.copy() for name, p in present.items()}
    before = _mean_loss(_middle(symmetry, population, target, best), batches, loss)
    after = before.copy()
    for _ in range(epochs if len(population) else 0):
        for batch in batches:
            middle = _middle(symmetry, population, target, present).requires_grad_()
            (gradient,) = torch.autograd.grad(_each(loss, middle, batch).sum(), middle)
            free.grad = gradient / 2  # the middle moves half as far as the model does
            optimizer.step()
            present = dict(
                match_weights(
                    symmetry, population, free.detach(), start=present, seed=seed, sweeps=SWEEPS, layerwise=False
                ).permutations
            )
        value = _mean_loss(_middle(symmetry, population, target, present), batches, loss)
        better = value < after
        after[better] = value[better]
        for name, p in present.items():
            best[name][better] = p[better]
    counts = np.full(len(population), epochs, np.int64)
    moved = symmetry.permute(population, best) if len(population) else population
    alignment = Alignment(
        best,
        objective(symmetry, population, target),
        objective(symmetry, moved, target),
        counts,
        target.cpu().numpy(),
        np.ones(len(population), bool),
    )
    return Refined(alignment, before, after)


def _middle(symmetry: Symmetry, weights: Tensor, reference: Tensor, permutations: Permutations) -> Tensor:
    """(models, size) half way between the reference and the permuted models."""
    return (reference + symmetry.permute(weights, permutations)) / 2 if len(weights) else weights.clone()


def _mean_loss(weights: Tensor, batches: Sequence[Batch], loss: Callable[[Tensor, Batch], Tensor]) -> np.ndarray:
    """(models,) float64 over all batches."""
    total = np.zeros(len(weights))
    with torch.no_grad():
        for batch in batches:
            total += _each(loss, weights, batch).double().cpu().numpy()
    return total / len(batches)


def _each(loss: Callable[[Tensor, Batch], Tensor], weights: Tensor, batch: Batch) -> Tensor:
    values = loss(weights, batch)
    if values.shape != weights.shape[:1]:
        raise AlignmentError(
            f"the loss must give one number for each of {len(weights)} models, got {tuple(values.shape)}; "
            "take the mean over samples, not over models"
        )
    return values
