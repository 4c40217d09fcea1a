"""What a batch draws: its samples, into lanes, and its dropout masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.lanes.plan import CHANNELS, COLUMNS, HERE, OUT_CHANNEL, OUT_FIRST, OUT_ROW, ROWS, SLOPE
from kernels.lanes.vectors import lanes_of
from kernels.learning import part
from kernels.mlp.pointwise import philox
from kernels.mlp.tiles import compiled


@compiled
def gather(inputs: np.ndarray, samples: np.ndarray, image: np.ndarray, out: np.ndarray, at: int) -> None:
    """Samples to the lanes of a group that begins at `at`.

    Args:
        inputs: flat, (samples, channels, height, width). samples: (lanes,), which. image: channels, height, width,
            then the distances of channels and rows in `out` and the width of a border, in numbers.
    """
    lane = lanes_of(out)
    channels, height, width = image[0], image[1], image[2]
    features = channels * height * width
    for channel in range(channels):
        for row in range(height):
            to = part(out, at + channel * image[3] + row * image[4] + image[5], width * lane)
            begin = (channel * height + row) * width
            for i in range(lane):
                line = part(inputs, samples[i] * features + begin, width)
                for column in range(width):
                    to[column * lane + i] = line[column]


@compiled
def drop(
    key: Any, site: int, step: int, threshold: int, kept: Any, first: int, batch: int, stage: np.ndarray,
    scratch: np.ndarray, at: int,
) -> None:  # fmt: skip
    """Multiplies outputs and slopes of a group by the dropout mask of a step: 0, or `kept` where the word reaches it.

    Args:
        first: place in the batch of the group's first sample; places behind the batch have the mask of place 0.
        at: where the group begins, behind that of the first group.

    A feature's number is its place in the flattened (channels, height, width), see `kernels.random.keep_mask`.
    """
    lane = lanes_of(scratch)
    zero, least = scratch.dtype.type(0), np.uint64(threshold)
    masks = np.empty((4, lane), scratch.dtype)
    feature = 0
    for channel in range(stage[CHANNELS]):
        for row in range(stage[ROWS]):
            place = at + stage[OUT_FIRST] + channel * stage[OUT_CHANNEL] + row * stage[OUT_ROW]
            for column in range(stage[COLUMNS]):
                if feature & 3 == 0:
                    for i in range(lane):
                        sample = first + i if first + i < batch else 0
                        w0, w1, w2, w3 = philox(
                            np.uint64(feature >> 2), np.uint64(site), np.uint64(step), np.uint64(sample), key
                        )
                        masks[0, i] = kept if w0 >= least else zero
                        masks[1, i] = kept if w1 >= least else zero
                        masks[2, i] = kept if w2 >= least else zero
                        masks[3, i] = kept if w3 >= least else zero
                mask = masks[feature & 3]
                h = part(scratch, stage[HERE] + place + column * lane, lane)
                slope = part(scratch, stage[SLOPE] + place + column * lane, lane)
                for i in range(lane):
                    h[i] *= mask[i]
                    slope[i] *= mask[i]
                feature += 1
