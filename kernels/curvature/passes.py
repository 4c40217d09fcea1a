"""What happens to a block of samples: the network's linearisation, and the second derivative along a vector.

Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian", section 3: R{} of forward and backward pass.
Differs: quadratic forms need no second backward pass. With R{a} the change of a layer's outputs and R{z} that of its
inputs, for gradients d = dL/dz and g = dL/da,

    v' H v = sum over samples of R{z_L}' (d2L/dz_L2) R{z_L} + sum over layers of 2 d' V R{a below} + (f''(z) g)' R{z}^2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.curvature.places import (
    BACK,
    BEND,
    BIAS,
    CHANGE,
    DELTA,
    FORWARD,
    HERE,
    IN,
    INPUTS,
    INTO,
    MATRIX,
    OUT,
    OUTPUTS,
    SHIFT,
    SLOPE,
    TURN,
)
from kernels.curvature.pointwise import activate, bend_loss, lose
from kernels.curvature.tiles import dot, dot_squares, product, products
from kernels.learning import part
from kernels.mlp.pointwise import RELU
from kernels.mlp.tiles import column_sums, compiled


@compiled
def linearize(
    layers: np.ndarray, activation: int, loss: int, share: float, weights: np.ndarray, inputs: np.ndarray, first: int,
    count: int, labels: np.ndarray, zeros: np.ndarray, state: np.ndarray,
) -> float:  # fmt: skip
    """Fills the state of a block, `count` samples from `first`; the sum of their losses, which count `share` each."""
    total = ahead(layers, activation, loss, share, weights, inputs, first, count, labels, state)
    back(layers, activation, weights, count, zeros, state)
    return total


@compiled
def ahead(
    layers: np.ndarray, activation: int, loss: int, share: float, weights: np.ndarray, inputs: np.ndarray, first: int,
    count: int, labels: np.ndarray, state: np.ndarray,
) -> float:  # fmt: skip
    """The forward part of `linearize`, up to the gradient of the logits."""
    last = len(layers) - 1
    for number in range(last + 1):
        layer = layers[number]
        width, here = layer[OUT], layer[HERE]
        source, below = (inputs, first * layer[IN]) if number == 0 else (state, layers[number - 1, HERE])
        product(
            source, below, layer[IN], 1, weights, layer[FORWARD], width, weights, layer[BIAS], 0, state, here, width,
            count, layer[INPUTS], width,
        )  # fmt: skip
        if number < last:
            h, size = part(state, here, count * width), count * width
            activate(activation, h, part(state, layer[SLOPE], size), part(state, layer[BEND], size))
    top = layers[last]
    size = count * top[OUT]
    logits = part(state, top[HERE], size).reshape(count, top[OUT])
    gradient = part(state, top[DELTA], size).reshape(count, top[OUT])
    return lose(loss, top[OUTPUTS], share, part(labels, first, count), logits, gradient)


@compiled
def back(
    layers: np.ndarray, activation: int, weights: np.ndarray, count: int, zeros: np.ndarray, state: np.ndarray
) -> None:
    """The backward part of `linearize`."""
    for number in range(len(layers) - 1, 0, -1):
        layer, under = layers[number], layers[number - 1]
        into = layer[IN]
        product(
            state, layer[DELTA], layer[OUT], 1, weights, layer[BACK], into, zeros, 0, 0, state, under[DELTA], into,
            count, layer[OUTPUTS], into,
        )  # fmt: skip
        size = count * into
        delta, slope, bend = (
            part(state, under[DELTA], size), part(state, under[SLOPE], size), part(state, under[BEND], size),
        )  # fmt: skip
        if activation != RELU:
            for i in range(size):
                bend[i] *= delta[i]
        for i in range(size):
            delta[i] *= slope[i]


@compiled
def slope_sums(
    layers: np.ndarray, inputs: np.ndarray, first: int, count: int, state: np.ndarray, one: np.ndarray,
    sums: np.ndarray,
) -> None:  # fmt: skip
    """Adds a block's part of the gradient."""
    for number in range(len(layers)):
        layer = layers[number]
        source, below = (inputs, first * layer[IN]) if number == 0 else (state, layers[number - 1, HERE])
        product(
            state, layer[DELTA], 1, layer[OUT], source, below, layer[IN], sums, layer[MATRIX], layer[IN], sums,
            layer[MATRIX], layer[IN], layer[OUTPUTS], count, layer[IN],
        )  # fmt: skip
        shift = part(sums, layer[SHIFT], layer[OUT])
        column_sums(one, state, layer[DELTA], layer[OUT], shift, shift, 0, count, layer[OUT])


@compiled
def push(
    layers: np.ndarray, weights: np.ndarray, vector: np.ndarray, inputs: np.ndarray, first: int, count: int,
    state: np.ndarray, work: np.ndarray,
) -> None:  # fmt: skip
    """Changes of all layers where the weights change by a vector."""
    last = len(layers) - 1
    for number in range(last + 1):
        layer = layers[number]
        width, into = layer[OUT], layer[IN]
        source, below, change, more = inputs, first * into, 0, 0
        if number > 0:
            source, below = state, layers[number - 1, HERE]
            change, more = layers[number - 1, CHANGE], layer[INPUTS]
        products(
            source, below, into, 1, vector, layer[FORWARD], width, layer[INPUTS], work, change, into, 1, weights,
            layer[FORWARD], width, more, vector, layer[BIAS], 0, work, layer[INTO], width, count, width,
        )  # fmt: skip
        if number < last:
            size = count * width
            changed, z, slope = (
                part(work, layer[CHANGE], size),
                part(work, layer[INTO], size),
                part(state, layer[SLOPE], size),
            )
            for i in range(size):
                changed[i] = z[i] * slope[i]


@compiled
def _turn_loss(
    layers: np.ndarray, loss: int, share: float, count: int, state: np.ndarray, work: np.ndarray
) -> Any:  # fmt: skip
    """Change of the gradient of the logits, flat; and where it stands."""
    top = layers[len(layers) - 1]
    size = count * top[OUT]
    odds = part(state, top[HERE], size).reshape(count, top[OUT])
    change = part(work, top[INTO], size).reshape(count, top[OUT])
    bend_loss(loss, top[OUTPUTS], share, odds, change, part(work, top[TURN], size).reshape(count, top[OUT]))
    return part(work, top[TURN], size)


@compiled
def pull(
    layers: np.ndarray, activation: int, loss: int, share: float, weights: np.ndarray, vector: np.ndarray,
    inputs: np.ndarray, first: int, count: int, zeros: np.ndarray, one: np.ndarray, state: np.ndarray,
    work: np.ndarray, sums: np.ndarray,
) -> None:  # fmt: skip
    """Adds a block's part of the product of Hessian and vector; `push` comes before it."""
    _turn_loss(layers, loss, share, count, state, work)
    for number in range(len(layers) - 1, -1, -1):
        layer = layers[number]
        width, into = layer[OUT], layer[IN]
        source, below, change, more = inputs, first * into, 0, 0
        if number > 0:
            source, below = state, layers[number - 1, HERE]
            change, more = layers[number - 1, CHANGE], count
        products(
            work, layer[TURN], 1, width, source, below, into, count, state, layer[DELTA], 1, width, work, change, into,
            more, sums, layer[MATRIX], into, sums, layer[MATRIX], into, layer[OUTPUTS], into,
        )  # fmt: skip
        shift = part(sums, layer[SHIFT], width)
        column_sums(one, work, layer[TURN], width, shift, shift, 0, count, width)
        if number == 0:
            break
        under = layers[number - 1]
        products(
            work, layer[TURN], width, 1, weights, layer[BACK], into, layer[OUTPUTS], state, layer[DELTA], width, 1,
            vector, layer[BACK], into, layer[OUTPUTS], zeros, 0, 0, work, under[TURN], into, count, into,
        )  # fmt: skip
        size = count * into
        turn, slope = part(work, under[TURN], size), part(state, under[SLOPE], size)
        if activation == RELU:
            for i in range(size):
                turn[i] *= slope[i]
        else:
            z, bend = part(work, under[INTO], size), part(state, under[BEND], size)
            for i in range(size):
                turn[i] = turn[i] * slope[i] + bend[i] * z[i]


@compiled
def form(
    layers: np.ndarray, activation: int, loss: int, share: float, vector: np.ndarray, count: int, zeros: np.ndarray,
    state: np.ndarray, work: np.ndarray,
) -> float:  # fmt: skip
    """A block's part of the quadratic form of a vector; `push` comes before it."""
    last = len(layers) - 1
    turned = _turn_loss(layers, loss, share, count, state, work)
    total = np.float64(dot(turned, part(work, layers[last, INTO], len(turned))))
    for number in range(last + 1):
        layer = layers[number]
        width, size = layer[OUT], count * layer[OUT]
        z = part(work, layer[INTO], size)
        if activation != RELU and number < last:
            total += np.float64(dot_squares(part(state, layer[BEND], size), z))
        if number > 0:
            product(
                work, layers[number - 1, CHANGE], layer[IN], 1, vector, layer[FORWARD], width, zeros, 0, 0, work,
                layer[INTO], width, count, layer[INPUTS], width,
            )  # fmt: skip
            total += 2.0 * np.float64(dot(part(state, layer[DELTA], size), z))
    return total
