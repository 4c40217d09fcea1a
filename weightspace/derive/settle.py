"""From atoms to expressions: what a symmetry cannot say is fixed or united until it can say all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weightspace.derive.terms import (
    EACH,
    LEAF,
    PRODUCT,
    SUM,
    Atom,
    Axis,
    ancestors,
    collapse,
    fix,
    flat,
    forget,
    leaves,
    lineage,
    movable,
    narrow,
    one,
    pieces,
    unite,
)
from weightspace.derive.values import Value


def settle(values: Sequence[Value], stored: Iterable[Value]) -> None:
    """Make the axes of stored tensors sums of products of leaves, and every child stand beside its parents.

    Both only unite, fix or forget, so that it ends.
    """
    stored = list(stored)
    before: tuple[object, ...] = ()
    while before != (now := _state(stored)):
        before = now
        for value in stored:
            for axis in value.axes:
                _plain(axis)
        for value in values:
            if any(ancestors(leaf) for axis in value.axes for leaf in leaves(axis)):
                _check(value.axes)
        for leaf in {leaf for value in stored for axis in value.axes for leaf in leaves(axis)}:
            _chain(leaf)


def _state(stored: Sequence[Value]) -> tuple[object, ...]:
    return tuple(
        (id(leaf), leaf.fixed, tuple(map(id, ancestors(leaf))))
        for value in stored
        for axis in value.axes
        for leaf in leaves(axis)
    )


def _plain(axis: Axis) -> None:
    """Leave no sum but at the front of a part, and nothing that depends on another axis."""
    done = False
    while not done:
        done = True
        for piece in pieces(axis):
            for number, atom in enumerate(piece):
                if atom.kind == EACH:
                    collapse(atom)
                    done = False
                elif atom.kind == SUM and number:
                    _repeat(atom)
                    done = False
                if not done:
                    break
            if not done:
                break


def _repeat(atom: Atom) -> None:
    """A sum inside a product cannot be said, equal parts can: so many times one part; else it stays."""
    sizes = {part.size for part in atom.parts}
    count = len(atom.parts)
    if len(sizes) > 1 or not movable([atom]):
        fix([atom])
        atom.kind, atom.parts, atom.fixed, atom.ancestors = LEAF, (), True, ()
        return
    axis: Axis = [atom.parts[0]]
    for part in atom.parts[1:]:
        axis = unite(axis, [part])
    atom.kind, atom.parts = PRODUCT, (Atom(count, fixed=True), one(axis))


def _check(axes: list[Axis]) -> None:
    """Children forget parents that do not stand in a value, or of which it is not clear which one is theirs."""
    for number, axis in enumerate(axes):
        first = next(iter(flat(axis)), None)
        if first is not None and first.kind == SUM:
            rest = flat(axis)[1:]
            for at, part in enumerate(first.parts):
                chosen = [
                    [part, *narrow(rest, first, at)] if n == number else narrow(other, first, at)
                    for n, other in enumerate(axes)
                ]
                _check(chosen)
            return
    for axis in axes:
        for atom in flat(axis):
            if atom.kind == EACH:
                collapse(atom)
    standing = [atom for axis in axes for atom in flat(axis)]
    for axis in axes:
        before: set[Atom] = set()
        for atom in flat(axis):
            if atom.kind == LEAF:
                lost = [a for a in ancestors(atom) if a not in before and standing.count(a) != 1]
                if lost:
                    forget([atom], lost)
            elif atom.kind == SUM:  # behind something else: its leaves must not depend on what is not there
                for leaf in leaves([atom]):
                    forget([leaf], [a for a in ancestors(leaf) if standing.count(a) != 1])
            before.add(atom)


def _chain(leaf: Atom) -> None:
    """A group has one parent, whose ancestors are its other ancestors: forget those that are not in that line."""
    above = list(ancestors(leaf))
    if not above:
        return
    if any(atom.kind != LEAF for atom in above):
        forget([leaf], [atom for atom in above if atom.kind != LEAF])
        return
    lines = {atom: [*sorted(lineage(atom), key=lambda a: len(lineage(a))), atom] for atom in above}
    fitting = [line for line in lines.values() if set(line) <= set(above)]
    best = max(fitting, key=len, default=[])
    leaf.ancestors = tuple(best)


def moving(leaf: Atom) -> bool:
    """Whether a leaf is a group that moves."""
    return leaf.kind == LEAF and not leaf.fixed and leaf.size > 1
