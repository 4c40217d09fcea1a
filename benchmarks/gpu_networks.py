"""Populations of networks on a GPU: forward, overlap of errors and distances, against torch in a few calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu_task import OURS, Task
from kernels.distance.distance import pairwise_distance
from kernels.forward.forward import mlp_forward
from kernels.overlap.overlap import error_overlap

NETWORKS = ((1000, 32), (1000, 64), (1000, 128))  # models, units of each of two hidden layers
INPUTS, CLASSES, SAMPLES = 64, 10, 1797  # as digits has them
ERRORS = ((1000, 1000, 600), (10_000, 10_000, 600))  # models, models, samples
SIDES = ("triton", "reference")
VECTORS = ((1000, 1000, 3466), (1000, 10_000, 100_000))  # models, models, weights


def forwards(
    device: str, shapes: Sequence[tuple[int, int]] = NETWORKS, samples: int = SAMPLES, points: int = 11
) -> Iterator[Task]:
    """Of a population, and of points between two, against batched products of some models and samples at a time."""
    for models, units in shapes:
        ends = [_networks(models, units, device) for _ in range(2)]
        x = torch.randn(samples, INPUTS, device=device)
        y = torch.randint(CLASSES, (samples,), device=device)
        for alphas in (None, [number / (points - 1) for number in range(points)]):
            if alphas and units > 64:
                continue
            other = ends[1] if alphas else None
            both = [
                partial(mlp_forward, x, y, *ends[0], "relu", other=other, alphas=alphas, impl=impl) for impl in SIDES
            ]
            sides = dict(zip((OURS, "torch.baddbmm"), both, strict=True))
            setting = {"models": models, "units": units, "samples": samples, "points": len(alphas or [0])}
            work = (models * samples * len(alphas or [0]) * 1e-6, "million samples")
            yield Task("forward", setting, sides, partial(_wrong_forward, *both), work)


def overlaps(device: str, shapes: Sequence[tuple[int, int, int]] = ERRORS) -> Iterator[Task]:
    """Of all pairs of two populations; torch multiplies zeros and ones."""
    for models, others, samples in shapes:
        a, b = (
            torch.randint(256, (n, -(-samples // 8)), device=device).to(torch.uint8) & 0x55 for n in (models, others)
        )
        both = [partial(error_overlap, a, b, impl=impl) for impl in SIDES]
        sides = dict(zip((OURS, "torch.matmul"), both, strict=True))
        setting = {"models": models, "others": others, "samples": samples}
        yield Task("overlap", setting, sides, partial(_wrong_overlap, *both), (models * others * 1e-6, "million pairs"))


def distances(device: str, shapes: Sequence[tuple[int, int, int]] = VECTORS) -> Iterator[Task]:
    """Of all pairs of two populations; torch in float64, as differences and as products."""
    for models, others, size in shapes:
        a, b = (torch.randn(n, size, device=device) for n in (models, others))
        direct, products = "donot_use_mm_for_euclid_dist", "use_mm_for_euclid_dist"
        sides = {
            "centred Gram": partial(pairwise_distance, a, b),
            "torch.cdist by differences, float64": partial(_cdist, a, b, direct),
            "torch.cdist by products, float64": partial(_cdist, a, b, products),
        }
        setting = {"models": models, "others": others, "size": size, "dtype": "float32"}
        yield Task(
            "distance", setting, sides, partial(_wrong_distance, a, b), (models * others * 1e-6, "million pairs")
        )


def _cdist(a: Tensor, b: Tensor, mode: str) -> Tensor:
    return torch.cdist(a.double(), b.double(), compute_mode=mode)


def _networks(models: int, units: int, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases with two hidden layers, as torch's initialisation scales them."""
    widths = ((INPUTS, units), (units, units), (units, CLASSES))
    weights = [torch.randn(models, out, fan_in, device=device) * (2 / fan_in) ** 0.5 for fan_in, out in widths]
    return weights, [torch.randn(models, out, device=device) / 10 for _, out in widths]


def _wrong_forward(ours: partial, theirs: partial) -> str:
    found, right = ours(logits=True), theirs(logits=True)
    error = float((found.logits - right.logits).abs().max())
    if error > 1e-4:  # logits of about 1 after three layers in float32
        return f"logits are off by {error:.2g}"
    if not torch.allclose(found.loss_sum, right.loss_sum, rtol=1e-5):
        return "losses are not those of torch"
    off = float((found.error_bits != right.error_bits).double().mean())
    return f"{off:.1%} of bytes of error bits are not those of torch" if off > 1e-3 else ""  # more than near ties


def _wrong_overlap(ours: partial, theirs: partial) -> str:
    return "" if torch.equal(ours(), theirs()) else "overlaps are not those of torch"


def _wrong_distance(a: Tensor, b: Tensor) -> str:
    some = slice(0, 50)
    right = pairwise_distance(a[some], b[some], impl="reference")
    off = float(((pairwise_distance(a[some], b[some]) - right) / right).abs().max())
    return "" if off <= 1e-6 else f"off by {off:.2g} of a distance"
