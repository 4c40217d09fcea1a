"""Files of a zoo put into a local folder: each checked against its digest, then renamed; several at once."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import BinaryIO

from catalog import cache
from catalog.errors import CorruptError, MissingDataError, StorageError
from catalog.folder import Folder, make_directory, storage_error, sync_directory, temporary_path, write_durably
from catalog.fragments import StoredFile

WORKERS = 8  # files under way at once
BLOCK = 1 << 20  # bytes copied at once
TRIES = 3  # of taking a file from the cache, which others may clear
SPARE = 16 << 20  # bytes that stay free on a disk
Progress = Callable[[int, int], None]


class _Stopped(Exception):
    """Raised in a thread whose work nobody wants any more."""


def is_there(path: Path, file: StoredFile) -> bool:
    """Whether a whole file with the right bytes is there."""
    try:
        return path.stat().st_size == file.size and cache.digest_of(path) == file.sha256
    except OSError:
        return False


def lacking(files: Sequence[StoredFile], dest: Path) -> list[StoredFile]:
    """Those of the files that a folder does not have, or not whole."""
    if not dest.is_dir():
        return list(files)
    with ThreadPoolExecutor(WORKERS) as pool:
        there = list(pool.map(lambda file: is_there(dest / file.path, file), files))
    return [file for file, found in zip(files, there, strict=True) if not found]


def in_cache(source: Folder, files: Iterable[StoredFile], held: Mapping[str, bytes]) -> int:
    """Bytes of files that need not be fetched from far away."""
    if source.local:
        return 0
    return sum(file.size for file in files if file.path not in held and cache.find(file.sha256) is not None)


def check_space(source: Folder, files: Sequence[StoredFile], held: Mapping[str, bytes], dest: Path) -> None:
    """StorageError when the files do not fit on the disk, or what is fetched on that of the cache."""
    size = sum(file.size for file in files)
    needs = {dest: size}
    if not source.local:
        fetched = size - in_cache(source, files, held)
        if _device(cache.root()) == _device(dest):
            needs[dest] = fetched  # the files are hard links to those of the cache
        else:
            needs[cache.root()] = fetched
    for place, needed in needs.items():
        free = shutil.disk_usage(_existing(place)).free
        if needed and needed + SPARE > free:
            error = StorageError(
                f"{place} needs {needed:,} bytes and {free:,} are free on its disk; free space, choose another folder "
                "(for the cache WEIGHTSCAPE_CACHE), or pull fewer rows"
            )
            error.errno = errno.ENOSPC
            raise error


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev


class Mirror:
    """Puts files of one folder into another, and counts the bytes.

    Args:
        held: path -> bytes that were fetched and checked already.
        progress: called with (bytes done, `total`), from several threads, one at a time.
    """

    def __init__(
        self, source: Folder, dest: Path, held: Mapping[str, bytes], total: int, progress: Progress | None
    ) -> None:
        self.source, self.dest, self.held, self.total, self.progress = source, dest, held, total, progress
        self._here: dict[str, int] = {}
        self._done = 0
        self._lock, self._stop = threading.Lock(), threading.Event()

    def put(self, files: Sequence[StoredFile]) -> None:
        """Files in any order; when this returns, all are there, also after a power cut.

        Raises:
            CorruptError, MissingDataError, StorageError, OfflineError: of the first that could not be put there. What
                others have been put there stays.
        """
        with ThreadPoolExecutor(WORKERS) as pool:
            running = [pool.submit(self._one, file) for file in files]
            try:
                for future in as_completed(running):
                    future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        for directory in sorted({os.path.dirname(self.dest / file.path) for file in files}):
            sync_directory(directory)

    def _one(self, file: StoredFile) -> None:
        self._count(file, 0)
        final = os.fspath(self.dest / file.path)
        try:
            if file.path in self.held:
                write_durably(final, self.held[file.path])
            elif self.source.local:
                make_directory(os.path.dirname(final))
                self._copy(Path(self.source.path(file.path)), file, final)
            else:
                make_directory(os.path.dirname(final))
                self._from_far(file, final)
        except (CorruptError, MissingDataError, StorageError):
            raise
        except OSError as error:
            raise storage_error(error, f"writing {file.path} ({file.size:,} bytes) to {self.dest}") from error
        self._count(file, file.size)

    def _from_far(self, file: StoredFile, final: str) -> None:
        path = self.source.path(file.path)
        for last in (False,) * (TRIES - 1) + (True,):
            found = cache.fetch(self.source.fs, path, file, self.source.url, lambda here: self._count(file, here))
            try:
                return self._link(found, file, final)
            except FileNotFoundError:  # somebody clears the cache
                if last:
                    raise

    def _link(self, found: Path, file: StoredFile, final: str) -> None:
        temporary = temporary_path(final)
        try:
            os.link(found, temporary)
            os.replace(temporary, final)
        except FileNotFoundError:
            raise
        except OSError:  # another disk, or one without links
            self._copy(found, file, final)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def _copy(self, found: Path, file: StoredFile, final: str) -> None:
        """Copy a local file, if it is what it should be."""
        temporary, digest, here = temporary_path(final), hashlib.sha256(), 0
        try:
            with self._opened(found, file) as reading, open(temporary, "xb") as writing:
                while data := reading.read(BLOCK):
                    digest.update(data)
                    writing.write(data)
                    here += len(data)
                    self._count(file, min(here, file.size))
                if here != file.size or digest.hexdigest() != file.sha256:
                    raise CorruptError(
                        f"{file.path} of {self.source.url} is not what was committed: it was changed or damaged there"
                    )
                writing.flush()
                os.fsync(writing.fileno())
            os.replace(temporary, final)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def _opened(self, found: Path, file: StoredFile) -> BinaryIO:
        try:
            # a pipe would keep us waiting, a device never end; both say that they have no bytes
            if (size := found.stat().st_size) != file.size:
                raise CorruptError(
                    f"{file.path} of {self.source.url} has {size:,} bytes, {file.size:,} were committed: it was "
                    "changed or damaged there"
                )
            return open(found, "rb")
        except FileNotFoundError as error:
            if not self.source.local:
                raise
            raise MissingDataError(
                f"{file.path} of {self.source.url} is not there, and was committed; restore it from a copy"
            ) from error

    def _count(self, file: StoredFile, here: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        if self.progress:
            with self._lock:
                self._done += here - self._here.get(file.path, 0)
                self._here[file.path] = here
                self.progress(self._done, self.total)
