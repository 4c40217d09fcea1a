"""Health, conditional fidelity and codec honesty on hand-made sets and on a codec that is blind to order or not."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from catalog.errors import GeneratorError
from generators.evaluation.fidelity import fidelity, not_measurable
from generators.evaluation.health import health
from generators.evaluation.honesty import honesty, random_scales
from weightspace.canonical import canonical_order
from weightspace.layout import Layout
from weightspace.symmetry import Symmetry
from zoo.architectures import Architecture
from zoo.datasets import load_dataset
from zoo.plan import make_plan
from zoo.spec import ZooSpec
from zoo.symmetries import symmetry_of
from zoo.train import train

LAYOUT = Layout(("w", "mean", "b"), ((4, 5), (20,), (4,)), roles=("parameter", "buffer", "parameter"))
DIGITS = load_dataset("digits")
X, Y = DIGITS.test_x[:200], DIGITS.test_y[:200]


# Health


def answers(models: int, constant: int = 0) -> np.ndarray:
    found = np.tile(np.arange(6) % 3, (models, 1))
    found[:constant] = 2
    return found


def test_samples_of_the_population_are_healthy() -> None:
    rng = np.random.default_rng(0)
    training, samples = (rng.standard_normal((n, LAYOUT.size)).astype(np.float32) for n in (199, 400))
    found = health(samples, training, answers(400), LAYOUT)
    assert (found.failed.value, found.constant.value) == (0, 0)
    assert found.rms_ratio == pytest.approx(1, abs=0.05)
    assert abs(found.norm_ratio.value - 1) < 4 * found.norm_ratio.se + 0.01
    assert found.outside_expected == 0.01
    assert found.outside.value == pytest.approx(0.01, rel=0.3)  # 24 coordinates of one training set


def test_what_is_ill_shows() -> None:
    rng = np.random.default_rng(1)
    training = rng.standard_normal((50, LAYOUT.size)).astype(np.float32)
    samples = training[:8].copy()
    LAYOUT.tensor(samples, "w")[...] *= 2
    LAYOUT.tensor(samples, "b")[...] *= 0.5
    LAYOUT.tensor(samples, "mean")[...] *= 1000  # buffers take no part
    samples[6, 0], samples[7, 1] = math.nan, math.inf
    found = health(samples, training, answers(8, constant=3), LAYOUT)
    assert (found.failed.value, found.constant.value) == (0.25, 0.5)
    assert found.constant.count == 6
    assert (found.smallest, found.largest) == ("b", "w")
    kept, usual = LAYOUT.tensor(training[:6], "w"), LAYOUT.tensor(training, "w")
    assert found.tensors["w"] == pytest.approx(2 * math.sqrt((kept**2).mean() / (usual**2).mean()), rel=1e-5)
    assert set(found.tensors) == {"w", "b"}
    inside = (2 * kept >= usual.min(0)) & (2 * kept <= usual.max(0))
    assert found.outside.value == pytest.approx((~inside).mean() * 20 / 24)  # halved biases stay inside
    nothing = health(samples[6:], training, answers(2), LAYOUT)
    assert (nothing.failed.value, nothing.smallest, nothing.constant.count) == (1, None, 0)
    assert math.isnan(nothing.rms_ratio)


def test_health_of_what_does_not_fit_is_refused() -> None:
    training = np.ones((3, LAYOUT.size), np.float32)
    with pytest.raises(GeneratorError, match="samples must be"):
        health(training[:, 1:], training, answers(3), LAYOUT)
    with pytest.raises(GeneratorError, match="predictions of each sample"):
        health(training, training, answers(2), LAYOUT)
    with pytest.raises(GeneratorError, match="training models"):
        health(training, training[:0], answers(3), LAYOUT)
    with pytest.raises(GeneratorError, match="must be finite"):
        health(training, training * np.nan, answers(3), LAYOUT)


# Conditional fidelity


def test_a_faithful_generator_gives_what_is_asked_for() -> None:
    asked = np.repeat([0.9, 0.8, 0.95], 4)
    off = np.tile([0.01, -0.01, 0.03, 0.01], 3)
    free = np.array([0.9, 0.8])
    found = fidelity("test_accuracy", asked, asked + off, free)
    assert [level.requested for level in found.levels] == [0.8, 0.9, 0.95]
    assert [level.obtained.value for level in found.levels] == pytest.approx([0.81, 0.91, 0.96])
    assert found.levels[0].obtained.se == pytest.approx(np.std(off[:4], ddof=1) / 2)
    assert found.spearman is not None
    assert found.error is not None
    assert found.without is not None
    assert found.spearman.value > 0.9
    assert found.error.value == pytest.approx(0.015)
    assert found.without.value == pytest.approx((0 + 0.1 + 0.05 + 0.1 + 0 + 0.15) / 6)
    assert fidelity("test_accuracy", asked, -asked).kendall.value == pytest.approx(-1)  # type: ignore[union-attr]
    assert math.isnan(fidelity("test_accuracy", asked, 0 * asked).spearman.value)  # type: ignore[union-attr]


def test_without_effect_both_errors_are_one_and_ranks_are_none() -> None:
    rng = np.random.default_rng(2)
    asked, got, free = rng.choice([0.2, 0.8], 600), rng.random(600), rng.random(600)
    found = fidelity("train_loss", asked, got, free)
    for estimate in (found.spearman, found.kendall):
        assert estimate is not None
        assert abs(estimate.value) < 4 * estimate.se
        assert 0.02 < estimate.se < 0.06
    assert found.error is not None
    assert found.without is not None
    assert abs(found.error.value - found.without.value) < 4 * math.hypot(found.error.se, found.without.se)


def test_rank_errors_are_the_spread_of_ranks() -> None:
    rng = np.random.default_rng(4)
    one = rng.standard_normal((300, 60))
    other = one + rng.standard_normal((300, 60))
    found = [fidelity("test_loss", a, b) for a, b in zip(one, other, strict=True)]
    for name in ("spearman", "kendall"):
        values = [getattr(each, name) for each in found]
        spread = np.std([value.value for value in values])
        assert np.mean([value.se for value in values]) == pytest.approx(spread, rel=0.25)


def test_failed_samples_are_counted() -> None:
    found = fidelity("test_accuracy", [0.5, 0.5, 0.9, 0.9], [0.5, math.nan, 0.9, 0.8])
    assert found.failed is not None
    assert found.error is not None
    assert (found.failed.value, found.error.count) == (0.25, 3)
    assert [(level.count, level.obtained.count) for level in found.levels] == [(2, 1), (2, 2)]


def test_categories_are_obtained_or_not() -> None:
    found = fidelity("phase", ["I", "I", "II", "II"], ["I", "II", "II", None], ["I", "I", "II", "III"])
    assert [(level.requested, level.obtained.value) for level in found.levels] == [("I", 0.5), ("II", 0.5)]
    assert found.error is not None
    assert found.without is not None
    assert found.failed is not None
    assert (found.error.value, found.failed.value, found.spearman) == (0.5, 0.25, None)
    assert found.without.value == pytest.approx(1 - 0.5 * (0.5 + 0.5 + 0.5 + 0) / 2)


def test_what_cannot_be_measured_says_why() -> None:
    assert not_measurable("test_accuracy") is None
    found = fidelity("learning_rate", [0.1, 0.2], None)
    assert "learning_rate is how a network was made" in str(found.reason)
    assert (found.error, found.levels) == (None, ())
    assert fidelity("test_loss", [1.0, 2.0], None).reason == "test_loss was not measured"
    with pytest.raises(GeneratorError, match="1 obtained"):
        fidelity("test_loss", [1.0, 2.0], [1.0])
    with pytest.raises(GeneratorError, match="two samples"):
        fidelity("test_loss", [1.0], [1.0])
    with pytest.raises(GeneratorError, match="must be finite"):
        fidelity("test_loss", [1.0, math.nan], [1.0, 2.0])
    with pytest.raises(GeneratorError, match="must be numbers"):
        fidelity("test_loss", [1.0, 2.0], ["high", "low"])


# Codec honesty


@cache
def networks(activation: str = "relu") -> tuple[Architecture, Symmetry, np.ndarray]:
    hyper = {"epochs": 5, "learning_rate": 0.05}
    numbers = {"depth": 1, "width": 16, "activation": activation}
    (runs,) = make_plan(ZooSpec("few", numbers=numbers, hyperparameters=hyper, seeds=tuple(range(20)))).runs.values()
    architecture = runs[0].architecture
    return architecture, symmetry_of(architecture), train(runs, DIGITS).weights[:, -1].numpy()


def test_a_codec_that_keeps_everything_is_honest() -> None:
    architecture, symmetry, weights = networks()
    found = honesty(lambda w: w, architecture, symmetry, weights, X, Y)
    for part in (found.plain, found.permuted, found.rescaled):
        assert part is not None
        assert abs(part.change.value) < 0.001
        assert part.lost.value < 0.01  # sums of 16 numbers in another order
    assert (found.plain.change.value, found.plain.lost.value) == (0, 0)
    assert found.plain.accuracy.value > 0.8


def test_a_codec_that_depends_on_order_and_scale_is_found_out() -> None:
    architecture, symmetry, weights = networks()
    centre, basis = weights[:16].mean(0), np.linalg.svd(weights[:16] - weights[:16].mean(0), full_matrices=False)[2]
    held = weights[:4]  # of its own span: as they are nothing is lost

    def project(some: np.ndarray) -> np.ndarray:
        return (centre + (some - centre) @ basis.T @ basis).astype(np.float32)

    found = honesty(project, architecture, symmetry, held, X, Y)
    assert found.permuted is not None
    assert found.rescaled is not None
    assert (found.plain.change.value, found.plain.lost.value) == (0, 0)
    assert found.permuted.change.value < -0.1
    assert found.permuted.lost.value > 0.5
    assert found.rescaled.lost.value > 0.03

    def sorting(some: np.ndarray) -> np.ndarray:  # one that brings units into an order of its own first
        moved = symmetry.permute(some, canonical_order(symmetry, some))
        moved[:, ::2] *= 0.9
        return moved

    blind = honesty(sorting, architecture, symmetry, held, X, Y)
    assert blind.permuted is not None
    assert blind.permuted.change.value == pytest.approx(blind.plain.change.value, abs=0.002)


def test_codecs_that_fail_are_wrong_everywhere() -> None:
    architecture, symmetry, weights = networks()
    found = honesty(lambda w: np.full_like(w, np.nan), architecture, symmetry, weights[:3], X, Y)
    assert (found.plain.accuracy.value, found.plain.lost.value) == (0, 1)
    assert found.plain.change.value < -0.8
    with pytest.raises(GeneratorError, match="gave 2 networks back for 3"):
        honesty(lambda w: w[:2], architecture, symmetry, weights[:3], X, Y)
    with pytest.raises(GeneratorError, match="reconstructions must be"):
        honesty(lambda w: w[:, :5], architecture, symmetry, weights[:3], X, Y)
    with pytest.raises(GeneratorError, match="held-out"):
        honesty(lambda w: w, architecture, symmetry, weights[:0], X, Y)


def test_without_symmetry_there_is_nothing_to_disguise() -> None:
    linear = Architecture("mlp", {"depth": 0}, (1, 8, 8), 10)
    weights = np.random.default_rng(0).standard_normal((3, linear.layout.size)).astype(np.float32)
    found = honesty(lambda w: w, linear, None, weights, X, Y)
    assert (found.permuted, found.rescaled) == (None, None)
    gelu = honesty(lambda w: w, *networks("gelu"), X, Y)
    assert gelu.permuted is not None
    assert gelu.rescaled is None


def test_random_scales_are_the_same_for_a_model_whoever_comes_with_it() -> None:
    for activation in ("relu", "tanh"):
        symmetry = networks(activation)[1]
        many, few = random_scales(symmetry, 50, 3), random_scales(symmetry, 2, 3)
        np.testing.assert_array_equal(many["hidden0"][:2], few["hidden0"])
        assert (random_scales(symmetry, 2, 4)["hidden0"] != few["hidden0"]).any()
        assert len(np.unique(many["hidden0"], axis=0)) == 50
        if activation == "relu":
            assert np.log(many["hidden0"]).std() == pytest.approx(0.5, rel=0.1)
        else:
            assert set(np.unique(many["hidden0"])) == {-1.0, 1.0}
            assert abs(many["hidden0"].mean()) < 0.15
