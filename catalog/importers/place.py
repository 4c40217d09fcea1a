"""Where a source lies: a local folder that nothing leads out of, or a folder behind an fsspec URL."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from catalog.errors import SourceError, ZooError
from catalog.folder import Folder
from catalog.importers.found import BrokenError, DoesNotFitError

MAX_FILES = 1 << 20
DEPTH = 8  # folders inside one another


@dataclass(frozen=True)
class Place:
    """A local source folder.

    Args:
        root: as it is listed.
        real: without links; files must lie below it.
    """

    root: Path
    real: Path

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Place:
        root = Path(os.path.abspath(path))
        return cls(root, Path(os.path.realpath(root)))

    def file(self, name: str | PurePosixPath) -> Path:
        """The file of this relative name.

        Raises:
            BrokenError: it is not there, is no file, or lies outside the source.
        """
        text = str(name)
        if not text or "\0" in text or os.path.isabs(text) or ".." in PurePosixPath(text).parts:
            raise BrokenError(f"{text[:200]!r} is no name of a file inside the source")
        path = self.root / text
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(self.real):
            raise BrokenError(f"{text[:200]} is a link that leads out of the source")
        try:
            if not stat.S_ISREG(os.stat(real).st_mode):
                raise BrokenError(f"{text[:200]} is no file")
        except OSError as error:
            raise BrokenError(f"{text[:200]} is not there") from error
        return real

    def files(self, skipped: list[tuple[str, str]]) -> Iterator[PurePosixPath]:
        """Relative names of all files, sorted, without hidden ones. What else is not entered is noted in `skipped`."""
        count = 0
        for base, folders, names in os.walk(self.root):
            inside = Path(base).relative_to(self.root)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            linked = [name for name in folders if os.path.islink(os.path.join(base, name))]
            skipped += [(str(inside / name), "a link to a folder, which is not followed") for name in linked]
            if len(inside.parts) >= DEPTH and folders:
                skipped.append((str(inside), f"folders below it: {DEPTH} inside one another is all that is read"))
                folders.clear()
            for name in sorted(name for name in names if not name.startswith(".")):
                if (count := count + 1) > MAX_FILES:
                    raise SourceError(f"{self.root} holds more than {MAX_FILES:,} files; import its parts alone")
                if name.isprintable():
                    yield PurePosixPath(inside.as_posix()) / name
                else:
                    skipped.append((repr(name), "a name with characters that cannot be printed"))


@dataclass(frozen=True)
class LocalBlob:
    """A local file, read by position."""

    name: str
    path: Path
    size: int

    @classmethod
    def of(cls, place: Place, name: str | PurePosixPath) -> LocalBlob:
        path = place.file(name)
        return cls(str(name), path, path.stat().st_size)

    def read(self, start: int, stop: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)


@dataclass(frozen=True)
class RemoteBlob:
    """A file behind a URL, read by ranges."""

    name: str
    folder: Folder
    size: int

    @classmethod
    def of(cls, folder: Folder, name: str) -> RemoteBlob:
        try:
            return cls(name, folder, folder.size(name))
        except FileNotFoundError as error:
            raise BrokenError(f"{name} is not there") from error
        except ZooError as error:
            raise BrokenError(f"{name}: {error}") from error

    def read(self, start: int, stop: int) -> bytes:
        (data,) = self.folder.fetch([self.name], [start], [stop])
        if isinstance(data, BaseException):
            raise BrokenError(f"{self.name}: {data}")
        return data


def local_folder(source: object, what: str) -> Place:
    """The source as a local folder, for formats that are read from one."""
    if not isinstance(source, str | os.PathLike):
        raise DoesNotFitError(f"{what} is one folder, not a list")
    text = os.fspath(source)
    if "://" in text and not text.startswith("file://"):
        raise DoesNotFitError(f"{what} is read from a local folder; copy it here")
    place = Place.at(text.removeprefix("file://"))
    if not place.root.is_dir():
        raise SourceError(f"{text} is no folder")
    return place


def few(names: Iterable[str], count: int = 3) -> str:
    """The first of some names, for a message."""
    listed = [str(name)[:80] for name in names]
    return ", ".join(listed[:count]) + (f" and {len(listed) - count} more" if len(listed) > count else "")
