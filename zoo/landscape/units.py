"""Rows that are measured in one call: what a worker is handed, and how it works it off."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl
import torch

from catalog.fragments import software
from catalog.metrics import Measurement, version_of, write_measurement
from catalog.store import Zoo
from zoo.landscape.metric import Measured, Metric
from zoo.landscape.metrics import METRICS
from zoo.plan import Plan
from zoo.shards import one_thread
from zoo.train import noisy_labels

Address = tuple[int, int]  # model, checkpoint
TRIED = 16  # samples on which settings are tried


@dataclass(frozen=True)
class Unit:
    """Rows of one variant that are measured together.

    Args:
        metric, settings: what, and how.
        loss_function: the runs' own.
        samples: of the split. used: training samples of the runs.
        runs, epochs, rows: of each row, its run, epoch and address.
        others: of each row, the addresses of what it is compared with.
        partners: of each row, run and epoch of its partner; () where there are none.
    """

    metric: str
    settings: Mapping[str, Any]
    variant: str
    loss_function: str
    samples: int
    used: int
    runs: tuple[str, ...]
    epochs: tuple[int, ...]
    rows: tuple[Address, ...]
    others: tuple[tuple[Address, ...], ...] = ()
    partners: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Unit:
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
        given["rows"] = tuple((a, b) for a, b in given["rows"])
        given["others"] = tuple(tuple((a, b) for a, b in row) for row in given["others"])
        return cls(**given)


def measure_unit(zoo: Zoo, plan: Plan, unit: Unit, device: str = "cpu") -> int:
    """Measure a unit and store it; returns the number of rows with a value."""
    metric = METRICS[unit.metric]
    with one_thread():
        found = _call(zoo, plan, unit, metric, device)
    rows = _table(unit, metric, found)
    written = store(zoo, unit.metric, unit.settings, rows, torch.device(device).type)
    return written


def try_settings(zoo: Zoo, plan: Plan, unit: Unit, device: str = "cpu") -> None:
    """Call the metric on one row and a few samples, so that settings that make no sense are told before work begins.

    Raises:
        ZooError: what the metric says of them.
    """
    few = dataclasses.replace(
        unit,
        runs=unit.runs[:1],
        epochs=unit.epochs[:1],
        rows=unit.rows[:1],
        others=unit.others[:1],
        partners=unit.partners[:1],
        samples=min(unit.samples, TRIED),
        used=min(unit.used, TRIED),
    )
    with one_thread():
        _call(zoo, plan, few, METRICS[unit.metric], device)


def store(zoo: Zoo, name: str, settings: Mapping[str, Any], rows: pl.DataFrame, device: str = "cpu") -> int:
    """Write measured rows as a version of a metric; returns the number of rows with a value."""
    metric = METRICS[name]
    versions = software(torch=torch.__version__, numba=version("numba"), device=device)
    default = dict(settings) == metric.settings
    label = version_of(metric.version, settings)
    write_measurement(zoo, Measurement(name, label, settings, default, rows, versions))
    return int(rows[name].is_not_null().sum())


def _call(zoo: Zoo, plan: Plan, unit: Unit, metric: Metric, device: str) -> Measured:
    architecture = plan.runs[unit.variant][0].architecture
    frame = unit.settings.get("frame")
    arguments: list[Any] = [architecture, _weights(zoo, unit.variant, unit.rows, device, frame)]
    if metric.needs != "model":
        addresses = [address for row in unit.others for address in row]
        others = _weights(zoo, unit.variant, addresses, device, frame).unflatten(0, (len(unit.rows), -1))
        arguments.append(others[:, 0] if metric.needs == "partner" else others)
    x, y = _data(plan, unit, metric, device)
    settings = {name: value for name, value in unit.settings.items() if name not in ("split", "samples")}
    if "loss_function" in metric.given:
        settings["loss_function"] = unit.loss_function
    if "train_x" in metric.given:
        settings["train_x"] = torch.from_numpy(plan.data.train_x[: unit.used]).to(device)
    return metric.measure(*arguments, x, y, **settings)


def _weights(
    zoo: Zoo, variant: str, addresses: Sequence[Address], device: str, frame: str | None = None
) -> torch.Tensor:
    """As they are stored, or all of them as they are seen in a frame."""
    models, checkpoints = zip(*addresses, strict=True)
    rows = pl.DataFrame({"variant": variant, "model": models, "checkpoint": checkpoints})
    weights: torch.Tensor = zoo.read(rows, dtype="float32", torch=True, frame=frame)
    return weights.to(device)


def _data(plan: Plan, unit: Unit, metric: Metric, device: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Inputs and labels of the slice, on the device."""
    split = unit.settings.get("split")
    if split is None:
        return None, None
    data = plan.data
    x, y = (data.train_x, data.train_y) if split == "train" else (data.test_x, data.test_y)
    x, y = x[: unit.samples], y[: unit.samples]
    if split == "train" and metric.labels == "own":
        runs = [plan.runs[unit.variant][model] for model, _ in unit.rows]
        if any(run.values["label_noise"] > 0 for run in runs):
            y = noisy_labels(runs, data.train_y, data.num_classes)[:, : unit.samples]
    return torch.from_numpy(x).to(device), torch.from_numpy(np.ascontiguousarray(y)).to(device)


def _table(unit: Unit, metric: Metric, found: Measured) -> pl.DataFrame:
    """The rows of a unit as they are stored."""
    name = unit.metric
    value = np.asarray(found.value, np.float64)
    missing = ~np.isfinite(value)
    reasons = list(found.reasons or [""] * len(value))
    reasons = [(r or "its value is not finite") if gone else "" for r, gone in zip(reasons, missing, strict=True)]
    columns: dict[str, Any] = {"run": unit.runs, "epoch": unit.epochs}
    if unit.partners:
        columns[f"{name}_partner"] = unit.partners
    columns[name] = _numbers(value)
    columns[f"{name}_se"] = _numbers(np.asarray(found.standard_error, np.float64))
    for other, values in found.others.items():
        columns[other] = _numbers(values) if isinstance(values, np.ndarray) else list(values)
    columns[f"{name}_reason"] = reasons
    return pl.DataFrame(columns, schema_overrides={"run": pl.String, "epoch": pl.Int64, f"{name}_reason": pl.String})


def _numbers(values: np.ndarray) -> pl.Series:
    """Null for what is not finite."""
    if values.dtype.kind != "f":
        return pl.Series(values)
    return pl.Series(np.where(np.isfinite(values), values, np.nan), dtype=pl.Float64).fill_nan(None)
