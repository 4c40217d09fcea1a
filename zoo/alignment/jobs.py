"""Which rows of which variants are aligned, and what that will cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import InvalidSpecError, QueryError, SpecMismatchError, UnknownNameError, unknown_name
from catalog.store import Zoo
from catalog.table import query
from catalog.views import View
from weightspace.rebasin.estimate import PROBE, estimate
from weightspace.rebasin.objective import chosen_groups
from weightspace.symmetry import Symmetry, SymmetryError
from zoo.alignment.settings import TO_ONE, Aligned, Cost, Settings
from zoo.architectures import Architecture
from zoo.symmetries import symmetry_of

ROUNDS = 10  # of a universe on digits zoos: 6 to 14
BYTES = 1 << 28  # of the weights that are matched at once


@dataclass(frozen=True)
class Job:
    """What is to be done for a variant: rows to align, and what is there already."""

    variant: str
    architecture: Architecture
    symmetry: Symmetry
    rows: pl.DataFrame
    members: pl.DataFrame
    view: View | None
    done: int

    def result(
        self,
        rows: int,
        left: int,
        similarity: tuple[float, float] | None = None,
        certificate: float = 0.0,
        finished: bool = True,
    ) -> Aligned:
        """What became of it; arguments as for `Aligned`."""
        groups = len(self.symmetry.moving)
        return Aligned(self.variant, groups, rows, self.done, left, similarity, certificate, finished)


def plan_jobs(zoo: Zoo, frame: str, settings: Settings, where: str | None) -> tuple[list[Job], list[Aligned]]:
    """Work of each variant, and those that have no symmetry."""
    found = query(zoo, where, columns=zoo.scan().collect_schema().names())
    if settings.epoch is not None:
        found = found.filter(pl.col("epoch") == settings.epoch)
    last = found.filter(pl.col("epoch") == pl.col("epoch").max().over("run"))
    if not len(last):
        raise QueryError(f"no rows of {zoo.url} fit: a condition or an epoch that none has")
    _check_reference(settings, last)
    chosen = last if settings.by == "run" else found
    have = zoo.frames().get(frame, ())
    jobs, refused = [], []
    for (variant,), rows in chosen.group_by("variant", maintain_order=True):
        architecture = Architecture.from_json(zoo.record.variants[variant].architecture)
        view = zoo.frame(frame, variant) if variant in have else None
        try:
            symmetry = symmetry_of(architecture) if view is None else view.symmetry
            _check_layers(symmetry, settings.layers)
        except (InvalidSpecError, SymmetryError) as error:
            refused.append(Aligned(str(variant), 0, 0, 0, len(rows), None, 0.0, True, str(error)))
            continue
        if view is not None and dict(view.settings) != settings.to_json():
            raise SpecMismatchError(
                f"frame {frame!r} of {zoo.url} was made with {_difference(view.settings, settings.to_json())}; give "
                "the new one another name, or take the same settings to add runs"
            )
        lacking = rows if view is None else _lacking(view, rows)
        members = _members(last.filter(pl.col("variant") == variant), settings)
        jobs.append(Job(str(variant), architecture, symmetry, lacking, members, view, len(rows) - len(lacking)))
    return jobs, refused


def _lacking(view: View, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that a frame does not have."""
    return rows.filter([view.place(run, epoch) is None for run, epoch in rows.select("run", "epoch").iter_rows()])


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = [name for name in new if old.get(name) != new[name]]
    return ", ".join(f"{name}={old.get(name)!r} (asked {new[name]!r})" for name in names) or "others"


def _check_reference(settings: Settings, rows: pl.DataFrame) -> None:
    if settings.reference is not None and settings.reference not in rows["run"]:
        raise UnknownNameError(f"no run {settings.reference!r} among the rows to align; `weightscape query` lists them")


def _check_layers(symmetry: Symmetry, layers: Iterable[str] | None) -> None:
    """Raise UnknownNameError unless these are tensors or layers, the part of their names before the last dot."""
    names = symmetry.layout.names
    known = dict.fromkeys([*names, *filter(None, (name.rpartition(".")[0] for name in names))])
    for name in layers or ():
        if name not in known:
            raise unknown_name("tensor or layer", name, known)


def _members(rows: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """The rows that make the universe: the reference, or runs spread evenly over the population."""
    rows = rows.sort("run")
    if settings.method in TO_ONE:
        return rows.head(1) if settings.reference is None else rows.filter(pl.col("run") == settings.reference)
    if len(rows) <= settings.members:
        return rows
    return rows[np.linspace(0, len(rows) - 1, settings.members).round().astype(int).tolist()]


def restricted(symmetry: Symmetry, layers: Iterable[str] | None) -> Symmetry:
    """The symmetry with the groups of these tensors free alone, all others fixed."""
    if layers is None:
        return symmetry
    touched = chosen_groups(symmetry, layers=layers)
    groups = {name: g if name in touched else replace(g, fixed=True) for name, g in symmetry.groups.items()}
    return Symmetry(symmetry.layout, symmetry.axes, groups)


def cost_of(zoo: Zoo, settings: Settings, jobs: Sequence[Job]) -> Cost:
    """Matching a few models of each variant is timed; a universe takes about as many rounds as it usually does."""
    seconds, memory = 0.0, 0
    options = {"restarts": settings.restarts, "seed": settings.seed, "sweeps": settings.sweeps}
    for job in (job for job in jobs if len(job.rows)):
        few = zoo.read(job.rows.head(PROBE + 1), dtype="float32")
        reference = few[0] if job.view is None else job.view.universe
        making = len(job.members) if job.view is None and len(job.members) > 1 else 0
        free = restricted(job.symmetry, settings.layers)
        matching = estimate(free, len(job.rows) + ROUNDS * making, weights=few, reference=reference, **options)
        held = max(making, min(len(job.rows), BYTES // (4 * job.symmetry.layout.size)))
        seconds += matching.seconds
        memory = max(memory, matching.bytes + 3 * held * 4 * job.symmetry.layout.size)  # read, scaled, moved
    return Cost(sum(len(job.rows) for job in jobs), sum(job.done for job in jobs), seconds, memory)
