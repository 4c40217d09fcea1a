"""Populations on disk: open, scan, read weights back. Writing is in `catalog.write`, checking in `catalog.verify`."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from catalog import shards
from catalog.errors import CorruptError, MissingDataError, NotAZooError, QueryError, UnknownNameError, unknown_name
from catalog.folder import Folder
from catalog.fragments import Fragment, decode_fragment, listed
from catalog.grid import STORED_AS, from_stored
from catalog.record import Record, Variant, decode
from catalog.table import cached_table, concat_rows, missing_column
from weightspace.layout import Layout

DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Zoo:
    """A population of networks on disk: rows to query, weights to read. Made by `catalog.open` or `catalog.create`."""

    folder: Folder
    record: Record
    _fragments: OrderedDict[str, Fragment] = field(default_factory=OrderedDict, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def url(self) -> str:
        return self.folder.url

    @property
    def layouts(self) -> dict[str, Layout]:
        """Layout of each variant's vectors."""
        return {name: variant.layout for name, variant in self.record.variants.items()}

    @property
    def layout(self) -> Layout:
        """The layout, for a zoo of one variant; a QueryError that lists the variants otherwise."""
        if len(self.record.variants) > 1:
            raise QueryError(
                f"{self.url} has {len(self.record.variants)} variants with a layout each; use layouts[variant]"
            )
        return next(iter(self.layouts.values()))

    def committed(self) -> dict[tuple[str, int], str]:
        """(variant, shard) -> fragment file of every committed shard, as of now."""
        names = [name for name in self.folder.files("index") if name.endswith(".parquet")]
        return listed(names, self.record, self.url)

    def fragment(self, name: str) -> Fragment:
        """A verified fragment. A committed fragment never changes, so the last few hundred are kept."""
        if name not in self._fragments:
            try:
                data = self.folder.read(name)
            except FileNotFoundError as error:
                raise MissingDataError(
                    f"fragment {name} of {self.url} is not there; restore it or build again"
                ) from error
            self._fragments[name] = decode_fragment(self.record, name, data, self.url)
            while len(self._fragments) > 512:
                self._fragments.popitem(last=False)
        return self._fragments[name]

    def table(self) -> pl.DataFrame:
        """All committed rows, whatever their status, in the order (variant, model, checkpoint).

        Taken from the table file when one matches the committed fragments, else put together from the fragments.
        """
        committed = self.committed()
        rows = cached_table(self.folder, self.record, committed)
        if rows is None:
            order = [committed[key] for key in self.record.shards if key in committed]
            rows = concat_rows([self.fragment(name).rows for name in order])
        return rows.select(pl.lit(self.name).alias("zoo"), pl.all())

    def scan(self, status: str | None = "ok") -> pl.LazyFrame:
        """The rows as a polars LazyFrame; `status=None` gives diverged and failed ones too."""
        rows = self.table().lazy()
        return rows if status is None else rows.filter(pl.col("status") == status)

    def read(
        self,
        rows: pl.DataFrame | pl.LazyFrame,
        tensors: Iterable[str] | None = None,
        dtype: str | None = None,
        torch: bool = False,
    ) -> Any:
        """Weights of rows, in their order.

        Args:
            rows: rows of `scan()`; columns variant, model and checkpoint say which. One variant.
            tensors: names to read, None for the whole vector; they come in layout order (`layout.select(tensors)`).
            dtype: float32, float64, float16 or (with torch) bfloat16; None for the stored one, with bfloat16 widened
                exactly to float32 in numpy.
            torch: a torch tensor instead of a numpy array.

        Returns:
            (models, size).

        Raises:
            MissingDataError: rows that hold no weights (diverged runs), or files that are gone.
            CorruptError: bytes that are not those committed. Weights are never zeros or NaN in their place.
            QueryError: rows of several variants, or that this zoo does not have.
        """
        address = _address(rows)
        variant = self._one_variant(address)
        kind = dtype or (self.record.dtype if torch else _numpy_dtype(self.record.dtype))
        if kind not in DTYPES or (kind == "bfloat16" and not torch):
            known = DTYPES if torch else DTYPES[:3]
            raise QueryError(f"dtype must be one of {', '.join(known)}, got {kind!r} (bfloat16 needs torch=True)")
        try:
            columns = None if tensors is None else variant.layout.indices(list(tensors))
        except KeyError as error:
            raise unknown_name("tensor", error.args[0], variant.layout.names) from error
        models, checkpoints = (address[name].to_numpy() for name in ("model", "checkpoint"))
        stored = self._stored(variant, models, checkpoints)
        if columns is not None:
            stored = stored[:, columns]
        return _as(stored, self.record.dtype, kind, torch)

    def state_dict(self, row: Mapping[str, Any] | pl.DataFrame, torch: bool = False) -> dict[str, Any]:
        """One model's tensors by name, each in its own dtype; what `module.load_state_dict` takes with torch=True."""
        rows = row if isinstance(row, pl.DataFrame) else pl.DataFrame([dict(row)])
        if len(rows) != 1:
            raise QueryError(f"expected one row, got {len(rows)}")
        weights = self.read(rows, torch=torch)[0]
        return self.record.variant(rows["variant"][0]).layout.unflatten(weights, cast=True)

    def export(self, row: Mapping[str, Any] | pl.DataFrame, path: str | os.PathLike[str]) -> None:
        """Write one model as a safetensors file, with the row's columns as its metadata."""
        from catalog.export import export_safetensors

        export_safetensors(self, row, path)

    def _one_variant(self, address: pl.DataFrame) -> Variant:
        names = address["variant"].unique().sort().to_list()
        if len(names) != 1:
            raise QueryError(
                f"read takes rows of one variant, got {len(names)}: {names}; filter by variant, then read each"
            )
        try:
            return self.record.variant(names[0])
        except UnknownNameError as error:
            raise QueryError(f"{error}: these rows are not of {self.url}") from error

    def _stored(self, variant: Variant, models: np.ndarray, checkpoints: np.ndarray) -> np.ndarray:
        """(rows, size) in the stored type, every row checked against the digest it was committed with."""
        grid = variant.grid
        bad = (models < 0) | (models >= grid.shape[0]) | (checkpoints < 0) | (checkpoints >= grid.shape[1])
        if bad.any():
            at = int(np.argmax(bad))
            raise QueryError(
                f"row {at} asks for model {models[at]}, checkpoint {checkpoints[at]}; {variant.name} in {self.url} has {grid.shape[:2]}"
            )
        out = np.empty((len(models), grid.shape[2]), STORED_AS[grid.dtype])
        committed = self.committed()
        owner = models // grid.shard[0]
        for shard in np.unique(owner).tolist():
            if (variant.name, shard) not in committed:
                raise MissingDataError(
                    f"shard {shard} of {variant.name} in {self.url} is not built yet; run the build to its end"
                )
            fragment = self.fragment(committed[variant.name, shard])
            here = np.flatnonzero(owner == shard)
            position = models[here] - shard * grid.shard[0], checkpoints[here]
            stored = fragment.column("stored", grid.shape[1])[position]
            if not stored.all():
                at = int(np.argmin(stored))
                row = fragment.rows.row(int(position[0][at] * grid.shape[1] + position[1][at]), named=True)
                raise MissingDataError(
                    f"run {row['run']} has no weights at epoch {row['epoch']} ({row['status']}: {row['reason']}); filter by stored"
                )
            crc = fragment.column("crc32c", grid.shape[1])[position]
            try:
                shards.read_rows(self.folder, variant, fragment, *position, crc, out, here)
            except (CorruptError, MissingDataError) as error:
                names = fragment.rows["run"].gather((position[0] * grid.shape[1]).tolist()).unique().sort().to_list()
                raise type(error)(f"{error} (reading {len(here)} rows of runs {_few(names)})") from error.__cause__
        return out


@dataclass(frozen=True)
class Zoos:
    """Several zoos as one table. Rows carry the zoo's name in the column `zoo`."""

    members: Mapping[str, Zoo]

    def scan(self, status: str | None = "ok") -> pl.LazyFrame:
        """Rows of all zoos; a column that one of them lacks is null there."""
        return pl.concat([zoo.scan(status) for zoo in self.members.values()], how="diagonal_relaxed")

    def read(self, rows: pl.DataFrame | pl.LazyFrame, tensors: Iterable[str] | None = None, **options: Any) -> Any:
        """As `Zoo.read`; the rows may come from several zoos whose variants share a layout."""
        table = rows.collect() if isinstance(rows, pl.LazyFrame) else rows
        self._known(table)
        names = table["zoo"].unique(maintain_order=True).to_list()
        layouts = {self._layout(table, name).fingerprint for name in names}
        if len(layouts) > 1:
            raise QueryError(f"rows of zoos {names} have {len(layouts)} different layouts; read each zoo's rows alone")
        names_wanted = None if tensors is None else list(tensors)
        indexed = table.with_row_index("_position")
        parts = []
        for name in names:
            mine = indexed.filter(pl.col("zoo") == name)
            parts.append((mine["_position"].to_numpy(), self.members[name].read(mine, names_wanted, **options)))
        first = parts[0][1]
        whole = (
            first.new_empty((len(table), first.shape[1]))
            if options.get("torch")
            else np.empty((len(table), first.shape[1]), first.dtype)
        )
        for position, weights in parts:
            whole[position] = weights
        return whole

    def state_dict(self, row: Mapping[str, Any] | pl.DataFrame, torch: bool = False) -> dict[str, Any]:
        """As `Zoo.state_dict`."""
        return self._of(row).state_dict(row, torch)

    def export(self, row: Mapping[str, Any] | pl.DataFrame, path: str | os.PathLike[str]) -> None:
        """As `Zoo.export`."""
        self._of(row).export(row, path)

    def _of(self, row: Mapping[str, Any] | pl.DataFrame) -> Zoo:
        table = row if isinstance(row, pl.DataFrame) else pl.DataFrame([dict(row)])
        self._known(table)
        return self.members[table["zoo"][0]]

    def _known(self, table: pl.DataFrame) -> None:
        if "zoo" not in table.columns:
            raise missing_column("zoo", table.columns)
        for name in table["zoo"].unique():
            if name not in self.members:
                raise unknown_name("zoo", name, self.members)
        if not len(table):
            raise QueryError("no rows: the query matched none")

    def _layout(self, table: pl.DataFrame, name: str) -> Layout:
        zoo = self.members[name]
        return zoo._one_variant(_address(table.filter(pl.col("zoo") == name))).layout


def open_zoo(url: str | os.PathLike[str], **storage_options: Any) -> Zoo:
    """Open a zoo, local or at any fsspec URL.

    Raises:
        NotAZooError: nothing there, or no zoo.json.
        CorruptError, FormatError: see `catalog.record.decode`.
    """
    folder = Folder.at(url, **storage_options)
    try:
        data = folder.read("zoo.json")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotAZooError(
            f"{folder.url} is no zoo: it has no zoo.json; `weightscape build PRESET {folder.url}` makes one"
        ) from error
    return Zoo(folder, decode(data, folder.url))


def open_all(
    urls: Iterable[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]], **storage_options: Any
) -> Zoos:
    """Open several zoos as one table; a mapping gives them other names than their own."""
    if isinstance(urls, Mapping):
        return Zoos({name: _renamed(open_zoo(url, **storage_options), name) for name, url in urls.items()})
    zoos = [open_zoo(url, **storage_options) for url in urls]
    names = [zoo.name for zoo in zoos]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not zoos:
        raise QueryError(
            f"zoos need distinct names, got {names or 'none'}; name them: catalog.open({{'first': url, 'second': url}})"
        )
    return Zoos(dict(zip(names, zoos, strict=True)))


def _renamed(zoo: Zoo, name: str) -> Zoo:
    record = zoo.record
    return Zoo(zoo.folder, Record(name, record.spec, record.variants, record.dtype, record.info, record.digest))


def _address(rows: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    if not isinstance(rows, pl.DataFrame | pl.LazyFrame):
        raise QueryError(f"rows must be a polars DataFrame or LazyFrame of scan(), got {type(rows).__name__}")
    table = rows.collect() if isinstance(rows, pl.LazyFrame) else rows
    for name in ("variant", "model", "checkpoint"):
        if name not in table.columns:
            raise missing_column(name, table.columns)
    if not len(table):
        raise QueryError("no rows: the query matched none")
    return table.select("variant", "model", "checkpoint")


def _numpy_dtype(stored: str) -> str:
    return "float32" if stored == "bfloat16" else stored


def _as(stored: np.ndarray, dtype: str, wanted: str, torch: bool) -> Any:
    if not torch:
        return from_stored(stored, dtype).astype(wanted, copy=False)
    import torch as library

    if dtype == "bfloat16":
        tensor = library.from_numpy(stored.view(np.int16)).view(library.bfloat16)
    else:
        tensor = library.from_numpy(stored)
    return tensor.to(getattr(library, wanted))


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
