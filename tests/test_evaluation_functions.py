"""Predictions, overlaps of errors, disagreement and diversity: hand-made sets, loops and invariances."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch

from catalog.errors import GeneratorError
from generators.evaluation.diversity import diversity, ensemble_gain
from generators.evaluation.functions import (
    behaviour,
    disagreement,
    error_iou,
    own_error_iou,
    pairwise_disagreement,
    predictions,
)
from generators.evaluation.honesty import random_scales
from zoo.architectures import Architecture
from zoo.datasets import load_dataset
from zoo.plan import make_plan
from zoo.spec import ZooSpec
from zoo.symmetries import symmetry_of
from zoo.train import train

DIGITS = load_dataset("digits")
X, Y = DIGITS.test_x[:203], DIGITS.test_y[:203]  # no multiple of 8


@cache
def networks() -> tuple[Architecture, np.ndarray]:
    """12 tanh MLPs 64-16-10, five epochs."""
    hyper = {"epochs": 5, "learning_rate": 0.05}
    numbers = {"depth": 1, "width": 16, "activation": "tanh"}
    (runs,) = make_plan(ZooSpec("few", numbers=numbers, hyperparameters=hyper, seeds=tuple(range(12)))).runs.values()
    return runs[0].architecture, train(runs, DIGITS).weights[:, -1].numpy()


def bits(*sets: set[int], samples: int = 11) -> np.ndarray:
    return np.packbits([[place in one for place in range(samples)] for one in sets], axis=1)


def test_predictions_are_those_of_the_module_one_by_one() -> None:
    architecture, weights = networks()
    found = behaviour(architecture, weights, X, Y)
    module = architecture.build().eval()
    for model in range(3):
        module.load_state_dict(architecture.layout.unflatten(torch.from_numpy(weights[model])))
        with torch.no_grad():
            logits = module(torch.from_numpy(X))
        expected = logits.argmax(1).numpy()
        assert (found.predictions[model] == expected).mean() >= 1 - 1 / len(X)  # sums in another order, at ties
        assert found.loss[model] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, torch.tensor(Y))))
    wrong = found.predictions != Y
    assert found.predictions.dtype == np.uint8
    assert np.array_equal(found.bits, np.packbits(wrong, axis=1))
    assert found.accuracy == pytest.approx(1 - wrong.mean(1))
    assert not found.failed.any()


def test_functions_do_not_change_when_units_are_permuted_or_flipped() -> None:
    architecture, weights = networks()
    symmetry = symmetry_of(architecture)
    moved = symmetry.scale(symmetry.permute(weights, symmetry.random(12, 1)), random_scales(symmetry, 12, 2))
    assert np.abs(moved - weights).max() > 0.1
    one, other = (behaviour(architecture, some, X, Y) for some in (weights, moved))
    assert (one.predictions == other.predictions).mean() > 0.999  # sums of 16 numbers in another order
    assert error_iou(other.bits, one.bits).iou.min() > 0.95
    assert error_iou(other.bits, one.bits).nearest.tolist() == list(range(12))
    assert disagreement(one.predictions, other.predictions).max() < 0.01


def test_networks_that_fail_are_wrong_everywhere_and_say_nothing() -> None:
    architecture, weights = networks()
    broken = weights[:5].copy()
    broken[1, 7], broken[2] = math.nan, np.inf
    broken[3] = 1e38  # finite weights, infinite logits
    found = behaviour(architecture, broken, X, Y)
    assert found.failed.tolist() == [False, True, True, True, False]
    assert np.isnan(found.accuracy[1:4]).all()
    assert (found.predictions[1:4] == 10).all()
    assert np.unpackbits(found.bits, axis=1, count=len(X))[1:4].all()
    assert not np.unpackbits(found.bits, axis=1)[:, len(X) :].any()  # nothing behind the last sample
    assert np.array_equal(found.bits[4], behaviour(architecture, weights[4:5], X, Y).bits[0])
    overlap = error_iou(found.bits, found.bits[[0, 4]], found.failed)
    assert np.isnan(overlap.iou).tolist() == found.failed.tolist()
    assert overlap.nearest.tolist() == [0, -1, -1, -1, 1]
    assert behaviour(architecture, broken[1:3], X, Y).failed.all()
    with pytest.raises(GeneratorError, match="1210"):
        behaviour(architecture, weights[:, 1:], X, Y)


def test_error_iou_is_that_of_sets() -> None:
    training = bits({0, 1, 2}, {3, 9, 10}, {0, 9})
    found = error_iou(bits({0, 1, 2}, {10}, {0, 1, 9}, {5}, set()), training)
    assert found.iou.tolist() == pytest.approx([1, 1 / 3, 2 / 3, 0, 0])
    assert found.nearest[:2].tolist() == [0, 1]
    own = own_error_iou(training, ["a", "b", "c"])
    assert own.iou.tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 4])
    assert own_error_iou(training[[0, 0, 1]], ["a", "a", "b"]).iou.tolist() == [0, 0, 0]  # its own run does not count
    with pytest.raises(GeneratorError, match="two runs or more"):
        own_error_iou(training, ["a"] * 3)
    for bad in (training[:, :1], training.astype(int), training[:0], training[0]):
        with pytest.raises(GeneratorError, match="error bits"):
            error_iou(training, bad)


def test_copies_have_iou_1_and_independent_runs_the_level_of_the_zoo() -> None:
    architecture, weights = networks()
    seen = behaviour(architecture, weights, X, Y)
    assert (error_iou(seen.bits, seen.bits).iou == 1).all()
    level = own_error_iou(seen.bits[:9], np.arange(9)).iou
    held = error_iou(seen.bits[9:], seen.bits[:9]).iou
    assert 0.1 < held.mean() < 0.9
    assert abs(held.mean() - level.mean()) < 0.2  # three networks
    assert (disagreement(seen.predictions, seen.predictions) == 0).all()


def test_disagreement_is_the_share_of_different_answers() -> None:
    a, b = np.array([[0, 1, 2, 2], [0, 0, 0, 0]], np.uint8), np.array([[0, 1, 2, 1], [3, 0, 1, 1]], np.uint8)
    assert disagreement(a, b).tolist() == [0.25, 0.75]
    assert pairwise_disagreement(a, b).tolist() == [[0.25, 1.0], [0.75, 0.75]]
    for bad in (b[:1], b[:, :2], b[0]):
        with pytest.raises(GeneratorError, match="predictions must be"):
            disagreement(a, bad)
    with pytest.raises(GeneratorError, match="same samples"):
        pairwise_disagreement(a, b[:, :2])


def test_many_classes_take_wider_integers() -> None:
    for classes, dtype in ((254, np.uint8), (255, np.uint8), (256, np.uint16)):
        wide = Architecture("mlp", {"depth": 0}, (2,), classes)
        weights = np.zeros((2, wide.layout.size), np.float32)
        weights[:, -1] = 1  # the bias of the last class
        weights[1] = np.nan
        found = predictions(wide, weights, np.zeros((3, 2), np.float32))
        assert found.dtype == dtype
        assert found.tolist() == [[classes - 1] * 3, [classes] * 3]


# Diversity


def test_identical_networks_have_no_diversity_and_gain_nothing() -> None:
    architecture, weights = networks()
    same = np.repeat(weights[:1], 20, 0)
    found = diversity(same, behaviour(architecture, same, X, Y), Y, architecture.layout)
    assert (found.distance.value, found.distance.se) == (0, 0)
    assert (found.disagreement.value, found.iou.value) == (0, 1)
    assert found.ensemble_gain.value == pytest.approx(0, abs=1e-15)
    assert (found.votes, found.distance.count) == (16, 20)


def test_diversity_is_the_mean_of_all_pairs_by_a_loop() -> None:
    architecture, weights = networks()
    broken = np.concatenate([weights, np.full((2, weights.shape[1]), np.nan, np.float32)])
    seen = behaviour(architecture, broken, X, Y)
    found = diversity(broken, seen, Y, architecture.layout)
    pairs = [(i, j) for i in range(12) for j in range(i)]
    wrong = seen.predictions != Y
    expected = {
        "distance": [np.linalg.norm(weights[i].astype(float) - weights[j]) for i, j in pairs],
        "disagreement": [(seen.predictions[i] != seen.predictions[j]).mean() for i, j in pairs],
        "iou": [(wrong[i] & wrong[j]).sum() / (wrong[i] | wrong[j]).sum() for i, j in pairs],
    }
    for name, values in expected.items():
        estimate = getattr(found, name)
        assert estimate.value == pytest.approx(np.mean(values), rel=1e-5)
        assert (estimate.count, estimate.se > 0) == (12, True)
    assert found.votes == 12
    assert found.ensemble_gain.value > 0  # networks trained apart gain by voting
    with pytest.raises(GeneratorError, match="behaviour is of 14"):
        diversity(weights, seen, Y, architecture.layout)


def test_votes_by_hand() -> None:
    labels = np.array([0, 1, 2])
    right, left = [0, 1, 2], [0, 1, 1]
    votes = np.array([right, right, left], np.uint8)
    assert ensemble_gain(votes, labels, votes=3).value == pytest.approx(1 - (1 + 1 + 2 / 3) / 3)
    assert ensemble_gain(votes[1:], labels, votes=16).value == pytest.approx((2 + 0.5) / 3 - (1 + 2 / 3) / 2)  # a tie
    assert ensemble_gain(votes, labels, votes=1).value == pytest.approx(0, abs=1e-15)
    assert ensemble_gain(votes[:0], labels).count == 0
    again = [ensemble_gain(votes, labels, votes=2, repeats=5, seed=seed).value for seed in (1, 1, 2, 3)]
    assert again[0] == again[1]
    assert len(set(again)) > 1
    with pytest.raises(GeneratorError, match="with labels"):
        ensemble_gain(votes, labels[:2])
    with pytest.raises(GeneratorError, match="1 or more"):
        ensemble_gain(votes, labels, votes=0)
