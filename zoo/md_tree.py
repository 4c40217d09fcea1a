"""MD tree: what a cell lacks, size or another temperature, read from its loss landscape.

Source: Zhou et al., MD tree: a model-diagnostic tree grown on loss landscape, ICML 2024, arXiv 2406.16988, and its
code. There are two questions. `source` (its Q2): is the load (model size) or the temperature (optimiser) the worse
failure? `side` (its Q1): is the temperature too low or too high? Truth comes from the grid
(`zoo.diagnosis.failure_source`); a tree has to find it from the columns of one cell. Differs:
* the first split is on train accuracy, one minus the train error, so that its branches are the other way round;
* connectivity is `mc_peak` as this package defines it, relative to the ends; theirs as coded is minus the highest train
  error inside the curve. Any column can be named instead;
* thresholds are searched together and exhaustively over midpoints, theirs one after the other by a bounded scalar
  search; leaves take the majority, theirs are set by hand;
* load and temperature mean the columns of the table: a batch size is a temperature upside down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import InvalidSpecError, SpecMismatchError, unknown_name
from zoo.cells import finite, require

VERSION = 1  # of the shapes and of `zoo.diagnosis.failure_source`
CANDIDATES = 48  # thresholds tried at a split that has further splits below; at the last ones all midpoints are

# (role, low branch, high branch); None is a leaf. Low is at most the threshold.
Shape = tuple[Any, ...] | None
SHAPES: dict[str, tuple[Any, ...]] = {
    "source": ("accuracy", ("connectivity", None, None), ("connectivity", None, None)),
    "side": ("accuracy", ("connectivity", ("sharpness", None, None), None), None),
}
COLUMNS = {"accuracy": "train_accuracy", "connectivity": "mc_peak", "sharpness": "hessian_trace"}


@dataclass(frozen=True)
class Node:
    """A split of a tree, or a leaf.

    Args:
        label: majority of the cells that came here in training, of `cells` of them; `share` had it.
        column: None for a leaf; otherwise cells go to `low` where it is at most `threshold`, else to `high`.
    """

    label: str
    cells: int
    share: float
    column: str | None = None
    threshold: float = 0.0
    low: Node | None = None
    high: Node | None = None

    def to_json(self) -> dict[str, Any]:
        own: dict[str, Any] = {"label": self.label, "cells": self.cells, "share": self.share}
        if self.column is None or self.low is None or self.high is None:
            return own
        below = {"low": self.low.to_json(), "high": self.high.to_json()}
        return own | {"column": self.column, "threshold": self.threshold, **below}


@dataclass(frozen=True)
class MDTree:
    """A fitted tree. `shape` is a name in `SHAPES`."""

    shape: str
    root: Node
    version: int = field(default=VERSION, init=False)

    def settings(self) -> dict[str, Any]:
        """All that decides a label, as JSON values."""
        return {"name": "md_tree", "version": self.version, "shape": self.shape, "root": self.root.to_json()}

    def predict(self, cells: pl.DataFrame) -> pl.DataFrame:
        """`diagnosis` of each cell; `diagnosis_path`, the splits that led there; `diagnosis_reason`, what is missing
        where the diagnosis is null.

        Raises:
            QueryError: a column of the tree is not there; says how to measure it.
        """
        names = sorted(columns_of(self.root))
        require(cells, names, numbers=True)
        values = cells.select(pl.int_range(pl.len()).alias("_at"), *map(finite, names))  # a leaf alone reads none
        schema = {"diagnosis": pl.String, "diagnosis_path": pl.String, "diagnosis_reason": pl.String}
        return pl.DataFrame([_walk(self.root, row) for row in values.iter_rows(named=True)], schema, orient="row")


def columns_of(node: Node) -> set[str]:
    """Columns that a tree reads."""
    if node.column is None or node.low is None or node.high is None:
        return set()
    return {node.column} | columns_of(node.low) | columns_of(node.high)


def _walk(node: Node, row: Mapping[str, float | None]) -> tuple[str | None, str, str]:
    path: list[str] = []
    while node.column is not None and node.low is not None and node.high is not None:
        value = row[node.column]
        if value is None:
            return None, " and ".join(path), f"{node.column} is missing"
        is_low = value <= node.threshold
        path.append(f"{node.column} {'<=' if is_low else '>'} {node.threshold:.4g}")
        node = node.low if is_low else node.high
    return node.label, " and ".join(path), ""


def read_md_tree(settings: Mapping[str, Any]) -> MDTree:
    """The tree of `MDTree.settings`.

    Raises:
        SpecMismatchError: of another version. InvalidSpecError: of no tree. UnknownNameError: of an unknown shape.
    """
    if settings.get("name") != "md_tree" or settings.get("version") != VERSION:
        came = f"{settings.get('name')!r} of version {settings.get('version')!r}"
        raise SpecMismatchError(f"expected md_tree of version {VERSION}, got {came}; fit the tree again")
    if settings.get("shape") not in SHAPES:
        raise unknown_name("shape of an MD tree", settings.get("shape"), SHAPES)
    return MDTree(settings["shape"], _read_node(settings.get("root")))


def _read_node(content: Any) -> Node:
    try:
        node = Node(str(content["label"]), int(content["cells"]), float(content["share"]))
        if "column" not in content:
            return node
        low, high = _read_node(content["low"]), _read_node(content["high"])
        split = str(content["column"]), float(content["threshold"])
        return Node(node.label, node.cells, node.share, *split, low, high)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidSpecError(f"no node of an MD tree: {type(error).__name__}: {error}; fit the tree again") from error


def fit_md_tree(
    cells: pl.DataFrame, labels: Sequence[str | None] | pl.Series, shape: str = "source", **columns: str
) -> MDTree:
    """Thresholds that label the most cells rightly, in the fixed order of splits.

    Args:
        cells: (cells,) rows with the columns of the tree. Rows that lack a value, or whose label is null or "none", are
            left out.
        labels: (cells,) as of `zoo.diagnosis.failure_source`.
        shape: name in `SHAPES`.
        columns: names for the roles of `COLUMNS`, such as connectivity="mode_connectivity".

    Among equally good thresholds the first is taken, and a split that separates nothing becomes a leaf.

    Raises:
        InvalidSpecError: an unknown role, or nothing to fit to. UnknownNameError: a shape. QueryError: a column.
    """
    roles = roles_of(shape, columns)
    require(cells, list(roles.values()), numbers=True)
    values = cells.select(pl.col(name).cast(pl.Float64).fill_null(np.nan) for name in dict.fromkeys(roles.values()))
    truth = pl.Series("label", labels, pl.String)
    if len(truth) != len(cells):
        raise InvalidSpecError(f"expected {len(cells)} labels, one a cell, got {len(truth)}")
    used = np.isfinite(values.to_numpy()).all(1) & (truth.is_not_null() & (truth != "none").fill_null(False)).to_numpy()
    if not used.any():
        raise InvalidSpecError(f"no cell has a label and all of {', '.join(roles.values())}; measure more cells")
    names, classes = np.unique(truth.to_numpy()[used].astype(str), return_inverse=True)
    onehot = np.eye(len(names), dtype=np.int64)[classes]
    features = {role: values[name].to_numpy()[used] for role, name in roles.items()}
    _, root = _fit(SHAPES[shape], features, onehot, names.tolist(), roles)
    return MDTree(shape, root)


def roles_of(shape: str, columns: Mapping[str, str]) -> dict[str, str]:
    """The column of each role in a shape, named or by default; errors as for `fit_md_tree`."""
    if shape not in SHAPES:
        raise unknown_name("shape of an MD tree", shape, SHAPES)
    if unknown := set(columns) - set(COLUMNS):
        raise InvalidSpecError(f"roles of an MD tree are {', '.join(COLUMNS)}; got {', '.join(sorted(unknown))}")
    return {role: {**COLUMNS, **columns}[role] for role in _roles(SHAPES[shape])}


def _roles(shape: Shape) -> list[str]:
    return [] if shape is None else list(dict.fromkeys([shape[0], *_roles(shape[1]), *_roles(shape[2])]))


def _fit(
    shape: Shape,
    features: Mapping[str, np.ndarray],
    onehot: np.ndarray,
    names: list[str],
    roles: Mapping[str, str],
    above: str = "",
) -> tuple[int, Node]:
    """Cells labelled rightly, and the node. onehot (cells, classes); without any cell the label is the one `above`."""
    if not len(onehot):
        return 0, Node(above, 0, 0.0)
    counts = onehot.sum(0)
    right = int(counts.max())
    leaf = Node(names[int(counts.argmax())], len(onehot), right / len(onehot))
    best: tuple[int, Node] = (right, leaf)
    if shape is None:
        return best
    values = features[shape[0]]
    for threshold in _cuts(values, onehot, last=shape[1] is None and shape[2] is None):
        low = values <= threshold
        sides = [({k: v[part] for k, v in features.items()}, onehot[part]) for part in (low, ~low)]
        below = [_fit(shape[i + 1], *side, names, roles, leaf.label) for i, side in enumerate(sides)]
        score = below[0][0] + below[1][0]
        if score > best[0]:
            split = roles[shape[0]], float(threshold)
            best = score, Node(leaf.label, leaf.cells, leaf.share, *split, below[0][1], below[1][1])
    return best


def _cuts(values: np.ndarray, onehot: np.ndarray, last: bool) -> np.ndarray:
    """Thresholds to try: midpoints, and two that send all cells one way, where only the splits below separate them.

    Of a split with leaves below it is the best midpoint alone: counts say which, without trying.
    """
    order = np.argsort(values, kind="stable")
    sorted_values = values[order]
    ends = np.flatnonzero(sorted_values[:-1] < sorted_values[1:])
    whole = [] if last else [sorted_values[-1], np.nextafter(sorted_values[0], -np.inf)]
    if last and len(ends):
        low = onehot[order].cumsum(0)
        right = low[ends].max(1) + (low[-1] - low[ends]).max(1)
        ends = ends[[int(right.argmax())]]
    elif len(ends) > CANDIDATES:
        ends = ends[np.linspace(0, len(ends) - 1, CANDIDATES).round().astype(int)]
    # Half of each: no overflow. Below the upper value, whatever the rounding.
    middle = sorted_values[ends] / 2 + sorted_values[ends + 1] / 2
    return np.concatenate([np.where(middle < sorted_values[ends + 1], middle, sorted_values[ends]), whole])
