"""Groups inside the units of others: rows inside attention heads, channels inside the groups of a convolution.

The order of the heads and the orders within them depend on each other. Two ways to find both are here: jointly, and by
singular values, which do not change with the order within (Rinaldi et al. 2025, "Update Your Transformer to the Latest
Release: Re-Basin of Task Vectors", arXiv 2505.22697, "TransFusion", section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from weightspace.axes import parent_at
from weightspace.layout import Layout
from weightspace.rebasin.costs import Place, best_order, places
from weightspace.rebasin.objective import dots
from weightspace.symmetry import Group, Symmetry

PAIRED = 1 << 24  # numbers: of pairs of units that are looked at at once


def inside(symmetry: Symmetry, where: Sequence[Place], children: Sequence[str]) -> Symmetry:
    """The symmetry of what lies inside one unit of a group: the blocks it touches, cut at that unit, one after another.

    Args:
        where: the places of the group. children: the groups inside its units that may move.
    """
    (group,) = {place.block.dims[place.at][0] for place in where}
    assert group is not None
    outside = {group, *symmetry.ancestors(group)}
    shapes, axes, held = {}, {}, set[str]()
    for number, place in enumerate(where):
        names = [name for name, _, _ in place.block.dims]
        mine = [_own(symmetry, names, axis, group, place.at) for axis in place.rest]
        shapes[f"{number}"] = tuple(place.block.dims[axis][1] for axis in place.rest) or (1,)
        axes[f"{number}"] = tuple(mine) or (None,)
        held.update(name for name in mine if name is not None)
    groups = {}
    for name in held:
        chain = [name, *symmetry.ancestors(name)]
        for one in [other for other in chain if other not in outside]:
            above = [parent for parent in symmetry.ancestors(one) if parent not in outside]
            old = symmetry.groups[one]
            groups[one] = Group(old.size, above[-1] if above else None, old.fixed or one not in children)
    return Symmetry(Layout(tuple(shapes), tuple(shapes.values())), axes, groups)


def _own(symmetry: Symmetry, names: list[str | None], axis: int, group: str, at: int) -> str | None:
    """The group on an axis, if it lies inside the units of this group that stand on axis `at`."""
    name = names[axis]
    if name is None or group not in symmetry.ancestors(name):
        return None
    return name if parent_at(names, axis, group) == at else None


def joint_order(
    symmetry: Symmetry,
    where: Sequence[Place],
    children: Sequence[str],
    reference: Tensor,
    moved: Tensor,
) -> dict[str, np.ndarray]:
    """Best order of a group and, with it, best orders inside each of its units, given everything else.

    For every pair of a unit of the reference and one of the model the orders inside are found, and what they are worth
    is the worth of the pair: one assignment of units then is the best of all orders. It is exact where the groups
    inside do not meet each other in one block (query and key rows, value columns); where they do, as in a grouped
    convolution, orders inside a pair come from coordinate descent.

    Args:
        where: the places of the group. reference: (1 or models, size). moved: (models, size).

    Returns:
        Permutations of the group and the children, relative to the present order.
    """
    within = inside(symmetry, where, children)
    a, b = cut(where, reference), cut(where, moved)  # (models, *parents, units, entries)
    a = a.expand(b.shape)
    *sides, units, _ = b.shape
    some = max(1, PAIRED // max(1, b.numel()))
    parts = [_paired(within, a[..., first : first + some, :], b, children) for first in range(0, units, some)]
    order, _ = best_order(torch.cat([worth for worth, _ in parts], -2))
    (group,) = {place.block.dims[place.at][0] for place in where}
    then = {str(group): order}
    for name in children:
        if name not in within.moving:  # it stands at none of these places
            shape = symmetry.permutation_shape(name)
            then[name] = np.broadcast_to(np.arange(shape[-1], dtype=np.int32), (len(moved), *shape))
            continue
        p = np.concatenate([found[name] for _, found in parts], len(sides))
        index = order.reshape(*order.shape, *(1,) * (p.ndim - order.ndim))
        then[name] = np.take_along_axis(p, index, order.ndim).squeeze(order.ndim)
    return then


def _paired(within: Symmetry, a: Tensor, b: Tensor, children: Sequence[str]) -> tuple[Tensor, dict[str, np.ndarray]]:
    """What every pair of units is worth with the best orders inside, and these orders.

    Args:
        a: (..., some units, entries) of the reference. b: (..., units, entries) of the models.

    Returns:
        (..., some, units) float64, and group -> (..., some, units, *shape of its permutation).
    """
    from weightspace.rebasin.descent import descend  # which takes such steps itself: units inside units inside units

    *sides, some, entries = a.shape
    pairs = (*sides, some, b.shape[-2])
    ours = a.unsqueeze(-2).expand(*pairs, entries).reshape(-1, entries)
    theirs = b.unsqueeze(-3).expand(*pairs, entries).reshape(-1, entries)
    found = descend(within, theirs, ours, names=[name for name in within.moving if name in children])
    worth = dots(ours, found.moved, [slice(0, entries)]).view(pairs)
    return worth, {name: p.reshape(*pairs, *p.shape[1:]) for name, p in found.permutations.items()}


def cut(where: Sequence[Place], vectors: Tensor) -> Tensor:
    """(models, *parents' sizes, units, entries): what belongs to each unit of a group, in the layout of `inside`."""
    return torch.cat([place.rows(vectors) for place in where], -1)


def singular_order(symmetry: Symmetry, group: str, reference: Tensor, moved: Tensor) -> np.ndarray:
    """(models, *parents' sizes, units): the order of units whose singular values are nearest to the reference's.

    For attention heads and each of their matrices (query, key, value and output), TransFusion section 3, phase A;
    it takes query, key and value. No order of rows or columns changes singular values, so that neither the orders
    inside the heads nor those of other groups matter.

    Args:
        group: with groups inside. reference: (1 or models, size). moved: (models, size).
    """
    total: Tensor | float = 0.0
    for place in places(symmetry, group):
        names = [name for name, _, _ in place.block.dims]
        mine = [axis for axis in place.rest if _own(symmetry, names, axis, group, place.at)]
        if not mine:
            continue
        rest = tuple(axis for axis in place.rest if axis not in mine)
        matrix = Place(place.block, place.at, place.parents, (*mine, *rest))
        rows = math.prod(place.block.dims[axis][1] for axis in mine)
        values = []
        for vectors in (reference, moved):
            flat = matrix.rows(vectors).double()
            values.append(torch.linalg.svdvals(flat.reshape(*flat.shape[:-1], rows, -1)))
        a, b = values
        total = total + (a.unsqueeze(-2) - b.unsqueeze(-3)).norm(dim=-1)
    assert isinstance(total, Tensor)  # a group with groups inside meets them in some block
    return best_order(-total)[0]
