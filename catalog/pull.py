"""Pull a zoo, or the shards that a query needs, into a local folder that is a zoo itself."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from catalog.errors import CorruptError, FormatError, MissingDataError, QueryError, SpecMismatchError, StorageError
from catalog.folder import TEMPORARY, Folder, storage_error
from catalog.fragments import StoredFile, decode_fragment
from catalog.frames import decode_frame
from catalog.manifest import NAME as MANIFEST
from catalog.manifest import SHA256, check_path
from catalog.metrics import decode_measurement
from catalog.mirror import Mirror, Progress, check_space, in_cache, lacking
from catalog.publication import read_manifest
from catalog.record import LIMIT, Record, decode
from catalog.slices import NAME, QUERIES, Shard, Slice, read_slice, without_password
from catalog.store import FRAGMENT, Zoo, open_zoo
from catalog.table import query, rebuild_table

TRIES = 5  # listings, while writers replace measured files


@dataclass(frozen=True)
class Pulled:
    """What `pull` did, or with `dry_run` would do.

    Args:
        url, dest: from where, and the folder.
        rows: that the query matches.
        shards, all_shards: that hold them, and that the zoo has. parts: (variant, number) of the former.
        files, bytes: that the folder lacked. cached_bytes: of these, that were on this machine already.
        there: files that the folder had already, whole.
        zoo: opened, None with `dry_run`.
    """

    url: str
    dest: str
    rows: int
    shards: int
    all_shards: int
    files: int
    bytes: int
    cached_bytes: int
    there: int
    parts: tuple[Shard, ...] = field(repr=False)
    seconds: float = field(default=0.0, compare=False)
    zoo: Zoo | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """All but the open zoo."""
        named = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in ("zoo", "parts")}
        return named | {"parts": [list(part) for part in self.parts]}


@dataclass(frozen=True)
class _Plan:
    """All files of some shards. `held` are bytes read while it was made: of zoos without a manifest, what is small."""

    source: Zoo
    rows: int
    shards: tuple[Shard, ...]
    weights: tuple[StoredFile, ...]
    fragments: tuple[StoredFile, ...]
    others: tuple[StoredFile, ...]
    held: dict[str, bytes]

    @property
    def files(self) -> list[StoredFile]:
        return [*self.weights, *self.fragments, *self.others]


def pull(
    url: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    where: str | None = None,
    frames: bool = True,
    metrics: bool = True,
    dry_run: bool = False,
    on_cost: Callable[[Pulled], None] | None = None,
    progress: Progress | None = None,
    **storage_options: Any,
) -> Pulled:
    """Mirror the shards of a zoo that hold the rows of a query, or all, into a folder.

    The folder is a zoo with the same `zoo.json`. Where it does not have all shards, `slice.json` says which it has, so
    that `verify` and readers know that the others are elsewhere. Every file comes under a temporary name, is compared
    with its digest, then renamed. Stopped at any point, the same call goes on; another query adds its shards.

    Files from far away go through the cache, where all processes share them, and are hard links to it on the same disk.

    Args:
        url: as for `catalog.open`; a published zoo, or any.
        where: a condition on ok rows, as for `catalog.query`; None for all shards there are.
        frames, metrics: whether alignments and measured columns come along.
        dry_run: only say what would be fetched.
        on_cost: called with that before anything is.
        progress: called with (bytes done, bytes in all), from several threads, one at a time.
        storage_options: for `catalog.open`.

    Raises:
        QueryError: no row fits, or the condition makes no sense. SpecMismatchError: the folder holds something else.
        StorageError: not enough space, or the disk or the server refused. OfflineError: something is not in the cache.
        CorruptError, MissingDataError: what came is not what was published; nothing of it has its final name.
    """
    began = time.monotonic()
    source = open_zoo(url, **storage_options)
    folder = _destination(source, dest)
    plan = _plan(source, where, frames, metrics)
    wanted = lacking(plan.files, Path(folder.root))
    size = sum(file.size for file in wanted)
    told = Pulled(
        _origin(source.folder),
        folder.url,
        plan.rows,
        len(plan.shards),
        len(source.record.shards),
        len(wanted),
        size,
        in_cache(source.folder, wanted, plan.held),
        len(plan.files) - len(wanted),
        plan.shards,
    )
    if on_cost:
        on_cost(told)
    if dry_run:
        return replace(told, seconds=time.monotonic() - began)
    check_space(source.folder, wanted, plan.held, Path(folder.root))
    _write_record(source, folder)
    mirror = Mirror(source.folder, Path(folder.root), plan.held, size, progress)
    absent = {file.path for file in wanted}
    for part in (plan.weights, plan.fragments, plan.others):  # a fragment says that its files are there
        mirror.put([file for file in part if file.path in absent])
    _remove_superseded(plan, folder, [*(["metrics"] if metrics else []), *(["frames"] if frames else [])])
    zoo = open_zoo(folder.root)
    _settle(plan, zoo, where)
    return replace(told, seconds=time.monotonic() - began, zoo=zoo)


def _origin(folder: Folder) -> str:
    """The URL that was opened, without the folder of a published version below it."""
    return folder.url.removesuffix(f"/{folder.manifest.base}") if folder.manifest else folder.url


def _destination(source: Zoo, dest: str | os.PathLike[str]) -> Folder:
    """The folder, if it is one that this zoo can be pulled into."""
    folder = Folder.at(dest)
    if not folder.local:
        raise StorageError(
            f"pull puts a zoo on this machine, and {folder.url} is elsewhere; `weightscape publish` does that"
        )
    if os.path.exists(folder.root) and not os.path.isdir(folder.root):
        raise StorageError(f"{folder.url} is a file; name a folder, which may be new")
    if source.folder.local:
        here, there = os.path.realpath(source.folder.root), os.path.realpath(folder.root)
        if here == there or there.startswith(f"{here}{os.sep}") or here.startswith(f"{there}{os.sep}"):
            raise SpecMismatchError(f"{folder.url} and the zoo {source.url} lie in each other; choose another folder")
    if not os.path.isdir(folder.root):
        return folder
    if folder.exists(MANIFEST):
        raise SpecMismatchError(f"{folder.url} holds a published zoo; choose another folder")
    try:
        record = decode(folder.read("zoo.json", LIMIT), folder.url)
    except FileNotFoundError:
        if names := [name for name in os.listdir(folder.root) if not name.startswith(TEMPORARY)]:
            raise SpecMismatchError(
                f"{folder.url} holds other files, such as {sorted(names)[0]}; choose a new or empty folder"
            ) from None
        return folder
    if record.digest != source.record.digest:
        raise SpecMismatchError(
            f"{folder.url} holds the zoo {record.name!r} ({record.digest[:12]}), and {source.url} is "
            f"{source.record.name!r} ({source.record.digest[:12]}); choose another folder"
        )
    return folder


def _write_record(source: Zoo, folder: Folder) -> None:
    """`zoo.json` first, then the Zarr metadata that follows from it; what is there already stays."""
    folder.sweep()
    metadata = {"zoo.json": source.folder.read("zoo.json", LIMIT), **source.record.metadata_files()}
    for name, data in metadata.items():
        try:
            right = folder.read(name) == data
        except FileNotFoundError:
            right = False
        if not right:
            folder.write(name, data)


# --- what to fetch


def _plan(source: Zoo, where: str | None, frames: bool, metrics: bool) -> _Plan:
    committed = source.committed()
    rows, shards = _shards(source, where, set(committed))
    fragments = [committed[shard] for shard in shards]
    beside = [*(["metrics"] if metrics else []), *(["frames"] if frames else []), "cards"]
    if source.folder.manifest is None or source.metrics_at is not None:
        return _bare_plan(source, rows, shards, fragments, beside)
    listed = source.folder.manifest.files
    weights = [path for shard in shards for path in _paths(source.record, shard)]
    if gone := [path for path in weights if path not in listed]:
        raise MissingDataError(f"{gone[0]} is not in the manifest of {source.url}, its fragment is; publish it again")
    others = [name for top in beside for name in source.folder.files(top)]
    lists = [tuple(listed[name] for name in names) for names in (weights, fragments, others)]
    return _Plan(source, rows, shards, lists[0], lists[1], lists[2], held={})


def _shards(source: Zoo, where: str | None, committed: set[Shard]) -> tuple[int, tuple[Shard, ...]]:
    """How many rows fit, and the shards that hold them."""
    if where is None or not where.strip():
        if not committed:
            raise QueryError(f"{source.url} has no shards; build it first")
        return sum(_rows(source.record, shard) for shard in committed), tuple(sorted(committed))
    found = query(source, where, columns=["variant", "model"])
    if not len(found):
        raise QueryError(f"no ok row of {source.url} fits {where!r}; nothing was pulled")
    widths = {variant.name: variant.grid.shard[0] for variant in source.record.variants.values()}
    numbers = pl.col("model") // pl.col("variant").replace_strict(widths, return_dtype=pl.Int64)
    shards = found.select("variant", numbers.alias("shard")).unique().sort("variant", "shard")
    return len(found), tuple((str(variant), int(shard)) for variant, shard in shards.iter_rows())


def _rows(record: Record, shard: Shard) -> int:
    grid = record.variant(shard[0]).grid
    return len(grid.models(shard[1])) * grid.shape[1]


def _paths(record: Record, shard: Shard) -> Iterator[str]:
    variant = record.variant(shard[0])
    return (f"{variant.path}/{key}" for key, _ in variant.grid.parts(shard[1]))


def _bare_plan(
    source: Zoo, rows: int, shards: tuple[Shard, ...], fragments: Sequence[str], beside: Sequence[str]
) -> _Plan:
    """Without a manifest: the fragments say which files there are, and all other files are read here, and checked."""
    held = _read_all(source.folder, fragments, FRAGMENT)
    found = [decode_fragment(source.record, name, held[name], source.url) for name in fragments]
    others: dict[str, bytes] = {}
    for top in beside:
        others |= _measured(source, top) if top != "cards" else _read_all(source.folder, source.folder.files(top))
    described = [
        tuple(StoredFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in some.items())
        for some in (held, others)
    ]
    weights = tuple(file for fragment in found for file in fragment.files)
    for file in (*weights, *described[1]):
        try:
            check_path(file.path)
        except ValueError as error:
            raise FormatError(f"a file of {source.url} cannot be kept here: {error}") from error
        if not SHA256.fullmatch(file.sha256):  # which will be a name in the cache
            raise FormatError(
                f"{file.path} of {source.url} was committed with {file.sha256[:80]!r}, which is no sha256"
            )
    return _Plan(source, rows, shards, weights, described[0], described[1], held=held | others)


def _measured(source: Zoo, top: str) -> dict[str, bytes]:
    """All measured columns, or frames, each checked."""
    folder, decoder = source.metrics_folder, decode_measurement if top == "metrics" else decode_frame
    for _ in range(TRIES):
        try:
            held = _read_all(folder, folder.files(top))
        except MissingDataError:  # a writer has just put several files into one
            continue
        for name, data in held.items():
            decoder(source.record, name, data, folder.url)
        return held
    raise StorageError(f"what is measured in {folder.url} changes all the time; pull again when nobody writes there")


MOST = 1 << 30  # bytes of a file that is read whole


def _read_all(folder: Folder, names: Sequence[str], limit: int = MOST) -> dict[str, bytes]:
    nothing = [None] * len(names)
    local = (folder.read(name, limit) for name in names)
    found: Iterable[Any] = local if folder.local else folder.fetch(names, nothing, nothing)
    held = {}
    try:
        for name, data in zip(names, found, strict=True):
            if isinstance(data, BaseException):
                data = folder.read(name)  # which says what is wrong
            held[name] = data
    except FileNotFoundError as error:
        raise MissingDataError(f"a file of {folder.url} went away meanwhile ({error}); pull again") from error
    return held


# --- what it is then


def _remove_superseded(plan: _Plan, folder: Folder, tops: Iterable[str]) -> None:
    """Remove measured files and frames that other versions have and this one does not. Those made here stay."""
    source = plan.source.folder
    if source.manifest is None or plan.source.metrics_at is not None:
        return
    strange = {name for top in tops for name in folder.files(top)} - set(source.manifest.files)
    if not strange:
        return
    base = f"/{source.manifest.base}"
    above = replace(source, url=_origin(source), root=source.root.removesuffix(base), manifest=None)
    newest = read_manifest(above) or source.manifest
    for number in range(1, newest.version + 1):
        other = read_manifest(above, f"versions/{number}.json")
        if other is not None and other.base == source.manifest.base:
            for name in strange & set(other.files):
                folder.remove(name)


def _settle(plan: _Plan, zoo: Zoo, where: str | None) -> None:
    """The table, and `slice.json` as the last file: what is there now, with what was pulled before."""
    with _locked(zoo.folder):
        committed = zoo.committed()
        if absent := set(plan.shards) - set(committed):
            raise CorruptError(f"shard {sorted(absent)[0]} went away from {zoo.url} meanwhile; pull again")
        rebuild_table(zoo)
        before = _before(zoo)
        if set(zoo.record.shards) <= set(committed):
            zoo.folder.remove(NAME)
        elif (now := _slice(plan, before, where)) != before:
            zoo.folder.write(NAME, now.encode())


def _before(zoo: Zoo) -> Slice | None:
    try:
        return read_slice(zoo.folder, zoo.record)
    except CorruptError:  # which this mends
        return None


def _slice(plan: _Plan, before: Slice | None, where: str | None) -> Slice:
    source = plan.source.folder
    of = without_password(_origin(source))
    version, tree = (source.manifest.version, source.manifest.tree) if source.manifest else (0, "")
    queries = (where,) if where and where.strip() else ()
    if before is not None:
        every = not before.where or not queries
        queries = () if every else tuple(dict.fromkeys([*before.where, *queries]))[-QUERIES:]
    shards = frozenset(plan.shards) | (before.shards if before else frozenset())
    today = datetime.now(UTC).date().isoformat()
    now = Slice(of, version, tree, plan.source.record.digest, queries, shards, today)
    return before if before is not None and replace(now, date=before.date) == before else now


@contextmanager
def _locked(folder: Folder) -> Iterator[None]:
    """One pull at a time in a folder; on a file system without locks as if there was no other."""
    try:
        descriptor = os.open(folder.root, os.O_RDONLY)
    except OSError as error:
        raise storage_error(error, f"opening {folder.url}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
