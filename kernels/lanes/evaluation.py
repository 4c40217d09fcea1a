"""Loss, accuracy and error bits of many models on the same samples, by compiled code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.lanes.forward import forward
from kernels.lanes.network import Network
from kernels.lanes.plan import BELOW, COUNT, HERE, PITCH, Image, images_of, plan_of
from kernels.lanes.registers import differing, first_largest, ones, subtract, total
from kernels.lanes.tiles import COLUMNS
from kernels.lanes.vectors import lanes_of
from kernels.learning import aligned, part
from kernels.mlp.pointwise import exp
from kernels.mlp.tiles import OPTIONS, compiled, lanes
from kernels.programs import Program, sources

ALL = np.uint64(2**64 - 1)
# Groups that go through a model before it is the next one's turn: at most so many times the columns of a tile, and so
# many bytes of inputs and activations, which with other data share the nearest two caches.
CHUNK, CACHE = 4, 1 << 19


@compiled
def _cross_entropy(logits: np.ndarray, classes: int, count: int, rooms: np.ndarray) -> float:
    """Sum of the cross-entropies of the first `count` samples of a group; logits are overwritten.

    The rooms hold the largest logit of each sample, its label and then sums, a register each.
    """
    lane = lanes_of(logits)
    subtract(classes, logits, 0, rooms, 0)
    loss = 0.0
    for i in range(count):
        loss -= np.float64(logits[np.uint64(rooms[lane + i]) * np.uint64(lane) + np.uint64(i)])
    for i in range(len(logits)):
        logits[i] = exp(logits[i])
    total(classes, logits, 0, rooms, 2 * lane)
    product = 1.0  # each sum is between 1 and the number of classes: no product of a register's overflows
    for i in range(2 * lane, 2 * lane + count):
        product *= np.float64(rooms[i])
    return loss + math.log(product)


@compiled
def _squared(logits: np.ndarray, classes: int, count: int, rooms: np.ndarray) -> float:
    """Sum over the first `count` samples of the mean over classes of (logit - one_hot)^2; as `_cross_entropy`."""
    lane = lanes_of(logits)
    one = logits.dtype.type(1)
    for i in range(count):
        logits[np.uint64(rooms[lane + i]) * np.uint64(lane) + np.uint64(i)] -= one
    for i in range(len(logits)):
        logits[i] *= logits[i]
    total(classes, logits, 0, rooms, 2 * lane)
    loss = 0.0
    for i in range(2 * lane, 2 * lane + count):
        loss += np.float64(rooms[i])
    return loss / classes


@compiled
def _errors(word: Any, first: int, count: int, bits: np.ndarray) -> None:
    """The first bits of a word to the row of bits, from bit `first` on."""
    at = first >> 3
    word >>= np.uint64(first & 7)
    for byte in range((count + 7) // 8):
        bits[at + byte] |= np.uint8((word >> np.uint64(56 - 8 * byte)) & np.uint64(255))


def _evaluate(digest: str) -> Any:
    """The compiled program. `digest` is part of what its cache is found by: numba looks at this file only."""

    def evaluate(
        stages: np.ndarray, strips: np.ndarray, taps: np.ndarray, weights: np.ndarray, inputs: np.ndarray, pitch: int,
        most: int, scratch: np.ndarray, slopes: np.ndarray, rooms: np.ndarray, labels: np.ndarray, samples: int,
        counted: np.ndarray, squared: np.ndarray, losses: np.ndarray, right: np.ndarray, bits: np.ndarray,
        out: np.ndarray,
    ) -> None:  # fmt: skip
        """Sums of losses, right answers and bits of all models; or, where `out` has room for them, their logits."""
        digest  # noqa: B018  # makes it a part of the function
        models, lane = len(weights), lanes_of(scratch)
        last = stages[len(stages) - 1]
        classes = last[COUNT] // lane
        groups = (samples + lane - 1) // lane
        chunks = (groups + most - 1) // most
        for chunk in range(chunks):
            begin, end = chunk * groups // chunks, (chunk + 1) * groups // chunks
            for model in range(models):
                for number in range(len(stages)):
                    stage = stages[number]
                    source, below = (inputs, begin * pitch) if number == 0 else (scratch, stage[BELOW])
                    forward(stage, strips, taps, weights[model], source, below, end - begin, scratch, slopes)
                mine, wrongs, correct, loss = labels[model * len(labels) // models], bits[model], 0, 0.0
                for group in range(begin, end):
                    first = group * lane
                    here, count = part(scratch, last[HERE] + (group - begin) * last[PITCH], classes * lane), lane
                    count = min(lane, samples - first)
                    if len(out):
                        for i in range(count):
                            for c in range(classes):
                                out[model, first + i, c] = here[c * lane + i]
                        continue
                    first_largest(classes, here, 0, rooms, 0, rooms, lane)
                    wrong = differing(rooms, lane, mine, first) & ~(ALL >> np.uint64(count))
                    _errors(wrong, first, count, wrongs)
                    count = min(count, counted[model] - first)
                    if count > 0:
                        correct += count - np.int64(ones(wrong & ~(ALL >> np.uint64(count))))
                        for i in range(lane):
                            rooms[lane + i] = mine[first + i]
                        if squared[model]:
                            loss += _squared(here, classes, count, rooms)
                        else:
                            loss += _cross_entropy(here, classes, count, rooms)
                losses[model] += loss
                right[model] += correct

    return evaluate


EVALUATE = Program(_evaluate, sources("lanes/*.py", "mlp/*.py", "learning.py", "random.py"), OPTIONS)


def evaluate(
    network: Network, weights: np.ndarray, x: np.ndarray, y: np.ndarray, counted: np.ndarray, squared: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evaluate all models in the type of the weights, in one thread; no bit of a model depends on its companions.

    Args:
        weights: (models, size), float32 or float64.
        x: (samples, *input_shape).
        y: (rows, samples) int64, classes; each row serves models / rows consecutive models.
        counted: (models,) int64, how many of the first samples count for loss and accuracy.
        squared: (models,) bool, whose loss is the mean over samples and classes of (logit - one_hot)^2; that of the
            others is the mean cross-entropy in nats.

    Returns:
        loss (models,) float64, accuracy (models,) float64, and error bits (models, ceil(samples / 8)) uint8, most
        significant first, 1 where a sample is misclassified, for all samples.

    Raises:
        ValueError: shapes or labels that do not fit.
    """
    models, samples = len(weights), len(x)
    if y.ndim != 2 or y.shape[1] != samples or (models % len(y) if len(y) else models):
        raise ValueError(f"labels must be (rows, {samples}), rows a divisor of {models} models, got {y.shape}")
    if y.size and not 0 <= y.min() <= y.max() < network.outputs:
        raise ValueError(f"labels must be classes from 0 to {network.outputs - 1}, got {y.min()} to {y.max()}")
    if counted.shape != (models,) or squared.shape != (models,):
        raise ValueError(f"counted and squared must be ({models},), got {counted.shape} and {squared.shape}")
    if models and not 1 <= counted.min() <= counted.max() <= samples:
        raise ValueError(f"from 1 to {samples} samples must count, got {counted.min()} to {counted.max()}")
    loss, right = np.zeros(models), np.zeros(models, np.int64)
    bits = np.zeros((models, -(-samples // 8)), np.uint8)
    _run(network, weights, x, y, counted, squared, loss, right, bits, None)
    return loss / counted, right / counted, bits


def logits(network: Network, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(models, samples, outputs), in the type of the weights; arguments and errors as of `evaluate`."""
    models, samples = len(weights), len(x)
    out = np.empty((models, samples, network.outputs), weights.dtype)
    nothing = np.zeros(models, np.int64)
    labels, bits = np.zeros((1, samples), np.int64), np.zeros((models, 0), np.uint8)
    if out.size:
        _run(network, weights, x, labels, nothing, nothing > 0, np.zeros(models), nothing, bits, out)
    return out


def _run(
    network: Network, weights: np.ndarray, x: np.ndarray, y: np.ndarray, counted: np.ndarray, squared: np.ndarray,
    loss: np.ndarray, right: np.ndarray, bits: np.ndarray, out: np.ndarray | None,
) -> None:  # fmt: skip
    """Calls the compiled code."""
    dtype = weights.dtype
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"weights must be float32 or float64, got {dtype}")
    if weights.shape[1:] != (network.size,):
        raise ValueError(f"weights must be (models, {network.size}), got {weights.shape}")
    if x.shape[1:] != network.input_shape:
        raise ValueError(f"inputs must be (samples, {', '.join(map(str, network.input_shape))}), got {x.shape}")
    if not len(weights):
        return
    image = images_of(network, lanes(dtype))[0]
    held = sum(image.pitch for image in images_of(network, lanes(dtype))) * dtype.itemsize
    groups = min(max(CACHE // held, 1), CHUNK * COLUMNS)
    plan = plan_of(network, groups - groups % COLUMNS if groups > COLUMNS else groups, dtype)
    inputs = in_lanes(x, image, dtype)
    labels = aligned(len(y) * (len(inputs) // image.pitch) * image.lane, dtype).reshape(len(y), -1)
    labels[:, : len(x)] = y
    none = np.empty((0, 0, 0), dtype)
    EVALUATE(
        plan.stages, plan.strips, plan.taps, np.ascontiguousarray(weights), inputs, image.pitch, plan.groups,
        plan.scratch(dtype), aligned(int(plan.stages[:, COUNT].max()), dtype), aligned(3 * image.lane, dtype), labels,
        len(x), np.ascontiguousarray(counted, np.int64), np.ascontiguousarray(squared, np.bool_), loss, right, bits,
        none if out is None else out,
    )  # fmt: skip


def in_lanes(x: np.ndarray, image: Image, dtype: Any) -> np.ndarray:
    """Samples in groups as compiled code reads them, flat; lanes that none fills repeat the first."""
    groups = -(-len(x) // image.lane)
    out = aligned(groups * image.pitch, dtype)
    full = np.concatenate([x, np.repeat(x[:1], groups * image.lane - len(x), 0)])
    width = slice(image.border, image.border + image.shape[2])
    image.view(out)[:, :, :, width] = np.moveaxis(full.reshape(groups, image.lane, *image.shape), 1, -1)
    return out
