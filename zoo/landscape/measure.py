"""Measure a zoo: choose rows, say what it will cost, measure what is not there yet, store it beside the weights."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from catalog.errors import (
    BuildError,
    FormatError,
    InvalidSpecError,
    MeasureError,
    MissingDataError,
    StorageError,
    ZooError,
    unknown_name,
)
from catalog.metrics import compact, measurements, version_of
from catalog.store import Zoo, open_zoo
from kernels.curvature.surface import surface
from zoo.build import START, default_workers
from zoo.landscape.metrics import METRICS
from zoo.landscape.select import Work, chosen_rows, cost, plan_work
from zoo.landscape.units import Unit, measure_unit, store, try_settings
from zoo.local import run_local
from zoo.plan import Plan, make_plan, stored_spec
from zoo.shards import one_thread

PROBE = 16  # models on which a gradient is timed


@dataclass(frozen=True)
class Cost:
    """What measuring will cost: rows to measure, metric by metric, and roughly the wall time."""

    rows: Mapping[str, int]
    done: Mapping[str, int]
    refused: Mapping[str, int]
    seconds: float
    workers: int


@dataclass(frozen=True)
class Result:
    """What became of a metric: its version, and the rows with a value, now and before, and without."""

    metric: str
    version: str
    measured: int
    before: int
    without: int


def measure(
    url: str | os.PathLike[str],
    metrics: str | Iterable[str] = "all",
    *,
    where: str | None = None,
    epoch: int | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int | None = None,
    device: str = "cpu",
    metrics_at: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    on_cost: Callable[[Cost], None] | None = None,
    on_rows: Callable[[str, int], None] | None = None,
    **storage_options: Any,
) -> list[Result]:
    """Measure rows of a zoo and store the values. Calling again measures what is missing; nothing is overwritten.

    Args:
        url: of a zoo made by `weightscape build`. Only the rows that are needed are read.
        metrics: names in `zoo.landscape.metrics.METRICS`, or of their further columns; "all".
        where: a condition on rows, as for `catalog.query`.
        epoch: which checkpoints; the last of each run when left out.
        settings: setting -> value for all of these metrics that have it, or "metric.setting" -> value for one.
        workers: processes; None for one a core (one on CUDA), 0 to measure in this process.
        metrics_at: where to store the columns, for a zoo that cannot be written; `catalog.open` takes the same.
        dry_run: only say what it would cost.
        on_cost: called before measuring; raising in it stops. on_rows: called with a metric and rows worked off.

    Raises:
        UnknownNameError, InvalidSpecError: metrics or settings. QueryError, MissingDataError: no such rows.
        FormatError: the data set is not that of the zoo. StorageError: the disk refused.
        MeasureError: some units failed; the rest is stored.
    """
    if workers is not None and workers < 0:
        raise InvalidSpecError(f"workers must be 0 or more, got {workers}")
    chosen = with_settings(metric_names(metrics), settings or {})
    zoo = open_zoo(url, metrics_at=metrics_at, **storage_options)
    check_frames(zoo, chosen)
    plan = plan_of(zoo)
    processes = default_workers(device) if workers is None else workers
    rows = chosen_rows(zoo, where, epoch)
    everything = zoo.table(metrics=False)
    works = [
        plan_work(zoo, plan, name, METRICS[name], given, rows, everything, processes) for name, given in chosen.items()
    ]
    for work in works:
        if work.units and work.settings != METRICS[work.metric].settings:
            try_settings(zoo, plan, work.units[0], device)
    if on_cost:
        on_cost(_cost(plan, works, processes, device))
    if not dry_run:
        _run(zoo, plan, works, processes, device, storage_options, on_rows or (lambda metric, count: None))
    return [_result(zoo, work) for work in works]


def metric_names(metrics: str | Iterable[str]) -> list[str]:
    """Metrics by their names or those of their further columns, each once; all of them for "all"."""
    wanted = [metrics] if isinstance(metrics, str) else list(metrics)
    makers = {column: name for name, metric in METRICS.items() for column in (name, *metric.columns)}
    found: dict[str, None] = {}
    for name in wanted:
        if name == "all":
            found |= dict.fromkeys(METRICS)
        elif name in makers:
            found[makers[name]] = None
        else:
            raise unknown_name("metric", name, [*makers, "all"])
    return list(found)


def with_settings(names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Complete settings of each metric.

    Raises:
        UnknownNameError: a setting that none of them has. InvalidSpecError: a value that does not fit.
    """
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in sorted(settings.items(), key=lambda item: "." in item[0]):  # what is for one metric goes last
        metric, _, setting = key.rpartition(".")
        if metric and metric not in own:
            raise unknown_name("metric", metric, own)
        takers = [metric] if metric else [name for name in names if setting in METRICS[name].settings]
        if not takers:
            known = {setting for name in names for setting in METRICS[name].settings}
            raise unknown_name("setting", setting, known)
        for name in takers:
            own[name][setting] = value
    return {name: METRICS[name].complete(name, changed) for name, changed in own.items()}


def check_frames(zoo: Zoo, chosen: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise MissingDataError if settings name a frame, an alignment, that the zoo does not have."""
    for name, settings in chosen.items():
        if (frame := settings.get("frame")) is not None and frame not in (known := zoo.frames()):
            raise MissingDataError(
                f"{zoo.url} has no frame {frame!r}, which {name} was to use; it has {', '.join(known) or 'none'}. "
                f"`weightscape align` makes one; leave frame out for weights as they are"
            )


def plan_of(zoo: Zoo) -> Plan:
    """Runs and data of a zoo, also of one of samples.

    Raises:
        InvalidSpecError: it was not made by `weightscape build` or `sample`. FormatError: its data set has changed.
    """
    try:
        spec, copies = stored_spec(zoo.record.spec)
    except ZooError as error:
        raise InvalidSpecError(
            f"{zoo.url} has no spec of `weightscape build`, which says what data to measure on: {error}"
        ) from error
    plan = make_plan(spec, copies)
    stored = (zoo.record.info.get("data") or {}).get("fingerprint", plan.data.fingerprint)
    if stored != plan.data.fingerprint:
        raise FormatError(
            f"{zoo.url} was trained on data with fingerprint {stored}, {plan.data.name} here has "
            f"{plan.data.fingerprint}; restore the data it was trained on"
        )
    return plan


def _run(
    zoo: Zoo,
    plan: Plan,
    works: Sequence[Work],
    workers: int,
    device: str,
    storage_options: Mapping[str, Any],
    on_rows: Callable[[str, int], None],
) -> None:
    zoo.metrics_folder.sweep()
    for work in works:
        if len(work.refused):
            store(zoo, work.metric, work.settings, work.refused)
    units = [unit for work in works for unit in work.units]
    units.sort(key=lambda unit: -cost([unit], METRICS[unit.metric], plan))
    try:
        if units and workers == 0:
            _here(zoo, plan, units, device, on_rows)
        elif units:
            run_local(
                zoo,
                range(len(units)),
                workers=workers,
                device=device,
                storage_options=storage_options,
                message=lambda number: {"unit": units[number].to_json()},
                called=lambda number: _called(units[number]),
                what="units",
                on_done=lambda number: on_rows(units[number].metric, len(units[number].rows)),
            )
    except BuildError as error:
        raise MeasureError(str(error)) from error
    finally:
        for work in works:
            compact(zoo, f"{work.metric}@{version_of(METRICS[work.metric].version, work.settings)}")


def _here(zoo: Zoo, plan: Plan, units: Sequence[Unit], device: str, on_rows: Callable[[str, int], None]) -> None:
    failed = []
    for unit in units:
        try:
            measure_unit(zoo, plan, unit, device)
        except StorageError:
            raise
        except Exception as error:  # whatever it is, the others go on, as with workers
            failed.append(f"{_called(unit)}: {type(error).__name__}: {error}")
        on_rows(unit.metric, len(unit.rows))
    if failed:
        few = "; ".join(failed[:5])
        raise MeasureError(f"{len(failed)} of {len(units)} units failed, the rest is committed; run it again. {few}")


def _called(unit: Unit) -> str:
    return f"{unit.metric} of {len(unit.rows)} rows of {unit.variant}"


def _result(zoo: Zoo, work: Work) -> Result:
    version = version_of(METRICS[work.metric].version, work.settings)
    found = measurements(zoo, [work.metric]).get(f"{work.metric}@{version}")
    values = 0 if found is None else len(found.rows) - found.rows[work.metric].null_count()
    without = 0 if found is None else found.rows[work.metric].null_count()
    return Result(work.metric, version, values - work.values, work.done, without)


def _cost(plan: Plan, works: Sequence[Work], workers: int, device: str) -> Cost:
    total = sum(cost(work.units, METRICS[work.metric], plan) for work in works)
    seconds = total * _seconds_per_operation(plan, works, device) / max(workers, 1)
    start = START if workers and any(work.units for work in works) else 0.0
    return Cost(
        {work.metric: work.rows for work in works},
        {work.metric: work.done for work in works},
        {work.metric: len(work.refused) for work in works},
        seconds + start,
        workers,
    )


def _seconds_per_operation(plan: Plan, works: Sequence[Work], device: str) -> float:
    """Of the gradient of some models, timed here: what the costs of metrics are counted in."""
    units = [unit for work in works for unit in work.units]
    if not units:
        return 0.0
    unit = max(units, key=lambda unit: cost([unit], METRICS[unit.metric], plan))
    architecture = plan.runs[unit.variant][0].architecture
    x, y = (torch.from_numpy(part[:512]).to(device) for part in (plan.data.train_x, plan.data.train_y))
    weights = torch.zeros(PROBE, architecture.layout.size, device=device)
    with one_thread():
        for _ in range(2):  # the first call pays for torch's own start
            begin = time.perf_counter()
            surface(architecture.build("meta"), weights, x, y).gradients().sum().item()
            seconds = time.perf_counter() - begin
    return seconds / (PROBE * len(x) * architecture.layout.size * 6)
