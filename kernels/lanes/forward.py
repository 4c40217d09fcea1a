"""A network forward, for some groups of samples."""

from __future__ import annotations

import numpy as np

from kernels.lanes.network import AVERAGE, CONV
from kernels.lanes.plan import (
    ACROSS,
    ACTIVATION,
    BELOW,
    BELOW_PITCH,
    BIAS,
    BLOCK,
    CHANNELS,
    COLUMNS,
    COUNT,
    FROM,
    HERE,
    KIND,
    OUT_CHANNEL,
    OUT_FIRST,
    OUT_ROW,
    PITCH,
    POOL,
    POSITIONS,
    ROWS,
    STEP,
    STRIPS,
    TAP,
    TEMPORARY,
    TERMS,
    WEIGHT,
    WEIGHT_ROW,
)  # fmt: skip
from kernels.lanes.tiles import gathered, lanes_of, peak, total
from kernels.mlp.pointwise import RELU, activate
from kernels.mlp.tiles import compiled


@compiled
def part(flat: np.ndarray, start: int, count: int) -> np.ndarray:
    """A view. In it loops count from zero, which LLVM must know to make vector code: numba allows negative indices."""
    return flat[start : start + count]


@compiled
def _convolve(
    stage: np.ndarray, strips: np.ndarray, taps: np.ndarray, weights: np.ndarray, source: np.ndarray, below: int,
    scratch: np.ndarray, here: int,
) -> None:  # fmt: skip
    """Convolution and pooling of one group."""
    lane = lanes_of(scratch)
    pool, channels, across = stage[POOL], stage[CHANNELS], stage[ACROSS]
    weight, weight_row, bias, step = stage[WEIGHT], stage[WEIGHT_ROW], stage[BIAS], stage[STEP]
    out_channel, temporary = stage[OUT_CHANNEL], stage[TEMPORARY]
    for row in range(stage[ROWS]):
        out = here + stage[OUT_FIRST] + row * stage[OUT_ROW]
        if pool == 1:
            strip = strips[stage[STRIPS] + row]
            gathered(
                channels, across, weights, weight, weight_row, source, below + strip[FROM], step, taps, strip[TAP],
                strip[TERMS], weights, bias, 1, scratch, out, out_channel, lane,
            )  # fmt: skip
            continue
        for first in range(0, channels, BLOCK):
            block = min(channels - first, BLOCK)
            for line in range(pool):
                strip = strips[stage[STRIPS] + row * pool + line]
                gathered(
                    block, across, weights, weight + first * weight_row, weight_row, source, below + strip[FROM], step,
                    taps, strip[TAP], strip[TERMS], weights, bias + first, 1, scratch, temporary + line * across * lane,
                    pool * across * lane, lane,
                )  # fmt: skip
            for channel in range(block):
                window, to = temporary + channel * pool * across * lane, out + (first + channel) * out_channel
                for column in range(stage[COLUMNS]):
                    peak(
                        pool, scratch, window + column * pool * lane, across * lane, scratch, to + column * lane,
                        scratch, 0,
                    )  # fmt: skip


@compiled
def _average(stage: np.ndarray, source: np.ndarray, below: int, scratch: np.ndarray, here: int) -> None:
    """Means over the positions of each channel, of one group."""
    lane, positions = lanes_of(scratch), stage[POSITIONS]
    share = scratch.dtype.type(positions)
    for channel in range(stage[CHANNELS]):
        mean = here + channel * lane
        total(positions, source, below + channel * positions * lane, scratch, mean)
        for i in range(mean, mean + lane):
            scratch[i] /= share


@compiled
def _rectify(h: np.ndarray) -> None:
    """ReLU without its slopes; NaN passes."""
    zero = h.dtype.type(0)
    for i in range(len(h)):
        x = h[i]
        h[i] = zero if x <= zero else x


@compiled
def forward(
    stages: np.ndarray, strips: np.ndarray, taps: np.ndarray, weights: np.ndarray, inputs: np.ndarray, at: int,
    groups: int, scratch: np.ndarray, slopes: np.ndarray,
) -> None:  # fmt: skip
    """All stages for `groups` groups, whose inputs begin at `at`; `slopes` is room for the outputs of a group."""
    for number in range(len(stages)):
        stage = stages[number]
        source, below = (inputs, at) if number == 0 else (scratch, stage[BELOW])
        here, pitch, lane = stage[HERE], stage[PITCH], lanes_of(scratch)
        if stage[KIND] == CONV:
            for group in range(groups):
                _convolve(
                    stage, strips, taps, weights, source, below + group * stage[BELOW_PITCH], scratch,
                    here + group * pitch,
                )  # fmt: skip
        elif stage[KIND] == AVERAGE:
            for group in range(groups):
                _average(stage, source, below + group * stage[BELOW_PITCH], scratch, here + group * pitch)
        else:
            strip = strips[stage[STRIPS]]
            gathered(
                stage[CHANNELS], groups, weights, stage[WEIGHT], stage[WEIGHT_ROW], source, below, stage[BELOW_PITCH],
                taps, strip[TAP], strip[TERMS], weights, stage[BIAS], 1, scratch, here, lane, pitch,
            )  # fmt: skip
        for group in range(groups):
            h = part(scratch, here + group * pitch, stage[COUNT])
            if stage[ACTIVATION] == RELU:
                _rectify(h)
            elif stage[ACTIVATION] >= 0:
                activate(stage[ACTIVATION], h, part(slopes, 0, stage[COUNT]))
