"""Weights as one token for each hidden unit: all that goes into it and all that comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.symmetry import Symmetry

REST = "rest"  # the token of what belongs to no unit, the biases of the last layer say


@dataclass(frozen=True, eq=False)
class Units:
    """Which parameters each unit has. Made by `Units.of`.

    A weight between two hidden layers belongs to two units: both tokens hold it, and `join` takes the mean of what they
    say of it. Units of a group inside another (rows of an attention head) are in the token of that one.

    Args:
        size: numbers in the flat vector, all parameters in layout order.
        index: name -> (units, numbers) int64, where in the flat vector the numbers of each unit are; `REST` is the
            last, with one token, if there is something that belongs to no unit.
    """

    size: int
    index: dict[str, np.ndarray]

    @classmethod
    def of(cls, symmetry: Symmetry) -> Units:
        """The units of the groups of a symmetry, those that are fixed too.

        Raises:
            ValueError: the symmetry has no groups, so that there are no hidden units.

        >>> from weightspace.layout import Layout
        >>> layout = Layout(("0.weight", "0.bias", "2.weight", "2.bias"), ((3, 2), (3,), (1, 3), (1,)))
        >>> axes = {"0.weight": ("hidden", None), "0.bias": ("hidden",), "2.weight": (None, "hidden")}
        >>> Units.of(Symmetry(layout, axes)).index["hidden"]
        array([[ 0,  1,  6,  9],
               [ 2,  3,  7, 10],
               [ 4,  5,  8, 11]])
        """
        layout = symmetry.layout
        roles = zip(layout.names, layout.roles, strict=True)
        kept = {name for name, role in roles if role == "parameter"}
        places = np.full(layout.size, -1, np.int64)
        flat = layout.indices(kept)
        places[flat] = np.arange(len(flat))
        found: dict[str, list[np.ndarray]] = {}
        owned = np.zeros(len(flat), bool)
        for block in symmetry.blocks:
            if block.tensor not in kept:
                continue
            where = block.offset + sum(
                np.arange(size).reshape(-1, *(1 for _ in block.dims[axis + 1 :])) * stride
                for axis, (_, size, stride) in enumerate(block.dims)
            )
            where = np.broadcast_to(where, tuple(size for _, size, _ in block.dims))
            for axis, (group, size, _) in enumerate(block.dims):
                if group is not None and not symmetry.ancestors(group):
                    numbers = places[np.moveaxis(where, axis, 0).reshape(size, -1)]
                    found.setdefault(group, []).append(numbers)
                    owned[numbers] = True
        if not found:
            raise ValueError("this symmetry has no groups: there are no hidden units to make tokens of")
        index = {name: np.concatenate(parts, 1) for name, parts in found.items()}
        rest = np.flatnonzero(~owned)
        return cls(len(flat), index | ({REST: rest[None]} if len(rest) else {}))

    def __len__(self) -> int:
        """Number of tokens."""
        return sum(map(len, self.index.values()))

    @cached_property
    def gathered(self) -> np.ndarray:
        """(numbers of all tokens,) int64, where each of them is in the flat vector, token by token."""
        return np.concatenate([numbers.ravel() for numbers in self.index.values()])

    @cached_property
    def places(self) -> np.ndarray:
        """(size, most) int64: where among the numbers of all tokens each parameter is; past the end if less often."""
        order = np.argsort(self.gathered, kind="stable")
        counts = np.bincount(self.gathered, minlength=self.size)
        rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        out = np.full((self.size, int(counts.max())), len(order), np.int64)
        out[self.gathered[order], rank] = order
        return out

    @cached_property
    def counts(self) -> np.ndarray:
        """(size,) int64, how many tokens hold each parameter: one or two in networks without residual streams."""
        return np.bincount(self.gathered, minlength=self.size)

    def split(self, weights: Tensor) -> dict[str, Tensor]:
        """Flat parameters (batch, size) -> name -> (batch, units, numbers). Differentiable.

        Raises:
            ValueError: the last axis is not `size` long.
        """
        if weights.dim() != 2 or weights.shape[1] != self.size:
            raise ValueError(f"parameters must be (batch, {self.size}), got {tuple(weights.shape)}")
        values: Tensor = _Gather.apply(weights, self)
        parts = values.split([numbers.size for numbers in self.index.values()], 1)
        shapes = zip(self.index, parts, strict=True)
        return {name: part.unflatten(1, self.index[name].shape) for name, part in shapes}

    def join(self, tokens: dict[str, Tensor]) -> Tensor:
        """The inverse: (batch, size), the mean where several tokens hold a parameter. Differentiable."""
        out: Tensor = _Mean.apply(torch.cat([tokens[name].flatten(1) for name in self.index], 1), self)
        return out

    @cached_property
    def _kept(self) -> dict[torch.device, tuple[Tensor, Tensor, Tensor]]:
        return {}

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """`gathered`, `places` and 1 / `counts` on a device, kept there."""
        if device not in self._kept:
            arrays = (self.gathered, self.places.T.copy(), 1 / self.counts.astype(np.float32))
            gathered, places, shares = (torch.from_numpy(array).to(device) for array in arrays)
            self._kept[device] = gathered, places, shares
        return self._kept[device]

    def total(self, values: Tensor) -> Tensor:
        """(batch, numbers of all tokens) -> (batch, size): what tokens say of each parameter, added up."""
        _, places, _ = self.on(values.device)
        padded = torch.nn.functional.pad(values, (0, 1)) if bool((self.counts != len(places)).any()) else values
        out = padded.index_select(1, places[0])
        for place in places[1:]:
            out += padded.index_select(1, place)
        return out


class _Gather(torch.autograd.Function):
    """Numbers of all tokens; backwards their sum, by gathers too, where torch would add at random places."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, units: Units) -> Tensor:
        ctx.units = units
        return weights.index_select(1, units.on(weights.device)[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.units.total(gradients[0]), None


class _Mean(torch.autograd.Function):
    """Mean over the tokens that hold a parameter."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, units: Units) -> Tensor:
        ctx.units = units
        return units.total(values) * units.on(values.device)[2].to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gathered, _, shares = ctx.units.on(gradients[0].device)
        return (gradients[0] * shares.to(gradients[0].dtype)).index_select(1, gathered), None
