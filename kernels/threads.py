"""Compiled code on several threads: it holds no lock of the interpreter, so plain threads will do."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def cores() -> int:
    """Threads where nobody says how many: what OMP_NUM_THREADS says, else the cores that this process may use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parts(work: Callable[[slice], None], items: int, threads: int) -> None:
    """Calls `work` for as many consecutive parts of the items as there are threads, at once."""
    ends = [number * items // threads for number in range(threads + 1)]
    parts = [slice(a, b) for a, b in itertools.pairwise(ends) if b > a]
    if len(parts) < 2:
        for one in parts:
            work(one)
        return
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(work, parts))
