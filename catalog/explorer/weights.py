"""Statistics and histograms of the weights of some models, as JSON for the page. `model.js` reads them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl

from catalog.record import Variant
from catalog.store import Zoo

WEIGHT_BYTES = 1_100_000  # of all that this module puts into a page
BINS = 40
STATISTICS = 4  # mean, standard deviation, norm, largest magnitude
MOST = 65535  # of a bin
MEMORY = 32 << 20  # bytes of weights read at a time
TENSOR_BYTES = 60  # a guess at the JSON of one tensor's name and shape


def choose(rows: pl.DataFrame, variants: Mapping[str, Variant], models: int, budget: int, seed: int) -> pl.DataFrame:
    """The last stored row of at most so many runs, drawn at random, as far as they fit into `budget` bytes.

    Column `at` says which row of `rows` it is.
    """
    ends = rows.with_row_index("at").filter("stored")
    ends = ends.filter(pl.col("epoch") == pl.col("epoch").max().over("variant", "run"))
    ends = ends.unique(["variant", "run"], keep="last", maintain_order=True)
    order = np.random.default_rng([seed, 1]).permutation(len(ends))[:models]
    seen: set[str] = set()
    kept, names = [], ends["variant"].to_list()
    for place in order.tolist():
        layout = variants[names[place]].layout
        cost = (len(layout) * STATISTICS * 4 + (BINS + 4) * 2) * 4 // 3 + 12
        if names[place] not in seen:
            cost += len(layout) * TENSOR_BYTES
        if cost > budget:
            break
        budget -= cost
        seen.add(names[place])
        kept.append(place)
    return ends[sorted(kept)]


def weight_statistics(
    zoo: Zoo, rows: pl.DataFrame, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """For each variant: its tensors, and of each of its rows the statistics of every tensor and one histogram.

    `statistics` are float32 (rows, tensors, 4): mean, standard deviation, Euclidean norm, largest magnitude; NaN for an
    empty tensor. `counts` are uint16 (rows, BINS) of the parameters, without buffers, between `ends` float32 (rows, 2),
    divided by `scale` where a bin holds more than 65,535.

    Raises:
        MissingDataError, CorruptError: as for `Zoo.read`.
    """
    found, done = [], 0
    for name, variant in zoo.record.variants.items():
        here = rows.filter(pl.col("variant") == name)
        if here.is_empty():
            continue
        layout = variant.layout
        together = max(1, MEMORY // (4 * max(layout.size, 1)))
        statistics, counts, ends, scales = [], [], [], []
        for start in range(0, len(here), together):
            weights = zoo.read(here[start : start + together], dtype="float32")
            statistics.append(_statistics(weights, [layout.slice(tensor) for tensor in layout.names]))
            for row in weights:
                count, end, scale = _histogram(row[_parameters(variant)])
                counts.append(count)
                ends.append(end)
                scales.append(scale)
            done += len(weights)
            if progress:
                progress(done, len(rows))
        found.append(
            {
                "variant": name,
                "tensors": [
                    [tensor, list(shape), role]
                    for tensor, shape, role in zip(layout.names, layout.shapes, layout.roles, strict=True)
                ],
                "rows": here["at"].to_list(),
                "statistics": _base64(np.concatenate(statistics).astype("<f4")),
                "counts": _base64(np.stack(counts).astype("<u2")),
                "ends": _base64(np.stack(ends).astype("<f4")),
                "scale": scales,
                "bins": BINS,
            }
        )
    return found


def _parameters(variant: Variant) -> np.ndarray:
    """(size,) truths: which elements are of parameters; all, where there are none."""
    layout = variant.layout
    mask = np.zeros(layout.size, bool)
    for name, role in zip(layout.names, layout.roles, strict=True):
        mask[layout.slice(name)] = role == "parameter"
    return mask if mask.any() else ~mask


def _statistics(weights: np.ndarray, slices: list[slice]) -> np.ndarray:
    """(models, tensors, 4) float64 of weights (models, size)."""
    found = np.full((len(weights), len(slices), STATISTICS), np.nan)
    for place, part in enumerate(slices):
        values = weights[:, part].astype(np.float64)
        if values.shape[1]:
            norm = np.sqrt((values**2).sum(1))
            found[:, place] = np.stack([values.mean(1), values.std(1), norm, np.abs(values).max(1)], 1)
    return found


def _histogram(values: np.ndarray) -> tuple[np.ndarray, tuple[float, float], int]:
    """(BINS,) counts divided by the last number, and the two ends."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if not high > low:
        low, high = low - 0.5, low + 0.5
    counts, _ = np.histogram(values.astype(np.float64), BINS, (low, high))
    scale = max(1, -(-int(counts.max()) // MOST))
    return counts // scale, (low, high), scale


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()
