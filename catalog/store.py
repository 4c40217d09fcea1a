"""Populations on disk: open, scan, read weights back. Writing is in `catalog.write`, checking in `catalog.verify`."""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import MissingDataError, NotAZooError, QueryError, UnknownNameError, unknown_name
from catalog.folder import Folder
from catalog.fragments import Fragment, decode_fragment, listed
from catalog.frames import frame_names, read_view, seen_in
from catalog.grid import from_stored
from catalog.iterate import iterate
from catalog.metrics import Measurement, measurements, with_metrics
from catalog.objects import polars_source
from catalog.publication import published_folder
from catalog.published import Catalog
from catalog.reader import Reader
from catalog.record import LIMIT, Record, Variant, decode
from catalog.shards import Shard
from catalog.table import cached_table, fragment_rows, missing_column, with_status
from catalog.views import View
from weightspace.layout import Layout

ADDRESS = ("variant", "model", "checkpoint")
FRAGMENT = 256 << 20  # bytes of one: a KB for each row it can have
TOGETHER = 256  # fragments requested at once
DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Zoo:
    """A population of networks on disk: rows to query, weights to read. Made by `catalog.open` or `catalog.create`.

    Args:
        metrics_at: where measured columns and frames lie, None for the zoo's own folder.
        versions: metric -> version whose columns have their plain names; see `catalog.metrics.with_metrics`.
    """

    folder: Folder
    record: Record
    metrics_at: Folder | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    _fragments: OrderedDict[str, Fragment] = field(default_factory=OrderedDict, repr=False, compare=False)
    _reader: Reader = field(default_factory=Reader, repr=False, compare=False)
    _measured: dict[str, Measurement] = field(default_factory=dict, repr=False, compare=False)
    _frames: dict[str, View] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:  # what is kept in memory does not travel to other processes
        return Zoo, (self.folder, self.record, self.metrics_at, self.versions)

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

    @property
    def metrics_folder(self) -> Folder:
        """Where `metrics/` and `frames/` are."""
        return self.metrics_at or self.folder

    def committed(self) -> dict[tuple[str, int], str]:
        """(variant, shard) -> fragment file of every committed shard, as of now."""
        names = [name for name in self.folder.files("index") if name.endswith(".parquet")]
        return listed(names, self.record, self.url)

    def fragment(self, name: str) -> Fragment:
        """A verified fragment. A committed fragment never changes, so the last few hundred are kept."""
        fragment = self._fragments.pop(name, None)
        if fragment is None:
            try:
                data = self.folder.read(name, FRAGMENT)
            except FileNotFoundError as error:
                raise MissingDataError(
                    f"fragment {name} of {self.url} is not there; restore it or build again"
                ) from error
            fragment = decode_fragment(self.record, name, data, self.url)
        self._keep(name, fragment)
        return fragment

    def _keep(self, name: str, fragment: Fragment) -> None:
        self._fragments[name] = fragment  # at the end: the first is the one not used for longest
        while len(self._fragments) > 512:
            self._fragments.popitem(last=False)

    def table(self, metrics: bool = True) -> pl.DataFrame:
        """All committed rows, whatever their status, in the order (variant, model, checkpoint).

        Taken from the table file when one matches the committed fragments, else put together from the fragments.

        Args:
            metrics: with the measured columns, as `catalog.metrics.with_metrics` names them.
        """
        published = self._published(metrics)
        if published is not None:
            rows, metrics = published.table(), False  # which has them
        else:
            committed = self.committed()
            cached = cached_table(self.folder, self.record, committed)
            rows = fragment_rows(self, committed) if cached is None else cached
        rows = rows.select(pl.lit(self.name).alias("zoo"), pl.all())
        return with_metrics(self, rows) if metrics else rows

    def measurements(self) -> dict[str, Measurement]:
        """What was measured, by metric@version: settings, columns, rows."""
        return measurements(self)

    def frames(self) -> dict[str, tuple[str, ...]]:
        """Alignments by name, with the variants each of them has."""
        return frame_names(self)

    def frame(self, name: str, variant: str | None = None) -> View:
        """An alignment: symmetry, universe, and permutations of the runs. For a zoo of one variant it needs no name.

        Raises:
            UnknownNameError: no such frame. MissingDataError: it does not have this variant.
        """
        if variant is None:
            self.layout  # noqa: B018  # an error that lists the variants, where there are several
        return read_view(self, name, variant or next(iter(self.record.variants)))

    def scan(self, status: str | None = "ok") -> pl.LazyFrame:
        """The rows as a polars LazyFrame; `status=None` gives diverged and failed ones too.

        Of a published zoo, a query fetches the columns it names, and where its filter excludes all of a row group only
        those that the filter looks at. Of a zoo that is not published, this loads the table.

        Raises:
            CorruptError: bytes that are not those published; of a published zoo when the query runs.
        """
        published = self._published()
        return with_status(self.table().lazy() if published is None else published.scan(), status)

    def polars_source(self) -> tuple[str, dict[str, str]]:
        """URL and storage_options of a published zoo's table for `polars.scan_parquet`, which checks no digest.

        Raises:
            QueryError: this zoo is not published, or its URL is of a kind that polars does not read.
        """
        if self.folder.manifest is None:
            raise QueryError(f"{self.url} is not published: its table is in no file that polars could read; use scan()")
        return polars_source(self.folder, self.folder.manifest.columns.path)

    @functools.cached_property
    def _catalog(self) -> Catalog | None:
        """The table of a published version."""
        return None if self.folder.manifest is None else Catalog(self.folder, self.record, self.name)

    def _published(self, metrics: bool = True) -> Catalog | None:
        """The published table, where it has the columns asked for: with metrics, those it was published with."""
        own = self.metrics_at is None and not self.versions if metrics else not self.folder.files("metrics")
        return self._catalog if own else None

    def read(
        self,
        rows: pl.DataFrame | pl.LazyFrame,
        tensors: Iterable[str] | None = None,
        dtype: str | None = None,
        torch: bool = False,
        frame: str | None = None,
    ) -> Any:
        """Weights of rows, in their order.

        Far away, what is fetched is at most 1.7 times the bytes of the rows, in ranges that are under way together, at
        most 64 MiB at a time. Of a packed zoo the chunks that hold the rows are fetched whole.

        Args:
            rows: rows of `scan()`; columns variant, model and checkpoint say which. One variant.
            tensors: names to read, None for the whole vector; they come in layout order (`layout.select(tensors)`).
            dtype: float32, float64, float16 or (with torch) bfloat16; None for the stored one, with bfloat16 widened
                exactly to float32 in numpy. Weights that pass the range of the type are an error.
            torch: a torch tensor instead of a numpy array.
            frame: name of an alignment to see them in; see `weightscape align`.

        Returns:
            (models, size).

        Raises:
            MissingDataError: rows that hold no weights (diverged runs) or are not in the frame, or files that are gone.
            CorruptError: bytes that are not those committed. Weights are never zeros or NaN in their place.
            QueryError: rows of several variants, or that this zoo does not have.
            UnknownNameError: a tensor the layout does not have, or a frame the zoo does not have, listing those it has.
        """
        address = _address(rows, self.name)
        variant = self._one_variant(address[0])
        kind = dtype or (self.record.dtype if torch else _numpy_dtype(self.record.dtype))
        if kind not in DTYPES or (kind == "bfloat16" and not torch):
            known = DTYPES if torch else DTYPES[:3]
            raise QueryError(f"dtype must be one of {', '.join(known)}, got {kind!r} (bfloat16 needs torch=True)")
        columns = None if tensors is None else variant.layout.indices(_tensor_names(tensors, variant.layout))
        models, checkpoints = (column.to_numpy() for column in address[1:])
        if frame is None:
            return _as(self._stored(variant, models, checkpoints, columns), self.record.dtype, kind, torch)
        table = rows.collect() if isinstance(rows, pl.LazyFrame) else rows
        weights = _as(self._stored(variant, models, checkpoints, None), self.record.dtype, kind, torch)
        weights = seen_in(self, frame, variant.name, table, weights)
        return weights if columns is None else weights[:, columns]

    def iterate(
        self,
        rows: pl.DataFrame | pl.LazyFrame,
        batch: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        tensors: Iterable[str] | None = None,
        dtype: str | None = None,
        torch: bool = False,
        frame: str | None = None,
        memory: int = 256 << 20,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
        drop_last: bool = False,
    ) -> Iterator[tuple[pl.DataFrame, Any]]:
        """Batches of rows and their weights, for populations larger than memory; the next are read meanwhile.

        The order is a function of the rows, `seed` and `epoch`, wherever the zoo lies, whatever the memory. How random
        it is, `catalog.iterate` says. Every row comes once and is read once, as `read` reads it.

        Args:
            rows, tensors, dtype, torch, frame: as for `read`.
            batch: rows of a batch; the last may have fewer.
            shuffle: False for the order of `rows`.
            memory: bytes of weights to hold, about; far away, up to 64 MiB of what was fetched come to it.
            start: number of the first batch to give, to go on where another run stopped; nothing before it is read.
            part: (i, n) for worker i of n: other rows for each, one more or less at most.
            drop_last: leave out what fills no batch, so that all parts have the same number of batches.

        Yields:
            Rows, and their weights (models, size).

        Raises:
            QueryError, and what `read` raises.
        """
        table = rows.collect() if isinstance(rows, pl.LazyFrame) else rows
        names = None if tensors is None else list([tensors] if isinstance(tensors, str) else tensors)
        options: dict[str, Any] = {"seed": seed, "epoch": epoch, "shuffle": shuffle, "memory": memory}
        options |= {"start": start, "part": part, "drop_last": drop_last}
        read = functools.partial(self.read, tensors=names, dtype=dtype, torch=torch, frame=frame)
        return iterate(read, table, self._row_bytes(table, dtype), batch, **options)

    def _row_bytes(self, rows: pl.DataFrame, dtype: str | None) -> tuple[int, int]:
        """Bytes of a row of weights as stored, and as read."""
        grid = self._one_variant(_address(rows, self.name)[0]).grid
        held = {"float64": 8, "float16": 2, "bfloat16": 2}.get(dtype or "", 4)
        return grid.shape[2] * grid.itemsize, grid.shape[2] * held

    def state_dict(self, row: Mapping[str, Any] | pl.DataFrame, torch: bool = False) -> dict[str, Any]:
        """One model's tensors by name, each in its own dtype; what `module.load_state_dict` takes with torch=True.

        numpy has no bfloat16: such tensors come as float32 there, which holds them exactly.
        """
        columns = one_row(row)
        weights = self.read(address_of(columns), torch=torch)[0]
        layout = self.record.variant(columns["variant"]).layout
        if not torch:
            layout = replace(layout, dtypes=tuple("float32" if d == "bfloat16" else d for d in layout.dtypes))
        tensors: dict[str, Any] = layout.unflatten(weights, cast=True)
        return tensors

    def export(self, row: Mapping[str, Any] | pl.DataFrame, path: str | os.PathLike[str]) -> None:
        """Write one model as a safetensors file, with the row's columns as its metadata."""
        from catalog.export import export_safetensors

        export_safetensors(self, row, path)

    def _one_variant(self, column: pl.Series) -> Variant:
        names = [column[0]] if column.n_unique() == 1 else sorted(column.unique())
        if len(names) != 1:
            raise QueryError(
                f"read takes rows of one variant, got {len(names)}: {names}; filter by variant, then read each"
            )
        try:
            return self.record.variant(names[0])
        except UnknownNameError as error:
            raise QueryError(f"{error}: these rows are not of {self.url}") from error

    def _stored(
        self, variant: Variant, models: np.ndarray, checkpoints: np.ndarray, columns: np.ndarray | None
    ) -> np.ndarray:
        """(rows, size) in the stored type, every row checked against the digest it was committed with."""
        grid = variant.grid
        bad = (models < 0) | (models >= grid.shape[0]) | (checkpoints < 0) | (checkpoints >= grid.shape[1])
        if bad.any():
            at = int(np.argmax(bad))
            raise QueryError(
                f"row {at} asks for model {models[at]}, checkpoint {checkpoints[at]}; {variant.name} in {self.url} has "
                f"{grid.shape[0]} models of {grid.shape[1]} checkpoints"
            )
        owner = models // grid.shard[0]
        shards = self._shards(variant, sorted(set(owner.tolist())))
        for number, shard in shards.items():
            if shard.complete:  # as nearly all are
                continue
            here = owner == number
            place = (models[here] - number * grid.shard[0]) * grid.shape[1] + checkpoints[here]
            if not shard.stored[place].all():
                at = int(place[np.argmin(shard.stored[place])])
                row = shard.about(["run", "epoch", "status", "reason"]).row(at, named=True)
                raise MissingDataError(
                    f"run {row['run']} in shard {number} of {variant.name} in {self.url} has no weights at epoch "
                    f"{row['epoch']} ({row['status']}: {row['reason']}); filter by stored"
                )
        return self._reader.read(self.folder, variant, shards, models, checkpoints, columns)

    def _shards(self, variant: Variant, numbers: Iterable[int]) -> dict[int, Shard]:
        """Committed shards of a variant. A commit stays, so an older listing of them will do where it has them all."""
        stamp = self.folder.stamp("index")
        known = self._reader.listing.get(stamp, {})
        names = {number: known.get((variant.name, number), "") for number in numbers}
        if "" in names.values():
            known = self.committed()
            self._reader.listing.clear()
            self._reader.listing[stamp] = known
            names = {number: known.get((variant.name, number), "") for number in numbers}
        for number, name in names.items():
            if not name:
                raise MissingDataError(
                    f"shard {number} of {variant.name} in {self.url} is not built yet, or not in this slice; run the "
                    "build to its end, or `weightscape pull` these rows"
                )
        kept = self._reader.shards
        loaded: dict[str, Shard] = {}
        lacking = [name for name in names.values() if name not in kept]
        for first in range(0, len(lacking), TOGETHER):
            some = lacking[first : first + TOGETHER]
            loaded |= self._load(variant, some)
        return {n: loaded.get(name) or kept.get(name) or self._load(variant, [name])[name] for n, name in names.items()}

    def _load(self, variant: Variant, names: Sequence[str]) -> dict[str, Shard]:
        """What is committed of these shards of a variant, from the published table or else from their fragments."""
        if self._catalog is not None:
            return {s.name: self._reader.keep(s) for s in self._catalog.shards(variant, names)}
        self._fetch(names)
        return {name: self._reader.keep(Shard.of(variant.grid, name, self.fragment(name))) for name in names}

    def _fetch(self, names: Sequence[str]) -> None:
        """Load fragments far away, all requested at once; errors are left to `fragment`, which meets them again."""
        wanted = [name for name in names if name not in self._fragments]
        if not self.folder.local and len(wanted) > 1:
            nothing = [None] * len(wanted)
            for name, data in zip(wanted, self.folder.fetch(wanted, nothing, nothing), strict=True):
                if isinstance(data, bytes):
                    self._keep(name, decode_fragment(self.record, name, data, self.url))


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
        places = _by_zoo(table)
        names = list(places)
        layouts = {self._layout(table, name).fingerprint for name in names}
        if len(layouts) > 1:
            raise QueryError(f"rows of zoos {names} have {len(layouts)} different layouts; read each zoo's rows alone")
        names_wanted = None if tensors is None else list(tensors)
        parts = []
        for name, position in places.items():
            parts.append((position, self.members[name].read(table[position], names_wanted, **options)))
        whole = _empty_like([weights for _, weights in parts], len(table))
        for position, weights in parts:
            whole[position] = weights if isinstance(weights, np.ndarray) else weights.to(whole.dtype)
        return whole

    def iterate(
        self, rows: pl.DataFrame | pl.LazyFrame, batch: int, *, tensors: Iterable[str] | None = None, **options: Any
    ) -> Iterator[tuple[pl.DataFrame, Any]]:
        """As `Zoo.iterate`; the rows may come from several zoos whose variants share a layout."""
        table = rows.collect() if isinstance(rows, pl.LazyFrame) else rows
        names = None if tensors is None else list([tensors] if isinstance(tensors, str) else tensors)
        how = {name: options.pop(name) for name in ("dtype", "torch", "frame") if name in options}
        parts = _by_zoo(table)
        sizes = [self._member(name)._row_bytes(table[place], how.get("dtype")) for name, place in parts.items()]
        row_bytes = max(size for size, _ in sizes), max(size for _, size in sizes)
        read = functools.partial(self.read, tensors=names, **how)
        return iterate(read, table, row_bytes, batch, **options)

    def state_dict(self, row: Mapping[str, Any] | pl.DataFrame, torch: bool = False) -> dict[str, Any]:
        """As `Zoo.state_dict`."""
        return self._of(row).state_dict(row, torch)

    def export(self, row: Mapping[str, Any] | pl.DataFrame, path: str | os.PathLike[str]) -> None:
        """As `Zoo.export`."""
        self._of(row).export(row, path)

    def _of(self, row: Mapping[str, Any] | pl.DataFrame) -> Zoo:
        columns = one_row(row)
        if "zoo" not in columns:
            raise missing_column("zoo", columns)
        return self._member(columns["zoo"])

    def _member(self, name: str) -> Zoo:
        if name not in self.members:
            raise unknown_name("zoo", name, self.members)
        return self.members[name]

    def _layout(self, table: pl.DataFrame, name: str) -> Layout:
        zoo = self._member(name)
        return zoo._one_variant(_address(table.filter(pl.col("zoo") == name), name)[0]).layout


def open_zoo(
    url: str | os.PathLike[str],
    *,
    metrics_at: str | os.PathLike[str] | None = None,
    versions: Mapping[str, str] | None = None,
    registry: str | os.PathLike[str] | None = None,
    allow_retracted: bool = False,
    **storage_options: Any,
) -> Zoo:
    """Open a zoo, local or at any fsspec URL.

    Args:
        url: of a zoo, of a published one (the newest version), or of `versions/<n>.json` in a published one, or
            `zoo:name@version` of a registry.
        metrics_at: folder or URL where measured columns are read and written, for zoos that cannot be written.
        versions: metric -> version, where several are measured.
        registry: path or URL of the file that knows what `zoo:name@version` is, None for `WEIGHTSCAPE_REGISTRY`.
        allow_retracted: open a version that was retracted.

    Raises:
        NotAZooError: nothing there, or no zoo.json.
        CorruptError, FormatError: see `catalog.record.decode` and `catalog.manifest.decode_manifest`.
    """
    folder = published_folder(url, registry=registry, allow_retracted=allow_retracted, **storage_options)
    try:
        data = folder.read("zoo.json", LIMIT)
    except FileNotFoundError as error:
        raise NotAZooError(
            f"{folder.url} is no zoo: it has no zoo.json; `weightscape build PRESET {folder.url}` makes one"
        ) from error
    beside = None if metrics_at is None else Folder.at(metrics_at, **storage_options)
    return Zoo(folder, decode(data, folder.url), beside, dict(versions or {}))


def open_all(
    urls: Iterable[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]], **storage_options: Any
) -> Zoos:
    """Open several zoos as one table; a mapping gives them other names than their own."""
    if isinstance(urls, Mapping) and urls:
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
    renamed = Record(name, record.spec, record.variants, record.dtype, record.info, record.digest)
    return Zoo(zoo.folder, renamed, zoo.metrics_at, zoo.versions)


def one_row(row: Mapping[str, Any] | pl.DataFrame) -> dict[str, Any]:
    """The columns of a single row of `scan()`."""
    if isinstance(row, pl.DataFrame):
        if len(row) != 1:
            raise QueryError(f"expected one row, got {len(row)}; choose one, as in rows[0]")
        return row.row(0, named=True)
    if not isinstance(row, Mapping):
        raise QueryError(f"a row is a DataFrame of one row or a mapping of its columns, got {type(row).__name__}")
    return dict(row)


def address_of(columns: Mapping[str, Any]) -> pl.DataFrame:
    """What `read` needs of one row's columns."""
    return pl.DataFrame({name: [columns[name]] for name in ("zoo", *ADDRESS) if name in columns}, strict=False)


def _address(rows: pl.DataFrame | pl.LazyFrame, zoo: str) -> list[pl.Series]:
    """variant, model and checkpoint of each row, after a look at whether they can be rows of this zoo."""
    if not isinstance(rows, pl.DataFrame | pl.LazyFrame):
        raise QueryError(f"rows must be a polars DataFrame or LazyFrame of scan(), got {type(rows).__name__}")
    table = rows.collect() if isinstance(rows, pl.LazyFrame) else rows
    columns = table.columns
    for name in ADDRESS:
        if name not in columns:
            raise missing_column(name, columns)
    if not len(table):
        raise QueryError("no rows: the query matched none")
    if "zoo" in columns:
        column = table.get_column("zoo")
        mine = column.n_unique() == 1 and column[0] == zoo
        if not mine and (others := set(column.unique()) - {zoo}):
            raise QueryError(
                f"rows of zoo {_few(sorted(map(str, others)))} were given to zoo {zoo!r}; read them from theirs"
            )
    address = [table.get_column(name) for name in ADDRESS]  # column by column: a query costs more than 64 rows
    if any(column.null_count() for column in address):
        raise QueryError(f"columns {', '.join(ADDRESS)} say which weights to read, and some are null")
    try:
        types = (pl.String, pl.Int64, pl.Int64)
        return [c if c.dtype == t else c.cast(t) for c, t in zip(address, types, strict=True)]
    except pl.exceptions.PolarsError as error:
        raise QueryError(f"columns {', '.join(ADDRESS)} are text and integers in scan(): {error}") from error


def _by_zoo(rows: pl.DataFrame) -> dict[str, np.ndarray]:
    """Positions of the rows of each zoo."""
    if "zoo" not in rows.columns:
        raise missing_column("zoo", rows.columns)
    if not len(rows):
        raise QueryError("no rows: the query matched none")
    names = rows["zoo"].unique(maintain_order=True).to_list()
    return {name: np.flatnonzero((rows["zoo"] == name).to_numpy()) for name in names}


def _tensor_names(tensors: Iterable[str], layout: Layout) -> list[str]:
    names = [tensors] if isinstance(tensors, str) else list(tensors)
    for name in names:
        if name not in layout:
            raise unknown_name("tensor", name, (*layout.names, *(alias for alias, _ in layout.aliases)))
    return names


def _numpy_dtype(stored: str) -> str:
    return "float32" if stored == "bfloat16" else stored


def _as(stored: np.ndarray, dtype: str, wanted: str, torch: bool) -> Any:
    """Stored values as floats of the type wanted, of numpy or torch."""
    out_of_range = QueryError(f"some of these weights pass the range of {wanted}; read them as {_numpy_dtype(dtype)}")
    if not torch:
        try:
            with np.errstate(over="raise"):
                return from_stored(stored, dtype).astype(wanted, copy=False)
        except FloatingPointError as error:
            raise out_of_range from error
    import torch as library

    if dtype == "bfloat16":
        tensor = library.from_numpy(stored.view(np.int16)).view(library.bfloat16)
    else:
        tensor = library.from_numpy(stored)
    converted = tensor.to(getattr(library, wanted))
    if wanted in ("float16", "bfloat16") and wanted != dtype and not library.isfinite(converted).all():
        raise out_of_range
    return converted


def _empty_like(parts: Sequence[Any], rows: int) -> Any:
    """An array (rows, size) of a type that holds all parts exactly: zoos may be stored in different ones."""
    if isinstance(parts[0], np.ndarray):
        return np.empty((rows, parts[0].shape[1]), np.result_type(*(part.dtype for part in parts)))
    import torch

    dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
    return torch.empty((rows, parts[0].shape[1]), dtype=dtype)


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
