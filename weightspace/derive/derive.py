"""The symmetry of a module, derived from its trace."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from weightspace.derive.naming import name_groups
from weightspace.derive.scales import POSITIVE, SIGN, root
from weightspace.derive.settle import settle
from weightspace.derive.terms import Atom, Axis, ancestors, fix, pieces
from weightspace.derive.trace import Walk, walk
from weightspace.layout import Layout
from weightspace.symmetry import Group, Scale, Symmetry


@dataclass(frozen=True)
class Derived:
    """A derived symmetry.

    Args:
        symmetry: of `Layout.from_module`; without groups if there are none.
        unknown: (operation, module that calls it) for each operation without a rule that held axes which could
            otherwise have moved: the symmetry is right, and may be smaller than what the architecture has.
    """

    symmetry: Symmetry
    unknown: tuple[tuple[str, str], ...]


def derive_symmetry(
    module: nn.Module, example_inputs: tuple[Any, ...], *, kwargs: Mapping[str, Any] | None = None
) -> Derived:
    """The permutation and scale symmetries of a module, from the operations that it runs on an example.

    Inputs and outputs stay. The trace (torch.export, eval mode) is followed with a union-find over parts of axes: what
    an operation brings together moves together, what a view splits moves as blocks (heads x rows), and what no rule
    covers stays. Each rule may find too little, never too much; `prove_symmetry` checks what came out.

    Args:
        module: any that torch.export can trace with static shapes; it may be on the meta device. Left as it was.
        example_inputs: positional inputs of usual shapes, with 2 or more examples in a batch.
        kwargs: inputs by name.

    >>> import torch
    >>> module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> derived = derive_symmetry(module, (torch.zeros(2, 2),))
    >>> derived.symmetry.axes
    {'0.weight': ('0.weight', None), '0.bias': ('0.weight',), '2.weight': (None, '0.weight')}
    >>> derived.symmetry.scales[0].kind, derived.unknown
    ('positive', ())
    """
    layout = Layout.from_module(module)
    seen = walk(module, layout, tuple(example_inputs), kwargs or {})
    for name, value in seen.stored.items():
        if name not in seen.used:
            for axis in value.axes:
                fix(axis)
    settle(seen.values, seen.stored.values())
    names = name_groups(seen.stored, seen.used)
    axes = {name: tuple(_expression(axis, names) for axis in value.axes) for name, value in seen.stored.items()}
    groups = {
        name: Group(leaf.size, names[above[-1]] if (above := ancestors(leaf)) else None, leaf.fixed)
        for leaf, name in names.items()
    }
    symmetry = Symmetry(layout, axes, groups, _scales(seen, axes, groups))
    return Derived(symmetry, tuple(seen.unknown))


def _expression(axis: Axis, names: Mapping[Atom, str]) -> str | None:
    """An axis as a symmetry writes it: parts with "+" between them, what stays as numbers, taken together."""
    parts: list[list[str]] = []
    for piece in pieces(axis):
        words = [names.get(leaf, str(leaf.size)) for leaf in piece]
        merged: list[str] = []
        for number, group in itertools.groupby(words, str.isdecimal):
            run = list(group)
            merged += [str(math.prod(map(int, run)))] if number else run
        parts.append(merged or ["1"])
    joined: list[str] = []
    for number, some in itertools.groupby(parts, lambda part: len(part) == 1 and part[0].isdecimal()):
        row = list(some)
        joined += [str(sum(int(part[0]) for part in row))] if number else [" ".join(part) for part in row]
    return None if len(joined) == 1 and joined[0].isdecimal() else " + ".join(joined)


def _scales(seen: Walk, axes: Mapping[str, tuple[str | None, ...]], groups: Mapping[str, Group]) -> tuple[Scale, ...]:
    """The scale symmetries whose tensors each stand alone on an axis, one a group: the others are left out."""
    found: dict[str, list[Scale]] = {}
    for node in dict.fromkeys(map(root, seen.scaler.nodes)):
        entries = dict.fromkeys(node.entries)
        words = {
            word
            for tensor, axis, _ in entries
            for word in (axes[tensor][axis] or "0").split()
            if not (word.isdecimal() and (axes[tensor][axis] or "0") != "0")
        }
        alone = len(entries) == len(node.entries) and all(seen.uses[tensor] == 1 for tensor, _, _ in entries)
        if node.kinds and len(words) == 1 and (group := words.pop()) in groups and alone:
            kind = POSITIVE if POSITIVE in node.kinds else SIGN
            found.setdefault(group, []).append(Scale(group, kind, tuple(entries)))
    return tuple(scales[0] for group, scales in found.items() if len(scales) == 1 and _plain(groups[group]))


def _plain(group: Group) -> bool:
    return group.parent is None and not group.fixed
