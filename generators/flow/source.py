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
LARGEST = 8192  # rows of a factor of a covariance
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

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, width) for training, a function of the generator alone, which must be on the device of `scale`."""
        device = self.scale.device
        if self.pool is not None:
            chosen = torch.randint(len(self.pool), (count,), generator=generator, device=device)
            return self.pool[chosen]
        rank = len(self.scale) if self.factor is None else len(self.factor)
        return self._shaped(torch.randn(count, rank, generator=generator, device=device, dtype=self.scale.dtype))

    def _shaped(self, noise: Tensor) -> Tensor:
        """Standard normals (count, rank) -> (count, width)."""
        return (noise if self.factor is None else noise @ self.factor) * self.scale

    def at(self, numbers: np.ndarray, seed: int) -> Tensor:
        """(numbers, width) for sampling: number n of a seed is always the same vector, whatever else is drawn.

        Never from the pool: sampling draws new noise, as DeepWeightFlow does. With a factor the last bits depend on how
        many are drawn together.
        """
        rank = len(self.scale) if self.factor is None else len(self.factor)
        return self._shaped(_by_number(numbers, seed, SAMPLE_SITE, rank).to(self.scale)) * self.temperature

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
        factor: of their covariance, see `covariance_factor`; for "gaussian".

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


def covariance_factor(codes: np.ndarray) -> np.ndarray:
    """(rank, width) float32 F with F' F the covariance of codes (models, width), not the unbiased one.

    With no more models than numbers these are the centred codes themselves, over the root of their number: noise is
    then a random mixture of all models. Of more than `LARGEST` models and numbers, models spread evenly over all are
    taken.
    """
    models, width = codes.shape
    if min(models, width) > LARGEST:
        codes = codes[np.linspace(0, models - 1, LARGEST).astype(int)]
        models = LARGEST
    centred = codes - codes.mean(0, dtype=np.float64)
    if models <= width:
        return (centred / np.sqrt(models)).astype(np.float32)
    values, vectors = np.linalg.eigh(centred.T @ centred / models)
    return (vectors * np.sqrt(np.maximum(values, 0))).T.astype(np.float32)


def _by_number(numbers: np.ndarray, seed: int, site: int, width: int) -> Tensor:
    """Standard normals (numbers, width) float32, each row a function of (seed, site, number)."""
    key, numbers = np.array(seed, np.uint64), np.asarray(numbers, np.int64)
    out = np.empty((len(numbers), width), np.float32)
    rows = max(1, TOGETHER // max(1, width))
    for start in range(0, len(numbers), rows):
        here = slice(start, start + rows)
        out[here] = normal(key, site, numbers[here], count=width)
    return torch.from_numpy(out)
