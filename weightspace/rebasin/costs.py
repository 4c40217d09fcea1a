"""Similarities of units: what one assignment step is solved on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.assignment.assign import assign
from weightspace.axes import parent_at
from weightspace.rebasin.objective import products
from weightspace.symmetry import Block, Symmetry


@dataclass(frozen=True)
class Place:
    """Where a group stands in a block.

    Args:
        at: its axis. parents: the axes of its parents, the first parent first. rest: all other axes.
    """

    block: Block
    at: int
    parents: tuple[int, ...]
    rest: tuple[int, ...]

    @property
    def entries(self) -> int:
        """Of each unit."""
        return math.prod(self.block.dims[axis][1] for axis in self.rest)

    def units(self, vectors: Tensor) -> Tensor:
        """(models, *parents' sizes, size, *rest): a view of flat vectors (models, size)."""
        dims = self.block.dims
        sizes, strides = [size for _, size, _ in dims], [stride for _, _, stride in dims]
        offset = vectors.storage_offset() + self.block.offset
        view = torch.as_strided(vectors, (len(vectors), *sizes), (vectors.stride(0), *strides), offset)
        return view.permute(0, *(1 + axis for axis in (*self.parents, self.at, *self.rest)))

    def rows(self, vectors: Tensor) -> Tensor:
        """(models, *parents' sizes, size, entries of each unit)."""
        units = self.units(vectors)
        kept = 2 + len(self.parents)
        return units.reshape(*units.shape[:kept], math.prod(units.shape[kept:]))


def places(symmetry: Symmetry, group: str) -> tuple[Place, ...]:
    """Everywhere a group stands; a block in which it stands on two axes comes twice.

    There the objective is quadratic, and similarities are its slope at the present order.
    """
    found = []
    for block in symmetry.touching(group):
        names = [name for name, _, _ in block.dims]
        for at, name in enumerate(names):
            if name == group:
                parents = tuple(parent_at(names, at, parent) for parent in symmetry.ancestors(group))
                rest = tuple(axis for axis in range(len(names)) if axis not in (*parents, at))
                found.append(Place(block, at, parents, rest))
    return tuple(found)


def similarity(where: tuple[Place, ...], reference: Tensor, moved: Tensor) -> Tensor:
    """(models, *parents' sizes, size, size) float64: inner products of the reference's units with the models'.

    Args:
        where: the places of one group. reference: (1 or models, size). moved: (models, size), in their present order.
    """
    total: Tensor | None = None
    for place in where:
        a, b = place.rows(reference).double(), place.rows(moved).double()
        product = products(a, b)
        total = product if total is None else total + product
    assert total is not None  # a group stands somewhere
    return total


def best_order(worth: Tensor, prices: Tensor | None = None) -> tuple[np.ndarray, Tensor]:
    """Which column is best for each row, in total: (..., size) int32 for each matrix of (..., size, size).

    Args:
        prices: (..., size), those of a similar problem: the last of the same units.

    Returns:
        The order and the prices of the columns, (..., size) float64.
    """
    shape, size = worth.shape[:-1], worth.shape[-1]
    if size == 1:
        return np.zeros(shape, np.int32), torch.zeros(shape, dtype=torch.float64, device=worth.device)
    v0 = None if prices is None else prices.reshape(-1, size)
    found = assign(worth.reshape(-1, size, size), v0, maximize=True)
    return found.columns.cpu().numpy().reshape(shape), found.v.reshape(shape)
