"""Which modules the compiled code can train, and what it needs to know of them."""

from __future__ import annotations

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
        return sum((i + 1) * o for i, o in zip(self.widths[:-1], self.widths[1:], strict=True))


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
    widths, kinds, sites = [], set(), []
    while len(layers) > 1:
        linear, activation, *layers = layers
        widths.append(_inputs(linear, widths))
        if type(activation) not in ACTIVATIONS or getattr(activation, "approximate", "none") != "none":
            raise UnsupportedError(f"{activation} behind {linear} is not one of its activations")
        kinds.add(ACTIVATIONS[type(activation)])
        sites.append(-1)
        if layers and type(layers[0]) is Dropout:
            sites[-1] = layers.pop(0).site
        widths.append(linear.out_features)
    if len(layers) != 1 or len(kinds) > 1 or len({id(layer) for layer in module}) < len(module):
        raise UnsupportedError("the last layer must be Linear, the activations of one kind, and no layer used twice")
    last = layers[0]
    widths += [_inputs(last, widths), last.out_features]
    return MLP(tuple(widths[:1] + widths[1::2]), kinds.pop() if kinds else "relu", tuple(sites))


def _inputs(layer: nn.Module, widths: list[int]) -> int:
    if type(layer) is not nn.Linear or layer.bias is None:
        raise UnsupportedError(f"{layer} stands where a Linear with a bias should")
    if widths and widths[-1] != layer.in_features:
        raise UnsupportedError(f"{layer} does not take the {widths[-1]} outputs before it")
    return layer.in_features
