"""Codecs against numpy's SVD and closed forms; fitted on training alone; files that are whole or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import catalog
from catalog.errors import CorruptError, FormatError, GeneratorError, UnknownNameError
from catalog.export import encode as safetensors_bytes
from generators import codec_file, moments
from generators.codec import ROWS, Codec, check_codec, fit_codec
from generators.codec_file import load_codec, save_codec
from generators.components import choose, held_out
from generators.population import Population, population
from generators.recipe import CHOICES
from generators.round_trip import round_trip, with_round_trip
from tests.catalog_zoos import CALLS, Stop, stopping
from tests.weight_zoos import MIXED, counting, store
from weightspace.layout import Layout
from zoo.build import build
from zoo.spec import ZooSpec

scalings = pytest.mark.parametrize("scaling", CHOICES["scaling"])


def given(path: Path, weights: np.ndarray, layout: Layout | None = None, **options: Any) -> Population:
    """A population of these networks: 80 % train."""
    return population(store(path, weights, layout), **options)


def draw(models: int, size: int, rank: int | None = None, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Networks of a few directions of falling size, with noise, away from 0."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(rank or size, size)) * 2.0 ** -np.arange(rank or size)[:, None]
    weights = rng.normal(size=(models, len(directions))) @ directions + noise * rng.normal(size=(models, size))
    return (weights + rng.normal(size=size)).astype(np.float32)


def mixed(models: int = 20, seed: int = 0) -> np.ndarray:
    """Weights of the layout MIXED, whose tensors are of different size."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(models, MIXED.size)).astype(np.float32) + 1
    weights[:, MIXED.slice("second")] *= 100
    weights[:, MIXED.slice("steps")] = 7
    return weights


PARAMETERS = MIXED.indices(["first", "second"])


# What codes are


@scalings
def test_identity_gives_weights_back_and_buffers_of_the_mean(tmp_path: Path, scaling: str) -> None:
    found = given(tmp_path / "x.zoo", mixed(), MIXED)
    codec, train, others = fit_codec(found, scaling=scaling), found.read(), found.read("test")
    assert codec.width == len(PARAMETERS) == 17
    for weights in (train, others):
        back = codec.decode(codec.encode(weights))
        # rounding of (w - mean) / scale * scale + mean: a few units in the last place of numbers up to 300
        np.testing.assert_allclose(back[:, PARAMETERS], weights[:, PARAMETERS], rtol=0, atol=300 * 2**-22)
        buffers = np.setdiff1d(np.arange(MIXED.size), PARAMETERS)
        np.testing.assert_allclose(back[:, buffers], np.broadcast_to(train[:, buffers].mean(0), (len(back), 4)), 1e-6)
    if scaling == "none":
        np.testing.assert_array_equal(codec.encode(others), others[:, PARAMETERS])


def test_scales_are_deviations_of_all_of_a_tensor_or_of_a_coordinate(tmp_path: Path) -> None:
    found = given(tmp_path / "x.zoo", mixed(), MIXED)
    train = found.read()[:, PARAMETERS].astype(np.float64)
    deviation = train.std(axis=0)
    tensors = np.concatenate(
        [np.full(n, np.sqrt(np.mean(part**2))) for n, part in zip((12, 5), np.split(deviation, [12]), strict=True)]
    )
    expected = {
        "none": np.ones(17),
        "global": np.full(17, np.sqrt(np.mean(deviation**2))),
        "tensor": tensors,
        "coordinate": deviation,
    }
    for scaling, scale in expected.items():
        codec = fit_codec(found, scaling=scaling)
        np.testing.assert_allclose(codec.scale, scale, rtol=1e-6)  # float32
        np.testing.assert_allclose(codec.spread, deviation / scale, rtol=1e-5)
        codes = codec.encode(found.read())
        np.testing.assert_allclose(codes.std(axis=0), codec.spread, rtol=1e-5)
        np.testing.assert_allclose(codes.mean(axis=0), train.mean(0) if scaling == "none" else 0, atol=1e-5)


def test_what_does_not_vary_is_divided_by_what_its_tensor_or_all_vary(tmp_path: Path) -> None:
    weights = mixed()
    weights[:, 0] = 3  # a constant number
    weights[:, 1] = 3 + 1e-9 * np.arange(20)  # which float32 cannot tell from it
    weights[:, MIXED.slice("second")] = np.arange(5)  # a constant tensor
    found = given(tmp_path / "x.zoo", weights, MIXED)
    whole = fit_codec(found, scaling="global").scale[0]
    by_tensor, by_coordinate = (fit_codec(found, scaling=name) for name in ("tensor", "coordinate"))
    np.testing.assert_array_equal(by_tensor.scale[12:], whole)
    np.testing.assert_array_equal(by_coordinate.scale[12:], whole)
    np.testing.assert_array_equal(by_coordinate.scale[:2], by_tensor.scale[0])
    for codec in (by_tensor, by_coordinate, fit_codec(found, codec="pca", scaling="coordinate", components=2)):
        assert np.isfinite(codec.encode(found.read("test"))).all()
    np.testing.assert_array_equal(by_coordinate.encode(found.read())[:, 12:], 0)


@pytest.mark.parametrize("codec", CHOICES["codec"])
def test_the_bits_of_a_code_do_not_depend_on_the_others(tmp_path: Path, codec: str) -> None:
    found = given(tmp_path / "x.zoo", draw(200, 300, noise=0.1))
    fitted, weights = fit_codec(found, codec=codec), found.read()
    codes, back = fitted.encode(weights), fitted.decode(fitted.encode(weights))
    assert len(codes) > 2 * ROWS
    order = np.random.default_rng(1).permutation(len(weights))
    for some in (order, order[:7], order[:1], order[:ROWS]):
        np.testing.assert_array_equal(fitted.encode(weights[some]), codes[some])
        np.testing.assert_array_equal(fitted.decode(codes[some]), back[some])
    assert fitted.encode(weights[:0]).shape == (0, fitted.width)
    assert fitted.decode(codes[:0]).shape == weights[:0].shape


# Components


@pytest.mark.parametrize(
    ("models", "size"), [(30, 200), (60, 24), (40, 32)]
)  # 32 train in the last: as many as numbers
@pytest.mark.parametrize("scaling", ["none", "coordinate"])
def test_components_are_those_of_the_svd(tmp_path: Path, models: int, size: int, scaling: str) -> None:
    found = given(tmp_path / "x.zoo", draw(models, size, 12, noise=0.01))
    codec = fit_codec(found, codec="pca", scaling=scaling, components=5)
    train = found.read().astype(np.float64)
    centred = (train - train.mean(0)) / (train.std(0) if scaling == "coordinate" else 1)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    assert codec.basis is not None
    # float32 basis: projections on the same subspace, components up to sign
    np.testing.assert_allclose(codec.basis.T @ codec.basis, rows[:5].T @ rows[:5], atol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(codec.basis * rows[:5], axis=1)), 1, atol=1e-5)
    np.testing.assert_allclose(codec.basis @ codec.basis.T, np.eye(5), atol=1e-5)
    share = values**2 / np.sum(values**2)
    np.testing.assert_allclose(codec.report["explained_variance"][:5], share[:5], rtol=1e-5)
    np.testing.assert_allclose(codec.spread, values[:5] / np.sqrt(len(train)), rtol=1e-5)
    codes = codec.encode(found.read())
    np.testing.assert_allclose(codes.std(axis=0), 1, rtol=1e-4)
    np.testing.assert_allclose(codes, centred @ codec.basis.T / codec.spread, atol=1e-3)
    held = (found.read("validation") - train.mean(0)) / (train.std(0) if scaling == "coordinate" else 1)
    left = [np.sum((held - held @ rows[:k].T @ rows[:k]) ** 2) / np.sum(held**2) for k in range(1, 6)]
    np.testing.assert_allclose(codec.report["held_out_residual"][:5], left, atol=1e-5)


@scalings
def test_networks_of_few_directions_come_back(tmp_path: Path, scaling: str) -> None:
    found = given(tmp_path / "x.zoo", draw(30, 60, 4))
    codec = fit_codec(found, codec="pca", scaling=scaling, components=4)
    for weights in (found.read(), found.read("test")):
        np.testing.assert_allclose(codec.decode(codec.encode(weights)), weights, atol=1e-5)  # float32 of numbers to 10
    origin = codec.decode(np.zeros((1, 4), np.float32))
    np.testing.assert_allclose(origin[0], found.read().mean(0), atol=1e-6)


def test_reading_in_blocks_gives_the_same_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = given(tmp_path / "x.zoo", draw(50, 300, 12, noise=0.01))
    whole = fit_codec(found, codec="pca", components=6)
    monkeypatch.setattr(moments, "BYTES", 2 * 4 * 300)
    monkeypatch.setattr(moments, "COLUMNS", 100)
    with counting(monkeypatch) as seen:
        parts = fit_codec(found, codec="pca", components=6, memory=9 * 4 * 300)
    # moments and components come from 64 MiB at a time, all 40; between them blocks of 9 meet 2 at a time
    assert (seen[0], seen[-1], max(seen[1:-1])) == (40, 40, 9)
    assert seen[1:-1].count(2) > 40
    assert parts.report["reads_of_training"] == 1 + (40 + 31 + 22 + 13 + 4) / 40
    assert whole.report["reads_of_training"] == 2
    assert whole.basis is not None
    assert parts.basis is not None
    np.testing.assert_allclose(parts.basis, whole.basis, atol=1e-6)
    np.testing.assert_allclose(parts.report["held_out_residual"], whole.report["held_out_residual"], atol=1e-9)


def test_as_many_components_as_hold_for_others(tmp_path: Path) -> None:
    for models, size in ((40, 200), (300, 40)):
        planted = given(tmp_path / f"{size}.zoo", draw(models, size, 4, noise=0.005))
        codec = fit_codec(planted, codec="pca")
        assert codec.width == codec.report["components"] == 4
        assert codec.report["chosen"]
        assert codec.report["held_out_residual"][3] < 0.01 < codec.report["held_out_residual"][2]


def test_components_are_never_all_that_the_training_networks_have(tmp_path: Path) -> None:
    for models in (8, 12, 40):
        independent = np.random.default_rng(models).normal(size=(models, 500))
        found = given(tmp_path / f"{models}.zoo", independent)
        codec, train = fit_codec(found, codec="pca"), len(found.split("train"))
        assert len(codec.report["held_out_residual"]) == train - 1
        assert codec.width <= codec.report["most"] == train - 2
        assert min(codec.report["held_out_residual"]) > 0.8  # they say nothing of others


def test_the_rule_for_the_number_of_components() -> None:
    # two networks of run a at distance 2 and of b at 1, along axes: what is left by hand
    codes = np.array([[2.0, 0, 0], [0, 2, 0], [0, 0, 1]])
    curve, error = held_out(codes, np.array([4.0, 4, 1]), np.array(["a", "a", "b"]))
    np.testing.assert_allclose(curve, [5 / 9, 1 / 9, 0])
    np.testing.assert_allclose(error, np.array([np.std([2, 1], ddof=1), np.std([0, 1], ddof=1), 0]) / 2**0.5 / 3)
    curve, none = np.array([0.6, 0.3, 0.15, 0.1, 0.099, 0.2]), np.zeros(6)
    assert choose(curve, none) == 4
    assert choose(curve, none + 0.06) == 3  # within one standard error of the best
    assert choose(np.array([0.5]), np.zeros(1)) == 1
    alone, no_error = held_out(codes[:1], np.array([4.0]), np.array(["a"]))
    np.testing.assert_array_equal(np.stack([alone, no_error]), 0)


@pytest.mark.parametrize("name", CHOICES["codec"])
@scalings
def test_held_out_networks_change_no_bit(tmp_path: Path, name: str, scaling: str) -> None:
    weights = draw(30, 60, 10, noise=0.05)
    first = given(tmp_path / "a.zoo", weights)
    changed = weights.copy()
    held = [int(run[1:]) for split in ("validation", "test") for run in first.split(split)["run"]]
    changed[held] = 5 - 3 * changed[held]
    second = given(tmp_path / "b.zoo", changed)
    number = 4 if name == "pca" else 0
    one, other = (fit_codec(some, codec=name, scaling=scaling, components=number) for some in (first, second))
    for array in ("mean", "scale", "spread", "basis"):
        np.testing.assert_array_equal(getattr(one, array), getattr(other, array))
    assert first.fingerprint != second.fingerprint
    changed[[row for row in range(30) if row not in held]] += 1
    third = fit_codec(given(tmp_path / "c.zoo", changed), codec=name, scaling="tensor", components=number)
    assert not np.array_equal(third.mean, one.mean)


def test_what_cannot_be_fitted(tmp_path: Path) -> None:
    found = given(tmp_path / "x.zoo", draw(20, 30))
    with pytest.raises(UnknownNameError, match="unknown codec 'vae'; known: identity, pca"):
        fit_codec(found, codec="vae")
    with pytest.raises(UnknownNameError, match="unknown scaling 'max'"):
        fit_codec(found, scaling="max")
    for options in ({"codec": "identity", "components": 3}, {"codec": "pca", "components": -1}, {"components": 1.5}):
        with pytest.raises(GeneratorError, match="components must be an integer"):
            fit_codec(found, **options)
    with pytest.raises(GeneratorError, match="have 15 directions, got components=16"):
        fit_codec(found, codec="pca", components=16)
    with pytest.raises(GeneratorError, match="all networks of the training split are equal"):
        fit_codec(given(tmp_path / "same.zoo", np.ones((20, 5))))
    whole = Layout(("w", "n"), ((3,), ()), ("float32", "int64"))
    with pytest.raises(GeneratorError, match="whole numbers cannot be generated: n"):
        fit_codec(given(tmp_path / "whole.zoo", np.ones((20, 4)), whole))
    nothing = replace(found, rows=found.rows.filter(split="train"))
    with pytest.raises(GeneratorError, match="has none"):
        fit_codec(nothing, codec="pca")
    assert fit_codec(nothing, codec="pca", components=3).width == 3


def test_a_codec_of_another_population_is_refused(tmp_path: Path) -> None:
    first, second = (given(tmp_path / f"{seed}.zoo", draw(20, 30, seed=seed)) for seed in (0, 1))
    codec = fit_codec(first)
    check_codec(codec, first)
    for other in (second, population(first.zoo, seed=1)):
        with pytest.raises(GeneratorError, match=f"was fitted on population {first.fingerprint}, this one is"):
            check_codec(codec, other)
    with pytest.raises(GeneratorError, match="is for another layout"):
        check_codec(codec, given(tmp_path / "longer.zoo", draw(20, 31)))
    with pytest.raises(GeneratorError, match=r"weights of this codec must be \(models, 30\), got \(4, 31\)"):
        codec.encode(np.zeros((4, 31), np.float32))
    with pytest.raises(GeneratorError, match=r"codes of this codec must be \(models, 30\)"):
        codec.decode(np.zeros(30, np.float32))


# Files


@pytest.fixture
def fitted(tmp_path: Path) -> Codec:
    found = given(tmp_path / "x.zoo", mixed(), MIXED)
    return fit_codec(found, codec="pca", scaling="tensor")


def test_a_file_gives_the_same_codec(tmp_path: Path, fitted: Codec) -> None:
    weights, path = mixed(seed=3), tmp_path / "codec.safetensors"
    for codec in (fitted, replace(fitted, basis=None, spread=fitted.scale)):
        save_codec(codec, path)
        found = load_codec(path)
        assert found.fingerprint == codec.fingerprint
        assert (found.layout, found.population) == (codec.layout, codec.population)
        assert (found.settings, found.report) == (codec.settings, codec.report)
        np.testing.assert_array_equal(found.encode(weights), codec.encode(weights))
        np.testing.assert_array_equal(found.decode(codec.encode(weights)), codec.decode(codec.encode(weights)))


def test_fingerprints_tell_codecs_apart(fitted: Codec) -> None:
    changes: list[dict[str, Any]] = [
        {"mean": fitted.mean + 1},
        {"scale": fitted.scale * 2},
        {"spread": fitted.spread * 2},
        {"basis": None},
        {"population": "other"},
        {"settings": {}},
    ]
    assert len({fitted.fingerprint, *(replace(fitted, **change).fingerprint for change in changes)}) == 7
    assert replace(fitted, report={}).fingerprint == fitted.fingerprint


@pytest.mark.parametrize("nth", range(1, len(CALLS) + 1))
def test_a_killed_write_leaves_the_file_before(
    tmp_path: Path, fitted: Codec, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "codec.safetensors"
    save_codec(fitted, path)

    def stop() -> None:
        raise Stop

    with stopping(nth, stop, monkeypatch) as seen, pytest.raises(Stop):
        save_codec(replace(fitted, population="other"), path)
    assert len(seen) == nth
    assert load_codec(path).population == fitted.population
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["codec.safetensors"]


def test_every_bit_of_a_file_counts(tmp_path: Path, fitted: Codec) -> None:
    path = tmp_path / "codec.safetensors"
    save_codec(fitted, path)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    padding = end - len(data[:end].rstrip(b" "))
    for place in [*range(0, end - padding, 37), *range(end, len(data), 41), len(data) - 1]:
        for bit in (0, 6):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            with pytest.raises((CorruptError, FormatError)):
                load_codec(path)
    for length in (0, 5, 8, end - 1, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError):
            load_codec(path)
    with pytest.raises(GeneratorError, match="there is no codec at"):
        load_codec(tmp_path / "nobody")


def forge(
    path: Path, codec: Codec, arrays: Callable[[dict[str, Any]], Any], about: Callable[[dict[str, Any]], Any]
) -> None:
    """A file with another content and the right digest, as a stranger would make it."""
    content: dict[str, Any] = {"mean": codec.mean, "scale": codec.scale, "spread": codec.spread, "basis": codec.basis}
    text = {"layout": codec.layout.to_json(), "population": codec.population, "settings": {}, "report": {}}
    arrays(content)
    about(text)
    line = json.dumps(text)
    metadata = {"format": codec_file.FORMAT, "codec": line, "digest": codec_file._digest(line, content)}
    path.write_bytes(safetensors_bytes(content, metadata, "float32"))


def nothing(_: dict[str, Any]) -> None:
    pass


def test_what_a_stranger_writes_is_checked(tmp_path: Path, fitted: Codec) -> None:
    path = tmp_path / "codec.safetensors"
    forge(path, fitted, nothing, nothing)
    assert load_codec(path).fingerprint
    for name in ("mean", "scale", "spread", "basis"):
        array = getattr(fitted, name)
        wrong = [array[:-1], array[None], array.astype(np.float64), np.where(array == array.flat[0], np.nan, array)]
        wrong += [-array] if name in ("scale", "spread") else []
        for one in wrong:
            forge(path, fitted, lambda arrays: arrays.update({name: one}), nothing)  # noqa: B023
            with pytest.raises(FormatError):
                load_codec(path)
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda text: text.pop("population"),
        lambda text: text.update(population=3),
        lambda text: text.update(settings=[]),
        lambda text: text.update(layout={}),
        lambda text: text["layout"].update(size=3),
        lambda text: text.update(more=1),
    ]
    for change in changes:
        forge(path, fitted, nothing, change)
        with pytest.raises(FormatError, match="is no codec"):
            load_codec(path)
    forge(path, fitted, lambda arrays: arrays.pop("scale"), nothing)
    with pytest.raises(FormatError, match="expected"):
        load_codec(path)


# What it costs in accuracy


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> catalog.Zoo:
    """40 MLPs on moons."""
    path = tmp_path_factory.mktemp("trained") / "moons.zoo"
    hyper = {"epochs": 3, "learning_rate": 0.2}
    spec = ZooSpec(
        "moons", numbers={"depth": 1, "width": 8}, dataset="moons", hyperparameters=hyper, seeds=tuple(range(40))
    )
    build(replace(spec, checkpoints=(3,)), path, workers=0)
    return catalog.open(path)


def test_round_trips_of_trained_networks(trained: catalog.Zoo) -> None:
    found = population(trained)
    whole, one = (fit_codec(found, **options) for options in ({}, {"codec": "pca", "components": 1}))  # type: ignore[arg-type]
    report = with_round_trip(whole, found).report["round_trip"]
    stored = found.split("validation")["test_accuracy"].to_numpy()
    np.testing.assert_allclose(report["before"], stored, atol=1e-6)
    np.testing.assert_allclose(report["after"], stored, atol=0.011)  # rounding may tip a sample
    assert report["before_se"] == pytest.approx(stored.std(ddof=1) / 2)
    assert report["models"] == 4
    lossy = round_trip(one, found, "test")
    assert lossy["drop_mean"] == pytest.approx(lossy["before_mean"] - lossy["after_mean"])
    assert lossy["drop_mean"] > 0.02
    assert with_round_trip(whole, found).fingerprint == whole.fingerprint
    assert json.loads(json.dumps(report)) == report
    with pytest.raises(GeneratorError, match="was fitted on population"):
        round_trip(whole, population(trained, seed=1))


def test_statistics_of_batch_norm_are_taken_from_training_inputs(tmp_path: Path) -> None:
    hyper = {"epochs": 1, "learning_rate": 0.1, "data_fraction": 0.1}
    numbers = {"style": "small_cnn_zoo", "channels": 2, "norm": "batch"}
    build(ZooSpec("cnn", "cnn", numbers, hyperparameters=hyper, seeds=tuple(range(8))), tmp_path / "cnn.zoo", workers=0)
    found = population(catalog.open(tmp_path / "cnn.zoo"))
    codec = fit_codec(found)
    assert codec.width == found.layout.num_parameters < found.layout.size
    report = round_trip(codec, found)
    assert report["before"] != report["after"]
    np.testing.assert_allclose(report["after"], report["reestimated"], atol=0.002)  # of 597 samples, one may tip
    assert report["before_se"] is None
