"""Gradients of one stage, for some groups of samples: summed over samples but for those of different lanes."""

from __future__ import annotations

import numpy as np

from kernels.lanes.backplan import (
    ACROSS,
    BIAS_TAPS,
    BIAS_TERMS,
    CHUNKS,
    CHUNKS_STOP,
    FIRST_ROW,
    FROM,
    INPUT_CHANNEL,
    INPUT_STEP,
    INPUT_STOP,
    INPUT_STRIPS,
    ROW_COUNT,
    ROW_WEIGHTS,
    SPREAD,
    SPREAD_CHANNEL,
    SPREAD_FIRST,
    SPREAD_ROW,
    STRIPS_FROM,
    STRIPS_TO,
    TAP,
    TAP_STEP,
    TAP_WEIGHTS,
    TAPS_ACROSS,
    TERMS,
    TO,
    WEIGHT_STRIPS,
)
from kernels.lanes.network import AVERAGE, CONV
from kernels.lanes.plan import (
    BELOW_PITCH,
    BIAS,
    CHANNELS,
    COLUMNS,
    COUNT,
    HERE,
    KIND,
    OUT_CHANNEL,
    OUT_FIRST,
    OUT_ROW,
    PITCH,
    PLACE,
    POOL,
    POSITIONS,
    SLOPE,
    WEIGHT,
    WEIGHT_ROW,
)
from kernels.lanes.tiles import gathered, outer
from kernels.lanes.vectors import ONE, ZERO, inlined, lanes_of
from kernels.learning import part
from kernels.mlp.tiles import compiled


@compiled
def _spread(
    stage: np.ndarray, back: np.ndarray, chunk: np.ndarray, scratch: np.ndarray, here: int, place: int
) -> None:  # fmt: skip
    """Gradients of pooled rows to where their windows were largest, zeros elsewhere; of one group."""
    lane, pool, columns = lanes_of(scratch), stage[POOL], stage[COLUMNS]
    zero = scratch.dtype.type(0)
    for channel in range(stage[CHANNELS]):
        for row in range(chunk[ROW_COUNT]):
            offset = channel * stage[OUT_CHANNEL] + (chunk[FIRST_ROW] + row) * stage[OUT_ROW] + stage[OUT_FIRST]
            gradient = part(scratch, here + offset, columns * lane)
            to = back[SPREAD] + channel * back[SPREAD_CHANNEL] + row * pool * back[SPREAD_ROW] + back[SPREAD_FIRST]
            if pool == 1:
                line = part(scratch, to, columns * lane)
                for i in range(len(line)):
                    line[i] = gradient[i]
                continue
            first = part(scratch, place + offset, columns * lane)
            for y in range(pool):
                spread = part(scratch, to + y * back[SPREAD_ROW], columns * pool * lane)
                for x in range(pool):
                    number = scratch.dtype.type(y * pool + x)
                    for column in range(columns):
                        for i in range(lane):
                            value = gradient[column * lane + i]
                            spread[(column * pool + x) * lane + i] = (
                                value if first[column * lane + i] == number else zero
                            )


@compiled
def _convolution(
    stage: np.ndarray, back: np.ndarray, strips: np.ndarray, taps: np.ndarray, weights: np.ndarray, source: np.ndarray,
    below: int, scratch: np.ndarray, here: int, place: int, constants: np.ndarray, sums: np.ndarray,
) -> None:  # fmt: skip
    """Gradients of a convolution, of one group."""
    lane = lanes_of(scratch)
    channels, weight_row = stage[CHANNELS], stage[WEIGHT_ROW]
    outer(
        channels, ONE, scratch, here, stage[OUT_CHANNEL], constants, lane, ZERO, taps, back[BIAS_TAPS],
        back[BIAS_TERMS], sums, stage[BIAS] * lane, lane, ZERO,
    )  # fmt: skip
    for number in range(back[CHUNKS], back[CHUNKS_STOP]):
        chunk = strips[number]
        _spread(stage, back, chunk, scratch, here, place)
        for at in range(chunk[STRIPS_FROM], chunk[STRIPS_TO]):
            strip = strips[at]
            outer(
                channels, back[TAPS_ACROSS], scratch, back[SPREAD], back[SPREAD_CHANNEL], source, below + strip[FROM],
                back[TAP_STEP], taps, strip[TAP], strip[TERMS], sums, stage[WEIGHT] * lane + strip[TO],
                weight_row * lane, back[TAP_WEIGHTS],
            )  # fmt: skip
    for at in range(back[INPUT_STRIPS], back[INPUT_STOP]):  # none for the first stage
        strip = strips[at]
        gathered(
            weight_row // back[ROW_WEIGHTS], strip[ACROSS], weights, stage[WEIGHT], back[ROW_WEIGHTS], scratch,
            back[SPREAD] + strip[FROM], lane, taps, strip[TAP], strip[TERMS], constants, ZERO, ZERO, source,
            below + strip[TO], back[INPUT_CHANNEL], back[INPUT_STEP],
        )  # fmt: skip


@inlined
def backward(
    first: bool, stage: np.ndarray, back: np.ndarray, strips: np.ndarray, taps: np.ndarray, weights: np.ndarray,
    source: np.ndarray, below: int, groups: int, scratch: np.ndarray, constants: np.ndarray, sums: np.ndarray,
) -> None:  # fmt: skip
    """Adds the gradients of a stage's weights to `sums`; those of its inputs replace the inputs, but of the first.

    Args:
        constants: a register of zeros and one of ones.
        sums: (size * lanes,), a register for each weight.
    """
    lane, here, pitch = lanes_of(scratch), stage[HERE], stage[PITCH]
    if stage[SLOPE] >= 0:
        for group in range(groups):
            gradient = part(scratch, here + group * pitch, stage[COUNT])
            slope = part(scratch, stage[SLOPE] + group * pitch, stage[COUNT])
            for i in range(len(gradient)):
                gradient[i] *= slope[i]
    if stage[KIND] == CONV:
        for group in range(groups):
            _convolution(
                stage, back, strips, taps, weights, source, below + group * stage[BELOW_PITCH], scratch,
                here + group * pitch, stage[PLACE] + group * pitch, constants, sums,
            )  # fmt: skip
    elif stage[KIND] == AVERAGE:
        share, positions = scratch.dtype.type(stage[POSITIONS]), stage[POSITIONS]
        for group in range(groups):
            for channel in range(stage[CHANNELS]):
                gradient = part(scratch, here + group * pitch + channel * lane, lane)
                to = part(source, below + group * stage[BELOW_PITCH] + channel * positions * lane, positions * lane)
                for i in range(lane):
                    gradient[i] /= share
                for position in range(positions):
                    for i in range(lane):
                        to[position * lane + i] = gradient[i]
    else:
        outputs, inputs = stage[CHANNELS], stage[WEIGHT_ROW]
        outer(
            outputs, ONE, scratch, here, lane, constants, lane, ZERO, taps, back[BIAS_TAPS], groups, sums,
            stage[BIAS] * lane, lane, ZERO,
        )  # fmt: skip
        outer(
            outputs, inputs, scratch, here, lane, source, below, lane, taps, back[WEIGHT_STRIPS], groups, sums,
            stage[WEIGHT] * lane, inputs * lane, lane,
        )  # fmt: skip
        if not first:
            gathered(
                inputs, groups, weights, stage[WEIGHT], ONE, scratch, here, pitch, taps, back[INPUT_STRIPS], outputs,
                constants, ZERO, ZERO, source, below, lane, stage[BELOW_PITCH],
            )  # fmt: skip
