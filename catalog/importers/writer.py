"""From what an importer found to a zoo: runs of one layout are a variant, their epochs its checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import SourceError
from catalog.fragments import software
from catalog.importers.found import NO_LAYOUT, OWN, SMALL, SMALL_WEIGHTS, SPARSE, BrokenError, Found, Tensors
from catalog.record import Variant, brief
from catalog.store import Zoo
from catalog.write import create, make_variant, write_shard
from weightspace.arrays import INTEGERS, check_exact
from weightspace.layout import Layout

NOTHING = "the source has no checkpoint of this run here"
HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Part:
    """A variant with the members that fill it: (models, checkpoints) row numbers of `Found.members`, -1 for none.

    Args:
        epochs: (models, checkpoints), also where there is no member.
    """

    variant: Variant
    layout: Layout
    runs: tuple[str, ...]
    places: np.ndarray
    epochs: np.ndarray


def plan(found: Found, architecture: Mapping[str, Any]) -> tuple[str, list[Part]]:
    """Type of the weights, and the variants with their members.

    Raises:
        SourceError: nothing in the source can be read.
    """
    members = found.members
    readable = members.filter(pl.col("layout") != NO_LAYOUT)
    if not len(readable):
        why = members["reason"].unique().sort().head(3).to_list() or ["it holds no networks"]
        raise SourceError(f"nothing in the source can be read: {'; '.join(why)[:600]}")
    dtype = stored_type([found.layouts[number] for number in readable["layout"].unique().sort()])
    owners = _layout_of_runs(members)
    parts = []
    numbers = sorted(set(owners.values()))
    for number in numbers:
        layout = found.layouts[number]
        runs = tuple(sorted(run for run, owner in owners.items() if owner == number))
        name = "net" if len(numbers) == 1 else f"net-{layout.size}-{layout.fingerprint[:8]}"
        grids = _grids(members, runs, layout.size)
        for together, places, epochs in grids:
            apart = name if len(grids) == 1 else f"{name}-{places.shape[1]}"
            variant = make_variant(apart, layout, len(together), places.shape[1], dtype, architecture)
            parts.append(Part(variant, layout, together, places, epochs))
    return dtype, parts


def stored_type(layouts: list[Layout]) -> str:
    """float32, or the 16-bit type that all tensors have; integers are exact in float32 only."""
    kinds = {dtype for layout in layouts for dtype in layout.dtypes}
    return kinds.pop() if len(kinds) == 1 and kinds <= set(HALF) else "float32"


def _layout_of_runs(members: pl.DataFrame) -> dict[str, int]:
    """Run -> the layout that most of its checkpoints have; that of most networks where none can be read."""
    counted = (
        members.filter(pl.col("layout") != NO_LAYOUT)
        .group_by("run", "layout")
        .len()
        .sort("run", "len", "layout", descending=[False, True, False])
    )
    most = counted.group_by("layout").agg(pl.col("len").sum()).sort("len", "layout", descending=[True, False])
    owners = dict.fromkeys(members["run"].unique().to_list(), most["layout"][0])
    return owners | dict(counted.unique("run", keep="first", maintain_order=True).select("run", "layout").iter_rows())


def _grids(members: pl.DataFrame, runs: tuple[str, ...], size: int) -> list[tuple[tuple[str, ...], Any, Any]]:
    """Runs that go into a grid, with the row numbers and the epochs, (models, checkpoints).

    Checkpoints are lined up by epoch, so that a position means the same for all runs, with holes where a run lacks one.
    Where that would be mostly holes, runs with as many checkpoints are a grid, each with its own epochs in order.
    """
    mine = members.with_row_index("at").filter(pl.col("run").is_in(list(runs)))
    epochs = mine["epoch"].unique().sort().to_numpy()
    real, rows = len(mine.filter(pl.col("source") != "")), len(runs) * len(epochs)
    if rows <= SPARSE * real or (rows <= SMALL and rows * size <= SMALL_WEIGHTS):
        numbers = {run: number for number, run in enumerate(runs)}
        model = np.array([numbers[run] for run in mine["run"]], np.int64)
        places = np.full((len(runs), len(epochs)), -1, np.int64)
        places[model, np.searchsorted(epochs, mine["epoch"].to_numpy())] = mine["at"].to_numpy()
        return [(runs, places, np.broadcast_to(epochs, places.shape))]
    found = []
    by_run = mine.filter(pl.col("source") != "").sort("run", "epoch").group_by("run", maintain_order=True)
    lineages = by_run.agg("at", "epoch").with_columns(pl.col("at").list.len().alias("count"))
    for _, alike in lineages.sort("count", "run").group_by("count", maintain_order=True):
        found.append(
            (tuple(alike["run"]), np.array(alike["at"].to_list(), np.int64), np.array(alike["epoch"].to_list()))
        )
    return found


def write(
    target: Any,
    name: str,
    found: Found,
    parts: list[Part],
    info: Mapping[str, Any],
    spec: Mapping[str, Any],
    progress: Callable[[int, int], None] | None,
    **storage: Any,
) -> Zoo:
    """The zoo: its shards one after the other, those that are committed passed over."""
    zoo = create(target, name=name, variants=[part.variant for part in parts], spec=spec, info=info, **storage)
    committed = zoo.committed()
    by_name = {part.variant.name: part for part in parts}
    total, done = sum(part.places.size for part in parts), 0
    for variant, shard in zoo.record.shards:
        part = by_name[variant]
        models = part.variant.grid.models(shard)
        if (variant, shard) not in committed:
            weights, rows = shard_of(found, part, models)
            write_shard(zoo, variant, shard, weights, rows, software(format=found.format))
            del weights
        done += len(models) * part.places.shape[1]
        if progress:
            progress(done, total)
    return zoo


def shard_of(found: Found, part: Part, models: range) -> tuple[np.ndarray, pl.DataFrame]:
    """Weights (models, checkpoints, size) and rows of a shard; what cannot be read is NaN, with the reason."""
    places, epochs = part.places[models.start : models.stop], part.epochs[models.start : models.stop]
    kind = "float16" if part.variant.grid.dtype == "float16" else "float32"
    weights = np.full((*places.shape, part.layout.size), np.nan, kind)
    status = [["failed"] * places.shape[1] for _ in models]
    reason = [[NOTHING] * places.shape[1] for _ in models]
    known = found.members.select("layout", "reason", "source")
    for model, checkpoint in np.argwhere(places >= 0).tolist():
        at = int(places[model, checkpoint])
        layout, why, _ = known.row(at)
        if layout == NO_LAYOUT:
            reason[model][checkpoint] = why
            continue
        try:
            if found.layouts[layout] is not part.layout:
                raise BrokenError(_other_layout(found.layouts[layout], part.layout))
            fill(weights[model, checkpoint], part.layout, found.load(at))
        except BrokenError as error:
            reason[model][checkpoint] = str(error)
            weights[model, checkpoint] = np.nan
            continue
        finite = bool(np.isfinite(weights[model, checkpoint]).all())
        status[model][checkpoint] = "ok" if finite else "diverged"
        reason[model][checkpoint] = "" if finite else f"weights are not finite as {part.variant.grid.dtype}"
    flat = places.reshape(-1)
    there = flat >= 0
    own = pl.DataFrame(
        {
            "run": np.repeat([part.runs[model] for model in models], places.shape[1]).tolist(),
            "epoch": epochs.reshape(-1).astype(np.int64),
            "status": [value for row in status for value in row],
            "reason": [value[:1000] for row in reason for value in row],
            "stored": [value == "ok" for row in status for value in row],
        }
    )
    # a row that the source has nothing of has nulls: taken from a row of nulls behind the last
    columns = found.members.drop([name for name in OWN if name != "source"])
    taken = columns[np.where(there, flat, 0).tolist()]
    mask = pl.Series(there)
    taken = taken.select(pl.when(mask).then(pl.col(name)).alias(name) for name in columns.columns)
    return weights, pl.concat([own, taken.with_columns(pl.col("source").fill_null(""))], how="horizontal")


def fill(out: np.ndarray, layout: Layout, tensors: Tensors) -> None:
    """Write tensors into a vector of weights.

    Raises:
        BrokenError: tensors of another layout than before (the file has changed), or integers that do not fit a float.
    """
    if set(tensors) != set(layout.names):
        raise BrokenError(f"it holds other tensors than it did before: {sorted(set(tensors) ^ set(layout.names))[:3]}")
    for name, shape, dtype in zip(layout.names, layout.shapes, layout.dtypes, strict=True):
        value = tensors[name]
        if value.shape != shape:
            raise BrokenError(f"tensor {name!r} has shape {value.shape}, it was {shape}")
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite and seen as such
            layout.tensor(out, name)[...] = value
        if dtype in INTEGERS:
            try:
                check_exact(name, value, layout.tensor(out, name))
            except ValueError as error:
                raise BrokenError(brief(error)) from error


def _other_layout(found: Layout, expected: Layout) -> str:
    """What differs between a checkpoint and the others of its run."""
    ours, theirs = ({n: (s, d) for n, s, d in zip(x.names, x.shapes, x.dtypes, strict=True)} for x in (found, expected))
    for name in {**theirs, **ours}:
        if ours.get(name) != theirs.get(name):
            said = [str(x.get(name, "nothing")) for x in (ours, theirs)]
            return f"tensor {name[:80]!r} is {said[0]}, in other checkpoints of the run {said[1]}"
    return "it ties other tensors than other checkpoints of the run"


def bytes_of(parts: list[Part]) -> int:
    """Bytes of weights that will be written."""
    return sum(math.prod(part.variant.grid.shape) * part.variant.grid.itemsize for part in parts)


def check_memory(parts: list[Part]) -> None:
    """Raise SourceError where a shard, which holds all checkpoints of a run, is larger than this machine's memory."""
    have, need = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_of(parts)
    if need > have:
        raise SourceError(
            f"a run with all its checkpoints takes {need:,} bytes of memory, this machine has {have:,}; import on a "
            "larger one, or a source with fewer checkpoints of a run"
        )


def memory_of(parts: list[Part]) -> int:
    """Bytes of weights held at once: a shard, as read and as written."""
    return max(
        2 * part.variant.grid.shard[0] * math.prod(part.variant.grid.shape[1:]) * part.variant.grid.itemsize
        for part in parts
    )
