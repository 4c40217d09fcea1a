"""Phases as columns of a zoo: a rule on its rows, stored as a version that names the rule and what it was read from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from catalog.errors import InvalidSpecError, unknown_name
from catalog.fragments import software
from catalog.metrics import Measurement, plain_versions, replace_measurement, version_of
from catalog.store import Zoo, open_zoo
from zoo.landscape.select import chosen_rows
from zoo.phases import LABELS, RULES, Rule, label_rows

METRIC = "phase"
DEFAULT = "yang"


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
    read = {name: version for name, version in plain_versions(zoo).items() if name in _columns(chosen)}
    rows = label_rows(chosen_rows(zoo, where, epoch), chosen)
    used = {**chosen.settings(), "read": read}
    default = rule == DEFAULT and not settings and not versions
    version = version_of(chosen.version, used)
    names = [name for name in (*LABELS, "phase_of_run") if name in rows.columns]
    stored = rows.select("run", "epoch", *names)
    replace_measurement(zoo, Measurement(METRIC, version, used, default, stored, software()))
    return Labels(version, chosen, rows)


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
