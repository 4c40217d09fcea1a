"""K1: linear assignment of whole batches, each solution with a certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from kernels.assignment.sinkhorn import sinkhorn_prices
from kernels.dispatch import checked_name, has, on_gpu
from kernels.threads import in_parts

EXACT = 1e-12  # of n * max|cost|: the gap below which a solution counts as optimal
FLOATS = (torch.float32, torch.float64)
STARTS = ("auto", "none", "sinkhorn")
SMALL = 256  # columns up to which a single problem on a GPU is solved on the CPU
TOGETHER = 1 << 27  # costs that a GPU works on at once, in float64
INTEGERS = 2.0**45  # n * max|cost| up to which sums of integers, and of prices between them, are safe in float64
Stage = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]  # costs, factors, prices, threads -> columns, v


@dataclass(frozen=True)
class Assignment:
    """Optimal assignments of a batch.

    Args:
        columns: (batch, n) int32, the column of each row.
        v: (batch, n) float64, dual prices of the columns, of the costs as they are minimised: a start for similar
            problems.
        gap: (batch,) float64, how much better than this any assignment can be at most.
        certified: (batch,) bool, whether the gap is rounding alone.
    """

    columns: Tensor
    v: Tensor
    gap: Tensor
    certified: Tensor


def assign(
    cost: Tensor,
    v0: Tensor | None = None,
    *,
    init: str = "auto",
    maximize: bool = False,
    impl: str | None = None,
    threads: int | None = None,
) -> Assignment:
    """The assignment of rows to columns with the least total cost, for each problem of a batch.

    A solution is certified by prices of its columns: none can total less than sum_j v_j + sum_i min_j (c_ij - v_j), in
    float64. Certified is what lies at most 1e-12 n max|cost| above that; for costs of an integer type, less than 1.
    What a fast solver leaves without a certificate is solved again by the next: float32 on a GPU, float64 there,
    compiled float64, scipy. Equal costs may be assigned in any way: compare totals, never columns.

    On a CPU the float64 solver comes first: of real costs (layers of trained networks, widths 32 to 512) float32 found
    all columns, but prices that prove it for 4 to 13 % only, and float64 costs 1.1 to 1.6 times as much. A call takes
    some 0.2 ms besides, so problems should come together. On a GPU float32 comes first and leaves float64 a third of
    the scans of a row (56 for 173 on average at width 32, under the interpreter); its time is not measured yet.

    Args:
        cost: (batch, n, n), finite, of any real type; n may be 0.
        v0: (batch, n), prices to begin from, those of the last sweep say; any numbers do, good ones are faster.
        init: where to begin without v0: "none" (zero prices), "sinkhorn", or "auto", which is "none" until "sinkhorn"
            is measured to be faster on a GPU.
        maximize: the greatest total instead; prices are then those of -cost.
        impl: "reference" (scipy), "compiled" (numba) or "triton"; None chooses.
        threads: of the CPU, None for as many as torch uses.

    Raises:
        ValueError: costs that are not square or not finite, integers so large that float64 cannot tell them apart,
            prices that do not fit.
    """
    _check(cost, v0, init, impl)
    batch, n, _ = cost.shape
    device = cost.device
    columns = torch.empty(batch, n, dtype=torch.int32, device=device)
    v = torch.empty(batch, n, dtype=torch.float64, device=device)
    gap = torch.zeros(batch, dtype=torch.float64, device=device)
    allowed, factor = _scales(cost)  # of costs times factor
    if n:
        stages = _stages(cost, impl)
        threads = threads or torch.get_num_threads()
        factors = -factor if maximize else factor
        for first in range(0, batch, max(1, TOGETHER // n**2)):
            here = slice(first, first + max(1, TOGETHER // n**2))
            part = _as_floats(cost[here].detach())
            if v0 is not None:
                start = v0[here].detach().to(device, torch.float64) * factor[here, None]
            elif init == "sinkhorn":
                start = sinkhorn_prices(_least(part, factors[here]).float()).double()
            else:
                start = torch.zeros_like(v[here])
            columns[here], v[here], gap[here] = _solve(part, factors[here], start, allowed[here], stages, threads)
    return Assignment(columns, v / factor[:, None], gap / factor, gap <= allowed)


def reference(cost: Tensor, threads: int = 1) -> Tensor:
    """(batch, n) int32 by scipy in float64."""
    problems = cost.detach().double().cpu().numpy()
    columns = np.empty(problems.shape[:2], np.int32)

    def work(part: slice) -> None:  # scipy holds no lock of the interpreter
        for number in range(len(problems))[part]:
            columns[number] = linear_sum_assignment(problems[number])[1]

    in_parts(work, len(problems), threads)
    return torch.from_numpy(columns).to(cost.device)


def prices(cost: Tensor, columns: Tensor, v: Tensor | None = None) -> Tensor:
    """Dual prices v (batch, n) float64 of a solution: v_j <= c_ij - u_i everywhere, with equality where assigned.

    The shortest distances in the graph of exchanges (Bellman-Ford), which exist where the solution is optimal.

    Args:
        v: (batch, n), where to begin, None for 0.
    """
    c = cost.detach().double()
    chosen = c.gather(2, columns.long()[..., None])  # (batch, n, 1)
    v = torch.zeros(c.shape[:2], dtype=torch.float64, device=c.device) if v is None else v.double()
    place = columns.long()
    for _ in range(c.shape[1]):
        u = chosen[..., 0] - v.gather(1, place)  # of the rows
        lower = torch.minimum(v, (c - u[..., None]).amin(1))
        if torch.equal(lower, v):
            break
        v = lower
    return v


def certificate(cost: Tensor, columns: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Gap (batch,) float64 and whether it is rounding alone, from any prices v: what `assign` proves its results by."""
    allowed, factor = _scales(cost)
    gap = _gap(cost.detach(), factor, columns, v.double() * factor[:, None])
    return gap / factor, gap <= allowed


def _check(cost: Tensor, v0: Tensor | None, init: str, impl: str | None) -> None:
    checked_name(impl, cost)
    if cost.dim() != 3 or cost.shape[1] != cost.shape[2]:
        raise ValueError(f"costs must be (batch, n, n), got {tuple(cost.shape)}")
    if cost.is_complex() or cost.dtype == torch.bool:
        raise ValueError(f"costs must be numbers of a real type, got {cost.dtype}")
    if init not in STARTS:
        raise ValueError(f"init must be one of {', '.join(STARTS)}, got {init!r}")
    if v0 is not None:
        if v0.shape != cost.shape[:2]:
            raise ValueError(f"prices must be (batch, n) = {tuple(cost.shape[:2])}, got {tuple(v0.shape)}")
        if init == "sinkhorn":
            raise ValueError("prices to begin from are given twice: leave out v0, or init='sinkhorn'")
        if not bool(torch.isfinite(v0).all()):
            raise ValueError("prices must be finite, got NaN or infinity; leave v0 out")


def _scales(cost: Tensor) -> tuple[Tensor, Tensor]:
    """For each problem, float64: the gap that is rounding alone where costs are near 1, and the factor to there."""
    batch, n, _ = cost.shape
    if not cost.numel():
        ones = torch.ones(batch, dtype=torch.float64, device=cost.device)
        return ones, ones
    flat = cost.detach().flatten(1)
    low, high = flat.amin(1), flat.amax(1)  # on a CPU tens of times faster than aminmax
    largest = torch.maximum(-low.double(), high.double())
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise ValueError("costs must be finite, got NaN or infinity; look at the weights they come from")
    limit = 1020 if cost.dtype in (torch.float64, torch.int64) else 126  # what fits into the type of the costs
    exponent = torch.frexp(largest.cpu())[1].clamp(-limit, limit)
    factor = torch.ldexp(torch.ones(batch, dtype=torch.float64), -exponent).to(cost.device)
    if cost.is_floating_point():
        return EXACT * n * (largest * factor), factor
    if float(largest.max()) * n > INTEGERS:
        raise ValueError(f"integer costs must be at most 2^45 / n = {INTEGERS / n:g}, got {float(largest.max()):g}")
    return 0.5 * factor, factor  # totals are whole numbers: below 1 there is none but 0


def _stages(cost: Tensor, impl: str | None) -> list[tuple[Stage, int]]:
    """Solvers, one for what the one before left without a certificate, and rounds over its prices to prove it by."""
    n = cost.shape[1]
    if impl is None:
        impl = "triton" if on_gpu(cost) and (len(cost) > 1 or n > SMALL) else "compiled"
    found: list[tuple[Stage, int]] = []
    if impl == "triton":
        from kernels.assignment.triton_paths import EXACT_UP_TO, PACKED_UP_TO

        packed = n <= PACKED_UP_TO and (n > EXACT_UP_TO or _as_floats(cost[:0]).dtype == torch.float32)
        found += [(_triton32, 0)] * packed + [(_triton64, 0)] * (n <= EXACT_UP_TO)
    if impl != "reference" and has("numba"):
        found.append((_compiled, 0))
    return [*found, (_scipy, n)]


def _solve(
    cost: Tensor, factor: Tensor, v: Tensor, allowed: Tensor, stages: list[tuple[Stage, int]], threads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns, prices and gaps: of each problem the first that is certified, else those with the smallest gap."""
    (solver, rounds), *others = stages
    columns, v = solver(cost, factor, v, threads)
    v, gap = _prove(cost, factor, columns, v, allowed, rounds, threads)
    for solver, rounds in others:
        open_ = gap > allowed
        if not bool(open_.any()):
            break
        left = open_.nonzero()[:, 0]
        part, by = cost[left], factor[left]
        found, start = solver(part, by, v[left], threads)
        proven, gaps = _prove(part, by, found, start, allowed[left], rounds, threads)
        better = gaps < gap[left]
        left = left[better]
        columns[left], v[left], gap[left] = found[better], proven[better], gaps[better]
    return columns, v, gap


def _prove(
    cost: Tensor, factor: Tensor, columns: Tensor, v: Tensor, allowed: Tensor, rounds: int, threads: int
) -> tuple[Tensor, Tensor]:
    """Prices and gaps of a solution; prices are lowered, if there are rounds, where the gap is more than allowed."""
    if cost.device.type == "cpu" and has("numba"):
        from kernels.assignment.tighten import tighten

        proven, gaps = tighten(
            cost.numpy(), factor.numpy(), columns.numpy(), v.numpy(), allowed.numpy(), rounds, threads
        )
        return torch.from_numpy(proven), torch.from_numpy(gaps).clamp_min(0)
    v = prices(_least(cost, factor), columns, v) if rounds else v
    return v, _gap(cost, factor, columns, v)


def _gap(cost: Tensor, factor: Tensor, columns: Tensor, v: Tensor) -> Tensor:
    """(batch,) float64, of costs times factor and prices of these."""
    if not cost.numel():
        return torch.zeros_like(factor)
    if on_gpu(cost):
        from kernels.assignment.triton_paths import row_minima

        minima = row_minima(_as_floats(cost), factor, v)
    else:
        minima = (_least(cost, factor) - v[:, None]).amin(2)
    total = _least(cost.gather(2, columns.long()[..., None]), factor).sum((1, 2))
    return (total - v.sum(1) - minima.sum(1)).clamp_min(0)


def _as_floats(cost: Tensor) -> Tensor:
    """Float32 or float64, whichever holds all values."""
    if cost.dtype in FLOATS:
        return cost
    return cost.float() if cost.is_floating_point() else cost.double()


def _least(cost: Tensor, factor: Tensor) -> Tensor:
    """What is minimised, in float64. Factors are powers of two or their negatives, so that no digit changes."""
    return cost.double() * factor[:, None, None]


def _scipy(cost: Tensor, factor: Tensor, v: Tensor, threads: int) -> tuple[Tensor, Tensor]:
    return reference(_least(cost, factor), threads), torch.zeros_like(v)


def _compiled(cost: Tensor, factor: Tensor, v: Tensor, threads: int) -> tuple[Tensor, Tensor]:
    from kernels.assignment.compiled import solve

    given, by, start = (array.cpu().numpy() for array in (cost, factor, v))
    columns, found = solve(given, start, threads, dtype=np.float64, factors=by)
    return torch.from_numpy(columns).to(cost.device), torch.from_numpy(found).to(cost.device)


def _triton32(cost: Tensor, factor: Tensor, v: Tensor, threads: int) -> tuple[Tensor, Tensor]:
    from kernels.assignment.triton_paths import solve_triton

    return solve_triton(cost, v, factor)[:2]


def _triton64(cost: Tensor, factor: Tensor, v: Tensor, threads: int) -> tuple[Tensor, Tensor]:
    from kernels.assignment.triton_paths import solve_triton

    return solve_triton(cost, v, factor, exact=True)[:2]
