"""Populations of networks on disk: store, table, queries. Importable without torch.

>>> import catalog, tempfile, numpy as np, polars as pl
>>> from weightspace.layout import Layout
>>> layout = Layout(("w", "b"), ((2, 3), (2,)))
>>> with tempfile.TemporaryDirectory() as folder:
...     net = catalog.make_variant("net", layout, models=2, checkpoints=1)
...     zoo = catalog.create(folder, name="tiny", variants=[net])
...     rows = pl.DataFrame({"run": ["a", "b"], "epoch": [0, 0], "status": "ok", "reason": "", "stored": True})
...     catalog.write_shard(zoo, "net", 0, np.ones((2, 1, 8), np.float32), rows, software={})
...     catalog.open(folder).read(catalog.open(folder).scan().filter(pl.col("run") == "b")).shape
(1, 8)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, overload

from catalog.dataset import dataset
from catalog.pack import pack, unpack
from catalog.publish import Published, publish
from catalog.pull import Pulled, pull
from catalog.registering import register, retract
from catalog.registry import list_zoos as list
from catalog.registry import resolve
from catalog.splits import split
from catalog.store import Zoo, Zoos, open_all, open_zoo
from catalog.table import query, rebuild_table
from catalog.verify import verify
from catalog.write import create, make_variant, write_shard

__all__ = [
    "Published",
    "Pulled",
    "Zoo",
    "Zoos",
    "create",
    "dataset",
    "list",
    "make_variant",
    "open",
    "pack",
    "publish",
    "pull",
    "query",
    "rebuild_table",
    "register",
    "resolve",
    "retract",
    "split",
    "unpack",
    "verify",
    "write_shard",
]


@overload
def open(url: str | os.PathLike[str], **storage_options: Any) -> Zoo: ...
@overload
def open(
    url: Iterable[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]], **storage_options: Any
) -> Zoos: ...
def open(url: Any, **storage_options: Any) -> Zoo | Zoos:
    """Open one zoo (a path or any fsspec URL), or several as one table (a list, or a dict name -> URL).

    Options go to `catalog.store.open_zoo`: `metrics_at` and `versions` for measured columns, others to fsspec.

    Raises:
        NotAZooError, FormatError, CorruptError: see `catalog.store.open_zoo`.
    """
    if isinstance(url, str | os.PathLike):
        return open_zoo(url, **storage_options)
    return open_all(url, **storage_options)
