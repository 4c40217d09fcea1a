"""The values of a trace: tensors whose axes are made of atoms, and what views, slices and broadcasts make of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weightspace.derive.terms import (
    LEAF,
    SUM,
    WILD,
    Atom,
    Axis,
    ancestors,
    close,
    cut,
    depends,
    divide,
    fix,
    fixed,
    flat,
    forget,
    leaves,
    length,
    narrow,
    one,
    unite,
    wild,
)


@dataclass(eq=False)
class Value:
    """A tensor in a trace.

    Args:
        axes: one a dimension.
        tensor: name of the stored tensor that it is; None for anything computed.
    """

    axes: list[Axis]
    tensor: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(length(axis) for axis in self.axes)

    @property
    def ndim(self) -> int:
        return len(self.axes)


def unknown_value(shape: Sequence[int]) -> Value:
    """A tensor of which nothing is known: all its axes stay."""
    return Value([fixed(int(n)) for n in shape])


def constant_value(shape: Sequence[int]) -> Value:
    """A tensor of equal entries."""
    return Value([wild(int(n)) for n in shape])


def parameter(shape: Sequence[int], tensor: str) -> Value:
    """A stored tensor: all its axes may move, and depend on one another until an operation uses it."""
    axes = [[Atom(n)] for n in shape]
    for axis in axes:
        axis[0].home = axes
    return Value(axes, tensor)


def used(values: Iterable[Value]) -> None:
    """An operation other than a view has used these values."""
    for value in values:
        for axis in value.axes:
            close(axis)


def dependence(axis: Axis) -> int:
    """How many ancestors the leaves of an axis have at most."""
    return max((len(ancestors(leaf)) for leaf in leaves(axis)), default=0)


def unite_pairs(pairs: Iterable[tuple[Axis, Axis]]) -> list[Axis]:
    """Unite axes with axes, parents before their children; gives the united axes in the order they came."""
    pairs = list(pairs)
    out: dict[int, Axis] = {}
    while len(out) < len(pairs):  # uniting may split: look anew each time
        left = [number for number in range(len(pairs)) if number not in out]
        number = min(left, key=lambda n: (min(dependence(pairs[n][0]), dependence(pairs[n][1])), n))
        out[number] = unite(*pairs[number])
    return [out[number] for number in range(len(pairs))]


def mix(value: Value, dims: Iterable[int]) -> None:
    """An operation works across these axes as a whole: what stands on the others cannot depend on them."""
    chosen = {dim % value.ndim for dim in dims} if value.ndim else set()
    lost = [atom for dim in chosen for atom in flat(value.axes[dim])]
    for dim, axis in enumerate(value.axes):
        if dim not in chosen:
            forget(axis, lost)


def fix_dims(value: Value, dims: Iterable[int]) -> list[Axis]:
    """Let these axes stay, and nothing depend on them; gives the axes, where equal entries may differ from now on."""
    chosen = {dim % value.ndim for dim in dims}
    for dim in chosen:
        fix(value.axes[dim])
    mix(value, chosen)
    return [
        fixed(length(axis)) if dim in chosen and any(leaf.kind == WILD for leaf in leaves(axis)) else axis
        for dim, axis in enumerate(value.axes)
    ]


def broadcast(values: Sequence[Value]) -> list[Axis]:
    """The axes of what elementwise operations make of these values."""
    ndim = max(value.ndim for value in values)
    out: list[Axis] = []
    for number, value in enumerate(values):
        axes = [wild(1)] * (ndim - value.ndim) + value.axes
        if number == 0:
            out = axes
            continue
        out = [wild(length(b)) if length(a) == 1 else a for a, b in zip(out, axes, strict=True)]
        axes = [wild(length(a)) if length(b) == 1 else b for a, b in zip(out, axes, strict=True)]
        out = unite_pairs(zip(out, axes, strict=True))
    return out


def expand(value: Value, shape: Sequence[int]) -> list[Axis]:
    """Axes of size 1 become axes of equal entries."""
    axes = [wild(1)] * (len(shape) - value.ndim) + value.axes
    return [axis if length(axis) == n else wild(n) for axis, n in zip(axes, shape, strict=True)]


def reshape(value: Value, shape: Sequence[int]) -> list[Axis]:
    """The axes of a view: atoms are taken in their order, and split where a new axis ends inside one."""
    rest: Axis = [atom for axis in value.axes for atom in axis]
    if math.prod(shape) == 0:
        fix(rest)
        return [fixed(n) for n in shape]
    axes = []
    for n in shape:
        head, rest = cut(rest, n)
        axes.append(head)
    return axes


def take(axes: list[Axis], dim: int, start: int, stop: int) -> list[Axis]:
    """The axes of the entries from `start` to `stop` along one of them."""
    axis = flat(axes[dim])
    total = length(axis)
    if (start, stop) == (0, total):
        return axes
    others = [axis for number, axis in enumerate(axes) if number != dim]
    first = axis[0]
    unit = total // first.size
    on_others = {atom for other in others for atom in depends(other)}
    if not on_others & {first, *leaves([first])} and all(leaf.fixed or leaf.kind == WILD for leaf in leaves(axis)):
        kind = WILD if all(atom.kind == WILD for atom in axis) else LEAF
        return [*axes[:dim], [Atom(stop - start, kind, fixed=kind == LEAF)], *axes[dim + 1 :]]
    if start % unit or stop % unit or start >= stop:
        return _take_fixed(axes, dim, stop - start)
    if first.kind != SUM:
        divide(first, _borders(start // unit, stop // unit, first.size))
    parts = []
    offset = 0
    for number, part in enumerate(first.parts):
        low, high = max(start, offset), min(stop, offset + part.size * unit)
        if low < high:
            inside = [
                [part, *narrow(axis[1:], first, number)] if n == dim else narrow(other, first, number)
                for n, other in enumerate(axes)
            ]
            parts.append(take(inside, dim, low - offset, high - offset))
        offset += part.size * unit
    if len(parts) == 1:
        return parts[0]
    joined = [parts[0][n] for n in range(len(axes))]
    for other in parts[1:]:
        joined = [
            joined[n] if n == dim else unite(joined[n], other[n])  # one permutation for all parts that are taken
            for n in range(len(axes))
        ]
    joined[dim] = [Atom(stop - start, SUM, tuple(one(part[dim]) for part in parts))]
    return joined


def _borders(start: int, stop: int, size: int) -> list[int]:
    """Sizes of the parts of an axis from which some entries are taken: equal ones where that fits, as chunks are."""
    count, odd = divmod(size, stop - start)
    if stop - start > 1 and not odd and start % (stop - start) == 0 and count <= 16:
        return [stop - start] * count
    return [n for n in (start, stop - start, size - stop) if n]


def _take_fixed(axes: list[Axis], dim: int, size: int) -> list[Axis]:
    value = Value(axes)
    fix_dims(value, [dim])
    return [*axes[:dim], fixed(size), *axes[dim + 1 :]]


def concatenate(values: Sequence[Value], dim: int) -> list[Axis]:
    """The axes of values one behind the other along one of their axes; the others move together."""
    values = [value for value in values if value.shape[dim]]
    out = values[0].axes
    for value in values[1:]:
        pairs = [(a, b) for n, (a, b) in enumerate(zip(out, value.axes, strict=True)) if n != dim]
        united = unite_pairs(pairs)
        united.insert(dim, out[dim])
        out = united
    if len(values) == 1:
        return out
    parts = tuple(one(value.axes[dim]) for value in values)
    whole = Atom(sum(part.size for part in parts), SUM, parts)
    return [*out[:dim], [whole], *out[dim + 1 :]]
