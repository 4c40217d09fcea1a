"""Dense networks on a GPU: one program takes some samples through all layers of one network, on chip from end to end.

The first layer is inside as well. As one product over all networks it would write and read (samples, models * units)
activations and, for views into flat vectors, copy the weights; inside it reads them where they are, mixed on the way for
points between two populations, and the inputs, which all programs share, stay in the caches. Partial sums of the
programs are added outside, in a fixed order: results repeat to the bit. Not measured on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.forward.forward import ACTIVATIONS, Forward, Layers, Problem
from kernels.similarity.triton_similarity import TYPES

HIDDEN = (16, 32, 64, 128)  # units that programs hold, and so the widest hidden layer
CLASSES = (16, 128)
INNER = 32  # inputs that are read at once
CHUNK = 32  # units that are multiplied at once
FIELDS = 6  # of a layer: where weights begin, from model to model, from unit to unit; biases, from model to model; units
LAUNCH = 2**30  # programs of one launch, which are counted in int32
NUMBERS = {"relu": 0, "tanh": 1, "gelu": 2, "silu": 3}
assert set(NUMBERS) == set(ACTIVATIONS)


def tile(hidden: int, classes: int) -> tuple[dict[str, int], int]:
    """Constants and warps of the program for networks of these widths, the widest hidden layer and the classes."""
    units = next(size for size in HIDDEN if size >= hidden)
    outputs = next(size for size in CLASSES if size >= classes)
    rows, warps = SHAPES[units, outputs]
    return {"ROWS": rows, "UNITS": units, "OUTPUTS": outputs, "INNER": INNER, "CHUNK": CHUNK}, warps


SHAPES = {(units, outputs): (64, 4) for units in HIDDEN for outputs in CLASSES}


def configurations() -> list[tuple[str, dict[str, int | bool], int]]:
    """(type of weights, constants, warps) of every program that can be launched."""
    found: list[tuple[str, dict[str, int | bool], int]] = []
    for kind in TYPES.values():
        for units, outputs in SHAPES:
            constants, warps = tile(units, outputs)
            found += [(kind, {**constants, "MIXED": mixed}, warps) for mixed in (False, True)]
    return found


def unfit(problem: Problem) -> str:
    """Why no program can hold these networks; empty if one can."""
    *hidden, classes = problem.widths
    if problem.layers.weights[0].dtype not in TYPES:
        return f"its weights are {problem.layers.weights[0].dtype}, and sums are float32"
    if not hidden:
        return "a network without hidden layers is a matrix product"
    if max(hidden) > HIDDEN[-1]:
        return f"hidden layers may have up to {HIDDEN[-1]} units, got {max(hidden)}"
    return f"there may be up to {CLASSES[-1]} classes, got {classes}" if classes > CLASSES[-1] else ""


@triton.jit
def _activated(h, activation):  # type: ignore[no-untyped-def]
    """One of four, by number; NaN stays NaN and 0 stays 0, also in units that are only padding."""
    if activation == 0:
        h = tl.where(h < 0, 0.0, h)
    elif activation == 1:
        square = h * h
        series = h * (1.0 + square * (-1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315))))
        small = tl.exp(-2.0 * tl.abs(h))  # never too large
        far = (1.0 - small) / (1.0 + small)
        h = tl.where(square < 0.015625, series, tl.where(h < 0, -far, far))  # no digits lost near 0
    elif activation == 2:
        h = 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))
    else:
        small = tl.exp(-tl.abs(h))
        h = h * tl.where(h < 0, small, 1.0) / (1.0 + small)
    return h


@triton.jit
def _mixed(here, there, mask, alpha, MIXED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Numbers in float32, or what lies between them and the other end's."""
    found = tl.load(here, mask=mask, other=0.0).to(tl.float32)
    if MIXED:
        found = (1.0 - alpha) * found + alpha * tl.load(there, mask=mask, other=0.0).to(tl.float32)
    return found


@triton.jit
def _layer(  # type: ignore[no-untyped-def]
    weights, table, other, others, layer, model, k, fan_in, unit, alpha, FIELDS: tl.constexpr, MIXED: tl.constexpr
):
    """Weights (k, unit) of a model, inputs first, zero outside."""
    line = table + layer * FIELDS
    mask = (k < fan_in)[:, None] & (unit < tl.load(line + 5))[None, :]
    here = weights + tl.load(line) + model * tl.load(line + 1) + unit[None, :] * tl.load(line + 2) + k[:, None]
    there = here
    if MIXED:
        line = others + layer * FIELDS
        there = other + tl.load(line) + model * tl.load(line + 1) + unit[None, :] * tl.load(line + 2) + k[:, None]
    return _mixed(here, there, mask, alpha, MIXED)


@triton.jit
def _bias(  # type: ignore[no-untyped-def]
    weights, table, other, others, layer, model, unit, alpha, FIELDS: tl.constexpr, MIXED: tl.constexpr
):
    """Biases (unit,) of a model, zero outside."""
    line = table + layer * FIELDS
    mask = unit < tl.load(line + 5)
    here = weights + tl.load(line + 3) + model * tl.load(line + 4) + unit
    there = here
    if MIXED:
        line = others + layer * FIELDS
        there = other + tl.load(line + 3) + model * tl.load(line + 4) + unit
    return _mixed(here, there, mask, alpha, MIXED)


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    h, weights, table, other, others, layer, model, first, step, fan_in, unit, alpha, total,
    COUNT: tl.constexpr, FIELDS: tl.constexpr, MIXED: tl.constexpr,
):  # fmt: skip
    """Adds what units first, first + step, ... of the layer below, the columns of h, give to this one."""
    k = first + step * tl.arange(0, COUNT)
    w = _layer(weights, table, other, others, layer, model, k, fan_in, unit, alpha, FIELDS, MIXED)
    return tl.dot(h, w, total, input_precision="tf32x3")


@triton.jit
def _through(  # type: ignore[no-untyped-def]
    h, weights, table, other, others, layer, model, unit, alpha,
    ROWS: tl.constexpr, UNITS: tl.constexpr, OUT: tl.constexpr, CHUNK: tl.constexpr, FIELDS: tl.constexpr,
    MIXED: tl.constexpr,
):  # fmt: skip
    """Activations (ROWS, UNITS) through a layer, (ROWS, OUT): so many units at a time, as operands need room."""
    fan_in = tl.load(table + layer * FIELDS - 1)
    z = tl.zeros((ROWS, OUT), tl.float32)
    z += _bias(weights, table, other, others, layer, model, unit, alpha, FIELDS, MIXED)[None, :]
    if UNITS <= CHUNK:
        z = _product(h, weights, table, other, others, layer, model, 0, 1, fan_in, unit, alpha, z, UNITS, FIELDS, MIXED)
    else:
        HALF: tl.constexpr = UNITS // 2
        even, odd = tl.split(tl.reshape(h, (ROWS, HALF, 2)))
        if HALF <= CHUNK:
            z = _product(even, weights, table, other, others, layer, model, 0, 2, fan_in, unit, alpha, z, HALF, FIELDS, MIXED)
            z = _product(odd, weights, table, other, others, layer, model, 1, 2, fan_in, unit, alpha, z, HALF, FIELDS, MIXED)
        else:
            PART: tl.constexpr = UNITS // 4
            zero, two = tl.split(tl.reshape(even, (ROWS, PART, 2)))
            z = _product(zero, weights, table, other, others, layer, model, 0, 4, fan_in, unit, alpha, z, PART, FIELDS, MIXED)
            z = _product(two, weights, table, other, others, layer, model, 2, 4, fan_in, unit, alpha, z, PART, FIELDS, MIXED)
            one, three = tl.split(tl.reshape(odd, (ROWS, PART, 2)))
            z = _product(one, weights, table, other, others, layer, model, 1, 4, fan_in, unit, alpha, z, PART, FIELDS, MIXED)
            z = _product(three, weights, table, other, others, layer, model, 3, 4, fan_in, unit, alpha, z, PART, FIELDS, MIXED)
    return z


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    x, y, weights, table, other, others, alphas, counted, squared, loss, correct, bits, logits,
    first, samples, inputs, layers, activation, points, tiles, each, wanted, x_row,
    FIELDS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, OUTPUTS: tl.constexpr, INNER: tl.constexpr,
    CHUNK: tl.constexpr, MIXED: tl.constexpr,
):  # fmt: skip
    """Some samples of one model, or of one point between two: sums of loss and right answers, bits, logits."""
    program = first + tl.program_id(0).to(tl.int64)
    part = program % tiles
    network = program // tiles
    model = network // points
    alpha = 0.0
    if MIXED:
        alpha = tl.load(alphas + network % points)
    row = part * ROWS + tl.arange(0, ROWS)
    inside = row < samples
    k = tl.arange(0, INNER)
    unit = tl.arange(0, UNITS)
    column = tl.arange(0, OUTPUTS)
    bias = _bias(weights, table, other, others, 0, model, unit, alpha, FIELDS, MIXED)
    h = tl.zeros((ROWS, UNITS), tl.float32) + bias[None, :]
    for start in range(0, inputs, INNER):
        here = start + k
        seen = tl.load(x + row[:, None] * x_row + here[None, :], mask=inside[:, None] & (here < inputs)[None, :], other=0.0)
        w = _layer(weights, table, other, others, 0, model, here, inputs, unit, alpha, FIELDS, MIXED)
        h = tl.dot(seen, w, h, input_precision="tf32x3")
    for layer in range(1, layers - 1):
        h = _through(
            _activated(h, activation), weights, table, other, others, layer, model, unit, alpha,
            ROWS, UNITS, UNITS, CHUNK, FIELDS, MIXED,
        )  # fmt: skip
    z = _through(
        _activated(h, activation), weights, table, other, others, layers - 1, model, column, alpha,
        ROWS, UNITS, OUTPUTS, CHUNK, FIELDS, MIXED,
    )  # fmt: skip

    classes = tl.load(table + layers * FIELDS - 1).to(tl.int32)
    known = (column < classes)[None, :]
    nan = known & (z != z)
    low = tl.where(known, z, float("-inf"))
    top = tl.max(tl.where(nan, float("inf"), low), axis=1)
    odd = tl.max(nan.to(tl.int32), axis=1)
    best = tl.where(odd[:, None] > 0, nan.to(tl.int32), (low == top[:, None]).to(tl.int32))
    answer = tl.min(tl.where(best > 0, column[None, :], OUTPUTS), axis=1)  # of equal ones the first, as torch
    label = tl.load(y + (model // each) * samples + row, mask=inside, other=0).to(tl.int32)
    hit = column[None, :] == label[:, None]
    picked = tl.sum(tl.where(hit, z, 0.0), axis=1)
    entropy = tl.log(tl.sum(tl.exp(low - top[:, None]), axis=1)) + (top - picked)
    off = tl.where(known, z - tl.where(hit, 1.0, 0.0), 0.0)
    lost = tl.where(tl.load(squared + model) > 0, tl.sum(off * off, axis=1) / classes, entropy)
    counts = row < tl.load(counted + model)
    wrong = (answer != label) & inside
    tl.store(loss + program - first, tl.sum(tl.where(counts, lost, 0.0).to(tl.float64), axis=0))
    tl.store(correct + program - first, tl.sum((counts & (answer == label)).to(tl.int32), axis=0))
    eight = tl.reshape(wrong.to(tl.int32), (ROWS // 8, 8)) << (7 - tl.arange(0, 8))[None, :]
    size = (samples + 7) // 8
    byte = part * (ROWS // 8) + tl.arange(0, ROWS // 8)
    tl.store(bits + network * size + byte, tl.sum(eight, axis=1).to(tl.uint8), mask=byte < size)
    if wanted > 0:
        target = logits + (network * samples + row)[:, None] * classes + column[None, :]
        tl.store(target, z, mask=inside[:, None] & known)


def forward_triton(problem: Problem, logits: bool = False) -> Forward:
    """As `kernels.forward.forward.mlp_forward`, of problems that are not `unfit`."""
    *hidden, classes = problem.widths
    constants, num_warps = tile(max(hidden), classes)
    x = problem.x.float()
    x = x if x.stride(1) == 1 else x.contiguous()
    (samples, inputs), device = x.shape, x.device
    layers = _rows(problem.layers)
    other = layers if problem.other is None else _rows(problem.other)
    points = 1 if problem.alphas is None else len(problem.alphas)
    alphas = torch.zeros(1, device=device) if problem.alphas is None else problem.alphas.contiguous()
    models, tiles = len(layers.weights[0]), triton.cdiv(samples, constants["ROWS"])
    loss = torch.empty(models, points, tiles, dtype=torch.float64, device=device)
    correct = torch.empty(models, points, tiles, dtype=torch.int32, device=device)
    bits = torch.empty(models, points, -(-samples // 8), dtype=torch.uint8, device=device)
    outputs = torch.empty((models, points, samples, classes) if logits else (1,), device=device)
    tables = [_table(one) for one in (layers, other)]
    flags, y, counted = problem.squared.to(torch.int32).contiguous(), problem.y.contiguous(), problem.counted.contiguous()
    for first in range(0, loss.numel(), LAUNCH):
        forward_kernel[(min(LAUNCH, loss.numel() - first),)](
            x, y, layers.weights[0], tables[0], other.weights[0], tables[1], alphas, counted, flags,
            loss.view(-1)[first:], correct.view(-1)[first:], bits, outputs, first, samples, inputs,
            len(layers.weights), NUMBERS[problem.activation], points, tiles, models // len(y), int(logits), x.stride(0),
            FIELDS=FIELDS, **constants, MIXED=problem.alphas is not None, num_warps=num_warps,
        )  # fmt: skip
    found = Forward(loss.sum(2), correct.sum(2), bits, outputs if logits else None)
    if problem.alphas is not None:
        return found
    return Forward(found.loss_sum[:, 0], found.correct[:, 0], bits[:, 0], outputs[:, 0] if logits else None)


def _rows(layers: Layers) -> Layers:
    """The layers as the program reads them: numbers of a unit, and biases of a model, side by side."""
    return Layers(*(tuple(one if one.stride(-1) == 1 else one.contiguous() for one in side) for side in layers))


def _table(layers: Layers) -> Tensor:
    """(layers, FIELDS) int64. Places are counted in numbers from the first weight, wherever that is in memory."""
    base, size = layers.weights[0].data_ptr(), layers.weights[0].element_size()
    lines = [
        ((w.data_ptr() - base) // size, *w.stride()[:2], (b.data_ptr() - base) // size, b.stride(0), w.shape[1])
        for w, b in zip(*layers, strict=True)
    ]
    return torch.tensor(lines, dtype=torch.int64, device=layers.weights[0].device)
