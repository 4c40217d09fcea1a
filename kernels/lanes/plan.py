"""Where everything lies, and which numbers meet: what compiled code reads of a network instead of being written for it.

An activation of a group of samples, one a lane, is [channel][y][x][lane]; if a convolution with padding follows, rows
have borders of zeros. Rows above and below an image are not there: the table of taps is in the order of a kernel's
rows, and a row of outputs uses the part of it that meets the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.lanes.network import CONV, LINEAR, Network, Stage
from kernels.learning import aligned
from kernels.mlp.pointwise import KINDS
from kernels.mlp.tiles import lanes

# Columns of the table of stages; sizes and distances in numbers, of one group of samples.
(
    KIND, ACTIVATION, STREAM, BELOW, BELOW_PITCH, HERE, PITCH, COUNT, CHANNELS, WEIGHT, WEIGHT_ROW, BIAS, STRIPS,
    ROWS, ACROSS, POOL, STEP, OUT_CHANNEL, OUT_ROW, OUT_FIRST, POSITIONS, TEMPORARY, COLUMNS, SLOPE, PLACE,
) = range(25)  # fmt: skip  # a table
# Columns of the table of strips: a row of a convolution's outputs before pooling, or a linear layer.
TAP, TERMS, FROM = range(3)
BLOCK = 8  # channels that are pooled while their rows are in the cache


@dataclass(frozen=True)
class Image:
    """How an activation of one group lies. `border` is left and right of each row."""

    shape: tuple[int, int, int]
    border: int
    lane: int

    @property
    def row(self) -> int:
        return (self.shape[2] + 2 * self.border) * self.lane

    @property
    def channel(self) -> int:
        return self.shape[1] * self.row

    @property
    def count(self) -> int:
        return self.shape[0] * self.channel

    @property
    def pitch(self) -> int:
        """Distance of groups: an odd number of registers, so that groups are not in the same few sets of the cache."""
        return self.count + self.lane * (1 - self.count // self.lane % 2)

    def view(self, flat: np.ndarray) -> np.ndarray:
        """(groups, channels, height, width with borders, lanes) of groups that lie side by side."""
        channels, height, width = self.shape
        shape = (channels, height, width + 2 * self.border, self.lane)
        return flat.reshape(-1, self.pitch)[:, : self.count].reshape(-1, *shape)

    def clear(self, flat: np.ndarray) -> None:
        """Zeros to the borders."""
        if self.border:
            view = self.view(flat)
            view[:, :, :, : self.border] = view[:, :, :, -self.border :] = 0


def images_of(network: Network, lane: int) -> list[Image]:
    """Inputs of each stage, and outputs of the last."""
    images = [Image(s.inputs, s.padding[1] if s.kind == CONV else 0, lane) for s in network.stages]
    for number, stage in enumerate(network.stages[1:], 1):  # a Flatten between them changes no place
        if stage.kind != CONV:
            images[number] = Image(network.stages[number - 1].outputs, 0, lane)
    return [*images, Image(network.stages[-1].outputs, 0, lane)]


@dataclass(frozen=True)
class Plan:
    """The forward pass over up to `groups` groups of samples.

    Args:
        stages: (stages, 25), strips: (strips, 3), taps: flat pairs (offset in the weights, in the inputs); int64.
        places: begin of each image in the scratch; -1 for the inputs of the network, which lie elsewhere.
        size: numbers of scratch.
    """

    network: Network
    groups: int
    images: list[Image]
    stages: np.ndarray
    strips: np.ndarray
    taps: np.ndarray
    places: list[int]
    size: int

    def scratch(self, dtype: Any, fill: float = 0.0) -> np.ndarray:
        """Buffers; what `fill` says stands in them changes no result."""
        out = aligned(self.size, dtype, fill)
        self.clear(out)
        return out

    def clear(self, scratch: np.ndarray) -> None:
        """Zeros to the borders of all images."""
        for image, place in zip(self.images, self.places, strict=True):
            if place >= 0:
                image.clear(scratch[place : place + self.groups * image.pitch])


def plan_of(network: Network, groups: int, dtype: Any, training: bool = False) -> Plan:
    """Where everything lies.

    Args:
        groups: at most so many groups of samples go through the network at once.
        training: with room for slopes and for which number of a window was the largest.
    """
    lane = lanes(dtype)
    images = images_of(network, lane)
    table: list[list[int]] = []
    strips: list[tuple[int, int, int]] = []
    taps: list[tuple[int, int]] = []
    places, size, weight = [-1], 0, 0
    for stage, before, after in zip(network.stages, images[:-1], images[1:], strict=True):
        row = [0] * 25
        row[KIND], row[STREAM], row[POOL] = stage.kind, stage.site, stage.pool
        row[ACTIVATION] = KINDS[stage.activation] if stage.activation else -1
        row[BELOW], row[BELOW_PITCH], row[HERE], row[PITCH] = places[-1], before.pitch, size, after.pitch
        row[COUNT], row[CHANNELS], row[POSITIONS] = after.count, stage.outputs[0], before.channel // lane
        row[WEIGHT], row[WEIGHT_ROW], row[BIAS] = weight, stage.terms, weight + stage.terms * stage.outputs[0]
        row[OUT_CHANNEL], row[OUT_ROW], row[OUT_FIRST] = after.channel, after.row, after.border * lane
        row[STRIPS], row[ROWS], row[COLUMNS] = len(strips), stage.outputs[1], stage.outputs[2]
        row[ACROSS], row[STEP] = stage.outputs[2] * stage.pool, stage.stride[1] * lane
        places.append(size)
        size, weight = size + groups * after.pitch, weight + stage.size
        row[SLOPE], row[PLACE] = -1, -1
        if training and (stage.activation or stage.site >= 0):
            row[SLOPE], size = size, size + groups * after.pitch
        if training and stage.pool > 1:
            row[PLACE], size = size, size + groups * after.pitch
        row[TEMPORARY] = size
        if stage.pool > 1:
            size += min(BLOCK, stage.outputs[0]) * stage.pool * row[ACROSS] * lane
        if stage.kind == CONV:
            strips += _rows(stage, before, len(taps))
            taps += _kernel(stage, before)
        elif stage.kind == LINEAR:
            strips.append((2 * len(taps), stage.terms, 0))
            taps += [(n, n * lane) for n in range(stage.terms)]
        table.append(row)
    arrays = [np.array(rows, np.int64).reshape(-1, width) for rows, width in ((table, 25), (strips, 3), (taps, 2))]
    return Plan(network, groups, images, arrays[0], arrays[1], arrays[2].reshape(-1), places, size)


def _kernel(stage: Stage, before: Image) -> list[tuple[int, int]]:
    """Taps of a convolution, the rows of the kernel outermost."""
    (high, wide), channels = stage.kernel, stage.inputs[0]
    return [
        ((c * high + y) * wide + x, c * before.channel + y * before.row + x * before.lane)
        for y in range(high) for c in range(channels) for x in range(wide)
    ]  # fmt: skip


def _rows(stage: Stage, before: Image, first: int) -> list[tuple[int, int, int]]:
    """Strips of a convolution, those rows of outputs that reach behind the pooling."""
    high, each, strips = stage.kernel[0], stage.inputs[0] * stage.kernel[1], []
    for row in range(stage.outputs[1] * stage.pool):
        top = row * stage.stride[0] - stage.padding[0]
        low, stop = max(-top, 0), max(min(high, stage.inputs[1] - top), max(-top, 0))
        strips.append((2 * (first + low * each), (stop - low) * each, top * before.row))
    return strips
