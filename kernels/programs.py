"""Compiled programs: kept in numba's cache from process to process, and the first call says what compiling costs."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from numba import njit

LOG = logging.getLogger(__name__)
HERE = Path(__file__).parent


def sources(*patterns: str) -> list[Path]:
    """Files of this package whose names match, `mlp/*.py` say."""
    return [path for pattern in patterns for path in HERE.glob(pattern)]


class Program:
    """A function for numba, compiled when it is first called with arguments of some types.

    Args:
        make: from a digest of sources to the function; the function must use the digest, so that numba's cache, which
            looks at one file only, finds what these sources say and nothing older.
        sources: the files whose code goes into the program.
        options: of `numba.njit`.

    The cache lies beside the file of the function, or in the user's cache folder; set NUMBA_CACHE_DIR for another. A
    read-only installation without any compiles in each process.
    """

    def __init__(
        self, make: Callable[[str], Callable[..., Any]], sources: Iterable[Path], options: dict[str, Any]
    ) -> None:
        self.make, self.sources, self.options = make, sorted(sources), options
        self.dispatcher: Any = None

    def compile(self, cached: bool = True) -> Any:
        """The dispatcher. It compiles when called."""
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in self.sources)).hexdigest()
        try:
            return njit(cache=cached, **self.options)(self.make(digest))
        except RuntimeError:  # no folder to keep it in
            return njit(**self.options)(self.make(digest))

    def __call__(self, *arguments: Any) -> Any:
        """The function's result. A call that had to compile says in the log how long that took."""
        if self.dispatcher is None:
            self.dispatcher = self.compile()
        known, begin = len(self.dispatcher.overloads), time.perf_counter()
        try:
            result = self.dispatcher(*arguments)
        except OSError:  # the cache cannot be written, a full disk, say, which shows before it begins: it is compiled
            result = self.dispatcher(*arguments)
        if len(self.dispatcher.overloads) > known:
            self._report(time.perf_counter() - begin)
        return result

    def _report(self, seconds: float) -> None:
        stats = self.dispatcher.stats
        if sum(stats.cache_misses.values()):
            kept = "kept for other processes" if stats.cache_path else "kept by no cache, each process compiles anew"
            LOG.info("%s: first call %.1f s, most of it compiling; %s", self.dispatcher.__name__, seconds, kept)
