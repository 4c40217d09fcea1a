"""A folder that holds a zoo: local, or behind any fsspec URL. Reads files and byte ranges, writes files durably."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import fsspec

from catalog import cache
from catalog.errors import CorruptError, FormatError, NoRangesError, OfflineError, StorageError, ZooError
from catalog.objects import fast_ranges
from catalog.retry import again, again_each

if TYPE_CHECKING:
    from catalog.fragments import StoredFile
    from catalog.manifest import Manifest

TEMPORARY = ".tmp-"  # a name starting so is half-written: readers, digests and `verify` pass over it
PLAIN = "/!$&'()*+,;=:@~"  # characters of a path in a URL that need no escape
TOGETHER = 16  # whole files fetched at once
Range = tuple[str, int | None, int | None]  # name, start, stop
ABANDONED = 24 * 3600  # seconds after which another machine's half-written file is nobody's


@dataclass(frozen=True)
class Folder:
    """Where a zoo lies.

    Args:
        url: as the user gave it, for messages.
        root: path inside `fs`, or the local path.
        fs: the fsspec filesystem, None for a local folder (which goes through `os` for fsync and positioned reads).
        manifest: of a published version. It alone says which files there are, how long they are, and their digests, so
            that a reader sees one version whatever is published meanwhile; such a folder cannot be written.
    """

    url: str
    root: str
    fs: Any = None
    manifest: Manifest | None = None

    @classmethod
    def at(cls, url: str | os.PathLike[str], **storage_options: Any) -> Folder:
        """The folder at a local path or an fsspec URL.

        Raises:
            FormatError: chained URLs (`simplecache::https://...`), whose caches were measured to serve truncated files;
                a scheme nobody knows, or one whose package is not installed.
        """
        text = os.fspath(url)
        if text.lower().startswith(("http://", "https://")):
            from catalog.web import Web

            web, root = Web.at(text, storage_options)
            return cls(root, root, web)
        if "::" in text:
            raise FormatError(f"expected a plain path or URL, got the chained URL {text!r}; drop the part before '::'")
        if "://" not in text or text.startswith(("file://", "local://")):
            return cls(text, os.path.abspath(text.split("://", 1)[-1]))
        try:
            fs, root = fsspec.core.url_to_fs(text, **storage_options)
        except (ImportError, ValueError) as error:  # both say which scheme or package
            extras = "s3:// needs weightscape[s3], gs:// weightscape[gs], hf:// weightscape[hf]"
            raise FormatError(f"cannot open {text}: {error}; {extras}") from error
        return cls(text, root.rstrip("/"), fs)

    @property
    def local(self) -> bool:
        return self.fs is None

    def path(self, name: str) -> str:
        """Full path of a file of this folder. `name` is relative, with forward slashes, and stays inside."""
        if name.startswith("/") or "\0" in name or (".." in name and ".." in name.split("/")):
            raise FormatError(f"{name!r} leads out of the zoo {self.url}")
        return f"{self.root}/{quote(name, safe=PLAIN) if self.web else name}"

    @property
    def web(self) -> bool:
        """Whether paths are URLs of a web server."""
        return self.fs is not None and "http" in self.fs.protocol

    def below(self, name: str) -> Folder:
        """A folder inside this one."""
        return replace(self, url=f"{self.url.rstrip('/')}/{name}", root=self.path(name))

    def entry(self, name: str) -> StoredFile | None:
        """What the manifest says of a file; None where there is no manifest. FileNotFoundError: it does not list it."""
        if self.manifest is None:
            return None
        if name not in self.manifest.files:
            raise FileNotFoundError(errno.ENOENT, f"not in version {self.manifest.version}", name)
        return self.manifest.files[name]

    def read(self, name: str, limit: int | None = None) -> bytes:
        """All bytes of a file. FileNotFoundError when it is not there.

        Raises:
            FormatError: more than `limit` bytes, before they are loaded.
            StorageError: it is there but cannot be read, as with every method here.
            CorruptError: it is not what the manifest says. OfflineError: it is not in the cache.
        """
        with self._refusals(f"reading {name} of {self.url}"):
            if entry := self.entry(name):
                if limit is not None and entry.size > limit:
                    raise _too_long(name, self.url, entry.size, limit)
                return self._checked(entry)
            if self.web:
                online(self.url)
                return bytes(self.fs.cat_file(self.path(name), limit=limit))
            if self.local:
                found = self.size(name)  # which refuses pipes and devices: they would give bytes, or wait, for ever
                if limit is not None and found > limit:
                    raise _too_long(name, self.url, found, limit)
                return Path(self.path(name)).read_bytes()
            online(self.url)
            upto = {} if limit is None else {"start": 0, "end": limit + 1}  # one request, where a size costs another
            data = bytes(again(lambda: self.fs.cat_file(self.path(name), **upto)))
            if limit is not None and len(data) > limit:
                raise _too_long(name, self.url, len(data), limit)
            return data

    def _checked(self, entry: StoredFile) -> bytes:
        """A file of the manifest, from the cache if it lies far away."""
        path = self.path(entry.path)
        if not self.local:
            return cache.read(self.fs, path, entry, self.url)
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, "not a file")
        data = Path(path).read_bytes() if found.st_size == entry.size else b""
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CorruptError(f"{entry.path} of {self.url} is not what its manifest says; restore it from a copy")
        return data

    def fetch(
        self, names: Sequence[str], starts: Sequence[int | None], stops: Sequence[int | None]
    ) -> list[bytes | BaseException]:
        """Bytes [start, stop) of files far away, all requested at once; what failed gives its exception in that place.

        None stands for the beginning and the end of a file. A short file gives short bytes. Whole files of a published
        version go through the cache, and ranges of what is there are taken from there.
        """
        wanted = list(zip(names, starts, stops, strict=True))
        found: list[Any] = [None] * len(wanted)
        with self._refusals(f"reading {len(names)} ranges of {self.url}"):
            ahead = list(range(len(wanted)))
            if self.manifest is not None:
                ahead = self._from_cache(wanted, found)
            if ahead:
                online(self.url)
                for at, data in zip(ahead, self._ranges([wanted[at] for at in ahead]), strict=True):
                    found[at] = data
            if self.manifest is not None:
                self._without_ranges(wanted, found)
        return found

    def _ranges(self, wanted: Sequence[Range]) -> list[Any]:
        def ask(some: list[int]) -> list[Any]:
            names, starts, stops = zip(*(wanted[at] for at in some), strict=True)
            paths = [self.path(name) for name in names]
            faster = None if self.web or None in {*starts, *stops} else fast_ranges(self.fs)
            if faster is not None:
                return faster(paths, starts, stops)
            return list(self.fs.cat_ranges(paths, list(starts), list(stops), on_error="return"))

        return ask(list(range(len(wanted)))) if self.web else again_each(ask, len(wanted))  # ours tries again itself

    def _from_cache(self, wanted: Sequence[Range], found: list[Any]) -> list[int]:
        """Whole files, fetched where they are not there, and ranges of those that are; which ranges are left."""
        left, whole = [], []
        ranged = {name for name, start, stop in wanted if start is not None or stop is not None}
        here = {name: cache.checked(self._entry(name)) for name in ranged}
        for at, (name, start, stop) in enumerate(wanted):
            if start is None and stop is None:
                whole.append(at)
            elif path := here[name]:
                found[at] = _part(path, start, stop)
            else:
                left.append(at)
        if whole:
            with ThreadPoolExecutor(min(len(whole), TOGETHER)) as pool:
                for at, data in zip(whole, pool.map(lambda at: self._whole(wanted[at][0]), whole), strict=True):
                    found[at] = data
        return left

    def _without_ranges(self, wanted: Sequence[Range], found: list[Any]) -> None:
        """From a server without byte ranges, a published file comes whole, once: the manifest says how long it is."""
        for at, (name, start, stop) in enumerate(wanted):
            if isinstance(found[at], NoRangesError):
                try:
                    entry = self._entry(name)
                    found[at] = _part(cache.fetch(self.fs, self.path(name), entry, self.url), start, stop)
                except Exception as error:
                    found[at] = error

    def _whole(self, name: str) -> bytes | Exception:
        try:
            return self._checked(self._entry(name))
        except Exception as error:
            return error

    def _entry(self, name: str) -> StoredFile:
        entry = self.entry(name)
        assert entry is not None
        return entry

    def size(self, name: str) -> int:
        """Bytes of a file. FileNotFoundError when it is not there."""
        with self._refusals(f"looking at {name} of {self.url}"):
            if entry := self.entry(name):
                return entry.size
            if self.local:
                found = os.stat(self.path(name))
                if not stat.S_ISREG(found.st_mode):
                    raise IsADirectoryError(errno.EISDIR, "not a file")
                return found.st_size
            online(self.url)
            size = again(lambda: self.fs.size(self.path(name)))
            if size is None:
                raise FormatError(f"the server of {self.url} does not say how long {name} is; copy the zoo here")
            return int(size)

    def stamp(self, name: str) -> int | None:
        """What changes when files come to or go from a local folder; None far away, or when it is not there."""
        try:
            return os.stat(self.path(name)).st_mtime_ns if self.local else None
        except OSError:
            return None

    def exists(self, name: str) -> bool:
        if self.manifest is not None:
            return name in self.manifest.files
        with self._refusals(f"looking at {name} of {self.url}"):
            if self.local:
                return os.path.exists(self.path(name))
            online(self.url)
            return bool(again(lambda: self.fs.exists(self.path(name))))

    def files(self, under: str = "") -> list[str]:
        """Names of all whole files below `under`, as of now, sorted; half-written ones are passed over.

        Raises:
            FormatError: a web server that does not list its folders: what is not listed would pass for not there.
        """
        if self.manifest is not None:
            return sorted(name for name in self.manifest.files if not under or name.startswith(f"{under}/"))
        top = self.path(under) if under else self.root
        with self._refusals(f"listing {under or 'the files'} of {self.url}"):
            if self.local:
                found = [
                    os.path.join(base, name) for base, _, names in os.walk(top, onerror=_not_gone) for name in names
                ]
                names = [Path(path).relative_to(self.root).as_posix() for path in found]
            else:
                online(self.url)
                self.fs.invalidate_cache()  # listings are kept for ever otherwise, and others write
                try:
                    names = [str(path)[len(self.root) :].lstrip("/") for path in again(lambda: self.fs.find(top))]
                except FileNotFoundError:
                    names = []
                    if self.web:
                        self._check_absent(under)
                if self.web:
                    names = [unquote(name) for name in names]
        return sorted(name for name in names if not PurePosixPath(name).name.startswith(TEMPORARY))

    def top(self) -> list[str]:
        """Names of the whole files directly in the folder of a zoo, as of now, sorted.

        Raises:
            FormatError: as for `files`.
        """
        if self.manifest is not None:
            return sorted(name for name in self.manifest.files if "/" not in name)
        with self._refusals(f"listing {self.url}"):
            if self.local:
                with os.scandir(self.root) as entries:
                    names = [entry.name for entry in entries if entry.is_file()]
            else:
                online(self.url)
                self.fs.invalidate_cache()
                names = self._remote_top()
        return sorted(name for name in names if not name.startswith(TEMPORARY))

    def _remote_top(self, kind: str = "file") -> list[str]:
        advice = f"{self.url} cannot be listed; use a server that lists its folders, or copy the zoo here"
        try:
            found = again(lambda: self.fs.ls(self.root, detail=True))
        except (FileNotFoundError, FormatError) as error:
            if self.web:
                raise FormatError(f"{advice} ({error})") from error
            raise
        names = {str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]: entry["type"] for entry in found}
        if self.web:
            names = {unquote(name): type_ for name, type_ in names.items()}
        if self.web and "zoo.json" not in names:  # which is there, or nobody would list this folder
            raise FormatError(advice)
        return [name for name, type_ in names.items() if type_ == kind]

    def _check_absent(self, under: str) -> None:
        """An error unless a folder of which a web server says that it is not there is really none of the zoo's."""
        if under.split("/")[0] in self._remote_top("directory"):
            raise FormatError(f"the server of {self.url} lists the folder {under}, and says then that it is not there")

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a whole file so that it is either absent or complete, also after a power cut.

        Local: temporary name, write, fsync, rename, fsync of the directory. Remote: one PUT, atomic in object stores.

        Raises:
            StorageError: disk full, read-only, no permission, or what the store answered.
        """
        self._not_published()
        path = self.path(name)
        doing = f"writing {name} ({len(data):,} bytes) of the zoo {self.url}"
        try:
            with self._refusals(doing):
                if self.local:
                    write_durably(path, data)
                else:
                    self.fs.pipe_file(path, bytes(data))
        except FileNotFoundError as error:  # a bucket that does not exist, a folder removed meanwhile
            raise storage_error(error, doing) from error

    def write_new(self, name: str, data: bytes) -> bool:
        """Write a whole file that is not there yet; False when it is, with other bytes. Of several writers one wins.

        Local: a hard link. Remote: a conditional PUT where the store has one (S3, GCS), else a look before it writes.

        Raises:
            StorageError: as for `write`.
        """
        self._not_published()
        path = self.path(name)
        doing = f"writing {name} ({len(data):,} bytes) of the zoo {self.url}"
        try:
            with self._refusals(doing):
                if not self.local:
                    self.fs.invalidate_cache()  # some look into listings from before
                try:
                    write_durably(path, data, new=True) if self.local else self.fs.pipe_file(path, data, mode="create")
                except Exception as error:
                    with contextlib.suppress(FileNotFoundError):  # raised when it is not there: this is another error
                        return self.read(name) == data  # ours if an answer was lost, and the request sent again
                    if self.local or not _unconditional(error):
                        raise
                    self.fs.pipe_file(path, data)
                return True
        except FileNotFoundError as error:
            raise storage_error(error, doing) from error

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already is no error."""
        self._not_published()
        with contextlib.suppress(FileNotFoundError), self._refusals(f"removing {name} of {self.url}"):
            os.unlink(self.path(name)) if self.local else self.fs.rm_file(self.path(name))

    def _not_published(self) -> None:
        if self.manifest is not None:
            raise StorageError(
                f"{self.url} is version {self.manifest.version} of a published zoo, which never changes; name a folder "
                "for what is measured (metrics_at), or publish a new version"
            )

    def sweep(self) -> int:
        """Remove half-written files of processes that are gone; returns how many."""
        if not self.local or self.manifest is not None:
            return 0
        with self._refusals(f"removing half-written files of {self.url}"):
            stale = [path for path in Path(self.root).rglob(f"{TEMPORARY}*") if not _alive(path)]
            for path in stale:
                path.unlink(missing_ok=True)
        return len(stale)

    @contextlib.contextmanager
    def _refusals(self, doing: str) -> Iterator[None]:
        """Turn what disks and stores raise into StorageError; what is not there, or no file, is FileNotFoundError."""
        try:
            yield
        except (ZooError, FileNotFoundError):
            raise
        except (IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(error.errno, f"{doing}: {error.strerror}") from error
        except OSError as error:
            raise storage_error(error, doing) from error
        except Exception as error:
            if self.local:
                raise  # a bug of ours
            raise storage_error(error, doing) from error  # the errors of aiohttp and botocore share no other base


def _part(path: Path, start: int | None, stop: int | None) -> bytes:
    with open(path, "rb") as file:
        file.seek(start or 0)
        return file.read(-1 if stop is None else max(stop - (start or 0), 0))


def _too_long(name: str, url: str, size: int, limit: int) -> FormatError:
    return FormatError(f"{name} of {url} has {size:,} bytes, more than the {limit:,} allowed")


def _unconditional(error: Exception) -> bool:
    """Whether a store says that it knows no conditional PUT; filesystems that take no `mode` answer by a TypeError."""
    return isinstance(error, NotImplementedError | TypeError) or "NotImplemented" in str(error)


def online(url: str) -> None:
    """OfflineError where nothing may be asked of other machines."""
    if cache.offline():
        raise OfflineError(
            f"WEIGHTSCAPE_OFFLINE is set, and what was asked of {url} is not in the cache; unset it, or `weightscape "
            "pull` the rows while there is a network"
        )


def storage_error(error: Exception, doing: str) -> StorageError:
    """The typed error for what the operating system or a store refused, with what to do about it."""
    number = getattr(error, "errno", None)
    advice = {
        errno.ENOSPC: "free space on that disk and run the same command again; committed shards are kept",
        errno.EDQUOT: "your quota is used up; free space and run the same command again; committed shards are kept",
        errno.EROFS: "the file system is read-only; choose a folder that can be written",
        errno.EACCES: "no permission; choose a folder that you may write",
        errno.EPERM: "no permission; choose a folder that you may write",
    }.get(number or 0, "what was committed is kept; run the same command again once the cause is gone")
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    wrapped = StorageError(f"{doing}: {said}; {advice}")
    wrapped.errno = number
    return wrapped


def _not_gone(error: OSError) -> None:
    """For os.walk, which passes over all errors: a folder that cannot be read is none, one that is not there is."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def write_durably(path: str, data: bytes | memoryview, new: bool = False) -> None:
    """Write a file; with `new`, FileExistsError when it is there already."""
    directory = os.path.dirname(path)
    make_directory(directory)
    temporary = temporary_path(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            os.link(temporary, path)  # which, unlike a renaming, never takes the place of another
            os.unlink(temporary)
        else:
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            os.unlink(temporary)
        raise
    sync_directory(directory)


def temporary_path(path: str) -> str:
    """A name beside a file, for its bytes while they are written; `sweep` removes it once this process is gone."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f"{TEMPORARY}{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{name[:64]}")


def make_directory(directory: str) -> None:
    """Make a folder and those above it, each there after a power cut."""
    if not os.path.isdir(directory):
        parent = os.path.dirname(directory)
        make_directory(parent)
        try:
            os.mkdir(directory)
        except FileExistsError:
            return
        sync_directory(parent)


def sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _host() -> str:
    """Which machine this is, for disks that several share: process ids mean something on one machine only."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _alive(temporary: Path) -> bool:
    """Whether the process that is writing this temporary file may still run."""
    try:
        host, process, _ = temporary.name[len(TEMPORARY) :].split("-", 2)
        if host != _host():
            return time.time() - temporary.stat().st_mtime < ABANDONED
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError, FileNotFoundError):
        return False
    except (PermissionError, OverflowError):
        return True
    return not _is_zombie(int(process))


def _is_zombie(process: int) -> bool:
    """Whether it has ended, and only its parent has not asked how; known on Linux alone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return False
