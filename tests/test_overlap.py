"""Overlap of errors against sets of Python."""

from typing import Any

import numpy as np
import pytest
import torch

from kernels.overlap import overlap
from kernels.overlap.overlap import error_overlap, largest_overlap
from tests.kernel_inputs import between, empty_is_nan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = ["reference", "compiled", "triton"]
ON = {"reference": DEVICE, "compiled": "cpu", "triton": DEVICE}
SHAPES = [(1, 1, 1), (3, 65, 7), (33, 64, 8), (2, 70, 13)]  # models, models, bytes
every = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


def errors(models: int, count: int, seed: int = 0) -> torch.Tensor:
    """Bits of models that fail on some samples; the first on none, the second on all."""
    generator = np.random.default_rng(seed)
    bits = generator.random((models, 8 * count)) < generator.uniform(0.2, 1, (models, 1))
    bits[0], bits[1:2] = False, True
    return torch.from_numpy(np.packbits(bits, axis=1))


def truth(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    left, right = ([set(np.flatnonzero(row)) for row in np.unpackbits(side.numpy(), axis=1)] for side in (a, b))
    pairs = [[len(mine & theirs) / max(len(mine | theirs), 1) for theirs in right] for mine in left]
    return np.array(pairs, np.float32).reshape(len(left), len(right))


@every
@pytest.mark.parametrize("shape", SHAPES)
def test_all_pairs_as_sets(shape: tuple[int, int, int], impl: str) -> None:
    a, b = errors(shape[0], shape[2]), errors(shape[1], shape[2], 1)
    with empty_is_nan():
        found = error_overlap(between(a.to(ON[impl])), between(b.to(ON[impl])), impl=impl)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.cpu(), truth(a, b))  # quotients of the same integers, rounded alike


@every
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_as_all_pairs(shape: tuple[int, int, int], grouped: bool, impl: str) -> None:
    a, b = errors(shape[0], shape[2]), errors(shape[1], shape[2], 1)
    b[-1] = b[0]  # equal ones: the first is meant
    groups = np.arange(shape[0]) % 3, np.arange(shape[1]) // 30 - 1
    right = truth(a, b)
    if grouped:
        right = np.where(groups[0][:, None] == groups[1], -1, right)
    given: dict[str, Any] = {"groups_a": groups[0], "groups_b": groups[1]} if grouped else {}
    with empty_is_nan():
        largest, index = largest_overlap(between(a.to(ON[impl])), between(b.to(ON[impl])), impl=impl, **given)
    assert (largest.dtype, index.dtype) == (torch.float32, torch.int64)
    np.testing.assert_array_equal(largest.cpu(), right.max(1).clip(0))
    np.testing.assert_array_equal(index.cpu(), np.where(right.max(1) < 0, -1, right.argmax(1)))


@every
def test_who_has_nobody_left_overlaps_with_nobody(impl: str) -> None:
    bits = errors(5, 3).to(ON[impl])
    for b, groups in ((bits, [4] * 5), (bits[:0], [])):
        largest, index = largest_overlap(bits, b, groups_a=[4] * 5, groups_b=groups, impl=impl)
        np.testing.assert_array_equal(largest.cpu(), np.zeros(5))
        np.testing.assert_array_equal(index.cpu(), np.full(5, -1))
    assert error_overlap(bits, bits[:0], impl=impl).shape == (5, 0)
    assert error_overlap(bits[:0], bits, impl=impl).shape == (0, 5)
    assert largest_overlap(bits[:0], bits, impl=impl)[0].shape == (0,)
    np.testing.assert_array_equal(error_overlap(bits[:, :0], bits[:2, :0], impl=impl).cpu(), np.zeros((5, 2)))


@every
def test_what_is_known_of_any_population(impl: str) -> None:
    bits = errors(20, 9).to(ON[impl])
    found = error_overlap(bits, bits, impl=impl).cpu().numpy()
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diag(found), [0, *[1] * 19])  # with itself; no errors overlap in nothing
    moved = bits.flip(1)  # the order of samples means nothing
    np.testing.assert_array_equal(error_overlap(moved, moved, impl=impl).cpu(), found)


@pytest.mark.parametrize("impl", ["reference", "compiled"])
def test_parts_change_nothing(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = errors(50, 20), errors(41, 20, 1)
    groups: dict[str, Any] = {"groups_a": np.arange(50) // 5, "groups_b": np.arange(41) // 5}
    whole = [error_overlap(a, b, impl=impl), *largest_overlap(a, b, impl=impl, **groups)]
    monkeypatch.setattr(overlap, "TOGETHER", 300)
    monkeypatch.setattr("kernels.overlap.compiled.PART", 100)
    cut = [error_overlap(a, b, impl=impl, threads=3), *largest_overlap(a, b, impl=impl, threads=3, **groups)]
    for found, right in zip(cut, whole, strict=True):
        np.testing.assert_array_equal(found, right)


def test_numpy_in_numpy_out_and_who_is_chosen() -> None:
    bits = errors(300, 200).numpy()
    bits.flags.writeable = False
    found = error_overlap(bits, bits)
    assert isinstance(found, np.ndarray)
    assert len(bits) * bits.size >= overlap.WORTH  # so compiled code did it
    np.testing.assert_array_equal(found, error_overlap(bits, bits, impl="reference"))
    assert isinstance(largest_overlap(bits, bits)[1], np.ndarray)


def test_bad_input_is_refused() -> None:
    bits = errors(3, 4)
    with pytest.raises(ValueError, match=r"\(N, bytes\)"):
        error_overlap(bits, bits[:, 1:])
    with pytest.raises(ValueError, match="packbits"):
        error_overlap(bits.bool(), bits)
    with pytest.raises(ValueError, match="reference, compiled, triton"):
        error_overlap(bits, bits, impl="gram")
    with pytest.raises(ValueError, match="or neither"):
        largest_overlap(bits, bits, groups_b=[1, 2, 3])
    with pytest.raises(ValueError, match="groups_b must be 3"):
        largest_overlap(bits, bits, groups_a=[1, 2, 3], groups_b=[1, 2])
    with pytest.raises(ValueError, match="samples can be counted"):
        error_overlap(torch.zeros(1, 2**20 + 1, dtype=torch.uint8), torch.zeros(1, 2**20 + 1, dtype=torch.uint8))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1000, 1000, 45), (333, 1001, 1250)])
def test_on_a_gpu(shape: tuple[int, int, int]) -> None:
    a, b = errors(shape[0], shape[2]).cuda(), errors(shape[1], shape[2], 1).cuda()
    assert torch.equal(error_overlap(a, b), error_overlap(a, b, impl="reference"))
    groups: dict[str, Any] = {"groups_a": torch.arange(shape[0]) // 10, "groups_b": torch.arange(shape[1]) // 10}
    for found, right in zip(
        largest_overlap(a, b, **groups), largest_overlap(a, b, impl="reference", **groups), strict=True
    ):
        assert torch.equal(found, right)
