"""Files of published zoos on this machine, each under its sha256: fetched once for all zoos, processes and runs.

`files/` has whole files, `partial/` what is here of others, `pieces/` parts of files under 32 digits of their sha256,
`pointers/` what a name such as manifest.json stood for when it was last asked. Everything may be deleted at any time.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.errors import CorruptError
from catalog.fragments import StoredFile

KINDS = ("files", "partial", "pieces", "pointers")

_sound: dict[str, tuple[int, ...]] = {}  # cached files whose digest this process has checked -> what they were then


@dataclass(frozen=True)
class Entry:
    """A file of the cache; `kind` is one of KINDS, `used` when it was last read or written, in seconds since 1970."""

    kind: str
    path: Path
    size: int
    used: float


def root() -> Path:
    """The folder: `WEIGHTSCAPE_CACHE`, or the platform's cache folder."""
    given = os.environ.get("WEIGHTSCAPE_CACHE")
    if given:
        return Path(given).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("weightscape")


def offline() -> bool:
    """Whether nothing may be asked of other machines: `WEIGHTSCAPE_OFFLINE=1`."""
    return os.environ.get("WEIGHTSCAPE_OFFLINE", "").lower() not in ("", "0", "false", "no")


# --- whole files


def find(sha256: str) -> Path | None:
    """The file with this digest, None when it is not here. Who reads it checks it: see `checked` and `read`."""
    path = _path(sha256)
    return path if path.is_file() else None


def checked(file: StoredFile) -> Path | None:
    """The file, None when it is not here; a damaged one is removed, so that it is fetched anew."""
    path = _path(file.sha256)
    return path if sound(path, file) else None


def sound(path: Path, file: StoredFile) -> bool:
    """Whether a file is there and whole: its size is looked at, its digest once in each process. Else it is removed."""
    try:
        found = os.stat(path)
        if found.st_size == file.size:
            if _sound.get(os.fspath(path)) == _stamp(found):
                return True
            if digest_of(path) == file.sha256:
                _sound[os.fspath(path)] = _stamp(found)
                return True
    except FileNotFoundError:
        return False
    except OSError:
        pass  # as damaged: a disk that cannot read it, a folder in its place
    with contextlib.suppress(OSError):
        path.unlink()
    return False


def trust(path: Path) -> None:
    """A file whose digest was computed while it was written."""
    _sound[os.fspath(path)] = _stamp(os.stat(path))


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def drop(sha256: str) -> None:
    """Remove a file that is not what its name says."""
    with contextlib.suppress(OSError):
        _path(sha256).unlink()


def keep(sha256: str, data: bytes | memoryview) -> None:
    """Put bytes there whose digest the caller has checked. A cache that cannot be written is no error."""
    with contextlib.suppress(OSError):
        _put(_path(sha256), data)


def fetch(fs: Any, path: str, file: StoredFile, where: str, progress: Callable[[int], None] | None = None) -> Path:
    """A whole file in the cache: what is there, or fetched now, by one process for all that want it.

    What a killed process has fetched of it is taken up again. Where the cache cannot be written, the file is in a
    temporary folder that goes with the process.

    Args:
        fs, path: where it lies.
        file: of the manifest.
        where: the zoo, for messages.
        progress: called with the bytes here by now, also those that a former call fetched.

    Raises:
        CorruptError: what came is not what the manifest says, twice.
        MissingDataError: the server does not have it. OfflineError: it may not be asked.
        StorageError: it could not be fetched, or the disk is full.
    """
    found = checked(file)
    if found is None:
        from catalog.download import download

        found = download(fs, path, file, where, _path(file.sha256), root() / "partial" / file.sha256, progress)
    elif progress:
        progress(file.size)
    return found


def read(fs: Any, path: str, file: StoredFile, where: str) -> bytes:
    """All bytes of a file, checked; from the cache or fetched into it. Raises as `fetch`."""
    for _ in range(2):
        found = find(file.sha256) or fetch(fs, path, file, where)
        with contextlib.suppress(OSError):  # removed or not readable: fetched anew
            data = found.read_bytes()
            if len(data) == file.size and hashlib.sha256(data).hexdigest() == file.sha256:
                return data
        drop(file.sha256)
    raise CorruptError(
        f"{file.path} of {where} cannot be kept in {root()}: it reads differently from what was written; check that "
        "disk, or name another folder with WEIGHTSCAPE_CACHE"
    )


def digest_of(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# --- parts of files


def find_piece(digest: str) -> bytes | None:
    """Bytes kept under 32 digits of their sha256, such as a column of a row group; None when they are not here."""
    path = _piece(digest)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data).hexdigest()[:32] == digest:
        return data
    with contextlib.suppress(OSError):
        path.unlink()  # damaged: the caller fetches it anew
    return None


def keep_piece(digest: str, data: bytes | memoryview) -> None:
    """Put bytes there for `find_piece`, which checks them. A cache that cannot be written is no error."""
    with contextlib.suppress(OSError):
        _put(_piece(digest), data)


# --- what may change


def remember(url: str, name: str, data: bytes) -> None:
    """Keep the last state of a file that may change, such as a pointer, for when there is no network."""
    with contextlib.suppress(OSError):
        _put(_pointer(url, name), data)


def recall(url: str, name: str) -> bytes | None:
    """What was last remembered."""
    try:
        return _pointer(url, name).read_bytes()
    except OSError:
        return None


# --- the cache as a whole


def entries() -> Iterator[Entry]:
    """All files of the cache."""
    for kind in KINDS:
        for base, _, names in os.walk(root() / kind):
            for name in names:
                path = Path(base, name)
                with contextlib.suppress(OSError):  # gone meanwhile
                    found = path.lstat()
                    yield Entry(kind, path, found.st_size, max(found.st_atime, found.st_mtime))


def size() -> int:
    """Bytes of all files of the cache."""
    return sum(entry.size for entry in entries())


def clear(older_than: float | None = None) -> tuple[int, int]:
    """Remove all files, or those not used for `older_than` seconds; returns how many, and their bytes.

    What another process is fetching at the moment stays.
    """
    count = freed = 0
    limit = time.time() - older_than if older_than is not None else None
    for entry in list(entries()):
        if limit is not None and entry.used > limit:
            continue
        with contextlib.suppress(OSError):
            if _remove(entry):
                count, freed = count + 1, freed + entry.size
    return count, freed


def _remove(entry: Entry) -> bool:
    from catalog.download import remove_unclaimed

    if entry.kind == "partial":
        return remove_unclaimed(entry.path)
    entry.path.unlink()
    return True


def _put(path: Path, data: bytes | memoryview) -> None:
    """Write a file that is absent or whole for other processes; not synced, since readers check its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{uuid.uuid4().hex[:12]}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _path(sha256: str) -> Path:
    return root() / "files" / sha256[:2] / sha256


def _piece(digest: str) -> Path:
    return root() / "pieces" / digest[:2] / digest


def _pointer(url: str, name: str) -> Path:
    return root() / "pointers" / hashlib.sha256(f"{url}\n{name}".encode()).hexdigest()


@functools.cache
def private_root(process: int) -> Path:
    """A folder of this process alone, for when the cache cannot be written; removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="weightscape-"))

    def remove() -> None:
        if os.getpid() == process:  # not in a child that was forked
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
