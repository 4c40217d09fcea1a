"""Weights as sequences of layer tokens: one for each output unit, for networks that read and write other networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from weightspace.arrays import is_torch
from weightspace.layout import ROLES, Layout

Array = TypeVar("Array", "np.ndarray[Any, Any]", Tensor)


@dataclass(frozen=True, eq=False)
class Tokens:
    """How a flat vector is cut into tokens of one width. Made by `Tokens.of`.

    Args:
        width: numbers in a token.
        size: numbers in the flat vector: all weights of the roles, in layout order.
        index: (tokens, width) int64, where in the flat vector each number comes from; `size` for padding.
        places: (tokens, 3) int64: number of the layer, output unit in it, piece of that unit's weights.
        layers: the tensors of each layer, by layer number.

    Tokens of a layer follow each other, by unit and then by piece.
    """

    width: int
    size: int
    index: np.ndarray[Any, np.dtype[np.int64]]
    places: np.ndarray[Any, np.dtype[np.int64]]
    layers: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, layout: Layout, width: int, roles: str = "parameter") -> Tokens:
        """Cut a layout.

        A token is a row (output unit) of a weight with its bias behind it, padded with zeros; a row longer than `width`
        is cut in pieces. A bias goes with the weight of its name ("fc.weight" and "fc.bias"). Tensors without rows
        (scales and shifts of norms, scalars) are one unit each.

        Args:
            roles: "parameter", "buffer" or "all". The flat vector holds the weights of these roles alone.

        Raises:
            ValueError: a width below 1, or roles that there are not.

        Source: row tokens as in SANE, Schuerholt et al. 2024, arXiv 2406.09997. Differs: a row keeps its
            bias, and a layer its own number of tokens.

        >>> layout = Layout(("fc.weight", "fc.bias"), ((2, 3), (2,)))
        >>> tokens = Tokens.of(layout, 4)
        >>> tokens.split(np.array([[1, 2, 3, 4, 5, 6, 70, 80]]))
        array([[[ 1,  2,  3, 70],
                [ 4,  5,  6, 80]]])
        """
        if width < 1:
            raise ValueError(f"tokens must be 1 or more wide, got {width}")
        if roles not in (*ROLES, "all"):
            raise ValueError(f"roles must be one of {', '.join(ROLES)}, all; got {roles!r}")
        chosen = [name for name, role in zip(layout.names, layout.roles, strict=True) if roles in ("all", role)]
        chosen_layout = layout.select(chosen)
        index: list[np.ndarray] = [np.empty((0, width), np.int64)]
        places: list[np.ndarray] = [np.empty((0, 3), np.int64)]
        layers: list[tuple[str, ...]] = []
        for names, units in _units(chosen_layout):
            count, length = units.shape
            pieces = -(-length // width)
            padded = np.full((count, pieces * width), chosen_layout.size, np.int64)
            padded[:, :length] = units
            index.append(padded.reshape(count * pieces, width))
            unit, piece = np.divmod(np.arange(count * pieces), pieces)
            places.append(np.stack((np.full_like(unit, len(layers)), unit, piece), 1))
            layers.append(names)
        return cls(width, chosen_layout.size, np.concatenate(index), np.concatenate(places), tuple(layers))

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.index)

    @cached_property
    def mask(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(tokens, width), False where a token is padding."""
        return np.asarray(self.index < self.size)

    @cached_property
    def inverse(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(size,), where among all numbers of all tokens each weight lies."""
        found = np.empty(self.size, np.int64)
        found[self.index[self.mask]] = np.flatnonzero(self.mask)
        return found

    @cached_property
    def spans(self) -> tuple[slice, ...]:
        """Which tokens are of each layer."""
        ends = np.searchsorted(self.places[:, 0], np.arange(len(self.layers) + 1))
        return tuple(slice(int(first), int(end)) for first, end in itertools.pairwise(ends))

    def split(self, weights: Array) -> Array:
        """Flat weights (..., size), numpy or torch, differentiable -> (..., tokens, width); padding is 0.

        Raises:
            ValueError: if the last axis is not `size` long.
        """
        shape: tuple[int, ...] = tuple(weights.shape)
        if not shape or shape[-1] != self.size:
            raise ValueError(f"last axis must hold {self.size} weights, got {shape[-1] if shape else 'a scalar'}")
        if is_torch(weights):
            return cast(Array, _Split.apply(weights, self))
        return cast(
            Array,
            np.concatenate((weights, np.zeros_like(weights[..., :1], shape=(*shape[:-1], 1))), -1)[..., self.index],
        )

    def join(self, tokens: Array) -> Array:
        """The inverse of `split`: (..., tokens, width) -> (..., size). What stands in the padding is dropped.

        Raises:
            ValueError: if the last two axes are not (tokens, width).
        """
        shape: tuple[int, ...] = tuple(tokens.shape)
        if shape[-2:] != (len(self), self.width):
            raise ValueError(f"last axes must be {(len(self), self.width)} (tokens, width), got {shape[-2:]}")
        if is_torch(tokens):
            return cast(Array, _Join.apply(tokens, self))
        return tokens.reshape(*shape[:-2], len(self) * self.width)[..., self.inverse]

    @cached_property
    def _indices(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`index`, flat, and `inverse` on a device, kept there."""
        if device not in self._indices:
            index, inverse = torch.from_numpy(self.index.ravel()), torch.from_numpy(self.inverse)
            self._indices[device] = index.to(device), inverse.to(device)
        return self._indices[device]


class _Split(torch.autograd.Function):
    """`split`, whose derivative is `join`: a gather too, where that of a plain gather adds up at random places."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, tokens: Tokens) -> Tensor:
        ctx.tokens = tokens
        index, _ = tokens._on(weights.device)
        extended = torch.nn.functional.pad(weights, (0, 1))
        return extended.index_select(-1, index).unflatten(-1, (len(tokens), tokens.width))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Join.apply(gradients[0], ctx.tokens), None


class _Join(torch.autograd.Function):
    """`join`, whose derivative is `split`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, tokens: Tokens) -> Tensor:
        ctx.tokens = tokens
        _, inverse = tokens._on(values.device)
        return values.flatten(-2).index_select(-1, inverse)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Split.apply(gradients[0], ctx.tokens), None


def _units(layout: Layout) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Names of the tensors of each layer, and where the weights of each unit lie, (units, weights) int64."""
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    places = {name: np.arange(layout.slice(name).start, layout.slice(name).stop) for name in layout.names}
    biases = {bias: name for name in layout.names if (bias := _bias_of(name, shapes)) is not None}
    owners = {owner: bias for bias, owner in biases.items()}
    for name, shape in shapes.items():
        if name in biases or not math.prod(shape):
            continue
        rows = places[name].reshape(shape[0] if len(shape) > 1 else 1, -1)
        if name in owners:
            yield (name, owners[name]), np.concatenate((rows, places[owners[name]][:, None]), 1)
        else:
            yield (name,), rows


def _bias_of(name: str, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The tensor with one number for each row of this weight, or None."""
    bias = name.removesuffix("weight") + "bias"
    if not name.endswith("weight") or len(shapes[name]) < 2 or not math.prod(shapes[name]):
        return None
    return bias if shapes.get(bias) == shapes[name][:1] else None
