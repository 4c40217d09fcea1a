"""What a publication of a zoo consists of: every file with the digest it was committed with, and the table."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from catalog.errors import PublishError, StorageError, ZooError
from catalog.folder import Folder
from catalog.fragments import KEY, StoredFile, decode_fragment, write_parquet
from catalog.frames import decode_frame, frame_files
from catalog.manifest import Columns, Manifest
from catalog.metrics import decode_measurement, metric_files, with_metrics
from catalog.parquet import columns_of
from catalog.record import FORMAT, LIMIT
from catalog.store import FRAGMENT, Zoo
from catalog.table import concat_rows, fingerprint

FIRST = ("variant", "model", "checkpoint", "run", "epoch", "status", "reason", "stored", "crc32c")  # what reads need
GROUP = 10_000  # rows of a row group
GROUPS = 64  # of them at most: each costs a digest a column in the manifest


@dataclass(frozen=True)
class Item:
    """A file to publish: from a folder, or made here (`data`)."""

    file: StoredFile
    folder: Folder
    data: bytes | None = None

    def load(self) -> bytes:
        """Its bytes, if they are those that were committed.

        Raises:
            PublishError: they are not, or not there.
        """
        if self.data is not None:
            return self.data
        where = f"{self.file.path} of {self.folder.url}"
        try:
            # no more than what was committed comes into memory
            long = self.folder.local and self.folder.size(self.file.path) > self.file.size
            data = b"" if long else self.folder.read(self.file.path)
        except FileNotFoundError as error:
            raise PublishError(f"{where} is not there, and was committed; restore it from a copy") from error
        if described(self.file.path, data) != self.file:
            raise PublishError(f"{where} is not what was committed; restore it from a copy: nothing was published")
        return data


def inventory(zoo: Zoo, allow_incomplete: bool) -> tuple[list[Item], pl.DataFrame]:
    """All files but the table, and the rows with measured columns. What is small is read and checked here.

    Raises:
        PublishError: something is missing or damaged.
    """
    record, folder = zoo.record, zoo.folder
    made = {**record.metadata_files(), "zarr.json": record.consolidated()}
    with _unsound(zoo):
        committed = zoo.committed()
        if (missing := len(record.shards) - len(committed)) and not allow_incomplete:
            raise PublishError(
                f"{missing} of {len(record.shards)} shards of {zoo.url} are not built yet; run the build to its end, "
                "or allow an incomplete zoo"
            )
        places = {name: place for place, name in enumerate(record.variants)}
        items = [Item(described("zoo.json", data := folder.read("zoo.json", LIMIT)), folder, data)]
        items += [Item(described(name, data), folder, data) for name, data in made.items()]
        tables = []
        for key in sorted(committed, key=lambda key: (places[key[0]], key[1])):
            data = folder.read(committed[key], FRAGMENT)
            fragment = decode_fragment(record, committed[key], data, zoo.url)
            items.append(Item(described(committed[key], data), folder))
            items += [Item(file, folder) for file in fragment.files]
            tables.append(fragment.rows)
        rows = with_metrics(zoo, concat_rows(tables, zoo.url))
        beside = zoo.metrics_folder
        for name in (name for names in metric_files(beside).values() for name in names):
            decode_measurement(record, name, data := beside.read(name), beside.url)
            items.append(Item(described(name, data), beside))
        for name in (name for names in frame_files(beside).values() for name in names):
            decode_frame(record, name, data := beside.read(name), beside.url)
            items.append(Item(described(name, data), beside))
        for name in (*folder.files("cards"), *(name for name in folder.top() if name == "slice.json")):
            if name.endswith(".json"):
                items.append(Item(described(name, folder.read(name)), folder))
    if not len(rows):
        raise PublishError(f"{zoo.url} has no rows; build it first")
    return items, rows


@contextlib.contextmanager
def _unsound(zoo: Zoo) -> Iterator[None]:
    """PublishError for what is wrong with the source; disks and networks that fail are something else."""
    try:
        yield
    except FileNotFoundError as error:
        raise PublishError(f"files of {zoo.url} went away meanwhile ({error}); run the same command again") from error
    except PublishError:
        raise
    except ZooError as error:
        if type(error) is StorageError:
            raise
        raise PublishError(f"{error}: nothing was published") from error


def table_of(zoo: Zoo, rows: pl.DataFrame, items: Sequence[Item], latest: Manifest | None) -> tuple[Item, Columns]:
    """The file of all rows: what a version of the same files has, else a new one."""
    theirs = zoo.folder.manifest if zoo.metrics_at is None else None
    mine = {item.file.path: item.file for item in items}
    for known in (latest, theirs):
        if known and known.zoo == zoo.record.digest:
            table = known.files[known.columns.path]
            if {**mine, table.path: table} == known.files:
                return Item(table, zoo.folder), known.columns  # which is theirs, or published here already
    rows = rows.select(
        *(name for name in FIRST if name in rows.columns),
        *(name for name, kind in rows.schema.items() if name not in FIRST and kind != pl.Binary),
        *(name for name, kind in rows.schema.items() if name not in FIRST and kind == pl.Binary),
    )
    content = {"format": FORMAT, "zoo": zoo.record.digest, "fragments": fingerprint(zoo.committed())}
    size = max(GROUP, -(-len(rows) // GROUPS))
    data = write_parquet(rows, {KEY: json.dumps(content)}, row_group_size=size)
    name = f"catalog.{hashlib.sha256(data).hexdigest()[:32]}.parquet"
    return Item(described(name, data), zoo.folder, data), columns_of(name, data)


def described(path: str, data: bytes) -> StoredFile:
    """Path, size and digest of bytes."""
    return StoredFile(path, len(data), hashlib.sha256(data).hexdigest())


def left_out(zoo: Zoo, items: Iterable[str]) -> tuple[str, ...]:
    """Files of a zoo that are not published, but for those that are made anew: nobody committed them."""
    known = {*items, "zarr.json"}
    made = re.compile(r"(table|catalog)\.[0-9a-f]{32}\.parquet")
    return tuple(name for name in zoo.folder.files() if name not in known and not made.fullmatch(name))
