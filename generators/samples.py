"""Samples are a zoo: drawn, made ready, evaluated and stored shard by shard, with where they come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl
import torch

import catalog
from catalog.errors import GeneratorError, NotAZooError, StorageError, UnknownNameError
from catalog.fragments import software
from catalog.store import Zoo
from catalog.write import make_variant, write_shard
from generators.generator import TOGETHER, Generator
from generators.members import Members
from generators.population import Population
from generators.request import Request
from generators.stored import population_of
from kernels.distance.distance import nearest_streamed
from zoo.architectures import Architecture
from zoo.datasets import Dataset
from zoo.landscape.norms import reestimate
from zoo.plan import Plan
from zoo.shards import measured, one_thread
from zoo.splits import fitting, train_split

NUMBERS = 1 << 26  # of weights that are drawn at once at most, but for one network
FAILED = "its weights are not finite"


def finish(
    of: Architecture | Population, weights: np.ndarray, data: Dataset, *, samples: int | None = None
) -> np.ndarray:
    """Samples as they are to be used: with statistics of BatchNorm from training inputs. Others come back as they are.

    Args:
        weights: (models, size) float32; models that are not finite stay as they are.
        samples: so many of the first training inputs, None for all.

    Raises:
        GeneratorError: weights of another size.
    """
    architecture = of.architecture if isinstance(of, Population) else of
    if weights.ndim != 2 or weights.shape[1] != architecture.layout.size:
        raise GeneratorError(
            f"weights of {architecture.name} must be (models, {architecture.layout.size}), got {tuple(weights.shape)}"
        )
    if not architecture.has_batch_norm:
        return weights
    good, out = np.isfinite(weights).all(1), weights.copy()
    some = torch.from_numpy(weights[good])
    with one_thread():  # bits of sums depend on the number of threads
        out[good] = reestimate(architecture, some, fitting(train_split(data, samples), some)[0]).numpy()
    return out


def write_samples(
    generator: Generator,
    url: str | os.PathLike[str],
    count: int,
    *,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
    zoo: Zoo | str | os.PathLike[str] | None = None,
    threads: int | None = None,
    on_models: Callable[[int], None] | None = None,
    **storage_options: Any,
) -> Zoo:
    """Draw networks and store them as a zoo. Calling again after an interruption draws what is missing.

    Each row says its generator, seed and number, what was asked for (`requested_<name>`), and the nearest member of
    the training split by distance of parameters, in the frame of the generator. Networks that are not finite are rows
    with status "failed".

    Args:
        url: an empty or absent folder, or a zoo of this very request.
        count: how many; numbers 0 to count of the seed.
        conditions: as for `Generator.sample`.
        zoo: that it learned from, where it has moved; without any, distances are null.
        threads: of evaluation, None for as many as torch uses. No bit depends on it.
        on_models: called with a number of networks each time so many (a shard) are drawn; raising in it stops.

    Raises:
        GeneratorError: a count below 1, conditions that it was not trained with, another zoo, one without a spec.
        SpecMismatchError: another zoo is there. FormatError: the data set has changed. StorageError: the disk refused.
    """
    request = Request(generator, count, seed, dict(conditions or {}))
    parent, plan = _parent(generator, zoo), request.plan
    members = None if parent is None else Members.of(parent)
    architecture = generator.architecture
    variant = make_variant(architecture.name, generator.layout, count, 1, architecture=architecture.to_json())
    made = catalog.create(
        url, name=request.name, variants=[variant], spec=request.spec, info=request.info, **storage_options
    )
    committed, blocks = made.committed(), _Blocks(request)
    for shard in range(variant.grid.num_shards):
        if (variant.name, shard) not in committed:
            models = variant.grid.models(shard)
            drawn = blocks.at(models)
            if on_models:
                on_models(len(models))
            weights, rows = _shard(request, plan, members, models, drawn, threads)
            versions = software(torch=torch.__version__, device="cpu")
            write_shard(made, variant.name, shard, weights[:, None], rows, versions)
    catalog.rebuild_table(made)
    return made


class _Blocks:
    """Draws samples by blocks of `TOGETHER`, which cost the same however few of them are taken, and keeps the last."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.size = max(1, min(TOGETHER, NUMBERS // max(1, request.generator.layout.size)))
        self.number, self.kept = -1, np.empty((0, 0), np.float32)

    def at(self, models: range) -> np.ndarray:
        """(models, size) of these numbers."""
        found = []
        for number in range(models.start // self.size, -(-models.stop // self.size)):
            first = number * self.size
            block = self._block(number, range(first, min(first + self.size, self.request.count)))
            found.append(block[max(models.start - first, 0) : models.stop - first])
        return np.concatenate(found)

    def _block(self, number: int, models: range) -> np.ndarray:
        if number != self.number:
            asked = self.request.conditions_of(models)
            generator, seed = self.request.generator, self.request.seed
            self.kept = generator.sample(len(models), seed=seed, first=models.start, conditions=asked)
            self.number = number
        return self.kept


def _shard(
    request: Request,
    plan: Plan,
    members: Members | None,
    models: range,
    drawn: np.ndarray,
    threads: int | None,
) -> tuple[np.ndarray, pl.DataFrame]:
    """Weights (models, size) and rows of some samples: finished, evaluated."""
    generator = request.generator
    runs = plan.runs[generator.source["variant"]][models.start : models.stop]
    weights = finish(generator.architecture, drawn, plan.data, samples=runs[0].samples)
    stored, threads = np.isfinite(weights).all(1), threads or torch.get_num_threads()
    with one_thread():
        found = measured(plan, runs, torch.from_numpy(weights)[:, None], stored[:, None], threads)
    statuses = {
        "status": pl.Series(np.where(stored, "ok", "failed").tolist(), dtype=pl.String),
        "reason": pl.Series(np.where(stored, "", FAILED).tolist(), dtype=pl.String),
        "stored": pl.Series(stored),
    }
    columns = {**request.identity(models), **statuses, **_nearest(members, weights, stored), **found}
    return weights, pl.DataFrame(columns)


def _parent(generator: Generator, zoo: Zoo | str | os.PathLike[str] | None) -> Population | None:
    """What the generator learned from: in this zoo, or where it was, if it is still there as it was."""
    if zoo is not None:
        return population_of(generator.source, zoo if isinstance(zoo, Zoo) else os.fspath(zoo))
    try:
        return population_of(generator.source)
    except (NotAZooError, StorageError, GeneratorError, UnknownNameError):  # the last one: its frame is gone
        return None


def _nearest(members: Members | None, weights: np.ndarray, stored: np.ndarray) -> dict[str, pl.Series]:
    """Run, epoch and distance of the nearest member of the training split, by parameters."""
    runs: list[str | None] = [None] * len(weights)
    epochs: list[int | None] = [None] * len(weights)
    distances: list[float | None] = [None] * len(weights)
    if members is not None and stored.any():
        rows, parameters = members.population.split("train"), members.population.layout.num_parameters
        chunks = (batch[:, :parameters] for batch in members.batches())
        distance, place = nearest_streamed(weights[stored, :parameters], chunks)
        for model, far, at in zip(np.flatnonzero(stored), distance[:, 0].tolist(), place[:, 0].tolist(), strict=True):
            runs[model], epochs[model], distances[model] = rows["run"][at], rows["epoch"][at], far
    return {
        "nearest_run": pl.Series(runs, dtype=pl.String),
        "nearest_epoch": pl.Series(epochs, dtype=pl.Int64),
        "nearest_distance": pl.Series(distances, dtype=pl.Float64),
    }
