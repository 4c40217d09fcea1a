"""Architectures as data: a family and bounded numbers, which `ARCHITECTURES` turns into modules. No zoo names code."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from catalog.errors import InvalidSpecError, ZooError, unknown_name
from catalog.record import IMPORTED
from kernels.population import Dropout
from weightspace.layout import Layout

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}
NORMS = ("none", "group", "batch")
MAX_WEIGHTS = 2**31  # a description from a stranger must not make a terabyte


@dataclass(frozen=True)
class Family:
    """A family of networks.

    Args:
        build: (input_shape, num_classes, **numbers) -> module; keyword defaults are the numbers' defaults.
        numbers: allowed values of each number: a range, or a tuple of names.
        defaults: value of each number that is not given.
        check: raises InvalidSpecError for inputs the family cannot take.
    """

    build: Callable[..., nn.Module]
    numbers: Mapping[str, range | tuple[str, ...]]
    defaults: Mapping[str, Any]
    check: Callable[[tuple[int, ...]], None] = field(default=lambda shape: None)


@dataclass(frozen=True)
class Architecture:
    """One concrete network of a family: what a zoo calls a variant.

    >>> small = Architecture("mlp", {"depth": 2, "width": 32}, input_shape=(1, 8, 8), num_classes=10)
    >>> small.name, small.layout.size
    ('mlp-1x8x8-10-depth2-width32-relu', 3466)
    """

    family: str
    numbers: Mapping[str, Any]
    input_shape: tuple[int, ...]
    num_classes: int

    def __post_init__(self) -> None:
        if not isinstance(self.family, str) or self.family not in ARCHITECTURES:
            raise unknown_name("architecture family", self.family, ARCHITECTURES)
        family = ARCHITECTURES[self.family]
        for name, value in self.numbers.items():
            if name not in family.numbers:
                raise unknown_name(f"number of the family {self.family}", name, family.numbers)
            check_number(self.family, name, value)
        shape = tuple(self.input_shape)
        if not 1 <= len(shape) <= 4 or not all(type(n) is int and 1 <= n <= 4096 for n in shape):
            raise InvalidSpecError(f"input_shape must be 1 to 4 sizes between 1 and 4096, got {self.input_shape!r}")
        if math.prod(shape) > MAX_WEIGHTS:
            raise InvalidSpecError(f"inputs {shape} have {math.prod(shape):,} entries, more than {MAX_WEIGHTS:,}")
        if type(self.num_classes) is not int or not 2 <= self.num_classes <= 100_000:
            raise InvalidSpecError(f"num_classes must be an integer from 2 to 100000, got {self.num_classes!r}")
        family.check(shape)
        object.__setattr__(self, "input_shape", shape)
        object.__setattr__(
            self, "numbers", {name: self.numbers.get(name, family.defaults[name]) for name in family.numbers}
        )

    @property
    def name(self) -> str:
        """A name for files: family, input, classes, numbers."""
        numbers = [
            value if isinstance(value, str) else f"{key}{value}"
            for key, value in self.numbers.items()
            if value != "none"
        ]
        return "-".join([self.family, "x".join(map(str, self.input_shape)), str(self.num_classes), *numbers])

    def build(self, device: str = "cpu") -> nn.Module:
        """The module, initialised as torch does; on "meta" it has shapes only.

        Raises:
            InvalidSpecError: more than `MAX_WEIGHTS`.
        """
        if device != "meta":
            self.layout  # noqa: B018  # counts the weights before they are made
        with torch.device(device):
            return ARCHITECTURES[self.family].build(self.input_shape, self.num_classes, **self.numbers)

    @cached_property
    def layout(self) -> Layout:
        """Layout of its weights: parameters, then buffers."""
        module = self.build("meta")
        if (size := sum(tensor.numel() for tensor in module.state_dict().values())) > MAX_WEIGHTS:
            raise InvalidSpecError(f"{self.name} has {size:,} weights, more than the {MAX_WEIGHTS:,} allowed")
        return Layout.from_module(module)

    @cached_property
    def has_batch_norm(self) -> bool:
        return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in self.build("meta").modules())

    def to_json(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "numbers": dict(self.numbers),
            "input_shape": list(self.input_shape),
            "num_classes": self.num_classes,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Architecture:
        """From a variant's description in a zoo; raises InvalidSpecError or UnknownNameError, runs no code of it."""
        if isinstance(content, Mapping) and content.get("family") == IMPORTED:
            raise InvalidSpecError(
                "these networks were imported: their weights are known, but not how to run them, nor which units may "
                "move; rows, weights and export work, measuring, aligning and training on them do not"
            )
        try:
            return cls(content["family"], content["numbers"], tuple(content["input_shape"]), content["num_classes"])
        except ZooError:  # an unknown name is a KeyError too
            raise
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidSpecError(
                f"an architecture needs family, numbers, input_shape, num_classes; got {content!r}"
            ) from error


def check_number(family: str, name: str, value: Any) -> None:
    """Raise InvalidSpecError unless `value` is allowed for this number."""
    allowed = ARCHITECTURES[family].numbers[name]
    if isinstance(allowed, range):
        if type(value) is not int or value not in allowed:
            raise InvalidSpecError(
                f"{family} {name} must be an integer from {allowed.start} to {allowed.stop - 1}, got {value!r}"
            )
    elif not isinstance(value, str) or value not in allowed:
        raise InvalidSpecError(f"{family} {name} must be one of {', '.join(allowed)}, got {value!r}")


def mlp(input_shape: tuple[int, ...], num_classes: int, depth: int, width: int, activation: str) -> nn.Sequential:
    """`depth` hidden layers of `width` units, each followed by the activation (and dropout in training)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = math.prod(input_shape)
    for number in range(depth):
        layers[f"hidden{number}"] = nn.Linear(inputs, width)
        layers[f"activation{number}"] = ACTIVATIONS[activation]()
        layers[f"dropout{number}"] = Dropout(number)
        inputs = width
    layers["output"] = nn.Linear(inputs, num_classes)
    return nn.Sequential(layers)


def cnn(
    input_shape: tuple[int, ...], num_classes: int, style: str, channels: int, activation: str, norm: str
) -> nn.Sequential:
    """Three convolutions and a head, in two published styles. Each layer's dropout follows its activation.

    * `model_zoo` (Schuerholt et al. 2022, "Model Zoos", appendix; ModelZooDataset): channels c, 3c/4, c/2, kernels 5,
      5, 2, max pooling after the first two, a hidden layer of 20; 2,464 weights at 28x28x1 with c = 8. Inputs below
      22x22, too small for kernels of 5, get padded kernels of 3.
    * `small_cnn_zoo` (Unterthiner et al. 2020, section 3): three 3x3 convolutions of c channels with stride 2, global
      average pooling, a linear layer; 4,970 weights at one input channel with c = 16. Inputs below 15x15 are padded.
    """
    size = input_shape[1]
    if style == "model_zoo":
        outputs = (channels, max(3 * channels // 4, 1), max(channels // 2, 1))
        kernels, strides, padding = (
            ((5, 5, 2), (1, 1, 1), (0, 0, 0)) if size >= 22 else ((3, 3, 2), (1, 1, 1), (1, 1, 0))
        )
    else:
        outputs, kernels, strides = (channels,) * 3, (3, 3, 3), (2, 2, 2)
        padding = (0, 0, 0) if size >= 15 else (1, 1, 1)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = input_shape[0]
    for number in range(3):
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs[number], kernels[number], strides[number], padding[number])
        inputs, size = outputs[number], (size + 2 * padding[number] - kernels[number]) // strides[number] + 1
        if norm != "none":
            layers[f"norm{number}"] = _norm(norm, inputs, size)
        if style == "model_zoo" and number < 2:
            layers[f"pool{number}"], size = nn.MaxPool2d(2), size // 2
        layers[f"activation{number}"] = ACTIVATIONS[activation]()
        layers[f"dropout{number}"] = Dropout(number)
    if style == "model_zoo":
        layers["flatten"] = nn.Flatten()
        layers["hidden0"] = nn.Linear(inputs * size * size, 20)
        layers["activation3"], layers["dropout3"], inputs = ACTIVATIONS[activation](), Dropout(3), 20
    else:
        layers["average"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(inputs, num_classes)
    return nn.Sequential(layers)


def _norm(kind: str, channels: int, size: int) -> nn.Module:
    """BatchNorm, or GroupNorm in up to 4 groups of 4 or more channels: of 1x1 pixels fewer leave little but signs."""
    if kind == "group":
        if channels * size == 1:
            raise InvalidSpecError(
                "GroupNorm of one channel of 1x1 pixels is constant; use more channels or another norm"
            )
        return nn.GroupNorm(next((n for n in (4, 2) if channels % n == 0 and channels >= 4 * n), 1), channels)
    layer = nn.BatchNorm2d(channels)
    layer.num_batches_tracked = None  # a count of batches is no weight; with a fixed momentum nothing reads it
    layer.register_load_state_dict_pre_hook(_drop_count)
    return layer


def _drop_count(_layer: nn.Module, state_dict: dict[str, Any], prefix: str, *_rest: Any) -> None:
    """Torch adds a count of batches to a state dict that has none, and then complains that it is there."""
    state_dict.pop(f"{prefix}num_batches_tracked", None)


def _check_images(shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[1] != shape[2] or not 8 <= shape[1] <= 32:
        raise InvalidSpecError(
            f"cnn takes square images (channels, 8..32, 8..32), got {shape}; use mlp, or resize the data"
        )


ARCHITECTURES: dict[str, Family] = {
    "mlp": Family(
        mlp,
        {"depth": range(0, 65), "width": range(1, 8193), "activation": tuple(ACTIVATIONS)},
        {"depth": 2, "width": 32, "activation": "relu"},
    ),
    "cnn": Family(
        cnn,
        {
            "style": ("model_zoo", "small_cnn_zoo"),
            "channels": range(1, 513),
            "activation": tuple(ACTIVATIONS),
            "norm": NORMS,
        },
        {"style": "model_zoo", "channels": 8, "activation": "relu", "norm": "none"},
        _check_images,
    ),
}
assert all(re.fullmatch(r"[a-z_]+", name) for name in ARCHITECTURES)
