"""The Small CNN Zoo: one matrix of weights, a row a checkpoint, and two tables.

Source: Unterthiner et al. 2020, "Predicting Neural Network Accuracy from Weights", arXiv 2002.11448; README of its
code (google-research, dnn_predict_accuracy) for columns. Kernels stay in TensorFlow's order, (height, width, in, out).
"""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import SourceError
from catalog.importers.found import OWN, BrokenError, DoesNotFitError, Found, Options, Tensors
from catalog.importers.pickles import Pickles
from catalog.importers.place import Place, few, local_folder
from catalog.importers.tensors import make_layout
from catalog.importers.values import limited, read_table
from catalog.record import brief
from weightspace.layout import Layout

WEIGHTS = ("weights.npy", "all_weights.npy")
METRICS = ("metrics.csv.gz", "metrics.csv", "all_metrics.csv.gz", "all_metrics.csv")
LAYOUT = "layout.csv"
INTERNAL = ("laststep",)


def from_small_cnn(source: Any, options: Options, pickles: Pickles) -> Found:
    """Rows of `weights.npy` with their metrics; `modeldir` names the run, `step` the epoch."""
    place = local_folder(source, "the Small CNN Zoo")
    weights_name, metrics_name = (_first(place, names) for names in (WEIGHTS, METRICS))
    if not _there(place, LAYOUT):
        raise DoesNotFitError(f"there is no {LAYOUT}")
    matrix = _matrix(place, weights_name)
    layout = _layout(place, matrix)
    metrics = read_table(place.file(metrics_name))
    if len(metrics) != len(matrix):
        raise SourceError(
            f"{weights_name} has {len(matrix):,} rows and {metrics_name} {len(metrics):,}; they belong together row by "
            "row, so one of them is cut short: fetch both again"
        )
    runs, epochs = _runs(metrics), _epochs(metrics)
    place_in_file = pl.Series("source", [f"{weights_name}[{row}]" for row in range(len(metrics))])
    own = pl.DataFrame([runs, epochs, place_in_file]).with_columns(
        pl.lit(0, pl.Int64).alias("layout"), pl.lit("").alias("reason")
    )
    columns, notes = limited(_short(metrics.drop([*INTERNAL, "modeldir", "step", ""], strict=False)))
    members = pl.concat([own.select(list(OWN)), columns], how="horizontal").with_row_index("_at")
    members = members.sort("run", "epoch", "_at")
    twice = members.select(pl.struct("run", "epoch").is_first_distinct().not_()).to_series()
    skipped = [
        (str(name), "its run and step stand twice; the first counts") for name in members.filter(twice)["source"]
    ]
    members = members.filter(~twice)
    rows = members["_at"].to_numpy()

    def load(at: int) -> Tensors:
        vector = np.asarray(matrix[rows[at]])
        return {name: layout.tensor(vector, name) for name in layout.names}

    notes += ["kernels are in the order of TensorFlow: height, width, in, out"]
    return Found("small_cnn", members.drop("_at"), (layout,), load, tuple(skipped), tuple(notes))


def _short(metrics: pl.DataFrame) -> pl.DataFrame:
    """`config.learning_rate` becomes `learning_rate`, where nothing else is called so."""
    short = {name: name.removeprefix("config.") for name in metrics.columns}
    return metrics.rename({old: new for old, new in short.items() if list(short.values()).count(new) == 1})


def _there(place: Place, name: str) -> bool:
    return (place.root / name).is_file()


def _first(place: Place, names: tuple[str, ...]) -> str:
    for name in names:
        if _there(place, name):
            return name
    raise DoesNotFitError(f"there is no {names[0]}")


def _matrix(place: Place, name: str) -> np.ndarray:
    try:
        matrix = np.lib.format.open_memmap(place.file(name), mode="r")  # which takes no pickles
    except (ValueError, OSError, EOFError, BrokenError) as error:
        raise SourceError(f"{name} is no matrix of weights: {brief(error)}") from error
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or not matrix.size:
        raise SourceError(f"{name} must be a matrix of floats, (networks, weights); got {matrix.shape}")
    return matrix


def _layout(place: Place, matrix: np.ndarray) -> Layout:
    """The tensors that `layout.csv` cuts a row into.

    Raises:
        SourceError: columns are missing, or the tensors do not fill a row.
    """
    table = read_table(place.file(LAYOUT))
    if missing := [name for name in ("varname", "start_idx", "end_idx", "shape") if name not in table.columns]:
        raise SourceError(f"{LAYOUT} lacks the columns {', '.join(missing)}; it has {few(table.columns)}")
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    end = 0
    dtype = matrix.dtype.name
    for row in table.select("varname", "start_idx", "end_idx", "shape").sort("start_idx").iter_rows(named=True):
        numbers = re.fullmatch(r"[\[(]?((?:\s*\d{1,9}\s*,?)*)[\])]?", str(row["shape"]))
        shape = tuple(int(n) for n in re.findall(r"\d+", numbers[1])) if numbers else None
        if shape is None or row["start_idx"] != end or row["end_idx"] != end + math.prod(shape):
            raise SourceError(
                f"{LAYOUT}: {str(row['varname'])[:80]!r} with shape {str(row['shape'])[:40]} lies at "
                f"{row['start_idx']} to {row['end_idx']}, expected from {end}"
            )
        name = str(row["varname"]).removesuffix(":0")
        if name in tensors:
            raise SourceError(f"{LAYOUT}: {name[:80]!r} stands twice")
        tensors[name], end = (dtype, shape), row["end_idx"]
    if end != matrix.shape[1]:
        raise SourceError(f"{LAYOUT} describes {end:,} weights, a row of the matrix has {matrix.shape[1]:,}")
    try:
        return make_layout(tensors, [])
    except BrokenError as error:
        raise SourceError(f"{LAYOUT}: {error}") from error


def _runs(metrics: pl.DataFrame) -> pl.Series:
    """Id of each row's run: the last folder of `modeldir` if that tells them apart, else all of it."""
    if "modeldir" not in metrics.columns:
        return pl.Series("run", [f"row-{row}" for row in range(len(metrics))])
    whole = metrics["modeldir"].cast(pl.String).fill_null("none").alias("run")
    last = whole.map_elements(lambda text: PurePosixPath(text).name or text, return_dtype=pl.String)
    return last if last.n_unique() == whole.n_unique() else whole


def _epochs(metrics: pl.DataFrame) -> pl.Series:
    if "step" not in metrics.columns:
        return pl.Series("epoch", [0] * len(metrics), pl.Int64)
    step = metrics["step"]
    if not step.dtype.is_integer() or step.null_count():
        raise SourceError(f"column step of the metrics must hold whole numbers, got {step.dtype}")
    return step.cast(pl.Int64).alias("epoch")
