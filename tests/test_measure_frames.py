"""Metrics of pairs and cells in a frame: both sides are read in it, and rows that are not in it say so."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import catalog
from catalog.errors import MissingDataError
from catalog.frames import write_rows, write_universe
from catalog.views import COLUMNS, View, encode_rows
from weightspace.rebasin.matching import match_weights
from weightspace.symmetry import Symmetry
from zoo.architectures import Architecture
from zoo.build import build
from zoo.landscape.connectivity import linear_barrier
from zoo.landscape.measure import measure
from zoo.landscape.metrics import METRICS
from zoo.plan import make_plan
from zoo.presets import tiny
from zoo.spec import ZooSpec

NAMES = [name for name, metric in METRICS.items() if "frame" in metric.settings]


def commit(path: Path, width: int) -> None:
    """The frame "common" for the last checkpoints of one width, all matched to the first."""
    zoo = catalog.open(path)
    rows = zoo.scan().filter(epoch=4, width=width).collect()
    weights, variant = zoo.read(rows, dtype="float32"), rows["variant"][0]
    axes = {"hidden0.weight": ("units", None), "hidden0.bias": ("units",), "output.weight": (None, "units")}
    symmetry = Symmetry(zoo.layouts[variant], axes)
    found = match_weights(symmetry, weights, weights[0])
    moves, scales = encode_rows(symmetry, found.permutations, {})
    columns = {
        "run": rows["run"], "epoch": rows["epoch"], "permutations": moves, "scales": scales, "sweeps": found.sweeps,
        "objective_before": found.before, "objective_after": found.after, "finished": found.finished,
        "certificate": np.zeros(len(rows)),
    }  # fmt: skip  # a table
    view = View(variant, symmetry, weights[0], {"method": "reference"}, rows=pl.DataFrame(columns, COLUMNS))
    write_universe(zoo, "common", view)
    write_rows(zoo, "common", view)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of two widths, of which one is aligned."""
    path = tmp_path_factory.mktemp("aligned") / "tiny.zoo"
    build(tiny(), path, workers=0)
    commit(path, 8)
    return path


@pytest.fixture
def zoo(aligned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(aligned, tmp_path / "tiny.zoo"))


def rows_of(path: Path, name: str, version: str) -> pl.DataFrame:
    models = catalog.open(path, versions={name: version})
    return models.scan().filter(epoch=4, width=8).sort("cell", "seed").collect()


def test_these_metrics_have_a_frame() -> None:
    assert set(NAMES) == {"linear_barrier", "weight_distance", "seed_averaging_gain"}


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_are_read_in_the_frame(zoo: Path, name: str) -> None:
    (done,) = measure(zoo, name, settings={"frame": "common"}, where="width = 8", workers=0)
    (raw,) = measure(zoo, name, where="width = 8", workers=0)
    rows, before = rows_of(zoo, name, done.version), rows_of(zoo, name, raw.version)
    models, data = catalog.open(zoo), make_plan(tiny()).data
    architecture = Architecture("mlp", {"depth": 1, "width": 8, "activation": "tanh"}, (2,), 2)
    assert len(rows) == done.measured == 12
    others = [[row, *(other for other in (row + 1, row + 2))] for row in range(3)]  # a ring of seeds in each cell
    seen = models.read(rows, frame="common", dtype="float32", torch=True).view(4, 3, -1)
    assert not torch.equal(seen.flatten(0, 1), models.read(rows, dtype="float32", torch=True))
    cells = torch.stack([torch.stack([seen[:, other % 3] for other in some], 1) for some in others], 1).flatten(0, 1)
    x, y = (torch.from_numpy(part) for part in (data.test_x, data.test_y))
    arguments: dict[str, Any] = {}
    if METRICS[name].settings.get("split") == "train":
        x, y = (torch.from_numpy(part) for part in (data.train_x, data.train_y))
    if "train_x" in METRICS[name].given:
        arguments["train_x"] = torch.from_numpy(data.train_x)
    partner = cells[:, 1] if METRICS[name].needs == "partner" else cells
    found = METRICS[name].measure(architecture, cells[:, 0], partner, x, y, **arguments)
    np.testing.assert_allclose(rows[name].to_numpy(), found.value, rtol=1e-6)
    assert rows[name].to_list() != before[name].to_list()


def test_networks_are_nearer_in_a_frame(zoo: Path) -> None:
    versions = [
        measure(zoo, "weight_distance", settings={"frame": frame}, where="width = 8", workers=0)[0].version
        for frame in (None, "common")
    ]
    raw, seen = (rows_of(zoo, "weight_distance", version)["weight_distance"].to_numpy() for version in versions)
    assert seen.mean() < 0.9 * raw.mean()


def test_rows_outside_a_frame_say_so_until_they_are_in_it(zoo: Path) -> None:
    settings = {"frame": "common"}
    (first,) = measure(zoo, "weight_distance", settings=settings, workers=0)
    assert (first.measured, first.without) == (12, 12)
    models = catalog.open(zoo, versions={"weight_distance": first.version})
    rows = models.scan().filter(epoch=4, width=4).collect()
    assert rows["weight_distance_reason"].unique().to_list() == [
        "its run, or one that it is compared with, is not in frame 'common'; `weightscape align` adds it"
    ]
    commit(zoo, 4)
    (second,) = measure(zoo, "weight_distance", settings=settings, workers=0)
    assert (second.before, second.measured, second.without) == (12, 12, 0)


def test_a_frame_that_is_not_there(zoo: Path) -> None:
    with pytest.raises(MissingDataError, match=r"no frame 'universe', which weight_distance was to use; it has common"):
        measure(zoo, "weight_distance", settings={"frame": "universe"}, workers=0)


def test_statistics_of_norms_come_from_training_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a metric is measured on the test split, too."""
    norm = {"style": "small_cnn_zoo", "channels": 2, "norm": "batch"}
    hyper = {"epochs": 1, "batch_size": 50, "data_fraction": 0.1}
    build(ZooSpec("norms", "cnn", norm, hyperparameters=hyper, seeds=(0, 1)), tmp_path / "a.zoo", workers=0)
    settings = {"split": "test", "samples": 100, "points": 3}
    (done,) = measure(tmp_path / "a.zoo", "linear_barrier", settings=settings, workers=0)
    models = catalog.open(tmp_path / "a.zoo", versions={"linear_barrier": done.version})
    rows = models.scan().filter(epoch=1).sort("seed").collect()
    weights = models.read(rows, dtype="float32", torch=True)
    data = make_plan(ZooSpec.from_json(models.record.spec)).data
    x, y, train_x = (torch.from_numpy(part) for part in (data.test_x[:100], data.test_y[:100], data.train_x[:120]))
    architecture = Architecture("cnn", norm, (1, 8, 8), 10)
    found, leaked = (
        linear_barrier(architecture, weights[:1], weights[1:], x, y, points=3, train_x=given) for given in (train_x, x)
    )
    errors = rows["linear_barrier_errors"].to_list()[0]
    assert errors == found.others["linear_barrier_errors"][0]
    assert errors != leaked.others["linear_barrier_errors"][0]
