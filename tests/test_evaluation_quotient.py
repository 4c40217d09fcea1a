"""Quotient novelty: planted symmetries are seen through, runs trained apart are not, bounds come from enumeration."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from catalog.errors import GeneratorError
from generators.evaluation.honesty import random_scales
from generators.evaluation.novelty import novelty, spacing
from generators.evaluation.quotient import Search, canonical, quotient_novelty, quotient_of
from generators.evaluation.signs import match_signed, signed
from weightspace.symmetry import Symmetry
from zoo.architectures import Architecture
from zoo.build import build
from zoo.datasets import load_dataset
from zoo.plan import make_plan
from zoo.spec import ZooSpec
from zoo.symmetries import symmetry_of
from zoo.train import train

NETWORKS = {  # the last is a CNN with flatten maps
    "relu": ("mlp", {"depth": 2, "width": 16, "activation": "relu"}, 0.05),
    "tanh": ("mlp", {"depth": 2, "width": 16, "activation": "tanh"}, 0.05),
    "cnn": ("cnn", {"style": "model_zoo", "channels": 4, "activation": "tanh"}, 0.02),
}
ROUNDING = 1e-5  # of tau: scales and their inverses are rounded to float32, 6e-8 a number
every = pytest.mark.parametrize("name", NETWORKS)


@cache
def networks(name: str) -> tuple[Architecture, Symmetry, np.ndarray]:
    """24 networks trained for four epochs on digits."""
    family, numbers, rate = NETWORKS[name]
    hyper = {"epochs": 4, "learning_rate": rate}
    spec = ZooSpec("few", family, numbers, hyperparameters=hyper, seeds=tuple(range(24)))
    (runs,) = make_plan(spec).runs.values()
    architecture = runs[0].architecture
    return architecture, symmetry_of(architecture), train(runs, load_dataset("digits")).weights[:, -1].numpy()


def disguised(symmetry: Symmetry, weights: np.ndarray, seed: int = 5) -> np.ndarray:
    """The same functions with units permuted, and scaled or flipped."""
    moved = symmetry.permute(weights, symmetry.random(len(weights), seed))
    scaled: np.ndarray = symmetry.scale(moved, random_scales(symmetry, len(weights), seed))
    return scaled


@every
def test_planted_symmetries_are_copies(name: str) -> None:
    architecture, symmetry, weights = networks(name)
    training, lineages = weights[:16], np.arange(16)
    known = quotient_of(training, lineages, architecture.layout, symmetry)
    copies = disguised(symmetry, training[:8])
    found = quotient_novelty(copies, known)
    assert found.ratio.max() < ROUNDING
    assert found.nearest.tolist() == list(range(8))
    assert found.copies().value == 1
    raw = novelty(copies, training, lineages, architecture.layout)
    assert raw.ratio.min() > 0.5  # what raw distances make of them
    assert raw.copies().value == 0


@every
def test_networks_near_one_that_is_disguised_are_as_near_as_they_are(name: str) -> None:
    architecture, symmetry, weights = networks(name)
    known = quotient_of(weights[:16], np.arange(16), architecture.layout, symmetry)
    layout = architecture.layout
    noise = np.random.default_rng(0).standard_normal((16, layout.size))
    noise *= 0.2 * known.spacing.tau / np.linalg.norm(noise, axis=1, keepdims=True)
    near = (canonical(symmetry, weights[:16]) + noise).astype(np.float32)
    found = quotient_novelty(symmetry.permute(near, symmetry.random(16, 1)), known)
    assert found.nearest.tolist() == list(range(16))
    # balanced again they are a little nearer where scales are free; signs that sum to about 0 must not part them
    assert found.ratio.max() < 0.22
    assert found.ratio.min() > 0.1


def test_held_out_runs_of_a_zoo_are_as_new_as_independent_ones(tmp_path: Path) -> None:
    spec = ZooSpec(
        "two",
        numbers={"depth": 1, "width": 16},
        hyperparameters={"epochs": 5},
        seeds=tuple(range(44)),
        checkpoints=(4, 5),
    )
    zoo = build(spec, tmp_path / "two.zoo", workers=0)
    rows = zoo.scan().sort("run", "epoch").collect()
    runs = rows["run"].unique().sort()
    training, held = rows.filter(pl.col("run").is_in(runs[:32])), rows.filter(~pl.col("run").is_in(runs[:32]))
    layout = next(iter(zoo.layouts.values()))
    architecture = Architecture("mlp", spec.numbers, (1, 8, 8), 10)
    weights, fresh, lineages = zoo.read(training), zoo.read(held), training["run"].to_list()
    for found in (
        novelty(fresh, weights, lineages, layout),
        quotient_novelty(fresh, quotient_of(weights, lineages, layout, symmetry_of(architecture))),
    ):
        assert abs(found.mean.value - 1) < 0.05
        assert found.ratio.min() > 0.8  # the other checkpoint of the same run is no yardstick: that lies much nearer
        assert found.copies(0.8).value == 0
        assert all(lineages[i] != lineages[j] for i, j in enumerate(found.spacing.nearest.tolist()))
    again = quotient_novelty(fresh, quotient_of(np.concatenate([weights, fresh[::2]]), [*lineages, *range(12)], layout,
                                                symmetry_of(architecture)))  # fmt: skip
    assert again.ratio[1::2].max() < 0.8  # with its run in training each is seen to be of it


def test_one_hidden_layer_is_exact_by_enumeration() -> None:
    for activation in ("relu", "tanh"):
        architecture = Architecture("mlp", {"depth": 1, "width": 4, "activation": activation}, (3,), 2)
        symmetry, layout = symmetry_of(architecture), architecture.layout
        weights = np.random.default_rng(1).standard_normal((9, layout.size)).astype(np.float32)
        training, samples = weights[:6], weights[6:]
        found = quotient_novelty(samples, quotient_of(training, np.arange(6), layout, symmetry))
        flips = [(1.0,) * 4] if activation == "relu" else list(itertools.product((1.0, -1.0), repeat=4))
        one, other = canonical(symmetry, samples).astype(np.float64), canonical(symmetry, training)
        forms = []
        for order, signs in itertools.product(itertools.permutations(range(4)), flips):
            moved = symmetry.permute(one, {"hidden0": np.tile(np.array(order), (3, 1))})
            forms.append(symmetry.scale(moved, {"hidden0": np.tile(np.array(signs), (3, 1))}))
        apart = np.linalg.norm(np.array(forms)[:, :, None] - other, axis=-1).min(0)  # (samples, training)
        assert found.distance == pytest.approx(apart.min(1), rel=1e-6)
        assert found.nearest.tolist() == apart.argmin(1).tolist()


def test_signs_and_orders_are_found_together() -> None:
    _, symmetry, weights = networks("tanh")
    assert set(signed(symmetry)) == {"hidden0", "hidden1"}
    assert not signed(networks("relu")[1])
    flipped = disguised(symmetry, weights)
    moved = match_signed(symmetry, flipped, weights)
    np.testing.assert_array_equal(moved, weights)  # signs and orders round nothing
    far = match_signed(symmetry, flipped, np.roll(weights, 1, 0))
    before, after = (np.linalg.norm(some - np.roll(weights, 1, 0), axis=1) for some in (flipped, far))
    assert (after < before).all()


def test_candidates_lose_little_against_all_pairs() -> None:
    architecture, symmetry, weights = networks("relu")
    training, samples = weights[:18], weights[18:]
    whole = quotient_of(training, np.arange(18), architecture.layout, symmetry, Search(refined=18, restarts=4))
    few = quotient_of(training, np.arange(18), architecture.layout, symmetry, Search(limit=0, candidates=6))
    a, b = quotient_novelty(samples, whole), quotient_novelty(samples, few)
    assert (b.distance >= a.distance * 0.995).all()  # an upper bound; the few may be luckier in one descent
    assert (b.distance <= a.distance * 1.03).all()
    assert few.spacing.tau == pytest.approx(whole.spacing.tau, rel=0.02)
    raw = novelty(samples, training, np.arange(18), architecture.layout)
    assert (a.distance < raw.distance * 0.95).all()
    single = quotient_of(training, np.arange(18), architecture.layout, symmetry, Search(limit=0, candidates=1))
    assert quotient_novelty(disguised(symmetry, training), single).ratio.max() < ROUNDING


def test_candidates_leave_out_the_own_lineage() -> None:
    architecture, symmetry, weights = networks("relu")
    near = weights[:8] + np.float32(1e-4)
    both, lineages = np.concatenate([weights[:8], near]), [*range(8), *range(8)]
    for limit in (0, 64):
        found = quotient_of(both, lineages, architecture.layout, symmetry, Search(limit=limit, candidates=4)).spacing
        assert all(lineages[i] != lineages[j] for i, j in enumerate(found.nearest.tolist()))
        assert found.tau > 1


def test_samples_do_not_depend_on_their_companions() -> None:
    architecture, symmetry, weights = networks("tanh")
    known = quotient_of(weights[:16], np.arange(16), architecture.layout, symmetry)
    whole = quotient_novelty(weights[16:], known)
    for place in range(3):
        alone = quotient_novelty(weights[16 + place : 17 + place], known)
        assert (alone.distance[0], alone.nearest[0]) == (whole.distance[place], whole.nearest[place])


def test_what_is_not_finite_stays_out() -> None:
    architecture, symmetry, weights = networks("relu")
    known = quotient_of(weights[:12], np.arange(12), architecture.layout, symmetry)
    broken = weights[10:14].copy()
    broken[1, 5] = math.nan
    found = quotient_novelty(broken, known)
    assert np.isnan(found.distance).tolist() == [False, True, False, False]
    assert found.nearest[:2].tolist() == [10, -1]
    assert np.isnan(quotient_novelty(broken[1:2], known).ratio).all()
    with pytest.raises(GeneratorError, match="samples must be"):
        quotient_novelty(broken[:, 1:], known)
    with pytest.raises(GeneratorError, match="leave diverged models out"):
        quotient_of(broken, np.arange(4), architecture.layout, symmetry)
    with pytest.raises(GeneratorError, match="two runs or more"):
        quotient_of(weights[:3], ["a"] * 3, architecture.layout, symmetry)
    twins = disguised(symmetry, np.repeat(weights[:2], 3, 0)[:5])
    with pytest.raises(GeneratorError, match="two runs or more"):
        quotient_of(twins, ["a"] * 5, architecture.layout, symmetry)
    with pytest.raises(GeneratorError, match="refined 1 or more"):
        dataclasses.replace(Search(), refined=0)


def test_without_hidden_units_it_is_the_raw_distance() -> None:
    layout = Architecture("mlp", {"depth": 0}, (5,), 3).layout
    weights = np.random.default_rng(0).standard_normal((10, layout.size)).astype(np.float32)
    known = quotient_of(weights[:6], np.arange(6), layout, None)
    assert known.spacing.tau == spacing(weights[:6], np.arange(6), layout).tau
    found = quotient_novelty(weights[6:], known)
    np.testing.assert_array_equal(found.ratio, novelty(weights[6:], weights[:6], np.arange(6), layout).ratio)
