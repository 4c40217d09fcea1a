"""The files of a committed shard in one pass: sha256 of each, crc32c of every row in them. Memory for one file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from catalog.errors import CorruptError, FormatError
from catalog.files import OpenFile
from catalog.folder import Folder, storage_error
from catalog.grid import PACKED, STORED_AS, checksum, checksums, extend, from_stored
from catalog.shards import Shard, decode_index, index_bytes

HELD = 96 << 20  # bytes of a file that is read once, whole; a longer one is read in pieces, and again for its rows
PIECE = 8 << 20


@dataclass(frozen=True)
class Content:
    """A file that is open: its size, and `read(start, stop)`, which gives (bytes,) uint8, fewer where the file ends."""

    size: int
    read: Callable[[int, int], np.ndarray]

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for start in range(0, self.size, PIECE):
            digest.update(self.read(start, min(start + PIECE, self.size)).data)
        return digest.hexdigest()


@contextlib.contextmanager
def content(folder: Folder, name: str, size: int | None = None) -> Iterator[Content]:
    """A file as it lies there now.

    Args:
        folder: without a manifest, so that nothing comes from the cache.
        size: it should have; far away that saves a request.

    Raises:
        FileNotFoundError: it is not there, or no file. StorageError: it cannot be read.
    """
    if folder.local:
        file = _open(folder, name)
        found = Content(file.stamp[0], lambda start, stop: _pread(folder, name, file.descriptor, start, stop))
        yield _held(found.read(0, found.size)) if found.size <= HELD else found
        return
    length = folder.size(name) if size is None else size
    if length > HELD:
        yield Content(folder.size(name), lambda start, stop: _fetch(folder, name, start, stop))
        return
    try:
        # one more than there should be tells a longer file, and no stranger sends us more than that
        data = _fetch(folder, name, 0, length + 1) if length else _whole(folder, name)
    except FormatError:  # a server that knows no ranges
        data = _whole(folder, name)
    yield _held(data)


def _held(data: np.ndarray) -> Content:
    return Content(len(data), lambda start, stop: data[max(start, 0) : stop])


def _open(folder: Folder, name: str) -> OpenFile:
    try:
        file = OpenFile(folder.path(name))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, name) from error
    except OSError as error:
        raise storage_error(error, f"reading {name} of {folder.url}") from error
    if not stat.S_ISREG(file.mode):
        raise FileNotFoundError(errno.ENOENT, "not a file", name)
    return file


def _pread(folder: Folder, name: str, descriptor: int, start: int, stop: int) -> np.ndarray:
    out = np.empty(max(stop - start, 0), np.uint8)
    done = 0
    try:
        while done < len(out):
            data = os.pread(descriptor, min(len(out) - done, PIECE), start + done)
            if not data:
                break
            out[done : done + len(data)] = np.frombuffer(data, np.uint8)
            done += len(data)
    except OSError as error:
        raise storage_error(error, f"reading {name} of {folder.url}") from error
    return out[:done]


def _fetch(folder: Folder, name: str, start: int, stop: int) -> np.ndarray:
    (found,) = folder.fetch([name], [start], [stop])
    if isinstance(found, FileNotFoundError | FormatError) or not isinstance(found, bytes | Exception):
        raise found
    if isinstance(found, Exception):
        raise storage_error(found, f"reading {name} of {folder.url}") from found
    return np.frombuffer(found, np.uint8)


def _whole(folder: Folder, name: str) -> np.ndarray:
    return np.frombuffer(folder.read(name, HELD), np.uint8)


@dataclass
class RowCheck:
    """Compares the rows of a shard with their crc32c as its files come by, in order.

    Args:
        crc: (rows,) of what has been seen of each row.
        where: for messages.
    """

    shard: Shard
    where: str
    crc: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.crc = [0] * len(self.shard.crc)

    def add(self, part: slice, file: Content) -> None:
        """Look at the file that holds this part of the vectors.

        Raises:
            CorruptError: chunks that are damaged, missing or none, or weights that are not finite.
        """
        grid = self.shard.grid
        last = part.stop == grid.shape[2]
        chunks = self._packed(part, file) if grid.tier == PACKED else self._hot(part, file)
        for models, checkpoints, stop, values in chunks:
            self._take(models, checkpoints, values, last and stop == part.stop - part.start)

    def _take(self, models: range, checkpoints: range, values: np.ndarray, last: bool) -> None:
        """The next elements of some rows: values (models, checkpoints, elements)."""
        shard, epochs = self.shard, self.shard.grid.shape[1]
        rows = (np.arange(models.start, models.stop)[:, None] * epochs + np.array(checkpoints)).reshape(-1)
        flat = values.reshape(-1, values.shape[-1])
        stored = shard.stored[rows]
        if not stored.all():
            rows, flat = rows[stored], flat[stored]
        if not np.isfinite(from_stored(flat, shard.grid.dtype)).all():  # no writer of ours commits such a row
            raise CorruptError(f"{self.where}: a row said to hold weights holds NaN or infinity; build the zoo again")
        places = rows.tolist()
        if last and values.shape[-1] == shard.grid.shape[2]:
            found = checksums(flat)
        else:
            found = [extend(self.crc[place], row) for place, row in zip(places, flat, strict=True)]
            for place, crc in zip(places, found, strict=True):
                self.crc[place] = crc
        if last and found != shard.crc[rows].tolist():
            raise CorruptError(
                f"{self.where}: the weights are not those committed (another shard's file?); restore it from a copy"
            )

    def _hot(self, part: slice, file: Content) -> Iterator[tuple[range, range, int, np.ndarray]]:
        """Models and checkpoints of each chunk, where its elements end in the part, and its values."""
        grid, epochs = self.shard.grid, self.shard.grid.shape[1]
        (m, _, p), width = grid.chunk, part.stop - part.start
        length, tail = m * p * grid.itemsize + 4, index_bytes(grid)
        if file.size < tail:
            raise CorruptError(f"{self.where} has {file.size:,} bytes, too few for its index of {tail:,}")
        try:
            offsets = decode_index(grid, file.read(file.size - tail, file.size), file.size)
        except ValueError as error:
            raise CorruptError(f"{self.where}: its index {error}; restore it from a copy") from error
        count = len(self.shard.crc) // epochs
        for start in range(0, count, m):
            models = range(start, min(start + m, count))
            for epoch in range(epochs):
                if not self.shard.stored[start * epochs + epoch : models.stop * epochs : epochs].any():
                    continue
                for c, first in enumerate(range(0, width, p)):
                    offset = int(offsets[start // m * epochs + epoch, c])
                    if offset < 0:
                        raise CorruptError(f"{self.where} lacks the chunk of model {start}, checkpoint {epoch}")
                    raw = file.read(offset, offset + length)
                    if len(raw) < length or checksum(raw[:-4]) != int.from_bytes(raw[-4:].tobytes(), "little"):
                        raise CorruptError(f"{self.where}: bytes {offset:,} to {offset + length:,} are damaged")
                    stop = min(first + p, width)
                    values = raw[:-4].view(STORED_AS[grid.dtype]).reshape(m, 1, p)
                    yield models, range(epoch, epoch + 1), stop, values[: len(models), :, : stop - first]

    def _packed(self, part: slice, file: Content) -> Iterator[tuple[range, range, int, np.ndarray]]:
        from catalog.packed import packed_chunks  # which loads the decompressor

        grid, width = self.shard.grid, part.stop - part.start
        count = len(self.shard.crc) // grid.shape[1]
        for start, first, values in packed_chunks(grid, file.read, file.size, count, width, self.where):
            models = range(start, min(start + grid.chunk[0], count))
            stop = min(first + grid.chunk[2], width)
            yield models, range(grid.shape[1]), stop, values[: len(models), :, : stop - first]


Found = dict[str, tuple[str, int]]  # file -> sha256 and bytes, of those that are there
Say = Callable[[str, str, str], Any]  # kind, file, message


def check_shard(folder: Folder, shard: Shard, where: str, say: Say) -> Found:
    """Read each file of a shard once; tell what is wrong.

    Args:
        folder: without a manifest. where: for messages.
    """
    there: Found = {}
    rows: RowCheck | None = RowCheck(shard, where)
    for file, (_, part) in zip(shard.files, shard.grid.parts(shard.number), strict=True):
        try:
            with content(folder, file.path, file.size) as found:
                # a file of another length is not hashed: a hole of many GiB costs a stranger nothing
                there[file.path] = found.sha256() if found.size == file.size else "", found.size
                if there[file.path] != (file.sha256, file.size):
                    say("corrupt", file.path, f"{where}: {differs(file, found.size)}")
                    rows = None  # of which one file is not enough
                if rows:
                    rows.where = f"{where}: {file.path}"
                    rows.add(part, found)
        except FileNotFoundError:
            say("missing", file.path, f"{where}: {file.path} is not there; restore it from a copy")
            rows = None
        except CorruptError as error:
            say("corrupt", file.path, str(error))
            rows = None
    return there


def differs(file: Any, size: int) -> str:
    """How a file differs from what was committed."""
    if size != file.size:
        more = "or more bytes" if size == file.size + 1 else "bytes"  # no more were asked for
        return f"{file.path} has {size:,} {more}, {file.size:,} were committed; restore it from a copy"
    return f"{file.path} is not what was committed; restore it from a copy"


def check_sizes(folder: Folder, files: Sequence[Any], where: str, say: Say) -> Found:
    """As `check_shard`, by the sizes of the files alone; sha256 as they were committed with."""
    there: Found = {}
    for file in files:
        try:
            size = folder.size(file.path)
        except FileNotFoundError:
            say("missing", file.path, f"{where}: {file.path} is not there; restore it from a copy")
            continue
        there[file.path] = file.sha256, size
        if size != file.size:
            say("corrupt", file.path, f"{where}: {differs(file, size)}")
    return there
