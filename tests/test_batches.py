"""The batches of runs: whole, disjoint within an epoch, and a function of the run alone."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.random import permutation
from zoo.batches import SITE, SIZES, Batches, micro_batch


@given(st.integers(1, 2**20))
def test_micro_batches_waste_little_and_stay_small(batch_size: int) -> None:
    micro = micro_batch(batch_size)
    assert micro <= batch_size
    assert math.ceil(batch_size / micro) * micro <= batch_size * 17 / 16  # a sixteenth of padding at the most
    assert micro <= 16 * SIZES[0]  # or memory would follow the batch
    assert micro_batch(batch_size, whole=True) == batch_size


def test_powers_of_two_share_sizes() -> None:
    assert {micro_batch(2**n) for n in range(2, 21)} == set(SIZES)


@st.composite
def groups(draw: st.DrawFn) -> Batches:
    """Runs of some batch sizes that share a micro-batch, with enough samples for a batch or more."""
    size = draw(st.sampled_from([4, 16]))
    sizes = draw(
        st.lists(st.sampled_from([b for b in range(size, 70) if micro_batch(b) == size]), min_size=1, max_size=4)
    )
    samples = [draw(st.integers(b, 5 * b)) for b in sizes]
    keys = draw(st.lists(st.integers(0, 2**64 - 1), min_size=len(sizes), max_size=len(sizes)))
    return Batches(np.array(keys, np.uint64), np.array(sizes), np.array(samples), size)


@given(groups(), st.integers(1, 3))
@settings(max_examples=50)
def test_updates_of_an_epoch_are_whole_disjoint_batches_of_a_shuffle(batches: Batches, epochs: int) -> None:
    for run in range(len(batches.keys)):
        size, updates, splits = (int(v[run]) for v in (batches.batch_size, batches.updates, batches.splits))
        index, position, update = batches.block(0, epochs * updates * splits)
        for epoch in range(epochs):
            order = permutation(batches.keys[run : run + 1], SITE, epoch, count=int(batches.samples[run]))[0]
            seen = []
            for number in range(epoch * updates, (epoch + 1) * updates):
                mine = update[:, run] == number
                place, sample = position[mine, run], index[mine, run]
                assert sorted(place[place >= 0].tolist()) == list(range(size))
                assert (sample[place < 0] == sample[place == 0]).all()  # padding repeats a sample of this very batch
                seen += sample[place >= 0][np.argsort(place[place >= 0])].tolist()
            assert seen == order[: updates * size].tolist()
            assert len(set(seen)) == len(seen)


@given(groups(), st.lists(st.integers(0, 60), min_size=2, max_size=5, unique=True).map(sorted))
@settings(max_examples=50)
def test_cuts_and_companions_change_nothing(batches: Batches, cuts: list[int]) -> None:
    whole = batches.block(cuts[0], cuts[-1])
    parts = [batches.block(start, stop) for start, stop in itertools.pairwise(cuts)]
    fresh = [batches.select(np.arange(len(batches.keys))).block(a, b) for a, b in itertools.pairwise(cuts)]
    for i, array in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), array)
        np.testing.assert_array_equal(np.concatenate([part[i] for part in fresh]), array)
        for run in range(len(batches.keys)):
            alone = batches.select(np.array([run])).block(cuts[0], cuts[-1])
            np.testing.assert_array_equal(alone[i][:, 0], array[:, run])


def test_a_short_epoch_among_long_ones_draws_no_long_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def counting(*args: object, **kwargs: object) -> np.ndarray:
        order = permutation(*args, **kwargs)  # type: ignore[arg-type]  # passed on
        drawn.append(order.size)
        return order

    monkeypatch.setattr("zoo.batches.permutation", counting)
    batches = Batches(np.arange(2, dtype=np.uint64), np.array([4, 4]), np.array([4, 50_000]), 4)
    for start in range(0, 1024, 256):  # 1024 epochs of the first, a twelfth of one of the second
        batches.block(start, start + 256)
    assert sum(drawn) == 1024 * 4 + 50_000
