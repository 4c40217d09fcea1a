"""Weights as the vectors that a generator works on, and back: centred, scaled, projected. Fitted on training alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from catalog.errors import GeneratorError, unknown_name
from generators.components import principal
from generators.moments import Standard, deviations, gram_blocks, moments
from generators.population import Population
from generators.recipe import CHOICES
from weightspace.layout import Layout

MEMORY = 1 << 31  # bytes of weights that fitting holds at once
NUMBERS = 1 << 20  # worked on at once where each stands alone
ROWS = 64  # codes multiplied at once, always so many: the bits of one do not depend on how many there are


@dataclass(frozen=True)
class Codec:
    """A portable encoder and decoder: samples decode without the zoo.

    codes = ((parameters - mean) / scale) @ basis' / spread; buffers (statistics of BatchNorm) are not encoded: they
    decode to those of the mean network.

    Args:
        mean: (size,) float32 of the training split; zeros in its parameters with "identity" and scaling "none".
        scale: (parameters,) float32, what each is divided by.
        basis: (components, parameters) float32 of orthonormal rows, None for all coordinates.
        spread: (width,) float32, deviation of the codes of the training split, what they are divided by with a basis;
            with "identity" it is only what a matched source uses.
        population: fingerprint of what it was fitted on. settings: what it was asked for.
        factor: (rank, width) float32, F' F is the covariance of the training codes; for a Gaussian source, else None.
        report: held-out reconstruction by components, explained variance, round-trip accuracy; JSON.
    """

    layout: Layout
    mean: np.ndarray
    scale: np.ndarray
    basis: np.ndarray | None
    spread: np.ndarray
    population: str
    settings: Mapping[str, Any]
    report: Mapping[str, Any] = field(default_factory=dict)
    factor: np.ndarray | None = None

    @property
    def width(self) -> int:
        """Numbers in a code."""
        return len(self.spread)

    @cached_property
    def places(self) -> np.ndarray:
        """(parameters,) where the parameters are in a vector."""
        return parameter_places(self.layout)

    @cached_property
    def fingerprint(self) -> str:
        """16 digits of arrays, layout, population and settings; not of the report."""
        about = [self.layout.fingerprint, self.population, json.dumps(dict(self.settings), sort_keys=True)]
        digest = hashlib.sha256("\n".join(about).encode())
        for array in (self.mean, self.scale, self.spread, self.basis, *(() if self.factor is None else (self.factor,))):
            digest.update(b"-" if array is None else np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()[:16]

    def encode(self, weights: np.ndarray) -> np.ndarray:
        """(models, size) -> (models, width) float32. The bits of a code do not depend on the other models.

        Raises:
            GeneratorError: another size.
        """
        self._check(weights, self.layout.size, "weights")
        codes = np.empty((len(weights), self.width), np.float32)
        mean = self._take(self.mean[None])[0]
        for here in self._rows(len(weights)):
            part = self._take(np.asarray(weights[here], np.float32)) - mean
            part /= self.scale
            codes[here] = part if self.basis is None else _product(part, self.basis.T) / self.spread
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(models, width) -> (models, size) float32. The bits of a network do not depend on the other codes.

        Raises:
            GeneratorError: another width.
        """
        self._check(codes, self.width, "codes")
        weights = np.empty((len(codes), self.layout.size), np.float32)
        weights[:] = self.mean
        mean = self._take(self.mean[None])[0]
        for here in self._rows(len(codes)):
            part = np.asarray(codes[here], np.float32)
            part = part if self.basis is None else _product(part * self.spread, self.basis)
            part = part * self.scale + mean
            if len(self.places) == self.layout.size:
                weights[here] = part
            else:
                weights[here, self.places] = part
        return weights

    def _rows(self, count: int) -> Iterator[slice]:
        step = ROWS if self.basis is not None else max(1, NUMBERS // max(self.layout.size, 1))
        return (slice(first, first + step) for first in range(0, count, step))

    def _take(self, weights: np.ndarray) -> np.ndarray:
        return weights if len(self.places) == self.layout.size else weights[:, self.places]

    def _check(self, array: np.ndarray, width: int, what: str) -> None:
        if array.ndim != 2 or array.shape[1] != width:
            raise GeneratorError(f"{what} of this codec must be (models, {width}), got {tuple(array.shape)}")


def parameter_places(layout: Layout) -> np.ndarray:
    """(parameters,) int64: where the tensors with role parameter are in a vector."""
    return layout.indices(name for name, role in zip(layout.names, layout.roles, strict=True) if role == "parameter")


def fit_codec(
    population: Population,
    *,
    codec: str = "identity",
    scaling: str = "global",
    components: int = 0,
    memory: int = MEMORY,
) -> Codec:
    """Fit on the training split; the number of components, where it is 0, is chosen on the validation split.

    One pass for mean and deviation, one for the Gram matrix, one for the components.

    Args:
        codec, scaling, components: as for `generators.recipe.FlowRecipe`.
        memory: bytes of weights that `generators.moments.gram` may hold; all else needs 64 MiB.

    Raises:
        UnknownNameError: another codec or scaling. GeneratorError: components that there are not, whole numbers among
            the parameters, networks that are all equal.
    """
    check_choice(codec, scaling, components)
    layout, settings = population.layout, {"codec": codec, "scaling": scaling, "components": components}
    _check_floats(layout)
    places, found = parameter_places(layout), moments(population)
    scale = deviations(population, found.variance, scaling, places).astype(np.float32)
    mean = found.mean.astype(np.float32)
    if not found.variance[places].any():
        raise GeneratorError("all networks of the training split are equal: there is nothing to learn from them")
    if codec == "identity":
        if scaling == "none":
            mean[places] = 0
        spread = (np.sqrt(found.variance[places]) / scale).astype(np.float32)
        return Codec(layout, mean, scale, None, spread, population.fingerprint, settings)
    best = principal(population, Standard(places, mean[places], scale), components, memory)
    return Codec(layout, mean, scale, best.basis, best.spread, population.fingerprint, settings, best.report)


def check_choice(codec: str, scaling: str, components: int) -> None:
    """Raise UnknownNameError or GeneratorError unless `fit_codec` takes these, whatever the population."""
    for name, value in (("codec", codec), ("scaling", scaling)):
        if value not in CHOICES[name]:
            raise unknown_name(name, value, CHOICES[name])
    if type(components) is not int or components < 0 or (components and codec == "identity"):
        raise GeneratorError(f"components must be an integer, 0 to choose, above it with pca alone; got {components!r}")


def fit_reads(population: Population, codec: str, memory: int = MEMORY) -> int:
    """How many networks `fit_codec` reads, of the training and the validation split; one counts as often as it is."""
    train, held = (len(population.split(name)) for name in ("train", "validation"))
    if codec == "identity":
        return train
    if population.layout.num_parameters <= train:
        return 2 * train + held
    blocks = gram_blocks(population, memory)
    return 2 * train + sum(train - block.start for block in blocks) + held * len(blocks)


def check_codec(codec: Codec, population: Population) -> None:
    """Raise GeneratorError unless the codec was fitted on this population, or its layout is another."""
    if codec.layout != population.layout:
        raise GeneratorError(
            f"the codec is for another layout ({codec.layout.size} numbers, {codec.layout.fingerprint}) than that of "
            f"{population.variant} ({population.layout.size}, {population.layout.fingerprint}); fit it again"
        )
    if codec.population != population.fingerprint:
        raise GeneratorError(
            f"the codec was fitted on population {codec.population}, this one is {population.fingerprint}: of another "
            "zoo, frame, selection or split, so that what is held out here may be in it; fit it again"
        )


def _check_floats(layout: Layout) -> None:
    rows = zip(layout.names, layout.dtypes, layout.roles, strict=True)
    if whole := [name for name, dtype, role in rows if role == "parameter" and "float" not in dtype]:
        raise GeneratorError(f"parameters of whole numbers cannot be generated: {', '.join(whole[:3])}")


def _product(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """rows @ matrix in float32, as if there were always `ROWS` rows."""
    if len(rows) == ROWS:
        return np.asarray(rows @ matrix)
    full = np.zeros((ROWS, rows.shape[1]), np.float32)
    full[: len(rows)] = rows
    return np.asarray((full @ matrix)[: len(rows)])
