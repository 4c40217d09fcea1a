"""Baselines: drawn by counter, and each is what its name says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import catalog
import generators.members
from catalog.errors import GeneratorError, InvalidSpecError, UnknownNameError
from generators.baselines import BASELINES
from generators.draws import choose, parts
from generators.kinds import GENERATORS, fit
from generators.members import Members
from generators.moments import moments
from generators.population import Population, population
from zoo.build import build
from zoo.spec import ZooSpec

every = pytest.mark.parametrize("name", BASELINES)


@pytest.fixture(scope="module")
def mlps(tmp_path_factory: pytest.TempPathFactory) -> Population:
    """20 MLPs on moons, one epoch."""
    hyper = {"epochs": 1, "learning_rate": 0.1, "initialization": "kaiming_normal", "initialization_gain": 0.5}
    spec = ZooSpec("m", numbers={"width": 6}, dataset="moons", hyperparameters=hyper, seeds=tuple(range(20)))
    return population(build(spec, tmp_path_factory.mktemp("baselines") / "m.zoo", workers=0))


@pytest.fixture(scope="module")
def normed(tmp_path_factory: pytest.TempPathFactory) -> Population:
    """10 CNNs with BatchNorm, hardly trained."""
    numbers = {"style": "small_cnn_zoo", "channels": 2, "norm": "batch"}
    hyper = {"epochs": 1, "learning_rate": 0.05, "batch_size": 50, "data_fraction": 0.05}
    spec = ZooSpec("c", "cnn", numbers, hyperparameters=hyper, seeds=tuple(range(10)), train_samples=50)
    return population(build(spec, tmp_path_factory.mktemp("normed") / "c.zoo", workers=0))


@pytest.fixture(params=["mlps", "normed"])
def some(request: pytest.FixtureRequest) -> Population:
    found: Population = request.getfixturevalue(request.param)
    return found


def parameters(population: Population, weights: np.ndarray) -> np.ndarray:
    return weights[:, : population.layout.num_parameters].astype(np.float64)


# What all of them promise


@every
def test_draws_follow_from_seed_and_number_alone(some: Population, name: str) -> None:
    settings = {"members": 3} if name == "soup" else {}
    generator = fit(name, some, settings, seed=3)
    drawn = generator.sample(150, seed=5)
    assert drawn.shape == (150, some.layout.size)
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
    again = fit(name, some, settings, seed=3)
    np.testing.assert_array_equal(again.sample(40, seed=5), drawn[:40])
    np.testing.assert_array_equal(again.sample(70, seed=5, first=61), drawn[61:131])
    mixed = np.array([149, 3, 64, 3, 63])
    np.testing.assert_array_equal(again.draw(mixed, 5, None), drawn[mixed])
    assert (generator.sample(150, seed=6) != drawn).any(1).sum() > 75  # retrieval may return the same member
    expected = {"retrieval": len(some.split("train")), "soup": 45}  # of 8 choose 3 = 56 sets, 52 are expected in 150
    assert len(np.unique(drawn, axis=0)) >= expected.get(name, 150)


@every
def test_they_say_what_they_are(mlps: Population, name: str) -> None:
    generator = fit(name, mlps)
    assert (generator.kind, generator.settings) == (name, BASELINES[name].settings)
    assert generator.source["population"] == mlps.fingerprint
    assert generator.source["frame"] is None
    assert generator.architecture.layout == mlps.layout
    assert generator.cost["seconds"] >= 0
    assert generator.fingerprint == fit(name, mlps).fingerprint
    assert GENERATORS[name].baseline
    prints = {fit(other, mlps).fingerprint for other in BASELINES}
    assert len(prints) == len(BASELINES)


@every
def test_settings_and_conditions_that_it_has_not(mlps: Population, name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"setting of {name} 'levle'"):
        fit(name, mlps, {"levle": 1})
    with pytest.raises(GeneratorError, match="without conditions"):
        fit(name, mlps).sample(1, conditions={"test_accuracy": 0.9})


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("noise_small", "level", -0.1),
        ("noise_small", "level", float("nan")),
        ("noise_large", "level", True),
        ("noise_large", "relative", 1),
        ("pca_gaussian", "components", -1),
        ("pca_gaussian", "components", 2.0),
        ("mix", "midpoint", "yes"),
        ("soup", "members", 0),
    ],
)
def test_values_that_are_none(mlps: Population, name: str, setting: str, value: object) -> None:
    with pytest.raises(InvalidSpecError, match=setting):
        fit(name, mlps, {setting: value})


@every
def test_members_that_do_not_fit_into_memory(some: Population, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = fit(name, some).sample(30, seed=1)
    monkeypatch.setattr(generators.members, "KEPT", 0)
    assert Members.of(some).kept is None
    np.testing.assert_array_equal(fit(name, some).sample(30, seed=1), drawn)


@every
def test_only_the_training_split_is_read(mlps: Population, name: str) -> None:
    """With other networks held out of the same rows the draws are the same; with others to learn from they are not."""
    rows = mlps.rows
    train = rows.filter(pl.col("split") == "train")["run"].to_list()
    others = rows.filter(pl.col("split") != "train")["run"].to_list()
    swapped = {"train": train, "validation": others[:1], "test": others[1:]}
    settings = {"components": 5} if name == "pca_gaussian" else {}  # how many may be chosen on the validation split
    one, other = [
        fit(name, population(mlps.zoo, split=split), settings).sample(20)
        for split in (swapped, {"train": train, "validation": others[2:], "test": others[:1]})
    ]
    np.testing.assert_array_equal(one, other)


# What each is


def test_noise_has_its_deviation_around_members(some: Population) -> None:
    members = some.read("train")
    centred = parameters(some, members) - parameters(some, members).mean(0)
    spread = np.sqrt((centred**2).sum() / (len(members) - 1) / centred.shape[1])
    for settings, deviation in (({"level": 0.2}, 0.2 * spread), ({"level": 0.05, "relative": False}, 0.05)):
        drawn = fit("noise_large", some, settings).sample(200)
        away = parameters(some, drawn)[:, None] - parameters(some, members)
        nearest = np.square(away).mean(-1).argmin(1)
        noise = away[np.arange(200), nearest]
        assert len(np.unique(nearest)) > len(members) // 2
        count = noise.size
        assert noise.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * count))  # five standard errors
        assert abs(noise.mean()) < 5 * deviation / np.sqrt(count)
        kurtosis = (noise**4).mean() / noise.var() ** 2
        assert kurtosis == pytest.approx(3, abs=5 * np.sqrt(24 / count))
        between = np.corrcoef(noise[:100])[np.triu_indices(100, 1)]
        assert abs(between.mean()) < 5 / np.sqrt(len(between) * noise.shape[1])  # samples are independent
        buffers = slice(some.layout.num_parameters, None)
        np.testing.assert_array_equal(drawn[:, buffers], members[nearest][:, buffers])


def test_level_zero_is_retrieval(some: Population) -> None:
    np.testing.assert_array_equal(
        fit("noise_small", some, {"level": 0.0}).sample(20), fit("retrieval", some).sample(20)
    )


def test_long_vectors_take_other_noise_in_each_block_of_columns(
    mlps: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generators.draws.COLUMNS", 4)
    drawn = fit("gaussian", mlps).sample(300)
    members = mlps.read("train")
    z = (drawn - members.mean(0)) / members.std(0)
    between = np.abs(np.corrcoef(z.T)[np.triu_indices(z.shape[1], 1)])
    assert between.max() < 5 / np.sqrt(300)


def test_gaussian_has_the_moments_of_the_training_split(some: Population) -> None:
    members, count = parameters(some, some.read("train")), 2000
    drawn = fit("gaussian", some).sample(count)
    deviation = members.std(0, ddof=1)
    z = (parameters(some, drawn) - members.mean(0)) / deviation
    assert np.abs(z.mean(0)).max() < 5 / np.sqrt(count)
    assert np.abs(z.std(0) - 1).max() < 5 / np.sqrt(2 * count)
    assert z.std() == pytest.approx(1, abs=5 / np.sqrt(2 * z.size))  # the unbiased variance
    buffers = slice(some.layout.num_parameters, None)
    mean = some.read("train").mean(0)
    np.testing.assert_allclose(drawn[:, buffers], np.tile(mean[buffers], (count, 1)), rtol=1e-5, atol=1e-6)  # float32


def test_pca_gaussian_stays_in_its_span_with_its_variances(mlps: Population) -> None:
    members, count = parameters(mlps, mlps.read("train")), 4000
    centred = members - members.mean(0)
    _, singular, basis = np.linalg.svd(centred, full_matrices=False)
    for components in (1, 3, len(members) - 1):
        drawn = parameters(mlps, fit("pca_gaussian", mlps, {"components": components}).sample(count)) - members.mean(0)
        codes = drawn @ basis[:components].T
        assert np.abs(drawn - codes @ basis[:components]).max() < 1e-6  # float32
        deviation = singular[:components] / np.sqrt(len(members) - 1)
        assert np.abs(codes.std(0) / deviation - 1).max() < 5 / np.sqrt(2 * count)
        assert np.abs((codes / deviation).std() - 1) < 5 / np.sqrt(2 * codes.size)  # the unbiased variance
        assert np.abs(np.corrcoef(codes.T) - np.eye(components)).max() < 5 / np.sqrt(count)


def test_mix_lies_between_two_members(some: Population) -> None:
    members, drawn = some.read("train").astype(np.float64), fit("mix", some).sample(100)
    shares = []
    for sample in drawn:
        solution, *_ = np.linalg.lstsq(members.T, sample.astype(np.float64), rcond=None)
        pair = np.argsort(np.abs(solution))[-2:]
        assert np.abs(np.delete(solution, pair)).max() < 1e-4
        assert solution[pair].sum() == pytest.approx(1, abs=1e-4)
        assert ((solution[pair] > -1e-4) & (solution[pair] < 1 + 1e-4)).all()
        shares.append(solution[pair[0]])
    shares = [min(share, 1 - share) for share in shares]
    assert np.mean(shares) == pytest.approx(0.25, abs=5 * 0.145 / 10)  # uniform in (0, 1/2)
    halves = fit("mix", some, {"midpoint": True}).sample(10)
    middle = ((members[:, None] + members) / 2).reshape(-1, members.shape[1])
    apart = np.abs(halves[:, None] - middle).max(-1)
    assert apart.min(1).max() < 1e-5 * np.abs(members).max()
    assert (apart.argmin(1) % (len(members) + 1) != 0).all()  # no member with itself


def test_soup_is_a_mean(some: Population) -> None:
    members = some.read("train")
    mean = members.astype(np.float64).mean(0)
    whole = fit("soup", some, {"members": 1000}).sample(3)
    np.testing.assert_allclose(whole, np.tile(mean, (3, 1)), rtol=1e-6, atol=1e-7)
    drawn = fit("soup", some, {"members": 3}).sample(50).astype(np.float64)
    solution, *_ = np.linalg.lstsq(members.astype(np.float64).T, drawn.T, rcond=None)
    np.testing.assert_allclose(np.sort(solution, 0)[-3:], 1 / 3, atol=1e-4)  # of three different ones
    np.testing.assert_allclose(np.sort(solution, 0)[:-3], 0, atol=1e-4)
    np.testing.assert_array_equal(fit("soup", some, {"members": 1}).sample(9), fit("retrieval", some).sample(9))


def test_retrieval_is_a_member_bit_for_bit(some: Population) -> None:
    members = {row.tobytes() for row in some.read("train")}
    drawn = {row.tobytes() for row in fit("retrieval", some).sample(400)}
    assert drawn == members


def test_random_init_is_what_runs_start_from(mlps: Population) -> None:
    drawn, layout = fit("random_init", mlps).sample(4000), mlps.layout
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        values = layout.tensor(drawn, name)
        if name.endswith("bias"):
            assert (values == 0).all()
        else:
            deviation = 0.5 * np.sqrt(2 / shape[1])  # the zoo's gain and scheme
            assert values.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * values.size))
    assert len(np.unique(drawn, axis=0)) == 4000


def test_random_init_starts_norms_as_the_identity(normed: Population) -> None:
    drawn = normed.layout.unflatten(fit("random_init", normed).sample(5))
    assert all((drawn[name] == 1).all() for name in drawn if name.endswith("running_var"))
    assert all((drawn[name] == 0).all() for name in drawn if name.endswith("running_mean"))


def test_random_init_follows_the_members(tmp_path: Path) -> None:
    """Runs with different schemes: samples have them in the same shares."""
    axes = {"initialization": ("kaiming_normal", "orthogonal"), "initialization_gain": (0.5, 2.0)}
    hyper = {"epochs": 0}
    spec = ZooSpec("i", numbers={"width": 4}, dataset="moons", hyperparameters=hyper, axes=axes, seeds=(0, 1, 2, 3))
    parent = population(build(spec, tmp_path / "i.zoo", workers=0))
    drawn = fit("random_init", parent).sample(600)
    first = parent.layout.tensor(drawn, "hidden0.weight").astype(np.float64)
    gram = first.swapaxes(1, 2) @ first
    flat = np.abs(gram - gram[:, :1, :1] * np.eye(2)).max((1, 2)) < 1e-5
    train = parent.split("train")
    share = (train["initialization"] == "orthogonal").mean()
    assert flat.mean() == pytest.approx(share, abs=5 * 0.5 / np.sqrt(600))
    gains = np.sqrt(gram[flat, 0, 0])
    np.testing.assert_allclose(np.unique(gains.round(4)), [0.5, 2.0], atol=1e-4)


def test_baselines_see_the_frame(mlps: Population, tmp_path: Path) -> None:
    from zoo.alignment.align import align

    catalog.pack(mlps.zoo.url, tmp_path / "packed.zoo")
    catalog.unpack(tmp_path / "packed.zoo", tmp_path / "own.zoo")
    align(tmp_path / "own.zoo", workers=0)
    zoo = catalog.open(tmp_path / "own.zoo")
    raw, aligned = population(zoo), population(zoo, frame="universe")
    assert moments(aligned).variance.sum() < moments(raw).variance.sum()
    soups = [fit("soup", view, {"members": 1000}).sample(1) for view in (raw, aligned)]
    np.testing.assert_allclose(soups[1][0], aligned.read("train").mean(0), atol=1e-6)
    assert np.abs(soups[0] - soups[1]).max() > 0.01
    assert fit("soup", aligned).source["frame"] == "universe"


# By conditions


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Population:
    """24 MLPs of two optimisers and four rates."""
    axes = {"optimizer": ("sgd", "adamw"), "learning_rate": (0.01, 0.02, 0.04, 0.08)}
    spec = ZooSpec(
        "x", numbers={"width": 5}, dataset="moons", hyperparameters={"epochs": 1}, axes=axes, seeds=(0, 1, 2)
    )
    return population(build(spec, tmp_path_factory.mktemp("mixed") / "x.zoo", workers=0))


def members_of(population: Population, drawn: np.ndarray) -> pl.DataFrame:
    """The rows of the training split that these networks are."""
    places = {row.tobytes(): place for place, row in enumerate(population.read("train"))}
    return population.split("train")[[places[row.tobytes()] for row in drawn]]


def test_retrieval_by_conditions(mixed: Population) -> None:
    rows = mixed.split("train")
    generator = fit("retrieval", mixed, {"conditions": "learning_rate, optimizer", "near": 2})
    assert generator.settings["conditions"] == ["learning_rate", "optimizer"]
    cells = (
        rows.group_by("learning_rate", "optimizer", maintain_order=True).agg("run").filter(pl.col("run").list.len() > 1)
    )
    rate, optimizer, runs = cells.row(0)
    exact = generator.sample(60, conditions={"learning_rate": rate, "optimizer": optimizer})
    assert set(members_of(mixed, exact)["run"]) == set(runs[:2])
    one = members_of(mixed, generator.sample(60, conditions={"learning_rate": 0.05}))
    near = rows.with_columns(away=(pl.col("learning_rate") - 0.05).abs()).sort("away", maintain_order=True).head(2)
    assert set(one["run"]) == set(near["run"])
    free = generator.sample(200)
    np.testing.assert_array_equal(free, fit("retrieval", mixed).sample(200))  # nothing wanted, nothing chosen by
    assert members_of(mixed, free)["run"].n_unique() == len(rows)
    rates = np.where(np.arange(60) % 2, 0.01, 0.08)
    each = members_of(mixed, generator.sample(60, conditions={"learning_rate": rates}))
    np.testing.assert_allclose(each["learning_rate"], rates)
    some = generator.sample(7, first=20, conditions={"learning_rate": rates[20:27]})
    assert members_of(mixed, some)["run"].to_list() == each["run"][20:27].to_list()


@pytest.mark.parametrize("name", ["mix", "soup"])
def test_means_by_conditions_are_of_members_near_what_is_wanted(mixed: Population, name: str) -> None:
    few = {"members": 2} if name == "soup" else {}
    drawn = fit(name, mixed, {"conditions": ["learning_rate"], "near": 3, **few}).sample(
        30, conditions={"learning_rate": 0.01}
    )
    rows, members = mixed.split("train"), mixed.read("train").astype(np.float64)
    shares = np.abs(np.linalg.lstsq(members.T, drawn.T.astype(np.float64), rcond=None)[0]).sum(1)
    near = rows.with_columns(at=pl.int_range(len(rows)), away=(pl.col("learning_rate") - 0.01).abs())
    expected = near.sort("away", maintain_order=True)["at"].head(3).to_list()
    assert set(np.flatnonzero(shares > 1e-3)) == set(expected)


def test_conditions_that_there_are_not(mixed: Population) -> None:
    with pytest.raises(UnknownNameError, match="no_such"):
        fit("retrieval", mixed, {"conditions": ["no_such"]})
    with pytest.raises(InvalidSpecError, match="names of columns"):
        fit("retrieval", mixed, {"conditions": 5})
    with pytest.raises(InvalidSpecError, match="near"):
        fit("soup", mixed, {"near": 0})
    with pytest.raises(UnknownNameError, match="setting of gaussian"):
        fit("gaussian", mixed, {"conditions": ["learning_rate"]})


# Draws


def test_chosen_places_are_different_and_uniform() -> None:
    numbers = np.arange(20000)
    drawn = choose(1, 9, numbers, 7, 3)
    assert drawn.min() == 0
    assert drawn.max() == 6
    assert all(len(set(row)) == 3 for row in drawn[:500].tolist())
    ordered = np.unique(drawn @ np.array([49, 7, 1]), return_counts=True)[1]
    assert len(ordered) == 7 * 6 * 5
    expected = 20000 / 210
    assert (np.square(ordered - expected) / expected).sum() < 209 + 5 * np.sqrt(2 * 209)  # chi squared
    assert (np.sort(choose(0, 9, numbers[:50], 7, 7), 1) == np.arange(7)).all()
    np.testing.assert_array_equal(choose(1, 9, numbers[5:7], 7, 3), drawn[5:7])


def test_parts_cover_all() -> None:
    assert [part for part in parts(5, 1 << 25)] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(parts(2, 1 << 40)) == [slice(0, 1), slice(1, 2)]
