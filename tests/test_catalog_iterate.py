"""Iterating over populations: every row once, in an order that follows from seed and epoch, however it is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import catalog
from catalog import iterate
from catalog.errors import CorruptError, MissingDataError, QueryError
from catalog.publish import publish
from catalog.store import Zoo
from tests.catalog_zoos import Truth, fill, long, net
from tests.servers import put

MODELS = 41
Order = list[tuple[int, int]]


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of three rows of 36 bytes, windows of four blocks: 80 rows are seven windows."""
    monkeypatch.setattr(iterate, "BLOCK", 3 * 36)
    monkeypatch.setattr(iterate, "WINDOW", 4)
    monkeypatch.setenv("WEIGHTSCAPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Zoo, Truth]:
    folder = tmp_path_factory.mktemp("iterate")
    zoo, truth = fill(folder / "zoo", net(models=MODELS))
    return folder, zoo, truth


def read_all(batches: Iterator[tuple[pl.DataFrame, Any]], truth: Truth | None = None) -> list[Order]:
    """The (model, checkpoint) of each batch, after a look at the weights."""
    found = []
    for rows, weights in batches:
        keys = list(rows.select("variant", "model", "checkpoint").iter_rows())
        if truth is not None:
            np.testing.assert_array_equal(weights, np.stack([truth[key] for key in keys]))
        found.append([(model, checkpoint) for _, model, checkpoint in keys])
    return found


def flat(batches: list[Order]) -> Order:
    return [row for batch in batches for row in batch]


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 90),
    memory=st.sampled_from([1, 200, 1000, 10**6]),
    seed=st.integers(0, 3),
    parts=st.integers(1, 4),
    shuffle=st.booleans(),
)
def test_every_row_once_in_an_order_of_seed_and_epoch_alone(
    made: Any, batch: int, memory: int, seed: int, parts: int, shuffle: bool
) -> None:
    _, zoo, truth = made
    rows = zoo.scan().collect()
    every = set(rows.select("model", "checkpoint").iter_rows())
    options: dict[str, Any] = {"seed": seed, "epoch": 2, "shuffle": shuffle}
    seen: Order = []
    for part in range(parts):
        here = {**options, "part": (part, parts)}
        found = read_all(zoo.iterate(rows, batch, memory=memory, **here), truth)
        assert [len(some) for some in found[:-1]] == [batch] * (len(found) - 1)
        assert 0 <= len(flat(found)) - len(rows) // parts <= 1
        assert flat(found) == flat(read_all(zoo.iterate(rows, 7, **here)))
        whole = read_all(zoo.iterate(rows, batch, memory=memory, drop_last=True, **here))
        assert whole == found[: len(rows) // parts // batch]
        start = len(found) // 2
        assert read_all(zoo.iterate(rows, batch, memory=memory, start=start, **here)) == found[start:]
        seen += flat(found)
    assert sorted(seen) == sorted(every)
    if not shuffle:
        assert seen == list(rows.select("model", "checkpoint").iter_rows())


def test_the_order(made: Any) -> None:
    """Fixed for ever: whoever goes on with a training has the same batches after an update."""
    _, zoo, _ = made
    rows = zoo.scan().collect()
    first = flat(read_all(zoo.iterate(rows, 16)))
    assert first[:8] == EXPECTED
    assert flat(read_all(zoo.iterate(rows.sample(fraction=1, shuffle=True, seed=0), 16))) == first  # sorted before
    others = [flat(read_all(zoo.iterate(rows, 16, **other))) for other in ({"seed": 1}, {"epoch": 1})]
    assert len({tuple(order) for order in (first, *others)}) == 3
    assert all(sorted(order) == sorted(first) for order in others)


EXPECTED = [(13, 1), (30, 0), (30, 1), (29, 1), (0, 1), (40, 1), (14, 1), (2, 0)]


def test_windows_have_rows_of_random_places(made: Any) -> None:
    _, zoo, _ = made
    rows = zoo.scan().collect()
    planned = iterate.plan(rows, 36, 0, 0)
    windows = [planned.order[a:b] for a, b in zip(planned.edges, planned.edges[1:], strict=False)]
    assert [len(window) for window in windows] == [12] * 6 + [len(rows) - 72]
    for window in windows[:-1]:
        blocks, counts = np.unique(window // 3, return_counts=True)
        assert len(blocks) >= 4
        assert counts.max() <= 3
        assert (np.diff(window) == 1).sum() <= 7  # not in order
    assert set(iterate.plan(rows, 36, 0, 1).order[:12].tolist()) != set(windows[0].tolist())
    firsts = [iterate.plan(rows, 36, seed, 0).order[0] for seed in range(200)]
    assert len(set(firsts)) > 60  # of 80 rows


def test_a_population_of_one_window_is_shuffled_uniformly() -> None:
    rows = pl.DataFrame({"variant": "net", "model": range(4), "checkpoint": 0})
    counts = np.zeros((4, 4))
    for seed in range(2400):
        counts[np.arange(4), iterate.plan(rows, 36, seed, 0).order] += 1
    assert (np.abs(counts - 600) < 5 * np.sqrt(600 * 0.75)).all()  # five standard deviations


@pytest.mark.parametrize("place", ["folder", "memory", "packed"])
def test_the_same_wherever_it_lies(place: str, made: Any, tmp_path: Path) -> None:
    folder, zoo, truth = made
    rows = zoo.scan().collect()
    options: dict[str, Any] = {"seed": 3, "memory": 700}
    expected = read_all(zoo.iterate(rows, 16, **options), truth)
    url = str(tmp_path / "zoo")
    if place == "folder":
        publish(zoo, url)
    elif place == "packed":
        catalog.pack(folder / "zoo", url)
    else:
        url = f"memory://{tmp_path.name}"
        publish(zoo, tmp_path / "site")
        put(tmp_path / "site", url)
    far = catalog.open(url)
    assert read_all(far.iterate(far.scan(), 16, **options), truth) == expected


def test_each_byte_is_read_once(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, zoo, truth = made
    publish(zoo, tmp_path / "site")
    put(tmp_path / "site", f"memory://{tmp_path.name}")
    far = catalog.open(f"memory://{tmp_path.name}")
    rows = far.scan().collect()
    far.read(rows[:1])
    fetched: list[int] = []
    real = far.folder.fs.cat_ranges

    def counting(paths: Any, starts: Any, stops: Any, **options: Any) -> Any:
        fetched.extend(stop - start for path, start, stop in zip(paths, starts, stops, strict=True) if "/c/" in path)
        return real(paths, starts, stops, **options)

    monkeypatch.setattr(far.folder.fs, "cat_ranges", counting)
    read_all(far.iterate(rows, 16), truth)
    assert len(rows) * 36 <= sum(fetched) <= 1.34 * len(rows) * 36
    fetched.clear()
    read_all(far.iterate(rows, 10, start=7), truth)  # the rest, and of what came before nothing
    assert sum(fetched) <= 1.34 * (len(rows) - 70) * 36


def test_tensors_types_frames_and_torch(made: Any) -> None:
    _, zoo, _ = made
    rows = zoo.scan().collect()
    some, weights = next(zoo.iterate(rows, 5, tensors=["b"], dtype="float64"))
    np.testing.assert_array_equal(weights, zoo.read(some, tensors=["b"], dtype="float64"))
    _, whole = next(zoo.iterate(rows, 5, tensors=iter(["b", "w"])))
    assert whole.shape == (5, 8)
    torch = pytest.importorskip("torch")
    tensors = [found for _, found in zoo.iterate(rows, 7, torch=True, memory=1)]
    assert all(isinstance(found, torch.Tensor) for found in tensors)
    assert sum(map(len, tensors)) == len(rows)


def test_parts_have_as_many_batches(made: Any) -> None:
    _, zoo, _ = made
    rows = zoo.scan().collect()[:7]
    numbers = [len(list(zoo.iterate(rows, 4, part=(part, 2), drop_last=True))) for part in range(2)]
    assert numbers == [0, 0]  # of three rows and of four


def test_several_zoos(tmp_path: Path) -> None:
    first, truth = fill(tmp_path / "a", net(), name="a")
    _, other = fill(tmp_path / "b", net("web"), name="b", seed=1)
    zoos = catalog.open([tmp_path / "a", tmp_path / "b"])
    found = read_all(zoos.iterate(zoos.scan(), 4, seed=1, memory=300), truth | other)
    assert len(flat(found)) == len(truth) + len(other) - 2  # but those of the run that diverged
    assert found != read_all(zoos.iterate(zoos.scan(), 4, seed=2))
    assert len(first.scan().collect()) * 2 == len(flat(found))


def test_errors(made: Any, tmp_path: Path) -> None:
    _, zoo, _ = made
    rows = zoo.scan().collect()
    for wrong in ({"batch": 0}, {"memory": 0}, {"start": -1}, {"seed": -1}, {"epoch": -1}, {"part": (2, 2)}):
        with pytest.raises(QueryError):
            zoo.iterate(rows, **{"batch": 4, **wrong})  # at once, not with the first batch
    with pytest.raises(QueryError, match="no rows"):
        zoo.iterate(rows[:0], 4)
    with pytest.raises(MissingDataError, match="diverged"):
        list(zoo.iterate(zoo.scan(None), 4))
    both, _ = fill(tmp_path / "both", net(), long())
    with pytest.raises(QueryError, match="one variant"):
        both.iterate(both.scan(), 4)
    file = tmp_path / "both/weights/net/c/1/0/0"
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(CorruptError):
        list(both.iterate(both.scan().filter(variant="net"), 4))
    assert list(zoo.iterate(rows, 4, start=1000)) == []


def test_no_thread_stays(made: Any) -> None:
    _, zoo, _ = made
    batches = zoo.iterate(zoo.scan(), 4, memory=1)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if "weightscape-iterate" in thread.name]
