"""A dataset as a stream of batches in the order of `Zoo.iterate`, shared among the workers of a DataLoader."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from catalog.dataset import WeightDataset

PLACE = "place"  # column of the rows that says which of the dataset they are


def stream_of(dataset: WeightDataset, batch: int, **options: Any) -> Any:
    """The iterable dataset of `WeightDataset.stream`."""
    import torch

    epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # so that workers see it change
    return _kind()(dataset, batch, epoch, options)


def _made(*arguments: Any) -> Any:
    """For pickles, which find a class by its name: this one is made where torch is there."""
    return _kind()(*arguments)


@functools.cache
def _kind() -> type:
    import torch
    from torch.utils.data import IterableDataset, default_collate, get_worker_info

    class WeightStream(IterableDataset[Any]):
        """Batches of a `WeightDataset`."""

        def __init__(self, dataset: WeightDataset, batch: int, epoch: torch.Tensor, options: dict[str, Any]) -> None:
            self.dataset, self.batch, self.epoch, self.options = dataset, batch, epoch, options

        def __reduce__(self) -> tuple[Any, ...]:
            return _made, (self.dataset, self.batch, self.epoch, self.options)

        def set_epoch(self, epoch: int) -> None:
            """Which order comes next, here and in all workers."""
            self.epoch.fill_(epoch)

        def __iter__(self) -> Iterator[Any]:
            options, worker = dict(self.options), get_worker_info()
            number, parts = options.pop("part")
            if worker is not None:
                number, parts = number * worker.num_workers + worker.id, parts * worker.num_workers
                options["memory"] //= worker.num_workers
            data = self.dataset
            places = np.arange(len(data))
            rows = data.rows(places).with_columns(pl.Series(PLACE, places))
            batches = data.zoo.iterate(
                rows, self.batch, tensors=data.tensors, dtype=data.read_as, frame=data.frame, epoch=int(self.epoch),
                part=(number, parts), **options,
            )  # fmt: skip
            for found, weights in batches:
                yield default_collate(data.samples(weights, found[PLACE].to_numpy()))

    return WeightStream
