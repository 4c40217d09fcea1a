"""The steps of weight matching of one model, for numba: copies in the order of the sums, costs, gains."""

from __future__ import annotations

import numpy as np

from kernels.learning import part
from kernels.matching.tiles import add_products
from kernels.mlp.tiles import ROWS, compiled

# Columns of `groups`: units, row of costs, where costs, constant costs and prices begin in the room, where its units
# begin in permutations, and its tables.
N, STRIDE, COST, CONSTANT, PRICES, UNITS, FIRST, LAST = range(8)
# Columns of `tables`, one for each side of a block: its group, the other group or -1 and its units, entries of each
# pair and where their offsets begin; in the flat vector the first element and the distances of units and of the
# other's; where the model's rows and the reference's panels begin in the room, and what `used` has of the other group.
GROUP, OTHER, OTHERS, INNER, INNER0, OFFSET, UNIT, ROW, MODEL, PANELS, USED = range(11)
# Columns of `blocks`: as in `kernels.matching.problem.Block`.
START, A, SIZE_A, STRIDE_A, B, SIZE_B, STRIDE_B, COUNT, COUNT0 = range(9)
STRIP = 16  # units whose elements are copied together: a cache line of each
MOST = 0.45  # of the rows changed: from here on costs are computed anew
UPDATES = 16  # of the same costs, one after the other, before they are computed anew: each adds a rounding error
ROUNDING = 4e-6  # of norms: differences of float32 costs below that are computed in float64


@compiled
def copy_reference(
    groups: np.ndarray, tables: np.ndarray, inner: np.ndarray, flat: np.ndarray, factor: float, room: np.ndarray,
    norms: np.ndarray,
) -> None:  # fmt: skip
    """Panels of ROWS units of the reference, negative, as costs are minimised; `norms`: a group's largest, squared."""
    for g in range(len(groups)):
        norms[g] = 0
        for p in range(0, groups[g, N], ROWS):
            squares = np.zeros(ROWS)
            for t in range(groups[g, FIRST], groups[g, LAST]):
                to = tables[t, PANELS] + p * tables[t, OTHERS] * tables[t, INNER]
                for r in range(tables[t, OTHERS]):
                    for s in range(tables[t, INNER]):
                        at = tables[t, OFFSET] + r * tables[t, ROW] + inner[tables[t, INNER0] + s]
                        for q in range(ROWS):
                            value = np.float32(0)
                            if p + q < groups[g, N]:
                                value = -(flat[at + (p + q) * tables[t, UNIT]] * factor)
                            room[to + q] = value
                            squares[q] += np.float64(value) * value
                        to += ROWS
            norms[g] = max(norms[g], squares.max())


@compiled
def copy_model(
    groups: np.ndarray, tables: np.ndarray, inner: np.ndarray, flat: np.ndarray, factor: float, room: np.ndarray
) -> None:
    """Rows of a model's units; prices become half their squared norms, negative: costs are then squared distances."""
    for t in range(len(tables)):
        g, unit = tables[t, GROUP], tables[t, UNIT]
        n, stride = groups[g, N], groups[g, STRIDE]
        for j in range(0, n, STRIP):
            strip = min(STRIP, n - j)
            prices = part(room, groups[g, PRICES] + j, strip)
            if t == groups[g, FIRST]:
                prices[:] = 0
            to = tables[t, MODEL] + j
            for r in range(tables[t, OTHERS]):
                for s in range(tables[t, INNER]):
                    at = tables[t, OFFSET] + r * tables[t, ROW] + inner[tables[t, INNER0] + s] + j * unit
                    row = part(room, to, strip)
                    for q in range(strip):
                        value = flat[at + q * unit] * factor
                        row[q] = value
                        prices[q] -= np.float32(0.5) * value * value
                    to += stride


@compiled
def constant_costs(
    groups: np.ndarray, tables: np.ndarray, g: int, room: np.ndarray, at: np.ndarray, new: np.ndarray,
    old: np.ndarray, packed: np.ndarray,
) -> None:  # fmt: skip
    """Costs of what no other group moves, infinite beyond the last unit, and a copy of them."""
    n, stride, cost = groups[g, N], groups[g, STRIDE], groups[g, COST]
    for i in range(-(-n // ROWS) * ROWS):
        row = part(room, cost + i * stride, stride)
        row[:n] = 0
        row[n:] = np.inf
    for t in range(groups[g, FIRST], groups[g, LAST]):
        if tables[t, OTHER] < 0:
            for s in range(tables[t, INNER]):
                at[s], new[s], old[s] = s, tables[t, MODEL] + s * stride, 0
            terms = tables[t, INNER]
            add_products(room, cost, stride, n, tables[t, PANELS], terms, terms, at, new, old, packed)
    whole = n * stride
    part(room, groups[g, CONSTANT], whole)[:] = part(room, cost, whole)


@compiled
def renew_costs(
    groups: np.ndarray, tables: np.ndarray, g: int, permutation: np.ndarray, used: np.ndarray, since: int,
    room: np.ndarray, at: np.ndarray, new: np.ndarray, old: np.ndarray, packed: np.ndarray,
) -> int:  # fmt: skip
    """Brings costs up to date; how many updates they have now gone through, -1 where nothing had changed.

    Args:
        permutation: of all groups. used: of the other groups, as the costs were computed. since: updates so far, -1
            where `used` holds nothing yet and costs are the constant ones.
    """
    n, stride, cost = groups[g, N], groups[g, STRIDE], groups[g, COST]
    changed, rows = 0, 0
    for t in range(groups[g, FIRST], groups[g, LAST]):
        if tables[t, OTHER] >= 0:
            mine = part(used, tables[t, USED], tables[t, OTHERS])
            theirs = part(permutation, groups[tables[t, OTHER], UNITS], tables[t, OTHERS])
            for r in range(tables[t, OTHERS]):
                changed += tables[t, INNER] if mine[r] != theirs[r] else 0
            rows += tables[t, OTHERS] * tables[t, INNER]
    if since >= 0 and changed == 0:
        return -1
    anew = since < 0 or since >= UPDATES or changed > MOST * rows
    if anew and since >= 0:
        part(room, cost, n * stride)[:] = part(room, groups[g, CONSTANT], n * stride)
    for t in range(groups[g, FIRST], groups[g, LAST]):
        if tables[t, OTHER] >= 0:
            mine = part(used, tables[t, USED], tables[t, OTHERS])
            theirs = part(permutation, groups[tables[t, OTHER], UNITS], tables[t, OTHERS])
            count, terms = tables[t, INNER], 0
            for r in range(tables[t, OTHERS]):
                if anew or mine[r] != theirs[r]:
                    for s in range(count):
                        at[terms] = r * count + s
                        new[terms] = tables[t, MODEL] + (theirs[r] * count + s) * stride
                        old[terms] = 0 if anew else tables[t, MODEL] + (mine[r] * count + s) * stride
                        terms += 1
                    mine[r] = theirs[r]
            whole = tables[t, OTHERS] * count
            add_products(room, cost, stride, n, tables[t, PANELS], whole, terms, at, new, old, packed)
    return 0 if anew else since + 1


@compiled
def gain(
    groups: np.ndarray, tables: np.ndarray, g: int, permutation: np.ndarray, columns: np.ndarray, norm: float,
    room: np.ndarray,
) -> float:  # fmt: skip
    """What the objective gains by `columns`: from the costs, and in float64 where that may be their rounding."""
    n, stride, cost = groups[g, N], groups[g, STRIDE], groups[g, COST]
    mine = part(permutation, groups[g, UNITS], n)
    total, moved = 0.0, 0
    for i in range(n):
        if columns[i] != mine[i]:
            row = part(room, cost + i * stride, n)
            total += np.float64(row[mine[i]]) - row[columns[i]]
            moved += 1
    if moved == 0 or abs(total) > ROUNDING * moved * norm:
        return total
    total = 0.0
    for t in range(groups[g, FIRST], groups[g, LAST]):
        count, other = tables[t, INNER], tables[t, OTHER]
        whole = tables[t, OTHERS] * count
        for i in range(n):
            if columns[i] != mine[i]:
                panel = part(room, tables[t, PANELS] + i // ROWS * ROWS * whole + i % ROWS, ROWS * whole - i % ROWS)
                for r in range(tables[t, OTHERS]):
                    theirs = permutation[groups[other, UNITS] + r] if other >= 0 else 0
                    for s in range(count):
                        row = part(room, tables[t, MODEL] + (theirs * count + s) * stride, n)
                        total += np.float64(panel[(r * count + s) * ROWS]) * (
                            np.float64(row[mine[i]]) - np.float64(row[columns[i]])
                        )
    return total


@compiled
def _product(reference: np.ndarray, left: int, flat: np.ndarray, right: int) -> float:
    """Of two elements; unsigned places spare numba's test for negative ones."""
    return np.float64(reference[np.uintp(left)]) * np.float64(flat[np.uintp(right)])


@compiled
def objective(
    groups: np.ndarray, blocks: np.ndarray, inner: np.ndarray, reference: np.ndarray, flat: np.ndarray,
    permutation: np.ndarray,
) -> float:  # fmt: skip
    """Inner product of the reference and the permuted model, in float64."""
    total = 0.0
    for number in range(len(blocks)):
        block = blocks[number]
        step, offsets = block[STRIDE_B], part(inner, block[COUNT0], block[COUNT])
        theirs = part(permutation, groups[max(block[B], 0), UNITS], block[SIZE_B])
        for i in range(block[SIZE_A]):
            j = permutation[groups[block[A], UNITS] + i] if block[A] >= 0 else 0
            left, right = block[START] + i * block[STRIDE_A], block[START] + j * block[STRIDE_A]
            a, b, c, d = 0.0, 0.0, 0.0, 0.0  # a sum each, as one addition waits for the one before
            if block[B] < 0:
                whole = len(offsets) // 4 * 4
                for s in range(0, whole, 4):
                    a += _product(reference, left + offsets[s], flat, right + offsets[s])
                    b += _product(reference, left + offsets[s + 1], flat, right + offsets[s + 1])
                    c += _product(reference, left + offsets[s + 2], flat, right + offsets[s + 2])
                    d += _product(reference, left + offsets[s + 3], flat, right + offsets[s + 3])
                for s in range(whole, len(offsets)):
                    a += _product(reference, left + offsets[s], flat, right + offsets[s])
            else:
                whole = len(theirs) // 4 * 4
                for s in offsets:
                    for k in range(0, whole, 4):
                        at = left + s + k * step
                        a += _product(reference, at, flat, right + s + theirs[k] * step)
                        b += _product(reference, at + step, flat, right + s + theirs[k + 1] * step)
                        c += _product(reference, at + 2 * step, flat, right + s + theirs[k + 2] * step)
                        d += _product(reference, at + 3 * step, flat, right + s + theirs[k + 3] * step)
                    for k in range(whole, len(theirs)):
                        a += _product(reference, left + s + k * step, flat, right + s + theirs[k] * step)
            total += (a + b) + (c + d)
    return total
