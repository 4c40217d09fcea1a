"""Which samples a run sees at which step: a function of the run alone, so that companions in a group change nothing.

A batch is worked off in micro-batches, so that runs of different batch size share a group: each update uses the exact
mean gradient of its batch. The size of the micro-batch follows from the run's own batch size, not from its companions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from kernels.random import permutation

SITE = 2  # of the random streams; its step is the epoch
SIZES = (256, 64, 16, 4)


def micro_batch(batch_size: int, whole: bool = False) -> int:
    """Samples a micro-batch, for runs of this batch size; `whole` (BatchNorm) never splits a batch.

    Powers of two share a few sizes, of which the largest bounds the memory; a batch size that would waste more than
    1/16 on padding is its own micro-batch.

    >>> [micro_batch(size) for size in (4, 8, 16, 32, 100, 128, 512, 17, 10_000)]
    [4, 4, 16, 16, 100, 64, 256, 17, 256]
    """
    for size in () if whole else SIZES:
        most = 8 * size if size < SIZES[0] else batch_size
        if size <= batch_size <= most and -(-batch_size // size) * size * 16 <= 17 * batch_size:
            return size
    return batch_size


@dataclass(frozen=True)
class Batches:
    """The batches of a group of runs that share a micro-batch size.

    An epoch is one shuffled pass in floor(samples / batch) updates; what does not fill a batch is left out until the
    next shuffle.

    Args:
        keys: (runs,) uint64.
        batch_size: (runs,) int64.
        samples: (runs,) int64, training samples each run uses: the first ones of the training split.
        micro: samples a micro-batch.
    """

    keys: np.ndarray
    batch_size: np.ndarray
    samples: np.ndarray
    micro: int
    _last: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def splits(self) -> np.ndarray:
        """(runs,) micro-batches an update."""
        return -(-self.batch_size // self.micro)

    @cached_property
    def updates(self) -> np.ndarray:
        """(runs,) updates an epoch."""
        return self.samples // self.batch_size

    def select(self, runs: np.ndarray) -> Batches:
        """Those of some runs, by index or mask."""
        return Batches(self.keys[runs], self.batch_size[runs], self.samples[runs], self.micro)

    def block(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Micro-batches start..stop of every run, counted from the run's beginning.

        Returns:
            index (steps, runs, micro) int64, sample numbers; the batch's first sample where it is padded;
            position (steps, runs, micro) int64, place in the batch, -1 where a micro-batch is padded;
            update (steps, runs) int64, which update each micro-batch belongs to.
        """
        time = np.arange(start, stop)[:, None]
        update, part = np.divmod(time, self.splits)
        epoch, number = np.divmod(update, self.updates)
        place = part[..., None] * self.micro + np.arange(self.micro)
        valid = place < self.batch_size[:, None]
        within = number[..., None] * self.batch_size[:, None] + np.where(valid, place, 0)
        index = np.empty_like(within)
        for samples in np.unique(self.samples).tolist():  # apart, so that short epochs draw no long orders
            runs = np.flatnonzero(self.samples == samples)
            first = epoch[0, runs]
            orders = self._orders(samples, runs, first, int((epoch[-1, runs] - first).max()) + 1)
            row = np.arange(len(runs))[None, :, None]
            index[:, runs] = orders[row, (epoch[:, runs] - first)[..., None], within[:, runs]]
        return index, np.where(valid, place, -1), np.broadcast_to(update, (stop - start, len(self.keys)))

    def _orders(self, samples: int, runs: np.ndarray, first: np.ndarray, count: int) -> np.ndarray:
        """Shuffles of epochs first..first+count of these runs, which are all of this length, (runs, count, samples).

        The last ones are remembered: where an epoch is longer than a block, the next block needs them again.
        """
        known, orders = self._last.get(samples, (first, np.empty((len(runs), 0, samples), np.int64)))
        if not np.array_equal(known, first) or orders.shape[1] < count:
            epochs = first[:, None] + np.arange(count)
            orders = permutation(self.keys[runs, None], SITE, epochs, count=samples)
            self._last[samples] = first, orders
        return orders
