"""All permutations of a population at once, to a common universe, by Frank-Wolfe on their relaxation (C2M3)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import polynomial
from torch import Tensor

from kernels.assignment.assign import assign
from weightspace.arrays import few
from weightspace.rebasin.alignment import AlignmentError
from weightspace.rebasin.objective import counted
from weightspace.symmetry import Block, Permutations, Symmetry

PATIENCE = 5  # rounds without a gain, as in C2M3
TOGETHER = 1 << 21  # numbers of weights that are mixed at once

Mixes = Mapping[str, Tensor]  # group -> (models, size, size), doubly stochastic; row i is what comes to place i


@dataclass(frozen=True)
class Relaxed:
    """Permutations, and how they came about.

    Args:
        values: the agreement after each round, of the relaxed permutations.
    """

    permutations: dict[str, np.ndarray]
    rounds: int
    finished: bool
    values: tuple[float, ...]


def frank_wolfe(
    symmetry: Symmetry,
    weights: Tensor,
    start: Permutations,
    *,
    rounds: int = 200,
    tolerance: float = 1e-5,
    deadline: float | None = None,
    on_round: Callable[[int, float], None] | None = None,
) -> Relaxed:
    """Maximise the sum over pairs of inner products over one permutation per (model, group), relaxed to mixtures.

    Each round: the gradient, an assignment per (model, group), which is the vertex that it points to, the best place on
    the way there (the sum is a polynomial along it, whose maximum is found exactly), and a step of all models at once.
    At the end one more assignment each makes permutations of mixtures.

    Args:
        weights: (models, size). start: the permutations to begin from.
        tolerance: relative; rounds that gain less are not counted as a gain, and the fifth in a row is the last.
        deadline: by `time.monotonic`.

    Raises:
        AlignmentError: groups with parents.

    Source: Crisostomi, Fumero, Baieri, Bernard and Rodola 2024, "C2M3: Cycle-Consistent Multi-Model Merging",
        arXiv 2405.17897, section 3 and algorithm 1. Differs: they search the line with a bounded scalar search.
    """
    if nested := [name for name, group in symmetry.moving.items() if group.parent is not None]:
        raise AlignmentError(
            f"frank_wolfe has no relaxation of groups inside the units of others ({few(nested)}); use barycentre"
        )
    symmetry = counted(symmetry)
    blocks = [block for block in symmetry.blocks if any(group in symmetry.moving for group in block.groups)]
    mixes = {name: _matrices(p, weights.device) for name, p in start.items()}
    models = len(weights)
    pairs = max(models * (models - 1), 1)
    values: list[float] = []
    idle, finished, number = 0, False, 0
    for number in range(1, rounds + 1):
        gradient = _gradient(symmetry, blocks, weights, mixes)
        vertices = {name: _matrices(_assigned(g), weights.device) for name, g in gradient.items()}
        along = _along(symmetry, blocks, weights, mixes, vertices)
        step = _highest(along)
        before, after = float(along[0]), float(polynomial.polyval(step, along))
        mixes = {name: mix.lerp(vertices[name], step) for name, mix in mixes.items()}
        values.append(after / pairs)
        if on_round:
            on_round(number, after / pairs)
        idle = 0 if after - before > tolerance * abs(after) else idle + 1
        finished = step == 0.0 or idle >= PATIENCE
        if finished or (deadline is not None and time.monotonic() >= deadline):
            break
    return Relaxed({name: _assigned(mix) for name, mix in mixes.items()}, number, finished, tuple(values))


def _matrices(permutations: np.ndarray, device: torch.device) -> Tensor:
    """(models, size) -> (models, size, size) float64 with a one in each row."""
    return torch.eye(permutations.shape[1], dtype=torch.float64, device=device)[
        torch.from_numpy(permutations.astype(np.int64)).to(device)
    ]


def _assigned(scores: Tensor) -> np.ndarray:
    """(models, size) int32: the permutations with the greatest scores."""
    return assign(scores, maximize=True).columns.cpu().numpy().astype(np.int32)


def _gradient(symmetry: Symmetry, blocks: Sequence[Block], weights: Tensor, mixes: Mixes) -> dict[str, Tensor]:
    """For each group (models, size, size): what a pair of places and units adds to the sum over pairs."""
    gradient = {name: torch.zeros_like(mix) for name, mix in mixes.items()}
    for block in blocks:
        axes = _axes(symmetry, block)
        total = torch.zeros([size for _, size, _ in block.dims], dtype=torch.float64, device=weights.device)
        for some in _parts(weights, block):
            total += _mixed(_view(block, weights, some), mixes, axes, some).sum(0)
        for some in _parts(weights, block):
            whole = _view(block, weights, some)
            others = total - _mixed(whole, mixes, axes, some)
            for axis, group in axes.items():
                rest = _mixed(whole, mixes, {a: g for a, g in axes.items() if a != axis}, some)
                gradient[group][some] += _lines(others, axis) @ _lines(rest, axis).mT
    return gradient


def _along(symmetry: Symmetry, blocks: Sequence[Block], weights: Tensor, mixes: Mixes, vertices: Mixes) -> np.ndarray:
    """Coefficients of the sum over ordered pairs as a polynomial in the step from the mixes to the vertices.

    A block with k groups is a polynomial of degree k for each model; k + 1 points between give its coefficients.
    """
    degree = max(len(_axes(symmetry, block)) for block in blocks)
    found = np.zeros(2 * degree + 1)
    for block in blocks:
        axes = _axes(symmetry, block)
        points = np.linspace(0, 1, len(axes) + 1)
        solve = torch.from_numpy(np.linalg.inv(np.vander(points, increasing=True))).to(weights.device)
        total = torch.zeros(len(points), math.prod(n for _, n, _ in block.dims), device=weights.device).double()
        own = torch.zeros(len(points), len(points), dtype=torch.float64, device=weights.device)
        for some in _parts(weights, block, len(points)):
            whole = _view(block, weights, some)
            ways = [{name: mixes[name][some].lerp(vertices[name][some], t) for name in axes.values()} for t in points]
            at = torch.stack([_mixed(whole, way, axes, slice(None)).flatten(1) for way in ways])
            terms = (solve @ at.flatten(1)).reshape(at.shape)  # coefficients, each (models, numbers)
            total += terms.sum(1)
            own += torch.einsum("imk,jmk->ij", terms, terms)
        products = (total @ total.T - own).cpu().numpy()
        for i in range(len(points)):
            found[i : i + len(points)] += products[i]
    return found


def _highest(coefficients: np.ndarray) -> float:
    """Where in [0, 1] a polynomial is highest; 0 unless that is better than staying."""
    slope = np.trim_zeros(polynomial.polyder(coefficients), "b")
    roots = polynomial.polyroots(slope) if len(slope) > 1 else np.empty(0)
    inside = [float(root.real) for root in roots if abs(root.imag) < 1e-9 and 0 < root.real < 1]
    return max([0.0, 1.0, *inside], key=lambda t: float(polynomial.polyval(t, coefficients)))


def _axes(symmetry: Symmetry, block: Block) -> dict[int, str]:
    """Which group moves which axis of a block."""
    return {
        axis: group for axis, (group, _, _) in enumerate(block.dims) if group is not None and group in symmetry.moving
    }


def _parts(weights: Tensor, block: Block, copies: int = 1) -> list[slice]:
    """Slices of the models, so that a block of them fits the caches."""
    step = max(1, TOGETHER // (copies * max(math.prod(n for _, n, _ in block.dims), 1)))
    return [slice(begin, begin + step) for begin in range(0, len(weights), step)]


def _view(block: Block, weights: Tensor, some: slice) -> Tensor:
    """(models, *sizes of a block) float64."""
    part = weights[some]
    sizes = (len(part), *(size for _, size, _ in block.dims))
    strides = (part.stride(0), *(stride for _, _, stride in block.dims))
    return part.as_strided(sizes, strides, part.storage_offset() + block.offset).double()


def _mixed(values: Tensor, mixes: Mixes, axes: Mapping[int, str], some: slice) -> Tensor:
    """A block with the units of each axis mixed."""
    for axis, group in axes.items():
        lines = _lines(values, axis)
        moved = mixes[group][some] @ lines
        shape = values.movedim(axis + 1, 1).shape
        values = moved.reshape(shape).movedim(1, axis + 1)
    return values


def _lines(values: Tensor, axis: int) -> Tensor:
    """(models, entries of an axis, all others)."""
    return values.movedim(axis + 1, 1).flatten(2) if values.dim() > 2 else values[:, :, None]
