"""A folder that holds a zoo: local, or behind any fsspec URL. Reads whole files and byte ranges, writes whole files durably."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from catalog.errors import FormatError, StorageError

TEMPORARY = ".tmp-"  # a name starting so is half-written: readers, digests and `verify` pass over it


@dataclass(frozen=True)
class Folder:
    """Where a zoo lies.

    Args:
        url: as the user gave it, for messages.
        root: path inside `fs`, or the local path.
        fs: the fsspec filesystem, None for a local folder (which goes through `os` for fsync and positioned reads).
    """

    url: str
    root: str
    fs: Any = None

    @classmethod
    def at(cls, url: str | os.PathLike[str], **storage_options: Any) -> Folder:
        """The folder at a local path or an fsspec URL.

        Raises:
            FormatError: chained URLs (`simplecache::https://...`), whose caches were measured to serve truncated files.
        """
        text = os.fspath(url)
        if "::" in text:
            raise FormatError(f"expected a plain path or URL, got the chained URL {text!r}; drop the part before '::'")
        if "://" not in text or text.startswith(("file://", "local://")):
            return cls(text, os.path.abspath(text.split("://", 1)[-1]))
        fs, root = fsspec.core.url_to_fs(text, **storage_options)
        return cls(text, root.rstrip("/"), fs)

    @property
    def local(self) -> bool:
        return self.fs is None

    def path(self, name: str) -> str:
        """Full path of a file of this folder. `name` is relative, with forward slashes, and stays inside."""
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\0" in name:
            raise FormatError(f"{name!r} leads out of the zoo {self.url}")
        return os.path.join(self.root, *parts) if self.local else f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        """All bytes of a file. FileNotFoundError when it is not there."""
        if self.local:
            return Path(self.path(name)).read_bytes()
        data: bytes = self.fs.cat_file(self.path(name))
        return data

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes [start, stop) of one file for each range; a short file gives short bytes."""
        path = self.path(name)
        if not self.local:
            starts, stops = [list(side) for side in zip(*ranges, strict=True)]
            return list(self.fs.cat_ranges([path] * len(ranges), starts, stops, on_error="raise"))
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return [os.pread(descriptor, stop - start, start) for start, stop in ranges]
        finally:
            os.close(descriptor)

    def size(self, name: str) -> int:
        """Bytes of a file. FileNotFoundError when it is not there."""
        return os.stat(self.path(name)).st_size if self.local else int(self.fs.size(self.path(name)))

    def exists(self, name: str) -> bool:
        return os.path.exists(self.path(name)) if self.local else bool(self.fs.exists(self.path(name)))

    def files(self, under: str = "") -> Iterator[str]:
        """Names of all whole files below `under`, sorted; half-written ones are passed over."""
        top = self.path(under) if under else self.root
        if self.local:
            found = (os.path.join(base, name) for base, _, names in os.walk(top) for name in names)
            names = [Path(path).relative_to(self.root).as_posix() for path in found]
        else:
            try:
                names = [str(path)[len(self.root) :].lstrip("/") for path in self.fs.find(top)]
            except FileNotFoundError:
                names = []
        yield from sorted(name for name in names if not PurePosixPath(name).name.startswith(TEMPORARY))

    def top(self) -> list[str]:
        """Names of the whole files directly in the folder, sorted."""
        if self.local:
            names = [entry.name for entry in os.scandir(self.root) if entry.is_file()]
        else:
            found = self.fs.ls(self.root, detail=True)
            names = [str(entry["name"]).rstrip("/").rsplit("/", 1)[-1] for entry in found if entry["type"] == "file"]
        return sorted(name for name in names if not name.startswith(TEMPORARY))

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a whole file so that it is either absent or complete, also after a power cut.

        Local: temporary name, write, fsync, rename, fsync of the directory. Remote: one PUT, which object stores make atomic.

        Raises:
            StorageError: disk full, read-only, no permission, or what the store answered.
        """
        path = self.path(name)
        try:
            if self.local:
                _write_durably(path, data)
            else:
                self.fs.pipe_file(path, bytes(data))
        except OSError as error:
            raise storage_error(error, f"writing {name} ({len(data):,} bytes) of the zoo {self.url}") from error

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already is no error."""
        try:
            os.unlink(self.path(name)) if self.local else self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            pass

    def sweep(self) -> int:
        """Remove half-written files of processes that are gone; returns how many."""
        if not self.local:
            return 0
        stale = [path for path in Path(self.root).rglob(f"{TEMPORARY}*") if not _alive(path.name)]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)


def storage_error(error: OSError, doing: str) -> StorageError:
    """The typed error for what the operating system refused, with what to do about it."""
    advice = {
        errno.ENOSPC: "free space on that disk and run the same command again; committed shards are kept",
        errno.EDQUOT: "your quota is used up; free space and run the same command again; committed shards are kept",
        errno.EROFS: "the file system is read-only; choose a folder that can be written",
        errno.EACCES: "no permission; choose a folder that you may write",
        errno.EPERM: "no permission; choose a folder that you may write",
    }.get(error.errno or 0, "committed shards are kept; run the same command again once the cause is gone")
    wrapped = StorageError(f"{doing}: {error.strerror or error}; {advice}")
    wrapped.errno = error.errno
    return wrapped


def _write_durably(path: str, data: bytes | memoryview) -> None:
    directory, name = os.path.split(path)
    _make_directory(directory)
    temporary = os.path.join(directory, f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}-{name[:64]}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(directory)


def _make_directory(directory: str) -> None:
    if not os.path.isdir(directory):
        parent = os.path.dirname(directory)
        _make_directory(parent)
        try:
            os.mkdir(directory)
        except FileExistsError:
            return
        _sync_directory(parent)


def _sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(temporary: str) -> bool:
    """Whether the process that is writing this temporary file still runs."""
    try:
        os.kill(int(temporary[len(TEMPORARY) :].split("-")[0]), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
