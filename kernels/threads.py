"""Work on a population in threads: compiled code and scipy release the interpreter's lock. Imports no torch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def cores() -> int:
    """Threads to use where nobody says: what OMP_NUM_THREADS says, else the cores that this process may use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parts(work: Callable[[slice], None], count: int, threads: int) -> None:
    """Run `work` on contiguous parts of `count` items, one thread each."""
    threads = max(1, min(threads, count))
    ends = [number * count // threads for number in range(threads + 1)]
    parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
    if threads == 1:
        work(parts[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, parts))


def in_turns(work: Callable[[int], None], count: int, threads: int) -> None:
    """Run `work` on each of `count` items; a thread takes the next one when it has done the last."""
    if threads <= 1 or count <= 1:
        for number in range(count):
            work(number)
        return
    with ThreadPoolExecutor(min(threads, count)) as pool:
        list(pool.map(work, range(count)))
