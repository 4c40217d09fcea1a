"""Does a codec treat equal networks equally? Reconstructions of networks, and of the same ones in another disguise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from catalog.errors import GeneratorError
from generators.evaluation.estimate import Estimate, as_weights, mean
from generators.evaluation.functions import Behaviour, behaviour
from kernels.random import normal
from weightspace.symmetry import Symmetry
from zoo.architectures import Architecture

SPREAD = 0.5  # of the logarithms of random scales
SCALE_SITE = 8  # of the random streams


@dataclass(frozen=True)
class Reconstruction:
    """Networks after encoding and decoding, beside the same networks before.

    Args:
        accuracy: of the reconstructions. change: of it, in [-1, 1]; below 0 the codec loses.
        lost: 1 - intersection over union of the errors before and after: 0 if it errs where it did.
    """

    accuracy: Estimate
    change: Estimate
    lost: Estimate


@dataclass(frozen=True)
class Honesty:
    """Of a codec, on networks that it was not fitted on.

    Args:
        plain: as the networks are. permuted: the units of each in a random order. rescaled: ReLU units scaled and
            signs of tanh units flipped at random. None where the architecture has no such symmetry.
    """

    plain: Reconstruction
    permuted: Reconstruction | None
    rescaled: Reconstruction | None


def honesty(
    encode_decode: Callable[[np.ndarray], np.ndarray],
    architecture: Architecture,
    symmetry: Symmetry | None,
    weights: np.ndarray,
    x: Any,
    y: Any,
    *,
    seed: int = 0,
) -> Honesty:
    """Measure it. A codec that aligns what it is given may do so inside `encode_decode`.

    Args:
        encode_decode: (models, size) -> (models, size).
        symmetry: of the architecture, None if it has none.
        weights: (models, size) float32 of held-out networks, in the frame that the codec was fitted in.
        x, y: samples and labels.

    Raises:
        GeneratorError: weights that do not fit or are not finite, a codec that gives another shape.
    """
    values = as_weights(weights, architecture.layout.size, "held-out weights")
    if not len(values) or not np.isfinite(values).all():
        raise GeneratorError(
            f"codec honesty needs finite held-out networks, got {len(values)}; leave diverged ones out"
        )
    before = behaviour(architecture, values, x, y)

    def of(inputs: np.ndarray) -> Reconstruction:
        decoded = as_weights(encode_decode(inputs), architecture.layout.size, "reconstructions")
        if len(decoded) != len(inputs):
            raise GeneratorError(f"the codec gave {len(decoded)} networks back for {len(inputs)}")
        return reconstruction(before, behaviour(architecture, decoded, x, y))

    permuted = rescaled = None
    if symmetry is not None and symmetry.moving:
        permuted = of(symmetry.permute(values, symmetry.random(len(values), seed)))
    if symmetry is not None and symmetry.scales:
        rescaled = of(symmetry.scale(values, random_scales(symmetry, len(values), seed)))
    return Honesty(of(values), permuted, rescaled)


def reconstruction(before: Behaviour, after: Behaviour) -> Reconstruction:
    """Compare the behaviour of networks before and after. A reconstruction that failed has accuracy 0, IoU 0."""
    accuracy = np.where(after.failed, 0.0, after.accuracy)
    same = _overlap(before.bits, after.bits)
    same[after.failed] = 0
    return Reconstruction(mean(accuracy), mean(accuracy - before.accuracy), mean(1 - same))


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(models,) intersection over union of errors, row by row; 1 where neither has any."""
    one, other = (np.unpackbits(bits, axis=1).astype(bool) for bits in (a, b))
    both, either = (one & other).sum(1), (one | other).sum(1)
    return np.divide(both, either, out=np.ones(len(one)), where=either > 0)


def random_scales(symmetry: Symmetry, models: int, seed: int = 0, spread: float = SPREAD) -> dict[str, np.ndarray]:
    """Scales that change no function: log-normal ones of ReLU units, random signs of odd ones.

    Returns:
        group -> (models, ...) float64, as `Symmetry.scale` takes them.
    """
    found = {}
    for number, scale in enumerate(symmetry.scales):
        shape = (models, *symmetry.permutation_shape(scale.group))
        key = np.full(models, seed, np.uint64)
        drawn = normal(key, SCALE_SITE, np.arange(models) + (number << 24), count=int(np.prod(shape[1:])))
        drawn = drawn.reshape(shape)
        found[scale.group] = np.exp(spread * drawn) if scale.kind == "positive" else np.where(drawn < 0, -1.0, 1.0)
    return found
