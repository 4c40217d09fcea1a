"""Noise that a flow begins from: from a generator in training, by number in sampling."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from generators.recipe import FlowRecipe
from kernels.random import normal

POOL_SITE, SAMPLE_SITE = 0x60, 0x61  # of the random streams
TOGETHER = 1 << 21  # numbers drawn at once: the words of the counter take ten times their memory


@dataclass(frozen=True)
class Source:
    """Gaussian noise, independent in its coordinates.

    Args:
        scale: (width,), deviation of each coordinate.
        pool: (vectors, width), scaled; training draws from these alone. None: new noise at each step.
    """

    scale: Tensor
    pool: Tensor | None = None

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, width) for training, a function of the generator alone, which must be on the device of `scale`."""
        device = self.scale.device
        if self.pool is not None:
            chosen = torch.randint(len(self.pool), (count,), generator=generator, device=device)
            return self.pool[chosen]
        noise = torch.randn(count, len(self.scale), generator=generator, device=device, dtype=self.scale.dtype)
        return noise * self.scale

    def at(self, numbers: np.ndarray, seed: int) -> Tensor:
        """(numbers, width) for sampling: number n of a seed is always the same vector, whatever else is drawn.

        Never from the pool: sampling draws new noise, as DeepWeightFlow does.
        """
        return _by_number(numbers, seed, SAMPLE_SITE, len(self.scale)).to(self.scale) * self.scale

    def to(self, device: torch.device | str) -> Source:
        """The same on another device."""
        pool = None if self.pool is None else self.pool.to(device)
        return dataclasses.replace(self, scale=self.scale.to(device), pool=pool)


def make_source(recipe: FlowRecipe, spread: Tensor, seed: int) -> Source:
    """The noise of a recipe.

    Args:
        spread: (width,) deviations of the training codes; "matched" multiplies them, "fixed" takes their width.
        seed: of the pool.
    """
    scale = recipe.source_scale * (spread if recipe.source == "matched" else torch.ones_like(spread))
    if not recipe.pool:
        return Source(scale)
    pool = _by_number(np.arange(recipe.pool), seed, POOL_SITE, len(scale)).to(scale) * scale
    return Source(scale, pool)


def _by_number(numbers: np.ndarray, seed: int, site: int, width: int) -> Tensor:
    """Standard normals (numbers, width) float32, each row a function of (seed, site, number)."""
    key, numbers = np.array(seed, np.uint64), np.asarray(numbers, np.int64)
    out = np.empty((len(numbers), width), np.float32)
    rows = max(1, TOGETHER // max(1, width))
    for start in range(0, len(numbers), rows):
        here = slice(start, start + rows)
        out[here] = normal(key, site, numbers[here], count=width)
    return torch.from_numpy(out)
