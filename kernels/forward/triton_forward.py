"""Dense networks on a GPU: one program takes some samples through all layers of one network, on chip from end to end.

The first layer is inside as well. As one product over all networks it would write and read (samples, models * units)
activations and, for views into flat vectors, copy the weights; inside it reads them where they are, mixed on the way
for points between two populations, and the inputs, which all programs share, stay in the caches. Products are sums of
three TF32 products, which keep 22 bits of each factor (3xTF32, NVIDIA CUTLASS, example 27): those of float32 on plain
cores need their operands in registers and, compiled for sm_90, spill them from 64 units on. Partial sums of the
programs are added outside, in a fixed order: results repeat to the bit. Not measured on a GPU yet.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.forward.forward import Forward, Layers, Problem

SHAPES = {16: (64, 4), 32: (64, 4), 64: (64, 8), 128: (32, 16)}  # units -> samples of a program, and its warps
MIXED_UP_TO = 64  # units between two populations: of 128 the second weights would not fit into registers
CLASSES = 16  # that programs hold
INNER, CHUNK = 16, 32  # inputs, and units of a layer below, that are multiplied at once
LAUNCH = 2**30  # programs of one launch, which are counted in int32
NUMBERS = {"relu": 0, "tanh": 1, "gelu": 2, "silu": 3}
# Of a layer in the table: where weights begin, steps from model to model and from unit to unit, where biases begin, the
# step from model to model, and units.
FIELDS = tl.constexpr(6)


def tile(hidden: int) -> tuple[dict[str, int], int]:
    """Constants and warps of the program for networks whose widest hidden layer has so many units."""
    units = next(size for size in SHAPES if size >= hidden)
    rows, warps = SHAPES[units]
    return {"ROWS": rows, "UNITS": units, "OUTPUTS": CLASSES, "INNER": INNER, "CHUNK": CHUNK}, warps


def configurations() -> list[tuple[str, dict[str, int | bool], int]]:
    """(type of weights, constants, warps) of every program that can be launched."""
    pairs = [(units, mixed) for units in SHAPES for mixed in (False, True) if not mixed or units <= MIXED_UP_TO]
    return [("fp32", {**tile(units)[0], "MIXED": mixed}, tile(units)[1]) for units, mixed in pairs]


def unfit(problem: Problem) -> str:
    """Why no program can hold these networks; empty if one can."""
    *hidden, classes = problem.widths
    most = max(SHAPES) if problem.alphas is None else MIXED_UP_TO
    if problem.layers.weights[0].dtype == torch.float64:
        return "its weights are float64, and programs sum in float32"
    if not hidden:
        return "a network without hidden layers is a matrix product"
    if max(hidden) > most:
        return f"hidden layers may have up to {most} units, got {max(hidden)}"
    return f"there may be up to {CLASSES} classes, got {classes}" if classes > CLASSES else ""


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
def _weights(weights, table, ends, layer, model, k, fan_in, unit, alpha, MIXED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a layer, (k, unit), zero outside; between two populations those of the second are `ends` layers behind."""
    line = table + layer * FIELDS
    inside = (k < fan_in)[:, None] & (unit < tl.load(line + 5))[None, :]
    at = tl.load(line) + model * tl.load(line + 1) + unit[None, :] * tl.load(line + 2) + k[:, None]
    found = tl.load(weights + at, mask=inside, other=0.0)
    if MIXED:
        line += ends * FIELDS
        at = tl.load(line) + model * tl.load(line + 1) + unit[None, :] * tl.load(line + 2) + k[:, None]
        found = (1.0 - alpha) * found + alpha * tl.load(weights + at, mask=inside, other=0.0)
    return found


@triton.jit
def _biases(weights, table, ends, layer, model, unit, alpha, MIXED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a layer, (unit,), zero outside."""
    line = table + layer * FIELDS
    inside = unit < tl.load(line + 5)
    found = tl.load(weights + tl.load(line + 3) + model * tl.load(line + 4) + unit, mask=inside, other=0.0)
    if MIXED:
        line += ends * FIELDS
        there = tl.load(weights + tl.load(line + 3) + model * tl.load(line + 4) + unit, mask=inside, other=0.0)
        found = (1.0 - alpha) * found + alpha * there
    return found


@triton.jit
def _part(  # type: ignore[no-untyped-def]
    total, h, first, weights, table, ends, layer, model, unit, alpha,
    STEP: tl.constexpr, COUNT: tl.constexpr, MIXED: tl.constexpr,
):  # fmt: skip
    """Adds what units first, first + STEP, ... of the layer below, the columns of h, give to this one."""
    k = first + STEP * tl.arange(0, COUNT)
    fan_in = tl.load(table + layer * FIELDS - 1)
    w = _weights(weights, table, ends, layer, model, k, fan_in, unit, alpha, MIXED)
    return tl.dot(h, w, total, input_precision="tf32x3")


@triton.jit
def _through(  # type: ignore[no-untyped-def]
    h, weights, table, ends, layer, model, unit, alpha,
    ROWS: tl.constexpr, UNITS: tl.constexpr, OUT: tl.constexpr, CHUNK: tl.constexpr, MIXED: tl.constexpr,
):  # fmt: skip
    """Activations (ROWS, UNITS) through a layer, (ROWS, OUT): CHUNK units at a time, as operands need room."""
    z = tl.zeros((ROWS, OUT), tl.float32) + _biases(weights, table, ends, layer, model, unit, alpha, MIXED)[None, :]
    if UNITS <= CHUNK:
        z = _part(z, h, 0, weights, table, ends, layer, model, unit, alpha, 1, UNITS, MIXED)
    else:
        even, odd = tl.split(tl.reshape(h, (ROWS, UNITS // 2, 2)))
        if UNITS <= 2 * CHUNK:
            z = _part(z, even, 0, weights, table, ends, layer, model, unit, alpha, 2, UNITS // 2, MIXED)
            z = _part(z, odd, 1, weights, table, ends, layer, model, unit, alpha, 2, UNITS // 2, MIXED)
        else:
            zero, two = tl.split(tl.reshape(even, (ROWS, UNITS // 4, 2)))
            z = _part(z, zero, 0, weights, table, ends, layer, model, unit, alpha, 4, UNITS // 4, MIXED)
            z = _part(z, two, 2, weights, table, ends, layer, model, unit, alpha, 4, UNITS // 4, MIXED)
            one, three = tl.split(tl.reshape(odd, (ROWS, UNITS // 4, 2)))
            z = _part(z, one, 1, weights, table, ends, layer, model, unit, alpha, 4, UNITS // 4, MIXED)
            z = _part(z, three, 3, weights, table, ends, layer, model, unit, alpha, 4, UNITS // 4, MIXED)
    return z


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    x, y, weights, table, alphas, counted, squared, loss, correct, bits, logits,
    first, samples, inputs, layers, activation, points, tiles, each, wanted, x_row,
    ROWS: tl.constexpr, UNITS: tl.constexpr, OUTPUTS: tl.constexpr, INNER: tl.constexpr, CHUNK: tl.constexpr,
    MIXED: tl.constexpr,
):  # fmt: skip
    """Some samples of one model, or of one point between two: sums of loss and right answers, bits, logits."""
    program = tl.program_id(0).to(tl.int64)
    part = (first + program) % tiles
    network = (first + program) // tiles
    model = network // points
    alpha = 0.0
    if MIXED:
        alpha = tl.load(alphas + network % points)
    row = part * ROWS + tl.arange(0, ROWS)
    inside = row < samples
    unit = tl.arange(0, UNITS)
    column = tl.arange(0, OUTPUTS)
    h = tl.zeros((ROWS, UNITS), tl.float32) + _biases(weights, table, layers, 0, model, unit, alpha, MIXED)[None, :]
    for start in range(0, inputs, INNER):
        k = start + tl.arange(0, INNER)
        seen = tl.load(x + row[:, None] * x_row + k[None, :], mask=inside[:, None] & (k < inputs)[None, :], other=0.0)
        w = _weights(weights, table, layers, 0, model, k, inputs, unit, alpha, MIXED)
        h = tl.dot(seen, w, h, input_precision="tf32x3")
    for layer in range(1, layers - 1):
        h = _activated(h, activation)
        h = _through(h, weights, table, layers, layer, model, unit, alpha, ROWS, UNITS, UNITS, CHUNK, MIXED)
    h = _activated(h, activation)
    z = _through(h, weights, table, layers, layers - 1, model, column, alpha, ROWS, UNITS, OUTPUTS, CHUNK, MIXED)

    classes = tl.load(table + layers * FIELDS - 1).to(tl.int32)
    known = (column < classes)[None, :]
    nan = known & (z != z)
    low = tl.where(known, z, float("-inf"))
    top = tl.max(tl.where(nan, float("inf"), low), axis=1)
    odd = tl.max(nan.to(tl.int32), axis=1)
    best = tl.where(odd[:, None] > 0, nan.to(tl.int32), (low == top[:, None]).to(tl.int32))
    answer = tl.min(tl.where(best > 0, column[None, :], OUTPUTS), axis=1)  # of equal ones, or of NaN, the first
    label = tl.load(y + (model // each) * samples + row, mask=inside, other=0).to(tl.int32)
    hit = column[None, :] == label[:, None]
    picked = tl.sum(tl.where(hit, z, 0.0), axis=1)
    entropy = tl.log(tl.sum(tl.exp(low - top[:, None]), axis=1)) + (top - picked)
    off = tl.where(known, z - tl.where(hit, 1.0, 0.0), 0.0)
    lost = tl.where(tl.load(squared + model) > 0, tl.sum(off * off, axis=1) / classes, entropy)
    counts = row < tl.load(counted + model)
    tl.store(loss + program, tl.sum(tl.where(counts, lost, 0.0).to(tl.float64), axis=0))
    tl.store(correct + program, tl.sum((counts & (answer == label)).to(tl.int32), axis=0))
    wrong = ((answer != label) & inside).to(tl.int32)
    eight = tl.reshape(wrong, (ROWS // 8, 8)) << (7 - tl.arange(0, 8))[None, :]
    size = (samples + 7) // 8
    byte = part * (ROWS // 8) + tl.arange(0, ROWS // 8)
    tl.store(bits + network * size + byte, tl.sum(eight, axis=1).to(tl.uint8), mask=byte < size)
    if wanted > 0:
        target = logits + (network * samples + row)[:, None] * classes + column[None, :]
        tl.store(target, z, mask=inside[:, None] & known)


def forward_triton(problem: Problem, logits: bool = False) -> Forward:
    """As `kernels.forward.forward.mlp_forward`, of problems that are not `unfit`."""
    *hidden, classes = problem.widths
    constants, num_warps = tile(max(hidden))
    x, ends = _in_rows(problem.x), [_readable(one) for one in (problem.layers, problem.other) if one is not None]
    (samples, inputs), device = x.shape, x.device
    models, tiles = len(problem.counted), triton.cdiv(samples, constants["ROWS"])
    points = 1 if problem.alphas is None else len(problem.alphas)
    alphas = torch.zeros(1, device=device) if problem.alphas is None else problem.alphas.contiguous()
    loss = torch.empty(models, points, tiles, dtype=torch.float64, device=device)
    correct = torch.empty(models, points, tiles, dtype=torch.int32, device=device)
    bits = torch.empty(models, points, -(-samples // 8), dtype=torch.uint8, device=device)
    outputs = torch.empty((models, points, samples, classes) if logits else (1,), device=device)
    table, squared = _table(ends), problem.squared.to(torch.int32).contiguous()
    for first in range(0, loss.numel(), LAUNCH):
        forward_kernel[(min(LAUNCH, loss.numel() - first),)](
            x, problem.y.contiguous(), ends[0].weights[0], table, alphas, problem.counted.contiguous(), squared,
            loss.view(-1)[first:], correct.view(-1)[first:], bits, outputs, first, samples, inputs,
            len(problem.widths), NUMBERS[problem.activation], points, tiles, models // len(problem.y), int(logits),
            x.stride(0), **constants, MIXED=len(ends) > 1, num_warps=num_warps,
        )  # fmt: skip
    found = loss.sum(2), correct.sum(2), bits, outputs if logits else None
    if problem.alphas is not None:
        return Forward(*found)
    return Forward(*(None if one is None else one[:, 0] for one in found))  # type: ignore[arg-type]


def _in_rows(values: Any) -> Any:
    """In float32, which holds the types of 16 bits exactly, and numbers of the last axis side by side."""
    wide = values.float()
    return wide if wide.stride(-1) == 1 else wide.contiguous()


def _readable(layers: Layers) -> Layers:
    """The layers as the program reads them."""
    return Layers(*(tuple(_in_rows(one) for one in side) for side in layers))


def _table(ends: list[Layers]) -> Tensor:
    """(ends * layers, FIELDS) int64. Places are counted in numbers from the first weight, wherever they are."""
    base = ends[0].weights[0].data_ptr()
    lines = [
        ((w.data_ptr() - base) // 4, *w.stride()[:2], (b.data_ptr() - base) // 4, b.stride(0), w.shape[1])
        for layers in ends
        for w, b in zip(*layers, strict=True)
    ]
    return torch.tensor(lines, dtype=torch.int64, device=ends[0].weights[0].device)
