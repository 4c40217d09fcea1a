"""Small networks of four families with their symmetries written by hand: what alignment is tried on."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.layout import Layout
from weightspace.symmetry import Group, Symmetry
from zoo.architectures import Architecture

Axes = dict[str, tuple[str | None, ...]]


@dataclass(frozen=True)
class Network:
    """A module, its symmetry, and the shape of one input."""

    module: nn.Module
    symmetry: Symmetry
    input_shape: tuple[int, ...]

    def random_weights(self, models: int, seed: int = 0) -> Tensor:
        """(models, size) float32: normal, of variance 1 / fan in; running variances are positive."""
        generator = torch.Generator().manual_seed(seed)
        layout = self.symmetry.layout
        weights = torch.randn(models, layout.size, generator=generator)
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            part = layout.tensor(weights, name)
            part /= math.sqrt(max(1, math.prod(shape[1:])))
            if name.endswith("running_var"):
                part.abs_().add_(0.5)
        return weights

    def outputs(self, weights: Tensor, inputs: Tensor) -> Tensor:
        """(models, samples, outputs) in the precision of the weights."""
        layout, module = self.symmetry.layout, self.module.eval()
        with torch.no_grad():
            found = [torch.func.functional_call(module, layout.unflatten(one), (inputs,)) for one in weights]
        return torch.stack(found)


def mlp(width: int, depth: int = 2) -> Network:
    """The zoo's MLP for digits."""
    architecture = Architecture("mlp", {"depth": depth, "width": width}, (1, 8, 8), 10)
    axes: Axes = {}
    for number in range(depth):
        mine, before = f"hidden{number}", f"hidden{number - 1}" if number else None
        axes |= {f"{mine}.weight": (mine, before), f"{mine}.bias": (mine,)}
    axes["output.weight"] = (None, f"hidden{depth - 1}" if depth else None)
    return Network(architecture.build(), Symmetry(architecture.layout, axes), (1, 8, 8))


def cnn(channels: int) -> Network:
    """The zoo's CNN with BatchNorm; a flatten map joins convolutions and linear layers."""
    numbers = {"channels": channels, "style": "model_zoo", "norm": "batch"}
    architecture = Architecture("cnn", numbers, (1, 8, 8), 10)
    axes: Axes = {}
    for number in range(3):
        mine, before = f"channels{number}", f"channels{number - 1}" if number else None
        axes |= {f"conv{number}.weight": (mine, before, None, None), f"conv{number}.bias": (mine,)} | norm(number, mine)
    last = architecture.layout.shapes[architecture.layout.names.index("conv2.weight")][0]
    groups = {"channels2": Group(last)}
    pixels = architecture.layout.shapes[architecture.layout.names.index("hidden0.weight")][1] // last
    axes |= {"hidden0.weight": ("hidden0", f"channels2 {pixels}"), "hidden0.bias": ("hidden0",)}
    axes["output.weight"] = (None, "hidden0")
    return Network(architecture.build(), Symmetry(architecture.layout, axes, groups), (1, 8, 8))


def norm(name: str | int, group: str) -> Axes:
    """Axes of a BatchNorm layer."""
    layer = f"norm{name}" if isinstance(name, int) else name
    return {f"{layer}.{kind}": (group,) for kind in ("weight", "bias", "running_mean", "running_var")}


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside a shortcut, as in ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = batch_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = batch_norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            parts = OrderedDict(conv=nn.Conv2d(inputs, outputs, 1, stride, bias=False), bn=batch_norm(outputs))
            self.shortcut = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        inside = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inside)) + self.shortcut(x))


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Without a count of batches, which is no weight."""
    layer = nn.BatchNorm2d(channels)
    layer.num_batches_tracked = None
    return layer


def resnet(width: int, blocks: int = 2) -> Network:
    """Two stages of residual blocks, the second twice as wide."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Conv2d(3, width, 3, 1, 1, bias=False), bn=batch_norm(width)
    )
    axes: Axes = {"stem.weight": ("stream0", None, None, None)} | norm("bn", "stream0")
    inputs = width
    for stage in range(2):
        for number in range(blocks):
            name, outputs = f"block{stage}{number}", width * (stage + 1)
            before = "stream0" if not number else f"stream{stage}"
            mine, stream = f"inside{stage}{number}", f"stream{stage}"
            layers[name] = Residual(inputs, outputs, 2 if stage and not number else 1)
            axes[f"{name}.conv1.weight"] = (mine, before, None, None)
            axes[f"{name}.conv2.weight"] = (stream, mine, None, None)
            axes |= norm(f"{name}.bn1", mine) | norm(f"{name}.bn2", stream)
            if stage and not number:
                axes[f"{name}.shortcut.conv.weight"] = (stream, before, None, None)
                axes |= norm(f"{name}.shortcut.bn", stream)
            inputs = outputs
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(inputs, 10)}
    axes["head.weight"] = (None, "stream1")
    module = nn.Sequential(layers)
    return Network(module, Symmetry(Layout.from_module(module), axes), (3, 8, 8))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches of 4x4, learned positions, mean over tokens."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(torch.zeros(4, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


def vit(width: int, heads: int = 4, depth: int = 2) -> Network:
    """A small vision transformer; each head's query and key rows share an order, and its value and output rows one."""
    module = VisionTransformer(width, heads, depth)
    axes: Axes = {"patches.weight": ("stream", None, None, None), "patches.bias": ("stream",)}
    axes |= {"positions": (None, "stream"), "norm.weight": ("stream",), "norm.bias": ("stream",)}
    axes["head.weight"] = (None, "stream")
    groups: dict[str, Group] = {"stream": Group(width)}
    for number in range(depth):
        block, mine = f"blocks.{number}", f"mlp{number}"
        around = f"heads{number}"
        groups |= {around: Group(heads)}
        groups |= {f"{kind}{number}": Group(width // heads, around) for kind in ("qk", "vo")}
        for layer, kind in (("query", "qk"), ("key", "qk"), ("value", "vo")):
            axes[f"{block}.{layer}.weight"] = (f"{around} {kind}{number}", "stream")
            axes[f"{block}.{layer}.bias"] = (f"{around} {kind}{number}",)
        axes |= {f"{block}.out.weight": ("stream", f"{around} vo{number}"), f"{block}.out.bias": ("stream",)}
        axes |= {f"{block}.up.weight": (mine, "stream"), f"{block}.up.bias": (mine,)}
        axes |= {f"{block}.down.weight": ("stream", mine), f"{block}.down.bias": ("stream",)}
        axes |= {f"{block}.{layer}.{kind}": ("stream",) for layer in ("norm1", "norm2") for kind in ("weight", "bias")}
    return Network(module, Symmetry(Layout.from_module(module), axes, groups), (3, 8, 8))


FAMILIES: dict[str, Callable[..., Network]] = {"mlp": mlp, "cnn": cnn, "resnet": resnet, "vit": vit}
