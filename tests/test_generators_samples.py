"""Samples are a zoo like any other: stored, resumed to the byte, queried, verified, packed, measured, aligned."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

import catalog
from catalog.errors import FormatError, GeneratorError, InvalidSpecError, NotAZooError, SpecMismatchError
from catalog.metrics import measurements
from catalog.store import Zoo
from generators.conditions import Conditions
from generators.generator import Generator
from generators.kinds import fit
from generators.population import Population, population
from generators.samples import finish, write_samples
from tests.catalog_zoos import tree
from weightscape import app
from zoo.alignment.align import align
from zoo.build import build
from zoo.duplicates import duplicates
from zoo.evaluate import evaluate
from zoo.landscape.measure import measure, plan_of
from zoo.landscape.norms import reestimate
from zoo.spec import ZooSpec
from zoo.typical import typical_spec

COUNT = 150  # eight shards


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Population:
    """24 MLPs on moons, two batch sizes, one with noisy labels and on half the data."""
    hyper = {"epochs": 2, "learning_rate": 0.1, "label_noise": 0.1, "data_fraction": 0.5, "loss_function": "mse"}
    spec = ZooSpec(
        "two moons", numbers={"width": 5}, dataset="moons", dataset_options={"samples": 300, "test_samples": 100},
        hyperparameters=hyper, axes={"batch_size": (8, 16, 32)}, seeds=tuple(range(8)), licence="CC0-1.0",
    )  # fmt: skip
    return population(build(spec, tmp_path_factory.mktemp("samples") / "moons.zoo", workers=0))


@pytest.fixture(scope="module")
def generator(parent: Population) -> Generator:
    return fit("noise_large", parent)


@pytest.fixture(scope="module")
def stored(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "samples.zoo"
    write_samples(generator, path, COUNT, seed=4)
    return path


@pytest.fixture
def samples(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "samples.zoo"))


def rows_of(url: Path) -> pl.DataFrame:
    return catalog.open(url).scan(None).collect()


# What is written


def test_weights_are_the_samples(generator: Generator, stored: Path) -> None:
    zoo = catalog.open(stored)
    rows = zoo.scan().collect()
    assert len(zoo.committed()) == 8
    assert rows["number"].to_list() == list(range(COUNT))
    np.testing.assert_array_equal(zoo.read(rows), generator.sample(COUNT, seed=4))
    assert zoo.layout == generator.layout
    assert catalog.verify(stored).ok


def test_rows_say_where_they_come_from(parent: Population, generator: Generator, stored: Path) -> None:
    rows, zoo = rows_of(stored), catalog.open(stored)
    expected = {
        "seed": 4,
        "epoch": 0,
        "progress": 1.0,
        "status": "ok",
        "family": "mlp",
        "width": 5,
        "generator": generator.fingerprint,
        "generator_kind": "noise_large",
        "parent": "two moons",
        "parent_digest": parent.zoo.record.digest,
        "frame": None,
    }
    for name, value in expected.items():
        assert rows[name].unique().to_list() == [value], name
    assert rows["run"].n_unique() == COUNT
    assert rows["run"].str.contains("^[0-9a-f]{16}$").all()
    info = zoo.record.info
    assert info["parent"] == {
        "zoo": "two moons", "url": parent.zoo.url, "digest": parent.zoo.record.digest, "frame": None,
        "population": parent.fingerprint, "frame_origin": None,
    }  # fmt: skip
    assert info["generator"] == {
        "kind": "noise_large", "fingerprint": generator.fingerprint, "settings": {"level": 0.3, "relative": True},
    }  # fmt: skip
    assert (info["licence"], info["data"]) == ("CC0-1.0", parent.zoo.record.info["data"])


def test_they_are_evaluated_as_the_parent_is(parent: Population, stored: Path) -> None:
    """By its loss, on what its runs were trained on (half of the data), but with the labels as they are."""
    zoo, data = catalog.open(stored), parent.data
    rows = zoo.scan().collect()
    weights = zoo.read(rows, torch=True)
    used = round(0.5 * data.num_train)
    for split, x, y in (
        ("train", data.train_x[:used], data.train_y[:used]),
        ("test", data.test_x, data.test_y),
    ):
        inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
        found = evaluate(parent.architecture, weights, inputs, labels, loss_functions="mse")
        np.testing.assert_allclose(rows[f"{split}_loss"], found.loss, rtol=1e-6)
        np.testing.assert_array_equal(rows[f"{split}_accuracy"], found.accuracy)
        bits = np.stack([np.frombuffer(one, np.uint8) for one in rows[f"{split}_error_bits"]])
        wrong = np.unpackbits(bits, axis=1)[:, : len(y)].mean(1)
        np.testing.assert_allclose(wrong, 1 - found.accuracy, atol=1e-12)


def test_the_nearest_member_is_named(parent: Population, stored: Path) -> None:
    rows, members = rows_of(stored), parent.read("train").astype(np.float64)
    drawn = catalog.open(stored).read(rows).astype(np.float64)
    distances = np.linalg.norm(drawn[:, None] - members, axis=-1)
    np.testing.assert_allclose(rows["nearest_distance"], distances.min(1), rtol=1e-6)
    train = parent.split("train")
    assert rows["nearest_run"].to_list() == train["run"].gather(distances.argmin(1)).to_list()
    assert rows["nearest_epoch"].to_list() == train["epoch"].gather(distances.argmin(1)).to_list()


def test_without_the_parent_distances_are_null(
    parent: Population, generator: Generator, stored: Path, tmp_path: Path
) -> None:
    gone = dataclasses.replace(generator, source={**generator.source, "url": str(tmp_path / "gone.zoo")})
    alone = rows_of(Path(write_samples(gone, tmp_path / "a.zoo", 5, seed=4).url))
    assert alone["nearest_distance"].null_count() == alone["nearest_run"].null_count() == 5
    unchanged = ["run", "test_accuracy", "crc32c"]
    assert alone.select(unchanged).equals(rows_of(stored).select(unchanged).head(5))
    for zoo in (parent.zoo, parent.zoo.url):  # where it is now
        found = rows_of(Path(write_samples(gone, tmp_path / f"{isinstance(zoo, str)}.zoo", 5, seed=4, zoo=zoo).url))
        assert found["nearest_run"].to_list() == rows_of(stored)["nearest_run"].head(5).to_list()


# Again, interrupted, refused


def test_interrupted_it_goes_on_to_the_same_bytes(generator: Generator, stored: Path, tmp_path: Path) -> None:
    path, drawn = tmp_path / "cut.zoo", 0

    def stop(models: int) -> None:
        nonlocal drawn
        drawn += models
        if drawn > 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(generator, path, COUNT, seed=4, on_models=stop)
    kept = catalog.open(path).committed()
    assert 2 <= len(kept) <= 4
    assert len(rows_of(path)) >= 38
    again: list[int] = []
    write_samples(generator, path, COUNT, seed=4, on_models=again.append)
    assert sum(again) == COUNT - 19 * len(kept)
    assert tree(path) == tree(stored)
    nothing: list[int] = []
    write_samples(generator, path, COUNT, seed=4, on_models=nothing.append, threads=2)
    assert not nothing
    assert tree(path) == tree(stored)


def test_more_samples_begin_with_the_same_ones(generator: Generator, stored: Path, tmp_path: Path) -> None:
    few = write_samples(generator, tmp_path / "few.zoo", 7, seed=4)
    rows = rows_of(stored).head(7)
    assert few.scan().collect().drop("model", "checkpoint").equals(rows.drop("model", "checkpoint"))
    np.testing.assert_array_equal(few.read(few.scan().collect()), catalog.open(stored).read(rows))
    other = write_samples(generator, tmp_path / "other.zoo", 7, seed=5).scan().collect()
    assert not set(other["run"]) & set(rows["run"])


def test_another_request_there_is_refused(
    parent: Population, generator: Generator, samples: Path, tmp_path: Path
) -> None:
    before = tree(samples)
    for other, count, seed, said in (
        (generator, COUNT, 5, "seed"),
        (generator, COUNT + 1, 4, "count"),
        (fit("noise_small", parent), COUNT, 4, "noise_small"),
        (fit("noise_large", parent, {"level": 0.31}), COUNT, 4, "generator"),
    ):
        with pytest.raises(SpecMismatchError, match=said):
            write_samples(other, samples, count, seed=seed)
    catalog.pack(samples, tmp_path / "packed.zoo")
    with pytest.raises(SpecMismatchError):
        write_samples(generator, tmp_path / "packed.zoo", COUNT, seed=4)
    with pytest.raises(SpecMismatchError):
        write_samples(generator, parent.zoo.url, COUNT, seed=4)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(FormatError, match="not empty"):
        write_samples(generator, tmp_path / "full", COUNT)
    assert tree(samples) == before


def test_requests_that_make_no_sense(generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "none.zoo"
    for count in (0, -1, 2.5, True):
        with pytest.raises(GeneratorError, match="count must be"):
            write_samples(generator, path, count)  # type: ignore[arg-type]
    with pytest.raises(GeneratorError, match="seed"):
        write_samples(generator, path, 3, seed=-1)
    with pytest.raises(GeneratorError, match="without conditions"):
        write_samples(generator, path, 3, conditions={"test_accuracy": 0.9})
    without = dataclasses.replace(generator, source={**generator.source, "trained_like": None})
    with pytest.raises(GeneratorError, match="no spec"):
        write_samples(without, path, 3)
    moved = {**generator.source["data"], "fingerprint": "0" * 64}
    with pytest.raises(FormatError, match="restore the data"):
        write_samples(dataclasses.replace(generator, source={**generator.source, "data": moved}), path, 3)
    assert not path.exists()


# Networks that fail, conditions, norms


def drawing(generator: Generator, draw: Any, **changes: Any) -> Generator:
    return dataclasses.replace(generator, draw=draw, content="test", **changes)


def test_networks_that_are_not_finite_are_failed_rows(generator: Generator, tmp_path: Path) -> None:
    def draw(numbers: np.ndarray, seed: int, conditions: np.ndarray | None) -> np.ndarray:
        drawn = generator.draw(numbers, seed, None)
        drawn[numbers % 3 == 1, 0] = np.nan
        drawn[numbers == 3, 2] = np.inf
        return drawn

    zoo = write_samples(drawing(generator, draw), tmp_path / "f.zoo", 20)
    rows = zoo.scan(None).collect()
    failed = [n for n in range(20) if n % 3 == 1 or n == 3]
    assert rows.filter(pl.col("status") == "failed")["number"].to_list() == failed
    bad = rows.filter(pl.col("number").is_in(failed))
    assert bad["reason"].unique().to_list() == ["its weights are not finite"]
    assert not bad["stored"].any()
    for name in ("train_loss", "train_accuracy", "test_loss", "test_error_bits", "nearest_run", "nearest_distance"):
        assert bad[name].null_count() == len(bad), name
    good = zoo.scan().collect()
    assert good["number"].to_list() == [n for n in range(20) if n not in failed]
    assert good["nearest_distance"].null_count() == good["test_accuracy"].null_count() == 0
    np.testing.assert_array_equal(zoo.read(good), generator.sample(20)[good["number"].to_numpy()])
    assert catalog.verify(tmp_path / "f.zoo").ok
    every = write_samples(
        drawing(generator, lambda n, seed, given: np.full((len(n), generator.layout.size), np.nan, np.float32)),
        tmp_path / "all.zoo", 3,
    )  # fmt: skip
    assert len(every.scan().collect()) == 0


def conditional(generator: Generator, rows: pl.DataFrame) -> Generator:
    """Draws networks whose first weight is the condition vector's first number."""
    given = Conditions.fit(rows, ("test_accuracy", "loss_function"))

    def draw(numbers: np.ndarray, seed: int, conditions: np.ndarray | None) -> np.ndarray:
        assert conditions is not None
        drawn = generator.draw(numbers, seed, None)
        drawn[:, 0] = conditions[:, 0]
        return drawn

    return drawing(generator, draw, conditions=given)


def test_what_was_asked_for_is_a_column(parent: Population, generator: Generator, tmp_path: Path) -> None:
    made = conditional(generator, parent.split("train"))
    wanted = np.linspace(0.5, 1, COUNT)
    asked: Mapping[str, Any] = {"test_accuracy": wanted, "loss_function": "mse"}
    zoo = write_samples(made, tmp_path / "c.zoo", COUNT, conditions=asked)
    rows = zoo.scan().collect()
    np.testing.assert_array_equal(rows["requested_test_accuracy"], wanted)
    assert rows["requested_loss_function"].unique().to_list() == ["mse"]
    assert made.conditions is not None
    np.testing.assert_array_equal(zoo.read(rows)[:, 0], made.conditions.request(asked, COUNT)[:, 0])
    assert zoo.record.spec["conditions"]["loss_function"] == "mse"
    runs = set(rows["run"])
    for other in ({"test_accuracy": wanted[::-1], "loss_function": "mse"}, {"loss_function": "mse"}):
        with pytest.raises(SpecMismatchError):
            write_samples(made, tmp_path / "c.zoo", COUNT, conditions=other)
    one = write_samples(made, tmp_path / "d.zoo", 3, conditions={"test_accuracy": 0.75}).scan().collect()
    assert one["requested_test_accuracy"].to_list() == [0.75] * 3
    assert not runs & set(one["run"])  # other networks have other names
    with pytest.raises(GeneratorError, match="one for each of 3"):
        write_samples(made, tmp_path / "e.zoo", 3, conditions={"test_accuracy": [0.75, 0.8]})
    assert not (tmp_path / "e.zoo").exists()


@pytest.fixture(scope="module")
def normed(tmp_path_factory: pytest.TempPathFactory) -> Population:
    numbers = {"style": "small_cnn_zoo", "channels": 2, "norm": "batch"}
    hyper = {"epochs": 1, "learning_rate": 0.05, "batch_size": 50, "data_fraction": 0.05}
    spec = ZooSpec("c", "cnn", numbers, hyperparameters=hyper, seeds=tuple(range(10)), train_samples=50)
    return population(build(spec, tmp_path_factory.mktemp("normed") / "c.zoo", workers=0))


def test_norms_take_their_statistics_from_training_inputs(normed: Population, tmp_path: Path) -> None:
    generator, parameters = fit("mix", normed), normed.layout.num_parameters
    drawn, data = generator.sample(4), normed.data
    zoo = write_samples(generator, tmp_path / "n.zoo", 4)
    weights = zoo.read(zoo.scan().collect())
    np.testing.assert_array_equal(weights[:, :parameters], drawn[:, :parameters])
    used = torch.from_numpy(data.train_x[: round(0.05 * data.num_train)])
    expected = reestimate(normed.architecture, torch.from_numpy(drawn), used).numpy()
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6)  # sums of float32 in another order
    assert np.abs(weights - drawn).max() > 0.01
    both = drawn.copy()
    both[1] = np.nan
    finished = finish(normed, both, data)
    assert np.isnan(finished[1]).all()
    np.testing.assert_allclose(finished[[0, 2, 3]], finish(normed.architecture, drawn, data)[[0, 2, 3]], atol=1e-5)
    with pytest.raises(GeneratorError, match="must be"):
        finish(normed, drawn[:, 1:], data)
    with pytest.raises(InvalidSpecError, match="samples must be"):
        finish(normed, drawn, data, samples=0)


def test_without_norms_nothing_changes(parent: Population) -> None:
    drawn = fit("gaussian", parent).sample(3)
    assert finish(parent, drawn, parent.data) is drawn


# Like any other zoo


def test_query_read_export_pack(samples: Path, tmp_path: Path) -> None:
    zoo = catalog.open(samples)
    best = catalog.query(zoo, "progress = 1.0 and width = 5", sort=["test_accuracy"], descending=True, limit=1)
    weights = zoo.read(best)
    zoo.export(best, tmp_path / "best.safetensors")
    tensors = load_file(tmp_path / "best.safetensors")
    np.testing.assert_array_equal(tensors["hidden0.weight"], zoo.layout.unflatten(weights)["hidden0.weight"][0])
    packed = catalog.pack(samples, tmp_path / "packed.zoo")
    np.testing.assert_array_equal(catalog.open(tmp_path / "packed.zoo").read(best), weights)
    assert packed is not None
    catalog.unpack(tmp_path / "packed.zoo", tmp_path / "hot.zoo")
    assert rows_of(tmp_path / "hot.zoo").equals(rows_of(samples))


@pytest.mark.parametrize("workers", [0, 1])
def test_metrics_of_a_model(parent: Population, samples: Path, workers: int) -> None:
    found = measure(samples, ["hessian_trace", "weight_norm"], where="number < 9", workers=workers)
    assert [one.measured for one in found] == [9, 9]
    zoo = catalog.open(samples)
    rows = zoo.scan().filter(pl.col("number") < 9).collect()
    norms = np.linalg.norm(zoo.read(rows).astype(np.float64), axis=1)
    np.testing.assert_allclose(rows["weight_norm"], norms, rtol=1e-6)
    assert (rows["hessian_trace"] != 0).all()


def test_hessians_are_on_the_clean_labels_of_the_training_data(parent: Population, samples: Path) -> None:
    plan = plan_of(catalog.open(samples))
    (runs,) = plan.runs.values()
    assert len(runs) == COUNT
    assert plan.data.fingerprint == parent.data.fingerprint
    run = runs[7]
    values = {name: run.values[name] for name in ("label_noise", "loss_function", "batch_size", "data_fraction")}
    assert values == {"label_noise": 0.0, "loss_function": "mse", "batch_size": 16, "data_fraction": 0.5}
    assert run.samples == round(0.5 * plan.data.num_train)


def test_metrics_that_need_others_say_so(samples: Path) -> None:
    measure(samples, ["linear_barrier", "averaging_gain", "seed_averaging_gain"], where="number < 3", workers=0)
    zoo = catalog.open(samples)
    said = {name: one.rows[f"{one.metric}_reason"].unique().to_list() for name, one in measurements(zoo).items()}
    assert len(said) == 3
    for name, reasons in said.items():
        assert len(reasons) == 1, name
        assert reasons[0].startswith("it needs" if name.startswith("averaging") else "no partner")


def test_align_and_duplicates(parent: Population, generator: Generator, samples: Path, tmp_path: Path) -> None:
    (found,) = align(samples, where="number < 20")
    assert found.rows == 20
    twice = write_samples(fit("retrieval", parent), tmp_path / "r.zoo", 40)
    groups = duplicates(twice.url)
    rows = twice.scan().collect()
    expected = rows.filter(pl.col("nearest_run").is_duplicated())
    assert rows["nearest_distance"].max() == 0
    assert len(groups) == len(expected)
    assert set(groups["kind"]) == {"exact"}


def test_commands_take_it(samples: Path, tmp_path: Path) -> None:
    for line in (["info", samples], ["query", samples, "test_accuracy > 0.1"], ["verify", samples]):
        answer = CliRunner().invoke(app, [*map(str, line)])
        assert answer.exit_code == 0, answer.output
    assert "two moons" in CliRunner().invoke(app, ["info", str(samples)]).output


def test_a_generator_learns_from_samples(parent: Population, samples: Path, tmp_path: Path) -> None:
    """Samples of samples: everything is there that a population needs."""
    second = population(catalog.open(samples))
    assert second.data.fingerprint == parent.data.fingerprint
    for kind in ("soup", "random_init"):
        zoo = write_samples(fit(kind, second), tmp_path / f"{kind}.zoo", 4)
        assert zoo.record.spec["trained_like"] == catalog.open(samples).record.spec["trained_like"]
        assert zoo.scan().collect()["parent"].unique().to_list() == [second.zoo.name]


# Back to the parent, and what is typical of it


def test_another_parent_is_refused_or_left_alone(parent: Population, generator: Generator, tmp_path: Path) -> None:
    shutil.copytree(parent.zoo.url, tmp_path / "moved.zoo")
    found = write_samples(generator, tmp_path / "a.zoo", 2, zoo=tmp_path / "moved.zoo").scan().collect()
    assert found["nearest_run"].null_count() == 0
    hyper = {"epochs": 0}
    build(ZooSpec("o", numbers={"width": 5}, dataset="moons", hyperparameters=hyper), tmp_path / "o.zoo", workers=0)
    with pytest.raises(GeneratorError, match="does not hold what this generator learned from"):
        write_samples(generator, tmp_path / "b.zoo", 2, zoo=tmp_path / "o.zoo")
    with pytest.raises(NotAZooError):
        write_samples(generator, tmp_path / "b.zoo", 2, zoo=tmp_path / "none.zoo")
    other = dataclasses.replace(generator, source={**generator.source, "url": str(tmp_path / "o.zoo")})
    rows = write_samples(other, tmp_path / "b.zoo", 2).scan().collect()
    assert rows["nearest_run"].null_count() == 2


def test_parents_with_checkpoints_and_frames(tmp_path: Path) -> None:
    hyper = {"epochs": 2, "learning_rate": 0.1}
    spec = ZooSpec(
        "f", numbers={"width": 4}, dataset="moons", hyperparameters=hyper, seeds=tuple(range(9)), checkpoints=(1, 2)
    )
    build(spec, tmp_path / "f.zoo", workers=0)
    align(tmp_path / "f.zoo")
    zoo = catalog.open(tmp_path / "f.zoo")
    view = population(zoo, frame="universe", every_epoch=True)
    generator = fit("retrieval", view)
    rows = write_samples(generator, tmp_path / "s.zoo", 30).scan().collect()
    assert rows["frame"].unique().to_list() == ["universe"]
    assert rows["nearest_distance"].max() == 0  # in the frame
    assert set(rows["nearest_epoch"]) == {1, 2}
    shutil.rmtree(tmp_path / "f.zoo" / "frames")
    assert write_samples(generator, tmp_path / "t.zoo", 2, seed=1).scan().collect()["nearest_run"].null_count() == 2


def test_typical_is_the_middle(parent: Population) -> None:
    spec = typical_spec(parent.zoo, parent.rows)
    assert (spec.value("batch_size"), spec.value("label_noise"), spec.value("width")) == (16, 0.1, 5)
    assert (spec.dataset_options["samples"], spec.num_runs, spec.seeds) == (300, 1, (0,))
    rows = parent.rows.filter(pl.col("batch_size") == 32)
    assert typical_spec(parent.zoo, rows).value("batch_size") == 32
    names = parent.rows.with_columns(optimizer=pl.Series(["sgd"] * 11 + ["adamw"] * 13))
    assert typical_spec(parent.zoo, names).value("optimizer") == "adamw"


def test_zoos_without_a_spec_have_nothing_typical(tmp_path: Path, parent: Population) -> None:
    entry = next(iter(parent.zoo.record.variants.values()))
    bare: Zoo = catalog.create(tmp_path / "b.zoo", name="b", variants=[entry], spec={"made": "by hand"})
    with pytest.raises(InvalidSpecError, match="no spec"):
        typical_spec(bare, parent.rows)
