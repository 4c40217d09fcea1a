"""The canonical form of scale symmetries: what goes into a unit weighs as much as what comes out of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightspace.arrays import is_torch
from weightspace.rebasin.alignment import AlignmentError
from weightspace.symmetry import Scale, Symmetry

ROUNDS = 1000  # passes over all groups; chains of many layers need some hundred
TOLERANCE = 1e-9  # of a scale: a pass that moves none further is the last
LARGEST = 2.0**60  # of a scale: its inverse, too, is a float32 that is not denormal
TOGETHER = 1 << 18  # numbers of weights worked on at once, to stay in the caches


def balance(
    symmetry: Symmetry,
    weights: Any,
    *,
    exact: bool = False,
    signs: bool = False,
    rounds: int = ROUNDS,
    tolerance: float = TOLERANCE,
) -> dict[str, np.ndarray]:
    """Scales that make the norms of what goes into each unit and of what comes out of it equal.

    Of all weights of the same function (by scaling) these have the least sum of squares, which is convex in the
    logarithms of the scales: there is one such form, whatever scales the weights came with. A unit with nothing going
    in, or nothing coming out, keeps 1.

    Args:
        weights: (models, size), numpy or torch.
        exact: False rounds to powers of two, with which `Symmetry.scale` loses no bit, and its inverse gives the same
            weights back; the norms then agree within a factor of 2. In universes of digits MLPs that costs 0.32 +- 0.12
            points of accuracy at midpoints where exact scales gain most (AdamW, width 32: from 91.45 to 92.35 %), and
            wins 0.18 +- 0.07 where they lose (SGD, width 32, 5 zoos of 100 each); `benchmarks.rebasin`.
        signs: give groups of odd activations signs too, see `canonical_signs`.
        rounds: passes at most. tolerance: relative, of a scale.

    Returns:
        group -> (models, size of the group, its parents' before it) float64, as `Symmetry.scale` takes them.

    Raises:
        AlignmentError: weights that are not finite.

    Source: Stock, Graham, Gribonval and Jegou 2019, "Equi-normalization of Neural Networks", arXiv 1902.10416, section
        3; theirs, too, scales layer after layer until nothing changes.
    """
    weights = _as_numpy(weights)
    symmetry.check_weights(weights)
    if not np.isfinite(weights).all():
        raise AlignmentError("weights must be finite; leave diverged models out")
    positive = [scale for scale in symmetry.scales if scale.kind == "positive"]
    found = {s.group: np.ones((len(weights), *symmetry.permutation_shape(s.group))) for s in positive}
    step = max(TOGETHER // max(symmetry.layout.size, 1), 1)
    for begin in range(0, len(weights) if positive else 0, step):
        part = slice(begin, begin + step)
        scales = _balanced(symmetry, weights[part], positive, rounds, tolerance)
        for group, values in scales.items():
            found[group][part] = values if exact else np.exp2(np.rint(np.log2(values)))
    return found | (canonical_signs(symmetry, symmetry.scale(weights, found)) if signs else {})


def canonical_signs(symmetry: Symmetry, weights: Any) -> dict[str, np.ndarray]:
    """For units of odd activations the sign with which the sum of what goes in is not below 0.

    What comes from units whose own sign is not known yet does not count; a group all of whose inputs are of that kind
    keeps 1. Sums are of sorted numbers, so that the order of units changes no bit.

    Returns:
        group -> (models, ...) of +-1, for the groups with signs.
    """
    weights = _as_numpy(weights)
    open_ = [scale for scale in symmetry.scales if scale.kind == "sign"]
    signs: dict[str, np.ndarray] = {}
    while open_:
        scaled = symmetry.scale(weights, signs) if signs else weights
        unknown = {scale.group for scale in open_}
        for scale in open_:
            usable = [
                (tensor, axis)
                for tensor, axis, exponent in scale.tensors
                if exponent > 0 and not (_scaled_by(symmetry, tensor, axis) & unknown)
            ]
            if usable:
                break
        sums: Any = 0.0
        for tensor, axis in usable:
            values = symmetry.layout.tensor(scaled, tensor).astype(np.float64)
            sums = sums + _unit_sums(symmetry, tensor, axis, scale.group, values, ordered=True)
        shape = (len(weights), *symmetry.permutation_shape(scale.group))
        signs[scale.group] = np.where(np.broadcast_to(sums, shape) < 0, -1.0, 1.0)
        open_.remove(scale)
    return signs


@dataclass(frozen=True)
class _Energy:
    """Sums of squares of a tensor over the axes that nothing scales.

    Args:
        values: (models, *axes), of length 1 where nothing scales. axes: (scale, axis of the tensor, exponent).
    """

    tensor: str
    values: np.ndarray
    axes: tuple[tuple[Scale, int, int], ...]


def _balanced(
    symmetry: Symmetry, weights: np.ndarray, positive: list[Scale], rounds: int, tolerance: float
) -> dict[str, np.ndarray]:
    """Coordinate descent over the groups; each step is exact."""
    energies = list(_energies(symmetry, weights, positive))
    squares = {s.group: np.ones((len(weights), *symmetry.permutation_shape(s.group))) for s in positive}
    for _ in range(rounds):
        moved = 0.0
        for scale in positive:
            into, out = _around(symmetry, energies, squares, scale)
            alive = (into > 0) & (out > 0)
            factor = np.sqrt(np.divide(out, into, out=np.ones_like(out), where=alive))
            new = np.clip(squares[scale.group] * factor, LARGEST**-2, LARGEST**2)
            moved = max(moved, float(np.abs(new / squares[scale.group] - 1).max(initial=0)))
            squares[scale.group] = new
        if moved <= 2 * tolerance:
            break
    return {group: np.sqrt(values) for group, values in squares.items()}


def _energies(symmetry: Symmetry, weights: np.ndarray, positive: list[Scale]) -> Iterator[_Energy]:
    """What the scales act on, tensor by tensor."""
    for tensor in symmetry.layout.names:
        axes = sorted(
            ((s, axis, exponent) for s in positive for name, axis, exponent in s.tensors if name == tensor),
            key=lambda entry: entry[1],
        )
        if axes:
            squares = symmetry.layout.tensor(weights, tensor).astype(np.float64) ** 2
            kept = {axis for _, axis, _ in axes}
            rest = tuple(1 + axis for axis in range(squares.ndim - 1) if axis not in kept)
            yield _Energy(tensor, squares.sum(rest, keepdims=True), tuple(axes))


def _around(
    symmetry: Symmetry, energies: list[_Energy], squares: Mapping[str, np.ndarray], scale: Scale
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squares of what goes into each unit of a group and of what comes out, with all scales as they are."""
    sums = {1: np.zeros_like(squares[scale.group]), -1: np.zeros_like(squares[scale.group])}
    for energy in energies:
        if all(s.group != scale.group for s, _, _ in energy.axes):
            continue
        values = energy.values
        for other, axis, exponent in energy.axes:
            along = symmetry.along(energy.tensor, axis, other.group, squares[other.group] ** exponent)
            sides = [len(values), *(1,) * (values.ndim - 1)]
            sides[1 + axis] = along.shape[1]
            values = values * along.reshape(sides)
        for other, axis, exponent in energy.axes:
            if other.group == scale.group:
                sums[exponent] += _unit_sums(symmetry, energy.tensor, axis, scale.group, values)
    return sums[1], sums[-1]


def _unit_sums(
    symmetry: Symmetry, tensor: str, number: int, group: str, values: np.ndarray, ordered: bool = False
) -> np.ndarray:
    """(models, parents' sizes, size): for each unit of a group, the sum of a tensor's values on its part of an axis.

    Args:
        ordered: sort what is summed first.
    """
    lines = np.moveaxis(values, 1 + number, 1).reshape(*values.shape[:1], values.shape[1 + number], -1)
    if not ordered:
        lines = lines.sum(-1, keepdims=True)
    names = (*symmetry.ancestors(group), group)
    total, start = np.zeros((len(values), *symmetry.permutation_shape(group))), 0
    for part in symmetry.axis(tensor, number):
        size = math.prod(n for _, n in part)
        groups = [name for name, _ in part]
        if group in groups:
            entries = lines[:, start : start + size].reshape(len(values), *(n for _, n in part), -1)
            kept = [1 + groups.index(name) for name in names if name in groups]
            rest = [axis for axis in range(1, entries.ndim) if axis not in kept]
            flat = entries.transpose(0, *kept, *rest).reshape(len(values), *(entries.shape[k] for k in kept), -1)
            total += (np.sort(flat, -1) if ordered else flat).sum(-1)
        start += size
    return total


def _scaled_by(symmetry: Symmetry, tensor: str, but: int) -> set[str]:
    """Groups that scale a tensor along another axis."""
    return {s.group for s in symmetry.scales for name, axis, _ in s.tensors if name == tensor and axis != but}


def _as_numpy(weights: Any) -> np.ndarray:
    array: np.ndarray = weights.detach().float().cpu().numpy() if is_torch(weights) else weights
    return array
