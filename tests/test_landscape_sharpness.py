"""Sharpness against closed forms of quadratic losses, restarts and random points, and what it must not depend on."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

import zoo.landscape.chunks
from catalog.errors import InvalidSpecError
from kernels.curvature.surface import surface
from tests.landscape_models import (
    CASES,
    CLASSES,
    LINEAR,
    MLP,
    MODELS,
    RELU,
    as_float32,
    dense_hessians,
    numbers,
    population,
)
from zoo.architectures import Architecture
from zoo.landscape.chunks import OVERFLOW
from zoo.landscape.metrics import METRICS
from zoo.landscape.sharpness import sharpness

LOSS: dict[str, Any] = {"loss_function": "cross_entropy"}
every_case = pytest.mark.parametrize("architecture", CASES, ids=lambda a: a.name)
both_balls = pytest.mark.parametrize("adaptive", [False, True])


def highest_of_quadratic(gradient: np.ndarray, hessian: np.ndarray, radius: float) -> float:
    """max g'e + e'He / 2 for |e| <= radius and a convex H, by the secular equation."""
    values, vectors = np.linalg.eigh(hessian)
    turned = vectors.T @ gradient

    def excess(shift: float) -> float:
        return float(np.linalg.norm(turned / (shift + values[-1] - values)) - radius)

    step = turned / (brentq(excess, 1e-9, 1e9, xtol=1e-14) + values[-1] - values)
    return float(turned @ step + (values * step**2).sum() / 2)


@pytest.mark.parametrize("radius", [0.01, 0.05, 1.0, 20.0])
@both_balls
def test_quadratic_loss_in_closed_form(radius: float, adaptive: bool) -> None:
    weights, x, y = population(LINEAR)
    hessians = dense_hessians(LINEAR, weights, x, y, "mse").numpy()
    gradients = surface(LINEAR.build("meta"), weights, x, y, loss_function="mse").gradients().numpy()
    found = sharpness(LINEAR, weights, x, y, loss_function="mse", radius=radius, steps=60, adaptive=adaptive)
    for model in range(MODELS):
        scale = abs(weights[model]).numpy() if adaptive else np.ones(weights.shape[1])
        slope, curvature = gradients[model] * scale, hessians[model] * scale * scale[:, None]
        highest = highest_of_quadratic(slope, curvature, radius)
        assert found.value[model] == pytest.approx(highest, rel=1e-4)
        assert found.value[model] <= highest * (1 + 1e-9)  # no point was outside the ball
        step = radius * slope / np.linalg.norm(slope)
        first = numbers(found, "sharpness_first_order")[model]
        assert first == pytest.approx(slope @ step + step @ curvature @ step / 2, rel=1e-9)
    twenty = sharpness(LINEAR, weights, x, y, loss_function="mse", radius=radius, adaptive=adaptive)
    np.testing.assert_allclose(twenty.value, found.value, rtol=0.02)


@both_balls
@every_case
def test_at_least_the_first_order_value_and_growing_with_the_radius(architecture: Architecture, adaptive: bool) -> None:
    data = population(architecture)
    before = np.zeros(MODELS)
    for radius in (0.01, 0.05, 0.1, 1.0):
        found = sharpness(architecture, *data, **LOSS, radius=radius, adaptive=adaptive)
        assert (found.value >= numbers(found, "sharpness_first_order")).all()
        assert (found.value > before).all()
        np.testing.assert_array_equal(found.standard_error, 0)
        before = found.value
    one = sharpness(architecture, *data, **LOSS, steps=1, adaptive=adaptive)
    np.testing.assert_array_equal(one.value, np.maximum(numbers(one, "sharpness_first_order"), 0))


@pytest.mark.parametrize("radius", [0.05, 0.5, 5.0])  # as far as the weights are long: there steps must shrink
def test_no_restart_finds_much_more(radius: float) -> None:
    """Forty ascents of a hundred small steps from random points of the ball, and the points themselves."""
    weights, x, y = population(MLP)
    found = sharpness(MLP, weights[:1], x, y, **LOSS, radius=radius)
    start = weights[:1].expand(40, -1)
    module = MLP.build("meta")
    base = surface(module, weights[:1], x, y).losses()
    offset = torch.randn(start.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    best = -1.0
    for _ in range(100):
        offset = offset * (radius / offset.norm(dim=1)).clamp(max=1)[:, None]
        here = surface(module, start + offset, x, y)
        best = max(best, float((here.losses() - base).max()))
        offset = offset + 0.1 * radius * torch.nn.functional.normalize(here.gradients())
    assert found.value[0] > 0.98 * best


def rescaled(weights: Tensor, unit: int, factor: float) -> Tensor:
    """The same network: a ReLU unit that fires `factor` times as much into weights as many times smaller."""
    weights = weights.clone()
    RELU.layout.tensor(weights, "hidden0.weight")[:, unit] *= factor
    RELU.layout.tensor(weights, "hidden0.bias")[:, unit] *= factor
    RELU.layout.tensor(weights, "hidden1.weight")[:, :, unit] /= factor
    return weights


def test_the_adaptive_ball_does_not_see_rescaled_units() -> None:
    weights, x, y = population(RELU)
    other = rescaled(weights, 1, 8)
    adaptive = [sharpness(RELU, w, x, y, **LOSS, adaptive=True).value for w in (weights, other)]
    np.testing.assert_allclose(adaptive[0], adaptive[1], rtol=1e-9)
    plain = [sharpness(RELU, w, x, y, **LOSS).value for w in (weights, other)]
    assert (abs(plain[0] / plain[1] - 1) > 0.01).any()
    assert not sharpness(RELU, 0 * weights, x, y, **LOSS, adaptive=True).value.any()  # zeros stay


@every_case
def test_buffers_stay(architecture: Architecture) -> None:
    """The surface is constant along buffers; were they moved, running variances would change the loss."""
    weights, x, y = population(architecture)
    large = weights.clone()
    large[:, architecture.layout.num_parameters :] += 1
    for data in (weights, large):
        found = sharpness(architecture, data, x, y, **LOSS, radius=1e-6)
        slope = surface(architecture.build("meta"), data, x, y).gradients().norm(dim=1)
        np.testing.assert_allclose(found.value, 1e-6 * slope, rtol=1e-4)


@every_case
def test_chunks_and_companions_change_nothing(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, x, y = population(architecture)
    labels = torch.stack([(y + model) % CLASSES for model in range(MODELS)])
    whole = sharpness(architecture, weights, x, labels, **LOSS, steps=6)
    alone = sharpness(architecture, weights[2:3], x, labels[2], **LOSS, steps=6)
    np.testing.assert_allclose(alone.value, whole.value[2:3], rtol=1e-7)
    for vectors, states in ((1, 1 << 28), (1 << 28, 1)):
        monkeypatch.setattr(zoo.landscape.chunks, "VECTORS", vectors)
        monkeypatch.setattr(zoo.landscape.chunks, "STATES", states)
        cut = sharpness(architecture, weights, x, labels, **LOSS, steps=6)
        np.testing.assert_allclose(cut.value, whole.value, rtol=1e-7)


@every_case
def test_float32_and_a_model_that_overflows(architecture: Architecture) -> None:
    weights, x, y = population(architecture)
    exact = sharpness(architecture, weights, x, y, **LOSS).value
    single = weights.float()
    for name in ("output.weight", "output.bias"):  # logits become infinite, and their differences undefined
        architecture.layout.tensor(single, name)[1] = 3e38
    found = sharpness(architecture, *as_float32(single, x, y), **LOSS)
    assert found.reasons == ["", OVERFLOW, "", ""]
    assert np.isnan([found.value[1], found.standard_error[1]]).all()
    np.testing.assert_allclose(found.value[[0, 2, 3]], exact[[0, 2, 3]], rtol=1e-3, atol=1e-6)  # differences of losses


def test_a_flat_loss_does_not_rise() -> None:
    weights, x, y = population(MLP)
    weights.zero_()
    MLP.layout.tensor(weights, "output.bias")[:, 0] = 1000
    found = sharpness(MLP, weights, x, torch.zeros_like(y), **LOSS)
    np.testing.assert_array_equal(found.value, 0)
    assert found.reasons == [""] * MODELS


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"radius": 0}, "radius must be a number above zero, got 0"),
        ({"radius": float("inf")}, "radius must be"),
        ({"radius": True}, "radius must be"),
        ({"steps": 0}, "steps must be a whole number, 1 or more"),
        ({"adaptive": 1}, "adaptive must be true or false, got 1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSpecError, match=said):
        METRICS["sharpness"].measure(MLP, *population(MLP), **LOSS, **settings)


def test_columns_and_nobody() -> None:
    weights, x, y = population(MLP)
    for rows in (weights, weights[:0]):
        found = sharpness(MLP, rows, x, y, **LOSS)
        assert tuple(found.others) == METRICS["sharpness"].columns
        assert found.value.shape == found.standard_error.shape == (len(rows),)
        assert found.value.dtype == np.float64
