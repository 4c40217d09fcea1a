"""From a spec to its runs: which exist, in which array and shard they lie, which train as one batch."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import InvalidSpecError
from catalog.record import Variant
from catalog.write import make_variant
from kernels.random import uniform
from zoo.architectures import ARCHITECTURES, Architecture
from zoo.batches import micro_batch
from zoo.datasets import Dataset, load_dataset
from zoo.spec import HYPERPARAMETERS, MAX_RUNS, Range, ZooSpec

CELL_SITE = 4  # of the random streams
TRAINED_LIKE = "trained_like"  # in the spec of a zoo of samples: the spec of a cell of their kind, as JSON


@dataclass(frozen=True)
class Run:
    """A cell with a seed: one network to train.

    Args:
        values: every training hyperparameter.
        samples: training samples it uses, the first ones of the split.
        epochs: passes it makes (more than the spec's when min_steps asks for more).
        checkpoints: epochs at which its weights are kept.
    """

    architecture: Architecture
    values: Mapping[str, Any]
    seed: int
    cell: str
    run: str
    samples: int
    epochs: int
    checkpoints: tuple[int, ...]

    @property
    def key(self) -> int:
        """64-bit key of the run's random streams: its id."""
        return int(self.run, 16)

    @property
    def updates(self) -> int:
        """Optimiser steps an epoch."""
        return self.samples // int(self.values["batch_size"])

    @property
    def micro(self) -> int:
        return micro_batch(self.values["batch_size"], whole=self.architecture.has_batch_norm)

    @property
    def group(self) -> tuple[str, int, str]:
        """Runs of one variant and group train as one batch."""
        return self.values["optimizer"], self.micro, self.values["loss_function"]


@dataclass(frozen=True)
class Plan:
    """All runs of a spec by variant, in the order of their arrays."""

    spec: ZooSpec
    data: Dataset
    runs: Mapping[str, tuple[Run, ...]]

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """The arrays of the zoo."""
        checkpoints = len(next(iter(self.runs.values()))[0].checkpoints)
        return {
            name: make_variant(name, a.layout, len(runs), checkpoints, self.spec.dtype, a.to_json())
            for name, runs in self.runs.items()
            for a in (runs[0].architecture,)
        }

    @property
    def info(self) -> dict[str, Any]:
        """What `zoo.json` says beside the spec: the data's fingerprint, licence and citation."""
        data = {
            "name": self.data.name,
            "fingerprint": self.data.fingerprint,
            "num_train": self.data.num_train,
            "num_test": self.data.num_test,
            "input_shape": list(self.data.input_shape),
            "num_classes": self.data.num_classes,
        }
        return {"data": data, "licence": self.spec.licence, "citation": self.spec.citation}

    def shard(self, variant: str, shard: int) -> tuple[Run, ...]:
        """The runs of a shard, in order."""
        models = self.variants[variant].grid.models(shard)
        return self.runs[variant][models.start : models.stop]

    def bytes(self) -> int:
        """Bytes of all weights."""
        return sum(int(np.prod(v.grid.shape)) * v.grid.itemsize for v in self.variants.values())

    def rows(self, runs: Sequence[Run]) -> pl.DataFrame:
        """One row a (run, checkpoint): identity, cell, epoch. Load and temperature also have columns so named."""
        table = []
        for run in runs:
            values = {**run.architecture.numbers, **run.values}
            roles = {role: values[axis] for role in ("load", "temperature") if (axis := getattr(self.spec, role))}
            known = {
                "run": run.run,
                "cell": run.cell,
                "seed": run.seed,
                "family": run.architecture.family,
                **values,
                **roles,
            }
            for epoch in run.checkpoints:
                place = {
                    "epoch": epoch,
                    "step": epoch * run.updates,
                    "progress": epoch / run.epochs if run.epochs else 1.0,
                }
                table.append({**known, **place})
        return pl.DataFrame(table, schema_overrides=self._types())

    def _types(self) -> dict[str, Any]:
        """Column types that do not depend on which values a shard happens to hold."""
        types: dict[str, Any] = {"seed": pl.Int64, "epoch": pl.Int64, "step": pl.Int64}
        for name in self.spec.known:
            default = (
                HYPERPARAMETERS[name].default
                if name in HYPERPARAMETERS
                else ARCHITECTURES[self.spec.family].defaults[name]
            )
            types[name] = {str: pl.String, int: pl.Int64, float: pl.Float64}[type(default)]
        for role in ("load", "temperature"):
            if axis := getattr(self.spec, role):
                types[role] = types[axis]
        return types


def make_plan(spec: ZooSpec, copies: int = 1) -> Plan:
    """Load the data and lay out all runs.

    Args:
        copies: how often each is there: samples were not trained, and each counts as such a run. See `stored_spec`.

    Raises:
        InvalidSpecError: a batch larger than the data, fewer classes or another shape than the architecture takes.
    """
    data = load_dataset(spec.dataset, spec.split_seed, **spec.dataset_options)
    by_variant: dict[str, dict[str, Run]] = {}
    for cell in _cells(spec):
        for run in _runs(spec, data, cell):
            by_variant.setdefault(run.architecture.name, {})[run.run] = run
    runs = {
        name: tuple(sorted(found.values(), key=lambda run: (run.group, run.values["batch_size"]))) * copies
        for name, found in by_variant.items()
    }
    return Plan(spec, data, runs)


def stored_spec(content: Mapping[str, Any]) -> tuple[ZooSpec, int]:
    """The spec that a zoo holds, and 1; of a zoo of samples that of the cell they are like, and how many they are.

    Raises:
        InvalidSpecError, UnknownNameError: neither is there.
    """
    if TRAINED_LIKE not in content:
        return ZooSpec.from_json(content), 1
    spec, count = ZooSpec.from_json(content[TRAINED_LIKE]), content.get("count")
    if type(count) is not int or not 1 <= count <= MAX_RUNS or spec.num_runs != 1:
        raise InvalidSpecError(
            f"a spec of samples says how many, 1 to {MAX_RUNS:,}, and is like one run; got {count!r}"
        )
    return dataclasses.replace(spec, hyperparameters={**spec.hyperparameters, "label_noise": 0.0}), count


def _cells(spec: ZooSpec) -> Iterator[dict[str, Any]]:
    """Values of the axes, cell by cell: the grid in order, or random draws."""
    if spec.cells is None:
        for values in itertools.product(*(tuple(axis) for axis in spec.axes.values() if not isinstance(axis, Range))):
            yield dict(zip(spec.axes, values, strict=True))
        return
    key = np.array([spec.cells_seed], np.uint64)
    fractions = uniform(key, CELL_SITE, np.arange(spec.cells), count=max(len(spec.axes), 1))
    for row in fractions.tolist():
        yield {
            name: values.at(f) if isinstance(values, Range) else values[int(f * len(values))]
            for (name, values), f in zip(spec.axes.items(), row, strict=False)
        }


def _runs(spec: ZooSpec, data: Dataset, cell: Mapping[str, Any]) -> Iterator[Run]:
    numbers = {name: cell.get(name, spec.value(name)) for name in ARCHITECTURES[spec.family].numbers}
    values = {name: cell.get(name, spec.value(name)) for name in HYPERPARAMETERS}
    values = {name: float(v) if isinstance(HYPERPARAMETERS[name].default, float) else v for name, v in values.items()}
    architecture = _architecture(spec.family, tuple(numbers.items()), data.input_shape, data.num_classes)
    samples = max(round(values["data_fraction"] * data.num_train), 1)
    batch = values["batch_size"]
    if batch > samples:
        raise InvalidSpecError(
            f"batch_size {batch} exceeds the {samples} training samples (data_fraction {values['data_fraction']})"
        )
    if batch == 1 and architecture.has_batch_norm:
        raise InvalidSpecError("BatchNorm has no statistics of a single sample; use a batch_size of 2 or more")
    updates = samples // batch
    epochs = max(values["epochs"], -(-values["min_steps"] // updates)) if values["epochs"] else 0
    nominal = spec.checkpoints or (values["epochs"],)
    kept = tuple(round(epoch * epochs / values["epochs"]) if epochs else 0 for epoch in nominal)
    changed = {name: v for name, v in values.items() if v != HYPERPARAMETERS[name].default}
    identity = {"architecture": architecture.to_json(), "data": data.fingerprint, "hyperparameters": changed}
    cell_id = _digest(identity)
    for seed in spec.seeds:
        run_id = _digest({**identity, "seed": seed})
        yield Run(architecture, values, seed, cell_id, run_id, samples, epochs, kept)


@functools.cache
def _architecture(
    family: str, numbers: tuple[tuple[str, Any], ...], shape: tuple[int, ...], classes: int
) -> Architecture:
    """One object for equal architectures, so that a layout is traced once."""
    return Architecture(family, dict(numbers), shape, classes)


def _digest(content: Mapping[str, Any]) -> str:
    """16 hex digits of the sha256 of canonical JSON. Values that equal a default are left out by the caller, so that a
    hyperparameter added later changes no id."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
