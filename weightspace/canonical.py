"""What a network is but for the order of its units: a hash, a colour for each unit, an order of its own.

The hash is of exact bits. Positive scaling changes bits (a sum of rounded squares too), so that no exact hash can be
blind to it: scaled copies are found by distance, see `weightspace.duplicates`. Signs change no more than the sign bit:
apply `canonical_signs` first.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightspace.arrays import is_torch
from weightspace.axes import spread
from weightspace.moves import positions
from weightspace.rebasin.alignment import AlignmentError
from weightspace.symmetry import Block, Symmetry

ROUNDS = 3  # first by a unit's own numbers, then by its neighbours' colours, and once more for groups far inside
TOGETHER = 1 << 16  # weights whose hashes are worked on at once, to stay in the caches
WORDS = {np.dtype(np.float16): np.uint16, np.dtype(np.float32): np.uint32, np.dtype(np.float64): np.uint64}

Colours = Mapping[str, np.ndarray]  # group -> (models, parents' sizes, size) uint64


def canonical_hash(symmetry: Symmetry, weights: Any, rounds: int = ROUNDS) -> np.ndarray:
    """(models,) of 16 hexadecimal digits each: equal for weights that differ in the order of units only.

    Different weights have different hashes but for chance (2^-64 a pair) and for networks so regular that refinement
    cannot tell their units apart (equal rows that are joined differently): verify with `find_duplicates`. -0.0 counts
    as 0.0. Weights of another dtype or another symmetry hash differently.

    Args:
        weights: (models, size), numpy or torch.

    Raises:
        AlignmentError: weights that are not finite, or no floats.

    Source: colour refinement, Weisfeiler and Leman 1968; here over all tensors at once, with an order-free sum of
        mixed 64-bit words in place of sorted lists of colours.
    """
    values = _checked(symmetry, weights)
    found = np.empty(len(values), np.uint64)
    for some in _parts(symmetry, values):
        words = _words(values[some])
        colours = _refined(symmetry, words, rounds)
        total = np.full(len(words), _seed(symmetry.fingerprint, values.dtype.str), np.uint64)
        for number, block in enumerate(symmetry.blocks):
            entries = _entries(symmetry, block, words, colours)
            total += _mix(entries.reshape(len(words), -1).sum(1, dtype=np.uint64) + _seed("block", number))
        found[some] = _mix(total)
    return np.array([f"{value:016x}" for value in found.tolist()], dtype="<U16")


def unit_colours(symmetry: Symmetry, weights: Any, rounds: int = ROUNDS) -> dict[str, np.ndarray]:
    """A 64-bit number for each unit, (models, parents' sizes, size), that moves with it and says what it is and does.

    Units of equal colour are, but for chance and very regular networks, interchangeable: dead ones, or duplicates.
    """
    values = _checked(symmetry, weights)
    found = {name: np.empty((len(values), *symmetry.permutation_shape(name)), np.uint64) for name in symmetry.moving}
    for some in _parts(symmetry, values):
        refined = _refined(symmetry, _words(values[some]), rounds)
        for name, colours in found.items():
            colours[some] = refined[name]
    return found


def canonical_order(symmetry: Symmetry, weights: Any, rounds: int = ROUNDS) -> dict[str, np.ndarray]:
    """Permutations that sort the units of each group by colour.

    Networks that differ in the order of units only become equal by them, unless units share a colour that are not
    interchangeable. The order says nothing about similar networks: it is no alignment.
    """
    colours = unit_colours(symmetry, weights, rounds)
    order: dict[str, np.ndarray] = {}
    for name in symmetry.moving:  # parents come first
        order[name] = np.argsort(symmetry.at_parents(name, colours, order), -1, kind="stable").astype(np.int32)
    return order


def _refined(symmetry: Symmetry, words: np.ndarray, rounds: int) -> dict[str, np.ndarray]:
    """Colours after some rounds."""
    colours = {
        name: np.full((len(words), *symmetry.permutation_shape(name)), _seed("group", name), np.uint64)
        for name in symmetry.moving
    }
    for _ in range(rounds):
        sums = {name: _mix(colour) for name, colour in colours.items()}
        for number, block in enumerate(symmetry.blocks):
            if not block.groups:
                continue
            entries = _entries(symmetry, block, words, colours)
            for axis, (name, _, _) in enumerate(block.dims):
                if name is not None and name in symmetry.moving:
                    sums[name] += _mix(_collected(symmetry, block, axis, entries) + _seed("side", number, axis))
        colours = {name: _mix(total) for name, total in sums.items()}
        for name, colour in colours.items():  # a unit is another one inside another parent
            for level, parent in enumerate(symmetry.ancestors(name)):
                if parent in colours:
                    above = colours[parent]
                    colour += _mix(above.reshape(*above.shape, *(1,) * (colour.ndim - 2 - level)))
    return colours


def _entries(symmetry: Symmetry, block: Block, words: np.ndarray, colours: Colours) -> np.ndarray:
    """(models, *sizes) uint64: a word for each entry of a block, of its value and of where it stands."""
    sizes, strides = [n for _, n, _ in block.dims], [step for _, _, step in block.dims]
    names = [name for name, _, _ in block.dims]
    place: Any = np.uint64(_seed("entry"))
    for axis, (name, size, _) in enumerate(block.dims):
        if name is None or name not in symmetry.moving:
            sides = [1, *(size if a == axis else 1 for a in range(len(sizes)))]
            key = _mix(np.arange(size, dtype=np.uint64) + _seed("index", axis)).reshape(sides)
        else:
            at = positions(symmetry, names, axis)
            key = _mix(spread(colours[name], at, len(names)) + _seed("axis", axis))
        place = place + key
    view = np.lib.stride_tricks.as_strided(
        words[:, block.offset :], (len(words), *sizes), (words.strides[0], *(s * words.itemsize for s in strides))
    )
    return _mix(view ^ _mix(np.broadcast_to(place, view.shape) if not sizes else place))


def _collected(symmetry: Symmetry, block: Block, axis: int, entries: np.ndarray) -> np.ndarray:
    """(models, parents' sizes, size): the sum of the entries of each unit of the group on an axis."""
    names: Sequence[str | None] = [name for name, _, _ in block.dims]
    at = positions(symmetry, names, axis)
    rest = tuple(1 + other for other in range(len(names)) if other not in at)
    summed: np.ndarray = entries.sum(rest, dtype=np.uint64)
    return summed.transpose(0, *(1 + np.argsort(np.argsort(at))))


def _mix(words: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of the result depends on all bits (Steele, Lea and Flood 2014)."""
    mixed = np.array(words, np.uint64)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _seed(*words: object) -> np.uint64:
    """A constant for a purpose."""
    return np.uint64(int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:8], "little"))


def _words(values: np.ndarray) -> np.ndarray:
    """Bits of the numbers as uint64, those of -0.0 as of 0.0."""
    plain = np.ascontiguousarray(values + values.dtype.type(0))
    return plain.view(WORDS[plain.dtype]).astype(np.uint64)


def _checked(symmetry: Symmetry, weights: Any) -> np.ndarray:
    if is_torch(weights):
        weights = weights.detach().cpu()
        weights = (weights.float() if str(weights.dtype) == "torch.bfloat16" else weights).numpy()
    symmetry.check_weights(weights)
    if weights.dtype not in WORDS:
        raise AlignmentError(f"weights must be float16, float32 or float64 to be hashed, got {weights.dtype}")
    if not np.isfinite(weights).all():
        raise AlignmentError("weights must be finite; leave diverged models out")
    found: np.ndarray = weights
    return found


def _parts(symmetry: Symmetry, weights: np.ndarray) -> list[slice]:
    step = max(1, TOGETHER // max(1, max((math.prod(n for _, n, _ in b.dims) for b in symmetry.blocks), default=1)))
    return [slice(begin, begin + step) for begin in range(0, len(weights), step)]
