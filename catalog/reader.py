"""Read rows of many shards at once: byte ranges of standard Zarr v3 shards, every byte used checked by crc32c."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from catalog.errors import CorruptError, MissingDataError
from catalog.files import Damage, Files, Kept, Piece, Stamp, open_files
from catalog.folder import Folder
from catalog.gather import Wanted, Window, check_rows, read_chunks, read_part, read_scattered
from catalog.grid import PACKED
from catalog.record import Variant
from catalog.shards import Shard, decode_index, index_bytes, planned_offsets

OPEN = 64  # files open at a time
KEPT_INDICES = 1024
KEPT_SHARDS = 1024
KEPT_CHUNKS = 1 << 13  # the index of a file with more chunks is not kept


@dataclass(frozen=True)
class Reader:
    """Reads weights, and keeps what is read again and again. Needs no lock: several threads may use one.

    Args:
        indices: path of a shard file -> the stamp it had, and where its chunks begin.
        shards: name of a fragment -> what it says of its shard.
        files: name -> an open file.
        listing: stamp of the folder of fragments -> what was in it (one, the last).
    """

    indices: OrderedDict[str, tuple[Stamp | None, np.ndarray]] = field(default_factory=OrderedDict)
    shards: OrderedDict[str, Shard] = field(default_factory=OrderedDict)
    files: Kept = field(default_factory=OrderedDict)
    listing: dict[int | None, dict[tuple[str, int], str]] = field(default_factory=dict)

    def keep(self, shard: Shard) -> Shard:
        """Keep what is committed of a shard."""
        self.shards[shard.name] = shard
        while len(self.shards) > KEPT_SHARDS:
            self.shards.popitem(last=False)
        return shard

    def read(
        self,
        folder: Folder,
        variant: Variant,
        shards: Mapping[int, Shard],
        models: np.ndarray,
        checkpoints: np.ndarray,
        columns: np.ndarray | None = None,
    ) -> np.ndarray:
        """Rows in the stored type, each checked against the crc32c it was committed with.

        Args:
            shards: those that the rows lie in; all rows hold weights.
            models, checkpoints: (rows,) positions in the array, at least one.
            columns: (some,) elements of the vector to give, None for all. The checksum covers the whole row, so that is
                read and checked, a few rows at a time.

        Returns:
            (rows, size) or (rows, some).

        Raises:
            MissingDataError, CorruptError: naming zoo, variant, shard, file and runs.
        """
        if variant.grid.tier == PACKED:
            from catalog import packed  # which loads the decompressor

            return packed.read(folder, variant, shards, models, checkpoints, columns)
        kept = [] if folder.local else list(self.indices)
        far = folder.manifest is not None and not folder.local
        wanted = Wanted.of(variant.grid, shards, models, checkpoints, columns)
        try:
            self._fill(folder, variant, shards, wanted, far)
        except MissingDataError:
            raise
        except CorruptError:
            # Files that are here say when they change. Those far away may have been mended since, or another writer may
            # have put their chunks in an order of its own.
            if not kept and not far:
                raise
            for path in kept:
                self.indices.pop(path, None)
            self._fill(folder, variant, shards, wanted, False)
        return wanted.out

    def _fill(
        self, folder: Folder, variant: Variant, shards: Mapping[int, Shard], wanted: Wanted, assume: bool
    ) -> None:
        """Fill what is wanted; `assume` that chunks lie where the format puts them."""
        grid, edges = variant.grid, wanted.edges.tolist()
        split = grid.num_parts > 1 or grid.chunks_per_shard[2] > 1
        step = 1 if split else OPEN
        for first in range(0, len(edges) - 1, step):
            some = edges[first : first + step + 1]
            window = [shards[number] for number in wanted.shard[some[:-1]].tolist()]
            try:
                if split:
                    self._split_rows(folder, window[0], wanted, range(*some), assume)
                else:
                    self._whole_rows(folder, window, wanted, some, assume)
            except Damage as damage:
                raise _error(folder, variant, wanted, window, damage) from damage.__cause__

    def _whole_rows(
        self, folder: Folder, window: Sequence[Shard], wanted: Wanted, edges: Sequence[int], assume: bool
    ) -> None:
        """Rows that lie in one chunk: with it where most of it is wanted (see `dense` of the files), else alone."""
        files = self._open(folder, window, 0)
        indices = self._offsets(files, window, 0, assume)
        offset = np.concatenate(
            [index.take(wanted.chunk[a:b]) for index, (a, b) in zip(indices, itertools.pairwise(edges), strict=True)]
        )
        counts = np.diff(np.array(edges))
        groups = slice(edges[0], edges[-1])
        chunks = Window(files, window, groups, np.arange(len(window)).repeat(counts), offset)
        if (offset < 0).any():
            at = int(np.argmin(offset))
            raise _lacking(wanted, files.names[chunks.file[at]], groups.start + at)
        starts = wanted.starts[groups.start : groups.stop + 1]
        dense = files.dense * (starts[1:] - starts[:-1]) >= wanted.grid.chunk[0]
        if not dense.all():
            read_scattered(wanted, chunks, ~dense)
        if dense.any():
            read_chunks(wanted, chunks, dense)

    def _split_rows(self, folder: Folder, shard: Shard, wanted: Wanted, groups: range, assume: bool) -> None:
        """Rows that lie in several chunks, and maybe files: always with the whole chunks."""
        p = wanted.grid.chunk[2]
        parts = [part for _, part in wanted.grid.parts(shard.number)]
        for group in groups:
            place = slice(int(wanted.starts[group]), int(wanted.starts[group + 1]))
            rows, back = np.unique(wanted.row[place], return_inverse=True)
            target = wanted.order[place]
            straight = wanted.columns is None and len(target) == 1
            block = wanted.out[target[0] : target[0] + 1] if straight else wanted.empty(len(rows))
            for number, part in enumerate(parts):
                files = self._open(folder, [shard], number)
                (index,) = self._offsets(files, [shard], number, assume)
                offset = index[wanted.chunk[group], : -(-(part.stop - part.start) // p)]
                if (offset < 0).any():
                    raise _lacking(wanted, files.names[0], group)
                window = Window(files, [shard], slice(group, group + 1), np.zeros(1, np.int64), offset)
                read_part(wanted, window, part, block, rows)
            check_rows(wanted, block[back], wanted.crc[place], shard.files[0].path)
            if not straight:
                wanted.give(block[back], target)

    def _open(self, folder: Folder, shards: Sequence[Shard], part: int) -> Files:
        files = [shard.files[part] for shard in shards]
        return open_files(folder, [file.path for file in files], [file.size for file in files], self.files)

    def _offsets(self, files: Files, shards: Sequence[Shard], part: int, assume: bool) -> list[np.ndarray]:
        """For each open file, which is a part of a shard, where its chunks begin (see `decode_index`)."""
        found: list[np.ndarray | None] = []
        tails: list[Piece] = []
        for number, (shard, stamp) in enumerate(zip(shards, files.stamps, strict=True)):
            file = shard.files[part]
            kept = self.indices.get(file.path)
            if kept is not None and kept[0] == stamp:
                found.append(kept[1])
                continue
            # Far away the index is a request a file. Its content follows from the format, of files whose size the
            # manifest says, and the checksums of the rows tell whether it holds.
            planned = planned_offsets(shard.grid, shard.number, part, file.size) if assume else None
            if planned is not None:
                found.append(planned)
                continue
            found.append(None)
            length = index_bytes(shard.grid)
            if file.size < length:
                raise Damage(file.path, f"{{path}} has {file.size:,} bytes, too few for its index of {length:,}")
            tails.append((number, file.size - length, (np.empty(length, np.uint8),), length))
        files.fill(tails)
        for number, _, (tail,), _ in tails:
            file = shards[number].files[part]
            try:
                offsets = found[number] = decode_index(shards[number].grid, tail, file.size)
            except ValueError as error:
                raise Damage(file.path, f"the index of {{path}} {error}") from error
            if len(offsets) <= KEPT_CHUNKS:
                self.indices[file.path] = files.stamps[number], offsets
        while len(self.indices) > KEPT_INDICES:
            self.indices.popitem(last=False)
        return [offsets for offsets in found if offsets is not None]


def _lacking(wanted: Wanted, path: str, group: int) -> Damage:
    model, checkpoint = divmod(int(wanted.local[wanted.starts[group]]), wanted.grid.shape[1])
    model += int(wanted.shard[group]) * wanted.grid.shard[0]
    return Damage(path, f"{{path}} lacks the chunk of model {model}, checkpoint {checkpoint}")


def _error(folder: Folder, variant: Variant, wanted: Wanted, shards: Sequence[Shard], damage: Damage) -> CorruptError:
    """The error for the user: which zoo, variant, shard, file and runs, and what to do."""
    shard = next(shard for shard in shards if any(file.path == damage.path for file in shard.files))
    a, b = wanted.starts[np.searchsorted(wanted.shard, [shard.number, shard.number + 1])].tolist()
    runs = sorted(set(shard.runs.gather(wanted.local[a:b])))
    few = ", ".join(runs[:4]) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")
    kind = MissingDataError if damage.missing else CorruptError
    text = damage.text.replace("{path}", damage.path)
    return kind(
        f"shard {shard.number} of {variant.name} in {folder.url}: {text}; restore it from a copy (reading {b - a} rows "
        f"of runs {few})"
    )
