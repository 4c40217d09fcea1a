"""Distances against scipy's, in float64, and what must hold however they are computed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from kernels.distance import distance, gram
from kernels.distance.distance import IMPLEMENTATIONS, nearest, nearest_streamed, pairwise_distance

RIGHT = 1e-6  # what is promised of each distance
EXACT = 1e-13  # sums of float64 differences


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of vectors, of coordinates and of pairs, the last ones not full."""
    for module in (gram, distance):
        monkeypatch.setattr(module, "ROWS", 7)
    for name, value in (("COLUMNS", 64), ("PAIRS", 300)):
        monkeypatch.setattr(gram, name, value)


def population(models: int, size: int, seed: int = 0, spread: float = 0.1) -> np.ndarray:
    """Far from the origin and close to each other, as networks from one initialisation are."""
    noise = np.random.default_rng(seed).normal(size=(models, size))
    return (np.linspace(-9, 9, size) + spread * noise).astype(np.float32)


def truth(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(cdist(a.astype(np.float64), b.astype(np.float64)))


def best_of(distances: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of numpy, what `nearest` gives where nothing is NaN."""
    order = np.argsort(distances, 1, kind="stable")[:, :k]
    found = np.take_along_axis(distances, order, 1)
    return found, np.where(np.isinf(found), -1, order)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [1, 2, 63, 65, 500])
def test_all_pairs_as_scipy(size: int, impl: str) -> None:
    a, b = population(17, size), population(9, size, 1)
    found = pairwise_distance(a, b, impl=impl)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, truth(a, b), rtol=RIGHT if impl == "gram" else EXACT)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_copies_are_at_0_and_near_copies_right(impl: str) -> None:
    b = population(20, 300)
    near = b[:9] + np.float32(1e-4) * population(9, 300, 2, 1.0)
    a = np.concatenate([population(3, 300, 5), b[:4], near, b[4:5]])
    found = pairwise_distance(a, b, impl=impl)
    assert [found[3 + model, model] for model in range(4)] == [0, 0, 0, 0]
    assert found[-1, 4] == 0
    np.testing.assert_allclose(found, truth(a, b), rtol=RIGHT)
    assert (np.diag(pairwise_distance(b, b, impl=impl)) == 0).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_tight_cluster_is_right_too(impl: str) -> None:
    """Two places far from each other: every pair of one place is much nearer than its vectors are long."""
    b = np.concatenate([population(12, 100, 0, 1e-4) + 50, population(12, 100, 1, 1e-4) - 50])
    np.testing.assert_allclose(pairwise_distance(b, b[::2], impl=impl), truth(b, b[::2]), rtol=RIGHT, atol=0)


@pytest.mark.parametrize("factor", [1e-22, 1e-12, 1e12, 1e20])
def test_any_magnitude(factor: float) -> None:
    a, b = population(9, 100) * np.float32(factor), population(8, 100, 1) * np.float32(factor)
    np.testing.assert_allclose(pairwise_distance(a, b), truth(a, b), rtol=RIGHT, atol=0)
    for found, right in zip(nearest(a, b, 2), best_of(truth(a, b), 2), strict=True):
        np.testing.assert_allclose(found, right, rtol=EXACT, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_types(dtype: torch.dtype) -> None:
    a, b = (torch.from_numpy(population(9, 90, seed)).to(dtype) for seed in (0, 1))
    right = truth(a.double().numpy(), b.double().numpy())
    found = pairwise_distance(a, b)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found, right, rtol=RIGHT)
    distances, index = nearest(a, b)
    np.testing.assert_allclose(distances[:, 0], right.min(1), rtol=EXACT)
    np.testing.assert_array_equal(index[:, 0], right.argmin(1))


@pytest.mark.parametrize("k", [1, 3, 11, 30])
def test_nearest_as_numpy(k: int) -> None:
    b = population(25, 130)
    a = np.concatenate([population(10, 130, 1), b[3:6], b[8:9] + np.float32(1e-4)])
    distances, index = nearest(a, b, k)
    right, places = best_of(truth(a, b), min(k, 25))
    np.testing.assert_allclose(distances[:, :25], right, rtol=EXACT, atol=0)
    np.testing.assert_array_equal(index[:, :25], places)
    assert np.isinf(distances[:, 25:]).all()
    assert (index[:, 25:] == -1).all()


def test_the_nearest_is_found_among_many_that_float32_cannot_tell_apart() -> None:
    """All of b lies 1e-6 from each other at a distance of 100: products in float32 see one place."""
    generator = np.random.default_rng(0)
    b = generator.normal(size=40) + 1e-6 * generator.normal(size=(60, 40))
    b[:30] += 100
    a = b[::4] + 1e-7 * generator.normal(size=(15, 40))
    distances, index = nearest(a, b, 2)
    right, places = best_of(cdist(a, b), 2)
    np.testing.assert_array_equal(index, places)
    np.testing.assert_allclose(distances, right, rtol=1e-9)


def test_of_equally_near_ones_the_first() -> None:
    one = population(1, 50)
    b = np.repeat(one, 30, 0)
    distances, index = nearest(np.concatenate([one, population(1, 50, 1)]), b, 3)
    np.testing.assert_array_equal(index, [[0, 1, 2], [0, 1, 2]])
    assert (distances[0] == 0).all()


@pytest.mark.parametrize("k", [1, 4])
def test_equal_groups_are_left_out(k: int) -> None:
    a, groups = population(23, 60), np.arange(23) // 3
    right = np.where(groups[:, None] == groups, np.inf, truth(a, a))
    distances, index = nearest(a, a, k, groups_a=groups, groups_b=torch.from_numpy(groups))
    np.testing.assert_allclose(distances, best_of(right, k)[0], rtol=EXACT)
    np.testing.assert_array_equal(index, best_of(right, k)[1])
    alone, nobody = nearest(a, a, k, groups_a=0 * groups, groups_b=0 * groups)
    assert np.isinf(alone).all()
    assert (nobody == -1).all()


def test_chunks_change_nothing() -> None:
    a, b = population(9, 70, 1), population(40, 70)
    groups_a, groups_b = np.arange(9) % 4, np.arange(40) % 4

    def chunks() -> Iterator[Any]:
        yield b[:0]
        yield b[:1]
        yield torch.from_numpy(b[1:20])
        yield b[20:]

    whole = nearest(a, b, 3, groups_a=groups_a, groups_b=groups_b)
    streamed = nearest_streamed(a, chunks(), 3, groups_a=groups_a, groups_b=groups_b)
    for found, right in zip(streamed, whole, strict=True):
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_hurts_no_other(bad: float) -> None:
    a, b = population(9, 70, 1), population(12, 70)
    right = truth(a, b)
    a[2, 5], b[[3, 11], 69] = bad, bad
    for impl in IMPLEMENTATIONS:
        found = pairwise_distance(a, b, impl=impl)
        assert np.isnan(found[2]).all()
        assert np.isnan(found[:, [3, 11]]).all()
        np.testing.assert_allclose(np.delete(found[:, :3], 2, 0), np.delete(right[:, :3], 2, 0), rtol=RIGHT)
    distances, index = nearest(a, b, 11)
    right[:, [3, 11]] = np.inf
    kept = np.arange(9) != 2
    np.testing.assert_array_equal(index[kept], best_of(right, 11)[1][kept])
    assert np.isnan(distances[2]).all()
    assert (index[2] == -1).all()
    assert not np.isfinite(nearest(a, np.full_like(b, bad))[0]).any()


def test_one_outlier_takes_no_digits_from_the_others() -> None:
    a, b = population(9, 70, 1), population(12, 70)
    b[4] = 1e9
    np.testing.assert_allclose(pairwise_distance(a, b), truth(a, b), rtol=RIGHT)
    np.testing.assert_array_equal(nearest(a, b, 12)[1], best_of(truth(a, b), 12)[1])


def test_read_only_views_and_threads() -> None:
    a = population(30, 80)
    a.flags.writeable = False
    before = torch.get_num_threads()
    np.testing.assert_allclose(
        pairwise_distance(a[::2, ::3], a[:5, ::3], threads=before + 1), truth(a[::2, ::3], a[:5, ::3]), rtol=RIGHT
    )
    assert torch.get_num_threads() == before


def test_nothing_gives_nothing() -> None:
    a = population(3, 8)
    for impl in IMPLEMENTATIONS:
        assert pairwise_distance(a[:0], a, impl=impl).shape == (0, 3)
        assert pairwise_distance(a, a[:0], impl=impl).shape == (3, 0)
        np.testing.assert_array_equal(pairwise_distance(a[:, :0], a[:2, :0], impl=impl), np.zeros((3, 2)))
    distances, index = nearest(a, a[:0], 2)
    assert np.isinf(distances).all()
    assert (index == -1).all()
    assert nearest(a[:0], a)[0].shape == (0, 1)


def test_bad_input_is_refused() -> None:
    a = population(3, 8)
    with pytest.raises(ValueError, match=r"\(N, size\)"):
        pairwise_distance(a, a[:, 1:])
    with pytest.raises(ValueError, match="reference, gram"):
        pairwise_distance(a, a, impl="triton")
    with pytest.raises(ValueError, match="1 or more"):
        nearest(a, a, 0)
    with pytest.raises(ValueError, match="or neither"):
        nearest(a, a, groups_a=[1, 2, 3])
    for groups in ([1], [1, 2, 3, 4]):
        with pytest.raises(ValueError, match="groups_a"):
            nearest(a, a, groups_a=groups, groups_b=[1, 2, 3])
        with pytest.raises(ValueError, match="groups_b"):
            nearest(a, a, groups_a=[1, 2, 3], groups_b=groups)
        with pytest.raises(ValueError, match="groups_b"):
            nearest_streamed(a, [a], groups_a=[1, 2, 3], groups_b=groups)
    with pytest.raises(ValueError, match="chunks"):
        nearest_streamed(a, [a, a[:, 1:]])


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    a, b = population(300, 3000, 1), population(2000, 3000)
    x, y = (torch.from_numpy(side).cuda() for side in (a, b))
    np.testing.assert_allclose(pairwise_distance(x, y).cpu(), truth(a, b), rtol=RIGHT)
    distances, index = nearest(x, y, 3)
    np.testing.assert_array_equal(index.cpu(), best_of(truth(a, b), 3)[1])
    np.testing.assert_allclose(distances.cpu(), best_of(truth(a, b), 3)[0], rtol=EXACT)
