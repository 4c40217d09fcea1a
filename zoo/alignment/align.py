"""Align a zoo: permutations of its runs to a common frame, each certified, stored beside the weights."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl
import torch

from catalog.errors import AlignError
from catalog.fragments import software
from catalog.frames import check_name, compact_frame, frame_files, write_rows, write_universe
from catalog.store import Zoo, open_zoo
from catalog.views import COLUMNS, SCALES, View, encode_rows
from weightspace.balance import balance
from weightspace.rebasin.activations import match_activations
from weightspace.rebasin.alignment import Alignment, AlignmentError
from weightspace.rebasin.matching import match_weights
from weightspace.rebasin.objective import counted
from weightspace.rebasin.universe import align_universe
from weightspace.symmetry import Symmetry, SymmetryError
from zoo.alignment.certify import CERTIFICATE, certify
from zoo.alignment.jobs import BYTES, Job, cost_of, plan_jobs, restricted
from zoo.alignment.settings import Aligned, Cost, Settings
from zoo.landscape.measure import plan_of

SAMPLES = 256  # whose activations are held at once


def align(
    url: str | os.PathLike[str],
    frame: str = "universe",
    settings: Settings | None = None,
    *,
    where: str | None = None,
    budget: float | None = None,
    threads: int | None = None,
    metrics_at: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    on_cost: Callable[[Cost], None] | None = None,
    on_rows: Callable[[int], None] | None = None,
    **storage_options: Any,
) -> list[Aligned]:
    """Align the runs of a zoo and store their permutations under `frames/`. Calling again adds runs that are new.

    Runs that join a frame do not move the others: its universe stays to the bit. Nothing is stored that changes what a
    network computes: each row's certificate compares outputs on probe inputs, in float64, before and after.

    Args:
        url: of a zoo whose architectures the registry knows.
        where: a condition on rows, as for `catalog.query`.
        budget: seconds; rows that are left then stay for another call. What was begun is stored as good as it is, the
            universe too, and said to be unfinished.
        threads: parts of the population worked on at once, None for as many as torch uses.
        metrics_at: where to store the frame, for a zoo that cannot be written; `catalog.open` takes the same.
        dry_run: only say what it would cost.
        on_cost: called before the work; raising in it stops. on_rows: called with numbers of rows done.

    Raises:
        FormatError: no name of a frame. QueryError: no such rows. UnknownNameError: a run or a layer.
        SpecMismatchError: the frame was made with other settings. AlignError: weights that cannot be aligned, or a
        certificate that fails. StorageError: the disk.
    """
    settings = settings or Settings()
    check_name(frame)
    zoo = open_zoo(url, metrics_at=metrics_at, **storage_options)
    jobs, refused = plan_jobs(zoo, frame, settings, where)
    if not jobs:
        raise AlignError(f"nothing of {zoo.url} can be aligned: {refused[0].reason}")
    if on_cost:
        on_cost(cost_of(zoo, settings, jobs))
    if dry_run:
        return [job.result(0, len(job.rows)) for job in jobs] + refused
    zoo.metrics_folder.sweep()
    deadline = None if budget is None else time.monotonic() + budget
    return [_align(zoo, frame, settings, job, deadline, threads, on_rows or (lambda n: None)) for job in jobs] + refused


def _align(
    zoo: Zoo,
    frame: str,
    settings: Settings,
    job: Job,
    deadline: float | None,
    threads: int | None,
    on_rows: Callable[[int], None],
) -> Aligned:
    """Align a variant: its universe if there is none, then all rows, some at a time."""
    similar, worst, done, finished = [], 0.0, 0, True
    view, rows = job.view, job.rows
    if view is None:
        view, committed, cosines = _universe(zoo, frame, settings, job, _left(deadline), threads)
        similar.append(cosines)
        worst = float(committed["certificate"].to_numpy().max())
        finished = bool(committed["finished"].all())
        if settings.by == "run":
            rows = rows.join(committed.select("run"), on="run", how="anti", maintain_order="left")
        done += len(job.rows) - len(rows)
        on_rows(done)
    together = max(BYTES // (4 * job.symmetry.layout.size), 1)
    for first in range(0, len(rows), together):
        if deadline is not None and time.monotonic() > deadline:
            break
        part = rows[first : first + together]
        found, cosines = _join(zoo, settings, job, view, part, _left(deadline), threads)
        write_rows(zoo, frame, replace(view, rows=found))
        similar.append(cosines)
        worst = max(worst, float(found["certificate"].to_numpy().max()))
        finished &= bool(found["finished"].all())
        done += len(part)
        on_rows(len(part))
    compact_frame(zoo, frame, job.variant)
    similarity = None
    if similar:
        before, after = np.concatenate(similar).mean(0).tolist()
        similarity = before, after
    return job.result(done, len(job.rows) - done, similarity, worst, finished)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)


def _universe(
    zoo: Zoo, frame: str, settings: Settings, job: Job, budget: float | None, threads: int | None
) -> tuple[View, pl.DataFrame, np.ndarray]:
    """Make a variant's universe of its members. Their rows are stored first, the universe commits them.

    Also gives `_cosines`.
    """
    symmetry, weights = job.symmetry, zoo.read(job.members, dtype="float32")
    scales = _scales(symmetry, weights, settings)
    scaled = symmetry.scale(weights, scales) if scales else weights
    free = restricted(symmetry, settings.layers)
    with _typed(zoo, job):
        if len(weights) == 1:  # a reference, or a population of one
            found = match_weights(free, scaled, scaled[0], sweeps=0, threads=threads)
        else:
            method = "frank_wolfe" if settings.method == "frank_wolfe" else "barycentre"
            found = align_universe(
                free, scaled, method=method, restarts=settings.restarts, seed=settings.seed, budget=budget,
                threads=threads,
            )  # fmt: skip
    permutations = _complete(symmetry, found.permutations, len(weights))
    versions = software(torch=torch.__version__, numba=version("numba"))
    view = View(job.variant, symmetry, found.universe.astype(np.float32), settings.to_json(), software=versions)
    found = replace(found, permutations=permutations, scales=scales)
    rows = _rows(zoo, settings, job, view, job.members, weights, found)
    for kind in ("rows", "universe"):  # of an earlier one that was never committed
        for name in frame_files(zoo.metrics_folder).get((frame, job.variant, kind), []):
            zoo.metrics_folder.remove(name)
    if settings.by == "run":
        write_rows(zoo, frame, replace(view, rows=rows))
    write_universe(zoo, frame, view)
    return view, rows, _cosines(free, view, scaled, found)


def _join(
    zoo: Zoo, settings: Settings, job: Job, view: View, part: pl.DataFrame, budget: float | None, threads: int | None
) -> tuple[pl.DataFrame, np.ndarray]:
    """Match rows to the universe there is: the frame's rows, and `_cosines`."""
    symmetry, weights = view.symmetry, zoo.read(part, dtype="float32")
    scales = _scales(symmetry, weights, settings)
    scaled = symmetry.scale(weights, scales) if scales else weights
    free = restricted(symmetry, settings.layers)
    with _typed(zoo, job):
        if settings.method == "activations":
            inputs = torch.from_numpy(plan_of(zoo).data.train_x[: settings.samples]).split(SAMPLES)
            found = match_activations(free, job.architecture.build(), scaled, view.universe, inputs)
        else:
            found = match_weights(
                free, scaled, view.universe, restarts=settings.restarts, seed=settings.seed, sweeps=settings.sweeps,
                budget=budget, threads=threads,
            )  # fmt: skip
    permutations = _complete(symmetry, found.permutations, len(weights))
    found = replace(found, permutations=permutations, scales=scales)
    return _rows(zoo, settings, job, view, part, weights, found), _cosines(free, view, scaled, found)


@contextmanager
def _typed(zoo: Zoo, job: Job) -> Iterator[None]:
    """Errors of `weightspace` as ours, with the place."""
    try:
        yield
    except (AlignmentError, SymmetryError) as error:
        raise AlignError(f"{job.variant} of {zoo.url}: {error}") from error


def _scales(symmetry: Symmetry, weights: np.ndarray, settings: Settings) -> dict[str, np.ndarray]:
    if not settings.balance or not symmetry.scales:
        return {}
    return balance(symmetry, weights, exact=False, signs=True)


def _rows(
    zoo: Zoo, settings: Settings, job: Job, view: View, rows: pl.DataFrame, weights: np.ndarray, found: Alignment
) -> pl.DataFrame:
    """The rows of a frame, certified."""
    certificates = certify(
        job.architecture, job.symmetry, weights, found.permutations, found.scales, seed=settings.seed
    )
    if (bad := ~(certificates <= CERTIFICATE)).any():
        run = rows["run"][int(np.argmax(bad))]
        raise AlignError(
            f"run {run} of {zoo.url} computes something else when its units are moved: outputs differ by "
            f"{certificates[bad].max():.1e} of the largest, at most {CERTIFICATE:.0e} is rounding. Nothing of it was "
            "stored; the symmetry of this architecture is wrong, please report it"
        )
    moves, factors = encode_rows(view.symmetry, found.permutations, found.scales, SCALES[0])
    return pl.DataFrame(
        {
            "run": rows["run"],
            "epoch": rows["epoch"] if settings.by == "checkpoint" else [None] * len(rows),
            "permutations": moves,
            "scales": factors,
            "objective_before": found.before,
            "objective_after": found.after,
            "sweeps": found.sweeps,
            "finished": found.finished,
            "certificate": certificates,
        },
        schema_overrides=COLUMNS,
    ).select(*COLUMNS)


def _complete(symmetry: Symmetry, permutations: Mapping[str, np.ndarray], models: int) -> dict[str, np.ndarray]:
    """Permutations with the identity for groups that were not matched."""
    return {**symmetry.identity(models), **permutations}


def _cosines(free: Symmetry, view: View, scaled: np.ndarray, found: Alignment) -> np.ndarray:
    """(models, 2): cosine with the universe before and after, over the parameters that move; 0 where one is zero."""
    places = free.layout.indices(counted(free).axes)
    lengths = np.linalg.norm(scaled[:, places].astype(np.float64), axis=1) * np.linalg.norm(view.universe[places])
    return np.stack([found.before, found.after], 1) / np.where(lengths > 0, lengths, 1.0)[:, None]
