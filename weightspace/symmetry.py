"""Which permutation acts on which axis of which tensor: the symmetries of an architecture as data. Imports no torch.

An axis is written as in einops: `"hidden0"` is permuted by that group, `"hidden0 49"` is a flatten map (each unit has
49 entries in a row), `"heads0 qk0"` is made of heads, and `"a + b"` of two parts one behind the other; None stays.
Equal names move together, which is all that alignment, augmentation and the search for duplicates need to know.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from kernels.permute.gather import Gather, gather_numpy
from weightspace.arrays import brief, few, is_torch
from weightspace.layout import Layout

Permutations = Mapping[str, np.ndarray]
Scales = Mapping[str, np.ndarray]
Factor = tuple[str | None, int]  # group, or None for what stays, and how many entries
Axis = tuple[tuple[Factor, ...], ...]  # one behind the other; in each, factors from the slowest to the fastest
KINDS = ("positive", "sign")


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


@dataclass(frozen=True)
class Symmetry:
    """The permutation symmetries of a layout, and its scale symmetries beside them.

    A permutation is an array p with `moved[i] = weights[p[i]]`. `Permutations` are name -> (models, size) integers, and
    for a group with a parent (models, parent's size, size): entry [h, i] says which unit inside the old parent p[h]
    comes to place i inside the new parent h.

    Args:
        layout: of the flat vectors.
        axes: tensor -> for each axis an expression or None. Tensors that are left out stay.
        groups: name -> Group; those that stand alone on an axis may be left out.
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
        moving = {name: tuple(axes) for name, axes in self.axes.items() if any(axis is not None for axis in axes)}
        object.__setattr__(self, "axes", moving)
        object.__setattr__(self, "groups", self._with_plain_groups())
        self._check_groups()
        for name, axes in moving.items():
            shape = self.shape(name)
            if len(axes) != len(shape):
                raise SymmetryError(f"tensor {name!r} has {len(shape)} axes, its symmetry names {len(axes)}")
            for number in range(len(shape)):
                self._parse(name, number)
        object.__setattr__(self, "scales", tuple(self.scales))
        for scale in self.scales:
            self._check_scale(scale)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    # --- what it is made of

    @property
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
        parent = self.groups[group].parent
        return () if parent is None else (*self.ancestors(parent), parent)

    def permutation_shape(self, group: str) -> tuple[int, ...]:
        """Shape of one model's permutation of this group."""
        return tuple(self.groups[name].size for name in (*self.ancestors(group), group))

    def axis(self, tensor: str, number: int) -> Axis:
        """The factors of an axis."""
        if tensor not in self.axes:
            return (((None, self.shape(tensor)[number]),),)
        return self._parse(tensor, number)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All parts of all tensors, those that nothing moves too, in the order of the flat vector."""
        return tuple(block for name in self.layout.names for block in self._blocks(name))

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
        self._check_weights(weights)
        if self.moving:
            self.check(permutations, len(weights))
        gathers = self.gathers(permutations)
        if is_torch(weights):
            from kernels.permute.population import permute_population  # torch is there already

            return permute_population(weights, gathers)
        return gather_numpy(weights, gathers)

    def gathers(self, permutations: Permutations) -> list[Gather]:
        """What `kernels.permute` needs: for each tensor that moves, the indices of its rows and columns."""
        return [self._gather(name, permutations) for name in self.layout.names if name in self.axes]

    def index(self, permutations: Permutations) -> np.ndarray:
        """(models, size) int64: `permute` is `weights[m, index[m]]`. The definition; takes eight bytes a weight."""
        models = len(next(iter(permutations.values()))) if permutations else 1
        index = np.broadcast_to(np.arange(self.layout.size), (models, self.layout.size)).copy()
        for block in self.blocks:
            if block.groups:
                index[:, self._places(block)] = self._block_index(block, permutations).reshape(models, -1)
        return index

    def compose(self, first: Permutations, then: Permutations) -> dict[str, np.ndarray]:
        """One set of permutations that does `first`, then `then`.

        >>> symmetry = Symmetry(Layout(("b",), ((3,),)), {"b": ("hidden",)})
        >>> p = {"hidden": np.array([[2, 0, 1]])}
        >>> symmetry.compose(p, symmetry.invert(p))
        {'hidden': array([[0, 1, 2]])}
        """
        self.check(first, self.check(then))
        return {name: np.take_along_axis(self._at_parents(name, first, then), then[name], -1) for name in self.moving}

    def invert(self, permutations: Permutations) -> dict[str, np.ndarray]:
        """The permutations that undo these."""
        self.check(permutations)
        inverse: dict[str, np.ndarray] = {}
        for name in self.moving:  # parents come first
            inverse[name] = np.argsort(self._at_parents(name, permutations, inverse), -1).astype(
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
        self._check_weights(weights)
        by_group = {scale.group: scale for scale in self.scales}
        weights = weights.clone() if is_torch(weights) else weights.copy()
        for group, factors in scales.items():
            if group not in by_group:
                raise SymmetryError(f"group {group!r} has no scale symmetry; those that have: {few(sorted(by_group))}")
            scale = by_group[group]
            shape = (len(weights), *self.permutation_shape(group))
            if factors.shape != shape:
                raise SymmetryError(f"scales of {group!r} must be {shape}, got {factors.shape}")
            good = np.isfinite(factors) & ((np.abs(factors) == 1) if scale.kind == "sign" else (factors > 0))
            if not good.all():
                raise SymmetryError(f"scales of {group!r} must be {'+-1' if scale.kind == 'sign' else 'above 0'}")
            for tensor, number, exponent in scale.tensors:
                along = self._along(tensor, number, group, factors)
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

    def _check_weights(self, weights: Any) -> None:
        if weights.ndim != 2 or weights.shape[1] != self.layout.size:
            raise ValueError(f"weights must be (models, {self.layout.size}), got {tuple(weights.shape)}")

    def _with_plain_groups(self) -> dict[str, Group]:
        """The groups, and those whose size is that of an axis that they have to themselves; parents first."""
        found = dict(self.groups)
        for name, axes in self.axes.items():
            for size, text in zip(self.shape(name), axes, strict=False):
                if text is not None and not isinstance(text, str):
                    raise SymmetryError(f"an axis of {name!r} must be an expression or None, got {brief(text)}")
                words = [] if text is None else text.split()
                if len(words) == 1 and not words[0].isdecimal():
                    found.setdefault(words[0], Group(size))
        ordered: dict[str, Group] = {}
        while len(ordered) < len(found):
            ready = [n for n, group in found.items() if n not in ordered and (group.parent in (None, *ordered))]
            if not ready:
                raise SymmetryError(f"groups have parents that are not there: {few(sorted(set(found) - set(ordered)))}")
            ordered |= {name: found[name] for name in ready}
        return ordered

    def _check_groups(self) -> None:
        for name, group in self.groups.items():
            if not name or name.isdecimal() or len(name.split()) != 1 or "+" in name:
                raise SymmetryError(
                    f"a group's name must be one word that is no number, without '+'; got {brief(name)}"
                )
            if type(group.size) is not int or group.size < 1 or type(group.fixed) is not bool:
                raise SymmetryError(f"group {name!r} must have a size of 1 or more, got {brief(group)}")

    def _parse(self, tensor: str, number: int) -> Axis:
        size, text = self.shape(tensor)[number], self.axes[tensor][number]
        if text is None:
            return (((None, size),),)
        axis = tuple(tuple(self._factor(tensor, word) for word in part.split()) for part in text.split("+"))
        length = sum(math.prod(size for _, size in part) for part in axis)
        if not all(axis) or length != size:
            raise SymmetryError(f"axis {number} of {tensor!r} has {size} entries, {text!r} has {length}")
        return axis

    def _factor(self, tensor: str, word: str) -> Factor:
        if word.isdecimal():
            return None, int(word)
        if word not in self.groups:
            raise SymmetryError(
                f"tensor {tensor!r} names the group {word!r} whose size is not known; give it in groups"
            )
        return word, self.groups[word].size

    def _check_scale(self, scale: Scale) -> None:
        if scale.group not in self.moving or scale.kind not in KINDS:
            raise SymmetryError(f"a scale needs a moving group and one of {', '.join(KINDS)}, got {brief(scale)}")
        if [s.group for s in self.scales].count(scale.group) > 1:
            raise SymmetryError(f"group {scale.group!r} has two scales")
        for tensor, number, exponent in scale.tensors:
            fits = tensor in self.axes and 0 <= number < len(self.shape(tensor)) and exponent in (1, -1)
            if not fits or scale.group not in {g for part in self.axis(tensor, number) for g, _ in part}:
                raise SymmetryError(f"group {scale.group!r} does not stand on axis {number} of {tensor!r}")

    def _blocks(self, name: str) -> Iterator[Block]:
        """The parts of a tensor: one for each choice of a part on each axis."""
        shape = self.shape(name)
        strides = [math.prod(shape[number + 1 :]) for number in range(len(shape))]
        axes = [self.axis(name, number) for number in range(len(shape))]
        starts = [
            list(itertools.accumulate((math.prod(n for _, n in part) for part in axis), initial=0)) for axis in axes
        ]
        for choice in itertools.product(*(range(len(axis)) for axis in axes)):
            offset, dims = self.layout.slice(name).start, []
            for number, which in enumerate(choice):
                offset += starts[number][which] * strides[number]
                part = axes[number][which]
                for at, (group, size) in enumerate(part):
                    step = math.prod(n for _, n in part[at + 1 :]) * strides[number]
                    fixed = group is None or (self.groups[group].fixed and not self._is_parent(group))
                    dims.append((None if fixed else group, size, step))
            yield Block(name, offset, tuple(dims))

    def _is_parent(self, name: str) -> bool:
        return any(group.parent == name for group in self.groups.values())

    def _places(self, block: Block) -> np.ndarray:
        """Where the elements of a block lie in the flat vector, as one flat array."""
        places = np.array(block.offset)
        for _, size, stride in block.dims:
            places = places[..., None] + np.arange(size) * stride
        return places.ravel()

    def _block_index(self, block: Block, permutations: Permutations) -> np.ndarray:
        """(models, *sizes): which element of the flat vector comes to each place of a block."""
        names = [group for group, _, _ in block.dims]
        index: Any = block.offset
        for number, (group, size, stride) in enumerate(block.dims):
            if group is None or self.groups[group].fixed:
                moved = np.arange(size).reshape(1, *(size if d == number else 1 for d in range(len(names))))
            else:
                moved = self._spread(names, number, permutations[group])
            index = index + moved.astype(np.int64) * stride
        return index

    def _spread(self, names: Sequence[str | None], number: int, values: np.ndarray) -> np.ndarray:
        """What a group has for each of its units, (models, ...), with its axes at those of a block of these groups."""
        group = str(names[number])
        at = [self._parent_at(names, number, ancestor) for ancestor in self.ancestors(group)] + [number]
        values = values.transpose(0, *(1 + np.argsort(at)))
        sides = dict(zip(sorted(at), values.shape[1:], strict=True))
        return values.reshape(len(values), *(sides.get(d, 1) for d in range(len(names))))

    def _parent_at(self, names: Sequence[str | None], number: int, ancestor: str) -> int:
        """Where among a block's groups an ancestor of one stands: the nearest before it, else behind it."""
        found = [at for at, name in enumerate(names) if name == ancestor]
        if not found:
            raise SymmetryError(f"group {names[number]!r} stands in a tensor where its parent {ancestor!r} does not")
        return max((at for at in found if at < number), default=found[0])

    def _at_parents(self, name: str, of: Permutations, parents: Permutations) -> np.ndarray:
        """A group's permutations `of`, each taken from where its parent comes from under `parents`."""
        p = of[name]
        for level, ancestor in enumerate(self.ancestors(name)):
            if not self.groups[ancestor].fixed:
                moved = parents[ancestor]
                p = np.take_along_axis(p, moved.reshape(*moved.shape, *(1,) * (p.ndim - 2 - level)), 1 + level)
        return p

    def _gather(self, name: str, permutations: Permutations) -> Gather:
        """Rows and columns of a tensor; all its elements as rows where two axes cannot say it."""
        offset, shape = self.layout.slice(name).start, self.shape(name)
        moving = [number for number, axis in enumerate(self.axes[name]) if self._moves(axis)]
        if not moving:
            return Gather(offset, math.prod(shape), 1, 1, None, None)
        if len(moving) > 2 or any(not self._complete(name, number) for number in moving):
            blocks = [block for block in self.blocks if block.tensor == name]
            index = np.empty((len(next(iter(permutations.values()))), math.prod(shape)), np.int64)
            for block in blocks:
                index[:, self._places(block) - offset] = self._block_index(block, permutations).reshape(len(index), -1)
            return Gather(offset, math.prod(shape), 1, 1, index - offset, None)
        last = moving[-1]
        found = [self._axis_index(name, number, permutations) for number in moving]
        inner = math.prod(shape[last + 1 :])
        if len(moving) == 1:
            return Gather(offset, math.prod(shape[:last]), shape[last], inner, None, found[0])
        first = moving[0]
        rows = found[0]
        if between := math.prod(shape[first + 1 : last]) - 1:  # axes between the two stay: they are part of the rows
            rows = (rows[:, :, None] * (between + 1) + np.arange(between + 1)).reshape(len(rows), -1)
        if (before := math.prod(shape[:first])) > 1:
            count = rows.shape[1]
            rows = (np.arange(before)[:, None] * count + rows[:, None]).reshape(len(rows), -1)
        return Gather(offset, rows.shape[1], shape[last], inner, rows, found[1])

    def _moves(self, axis: str | None) -> bool:
        return axis is not None and any(word in self.moving for word in axis.replace("+", " ").split())

    def _complete(self, name: str, number: int) -> bool:
        """Whether the parents of all groups on an axis stand on it too."""
        return all(
            set(self.ancestors(group)) <= {g for g, _ in part}
            for part in self.axis(name, number)
            for group, _ in part
            if group is not None
        )

    def _axis_index(self, name: str, number: int, permutations: Permutations) -> np.ndarray:
        """(models, entries of the axis) int64."""
        models, start, parts = len(next(iter(permutations.values()))), 0, []
        for part in self.axis(name, number):
            size = math.prod(n for _, n in part)
            dims = tuple((g, n, math.prod(m for _, m in part[at + 1 :])) for at, (g, n) in enumerate(part))
            index = self._block_index(Block(name, start, dims), permutations)
            parts.append(np.broadcast_to(index, (models, *(n for _, n in part))).reshape(models, size))
            start += size
        return np.concatenate(parts, 1)

    def _along(self, tensor: str, number: int, group: str, factors: np.ndarray) -> np.ndarray:
        """(models, entries of the axis): the group's factor for each entry, 1 for those of other groups."""
        parts = []
        for part in self.axis(tensor, number):
            names, sizes = [name for name, _ in part], tuple(n for _, n in part)
            spread = np.ones((len(factors), *(1 for _ in part)), factors.dtype)
            if group in names:
                spread = self._spread(names, names.index(group), factors)
            parts.append(np.broadcast_to(spread, (len(factors), *sizes)).reshape(len(factors), -1))
        return np.concatenate(parts, 1)


def plain(tensors: Mapping[str, Sequence[str | None]], shapes: Mapping[str, Iterable[int]]) -> Symmetry:
    """A symmetry from axes and shapes alone, for tests and by hand.

    >>> plain({"w": ("hidden", None)}, {"w": (4, 2)}).moving
    {'hidden': Group(size=4, parent=None, fixed=False)}
    """
    layout = Layout(tuple(shapes), tuple(tuple(shape) for shape in shapes.values()))
    return Symmetry(layout, {name: tuple(axes) for name, axes in tensors.items()})
