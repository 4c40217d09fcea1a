"""The tables of the backward pass: which gradients meet which inputs and weights.

The gradient of a stage's outputs stands where the outputs stood. That of a pooled or padded convolution is spread out
first: [channel][y][x][lane] before the pooling, with borders of zeros as wide as the kernel reaches beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.lanes.network import CONV, LINEAR, Stage
from kernels.lanes.plan import Image, Plan
from kernels.mlp.tiles import lanes

# Columns of the table of stages.
(
    CHUNKS, CHUNKS_STOP, WEIGHT_STRIPS, WEIGHT_STOP, INPUT_STRIPS, INPUT_STOP, SPREAD, SPREAD_CHANNEL, SPREAD_ROW,
    SPREAD_FIRST, BIAS_TAPS, BIAS_TERMS, TAPS_ACROSS, TAP_STEP, TAP_WEIGHTS, INPUT_CHANNEL, INPUT_STEP, ROW_WEIGHTS,
) = range(18)  # fmt: skip  # a table
# Columns of the table of strips: of chunks (rows of outputs that are spread at once), of weights and of inputs.
FIRST_ROW, ROW_COUNT, STRIPS_FROM, STRIPS_TO = range(4)
TAP, TERMS, FROM, TO, ACROSS = range(5)
POSITIONS = 48  # spread at once, if no gradient of the inputs needs them all


@dataclass(frozen=True)
class Backplan:
    """The backward pass that goes with a plan.

    Args:
        stages: (stages, 18), strips: (strips, 5), taps: flat pairs, int64. size: numbers of scratch, the plan's too.
        spread: (place, image) of each spread gradient, whose borders hold zeros from the start.
    """

    stages: np.ndarray
    strips: np.ndarray
    taps: np.ndarray
    size: int
    spread: list[tuple[int, Image]]


class _Tables:
    """Strips and taps while they are made."""

    def __init__(self) -> None:
        self.strips: list[tuple[int, int, int, int, int]] = []
        self.taps: list[tuple[int, int]] = []

    def add(self, taps: list[tuple[int, int]]) -> int:
        """Where in the flat table of pairs these begin."""
        self.taps += taps
        return 2 * (len(self.taps) - len(taps))


def backplan_of(plan: Plan, dtype: Any) -> Backplan:
    """Tables for the stages of a plan, whose first stage needs no gradient of its inputs."""
    lane, tables, size = lanes(dtype), _Tables(), plan.size
    rows, spread = [], []
    for number, stage in enumerate(plan.network.stages):
        before, after = plan.images[number : number + 2]
        row = [0] * 18
        places = [
            (y * after.row + (after.border + x) * lane, 0)
            for y in range(stage.outputs[1]) for x in range(stage.outputs[2])
        ]  # fmt: skip
        if stage.kind == CONV:
            row[BIAS_TAPS], row[BIAS_TERMS] = tables.add(places), len(places)
            image, high = _spread(stage, number > 0, lane)
            row[SPREAD], row[SPREAD_CHANNEL], row[SPREAD_ROW] = size, image.channel, image.row
            row[SPREAD_FIRST] = image.border * lane
            spread.append((size, image))
            size += image.pitch
            _weights(stage, before, image, high, row, tables)
            row[INPUT_STRIPS] = len(tables.strips)
            if number > 0:
                _inputs(stage, before, image, tables)
            row[INPUT_STOP] = len(tables.strips)
            row[INPUT_CHANNEL], row[INPUT_STEP] = before.channel, stage.stride[1] * lane
            row[ROW_WEIGHTS] = stage.kernel[0] * stage.kernel[1]
        elif stage.kind == LINEAR:
            row[WEIGHT_STRIPS] = tables.add([(g * after.pitch, g * before.pitch) for g in range(plan.groups)])
            row[BIAS_TAPS] = tables.add([(g * after.pitch, 0) for g in range(plan.groups)])
            row[INPUT_STRIPS] = tables.add([(o * stage.terms, o * lane) for o in range(stage.outputs[0])])
        rows.append(row)
    strips = np.array(tables.strips, np.int64).reshape(-1, 5)
    taps = np.array(tables.taps, np.int64).reshape(-1)
    return Backplan(np.array(rows, np.int64), strips, taps, size, spread)


def _spread(stage: Stage, whole: bool, lane: int) -> tuple[Image, int]:
    """The spread gradient, and how many rows of outputs it holds at once: all if it is needed as a `whole`."""
    channels, height, width = stage.outputs
    across = width * stage.pool
    high = height if whole else min(max(POSITIONS // (across * stage.pool), 1), height)
    border = 0
    if whole:
        (_, kernel), (_, step), (_, pad) = stage.kernel, stage.stride, stage.padding
        furthest = (stage.inputs[2] - 1 + pad) // step  # the last position of outputs that an input would reach
        border = max((kernel - 1) // step + 1, furthest - across + 1)
    return Image((channels, high * stage.pool, across), border, lane), high


def _weights(stage: Stage, before: Image, image: Image, high: int, row: list[int], tables: _Tables) -> None:
    """Chunks of rows, and for each the strips of weights: sums over positions of gradient times input.

    The columns of a tile are the inputs' channels if there are some, else neighbours in the kernel.
    """
    (tall, wide), lane, channels = stage.kernel, before.lane, stage.inputs[0]
    by_channel = channels >= wide
    row[TAPS_ACROSS] = channels if by_channel else wide
    row[TAP_STEP] = before.channel if by_channel else lane
    row[TAP_WEIGHTS] = (tall * wide if by_channel else 1) * lane
    chunks = []
    for first in range(0, stage.outputs[1], high):
        count = min(high, stage.outputs[1] - first)
        lines = range(first * stage.pool, (first + count) * stage.pool)
        begin = tables.add(
            [
                (
                    (line - lines.start) * image.row + (image.border + x) * lane,
                    (line * stage.stride[0] - stage.padding[0]) * before.row + x * stage.stride[1] * lane,
                )
                for line in lines
                for x in range(image.shape[2])
            ]
        )
        start = len(tables.strips)
        for y in range(tall):
            tops = [line * stage.stride[0] - stage.padding[0] + y for line in lines]
            inside = [number for number, top in enumerate(tops) if 0 <= top < stage.inputs[1]]
            if not inside:
                continue
            tap, terms = begin + 2 * inside[0] * image.shape[2], len(inside) * image.shape[2]
            for c in range(1 if by_channel else channels):
                for x in range(wide if by_channel else 1):
                    place = (c * tall + y) * wide + x
                    offset = c * before.channel + y * before.row + x * lane
                    tables.strips.append((tap, terms, offset, place * lane, 0))
        chunks.append((first, count, start, len(tables.strips), 0))
    row[CHUNKS], row[CHUNKS_STOP] = len(tables.strips), len(tables.strips) + len(chunks)
    tables.strips += chunks


def _inputs(stage: Stage, before: Image, image: Image, tables: _Tables) -> None:
    """Strips of inputs: every stride-th of a row, each the sum over outputs and kernel of weight times gradient."""
    (tall, wide), (down, across), (top, left) = stage.kernel, stage.stride, stage.padding
    lane, (_, height, width) = before.lane, stage.inputs
    for py in range(down):
        for px in range(across):
            ys = [y for y in range(tall) if (py + top - y) % down == 0]
            xs = [x for x in range(wide) if (px + left - x) % across == 0]
            each = stage.outputs[0] * len(xs)
            begin = tables.add(
                [
                    (
                        o * stage.terms + y * wide + x,
                        o * image.channel + (py + top - y) // down * image.row + (px + left - x) // across * lane,
                    )
                    for y in ys
                    for o in range(stage.outputs[0])
                    for x in xs
                ]
            )
            for row in range(py, height, down):
                lines = [(row + top - y) // down for y in ys]
                inside = [number for number, line in enumerate(lines) if 0 <= line < image.shape[1]]
                tap = begin + 2 * inside[0] * each if inside else begin
                at = (row // down) * image.row + image.border * lane
                to = row * before.row + (before.border + px) * lane
                count = len(range(px, width, across))
                if count:
                    tables.strips.append((tap, len(inside) * each, at, to, count))
