import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.similarity.similarity import highest, reference, similarity
from tests.kernel_inputs import empty_is_nan, surrounded

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = ["reference", "triton"]
SHAPES = [(1, 1, 1, 1), (2, 32, 32, 32), (2, 33, 33, 33), (3, 3, 70, 5), (2, 70, 2, 1), (2, 5, 5, 100), (2, 65, 66, 7)]


def sides(shape: tuple[int, int, int, int], shared: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    models, n, p, inner = shape
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(models, n, inner, generator=generator)
    b = torch.randn(*(() if shared else (models,)), p, inner, generator=generator)
    return a.to(dtype).to(DEVICE), b.to(dtype).to(DEVICE)


def truth(a: Tensor, b: Tensor) -> np.ndarray:
    """Float64, by another library."""
    return np.einsum("mik,mjk->mij", a.double().cpu().numpy(), b.double().cpu().expand(len(a), -1, -1).numpy())


def allowed(inner: int) -> float:
    """Rounding of so many terms: products of about 1, each sum of them up to 4 sqrt(inner), in float32."""
    return 2.0**-23 * inner * 8


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_all_shapes(shape: tuple[int, int, int, int], shared: bool, impl: str) -> None:
    a, b = sides(shape, shared, torch.float32)
    with empty_is_nan():
        found = similarity(surrounded(a), surrounded(b), impl=impl)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.cpu(), truth(a, b), rtol=0, atol=allowed(shape[3]))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_summed_in_float32(dtype: torch.dtype, impl: str) -> None:
    a, b = sides((3, 9, 8, 40), True, dtype)
    found = similarity(a, b, impl=impl)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.cpu(), truth(a, b), rtol=0, atol=allowed(40))
    mixed = similarity(a, b.double(), impl=impl)
    np.testing.assert_allclose(mixed.cpu(), truth(a, b), rtol=0, atol=allowed(40))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int32])
def test_sums_in_float64(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.similarity.similarity.TOGETHER", 200)  # a model at a time, and a rest
    for shared in (True, False):
        a, b = sides((5, 9, 8, 40), shared, torch.float32)
        a, b = (8 * a).to(dtype), (8 * b).to(dtype)
        found = similarity(a, b, dtype=torch.float64)
        np.testing.assert_allclose(found.cpu(), truth(a, b), rtol=0, atol=1e-15 * 40 * 64 * 8)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_views_into_flat_vectors_and_any_strides(impl: str) -> None:
    flat = torch.randn(3, 50, device=DEVICE)
    a, b = flat[:, 4:28].view(3, 6, 4), flat[:, 30:50].view(3, 5, 4)
    np.testing.assert_allclose(similarity(a, b, impl=impl).cpu(), truth(a, b), rtol=0, atol=allowed(4))
    np.testing.assert_allclose(similarity(a, b[0], impl=impl).cpu(), truth(a, b[:1]), rtol=0, atol=allowed(4))
    a, b = flat[:, 4:28].view(3, 4, 6).transpose(1, 2), flat[:, 30:50].view(3, 4, 5).transpose(1, 2)
    np.testing.assert_allclose(similarity(a, b, impl=impl).cpu(), truth(a, b), rtol=0, atol=allowed(4))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nothing_gives_nothing(impl: str) -> None:
    assert similarity(torch.zeros(0, 3, 4), torch.zeros(5, 4), impl=impl).shape == (0, 3, 5)
    assert similarity(torch.zeros(0, 3, 4).half(), torch.zeros(0, 5, 4), impl=impl).shape == (0, 3, 5)
    found = similarity(torch.zeros(2, 3, 0, device=DEVICE), torch.zeros(5, 0, device=DEVICE), impl=impl)
    assert torch.equal(found.cpu(), torch.zeros(2, 3, 5))


def test_full_precision_whatever_is_allowed_elsewhere() -> None:
    seen = []
    torch.set_float32_matmul_precision("medium")
    try:
        with highest():
            seen.append(torch.get_float32_matmul_precision())
        assert torch.get_float32_matmul_precision() == "medium"
        a, b = sides((2, 9, 8, 40), False, torch.float32)
        np.testing.assert_allclose(similarity(a, b).cpu(), truth(a, b), rtol=0, atol=allowed(40))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest"]


def test_gradients() -> None:
    a, b = (side.double().requires_grad_() for side in sides((2, 3, 4, 5), True, torch.float32))
    assert torch.autograd.gradcheck(lambda x, y: similarity(x, y, dtype=torch.float64), (a, b))


def test_bad_input_is_refused() -> None:
    a, b = torch.zeros(2, 3, 4), torch.zeros(5, 4)
    for left, right in ((a[0], b), (a, b[0]), (a, b[:, :3]), (a, b.expand(3, 5, 4))):
        with pytest.raises(ValueError, match=r"must be \(models, n, inner\)"):
            similarity(left, right)
    with pytest.raises(ValueError, match="float16"):
        similarity(a, b, dtype=torch.float16)
    with pytest.raises(ValueError, match="reference, triton"):
        similarity(a, b, impl="compiled")
    with pytest.raises(ValueError, match="float64"):
        similarity(a, b, dtype=torch.float64, impl="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(50, 32, 32, 64), (50, 512, 512, 577), (3, 100, 700, 4000)])
def test_every_configuration_on_a_gpu(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    for shared in (True, False):
        a, b = sides(shape, shared, dtype)
        expected = reference(a, b, torch.float64)
        for impl in IMPLEMENTATIONS:
            found = similarity(a, b, impl=impl).double()
            torch.testing.assert_close(found, expected, rtol=0, atol=allowed(shape[3]))
