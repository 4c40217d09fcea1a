"""Euclidean distances between weight vectors: all pairs, or the nearest of each, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from kernels.arrays import labels_of, like, parts, tensor_of
from kernels.distance.gram import (
    ROUNDING,
    ROWS,
    centre_of,
    exact,
    finite_rows,
    fits_float32,
    squared,
    torch_threads,
)

IMPLEMENTATIONS = ("reference", "gram")
# Pairs nearer than this share of |x|^2 + |y|^2 are taken by their differences, so that distances are right to 1e-6.
NEAR = {torch.float32: 2.0**-3, torch.float64: 2.0**-20}
TINY = 1e-28  # of |x|^2 + |y|^2: products of such vectors may be too small for float32
MANY = 16  # where more than one pair in so many is near, float64 products are cheaper than differences
Array = TypeVar("Array", np.ndarray, Tensor)


def pairwise_distance(a: Array, b: Array, *, impl: str | None = None, threads: int | None = None) -> Array:
    """All distances, (M, N) float64, right to 1e-6 of each: exactly 0 for an exact copy.

    Args:
        a: (M, size), b: (N, size), of any float type, numpy or torch, on one device.
        impl: "reference" (differences, in float64) or "gram" (matrix products); None for "gram".
        threads: of torch; None for as many as it uses.

    Returns:
        (M, N), of the library of `a`; NaN where one of the two holds a number that is not finite.

    Raises:
        ValueError: shapes or an `impl` that do not fit.
    """
    if impl not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)} or None, got {impl!r}")
    x, y = _checked(tensor_of(a), tensor_of(b))
    out = torch.empty(len(x), len(y), dtype=torch.float64, device=x.device)
    if not x.shape[1]:
        out.zero_()
    elif out.numel():
        with torch_threads(threads):
            reference(x, y, out) if impl == "reference" else _all_pairs(x, y, out)
    return like(out, a)


def reference(a: Tensor, b: Tensor, out: Tensor) -> None:
    """The definition: norms of differences in float64; NaN in rows and columns of what is not finite."""
    rows = torch.arange(len(a), device=a.device)
    for column in range(len(b)):
        out[:, column] = exact(a, b, rows, torch.full_like(rows, column)).sqrt_()
    out[~finite_rows(a)] = torch.nan
    out[:, ~finite_rows(b)] = torch.nan


def _all_pairs(a: Tensor, b: Tensor, out: Tensor) -> None:
    centre = centre_of(b)
    for columns in parts(len(b), ROWS):
        for rows in parts(len(a), ROWS):
            out[rows, columns] = _block(a[rows], b[columns], centre).sqrt_()


def _block(a: Tensor, b: Tensor, centre: Tensor) -> Tensor:
    """Squared distances, (m, n)."""
    found, scale = squared(a, b, centre, torch.float32)
    near = (found < NEAR[torch.float32] * scale) | (scale < TINY)
    if not fits_float32(scale) or MANY * int(near.sum()) > near.numel():
        found, scale = squared(a, b, centre, torch.float64)
        near = found < NEAR[torch.float64] * scale
    rows, columns = near.nonzero(as_tuple=True)
    found[rows, columns] = exact(a, b, rows, columns)
    return found.masked_fill_(~scale.isfinite(), torch.nan)


def nearest(
    a: Array,
    b: Array,
    k: int = 1,
    *,
    groups_a: Any = None,
    groups_b: Any = None,
    threads: int | None = None,
) -> tuple[Array, Array]:
    """The k nearest vectors of b to each of a, without all M x N distances at once.

    Which ones they are, and their distances, are what differences in float64 give; of equally near ones the first.

    Args:
        a: (M, size), b: (N, size), of any float type, numpy or torch, on one device; b may be a.
        groups_a, groups_b: (M,) and (N,) integers; pairs of equal ones are left out (a lineage, with b = a).
        threads: of torch; None for as many as it uses.

    Returns:
        Distances (M, k) float64, ascending, and indices (M, k) int64 in b, of the library of `a`: infinite and -1
        where fewer than k are left, NaN and -1 where the vector of a is not finite. Vectors of b that are not finite
        are no neighbours.

    Raises:
        ValueError: shapes, groups or a k that do not fit.
    """
    _checked(tensor_of(a), tensor_of(b))
    if groups_b is not None and len(groups_b) != len(b):
        raise ValueError(f"groups_b must be {len(b)} integers, one a vector of b, got {len(groups_b)}")
    return nearest_streamed(a, [b], k, groups_a=groups_a, groups_b=groups_b, threads=threads)


def nearest_streamed(
    a: Array,
    chunks: Iterable[np.ndarray | Tensor],
    k: int = 1,
    *,
    groups_a: Any = None,
    groups_b: Any = None,
    threads: int | None = None,
) -> tuple[Array, Array]:
    """`nearest` in vectors that come in chunks (n_i, size), each looked at once: for zoos larger than memory.

    Args:
        groups_b: (N,) of all chunks together.

    Raises:
        ValueError: as `nearest`; groups_b that are not as many as the vectors that came.
    """
    x = tensor_of(a)
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    if (groups_a is None) != (groups_b is None):
        raise ValueError("give groups_a and groups_b, or neither")
    mine, theirs = (labels_of(groups, x.device) for groups in (groups_a, groups_b))
    if mine is not None and len(mine) != len(x):
        raise ValueError(f"groups_a must be {len(x)} integers, one a vector of a, got {len(mine)}")
    best = torch.full((len(x), k), torch.inf, dtype=torch.float64, device=x.device)
    index = torch.full((len(x), k), -1, dtype=torch.int64, device=x.device)
    centre, seen = None, 0
    with torch_threads(threads):
        for block in _blocks(x, chunks):
            centre = centre_of(block) if centre is None else centre
            here = None if theirs is None else theirs[seen : seen + len(block)]
            if here is not None and len(here) != len(block):
                raise ValueError(f"groups_b are {len(groups_b)}, and more vectors than that came")
            for rows in parts(len(x), ROWS):
                same = None if mine is None or here is None else mine[rows, None] == here
                _nearer(x[rows], block, centre, same, seen, best[rows], index[rows])
            seen += len(block)
    if theirs is not None and len(theirs) != seen:
        raise ValueError(f"groups_b must be {seen} integers, one a vector that came, got {len(theirs)}")
    best[~finite_rows(x)] = torch.nan
    return like(best.sqrt_(), a), like(index, a)


def _nearer(a: Tensor, b: Tensor, centre: Tensor, same: Tensor | None, first: int, best: Tensor, index: Tensor) -> None:
    """Take in a block of b, whose vectors are number `first` and following; best are squared distances."""
    for dtype in (torch.float32, torch.float64):
        found, scale = squared(a, b, centre, dtype)
        error = ROUNDING[dtype] * scale
        known = scale.isfinite() if same is None else scale.isfinite() & ~same
        highest = (found + error).masked_fill_(~known, torch.inf)
        limit = best[:, -1:]
        if len(b) >= best.shape[1]:
            limit = torch.minimum(limit, highest.topk(best.shape[1], largest=False).values[:, -1:])
        candidates = (found - error <= limit) & known  # nobody else can be among the k nearest
        enough = MANY * int(candidates.sum()) <= candidates.numel() + MANY * 2 * best.numel()
        if dtype == torch.float64 or (enough and fits_float32(scale) and not bool((known & (scale < TINY)).any())):
            break
    rows, columns = candidates.nonzero(as_tuple=True)
    _merge(best, index, rows, exact(a, b, rows, columns), columns + first)


def _merge(best: Tensor, index: Tensor, rows: Tensor, distances: Tensor, columns: Tensor) -> None:
    """Keep the k best of what is known and what came, in place; of equal ones those that came first."""
    if not len(rows):
        return
    models, k = best.shape
    known = torch.arange(models, device=rows.device).repeat_interleave(k)
    rows, columns = torch.cat([known, rows]), torch.cat([index.flatten(), columns])
    distances = torch.cat([best.flatten(), distances])
    order = distances.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    rows, distances, columns = rows[order], distances[order], columns[order]
    begins = torch.searchsorted(rows, torch.arange(models, device=rows.device))
    chosen = begins[:, None] + torch.arange(k, device=rows.device)  # each row has its own k, so there are as many
    best.copy_(distances[chosen])
    index.copy_(columns[chosen])


def _blocks(a: Tensor, chunks: Iterable[np.ndarray | Tensor]) -> Iterator[Tensor]:
    """Blocks of the chunks, on the device of a."""
    for chunk in chunks:
        whole = tensor_of(chunk)
        if whole.dim() != 2 or whole.shape[1] != a.shape[-1]:
            raise ValueError(f"chunks must be (models, {a.shape[-1]}), got {tuple(whole.shape)}")
        for part in parts(len(whole), ROWS):
            yield whole[part].to(a.device)


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a must be (M, size) and b (N, size), got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.device != b.device:
        raise ValueError(f"a and b must be on one device, got {a.device} and {b.device}")
    return a, b
