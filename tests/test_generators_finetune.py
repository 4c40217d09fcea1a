"""Training on from samples: by the population's own recipe, in pairs, and only reported."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from catalog.errors import GeneratorError, InvalidSpecError
from generators.evaluation.finetune import EPOCHS, curves, finetune, starts
from generators.kinds import fit
from generators.population import Population, population
from zoo.build import build
from zoo.evaluate import evaluate
from zoo.spec import ZooSpec
from zoo.typical import typical_spec


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Population:
    """16 MLPs on moons."""
    hyper = {"epochs": 6, "learning_rate": 0.2, "schedule": "cosine", "batch_size": 16}
    spec = ZooSpec("m", numbers={"width": 8}, dataset="moons", hyperparameters=hyper, seeds=tuple(range(16)))
    return population(build(spec, tmp_path_factory.mktemp("finetune") / "m.zoo", workers=0))


def accuracy(parent: Population, weights: np.ndarray) -> np.ndarray:
    x, y = torch.from_numpy(parent.data.test_x), torch.from_numpy(parent.data.test_y)
    return evaluate(parent.architecture, torch.from_numpy(weights), x, y).accuracy


def test_epoch_zero_is_what_was_given_and_training_helps(parent: Population) -> None:
    weights = fit("random_init", parent).sample(70)  # more than one group
    found = finetune(parent, weights)
    assert found.shape == (70, len(EPOCHS))
    np.testing.assert_array_equal(found[:, 0], accuracy(parent, weights))
    assert (np.diff(found.mean(0)) > 0).all()
    assert found[:, -1].mean() > parent.rows["test_accuracy"].to_numpy().mean() - 0.01


def test_each_network_is_on_its_own(parent: Population) -> None:
    weights = fit("gaussian", parent).sample(70)
    whole = finetune(parent, weights, (0, 1, 3), seed=2)
    np.testing.assert_array_equal(finetune(parent, weights[:3], (0, 1, 3), seed=2, threads=2), whole[:3])
    np.testing.assert_array_equal(finetune(parent, weights[:5], (1, 3), seed=2), whole[:5, 1:])
    assert (finetune(parent, weights, (0, 1, 3), seed=3)[:, 1] != whole[:, 1]).any()
    same = np.repeat(weights[:1], 30, 0)
    curves = finetune(parent, same, (0, 1))
    assert np.ptp(curves[:, 0]) == 0
    assert np.ptp(curves[:, 1]) > 0  # each with batches of its own


def test_a_network_that_is_not_finite_hurts_no_other(parent: Population) -> None:
    weights = fit("gaussian", parent).sample(4)
    whole = finetune(parent, weights, (0, 1))
    weights[2] = np.nan
    found = finetune(parent, weights, (0, 1))
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(found[[0, 1, 3]], whole[[0, 1, 3]])


def test_the_recipe_is_the_populations_or_given(parent: Population) -> None:
    weights = fit("random_init", parent).sample(8)
    own = finetune(parent, weights, (0, 4))
    spec = typical_spec(parent.zoo, parent.rows)
    np.testing.assert_array_equal(finetune(parent, weights, (0, 4), runs_like=spec), own)
    still = finetune(parent, weights, (0, 4), learning_rate=1e-12)
    np.testing.assert_array_equal(still[:, 0], still[:, 1])
    slow = dataclasses.replace(spec, hyperparameters={**spec.hyperparameters, "learning_rate": 1e-12})
    np.testing.assert_array_equal(finetune(parent, weights, (0, 4), runs_like=slow), still)
    with pytest.raises(GeneratorError, match="the recipe trains mlp"):
        finetune(parent, weights, runs_like=dataclasses.replace(spec, numbers={"width": 9}))
    with pytest.raises(InvalidSpecError, match="learning_rate"):
        finetune(parent, weights, learning_rate=-1.0)


def test_what_samples_are_compared_with(parent: Population) -> None:
    members = parent.read("train")
    weights = members[[3, 0, 5]] + np.float32(1e-3)
    weights[1] = np.nan
    found = starts(parent, weights, seed=1)
    assert list(found) == ["nearest", "soup", "random"]
    np.testing.assert_array_equal(found["nearest"][[0, 2]], members[[3, 5]])
    assert np.isnan(found["nearest"][1]).all()
    np.testing.assert_array_equal(found["soup"], fit("soup", parent).sample(3, seed=1))
    np.testing.assert_array_equal(found["random"], fit("random_init", parent).sample(3, seed=1))


def test_curves_are_means_with_their_errors(parent: Population) -> None:
    weights = fit("noise_small", parent).sample(12)
    weights[3] = np.nan
    found = {one.name: one for one in curves(parent, weights, (0, 2), seed=4)}
    assert list(found) == ["samples", "nearest", "soup", "random"]
    beside = {"samples": weights, **starts(parent, weights, seed=4)}
    for name, one in found.items():
        accuracy = finetune(parent, beside[name], (0, 2), seed=4)
        if name in ("samples", "nearest"):  # nothing is nearest to what is not finite
            assert np.isnan(accuracy[3]).all()
            accuracy[3] = 0
        assert (one.count, one.epochs) == (12, (0, 2))
        np.testing.assert_allclose(one.accuracy, accuracy.mean(0))
        np.testing.assert_allclose(one.error, accuracy.std(0, ddof=1) / np.sqrt(12))
    with pytest.raises(GeneratorError, match="one network or more"):
        curves(parent, weights[:0])


def test_norms_are_trained_on_as_they_come(tmp_path_factory: pytest.TempPathFactory) -> None:
    numbers = {"style": "small_cnn_zoo", "channels": 2, "norm": "batch"}
    hyper = {"epochs": 1, "learning_rate": 0.05, "batch_size": 50, "data_fraction": 0.05}
    spec = ZooSpec("c", "cnn", numbers, hyperparameters=hyper, seeds=tuple(range(8)), train_samples=50)
    parent = population(build(spec, tmp_path_factory.mktemp("finetuned") / "c.zoo", workers=0))
    weights = parent.read("train")[:3]
    found = finetune(parent, weights, (0, 1))
    np.testing.assert_allclose(found[:, 0], parent.split("train")["test_accuracy"][:3], atol=1e-12)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("epochs", [(), (1, 1), (3, 1), (-1, 2), (0.5, 1), (True, 2)])
def test_epochs_that_are_none(parent: Population, epochs: tuple[int, ...]) -> None:
    with pytest.raises(GeneratorError, match="epochs must be increasing"):
        finetune(parent, parent.read("train")[:1], epochs)


def test_weights_that_do_not_fit(parent: Population) -> None:
    for weights in (np.zeros((2, 3), np.float32), np.zeros(parent.layout.size, np.float32)):
        with pytest.raises(GeneratorError, match="weights must be"):
            finetune(parent, weights)
