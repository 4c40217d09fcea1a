"""Small networks whose symmetries are written by hand, and what they compute."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from weightspace.layout import Layout
from weightspace.symmetry import Group, Scale, Symmetry


def mlp(*sizes: int, kind: str | None = "positive") -> Symmetry:
    """Layers of these sizes; `kind` of the scales of hidden units, None for none."""
    axes: dict[str, tuple[str | None, ...]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    last = len(sizes) - 2
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        into, out = (None if layer == 0 else f"h{layer - 1}"), (None if layer == last else f"h{layer}")
        axes |= {f"{layer}.weight": (out, into), f"{layer}.bias": (out,)}
        shapes |= {f"{layer}.weight": (outputs, inputs), f"{layer}.bias": (outputs,)}
    entries = [(f"h{n}", ((f"{n}.weight", 0, 1), (f"{n}.bias", 0, 1), (f"{n + 1}.weight", 1, -1))) for n in range(last)]
    scales = tuple(Scale(group, kind, tensors) for group, tensors in entries) if kind else ()
    return Symmetry(Layout(tuple(shapes), tuple(shapes.values())), axes, {}, scales)


def run_mlp(symmetry: Symmetry, weights: np.ndarray, x: np.ndarray, odd: bool = False) -> np.ndarray:
    """(models, samples, outputs) float64, with ReLU, or tanh."""
    tensors = symmetry.layout.unflatten(weights.astype(np.float64))
    layers = len(tensors) // 2
    a = np.broadcast_to(x, (len(weights), *x.shape))
    for layer in range(layers):
        a = a @ tensors[f"{layer}.weight"].swapaxes(1, 2) + tensors[f"{layer}.bias"][:, None]
        if layer < layers - 1:
            a = np.tanh(a) if odd else np.maximum(a, 0)
    return a


def flattened(units: int = 4, pixels: int = 3, hidden: int = 5) -> Symmetry:
    """A convolution 1x1 of two channels to `units`, flattened into a layer of `hidden`, and a head of 3."""
    layout = Layout(
        ("conv", "conv_bias", "fc", "fc_bias", "head"),
        ((units, 2, 1), (units,), (hidden, units * pixels), (hidden,), (3, hidden)),
    )
    axes = {
        "conv": ("c", None, None),
        "conv_bias": ("c",),
        "fc": ("h", f"c {pixels}"),
        "fc_bias": ("h",),
        "head": (None, "h"),
    }
    scales = (
        Scale("c", "positive", (("conv", 0, 1), ("conv_bias", 0, 1), ("fc", 1, -1))),
        Scale("h", "positive", (("fc", 0, 1), ("fc_bias", 0, 1), ("head", 1, -1))),
    )
    return Symmetry(layout, axes, {}, scales)


def heads(number: int = 3, size: int = 2) -> Symmetry:
    """Two products inside heads, as queries with keys and values with outputs."""
    width = number * size
    layout = Layout(("q", "k", "v", "o"), ((width, 4), (width, 4), (width, 4), (4, width)))
    axes = {"q": ("heads qk", None), "k": ("heads qk", None), "v": ("heads vo", None), "o": (None, "heads vo")}
    groups = {"heads": Group(number), "qk": Group(size, "heads"), "vo": Group(size, "heads")}
    return Symmetry(layout, axes, groups)


def drawn(symmetry: Symmetry, models: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Normal weights (models, size)."""
    return np.random.default_rng(seed).normal(size=(models, symmetry.layout.size)).astype(dtype)


def shuffled(
    symmetry: Symmetry, one: np.ndarray, models: int, seed: int = 0, noise: Sequence[float] = ()
) -> np.ndarray:
    """Copies of one model (size,) whose units are permuted at random, with normal noise added before."""
    copies = np.repeat(one[None], models, 0)
    generator = np.random.default_rng(seed + 1000)
    for model, sigma in enumerate(noise):
        copies[model] += (sigma * generator.normal(size=one.shape)).astype(one.dtype)
    moved: np.ndarray = symmetry.permute(copies, symmetry.random(models, seed))
    return moved
