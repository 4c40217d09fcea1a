"""Which activations of a module are those of a group, and what they are for a whole population."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from weightspace.layout import Layout
from weightspace.symmetry import Symmetry

Chain = tuple[str, ...]  # a group, its parents before it
Batch = Tensor | Mapping[str, Any]  # inputs, or arguments by name
ON_CHANNELS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)  # units on axis 1, else the last
CHUNK = 2**28  # bytes of activations held at once


@dataclass(frozen=True)
class Tap:
    """A part of a module's outputs whose units are those of a group.

    Args:
        module: its name. axis: of the outputs, where the units are. start, stop: the part of that axis.
        chain: the groups on it, parents first, each unit of one with all of the next.
    """

    module: str
    axis: int
    start: int
    stop: int
    chain: Chain


def find_taps(symmetry: Symmetry, module: nn.Module) -> list[Tap]:
    """Every module whose output axis, or a part of it, is a moving group and its parents, nothing else.

    A bias always lies along the outputs, and so does axis 0 of the weight of linear layers and convolutions. Norms
    count only for groups that no layer with a matrix shows.
    """
    found: list[tuple[bool, Tap]] = []
    for name, layer in module.named_modules():
        tensor = _along_outputs(symmetry.layout, name, layer)
        if tensor is None:
            continue
        start, axis = 0, 1 if isinstance(layer, ON_CHANNELS) else -1
        has_matrix = layer.weight.dim() > 1 if isinstance(getattr(layer, "weight", None), Tensor) else False
        for part in symmetry.axis(tensor, 0):
            stop = start + math.prod(size for _, size in part)
            chain = tuple(str(group) for group, _ in part)
            if chain[-1] in symmetry.groups and chain == (*symmetry.ancestors(chain[-1]), chain[-1]):
                found.append((has_matrix, Tap(name, axis, start, stop, chain)))
            start = stop
    shown = {tap.chain for has_matrix, tap in found if has_matrix}
    return [tap for has_matrix, tap in found if has_matrix or tap.chain not in shown]


def _along_outputs(layout: Layout, name: str, layer: nn.Module) -> str | None:
    """The tensor whose axis 0 is the output axis of a layer."""
    prefix = f"{name}." if name else ""
    if f"{prefix}bias" in layout:
        tensor = f"{prefix}bias"
    elif f"{prefix}weight" in layout and isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        tensor = f"{prefix}weight"
    else:
        return None
    return dict(layout.aliases).get(tensor, tensor)


def activations(
    module: nn.Module, layout: Layout, weights: Tensor, batch: Batch, taps: Sequence[Tap]
) -> dict[Tap, Tensor]:
    """Tap -> (models, samples, units), of the taps that a forward pass meets; every pixel and token is a sample.

    Args:
        weights: (models, size). batch: inputs (samples, ...), or a mapping of named ones.
    """
    module.eval()

    def one(state: dict[str, Tensor]) -> dict[int, Tensor]:
        with _recorded(module, taps) as seen:
            args, kwargs = ((), dict(batch)) if isinstance(batch, Mapping) else ((batch,), {})
            torch.func.functional_call(module, state, args, kwargs)
            return {number: torch.cat(parts) for number, parts in seen.items()}

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # vmap knows no other attention on a CPU
        try:
            found = torch.vmap(one, randomness="same")(layout.unflatten(weights))
        except (RuntimeError, ValueError):  # vmap refuses branches on values and writing in place: one after the other
            each = [one(layout.unflatten(model)) for model in weights]
            found = {number: torch.stack([seen[number] for seen in each]) for number in each[0]}
    return {taps[number]: values for number, values in found.items()}


@contextmanager
def _recorded(module: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[int, list[Tensor]]]:
    """What forward passes put out at taps meanwhile: number of the tap -> (samples, units), one a call."""
    seen: dict[int, list[Tensor]] = {}

    def listen(number: int, tap: Tap) -> torch.utils.hooks.RemovableHandle:
        def hook(_layer: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() > 1 and output.shape[tap.axis] >= tap.stop:
                units = output.movedim(tap.axis, -1)[..., tap.start : tap.stop]
                seen.setdefault(number, []).append(units.reshape(-1, tap.stop - tap.start))

        return module.get_submodule(tap.module).register_forward_hook(hook)

    handles = [listen(number, tap) for number, tap in enumerate(taps)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
