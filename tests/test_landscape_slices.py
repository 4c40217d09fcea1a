"""Lines and planes of the loss against modules evaluated one after another."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo.landscape.slices as slices
from catalog.errors import InvalidSpecError, UnknownNameError
from zoo import plots
from zoo.architectures import Architecture
from zoo.evaluate import evaluate

SAMPLES = 31
CASES = [
    Architecture("mlp", {"depth": 1, "width": 5}, (6,), 3),
    Architecture("cnn", {"norm": "none", "activation": "tanh"}, (1, 8, 8), 3),
    Architecture("cnn", {"norm": "batch", "channels": 4}, (1, 8, 8), 3),
    Architecture("cnn", {"norm": "group", "style": "small_cnn_zoo", "channels": 8}, (1, 8, 8), 3),
]
every = pytest.mark.parametrize("architecture", CASES, ids=lambda value: value.name)


def population(architecture: Architecture, models: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(models, architecture.layout.size, dtype=torch.float64, generator=generator) / 3
    for name in architecture.layout.names:
        if name.endswith("running_var"):
            architecture.layout.tensor(weights, name).abs_().add_(0.5)
    x = torch.randn(SAMPLES, *architecture.input_shape, dtype=torch.float64, generator=generator)
    return weights.to(dtype), x.to(dtype), torch.randint(3, (SAMPLES,), generator=generator)


def one(architecture: Architecture, row: Tensor, x: Tensor, y: Tensor) -> tuple[float, float]:
    module = architecture.build().to(row.dtype).eval()
    module.load_state_dict(architecture.layout.unflatten(row))
    logits = module(x).detach()
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) != y).double().mean())


@every
def test_a_line_as_one_by_one(architecture: Architecture) -> None:
    weights, x, y = population(architecture)
    labels = torch.stack([y, (y + 1) % 3])
    ts = np.array([-0.25, 0.0, 0.3, 1.0])
    losses, errors = slices.line(architecture, weights[:2], weights[2:], x, labels, ts)
    assert (losses.shape, losses.dtype, errors.shape) == ((2, 4), np.dtype(np.float64), (2, 4))
    for pair, (place, t) in itertools.product(range(2), enumerate(ts)):
        row = (1 - t) * weights[pair] + t * weights[pair + 2]
        loss, error = one(architecture, row, x, labels[pair])
        np.testing.assert_allclose((losses[pair, place], errors[pair, place]), (loss, error), rtol=1e-9)


@every
def test_the_ends_of_a_line_are_the_models(architecture: Architecture) -> None:
    weights, x, y = population(architecture, dtype=torch.float32)
    losses, errors = slices.line(architecture, weights[:2], weights[2:], x, y, np.linspace(0, 1, 4))
    known = evaluate(architecture, weights, x, y)
    rows = np.stack([losses[:, 0], losses[:, -1]]).ravel(), np.stack([errors[:, 0], errors[:, -1]]).ravel()
    exact(architecture, rows[0], known.loss)
    np.testing.assert_array_equal(rows[1], 1 - known.accuracy)


def exact(architecture: Architecture, found: Any, expected: Any) -> None:
    """To the bit where the code is compiled; plain torch promises less about companions."""
    if architecture in CASES[:2]:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@every
def test_a_plane_as_one_by_one(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, x, y = population(architecture)
    monkeypatch.setattr(slices, "FLOATS", 7 * architecture.layout.size)  # parts of 7 of the 25 points
    alphas, betas, losses, errors = slices.plane(architecture, weights[0], x, y, radius=0.5, points=5, seed=2)
    np.testing.assert_allclose(alphas, [-0.5, -0.25, 0, 0.25, 0.5])
    np.testing.assert_array_equal(alphas, betas)
    first, second = slices.directions(architecture, weights[0], seed=2)
    for i, j in itertools.product(range(5), range(5)):
        row = weights[0] + alphas[i] * first + betas[j] * second
        np.testing.assert_allclose((losses[i, j], errors[i, j]), one(architecture, row, x, y), rtol=1e-9)


@every
def test_the_middle_of_a_plane_is_the_model(architecture: Architecture) -> None:
    weights, x, y = population(architecture, 1, torch.float32)
    known = evaluate(architecture, weights, x, y)
    _, _, losses, errors = slices.plane(architecture, weights[0], x, y, points=3)
    exact(architecture, losses[1, 1], known.loss[0])
    assert errors[1, 1] == 1 - known.accuracy[0]


@every
def test_directions_are_filter_normalised(architecture: Architecture) -> None:
    weights, _, _ = population(architecture, 1)
    before = weights.clone()
    first, second = slices.directions(architecture, weights[0])
    torch.testing.assert_close(weights, before, rtol=0, atol=0)
    layout = architecture.layout
    for name, shape, role in zip(layout.names, layout.shapes, layout.roles, strict=True):
        own, mine = layout.tensor(weights[0], name), layout.tensor(first, name)
        if role == "buffer" or len(shape) < 2:
            assert not mine.any()
        else:
            torch.testing.assert_close(mine.flatten(1).norm(dim=1), own.flatten(1).norm(dim=1))
    cosine = float(F.cosine_similarity(first, second, dim=0))
    assert abs(cosine) < 6 / np.sqrt(int((first != 0).sum()))  # random directions are nearly orthogonal


def test_directions_depend_on_the_seed_alone_and_scale_with_the_weights() -> None:
    weights, _, _ = population(CASES[0], 1)
    first, second = slices.directions(CASES[0], weights[0], seed=7)
    again, _ = slices.directions(CASES[0], 2 * weights[0], seed=7)
    torch.testing.assert_close(again, 2 * first)
    other, _ = slices.directions(CASES[0], weights[0], seed=8)
    assert not torch.equal(first, other)
    assert not torch.equal(first, second)
    zero, _ = slices.directions(CASES[0], torch.zeros_like(weights[0]))
    assert not zero.any()


def test_a_plane_is_a_paraboloid_near_a_quadratic_loss() -> None:
    # A linear network with mean squares: the loss is exactly quadratic along every line.
    linear = Architecture("mlp", {"depth": 0}, (6,), 3)
    weights, x, y = population(linear, 1)
    alphas, _, losses, _ = slices.plane(linear, weights[0], x, y, points=7, loss_function="mse")
    for values in (losses, losses.T):
        third = np.polynomial.polynomial.polyfit(alphas, values, 3)[3]
        np.testing.assert_allclose(third, 0, atol=1e-10)


def test_a_loss_that_is_not_finite_stops_no_other_point() -> None:
    weights, x, y = population(CASES[0], 2, torch.float32)
    weights[1] = 3e38
    losses, _ = slices.line(CASES[0], weights[:1], weights[1:], x, y, np.array([0.0, 1.0, 2.0]))
    assert np.isfinite(losses[0, 0])
    assert not np.isfinite(losses[0, 2])


def test_settings_without_sense() -> None:
    weights, x, y = population(CASES[0])
    pair = CASES[0], weights[:2], weights[2:], x, y
    for ts in (np.array([]), np.array([0.0, np.nan]), np.zeros((2, 2)), np.zeros(5000)):
        with pytest.raises(InvalidSpecError, match="ts must be 1 to 1001 finite numbers"):
            slices.line(*pair, ts)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 53\) and \(1, 53\)"):
        slices.line(CASES[0], weights[:2], weights[:1], x, y, np.zeros(1))
    with pytest.raises(ValueError, match=r"must hold 53 a model .* got \(2, 52\)"):
        slices.line(CASES[0], weights[:2, 1:], weights[2:, 1:], x, y, np.zeros(1))
    with pytest.raises(UnknownNameError, match="loss function"):
        slices.line(*pair, np.zeros(1), "hinge")
    for points in (0, 4, 1, 5001, 3.0):
        with pytest.raises(InvalidSpecError, match="points must be an odd number from 3"):
            slices.plane(CASES[0], weights[0], x, y, points=points)  # type: ignore[arg-type]  # 3.0 is the point
    for radius in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidSpecError, match="radius must be a finite number above 0"):
            slices.plane(CASES[0], weights[0], x, y, radius=radius)
    with pytest.raises(ValueError, match="must hold 53"):
        slices.plane(CASES[0], weights[0, 1:], x, y)


def test_pictures_of_slices() -> None:
    weights, x, y = population(CASES[0], dtype=torch.float32)
    drawn = plots.draw(
        "line", CASES[0], weights[:2], weights[2:], x, y, points=5, loss_function="mse", names=["a", "b"]
    )
    upper, lower = drawn.axes
    losses, errors = slices.line(CASES[0], weights[:2], weights[2:], x, y, np.linspace(0, 1, 5), "mse")
    for axes, values in ((upper, losses), (lower, 100 * errors)):
        lines = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 5]
        np.testing.assert_array_equal(lines, values)
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("loss", "error [%]")
    figure = plots.draw("plane", CASES[0], weights[0], x, y, points=5, radius=0.5)
    assert figure.axes[0].get_xlim() == (-0.5, 0.5)
    assert figure.axes[1].get_ylabel() == "loss [nats], log scale"
