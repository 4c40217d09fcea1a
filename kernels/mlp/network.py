"""Which modules the compiled code can train, and what it needs to know of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import nn

from kernels.population import Dropout

ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.GELU: "gelu", nn.SiLU: "silu"}


class UnsupportedError(ValueError):
    """This module, type or machine has no compiled code; the message says why."""


@dataclass(frozen=True)
class MLP:
    """Linear layers with one activation between them.

    Args:
        widths: inputs, hidden units of each layer, outputs.
        activation: a value of `ACTIVATIONS`, applied behind every layer but the last.
        sites: random stream of the dropout behind each hidden layer, -1 for none.
    """

    widths: tuple[int, ...]
    activation: str
    sites: tuple[int, ...]

    @property
    def size(self) -> int:
        """Weights and biases."""
        return sum((i + 1) * o for i, o in itertools.pairwise(self.widths))


def mlp_of(module: nn.Module) -> MLP:
    """Reads a Sequential: Flatten or not, then Linear, activation and perhaps Dropout, repeated, then Linear.

    Raises:
        UnsupportedError: anything else.
    """
    if type(module) is not nn.Sequential:
        raise UnsupportedError(f"{type(module).__name__} is not a plain nn.Sequential")
    layers = list(module)
    if layers and type(layers[0]) is nn.Flatten and (layers[0].start_dim, layers[0].end_dim) == (1, -1):
        layers = layers[1:]
    sizes: list[tuple[int, int]] = []
    kinds: set[str] = set()
    sites: list[int] = []
    while len(layers) > 1:
        linear, activation, *layers = layers
        sizes.append(_size(linear))
        if type(activation) not in ACTIVATIONS or getattr(activation, "approximate", "none") != "none":
            raise UnsupportedError(f"{activation} behind {linear} is not one of its activations")
        kinds.add(ACTIVATIONS[type(activation)])
        site = -1
        if layers and isinstance(layers[0], Dropout):
            site = layers[0].site
            layers = layers[1:]
        sites.append(site)
    if not layers or len(kinds) > 1 or len({id(layer) for layer in module}) < len(module):
        raise UnsupportedError("the last layer must be Linear, the activations of one kind, and no layer used twice")
    sizes.append(_size(layers[0]))
    if any(before[1] != after[0] for before, after in itertools.pairwise(sizes)):
        raise UnsupportedError(f"layers of {sizes} inputs and outputs do not fit each other")
    widths = (sizes[0][0], *(outputs for _, outputs in sizes))
    return MLP(widths, kinds.pop() if kinds else "relu", tuple(sites))


def _size(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs."""
    if type(layer) is not nn.Linear or layer.bias is None:
        raise UnsupportedError(f"{layer} stands where a Linear with a bias should")
    return layer.in_features, layer.out_features
