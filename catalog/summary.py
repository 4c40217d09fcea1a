"""Looks into a zoo: what is in it, and one row of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import polars as pl

from catalog.errors import QueryError
from catalog.grid import PACKED
from catalog.record import FORMAT
from catalog.store import Zoo


def summary(zoo: Zoo) -> dict[str, Any]:
    """Name, variants, rows by status, shards committed of all, bytes of weights, spec and provenance; JSON-ready.

    `bytes` counts the weights; of a packed zoo, `packed_bytes` the files that hold those committed.
    """
    committed = zoo.committed()
    table = zoo.table()
    rows = table["status"].value_counts().sort("status") if len(table) else pl.DataFrame({"status": [], "count": []})
    variants = {
        name: {
            "family": variant.architecture.get("family"),
            "models": variant.grid.shape[0],
            "checkpoints": variant.grid.shape[1],
            "weights": variant.grid.shape[2],
            "shards": variant.grid.num_shards,
            "committed": sum(key[0] == name for key in committed),
            "bytes": math.prod(variant.grid.shape) * variant.grid.itemsize,
        }
        for name, variant in zoo.record.variants.items()
    }
    return {
        "name": zoo.name,
        "url": zoo.url,
        "format": FORMAT,
        "digest": zoo.record.digest,
        "dtype": zoo.record.dtype,
        "tier": zoo.record.tier,
        "complete": len(committed) == len(zoo.record.shards),
        "shards": len(zoo.record.shards),
        "committed": len(committed),
        "models": sum(variant["models"] for variant in variants.values()),
        "bytes": sum(variant["bytes"] for variant in variants.values()),
        **({"packed_bytes": _file_bytes(zoo, committed.values())} if zoo.record.tier == PACKED else {}),
        "rows": dict(rows.iter_rows()),
        "columns": {name: str(dtype) for name, dtype in table.schema.items()},
        "variants": variants,
        "metrics": {
            name: {"rows": len(one.rows), "default": one.default, "settings": dict(one.settings)}
            for name, one in zoo.measurements().items()
        },
        "frames": {
            name: {"variants": len(variants), "runs": sum(zoo.frame(name, v).rows["run"].n_unique() for v in variants)}
            for name, variants in zoo.frames().items()
        },
        "spec": zoo.record.spec,
        "info": zoo.record.info,
    }


def _file_bytes(zoo: Zoo, fragments: Iterable[str]) -> int:
    return sum(file.size for name in fragments for file in zoo.fragment(name).files)


def find_row(zoo: Zoo, run: str, epoch: int | None = None) -> pl.DataFrame:
    """The row of a run at an epoch, the last stored one when no epoch is given. An unambiguous start of the id will do.

    Raises:
        QueryError: no such run or epoch; says which there are.
    """
    table = zoo.table()
    names = table.filter(pl.col("run").str.starts_with(run))["run"].unique().sort().to_list()
    if len(names) != 1 or not run:
        few = ", ".join(names[:4]) or "none of its runs"
        raise QueryError(f"run {run!r} of {zoo.url}: {few} begin so; `weightscape query` lists the ids")
    rows = table.filter(pl.col("run") == names[0], pl.col("stored")).sort("epoch")
    found = rows.tail(1) if epoch is None else rows.filter(pl.col("epoch") == epoch)
    if not len(found):
        raise QueryError(f"run {names[0]} of {zoo.url} has weights at epochs {rows['epoch'].to_list()}, asked {epoch}")
    return found.head(1)
