import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.permute.compiled import gather_compiled
from kernels.permute.gather import Gather, gather_numpy
from kernels.permute.population import inverse, permute_population
from kernels.permute.triton_gather import BLOCK
from tests.kernel_inputs import empty_is_nan, surrounded

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = ["reference", "triton"] if DEVICE == "cuda" else ["reference", "compiled", "triton"]


def gathers_of(shapes: Sequence[Any], models: int, seed: int = 0, dtype: Any = np.int64) -> tuple[list[Gather], int]:
    """Gathers of (gap before, rows, cols, inner, sides that move), and the size of the vector, with 3 behind."""
    rng, offset, found = np.random.default_rng(seed), 0, []
    for gap, rows, cols, inner, sides in shapes:
        row, col = (
            rng.permuted(np.broadcast_to(np.arange(n, dtype=dtype), (models, n)), axis=1) if name in sides else None
            for n, name in ((rows, "r"), (cols, "c"))
        )
        found.append(Gather(offset + gap, rows, cols, inner, row, col))
        offset += gap + rows * cols * inner
    return found, offset + 3


def by_hand(weights: np.ndarray, gathers: Sequence[Gather]) -> np.ndarray:
    """The definition, number by number."""
    out = weights.copy()
    for model in range(len(weights)):
        for offset, rows, cols, inner, row, col in gathers:
            for r in range(rows):
                for c in range(cols):
                    a = r if row is None else int(row[model, r])
                    b = c if col is None else int(col[model, c])
                    for k in range(inner):
                        to, source = (r * cols + c) * inner + k, (a * cols + b) * inner + k
                        out[model, offset + to] = weights[model, offset + source]
    return out


SIDES = st.integers(1, 5)
TENSORS = st.tuples(st.integers(0, 3), SIDES, SIDES, SIDES, st.sampled_from(["r", "c", "rc"]))
SHAPES = {
    "one number": [(0, 1, 1, 1, "rc")],
    "nothing moves": [(2, 3, 4, 1, "")],
    "rows, columns, both": [(0, 5, 3, 1, "r"), (2, 4, 6, 1, "c"), (1, 3, 7, 1, "rc"), (0, 1, 5, 1, "c")],
    "kernels": [(3, 4, 3, 9, "rc"), (0, 4, 3, 33, "rc"), (0, 1, 6, 40, "c"), (0, 6, 1, 4, "r")],
    "a tile": [(0, 32, BLOCK // 32, 1, "rc")],
    "a tile and one": [(0, 1, BLOCK + 1, 1, "c"), (0, BLOCK + 1, 1, 1, "r")],
    "wide": [(0, 2, 700, 1, "rc")],
    "narrow": [(0, 700, 2, 1, "rc")],
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_every_implementation_moves_as_the_definition_says(name: str, impl: str) -> None:
    gathers, size = gathers_of(SHAPES[name], 3)
    weights = torch.randn(3, size, generator=torch.Generator().manual_seed(1))
    with empty_is_nan():
        found = permute_population(surrounded(weights.to(DEVICE)), gathers, impl=impl)
    np.testing.assert_array_equal(found.cpu().numpy(), by_hand(weights.numpy(), gathers))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8])
def test_bits_of_all_types_stay(dtype: torch.dtype, impl: str) -> None:
    gathers, size = gathers_of([(1, 4, 5, 2, "rc")], 2)
    bits = torch.randint(-(2**7), 2**7, (2, size * dtype.itemsize), dtype=torch.int8)  # with NaN of all kinds
    found = permute_population(bits.view(dtype).to(DEVICE), gathers, impl=impl)
    same = {1: torch.int8, 2: torch.int16, 8: torch.int64}[dtype.itemsize]
    np.testing.assert_array_equal(found.cpu().view(same).numpy(), by_hand(bits.view(same).numpy(), gathers))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "<i2", ">i2", "u4", "i4", "u8", "i8"])
def test_indices_of_any_integer_type_and_stride_do(dtype: str) -> None:
    gathers, size = gathers_of([(1, 100, 3, 1, "rc"), (0, 4, 5, 3, "rc")], 4, dtype=np.dtype(dtype))
    weights = np.random.default_rng(0).standard_normal((4, size)).astype(np.float32)
    expected = gather_numpy(weights, gathers, "reference")
    strided = [g._replace(row=np.repeat(g.row, 3, 1)[:, ::3], col=np.asfortranarray(g.col)) for g in gathers]
    for given_ in (gathers, strided, gathers[::-1]):
        np.testing.assert_array_equal(gather_compiled(weights, sorted(given_), threads=1), expected)
        np.testing.assert_array_equal(gather_numpy(weights, given_, "compiled"), expected)
    np.testing.assert_array_equal(permute_population(torch.from_numpy(weights), gathers, impl="reference"), expected)
    if np.dtype(dtype).isnative:
        found = permute_population(torch.from_numpy(weights).to(DEVICE), gathers, impl="triton")
        np.testing.assert_array_equal(found.cpu(), expected)


def test_one_of_many_models_takes_its_own_indices_in_any_thread() -> None:
    gathers, size = gathers_of([(0, 40, 50, 1, "rc")], 401)
    weights = np.random.default_rng(0).standard_normal((401, size)).astype(np.float32)
    assert weights.nbytes > 2 << 20  # enough for several threads, and for None to take the compiled path
    expected = gather_numpy(weights, gathers, "reference")
    np.testing.assert_array_equal(gather_compiled(weights, gathers, threads=3), expected)
    np.testing.assert_array_equal(gather_numpy(weights, gathers), expected)
    np.testing.assert_array_equal(permute_population(torch.from_numpy(weights), gathers), expected)


@settings(max_examples=30)
@given(st.lists(TENSORS, max_size=4), st.integers(1, 3), st.integers(0, 99))
def test_moving_back_gives_the_same_weights(shapes: Any, models: int, seed: int) -> None:
    gathers, size = gathers_of(shapes, models, seed)
    weights = np.random.default_rng(seed).standard_normal((models, size)).astype(np.float32)
    moved = gather_numpy(weights, gathers, "compiled")
    np.testing.assert_array_equal(moved, gather_numpy(weights, gathers, "reference"))
    back = inverse(gathers)
    assert back is not None
    np.testing.assert_array_equal(gather_numpy(moved, back, "compiled"), weights)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("repeated", [False, True])
def test_gradients_arrive_where_the_weights_came_from(impl: str, repeated: bool) -> None:
    gathers, size = gathers_of([(0, 3, 4, 1, "rc"), (1, 1, 3, 1, "c")], 2)
    if repeated:  # no permutation: gradients of what is taken twice add up
        gathers[1].col[:] = [[0, 0, 2], [1, 1, 1]]
    weights = torch.randn(2, size, dtype=torch.float64, requires_grad=True, device=DEVICE)
    slopes = torch.randn(2, size, dtype=torch.float64, device=DEVICE)
    (found,) = torch.autograd.grad((permute_population(weights, gathers, impl=impl) * slopes).sum(), weights)
    (expected,) = torch.autograd.grad((permute_population(weights, gathers, impl="reference") * slopes).sum(), weights)
    torch.testing.assert_close(found, expected)
    assert found.ne(0).sum() == (found.numel() if not repeated else found.numel() - 3)  # three are taken by nobody
    if impl != "triton":  # hundreds of calls, each a second under the interpreter
        assert torch.autograd.gradgradcheck(lambda w: permute_population(w, gathers, impl=impl) ** 2, weights)


def test_torch_func_sees_through_it() -> None:
    gathers, size = gathers_of([(0, 60, 70, 1, "rc")], 80)
    weights = torch.randn(80, size)
    assert weights.nbytes > 1 << 20  # outside torch.func this takes the compiled path
    slopes = torch.func.grad(lambda w: (permute_population(w, gathers) * weights).sum())(weights)
    back = inverse(gathers)
    assert back is not None
    torch.testing.assert_close(slopes, permute_population(weights, back))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nothing_to_move_and_nobody_to_move(impl: str) -> None:
    weights = torch.randn(2, 5, device=DEVICE)
    torch.testing.assert_close(permute_population(weights, [], impl=impl), weights)
    assert permute_population(weights[:0], [], impl=impl).shape == (0, 5)
    assert permute_population(weights[:, :0], [], impl=impl).shape == (2, 0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS[1:])  # torch and numpy count negative ones from the end
@pytest.mark.parametrize(("index", "dtype"), [(3, "u1"), (-1, "i1"), (-1, "i8"), (2**40, "i8"), (2**63, "u8")])
def test_an_index_outside_is_an_error(index: int, dtype: str, impl: str) -> None:
    gather = Gather(0, 3, 2, 1, np.array([[0, 1, index]], dtype), None)
    with pytest.raises(IndexError, match="outside"):
        permute_population(torch.zeros(1, 6, device=DEVICE), [gather], impl=impl)


@pytest.mark.parametrize(
    ("gathers", "message"),
    [
        ([Gather(0, 2, 2, 1, None, None), Gather(3, 1, 1, 1, None, None)], "overlap"),
        ([Gather(5, 2, 1, 1, None, None)], r"lie in 0\.\.6"),
        ([Gather(0, 2, 1, 1, np.zeros((1, 3), int), None)], r"\(1, 2\), got \(1, 3\)"),
        ([Gather(0, 2, 1, 1, np.zeros(2, int), None)], r"got \(2,\)"),
    ],
)
def test_gathers_that_do_not_fit_are_an_error(gathers: list[Gather], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        permute_population(torch.zeros(1, 6), gathers)
    with pytest.raises(ValueError, match=message):
        gather_numpy(np.zeros((1, 6)), gathers)


def test_unknown_ways_and_types_are_errors() -> None:
    gather = Gather(0, 2, 1, 1, np.array([[1, 0]]), None)
    with pytest.raises(ValueError, match="reference, compiled, triton"):
        permute_population(torch.zeros(1, 2), [gather], impl="fast")
    with pytest.raises(ValueError, match="got 'fast'"):
        gather_numpy(np.zeros((1, 2)), [gather], "fast")
    with pytest.raises(ValueError, match="integers"):
        gather_numpy(np.zeros((1, 2)), [gather._replace(row=np.array([[1.0, 0.0]]))], "compiled")
    for impl in ("compiled", "triton"):
        with pytest.raises(ValueError, match="8 bytes, got torch"):
            permute_population(torch.zeros(1, 2, dtype=torch.complex128), [gather], impl=impl)


def test_wide_types_and_missing_numba_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gather = Gather(0, 2, 1, 1, np.array([[1, 0]]), None)
    wide = np.array([[1 + 2j, 3]])
    np.testing.assert_array_equal(gather_numpy(wide, [gather]), wide[:, ::-1])
    monkeypatch.setattr("kernels.permute.gather.WORTH", 0)
    monkeypatch.setitem(sys.modules, "kernels.permute.compiled", None)  # as if it could not be imported
    np.testing.assert_array_equal(gather_numpy(np.array([[1.0, 2.0]]), [gather]), [[2.0, 1.0]])
    with pytest.raises(ImportError):
        gather_numpy(np.array([[1.0, 2.0]]), [gather], "compiled")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32, torch.float64])
def test_large_populations_on_a_gpu(dtype: torch.dtype) -> None:
    gathers, size = gathers_of([(5, 512, 512, 1, "rc"), (0, 512, 64, 9, "rc"), (0, 1, 512, 1, "c")], 300)
    weights: Tensor = torch.randn(300, size, device="cuda").to(dtype)
    found = permute_population(weights, gathers, impl="triton")
    assert torch.equal(found, permute_population(weights, gathers, impl="reference"))
