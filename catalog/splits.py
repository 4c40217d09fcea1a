"""Which lineages are to learn from, to choose by and to report on: the measured column `split`, stored with the zoo."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import QueryError, unknown_name
from catalog.fragments import software
from catalog.metrics import KEYS, Measurement, plain_versions, replace_measurement, version_of
from catalog.store import Zoo, open_zoo

METRIC = "split"
SPLITS = ("train", "validation", "test")
DEFINITION = 1  # of how lineages are drawn
DEFAULT: dict[str, Any] = {"fractions": [0.8, 0.1, 0.1], "seed": 0, "by": ["run"], "stratify": []}


def split(
    zoo: Zoo | str | os.PathLike[str],
    *,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    by: str | Iterable[str] = "run",
    stratify: str | Iterable[str] | None = None,
    **storage_options: Any,
) -> pl.DataFrame:
    """Put each lineage, with all its checkpoints, into one split, and store that as the measured column `split`.

    Who goes where follows from the seed and the names of the runs, not from the order of anything. A run that has no
    weights at all has no split. Other arguments are another version of the column, see `catalog.metrics`; the same
    ones again replace what is there, for when runs were added.

    Args:
        zoo: or where one is, with options for `catalog.open`.
        fractions: shares of train, validation and test, which add up to 1. The counts are the nearest whole ones, and
            none is 0.
        by: runs that are equal in all of these columns are one lineage, such as "seed" for runs from one
            initialisation. A run without a value is one of its own; one whose value is the name of a run, as in a
            column "parent", belongs to that.
        stratify: columns whose values each split has in like shares, as far as whole lineages allow.

    Returns:
        run, epoch, split: "train", "validation" or "test"; a row for each row of those runs.

    Raises:
        QueryError: arguments that make no sense, fewer than three lineages, a column that changes within a run or (for
            `stratify`) within a lineage, or one called split already. UnknownNameError: a column that is not there.
        StorageError: the zoo cannot be written; `metrics_at` names another place.
    """
    names, strata = _columns(by), _columns(stratify or ())
    settings: dict[str, Any] = {
        "fractions": [float(share) for share in fractions],
        "seed": seed,
        "by": names,
        "stratify": strata,
    }
    _check(settings)
    zoo = zoo if isinstance(zoo, Zoo) else open_zoo(zoo, **storage_options)
    rows = zoo.table()
    if METRIC in zoo.table(metrics=False).columns:
        raise QueryError(f"{zoo.url} was written with a column {METRIC}, which this would hide; use that one")
    for name in (*names, *strata):
        if name not in rows.columns:
            raise unknown_name("column", name, rows.columns)
    runs = _runs(rows.filter(pl.col("run").is_in(rows.filter("stored")["run"].unique().implode())), {*names, *strata})
    lineages = _lineages(runs, names, seed)
    counts = whole_counts(settings["fractions"], lineages["lineage"].n_unique())
    named = _assign(_with_strata(lineages, strata), counts)
    found = rows.select(list(KEYS)).join(named, on="run", how="inner", maintain_order="left").sort(list(KEYS))
    version = version_of(DEFINITION, settings)
    replace_measurement(zoo, Measurement(METRIC, version, settings, settings == DEFAULT, found, software()))
    return found


def stored_split(zoo: Zoo) -> pl.DataFrame | None:
    """run, split of every run that has one; None where no split is stored.

    Raises:
        QueryError: several are, and none of them is the one that goes without being named.
    """
    found = {name: one for name, one in zoo.measurements().items() if one.metric == METRIC}
    if not found:
        return None
    version = plain_versions(zoo).get(METRIC)
    if version is None:
        known = ", ".join(one.version for one in found.values())
        raise QueryError(
            f"{zoo.url} has several splits ({known}); say which: catalog.open(url, versions={{'{METRIC}': '...'}})"
        )
    rows = found[f"{METRIC}@{version}"].rows
    return rows.select("run", METRIC).drop_nulls().unique("run", keep="first").sort("run")


def whole_counts(fractions: Sequence[float], count: int) -> list[int]:
    """So many things in shares, by largest remainder; a share without any takes one from the largest.

    >>> whole_counts([0.8, 0.1, 0.1], 24)
    [19, 3, 2]

    Raises:
        QueryError: fewer things than shares.
    """
    if count < len(fractions):
        raise QueryError(f"{len(fractions)} splits need as many lineages with weights or more, got {count}; build more")
    exact = np.array(fractions) * count
    counts = np.floor(np.round(exact, 9)).astype(np.int64)  # 0.7 * 10 is a little less than 7
    left = np.argsort(-np.round(exact - counts, 9), kind="stable")
    counts[left[: count - counts.sum()]] += 1
    while not counts.all():
        counts[[counts.argmax(), counts.argmin()]] += [-1, 1]
    return [int(number) for number in counts]


def _columns(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _check(settings: dict[str, Any]) -> None:
    fractions = settings["fractions"]
    if len(fractions) != len(SPLITS) or not all(share > 0 for share in fractions) or abs(sum(fractions) - 1) > 1e-9:
        raise QueryError(f"fractions are shares of {', '.join(SPLITS)} above 0 that add up to 1, got {fractions}")
    if type(settings["seed"]) is not int or not 0 <= settings["seed"] < 2**63:
        raise QueryError(f"the seed of a split is an integer from 0 to 2**63 - 1, got {settings['seed']!r}")
    if not settings["by"]:
        raise QueryError("by names the columns that make a lineage; 'run' for each run alone")


def _runs(rows: pl.DataFrame, columns: Iterable[str]) -> pl.DataFrame:
    """A row for each run, sorted, with these columns, which must not change within a run."""
    names = sorted(set(columns) - {"run"})
    counts = rows.group_by("run").agg(pl.col(names).n_unique()).sort("run")
    for name in names:
        if len(odd := counts.filter(pl.col(name) > 1)):
            raise QueryError(f"column {name} has several values in run {odd['run'][0]}; a lineage is of whole runs")
    return rows.select("run", *names).unique("run", keep="any").sort("run")


def _lineages(runs: pl.DataFrame, by: list[str], seed: int) -> pl.DataFrame:
    """The runs with `lineage`, the first run in it by name, and `order`, a digest of that and the seed."""
    first: dict[str, str] = {run: run for run in runs["run"]}

    def top(run: str) -> str:
        while first[run] != run:
            first[run] = first[first[run]]  # halves the way for those that come later
            run = first[run]
        return run

    def join(one: str, other: str) -> None:
        one, other = sorted((top(one), top(other)))
        first[other] = one

    seen: dict[tuple[Any, ...], str] = {}
    for run, *values in runs.select("run", *(pl.col(name).alias(f"by {name}") for name in by)).iter_rows():
        if None in values:
            continue
        join(run, seen.setdefault(tuple(values), run))
        if len(values) == 1 and type(values[0]) is str and values[0] in first:
            join(run, values[0])
    lineages = [top(run) for run in runs["run"]]
    order = [hashlib.sha256(f"{seed}\n{lineage}".encode()).hexdigest() for lineage in lineages]
    return runs.with_columns(pl.Series("lineage", lineages), pl.Series("order", order))


def _with_strata(lineages: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """With `stratum`, the least `order` of the lineages that are equal in these columns."""
    counts = lineages.group_by("lineage").agg(pl.col(columns).n_unique()).sort("lineage") if columns else None
    for name in columns:
        if counts is not None and len(odd := counts.filter(pl.col(name) > 1)):
            raise QueryError(
                f"column {name} has several values in the lineage of run {odd['lineage'][0]}; what it is to be "
                "stratified by must be one in each lineage"
            )
    least = pl.col("order").min()
    return lineages.with_columns(stratum=least.over(columns) if columns else least)


def _assign(lineages: pl.DataFrame, counts: Sequence[int]) -> pl.DataFrame:
    """run, split. Strata lie one behind the other; up to the end of each, every split has its share, rounded."""
    some = lineages.unique("lineage").sort("stratum", "order").select("lineage", "stratum")
    ends = [0, *np.cumsum(some.group_by("stratum", maintain_order=True).len()["len"].to_numpy()).tolist()]
    trained, total = counts[0], sum(counts)
    names: list[str] = []
    before = np.zeros(3, np.int64)
    for end in ends[1:]:
        train = (2 * end * trained + total) // (2 * total)  # rounded in integers, to the same everywhere
        rest = end - train
        validation = (2 * rest * counts[1] + total - trained) // (2 * (total - trained))
        now = np.array([train, validation, rest - validation])
        names += [name for name, number in zip(SPLITS, now - before, strict=True) for _ in range(number)]
        before = now
    named = some.select("lineage", pl.Series(METRIC, names, dtype=pl.String))
    return lineages.join(named, on="lineage", how="left").select("run", METRIC).sort("run")
