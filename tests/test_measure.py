"""Measuring a zoo: which rows, which partners, versions, resuming, faults, places far away."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F

import catalog
from catalog.errors import (
    FormatError,
    InvalidSpecError,
    MeasureError,
    MissingDataError,
    QueryError,
    StorageError,
    UnknownNameError,
)
from tests.processes import children, command, gone, wait_until
from tests.servers import Server, put
from zoo.architectures import Architecture
from zoo.build import build
from zoo.landscape.measure import Cost, measure, metric_names, with_settings
from zoo.landscape.metric import Measured, Metric
from zoo.landscape.metrics import METRICS, known
from zoo.landscape.select import chosen_rows, plan_work
from zoo.landscape.units import Unit
from zoo.plan import make_plan
from zoo.presets import tiny
from zoo.spec import ZooSpec
from zoo.train import noisy_labels


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "tiny.zoo"
    build(tiny(), path, workers=0)
    return path


@pytest.fixture
def zoo(built: Path, tmp_path: Path) -> Path:
    """A zoo of its own for each test that writes."""
    return Path(shutil.copytree(built, tmp_path / "tiny.zoo"))


def small(path: Path, **changes: Any) -> Path:
    """Built from a spec of two cells on moons, two seeds each, with some changes."""
    spec = ZooSpec(
        **{
            "name": "small",
            "numbers": {"depth": 1, "width": 3, "activation": "tanh"},
            "dataset": "moons",
            "dataset_options": {"samples": 200, "test_samples": 50},
            "hyperparameters": {"epochs": 2, "batch_size": 16},
            "axes": {"learning_rate": (0.05, 0.1)},
            "seeds": (0, 1),
            "checkpoints": (1, 2),
        }
        | changes
    )
    build(spec, path, workers=0)
    return path


def column(url: Path | str, name: str, status: str | None = "ok", **options: Any) -> dict[tuple[str, int], Any]:
    rows = catalog.open(url, **options).scan(status).collect()
    return {(run, epoch): value for run, epoch, value in rows.select("run", "epoch", name).iter_rows()}


def test_the_value_is_the_metric_of_the_model_of_its_row(zoo: Path) -> None:
    done = measure(zoo, "gradient_norm", workers=0)
    assert [(one.metric, one.measured, one.before, one.without) for one in done] == [("gradient_norm", 24, 0, 0)]
    models = catalog.open(zoo)
    data = make_plan(tiny()).data
    rows = models.scan().filter(pl.col("gradient_norm").is_not_null()).collect()
    assert rows["epoch"].unique().to_list() == [4]  # the last of each run
    for row in rows.sample(5, seed=0).iter_rows(named=True):
        architecture = Architecture.from_json(models.record.variants[row["variant"]].architecture)
        module = architecture.build()
        module.load_state_dict(models.state_dict(row, torch=True))
        F.cross_entropy(module(torch.from_numpy(data.train_x)), torch.from_numpy(data.train_y)).backward()
        norm = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm()
        np.testing.assert_allclose(row["gradient_norm"], norm.item(), rtol=1e-4)
        assert row["gradient_norm_se"] == 0


def test_processes_give_what_this_process_gives(zoo: Path, built: Path, tmp_path: Path) -> None:
    told: dict[str, int] = {}
    measure(
        zoo, ["gradient_norm", "weight_distance"], workers=2, on_rows=lambda m, n: told.update({m: told.get(m, 0) + n})
    )
    assert told == {"gradient_norm": 24, "weight_distance": 24}
    other = Path(shutil.copytree(built, tmp_path / "other.zoo"))
    measure(other, ["gradient_norm", "weight_distance"], workers=0)
    for name in ("gradient_norm", "weight_distance"):
        ours, theirs = column(zoo, name), column(other, name)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert (value is None) == (theirs[key] is None)
            if value is not None:
                assert value == pytest.approx(theirs[key], rel=1e-5)
        assert len(list((zoo / "metrics").rglob(f"*{name}*/*.parquet"))) == 1  # the parts became one file
    assert catalog.verify(zoo).ok


def test_again_measures_what_is_missing_and_nothing_twice(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def counting(architecture: Any, weights: torch.Tensor, x: None, y: None) -> Measured:
        measured.append(len(weights))
        return Measured(np.ones(len(weights)), np.zeros(len(weights)))

    monkeypatch.setitem(METRICS, "counting", Metric(counting, split=None))
    costs: list[Cost] = []
    first = measure(zoo, "counting", where="width = 4", workers=0, on_cost=costs.append)
    assert (first[0].measured, sum(measured)) == (12, 12)
    second = measure(zoo, "counting", workers=0, on_cost=costs.append)
    assert (second[0].measured, second[0].before, sum(measured)) == (12, 12, 24)
    measure(zoo, "counting", workers=0, on_cost=costs.append)
    measure(zoo, "counting", epoch=1, workers=0, dry_run=True, on_cost=costs.append)
    assert sum(measured) == 24
    assert [cost.rows["counting"] for cost in costs] == [12, 12, 0, 24]
    measure(zoo, "counting", epoch=1, workers=0)
    assert sum(value is not None for value in column(zoo, "counting").values()) == 48


def test_other_settings_are_another_version(zoo: Path) -> None:
    measure(zoo, "gradient_norm", workers=0)
    before = column(zoo, "gradient_norm")
    found = measure(zoo, "gradient_norm", settings={"samples": 32}, workers=0)
    assert column(zoo, "gradient_norm") == before
    other = column(zoo, f"gradient_norm@{found[0].version}")
    assert {key for key, value in other.items() if value} == {key for key, value in before.items() if value}
    assert other != before
    assert column(zoo, "gradient_norm", versions={"gradient_norm": found[0].version}) == other
    settings = catalog.open(zoo).measurements()[f"gradient_norm@{found[0].version}"].settings
    assert settings["samples"] == 32


def test_partners_go_round_the_seeds_of_a_cell(zoo: Path) -> None:
    measure(zoo, "weight_distance", workers=0)
    models = catalog.open(zoo)
    rows = models.scan().filter(pl.col("weight_distance").is_not_null()).collect()
    seeds = dict(rows.select("run", "seed").iter_rows())
    cells = dict(rows.select("run", "cell").iter_rows())
    for row in rows.iter_rows(named=True):
        partner = row["weight_distance_partner"]
        assert cells[partner] == row["cell"]
        assert seeds[partner] == (row["seed"] + 1) % 3
        both = [models.read(rows.filter(run=run))[0] for run in (row["run"], partner)]
        np.testing.assert_allclose(row["weight_distance"], np.linalg.norm(both[0] - both[1]), rtol=1e-5)


def test_two_seeds_are_one_pair_and_one_is_none(tmp_path: Path) -> None:
    two = small(tmp_path / "two.zoo")
    measure(two, "weight_distance", workers=0)
    rows = catalog.open(two).scan().filter(epoch=2).sort("cell", "seed").collect()
    assert rows["weight_distance"].is_not_null().to_list() == [True, False] * 2
    assert "measured from the other side" in rows["weight_distance_reason"][1]
    alone = small(tmp_path / "one.zoo", seeds=(0,))
    done = measure(alone, "weight_distance", workers=0)
    assert (done[0].measured, done[0].without) == (0, 2)
    assert set(column(alone, "weight_distance_reason").values()) == {
        None,
        "no partner: no other run of its cell has weights at this checkpoint",
    }
    measure(alone, "weight_distance", workers=0)  # the reason is not stored twice
    assert len(list((alone / "metrics").rglob("*.parquet"))) == 1


def test_diverged_runs_get_a_reason_and_do_not_stop_the_others(tmp_path: Path) -> None:
    axes = {"learning_rate": (0.05, 1000.0)}
    hyperparameters = {"epochs": 4, "batch_size": 16, "loss_function": "mse"}
    mixed = small(
        tmp_path / "mixed.zoo",
        axes=axes,
        hyperparameters=hyperparameters,
        checkpoints=(4,),
        numbers={"depth": 2, "activation": "relu"},
        seeds=(0, 1, 2),
    )
    done = measure(mixed, ["gradient_norm", "weight_distance"], workers=0)
    rows = catalog.open(mixed).scan(None).sort("learning_rate").collect()
    assert rows["status"].to_list() == ["ok"] * 3 + ["diverged"] * 3
    for name in ("gradient_norm", "weight_distance"):
        assert rows[name].is_not_null().to_list() == [True] * 3 + [False] * 3
        assert all(reason.startswith("the run diverged: ") for reason in rows[f"{name}_reason"][3:])
    assert [(one.measured, one.without) for one in done] == [(3, 3), (3, 3)]


def test_values_that_are_not_finite_get_a_reason(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(architecture: Any, weights: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *, say: str = "") -> Measured:
        value = np.arange(len(weights), dtype=float)
        value[0] = np.nan
        return Measured(value, np.full(len(weights), np.inf), reasons=[say] * len(weights))

    monkeypatch.setitem(METRICS, "odd", Metric(odd))
    measure(zoo, "odd", where="width = 4", workers=0)
    measure(zoo, "odd", where="width = 8", settings={"say": "too flat"}, workers=0)
    rows = catalog.open(zoo).scan().filter(epoch=4).collect()
    assert rows["odd"].null_count() == 13  # 12 of the other width, whose version is another
    assert rows["odd_reason"].drop_nulls().unique().sort().to_list() == ["", "its value is not finite"]
    assert rows["odd_se"].null_count() == 24
    other = [name for name in rows.columns if name.startswith("odd_reason@")]
    assert rows[other[0]].drop_nulls().unique().sort().to_list() == ["", "too flat"]


def test_a_unit_that_fails_is_named_and_the_others_are_stored(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(architecture: Any, weights: torch.Tensor, x: None, y: None) -> Measured:
        if architecture.numbers["width"] == 8:
            raise InvalidSpecError("not this one")
        return Measured(np.ones(len(weights)), np.zeros(len(weights)))

    monkeypatch.setitem(METRICS, "picky", Metric(picky, split=None))
    with pytest.raises(MeasureError, match=r"1 of 2 units failed.*picky of 12 rows of mlp-.*not this one"):
        measure(zoo, "picky", workers=0)
    assert sum(value is not None for value in column(zoo, "picky").values()) == 12


def test_labels_and_samples_are_those_a_run_was_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def looking(architecture: Any, weights: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> Measured:
        seen.append((x, y))
        return Measured(np.ones(len(weights)), np.zeros(len(weights)))

    monkeypatch.setitem(METRICS, "own", Metric(looking))
    monkeypatch.setitem(METRICS, "clean", Metric(looking, labels="clean", samples=20))
    monkeypatch.setitem(METRICS, "tested", Metric(looking, split="test"))
    hyperparameters = {"epochs": 1, "batch_size": 16, "label_noise": 0.3, "data_fraction": 0.5}
    path = small(tmp_path / "noisy.zoo", hyperparameters=hyperparameters, axes={}, checkpoints=(1,))
    measure(path, ["own", "clean", "tested"], workers=0)
    plan = make_plan(ZooSpec.from_json(catalog.open(path).record.spec))
    runs = next(iter(plan.runs.values()))
    noisy = noisy_labels(runs, plan.data.train_y, 2)[:, :75]
    found = {len(x): y for x, y in seen}
    assert found.keys() == {75, 20, 50}
    np.testing.assert_array_equal(found[75], noisy)
    np.testing.assert_array_equal(found[20], plan.data.train_y[:20])
    np.testing.assert_array_equal(found[50], plan.data.test_y)


def test_histories_and_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {"past": [], "seeds": []}

    def past(
        architecture: Any, weights: torch.Tensor, others: torch.Tensor, x: None, y: None, *, checkpoints: int = 2
    ) -> Measured:
        seen["past"].append(others)
        torch.testing.assert_close(others[:, -1], weights)
        return Measured(np.full(len(weights), others.shape[1]), np.zeros(len(weights)))

    def seeds(architecture: Any, weights: torch.Tensor, others: torch.Tensor, x: None, y: None) -> Measured:
        torch.testing.assert_close(others[:, 0], weights)
        return Measured(np.full(len(weights), others.shape[1]), np.zeros(len(weights)))

    monkeypatch.setitem(METRICS, "past", Metric(past, needs="history", split=None))
    monkeypatch.setitem(METRICS, "seeds", Metric(seeds, needs="cell", split=None))
    path = small(tmp_path / "small.zoo", seeds=(0, 1, 2), checkpoints=(0, 1, 2))
    measure(path, ["past", "seeds"], workers=0)
    assert set(column(path, "past").values()) == {None, 2}
    assert set(column(path, "seeds").values()) == {None, 3}
    measure(path, "past", epoch=0, workers=0)
    rows = catalog.open(path).scan().filter(epoch=0).collect()
    assert rows["past_reason"].unique().to_list() == ["it needs 2 checkpoints up to this one, 1 are stored"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metrics": "hessian_trase"}, UnknownNameError, "unknown metric 'hessian_trase'; known: all, "),
        ({"settings": {"prbes": 3}}, UnknownNameError, "unknown setting 'prbes'"),
        ({"settings": {"else.samples": 3}}, UnknownNameError, "unknown metric 'else'"),
        ({"settings": {"samples": 0}}, InvalidSpecError, "must be a whole number from 1"),
        ({"settings": {"samples": 1.5}}, InvalidSpecError, "must be a whole number from 1"),
        ({"settings": {"split": "valid"}}, UnknownNameError, "unknown split 'valid'"),
        ({"settings": {"split": 3}}, InvalidSpecError, "must be like 'train'"),
        ({"metrics": "hessian_trace", "settings": {"probes": 0}}, InvalidSpecError, "probes"),
        ({"metrics": "hessian_trace", "settings": {"probes": 0}, "dry_run": True}, InvalidSpecError, "probes"),
        ({"metrics": "hessian_trace", "settings": {"method": "guess"}}, UnknownNameError, "known: auto, exact, hutch"),
        ({"metrics": "cka_yang", "settings": {"layer": "hidden9"}}, UnknownNameError, "hidden0"),
        ({"metrics": "mode_connectivity", "settings": {"epochs": 0}}, InvalidSpecError, "epochs of a curve"),
        ({"metrics": "linear_barrier", "settings": {"frame": "universe"}}, MissingDataError, "has no frame 'universe'"),
        ({"metrics": "averaging_gain", "settings": {"checkpoints": 1}}, InvalidSpecError, "checkpoints"),
        ({"epoch": 3}, MissingDataError, "no row .* is at epoch 3; there are epochs 0, 1, 4"),
        ({"where": "width = 5"}, QueryError, "none fits 'width = 5'"),
        ({"where": "wdth = 5"}, UnknownNameError, "unknown column 'wdth'"),
        ({"workers": -1}, InvalidSpecError, "workers must be 0 or more"),
    ],
)
def test_bad_input(built: Path, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        measure(built, **{"metrics": "gradient_norm", "workers": 0, **arguments})
    assert not (built / "metrics").exists()


def test_zoos_that_do_not_know_their_data(built: Path, tmp_path: Path) -> None:
    from tests.catalog_zoos import fill, net

    bare, _ = fill(tmp_path / "bare", net())
    with pytest.raises(InvalidSpecError, match="has no spec of"):
        measure(bare.url, "gradient_norm", workers=0)
    np.savez(tmp_path / "d.npz", images=np.random.default_rng(0).normal(size=(64, 4)), labels=np.arange(64) % 2)
    path = small(tmp_path / "own.zoo", dataset="arrays", dataset_options={"url": str(tmp_path / "d.npz")})
    np.savez(tmp_path / "d.npz", images=np.random.default_rng(1).normal(size=(64, 4)), labels=np.arange(64) % 2)
    with pytest.raises(FormatError, match="restore the data it was trained on"):
        measure(path, "gradient_norm", workers=0)


def test_settings_for_all_and_for_one() -> None:
    names = metric_names(["gradient_norm", "weight_distance"])
    found = with_settings(names, {"samples": 64, "gradient_norm.samples": 32})
    assert found["gradient_norm"]["samples"] == 32
    assert "samples" not in found["weight_distance"]
    assert set(metric_names("all")) == set(METRICS)
    floats = Metric(lambda a, w, x, y, *, rate=0.5: Measured(w, w))
    assert floats.complete("floats", {"rate": 1}) == {"split": "train", "samples": None, "rate": 1.0}


def test_every_metric_is_described() -> None:
    described = known()
    assert [one["metric"] for one in described] == list(METRICS)
    columns = [name for one in described for name in one["columns"]]
    assert len(columns) == len(set(columns))


def test_a_unit_travels_as_json(built: Path) -> None:
    import json

    opened = catalog.open(built)
    rows = chosen_rows(opened)
    plan = make_plan(tiny())
    for name in ("gradient_norm", "weight_distance"):
        work = plan_work(opened, plan, name, METRICS[name], METRICS[name].settings, rows, opened.table(), 2)
        assert len(work.units) == 4
        for unit in work.units:
            assert Unit.from_json(json.loads(json.dumps(unit.to_json()))) == unit


# --- faults: real processes, really killed


def slow_zoo(path: Path) -> Path:
    """Six variants whose gradients take a while."""
    spec = dataclasses.replace(
        tiny(),
        name="slow",
        hyperparameters={"epochs": 1},
        dataset_options={"samples": 40_000},
        axes={"width": tuple(range(20, 80, 10))},
        temperature=None,
        checkpoints=(0, 1),
    )
    build(spec, path, workers=0)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_what_stops_it_loses_nothing(tmp_path: Path, number: int, status: int) -> None:
    path = slow_zoo(tmp_path / "slow.zoo")
    arguments = ("measure", path, "--metric", "gradient_norm", "--workers", 1)
    process = command(*arguments)
    wait_until(lambda: list((path / "metrics").rglob("[!.]*.parquet")) or process.poll() is not None)
    workers = children(process.pid)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status, err
    assert number == signal.SIGKILL or "the same command measures the rest" in err
    wait_until(lambda: gone(workers), 10)
    kept = column(path, "gradient_norm")
    done = {key: value for key, value in kept.items() if value is not None}
    assert 0 < len(done) < 18
    process = command(*arguments)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert f"{18 - len(done)} measured, {len(done)} were there" in out
    after = column(path, "gradient_norm")
    assert {key: after[key] for key in done} == done
    assert sum(value is not None for value in after.values()) == 18
    assert catalog.verify(path).ok
    assert not list(path.rglob(".tmp-*"))


def test_a_folder_that_cannot_be_written(zoo: Path, tmp_path: Path) -> None:
    (zoo / "metrics").write_bytes(b"in the way")
    with pytest.raises(StorageError):
        measure(zoo, "gradient_norm", workers=0)
    measure(zoo, "gradient_norm", workers=0, metrics_at=tmp_path / "mine")
    assert len(column(zoo, "gradient_norm", metrics_at=tmp_path / "mine")) == 72


# --- far away


def test_over_http_only_what_is_needed_is_read(built: Path, tmp_path: Path, web: tuple[Server, str]) -> None:
    shutil.copytree(built, tmp_path / "far.zoo")
    server, address = web
    done = measure(f"{address}/far.zoo", "weight_distance", where="width = 8", workers=0, metrics_at=tmp_path / "mine")
    assert done[0].measured == 12
    touched = {request.split("/")[3] for request in server.requests if "/weights/" in request and "/c/" in request}
    assert touched == {"mlp-2-2-depth1-width8-tanh"}
    found = column(f"{address}/far.zoo", "weight_distance", metrics_at=tmp_path / "mine")
    near = column(tmp_path / "far.zoo", "weight_distance", metrics_at=tmp_path / "mine")
    assert found == near
    with pytest.raises(StorageError):
        measure(f"{address}/far.zoo", "weight_distance", where="width = 8", workers=0)


def test_on_s3_columns_are_written_there(built: Path, bucket: str, s3_options: dict[str, Any]) -> None:
    put(built, f"{bucket}/far.zoo", **s3_options)
    measure(f"{bucket}/far.zoo", "gradient_norm", epoch=1, workers=2, **s3_options)
    found = column(f"{bucket}/far.zoo", "gradient_norm", **s3_options)
    assert sum(value is not None for value in found.values()) == 24
    assert catalog.verify(f"{bucket}/far.zoo", **s3_options).ok


@pytest.mark.gpu
def test_on_a_gpu(zoo: Path) -> None:
    measure(zoo, "all", device="cuda", workers=0)
    rows = catalog.open(zoo).scan().filter(epoch=4).collect()
    assert rows.select(list(METRICS)).null_count().sum_horizontal().item() == 0
