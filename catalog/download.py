"""A whole file from far away: resumed after a kill, fetched by one process for all, checked before it has its name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from catalog import cache
from catalog.errors import CorruptError, MissingDataError, NoRangesError, StorageError, ZooError
from catalog.folder import online, storage_error
from catalog.fragments import StoredFile
from catalog.retry import again

PIECE = 8 << 20  # bytes of a request
TOGETHER = 4  # requests of one file under way: what a kill may lose
REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)
UNLOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTSUP)  # some cluster file systems
Progress = Callable[[int], None] | None


def download(
    fs: Any, path: str, file: StoredFile, where: str, final: Path, started: Path, progress: Progress = None
) -> Path:
    """Fetch a file to `final`, through `started`, which keeps what is here of it; raises as `catalog.cache.fetch`."""
    online(where)
    try:
        for folder in (final.parent, started.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with _claimed(started, final, file) as claim:
            if claim is not None:
                _fill(fs, path, file, where, claim[0], progress)
                os.replace(claim[1], final)
                cache.trust(final)
        return final
    except OSError as error:
        if isinstance(error, ZooError):
            raise
        private = cache.private_root(os.getpid())
        if error.errno not in REFUSALS or final.is_relative_to(private):
            raise _not_kept(error, file, where, final) from error
    return download(fs, path, file, where, private / file.sha256, private / f"{file.sha256}.partial", progress)


@contextlib.contextmanager
def _claimed(started: Path, final: Path, file: StoredFile) -> Iterator[tuple[int, Path] | None]:
    """The partial file, open and ours until this ends or the process dies; None when the final one is there by now."""
    while not cache.sound(final, file):
        descriptor = os.open(started, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in UNLOCKABLE:
                    raise
                started = started.with_name(f"{started.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
                os.close(descriptor)
                descriptor = os.open(started, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            if _is_at(descriptor, started):  # else another one finished or threw away what we waited for
                if not cache.sound(final, file):
                    yield descriptor, started
                    return
                os.unlink(started)
        finally:
            os.close(descriptor)
    yield None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def remove_unclaimed(started: Path) -> bool:
    """Remove a partial file unless somebody is fetching it; whether it was removed."""
    descriptor = os.open(started, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(started)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _fill(fs: Any, path: str, file: StoredFile, where: str, descriptor: int, progress: Progress) -> None:
    """Complete a partial file, and compare its digest; once more from the beginning when that is wrong."""
    for _ in range(2):
        digest, here = _resumed(descriptor, file.size)
        for data in _pieces(fs, path, file, where, here):
            if data is None:  # no ranges: the whole file comes
                digest, here = hashlib.sha256(), 0
                os.ftruncate(descriptor, 0)
                continue
            digest.update(data)
            _write(descriptor, data, here)
            here += len(data)
            if progress:
                progress(here)
        if here == file.size and digest.hexdigest() == file.sha256:
            os.fsync(descriptor)
            return
        os.ftruncate(descriptor, 0)
    raise CorruptError(
        f"{file.path} of {where} is not what its manifest says: it was changed or damaged there; ask who published it"
    )


def _resumed(descriptor: int, size: int) -> tuple[Any, int]:
    """Digest and length of what is here by now."""
    digest, here = hashlib.sha256(), 0
    if os.fstat(descriptor).st_size > size:
        os.ftruncate(descriptor, 0)
    while data := os.pread(descriptor, 1 << 20, here):
        digest.update(data)
        here += len(data)
    return digest, here


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _pieces(fs: Any, path: str, file: StoredFile, where: str, here: int) -> Iterator[bytes | None]:
    """The bytes behind `here` in order, some requests ahead; after None they are all bytes of the file."""
    starts = range(here, file.size, PIECE)
    web = "http" in fs.protocol
    if web and here == 0 and len(starts) == 1:  # also from a server without ranges
        yield _asked(partial(fs.cat_file, path, limit=file.size), file, where)
        return
    pool = ThreadPoolExecutor(min(TOGETHER, max(len(starts), 1)))
    ahead: deque[Future[bytes]] = deque()
    try:
        for start in starts:
            stop = min(start + PIECE, file.size)
            ahead.append(pool.submit(_asked, partial(fs.cat_file, path, start=start, end=stop), file, where))
            if len(ahead) == TOGETHER:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except NoRangesError:
        yield None
        yield _asked(partial(fs.cat_file, path, limit=file.size), file, where)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _asked(call: Callable[[], bytes], file: StoredFile, where: str) -> bytes:
    """What a filesystem gives, its errors as ours."""
    try:
        return again(call)
    except ZooError:
        raise
    except FileNotFoundError as error:
        raise MissingDataError(
            f"{file.path} of {where} is in its manifest and not there; it was removed: ask who published it"
        ) from error
    except Exception as error:
        raise storage_error(error, f"fetching {file.path} of {where}") from error


def _not_kept(error: OSError, file: StoredFile, where: str, final: Path) -> StorageError:
    wrapped = StorageError(
        f"keeping {file.path} ({file.size:,} bytes) of {where} in {final.parent}: {error.strerror or error}; free "
        "space there (`weightscape cache clear`) or name another folder with WEIGHTSCAPE_CACHE, and run it again"
    )
    wrapped.errno = error.errno
    return wrapped
