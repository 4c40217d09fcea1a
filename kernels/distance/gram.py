"""Squared distances of blocks of vectors: fast by a centred Gram matrix that knows its error, exact for chosen pairs.

|x - y|^2 = |x|^2 + |y|^2 - 2 x.y loses digits where x and y are close to each other and far from the origin, so all
vectors are first taken from a centre, and what is still too close is left to the differences themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels.arrays import parts
from kernels.similarity.similarity import highest

ROWS, COLUMNS = 1024, 2048  # vectors of a block; coordinates that one product sums
PAIRS = 1 << 20  # differences that are held at once
MOST = 0.25  # of all pairs of two blocks: where more are asked for, all are computed
SAMPLE, FAR = 256, 4.0  # vectors a centre is the mean of; those of more than so many usual norms do not count
# Errors of a squared distance against |x|^2 + |y|^2: unit roundoff times the square root of the terms of a sum (Higham
# and Mary 2019, "A new approach to probabilistic rounding error analysis", theorem 2.4), times 4 to be safe.
ROUNDING = {torch.float32: 2.0**-24 * 45 * 4, torch.float64: 2.0**-53 * 45 * 4}
LARGE, SMALL = 1e24, 1e-24  # squared norms beyond which float32 products may overflow or underflow


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Products on so many threads of torch; None leaves them as they are."""
    before = torch.get_num_threads()
    if threads is None or threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def finite_rows(values: Tensor) -> Tensor:
    """Which vectors hold finite numbers only, (models,) bool."""
    found = [torch.isfinite(values[part]).all(1) for part in parts(len(values), max(1, 8 * PAIRS // values.shape[1]))]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool, device=values.device)


def centre_of(values: Tensor) -> Tensor:
    """A point in the middle of the vectors, (size,) float64 of float32 values: any will do, but this saves digits.

    It is the mean of some of them, without those that are not finite or much longer than the others.
    """
    some = values[:: -(-len(values) // SAMPLE)] if len(values) else values
    some = some[finite_rows(some)]
    if not len(some):
        return torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
    norms = torch.cat([some[part].double().norm(dim=1) for part in parts(len(some), 16)])
    chosen = some[norms <= FAR * norms.median()]
    means = [chosen[:, part].double().mean(0) for part in parts(values.shape[1], PAIRS // 64)]
    return torch.cat(means).float().nan_to_num(0, 0, 0).double()


def squared(a: Tensor, b: Tensor, centre: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Squared distances (m, n), and |x|^2 + |y|^2 of each pair from the centre, float64; products in `dtype`.

    Where that sum is not finite, no distance is known: one of the two is not finite, or float32 cannot hold it.
    """
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    left, right = (torch.zeros(len(side), dtype=torch.float64, device=a.device) for side in (a, b))
    with highest():
        for part in parts(a.shape[1], COLUMNS):
            x, y = (_centred(side[:, part], centre[part], dtype) for side in (a, b))
            total += x @ y.T
            left += x.double().square().sum(1)
            right += y.double().square().sum(1)
    scale = left[:, None] + right
    return (scale - 2 * total).clamp_(min=0), scale


def _centred(values: Tensor, centre: Tensor, dtype: torch.dtype) -> Tensor:
    """From the centre, in `dtype`; the difference is rounded once."""
    wide = torch.float64 if torch.float64 in (values.dtype, dtype) else torch.float32
    return (values.to(wide) - centre.to(wide)).to(dtype)


def fits_float32(scale: Tensor) -> bool:
    """Whether products in float32 neither overflowed nor lost everything."""
    return not scale.numel() or SMALL < float(scale.amax()) < LARGE  # false for NaN too


def exact(a: Tensor, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Squared distances of a[rows] and b[columns] by their differences, (pairs,) float64."""
    if len(rows) > MOST * len(a) * len(b):
        return _differences(a, b)[rows, columns]
    found = torch.zeros(len(rows), dtype=torch.float64, device=a.device)
    for columns_here in parts(a.shape[1], PAIRS):
        for part in parts(len(rows), max(1, PAIRS // a.shape[1])):
            x, y = a[rows[part], columns_here], b[columns[part], columns_here]
            found[part] += (x.double() - y.double()).square_().sum(1)
    return found


def _differences(a: Tensor, b: Tensor) -> Tensor:
    """Of all pairs, (m, n), three times as fast for each as one pair at a time."""
    found = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for part in parts(a.shape[1], COLUMNS):
        x, y = a[:, part].double(), b[:, part].double()
        found += torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()
    return found
