"""Rows of a zoo that are the same network, or nearly, but for the order (and scale) of their units."""

from __future__ import annotations

import os
from typing import Any

import polars as pl

from catalog.errors import AlignError, InvalidSpecError
from catalog.store import open_zoo
from catalog.table import query
from weightspace.duplicates import NEAR, find_duplicates
from weightspace.rebasin.alignment import AlignmentError
from weightspace.symmetry import SymmetryError
from zoo.architectures import Architecture
from zoo.symmetries import symmetry_of

SCHEMA = {"group": pl.Int64, "kind": pl.String, "distance": pl.Float64, "variant": pl.String, "run": pl.String,
          "epoch": pl.Int64}  # fmt: skip


def duplicates(
    url: str | os.PathLike[str],
    *,
    where: str | None = None,
    epoch: int | None = None,
    near: float | None = NEAR,
    scale: bool = False,
    threads: int | None = None,
    **storage_options: Any,
) -> pl.DataFrame:
    """Groups of rows that are one network: exact ones verified number by number, near ones by matching their weights.

    Args:
        where: a condition on rows, as for `catalog.query`.
        epoch: which checkpoints; None for the last of each run.
        near: relative distance after alignment below which two count as near; None for exact ones only.
        scale: find copies whose ReLU units were scaled, or tanh units flipped, too.

    Returns:
        group (a number), kind ("exact" or "near"), distance, variant, run, epoch; sorted by group; empty for none.

    Raises:
        QueryError: see `catalog.query`. AlignError: weights that cannot be compared.
    """
    zoo = open_zoo(url, **storage_options)
    rows = query(zoo, where, columns=zoo.scan().collect_schema().names())
    rows = rows.filter(pl.col("epoch") == (pl.col("epoch").max().over("run") if epoch is None else epoch))
    found: list[dict[str, Any]] = []
    for (variant,), part in rows.group_by("variant", maintain_order=True):
        architecture = Architecture.from_json(zoo.record.variants[str(variant)].architecture)
        try:
            groups = find_duplicates(symmetry_of(architecture), zoo.read(part), near=near, scale=scale, threads=threads)
        except InvalidSpecError:  # no units to permute
            continue
        except (AlignmentError, SymmetryError) as error:
            raise AlignError(f"{variant} of {zoo.url}: {error}") from error
        for group in groups:
            number = found[-1]["group"] + 1 if found else 0
            same = part[list(group.models)].select("variant", "run", "epoch").to_dicts()
            found += [{"group": number, "kind": group.kind, "distance": group.distance, **row} for row in same]
    return pl.DataFrame(found, schema=SCHEMA)
