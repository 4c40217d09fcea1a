"""Processes that are started once and then work in step, so that a measurement on two cores holds no start-up."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from threading import BrokenBarrierError
from typing import Any

import torch

import zoo  # noqa: F401  # sets a variable for MKL, which `plain` takes away

PATIENCE = 600.0  # seconds that a process waits for the others: they only have to start
_barrier: Any = None


class Team:
    """Processes with torch in them; a context manager that ends them.

    Args:
        size: how many. threads: of torch in each; None leaves what PyTorch chooses, which is one a core.
        plain: torch as whoever never imported `zoo` has it, without the setting of MKL that `zoo/__init__.py` makes.
    """

    def __init__(self, size: int, threads: int | None = 1, plain: bool = False) -> None:
        self.size = size
        context = multiprocessing.get_context("spawn")
        start = (context.Barrier(size), threads, plain)
        self.pool = ProcessPoolExecutor(size, mp_context=context, initializer=_start, initargs=start)

    def each(self, function: Callable[..., Any], parts: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call `function(*part)` in every process at once, a part each; the results in order."""
        if len(parts) != self.size:
            raise ValueError(f"a team of {self.size} takes {self.size} parts, got {len(parts)}")
        calls = [self.pool.submit(_together, function, part) for part in parts]
        return [call.result() for call in calls]

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(barrier: Any, threads: int | None, plain: bool) -> None:
    global _barrier
    _barrier = barrier
    if plain:  # `zoo` sets it when it is imported, which is now; MKL looks at the first product of matrices
        os.environ.pop("MKL_CBWR", None)
    if threads is not None:
        torch.set_num_threads(threads)


def _together(function: Callable[..., Any], part: tuple[Any, ...]) -> Any:
    try:
        _barrier.wait(PATIENCE)
    except BrokenBarrierError as error:
        raise RuntimeError(f"not all processes of the team started within {PATIENCE:.0f} s") from error
    return function(*part)
