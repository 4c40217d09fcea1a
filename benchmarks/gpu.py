"""Kernels on a GPU against what one would use otherwise: `python -m benchmarks.gpu`. Without CUDA nothing is measured.

Assignment of whole batches against scipy on 16 threads and torch-linear-assignment, inner products of units against
torch.matmul, permuted gather against torch's gather, and what `benchmarks.gpu_networks` has. Imports only what a plain
GPU image has.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_networks import distances, forwards, overlaps
from benchmarks.gpu_task import OURS, Task
from benchmarks.record import record
from benchmarks.sides import compare, measure
from kernels.assignment.assign import EXACT, assign, reference
from kernels.permute.gather import Gather
from kernels.permute.population import permute_population
from kernels.similarity.similarity import similarity

PAIRS, THREADS = 20, 16
ASSIGNMENTS = ((1000, 64), (1000, 256), (208, 300), (200, 512), (32, 1024))  # problems, units
LAYERS = ((1000, 32, 64), (1000, 128, 128), (200, 512, 577))  # models, units, weights of a unit


def matched_costs(problems: int, n: int, seed: int = 0) -> Tensor:
    """Costs like those of weight matching: units of a layer and of a noisy copy in another order."""
    generator = torch.Generator().manual_seed(seed)
    layer = torch.randn(problems, n, n, generator=generator)
    other = layer[:, torch.randperm(n, generator=generator)] + torch.randn(layer.shape, generator=generator)
    return -similarity(layer, other)


def assignments(device: str, shapes: Sequence[tuple[int, int]] = ASSIGNMENTS) -> Iterator[Task]:
    """Whole calls, certificate and all, where the costs are: on the host for scipy."""
    for problems, n in shapes:
        host = matched_costs(problems, n)
        cost = host.to(device)
        v = assign(cost, impl="triton").v
        sides: dict[str, Callable[[], object]] = {
            OURS: partial(assign, cost, impl="triton"),
            f"scipy, {THREADS} threads": partial(reference, host, THREADS),
            "Triton from the prices of the solution": partial(assign, cost, v, impl="triton"),
            "Triton from Sinkhorn prices": partial(assign, cost, impl="triton", init="sinkhorn"),
        }
        if importlib.util.find_spec("torch_linear_assignment"):
            peer = importlib.import_module("torch_linear_assignment")
            sides["torch-linear-assignment"] = partial(peer.batch_linear_assignment, cost)
        setting = {"problems": problems, "units": n, "dtype": "float32"}
        yield Task("assign", setting, sides, partial(_wrong_assignment, cost), (problems, "problems"))


def products(device: str, shapes: Sequence[tuple[int, int, int]] = LAYERS) -> Iterator[Task]:
    """Of a population with one reference; torch converts 16 bits to float32 first."""
    for dtype in (torch.float32, torch.bfloat16):
        for models, n, inner in shapes:
            a = torch.randn(models, n, inner, device=device).to(dtype)
            b = torch.randn(n, inner, device=device).to(dtype)
            sides = {
                OURS: partial(similarity, a, b, impl="triton"),
                "torch.matmul": partial(similarity, a, b, impl="reference"),
            }
            setting = {"models": models, "units": n, "inner": inner, "dtype": str(dtype).removeprefix("torch.")}
            work = (2e-9 * models * n * n * inner, "GFLOP")
            yield Task("similarity", setting, sides, partial(_wrong_product, a, b), work)


def gathers(device: str, shapes: Sequence[tuple[int, int, int]] = LAYERS) -> Iterator[Task]:
    """Rows, columns and biases of a layer; bytes are those read and written, indices are on the device."""
    for models, n, inner in shapes:
        weights = torch.randn(models, n * inner + n, device=device)
        row, col = (torch.rand(models, count, device=device).argsort(1) for count in (n, inner))
        moved = [Gather(0, n, inner, 1, row, col), Gather(n * inner, 1, n, 1, None, row)]
        sides = {
            OURS: partial(permute_population, weights, moved, impl="triton"),
            "torch gather": partial(permute_population, weights, moved, impl="reference"),
        }
        setting = {"models": models, "units": n, "inner": inner, "dtype": "float32"}
        work = (2e-9 * weights.numel() * weights.element_size(), "GB")
        yield Task("permute population", setting, sides, partial(_wrong_gather, weights, moved), work)


def measured(task: Task, device: str, pairs: int) -> int:
    """A row a peer; 1 if the results are wrong, and then none."""
    if wrong := task.wrong():
        print(f"{task.operation} {dict(task.setting)}: {wrong}", file=sys.stderr)
        return 1
    turns = measure({name: _finished(side, device) for name, side in task.sides.items()}, pairs)
    amount, unit = task.work
    for name in task.sides:
        if name == task.ours:
            continue
        row = {
            "operation": f"{task.operation} on a GPU",
            "setting": {**task.setting, "gpu": torch.cuda.get_device_name() if device == "cuda" else device},
            "ours": f"{amount / statistics.median(turns[task.ours].wall):,.0f} {unit}/s",
            "against": name,
            "theirs": f"{amount / statistics.median(turns[name].wall):,.0f} {unit}/s",
            "ratio": compare(turns, name, task.ours),
            "seconds": {side: _quantiles(turns[side].wall) for side in (task.ours, name)},
            "peak_bytes": {side: _peak(task.sides[side], device) for side in (task.ours, name)},
        }
        record("gpu", row, libraries=["triton", "scipy"])
    return 0


def _finished(side: Callable[[], object], device: str) -> Callable[[], None]:
    def run() -> None:
        side()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(seconds, q)) for q in (20, 50, 80)}


def _peak(side: Callable[[], object], device: str) -> int:
    """Most bytes that a call had on the GPU beyond what was there."""
    if device != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _finished(side, device)()
    return torch.cuda.max_memory_allocated() - before


def _wrong_assignment(cost: Tensor) -> str:
    found, right = assign(cost, impl="triton"), reference(cost, THREADS)
    totals = [cost.double().gather(2, columns.long()[..., None]).sum((1, 2)) for columns in (found.columns, right)]
    allowed = 2 * EXACT * cost.shape[1] * cost.double().abs().flatten(1).amax(1)
    if not bool(found.certified.all()):
        return f"{int((~found.certified).sum())} problems are not certified"
    off = (totals[0] - totals[1]).abs() > allowed
    return f"{int(off.sum())} totals are not those of scipy" if bool(off.any()) else ""


def _wrong_product(a: Tensor, b: Tensor) -> str:
    right = similarity(a[:2], b, dtype=torch.float64)
    error = float((similarity(a[:2], b, impl="triton").double() - right).abs().max())
    allowed = 2.0**-23 * a.shape[2] * 8  # terms of about 1, in float32
    return "" if error <= allowed else f"off by {error:.2g}, more than rounding, {allowed:.2g}"


def _wrong_gather(weights: Tensor, moved: list[Gather]) -> str:
    same = torch.equal(
        permute_population(weights, moved, impl="triton"), permute_population(weights, moved, impl="reference")
    )
    return "" if same else "weights are not where torch puts them"


def main(argv: Sequence[str] | None = None) -> int:
    """All operations; 1 if there is no GPU or a result is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    given = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(
            "there is no CUDA device, so nothing was measured: Triton kernels are not measured on a GPU",
            file=sys.stderr,
        )
        return 1
    failed = 0
    for tasks in (assignments, products, gathers, forwards, overlaps, distances):
        for task in tasks("cuda"):
            failed |= measured(task, "cuda", given.pairs)
    return failed


if __name__ == "__main__":
    sys.exit(main())
