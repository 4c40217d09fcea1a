"""What each cell of a grid lacks, diagnosed by a tree, and how good that is on cells it was not fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import InvalidSpecError, QueryError
from zoo.cells import cell_means, finite, keys, place, require
from zoo.md_tree import MDTree, columns_of, fit_md_tree, roles_of

VALIDATION = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
Fit = Callable[[pl.DataFrame, np.ndarray], Callable[[pl.DataFrame], np.ndarray]]


def failure_source(cells: pl.DataFrame, accuracy: str = "test_accuracy", tolerance: float = 0.0) -> pl.DataFrame:
    """What would help each cell most, from the grid itself: the truth that a tree is fitted to and judged by.

    Args:
        cells: one row a cell, columns `load`, `temperature` and `accuracy`; one checkpoint. Cells of equal load or
            temperature are compared, so there has to be a grid.
        accuracy: what counts, in any unit.
        tolerance: a cell that no single change improves by more is well trained.

    Returns:
        The cells with
        `gain_load`: accuracy of the best cell with a larger load at this temperature, minus its own (0 if none is
        better; "room for improvement", RFI, in the paper);
        `gain_lower`, `gain_higher`: the same for the lower and the higher temperatures at this load;
        `failure_source`: "load" or "temperature", whichever gain is larger, "none" for a well-trained cell or a tie
        (a class of its own, left out of fits), null without an accuracy;
        `failure_side`: "high" where a lower value of the temperature column helps most, "low", "none" or null.

    Raises:
        QueryError: a column is missing, or the rows are of several checkpoints.

    Source: Zhou et al. 2024, room for improvement (RFI). With no tolerance the labels are those published with its
    code for all 3,380 cells of the two collections there (10 data amounts each), and so are the gains.
    """
    require(cells, ("load", "temperature"))
    require(cells, (accuracy,), numbers=True)
    at = place(cells)
    if cells.select(pl.struct("load", "temperature").is_duplicated().any()).item():
        raise QueryError(f"two rows at one load and temperature; filter to one checkpoint ({at or 'epoch'}) and slice")
    own = finite(accuracy)

    def gain(axis: str, fixed: str, upwards: bool) -> pl.Expr:
        return (own.cum_max(reverse=upwards) - own).over(fixed, order_by=axis)

    found = cells.with_columns(
        gain_load=gain("load", "temperature", True),
        gain_lower=gain("temperature", "load", False),
        gain_higher=gain("temperature", "load", True),
    )
    temperature = pl.max_horizontal("gain_lower", "gain_higher")
    return found.with_columns(
        failure_source=_larger("gain_load", temperature, "load", "temperature", tolerance),
        failure_side=_larger("gain_lower", pl.col("gain_higher"), "high", "low", tolerance),
    )


def _larger(first: str, second: pl.Expr, if_first: str, if_second: str, tolerance: float) -> pl.Expr:
    a = pl.col(first)
    known = pl.when(a.is_null()).then(None).when(pl.max_horizontal(a, second) <= tolerance).then(pl.lit("none"))
    return (
        known.when(a > second).then(pl.lit(if_first)).when(a < second).then(pl.lit(if_second)).otherwise(pl.lit("none"))
    )


def diagnose(rows: pl.DataFrame, tree: MDTree, accuracy: str = "test_accuracy") -> pl.DataFrame:
    """Means of the cells of one checkpoint with the truth of `failure_source` and the diagnosis of a tree.

    On the cells that the tree was fitted to, agreement says little: see `judge`. Errors as for these two and
    `MDTree.predict`. Runs that diverged or failed take no part.
    """
    columns = columns_of(tree.root)
    require(rows, (accuracy, *columns), numbers=True)
    if "status" in rows.columns:
        rows = rows.filter((pl.col("status") == "ok").fill_null(True))
    cells = cell_means(rows, sorted({accuracy, *columns}), keys(rows))
    return failure_source(cells, accuracy).hstack(tree.predict(cells))


def judge(
    cells: pl.DataFrame,
    labels: Sequence[str | None] | pl.Series,
    shape: str = "source",
    *,
    by: str | None = None,
    share: float = 1 / 3,
    repeats: int = 50,
    seed: int = 0,
    validation: Sequence[str] = VALIDATION,
    **columns: str,
) -> pl.DataFrame:
    """Accuracy on cells that were not fitted to.

    Rules are `majority` (the most frequent label), `validation` (a free decision tree of depth 4 on losses, accuracies
    and their gap, after the baseline of Zhou et al. 2024) and `md_tree`. A cell whose columns lack a value, or
    whose label is null or "none", takes no part.

    Args:
        cells, labels, shape, columns: as for `fit_md_tree`.
        by: a column such as "load", whose values are then held out whole; None to hold out cells. Neighbours of a cell
            are much like it, so that single cells held out flatter every tree.
        share: of the cells, or of the values of `by`, held out; at least one.
        repeats: random splits.
        validation: columns of the baseline; those the table lacks are left out. The gap is train minus test accuracy.

    Returns:
        One row a rule: rule, accuracy, accuracy_se, gain (accuracy minus majority's), gain_se, repeats, num_cells. The
        splits overlap; their standard errors are those of Nadeau and Bengio 2003 (Inference for the generalization
        error, Machine Learning 52, corrected resampled t-test): variance times 1/repeats + held out/fitted.

    Raises:
        InvalidSpecError: fewer than two repeats, cells or values to split, a share outside (0, 1).
    """
    if repeats < 2 or not 0 < share < 1:
        raise InvalidSpecError(f"expected two or more repeats and a share between 0 and 1, got {repeats} and {share}")
    fits = _fits(cells, shape, validation, columns)
    table = cells.with_columns(pl.Series("_label", labels, pl.String)).with_columns(_gap=_gap(cells))
    needed = sorted({column for names, _ in fits.values() for column in names})
    complete = [pl.col(name).cast(pl.Float64).is_finite().fill_null(False) for name in needed]
    table = table.filter(pl.col("_label").is_not_null() & (pl.col("_label") != "none"), *complete)
    if by is not None:
        require(cells, (by,))
    groups = np.arange(len(table)) if by is None else table[by].rank("dense").to_numpy()
    values = np.unique(groups)
    if len(values) < 2:
        raise InvalidSpecError(f"{len(table)} cells have a label and all columns ({', '.join(needed)}); two are needed")
    held = min(max(round(share * len(values)), 1), len(values) - 1)
    generator = np.random.default_rng(seed)
    truth = table["_label"].to_numpy().astype(str)
    found = np.empty((repeats, len(fits)))
    ratios = []
    for repeat in range(repeats):
        test = np.isin(groups, generator.permutation(values)[:held])
        ratios.append(test.sum() / (~test).sum())
        for i, (_, fit) in enumerate(fits.values()):
            predicted = fit(table.filter(~test), truth[~test])(table.filter(test))
            found[repeat, i] = (predicted == truth[test]).mean()
    gains = found - found[:, :1]
    factor = 1 / repeats + float(np.mean(ratios))

    def errors(each: np.ndarray) -> np.ndarray:
        return np.sqrt(factor * each.var(0, ddof=1))

    results = {"accuracy": found.mean(0), "accuracy_se": errors(found), "gain": gains.mean(0), "gain_se": errors(gains)}
    return pl.DataFrame({"rule": list(fits), **results}).with_columns(repeats=repeats, num_cells=len(table))


def _gap(cells: pl.DataFrame) -> pl.Expr:
    if {"train_accuracy", "test_accuracy"} <= set(cells.columns):
        return pl.col("train_accuracy") - pl.col("test_accuracy")
    return pl.lit(0.0)


def _fits(
    cells: pl.DataFrame, shape: str, validation: Sequence[str], columns: Mapping[str, str]
) -> dict[str, tuple[list[str], Fit]]:
    """Rules by name: columns they read, and how they are fitted."""
    seen = [name for name in validation if name in cells.columns]
    require(cells, seen or list(validation), numbers=True)
    features = [*seen, "_gap"]
    used = list(roles_of(shape, columns).values())
    require(cells, used, numbers=True)

    def majority(_table: pl.DataFrame, truth: np.ndarray) -> Callable[[pl.DataFrame], np.ndarray]:
        names, counts = np.unique(truth, return_counts=True)
        return lambda asked: np.full(len(asked), names[counts.argmax()])

    def free_tree(table: pl.DataFrame, truth: np.ndarray) -> Callable[[pl.DataFrame], np.ndarray]:
        from sklearn.tree import DecisionTreeClassifier

        def numbers(rows: pl.DataFrame) -> np.ndarray[Any, Any]:
            return rows.select(pl.col(features).cast(pl.Float64)).to_numpy()

        tree = DecisionTreeClassifier(max_depth=4, random_state=0).fit(numbers(table), truth)
        return lambda asked: tree.predict(numbers(asked))

    def md_tree(table: pl.DataFrame, truth: np.ndarray) -> Callable[[pl.DataFrame], np.ndarray]:
        tree = fit_md_tree(table, truth.tolist(), shape, **columns)
        return lambda asked: tree.predict(asked)["diagnosis"].to_numpy().astype(str)

    return {"majority": ([], majority), "validation": (seen, free_tree), "md_tree": (used, md_tree)}
