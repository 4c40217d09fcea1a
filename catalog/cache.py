"""Files of published zoos on this machine, each under its sha256: fetched once for all zoos, processes and runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

from catalog.errors import CorruptError
from catalog.fragments import StoredFile


def root() -> Path:
    """The folder: `WEIGHTSCAPE_CACHE`, or the platform's cache folder."""
    from platformdirs import user_cache_path

    given = os.environ.get("WEIGHTSCAPE_CACHE")
    return Path(given).expanduser() if given else user_cache_path("weightscape")


def offline() -> bool:
    """Whether nothing may be asked of other machines: `WEIGHTSCAPE_OFFLINE=1`."""
    return os.environ.get("WEIGHTSCAPE_OFFLINE", "").lower() not in ("", "0", "false", "no")


def find(sha256: str) -> Path | None:
    """The file with this digest, None when it is not here."""
    path = _path(sha256)
    return path if path.is_file() else None


def keep(sha256: str, data: bytes | memoryview) -> None:
    """Put bytes there whose digest the caller has checked. A cache that cannot be written is no error."""
    from catalog.folder import write_durably

    try:
        write_durably(os.fspath(_path(sha256)), data)
    except OSError:
        return


def fetch(fs: Any, path: str, file: StoredFile, where: str) -> Path:
    """A whole file in the cache: what is there, or fetched now.

    Raises:
        CorruptError: what came is not what the manifest says. StorageError: it could not be fetched.
    """
    found = find(file.sha256)
    if found is None:
        data = fs.cat_file(path)
        if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
            raise CorruptError(f"{file.path} of {where} is not what its manifest says; it was changed or damaged there")
        keep(file.sha256, data)
    return _path(file.sha256)


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


def remember(url: str, name: str, data: bytes) -> None:
    """Keep the last state of a file that may change, such as a pointer, for when there is no network."""
    from catalog.folder import write_durably

    try:
        write_durably(os.fspath(_pointer(url, name)), data)
    except OSError:
        return


def recall(url: str, name: str) -> bytes | None:
    """What was last remembered."""
    try:
        return _pointer(url, name).read_bytes()
    except OSError:
        return None


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


def _piece(digest: str) -> Path:
    return root() / "pieces" / digest[:2] / digest


def _path(sha256: str) -> Path:
    return root() / "files" / sha256[:2] / sha256


def _pointer(url: str, name: str) -> Path:
    return root() / "pointers" / hashlib.sha256(f"{url}\n{name}".encode()).hexdigest()
