"""Phases and diagnoses as columns of a zoo, stored as versions that name the rule and what it was read from."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from catalog.errors import InvalidSpecError, unknown_name
from catalog.fragments import software
from catalog.metrics import Measurement, plain_versions, replace_measurement, version_of
from catalog.store import Zoo, open_zoo
from zoo.cells import cell_means, keys, require
from zoo.diagnosis import VALIDATION, diagnose, failure_source, judge
from zoo.landscape.select import chosen_rows
from zoo.md_tree import SHAPES, MDTree, fit_md_tree, roles_of
from zoo.phases import LABELS, RULES, Rule, label_rows

METRIC = "phase"
DEFAULT = "yang"
ACCURACY = "test_accuracy"


@dataclass(frozen=True)
class Labels:
    """What a rule said: the rows with their labels, and the version it is stored as."""

    version: str
    rule: Rule
    rows: pl.DataFrame

    def by_phase(self) -> pl.DataFrame:
        """One row a phase: cells, runs, outliers, mean and standard error over cells of what the rule read."""
        rule = self.rule
        read = (rule.test_accuracy, rule.loss, rule.connectivity, rule.similarity)
        columns = [name for name in read if name in self.rows.columns]
        keys = ["cell"] if "cell" in self.rows.columns else ["load", "temperature"]
        cells = self.rows.group_by([METRIC, *keys]).agg(
            pl.len().alias("runs"), pl.col("phase_outlier").first(), *(pl.col(name).mean() for name in columns)
        )
        return (
            cells.group_by(METRIC)
            .agg(
                pl.len().alias("cells"),
                pl.col("runs").sum(),
                pl.col("phase_outlier").sum().alias("outliers"),
                *(pl.col(name).mean() for name in columns),
                *((pl.col(name).std() / pl.len().sqrt()).alias(f"{name}_se") for name in columns),
            )
            .sort(METRIC, nulls_last=True)
        )


def label(
    url: str | os.PathLike[str],
    rule: str = DEFAULT,
    *,
    settings: Mapping[str, Any] | None = None,
    where: str | None = None,
    epoch: int | None = None,
    metrics_at: str | os.PathLike[str] | None = None,
    versions: Mapping[str, str] | None = None,
    **storage_options: Any,
) -> Labels:
    """Give rows of a zoo their phase and store it. A label follows from other columns; it is replaced as they change.

    Args:
        rule: a name in `zoo.rules.RULES`. settings: thresholds and columns that differ from its.
        where, epoch: which rows, as for `zoo.landscape.measure.measure`; a condition may split a grid and hide the
            neighbours that tell outliers.
        versions: metric -> version to read, where several are measured.

    Raises:
        UnknownNameError, InvalidSpecError: rule or settings. QueryError: a column that is not measured yet.
    """
    if rule not in RULES:
        raise unknown_name("phase rule", rule, RULES)
    zoo = open_zoo(url, metrics_at=metrics_at, versions=versions, **storage_options)
    chosen = _chosen(zoo, RULES[rule], settings or {})
    read = _read(zoo, _columns(chosen))
    rows = label_rows(chosen_rows(zoo, where, epoch), chosen)
    used = {**chosen.settings(), "read": read}
    default = rule == DEFAULT and not settings and not versions
    version = version_of(chosen.version, used)
    names = [name for name in (*LABELS, "phase_of_run") if name in rows.columns]
    stored = rows.select("run", "epoch", *names)
    replace_measurement(zoo, Measurement(METRIC, version, used, default, stored, software()))
    return Labels(version, chosen, rows)


@dataclass(frozen=True)
class Diagnosis:
    """What an MD tree says of the cells it was fitted to, and how good it is on others.

    Args:
        cells: of `zoo.diagnosis.diagnose`. judged: of `zoo.diagnosis.judge`, with whole loads held out.
    """

    version: str
    tree: MDTree
    cells: pl.DataFrame
    judged: pl.DataFrame


def label_md_tree(
    url: str | os.PathLike[str],
    shape: str = "source",
    *,
    where: str | None = None,
    epoch: int | None = None,
    metrics_at: str | os.PathLike[str] | None = None,
    versions: Mapping[str, str] | None = None,
    **storage_options: Any,
) -> Diagnosis:
    """Fit an MD tree to the grid of a zoo, judge it on cells held out, and store its diagnosis of each row.

    Args:
        shape: a name in `zoo.md_tree.SHAPES`: source (is load or temperature the worse failure) or side (is the
            temperature too low or too high). The others as for `label`.

    Raises:
        UnknownNameError: no such shape. QueryError: a column that is not measured yet, or no grid.
        InvalidSpecError: too few cells to hold some out.
    """
    if shape not in SHAPES:
        raise unknown_name("shape of an MD tree", shape, SHAPES)
    zoo = open_zoo(url, metrics_at=metrics_at, versions=versions, **storage_options)
    rows = chosen_rows(zoo, where, epoch)
    used = sorted(roles_of(shape, {}).values())
    require(rows, (ACCURACY, *used), numbers=True)
    sound = rows.filter(pl.col("status") == "ok")
    means = cell_means(sound, list(dict.fromkeys((*VALIDATION, *used))), keys(sound))
    truth = failure_source(means, ACCURACY)
    tree = fit_md_tree(truth, truth[f"failure_{shape}"], shape)
    judged = judge(truth, truth[f"failure_{shape}"], shape, by="load")
    cells = diagnose(rows, tree, ACCURACY)
    by = keys(rows)
    names = ["diagnosis", "diagnosis_path", "diagnosis_reason", "failure_source", "failure_side"]
    stored = rows.join(cells.select(*by, *names), on=by, how="inner", nulls_equal=True, maintain_order="left")
    settings = {**tree.settings(), "read": _read(zoo, used)}
    version = version_of(tree.version, settings)
    found = Measurement(
        "md_tree", version, settings, shape == "source", stored.select("run", "epoch", *names), software()
    )
    replace_measurement(zoo, found)
    return Diagnosis(version, tree, cells, judged)


def _read(zoo: Zoo, columns: Collection[str]) -> dict[str, str]:
    """Metric -> version, of those that these columns are of."""
    plain = plain_versions(zoo)
    found = zoo.measurements()
    return {name: version for name, version in plain.items() if set(found[f"{name}@{version}"].columns) & set(columns)}


def _chosen(zoo: Zoo, rule: Rule, settings: Mapping[str, Any]) -> Rule:
    """The rule with these settings; chance from the number of classes, where the rule leaves it open."""
    known = {name for name in rule.settings() if name not in ("name", "version")}
    for name in settings:
        if name not in known:
            raise unknown_name("setting of a phase rule", name, known)
    classes = (zoo.record.info.get("data") or {}).get("num_classes")
    if isinstance(classes, int) and classes > 1 and rule.chance is None:
        rule = replace(rule, chance=1 / classes)
    try:
        return replace(rule, **settings)
    except TypeError as error:
        raise InvalidSpecError(f"settings of a phase rule are numbers and names of columns: {error}") from error


def _columns(rule: Rule) -> tuple[str, ...]:
    return rule.loss, rule.connectivity, rule.similarity, rule.accuracy, rule.test_accuracy
