"""Weight matching as it is usually written: one model after the other, scipy's assignment in each step.

The peers of `benchmarks.alignment`. Source: Ainsworth, Hayase and Srinivasa 2023, "Git Re-Basin", arXiv 2209.04836,
algorithm 1: in PyTorch, step by step as in the ports of the authors' code that people use, and in numpy without what
only slows it down. Both compute in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightspace.symmetry import Symmetry

Solver = Callable[[np.ndarray], np.ndarray]
SWEEPS = 100


@functools.lru_cache
def axes_of(symmetry: Symmetry) -> dict[str, list[tuple[str, int]]]:
    """Group -> the tensors and axes that it moves, of networks without heads and flatten maps."""
    groups: dict[str, list[tuple[str, int]]] = {name: [] for name in symmetry.moving}
    for tensor, axes in symmetry.axes.items():
        for number, group in enumerate(axes):
            if group is not None:
                groups[group].append((tensor, number))
    return groups


def usual(
    symmetry: Symmetry, reference: Mapping[str, Tensor], model: Mapping[str, Tensor], seed: int = 0
) -> dict[str, np.ndarray]:
    """Permutations of one model in PyTorch."""
    groups = axes_of(symmetry)
    names = list(groups)
    permutations = {name: torch.arange(symmetry.groups[name].size) for name in names}
    generator = np.random.default_rng(seed)
    for _ in range(SWEEPS):
        progress = False
        for number in generator.permutation(len(names)):
            group = names[number]
            n = len(permutations[group])
            similarity = torch.zeros(n, n)
            for tensor, axis in groups[group]:
                b = model[tensor]
                for other, name in enumerate(symmetry.axes[tensor]):
                    if name is not None and other != axis:
                        b = torch.index_select(b, other, permutations[name])
                a = torch.moveaxis(reference[tensor], axis, 0).reshape(n, -1)
                similarity += a @ torch.moveaxis(b, axis, 0).reshape(n, -1).T
            _, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
            found = torch.from_numpy(columns)
            old = torch.einsum("ij,ij->i", similarity, torch.eye(n)[permutations[group]]).sum()
            new = torch.einsum("ij,ij->i", similarity, torch.eye(n)[found]).sum()
            progress = progress or bool(new > old + 1e-12)
            permutations[group] = found
        if not progress:
            break
    return {name: p.numpy() for name, p in permutations.items()}


def best_columns(similarity: np.ndarray) -> np.ndarray:
    """The assignment of the greatest total."""
    columns: np.ndarray = linear_sum_assignment(similarity, maximize=True)[1]
    return columns


def lean(
    symmetry: Symmetry,
    reference: Mapping[str, np.ndarray],
    model: Mapping[str, np.ndarray],
    seed: int = 0,
    solver: Solver = best_columns,
) -> dict[str, np.ndarray]:
    """Permutations of one model in numpy."""
    groups = axes_of(symmetry)
    names = list(groups)
    permutations = {name: np.arange(symmetry.groups[name].size) for name in names}
    generator = np.random.default_rng(seed)
    for _ in range(SWEEPS):
        progress = False
        for number in generator.permutation(len(names)):
            group = names[number]
            n = len(permutations[group])
            rows, similarity = np.arange(n), np.zeros((n, n), np.float32)
            for tensor, axis in groups[group]:
                b = model[tensor]
                for other, name in enumerate(symmetry.axes[tensor]):
                    if name is not None and other != axis:
                        b = np.take(b, permutations[name], axis=other)
                a = np.moveaxis(reference[tensor], axis, 0).reshape(n, -1)
                similarity += a @ np.moveaxis(b, axis, 0).reshape(n, -1).T
            found = solver(similarity)
            old, new = similarity[rows, permutations[group]].sum(), similarity[rows, found].sum()
            progress = progress or new > old + 1e-12
            permutations[group] = found
        if not progress:
            break
    return permutations


def one_by_one(
    match: Callable[..., Any], symmetry: Symmetry, reference: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Permutations (models, n) of each group; reference (size,), weights (models, size)."""

    def tensors(flat: np.ndarray) -> dict[str, Any]:
        whole: Any = torch.from_numpy(flat)[None] if match is usual else flat[None]
        return {name: symmetry.layout.tensor(whole, name)[0] for name in symmetry.axes}

    mine = tensors(reference)
    found = [match(symmetry, mine, tensors(one)) for one in weights]
    return {name: np.stack([one[name] for one in found]).astype(np.int32) for name in symmetry.moving}


def captured(symmetry: Symmetry, reference: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """All similarities (n, n) float32 that the matching of these models solves, in order."""
    kept: list[np.ndarray] = []

    def solver(similarity: np.ndarray) -> np.ndarray:
        kept.append(similarity.copy())
        return best_columns(similarity)

    one_by_one(functools.partial(lean, solver=solver), symmetry, reference, weights)
    return kept
