"""Traces of the Hessians of multilayer perceptrons without sampling, in compiled code.

A layer's inputs z = W a + b are linear in its weights, so d2L/dW_ij2 = a_j^2 d2L/dz_i2 and

    tr H = sum over samples and layers of (|a|^2 + 1) tr H_z,   H_z(l) = D W' H_z(l+1) W D + diag(f''(z) g),

with D = diag(f'(z)), g = dL/da and W the layer above. H_z of the logits is a sum of few squares, and each term stays
one on its way down: columns u become D W' u. Of softmax they are e_c - s, weighing s_c each. The diagonal part of a
layer adds columns of its own, the rows of W D, weighing f'' g each; for the step to the first layer, where only the
trace is asked for, one product with the squares of W does instead.

Source: Botev, Ritter, Barber 2017, "Practical Gauss-Newton Optimisation for Deep Learning", section 3, the
recursion of pre-activation Hessians. Differs: they average over samples and factor; here each sample's H_z is exact,
and so is the trace.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types
from torch import Tensor

from kernels.curvature.compiled import SOURCES, arrays, own
from kernels.curvature.passes import ahead, back
from kernels.curvature.places import BACK, BEND, HERE, IN, INPUTS, OUT, OUTPUTS, SLOPE, Places, expand
from kernels.curvature.tiles import dot, dot_squares, product
from kernels.lanes.vectors import Vectors, instructions, lanes_of, pointers
from kernels.learning import LOSSES, MSE, aligned, part
from kernels.mlp.network import MLP
from kernels.mlp.pointwise import KINDS, RELU
from kernels.mlp.tiles import OPTIONS, ROWS, compiled
from kernels.programs import Program
from kernels.threads import in_parts

COLUMNS = 1 << 14  # numbers: columns that are worked on at once


@instructions
def _slopes(
    typing: Any, x: Any, x0: Any, x_row: Any, columns: Any, mean: Any, m0: Any, slope: Any, s0: Any, shares: Any,
    h0: Any, size: Any, n0: Any, out: Any, y0: Any, y_row: Any, total: Any, t0: Any,
) -> Any:  # fmt: skip  # intrinsics take no *args
    """out[c, :] = (x[c, :] - mean[:]) * slope[:]; total[:] += size * sum over c of shares[c] * out[c, :]^2: a register
    of each, of one sample.
    """
    i = types.int64
    signature = types.void(x, i, i, i, mean, i, slope, i, shares, i, size, i, out, i, i, total, i)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x, x0, x_row, columns, mean, m0, slope, s0, shares, h0, size, n0, out, y0, y_row, total, t0) = pointers(
            context, builder, signature, arguments
        )
        registers = Vectors(builder, x.type.pointee)
        middle, factor = registers.load(mean, m0), registers.load(slope, s0)

        def body(c: Any, sums: list[Any]) -> list[Any]:
            value = registers.load(x, builder.add(x0, builder.mul(c, x_row)))
            value = builder.fmul(builder.fsub(value, middle), factor)
            registers.store(value, out, builder.add(y0, builder.mul(c, y_row)))
            share = registers.splat(shares, builder.add(h0, c))
            weighed = builder.fmul(builder.fmul(share, value), value, flags=["contract"])
            return [builder.fadd(weighed, sums[0], flags=["contract"])]

        (found,) = registers.loop(columns, [registers.constant(0.0)], body)
        found = builder.fmul(found, registers.splat(size, n0), flags=["contract"])
        registers.store(builder.fadd(registers.load(total, t0), found, flags=["contract"]), total, t0)
        return context.get_dummy_value()

    return signature, generate


@compiled
def _descend(
    layers: np.ndarray, top: int, weights: np.ndarray, mean: np.ndarray, mean_row: int, shares: np.ndarray,
    share0: int, share_row: int, block: int, chunk: int, count: int, sizes: np.ndarray, state: np.ndarray,
    zeros: np.ndarray, above: np.ndarray, below: np.ndarray, total: np.ndarray,
) -> float:  # fmt: skip
    """Sum over samples and the layers below `top` of (|a|^2 + 1) times the weighed squares of the columns that begin
    as rows of the weights of `top` less a mean. Overwrites its rooms `above`, `below` and `total`.
    """
    lane, columns, found = lanes_of(state), layers[top, OUTPUTS], 0.0
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        for number in range(top - 1, -1, -1):
            layer, over = layers[number], layers[number + 1]
            width = layer[OUT]
            if number < top - 1:
                product(
                    above, 0, over[OUT], 1, weights, over[BACK], width, zeros, 0, 0, below, 0, width,
                    (stop - start) * columns, over[OUTPUTS], width,
                )  # fmt: skip
                above, below = below, above
            total[:] = 0
            for sample in range(start, stop):
                row = (sample - start) * columns * width
                for r in range(0, width, lane):
                    here, slope = row + r, layer[SLOPE] + sample * width + r
                    share, size = share0 + sample * share_row, number * block + sample
                    if number == top - 1:
                        _slopes(
                            weights, over[BACK] + r, width, columns, mean, sample * mean_row + r, state, slope, shares,
                            share, sizes, size, above, here, width, total, r,
                        )  # fmt: skip
                    else:
                        _slopes(
                            above, here, width, columns, zeros, r, state, slope, shares, share, sizes, size, above,
                            here, width, total, r,
                        )  # fmt: skip
            for i in range(width):
                found += np.float64(total[i])
    return found


@compiled
def _logits_trace(loss: int, classes: int, odds: np.ndarray, sizes: np.ndarray) -> float:
    """Sum over samples of (|a|^2 + 1) times the trace of H_z of the logits, unweighed by 2 / classes for MSE."""
    number = odds.dtype.type
    found = 0.0
    for row in range(len(odds)):
        if loss == MSE:
            found += np.float64(sizes[row]) * classes
            continue
        top = 0
        for c in range(1, classes):
            if odds[row, c] > odds[row, top]:
                top = c
        rest, trace = number(0), number(0)  # 1 - p of the largest would be nothing but rounding when p is near 1
        for c in range(classes):
            if c != top:
                rest += odds[row, c]
                trace += odds[row, c] * (number(1) - odds[row, c])
        found += np.float64(sizes[row]) * np.float64(trace + odds[row, top] * rest)
    return found


@compiled
def _bends(
    layers: np.ndarray, block: int, chunk: int, count: int, weights: np.ndarray, squares: np.ndarray,
    sizes: np.ndarray, state: np.ndarray, zeros: np.ndarray, mean: np.ndarray, above: np.ndarray, below: np.ndarray,
    total: np.ndarray, ones: np.ndarray,
) -> float:  # fmt: skip
    """What the diagonal parts of all layers add, their own and below."""
    found = 0.0
    for number in range(len(layers) - 1):
        layer = layers[number]
        width = layer[OUT]
        for sample in range(count):
            bend = part(state, layer[BEND] + sample * width, layer[OUTPUTS])
            found += np.float64(sizes[number * block + sample]) * np.float64(dot(bend, part(ones, 0, len(bend))))
        if number == 1:
            into = layer[IN]
            product(
                state, layer[BEND], width, 1, squares, 0, into, zeros, 0, 0, mean, 0, into, count, layer[OUTPUTS], into
            )
            for sample in range(count):
                slope = part(state, layers[0, SLOPE] + sample * into, into)
                found += np.float64(sizes[sample]) * np.float64(dot_squares(part(mean, sample * into, into), slope))
        elif number > 1:
            found += _descend(
                layers, number, weights, zeros, 0, state, layer[BEND], width, block, chunk, count, sizes, state, zeros,
                above, below, total,
            )  # fmt: skip
    return found


def _trace(digest: str) -> Any:
    """The compiled program. `digest` is part of what its cache is found by: numba looks at this file only."""

    def trace(
        layers: np.ndarray, activation: int, loss: int, flat: np.ndarray, inputs: np.ndarray, samples: int, block: int,
        chunk: int, labels: np.ndarray, zeros: np.ndarray, ones: np.ndarray, weights: np.ndarray, squares: np.ndarray,
        state: np.ndarray, sizes: np.ndarray, mean: np.ndarray, above: np.ndarray, below: np.ndarray,
        total: np.ndarray, out: np.ndarray,
    ) -> None:  # fmt: skip
        """tr H of all models.

        Args:
            chunk: samples whose columns are worked on at once. sizes: (layers * block,), rooms for |a|^2 + 1. mean:
                (block * widest,), above, below: (chunk * columns * widest,), total: (widest,): further rooms.
            out: (models,) float64.
        """
        digest  # noqa: B018  # makes it a part of the function
        last = len(layers) - 1
        top = layers[last]
        classes, width, into = top[OUTPUTS], top[OUT], top[IN]
        scale, one = 1.0 / samples, inputs.dtype.type(1)
        if loss == MSE:
            scale *= 2.0 / classes
        for model in range(len(flat)):
            expand(layers, flat[model], True, weights)
            if last > 1 and activation != RELU:
                matrix = part(weights, layers[1, BACK], len(squares))
                for i in range(len(squares)):
                    squares[i] = matrix[i] * matrix[i]
            outer, inner = 0.0, 0.0
            for first in range(0, samples, block):
                count = min(block, samples - first)
                ahead(
                    layers, activation, loss, 1.0 / samples, weights, inputs, first, count,
                    labels[model % len(labels)], state,
                )  # fmt: skip
                for number in range(last + 1):
                    layer = layers[number]
                    source, below0 = (inputs, first * layer[IN]) if number == 0 else (state, layers[number - 1, HERE])
                    for sample in range(count):
                        row = part(source, below0 + sample * layer[IN], layer[INPUTS])
                        sizes[number * block + sample] = one + dot(row, row)
                odds = part(state, top[HERE], count * width).reshape(count, width)
                outer += _logits_trace(loss, classes, odds, part(sizes, last * block, count))
                if last > 0 and loss == MSE:
                    outer += _descend(
                        layers, last, weights, zeros, 0, ones, 0, 0, block, chunk, count, sizes, state, zeros, above,
                        below, total,
                    )  # fmt: skip
                elif last > 0:
                    product(
                        state, top[HERE], width, 1, weights, top[BACK], into, zeros, 0, 0, mean, 0, into, count,
                        classes, into,
                    )  # fmt: skip
                    outer += _descend(
                        layers, last, weights, mean, into, state, top[HERE], width, block, chunk, count, sizes, state,
                        zeros, above, below, total,
                    )  # fmt: skip
                if activation != RELU:
                    back(layers, activation, weights, count, zeros, state)
                    inner += _bends(
                        layers, block, chunk, count, weights, squares, sizes, state, zeros, mean, above, below, total,
                        ones,
                    )  # fmt: skip
            out[model] = outer * scale + inner

    return trace


TRACE = Program(_trace, SOURCES, OPTIONS)


def trace(
    network: MLP, weights: Tensor, x: Tensor, y: Tensor, loss_function: str, threads: int | None = None
) -> Tensor:
    """tr H of the mean loss of each model, (models,), on a CPU in float32 or float64; sums in float64.

    No bit of a model depends on its companions or on `threads`. Arguments as for `kernels.curvature.surface.surface`.
    """
    flat, inputs, labels = arrays(network, weights, x, y)
    dtype = flat.dtype
    places = Places.of(network, len(inputs), dtype)
    own_columns = network.widths[3:-1] if network.activation != "relu" else ()
    columns = max(network.widths[-1:] + own_columns)
    chunk = max(1, COLUMNS // (columns * places.widest))
    room = -(-min(chunk, places.block) * columns // ROWS) * ROWS * places.widest
    across, given = places.pad(inputs), np.zeros(len(flat))
    first = places.layers[min(1, len(places.layers) - 1)]

    def work(models: slice) -> None:
        above, below, mean = (aligned(size, dtype) for size in (room, room, places.block * places.widest))
        TRACE(
            places.layers, KINDS[network.activation], LOSSES[loss_function], flat[models], across, len(inputs),
            places.block, chunk, own(labels, models), aligned(places.widest, dtype), aligned(places.widest, dtype, 1),
            aligned(places.weights, dtype), aligned(int(first[OUT] * first[IN]), dtype), aligned(places.state, dtype),
            np.empty(len(places.layers) * places.block, dtype), mean, above, below, aligned(places.widest, dtype),
            given[models],
        )  # fmt: skip

    in_parts(work, len(flat), max(1, min(threads or torch.get_num_threads(), len(flat))))
    return torch.from_numpy(given.astype(dtype))
