"""Drawing networks with a trained flow: noise by number, the solver, the decoder."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from generators.codec import Codec
from generators.flow.guidance import velocity_of
from generators.flow.networks import build_network
from generators.flow.solvers import integrate
from generators.flow.source import Source, make_source
from generators.generator import TOGETHER
from generators.recipe import FlowRecipe
from zoo.architectures import Architecture
from zoo.symmetries import symmetry_of

NUMBERS = 1 << 26  # in a block: of long vectors fewer are drawn together; part of what a sample is, so it never changes


@dataclass(frozen=True, eq=False)
class FlowDraw:
    """What a trained flow draws with; `Generator.draw`.

    Sample n of a seed always stands at place n of blocks of one size, so its bits depend on no others: sums of matrix
    products depend on the shape and the place in it, not on what stands elsewhere. The steps of the adaptive solver are
    common to all that it integrates, so it takes one sample at a time.

    Args:
        network: in eval mode, on `device`. source: on `device` too.
    """

    network: nn.Module
    codec: Codec
    source: Source
    recipe: FlowRecipe
    device: str = "cpu"

    def __call__(self, numbers: np.ndarray, seed: int, conditions: np.ndarray | None) -> np.ndarray:
        """Weights (numbers, size) float32. See `generators.generator.Draw`."""
        return self.codec.decode(self.codes(numbers, seed, conditions))

    def codes(self, numbers: np.ndarray, seed: int, conditions: np.ndarray | None) -> np.ndarray:
        """Their codes (numbers, width) float32."""
        numbers = np.asarray(numbers, np.int64)
        block = 1 if self.recipe.solver == "adaptive" else max(1, min(TOGETHER, NUMBERS // self.codec.width))
        out = np.empty((len(numbers), self.codec.width), np.float32)
        blocks = numbers // block
        for number in np.unique(blocks):
            mine = np.flatnonzero(blocks == number)
            out[mine] = self._block(numbers[mine], block, seed, None if conditions is None else conditions[mine])
        return out

    def _block(self, numbers: np.ndarray, block: int, seed: int, conditions: np.ndarray | None) -> np.ndarray:
        """Those of one block, which is filled up with zeros."""
        places = torch.from_numpy(numbers % block)
        normals = torch.zeros(block, self.source.rank, device=self.device)
        normals[places] = self.source.normals(numbers, seed)
        x_0 = self.source.shaped(normals) * self.source.temperature
        condition = None
        if conditions is not None:
            condition = torch.zeros(block, conditions.shape[1])
            condition[places] = torch.from_numpy(conditions)
        found = follow(self.network, x_0, self._here(condition), self.recipe)
        drawn: np.ndarray = found.cpu()[places].numpy()
        return drawn

    def _here(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(self.device)

    def to(self, device: str) -> FlowDraw:
        """The same on another device."""
        return replace(
            self, network=copy.deepcopy(self.network).to(device), source=self.source.to(device), device=device
        )


def follow(network: nn.Module, x_0: Tensor, condition: Tensor | None, recipe: FlowRecipe) -> Tensor:
    """Noise (batch, width) along the flow to its end, codes of the same shape."""
    with torch.inference_mode():
        velocity = velocity_of(network, condition, recipe.guidance)
        return integrate(velocity, x_0, recipe.solver, recipe.steps, recipe.tolerance)


def source_of(codec: Codec, recipe: FlowRecipe, seed: int) -> Source:
    """The noise that a flow on these codes begins from."""
    spread = np.ones(codec.width, np.float32) if codec.basis is not None else codec.spread
    factor = None if codec.factor is None else torch.from_numpy(codec.factor)
    return make_source(recipe, torch.from_numpy(np.array(spread, np.float32)), seed, factor)


def network_of(
    recipe: FlowRecipe, codec: Codec, condition_width: int, architecture: Architecture, seed: int = 0
) -> nn.Module:
    """The velocity network of a recipe for codes of an architecture; its initialisation is a function of the seed.

    Raises:
        InvalidSpecError: "units" for an architecture without hidden units.
    """
    symmetry = symmetry_of(architecture) if recipe.network == "units" else None
    with torch.random.fork_rng(
        devices=[]
    ):  # not around the symmetry, whose proof draws numbers when it is not known yet
        torch.manual_seed(seed)
        return build_network(recipe, codec.width, condition_width, codec.layout, symmetry)


def content_of(network: nn.Module, codec: Codec) -> str:
    """16 digits of what was learned."""
    digest = hashlib.sha256(codec.fingerprint.encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
