"""Overlap of error bits in compiled code: counts of 64 bits at a time, a tile of networks that stays in the caches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kernels.lanes.registers import ones
from kernels.programs import Program, sources
from kernels.threads import cores, in_parts

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
compiled = njit(**OPTIONS)
PART = 1 << 19  # words to compare that a thread is worth


@compiled
def _count(row: np.ndarray) -> int:
    total: Any = 0
    for word in range(len(row)):
        total += np.int64(ones(row[word]))
    return total


@compiled
def _overlaps(row: np.ndarray, errors: int, columns: np.ndarray, counts: np.ndarray, both: np.ndarray) -> None:
    """Of one model with all, whose words are in columns (words, N), into both (N,) float32; 0 where neither errs."""
    shared = np.zeros(len(counts), np.int32)
    for word in range(len(row)):
        mine, theirs = row[word], columns[word]
        for other in range(np.uint64(len(shared))):
            shared[other] += np.int32(ones(mine & theirs[other]))
    for other in range(np.uint64(len(shared))):
        either = np.int32(errors) + counts[other] - shared[other]
        both[other] = np.float32(shared[other]) / np.float32(max(either, np.int32(1)))


def _all_pairs(digest: str) -> Any:
    """The compiled program. `digest` is part of what its cache is found by: numba looks at this file only."""

    def all_pairs(rows: np.ndarray, columns: np.ndarray, counts: np.ndarray, out: np.ndarray) -> None:
        """Into out (M, N) from rows (M, words), columns (words, N) uint64 and counts (N,) int32."""
        digest  # noqa: B018  # makes it a part of the function
        for model in range(len(rows)):
            _overlaps(rows[model], _count(rows[model]), columns, counts, out[model])

    return all_pairs


def _largest(digest: str) -> Any:
    """The compiled program, as above."""

    def largest(
        rows: np.ndarray, columns: np.ndarray, counts: np.ndarray, groups_a: np.ndarray, groups_b: np.ndarray,
        best: np.ndarray, index: np.ndarray,
    ) -> None:  # fmt: skip
        """Into best and index (M,); groups are empty, or of each model."""
        digest  # noqa: B018  # makes it a part of the function
        both = np.empty(len(counts), np.float32)
        for model in range(len(rows)):
            _overlaps(rows[model], _count(rows[model]), columns, counts, both)
            if len(groups_a):
                for other in range(len(both)):
                    if groups_b[other] == groups_a[model]:
                        both[other] = -1
            most = np.float32(-1)
            for other in range(len(both)):
                most = max(most, both[other])
            if most >= 0:
                best[model] = most
                for other in range(len(both)):
                    if both[other] == most:
                        index[model] = other
                        break

    return largest


ALL_PAIRS, LARGEST = (
    Program(make, sources("overlap/compiled.py", "lanes/registers.py"), OPTIONS) for make in (_all_pairs, _largest)
)


def overlap_compiled(a: np.ndarray, b: np.ndarray, threads: int | None = None) -> np.ndarray:
    """(M, N) float32 of error bits (M, bytes) and (N, bytes); threads: None for as many as there are cores."""
    out = np.zeros((len(a), len(b)), np.float32)
    if not out.size:
        return out
    rows, (columns, counts) = words(a), _columns(b)
    in_parts(lambda part: ALL_PAIRS(rows[part], columns, counts, out[part]), len(a), _threads(rows, columns, threads))
    return out


def largest_compiled(
    a: np.ndarray,
    b: np.ndarray,
    groups_a: np.ndarray | None = None,
    groups_b: np.ndarray | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Largest overlaps (M,) float32 and whose they are, (M,) int64, 0 and -1 where nobody is left."""
    best, index = np.zeros(len(a), np.float32), np.full(len(a), -1)
    if not (len(a) and len(b)):
        return best, index
    rows, (columns, counts) = words(a), _columns(b)
    none = np.zeros(0, np.int64)
    mine, theirs = (none if one is None else np.array(one, np.int64) for one in (groups_a, groups_b))

    def work(part: slice) -> None:
        here = mine[part] if len(mine) else mine
        LARGEST(rows[part], columns, counts, here, theirs, best[part], index[part])

    in_parts(work, len(a), _threads(rows, columns, threads))
    return best, index


def words(bits: np.ndarray) -> np.ndarray:
    """(models, words) uint64 of (models, bytes), zeros behind."""
    padded = np.zeros((len(bits), max(1, -(-bits.shape[1] // 8)) * 8), np.uint8)
    padded[:, : bits.shape[1]] = bits
    return padded.view(np.uint64)


def _columns(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(words, models), so that a loop over models reads one word of each in turn; and what each has, (models,)."""
    here = words(bits)
    return np.ascontiguousarray(here.T), np.bitwise_count(here).sum(1, dtype=np.int32)


def _threads(rows: np.ndarray, columns: np.ndarray, threads: int | None) -> int:
    return min(threads or cores(), -(-rows.size * columns.shape[1] // PART))
