"""What a reader keeps of a committed shard: where its chunks lie, and the checksums its rows were committed with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from catalog.fragments import Fragment, StoredFile
from catalog.grid import ABSENT, Grid, checksum, extend


@dataclass(frozen=True, eq=False)
class Shard:
    """A committed shard; its rows (models, checkpoints) in C order.

    Args:
        name: of its fragment.
        number: of the shard.
        stored: (rows,) bool, which hold weights.
        crc: (rows,) uint32, crc32c of each row's stored bytes.
        about: gives columns that messages name, such as (rows,) run: far away, they are asked for when needed.
    """

    grid: Grid
    name: str
    number: int
    files: tuple[StoredFile, ...]
    stored: np.ndarray
    crc: np.ndarray
    about: Callable[[Sequence[str]], pl.DataFrame]

    @classmethod
    def of(cls, grid: Grid, name: str, fragment: Fragment) -> Shard:
        """What a reader needs of a fragment, which may have many more columns."""
        rows = fragment.rows
        stored, crc = np.ascontiguousarray(rows["stored"].to_numpy()), np.ascontiguousarray(rows["crc32c"].to_numpy())
        few = rows.select("run", "epoch", "status", "reason")  # of which nothing is copied; the others may go
        return cls(grid, name, fragment.shard, fragment.files, stored, crc, few.select)

    @property
    def runs(self) -> pl.Series:
        """(rows,) id of the lineage."""
        return self.about(["run"])["run"]

    @functools.cached_property
    def complete(self) -> bool:
        """Whether all rows hold weights."""
        return bool(self.stored.all())

    @functools.cached_property
    def finite(self) -> np.ndarray:
        """(chunks of models * checkpoints,) bool: whose rows, as committed, were seen to be finite. Readers note it."""
        return np.zeros(-(-len(self.crc) // self.grid.shape[1] // self.grid.chunk[0]) * self.grid.shape[1], bool)

    @functools.cached_property
    def joined(self) -> np.ndarray:
        """(chunks of models * checkpoints,) uint32: crc32c of a chunk's rows, one after the other, from theirs.

        So a chunk read whole is compared with what was committed in one pass over its bytes.
        """
        (m, _, _), rows = self.grid.chunk, self.crc.reshape(-1, self.grid.shape[1])
        length, whole = self.grid.shape[2] * self.grid.itemsize, len(rows) // m * m
        parts = [join_crcs(rows[:whole].reshape(-1, m, rows.shape[1]).swapaxes(0, 1), length)]
        if whole < len(rows):  # the last chunk of the array may have fewer
            parts.append(join_crcs(rows[whole:, None], length))
        return np.concatenate(parts).reshape(-1)


def join_crcs(crcs: np.ndarray, length: int) -> np.ndarray:
    """crc32c of blocks of `length` bytes put together, from the crc32c of each: (blocks, ...) -> (...).

    crc(A + B) = shift(crc(A)) xor crc(B), where the shift depends on the length of B alone and is linear over bits.
    """
    joined = crcs[0].astype(np.uint32)
    if len(crcs) > 1:
        tables = _shift(length)
    for after in crcs[1:]:
        shifted = after.astype(np.uint32)
        for byte, table in enumerate(tables):
            shifted ^= table[(joined >> (8 * byte)) & 0xFF]
        joined = shifted
    return joined


@functools.lru_cache(32)
def _shift(length: int) -> np.ndarray:
    """(4, 256): what each byte of a crc32c becomes when `length` bytes follow; found by asking, a bit at a time."""
    zeros = bytes(length)
    base = extend(0, zeros)
    bits = np.array([extend(1 << bit, zeros) ^ base for bit in range(32)], np.uint32).reshape(4, 8)
    tables = np.zeros((4, 256), np.uint32)
    for bit in range(8):
        tables[:, np.arange(256) >> bit & 1 == 1] ^= bits[:, bit, None]
    return tables


def index_bytes(grid: Grid) -> int:
    """Length of the index at the end of a shard file, with its checksum."""
    return math.prod(grid.chunks_per_shard) * 16 + 4


def planned_offsets(grid: Grid, shard: int, part: int, size: int) -> np.ndarray | None:
    """Where the chunks of a raw shard file begin as the format says, shaped as `decode_index` gives it.

    Args:
        part: which of the shard's files. size: of the file; None is given where another would be expected.
    """
    m, _, p = grid.chunk
    length = m * p * grid.itemsize + 4
    width = min((part + 1) * grid.shard[2], grid.shape[2]) - part * grid.shard[2]
    there = -(-len(grid.models(shard)) // m), grid.shape[1], -(-width // p)
    if size != math.prod(there) * length + index_bytes(grid):
        return None
    offsets = np.full(grid.chunks_per_shard, -1, np.int64)
    offsets[: there[0], :, : there[2]] = np.arange(math.prod(there)).reshape(there) * length
    return offsets.reshape(-1, grid.chunks_per_shard[2])


def decode_index(grid: Grid, tail: np.ndarray, size: int) -> np.ndarray:
    """Where the chunks of a shard file begin: (chunks of models * checkpoints, chunks along the vector) int64, or -1.

    Args:
        tail: the last `index_bytes(grid)` bytes of the file, uint8.
        size: of the file.

    Raises:
        ValueError: it is damaged, or describes chunks that are not raw or lie outside the file; says which.
    """
    if checksum(tail[:-4]) != int.from_bytes(tail[-4:].tobytes(), "little"):
        raise ValueError("is damaged")
    index = tail[:-4].view("<u8").reshape(-1, 2)
    absent = index[:, 0] == ABSENT
    raw = grid.chunk[0] * grid.chunk[2] * grid.itemsize + 4
    last = size - len(tail) - raw  # where a chunk may begin at most; below zero when there is no room for one
    bad = ~absent & ((index[:, 1] != raw) | (index[:, 0] > max(last, 0)) | (last < 0))
    if bad.any():
        raise ValueError("points outside the file, or at chunks that are not raw")
    return np.where(absent, -1, index[:, 0].astype(np.int64)).reshape(-1, grid.chunks_per_shard[2])
