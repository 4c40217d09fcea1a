"""What an axis is made of while a trace is read: atoms that are united, split and cut as operations ask for it.

An axis is a list of atoms, the slowest first. An atom is a *leaf* (a set of units that one permutation moves), or has
become something finer: a *product* of atoms, a *sum* (one behind the other), or, of several leaves, the one that
belongs to the part of a sum that another axis is at (*each*). A *wild* atom belongs to an axis along which all entries
are equal: it agrees with every permutation. Atoms only ever get finer, fixed or united, all of which leave a subgroup
of what was: so whatever an operation does not need is kept, and what it needs is never lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

LEAF, PRODUCT, SUM, EACH, WILD = "leaf", "product", "sum", "each", "wild"


@dataclass(eq=False)
class Atom:
    """A node of the union-find.

    Args:
        size: entries.
        kind: see above.
        parts: atoms of a product or sum; of an "each", one for each part of the sum `key`.
        key: the sum that an "each" depends on.
        fixed: a leaf that never moves.
        ancestors: there is one permutation of a leaf for each combination of their units.
        home: the axes of the parameter that a leaf stands on as long as no operation has united it: it may yet
            become a child of what stands on another axis.
        link: the atom it was united with.
        label: what its units are, for its name.
        narrowed: see `narrow`.
    """

    size: int
    kind: str = LEAF
    parts: tuple[Atom, ...] = ()
    key: Atom | None = None
    fixed: bool = False
    ancestors: tuple[Atom, ...] = ()
    home: list[Axis] | None = None
    link: Atom | None = None
    label: str | None = None
    narrowed: dict[tuple[Atom, int], Atom] = field(default_factory=dict)


Axis = list[Atom]


def find(atom: Atom) -> Atom:
    """The atom that stands for all that were united with it."""
    while atom.link is not None:
        atom = atom.link
    return atom


def fixed(size: int) -> Axis:
    """An axis that stays."""
    return [Atom(size, fixed=True)]


def wild(size: int) -> Axis:
    """An axis of equal entries."""
    return [Atom(size, WILD)]


def length(axis: Iterable[Atom]) -> int:
    """Entries of an axis."""
    return math.prod(atom.size for atom in axis)


def flat(axis: Iterable[Atom]) -> Axis:
    """The same axis without products and without atoms of size 1, which cannot move."""
    out: Axis = []
    for atom in map(find, axis):
        if atom.kind == PRODUCT:
            out += flat(atom.parts)
        elif atom.size != 1:
            out.append(atom)
    return out


def one(axis: Sequence[Atom]) -> Atom:
    """An axis as one atom."""
    axis = flat(axis)
    return axis[0] if len(axis) == 1 else Atom(length(axis), PRODUCT, tuple(axis))


def ancestors(leaf: Atom) -> tuple[Atom, ...]:
    """The ancestors of a leaf as they are now."""
    found = dict.fromkeys(flat(leaf.ancestors))
    return tuple(atom for atom in found if atom.kind != WILD)


def leaves(axis: Iterable[Atom]) -> list[Atom]:
    """All leaves in an axis, however deep."""
    out: dict[Atom, None] = {}
    for atom in flat(axis):
        out.update(dict.fromkeys([atom] if atom.kind in (LEAF, WILD) else leaves(atom.parts)))
    return list(out)


def depends(axis: Iterable[Atom]) -> set[Atom]:
    """All that something on an axis depends on."""
    out: set[Atom] = set()
    for atom in flat(axis):
        if atom.kind == EACH and atom.key is not None:
            out.add(find(atom.key))
        out |= depends(atom.parts) if atom.kind in (SUM, EACH) else set(ancestors(atom))
    return out


def movable(axis: Iterable[Atom]) -> bool:
    """Whether anything on it may move."""
    return any(leaf.kind == LEAF and not leaf.fixed and leaf.size > 1 for leaf in leaves(axis))


def fix(axis: Iterable[Atom]) -> None:
    """Let nothing on this axis move."""
    for leaf in leaves(axis):
        if leaf.kind == LEAF:
            leaf.fixed, leaf.ancestors, leaf.home = True, (), None


def close(axis: Iterable[Atom]) -> None:
    """Operations have used these leaves: they will not become children of another axis."""
    for leaf in leaves(axis):
        leaf.home = None


# --- splitting: what was one atom becomes a product or a sum


def cut(axis: Sequence[Atom], size: int) -> tuple[Axis, Axis]:
    """An axis as (the slow part of this many entries, the rest); fixed where that would cut through units."""
    head: Axis = []
    rest = flat(axis)
    while (need := size // max(length(head), 1)) > 1:
        atom = rest[0]
        if size % max(length(head), 1) or (atom.size % need and need % atom.size):
            fix([*head, *rest])
            return fixed(size), fixed(length(axis) // size)
        if need % atom.size == 0:
            head.append(rest.pop(0))
        else:
            split(atom, need)
            rest = flat(rest)
    return head, rest


def split(atom: Atom, size: int) -> None:
    """Make a product (size, the rest) of an atom."""
    rest = atom.size // size
    if atom.kind == SUM and any(part.size % rest for part in atom.parts):
        fix([atom])
        atom.kind, atom.parts, atom.fixed = LEAF, (), True
    if atom.kind == LEAF:
        slow = Atom(size, fixed=atom.fixed, ancestors=atom.ancestors, home=atom.home)
        above = () if atom.fixed else (*atom.ancestors, slow)
        parts = (slow, Atom(rest, fixed=atom.fixed, ancestors=above, home=atom.home))
    elif atom.kind == WILD:
        parts = (Atom(size, WILD), Atom(rest, WILD))
    elif atom.kind == SUM:
        pairs = [cut([part], part.size // rest) for part in atom.parts]
        key = Atom(size, SUM, tuple(one(slow) for slow, _ in pairs))
        parts = (key, Atom(rest, EACH, tuple(one(fast) for _, fast in pairs), key))
    else:
        pairs = [cut([part], size) for part in atom.parts]
        parts = (
            Atom(size, EACH, tuple(one(slow) for slow, _ in pairs), atom.key),
            Atom(rest, EACH, tuple(one(fast) for _, fast in pairs), atom.key),
        )
    atom.kind, atom.parts, atom.key = PRODUCT, parts, None


def divide(atom: Atom, sizes: Sequence[int]) -> None:
    """Make a sum with parts of these sizes of a leaf, a wild atom or an "each"."""
    if atom.kind == EACH:
        columns = []
        for part in atom.parts:
            whole = one([part])
            if whole.kind in (LEAF, WILD, EACH):
                divide(whole, sizes)
            if whole.kind != SUM or [p.size for p in whole.parts] != list(sizes):
                fix([whole])
                whole = Atom(whole.size, SUM, tuple(Atom(n, fixed=True) for n in sizes))
            columns.append(whole.parts)
        atom.parts = tuple(Atom(n, EACH, tuple(c[i] for c in columns), atom.key) for i, n in enumerate(sizes))
        atom.key = None
    else:
        atom.parts = tuple(
            Atom(n, atom.kind, fixed=atom.fixed, ancestors=atom.ancestors, home=atom.home) for n in sizes
        )
    atom.kind = SUM


def spread(leaf: Atom, key: Atom) -> None:
    """Make of a leaf that depends on a sum one leaf for each part of it."""
    members = []
    for number, part in enumerate(key.parts):
        above = tuple(
            found
            for atom in ancestors(leaf)
            for found in ([part] if atom is key else narrow([atom], key, number))
            if found.size > 1
        )
        members.append(Atom(leaf.size, fixed=leaf.fixed, ancestors=above, label=leaf.label))
    leaf.kind, leaf.parts, leaf.key, leaf.ancestors, leaf.home = EACH, tuple(members), key, (), None


def narrow(axis: Iterable[Atom], key: Atom, number: int) -> Axis:
    """The axis where the sum `key`, elsewhere in the value, is at one of its parts."""
    out: Axis = []
    for atom in flat(axis):
        if atom.kind == LEAF and key in ancestors(atom):
            spread(atom, key)
        if atom.kind == EACH and atom.key is not None and find(atom.key) is key:
            out += flat([atom.parts[number]])
        elif atom.kind in (SUM, EACH):
            out += flat([_narrowed(atom, key, number)])
        else:
            out.append(atom)
    return out


def _narrowed(atom: Atom, key: Atom, number: int) -> Atom:
    """What `narrow` makes of a sum, or an "each" of other sums: the same atom every time, so that it can be settled."""
    if (key, number) not in atom.narrowed:
        parts = tuple(one(narrow([part], key, number)) for part in atom.parts)
        same = all(flat([new]) == flat([old]) for new, old in zip(parts, atom.parts, strict=True))
        atom.narrowed[key, number] = atom if same else Atom(atom.size, atom.kind, parts, atom.key)
    return atom.narrowed[key, number]


def pieces(axis: Iterable[Atom]) -> list[Axis]:
    """The axis as parts one behind the other, each a product."""
    axis = flat(axis)
    if not axis or axis[0].kind != SUM:
        return [axis]
    key, rest = axis[0], axis[1:]
    return [piece for number, part in enumerate(key.parts) for piece in pieces([part, *narrow(rest, key, number)])]


# --- uniting


def collapse(atom: Atom) -> Atom:
    """One permutation for all that an "each" chooses from."""
    first = [atom.parts[0]]
    for part in atom.parts[1:]:
        first = unite(first, [part])
    whole = one(first)
    atom.link = whole
    return find(whole)


def unite(left: Iterable[Atom], right: Iterable[Atom]) -> Axis:
    """Let two axes of equal length move together; gives the axis that both are now."""
    a, b, out = flat(left), flat(right), []
    if length(a) != length(b):
        raise AssertionError(f"axes of {length(a)} and {length(b)} entries cannot be one")
    while a and b:
        a, b = flat(a), flat(b)
        if a[0].size == b[0].size:
            out += _meet(a.pop(0), b.pop(0))
        elif a[0].size % b[0].size == 0:
            split(a[0], b[0].size)
        elif b[0].size % a[0].size == 0:
            split(b[0], a[0].size)
        else:
            fix([*a, *b])
            return out + fixed(length(a))
    return out


def _meet(a: Atom, b: Atom) -> Axis:
    """Unite two atoms of one size, neither of them a product."""
    if a is b or b.kind == WILD:
        return [a]
    if a.kind == WILD:
        return [b]
    if a.kind == LEAF and b.kind == LEAF:
        return [_join(a, b)]
    if b.kind == EACH or (b.kind == SUM and a.kind == LEAF):
        a, b = b, a
    if a.kind == EACH:
        return _meet_each(a, b)
    if b.kind == LEAF:  # and a is a sum
        divide(b, [part.size for part in a.parts])
    if [part.size for part in a.parts] != [part.size for part in b.parts]:
        return [_in_a_row(_align(pieces([a]), pieces([b])))]
    return [_pairwise(a, b)]


def _pairwise(a: Atom, b: Atom) -> Atom:
    """Unite two sums part by part, or what two atoms choose from."""
    parts = tuple(one(unite([x], [y])) for x, y in zip(a.parts, b.parts, strict=True))
    if any(_has_wild(atom) for atom in (a, b)):  # they do not become one: where one is wild the other need not be
        return Atom(a.size, a.kind, parts, a.key)
    a, b = find(a), find(b)
    if a is not b:
        b.link = a
    return a


def _has_wild(atom: Atom) -> bool:
    return any(leaf.kind == WILD for leaf in leaves([atom]))


def _in_a_row(parts: Sequence[Axis]) -> Atom:
    return Atom(sum(map(length, parts)), SUM, tuple(map(one, parts)))


def _meet_each(a: Atom, b: Atom) -> Axis:
    key = find(a.key) if a.key is not None else None
    if b.kind == SUM:
        divide(a, [part.size for part in b.parts])
        return _meet(a, b)
    if b.kind == LEAF and key is not None and (key in ancestors(b) or _offers(b, key)):
        b.ancestors = b.ancestors if key in ancestors(b) else (*b.ancestors, key)
        spread(b, key)
    if b.kind == EACH and b.key is not None and find(b.key) is key:
        return [_pairwise(a, b)]
    return unite([collapse(a)], [collapse(b) if b.kind == EACH else b])


def _align(a: list[Axis], b: list[Axis]) -> list[Axis]:
    """Unite two rows of parts whose borders differ."""
    out = []
    while a and b:
        a[:1], b[:1] = pieces(a[0]), pieces(b[0])  # what was united before may have cut them
        short = min(length(a[0]), length(b[0]))
        for row in (a, b):
            if length(row[0]) > short:
                row[0:1] = _behind(row[0], short)
        out.append(unite(a.pop(0), b.pop(0)))
    return out


def _behind(axis: Axis, size: int) -> list[Axis]:
    """An axis as two, the first of this size."""
    axis = flat(axis)
    first = axis[0]
    unit = length(axis) // first.size
    if size % unit or first.kind not in (LEAF, WILD):
        fix(axis)
        return [fixed(size), fixed(length(axis) - size)]
    divide(first, [size // unit, first.size - size // unit])
    return pieces(axis)


def _join(a: Atom, b: Atom) -> Atom:
    """Unite two leaves: they keep the ancestors that both have, or may yet have."""
    of_a, of_b = ancestors(a), ancestors(b)
    may_a = {*of_a, *(x for x in of_b if _offers(a, x))}
    may_b = {*of_b, *(x for x in of_a if _offers(b, x))}
    kept = [x for x in dict.fromkeys((*of_a, *of_b)) if x in may_a and x in may_b and x is not a and x is not b]
    b.link = a
    a.fixed = a.fixed or b.fixed
    a.label = a.label or b.label
    a.ancestors = () if a.fixed else tuple(x for x in kept if a not in lineage(x))
    a.home = None
    return a


def lineage(atom: Atom) -> set[Atom]:
    """All ancestors of all leaves in an atom, and theirs."""
    found: set[Atom] = set()
    todo = leaves([atom])
    while todo:
        new = {x for x in ancestors(todo.pop()) if x not in found}
        found |= new
        todo += leaves(new)
    return found


def _offers(leaf: Atom, parent: Atom) -> bool:
    """Whether a leaf that no operation has used may become a child of this atom: it stands on its tensor."""
    return leaf.home is not None and any(parent is atom for axis in leaf.home for atom in flat(axis))


def forget(axis: Iterable[Atom], lost: Iterable[Atom]) -> None:
    """Let nothing on this axis depend on these atoms."""
    gone = set(flat(lost))
    gone |= {atom for atom in leaves(gone)}
    for atom in flat(axis):
        if atom.kind == LEAF:
            if gone & set(ancestors(atom)):
                atom.ancestors = tuple(x for x in ancestors(atom) if x not in gone)
        elif atom.kind == EACH and atom.key is not None and find(atom.key) in gone:
            forget([collapse(atom)], gone)
        elif atom.kind in (SUM, EACH):
            forget(atom.parts, gone)
