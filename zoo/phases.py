"""Phases of a population as a pure function of the table's columns, with margins and outliers.

The rule makes the taxonomy of Yang et al. 2021 (Taxonomizing local versus global structure in neural network loss
landscapes, NeurIPS, arXiv 2107.11228, Figure 1) explicit. Published are words (high loss, large Hessian, connected);
the thresholds are ours, calibrated on the 169 cells of that paper's grid of batch sizes and widths. The Hessian is not
read: in the published words a large one goes with a high loss, so that it would add a threshold and no label.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from catalog.errors import InvalidSpecError
from zoo.cells import cell_means, distances, finite, keys, place, require
from zoo.rules import MEDIAN, RULES, Rule, read_rule

__all__ = ["PHASES", "RULES", "Rule", "cell_means", "label_rows", "phases", "read_rule", "stability"]

PHASES = ("I", "II", "III", "IV-A", "IV-B", "diverged")
FACTORS = {"tau_loss": (0.5, 1.0, 2.0), "tau_connectivity": (0.5, 1.0, 2.0), "tau_similarity": (0.95, 1.0, 1.05)}
MARGINS = ("phase_margin", "phase_threshold", "phase_margin_se", "phase_seeds_agree", "phase_tau_similarity")
OUTLIERS = ("phase_outlier", "phase_outlier_column", "phase_outlier_score")
LABELS = ("phase", "phase_reason", *MARGINS, *OUTLIERS)


def phases(rows: pl.DataFrame, rule: Rule) -> pl.DataFrame:
    """The phase of each cell (and checkpoint, where the rows are of several).

    ```
    diverged    if most runs are not finite, or the train accuracy is near chance
    I / II      elif loss > tau_loss: I if connectivity < -tau_connectivity else II
    III         elif connectivity < -tau_connectivity
    IV-B / IV-A else: IV-B if similarity >= tau_similarity else IV-A
    ```
    Values are means over the seeds of a cell. Runs that diverged (by `status`, or with a loss that is not finite) are
    left out of them, as are failed ones. Where another loss than cross-entropy was trained with, no label is given.

    Args:
        rows: one a run and checkpoint, or one a cell. A cell is what `cell` says or, without that column, a pair of
            `load` and `temperature`; a checkpoint what `zoo.cells.place` finds.

    Returns:
        One row a cell, sorted: its keys, `num_seeds`, means, errors and counts as of `cell_means`, and
        `phase`: one of `PHASES`, null where a value is missing; `phase_reason` says which, and why a cell is diverged;
        `phase_margin`: |value - tau| / tau at the nearest of the thresholds that decided, `phase_threshold` which:
        loss, connectivity, similarity or accuracy;
        `phase_margin_se`: the smallest |value - tau| in standard errors over seeds, null where one of the deciding
        values has no error (one seed). A median is taken as exact;
        `phase_seeds_agree`: share of the cell's runs whose own values give the same label, of those that have one;
        `phase_outlier`: whether the cell stands out from its neighbours by more than `rule.outlier` in ln loss,
        arcsinh(connectivity / tau_connectivity), similarity or test accuracy, `phase_outlier_column` in which most and
        `phase_outlier_score` how far; null where there is no grid. Two bad cells side by side hide each other;
        `phase_tau_similarity`: the threshold used, also where it is a median.

    Raises:
        QueryError: no column for the loss, the connectivity or (with `chance`) the accuracy, without which nothing can
            be labelled; says what to measure. Without a similarity, cells of phase IV are null.
    """
    marked = _marked(rows, rule)
    cells = _cells(marked, rule)
    by = keys(rows)
    own = _own(marked, cells, by)
    labelled = _label(own, rule).select(*by, phase_of_run="phase")
    agree = pl.col("phase_of_run").eq(pl.col("phase")).mean().alias("phase_seeds_agree")
    joined = labelled.join(cells.select(*by, "phase"), on=by, how="left", nulls_equal=True)
    cells = cells.join(joined.group_by(by).agg(agree), on=by, how="left", nulls_equal=True, maintain_order="left")
    return _flag_outliers(cells, rule).drop("_diverged", "_near_chance", "_other_loss", "_runs")


def label_rows(rows: pl.DataFrame, rule: Rule) -> pl.DataFrame:
    """The rows in their order, with the labels of their cells and `phase_of_run`, that of the row's own values.

    Arguments and errors as for `phases`. Columns of older labels are replaced.
    """
    rows = rows.drop(*LABELS, "phase_of_run", strict=False)
    by = keys(rows)
    cells = phases(rows, rule)
    own = _label(_own(_marked(rows, rule), cells, by), rule)["phase"].alias("phase_of_run")
    labels = cells.select(*by, *LABELS)
    return rows.join(labels, on=by, how="left", nulls_equal=True, maintain_order="left").with_columns(own)


def stability(rows: pl.DataFrame, rule: Rule, factors: Mapping[str, Sequence[float]] | None = None) -> pl.DataFrame:
    """Cells per phase for each combination of thresholds: which borders move the labels.

    Args:
        factors: of thresholds by name, `FACTORS` by default. A median is not scaled.

    Returns:
        One row a combination: tau_loss, tau_connectivity, tau_similarity, a count for each of `PHASES`, and
        `unlabelled`.
    """
    chosen = dict(FACTORS if factors is None else factors)
    for name in chosen:
        if name not in FACTORS:
            raise InvalidSpecError(f"factors are of {', '.join(FACTORS)}, got {name!r}")
    if rule.tau_similarity == MEDIAN:
        chosen["tau_similarity"] = (1.0,)
    marked, found = _marked(rows, rule), []
    for combination in itertools.product(*chosen.values()):
        used: dict[str, Any] = {name: getattr(rule, name) for name in FACTORS}
        used |= {n: used[n] * f for n, f in zip(chosen, combination, strict=True) if used[n] != MEDIAN}
        labels = _cells(marked, replace(rule, **used))["phase"]
        counts = {phase: int((labels == phase).sum()) for phase in PHASES}
        found.append({**used, **counts, "unlabelled": labels.null_count()})
    return pl.DataFrame(found)


def _marked(rows: pl.DataFrame, rule: Rule) -> pl.DataFrame:
    """Rows with `_diverged`, `_trained` and `_other_loss`, the rule's columns null where they count for nothing."""
    keys(rows)
    require(rows, [rule.loss, rule.connectivity, *([] if rule.chance is None else [rule.accuracy])])
    columns = _columns(rows, rule)
    require(rows, columns, numbers=True)
    status = pl.col("status").fill_null("ok") if "status" in rows.columns else pl.lit("ok")
    function = pl.col("loss_function") if "loss_function" in rows.columns else pl.lit("cross_entropy")
    loss = pl.col(rule.loss).cast(pl.Float64)
    infinite = (loss.is_nan() | loss.is_infinite()).fill_null(False)
    rows = rows.with_columns(
        _trained=status != "failed",
        _diverged=(status == "diverged") | (infinite & (status != "failed")),
        _other_loss=(function != "cross_entropy").fill_null(False) & (rule.loss == "train_loss"),
    )
    counts = pl.col("_trained") & ~pl.col("_diverged")
    rows = rows.with_columns(pl.when(counts).then(finite(name)).alias(name) for name in columns)
    return rows.with_columns(pl.when(~pl.col("_other_loss")).then(pl.col(rule.loss)).alias(rule.loss))


def _columns(rows: pl.DataFrame, rule: Rule) -> list[str]:
    """Columns of the rule that the table has."""
    known = (rule.loss, rule.connectivity, rule.similarity, rule.accuracy, rule.test_accuracy)
    return [name for name in dict.fromkeys(known) if name in rows.columns]


def _cells(marked: pl.DataFrame, rule: Rule) -> pl.DataFrame:
    """Labelled cell means, without what needs the seeds or the grid."""
    by = keys(marked)
    cells = cell_means(marked, _columns(marked, rule), by)
    runs = marked.group_by(by).agg(
        _diverged=pl.col("_diverged").sum(), _other_loss=pl.col("_other_loss").any(), _runs=pl.col("_trained").sum()
    )
    cells = cells.join(runs, on=by, how="left", nulls_equal=True, maintain_order="left")
    tau = _median_similarity(cells, rule) if rule.tau_similarity == MEDIAN else pl.lit(float(rule.tau_similarity))
    return _label(cells.with_columns(phase_tau_similarity=tau), rule)


def _own(marked: pl.DataFrame, cells: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """Rows as cells of one run, in their order, with the threshold of their cell."""
    taus = cells.select(*by, "phase_tau_similarity")
    own = marked.drop("phase_tau_similarity", strict=False)
    own = own.join(taus, on=by, how="left", nulls_equal=True, maintain_order="left")
    return own.with_columns(pl.col("_diverged").cast(pl.UInt32), _runs=pl.lit(1))


def _median_similarity(cells: pl.DataFrame, rule: Rule) -> pl.Expr:
    """Median similarity of the cells of phase IV, each checkpoint by itself: no label depends on other checkpoints."""
    if rule.similarity not in cells.columns:
        return pl.lit(None, pl.Float64)
    diverged, high, barrier = _conditions(cells, rule)
    of_four = pl.when(~diverged & ~high & ~barrier).then(pl.col(rule.similarity)).median()
    at = place(cells)
    return of_four if at is None else of_four.over(at)


def _conditions(table: pl.DataFrame, rule: Rule) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """Diverged, loss high, barrier; null where unknown, but for the first."""
    gone = pl.col("_diverged") * 2 > pl.col("_runs")
    return (
        gone | _near_chance(rule).fill_null(False),
        pl.col(rule.loss) > rule.tau_loss,
        pl.col(rule.connectivity) < -rule.tau_connectivity,
    )


def _near_chance(rule: Rule) -> pl.Expr:
    return pl.lit(False) if rule.chance is None else pl.col(rule.accuracy) < _chance(rule)


def _chance(rule: Rule) -> float:
    assert rule.chance is not None
    return rule.chance + rule.tau_chance * (1 - rule.chance)


def _label(table: pl.DataFrame, rule: Rule) -> pl.DataFrame:
    """phase, phase_reason and the margins of a table with the rule's values, `_diverged` of `_runs`, and the threshold
    of similarity; its errors `<column>_se` where it has them."""
    if rule.similarity not in table.columns:
        table = table.with_columns(pl.lit(None, pl.Float64).alias(rule.similarity))
    diverged, high, barrier = _conditions(table, rule)
    similarity, tau = pl.col(rule.similarity), pl.col("phase_tau_similarity")
    missing = [(rule.loss, ~diverged), (rule.connectivity, ~diverged)]
    missing += [] if rule.chance is None else [(rule.accuracy, ~diverged)]
    missing += [(rule.similarity, ~diverged & ~high & ~barrier)]
    lacks: pl.Expr = pl.lit(None, pl.String)
    for name, asked in reversed(missing):
        lacks = pl.when(asked & pl.col(name).is_null()).then(pl.lit(_lack(name, rule))).otherwise(lacks)
    lacks = pl.when(pl.col("_other_loss") & ~diverged).then(pl.lit(_other_loss(rule))).otherwise(lacks)
    phase = (
        pl.when(lacks.is_not_null()).then(None)
        .when(diverged).then(pl.lit("diverged"))
        .when(high & barrier).then(pl.lit("I"))
        .when(high).then(pl.lit("II"))
        .when(barrier).then(pl.lit("III"))
        .when(similarity >= tau).then(pl.lit("IV-B"))
        .otherwise(pl.lit("IV-A"))
    )  # fmt: skip
    lost = pl.format("{} of {} runs diverged", "_diverged", "_runs")
    most = pl.col("_diverged") * 2 > pl.col("_runs")
    why = pl.when(most).then(lost).otherwise(pl.lit(f"{rule.accuracy} is near chance"))
    reason = pl.when(lacks.is_not_null()).then(lacks).when(diverged).then(why).otherwise(pl.lit(""))
    table = table.with_columns(phase=phase, phase_reason=reason, _near_chance=_near_chance(rule).fill_null(False))
    return _margins(table, rule)


def _lack(name: str, rule: Rule) -> str:
    more = f"; measure it: `weightscape measure ZOO --metric {name}`" if name != rule.loss else ""
    if name == rule.similarity:
        return f"phase IV, but {name}, which tells IV-A from IV-B, is missing{more}"
    return f"{name} is missing{more}"


def _other_loss(rule: Rule) -> str:
    return f"{rule.loss} is not of cross-entropy, of which tau_loss is"


def _margins(table: pl.DataFrame, rule: Rule) -> pl.DataFrame:
    """phase_margin, phase_threshold, phase_margin_se of a table with phases."""
    phase = pl.col("phase")
    reached = phase.is_not_null() & ((phase != "diverged") | pl.col("_near_chance"))
    alive = phase.is_not_null() & (phase != "diverged")
    four = phase.is_in(["IV-A", "IV-B"])
    borders: list[tuple[str, str, pl.Expr, pl.Expr]] = [
        ("loss", rule.loss, pl.lit(rule.tau_loss), alive),
        ("connectivity", rule.connectivity, pl.lit(-rule.tau_connectivity), alive),
        ("similarity", rule.similarity, pl.col("phase_tau_similarity"), four),
    ]
    if rule.chance is not None:
        borders.insert(0, ("accuracy", rule.accuracy, pl.lit(_chance(rule)), reached))
    away, sigmas, unknown = [], [], pl.lit(False)
    for _, name, tau, decided in borders:
        distance = (pl.col(name) - tau).abs()
        away.append(pl.when(decided).then(distance / tau.abs()))
        error = pl.col(f"{name}_se") if f"{name}_se" in table.columns else pl.lit(None, pl.Float64)
        in_errors = pl.when(distance == 0).then(0.0).otherwise(distance / error)
        sigmas.append(pl.when(decided & error.is_not_null()).then(in_errors))
        unknown = unknown | (decided & error.is_null())
    nearest = pl.min_horizontal(away)
    which = pl.coalesce(pl.when(d == nearest).then(pl.lit(b[0])) for d, b in zip(away, borders, strict=True))
    return table.with_columns(
        phase_margin=nearest,
        phase_threshold=which,
        phase_margin_se=pl.when(~unknown.fill_null(True)).then(pl.min_horizontal(sigmas)),
    )


def _flag_outliers(cells: pl.DataFrame, rule: Rule) -> pl.DataFrame:
    """phase_outlier, its column and score."""
    # Errors of a loss and of a barrier grow with them; below a ten-thousandth of its threshold a loss is a loss of 0.
    scaled = {
        rule.loss: pl.col(rule.loss).clip(1e-4 * rule.tau_loss).log(),
        rule.connectivity: (pl.col(rule.connectivity) / rule.tau_connectivity).arcsinh(),
        rule.similarity: pl.col(rule.similarity),
        rule.test_accuracy: pl.col(rule.test_accuracy),
    }
    scores = pl.DataFrame(
        {
            name: distances(cells, cells.select(value.cast(pl.Float64).fill_null(math.nan)).to_series().to_numpy())
            for name, value in scaled.items()
            if name in cells.columns
        }
    ).select(pl.all().abs().fill_nan(None))
    score = scores.select(pl.max_horizontal(pl.all())).to_series()
    which = scores.select(pl.coalesce(pl.when(pl.col(name) == score).then(pl.lit(name)) for name in scores.columns))
    flagged = score > rule.outlier
    column = pl.select(pl.when(flagged).then(which.to_series())).to_series()
    return cells.with_columns(phase_outlier=flagged, phase_outlier_column=column, phase_outlier_score=score)
