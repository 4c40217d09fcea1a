"""Read rows from shard files: byte ranges of standard Zarr v3 shards, every byte used checked by crc32c."""

from __future__ import annotations

import math

import numpy as np

from catalog.errors import CorruptError, MissingDataError
from catalog.folder import Folder
from catalog.fragments import Fragment
from catalog.grid import ABSENT, STORED_AS, Grid, checksum, from_stored
from catalog.record import Variant

COALESCE = 64 << 20  # adjacent chunks are read together up to this many bytes


def read_rows(
    folder: Folder,
    variant: Variant,
    fragment: Fragment,
    models: np.ndarray,
    checkpoints: np.ndarray,
    crc: np.ndarray,
    out: np.ndarray,
    at: np.ndarray,
) -> None:
    """Fill out[at] with rows of one shard.

    Args:
        models, checkpoints: (rows,) positions inside the shard.
        crc: (rows,) crc32c of each row's stored bytes, as committed.
        out: (all rows, size) in the stored type; `at` (rows,) says where each goes.

    Raises:
        MissingDataError, CorruptError: naming zoo, variant, shard and file.
    """
    grid = variant.grid
    where = f"shard {fragment.shard} of {variant.name} in {folder.url}"
    for file, (_, part) in zip(fragment.files, grid.parts(fragment.shard), strict=True):
        try:
            found = folder.size(file.path)
            if found != file.size:
                raise CorruptError(
                    f"{where}: {file.path} has {found:,} bytes, {file.size:,} were committed; restore it from a copy"
                )
            index = _read_index(folder, file.path, file.size, grid, where)
            _read_part(folder, file.path, index, grid, models, checkpoints, out, at, part, where)
        except FileNotFoundError as error:
            raise MissingDataError(f"{where}: {file.path} is not there; restore it from a copy") from error
    for row, expected in zip(at.tolist(), crc.tolist(), strict=True):
        if checksum(out[row].tobytes()) != expected:
            raise CorruptError(
                f"{where}: the weights are not those committed (another shard's file?); restore it from a copy"
            )
        if not np.isfinite(from_stored(out[row], grid.dtype)).all():  # no writer of ours commits such a row
            raise CorruptError(f"{where}: a row said to hold weights holds NaN or infinity; build the zoo again")


def _read_index(folder: Folder, path: str, size: int, grid: Grid, where: str) -> np.ndarray:
    """The shard index, (chunks..., offset and length), checked to describe raw chunks that lie inside the file."""
    length = math.prod(grid.chunks_per_shard) * 16 + 4
    if size < length:
        raise CorruptError(f"{where}: {path} has {size:,} bytes, too few for its index of {length:,}")
    (tail,) = folder.read_ranges(path, [(size - length, size)])
    if len(tail) != length or checksum(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
        raise CorruptError(f"{where}: the index of {path} is damaged; restore it from a copy")
    index = np.frombuffer(tail[:-4], "<u8").reshape(*grid.chunks_per_shard, 2)
    present = index[..., 0] != ABSENT
    raw = grid.chunk[0] * grid.chunk[2] * grid.itemsize + 4
    offsets, lengths = index[present].T
    if (lengths != raw).any() or (offsets > size - length - raw).any():
        raise CorruptError(f"{where}: the index of {path} points outside the file, or at chunks that are not raw")
    return index


def _read_part(
    folder: Folder,
    path: str,
    index: np.ndarray,
    grid: Grid,
    models: np.ndarray,
    checkpoints: np.ndarray,
    out: np.ndarray,
    at: np.ndarray,
    part: slice,
    where: str,
) -> None:
    m, _, p = grid.chunk
    keys = (models // m) * grid.shape[1] + checkpoints
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    chunks = []  # (offset, part of the vector, rows of `out`, rows of the chunk)
    for rows in np.split(order, starts[1:]):
        a, b = int(models[rows[0]]) // m, int(checkpoints[rows[0]])
        for c in range(-(-(part.stop - part.start) // p)):
            offset = int(index[a, b, c, 0])
            if offset == ABSENT:
                raise CorruptError(f"{where}: {path} lacks the chunk of model {models[rows[0]]}, checkpoint {b}")
            chunks.append((offset, part.start + c * p, at[rows], models[rows] - a * m))
    chunks.sort(key=lambda chunk: chunk[0])
    size = m * p * grid.itemsize + 4
    for run in _runs([chunk[0] for chunk in chunks], size):
        begin = chunks[run.start][0]
        (data,) = folder.read_ranges(path, [(begin, chunks[run.stop - 1][0] + size)])
        view = memoryview(data)
        for offset, start, target, source in chunks[run.start : run.stop]:
            raw = view[offset - begin : offset - begin + size]
            if len(raw) != size or checksum(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
                raise CorruptError(
                    f"{where}: bytes {offset:,} to {offset + size:,} of {path} are damaged; restore it from a copy"
                )
            values = np.frombuffer(raw[:-4], STORED_AS[grid.dtype]).reshape(m, p)
            stop = min(start + p, part.stop)
            out[target, start:stop] = values[source, : stop - start]


def _runs(offsets: list[int], size: int) -> list[range]:
    """Ranges of positions whose chunks lie side by side in the file."""
    found: list[range] = []
    for position, offset in enumerate(offsets):
        if found:
            first, last = offsets[found[-1].start], offsets[position - 1]
            if offset == last + size and offset + size - first <= COALESCE:
                found[-1] = range(found[-1].start, position + 1)
                continue
        found.append(range(position, position + 1))
    return found
