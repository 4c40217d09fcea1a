"""Noise that a flow begins from: from a generator in training, by number in sampling."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from catalog.errors import GeneratorError
from generators.recipe import FlowRecipe
from kernels.random import normal

POOL_SITE, SAMPLE_SITE = 0x60, 0x61  # of the random streams
TOGETHER = 1 << 21  # numbers drawn at once: the words of the counter take ten times their memory


@dataclass(frozen=True)
class Source:
    """Gaussian noise, independent in its coordinates or with a covariance.

    Args:
        scale: (width,), deviation of each coordinate; with a factor, what each is multiplied by.
        factor: (rank, width): noise is z @ factor with z standard normal, its covariance factor' factor. None: the
            identity.
        temperature: what noise for sampling is multiplied by.
        pool: (vectors, width), scaled; training draws from these alone. None: new noise at each step.
    """

    scale: Tensor
    pool: Tensor | None = None
    factor: Tensor | None = None
    temperature: float = 1.0

    @property
    def rank(self) -> int:
        """Standard normals that a vector of noise is made of."""
        return len(self.scale) if self.factor is None else len(self.factor)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, width) for training, a function of the generator alone, which must be on the device of `scale`."""
        device = self.scale.device
        if self.pool is not None:
            chosen = torch.randint(len(self.pool), (count,), generator=generator, device=device)
            return self.pool[chosen]
        return self.shaped(torch.randn(count, self.rank, generator=generator, device=device, dtype=self.scale.dtype))

    def shaped(self, normals: Tensor) -> Tensor:
        """Standard normals (count, rank) -> noise (count, width)."""
        return (normals if self.factor is None else normals @ self.factor) * self.scale

    def normals(self, numbers: np.ndarray, seed: int) -> Tensor:
        """(numbers, rank) on the device of `scale`: each row is a function of (seed, number) to the bit."""
        return _by_number(numbers, seed, SAMPLE_SITE, self.rank).to(self.scale)

    def at(self, numbers: np.ndarray, seed: int) -> Tensor:
        """(numbers, width) for sampling: number n of a seed is always the same vector, whatever else is drawn.

        Never from the pool: sampling draws new noise, as DeepWeightFlow does. With a factor the last bits depend on
        where in a block of which size a number stands; see `generators.flow.drawing`.
        """
        return self.shaped(self.normals(numbers, seed)) * self.temperature

    def to(self, device: torch.device | str) -> Source:
        """The same on another device."""
        pool = None if self.pool is None else self.pool.to(device)
        factor = None if self.factor is None else self.factor.to(device)
        return dataclasses.replace(self, scale=self.scale.to(device), pool=pool, factor=factor)


def make_source(recipe: FlowRecipe, spread: Tensor, seed: int, factor: Tensor | None = None) -> Source:
    """The noise of a recipe.

    Args:
        spread: (width,) deviations of the training codes; "matched" multiplies them, "fixed" takes their width.
        seed: of the pool.
        factor: of their covariance, `Codec.factor`; for "gaussian".

    Raises:
        GeneratorError: a Gaussian source without the factor.
    """
    scale = recipe.source_scale * (spread if recipe.source == "matched" else torch.ones_like(spread))
    if recipe.source == "gaussian":
        if factor is None:
            raise GeneratorError("a Gaussian source needs the covariance of the training codes; give its factor")
        return Source(scale, None, factor.to(scale), recipe.temperature)
    if not recipe.pool:
        return Source(scale, temperature=recipe.temperature)
    pool = _by_number(np.arange(recipe.pool), seed, POOL_SITE, len(scale)).to(scale) * scale
    return Source(scale, pool, temperature=recipe.temperature)


def _by_number(numbers: np.ndarray, seed: int, site: int, width: int) -> Tensor:
    """Standard normals (numbers, width) float32, each row a function of (seed, site, number)."""
    key, numbers = np.array(seed, np.uint64), np.asarray(numbers, np.int64)
    out = np.empty((len(numbers), width), np.float32)
    rows = max(1, TOGETHER // max(1, width))
    for start in range(0, len(numbers), rows):
        here = slice(start, start + rows)
        out[here] = normal(key, site, numbers[here], count=width)
    return torch.from_numpy(out)
