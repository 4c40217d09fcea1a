"""Which tensor sits where in a flat vector of weights. One class for every architecture; imports without torch."""

from __future__ import annotations

import builtins
import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from weightspace.arrays import (
    FLOATS,
    INTEGERS,
    as_dtype,
    brief,
    check_exact,
    dtype_name,
    few,
    float_name,
    is_torch,
    memory,
    same,
)

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", "np.ndarray[Any, Any]", "torch.Tensor")

ROLES = ("parameter", "buffer")
MAX_SIZE = 2**48  # elements, a petabyte of float32: more is a mistake or an attack, and would overflow int64 somewhere
MAX_DIMS = 32  # numpy allows 64 in all, and batch axes come on top
MAX_NAME = 512
_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and surrogates: no UTF-8 for them


@dataclass(frozen=True)
class Layout:
    """Names, shapes, offsets, dtype and role of the tensors in a flat vector of weights.

    Args:
        names: one per stored tensor, in the order of the flat axis.
        shapes: as many; () is a scalar, a zero makes the tensor empty.
        dtypes: the dtype each tensor has outside ("float32", "int64", ...); () means all float32.
        roles: "parameter" or "buffer"; () means all parameter.
        aliases: tied tensors, stored once: (name, name of the stored tensor it shares).

    Raises:
        ValueError: if these do not fit each other, or a name, shape, dtype or role is none.

    >>> layout = Layout(("weight", "bias"), ((2, 3), (2,)))
    >>> layout.size, layout.offsets, layout.slice("bias")
    (8, (0, 6), slice(6, 8, None))
    >>> population = np.arange(40.0).reshape(5, 8)
    >>> layout.tensor(population, "weight").shape
    (5, 2, 3)
    >>> bool((layout.flatten(layout.unflatten(population)) == population).all())
    True
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        try:
            fields = {
                "names": tuple(self.names),
                "shapes": tuple(
                    tuple(int(n) if isinstance(n, np.integer) else n for n in shape) for shape in self.shapes
                ),
                "dtypes": tuple(self.dtypes) or ("float32",) * len(self.names),
                "roles": tuple(self.roles) or ("parameter",) * len(self.names),
                "aliases": tuple(tuple(pair) for pair in self.aliases),
            }
        except TypeError as error:
            raise ValueError(f"the fields of a layout must be tuples, one entry a tensor: {error}") from error
        for field, value in fields.items():  # defaults written out, so that equal layouts compare and hash equal
            object.__setattr__(self, field, value)
        _check(self)

    @classmethod
    def of(cls, tensors: Mapping[str, Any], roles: Mapping[str, str] | None = None) -> Layout:
        """Layout of named numpy arrays or torch tensors, in their order; names that share one memory are tied.

        >>> weight = np.ones((2, 3))
        >>> Layout.of({"encoder": weight, "decoder": weight}).aliases
        (('decoder', 'encoder'),)
        """
        held = dict(tensors)  # keeps lazily made arrays alive: freed memory, used again, would look tied
        roles = {} if roles is None else roles
        if unknown := [name for name in roles if name not in held]:
            raise ValueError(f"roles given for tensors that are not there: {few(unknown)}")
        first: dict[Any, str] = {}
        aliases = []
        for name, tensor in held.items():
            if not hasattr(tensor, "shape") or not hasattr(tensor, "dtype"):
                raise ValueError(f"tensor {name!r} must have a shape and a dtype, got {type(tensor).__name__}")
            owner = first.setdefault(memory(tensor), name)
            if owner != name:
                aliases.append((name, owner))
        names = tuple(first.values())
        return cls(
            names,
            tuple(tuple(held[name].shape) for name in names),
            tuple(dtype_name(held[name].dtype) for name in names),
            tuple(roles.get(name, "parameter") for name in names),
            tuple(aliases),
        )

    @classmethod
    def from_module(cls, module: torch.nn.Module) -> Layout:
        """Layout of a module: parameters in the order of `named_parameters`, then the buffers its state dict holds."""
        import torch

        parameters: dict[str, Any] = dict(module.named_parameters(remove_duplicate=False))
        buffers = {name: value for name, value in module.state_dict(keep_vars=True).items() if name not in parameters}
        if other := [name for name, value in buffers.items() if not isinstance(value, torch.Tensor)]:
            raise ValueError(f"the state dict holds things that are no tensors: {few(other)}")
        return cls.of(parameters | buffers, dict.fromkeys(buffers, "buffer"))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor starts in the flat axis."""
        return tuple(itertools.accumulate(map(math.prod, self.shapes), initial=0))[:-1]

    @cached_property
    def size(self) -> int:
        """Length of the flat axis."""
        return sum(map(math.prod, self.shapes))

    @cached_property
    def num_parameters(self) -> int:
        """Elements of the tensors with role parameter."""
        return sum(math.prod(s) for s, role in zip(self.shapes, self.roles, strict=True) if role == "parameter")

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, equal for equal layouts: the start of the sha256 of the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._position

    @cached_property
    def _position(self) -> dict[str, int]:
        """Name or alias -> which stored tensor."""
        position = {name: i for i, name in enumerate(self.names)}
        return position | {alias: position[owner] for alias, owner in self.aliases}

    def _find(self, name: str) -> int:
        if name not in self._position:
            near = difflib.get_close_matches(str(name), self._position, n=5, cutoff=0.3) or list(self._position)
            raise KeyError(f"no tensor {name!r} among the {len(self)} of this layout; it has {few(near)}")
        return self._position[name]

    def slice(self, name: str) -> builtins.slice:
        """Where a tensor lies in the flat axis."""
        i = self._find(name)
        return builtins.slice(self.offsets[i], self.offsets[i] + math.prod(self.shapes[i]))

    def tensor(self, weights: Array, name: str) -> Array:
        """One tensor across a population: weights (..., size) -> a view (..., *shape)."""
        batch: tuple[int, ...] = self._batch(weights)
        # splitting the last axis is possible for any strides, so reshape never copies here
        return weights[..., self.slice(name)].reshape((*batch, *self.shapes[self._find(name)]))

    def unflatten(self, weights: Array, cast: bool = False) -> dict[str, Array]:
        """All tensors by name, aliases too: weights (..., size) -> views (..., *shape).

        Args:
            weights: numpy or torch, any dtype, any leading axes.
            cast: give each tensor its own dtype (a copy where that differs), for `load_state_dict` and files.

        Raises:
            ValueError: if the last axis is not `size` long; with `cast`, if a tensor should hold integers and does not.
        """
        self._batch(weights)
        out = {name: self.tensor(weights, name) for name in self.names}
        if cast:
            out = {n: as_dtype(out[n], dtype, n) for n, dtype in zip(self.names, self.dtypes, strict=True)}
        return out | {alias: out[owner] for alias, owner in self.aliases}

    def flatten(self, tensors: Mapping[str, Array], dtype: Any = None) -> Array:
        """Named tensors (..., *shape), with the same leading axes -> (..., size). Torch tensors stay differentiable.

        Args:
            tensors: all numpy or all torch. Aliases may be there; they must equal what they are tied to.
            dtype: a floating dtype or its name; by default the common one of the floating tensors, float32 if none is.

        Raises:
            ValueError: if tensors are missing, unknown or of another shape, if an alias differs, or if an integer has
                no exact equal in the dtype of the result.

        >>> Layout(("steps",), ((),)).flatten({"steps": np.array(2**24 + 1)})
        Traceback (most recent call last):
        ValueError: tensor 'steps' holds integers that float32 cannot hold exactly; flatten with a wider dtype
        """
        kinds = {is_torch(value) for value in tensors.values()}
        if len(kinds) > 1:
            raise ValueError("tensors must be all numpy or all torch, got both")
        values: dict[str, Any] = dict(tensors) if True in kinds else {n: np.asarray(v) for n, v in tensors.items()}
        batch: tuple[int, ...] = self._common_batch(values)
        for alias, owner in self.aliases:
            if alias in values and not same(values[alias], values[owner]):
                raise ValueError(f"tensor {alias!r} is tied to {owner!r} but differs from it")
        stored = {name: values[name] for name in self.names}
        target = float_name(stored, dtype)
        return _cat(self, stored, batch, target) if True in kinds else _write(self, stored, batch, target)

    def select(self, names: Iterable[str]) -> Layout:
        """Layout of these tensors alone, in layout order, matching `weights[..., layout.indices(names)]`.

        An alias chosen without the tensor it shares becomes the stored one.
        """
        chosen = self._chosen(names)
        stored: dict[int, str] = {}
        for name in chosen:
            stored.setdefault(self._position[name], name)
        order = sorted(stored)
        return Layout(
            tuple(stored[i] for i in order),
            tuple(self.shapes[i] for i in order),
            tuple(self.dtypes[i] for i in order),
            tuple(self.roles[i] for i in order),
            tuple((name, stored[i]) for name in chosen if name != stored[i := self._position[name]]),
        )

    def indices(self, names: Iterable[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Positions of these tensors in the flat axis, in layout order, int64."""
        slices = [self.slice(self.names[i]) for i in sorted({self._position[name] for name in self._chosen(names)})]
        return np.concatenate([np.empty(0, np.int64), *(np.arange(s.start, s.stop, dtype=np.int64) for s in slices)])

    def to_json(self) -> dict[str, Any]:
        """As a dict for JSON; `from_json` is its inverse."""
        rows = zip(self.names, self.shapes, self.offsets, self.dtypes, self.roles, strict=True)
        return {
            "tensors": [
                {"name": name, "shape": list(shape), "offset": offset, "dtype": dtype, "role": role}
                for name, shape, offset, dtype, role in rows
            ],
            "aliases": [list(pair) for pair in self.aliases],
            "size": self.size,
        }

    @classmethod
    def from_json(cls, obj: Any) -> Layout:
        """Layout from what `to_json` gave, trusting none of it.

        Raises:
            ValueError: on any missing, unknown, impossible or contradicting entry, naming it.
        """
        _check_keys("a layout", obj, ("tensors", "aliases", "size"))
        rows, aliases = obj["tensors"], obj["aliases"]
        if not isinstance(rows, list) or not isinstance(aliases, list):
            raise ValueError("'tensors' and 'aliases' of a layout must be lists")
        for i, row in enumerate(rows):
            _check_keys(f"tensor {i} of a layout", row, ("name", "shape", "offset", "dtype", "role"))
            if not isinstance(row["shape"], list):
                raise ValueError(f"tensor {row['name']!r}: shape must be a list, got {brief(row['shape'])}")
        if bad := [pair for pair in aliases if not isinstance(pair, list)]:
            raise ValueError(f"an alias must be a list [name, stored name], got {brief(bad[0])}")
        columns = {key: tuple(row[key] for row in rows) for key in ("name", "shape", "dtype", "role")}
        layout = cls(columns["name"], columns["shape"], columns["dtype"], columns["role"], tuple(aliases))
        for row, offset in zip(rows, layout.offsets, strict=True):
            if type(row["offset"]) is not int or row["offset"] != offset:
                raise ValueError(
                    f"tensor {row['name']!r}: offset must be {offset}, right behind the tensor before it, "
                    f"got {brief(row['offset'])} (overlap or gap)"
                )
        if type(obj["size"]) is not int or obj["size"] != layout.size:
            raise ValueError(f"size must be {layout.size}, the sum of the tensors, got {brief(obj['size'])}")
        return layout

    def _chosen(self, names: Iterable[str]) -> list[str]:
        """These names, each once: stored ones in layout order, then aliases."""
        if isinstance(names, str):
            raise ValueError(f"names must be several names, got the string {names!r}; write [{names!r}]")
        chosen = set(names)
        for name in chosen:
            self._find(name)
        return [name for name in self._position if name in chosen]

    def _batch(self, weights: Any) -> tuple[int, ...]:
        """Leading axes of weights (..., size)."""
        if not isinstance(weights, np.ndarray) and not is_torch(weights):
            raise ValueError(f"weights must be a numpy array or a torch tensor, got {type(weights).__name__}")
        shape = tuple(weights.shape)
        if not shape or shape[-1] != self.size:
            raise ValueError(f"last axis must hold {self.size} weights, got {shape[-1] if shape else 'a scalar'}")
        return shape[:-1]

    def _common_batch(self, values: Mapping[str, Any]) -> tuple[int, ...]:
        """Leading axes of tensors (..., *shape), after checking that exactly ours came and that they agree."""
        missing = [name for name in self.names if name not in values]
        unknown = [name for name in values if name not in self]
        if missing or unknown:
            said = [f"missing {few(missing)}"] * bool(missing) + [f"unknown {few(unknown)}"] * bool(unknown)
            raise ValueError(f"tensors do not fit this layout of {len(self)}: {'; '.join(said)}")
        batch: tuple[int, ...] | None = None
        for name, shape in zip(self.names, self.shapes, strict=True):
            came = tuple(values[name].shape)
            lead = len(came) - len(shape)
            if lead < 0 or came[lead:] != shape:
                raise ValueError(f"tensor {name!r} must have shape {shape} behind the leading axes, got {came}")
            batch = came[:lead] if batch is None else batch
            if came[:lead] != batch:
                raise ValueError(
                    f"tensor {name!r} must have the leading axes {batch} of {self.names[0]!r}, got {came[:lead]}"
                )
        return batch or ()


def _check(layout: Layout) -> None:
    """Raise ValueError if the fields of a layout are wrong or do not fit each other."""
    for field in ("shapes", "dtypes", "roles"):
        if len(getattr(layout, field)) != len(layout.names):
            raise ValueError(f"a layout of {len(layout.names)} names has {len(getattr(layout, field))} {field}")
    if bad := [pair for pair in layout.aliases if len(pair) != 2]:
        raise ValueError(f"an alias is (name, stored name), got {brief(bad[0])}")
    seen: set[str] = set()
    for name in (*layout.names, *(alias for alias, _ in layout.aliases)):
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or _UNWRITABLE.search(name):
            raise ValueError(
                f"a tensor's name must be 1 to {MAX_NAME} characters without control characters, got {brief(name)}"
            )
        if name in seen:
            raise ValueError(f"two tensors are called {name!r}")
        seen.add(name)
    size = 0
    for name, shape, dtype, role in zip(layout.names, layout.shapes, layout.dtypes, layout.roles, strict=True):
        if len(shape) > MAX_DIMS or not all(type(n) is int and 0 <= n <= MAX_SIZE for n in shape):
            raise ValueError(
                f"tensor {name!r}: shape must be at most {MAX_DIMS} integers of 0 to 2**48, got {brief(shape)}"
            )
        # zeros count as one: numpy refuses (0, 2**40, 2**40) too
        if math.prod(n or 1 for n in shape) > MAX_SIZE or (size := size + math.prod(shape)) > MAX_SIZE:
            raise ValueError(f"tensor {name!r}: more than 2**48 weights with shape {brief(shape)}")
        if dtype not in FLOATS + INTEGERS:
            known = ", ".join(FLOATS + INTEGERS)
            raise ValueError(f"tensor {name!r}: dtype must be one of {known}; got {brief(dtype)}")
        if role not in ROLES:
            raise ValueError(f"tensor {name!r}: role must be one of {', '.join(ROLES)}; got {brief(role)}")
    stored = set(layout.names)
    for alias, owner in layout.aliases:
        if not isinstance(owner, str) or owner not in stored:
            raise ValueError(f"alias {alias!r} must point to a stored tensor, got {brief(owner)}")


def _check_keys(what: str, obj: Any, keys: tuple[str, ...]) -> None:
    if not isinstance(obj, dict):
        raise ValueError(f"{what} must be an object with the keys {', '.join(keys)}; got {brief(obj)}")
    if set(obj) != set(keys):
        raise ValueError(f"{what} must have exactly the keys {', '.join(keys)}; got {few(list(obj))}")


def _write(layout: Layout, values: Mapping[str, Any], batch: tuple[int, ...], target: str) -> Any:
    """Numpy tensors into one new flat array, each written once."""
    out = np.empty((*batch, layout.size), target)
    for name, value in values.items():
        part = layout.tensor(out, name)
        with np.errstate(over="ignore" if value.dtype.kind in "iub" else "warn"):  # integers: checked in the next lines
            part[...] = value
        check_exact(name, value, part)
    return out


def _cat(layout: Layout, values: Mapping[str, Any], batch: tuple[int, ...], target: str) -> Any:
    """Torch tensors as one flat tensor, differentiable."""
    import torch  # loaded already: tensors came

    if len(devices := {str(value.device) for value in values.values()}) > 1:
        raise ValueError(f"tensors must be on one device, got {few(sorted(devices))}")
    parts = {name: value.to(getattr(torch, target)) for name, value in values.items()}
    for name, value in values.items():
        check_exact(name, value, parts[name])
    sizes = map(math.prod, layout.shapes)  # written out: -1 is ambiguous for empty tensors
    return torch.cat([p.reshape((*batch, n)) for p, n in zip(parts.values(), sizes, strict=True)], dim=-1)
