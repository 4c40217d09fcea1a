"""A network forward, for some groups of samples."""

from __future__ import annotations

import numpy as np

from kernels.lanes.network import AVERAGE, CONV, LINEAR
from kernels.lanes.plan import (
    ACROSS,
    ACTIVATION,
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
    PLACE,
    POOL,
    POSITIONS,
    ROWS,
    SLOPE,
    STEP,
    STRIPS,
    TAP,
    TEMPORARY,
    TERMS,
    WEIGHT,
    WEIGHT_ROW,
)  # fmt: skip
from kernels.lanes.registers import peak, peak_and_place, total
from kernels.lanes.tiles import gathered
from kernels.lanes.vectors import ONE, inlined, lanes_of
from kernels.learning import part
from kernels.mlp.pointwise import RELU, activate
from kernels.mlp.tiles import compiled


@compiled
def _convolve(
    stage: np.ndarray, strips: np.ndarray, taps: np.ndarray, weights: np.ndarray, source: np.ndarray, below: int,
    scratch: np.ndarray, here: int, place: int,
) -> None:  # fmt: skip
    """Convolution and pooling of one group; which of a window was the largest goes to `place`, -1 for nowhere."""
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
                strip[TERMS], weights, bias, ONE, scratch, out, out_channel, lane,
            )  # fmt: skip
            continue
        for first in range(0, channels, BLOCK):
            block = min(channels - first, BLOCK)
            for line in range(pool):
                strip = strips[stage[STRIPS] + row * pool + line]
                gathered(
                    block, across, weights, weight + first * weight_row, weight_row, source, below + strip[FROM], step,
                    taps, strip[TAP], strip[TERMS], weights, bias + first, ONE, scratch,
                    temporary + line * across * lane, pool * across * lane, lane,
                )  # fmt: skip
            for channel in range(block):
                window, to = temporary + channel * pool * across * lane, out + (first + channel) * out_channel
                for column in range(stage[COLUMNS]):
                    x, y = window + column * pool * lane, to + column * lane
                    if place >= 0:
                        peak_and_place(pool, scratch, x, across * lane, scratch, y, scratch, place - here + y)
                    else:
                        peak(pool, scratch, x, across * lane, scratch, y, scratch, 0)


@inlined
def _average(stage: np.ndarray, source: np.ndarray, below: int, scratch: np.ndarray, here: int) -> None:
    """Means over the positions of each channel, of one group."""
    lane, positions = lanes_of(scratch), stage[POSITIONS]
    share = scratch.dtype.type(positions)
    for channel in range(stage[CHANNELS]):
        mean = here + channel * lane
        total(positions, source, below + channel * positions * lane, scratch, mean)
        for i in range(mean, mean + lane):
            scratch[i] /= share


@inlined
def _rectify(h: np.ndarray) -> None:
    """ReLU without its slopes; NaN passes."""
    zero = h.dtype.type(0)
    for i in range(len(h)):
        x = h[i]
        h[i] = zero if x <= zero else x


@inlined
def forward(
    stage: np.ndarray, strips: np.ndarray, taps: np.ndarray, weights: np.ndarray, source: np.ndarray, below: int,
    groups: int, scratch: np.ndarray, slopes: np.ndarray,
) -> None:  # fmt: skip
    """One stage for `groups` groups, whose inputs begin at `below` in `source`; without its dropout.

    In training slopes lie where the plan says; else `slopes` is room for those of a group, which nobody reads.
    """
    here, pitch, lane, slope = stage[HERE], stage[PITCH], lanes_of(scratch), stage[SLOPE]
    if stage[KIND] == LINEAR:
        strip = strips[stage[STRIPS]]
        gathered(
            stage[CHANNELS], groups, weights, stage[WEIGHT], stage[WEIGHT_ROW], source, below, stage[BELOW_PITCH],
            taps, strip[TAP], strip[TERMS], weights, stage[BIAS], ONE, scratch, here, lane, pitch,
        )  # fmt: skip
    for group in range(groups):
        start, at = below + group * stage[BELOW_PITCH], here + group * pitch
        if stage[KIND] == CONV:
            place = stage[PLACE] + group * pitch if stage[PLACE] >= 0 else -1
            _convolve(stage, strips, taps, weights, source, start, scratch, at, place)
        elif stage[KIND] == AVERAGE:
            _average(stage, source, start, scratch, at)
        h = part(scratch, at, stage[COUNT])
        if slope >= 0:
            of_h = part(scratch, slope + group * pitch, stage[COUNT])
            if stage[ACTIVATION] >= 0:
                activate(stage[ACTIVATION], h, of_h)
            else:
                of_h[:] = h.dtype.type(1)
        elif stage[ACTIVATION] == RELU:
            _rectify(h)
        elif stage[ACTIVATION] >= 0:
            activate(stage[ACTIVATION], h, part(slopes, 0, stage[COUNT]))
