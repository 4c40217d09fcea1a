"""Batches of codes for training, in an order that is a function of seed and step alone: any step can be made again."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

import catalog
from catalog.errors import GeneratorError
from catalog.store import Zoo
from generators.codec import MEMORY, Codec, check_choice, check_codec, fit_codec, fit_reads
from generators.conditions import Conditions
from generators.population import SPLITS, Population, population
from kernels.random import permutation

ORDER_SITE = 8  # of the random streams; its step is the epoch
AHEAD = 3  # batches read before they are asked for, where they come from the store

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class _Ask:
    """For a codec that is still to be fitted."""

    codec: str
    scaling: str
    components: int


class WeightDataModule(LightningDataModule):
    """Codes of a population for a LightningModule, split by lineage; everything is fitted on the training split.

    A batch is a dict: "codes" (models, width) float32, "conditions" (models, width) float32 where there are any, and
    "place" (models,) int64, which rows of the split these are. Epochs are orders of the training split; the train
    loader does not end (`Trainer(max_steps=...)`), and goes on where `state_dict` was taken. Batches are full, those
    left at the end of an epoch are left out; a split smaller than a batch gives batches of all of it.

    Args:
        zoo: a zoo, where one is, or a `Population`, which knows rows, frame and split already.
        rows: of the zoo, None for all. frame: an alignment, None for weights as they are.
        codec: a name, with its scaling and components, see `fit_codec`; or a fitted one.
        conditions: columns, or fitted ones.
        seed: of the order of batches. split_seed: of a split that is drawn, see
            `population`; it stays when the order changes.
        memory: bytes that the codes of a split may take, and weights while fitting. A split whose codes are more is
            read from the zoo batch by batch; the numbers are the same.
        options: where, variant, epoch, every_epoch, held_out, split: as for `population`.

    Raises:
        GeneratorError, QueryError, UnknownNameError: see `population`, `Conditions.fit` and `check_codec`; all before
            any weights are read.
    """

    def __init__(
        self,
        zoo: Population | Zoo | str | os.PathLike[str],
        rows: pl.DataFrame | None = None,
        *,
        frame: str | None = None,
        codec: str | Codec = "identity",
        scaling: str = "global",
        components: int = 0,
        conditions: Sequence[str] | Conditions = (),
        batch_size: int = 128,
        seed: int = 0,
        split_seed: int | None = None,
        memory: int = MEMORY,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(zoo, Population):
            if rows is not None or frame is not None or split_seed is not None or options:
                raise GeneratorError("a population has its rows, frame and split already; give those to a zoo")
            self.population = zoo
        else:
            zoo = zoo if isinstance(zoo, Zoo) else catalog.open(zoo)
            self.population = population(zoo, rows=rows, frame=frame, seed=split_seed, **options)
        for name, value, least in (("batch_size", batch_size, 1), ("memory", memory, 1), ("seed", seed, 0)):
            if type(value) is not int or value < least:
                raise GeneratorError(f"{name} must be an integer, {least} or more, got {value!r}")
        self.batch_size, self.seed, self.memory = batch_size, seed, memory
        self.start_step = 0
        self._codec: Codec | None = None
        self._ask: _Ask | None = None
        if isinstance(codec, Codec):
            fitted = codec.settings.get("scaling"), codec.settings.get("components")
            if (scaling, components) not in (("global", 0), fitted):
                raise GeneratorError(
                    f"a fitted codec has its scaling and components already, {fitted}, got {scaling, components}"
                )
            check_codec(codec, self.population)
            self._codec = codec
        else:
            check_choice(codec, scaling, components)
            self._ask = _Ask(codec, scaling, components)
        self.conditions = self._conditions(conditions)
        self._given = self._encode_conditions()
        self._codes: dict[str, Tensor] = {}
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self._began: int | None = None  # batches that the Trainer had done with when the train loader was made

    @property
    def codec(self) -> Codec:
        """Fitted by `setup`, if it did not come so."""
        if self._codec is None:
            raise GeneratorError("the codec is fitted by setup(), which has not run yet")
        return self._codec

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self._models // self.batch_size)

    @property
    def _models(self) -> int:
        return len(self.population.split("train"))

    def setup(self, stage: str | None = None) -> None:
        """Fit the codec, and encode the training split if its codes are kept. A second call does nothing."""
        if self._codec is None:
            self._codec = fit_codec(self.population, memory=self.memory, **vars(self._ask))
        self._keep("train")

    def cost(self) -> dict[str, int]:
        """What `setup` and training take at most, known before: networks, bytes of weights read and of codes kept."""
        row, fits = 4 * self.population.layout.size, self._fits("train")
        fitting = 0 if self._ask is None else fit_reads(self.population, self._ask.codec, self.memory)
        return {
            "models": self._models,
            "setup_read_bytes": row * (fitting + self._models * fits),
            "kept_bytes": 4 * self._models * self._width() * fits,
            "step_read_bytes": row * min(self.batch_size, self._models) * (not fits),
        }

    def batch(self, step: int) -> Batch:
        """The batch of a step, whatever was asked for before."""
        if step < 0:
            raise GeneratorError(f"the step of a batch must be 0 or more, got {step}")
        epoch, number = divmod(step, self.steps_per_epoch)
        known, order = self._order
        if known != epoch:
            order = permutation(np.array([self.seed], np.uint64), ORDER_SITE, epoch, count=self._models)[0]
            self._order = epoch, order  # at once: another thread may read ahead
        return self._made("train", order[number * self.batch_size : (number + 1) * self.batch_size])

    def train_dataloader(self) -> Stream:
        """Batches from `start_step` on, without end."""
        self._began = self._processed()
        return Stream(self, self.start_step)

    def val_dataloader(self) -> Held:
        """The validation split in order, each model once."""
        return Held(self, "validation")

    def test_dataloader(self) -> Held:
        return Held(self, "test")

    def state_dict(self) -> dict[str, Any]:
        """Which step comes next, and whose."""
        done = 0 if self._began is None else self._processed() - self._began
        return {"step": self.start_step + done, "order": self._signature()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a state was taken.

        Raises:
            GeneratorError: a state of another population, seed or batch size: its steps are not these.
        """
        if state_dict.get("order") != self._signature():
            raise GeneratorError(
                f"the state is of batches {state_dict.get('order')}, these are {self._signature()}: give the same zoo, "
                "rows, frame, split, seed and batch size as before"
            )
        step = state_dict.get("step")
        if type(step) is not int or step < 0:
            raise GeneratorError(f"the step of a state must be an integer, 0 or more, got {step!r}")
        self.start_step, self._began = step, None

    def _signature(self) -> list[Any]:
        return [self.population.fingerprint, self.seed, self.batch_size]

    def _processed(self) -> int:
        """Batches that a Trainer has done with: it fetches them earlier."""
        if self.trainer is None:
            return 0
        done: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(done.processed)

    def _width(self) -> int:
        """Of a code; at most, where components are yet to be chosen."""
        if self._codec is not None or self._ask is None:
            return self.codec.width
        parameters = self.population.layout.num_parameters
        if self._ask.codec != "pca":
            return parameters
        return self._ask.components or min(parameters, self._models - 1)

    def _conditions(self, asked: Sequence[str] | Conditions) -> Conditions | None:
        if isinstance(asked, Conditions):
            return asked
        return Conditions.fit(self.population.split("train"), asked) if len(asked) else None

    def _encode_conditions(self) -> dict[str, Tensor]:
        if self.conditions is None:
            return {}
        return {name: torch.from_numpy(self.conditions.encode(self.population.split(name))) for name in SPLITS}

    def _fits(self, split: str) -> bool:
        """Whether codes of a split are kept in memory."""
        return 4 * len(self.population.split(split)) * self._width() <= self.memory

    def _keep(self, split: str) -> None:
        """Encode a split once, if its codes fit."""
        if split in self._codes or not self._fits(split):
            return
        codes, first = np.empty((len(self.population.split(split)), self.codec.width), np.float32), 0
        for some in self.population.batches(split):
            codes[first : first + len(some)] = self.codec.encode(some)
            first += len(some)
        self._codes[split] = torch.from_numpy(codes)

    def _made(self, split: str, places: np.ndarray) -> Batch:
        """Some models of a split, from memory or from the zoo."""
        place = torch.from_numpy(places)
        if split in self._codes:
            codes = self._codes[split].index_select(0, place)
        else:
            order = np.argsort(places)  # files are read from front to back
            found = self.codec.encode(self.population.read(split, places[order]))
            codes = torch.from_numpy(found[np.argsort(order)])
        batch = {"codes": codes, "place": place}
        return batch | {"conditions": self._given[split][place]} if self._given else batch


@dataclass(frozen=True, eq=False)
class Stream:
    """Training batches from a step on, without end."""

    module: WeightDataModule
    first: int = 0

    def __iter__(self) -> Iterator[Batch]:
        step = self.first
        while "train" in self.module._codes:
            yield self.module.batch(step)
            step += 1
        with ThreadPoolExecutor(1) as reader:  # one: batches follow each other in the files' order
            coming = deque(reader.submit(self.module.batch, step + i) for i in range(AHEAD))
            try:
                while True:
                    batch = coming.popleft().result()
                    coming.append(reader.submit(self.module.batch, step + AHEAD))
                    step += 1
                    yield batch
            finally:
                for future in coming:
                    future.cancel()


@dataclass(frozen=True, eq=False)
class Held:
    """All models of a held-out split once, in order."""

    module: WeightDataModule
    split: str

    def __len__(self) -> int:
        return -(-len(self.module.population.split(self.split)) // self.module.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self.module._keep(self.split)
        models, size = len(self.module.population.split(self.split)), self.module.batch_size
        for first in range(0, models, size):
            yield self.module._made(self.split, np.arange(first, min(first + size, models)))
