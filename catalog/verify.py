"""Check every byte of a zoo against what was committed, or published."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from catalog.check import check_shard, check_sizes, content, differs
from catalog.errors import CorruptError, FormatError
from catalog.folder import Folder
from catalog.fragments import decode_fragment
from catalog.frames import NAME as FRAME_FILE
from catalog.frames import decode_frame
from catalog.manifest import Manifest, tree_digest
from catalog.metrics import NAME as METRIC_FILE
from catalog.metrics import decode_measurement
from catalog.shards import Shard
from catalog.slices import LIMIT, decode_slice
from catalog.slices import NAME as SLICE
from catalog.store import Zoo, open_zoo
from catalog.table import NAME as TABLE_FILE
from catalog.table import cached_table, check_table, fragment_rows

CATALOG_FILE = re.compile(r"catalog\.(?P<digest>[0-9a-f]{32})\.parquet")
WHOLE, MOST = 64 << 20, 4 << 30  # bytes of a file with rows: of a small zoo, of any
WORKERS = 8  # files in memory at once
Key = tuple[str, int]  # variant, shard


@dataclass(frozen=True)
class Problem:
    """Something wrong in a zoo. kind: corrupt, missing, incomplete or unknown."""

    kind: str
    file: str
    message: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Args:
        digest: the tree digest, sha256 over the names and sha256 of all files; a shard that was not read counts with
            the sha256 it was committed with.
        version: of a published zoo, 0 for others.
        quick: the shards were not read.
    """

    url: str
    files: int
    bytes: int
    rows: int
    digest: str
    problems: tuple[Problem, ...]
    version: int = 0
    quick: bool = False

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    url: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    *,
    quick: bool = False,
    workers: int | None = None,
    **storage_options: Any,
) -> Verification:
    """Check all files of a zoo: every bit is covered by a digest.

    `zoo.json` carries its own sha256 and determines the Zarr metadata; fragments and table are named by their sha256;
    fragments hold the sha256 of the shard files and the crc32c of each row. A file nobody committed is a problem too.
    Of a published zoo the manifest says the sha256 of every file; of a slice, the shards it lacks are no problem.
    What is read is what lies there, never what a cache has.

    Args:
        progress: called with (files done, files in all).
        quick: of shards look at the sizes alone; all other files are read.
        workers: files read at once, each held in memory; the number of cores, or 8 far away.

    Raises:
        NotAZooError, CorruptError, FormatError: `zoo.json` or the manifest itself is absent, damaged or of another
            format. StorageError: something cannot be read at all.
    """
    zoo = open_zoo(url, **storage_options)
    task = _Task(zoo, replace(zoo.folder, manifest=None), quick)
    names = zoo.folder.files()
    shards = task.committed(names)
    some = {name for key, name in shards.items() for name in (name, *task.paths(key))}
    others = sorted((set(names) | set(zoo.record.metadata_files())) - some)
    at_once = workers or (min(WORKERS, os.cpu_count() or 1) if zoo.folder.local else WORKERS)
    total, done = len(some) + len(others), 0
    with ThreadPoolExecutor(max(at_once, 1)) as pool:
        try:
            for count in _chain(pool.map(task.shard, shards.items()), pool.map(task.file, others)):
                done += count
                if progress:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    task.tables(shards)
    if zoo.folder.manifest:
        task.published(shards, url, storage_options)
    return task.result()


def _chain(*parts: Iterator[int]) -> Iterator[int]:
    for part in parts:
        yield from part


@dataclass
class _Task:
    """What is found. Several threads add to it, by calls that need no lock.

    Args:
        zoo: as it was opened.
        folder: of the zoo, without a manifest: bytes come from there, not from a cache.
        there: file -> sha256, bytes.
        counts: rows by status.
        sound: all fragments could be read. listed: it is clear which there are.
    """

    zoo: Zoo
    folder: Folder
    quick: bool
    there: dict[str, tuple[str, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    counts: list[Counter[str]] = field(default_factory=list)
    sound: bool = True
    listed: bool = True

    @property
    def manifest(self) -> Manifest | None:
        return self.zoo.folder.manifest

    @cached_property
    def largest(self) -> int:
        """Bytes that a file may have which is read whole."""
        rows = sum(variant.grid.shape[0] * variant.grid.shape[1] for variant in self.zoo.record.variants.values())
        sizes = [variant.layout.size for variant in self.zoo.record.variants.values()]
        return min(WHOLE + 4096 * rows + 4 * max(sizes), MOST)

    def say(self, kind: str, file: str, message: str) -> None:
        self.problems.append(Problem(kind, file, message))

    def paths(self, key: Key) -> list[str]:
        """Files of a shard."""
        variant = self.zoo.record.variant(key[0])
        return [f"{variant.path}/{name}" for name, _ in variant.grid.parts(key[1])]

    def committed(self, names: list[str]) -> dict[Key, str]:
        """Fragments; shards that lack one, but for those a slice need not have, are a problem."""
        try:
            found = self.zoo.committed()
        except (CorruptError, FormatError) as error:  # nobody can say then which shard files belong here
            self.say("corrupt", "index", str(error))
            self.sound = self.listed = False
            return {}
        wanted = self._slice() if SLICE in names else None
        for name, variant in self.zoo.record.variants.items():
            numbers = range(variant.grid.num_shards) if wanted is None else sorted(s for v, s in wanted if v == name)
            absent = [shard for shard in numbers if (name, shard) not in found]
            if absent:
                few = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
                what = f"{len(absent)} of {len(numbers)} shards of {name} are not committed ({few})"
                advice = "build again" if wanted is None else "pull again"
                self.say("incomplete", f"index/{name}.{absent[0]:05d}", f"{what}; {advice}")
        return found

    def _slice(self) -> Set[Key] | None:
        """The shards that a slice must have; None when nobody can tell."""
        try:
            return decode_slice(self.folder.read(SLICE, LIMIT), self.zoo.record, self.zoo.url).shards
        except (CorruptError, FormatError) as error:
            self.say("corrupt", SLICE, f"{error}; pull again")
            return None

    def shard(self, item: tuple[Key, str]) -> int:
        """Check a fragment and the files of its shard; returns how many files these are."""
        key, name = item
        paths = self.paths(key)
        where = f"shard {key[1]} of {key[0]} in {self.zoo.url}"
        try:
            data = self._read(name, needed=True)
            fragment = None if data is None else decode_fragment(self.zoo.record, name, data, self.zoo.url)
        except (CorruptError, FormatError) as error:
            self.say("corrupt", name, str(error))
            fragment = None
        if fragment is None:
            self.sound = False
            for path in paths:
                self._hash(path)
            return 1 + len(paths)
        self.zoo._keep(name, fragment)
        self.counts.append(Counter(fragment.rows["status"].to_list()))
        for file in fragment.files if self.manifest else ():
            if self.manifest and self.manifest.files.get(file.path) != file:
                self.say(
                    "corrupt", file.path, f"{where}: {file.path} is otherwise in the manifest than in its fragment"
                )
        if self.quick:
            self.there |= check_sizes(self.folder, fragment.files, where, self.say)
        else:
            shard = Shard.of(self.zoo.record.variant(key[0]).grid, name, fragment)
            self.there |= check_shard(self.folder, shard, where, self.say)
        return 1 + len(paths)

    def file(self, name: str) -> int:
        """Check a file that is of no shard; returns 1."""
        record, where = self.zoo.record, self.zoo.url
        made = record.metadata_files()
        if self.manifest:
            made["zarr.json"] = record.consolidated()
        match = CATALOG_FILE.fullmatch(name)
        if name in made:
            data = self._read(name, needed=True)
            if data is not None and data != made[name]:
                self.say("corrupt", name, f"{name} is not what zoo.json determines; delete it and build again")
        elif METRIC_FILE.fullmatch(name) or FRAME_FILE.fullmatch(name):
            decode: Any = decode_measurement if METRIC_FILE.fullmatch(name) else decode_frame
            try:
                if (data := self._read(name)) is not None:
                    decode(record, name, data, where)
            except (CorruptError, FormatError) as error:
                self.say("corrupt", name, str(error))
        elif name in ("zoo.json", SLICE) or TABLE_FILE.fullmatch(name):  # looked at by others
            self._read(name)
        elif match:
            data = self._read(name)
            if data is not None and hashlib.sha256(data).hexdigest()[:32] != match["digest"]:
                self.say("corrupt", name, f"{name} of {where} is damaged; restore it from a copy")
        else:
            self._hash(name)
            if not self.manifest and self.listed:
                said = f"{name} was committed by nobody: a shard without its fragment, or a stranger"
                self.say("unknown", name, said)
        return 1

    def _read(self, name: str, needed: bool = False) -> bytes | None:
        """All bytes of a file that is sound as far as the manifest can tell; else None, and a problem."""
        try:
            with content(self.folder, name, self._size(name)) as found:
                if found.size > self.largest:
                    self.there[name] = "", found.size
                    said = f"{name} of {self.zoo.url} has {found.size:,} bytes, more than the {self.largest:,} allowed"
                    self.say("corrupt", name, f"{said}; restore it from a copy")
                    return None
                data = found.read(0, found.size).tobytes()
        except FileNotFoundError:  # without a manifest: replaced by a newer one since the listing
            if self.manifest or needed:
                self.say("missing", name, f"{name} of {self.zoo.url} is not there; restore it, or build again")
            return None
        return data if self._found(name, hashlib.sha256(data).hexdigest(), len(data)) else None

    def _hash(self, name: str) -> None:
        """sha256 of any file."""
        try:
            with content(self.folder, name, self._size(name)) as found:
                # a quick look does not read what might be a shard
                unread = (self.quick and name.startswith("weights/")) or found.size != (self._size(name) or found.size)
                self._found(name, "" if unread else found.sha256(), found.size)
        except FileNotFoundError:
            if self.manifest:
                self.say("missing", name, f"{name} of {self.zoo.url} is not there; restore it from a copy")

    def _size(self, name: str) -> int | None:
        entry = self.manifest.files.get(name) if self.manifest else None
        return entry.size if entry else None

    def _found(self, name: str, sha256: str, size: int) -> bool:
        """Note a file; whether it is as the manifest says."""
        self.there[name] = sha256, size
        entry = self.manifest.files.get(name) if self.manifest else None
        if entry and (size != entry.size or sha256 not in (entry.sha256, "")):
            self.say("corrupt", name, f"{self.zoo.url}: {differs(entry, size)}")
            return False
        return True

    def tables(self, shards: dict[Key, str]) -> None:
        """Whether table files are whole and, when they are of these fragments, have their rows."""
        for name in filter(TABLE_FILE.fullmatch, self.there):
            if self.there[name][1] > self.largest:  # said already
                continue
            try:
                check_table(name, self.zoo.folder.read(name), self.zoo.url)
                rows = cached_table(self.zoo.folder, self.zoo.record, shards) if self.sound else None
                if rows is not None and not rows.equals(fragment_rows(self.zoo, shards)):
                    said = f"{name} of {self.zoo.url} has other rows than the fragments; delete it: it is rebuilt"
                    self.say("corrupt", name, said)
            except FileNotFoundError:  # a newer one took its place meanwhile
                continue
            except (CorruptError, FormatError) as error:
                self.say("corrupt", name, str(error))

    def published(self, shards: dict[Key, str], url: str | os.PathLike[str], options: dict[str, Any]) -> None:
        """The manifest, against the files it lists and the other versions."""
        from catalog.check_published import check_table_file, check_versions, strangers

        if self.sound:
            check_table_file(self.zoo, shards, sum(self.counts, Counter()), self.say)
        check_versions(self.zoo, url, options, self.say)
        for name in strangers(self.zoo, self.folder, url, options):
            self.say("unknown", name, f"{name} is in no version of {self.zoo.url}: left by an interrupted publication?")

    def result(self) -> Verification:
        digest = tree_digest((name, sha256) for name, (sha256, _) in self.there.items())
        size = sum(size for _, size in self.there.values())
        rows = sum(counts.total() for counts in self.counts)
        problems = sorted(set(self.problems), key=lambda problem: (problem.file, problem.kind, problem.message))
        version = self.manifest.version if self.manifest else 0
        return Verification(self.zoo.url, len(self.there), size, rows, digest, tuple(problems), version, self.quick)
