"""Check every byte of a zoo against what was committed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from catalog.errors import CorruptError, FormatError
from catalog.fragments import Fragment
from catalog.frames import NAME as FRAME_FILE
from catalog.frames import decode_frame
from catalog.metrics import NAME as METRIC_FILE
from catalog.metrics import decode_measurement
from catalog.reader import Reader
from catalog.shards import Shard
from catalog.store import Zoo, open_zoo
from catalog.table import NAME, cached_table, check_table, fragment_rows

BATCH = 64 << 20  # bytes of weights checked at a time


@dataclass(frozen=True)
class Problem:
    """Something wrong in a zoo. kind: corrupt, missing, incomplete or unknown."""

    kind: str
    file: str
    message: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found. `digest` is the tree digest: sha256 over the names and sha256 of all files."""

    url: str
    files: int
    bytes: int
    rows: int
    digest: str
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    url: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None, **storage_options: Any
) -> Verification:
    """Check all files of a zoo: every bit is covered by a digest.

    `zoo.json` carries its own sha256 and determines the Zarr metadata; fragments and table are named by their sha256;
    fragments hold the sha256 of the shard files and the crc32c of each row. A file nobody committed is a problem too.

    Args:
        progress: called with (files done, files in all).

    Raises:
        NotAZooError, CorruptError, FormatError: `zoo.json` itself is absent, damaged or of another format.
    """
    zoo = open_zoo(url, **storage_options)
    digests: dict[str, str] = {}
    total = 0
    names = zoo.folder.files()
    for done, name in enumerate(names):
        try:
            data = zoo.folder.read(name)
        except FileNotFoundError:  # gone since the listing: missed below, if somebody needs it
            continue
        total += len(data)
        digests[name] = hashlib.sha256(data).hexdigest()
        if progress:
            progress(done + 1, len(names))
    problems = _check_metadata(zoo, digests)
    known = {"zoo.json", *zoo.record.metadata_files()}
    rows = 0
    try:
        committed = zoo.committed()
    except (CorruptError, FormatError) as error:  # nobody can say then which shard files belong here
        problems.append(Problem("corrupt", "index", str(error)))
        known.update(digests)
        committed = {}
    else:
        problems += _check_complete(zoo, set(committed))
    sound = True
    for (variant, shard), name in committed.items():
        known.add(name)
        known.update(f"weights/{variant}/{key}" for key, _ in zoo.record.variant(variant).grid.parts(shard))
        try:
            fragment = zoo.fragment(name)
        except (CorruptError, FormatError) as error:
            problems.append(Problem("corrupt", name, str(error)))
            sound = False
            continue
        rows += len(fragment.rows)
        problems += _check_shard(zoo, fragment, digests)
    tables = [name for name in digests if NAME.fullmatch(name)]
    known.update(tables)
    problems += [problem for name in tables for problem in _check_table(zoo, name, committed if sound else None)]
    for pattern, decode in ((METRIC_FILE, decode_measurement), (FRAME_FILE, decode_frame)):
        for name in filter(pattern.fullmatch, digests):
            known.add(name)
            try:
                decode(zoo.record, name, zoo.folder.read(name), zoo.url)
            except FileNotFoundError:  # put into a larger one meanwhile
                pass
            except (CorruptError, FormatError) as error:
                problems.append(Problem("corrupt", name, str(error)))
    for name in sorted(set(digests) - known):
        problems.append(
            Problem("unknown", name, f"{name} was committed by nobody: a shard without its fragment, or a stranger")
        )
    tree = hashlib.sha256("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()).hexdigest()
    return Verification(zoo.url, len(digests), total, rows, tree, tuple(problems))


def _check_metadata(zoo: Zoo, digests: Mapping[str, str]) -> list[Problem]:
    problems = []
    for name, expected in zoo.record.metadata_files().items():
        if name not in digests:
            problems.append(Problem("missing", name, f"{name} is not there; building again writes it"))
        elif digests[name] != hashlib.sha256(expected).hexdigest():
            problems.append(
                Problem("corrupt", name, f"{name} is not what zoo.json determines; delete it and build again")
            )
    return problems


def _check_complete(zoo: Zoo, committed: Set[tuple[str, int]]) -> list[Problem]:
    """A problem for each variant that lacks shards."""
    problems = []
    for name, variant in zoo.record.variants.items():
        absent = [shard for shard in range(variant.grid.num_shards) if (name, shard) not in committed]
        if absent:
            few = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
            message = (
                f"{len(absent)} of {variant.grid.num_shards} shards of {name} are not committed ({few}); build again"
            )
            problems.append(Problem("incomplete", f"index/{name}.{absent[0]:05d}", message))
    return problems


def _check_table(zoo: Zoo, name: str, committed: Mapping[tuple[str, int], str] | None) -> list[Problem]:
    """Whether a table file is whole and, when it is of these fragments, has their rows."""
    try:
        check_table(name, zoo.folder.read(name), zoo.url)
        if committed is None:
            return []
        rows = cached_table(zoo.folder, zoo.record, committed)
        if rows is not None and not rows.equals(fragment_rows(zoo, committed)):
            raise CorruptError(f"{name} of {zoo.url} has other rows than the fragments; delete it: it is rebuilt")
    except FileNotFoundError:  # a newer one took its place meanwhile
        return []
    except (CorruptError, FormatError) as error:
        return [Problem("corrupt", name, str(error))]
    return []


def _check_shard(zoo: Zoo, fragment: Fragment, digests: Mapping[str, str]) -> list[Problem]:
    where = f"shard {fragment.shard} of {fragment.variant} in {zoo.url}"
    problems = []
    for file in fragment.files:
        if file.path not in digests:
            problems.append(Problem("missing", file.path, f"{where}: {file.path} is not there; restore it from a copy"))
        elif digests[file.path] != file.sha256:
            problems.append(
                Problem("corrupt", file.path, f"{where}: {file.path} is not what was committed; restore it from a copy")
            )
    if problems:
        return problems
    variant = zoo.record.variant(fragment.variant)
    grid = variant.grid
    shard = Shard.of(grid, "", fragment)
    stored = np.flatnonzero(shard.stored)
    together = max(BATCH // (grid.shape[2] * grid.itemsize), 1)
    try:
        for start in range(0, len(stored), together):
            batch = stored[start : start + together]
            models, checkpoints = np.divmod(batch, grid.shape[1])
            models += shard.number * grid.shard[0]
            Reader().read(zoo.folder, variant, {shard.number: shard}, models, checkpoints)
    except CorruptError as error:
        return [Problem("corrupt", fragment.files[0].path, str(error))]
    return []
