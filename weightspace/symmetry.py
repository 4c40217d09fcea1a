"""Which permutation acts on which axis of which tensor: the symmetries of an architecture as data. Imports no torch.

An axis is written as in einops: `"hidden0"` is permuted by that group, `"hidden0 49"` is a flatten map (each unit has
49 entries in a row), `"heads0 qk0"` is made of heads, and `"a + b"` of two parts one behind the other; None stays.
Equal names move together, which is all that alignment, augmentation and the search for duplicates need to know.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from kernels.permute.gather import Gather, gather_numpy
from weightspace.arrays import brief, few, is_torch
from weightspace.axes import (
    Axis,
    Block,
    Group,
    SymmetryError,
    blocks,
    check_parents,
    lineages,
    order,
    parse,
    spread,
    words,
)
from weightspace.layout import Layout
from weightspace.moves import Permutations, block_index, gather, places, positions

Scales = Mapping[str, np.ndarray]
KINDS = ("positive", "sign")


@dataclass(frozen=True)
class Scale:
    """Units whose weights may be multiplied: what goes in by s, what goes out by 1/s, and the function stays.

    Args:
        group: there is a factor for each of its units.
        kind: "positive": any s > 0 (ReLU); "sign": s = +-1 (odd activations).
        tensors: (tensor, axis, exponent): the axis is multiplied by s to the power of +1 or -1.
    """

    group: str
    kind: str
    tensors: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Symmetry:
    """The permutation symmetries of a layout, and its scale symmetries beside them.

    A permutation is an array p with `moved[i] = weights[p[i]]`. `Permutations` are name -> (models, size) integers, and
    for a group with a parent (models, parent's size, size): entry [h, i] says which unit inside the old parent p[h]
    comes to place i inside the new parent h.

    Args:
        layout: of the flat vectors.
        axes: tensor -> for each axis an expression or None. Tensors that are left out stay.
        groups: name -> Group; those that stand alone on an axis may be left out, those that stand on none are.
        scales: at most one a group.

    Raises:
        SymmetryError: these do not fit the layout or each other.

    >>> layout = Layout(("0.weight", "0.bias", "2.weight"), ((3, 2), (3,), (1, 3)))
    >>> axes = {"0.weight": ("hidden", None), "0.bias": ("hidden",), "2.weight": (None, "hidden")}
    >>> symmetry = Symmetry(layout, axes)
    >>> symmetry.groups
    {'hidden': Group(size=3, parent=None, fixed=False)}
    >>> symmetry.permute(np.arange(12.0)[None], {"hidden": np.array([[2, 0, 1]])})
    array([[ 4.,  5.,  0.,  1.,  2.,  3.,  8.,  6.,  7., 11.,  9., 10.]])
    """

    layout: Layout
    axes: Mapping[str, tuple[str | None, ...]]
    groups: Mapping[str, Group] = field(default_factory=dict)
    scales: tuple[Scale, ...] = ()

    def __post_init__(self) -> None:
        if unknown := [name for name in self.axes if name not in self.layout.names]:
            raise SymmetryError(f"axes are given for tensors that the layout does not store: {few(unknown)}")
        axes = {name: tuple(self.axes[name]) for name in self.layout.names if name in self.axes}
        axes = {name: entry for name, entry in axes.items() if any(axis is not None for axis in entry)}
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "groups", self._with_plain_groups())
        for name, entry in self._parsed.items():
            check_parents(name, entry, self._lineages)
        object.__setattr__(self, "scales", tuple(self.scales))
        for scale in self.scales:
            self._check_scale(scale)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    # --- what it is made of

    @cached_property
    def moving(self) -> dict[str, Group]:
        """The groups that are not fixed, parents before children."""
        return {name: group for name, group in self.groups.items() if not group.fixed}

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, equal for equal symmetries of equal layouts."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")) + self.layout.fingerprint
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""
        return self.layout.shapes[self.layout.names.index(tensor)]

    def ancestors(self, group: str) -> tuple[str, ...]:
        """Its parent's parents first, then its parent."""
        return self._lineages[group]

    def permutation_shape(self, group: str) -> tuple[int, ...]:
        """Shape of one model's permutation of this group."""
        return tuple(self.groups[name].size for name in (*self.ancestors(group), group))

    def axis(self, tensor: str, number: int) -> Axis:
        """The factors of an axis."""
        return self._parsed[tensor][number] if tensor in self.axes else (((None, self.shape(tensor)[number]),),)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All parts of all tensors, those that nothing moves too, in the order of the flat vector."""
        return tuple(block for name in self.layout.names for block in self.blocks_of(name))

    def blocks_of(self, tensor: str) -> tuple[Block, ...]:
        """The parts of a tensor."""
        shape = self.shape(tensor)
        axes = [self.axis(tensor, number) for number in range(len(shape))]
        named = {*self.moving, *(group.parent for group in self.groups.values() if group.parent is not None)}
        return tuple(blocks(tensor, self.layout.slice(tensor).start, shape, axes, named))

    def touching(self, group: str) -> tuple[Block, ...]:
        """The blocks that a group moves."""
        return tuple(block for block in self.blocks if group in block.groups)

    # --- permutations

    def identity(self, models: int) -> dict[str, np.ndarray]:
        """Permutations that change nothing, int32."""
        shapes = {name: self.permutation_shape(name) for name in self.moving}
        return {
            name: np.broadcast_to(np.arange(shape[-1], dtype=np.int32), (models, *shape)).copy()
            for name, shape in shapes.items()
        }

    def random(self, models: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Permutations drawn uniformly and independently, int32."""
        generator = np.random.default_rng(seed)
        return {name: generator.permuted(p, axis=-1) for name, p in self.identity(models).items()}

    def check(self, permutations: Permutations, models: int | None = None) -> int:
        """The number of models, after a look at whether these are permutations of this symmetry.

        Raises:
            SymmetryError: groups missing or unknown, another shape, numbers that are no integers or no permutation.
        """
        if set(permutations) != set(self.moving):
            missing, unknown = set(self.moving) - set(permutations), set(permutations) - set(self.moving)
            raise SymmetryError(
                f"permutations must be of the groups {few(list(self.moving))}; missing {few(sorted(missing))}, "
                f"unknown {few(sorted(unknown))}"
            )
        for name, p in permutations.items():
            shape = self.permutation_shape(name)
            if not isinstance(p, np.ndarray) or p.dtype.kind not in "iu":
                raise SymmetryError(f"the permutation of {name!r} must be a numpy array of integers, got {brief(p)}")
            models = len(p) if models is None and p.ndim else models
            if p.shape != (models, *shape):
                raise SymmetryError(f"the permutation of {name!r} must be (models, {few(shape)}), got {p.shape}")
            if not np.array_equal(np.sort(p, -1), np.broadcast_to(np.arange(shape[-1]), p.shape)):
                raise SymmetryError(f"what is given for {name!r} is no permutation: an index is missing or comes twice")
        if models is None:
            raise SymmetryError(
                "this symmetry has no groups, so that permutations cannot say how many models there are"
            )
        return models

    def permute(self, weights: Any, permutations: Permutations) -> Any:
        """Move the units of each model: weights (models, size), numpy or torch -> a new (models, size).

        Torch tensors stay differentiable.

        Raises:
            SymmetryError: see `check`. ValueError: weights of another size.
        """
        self.check_weights(weights)
        self.check(permutations, len(weights))
        gathers = self.gathers(permutations)
        if is_torch(weights):
            from kernels.permute.population import permute_population  # torch is there already

            return permute_population(weights, gathers)
        return gather_numpy(weights, gathers)

    def gathers(self, permutations: Permutations) -> list[Gather]:
        """What `kernels.permute` needs: for each tensor that moves, the indices of its rows and columns."""
        return [gather(self, name, permutations) for name in self.axes]

    def index(self, permutations: Permutations) -> np.ndarray:
        """(models, size) int64: `permute` is `weights[m, index[m]]`. The definition; takes eight bytes a weight."""
        models = len(next(iter(permutations.values()))) if permutations else 1
        index = np.broadcast_to(np.arange(self.layout.size), (models, self.layout.size)).copy()
        for block in self.blocks:
            if block.groups:
                index[:, places(block)] = block_index(self, block, permutations).reshape(-1, places(block).size)
        return index

    def compose(self, first: Permutations, then: Permutations) -> dict[str, np.ndarray]:
        """One set of permutations that does `first`, then `then`.

        >>> symmetry = Symmetry(Layout(("b",), ((3,),)), {"b": ("hidden",)})
        >>> p = {"hidden": np.array([[2, 0, 1]])}
        >>> symmetry.compose(p, symmetry.invert(p))
        {'hidden': array([[0, 1, 2]])}
        """
        self.check(first, self.check(then))
        return {name: np.take_along_axis(self.at_parents(name, first, then), then[name], -1) for name in self.moving}

    def invert(self, permutations: Permutations) -> dict[str, np.ndarray]:
        """The permutations that undo these."""
        self.check(permutations)
        inverse: dict[str, np.ndarray] = {}
        for name in self.moving:  # parents come first
            inverse[name] = np.argsort(self.at_parents(name, permutations, inverse), -1).astype(
                permutations[name].dtype
            )
        return inverse

    def pick(self, permutations: Permutations, models: Any) -> dict[str, np.ndarray]:
        """The permutations of some models."""
        return {name: p[models] for name, p in permutations.items()}

    # --- scales

    def scale(self, weights: Any, scales: Scales, inverse: bool = False) -> Any:
        """Multiply the units of each model: weights (models, size), numpy or torch -> a new (models, size).

        Args:
            scales: group -> (models, size of the group, its parents' before it), in the order of the weights given.
            inverse: divide instead. Where all scales are powers of two this gives the same weights back, bit by bit.

        Raises:
            SymmetryError: a group without scale symmetry, another shape, scales that are not finite, not above 0, or
                not +-1 where only signs are a symmetry.
        """
        self.check_weights(weights)
        by_group = {scale.group: scale for scale in self.scales}
        weights = weights.clone() if is_torch(weights) else weights.copy()
        for group, factors in scales.items():
            if group not in by_group:
                raise SymmetryError(f"group {group!r} has no scale symmetry; those that have: {few(sorted(by_group))}")
            scale = by_group[group]
            shape = (len(weights), *self.permutation_shape(group))
            if not isinstance(factors, np.ndarray) or factors.dtype.kind not in "fiu" or factors.shape != shape:
                raise SymmetryError(f"scales of {group!r} must be an array of numbers {shape}, got {brief(factors)}")
            good = np.isfinite(factors) & ((np.abs(factors) == 1) if scale.kind == "sign" else (factors > 0))
            if not good.all():
                raise SymmetryError(f"scales of {group!r} must be {'+-1' if scale.kind == 'sign' else 'above 0'}")
            for tensor, number, exponent in scale.tensors:
                along = self.along(tensor, number, group, factors)
                along = 1 / along if (exponent < 0) != inverse else along
                sides = [len(weights), *(1,) * len(self.shape(tensor))]
                sides[1 + number] = along.shape[1]
                along = along.reshape(sides)
                part = self.layout.tensor(weights, tensor)
                part *= part.new_tensor(along) if is_torch(weights) else along.astype(part.dtype, copy=False)
        return weights

    # --- as JSON

    def to_json(self) -> dict[str, Any]:
        """As a dict for JSON; `from_json` is its inverse."""
        return {
            "axes": {name: list(axes) for name, axes in self.axes.items()},
            "groups": {
                name: {"size": group.size, "parent": group.parent, "fixed": group.fixed}
                for name, group in self.groups.items()
            },
            "scales": [
                {"group": s.group, "kind": s.kind, "tensors": [list(entry) for entry in s.tensors]} for s in self.scales
            ],
        }

    @classmethod
    def from_json(cls, layout: Layout, content: Any) -> Symmetry:
        """From what `to_json` gave, trusting none of it.

        Raises:
            SymmetryError: anything that does not fit.
        """
        try:
            axes = {str(name): tuple(entry) for name, entry in content["axes"].items()}
            groups = {str(name): Group(g["size"], g["parent"], g["fixed"]) for name, g in content["groups"].items()}
            scales = tuple(
                Scale(s["group"], s["kind"], tuple((t, a, e) for t, a, e in s["tensors"])) for s in content["scales"]
            )
            return cls(layout, axes, groups, scales)
        except SymmetryError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise SymmetryError(
                f"a symmetry needs axes, groups and scales that fit the layout: {brief(error)}"
            ) from error

    # --- inside

    def check_weights(self, weights: Any) -> None:
        if weights.ndim != 2 or weights.shape[1] != self.layout.size:
            raise ValueError(f"weights must be (models, {self.layout.size}), got {tuple(weights.shape)}")

    @cached_property
    def _lineages(self) -> dict[str, tuple[str, ...]]:
        return lineages(self.groups)

    @cached_property
    def _parsed(self) -> dict[str, tuple[Axis, ...]]:
        """The factors of all axes of the tensors that move."""
        parsed = {}
        for name, entry in self.axes.items():
            shape = self.shape(name)
            if len(entry) != len(shape):
                raise SymmetryError(f"tensor {name!r} has {len(shape)} axes, its symmetry names {len(entry)}")
            try:
                parsed[name] = tuple(parse(text, n, self.groups) for text, n in zip(entry, shape, strict=True))
            except SymmetryError as error:
                raise SymmetryError(f"tensor {name!r}: {error}") from error
        return parsed

    def _with_plain_groups(self) -> dict[str, Group]:
        """The groups, and those whose size is that of an axis that they have to themselves; parents first."""
        found, standing = dict(self.groups), []
        for name, entry in self.axes.items():
            for size, text in zip(self.shape(name), entry, strict=False):
                standing += words(text)
                if len(words(text)) == 1 and not standing[-1].isdecimal():
                    found.setdefault(standing[-1], Group(size))
        return order(found, standing)

    def _check_scale(self, scale: Scale) -> None:
        if scale.group not in self.moving or scale.kind not in KINDS:
            raise SymmetryError(f"a scale needs a moving group and one of {', '.join(KINDS)}, got {brief(scale)}")
        if [s.group for s in self.scales].count(scale.group) > 1:
            raise SymmetryError(f"group {scale.group!r} has two scales")
        if len({(tensor, number) for tensor, number, _ in scale.tensors}) < len(scale.tensors):
            raise SymmetryError(f"the scale of {scale.group!r} names an axis twice")
        needed = {*self.ancestors(scale.group), scale.group}
        for tensor, number, exponent in scale.tensors:
            known = tensor in self.axes and type(number) is int and 0 <= number < len(self.axes[tensor])
            if not known or not any(needed <= {group for group, _ in part} for part in self.axis(tensor, number)):
                raise SymmetryError(f"group {scale.group!r} does not stand on axis {brief(number)} of {brief(tensor)}")
            if type(exponent) is not int or exponent not in (1, -1):
                raise SymmetryError(f"an exponent of the scale of {scale.group!r} is 1 or -1, got {brief(exponent)}")

    def at_parents(self, name: str, of: Permutations, parents: Permutations) -> np.ndarray:
        """A group's permutations `of`, each taken from where its parent comes from under `parents`."""
        p = of[name]
        for level, ancestor in enumerate(self.ancestors(name)):
            if not self.groups[ancestor].fixed:
                moved = parents[ancestor]
                p = np.take_along_axis(p, moved.reshape(*moved.shape, *(1,) * (p.ndim - 2 - level)), 1 + level)
        return p

    def along(self, tensor: str, number: int, group: str, factors: np.ndarray) -> np.ndarray:
        """(models, entries of the axis): the group's factor for each entry, 1 for those of other groups."""
        parts = []
        for part in self.axis(tensor, number):
            names, sizes = [name for name, _ in part], tuple(n for _, n in part)
            along = np.ones((len(factors), *(1 for _ in part)), factors.dtype)
            if group in names:
                along = spread(factors, positions(self, names, names.index(group)), len(names))
            parts.append(np.broadcast_to(along, (len(factors), *sizes)).reshape(len(factors), -1))
        return np.concatenate(parts, 1)


def plain(tensors: Mapping[str, Sequence[str | None]], shapes: Mapping[str, Iterable[int]]) -> Symmetry:
    """A symmetry from axes and shapes alone, for tests and by hand.

    >>> plain({"w": ("hidden", None)}, {"w": (4, 2)}).moving
    {'hidden': Group(size=4, parent=None, fixed=False)}
    """
    layout = Layout(tuple(shapes), tuple(tuple(shape) for shape in shapes.values()))
    return Symmetry(layout, {name: tuple(axes) for name, axes in tensors.items()})
