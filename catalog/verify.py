"""Check every byte of a zoo against what was committed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from catalog import shards
from catalog.errors import CorruptError, FormatError, MissingDataError, QueryError
from catalog.fragments import Fragment
from catalog.grid import STORED_AS, from_stored
from catalog.store import Zoo, open_zoo
from catalog.table import check_table, table_files


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


def verify(url: str, progress: Callable[[int, int], None] | None = None, **storage_options: object) -> Verification:
    """Check all files of a zoo: every bit is covered by a digest.

    `zoo.json` carries its own sha256 and determines the Zarr metadata; fragments and table are named by their sha256;
    fragments hold the sha256 of the shard files and the crc32c of each row. A file nobody committed is a problem too.

    Args:
        progress: called with (files done, files in all).

    Raises:
        NotAZooError, CorruptError, FormatError: `zoo.json` itself is absent, damaged or of another format.
    """
    zoo = open_zoo(url, **storage_options)
    names = list(zoo.folder.files())
    digests: dict[str, str] = {}
    problems: list[Problem] = []
    total = rows = 0
    for done, name in enumerate(names):
        data = zoo.folder.read(name)
        total += len(data)
        digests[name] = hashlib.sha256(data).hexdigest()
        if progress:
            progress(done + 1, len(names))
    known = {"zoo.json", *table_files(zoo.folder)}
    for name, expected in zoo.record.metadata_files().items():
        known.add(name)
        if name not in digests:
            problems.append(Problem("missing", name, f"{name} is not there; building again writes it"))
        elif digests[name] != hashlib.sha256(expected).hexdigest():
            problems.append(
                Problem("corrupt", name, f"{name} is not what zoo.json determines; delete it and build again")
            )
    for name in table_files(zoo.folder):
        try:
            check_table(name, zoo.folder.read(name), zoo.url)
        except CorruptError as error:
            problems.append(Problem("corrupt", name, str(error)))
    try:
        committed = zoo.committed()
    except (CorruptError, FormatError) as error:
        problems.append(Problem("corrupt", "index", str(error)))
        committed = {}
    known.update(name for name in names if name.startswith("index/"))
    owned = set()
    for (variant, shard), name in committed.items():
        try:
            fragment = zoo.fragment(name)
        except (CorruptError, FormatError) as error:
            problems.append(Problem("corrupt", name, str(error)))
            owned.update(f"weights/{variant}/{key}" for key, _ in zoo.record.variant(variant).grid.parts(shard))
            continue
        rows += len(fragment.rows)
        owned.update(file.path for file in fragment.files)
        problems += _check_shard(zoo, fragment, digests)
    for variant, shard in zoo.record.shards:
        if (variant, shard) not in committed:
            problems.append(
                Problem(
                    "incomplete",
                    f"index/{variant}.{shard:05d}",
                    f"shard {shard} of {variant} is not committed; build again",
                )
            )
    for name in sorted(set(names) - known - owned):
        problems.append(
            Problem("unknown", name, f"{name} was committed by nobody: a shard without its fragment, or a stranger")
        )
    tree = hashlib.sha256("".join(f"{digests[name]}  {name}\n" for name in names).encode()).hexdigest()
    return Verification(zoo.url, len(names), total, rows, tree, tuple(problems))


def _check_shard(zoo: Zoo, fragment: Fragment, digests: dict[str, str]) -> list[Problem]:
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
    stored = np.flatnonzero(fragment.rows["stored"].to_numpy())
    models, checkpoints = np.divmod(stored, variant.grid.shape[1])
    out = np.empty((len(stored), variant.grid.shape[2]), STORED_AS[variant.grid.dtype])
    crc = fragment.rows["crc32c"].to_numpy()[stored]
    try:
        shards.read_rows(zoo.folder, variant, fragment, models, checkpoints, crc, out, np.arange(len(stored)))
        if not np.isfinite(from_stored(out, variant.grid.dtype)).all():
            raise CorruptError(f"{where}: rows said to hold weights hold NaN or infinity")
    except (CorruptError, MissingDataError, QueryError) as error:
        return [Problem("corrupt", fragment.files[0].path, str(error))]
    return []
