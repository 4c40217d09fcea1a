"""Names for groups: told by the tensor that makes their units, the same in every process."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from weightspace.derive.settle import moving
from weightspace.derive.terms import Atom, ancestors, leaves
from weightspace.derive.values import Value


def name_groups(stored: Mapping[str, Value], used: Mapping[str, int | None]) -> dict[Atom, str]:
    """Leaf -> name, parents before children, in the order in which the tensors that make them are used.

    A layer's name if its outputs are one group; "<module>.heads", "<module>.qk" and "<module>.vo" in attention; else
    the layer's name with a number.
    """
    made = [(name, [stored[name].axes[axis]]) for name, axis in used.items() if axis is not None]
    held = [(name, stored[name].axes) for name in used]
    home: dict[Atom, str] = {}
    for name, axes in [*made, *held]:
        for leaf in _in_order(axes):
            home.setdefault(leaf, name)
    companions = {name: [leaf for leaf, owner in home.items() if owner == name] for name in home.values()}
    parents = {parent for leaf in home for parent in ancestors(leaf)}
    taken: dict[Atom, str] = {}
    for leaf, tensor in home.items():
        wanted = _name(leaf, tensor, [child for child in home if leaf in ancestors(child)])
        taken[leaf] = _free(wanted, taken.values(), numbered=len(companions[tensor]) > 1 and wanted == _path(tensor))
    return {leaf: name for leaf, name in taken.items() if moving(leaf) or leaf in parents}


def _in_order(axes: Iterable[Sequence[Atom]]) -> list[Atom]:
    """The groups on some axes and what they depend on, parents first."""
    found: dict[Atom, None] = {}
    for axis in axes:
        for leaf in leaves(axis):
            if moving(leaf):
                found.update(dict.fromkeys([*ancestors(leaf), leaf]))
    return list(found)


def _name(leaf: Atom, tensor: str, children: Sequence[Atom]) -> str:
    module = _module(tensor)
    labels = {child.label for child in children} - {None}
    if labels:
        return f"{module}heads"
    if leaf.label is not None and ancestors(leaf):
        return f"{module}{leaf.label}"
    return _path(tensor)


def _path(tensor: str) -> str:
    """The layer that holds a tensor, where that is a name."""
    layer, _, kind = tensor.rpartition(".")
    path = layer if layer and not layer.isdecimal() and kind in ("weight", "bias") else tensor
    return re.sub(r"[\s+]", "_", path)


def _module(tensor: str) -> str:
    """The module that holds the layer that holds a tensor, with a dot behind it."""
    path = _path(tensor)
    return path[: path.rfind(".") + 1]


def _free(name: str, taken: Iterable[str], numbered: bool) -> str:
    """A name that is not taken: with a number behind it if it must be, or should be."""
    taken = set(taken)
    if not numbered and name not in taken and not name.isdecimal():
        return name
    number = 0
    while f"{name}.{number}" in taken:
        number += 1
    return f"{name}.{number}"
