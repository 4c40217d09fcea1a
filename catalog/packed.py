"""Shard files of the packed tier: integer differences along checkpoints, compressed by blosc; to the bit, both ways.

The reader takes byte ranges of standard Zarr v3 shards and checks every byte used, as that of the hot tier does.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numcodecs import blosc

from catalog.errors import CorruptError, MissingDataError
from catalog.files import Damage, open_files
from catalog.folder import Folder
from catalog.fragments import StoredFile
from catalog.grid import ABSENT, BFLOAT16_NAN, STORED_AS, Grid, checksum, from_stored
from catalog.record import Variant
from catalog.shards import Shard

TOGETHER = 64 << 20  # compressed bytes asked for at once
HEADER = 16  # of a blosc buffer
UNSIGNED = {2: np.uint16, 4: np.uint32}

# Its threads write blocks in the order in which they finish: the same weights would give other bytes each time.
# Importing zarr sets this too.
blosc.use_threads = False


def encode_delta(values: np.ndarray, axis: int = 1) -> np.ndarray:
    """Differences along an axis between floats taken as integers in the order of the floats; any bits come back.

    Args:
        values: floats, or their bits as integers, of 2 or 4 bytes.

    Returns:
        Unsigned integers of the same shape and width. The first along the axis stands for itself.

    >>> encode_delta(np.array([[1.0, 1.0, np.nextafter(np.float32(1), 0), -0.0, 0.0]], np.float32)).tolist()
    [[2130706432, 0, 1, 2130706431, 2]]
    """
    bits = values.view(f"u{values.itemsize}")
    keys = bits ^ (_sign(bits) >> 1)
    out = keys.copy()
    if values.shape[axis] > 1:
        later, earlier = [slice(None)] * values.ndim, [slice(None)] * values.ndim
        later[axis], earlier[axis] = slice(1, None), slice(None, -1)
        out[tuple(later)] -= keys[tuple(earlier)]
    return (out << 1) ^ _sign(out)


def decode_delta(coded: np.ndarray, axis: int = 1) -> np.ndarray:
    """The bits of the floats that `encode_delta` was given, as unsigned integers."""
    keys = (coded >> 1) ^ (0 - (coded & 1))
    along = np.moveaxis(keys, axis, 0)
    for place in range(1, len(along)):  # whole rows at a time: twelve times faster than numpy's accumulate
        along[place : place + 1] += along[place - 1 : place]
    keys ^= _sign(keys) >> 1
    return keys


def _sign(bits: np.ndarray) -> np.ndarray:
    """All ones where the highest bit is set, else zero."""
    return (bits.view(f"i{bits.itemsize}") >> (8 * bits.itemsize - 1)).view(bits.dtype)


def encode_packed(grid: Grid, block: np.ndarray) -> bytes:
    """The bytes of one shard file.

    Args:
        block: (models, checkpoints, part of the vector) in the stored type (bfloat16 as uint16); fewer models or a
            shorter part than the shard at the array's end.
    """
    counts, (m, _, p) = grid.chunks_per_shard, grid.chunk
    index = np.full((*counts, 2), ABSENT, "<u8")
    out = []
    end = 0
    for a, b, c in np.ndindex(*counts):
        values = block[a * m : (a + 1) * m, :, c * p : (c + 1) * p]
        if values.size == 0:
            continue
        padded = np.full(grid.chunk, BFLOAT16_NAN if grid.dtype == "bfloat16" else np.nan, STORED_AS[grid.dtype])
        padded[: values.shape[0], :, : values.shape[2]] = values
        data = blosc.compress(encode_delta(padded), b"zstd", 1, blosc.SHUFFLE, grid.itemsize << 17, grid.itemsize)
        index[a, b, c] = end, len(data) + 4
        end += len(data) + 4
        out += [data, checksum(data).to_bytes(4, "little")]
    tail = index.tobytes()
    return b"".join([*out, tail, checksum(tail).to_bytes(4, "little")])


def decode_packed(grid: Grid, data: bytes, shape: tuple[int, int, int], where: str) -> np.ndarray:
    """The block that `encode_packed` was given, of this shape; raises CorruptError."""
    out = np.empty(shape, STORED_AS[grid.dtype])
    m, _, p = grid.chunk
    index = _checked_index(data[len(data) - _index_bytes(grid) :], len(data), grid, where)
    view = memoryview(data)
    for a, b, c in np.ndindex(*grid.chunks_per_shard):
        target = out[a * m : (a + 1) * m, :, c * p : (c + 1) * p]
        if target.size:
            offset, length = _place(index[a, b, c], where)
            bits = decode_delta(_decompress(view[offset : offset + length], grid, where))
            target[:] = bits.view(out.dtype)[: target.shape[0], :, : target.shape[2]]
    return out


def read(
    folder: Folder,
    variant: Variant,
    shards: Mapping[int, Shard],
    models: np.ndarray,
    checkpoints: np.ndarray,
    columns: np.ndarray | None,
) -> np.ndarray:
    """Rows of packed shards, as `catalog.reader.Reader.read` gives hot ones. A row costs decoding its chunk."""
    grid = variant.grid
    width = grid.shape[2] if columns is None else len(columns)
    out = np.empty((len(models), width), STORED_AS[grid.dtype])
    owner = models // grid.shard[0]
    for number, shard in shards.items():
        here = np.flatnonzero(owner == number)
        local = models[here] - number * grid.shard[0], checkpoints[here]
        place = local[0] * grid.shape[1] + local[1]
        rows = np.empty((len(here), grid.shape[2]), out.dtype)
        where = f"shard {number} of {variant.name} in {folder.url}"
        try:
            for file, (_, part) in zip(shard.files, grid.parts(number), strict=True):
                _read_part(folder, file, grid, *local, rows, part, where)
            check_rows(rows, shard.crc[place], grid.dtype, where)
        except (CorruptError, MissingDataError) as error:
            runs = sorted(set(shard.runs.gather(place)))
            few = ", ".join(runs[:4]) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")
            raise type(error)(f"{error} (reading {len(here)} rows of runs {few})") from error.__cause__
        out[here] = rows if columns is None else rows[:, columns]
    return out


def _read_part(
    folder: Folder,
    file: StoredFile,
    grid: Grid,
    models: np.ndarray,
    checkpoints: np.ndarray,
    out: np.ndarray,
    part: slice,
    where: str,
) -> None:
    """Fill the part of rows (rows, size) that one file holds; models are positions inside the shard."""
    where = f"{where}: {file.path}"
    try:
        opened = open_files(folder, [file.path], [file.size], OrderedDict())

        def fetch(ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
            arrays = [np.empty(stop - start, np.uint8) for start, stop in ranges]
            opened.fill([(0, r[0], (array,), len(array)) for r, array in zip(ranges, arrays, strict=True)])
            return arrays

        (tail,) = fetch([(max(file.size - _index_bytes(grid), 0), file.size)])
        index = _checked_index(tail.data, file.size, grid, where)
        for rows, start, raw in _chunks(fetch, index, grid, models, part.stop - part.start, where):
            bits = _decompress(raw.data, grid, where)
            a = int(models[rows[0]]) // grid.chunk[0]
            local, which = np.unique(models[rows] - a * grid.chunk[0], return_inverse=True)
            last = int(checkpoints[rows].max()) + 1
            values = decode_delta(bits[local, :last]).view(out.dtype)
            columns = slice(part.start + start, min(part.start + start + grid.chunk[2], part.stop))
            out[rows, columns] = values[which, checkpoints[rows], : columns.stop - columns.start]
    except Damage as damage:
        kind = MissingDataError if damage.missing else CorruptError
        text = damage.text.removeprefix("{path} ").replace("{path}", file.path)
        raise kind(f"{where} {text}; restore it from a copy") from damage.__cause__


def packed_chunks(
    grid: Grid, read: Callable[[int, int], np.ndarray], size: int, models: int, width: int, where: str
) -> Iterator[tuple[int, int, np.ndarray]]:
    """All chunks of a shard file: its first model, its first element, and its values (m, checkpoints, p).

    Args:
        read: gives bytes [start, stop) of the file. size: of the file.
        models: of the shard. width: elements of the vectors that the file holds.

    Raises:
        CorruptError: chunks that are not those of the format.
    """
    index = _checked_index(read(max(size - _index_bytes(grid), 0), size).data, size, grid, where)
    for start in range(0, models, grid.chunk[0]):
        for first in range(0, width, grid.chunk[2]):
            offset, length = _place(index[start // grid.chunk[0], 0, first // grid.chunk[2]], where)
            bits = decode_delta(_decompress(read(offset, offset + length).data, grid, where))
            yield start, first, bits.view(STORED_AS[grid.dtype])


def check_rows(rows: Iterable[np.ndarray], crc: np.ndarray, dtype: str, where: str) -> None:
    """Raise CorruptError unless every row (size,) has its crc32c and is finite."""
    for row, expected in zip(rows, crc.tolist(), strict=True):
        if checksum(row) != expected:
            raise CorruptError(
                f"{where}: the weights are not those committed (another shard's file?); restore it from a copy"
            )
        if not np.isfinite(from_stored(row, dtype)).all():  # no writer of ours commits such a row
            raise CorruptError(f"{where}: a row said to hold weights holds NaN or infinity; build the zoo again")


def _chunks(
    fetch: Callable[[Sequence[tuple[int, int]]], list[np.ndarray]],
    index: np.ndarray,
    grid: Grid,
    models: np.ndarray,
    width: int,
    where: str,
) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """Which of the rows a chunk holds, where in the part it begins, and its bytes, in the order of the file.

    Args:
        fetch: gives the bytes of ranges [start, stop) of the file.
        width: elements of the part.
    """
    owner = models // grid.chunk[0]
    needed = []
    for a in np.unique(owner).tolist():
        needed += [(*_place(index[a, 0, c], where), a, c) for c in range(-(-width // grid.chunk[2]))]
    needed.sort()
    while needed:
        count, total = 0, 0
        while count < len(needed) and (not count or total + needed[count][1] <= TOGETHER):
            total += needed[count][1]
            count += 1
        now, needed = needed[:count], needed[count:]
        ranges = [(offset, offset + length) for offset, length, _, _ in now]
        for (_, _, a, c), raw in zip(now, fetch(ranges), strict=True):
            yield np.flatnonzero(owner == a), c * grid.chunk[2], raw


def _index_bytes(grid: Grid) -> int:
    return math.prod(grid.chunks_per_shard) * 16 + 4


def _checked_index(tail: bytes | memoryview, size: int, grid: Grid, where: str) -> np.ndarray:
    """The shard index, (chunks..., offset and length), checked to describe chunks that lie inside the file."""
    length = _index_bytes(grid)
    if size < length:
        raise CorruptError(f"{where} has {size:,} bytes, too few for its index of {length:,}")
    if len(tail) != length or checksum(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
        raise CorruptError(f"{where}: the index is damaged; restore the file from a copy")
    index = np.frombuffer(tail[:-4], "<u8").reshape(*grid.chunks_per_shard, 2)
    offsets, lengths = index[index[..., 0] != ABSENT].T
    most = math.prod(grid.chunk) * grid.itemsize + HEADER + 4  # what blosc makes of noise
    if (lengths > min(size - length, most)).any() or (offsets > size - length - lengths).any():
        raise CorruptError(f"{where}: the index points outside the file, or at chunks of more than {most:,} bytes")
    return index


def _place(entry: np.ndarray, where: str) -> tuple[int, int]:
    """Offset and length of a chunk that must be there."""
    offset, length = entry.tolist()
    if offset == ABSENT:
        raise CorruptError(f"{where} lacks the chunk of models that it is said to hold; restore it from a copy")
    return offset, length


def _decompress(data: memoryview, grid: Grid, where: str) -> np.ndarray:
    """(models, checkpoints, part) unsigned integers of one chunk, whose bytes may come from a stranger."""
    damaged = f"{where}: a chunk of {len(data):,} bytes is damaged; restore the file from a copy"
    raw = math.prod(grid.chunk) * grid.itemsize
    if len(data) < HEADER + 4 or checksum(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise CorruptError(damaged)
    body = data[:-4]
    # the numbers by which the decompressor allocates and moves: all are known before
    nbytes, blocksize, cbytes = np.frombuffer(body[4:HEADER], "<u4").tolist()
    zstd, typesize = body[2] >> 5 == 4, body[3]
    if (nbytes, cbytes, typesize, zstd) != (raw, len(body), grid.itemsize, True) or not 0 < blocksize <= nbytes:
        raise CorruptError(f"{where}: a chunk is not what the format says; it claims to unpack to {nbytes:,} bytes")
    out = np.empty(grid.chunk, UNSIGNED[grid.itemsize])
    try:
        blosc.decompress(body, out)
    except (RuntimeError, ValueError) as error:
        raise CorruptError(damaged) from error
    return out
