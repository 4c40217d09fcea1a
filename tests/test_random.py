"""Counter-based random numbers: published answers, an implementation in plain integers, and what streams promise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kernels.random import keep_mask, normal, permutation, philox, uniform, words

WORD = st.integers(0, 2**32 - 1)
KEY = st.integers(0, 2**64 - 1)


def by_integers(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x32-10 as section 3.3 of the paper says it, in Python integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for number in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        round0, round1 = (k0 + number * 0x9E3779B9) % 2**32, (k1 + number * 0xBB67AE85) % 2**32
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ round0, second % 2**32, (first >> 32) ^ c3 ^ round1, first % 2**32
    return [c0, c1, c2, c3]


def scalars(values: list[int], library: str = "numpy") -> tuple:
    return tuple(np.array([v]) if library == "numpy" else torch.tensor([v]) for v in values)


def keys(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("counter", "key", "answer"),  # kat_vectors of Random123
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(library: str, counter: str, key: str, answer: str) -> None:
    c, k, expected = ([int(word, 16) for word in text.split()] for text in (counter, key, answer))
    assert by_integers(c, k) == expected
    assert [int(word[0]) for word in philox(scalars(c, library), scalars(k, library))] == expected


@given(key=KEY, site=st.integers(0, 511), step=WORD, position=WORD, count=st.integers(0, 9))
def test_words_are_philox_of_index_site_step_position(
    key: int, site: int, step: int, position: int, count: int
) -> None:
    expected = [w for b in range(3) for w in by_integers([b, site, step, position], [key % 2**32, key >> 32])][:count]
    assert words(keys(key), site, step, position, count=count)[0].tolist() == expected
    drawn = words(torch.from_numpy(keys(key).view(np.int64)), site, step, position, count=count)
    assert drawn[0].tolist() == expected
    assert drawn.shape == (1, count)


def test_numpy_and_torch_broadcast_alike() -> None:
    key, step, position = keys(1, 2**63 + 5, 7)[:, None], np.arange(4), np.arange(12).reshape(3, 4)
    drawn = words(torch.from_numpy(key.view(np.int64)), 3, torch.from_numpy(step), torch.from_numpy(position), count=6)
    np.testing.assert_array_equal(drawn.numpy(), words(key, 3, step, position, count=6))
    assert drawn.shape == (3, 4, 6)


@given(KEY, st.lists(KEY, max_size=3), st.integers(1, 30), st.integers(0, 30))
def test_a_stream_depends_on_neither_companions_nor_count(key: int, others: list[int], count: int, more: int) -> None:
    alone = words(keys(key), 1, 2, count=count)[0]
    np.testing.assert_array_equal(words(keys(*others, key), 1, 2, count=count + more)[-1, :count], alone)


def test_streams_of_keys_sites_and_steps_differ() -> None:
    drawn = [words(keys(k), site, step, at, count=8) for k, site, step, at in np.ndindex(3, 3, 3, 3)]
    assert len(np.unique(np.concatenate(drawn))) == 81 * 8


@given(KEY, st.integers(1, 40), st.integers(0, 100))
def test_permutation(key: int, count: int, step: int) -> None:
    assert sorted(permutation(keys(key), 2, step, count=count)[0].tolist()) == list(range(count))


@given(KEY, st.integers(1, 20), st.integers(0, 20))
def test_permutation_of_a_part_is_that_of_a_shorter_one(key: int, length: int, more: int) -> None:
    whole = permutation(keys(key), 2, count=length + more, length=np.array([length]))[0]
    np.testing.assert_array_equal(whole[:length], permutation(keys(key), 2, count=length)[0])
    np.testing.assert_array_equal(whole[length:], np.arange(length, length + more))


def test_all_orders_are_equally_likely() -> None:
    orders = permutation(keys(11), 2, np.arange(24_000), count=4)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3  # the key is fixed: this never fails by chance


def test_uniform_and_normal() -> None:
    drawn = uniform(keys(5), 1, count=100_000)[0]
    assert 0 < drawn.min() < drawn.max() < 1
    assert stats.chisquare(np.histogram(drawn, 256, (0, 1))[0]).pvalue > 1e-3
    gauss = normal(keys(5), 1, count=100_000)[0]
    assert stats.kstest(gauss, "norm").pvalue > 1e-3
    np.testing.assert_allclose([gauss.mean(), gauss.var()], [0, 1], atol=0.015)  # 0.015 = 4.7 and 3.4 standard errors
    np.testing.assert_allclose(stats.norm.cdf(gauss), drawn, atol=1e-14)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
def test_keep_mask_keeps_one_minus_rate(rate: float) -> None:
    kept = keep_mask(keys(9), 256, 0, 0, np.ceil(rate * 2**32), count=100_000)
    assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / 1e5) + 1e-12
