"""Rows of a zoo in a DataLoader: right values, statistics of the training split alone, workers of any start method."""

from __future__ import annotations

import multiprocessing.reduction
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils.data import DataLoader, Subset

import catalog
from catalog.dataset import WeightDataset
from catalog.errors import MissingDataError, QueryError, UnknownNameError, ZooError
from catalog.grid import Grid
from catalog.normal import KINDS
from catalog.record import Variant
from catalog.splits import split as split_lineages
from catalog.store import Zoo
from tests.catalog_zoos import LAYOUT

RUNS, EPOCHS = 30, 2
SHAPE = (RUNS, EPOCHS, LAYOUT.size)


def weights_of(seed: int) -> np.ndarray:
    """(30, 2, 9): every weight with a mean and a scale of its own, one that is constant."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=SHAPE) * np.linspace(0.5, 3, 9) + np.arange(9)
    weights[..., 4] = 0.1
    weights[..., -1] = np.arange(RUNS * EPOCHS).reshape(RUNS, EPOCHS)  # an integer
    return weights.astype(np.float32)


def make(folder: Path, weights: np.ndarray) -> Zoo:
    """30 runs; run 2 diverged behind its first checkpoint. A second variant with two runs of its own."""
    grid = Grid(SHAPE, (5, 1, 9), (10, 2, 9), "float32")
    small = Grid((2, 2, 9), (2, 1, 9), (2, 2, 9), "float32")
    variants = [Variant("net", {"family": "mlp"}, LAYOUT, grid), Variant("other", {"family": "mlp"}, LAYOUT, small)]
    zoo = catalog.create(folder, name="lab", variants=variants)
    for variant, shard in zoo.record.shards:
        models = zoo.record.variant(variant).grid.models(shard)
        names = [f"run-{model}" if variant == "net" else f"other-{model}" for model in models for _ in range(EPOCHS)]
        dead = [name == "run-2" and bool(at % 2) for at, name in enumerate(names)]
        rows = pl.DataFrame(
            {
                "run": names,
                "epoch": [0, 5] * len(models),
                "status": ["diverged" if gone else "ok" for gone in dead],
                "reason": ["loss is NaN" if gone else "" for gone in dead],
                "stored": [not gone for gone in dead],
                "width": [int(name.split("-")[1]) % 4 for name in names],
                "accuracy": [int(name.split("-")[1]) / 32 for name in names],
                "optimizer": ["sgd", "adam"] * len(models),
                "good": [int(name.split("-")[1]) % 2 == 0 for name in names],
                "loss": [None if name == "run-5" else 0.5 for name in names],
            }
        )
        catalog.write_shard(zoo, variant, shard, weights[models.start : models.stop], rows, {})
    return zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    made = make(tmp_path_factory.mktemp("dataset") / "lab.zoo", weights_of(0))
    split_lineages(made)
    return made


def nets(zoo: Zoo, *conditions: Any) -> pl.DataFrame:
    return zoo.scan().filter(pl.col("variant") == "net", *conditions).collect()


def test_items_are_the_rows_in_order_with_their_targets(zoo: Zoo) -> None:
    rows = nets(zoo, pl.col("split") == "train")
    found = catalog.dataset(zoo.url, nets(zoo), target="accuracy")
    assert len(found) == len(rows) > 40
    expected = zoo.read(rows)
    weights, target = found[3]
    assert weights.dtype == target.dtype == torch.float32
    np.testing.assert_array_equal(weights.numpy(), expected[3])
    assert target.item() == rows["accuracy"][3]
    assert torch.equal(found[-1][0], found[len(found) - 1][0])
    with pytest.raises(IndexError, match="none is number"):
        found[len(found)]
    batch = found.__getitems__([7, 2, 2])
    np.testing.assert_array_equal(torch.stack([one for one, _ in batch]).numpy(), expected[[7, 2, 2]])
    loaded, targets = next(iter(DataLoader(Subset(found, [9, 1]), batch_size=2)))
    np.testing.assert_array_equal(loaded.numpy(), expected[[9, 1]])
    np.testing.assert_array_equal(targets.numpy(), rows["accuracy"].to_numpy()[[9, 1]].astype(np.float32))


def test_rows_may_come_with_their_address_alone(zoo: Zoo) -> None:
    rows = nets(zoo).select("variant", "model", "checkpoint")
    same = catalog.dataset(zoo, rows.reverse(), target=["accuracy", "width"], split="test")
    whole = nets(zoo, pl.col("split") == "test").reverse()
    np.testing.assert_array_equal(same.read(np.arange(len(same))), zoo.read(whole))
    assert same[0][1].tolist() == [whole["accuracy"][0], whole["width"][0]]
    everything = catalog.dataset(zoo, nets(zoo).lazy(), split=None, target="good")
    assert len(everything) == len(nets(zoo))
    assert everything[1][1].dtype == torch.int64


def test_splits_share_no_lineage_and_miss_none(zoo: Zoo) -> None:
    rows = nets(zoo)
    places = {}
    for name in ("train", "validation", "test"):
        found = catalog.dataset(zoo, rows, split=name)
        places[name] = set(found.models.tolist())
    assert sum(map(len, places.values())) == len(set.union(*places.values())) == RUNS
    own = rows.with_columns(split=pl.lit("test"))  # a split of one's own, as a column of the rows
    assert len(catalog.dataset(zoo, own, split="test")) == len(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_the_training_split(zoo: Zoo, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["catalog.dataset"], "BYTES", 36 * 7)  # seven networks at a time
    rows = nets(zoo)
    train = zoo.read(rows.filter(pl.col("split") == "train"), dtype="float64")
    found = catalog.dataset(zoo, rows, split="test", normalise=kind, dtype="float64")
    again = catalog.dataset(zoo, rows, split="train", normalise=kind, dtype="float64")
    scaled = again.read(np.arange(len(again)))
    parts: Any = {"standard": range(9), "layer": [slice(0, 6), slice(6, 8), slice(8, 9)], "global": [slice(0, 9)]}[kind]
    for part in parts:
        mean, scale = train[:, part].mean(), train[:, part].std()
        constant = scale < 1e-6
        np.testing.assert_allclose(scaled[:, part].mean(), 0, atol=1e-12)
        np.testing.assert_allclose(scaled[:, part].std(), 0 if constant else 1, atol=1e-9)
        wanted = found._stored(np.arange(len(found)))[:, part] - mean
        np.testing.assert_allclose(found.read(np.arange(len(found)))[:, part], wanted / (1 if constant else scale))
    assert found.normaliser is not None
    assert found.normaliser.rows == len(train)
    back = found.denormalise(torch.stack([found[at] for at in range(len(found))]))
    np.testing.assert_allclose(back.numpy(), found._stored(np.arange(len(found))), atol=1e-12)


def test_other_splits_never_touch_the_statistics(zoo: Zoo, tmp_path: Path) -> None:
    """The same zoo with other weights in the runs that are held out: nothing of the normaliser changes."""
    held = nets(zoo, pl.col("split") != "train")["model"].unique().to_list()
    for changed, same in ((held, True), ([*held, 1], False)):
        weights = weights_of(0)
        weights[changed] *= 100
        other = make(tmp_path / f"{same}.zoo", weights)
        split_lineages(other)
        for name in ("train", "validation", "test"):
            first = catalog.dataset(zoo, nets(zoo), split=name, normalise="standard").normaliser
            second = catalog.dataset(other, nets(other), split=name, normalise="standard").normaliser
            assert first is not None
            assert second is not None
            assert np.array_equal(first.mean, second.mean) == np.array_equal(first.scale, second.scale) == same


def test_a_fitted_normaliser_serves_another_dataset(zoo: Zoo) -> None:
    train = catalog.dataset(zoo, nets(zoo), normalise="layer")
    assert train.normaliser is not None
    other = catalog.dataset(zoo, nets(zoo), split=None, normalise=train.normaliser)
    np.testing.assert_array_equal(other.read(np.array([0])), train.normaliser.apply(zoo.read(nets(zoo)[:1])))
    with pytest.raises(QueryError, match="another layout"):
        catalog.dataset(zoo, nets(zoo), tensors=["w"], normalise=train.normaliser)


def test_tensors_types_and_transforms(zoo: Zoo) -> None:
    rows = nets(zoo)
    part = catalog.dataset(zoo, rows, tensors=["b", "w"], dtype="bfloat16", transform=torch.neg)
    assert part.layout.names == ("w", "b")
    assert part[0].dtype == torch.bfloat16
    expected = -torch.from_numpy(zoo.read(rows.filter(pl.col("split") == "train"), ["w", "b"])).bfloat16()
    assert torch.equal(torch.stack(part.__getitems__([0, 5])), expected[[0, 5]])


def test_what_cannot_be_a_dataset(zoo: Zoo, tmp_path: Path) -> None:
    bare = make(tmp_path / "bare.zoo", weights_of(0))
    every = zoo.scan(None).filter(pl.col("variant") == "net").collect()
    cases: list[tuple[Zoo, pl.DataFrame | None, dict[str, Any], type[ZooError], str]] = [
        (bare, nets(bare), {}, QueryError, r"has no split .* catalog\.split\(zoo\)"),
        (bare, nets(bare), {"split": None, "normalise": "standard"}, QueryError, "has no split"),
        (zoo, None, {}, QueryError, "these rows are of 2: net, other"),
        (zoo, every, {"split": None}, MissingDataError, "1 of 60 rows hold no weights, such as run run-2 at epoch 5"),
        (zoo, nets(zoo)[:0], {}, QueryError, "no rows of"),
        (zoo, nets(zoo), {"split": "val"}, UnknownNameError, "did you mean 'validation'|known: test"),
        (zoo, nets(zoo), {"target": "phase"}, UnknownNameError, "unknown column 'phase'"),
        (zoo, nets(zoo), {"target": "optimizer"}, QueryError, "a target is a column of numbers"),
        (zoo, nets(zoo), {"target": "loss", "split": None}, QueryError, "target loss has no number in some"),
        (zoo, nets(zoo), {"tensors": ["v"]}, UnknownNameError, "unknown tensor 'v'"),
        (zoo, nets(zoo), {"frame": "universe"}, UnknownNameError, "universe"),
        (zoo, nets(zoo), {"normalise": "minmax"}, UnknownNameError, "known: global, layer, standard"),
        (zoo, nets(zoo), {"dtype": "int8"}, UnknownNameError, "unknown dtype"),
        (zoo, nets(zoo).with_columns(zoo=pl.lit("x")), {}, QueryError, "rows of zoo 'x'"),
        (zoo, nets(zoo).drop("model"), {}, UnknownNameError, "unknown column 'model'"),
        (zoo, nets(zoo).with_columns(split=pl.lit(None, pl.String)), {}, QueryError, "are in no split"),
    ]
    for which, rows, options, error, message in cases:
        with pytest.raises(error, match=message):
            catalog.dataset(which, rows, **options)
    large = make(tmp_path / "large.zoo", weights_of(0) * 1e5)
    with pytest.raises(QueryError, match="pass the range of float16"):
        catalog.dataset(large, nets(large), split=None, dtype="float16")[0]


def test_what_travels_to_a_worker_is_small_and_opens_there(zoo: Zoo, tmp_path: Path) -> None:
    copy = tmp_path / "copy.zoo"
    shutil.copytree(zoo.url, copy)
    found = catalog.dataset(copy, nets(zoo), target="accuracy", normalise="standard")
    found[0]  # opens files
    sent = bytes(multiprocessing.reduction.ForkingPickler.dumps(found))
    assert len(sent) < 12_000  # the record of the zoo and 47 rows; the table has 64 rows of 14 columns
    assert b"polars" not in sent
    back: WeightDataset = multiprocessing.reduction.ForkingPickler.loads(sent)
    assert torch.equal(back[3][0], found[3][0])


def test_a_stream_gives_every_row_once_in_the_order_of_seed_and_epoch(zoo: Zoo) -> None:
    found = catalog.dataset(zoo, nets(zoo), target="accuracy", normalise="standard", dtype="float64")
    samples = {weights.numpy().tobytes(): target.item() for weights, target in DataLoader(found, batch_size=None)}
    stream: Any = found.stream(8, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        batches = list(DataLoader(stream, batch_size=None))
        assert [len(weights) for weights, _ in batches] == [8] * (len(found) // 8) + [len(found) % 8]
        pairs = [
            (w.numpy().tobytes(), t.item()) for weights, target in batches for w, t in zip(weights, target, strict=True)
        ]
        assert dict(pairs) == samples
        assert len(pairs) == len(found)
        orders.append([key for key, _ in pairs])
    assert orders[0] == orders[2] != orders[1]
    parts = [torch.cat([w for w, _ in found.stream(8, seed=3, part=(part, 3))]) for part in range(3)]
    assert {w.numpy().tobytes() for w in torch.cat(parts)} == set(samples)
    assert sum(map(len, parts)) == len(found)
    plain = torch.cat([weights for weights, _ in found.stream(8, shuffle=False)])
    np.testing.assert_array_equal(plain.numpy(), found.read(np.arange(len(found))))


class Both:
    """Items 0 and 1 are all samples of a dataset, items 2 and 3 what a stream of it gives: an item of each a worker."""

    def __init__(self, dataset: WeightDataset, stream: Any) -> None:
        self.dataset, self.stream = dataset, stream

    def __len__(self) -> int:
        return 4

    def __getitem__(self, at: int) -> Any:
        return [self.dataset[i] for i in range(len(self.dataset))] if at < 2 else list(self.stream)


def test_two_workers_that_spawn_and_stay_give_what_one_process_gives(zoo: Zoo) -> None:
    found = catalog.dataset(zoo, nets(zoo), target="width", normalise="layer", transform=torch.neg)
    samples, stream = [found[at] for at in range(len(found))], found.stream(8)
    both: Any = Both(found, stream)
    loader = DataLoader(both, batch_size=None, num_workers=2, multiprocessing_context="spawn", persistent_workers=True)
    orders = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        first, second, *streams = list(loader)
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one[0], other[0])
        for (weights, target), (right, wanted) in zip(first, samples, strict=True):
            assert torch.equal(weights, right)
            assert torch.equal(target, wanted)
        parts = [[row.numpy().tobytes() for weights, _ in part for row in weights] for part in streams]
        orders.append(parts[0] + parts[1])
        assert sorted(orders[-1]) == sorted(row.numpy().tobytes() for row, _ in samples)
        assert abs(len(parts[0]) - len(parts[1])) <= 1
    assert orders[0] != orders[1]
