"""Weight matching over permutations and signs at once, for units of odd activations.

Signs made canonical network by network jump where what goes into a unit sums to about 0: two tanh networks of width 32
that lie 0.3 of the spacing apart then come out 0.7 apart (median, digits MLPs, November 2026). Here the sign of a unit
is chosen with its place: both maximise the same inner product.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from weightspace.rebasin.costs import best_order, similarity
from weightspace.rebasin.objective import counted, dots
from weightspace.rebasin.steps import Step, plan_steps
from weightspace.symmetry import Scale, Symmetry

SWEEPS = 20
RELATIVE = 1e-9  # a sweep that gains less of the objective is the last
TOGETHER = 1 << 22  # numbers of weights worked on at once


def signed(symmetry: Symmetry) -> dict[str, Scale]:
    """The groups whose signs are free, with all parameters that they permute, and nothing else, changing sign."""
    scales = {scale.group: scale for scale in symmetry.scales if scale.kind == "sign"}
    return {
        group: scale
        for group, scale in scales.items()
        if not symmetry.ancestors(group)
        and {(tensor, axis) for tensor, axis, _ in scale.tensors} == set(_standing(counted(symmetry), group))
    }


def _standing(symmetry: Symmetry, group: str) -> Iterator[tuple[str, int]]:
    """Tensors and axes that a group permutes."""
    for tensor, axes in symmetry.axes.items():
        for number in range(len(axes)):
            if any(name == group for part in symmetry.axis(tensor, number) for name, _ in part):
                yield tensor, number


def match_signed(symmetry: Symmetry, weights: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The weights with their units permuted and their signs flipped, no further from the reference than they were.

    Coordinate descent from the order given: each step takes the assignment that is best for absolute inner products of
    units, and their signs.

    Args:
        weights, reference: (pairs, size) float32, one reference each.

    Returns:
        (pairs, size), the same functions.
    """
    free = signed(symmetry)
    steps = plan_steps(counted(symmetry), list(symmetry.moving), "plain")
    out = weights.copy()
    step = max(1, TOGETHER // symmetry.layout.size)
    for first in range(0, len(out), step):
        part = slice(first, first + step)
        _descend(symmetry, steps, free, out[part], np.ascontiguousarray(reference[part]))
    return out


def _descend(
    symmetry: Symmetry, steps: list[Step], free: dict[str, Scale], moved: np.ndarray, reference: np.ndarray
) -> None:
    """In place."""
    target = torch.from_numpy(reference)
    norms = np.einsum("ms,ms->m", reference, reference, dtype=np.float64)
    going = np.arange(len(moved))
    for _ in range(SWEEPS):
        gained = np.zeros(len(going))
        for step in steps:
            gained += _improve(symmetry, step, free.get(step.group), moved, target, going)
        going = going[gained > RELATIVE * norms[going]]
        if not len(going):
            return


def _improve(
    symmetry: Symmetry, step: Step, scale: Scale | None, moved: np.ndarray, target: Tensor, rows: np.ndarray
) -> np.ndarray:
    """One step of some pairs, in place; what each gained."""
    present = moved[rows]
    here, there = torch.from_numpy(present), target[torch.from_numpy(rows)]
    worth = similarity(step.places, there, here)
    order, _ = best_order(worth if scale is None else worth.abs())
    then = symmetry.identity(len(rows)) | {step.group: order}
    trial = symmetry.permute(present, then)
    if scale is not None:
        chosen = np.take_along_axis(worth.numpy(), order[..., None].astype(np.int64), -1)[..., 0]
        trial = symmetry.scale(trial, {step.group: np.where(chosen < 0, -1.0, 1.0)})
    gain = (dots(there, torch.from_numpy(trial), step.spans) - dots(there, here, step.spans)).numpy()
    better = gain > 0
    moved[rows[better]] = trial[better]
    return np.where(better, gain, 0.0)
