"""Several files of a folder open together: byte ranges straight into arrays, waiting for the disk or network once."""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from catalog.errors import FormatError, ZooError
from catalog.folder import Folder, storage_error
from catalog.ranges import joined

# (number of the file, offset, contiguous arrays to fill one after the other, bytes in all); Any, since the types of
# Python 3.11 know no buffers of numpy
Piece = tuple[int, int, Sequence[Any], int]
Stamp = tuple[int, ...]

KEPT = 64  # files that stay open
NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux: read what is in memory, else say so at once


class Damage(Exception):
    """What is wrong with a file, called {path} in the text; the reader knows which shard that is and tells."""

    def __init__(self, path: str, text: str, missing: bool = False) -> None:
        super().__init__(text)
        self.path, self.text, self.missing = path, text, missing


class OpenFile:
    """A local file, open until nobody has this object any more: a thread may read while another one forgets it."""

    def __init__(self, path: str) -> None:
        # without O_NONBLOCK, a pipe in the place of a file would keep us waiting for ever
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        found = os.fstat(self.descriptor)
        self.mode, self.stamp = found.st_mode, _stamp(found)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "descriptor"):
            close(self.descriptor)


Kept = OrderedDict[str, OpenFile]


def _stamp(found: os.stat_result) -> Stamp:
    """What tells a file from another one in its place."""
    return found.st_size, found.st_ctime_ns, found.st_mtime_ns, found.st_ino, found.st_dev


class LocalFiles:
    """Files on a local disk. No mmap: page faults one by one were measured 50 times slower on a cold disk.

    `stamps` tell a file from one that took its place. `cold` becomes true when something was not in memory.

    Raises:
        Damage: a file that is not there, or of another size than `sizes` say.
        StorageError: it cannot be read, as with `fill`.
    """

    together = 0  # bytes worth asking for at once: nothing is gained by that here
    dense = 2  # a chunk is read whole where at least one in so many of its rows is wanted

    def __init__(self, folder: Folder, names: Sequence[str], sizes: Sequence[int], kept: Kept) -> None:
        self.folder, self.names, self.cold = folder, names, False
        self.files: list[OpenFile] = []  # as long as they are here nobody closes them
        for name, size in zip(names, sizes, strict=True):
            file = kept.get(name)
            try:
                # also a file that is unlinked, renamed or replaced gets another ctime
                if file is None or _stamp(os.fstat(file.descriptor)) != file.stamp:
                    file = kept[name] = OpenFile(folder.path(name))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise Damage(name, "{path} is not there", missing=True) from error
            except OSError as error:
                raise self._refused(name, error) from error
            if not stat.S_ISREG(file.mode):
                kept.pop(name, None)
                raise Damage(name, "{path} is not there: what has its name is no file", missing=True)
            if file.stamp[0] != size:
                kept.pop(name, None)
                raise Damage(name, f"{{path}} has {file.stamp[0]:,} bytes, {size:,} were committed")
            self.files.append(file)
        self.descriptors = [file.descriptor for file in self.files]
        self.stamps: list[Stamp | None] = [file.stamp for file in self.files]
        while len(kept) > KEPT:
            kept.popitem(last=False)

    def fill(self, pieces: Sequence[Piece]) -> None:
        """Fill the arrays. What is not in memory is asked for all at once, then waited for.

        Raises:
            Damage: a file ended before.
        """
        late: list[Piece] = []
        for piece in pieces:
            number, offset, arrays, length = piece
            try:
                if NOWAIT and os.preadv(self.descriptors[number], arrays, offset, NOWAIT) == length:
                    continue
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # a disk without such reads
                    raise self._refused(self.names[number], error) from error
            late.append(piece)
        if late:
            self.cold = True
            self.expect(late)
            for piece in late:
                self._wait_for(piece)

    def expect(self, pieces: Sequence[Piece]) -> None:
        """Let the disk begin to read these."""
        if hasattr(os, "posix_fadvise"):
            for number, offset, _, length in pieces:
                os.posix_fadvise(self.descriptors[number], offset, length, os.POSIX_FADV_WILLNEED)

    def _wait_for(self, piece: Piece) -> None:
        number, offset, arrays, _ = piece
        for array in arrays:
            view = array.reshape(-1).view(np.uint8)
            while len(view):
                try:
                    count = _read_into(self.descriptors[number], view, offset)
                except OSError as error:
                    raise self._refused(self.names[number], error) from error
                if count == 0:
                    raise Damage(self.names[number], f"{{path}} ends at byte {offset:,}, where more should follow")
                view, offset = view[count:], offset + count

    def _refused(self, name: str, error: OSError) -> OSError:
        return storage_error(error, f"reading {name} of {self.folder.url}")


def _read_into(descriptor: int, view: np.ndarray, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view.data], offset)
    data = os.pread(descriptor, len(view), offset)
    view[: len(data)] = np.frombuffer(data, np.uint8)
    return len(data)


class RemoteFiles:
    """Files behind an fsspec filesystem; all ranges of a call are requested together.

    Their sizes are asked for only when something is wrong: a committed file never changes, and its rows have checksums.
    """

    together = 64 << 20  # bytes that one call fetches side by side, and holds in memory
    dense = 4 / 3  # what is fetched is to be little more than what is wanted
    cold = False

    def __init__(self, folder: Folder, names: Sequence[str], sizes: Sequence[int], _: Kept) -> None:
        self.folder, self.names, self.sizes = folder, names, sizes
        self.stamps: list[Stamp | None] = [None] * len(names)

    def expect(self, pieces: Sequence[Piece]) -> None:
        """Nothing: a request that nobody waits for is no use here."""

    def fill(self, pieces: Sequence[Piece]) -> None:
        """As `LocalFiles.fill`; also raises FormatError for servers without byte ranges."""
        batch: list[tuple[int, int, list[Piece]]] = []
        held = 0
        for start, stop, group in _requests(sorted(pieces, key=lambda piece: piece[:2])):
            if batch and held + stop - start > self.together:
                self._fetch(batch)
                batch, held = [], 0
            batch.append((start, stop, group))
            held += stop - start
        self._fetch(batch)

    def _fetch(self, requests: Sequence[tuple[int, int, list[Piece]]]) -> None:
        starts, stops = [start for start, _, _ in requests], [stop for _, stop, _ in requests]
        names = [self.names[group[0][0]] for _, _, group in requests]
        parts = self.folder.fetch(names, starts, stops)
        for (start, stop, group), part in zip(requests, parts, strict=True):
            number = group[0][0]
            if isinstance(part, BaseException):
                raise self._why(number, part) from part
            if len(part) > stop - start:
                raise FormatError(
                    f"the server of {self.folder.url} does not answer byte ranges; use one that does, or copy the zoo "
                    "here"
                )
            if len(part) < stop - start:
                raise self._why(number, None)
            data = np.frombuffer(part, np.uint8)
            for _, offset, arrays, _ in group:
                at = offset - start
                for array in arrays:
                    array.reshape(-1).view(np.uint8)[:] = data[at : at + array.nbytes]
                    at += array.nbytes

    def _why(self, number: int, error: BaseException | None) -> BaseException:
        """The error for a range that did not come."""
        if isinstance(error, FileNotFoundError):
            return Damage(self.names[number], "{path} is not there", missing=True)
        if error is not None and (not isinstance(error, Exception) or isinstance(error, ZooError)):
            return error  # somebody interrupts, or it says all there is to say
        try:
            found = self.folder.size(self.names[number])
        except FileNotFoundError:
            return Damage(self.names[number], "{path} is not there", missing=True)
        if found != self.sizes[number]:
            return Damage(self.names[number], f"{{path}} has {found:,} bytes, {self.sizes[number]:,} were committed")
        if error is None:
            return Damage(self.names[number], "{path} came shorter than it is")
        return storage_error(error, f"reading {self.names[number]} of {self.folder.url}")


def _requests(pieces: Sequence[Piece]) -> Iterator[tuple[int, int, list[Piece]]]:
    """Ranges (start, stop) of one file that fetch all pieces, which come in order, with the pieces inside."""
    for part in joined([(number, offset, offset + length) for number, offset, _, length in pieces]):
        group = list(pieces[part])
        yield group[0][1], max(offset + length for _, offset, _, length in group), group


Files = LocalFiles | RemoteFiles


def open_files(folder: Folder, names: Sequence[str], sizes: Sequence[int], kept: Kept) -> Files:
    """Files of a folder to read from; local ones stay open in `kept`, the last few."""
    kind: Callable[..., Any] = LocalFiles if folder.local else RemoteFiles
    found: Files = kind(folder, names, sizes, kept)
    return found
