"""Training one MLP for many steps in one call of compiled code: weights stay near the core from step to step.

One program is one model. Nothing is padded to another model's size, each has its own batch size and number of steps,
and no bit depends on companions or on how the steps are cut into calls. Formulas are those of `kernels.population` and
`kernels.optimizers`, which are the reference; random streams are the same.

Inside, a weight matrix is (inputs, outputs), rows and columns rounded up to whole registers. What is in the padding
reaches no number outside it: every sum runs over true lengths.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.learning import ADAMW, KEPT, MOMENTUM, MSE, SGD, Learner, adamw, aligned, part, sgd
from kernels.mlp.network import MLP
from kernels.mlp.pointwise import KINDS, activate, drop, exp, shuffle
from kernels.mlp.tiles import OPTIONS, ROWS, column_sums, compiled, matmul, padded
from kernels.programs import Program, sources

# Columns of the table of layers.
INPUTS, OUTPUTS, IN, OUT, WEIGHT, BIAS, BELOW, HERE, SLOPE, STREAM = range(10)
# Places in the scratch array.
GRADIENT, BELOW_GRADIENT, CHANGE, TRANSPOSED, SCRATCH = range(5)


@compiled
def _forward(
    layers: np.ndarray, activation: int, weights: np.ndarray, batch: int, scratch: np.ndarray, key: Any, step: int,
    threshold: int, kept: Any,
) -> None:  # fmt: skip
    """Activations and slopes of all layers; logits behind the last."""
    last = len(layers) - 1
    for number in range(last + 1):
        layer = layers[number]
        width, here = layer[OUT], layer[HERE]
        matmul(
            scratch, layer[BELOW], layer[IN], 1, weights, layer[WEIGHT], width, weights, layer[BIAS], scratch, here,
            width, batch, layer[INPUTS], width,
        )  # fmt: skip
        if number == last:
            break
        h, slope = part(scratch, here, batch * width), part(scratch, layer[SLOPE], batch * width)
        activate(activation, h, slope)
        if threshold > 0 and layer[STREAM] >= 0:
            h2, slope2 = h.reshape(batch, width), slope.reshape(batch, width)
            drop(key, layer[STREAM], step, threshold, kept, layer[OUTPUTS], h2, slope2)


@compiled
def _cross_entropy(logits: np.ndarray, classes: int, labels: np.ndarray, out: np.ndarray) -> bool:
    """Gradient of the batch's mean cross-entropy, (batch, width) as logits; whether each sample's loss is finite."""
    number = logits.dtype.type
    batch, width = logits.shape
    share = number(1 / batch)
    finite = True
    for row in range(batch):
        largest = logits[row, 0]
        for c in range(1, classes):
            largest = max(largest, logits[row, c])
        for c in range(width):
            out[row, c] = logits[row, c] - largest
        finite &= math.isfinite(out[row, labels[row]])  # the loss is log(sum of exponentials) less this
    flat = out.reshape(batch * width)
    for i in range(len(flat)):
        flat[i] = exp(flat[i])
    for row in range(batch):
        total = number(0)
        for c in range(classes):
            total += out[row, c]
        finite &= math.isfinite(total)
        scale = share / total
        for c in range(width):
            out[row, c] *= scale
        out[row, labels[row]] -= share
    return finite


@compiled
def _squared_error(logits: np.ndarray, classes: int, labels: np.ndarray, out: np.ndarray) -> bool:
    """Gradient of the batch's `kernels.losses.mse`, as `_cross_entropy`."""
    number = logits.dtype.type
    batch, width = logits.shape
    share, each = number(2 / (batch * classes)), number(1 / classes)
    finite = True
    for row in range(batch):
        total = number(0)
        for c in range(classes):
            difference = logits[row, c] - number(c == labels[row])
            total += difference * difference
            out[row, c] = share * difference
        for c in range(classes, width):
            out[row, c] = number(0)
        finite &= math.isfinite(total * each)
    return finite


@compiled
def _transpose(matrix: np.ndarray, columns: int, out: np.ndarray) -> None:
    """out[c, r] = matrix[r, c] for the first columns; both as wide as their padding."""
    for top in range(0, len(matrix), ROWS):  # in blocks, so that every line of the cache is used while it is there
        for c in range(columns):
            for r in range(top, top + ROWS):
                out[c, r] = matrix[r, c]


@compiled
def _backward(
    layers: np.ndarray, optimizer: int, weights: np.ndarray, first: np.ndarray, second: np.ndarray, ones: np.ndarray,
    batch: int, rate: Any, hyper: np.ndarray, zeros: np.ndarray, unit: np.ndarray, scratch: np.ndarray,
    places: np.ndarray,
) -> None:  # fmt: skip
    """Gradients from the last layer to the first, each layer updated as soon as nothing needs its weights."""
    gradient, below, change = places[GRADIENT], places[BELOW_GRADIENT], places[CHANGE]
    for number in range(len(layers) - 1, -1, -1):
        layer = layers[number]
        into, width = layer[IN], layer[OUT]
        if number > 0:
            matrix = part(weights, layer[WEIGHT], into * width).reshape(into, width)
            turned = part(scratch, places[TRANSPOSED], width * into).reshape(width, into)
            _transpose(matrix, layer[OUTPUTS], turned)
            matmul(
                scratch, gradient, width, 1, scratch, places[TRANSPOSED], into, zeros, 0, scratch, below, into, batch,
                layer[OUTPUTS], into,
            )  # fmt: skip
            slope = part(scratch, layers[number - 1, SLOPE], batch * into)
            passed = part(scratch, below, batch * into)
            for i in range(len(passed)):
                passed[i] *= slope[i]
        matmul(
            scratch, layer[BELOW], 1, into, scratch, gradient, width, zeros, 0, scratch, change, width,
            layer[INPUTS], batch, width,
        )  # fmt: skip
        # the bias lies behind the weights, here and there
        column_sums(unit, scratch, gradient, width, zeros, scratch, change + into * width, batch, width)
        count = into * width + width
        mine, moved = part(weights, layer[WEIGHT], count), part(scratch, change, count)
        one = part(first, layer[WEIGHT], count)
        if optimizer == SGD:
            sgd(mine, one, moved, rate, hyper)
        else:
            adamw(mine, one, part(second, layer[WEIGHT], count), moved, rate, hyper, ones)
        gradient, below = below, gradient


def _train(digest: str) -> Any:
    """The compiled program. `digest` is part of what its cache is found by: numba looks at this file only."""

    def train(
        layers: np.ndarray, activation: int, loss: int, optimizer: int, weights: np.ndarray, first: np.ndarray,
        second: np.ndarray, ones: np.ndarray, inputs: np.ndarray, labels: np.ndarray, order: np.ndarray,
        spare: np.ndarray, site: int, batch: int, start: int, stop: int, rates: np.ndarray, hyper: np.ndarray,
        threshold: int, key: Any, zeros: np.ndarray, unit: np.ndarray, scratch: np.ndarray, places: np.ndarray,
        picked: np.ndarray,
    ) -> int:  # fmt: skip
        """Steps start..stop of one model, in place.

        Args:
            order, spare: (samples,) int64, buffers for the order of an epoch, drawn at `site`; `samples` may be fewer
                than there are labels.
            rates: (stop - start,) learning rates.

        Returns:
            the first step with a loss that is not finite, before its update; -1 for none.
        """
        digest  # noqa: B018  # makes it a part of the function
        features, across, x = layers[0, INPUTS], layers[0, IN], layers[0, BELOW]
        last = layers[len(layers) - 1]
        updates = len(order) // batch
        for step in range(start, stop):
            begin = (step % updates) * batch
            if begin == 0 or step == start:
                shuffle(key, site, step // updates, order, spare)
            for row in range(batch):
                sample = order[begin + row] & np.int64(2**31 - 1)
                picked[row] = labels[sample]
                here = part(scratch, x + row * across, features)
                for d in range(features):
                    here[d] = inputs[sample, d]
            _forward(layers, activation, weights, batch, scratch, key, step, threshold, hyper[KEPT])
            logits = part(scratch, last[HERE], batch * last[OUT]).reshape(batch, last[OUT])
            gradient = part(scratch, places[GRADIENT], batch * last[OUT]).reshape(batch, last[OUT])
            if loss == MSE:
                finite = _squared_error(logits, last[OUTPUTS], picked, gradient)
            else:
                finite = _cross_entropy(logits, last[OUTPUTS], picked, gradient)
            if not finite:
                return step
            if optimizer == ADAMW:
                for k in range(2):
                    beta = np.float64(hyper[MOMENTUM + k])
                    ones[k] = ones[k] * beta + (1.0 - beta)
            _backward(
                layers, optimizer, weights, first, second, ones, batch, rates[step - start], hyper, zeros, unit,
                scratch, places,
            )  # fmt: skip
        return -1

    return train


TRAIN = Program(_train, sources("mlp/*.py", "learning.py", "random.py"), OPTIONS)


@dataclass(frozen=True)
class Workspace:
    """Where one model after the other is trained: buffers for a network, a batch size and a type.

    Args:
        layers: (layers, 10) int64, sizes and places of each layer. size: numbers of one model's padded weights.
    """

    network: MLP
    batch_size: int
    dtype: Any
    layers: np.ndarray
    size: int
    scratch: np.ndarray
    places: np.ndarray
    zeros: np.ndarray
    unit: np.ndarray
    picked: np.ndarray

    @classmethod
    def of(cls, network: MLP, batch_size: int, dtype: Any, fill: float = 0.0) -> Workspace:
        """Args: fill: what buffers hold before they are used; no result depends on it."""
        widths = [padded(width, dtype) for width in network.widths]
        rows = -(-batch_size // ROWS) * ROWS
        sites = (*network.sites, -1)
        table, weight, place = [], 0, rows * widths[0]
        below = 0
        for number, (inputs, outputs) in enumerate(zip(network.widths[:-1], network.widths[1:], strict=True)):
            into, out = widths[number], widths[number + 1]
            slope = place + rows * out
            table.append((inputs, outputs, into, out, weight, weight + into * out, below, place, slope, sites[number]))
            weight, below, place = weight + (into + 1) * out, place, slope + rows * out
        widest, matrix = max(widths), max((a + 1) * b for a, b in itertools.pairwise(widths))
        ends = np.cumsum([place, rows * widest, rows * widest, matrix, matrix])
        scratch = aligned(int(ends[-1]), dtype, fill)
        unit, picked = np.ones(1, dtype), np.empty(batch_size, np.int64)
        layers, places, zeros = np.array(table, np.int64), ends.astype(np.int64), aligned(widest, dtype)
        return cls(network, batch_size, np.dtype(dtype), layers, weight, scratch, places, zeros, unit, picked)

    def pad(self, weights: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """Flat weights of a model, (outputs, inputs) a matrix as torch has them, in the order of the compiled code."""
        out = aligned(self.size, self.dtype, fill)
        for matrix, bias, flat in self._parts(out):
            matrix[...] = weights[flat : flat + matrix.size].reshape(matrix.shape[::-1]).T
            bias[...] = weights[flat + matrix.size : flat + matrix.size + bias.size]
        return out

    def unpad(self, weights: np.ndarray) -> np.ndarray:
        """The reverse of `pad`."""
        out = np.empty(self.network.size, self.dtype)
        for matrix, bias, flat in self._parts(weights):
            out[flat : flat + matrix.size] = matrix.T.reshape(-1)
            out[flat + matrix.size : flat + matrix.size + bias.size] = bias
        return out

    def _parts(self, weights: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Matrix (inputs, outputs) and bias of each layer as views, and the layer's place in the flat weights."""
        parts, flat = [], 0
        for inputs, outputs, into, out, weight, bias, *_ in self.layers.tolist():
            matrix = weights[weight:bias].reshape(into, out)[:inputs, :outputs]
            parts.append((matrix, weights[bias : bias + outputs], flat))
            flat += (inputs + 1) * outputs
        return parts


class Model:
    """One network in training.

    Args:
        workspace: of its network and batch size; models may take turns in it, not in two threads at once.
        weights: (size,) flat.
        hyperparameters: momentum, beta2, epsilon, weight_decay, dropout.
        key: its random streams.
        inputs: (samples, features), contiguous, of the workspace's type. labels: (samples,) int64 below the outputs.
        samples: how many of them it uses, the first ones; at least a batch. An epoch is one pass over them in whole
            batches. site: random stream of their order. loss: a name in `kernels.losses.LOSSES`.

    Raises:
        ValueError: what does not fit.
    """

    def __init__(
        self,
        workspace: Workspace,
        weights: np.ndarray,
        optimizer: str,
        hyperparameters: Mapping[str, float],
        key: int,
        inputs: np.ndarray,
        labels: np.ndarray,
        samples: int,
        site: int,
        loss: str = "cross_entropy",
    ) -> None:
        self.workspace, widths = workspace, workspace.network.widths
        self.learner = Learner.of(
            workspace.pad(weights), optimizer, hyperparameters, key, inputs, labels, samples, site, loss,
            input_shape=widths[:1], outputs=widths[-1], batch_size=workspace.batch_size,
        )  # fmt: skip

    @property
    def weights(self) -> np.ndarray:
        """(size,) flat, a copy."""
        return self.workspace.unpad(self.learner.weights)

    def train(self, start: int, stop: int, rates: np.ndarray) -> int:
        """Optimiser steps start..stop, counted from the beginning of the training.

        Args:
            rates: (stop - start,) learning rates.

        Returns:
            the first step whose loss was not finite; the model stopped there. -1 if all were.
        """
        space, own = self.workspace, self.learner
        return int(
            TRAIN(
                space.layers, KINDS[space.network.activation], own.loss, own.optimizer, own.weights, own.first,
                own.second, own.ones, own.inputs, own.labels, own.order, own.spare, own.site, space.batch_size, start,
                stop, own.rates(start, stop, rates), own.hyper, own.threshold, own.key, space.zeros, space.unit,
                space.scratch, space.places, space.picked,
            )
        )  # fmt: skip
