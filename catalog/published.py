"""The table of a published zoo, read by columns: what a query needs and no more, every byte compared with its digest.

polars reads Parquet from URLs itself (`Zoo.polars_source`). It is not used here: measured, it follows redirects to
other hosts, finds 14 of 300 flipped bits, and knows nothing of our retries, our cache and of being offline.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from catalog import cache
from catalog.errors import CorruptError, FormatError, MissingDataError, ZooError
from catalog.folder import Folder, storage_error
from catalog.fragments import StoredFile, columns_problem, listed, read_content, read_table
from catalog.manifest import Chunk, Columns
from catalog.pages import check_chunk, check_footer, room_for
from catalog.ranges import joined
from catalog.record import FORMAT, Record, Variant, brief
from catalog.shards import Shard

TOGETHER = 64 << 20  # bytes fetched side by side, and held in memory
FREE = 512 << 10  # bytes of other columns that may come with those wanted, to save requests
WAIT = 1 << 20  # bytes of columns that are asked for only when it is known which row groups match a filter
DECODED = 1 << 17  # rows decoded at once, unless a row group has more
Key = tuple[str, int]  # a column, and the number of a row group


@dataclass(frozen=True)
class Catalog:
    """The table of a published zoo, `catalog.<digest>.parquet`: all rows with their measured columns.

    Args:
        folder: with a manifest.
        name: of the zoo, for the column `zoo`.

    Raises:
        FormatError: a table that does not follow the format, or not this zoo's, from all methods.
        CorruptError, MissingDataError, StorageError, OfflineError: bytes that did not come as published.
    """

    folder: Folder
    record: Record
    name: str

    @property
    def columns(self) -> Columns:
        assert self.folder.manifest is not None
        return self.folder.manifest.columns

    @cached_property
    def places(self) -> dict[str, range]:
        """Fragment -> its rows in the table, which stand in the order (variant, shard)."""
        names = [name for name in self.folder.files("index") if name.endswith(".parquet")]
        committed = listed(names, self.record, self.folder.url)
        order = {name: place for place, name in enumerate(self.record.variants)}
        found, start = {}, 0
        for variant, shard in sorted(committed, key=lambda key: (order[key[0]], key[1])):
            grid = self.record.variants[variant].grid
            stop = start + len(grid.models(shard)) * grid.shape[1]
            found[committed[variant, shard]] = range(start, stop)
            start = stop
        if start != self.columns.rows:
            raise self._refused(f"it has {self.columns.rows:,} rows, the shards of this version {start:,}")
        return found

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The columns of the file, after a look at whether they are those of a table of this zoo."""
        data = b"PAR1" + self.columns.footer
        try:
            check_footer(self.columns)
            content = read_content(data)
            with _parquet_errors():
                found = pl.read_parquet_schema(BytesIO(data))
            if list(found) != list(self.columns.chunks):
                raise ValueError("its columns are not those of the manifest")
            if problem := columns_problem(pl.DataFrame(schema=found)):
                raise ValueError(problem)
        except ValueError as error:
            raise self._refused(brief(error)) from error
        self._check(content)
        _ = self.places
        return dict(found)

    def scan(self) -> pl.LazyFrame:
        """All rows, whatever their status, with the column `zoo` first. A query fetches the columns it names."""
        return register_io_source(self._source, schema={"zoo": pl.String, **self.schema})

    def table(self) -> pl.DataFrame:
        """All rows at once, without the column `zoo`; the file is fetched whole."""
        data = self.folder.read(self.columns.path)
        try:
            self._check(read_content(data))
            rows = read_table(data, sum(map(len, self.places.values())))
            if problem := columns_problem(rows):
                raise ValueError(problem)
        except ValueError as error:
            raise self._refused(brief(error)) from error
        return rows

    def shards(self, variant: Variant, names: Sequence[str]) -> list[Shard]:
        """What a reader needs of shards, called by their fragments, of which none is fetched.

        Raises:
            MissingDataError: a file of a shard is no part of this version.
        """
        places = [self.places[name] for name in names]
        found = []
        for name, place, rows in zip(names, places, self._rows(["crc32c", "stored"], places), strict=True):
            if rows["crc32c"].null_count() or rows["stored"].null_count():
                raise self._refused("column crc32c or stored has nulls")
            number = int(name.split(".")[-3])
            files = [_listed(self.folder, f"{variant.path}/{key}") for key, _ in variant.grid.parts(number)]
            crc, stored = (np.ascontiguousarray(rows[column].to_numpy()) for column in ("crc32c", "stored"))
            about = functools.partial(self._about, place)
            found.append(Shard(variant.grid, name, number, tuple(files), stored, crc, about))
        return found

    def _about(self, place: range, names: Sequence[str]) -> pl.DataFrame:
        return self._rows(names, [place])[0]

    def _rows(self, names: Sequence[str], places: Sequence[range]) -> list[pl.DataFrame]:
        """Columns of these rows, which belong to few row groups if they are few."""
        ends = list(accumulate(self.columns.groups))
        spans = [range(bisect_left(ends, rows.start + 1), bisect_left(ends, rows.stop) + 1) for rows in places]
        groups = sorted({group for span in spans for group in span})
        _ = self.schema
        with self._open() as file:
            file.fill((name, group) for name in names for group in groups)
            table = pl.concat([self._decode(file, names, run) for run in self._runs(groups)])
        starts = dict(zip(groups, accumulate((self.columns.groups[g] for g in groups), initial=0), strict=False))
        above = [starts[span.start] - ends[span.start] + self.columns.groups[span.start] for span in spans]
        return [table.slice(rows.start + shift, len(rows)) for rows, shift in zip(places, above, strict=True)]

    def _source(
        self, names: list[str] | None, predicate: pl.Expr | None, limit: int | None, _: int | None
    ) -> Iterator[pl.DataFrame]:
        """What polars asks for: some columns, a filter (polars hands over such as look at one row alone), or a head."""
        shown = ["zoo", *self.schema] if names is None else names
        tested = [] if predicate is None else sorted(set(predicate.meta.root_names()))
        needed = [name for name in self.schema if name in {*shown, *tested}]
        groups: Sequence[int] = range(len(self.columns.groups))
        if predicate is None and limit is not None:
            groups = groups[: bisect_left(list(accumulate(self.columns.groups)), limit) + 1]
        with self._open() as file:
            others = [self.columns.chunks[name][group] for name in needed if name not in tested for group in groups]
            if predicate is not None and tested and len(groups) > 1 and sum(chunk.size for chunk in others) > WAIT:
                groups = self._matching(file, predicate, [name for name in needed if name in tested], groups)
            file.fill((name, group) for name in needed for group in groups)
            for run in [*self._runs(groups), range(0)]:  # the last, so that there is a table where nothing matches
                rows = self._with_zoo(file, needed, run)
                if predicate is not None:
                    rows = rows.filter(predicate)
                yield rows.select(shown) if limit is None else rows.select(shown).head(limit)
                limit = None if limit is None else max(limit - len(rows), 0)

    def _matching(
        self, file: Sparse, predicate: pl.Expr, tested: Sequence[str], groups: Sequence[int]
    ) -> Sequence[int]:
        """The row groups in which a row fits: of the others no other column is fetched."""
        file.fill((name, group) for name in tested for group in groups)
        found: list[int] = []
        for run in self._runs(groups):
            fits = self._with_zoo(file, tested, run).select(predicate).to_series()
            cuts = [0, *accumulate(self.columns.groups[group] for group in run)]
            found += [group for group, (a, b) in zip(run, pairwise(cuts), strict=True) if fits[a:b].any()]
        return found

    def _runs(self, groups: Sequence[int]) -> Iterator[range]:
        """Row groups that follow each other, at most so many that decoding them is no burden."""
        first, rows = 0, 0
        for at, group in enumerate(groups):
            if at > first and (group != groups[at - 1] + 1 or rows + self.columns.groups[group] > DECODED):
                yield range(groups[first], groups[at - 1] + 1)
                first, rows = at, 0
            rows += self.columns.groups[group]
        if groups:
            yield range(groups[first], groups[-1] + 1)

    def _with_zoo(self, file: Sparse, names: Sequence[str], groups: range) -> pl.DataFrame:
        count = sum(self.columns.groups[group] for group in groups)
        zoo = pl.repeat(self.name, count, dtype=pl.String, eager=True).alias("zoo")
        return pl.DataFrame([zoo, *self._decode(file, names, groups)])

    def _decode(self, file: Sparse, names: Sequence[str], groups: range) -> pl.DataFrame:
        """Columns of row groups that are in the file."""
        count = sum(self.columns.groups[group] for group in groups)
        schema = {name: self.schema[name] for name in names}
        if not count or not names:
            return pl.DataFrame(schema=schema)
        try:
            with _parquet_errors():
                lazy = pl.scan_parquet(file.name, glob=False, hive_partitioning=False, cache=False)
                # polars decodes the row groups of a slice alone: the others are holes in the file
                rows = lazy.select(names).slice(sum(self.columns.groups[: groups.start]), count).collect()
            if len(rows) != count or dict(rows.schema) != schema:
                raise ValueError(f"{len(rows):,} rows where {count:,} should be")
        except ValueError as error:
            raise self._refused(brief(error)) from error
        return rows

    def _open(self) -> Sparse:
        return Sparse(self.folder, self.columns)

    def _check(self, content: dict[str, Any]) -> None:
        if (content.get("format"), content.get("zoo")) != (FORMAT, self.record.digest):
            raise self._refused("it belongs to another zoo or format")

    def _refused(self, problem: str) -> FormatError:
        return FormatError(f"{self.columns.path} of {self.folder.url} is no table of this zoo: {problem}")


class Sparse:
    """A local file as long as a Parquet file far away, with its footer and the columns that were needed.

    A context manager; the file is gone afterwards. What lies far away is kept in the cache, column by column.
    """

    def __init__(self, folder: Folder, columns: Columns) -> None:
        self.folder, self.columns = folder, columns
        self.entry = _listed(folder, columns.path)
        self.size = self.entry.size
        self.here: set[Key] = set()
        self.room = room_for(self.size, columns.rows)
        with _disk(f"making room for {columns.path} of {folder.url}"):
            self.file = tempfile.NamedTemporaryFile(prefix="weightscape-", suffix=".parquet")
            self.file.truncate(self.size)
            self._put(0, b"PAR1")
            self._put(self.size - len(columns.footer), columns.footer)

    @property
    def name(self) -> str:
        return self.file.name

    def __enter__(self) -> Sparse:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @cached_property
    def chunks(self) -> list[tuple[Chunk, Key]]:
        """All of the table, in the order of the file."""
        found = [(chunk, (n, g)) for n, chunks in self.columns.chunks.items() for g, chunk in enumerate(chunks)]
        return sorted(found, key=lambda entry: (entry[0].offset, entry[0].size))

    def fill(self, wanted: Iterable[Key]) -> None:
        """Put these columns where they belong, from the cache or from far away."""
        lacking = []
        for name, group in wanted:
            if (name, group) not in self.here:
                chunk = self.columns.chunks[name][group]
                data = None if self.folder.local else cache.find_piece(chunk.digest)
                if data is not None and len(data) == chunk.size:
                    self._place(chunk, (name, group), data)
                else:
                    lacking.append((chunk, (name, group)))
        lacking.sort(key=lambda entry: entry[0].offset)
        while lacking:
            held = accumulate(chunk.size for chunk, _ in lacking)
            count = max(sum(1 for size in held if size <= TOGETHER), 1)
            self._fetch(lacking[:count])
            lacking = [entry for entry in lacking[count:] if entry[1] not in self.here]

    def _fetch(self, wanted: Sequence[tuple[Chunk, Key]]) -> None:
        ranges = [(0, chunk.offset, chunk.offset + chunk.size) for chunk, _ in wanted]
        requests = [wanted[part] for part in joined(ranges, FREE)]
        starts = [part[0][0].offset for part in requests]
        stops = [max(chunk.offset + chunk.size for chunk, _ in part) for part in requests]
        for part, start, data in zip(requests, starts, self._ranges(starts, stops), strict=True):
            if isinstance(data, FileNotFoundError):
                raise MissingDataError(f"{self._where} is not there; publish the zoo again") from data
            if isinstance(data, BaseException):
                if isinstance(data, ZooError) or not isinstance(data, Exception):
                    raise data
                raise storage_error(data, f"reading {self._where}") from data
            self._take(memoryview(data), start, {key for _, key in part})

    def _ranges(self, starts: Sequence[int], stops: Sequence[int]) -> Sequence[bytes | BaseException]:
        path = self.columns.path
        if not self.folder.local:
            return self.folder.fetch([path] * len(starts), starts, stops)
        try:
            with open(self.folder.path(path), "rb") as file:
                return [os.pread(file.fileno(), b - a, a) for a, b in zip(starts, stops, strict=True)]
        except OSError as error:
            return [error]

    def _take(self, data: memoryview, start: int, wanted: set[Key]) -> None:
        """Check and keep all columns that lie in these bytes; those between the wanted ones may be wanted next."""
        first = bisect_left(self.chunks, start, key=lambda entry: entry[0].offset)
        for at in range(first, len(self.chunks)):
            chunk, key = self.chunks[at]
            begin = chunk.offset - start
            if begin > len(data) and key not in wanted:
                break
            part = data[begin : begin + chunk.size]
            if len(part) == chunk.size and hashlib.sha256(part).hexdigest()[:32] == chunk.digest:
                try:
                    self._place(chunk, key, part)
                except FormatError:
                    if key in wanted:
                        raise
                    continue
                if not self.folder.local:
                    cache.keep_piece(chunk.digest, part)
            elif key in wanted:
                raise CorruptError(
                    f"column {key[0]} in {self._where} is not what its manifest says ({len(part):,} of {chunk.size:,} "
                    "bytes came); it was changed or damaged there"
                )

    def _place(self, chunk: Chunk, key: Key, data: bytes | memoryview) -> None:
        """Put a column where it belongs, if it does not claim to hold more than a table may."""
        try:
            self.room = check_chunk(bytes(data), self.columns.groups[key[1]], self.room)
        except ValueError as error:
            raise FormatError(f"column {key[0]} in {self._where} is none of this table: {error}") from error
        self._put(chunk.offset, data)
        self.here.add(key)

    def _put(self, offset: int, data: bytes | memoryview) -> None:
        with _disk(f"writing {self._where} to {tempfile.gettempdir()}"):
            self.file.seek(offset)
            self.file.write(data)
            self.file.flush()

    @property
    def _where(self) -> str:
        return f"{self.columns.path} of {self.folder.url}"


def _listed(folder: Folder, name: str) -> StoredFile:
    try:
        found = folder.entry(name)
    except FileNotFoundError as error:
        raise MissingDataError(f"{name} is no part of this version of {folder.url}; publish the zoo again") from error
    assert found is not None  # there is a manifest
    return found


@contextlib.contextmanager
def _disk(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, doing) from error


@contextlib.contextmanager
def _parquet_errors() -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ValueError(str(error)) from error
