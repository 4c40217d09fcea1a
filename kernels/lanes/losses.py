"""Losses of a group of samples, and their gradients in place of the logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.lanes.registers import first_largest, scale, subtract, total
from kernels.lanes.vectors import lanes_of
from kernels.learning import CROSS_ENTROPY
from kernels.mlp.pointwise import exp
from kernels.mlp.tiles import compiled


@compiled
def _cross_entropy(
    logits: np.ndarray, classes: int, labels: np.ndarray, count: int, share: Any, rooms: np.ndarray
) -> bool:
    """Gradient of the batch's mean cross-entropy in place of a group's logits; whether each sample's loss is finite.

    Args:
        labels: (lanes,), of which the first `count` are samples. share: of a sample, one over the batch.
    """
    lane = lanes_of(logits)
    first_largest(classes, logits, 0, rooms, 0, rooms, lane)
    subtract(classes, logits, 0, rooms, 0)
    finite = True
    for i in range(count):  # the loss is log(sum of exponentials) less this
        finite &= math.isfinite(logits[labels[i] * lane + i])
    for i in range(len(logits)):
        logits[i] = exp(logits[i])
    total(classes, logits, 0, rooms, 0)
    for i in range(lane):
        finite &= i >= count or math.isfinite(rooms[i])
        rooms[i] = share / rooms[i]
    scale(classes, logits, 0, rooms, 0)
    for i in range(count):
        logits[labels[i] * lane + i] -= share
    return finite


@compiled
def _squared(logits: np.ndarray, classes: int, labels: np.ndarray, count: int, share: Any, rooms: np.ndarray) -> bool:
    """As `_cross_entropy` for the mean over batch and classes of (logit - one_hot)^2."""
    lane = lanes_of(logits)
    number = logits.dtype.type
    finite = True
    for i in range(count):
        logits[labels[i] * lane + i] -= number(1)
        size = number(0)
        for c in range(classes):
            size += logits[c * lane + i] * logits[c * lane + i]
        finite &= math.isfinite(size)
    twice = number(2) * share / number(classes)
    for i in range(len(logits)):
        logits[i] *= twice
    return finite


@compiled
def gradient_of(
    kind: int, logits: np.ndarray, classes: int, labels: np.ndarray, count: int, share: Any, rooms: np.ndarray
) -> bool:
    """Gradients of one of the losses, zero in lanes without a sample."""
    lane = lanes_of(logits)
    if kind == CROSS_ENTROPY:
        finite = _cross_entropy(logits, classes, labels, count, share, rooms)
    else:
        finite = _squared(logits, classes, labels, count, share, rooms)
    for c in range(classes):
        for i in range(count, lane):
            logits[c * lane + i] = logits.dtype.type(0)
    return finite
