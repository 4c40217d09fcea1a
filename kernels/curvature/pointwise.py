"""Activations and losses with their first two derivatives, in compiled code."""

from __future__ import annotations

import math

import numpy as np

from kernels.learning import MSE
from kernels.mlp.pointwise import GELU, RELU, TANH, exp, normal_cdf, tanh
from kernels.mlp.tiles import compiled


@compiled
def activate(kind: int, h: np.ndarray, slope: np.ndarray, bend: np.ndarray) -> None:
    """Inputs of an activation become its outputs; first derivatives to `slope`, second ones to `bend`, which ReLU
    leaves as it is: they are zero. All (count,).
    """
    number = h.dtype.type
    zero, one, two = number(0), number(1), number(2)
    if kind == RELU:
        for i in range(len(h)):
            x = h[i]
            h[i] = zero if x <= zero else x  # NaN passes
            slope[i] = zero if x <= zero else one
    elif kind == TANH:
        for i in range(len(h)):
            y = tanh(h[i])
            h[i] = y
            slope[i] = one - y * y
            bend[i] = -two * y * (one - y * y)
    elif kind == GELU:
        for i in range(len(h)):
            x = h[i]
            below, density = normal_cdf(x)
            h[i] = x * below
            slope[i] = below + x * density
            bend[i] = density * (two - x * x)
    else:
        for i in range(len(h)):
            x = h[i]
            gate = one / (one + exp(-x))
            h[i] = x * gate
            slope[i] = gate * (one + x * (one - gate))
            bend[i] = gate * (one - gate) * (two + x * (one - two * gate))


@compiled
def lose(
    loss: int, classes: int, share: float, labels: np.ndarray, logits: np.ndarray, gradient: np.ndarray
) -> float:  # fmt: skip
    """Gradient of a sample's loss times `share`; logits become probabilities for the cross-entropy.

    Args:
        labels: (count,). logits, gradient: (count, width); zeros go to what is beyond the classes.

    Returns:
        sum of the losses.
    """
    number = logits.dtype.type
    count, total = len(logits), 0.0
    if loss == MSE:
        scale = number(2 * share / classes)
        for row in range(count):
            squares = number(0)
            for c in range(classes):
                difference = logits[row, c] - number(c == labels[row])
                squares += difference * difference
                gradient[row, c] = scale * difference
            for c in range(classes, logits.shape[1]):
                gradient[row, c] = number(0)
            total += np.float64(squares)
        return total / classes
    share = number(share)
    for row in range(count):
        largest = logits[row, 0]
        for c in range(1, classes):
            largest = max(largest, logits[row, c])
        for c in range(classes):
            logits[row, c] -= largest
        total -= np.float64(logits[row, labels[row]])
    flat = logits.reshape(-1)
    for i in range(len(flat)):
        flat[i] = exp(flat[i])
    for row in range(count):
        mass = number(0)
        for c in range(classes):
            mass += logits[row, c]
        total += math.log(np.float64(mass))
        scale = number(1) / mass
        for c in range(classes):
            logits[row, c] *= scale
            gradient[row, c] = share * logits[row, c]
        for c in range(classes, logits.shape[1]):
            logits[row, c] = gradient[row, c] = number(0)
        # not 1 - p, whose rounding is large beside a small p: the others' sum
        rest = number(0)
        for c in range(classes):
            if c != labels[row]:
                rest += logits[row, c]
        gradient[row, labels[row]] = -share * rest
    return total


@compiled
def bend_loss(
    loss: int, classes: int, share: float, odds: np.ndarray, change: np.ndarray, out: np.ndarray
) -> None:  # fmt: skip
    """Second derivative of a sample's loss in its logits, times a change of them and `share`; (count, width).

    Args:
        odds: probabilities, for the cross-entropy; zeros in the padding.
    """
    number = change.dtype.type
    if loss == MSE:
        scale = number(2 * share / classes)
        for row in range(len(change)):
            for c in range(classes):
                out[row, c] = scale * change[row, c]
            for c in range(classes, change.shape[1]):
                out[row, c] = number(0)
        return
    share = number(share)
    for row in range(len(change)):
        mean = number(0)
        for c in range(classes):
            mean += odds[row, c] * change[row, c]
        for c in range(change.shape[1]):
            out[row, c] = share * odds[row, c] * (change[row, c] - mean)
