import itertools
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from kernels.assignment import assign as module
from kernels.assignment.assign import EXACT, Assignment, assign, certificate, prices, reference
from kernels.assignment.sinkhorn import sinkhorn_prices
from kernels.assignment.tighten import tighten
from kernels.assignment.triton_paths import EXACT_UP_TO, PACKED_UP_TO, row_minima, solve_triton
from tests.kernel_inputs import between, empty_is_nan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = ["reference", "triton"] if DEVICE == "cuda" else ["reference", "compiled", "triton"]


def costs_of(kind: str, batch: int, n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Costs as they come: independent ones, products of two layers, ties, dead units, almost equal ones."""
    generator = torch.Generator().manual_seed(seed)
    cost = torch.randn(batch, n, n, generator=generator, dtype=torch.float64)
    if kind == "similarity":  # of a layer with itself in another order, and noise
        layer = torch.randn(batch, n, 5, generator=generator, dtype=torch.float64)
        order = torch.randperm(n, generator=generator)
        cost = -(layer @ (layer[:, order] + 0.1 * torch.randn(layer.shape, generator=generator)).transpose(1, 2))
    elif kind == "ties":
        cost = cost.mul(2).round()
    elif kind == "dead":
        cost[:, :, : n // 3] = 0
        cost[:, : n // 2] = 0
    elif kind == "offset":  # what decides is 1e-6 of the size
        cost = 1 + 1e-6 * cost
    return cost.to(dtype).to(DEVICE)


def best(cost: Tensor) -> np.ndarray:
    """(batch,) float64, the least totals by scipy."""
    problems = cost.double().cpu().numpy()
    return np.array([problem[linear_sum_assignment(problem)].sum() for problem in problems])


def totals(cost: Tensor, columns: Tensor) -> np.ndarray:
    """(batch,) float64; the columns must be permutations."""
    assert columns.dtype == torch.int32
    assert torch.equal(columns.sort(1).values.cpu(), torch.arange(cost.shape[1]).int().expand(columns.shape))
    return cost.double().gather(2, columns.long()[..., None])[..., 0].sum(1).cpu().numpy()


def check(cost: Tensor, found: Assignment) -> None:
    """The total is the least, up to the gap that counts as rounding, and the certificate says so and is true."""
    n = cost.shape[1]
    allowed = EXACT * n * cost.double().abs().flatten(1).amax(1).cpu().numpy() if n else 0
    assert found.certified.all()
    assert (np.abs(totals(cost, found.columns) - best(cost)) <= 2 * allowed).all()
    gap, certified = certificate(cost, found.columns, found.v)
    assert certified.all()
    np.testing.assert_array_less(np.abs((gap - found.gap).cpu().numpy()), allowed + 1e-300)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["random", "similarity", "ties", "dead", "offset"])
def test_totals_are_the_least_and_proven(kind: str, impl: str) -> None:
    for n in (1, 2, 11):
        cost = costs_of(kind, 2, n)
        with empty_is_nan():
            found = assign(between(cost), impl=impl)
        assert found.columns.shape == found.v.shape == (2, n)
        check(cost, found)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("n", "kind"), [(32, "similarity"), (33, "random"), (32, "dead")])
def test_a_gpu_program_with_a_full_tile_and_one_more(n: int, kind: str, packed: bool) -> None:
    cost = costs_of(kind, 1, n)
    with empty_is_nan():
        columns, v, scans = solve_triton(between(cost), between(cost.new_zeros(1, n).double()), exact=not packed)
    allowed = n * (1e-6 if packed else 1e-14)  # costs are a few units large: rounding of float32, float64
    np.testing.assert_allclose(totals(cost, columns), best(cost), rtol=0, atol=allowed)
    gap, _ = certificate(cost, columns, v)
    assert (gap.cpu().numpy() <= allowed).all()
    assert (scans >= n).all()
    assert (scans <= n * n).all()


def test_good_prices_shorten_the_searches_of_a_gpu() -> None:
    cost = costs_of("random", 2, 16)
    zero = torch.zeros(2, 16, device=DEVICE)
    _, v, cold = solve_triton(cost, zero)
    from_duals = solve_triton(cost, sinkhorn_prices(cost))[2]
    again = solve_triton(cost, v)[2]
    assert (from_duals < cold).all()
    assert (again < cold).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64])
def test_all_types_are_exact(dtype: torch.dtype, impl: str) -> None:
    cost = (10 * costs_of("random", 2, 7, torch.float64)).to(dtype)
    for maximize in (False, True):
        found = assign(cost, maximize=maximize, impl=impl)
        assert found.certified.all()
        sign = -1 if maximize else 1
        scale = EXACT * 7 * 50  # costs are below 50
        np.testing.assert_allclose(sign * totals(cost, found.columns), best(sign * cost.double()), rtol=0, atol=scale)
        assert certificate(sign * cost.double(), found.columns, found.v)[0].max() <= scale


def test_integers_are_certified_by_a_gap_below_one() -> None:
    cost = torch.tensor([[[2**40, 2**40 + 1], [2**40 + 1, 2**40 + 3]]])  # 1e-12 of this is more than the difference
    for impl in IMPLEMENTATIONS:
        found = assign(cost.to(DEVICE), impl=impl)
        assert found.columns.tolist() == [[1, 0]]
        assert found.certified.all()
        assert (found.gap < 1).all()
    worse = torch.tensor([[0, 1]], dtype=torch.int32)
    assert not certificate(cost, worse, prices(cost, worse))[1].any()
    with pytest.raises(ValueError, match=r"2\^45"):
        assign(cost * 2**10)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("start", ["solution", "noise", "far", "sinkhorn"])
def test_any_prices_are_a_start(start: str, impl: str) -> None:
    cost = costs_of("similarity", 2, 9)
    v0 = {
        "solution": assign(cost, impl="reference").v,
        "noise": torch.randn(2, 9, device=DEVICE),
        "far": 1e30 * torch.randn(2, 9, device=DEVICE),
        "sinkhorn": None,
    }[start]
    check(cost, assign(cost, v0, impl=impl, init="sinkhorn" if start == "sinkhorn" else "auto"))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [1e-30, 1e30, 1e-310, 1e300])
def test_costs_of_any_size_are_certified(size: float, impl: str) -> None:
    cost = size * costs_of("similarity", 2, 6, torch.float64)
    cost[1] = 0  # and one that is nothing
    found = assign(cost, impl=impl)
    assert found.certified.all()
    unit = torch.where(cost == 0, 0, cost / size)
    np.testing.assert_allclose(totals(unit, found.columns), best(unit), rtol=0, atol=EXACT * 6 * 5)


@given(st.integers(1, 5), st.integers(0, 999), st.integers(0, 3))
def test_no_permutation_is_better(n: int, seed: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.integers(-spread, spread + 1, (2, n, n)) + 0.5 * rng.integers(0, 2, (2, n, n))
    found = assign(torch.from_numpy(cost))
    for problem, total in zip(cost, totals(torch.from_numpy(cost), found.columns), strict=True):
        every = [sum(problem[i, p[i]] for i in range(n)) for p in itertools.permutations(range(n))]
        assert total == min(every)


def test_what_a_solver_leaves_is_solved_again_and_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    cost, asked = costs_of("random", 4, 10).cpu(), []
    right = reference(cost)

    def half_wrong(part: Tensor, factor: Tensor, v: Tensor, threads: int) -> tuple[Tensor, Tensor]:
        columns = right.clone()
        columns[1::2] = right[1::2].roll(1, 1)
        return columns, prices(cost, right) * factor[:, None]

    def last(part: Tensor, factor: Tensor, v: Tensor, threads: int) -> tuple[Tensor, Tensor]:
        asked.append(part)
        return reference(part * factor[:, None, None]), torch.zeros_like(v)

    monkeypatch.setattr(module, "_compiled", half_wrong)
    monkeypatch.setattr(module, "_scipy", last)
    check(cost, assign(cost))
    (again,) = asked
    assert torch.equal(again, cost[1::2])

    def wrong(part: Tensor, factor: Tensor, v: Tensor, threads: int) -> tuple[Tensor, Tensor]:
        return reference(part * factor[:, None, None]).roll(1, 1), torch.zeros_like(v)

    monkeypatch.setattr(module, "_scipy", wrong)  # nobody solves two of them: they are given, and said to be bad
    found = assign(cost)
    assert found.certified.tolist() == [True, False, True, False]
    assert (found.gap[1::2] > 0.01).all()
    np.testing.assert_array_less(totals(cost, found.columns) - best(cost), found.gap.numpy() + 1e-12)


def test_prices_of_float32_become_proofs() -> None:
    cost = costs_of("random", 2, 20).cpu()
    columns, rough, _ = solve_triton(cost.to(DEVICE), torch.zeros(2, 20, device=DEVICE))
    columns, rough = columns.cpu(), rough.cpu().double()
    allowed = np.full(2, EXACT * 20)
    one = np.ones(2)
    assert (tighten(cost.numpy(), one, columns.numpy(), rough.numpy(), allowed, 0)[1] > allowed).any()
    v, gap = tighten(cost.numpy(), one, columns.numpy(), rough.numpy(), allowed, 20, threads=2)
    assert (gap <= allowed).all()
    np.testing.assert_allclose(certificate(cost, columns, torch.from_numpy(v))[0], gap, atol=1e-12)
    assert certificate(cost, columns, prices(cost, columns, rough))[1].all()
    wrong = columns.roll(1, 1)  # no prices prove what is not the least
    assert (tighten(cost.numpy(), one, wrong.numpy(), rough.numpy(), allowed, 20)[1] > 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_of_a_gpu_are_those_of_the_definition(dtype: torch.dtype) -> None:
    for batch, n in ((2, 1), (2, 9), (1, 129)):
        cost = costs_of("random", batch, n, dtype)
        v = torch.randn(batch, n, device=DEVICE).double()
        factor = torch.tensor([-2.0, 0.5], device=DEVICE).double()[:batch]
        with empty_is_nan():
            found = row_minima(between(cost), factor, between(v))
        expected = (cost.double() * factor[:, None, None] - v[:, None]).amin(2)
        torch.testing.assert_close(found, expected, rtol=1e-15, atol=1e-15)


def test_threads_and_companions_change_no_bit() -> None:
    cost = costs_of("similarity", 7, 20).cpu()
    alone = assign(cost, threads=1)
    for impl, threads in ((None, 3), ("reference", 3)):
        found = assign(cost, threads=threads, impl=impl)
        np.testing.assert_array_equal(totals(cost, found.columns), totals(cost, alone.columns))
    few = assign(cost[2:4])
    assert torch.equal(few.columns, alone.columns[2:4])
    assert torch.equal(few.v, alone.v[2:4])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_empty_batches_and_problems(impl: str) -> None:
    for shape in ((0, 3, 3), (2, 0, 0), (0, 0, 0)):
        found = assign(torch.zeros(shape, device=DEVICE), impl=impl)
        assert found.columns.shape == found.v.shape == shape[:2]
        assert found.certified.shape == shape[:1]
        assert found.certified.all()


def test_without_numba_it_is_proven_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has", lambda library: False)
    monkeypatch.setitem(sys.modules, "kernels.assignment.compiled", None)
    monkeypatch.setitem(sys.modules, "kernels.assignment.tighten", None)
    cost = costs_of("similarity", 3, 8).cpu()
    check(cost, assign(cost))


@pytest.mark.parametrize(
    ("given_", "options", "message"),
    [
        (torch.zeros(2, 3), {}, r"\(batch, n, n\), got \(2, 3\)"),
        (torch.zeros(2, 3, 4), {}, "got"),
        (torch.tensor([[[float("nan")]]]), {}, "finite"),
        (torch.tensor([[[1.0, float("inf")], [0, 0]]]), {}, "finite"),
        (torch.tensor([[[1.0, -float("inf")], [0, 0]]]), {}, "finite"),
        (torch.zeros(1, 2, 2, dtype=torch.complex64), {}, "real type"),
        (torch.zeros(1, 2, 2), {"v0": torch.zeros(2)}, r"\(1, 2\), got \(2,\)"),
        (torch.zeros(1, 2, 2), {"v0": torch.full((1, 2), float("nan"))}, "prices must be finite"),
        (torch.zeros(1, 2, 2), {"v0": torch.zeros(1, 2), "init": "sinkhorn"}, "twice"),
        (torch.zeros(1, 2, 2), {"init": "best"}, "auto, none, sinkhorn"),
        (torch.zeros(1, 2, 2), {"impl": "auction"}, "reference, compiled, triton"),
    ],
)
def test_bad_input_is_refused(given_: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assign(given_, **options)


def test_what_a_gpu_program_cannot_hold_goes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for n, exact in ((PACKED_UP_TO + 1, False), (EXACT_UP_TO + 1, True)):
        with pytest.raises(ValueError, match="got"):
            solve_triton(torch.zeros(0, n, n), torch.zeros(0, n), exact=exact)
    monkeypatch.setattr("kernels.assignment.triton_paths.PACKED_UP_TO", 3)
    monkeypatch.setattr("kernels.assignment.triton_paths.EXACT_UP_TO", 3)
    cost = costs_of("random", 2, 5)
    check(cost, assign(cost, impl="triton"))  # solve_triton would have refused
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="CUDA"):
        assign(cost.cpu(), impl="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("n", [32, 64, 128, 200, 256, 257, 512, 1024, 2048, 4096, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_configuration_on_a_gpu(n: int, dtype: torch.dtype) -> None:
    batch = max(2, min(64, 2**24 // n**2))
    for kind in ("similarity", "ties", "dead"):
        cost = costs_of(kind, batch, n, dtype)
        if dtype == torch.float32 or n <= EXACT_UP_TO:
            exact = dtype == torch.float64
            columns, _, _ = solve_triton(cost, torch.zeros(batch, n, device=DEVICE), exact=exact)
            allowed = n * float(cost.abs().max()) * (1e-13 if exact else 1e-6)
            np.testing.assert_allclose(totals(cost, columns), best(cost), rtol=0, atol=allowed)
        check(cost, assign(cost, impl="triton"))


@pytest.mark.gpu
def test_the_widest_program_on_a_gpu() -> None:
    cost = torch.rand(1, 9000, 9000, device=DEVICE)
    check(cost, assign(cost, impl="triton"))
