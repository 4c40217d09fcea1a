"""The steps of a sweep: which groups are ordered together, what they touch, and whom that concerns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weightspace.rebasin.costs import Place, places
from weightspace.rebasin.objective import spans
from weightspace.symmetry import Symmetry

HEADS = ("joint", "singular", "plain")


@dataclass(frozen=True, eq=False)
class Step:
    """One group whose order is assigned, with all other groups as they are.

    Args:
        group: its name. places: where it stands.
        children: groups inside its units whose order is found together with its own; none in a plain step.
        symmetry: in which the group and these children alone move.
        spans: of the tensors that it touches.
        exact: whether the step finds the best order, so that only a change elsewhere can make it worth another look.
    """

    group: str
    places: tuple[Place, ...]
    children: tuple[str, ...]
    symmetry: Symmetry
    spans: tuple[slice, ...]
    exact: bool

    @property
    def groups(self) -> tuple[str, ...]:
        return (self.group, *self.children)


def plan_steps(symmetry: Symmetry, names: Sequence[str], heads: str = "joint") -> list[Step]:
    """The steps for groups that may move.

    Args:
        heads: "joint": a group and the groups inside its units in one step; "plain": each by itself; "singular": the
            groups inside alone, as the order of those around them is already settled.
    """
    steps, taken = [], set[str]()
    for name in names:  # parents come first
        inside = tuple(child for child in names if name in symmetry.ancestors(child))
        if name in taken or (symmetry.groups[name].size == 1 and not inside):
            continue
        if heads == "singular" and inside:
            continue
        children = inside if heads == "joint" else ()
        taken.update(children)
        steps.append(_step(symmetry, name, children))
    return steps


def neighbours(steps: Sequence[Step], symmetry: Symmetry) -> list[list[int]]:
    """For each step the steps that are worth another look once it has changed something."""
    blocks = [{number for number, b in enumerate(symmetry.blocks) if set(b.groups) & set(s.groups)} for s in steps]
    return [
        [other for other in range(len(steps)) if blocks[one] & blocks[other] and (other != one or not steps[one].exact)]
        for one in range(len(steps))
    ]


def alone(symmetry: Symmetry, names: Iterable[str]) -> Symmetry:
    """The same units and weights, but only these groups move."""
    names = set(names)
    tensors = {block.tensor for block in symmetry.blocks if names & set(block.groups)}
    axes = {name: axes for name, axes in symmetry.axes.items() if name in tensors}
    groups = {name: dataclasses.replace(group, fixed=name not in names) for name, group in symmetry.groups.items()}
    return Symmetry(symmetry.layout, axes, groups)


def _step(symmetry: Symmetry, group: str, children: tuple[str, ...]) -> Step:
    mine = alone(symmetry, (group, *children))
    touching = symmetry.touching(group)
    exact = all(
        block.groups.count(group) == 1 and sum(name in children for name in block.groups) <= 1 for block in touching
    )
    return Step(group, places(symmetry, group), children, mine, spans(symmetry, mine.axes), exact)
