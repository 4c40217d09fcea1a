"""Which modules the compiled code can run, and what it needs to know of them: stages, in the order of the network."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from kernels.mlp.network import ACTIVATIONS, UnsupportedError
from kernels.population import Dropout

CONV, LINEAR, AVERAGE = range(3)
LARGEST_POOL = 4


@dataclass(frozen=True)
class Stage:
    """A layer, with what follows it before the next one.

    Args:
        kind: `CONV`, `LINEAR` or `AVERAGE` (over all positions of a channel).
        inputs, outputs: (channels, height, width); vectors are (features, 1, 1). Outputs are behind the pooling.
        kernel, stride, padding: (y, x) of a convolution.
        pool: side of the windows of max pooling behind a convolution, 1 for none.
        activation: a value of `ACTIVATIONS`, behind the pooling; "" for none.
        site: random stream of the dropout behind all this, -1 for none.
    """

    kind: int
    inputs: tuple[int, int, int]
    outputs: tuple[int, int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    pool: int = 1
    activation: str = ""
    site: int = -1

    @property
    def terms(self) -> int:
        """Weights of one output channel."""
        if self.kind == AVERAGE:
            return 0
        return self.inputs[0] * math.prod(self.kernel) if self.kind == CONV else math.prod(self.inputs)

    @property
    def size(self) -> int:
        """Weights and biases."""
        return (self.terms + 1) * self.outputs[0] if self.kind != AVERAGE else 0


@dataclass(frozen=True)
class Network:
    """Stages one after the other.

    Args:
        input_shape: of one sample, without the batch.
    """

    input_shape: tuple[int, ...]
    stages: tuple[Stage, ...]

    @property
    def size(self) -> int:
        """Weights and biases, flat in the order of the module's parameters."""
        return sum(stage.size for stage in self.stages)

    @property
    def outputs(self) -> int:
        """Of one sample: classes."""
        return math.prod(self.stages[-1].outputs)


def network_of(module: nn.Module, input_shape: tuple[int, ...]) -> Network:
    """Reads a Sequential whose layers are those of `zoo.architectures` without norms.

    A convolution or linear layer is followed by max pooling or not, an activation or not, dropout or not, in this
    order; `AdaptiveAvgPool2d(1)` and `Flatten` stand where torch allows them.

    Raises:
        UnsupportedError: anything else.
    """
    if type(module) is not nn.Sequential:
        raise UnsupportedError(f"{type(module).__name__} is not a plain nn.Sequential")
    layers = list(module)
    if len({id(layer) for layer in layers}) < len(layers):
        raise UnsupportedError("a layer is used twice")
    if len(input_shape) not in (1, 3):
        raise UnsupportedError(f"inputs must be vectors or images (channels, height, width), got {input_shape}")
    channels, height, width = (*input_shape, 1, 1)[:3]
    here, flat = (channels, height, width), len(input_shape) == 1
    stages: list[Stage] = []
    done: tuple[str, ...] = ("pool", "activation", "dropout")  # nothing stands before them yet
    for layer in layers:
        if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            here, flat = (math.prod(here), 1, 1), True
        elif isinstance(layer, Dropout) and "dropout" not in done:
            stages[-1] = replace(stages[-1], site=layer.site)
            done = ("pool", "activation", "dropout")
        elif _activation(layer) and "activation" not in done:
            stages[-1] = replace(stages[-1], activation=_activation(layer))
            done = ("pool", "activation")
        elif type(layer) is nn.MaxPool2d and "pool" not in done:
            side = _pool(layer)
            here = (here[0], here[1] // side, here[2] // side)
            stages[-1] = replace(stages[-1], pool=side, outputs=here)
            done = ("pool",)
        else:
            stage = _stage(layer, here, flat)
            stages.append(stage)
            here, done = stage.outputs, () if stage.kind == CONV else ("pool",)
        if min(here) < 1:
            raise UnsupportedError(f"nothing is left of inputs {input_shape} behind {layer}")
    if not stages or not flat:
        raise UnsupportedError("the outputs must be vectors, those of a layer")
    return Network(tuple(input_shape), tuple(stages))


def _activation(layer: nn.Module) -> str:
    """Its name, "" for what is none of ours."""
    return ACTIVATIONS.get(type(layer), "") if getattr(layer, "approximate", "none") == "none" else ""


def _pool(layer: nn.MaxPool2d) -> int:
    """Side of the windows."""
    side = layer.kernel_size if isinstance(layer.kernel_size, int) else layer.kernel_size[0]
    plain = _pair(layer.kernel_size) == _pair(layer.stride) == (side, side) and _pair(layer.padding) == (0, 0)
    if not plain or layer.dilation != 1 or layer.ceil_mode or layer.return_indices or side > LARGEST_POOL:
        raise UnsupportedError(f"{layer} is not plain pooling of squares up to {LARGEST_POOL} a side, side by side")
    return side


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _stage(layer: nn.Module, inputs: tuple[int, int, int], flat: bool) -> Stage:
    """The stage that a layer begins."""
    if type(layer) is nn.Linear and layer.bias is not None and flat:
        if layer.in_features != inputs[0]:
            raise UnsupportedError(f"{layer} does not fit {inputs[0]} inputs")
        return Stage(LINEAR, inputs, (layer.out_features, 1, 1))
    if type(layer) is nn.AdaptiveAvgPool2d and layer.output_size in (1, (1, 1)) and not flat:
        return Stage(AVERAGE, inputs, (inputs[0], 1, 1))
    if type(layer) is not nn.Conv2d or flat:
        raise UnsupportedError(f"{layer} has no compiled code where it stands")
    if layer.bias is None or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise UnsupportedError(f"{layer} is not a plain convolution with a bias and padding by zeros")
    if layer.groups != 1 or layer.dilation != (1, 1) or layer.in_channels != inputs[0]:
        raise UnsupportedError(f"{layer} is not a plain convolution of {inputs[0]} channels")
    kernel, stride, padding = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding)
    height, width = ((inputs[1 + axis] + 2 * padding[axis] - kernel[axis]) // stride[axis] + 1 for axis in range(2))
    return Stage(CONV, inputs, (layer.out_channels, height, width), kernel, stride, padding)
