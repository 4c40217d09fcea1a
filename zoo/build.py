"""Build a zoo: lay it out, say what it will cost, train what is not there yet."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import catalog
from catalog.errors import InvalidSpecError, StorageError, ZooError
from catalog.store import Zoo, open_zoo
from zoo.local import Task, run_local
from zoo.plan import Plan, Run, make_plan
from zoo.shards import build_shard, groups, one_thread
from zoo.spec import ZooSpec
from zoo.train import train

START = 5.0  # seconds until a worker process trains: importing torch and numba
CLOCK = 0.05  # seconds that are long enough to be extrapolated
CALIBRATION = 1.5  # seconds spent on measuring what a step costs here


@dataclass(frozen=True)
class Estimate:
    """What a build will cost.

    Args:
        runs, shards: still to train. done: runs already committed.
        seconds: wall time with `workers`; measured steps, extrapolated. bytes: of the whole zoo's weights.
    """

    runs: int
    done: int
    shards: int
    workers: int
    seconds: float
    bytes: int
    free: int | None


@dataclass(frozen=True)
class Event:
    """Progress of a build: samples worked off in a shard, or a shard committed (samples 0)."""

    task: Task
    samples: int
    committed: bool


def build(
    spec: ZooSpec,
    url: str | os.PathLike[str],
    *,
    workers: int | None = None,
    device: str = "cpu",
    on_estimate: Callable[[Estimate, Plan, Sequence[Task]], None] | None = None,
    on_event: Callable[[Event], None] | None = None,
    **storage_options: Any,
) -> Zoo:
    """Train a population and store it. Calling again after an interruption builds what is missing, to the same bytes.

    Args:
        url: an empty or absent folder, or a zoo of this very spec.
        workers: processes; None for one a core (one on CUDA), 0 to train in this process.
        on_estimate: called before training with the cost; raising in it stops the build.
        on_event: called as work advances.

    Raises:
        InvalidSpecError, UnknownNameError: the spec does not fit the data.
        SpecMismatchError: another zoo is there. StorageError: disk full, read-only, no permission.
        BuildError: some shards failed; the rest is committed.
    """
    if workers is not None and workers < 0:
        raise InvalidSpecError(f"workers must be 0 or more, got {workers}")
    plan = make_plan(spec)
    content = _as_stored(spec, url, storage_options)
    made = catalog.create(
        url, name=spec.name, variants=plan.variants.values(), spec=content, info=plan.info, **storage_options
    )
    return _continue(made, plan, workers, device, on_estimate, on_event, storage_options)


def _as_stored(spec: ZooSpec, url: str | os.PathLike[str], storage_options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec as JSON; as a zoo that is there has it, if that is the same spec written before some default existed."""
    content = spec.to_json()
    with contextlib.suppress(ZooError):  # nothing there, or something that `create` will refuse
        found = open_zoo(url, **storage_options).record.spec
        if ZooSpec.from_json(found).to_json() == content:
            return found
    return content


def preview(spec: ZooSpec, *, workers: int | None = None, device: str = "cpu") -> Estimate:
    """What building a spec would cost here. Writes nothing."""
    plan = make_plan(spec)
    tasks = [(name, shard) for name, variant in plan.variants.items() for shard in range(variant.grid.num_shards)]
    return estimate(plan, tasks, default_workers(device) if workers is None else workers, device, os.getcwd())


def resume(url: str | os.PathLike[str], **options: Any) -> Zoo:
    """Build what is missing of a zoo that exists, from the spec it holds; options as in `build`."""
    ours = inspect.signature(build).parameters
    storage = {name: value for name, value in options.items() if name not in ours}
    return build(ZooSpec.from_json(open_zoo(url, **storage).record.spec), url, **options)


def _continue(
    made: Zoo,
    plan: Plan,
    workers: int | None,
    device: str,
    on_estimate: Callable[[Estimate, Plan, Sequence[Task]], None] | None,
    on_event: Callable[[Event], None] | None,
    storage_options: Mapping[str, Any],
) -> Zoo:
    committed = made.committed()
    tasks = [task for task in made.record.shards if task not in committed]
    tasks.sort(key=lambda task: -sum(_cost(group) for group in groups(plan.shard(*task))))
    processes = default_workers(device) if workers is None else workers
    if on_estimate:
        folder = made.folder.root if made.folder.local else None
        on_estimate(estimate(plan, tasks, processes, device, folder), plan, tasks)
    _check_space(plan, tasks, made)

    def tell(task: Task, samples: int = 0, committed: bool = False) -> None:
        if on_event:
            on_event(Event(task, samples, committed))

    if tasks and processes == 0:
        for task in tasks:
            build_shard(made, plan, *task, device=device, progress=lambda samples, task=task: tell(task, samples))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            tell(task, committed=True)
    elif tasks:
        run_local(
            made,
            tasks,
            workers=processes,
            device=device,
            storage_options=storage_options,
            on_samples=tell,
            on_done=lambda task: tell(task, committed=True),
        )
    catalog.rebuild_table(made)
    return made


def default_workers(device: str = "cpu") -> int:
    """A process a core; one on a GPU."""
    if not device.startswith("cpu"):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(runs: Sequence[Run]) -> int:
    """Samples that training these runs works off, padding of micro-batches included, as `train` reports them."""
    return sum(run.epochs * run.updates * -(-run.values["batch_size"] // run.micro) * run.micro for run in runs)


def estimate(
    plan: Plan, tasks: Sequence[Task], workers: int, device: str = "cpu", folder: str | None = None
) -> Estimate:
    """Measure a few steps of the most expensive groups here and extrapolate to the shards given."""
    shards = {task: groups(plan.shard(*task)) for task in tasks}
    by_cost = sorted((group for found in shards.values() for group in found), key=_cost, reverse=True)
    measured: dict[Any, float] = {}
    ratios = []
    begin = time.perf_counter()
    for group in by_cost:
        signature = _signature(group)
        if signature in measured or time.perf_counter() - begin > CALIBRATION:
            continue
        if not measured:
            _seconds(group, plan, device)  # the first call also pays for torch's own start, and for compiling once
        measured[signature] = _seconds(group, plan, device)
        ratios.append(measured[signature] / max(_cost(group), 1e-12))
    mean = sum(ratios) / len(ratios) if ratios else 0.0
    loads = [0.0] * max(workers, 1)
    for found in shards.values():
        seconds = sum(measured.get(_signature(group), mean * _cost(group)) for group in found)
        loads[loads.index(min(loads))] += seconds
    runs = sum(len(group) for found in shards.values() for group in found)
    total = sum(len(found) for found in plan.runs.values())
    wall = max(loads) + (START if workers and tasks else 0.0)
    return Estimate(runs, total - runs, len(tasks), max(workers, 1), wall, plan.bytes(), _free(folder))


def _signature(group: Sequence[Run]) -> Any:
    return group[0].architecture.name, group[0].group, len(group), _micro_steps(group)


def _micro_steps(group: Sequence[Run]) -> int:
    return max(run.epochs * run.updates * -(-run.values["batch_size"] // run.micro) for run in group)


def _cost(group: Sequence[Run]) -> float:
    """Rough seconds: fixed cost of a step, plus arithmetic at 20 GFLOP/s."""
    return _micro_steps(group) * 3e-4 + work(group) * group[0].architecture.layout.size * 6 / 20e9


def _seconds(group: Sequence[Run], plan: Plan, device: str) -> float:
    """Seconds for the whole training of a group, from eight micro-batches of it, or as many as a clock needs."""
    steps, longest = 8, _micro_steps(group)
    while True:
        short = [_shortened(run, steps) for run in group]
        begin = time.perf_counter()
        with one_thread():
            impl = train(short, plan.data, device=device).impl
        seconds = time.perf_counter() - begin
        if seconds > CLOCK or steps >= longest:
            break
        steps *= 4
    # compiled code trains one run after the other, the reference all at once for as long as the longest takes
    length = work if impl == "compiled" else _micro_steps
    return seconds * length(group) / max(length(short), 1)


def _shortened(run: Run, micro_steps: int) -> Run:
    """The run for so many micro-batches, of one batch an epoch."""
    epochs = max(micro_steps * run.micro // run.values["batch_size"], 1)
    checkpoints = (epochs,) * len(run.checkpoints)
    return dataclasses.replace(run, samples=run.values["batch_size"], epochs=epochs, checkpoints=checkpoints)


def _free(folder: str | None) -> int | None:
    if folder is None:
        return None
    path = Path(folder)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _check_space(plan: Plan, tasks: Sequence[Task], made: Zoo) -> None:
    needed = sum(
        variant.grid.itemsize * len(variant.grid.models(shard)) * variant.grid.shape[1] * variant.grid.shape[2]
        for name, shard in tasks
        for variant in (plan.variants[name],)
    )
    free = _free(made.folder.root) if made.folder.local else None
    if free is not None and free < needed:
        raise StorageError(
            f"{made.url} needs {needed:,} more bytes, its disk has {free:,} free; free space or choose another folder"
        )
