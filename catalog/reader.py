"""Read rows of many shards at once: byte ranges of standard Zarr v3 shards, every byte used checked by crc32c."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from catalog.errors import CorruptError, MissingDataError
from catalog.files import Damage, Files, Piece, Stamp, open_files
from catalog.folder import Folder
from catalog.fragments import Fragment
from catalog.grid import STORED_AS, Grid, checksum, extend, from_stored
from catalog.record import Variant
from catalog.shards import Shard, decode_index, index_bytes

OPEN = 64  # files open at a time
BATCH = 2 << 20  # bytes of scattered rows that are checked together while they are in the processor's cache
AHEAD = 16  # chunks that a cold disk is told about before they are waited for
KEPT_INDICES = 1024
KEPT_SHARDS = 1024
KEPT_CHUNKS = 1 << 13  # the index of a file with more chunks is not kept

Columns = Sequence[tuple[slice, slice]]  # (in the vector, in the result)


@dataclass(frozen=True)
class Reader:
    """Reads weights, and keeps what is read again and again. Needs no lock: several threads may use one.

    Args:
        indices: path of a shard file -> the stamp it had, and where its chunks begin.
        shards: name of a fragment -> what it says of its shard.
        listing: stamp of the folder of fragments -> what was in it (one, the last).
    """

    indices: OrderedDict[str, tuple[Stamp | None, np.ndarray]] = field(default_factory=OrderedDict)
    shards: OrderedDict[str, Shard] = field(default_factory=OrderedDict)
    listing: dict[int | None, dict[tuple[str, int], str]] = field(default_factory=dict)

    def shard(self, grid: Grid, name: str, load: Callable[[str], Fragment]) -> Shard:
        """What the fragment of this name says; `load` gives the fragment when it is not kept."""
        shard = self.shards.get(name)
        if shard is None:
            shard = self.shards[name] = Shard.of(grid, name, load(name))
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
        known = list(self.indices) if not folder.local else []
        task = _Task(self, folder, variant, shards, models, checkpoints, columns)
        try:
            return task.run()
        except MissingDataError:
            raise
        except CorruptError:
            if not known:  # files that are here say when they change; far ones may have been mended since
                raise
            for path in known:
                self.indices.pop(path, None)
            return task.run()

    def chunk_offsets(self, files: Files, shards: Sequence[Shard], part: int) -> list[np.ndarray]:
        """For each open file, the part of a shard, where its chunks begin (see `decode_index`)."""
        found: list[np.ndarray | None] = []
        tails: list[Piece] = []
        for number, shard in enumerate(shards):
            kept = self.indices.get(shard.files[part].path)
            fresh = kept is not None and kept[0] == files.stamps[number]
            found.append(kept[1] if kept is not None and fresh else None)
            if not fresh:
                length, size = index_bytes(shard.grid), shard.files[part].size
                if size < length:
                    raise Damage(number, f"{{path}} has {size:,} bytes, too few for its index of {length:,}")
                tails.append((number, size - length, [np.empty(length, np.uint8)], length))
        files.fill(tails)
        for number, _, (tail,), _ in tails:
            file = shards[number].files[part]
            try:
                offsets = decode_index(shards[number].grid, tail, file.size)
            except ValueError as error:
                raise Damage(number, f"the index of {{path}} {error}") from error
            found[number] = offsets
            if offsets.size <= KEPT_CHUNKS:
                self.indices[file.path] = files.stamps[number], offsets
        while len(self.indices) > KEPT_INDICES:
            self.indices.popitem(last=False)
        return [offsets for offsets in found if offsets is not None]


class _Task:
    """One call of `Reader.read`: the rows in the order of the files, in groups that share a chunk."""

    def __init__(
        self,
        reader: Reader,
        folder: Folder,
        variant: Variant,
        shards: Mapping[int, Shard],
        models: np.ndarray,
        checkpoints: np.ndarray,
        columns: np.ndarray | None,
    ) -> None:
        grid = variant.grid
        self.reader, self.folder, self.variant, self.grid, self.shards = reader, folder, variant, grid, shards
        self.dtype = np.dtype(STORED_AS[grid.dtype])
        self.columns: Columns | None = None if columns is None else _runs(columns)
        self.out = np.empty((len(models), grid.shape[2] if columns is None else len(columns)), self.dtype)
        m = grid.chunk[0]
        chunk = (models // m) * grid.shape[1] + checkpoints
        key = chunk * m + models % m
        self.order = np.argsort(key, kind="stable")  # of the rows, as they lie in the files
        key, chunk = key[self.order], chunk[self.order]
        self.row = key % m  # inside its chunk
        self.starts = np.append(np.flatnonzero(np.diff(chunk, prepend=-1)), len(chunk))
        chunk = chunk[self.starts[:-1]]
        number, checkpoint = np.divmod(chunk, grid.shape[1])
        per_shard = grid.shard[0] // m
        self.shard = number // per_shard  # of each group
        self.chunk = number % per_shard * grid.shape[1] + checkpoint  # of each group, inside its shard
        self.real = np.minimum(grid.shape[0] - number * m, m)  # rows of its chunk inside the array
        # crc32c that each row was committed with
        edges = np.flatnonzero(np.diff(self.shard, prepend=-1))
        self.edges = np.append(edges, len(self.shard))  # groups of one shard lie between
        local = self.chunk // grid.shape[1] * m * grid.shape[1] + self.chunk % grid.shape[1]
        self.local = np.repeat(local, np.diff(self.starts)) + self.row * grid.shape[1]  # row inside its shard
        cuts = self.starts[self.edges]
        self.crc = np.concatenate(
            [
                shards[int(self.shard[edge])].crc[self.local[a:b]]
                for edge, a, b in zip(edges, cuts[:-1], cuts[1:], strict=True)
            ]
        )

    def run(self) -> np.ndarray:
        whole = self.grid.num_parts == 1 and self.grid.chunks_per_shard[2] == 1
        step = OPEN if whole else 1
        for first in range(0, len(self.edges) - 1, step):
            edges = self.edges[first : first + step + 1]
            window = [self.shards[int(self.shard[edge])] for edge in edges[:-1]]
            self._whole_rows(window, edges) if whole else self._long_rows(window[0], edges)
        return self.out

    # --- rows that lie in one chunk

    def _whole_rows(self, window: list[Shard], edges: np.ndarray) -> None:
        """Rows of a chunk of which half or more are wanted come with the chunk, others alone."""
        try:
            with self._open(window, 0) as files:
                indices = self.reader.chunk_offsets(files, window, 0)
                file = np.repeat(np.arange(len(window)), np.diff(edges))  # of each group
                offsets = np.concatenate(
                    [index[self.chunk[a:b], 0] for index, a, b in zip(indices, edges[:-1], edges[1:], strict=True)]
                )
                if (offsets < 0).any():
                    at = int(np.argmin(offsets))
                    raise self._lacking(int(file[at]), int(edges[0]) + at)
                counts = np.diff(self.starts[edges[0] : edges[-1] + 1])
                dense = 2 * counts >= self.grid.chunk[0]
                if not dense.all():
                    self._scattered(files, window, edges, file, offsets, counts, ~dense)
                if dense.any():
                    self._chunks(files, window, edges, file, offsets, np.flatnonzero(dense))
        except Damage as damage:
            raise self._error(window[damage.number], 0, damage) from damage.__cause__

    def _scattered(
        self,
        files: Files,
        window: list[Shard],
        edges: np.ndarray,
        file: np.ndarray,
        offsets: np.ndarray,
        counts: np.ndarray,
        chosen: np.ndarray,
    ) -> None:
        length = self.grid.shape[2] * self.grid.itemsize
        mask = np.repeat(chosen, counts)
        place = slice(int(self.starts[edges[0]]), int(self.starts[edges[-1]]))
        target, crc = self.order[place][mask], self.crc[place][mask]
        number = np.repeat(file, counts)[mask]
        offset = (np.repeat(offsets, counts) + self.row[place] * length)[mask]
        step = max((files.together or BATCH) // length, 1)
        for first in range(0, len(target), step):
            batch = slice(first, first + step)
            if self.columns is None:
                rows = list(map(self.out.__getitem__, target[batch].tolist()))
            else:
                rows = list(np.empty((len(target[batch]), self.grid.shape[2]), self.dtype))
            files.fill(
                [
                    (n, at, (row,), length)
                    for n, at, row in zip(number[batch].tolist(), offset[batch].tolist(), rows, strict=True)
                ]
            )
            wrong = np.fromiter(map(checksum, rows), np.uint32, len(rows)) != crc[batch]
            if wrong.any():
                raise _other_weights(int(number[batch][np.argmax(wrong)]))
            block = self.out if len(rows) == len(self.out) and self.columns is None else np.stack(rows)
            if not self._finite(block):
                raise _not_finite(next(n for n, row in zip(number[batch], rows, strict=True) if not self._finite(row)))
            if self.columns is not None:
                self._give(block, target[batch])

    def _chunks(
        self,
        files: Files,
        window: list[Shard],
        edges: np.ndarray,
        file: np.ndarray,
        offsets: np.ndarray,
        chosen: np.ndarray,
    ) -> None:
        (m, _, size), width = self.grid.chunk, self.grid.itemsize
        length = m * size * width + 4
        first = int(edges[0])
        # groups whose rows follow each other, in the chunk and in the result
        jumps = np.cumsum((np.diff(self.order, prepend=-2) != 1) | (np.diff(self.row, prepend=-2) != 1))
        begin, end = self.starts[first + chosen], self.starts[first + chosen + 1]
        straight = jumps[end - 1] == jumps[begin]
        straight &= self.order[end - 1] - self.order[begin] == end - begin - 1
        complete = straight & (end - begin == self.real[first + chosen])
        step = max(files.together // length, 1)
        scratch = np.empty((step, m, size), self.dtype)
        rest = np.empty((step, length), np.uint8)  # rows beyond the array's edge, and the chunk's own checksum
        for at in range(0, len(chosen), step):
            pieces: list[Piece] = []
            blocks = []
            for slot, group in enumerate(chosen[at : at + step].tolist()):
                real = int(self.real[first + group])
                if complete[at + slot] and self.columns is None:
                    row = int(self.order[begin[at + slot]])
                    block = self.out[row : row + real]
                else:
                    block = scratch[slot, :real]
                tail = rest[slot, : (m - real) * size * width + 4]
                blocks.append((group, block, tail))
                pieces.append((int(file[group]), int(offsets[group]), (block, tail), length))
            if files.cold and at % AHEAD == 0:
                files.expect(
                    [(int(file[g]), int(offsets[g]), (), length) for g in chosen[at + step : at + step + AHEAD]]
                )
            files.fill(pieces)
            for slot, (group, block, tail) in enumerate(blocks):
                a, b = int(begin[at + slot]), int(end[at + slot])
                number, row = int(file[group]), self.row[a:b]
                crc = checksum(block)
                if extend(crc, tail[:-4]) != int.from_bytes(tail[-4:].tobytes(), "little"):
                    raise _damaged(number, int(offsets[group]), length)
                if crc != window[number].joined[self.chunk[first + group]]:
                    # rows without weights may hold anything; those wanted may not
                    if any(checksum(block[r]) != c for r, c in zip(row.tolist(), self.crc[a:b].tolist(), strict=True)):
                        raise _other_weights(number)
                wanted = block[row[0] : row[-1] + 1] if straight[at + slot] else block[row]
                if not self._finite(wanted):
                    raise _not_finite(number)
                if not (complete[at + slot] and self.columns is None):
                    first_row = int(self.order[a])
                    self._give(wanted, slice(first_row, first_row + b - a) if straight[at + slot] else self.order[a:b])

    # --- rows that are split over chunks and files

    def _long_rows(self, shard: Shard, edges: np.ndarray) -> None:
        (m, _, p), size = self.grid.chunk, self.grid.shape[2]
        length = m * p * self.grid.itemsize + 4
        parts = list(self.grid.parts(shard.number))
        for group in range(int(edges[0]), int(edges[-1])):
            a, b = int(self.starts[group]), int(self.starts[group + 1])
            rows, back = np.unique(self.row[a:b], return_inverse=True)
            straight = self.columns is None and b - a == 1
            block = self.out[self.order[a] : self.order[a] + 1] if straight else np.empty((len(rows), size), self.dtype)
            for number, (_, part) in enumerate(parts):
                try:
                    with self._open([shard], number) as files:
                        (index,) = self.reader.chunk_offsets(files, [shard], number)
                        offsets = index[self.chunk[group], : -(-(part.stop - part.start) // p)]
                        if (offsets < 0).any():
                            raise self._lacking(0, group)
                        pieces: list[Piece] = []
                        for c, offset in enumerate(offsets.tolist()):
                            inside = slice(part.start + c * p, min(part.start + (c + 1) * p, part.stop))
                            if m == 1:
                                lies = block[0, inside]
                                rest = np.empty(length - lies.nbytes, np.uint8)
                                pieces.append((0, offset, (lies, rest), length))
                            else:
                                data = np.empty(length, np.uint8)
                                pieces.append((0, offset, (data,), length))
                        step = max((files.together or BATCH) // length, 1)
                        for first in range(0, len(pieces), step):
                            files.fill(pieces[first : first + step])
                        for c, (_, offset, arrays, _) in enumerate(pieces):
                            crc = 0
                            for array in (*arrays[:-1], arrays[-1][:-4]):
                                crc = extend(crc, array)
                            if crc != int.from_bytes(arrays[-1][-4:].tobytes(), "little"):
                                raise _damaged(0, offset, length)
                            if m > 1:
                                values = arrays[0][:-4].view(self.dtype).reshape(m, p)
                                inside = slice(part.start + c * p, min(part.start + (c + 1) * p, part.stop))
                                block[:, inside] = values[rows, : inside.stop - inside.start]
                except Damage as damage:
                    raise self._error(shard, number, damage) from damage.__cause__
            crcs = np.fromiter(map(checksum, block), np.uint32, len(block))
            try:
                if (crcs[back] != self.crc[a:b]).any():
                    raise _other_weights(0)
                if not self._finite(block):
                    raise _not_finite(0)
            except Damage as damage:
                raise self._error(shard, 0, damage) from None
            if not straight:
                self._give(block[back], self.order[a:b])

    # --- for both

    def _open(self, window: list[Shard], part: int) -> Files:
        files = [shard.files[part] for shard in window]
        return open_files(self.folder, [file.path for file in files], [file.size for file in files])

    def _lacking(self, file: int, group: int) -> Damage:
        row = int(self.starts[group])
        start = int(self.shard[group]) * self.grid.shard[0]
        model, checkpoint = divmod(int(self.local[row]), self.grid.shape[1])
        return Damage(file, f"{{path}} lacks the chunk of model {start + model}, checkpoint {checkpoint}")

    def _finite(self, block: np.ndarray) -> bool:
        return bool(np.isfinite(from_stored(block, self.grid.dtype)).all())

    def _give(self, block: np.ndarray, target: np.ndarray | slice) -> None:
        """Put checked rows, or the columns asked for, where they belong."""
        for source, place in self.columns if self.columns is not None else [(slice(None), slice(None))]:
            self.out[target, place] = block[:, source]

    def _error(self, shard: Shard, part: int, damage: Damage) -> CorruptError:
        number = shard.number
        edge = int(np.searchsorted(self.shard, number))
        a, b = self.starts[edge], self.starts[np.searchsorted(self.shard, number, side="right")]
        runs = sorted(set(shard.runs.gather(self.local[a:b].tolist())))
        few = ", ".join(runs[:4]) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")
        where = f"shard {number} of {self.variant.name} in {self.folder.url}"
        text = damage.text.replace("{path}", shard.files[part].path)
        kind = MissingDataError if damage.missing else CorruptError
        return kind(f"{where}: {text}; restore it from a copy (reading {b - a} rows of runs {few})")


def _damaged(number: int, offset: int, length: int) -> Damage:
    return Damage(number, f"bytes {offset:,} to {offset + length:,} of {{path}} are damaged")


def _other_weights(number: int) -> Damage:
    return Damage(number, "the weights in {path} are not those committed (another shard's file?)")


def _not_finite(number: int) -> Damage:  # no writer of ours commits such a row
    return Damage(number, "a row of {path} said to hold weights holds NaN or infinity")


def _runs(columns: np.ndarray) -> Columns:
    """Elements as slices of those that follow each other."""
    cuts = np.flatnonzero(np.diff(columns) != 1) + 1
    runs, place = [], 0
    for run in np.split(columns, cuts):
        if len(run):
            runs.append((slice(int(run[0]), int(run[-1]) + 1), slice(place, place + len(run))))
            place += len(run)
    return runs
