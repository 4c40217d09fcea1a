"""From permutations of groups to indices into tensors. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.permute.gather import Gather
from weightspace.axes import Block, parent_at, spread

if TYPE_CHECKING:
    from weightspace.symmetry import Symmetry

Permutations = Mapping[str, np.ndarray]


def places(block: Block) -> np.ndarray:
    """Where the elements of a block lie in the flat vector, as one flat array."""
    found = np.array(block.offset)
    for _, size, stride in block.dims:
        found = found[..., None] + np.arange(size) * stride
    return found.ravel()


def positions(symmetry: Symmetry, names: Sequence[str | None], number: int) -> list[int]:
    """Where among a block's groups the ancestors of one stand, and itself."""
    return [parent_at(names, number, ancestor) for ancestor in symmetry.ancestors(str(names[number]))] + [number]


def block_index(symmetry: Symmetry, block: Block, permutations: Permutations) -> np.ndarray:
    """(models, *sizes): which element of the flat vector comes to each place of a block."""
    names = [group for group, _, _ in block.dims]
    index: Any = np.full((1,) * (len(names) + 1), block.offset, np.int64)
    for number, (group, size, stride) in enumerate(block.dims):
        if group is None or symmetry.groups[group].fixed:
            moved = np.arange(size).reshape(1, *(size if d == number else 1 for d in range(len(names))))
        else:
            moved = spread(permutations[group], positions(symmetry, names, number), len(names))
        index = index + moved.astype(np.int64) * stride
    return index


def axis_index(symmetry: Symmetry, name: str, number: int, permutations: Permutations) -> np.ndarray:
    """(models, entries) int64: which entry comes to each place of an axis that holds all parents of its groups."""
    models, start, parts = len(next(iter(permutations.values()))), 0, []
    for part in symmetry.axis(name, number):
        size = math.prod(n for _, n in part)
        dims = tuple((g, n, math.prod(m for _, m in part[at + 1 :])) for at, (g, n) in enumerate(part))
        index = block_index(symmetry, Block(name, start, dims), permutations)
        parts.append(np.broadcast_to(index, (models, *(n for _, n in part))).reshape(models, size))
        start += size
    return np.concatenate(parts, 1)


def gather(symmetry: Symmetry, name: str, permutations: Permutations) -> Gather:
    """Rows and columns of a tensor; all its elements as rows where two axes cannot say it."""
    offset, shape = symmetry.layout.slice(name).start, symmetry.shape(name)
    axes = [symmetry.axis(name, number) for number in range(len(shape))]
    groups = [{group for part in axis for group, _ in part if group in symmetry.moving} for axis in axes]
    moving = [number for number, found in enumerate(groups) if found]
    if not moving:
        return Gather(offset, math.prod(shape), 1, 1, None, None)
    if len(moving) > 2 or any(not _complete(symmetry, axes[number]) for number in moving):
        index = np.empty((len(next(iter(permutations.values()))), math.prod(shape)), np.int64)
        for block in symmetry.blocks_of(name):
            here = places(block) - offset
            index[:, here] = block_index(symmetry, block, permutations).reshape(-1, len(here))  # of one if all stays
        return Gather(offset, math.prod(shape), 1, 1, index - offset, None)
    first, last = moving[0], moving[-1]
    columns, inner = axis_index(symmetry, name, last, permutations), math.prod(shape[last + 1 :])
    if first == last:
        return Gather(offset, math.prod(shape[:last]), shape[last], inner, None, columns)
    rows = axis_index(symmetry, name, first, permutations)  # axes before it and between the two are rows that stay
    before, between = math.prod(shape[:first]), math.prod(shape[first + 1 : last])
    steps = np.arange(before)[:, None, None] * shape[first] + rows[:, None, :, None]
    rows = (steps * between + np.arange(between)).reshape(len(rows), -1)
    return Gather(offset, rows.shape[1], shape[last], inner, rows, columns)


def _complete(symmetry: Symmetry, axis: Sequence[Sequence[tuple[str | None, int]]]) -> bool:
    """Whether the parents of all groups on an axis stand on it too."""
    return all(
        set(symmetry.ancestors(group)) <= {g for g, _ in part}
        for part in axis
        for group, _ in part
        if group is not None
    )
