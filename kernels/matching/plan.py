"""Where everything lies that compiled weight matching works in."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from kernels.assignment.paths import rooms as assignment_rooms
from kernels.learning import aligned
from kernels.matching.problem import Problem
from kernels.matching.steps import (
    CONSTANT,
    COST,
    FIRST,
    GROUP,
    INNER,
    LAST,
    MODEL,
    OTHERS,
    PANELS,
    PRICES,
    ROW,
    STRIDE,
    UNITS,
    USED,
    N,
)  # fmt: skip
from kernels.matching.tiles import TERMS
from kernels.mlp.tiles import ROWS, lanes, padded

LINE = 16  # numbers: what begins at a multiple of it begins at a register


@dataclass(frozen=True, eq=False)
class Plan:
    """A problem as arrays of integers, whose columns are named in `kernels.matching.steps`.

    Args:
        movable: numbers of the groups that may move. ends: where the groups end in permutations, but for the last.
        numbers: of the room. terms: most of one sum. used: units that costs were computed for, of all tables.
        work: multiply-adds of the costs of one model, about.
    """

    groups: np.ndarray
    tables: np.ndarray
    blocks: np.ndarray
    inner: np.ndarray
    movable: np.ndarray
    ends: np.ndarray
    numbers: int
    terms: int
    used: int
    work: int

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of(cls, problem: Problem, movable: tuple[bool, ...] | None = None) -> Plan:
        """The plan for a problem where some groups, None for all, may move."""
        moves = movable or (True,) * len(problem.sizes)
        inner0 = np.cumsum([0, *(len(block.inner) for block in problem.blocks)])
        blocks = np.array(
            [
                (b.offset, b.a, b.size_a, b.stride_a, b.b, b.size_b, b.stride_b, len(b.inner), first)
                for b, first in zip(problem.blocks, inner0[:-1], strict=True)
            ],
            np.int64,
        ).reshape(-1, 9)
        sides = [
            side
            for b, first in zip(problem.blocks, inner0[:-1].tolist(), strict=True)
            for side in (
                (b.a, b.b, b.size_b, len(b.inner), first, b.offset, b.stride_a, b.stride_b),
                (b.b, b.a, b.size_a, len(b.inner), first, b.offset, b.stride_b, b.stride_a),
            )
            if side[0] >= 0 and moves[side[0]]
        ]
        tables = np.zeros((len(sides), USED + 1), np.int64)
        tables[:, : ROW + 1] = np.array(sorted(sides), np.int64).reshape(-1, ROW + 1)
        units = np.cumsum([0, *problem.sizes])
        groups = np.zeros((len(problem.sizes), LAST + 1), np.int64)
        numbers = -(-max([padded(n, np.float32) for n in problem.sizes], default=0) // LINE) * LINE  # a row of zeros
        used, work = 0, 0

        def room(count: int) -> int:
            nonlocal numbers
            begin, numbers = numbers, numbers + -(-count // LINE) * LINE
            return begin

        for g, n in enumerate(problem.sizes):
            stride, mine = padded(n, np.float32), np.flatnonzero(tables[:, GROUP] == g)
            groups[g, [N, STRIDE, UNITS]] = n, stride, units[g]
            if not moves[g]:
                continue
            rows = -(-n // ROWS) * ROWS
            groups[g, [COST, CONSTANT, PRICES]] = room(rows * stride), room(rows * stride), room(stride)
            groups[g, [FIRST, LAST]] = (mine[0], mine[-1] + 1) if len(mine) else (0, 0)
            for t in mine:
                terms = int(tables[t, OTHERS] * tables[t, INNER])
                tables[t, [MODEL, PANELS, USED]] = room(terms * stride), room(terms * rows), used
                used += int(tables[t, OTHERS])
                work += terms * n * n
        return cls(
            groups, tables, blocks, np.concatenate([*(block.inner for block in problem.blocks), np.zeros(0, np.int64)]),
            np.flatnonzero(moves), units[1:-1], numbers,
            int((tables[:, OTHERS] * tables[:, INNER]).max(initial=1)), used, work + 1,
        )  # fmt: skip

    def identity(self, models: int) -> np.ndarray:
        """(models, units of all groups) int32."""
        row = np.concatenate([np.arange(n, dtype=np.int32) for n in self.groups[:, N]])
        return np.tile(row, (models, 1))

    def rooms(self) -> tuple[np.ndarray, ...]:
        """What one thread works in: ready, room, packed, terms, used, since, norms, columns, those of an assignment."""
        widest = int(self.groups[:, N].max())
        return (
            np.zeros(1, np.int64), aligned(self.numbers, np.float32),
            aligned(TERMS * 2 * lanes(np.float32), np.float32), np.empty((3, self.terms), np.int64),
            np.empty(max(self.used, 1), np.int64), np.empty(len(self.groups), np.int64),
            np.empty(2 * len(self.groups)), np.empty(widest, np.int32), *assignment_rooms(widest, np.float32),
        )  # fmt: skip
