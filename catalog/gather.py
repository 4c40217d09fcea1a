"""Rows out of shard files into one array: whole chunks where most of a chunk is wanted, else the rows alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from catalog.files import Damage, Files, Piece
from catalog.grid import STORED_AS, Grid, checksum, checksums, extend, from_stored
from catalog.shards import Shard

BATCH = 1 << 20  # bytes of scattered rows that are checked while they are in the processor's cache
AHEAD = 16  # chunks that a cold disk is told about before they are waited for


@dataclass(frozen=True)
class Wanted:
    """The rows of a call in the order they have in the files, in groups that share a chunk.

    Args:
        out: (rows, size) or (rows, columns), to be filled; in the stored type.
        columns: slices of the vector and where they go in a row of `out`; None for the whole vector.
        order: (rows,) place of each in `out`.
        row: (rows,) position in its chunk.
        local: (rows,) position in its shard.
        crc: (rows,) crc32c it was committed with.
        starts: (groups + 1,) the rows of group g are starts[g] to starts[g + 1].
        shard: (groups,) number of its shard.
        chunk: (groups,) position of its chunk in the shard.
        real: (groups,) rows of its chunk that lie inside the array.
        edges: (shards + 1,) the groups of one shard.
    """

    grid: Grid
    out: np.ndarray
    columns: Sequence[tuple[slice, slice]] | None
    order: np.ndarray
    row: np.ndarray
    local: np.ndarray
    crc: np.ndarray
    starts: np.ndarray
    shard: np.ndarray
    chunk: np.ndarray
    real: np.ndarray
    edges: np.ndarray

    @classmethod
    def of(
        cls,
        grid: Grid,
        shards: Mapping[int, Shard],
        models: np.ndarray,
        checkpoints: np.ndarray,
        columns: np.ndarray | None,
    ) -> Wanted:
        m, epochs = grid.chunk[0], grid.shape[1]
        number, row = np.divmod(models, m)
        key = (number * epochs + checkpoints) * m + row
        order = key.argsort(kind="stable")
        row, chunk = row[order], key[order] // m
        first = _changes(chunk)
        number, checkpoint = np.divmod(chunk[first], epochs)
        shard, number_inside = np.divmod(number, grid.shard[0] // m)
        starts = np.concatenate([first, [len(order)]])
        edges = np.concatenate([_changes(shard), [len(first)]])
        local = (number_inside * (m * epochs) + checkpoint).repeat(starts[1:] - first) + row * epochs
        cuts = starts[edges].tolist()
        numbers = shard[edges[:-1]].tolist()
        crc = [shards[n].crc[local[a:b]] for n, (a, b) in zip(numbers, itertools.pairwise(cuts), strict=True)]
        return cls(
            grid,
            np.empty((len(order), grid.shape[2] if columns is None else len(columns)), STORED_AS[grid.dtype]),
            None if columns is None else _slices(columns),
            order,
            row,
            local,
            np.concatenate(crc),
            starts,
            shard,
            number_inside * epochs + checkpoint,
            np.minimum(grid.shape[0] - number * m, m),
            edges,
        )

    def empty(self, *rows: int) -> np.ndarray:
        """Whole rows in the stored type."""
        return np.empty((*rows, self.grid.shape[2]), self.out.dtype)

    def give(self, block: np.ndarray, target: np.ndarray | slice) -> None:
        """Put checked rows, or the columns asked for, where they belong."""
        if self.columns is None:
            self.out[target] = block
        else:
            for source, place in self.columns:
                self.out[target, place] = block[:, source]


@dataclass(frozen=True)
class Window:
    """Some shards of one file each, all open.

    Args:
        groups: those of `Wanted` that lie in these shards.
        file: (groups,) number of its file.
        offset: (groups,) where its chunk begins.
    """

    files: Files
    shards: Sequence[Shard]
    groups: slice
    file: np.ndarray
    offset: np.ndarray


def read_scattered(wanted: Wanted, window: Window, chosen: np.ndarray) -> None:
    """Rows of the groups where `chosen` (groups,) is true, each by its own byte range.

    Raises:
        Damage: as do all here.
    """
    grid, files, length = wanted.grid, window.files, wanted.grid.shape[2] * wanted.grid.itemsize
    starts = wanted.starts[window.groups.start : window.groups.stop + 1]
    place, counts = slice(starts[0], starts[-1]), starts[1:] - starts[:-1]
    target, crc = wanted.order[place], wanted.crc[place]
    number, offset = window.file.repeat(counts), window.offset.repeat(counts) + wanted.row[place] * length
    if not chosen.all():
        mask = chosen.repeat(counts)
        target, crc, number, offset = target[mask], crc[mask], number[mask], offset[mask]
    step = max((files.together or BATCH) // length, 1)
    for first in range(0, len(target), step):
        batch = slice(first, first + step)
        block = None if wanted.columns is None else wanted.empty(len(target[batch]))
        rows = [wanted.out[i] for i in target[batch].tolist()] if block is None else list(block)
        numbers = number[batch].tolist()
        files.fill([(n, at, (row,), length) for n, at, row in zip(numbers, offset[batch].tolist(), rows, strict=True)])
        expected = crc[batch].tolist()
        if (found := checksums(rows)) != expected:
            wrong = [n for n, one, other in zip(numbers, found, expected, strict=True) if one != other]
            raise _other_weights(files.names[wrong[0]])
        if block is None:
            block = wanted.out if len(rows) == len(wanted.out) else wanted.out[target[batch]]
        if not _finite(block, grid):
            at = next(n for n, row in zip(numbers, rows, strict=True) if not _finite(row, grid))
            raise _not_finite(files.names[at])
        if wanted.columns is not None:
            wanted.give(block, target[batch])


def read_chunks(wanted: Wanted, window: Window, chosen: np.ndarray) -> None:
    """Rows of the groups where `chosen` (groups,) is true, chunk by chunk; straight into place where they fit."""
    grid, files, shards = wanted.grid, window.files, window.shards
    row_bytes = grid.shape[2] * grid.itemsize
    length = grid.chunk[0] * row_bytes + 4
    picked = np.flatnonzero(chosen)
    groups, number = picked + window.groups.start, window.file[picked].tolist()
    starts, stops = wanted.starts[groups], wanted.starts[groups + 1]
    # whether rows follow each other, in the chunk and in the result
    jump = np.ones(len(wanted.order), bool)
    jump[1:] = (wanted.order[1:] != wanted.order[:-1] + 1) | (wanted.row[1:] != wanted.row[:-1] + 1)
    jump = np.cumsum(jump)
    straight = (jump[starts] == jump[stops - 1]).tolist()
    begin, end, real = starts.tolist(), stops.tolist(), wanted.real[groups].tolist()
    offset, chunk = window.offset[picked].tolist(), wanted.chunk[groups].tolist()
    target, row = wanted.order[starts].tolist(), wanted.row[starts].tolist()  # of the first row
    step = max(files.together // length, 1)
    scratch = wanted.empty(step, grid.chunk[0])
    rest = np.empty((step, length), np.uint8)  # rows beyond the array's edge, and the chunk's own checksum
    for at in range(0, len(picked), step):
        pieces: list[Piece] = []
        for i in range(at, min(at + step, len(picked))):
            if wanted.columns is None and straight[i] and end[i] - begin[i] == real[i]:
                block = wanted.out[target[i] : target[i] + real[i]]
            else:
                block = scratch[i - at, : real[i]]
            tail = rest[i - at, : length - real[i] * row_bytes]
            pieces.append((number[i], offset[i], (block, tail), length))
        if files.cold and at % AHEAD == 0:
            files.expect([(number[i], offset[i], (), length) for i in range(at + step, len(picked))[:AHEAD]])
        files.fill(pieces)
        for i, (_, _, (block, tail), _) in enumerate(pieces, at):
            shard, a, b = shards[number[i]], begin[i], end[i]
            crc = checksum(block)
            check_chunk(files.names[number[i]], offset[i], length, crc, tail)
            same = crc == shard.joined[chunk[i]]
            if not same:  # rows that hold no weights may be anything, those wanted may not
                if checksums(block[r] for r in wanted.row[a:b].tolist()) != wanted.crc[a:b].tolist():
                    raise _other_weights(files.names[number[i]])
            rows = slice(row[i], row[i] + b - a) if straight[i] else wanted.row[a:b]
            if not (same and shard.finite[chunk[i]]):
                if not _finite(block[rows], grid):
                    raise _not_finite(files.names[number[i]])
                shard.finite[chunk[i]] = same and b - a == len(block) and straight[i]
            if block.base is not wanted.out:
                wanted.give(block[rows], slice(target[i], target[i] + b - a) if straight[i] else wanted.order[a:b])


def read_part(wanted: Wanted, window: Window, part: slice, block: np.ndarray, rows: np.ndarray) -> None:
    """A part of the vectors of one group: the elements that lie in one file, in several chunks.

    Args:
        window: of one file; offset (chunks,) of the group's chunks in it.
        block: (rows, size), of which the part is filled.
        rows: (rows,) positions in the chunk.
    """
    m, _, p = wanted.grid.chunk
    length = m * p * wanted.grid.itemsize + 4
    step = max((window.files.together or BATCH) // length, 1)
    for first in range(0, len(window.offset), step):
        pieces: list[Piece] = []
        places = []
        for c, offset in enumerate(window.offset[first : first + step].tolist(), first):
            place = slice(part.start + c * p, min(part.start + (c + 1) * p, part.stop))
            inside = block[0, place] if m == 1 else np.empty((m, p), block.dtype)
            tail = np.empty(length - inside.nbytes, np.uint8)
            pieces.append((0, offset, (inside, tail), length))
            places.append(place)
        window.files.fill(pieces)
        for place, (_, offset, (inside, tail), _) in zip(places, pieces, strict=True):
            check_chunk(window.files.names[0], offset, length, checksum(inside), tail)
            if m > 1:
                block[:, place] = inside[rows, : place.stop - place.start]


def check_rows(wanted: Wanted, block: np.ndarray, crc: np.ndarray, path: str) -> None:
    """Compare whole rows (rows, size) with the crc32c they were committed with."""
    if checksums(block) != crc.tolist():
        raise _other_weights(path)
    if not _finite(block, wanted.grid):
        raise _not_finite(path)


def check_chunk(path: str, offset: int, length: int, crc: int, tail: np.ndarray) -> None:
    """Compare a chunk with its own checksum, the end of `tail`; `crc` is of the bytes before `tail`."""
    if len(tail) > 4:
        crc = extend(crc, tail[:-4])
    if crc != int.from_bytes(tail[-4:].tobytes(), "little"):
        raise Damage(path, f"bytes {offset:,} to {offset + length:,} of {{path}} are damaged")


def _finite(block: np.ndarray, grid: Grid) -> bool:
    return bool(np.isfinite(from_stored(block, grid.dtype)).all())


def _other_weights(path: str) -> Damage:
    return Damage(path, "the weights in {path} are not those committed (another shard's file?)")


def _not_finite(path: str) -> Damage:  # no writer of ours commits such a row
    return Damage(path, "a row of {path} said to hold weights holds NaN or infinity")


def _changes(values: np.ndarray) -> np.ndarray:
    """Positions where a value differs from the one before; the first is one."""
    found = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=found[1:])
    return found.nonzero()[0]


def _slices(columns: np.ndarray) -> list[tuple[slice, slice]]:
    """Elements as slices of those that follow each other, with the place of each in the result."""
    cuts = [0, *(np.flatnonzero(np.diff(columns) != 1) + 1).tolist(), len(columns)]
    return [
        (slice(int(columns[a]), int(columns[b - 1]) + 1), slice(a, b)) for a, b in itertools.pairwise(cuts) if b > a
    ]
