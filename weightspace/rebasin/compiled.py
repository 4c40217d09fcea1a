"""Weight matching by compiled code, for the symmetries that it knows: groups in no other, at most two in a block."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from kernels.matching.match import Matched, match
from kernels.matching.problem import Block as Part
from kernels.matching.problem import Problem
from weightspace.rebasin.descent import RELATIVE, SWEEPS
from weightspace.symmetry import Block, Permutations, Symmetry


def fits(symmetry: Symmetry) -> bool:
    """Whether compiled code takes this symmetry."""
    nested = any(group.parent is not None for group in symmetry.groups.values())
    return not nested and all(len(set(b.groups)) == len(b.groups) <= 2 for b in symmetry.blocks)


def descend_compiled(
    symmetry: Symmetry,
    weights: Tensor,
    reference: Tensor,
    start: Permutations,
    *,
    names: Sequence[str],
    seed: int = 0,
    sweeps: int = SWEEPS,
    deadline: float | None = None,
    threads: int | None = None,
) -> tuple[dict[str, np.ndarray], Matched]:
    """What `weightspace.rebasin.descent.descend` finds, up to ties, of float32 on a CPU; all threads for None."""
    groups = list(symmetry.moving)
    found = match(
        reference.numpy(),
        weights.numpy(),
        problem_of(symmetry),
        start=[start[name] for name in groups],
        movable=[name in names for name in groups],
        seed=seed,
        sweeps=sweeps,
        tolerance=RELATIVE,
        threads=threads or _cores(),
        deadline=None if deadline is None else max(0.0, deadline - time.monotonic()),
    )
    return dict(zip(groups, found.permutations, strict=True)), found


@functools.lru_cache(maxsize=16)
def problem_of(symmetry: Symmetry) -> Problem:
    """Groups and blocks as compiled code takes them; the groups in the order of `symmetry.moving`."""
    number = {name: index for index, name in enumerate(symmetry.moving)}
    sizes = tuple(group.size for group in symmetry.moving.values())
    return Problem(sizes, tuple(_part(block, number) for block in symmetry.blocks if block.tensor in symmetry.axes))


def _part(block: Block, number: dict[str, int]) -> Part:
    inner = np.zeros(1, np.int64)
    ends: list[tuple[int, int, int]] = []
    for name, size, stride in block.dims:
        if name is None:
            inner = (inner[:, None] + np.arange(size, dtype=np.int64) * stride).ravel()
        else:
            ends.append((number[name], size, stride))
    first, second = (*ends, (-1, 1, 0), (-1, 1, 0))[:2]
    return Part(block.offset, *first, *second, inner)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
