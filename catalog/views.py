"""How runs of one variant are seen in a frame: permutations and scales, as they are stored and as they are applied."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import FormatError
from weightspace.symmetry import Symmetry

COLUMNS = {
    "run": pl.String,
    "epoch": pl.Int64,  # null: these permutations are for all checkpoints of the run
    "permutations": pl.Binary,
    "scales": pl.Binary,
    "objective_before": pl.Float64,
    "objective_after": pl.Float64,
    "sweeps": pl.Int64,
    "finished": pl.Boolean,
    "certificate": pl.Float64,
}
SCALES = ("power_of_two", "float32")


@dataclass(frozen=True)
class View:
    """A frame of one variant: how its runs are seen in it.

    Canonical weights are `symmetry.permute(symmetry.scale(weights, scales), permutations)`.

    Args:
        symmetry: what may move. universe: (size,) float32, what the runs are aligned to.
        settings: method, seed and all else that determined it; JSON.
        encoding: of scales, "power_of_two" (int8 exponents, exactly reversible) or "float32".
        rows: the columns of `COLUMNS`; a (run, epoch) once, with epoch null for all checkpoints of a run.
        software: versions of what wrote it.
        origin: digests of symmetry and universe, which all files of a frame of a variant share; "" to compute them.
    """

    variant: str
    symmetry: Symmetry
    universe: np.ndarray
    settings: Mapping[str, Any]
    encoding: str = SCALES[0]
    rows: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=COLUMNS))
    software: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", self.origin or origin_of(self.symmetry, self.universe))

    @cached_property
    def _places(self) -> dict[tuple[str, int | None], int]:
        return {key: place for place, key in enumerate(self.rows.select("run", "epoch").iter_rows())}

    def place(self, run: str, epoch: int) -> int | None:
        """Which row moves a run at an epoch: its own, else that of all its checkpoints; None for none."""
        own = self._places.get((run, epoch))
        return self._places.get((run, None)) if own is None else own

    def apply(self, weights: Any, places: Sequence[int], inverse: bool = False) -> Any:
        """Weights (models, size), numpy or torch, in this frame; or back from it.

        With scales that are powers of two, back gives the same bits, unless a weight passed the range of its type.
        """
        permutations, scales = self.decode(places)
        if inverse:
            moved = self.symmetry.permute(weights, self.symmetry.invert(permutations))
            return self.symmetry.scale(moved, scales, inverse=True) if scales else moved
        return self.symmetry.permute(self.symmetry.scale(weights, scales) if scales else weights, permutations)

    def decode(self, places: Sequence[int]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Permutations and scales of some rows."""
        rows = self.rows[list(places)]
        shapes = {name: self.symmetry.permutation_shape(name) for name in sorted(self.symmetry.moving)}
        dtypes = {name: smallest(shape[-1]) for name, shape in shapes.items()}
        permutations = _unpack(rows["permutations"].to_list(), shapes, dtypes)
        scaled = {group: shapes[group] for group in sorted(scale.group for scale in self.symmetry.scales)}
        packed = rows["scales"].to_list()
        if not any(packed):
            return permutations, {}
        numbers = _unpack(
            packed, scaled, dict.fromkeys(scaled, np.dtype("i1" if self.encoding == SCALES[0] else "<f4"))
        )
        kinds = {scale.group: scale.kind for scale in self.symmetry.scales}
        if self.encoding == SCALES[0]:
            numbers = {
                name: np.ldexp(1.0, values.astype(np.int32)) if kinds[name] == "positive" else values.astype(float)
                for name, values in numbers.items()
            }
        return permutations, numbers


def encode_rows(
    symmetry: Symmetry,
    permutations: Mapping[str, np.ndarray],
    scales: Mapping[str, np.ndarray],
    encoding: str = SCALES[0],
) -> tuple[list[bytes], list[bytes]]:
    """Permutations and scales of each model as the columns of their names; the inverse of `View.decode`.

    Raises:
        SymmetryError: permutations that are none. ValueError: scales that the encoding cannot hold.
    """
    models = symmetry.check(permutations)
    shapes = {name: symmetry.permutation_shape(name) for name in symmetry.moving}
    arrays = [permutations[name].astype(smallest(shapes[name][-1])) for name in sorted(symmetry.moving)]
    moves = [b"".join(array[model].tobytes() for array in arrays) for model in range(models)]
    if not scales:
        return moves, [b""] * models
    numbers = []
    for scale in sorted(symmetry.scales, key=lambda scale: scale.group):
        factors = np.asarray(scales.get(scale.group, np.ones((models, *shapes[scale.group]))), np.float64)
        if encoding == SCALES[1]:
            numbers.append(factors.astype("<f4"))
            continue
        stored = np.log2(factors) if scale.kind == "positive" else factors
        if not np.array_equal(stored, np.round(stored)) or np.abs(stored).max(initial=0) > 126:
            raise ValueError(f"scales of {scale.group!r} must be powers of two from 2**-126 to 2**126")
        numbers.append(stored.astype("i1"))
    return moves, [b"".join(array[model].tobytes() for array in numbers) for model in range(models)]


def smallest(size: int) -> np.dtype[Any]:
    """The smallest integer type, little-endian, for permutations of so many units.

    >>> smallest(256), smallest(257)
    (dtype('uint8'), dtype('uint16'))
    """
    return np.dtype("u1" if size <= 2**8 else "<u2" if size <= 2**16 else "<u4")


def _unpack(
    packed: Sequence[bytes], shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype[Any]]
) -> dict[str, np.ndarray]:
    """Bytes one array behind the other -> name -> (rows, *shape)."""
    width = sum(math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items())
    if any(len(one) != width for one in packed):
        raise FormatError(f"permutations or scales of a frame must be {width} bytes a row, and some are not")
    table = np.frombuffer(b"".join(packed), np.uint8).reshape(len(packed), width)
    found, start = {}, 0
    for name, shape in shapes.items():
        end = start + math.prod(shape) * dtypes[name].itemsize
        found[name] = np.ascontiguousarray(table[:, start:end]).view(dtypes[name]).reshape(len(packed), *shape)
        start = end
    return found


def origin_of(symmetry: Symmetry, universe: np.ndarray) -> str:
    """16 digits of the symmetry, 16 of the universe."""
    return f"{symmetry.fingerprint}{hashlib.sha256(universe.astype('<f4').tobytes()).hexdigest()[:16]}"
