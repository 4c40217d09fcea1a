"""Which rows are measured, with which partners, and how they are cut into units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from catalog.errors import MissingDataError, QueryError
from catalog.metrics import measurements, version_of
from catalog.store import Zoo
from catalog.table import query
from zoo.landscape.metric import Metric
from zoo.landscape.units import Unit
from zoo.plan import Plan

ROWS = 64  # of a unit at most
BYTES = 1 << 28  # of a unit's weights
PLACE = ("variant", "model", "checkpoint")


@dataclass(frozen=True)
class Work:
    """What is to be done for one metric.

    Args:
        units: rows to measure. refused: rows that cannot be measured, as they are stored: with a reason.
        done: rows that have a value already. values: rows with a value in this version, chosen or not.
    """

    metric: str
    settings: Mapping[str, Any]
    units: tuple[Unit, ...]
    refused: pl.DataFrame
    done: int
    values: int

    @property
    def rows(self) -> int:
        return sum(len(unit.rows) for unit in self.units)


def chosen_rows(zoo: Zoo, where: str | None = None, epoch: int | None = None) -> pl.DataFrame:
    """Rows to measure, diverged ones too: those that fit the condition, at an epoch; the last of each run without one.

    Raises:
        QueryError, UnknownNameError: see `catalog.table.query`. MissingDataError: no row is at that epoch.
    """
    rows = query(zoo, where, status=None, columns=zoo.scan(None).collect_schema().names())
    if epoch is None:
        rows = rows.filter(pl.col("epoch") == pl.col("epoch").max().over("run"))
    elif len(rows):
        found = rows.filter(pl.col("epoch") == epoch)
        if not len(found):
            epochs = ", ".join(map(str, rows["epoch"].unique().sort().to_list()[:20]))
            raise MissingDataError(f"no row of {zoo.url} is at epoch {epoch}; there are epochs {epochs}")
        rows = found
    if not len(rows):
        raise QueryError(f"no rows of {zoo.url} to measure" + (f": none fits {where!r}" if where else " are built yet"))
    return rows


def plan_work(
    zoo: Zoo,
    plan: Plan,
    name: str,
    metric: Metric,
    settings: Mapping[str, Any],
    rows: pl.DataFrame,
    everything: pl.DataFrame,
    workers: int,
) -> Work:
    """Units of the rows that have no value yet in this version, and the rows that cannot have one.

    Args:
        everything: all rows of the zoo, among which partners and histories are.
    """
    known = measurements(zoo, [name]).get(f"{name}@{version_of(metric.version, settings)}")
    done = pl.DataFrame(schema={"run": pl.String, "epoch": pl.Int64})
    if known is not None:
        done = known.rows.filter(pl.col(name).is_not_null()).select("run", "epoch")
    chosen = len(rows)
    rows = rows.join(done, on=["run", "epoch"], how="anti", maintain_order="left")
    others = _in_frame(zoo, settings.get("frame"), rows, _others(metric, settings, rows, everything), everything)
    refused = [
        (run, epoch, found)
        for run, epoch, found in zip(rows["run"], rows["epoch"], others, strict=True)
        if isinstance(found, str)
    ]
    measurable = pl.Series([not isinstance(found, str) for found in others], dtype=pl.Boolean)
    kept = [found for found in others if not isinstance(found, str)]
    units = tuple(_units(zoo, plan, name, metric, settings, rows.filter(measurable), kept, workers))
    refusals = _refused(name, refused, known.rows if known else None)
    return Work(name, settings, units, refusals, chosen - len(rows), len(done))


def _refused(name: str, refused: Sequence[tuple[str, int, str]], known: pl.DataFrame | None) -> pl.DataFrame:
    """Rows with a reason in the place of a value, those alone that do not say so already."""
    runs, epochs, reasons = zip(*refused, strict=True) if refused else ((), (), ())
    columns = {
        "run": pl.Series(runs, dtype=pl.String),
        "epoch": pl.Series(epochs, dtype=pl.Int64),
        name: pl.Series([None] * len(runs), dtype=pl.Float64),
        f"{name}_se": pl.Series([None] * len(runs), dtype=pl.Float64),
        f"{name}_reason": pl.Series(reasons, dtype=pl.String),
    }
    found = pl.DataFrame(columns)
    if known is None:
        return found
    return found.join(known, on=["run", "epoch", f"{name}_reason"], how="anti", maintain_order="left")


Found = str | tuple[tuple[tuple[str, int, int], ...], str]  # why not, or addresses of the others and the partner's run


def _others(metric: Metric, settings: Mapping[str, Any], rows: pl.DataFrame, everything: pl.DataFrame) -> list[Found]:
    """What each row is compared with, or why it cannot be measured."""
    ok = everything.filter(pl.col("status") == "ok").sort("seed", "run")
    by_cell: dict[Any, list[Any]] = {}
    by_run: dict[Any, list[Any]] = {}
    for stored in ok.select("cell", "run", "checkpoint", "variant", "model").iter_rows():
        by_cell.setdefault((stored[0], stored[2]), []).append(stored)
        by_run.setdefault(stored[1], []).append(stored)
    found: list[Found] = []
    named: Iterable[dict[str, Any]] = rows.select("run", "cell", "checkpoint", "status", "reason").to_dicts()
    for row in named:
        if row["status"] != "ok":
            found.append(f"the run {row['status']}: {row['reason']}")
        elif metric.needs == "model":
            found.append(((), ""))
        elif metric.needs == "history":
            past = [r for r in by_run[row["run"]] if r[2] <= row["checkpoint"]]
            found.append(_history(sorted(past, key=lambda r: r[2]), int(settings["checkpoints"])))
        else:
            cell = by_cell[row["cell"], row["checkpoint"]]
            found.append(_in_cell(cell, row["run"], metric.needs == "partner"))
    return found


def _in_frame(
    zoo: Zoo, frame: str | None, rows: pl.DataFrame, others: list[Found], everything: pl.DataFrame
) -> list[Found]:
    """The same, with a reason for rows that cannot be seen in the frame, or what they are compared with cannot."""
    if frame is None:
        return others
    views = {variant: zoo.frame(frame, variant) for variant in zoo.frames()[frame]}
    ok = everything.filter(pl.col("status") == "ok")
    aligned = {
        tuple(place)
        for *place, run, epoch in ok.select(*PLACE, "run", "epoch").iter_rows()
        if place[0] in views and views[place[0]].place(run, epoch) is not None
    }
    reason = f"its run, or one that it is compared with, is not in frame {frame!r}; `weightscape align` adds it"
    places: Iterable[tuple[Any, ...]] = rows.select(*PLACE).iter_rows()
    return [
        found if isinstance(found, str) or aligned.issuperset({place, *found[0]}) else reason
        for place, found in zip(places, others, strict=True)
    ]


def _history(past: Sequence[Any], count: int) -> Found:
    if len(past) < count:
        return f"it needs {count} checkpoints up to this one, {len(past)} are stored"
    return tuple((r[3], r[4], r[2]) for r in past[-count:]), ""


def _in_cell(cell: Sequence[Any], run: str, pair: bool) -> Found:
    """The next seed of the cell, in a ring, or all its seeds with the run first."""
    place = [r[1] for r in cell].index(run)
    if len(cell) < 2:
        return "no partner: no other run of its cell has weights at this checkpoint"
    if pair and len(cell) == 2 and place == 1:
        return f"its pair is measured from the other side, at run {cell[0][1]}"
    turned = [*cell[place:], *cell[:place]]
    taken = turned[1:2] if pair else turned
    return tuple((r[3], r[4], r[2]) for r in taken), turned[1][1] if pair else ""


def _units(
    zoo: Zoo,
    plan: Plan,
    name: str,
    metric: Metric,
    settings: Mapping[str, Any],
    rows: pl.DataFrame,
    others: Sequence[Any],
    workers: int,
) -> Iterator[Unit]:
    """Rows of a variant with the same data, loss and number of others; a share for each worker, if they are few."""
    groups: dict[Any, list[Any]] = {}
    places: Iterable[tuple[Any, ...]] = rows.select("run", "epoch", *PLACE).iter_rows()
    for row, other in zip(places, others, strict=True):
        run = plan.runs[row[2]][row[3]]
        used = run.samples
        samples = _samples(plan, settings, used)
        key = row[2], run.values["loss_function"], samples, used, len(other[0])
        groups.setdefault(key, []).append((row, other))
    for (variant, loss_function, samples, used, count), members in groups.items():
        size = zoo.record.variant(variant).layout.size
        fit = max(BYTES // (4 * size * (1 + count)), 1)
        each = min(ROWS, fit, -(-len(members) // max(workers, 1)))
        for first in range(0, len(members), each):
            part = members[first : first + each]
            yield Unit(
                name,
                dict(settings),
                variant,
                loss_function,
                samples,
                used,
                tuple(row[0] for row, _ in part),
                tuple(row[1] for row, _ in part),
                tuple((row[3], row[4]) for row, _ in part),
                tuple(tuple((model, checkpoint) for _, model, checkpoint in other[0]) for _, other in part),
                tuple(other[1] for _, other in part) if metric.needs == "partner" else (),
            )


def _samples(plan: Plan, settings: Mapping[str, Any], used: int) -> int:
    """Samples of the slice: no more than the split has, of training ones than the run was trained on."""
    if "split" not in settings:
        return 0
    most = min(used, plan.data.num_train) if settings["split"] == "train" else plan.data.num_test
    return most if settings["samples"] is None else min(settings["samples"], most)


def cost(units: Sequence[Unit], metric: Metric, plan: Plan) -> float:
    """Multiply-adds of all units, roughly."""
    total = 0.0
    for unit in units:
        architecture = plan.runs[unit.variant][0].architecture
        once = 6 * len(unit.rows) * max(unit.samples, 1) * architecture.layout.size
        total += once * metric.passes(unit.settings, architecture)
    return total
