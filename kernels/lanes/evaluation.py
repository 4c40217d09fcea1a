"""Loss, accuracy and error bits of many models on the same samples, by compiled code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from kernels.lanes.forward import forward, part
from kernels.lanes.network import Network
from kernels.lanes.plan import CHANNELS, COUNT, HERE, PITCH, Image, aligned, images_of, plan_of
from kernels.lanes.tiles import COLUMNS, first_largest, lanes_of, subtract, total
from kernels.mlp.pointwise import exp
from kernels.mlp.tiles import OPTIONS, compiled, lanes
from kernels.programs import Program

CHUNK = 1  # times the columns of a tile: groups that go through a model before it is the next one's turn


@compiled
def _cross_entropy(logits: np.ndarray, classes: int, labels: np.ndarray, best: np.ndarray, sums: np.ndarray) -> float:
    """Sum of the cross-entropies of the first samples, as many as there are labels; logits are overwritten."""
    lane = lanes_of(logits)
    subtract(classes, logits, 0, best, 0)
    sum_ = 0.0
    for i in range(len(labels)):
        sum_ -= np.float64(logits[labels[i] * lane + i])
    for i in range(len(logits)):
        logits[i] = exp(logits[i])
    total(classes, logits, 0, sums, 0)
    product = 1.0  # each total is between 1 and the number of classes: no product of a register's overflows
    for i in range(len(labels)):
        product *= np.float64(sums[i])
    return sum_ + math.log(product)


@compiled
def _squared(logits: np.ndarray, classes: int, labels: np.ndarray, sums: np.ndarray) -> float:
    """Sum over the first samples, as many as there are labels, of the mean over classes of (logit - one_hot)^2."""
    lane = lanes_of(logits)
    one = logits.dtype.type(1)
    for i in range(len(labels)):
        logits[labels[i] * lane + i] -= one
    for i in range(len(logits)):
        logits[i] *= logits[i]
    total(classes, logits, 0, sums, 0)
    sum_ = 0.0
    for i in range(len(labels)):
        sum_ += np.float64(sums[i])
    return sum_ / classes


@compiled
def _score(
    logits: np.ndarray, classes: int, labels: np.ndarray, first: int, counted: int, squared: bool, rooms: np.ndarray,
    bits: np.ndarray,
) -> tuple[float, int]:  # fmt: skip
    """Loss and number of right answers among the counted ones of a group; `labels` are those of its samples."""
    best, place, sums = rooms[0], rooms[1], rooms[2]
    first_largest(classes, logits, 0, best, 0, place, 0)
    right = 0
    for i in range(len(labels)):
        wrong = np.int64(place[i]) != labels[i]
        bits[(first + i) >> 3] |= np.uint8(wrong) << np.uint8(7 - ((first + i) & 7))
        right += i < counted and not wrong
    if counted <= 0:
        return 0.0, 0
    some = labels[: min(counted, len(labels))]
    if squared:
        return _squared(logits, classes, some, sums), right
    return _cross_entropy(logits, classes, some, best, sums), right


def _evaluate(sources: str) -> Any:
    """The compiled program. `sources` is part of what its cache is found by: numba looks at this file only."""

    def evaluate(
        stages: np.ndarray, strips: np.ndarray, taps: np.ndarray, weights: np.ndarray, inputs: np.ndarray, pitch: int,
        most: int, scratch: np.ndarray, slopes: np.ndarray, rooms: np.ndarray, labels: np.ndarray, counted: np.ndarray,
        squared: np.ndarray, loss: np.ndarray, right: np.ndarray, bits: np.ndarray, out: np.ndarray,
    ) -> None:  # fmt: skip
        """Sums of losses, right answers and bits of all models; or, where `out` has room for them, their logits."""
        sources  # noqa: B018  # makes it a part of the function
        models, samples = len(weights), labels.shape[1]
        lane = lanes_of(scratch)
        last = stages[len(stages) - 1]
        classes = last[CHANNELS]
        groups = (samples + lane - 1) // lane
        chunks = (groups + most - 1) // most
        for chunk in range(chunks):
            begin, end = chunk * groups // chunks, (chunk + 1) * groups // chunks
            for model in range(models):
                forward(stages, strips, taps, weights[model], inputs, begin * pitch, end - begin, scratch, slopes)
                mine = labels[model * len(labels) // models]
                for group in range(end - begin):
                    first = (begin + group) * lane
                    logits = part(scratch, last[HERE] + group * last[PITCH], classes * lane)
                    stop = min(first + lane, samples)
                    if len(out):
                        for c in range(classes):
                            for i in range(stop - first):
                                out[model, first + i, c] = logits[c * lane + i]
                    else:
                        sum_, ok = _score(
                            logits, classes, mine[first:stop], first, counted[model] - first, squared[model], rooms,
                            bits[model],
                        )  # fmt: skip
                        loss[model] += sum_
                        right[model] += ok

    return evaluate


FOLDER = Path(__file__).parent
SOURCES = [*FOLDER.glob("*.py"), *FOLDER.parent.glob("mlp/*.py"), FOLDER.parent / "random.py"]
EVALUATE = Program(_evaluate, SOURCES, OPTIONS)


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
    _run(network, weights, x, np.ascontiguousarray(y, np.int64), counted, squared, loss, right, bits, None)
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
    plan = plan_of(network, CHUNK * COLUMNS, dtype)
    none = np.empty((0, 0, 0), dtype)
    EVALUATE(
        plan.stages, plan.strips, plan.taps, np.ascontiguousarray(weights), in_lanes(x, image, dtype), image.pitch,
        plan.groups, plan.scratch(dtype), aligned(int(plan.stages[:, COUNT].max()), dtype), aligned(3 * image.lane, dtype).reshape(3, -1), y,
        np.ascontiguousarray(counted, np.int64), np.ascontiguousarray(squared, np.bool_), loss, right, bits,
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
