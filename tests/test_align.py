"""Aligning a zoo: certified, resumed to the byte, joined without moving anybody, refused where it is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import catalog
from catalog.errors import (
    AlignError,
    FormatError,
    InvalidSpecError,
    QueryError,
    SpecMismatchError,
    StorageError,
    UnknownNameError,
)
from catalog.frames import frame_files
from kernels.population import forward
from tests.catalog_zoos import Stop, stopping, tree
from tests.processes import ROOT
from tests.servers import Server, put
from weightscape import app
from weightspace.symmetry import Symmetry
from zoo.alignment.align import align
from zoo.alignment.certify import certify
from zoo.alignment.settings import Settings
from zoo.architectures import Architecture
from zoo.build import build
from zoo.presets import tiny
from zoo.spec import ZooSpec
from zoo.symmetries import symmetry_of


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 MLPs on moons: widths 4 and 8, four batch sizes, three seeds."""
    path = tmp_path_factory.mktemp("built") / "tiny.zoo"
    build(tiny(), path, workers=0)
    return path


@pytest.fixture
def zoo(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "tiny.zoo"))


def outputs(zoo: catalog.Zoo, rows: pl.DataFrame, frame: str | None) -> torch.Tensor:
    (variant,) = rows["variant"].unique()
    architecture = Architecture.from_json(zoo.record.variants[variant].architecture)
    weights = zoo.read(rows, dtype="float64", torch=True, frame=frame)
    x = torch.randn(20, *architecture.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return forward(architecture.build("meta"), architecture.layout.unflatten(weights), x, shared=True)


def frames_of(zoo: Path) -> dict[str, str]:
    return {name: digest for name, digest in tree(zoo).items() if name.startswith("frames/")}


def test_every_checkpoint_computes_the_same_and_lies_nearer_to_the_others(zoo: Path) -> None:
    before = tree(zoo)
    found = align(zoo)
    assert [(one.rows, one.before, one.left, one.groups, one.reason) for one in found] == [(12, 0, 0, 1, "")] * 2
    assert all(one.certificate < 1e-12 for one in found)
    assert {name: digest for name, digest in tree(zoo).items() if name in before} == before
    models = catalog.open(zoo)
    assert models.frames() == {"universe": tuple(sorted(models.record.variants))}
    for variant in models.record.variants:
        rows = models.scan().filter(pl.col("variant") == variant).collect()
        assert len(rows) == 36  # three checkpoints of each run
        raw, seen = outputs(models, rows, None), outputs(models, rows, "universe")
        torch.testing.assert_close(seen, raw, rtol=0, atol=1e-12)  # sums in another order, float64
        last = rows.filter(pl.col("epoch") == 4)
        spread = [np.var(models.read(last, frame=frame), axis=0).sum() for frame in (None, "universe")]
        assert spread[1] < 0.8 * spread[0]
    assert catalog.verify(zoo).ok


def test_by_checkpoint_each_has_its_own(zoo: Path) -> None:
    (found, _) = align(zoo, settings=Settings(by="checkpoint"))
    assert found.rows == 36
    models = catalog.open(zoo)
    view = models.frame("universe", found.variant)
    assert view.rows["epoch"].null_count() == 0
    assert view.rows.group_by("run").agg(pl.col("permutations").n_unique())["permutations"].max() > 1  # type: ignore[operator]
    rows = models.scan().filter(pl.col("variant") == found.variant).collect()
    torch.testing.assert_close(outputs(models, rows, "universe"), outputs(models, rows, None), rtol=0, atol=1e-12)


def test_who_joins_moves_nobody(zoo: Path) -> None:
    align(zoo, where="seed < 2")
    first = {v: catalog.open(zoo).frame("universe", v) for v in catalog.open(zoo).record.variants}
    assert all(len(view.rows) == 8 for view in first.values())
    found = align(zoo)
    assert [(one.rows, one.before) for one in found] == [(4, 8)] * 2
    for variant, view in first.items():
        after = catalog.open(zoo).frame("universe", variant)
        np.testing.assert_array_equal(after.universe, view.universe)
        assert after.rows.join(view.rows.select("run"), on="run", how="semi", maintain_order="left").equals(view.rows)
        assert len(after.rows) == 12
    assert [one.rows for one in align(zoo)] == [0, 0]


def test_other_settings_need_another_name(zoo: Path) -> None:
    align(zoo, where="width = 4")
    with pytest.raises(SpecMismatchError, match=r"made with seed=0 \(asked 1\); give the new one another name"):
        align(zoo, settings=Settings(seed=1), where="width = 4")
    align(zoo, "second", Settings(seed=1), where="width = 4")
    assert set(catalog.open(zoo).frames()) == {"universe", "second"}


@pytest.mark.parametrize("method", ["reference", "frank_wolfe", "activations"])
def test_methods(zoo: Path, method: str) -> None:
    (found,) = align(zoo, method, Settings(method=method), where="width = 8")
    models = catalog.open(zoo)
    view = models.frame(method, found.variant)
    assert found.similarity is not None
    assert found.similarity[1] > found.similarity[0]
    if method in ("reference", "activations"):
        first = models.scan().filter(pl.col("epoch") == 4, pl.col("width") == 8).sort("run").head(1).collect()
        np.testing.assert_array_equal(view.universe, models.read(first)[0])
        assert view.decode([view.place(first["run"][0], 4) or 0])[0].keys() == {"hidden0"}
    rows = models.scan().filter(pl.col("width") == 8).collect()
    torch.testing.assert_close(outputs(models, rows, method), outputs(models, rows, None), rtol=0, atol=1e-12)


def relu(path: Path, **changes: Any) -> Path:
    spec: dict[str, Any] = {
        "name": "relu",
        "numbers": {"depth": 2, "width": 6, "activation": "relu"},
        "dataset": "moons",
        "dataset_options": {"samples": 200, "test_samples": 50},
        "hyperparameters": {"epochs": 2, "batch_size": 16, "learning_rate": 0.1},
        "seeds": (0, 1, 2, 3, 4),
        "checkpoints": (1, 2),
    }
    build(ZooSpec(**spec | changes), path, workers=0)
    return path


def test_balanced_scales_are_exactly_undone(tmp_path: Path) -> None:
    path = relu(tmp_path / "relu.zoo")
    (found,) = align(path, settings=Settings(balance=True))
    models = catalog.open(path)
    rows = models.scan().collect()
    view = models.frame("universe")
    places = [view.place(*key) or 0 for key in rows.select("run", "epoch").iter_rows()]
    scales = view.decode(places)[1]
    assert set(scales) == {"hidden0", "hidden1"}
    assert all((np.frexp(factors)[0] == 0.5).all() for factors in scales.values())  # powers of two
    assert any((factors != 1).any() for factors in scales.values())
    np.testing.assert_array_equal(
        view.apply(models.read(rows, frame="universe"), places, inverse=True), models.read(rows)
    )
    torch.testing.assert_close(outputs(models, rows, "universe"), outputs(models, rows, None), rtol=0, atol=1e-12)
    assert found.certificate < 1e-12


def test_some_layers_alone(tmp_path: Path) -> None:
    path = relu(tmp_path / "relu.zoo")
    align(path, settings=Settings(layers=("output.weight",)))
    align(path, "whole", Settings(layers=("output",)))
    view, whole = (catalog.open(path).frame(name) for name in ("universe", "whole"))
    assert whole.rows["permutations"].equals(view.rows["permutations"])
    permutations = view.decode(range(5))[0]
    assert (permutations["hidden0"] == np.arange(6)).all()
    assert (permutations["hidden1"] != np.arange(6)).any()
    with pytest.raises(
        UnknownNameError, match=r"unknown tensor or layer 'outptu.weight'; .* did you mean 'output.weight'"
    ):
        align(path, "other", Settings(layers=("outptu.weight",)))


def test_a_wrong_symmetry_is_an_error_and_never_stored(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(architecture: Architecture) -> Symmetry:
        """Forgets that the output layer reads what the hidden units give."""
        right = symmetry_of(architecture)
        axes = {name: axes for name, axes in right.axes.items() if not name.startswith("output")}
        return Symmetry(right.layout, axes)

    monkeypatch.setattr("zoo.alignment.jobs.symmetry_of", wrong)
    with pytest.raises(AlignError, match=r"computes something else when its units are moved.*Nothing of it was stored"):
        align(zoo)
    assert not frames_of(zoo)


def test_certificates_are_differences_of_outputs(built: Path) -> None:
    models = catalog.open(built)
    rows = models.scan().filter(pl.col("width") == 4, pl.col("epoch") == 4).collect()
    architecture = Architecture.from_json(models.record.variants[rows["variant"][0]].architecture)
    symmetry, weights = symmetry_of(architecture), models.read(rows)
    permutations = symmetry.random(len(weights), 1)
    assert (certify(architecture, symmetry, weights, permutations) < 1e-12).all()
    moved = (permutations["hidden0"] != np.arange(4)).any(1)
    for left_out in ("hidden0.bias", "hidden0.weight", "output.weight"):
        half = replace(symmetry, axes={n: a for n, a in symmetry.axes.items() if n != left_out}, scales=())
        assert ((certify(architecture, half, weights, permutations) > 1e-3) == moved).all()


# --- what has no symmetry, few rows, none


def test_a_population_of_one_and_of_none(zoo: Path) -> None:
    (found,) = align(zoo, where="width = 4 and batch_size = 8 and seed = 0")
    assert (found.rows, found.certificate) == (1, 0)
    with pytest.raises(QueryError, match="no rows"):
        align(zoo, "other", where="width = 5")
    with pytest.raises(QueryError, match="an epoch that none has"):
        align(zoo, "other", Settings(epoch=3))


def test_width_one_is_left_out_with_a_reason(tmp_path: Path) -> None:
    path = relu(tmp_path / "narrow.zoo", numbers={"depth": 1, "activation": "relu"}, axes={"width": (1, 4)})
    narrow, wide = sorted(align(path), key=lambda one: one.rows)
    assert (narrow.rows, narrow.left) == (0, 5)
    assert "no hidden units that could be permuted" in narrow.reason
    assert wide.rows == 5
    with pytest.raises(AlignError, match=r"nothing of .* can be aligned"):
        align(path, "other", where="width = 1")


def test_bad_settings(zoo: Path) -> None:
    for wrong, error, message in (
        ({"method": "universal"}, UnknownNameError, "did you mean 'universe'"),
        ({"by": "epoch"}, UnknownNameError, "known: checkpoint, run"),
        ({"reference": "x"}, InvalidSpecError, "a reference run needs one of reference, activations"),
        ({"members": 1}, InvalidSpecError, "members must be an integer of 2 or more"),
        ({"restarts": -1}, InvalidSpecError, "restarts"),
    ):
        with pytest.raises(error, match=message):
            Settings(**wrong)
    with pytest.raises(UnknownNameError, match="no run 'x'"):
        align(zoo, settings=Settings(method="reference", reference="x"))
    assert not frames_of(zoo)


def test_no_time_and_a_dry_run(zoo: Path) -> None:
    told: list[Any] = []
    found = align(zoo, dry_run=True, on_cost=told.append)
    assert [(one.rows, one.left) for one in found] == [(0, 12)] * 2
    assert (told[0].rows, told[0].done) == (24, 0)
    assert told[0].seconds > 0
    assert told[0].bytes > 0
    assert not frames_of(zoo)
    align(zoo, where="seed = 0", settings=Settings(members=4))
    found = align(zoo, budget=0.0, settings=Settings(members=4))
    assert [(one.rows, one.before, one.left) for one in found] == [(0, 4, 8)] * 2
    assert [one.rows for one in align(zoo, settings=Settings(members=4))] == [8, 8]
    hurried = align(zoo, "hurried", budget=0.0)
    assert not any(one.finished for one in hurried)
    assert all(one.finished for one in align(zoo, "patient"))
    assert not catalog.open(zoo).frame("hurried", hurried[0].variant).rows["finished"].any()


def test_names_are_looked_at_before_the_work(zoo: Path) -> None:
    with pytest.raises(FormatError, match="no name of a frame: lower-case letters"):
        align(zoo, "Mine", on_cost=lambda cost: pytest.fail("work had begun"))


# --- what stops it


def test_a_failure_anywhere_loses_nothing_and_the_end_is_the_same(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path(shutil.copytree(zoo, zoo.parent / "whole.zoo"))
    settings = Settings(members=6)  # so that some runs join
    with stopping(0, lambda: None, monkeypatch) as calls:
        align(whole, settings=settings, where="width = 4")
    expected = frames_of(whole)

    def stop() -> None:
        raise Stop

    for nth in range(1, len(calls) + 1, 3):
        path = Path(shutil.copytree(zoo, zoo.parent / f"stopped{nth}.zoo"))
        with pytest.raises((Stop, StorageError)), stopping(nth, stop, monkeypatch):
            align(path, settings=settings, where="width = 4")
        align(path, settings=settings, where="width = 4")
        assert frames_of(path) == expected
        assert catalog.verify(path).ok
        shutil.rmtree(path)


@pytest.mark.slow
def test_killed_and_resumed(zoo: Path) -> None:
    whole = Path(shutil.copytree(zoo, zoo.parent / "whole.zoo"))
    align(whole)
    code = """
import os, signal, sys
from pathlib import Path
real, count = os.replace, 0
def replace(*args, **options):
    global count
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*args, **options)
os.replace = replace
from zoo.alignment.align import align
align(sys.argv[1])
"""
    process = subprocess.run([sys.executable, "-c", code, str(zoo)], cwd=ROOT, env={**os.environ}, check=False)
    assert process.returncode == -signal.SIGKILL
    assert 0 < len(frames_of(zoo)) < len(frames_of(whole)) + 1
    align(zoo)
    assert frames_of(zoo) == frames_of(whole)
    assert not list(zoo.rglob(".tmp-*"))


# --- far away, and by hand


def test_over_http_with_the_frame_beside_and_on_s3(
    built: Path, tmp_path: Path, web: tuple[Server, str], s3_options: dict[str, Any], bucket: str
) -> None:
    here = Path(shutil.copytree(built, tmp_path / "tiny.zoo"))
    _, address = web
    align(f"{address}/tiny.zoo", where="width = 4", metrics_at=tmp_path / "mine")
    far = catalog.open(f"{address}/tiny.zoo", metrics_at=tmp_path / "mine")
    url = f"{bucket}/tiny.zoo"
    put(here, url, **s3_options)
    align(url, where="width = 4", **s3_options)
    stored = catalog.open(url, **s3_options)
    rows = stored.scan().filter(pl.col("width") == 4).collect()
    align(here, where="width = 4")
    expected = catalog.open(here).read(rows, frame="universe")
    np.testing.assert_array_equal(stored.read(rows, frame="universe"), expected)
    np.testing.assert_array_equal(far.read(rows, frame="universe"), expected)


def test_the_command(zoo: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["align", str(zoo), "--where", "width = 4"])
    assert done.exit_code == 0, done.output
    assert "12 rows aligned by 1 permutations; cosine with the universe" in done.output
    done = runner.invoke(app, ["align", str(zoo), "--json"])
    assert [(one["rows"], one["before"]) for one in json.loads(done.stdout)] == [(0, 12), (12, 0)]
    done = runner.invoke(app, ["align", str(zoo), "--method", "nearest"])
    assert done.exit_code == 1
    assert "unknown method 'nearest'; known: activations, frank_wolfe, reference, universe" in done.output
    done = runner.invoke(app, ["info", str(zoo)])
    assert "aligned: universe (24 runs)" in done.output


def test_files_of_rows_are_one_in_the_end(zoo: Path) -> None:
    align(zoo, where="seed < 2")
    align(zoo)
    assert all(len(files) == 1 for files in frame_files(catalog.open(zoo).folder).values())
