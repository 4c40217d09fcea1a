"""Axes of tensors written as expressions of groups, and the plain blocks that tensors are made of. Imports no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weightspace.arrays import brief, few

Factor = tuple[str | None, int]  # group, or None for what stays, and how many entries
Axis = tuple[tuple[Factor, ...], ...]  # one behind the other; in each, factors from the slowest to the fastest
MAX_FACTORS = 32  # in one block; numpy takes arrays of 64 axes
MAX_BLOCKS = 2**16  # in one tensor; a DenseNet-264 has 150: a description from a stranger must not take for ever


class SymmetryError(ValueError):
    """An architecture has no such symmetry, or permutations do not fit it."""


@dataclass(frozen=True)
class Group:
    """A set of units that may be permuted.

    Args:
        size: units.
        parent: another group: there is then one permutation for each of its units (the rows inside each head, say),
            and the units move with them.
        fixed: it never moves; such a group is there to be a parent.
    """

    size: int
    parent: str | None = None
    fixed: bool = False


@dataclass(frozen=True)
class Block:
    """A part of a tensor that has a plain shape: all factors of its axes, with strides in the flat vector.

    Args:
        tensor: its name. offset: of its first element.
        dims: (group or None, size, stride) from the slowest to the fastest.
    """

    tensor: str
    offset: int
    dims: tuple[tuple[str | None, int, int], ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that move it; one that stands on two axes comes twice."""
        return tuple(group for group, _, _ in self.dims if group is not None)


def words(text: object) -> list[str]:
    """The groups and numbers in an expression, in their order; raises SymmetryError if it is none.

    >>> words("heads qk + 3")
    ['heads', 'qk', '3']
    """
    if text is not None and not isinstance(text, str):
        raise SymmetryError(f"an axis must be an expression or None, got {brief(text)}")
    return [] if text is None else text.replace("+", " ").split()


def parse(text: str | None, size: int, groups: Mapping[str, Group]) -> Axis:
    """The factors of an axis of this size.

    >>> parse("a 2 + 3", 11, {"a": Group(4)})
    ((('a', 4), (None, 2)), ((None, 3),))
    """
    if text is None:
        return (((None, size),),)
    axis = tuple(tuple(_factor(word, groups) for word in part.split()) for part in text.split("+"))
    entries = sum(math.prod(size for _, size in part) for part in axis)
    if not all(axis) or entries != size:
        raise SymmetryError(f"an axis of {size} entries cannot be {brief(text)}, which has {entries}")
    return axis


def _factor(word: str, groups: Mapping[str, Group]) -> Factor:
    if word.isdecimal():
        return None, int(word[:20])  # beyond any size; int() refuses thousands of digits
    if word not in groups:
        raise SymmetryError(f"the size of the group {brief(word)} is not known; give it in groups")
    return word, groups[word].size


def order(groups: Mapping[str, Group], standing: Iterable[str]) -> dict[str, Group]:
    """The groups that stand on axes, in this order, parents before children; others are left out.

    Raises:
        SymmetryError: a group that is no group, or has a parent that stands on no axis.
    """
    for name, group in groups.items():
        if not isinstance(name, str) or not name or name.isdecimal() or len(name.split()) != 1 or "+" in name:
            raise SymmetryError(f"a group's name must be one word that is no number, without '+'; got {brief(name)}")
        if type(group.size) is not int or group.size < 1 or type(group.fixed) is not bool:
            raise SymmetryError(f"group {brief(name)} must have a size of 1 or more, got {brief(group)}")
    waiting = [name for name in dict.fromkeys(standing) if name in groups]
    ordered: dict[str, Group] = {}
    while waiting:
        ready = [name for name in waiting if groups[name].parent is None or groups[name].parent in ordered]
        if not ready:
            raise SymmetryError(f"groups have parents that are not there: {few(waiting)}")
        ordered |= {name: groups[name] for name in ready}
        waiting = [name for name in waiting if name not in ordered]
    return ordered


def lineages(groups: Mapping[str, Group]) -> dict[str, tuple[str, ...]]:
    """Group -> its ancestors, the oldest first. Parents come before children in `groups`."""
    found: dict[str, tuple[str, ...]] = {}
    for name, group in groups.items():
        if group.parent is not None and len(found[group.parent]) >= MAX_FACTORS:
            raise SymmetryError(f"group {name!r} has more than {MAX_FACTORS} ancestors")
        found[name] = () if group.parent is None else (*found[group.parent], group.parent)
    return found


def blocks(tensor: str, offset: int, shape: Sequence[int], axes: Sequence[Axis], named: set[str]) -> Iterator[Block]:
    """The parts of a tensor: one for each choice of a part on each axis. Groups that are not `named` stay."""
    starts = [list(itertools.accumulate((math.prod(n for _, n in part) for part in axis), initial=0)) for axis in axes]
    strides = [math.prod(shape[number + 1 :]) for number in range(len(shape))]
    for choice in itertools.product(*(range(len(axis)) for axis in axes)):
        begin, dims = offset, []
        for number, which in enumerate(choice):
            begin += starts[number][which] * strides[number]
            part = axes[number][which]
            for at, (group, size) in enumerate(part):
                step = math.prod(n for _, n in part[at + 1 :]) * strides[number]
                dims.append((group if group in named else None, size, step))
        yield Block(tensor, begin, tuple(dims))


def check_parents(tensor: str, axes: Sequence[Axis], above: Mapping[str, tuple[str, ...]]) -> None:
    """Raise SymmetryError unless it is clear, for each child, which parent on its tensor is its own.

    It is one before it on its own axis, or the only one.
    """
    if math.prod(map(len, axes)) > MAX_BLOCKS or sum(max(map(len, axis)) for axis in axes) > MAX_FACTORS:
        raise SymmetryError(f"tensor {tensor!r} has more than {MAX_BLOCKS} blocks, or one of {MAX_FACTORS} factors")
    if not any(above[group] for axis in axes for part in axis for group, _ in part if group is not None):
        return
    for choice in itertools.product(*axes):
        standing = [group for part in choice for group, _ in part]
        for part in choice:
            here = [group for group, _ in part]
            for at, group in enumerate(here):
                for ancestor in () if group is None else above[group]:
                    if ancestor not in here[:at] and standing.count(ancestor) != 1:
                        raise SymmetryError(
                            f"group {group!r} stands on tensor {tensor!r}, where its parent {ancestor!r} stands "
                            f"{standing.count(ancestor)} times; it must stand before it on the axis, or once"
                        )


def parent_at(names: Sequence[str | None], number: int, ancestor: str) -> int:
    """Where among a block's groups an ancestor of one stands: the nearest before it, else behind it."""
    found = [at for at, name in enumerate(names) if name == ancestor]
    return max((at for at in found if at < number), default=found[0])


def spread(values: np.ndarray, at: Sequence[int], ndim: int) -> np.ndarray:
    """What a group has for each of its units, (models, *ancestors, units), with these axes at those of a block.

    Args:
        at: which axis of the block belongs to each axis of the values but the first.
        ndim: axes of the block.
    """
    values = values.transpose(0, *(1 + np.argsort(at)))
    sides = dict(zip(sorted(at), values.shape[1:], strict=True))
    return values.reshape(len(values), *(sides.get(d, 1) for d in range(ndim)))
