"""How far two networks fail on the same samples: |A & B| / |A | B| of what they get wrong, the error-IoU."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from kernels.dispatch import checked_name, has, on_gpu
from kernels.distance.gram import parts, tensor_of

TOGETHER = 1 << 22  # bits that the reference unpacks at once
WORTH = 1 << 24  # bytes to compare, of all pairs, from which loading numba pays
MOST = 1 << 23  # bits of a model: counts must be exact in float32
Array = TypeVar("Array", np.ndarray, Tensor)


def error_overlap(a: Array, b: Array, *, impl: str | None = None, threads: int | None = None) -> Array:
    """Error-IoU of all pairs, (M, N) float32: 1 where two networks fail on the same samples, 0 where on others.

    Two networks without errors overlap in nothing: 0 / 0 is 0 here.

    Args:
        a: (M, bytes), b: (N, bytes), uint8: bits as `zoo.evaluate` has them, 0 behind the last sample.
        impl: "reference" (torch), "compiled" (numba, on a CPU) or "triton" (CUDA); None chooses.
        threads: of compiled code; None for as many as there are cores.

    Returns:
        (M, N), of the library of `a`.

    Raises:
        ValueError: shapes, types or an `impl` that do not fit.

    Source: Zeng et al. 2025, "Generative modeling of weights: generalization or memorization?", arXiv 2506.07998,
        where the similarity of two models is the IoU of the samples they misclassify.
    """
    x, y = _checked(a, b, impl)
    chosen = _implementation(x, y, impl)
    if chosen == "triton":
        from kernels.overlap.triton_overlap import overlap_triton

        found = overlap_triton(x, y)
    elif chosen == "compiled":
        from kernels.overlap.compiled import overlap_compiled

        found = torch.from_numpy(overlap_compiled(x.numpy(), y.numpy(), threads))
    else:
        found = reference(x, y)
    return _as(found, a)


def largest_overlap(
    a: Array,
    b: Array,
    *,
    groups_a: Any = None,
    groups_b: Any = None,
    impl: str | None = None,
    threads: int | None = None,
) -> tuple[Array, Array]:
    """The largest error-IoU of each model of a with any of b, and with which, without the M x N matrix.

    Args:
        a, b, impl, threads: as of `error_overlap`; b may be a.
        groups_a, groups_b: (M,) and (N,) integers; pairs of equal ones are left out (a lineage, with b = a).

    Returns:
        Overlaps (M,) float32 and indices (M,) int64 in b, the first of equal ones, of the library of `a`; 0 and -1
        where nobody is left to compare with.

    Raises:
        ValueError: as `error_overlap`; groups that do not fit.
    """
    x, y = _checked(a, b, impl)
    if (groups_a is None) != (groups_b is None):
        raise ValueError("give groups_a and groups_b, or neither")
    mine, theirs = (_labels(groups, side, name) for groups, side, name in ((groups_a, x, "a"), (groups_b, y, "b")))
    chosen = _implementation(x, y, impl)
    if chosen == "triton":
        from kernels.overlap.triton_overlap import largest_triton

        found = largest_triton(x, y, mine, theirs)
    elif chosen == "compiled":
        from kernels.overlap.compiled import largest_compiled

        groups = [None if one is None else one.numpy() for one in (mine, theirs)]
        largest, index = largest_compiled(x.numpy(), y.numpy(), groups[0], groups[1], threads)
        found = torch.from_numpy(largest), torch.from_numpy(index)
    else:
        found = reference_largest(x, y, mine, theirs)
    return _as(found[0], a), _as(found[1], a)


def reference(a: Tensor, b: Tensor) -> Tensor:
    """The definition, on any device: counts are products of zeros and ones, which are exact."""
    out = torch.empty(len(a), len(b), device=a.device)
    step = max(1, TOGETHER // max(1, 8 * a.shape[1]))
    for rows in parts(len(a), step):
        x = _bits(a[rows])
        for columns in parts(len(b), step):
            y = _bits(b[columns])
            both = x @ y.T
            either = x.sum(1)[:, None] + y.sum(1) - both
            out[rows, columns] = torch.where(either > 0, both / either, 0)
    return out


def reference_largest(a: Tensor, b: Tensor, groups_a: Tensor | None, groups_b: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `largest_overlap`, some of b at a time."""
    best = torch.full((len(a),), -1.0, device=a.device)
    index = torch.full((len(a),), -1, dtype=torch.int64, device=a.device)
    if not len(a):
        return best, index
    for columns in parts(len(b), max(1, TOGETHER // max(1, len(a)))):
        found = reference(a, b[columns])
        if groups_a is not None and groups_b is not None:
            found[groups_a[:, None] == groups_b[columns]] = -1
        here = found.amax(1)
        first = torch.where(found == here[:, None], torch.arange(len(found[0]), device=a.device), len(b)).amin(1)
        better = here > best
        best, index = torch.where(better, here, best), torch.where(better, first + columns.start, index)
    return best.clamp_(min=0), index


def _bits(packed: Tensor) -> Tensor:
    """(models, 8 bytes) float32 of (models, bytes); their order does not matter here."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> shifts) & 1).flatten(1).float()


def _implementation(a: Tensor, b: Tensor, impl: str | None) -> str:
    if impl is not None:
        return impl
    if on_gpu(a):
        return "triton"
    pays = len(a) * b.numel() >= WORTH and a.device.type == "cpu" and has("numba")
    return "compiled" if pays else "reference"


def _checked(a: Any, b: Any, impl: str | None) -> tuple[Tensor, Tensor]:
    x, y = tensor_of(a), tensor_of(b)
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"a must be (M, bytes) and b (N, bytes), got {tuple(x.shape)} and {tuple(y.shape)}")
    if x.dtype != torch.uint8 or y.dtype != torch.uint8:
        raise ValueError(f"error bits are packed in uint8 (numpy.packbits), got {x.dtype} and {y.dtype}")
    if x.device != y.device:
        raise ValueError(f"a and b must be on one device, got {x.device} and {y.device}")
    if 8 * x.shape[1] > MOST:
        raise ValueError(f"at most {MOST:,} samples can be counted, got {8 * x.shape[1]:,}")
    checked_name(impl, x)
    return x, y


def _labels(groups: Any, side: Tensor, name: str) -> Tensor | None:
    if groups is None:
        return None
    found = (groups if isinstance(groups, Tensor) else torch.from_numpy(np.array(groups, np.int64))).to(side.device)
    if found.shape != (len(side),):
        raise ValueError(f"groups_{name} must be {len(side)} integers, one a model, got {tuple(found.shape)}")
    return found.long()


def _as(found: Tensor, like: Any) -> Any:
    return found if isinstance(like, Tensor) else found.numpy()
