"""From what an importer found to a zoo: runs of one layout are a variant, their epochs its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import SourceError
from catalog.fragments import software
from catalog.importers.found import NO_LAYOUT, OWN, SMALL, SPARSE, BrokenError, Found, Tensors
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
        epochs: (models, checkpoints); what stands where there is no member is no epoch that the run has.
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
        places, epochs = _grid(members, runs)
        name = "net" if len(numbers) == 1 else f"net-{layout.size}-{layout.fingerprint[:8]}"
        variant = make_variant(name, layout, len(runs), places.shape[1], dtype, architecture)
        parts.append(Part(variant, layout, runs, places, epochs))
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


def _grid(members: pl.DataFrame, runs: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Where each run and epoch goes: row numbers and epochs, (models, checkpoints).

    Checkpoints are lined up by epoch, so that a position means the same for all runs, unless that makes far more rows
    than there are networks; then those of a run follow one another.
    """
    mine = members.with_row_index("at").filter(pl.col("run").is_in(list(runs)))
    union = mine["epoch"].unique().sort().to_numpy()
    numbers = {run: number for number, run in enumerate(runs)}
    model = np.array([numbers[run] for run in mine["run"]], np.int64)
    epoch, at = mine["epoch"].to_numpy(), mine["at"].to_numpy().astype(np.int64)
    lined_up = len(runs) * len(union) <= max(SPARSE * len(mine), SMALL)
    if lined_up:
        checkpoint = np.searchsorted(union, epoch)
        epochs = np.broadcast_to(union, (len(runs), len(union))).copy()
    else:
        order = np.lexsort((epoch, model))
        model, epoch, at = model[order], epoch[order], at[order]
        first = np.searchsorted(model, model)
        checkpoint = np.arange(len(model)) - first
        width = int(checkpoint.max()) + 1
        lowest = min(int(epoch.min()), 0)  # below it there is room for what no run has
        epochs = np.broadcast_to(lowest - 1 - np.arange(width), (len(runs), width)).copy()
        epochs[model, checkpoint] = epoch
    places = np.full(epochs.shape, -1, np.int64)
    places[model, checkpoint] = at
    return places, epochs


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


def memory_of(parts: list[Part]) -> int:
    """Bytes of weights held at once: a shard, as read and as written."""
    return max(
        2 * part.variant.grid.shard[0] * math.prod(part.variant.grid.shape[1:]) * part.variant.grid.itemsize
        for part in parts
    )
