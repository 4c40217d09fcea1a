"""A page to look at a zoo in a browser: one HTML file that needs no network. `explore` makes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import catalog
from catalog.errors import QueryError
from catalog.explorer.about import card_of, health_of, place_of
from catalog.explorer.charts import charts
from catalog.explorer.columns import encode_columns
from catalog.explorer.page import page
from catalog.explorer.roles import axes_of, roles_of, shown_first, units_of
from catalog.explorer.weights import WEIGHT_BYTES, choose, weight_statistics
from catalog.folder import Folder
from catalog.store import Zoo

TABLE_BYTES = 2_600_000  # of the encoded table: with the weights and the library below the 5 MB of a page
MOST_ROWS = 150_000  # that a browser filters without a pause

__all__ = ["explore"]


def explore(
    zoo_url: str | os.PathLike[str] | Zoo,
    out: str | os.PathLike[str],
    *,
    models: int = 1000,
    seed: int = 0,
    verification: Any = None,
    title: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **storage_options: Any,
) -> Path:
    """Write one HTML page with a zoo's card, phase map, table, models and health.

    The page holds all it needs, runs from file:// and asks the network for nothing. It has the rows of all runs as
    long as they fit into `TABLE_BYTES`, else of some, chosen by `seed`, and says so.

    Args:
        zoo_url: what `catalog.open` takes, or an open zoo.
        models: so many runs have statistics and a histogram of their weights, chosen by `seed`; 0 reads no weights.
        verification: what `catalog.verify` found, to be shown; None to say that it was not asked.
        title: of the page, the zoo's name when left out.
        progress: called with (models read, models in all).

    Returns:
        Where the page is. A file there is replaced, in one step.

    Raises:
        InvalidSpecError: the packages of weightscape[explore] are missing. QueryError: `models` is negative.
        NotAZooError, CorruptError, FormatError: as for `catalog.open` and `Zoo.read`. StorageError: the disk refused.
    """
    if models < 0:
        raise QueryError(f"models must be 0 or more, got {models}")
    specs, bundle = charts()
    zoo = zoo_url if isinstance(zoo_url, Zoo) else catalog.open(os.fspath(zoo_url), **storage_options)
    content = content_of(zoo, models=models, seed=seed, progress=progress)
    content |= {
        "title": title or zoo.name,
        "place": place_of(zoo.url if isinstance(zoo_url, Zoo) else os.fspath(zoo_url)),
        "verification": _found(verification),
        "charts": specs,
    }
    path = Path(out)
    Folder.at(path.parent).write(path.name, page(content, bundle))
    return path


def content_of(
    zoo: Zoo, *, models: int = 1000, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """What the page shows, as JSON: card, health, table, weights."""
    table = zoo.table()
    roles = roles_of(zoo, table)
    table = table.select(name for name in table.columns if name in roles)
    rows, columns = _fitting(table, seed)
    chosen = choose(rows, zoo.record.variants, models, WEIGHT_BYTES, seed)
    weights = weight_statistics(zoo, chosen, progress)
    units = units_of(table)
    for column in columns:
        column |= {"role": roles[column["name"]], "unit": units.get(column["name"], "")}
    return {
        "card": card_of(zoo, table),
        "health": health_of(table),
        "table": {
            "columns": columns,
            "rows": len(rows),
            "runs": rows["run"].n_unique(),
            "all_rows": len(table),
            "all_runs": table["run"].n_unique(),
            "first": shown_first(table, roles),
        },
        "axes": axes_of(zoo, table, roles),
        "weights": weights,
        "seed": seed,
    }


def _fitting(table: pl.DataFrame, seed: int) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """As many whole runs as fit into the page, chosen at random, in the order of the table; and their columns."""
    runs = table["run"].unique(maintain_order=True)
    order = np.random.default_rng(seed).permutation(len(runs))
    count = max(1, min(len(runs), len(runs) * MOST_ROWS // max(1, len(table))))
    while True:
        kept = runs.gather(np.sort(order[:count]))
        rows = table if count >= len(runs) else table.filter(pl.col("run").is_in(kept.implode()))
        columns, size = encode_columns(rows)
        if size <= TABLE_BYTES or count <= 1:
            return rows, columns
        count = max(1, min(count - 1, int(count * TABLE_BYTES / size * 0.97)))


def _found(verification: Any) -> dict[str, Any] | None:
    """A `Verification`, or a mapping of its fields, as JSON."""
    if verification is None:
        return None
    fields: Mapping[str, Any] = verification if isinstance(verification, Mapping) else vars(verification)
    problems = [item if isinstance(item, Mapping) else vars(item) for item in fields.get("problems", ())]
    shown = [{key: str(problem.get(key, ""))[:500] for key in ("kind", "file", "message")} for problem in problems[:50]]
    numbers = {name: fields[name] for name in ("files", "bytes", "rows", "digest") if name in fields}
    return {**numbers, "problems": shown, "more": len(problems) - len(shown)}
