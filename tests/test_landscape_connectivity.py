"""Curves and lines between networks: ends that are checkpoints, paths that are flat by construction, bad settings."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from catalog.errors import InvalidSpecError, UnknownNameError
from kernels.curves.recipe import Recipe
from zoo.architectures import Architecture
from zoo.datasets import load_dataset
from zoo.evaluate import evaluate
from zoo.landscape import metrics
from zoo.landscape.connectivity import along, curve, linear_barrier, mode_connectivity
from zoo.landscape.metric import Measured
from zoo.landscape.norms import reestimate
from zoo.plan import make_plan
from zoo.spec import ZooSpec
from zoo.train import train

MLP = Architecture("mlp", {"depth": 2, "width": 6, "activation": "tanh"}, (1, 8, 8), 10)
CNN = Architecture("cnn", {"channels": 4}, (1, 8, 8), 10)
NORM = Architecture("cnn", {"channels": 4, "norm": "batch"}, (1, 8, 8), 10)
GROUP = Architecture("cnn", {"style": "small_cnn_zoo", "norm": "group", "channels": 4}, (1, 8, 8), 10)
DIGITS = load_dataset("digits")
X, Y = torch.from_numpy(DIGITS.train_x[:96]), torch.from_numpy(DIGITS.train_y[:96])
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 32}
every = pytest.mark.parametrize("architecture", [MLP, CNN, NORM, GROUP], ids=lambda one: one.name)
METRICS = {name: metrics.METRICS[name] for name in ("mode_connectivity", "linear_barrier")}


def networks(architecture: Architecture, models: int = 3, seed: int = 0) -> Tensor:
    """Random weights (models, size), float32; statistics of BatchNorm are those of no data."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(models, architecture.layout.size, generator=generator) / 3
    for name in architecture.layout.names:
        if name.endswith("running_var"):
            architecture.layout.tensor(weights, name).abs_().add_(0.5)
    return weights


def floats(column: Any) -> np.ndarray:
    return np.stack([np.frombuffer(row, "<f8") for row in column])


def same(found: Measured, other: Measured, rows: slice) -> None:
    """To the bit."""
    assert np.array_equal(found.value[rows], other.value, equal_nan=True)
    assert np.array_equal(found.standard_error[rows], other.standard_error, equal_nan=True)
    for name, values in found.others.items():
        assert list(values[rows]) == list(other.others[name])


@pytest.mark.parametrize("name", METRICS)
@every
def test_ends_are_the_checkpoints(architecture: Architecture, name: str) -> None:
    """With BatchNorm: those whose statistics are of these samples."""
    weights, partner = networks(architecture), networks(architecture, seed=1)
    settings = SHORT if name == "mode_connectivity" else {}
    found = METRICS[name].measure(architecture, weights, partner, X, Y, **settings)
    errors = floats(found.others[METRICS[name].columns[-1] if name == "linear_barrier" else "mc_errors"])
    for end, ours in ((0, weights), (-1, partner)):
        accuracy = evaluate(architecture, reestimate(architecture, ours, X), X, Y).accuracy
        assert np.allclose(errors[:, end], 100 * (1 - accuracy), rtol=1e-12)
    fresh, other = (reestimate(architecture, one, X) for one in (weights, partner))
    again = METRICS[name].measure(architecture, fresh, other, X, Y, **settings)
    if not architecture.has_batch_norm:
        same(found, again, slice(None))
    for end, ours in ((0, fresh), (-1, other)):
        accuracy = evaluate(architecture, ours, X, Y).accuracy
        column = "mc_errors" if name == "mode_connectivity" else "linear_barrier_errors"
        assert np.allclose(floats(again.others[column])[:, end], 100 * (1 - accuracy), rtol=1e-12)


@every
def test_the_value_is_the_definition(architecture: Architecture) -> None:
    weights, partner = networks(architecture), networks(architecture, seed=1)
    found = mode_connectivity(architecture, weights, partner, X, Y, points=7, **SHORT)
    theta = curve(architecture, weights, partner, X, Y, recipe=Recipe(**SHORT))
    ts = np.linspace(0, 1, 7)
    errors, losses = along(architecture, weights, theta, partner, X, Y, ts.tolist())
    assert errors.shape == losses.shape == (3, 7)
    assert (floats(found.others["mc_errors"]) == errors).all()
    assert (floats(found.others["mc_losses"]) == losses).all()
    for pair, e in enumerate(errors):
        mean = (e[0] + e[-1]) / 2
        far = np.argmax(np.abs(e - mean))
        assert abs(found.value[pair]) == pytest.approx(abs(e[far] - mean))
        at_t = e[np.flatnonzero(ts == found.others["mc_t"][pair])[0]]
        assert found.value[pair] == pytest.approx(mean - at_t)
        assert found.others["mc_peak"][pair] == pytest.approx(mean - e.max())
        assert np.abs(found.others["mc_interior"])[pair] == pytest.approx(np.abs(e[1:-1] - mean).max())


@every
def test_a_network_is_connected_with_itself(architecture: Architecture) -> None:
    """The line is a point. The curve is trained away from it and back to where it is no worse, or not by much."""
    weights = networks(architecture)
    line = linear_barrier(architecture, weights, weights.clone(), X, Y)
    assert (line.value == 0).all()
    assert np.abs(line.others["linear_barrier_loss"]).max() < 1e-6
    assert (line.standard_error == 0).all()
    still = mode_connectivity(architecture, weights, weights.clone(), X, Y, learning_rate=0.0, epochs=1)
    assert (still.value == 0).all()
    assert (np.array(still.others["mc_peak"]) == 0).all()


def trained() -> tuple[Architecture, Tensor]:
    """Two networks that learned all 1,200 digits."""
    hyper = {"epochs": 40, "learning_rate": 0.1}
    spec = ZooSpec("t", numbers={"width": 24, "depth": 1}, hyperparameters=hyper, seeds=(0, 1), checkpoints=(40,))
    plan = make_plan(spec)
    (runs,) = plan.runs.values()
    return runs[0].architecture, train(runs, plan.data).weights[:, -1]


def test_networks_that_differ_in_a_dead_unit_are_connected() -> None:
    """A unit with no way out may have any weights: the line between two such networks is flat, and so is the curve."""
    small, learned = trained()
    architecture = replace(small, numbers={**small.numbers, "width": 25})
    layout, weights = architecture.layout, torch.zeros(2, architecture.layout.size)
    for name, tensor in small.layout.unflatten(learned).items():
        layout.tensor(weights, name)[tuple(slice(n) for n in tensor.shape)] = tensor
    partner = weights.clone()
    layout.tensor(weights, "hidden0.weight")[:, 24] = 0.5
    layout.tensor(partner, "hidden0.weight")[:, 24] = -2
    x, y = torch.from_numpy(DIGITS.train_x), torch.from_numpy(DIGITS.train_y)
    assert linear_barrier(architecture, weights, partner, x, y).value.max() == 0
    found = mode_connectivity(architecture, weights, partner, x, y, epochs=10)
    assert (np.abs(found.value) < 0.5).all()  # a sample in 200
    apart = linear_barrier(architecture, weights, weights.flip(0), x, y)
    assert (apart.value > 5).all()  # the test can see a barrier
    bent = mode_connectivity(architecture, weights, weights.flip(0), x, y)
    assert (bent.others["mc_peak"] > -apart.value).all()  # and a curve goes around it


def test_a_barrier_is_the_definition() -> None:
    weights, partner = networks(MLP), networks(MLP, seed=1)
    found = linear_barrier(MLP, weights, partner, X, Y, points=5, frame="universe")
    ts = np.linspace(0, 1, 5)
    found_by_hand = [evaluate(MLP, (1 - t) * weights + t * partner, X, Y) for t in ts]
    e = np.stack([100 * (1 - one.accuracy) for one in found_by_hand], 1)
    loss = np.stack([one.loss for one in found_by_hand], 1)
    assert np.allclose(found.value, e.max(1) - (e[:, 0] + e[:, -1]) / 2, atol=1e-12)
    assert np.allclose(found.others["linear_barrier_loss"], loss.max(1) - (loss[:, 0] + loss[:, -1]) / 2)
    assert np.allclose(found.others["linear_barrier_t"], ts[e.argmax(1)])
    # the standard error is that of per-sample differences
    wrong = np.stack([np.unpackbits(one.error_bits, axis=1, count=96) for one in found_by_hand], 1).astype(float)
    for pair in range(3):
        difference = wrong[pair, e[pair].argmax()] - (wrong[pair, 0] + wrong[pair, -1]) / 2
        assert found.value[pair] == pytest.approx(100 * difference.mean())
        assert found.standard_error[pair] == pytest.approx(100 * difference.std(ddof=1) / math.sqrt(96))


@pytest.mark.parametrize("name", METRICS)
@every
def test_a_pair_does_not_depend_on_its_companions(architecture: Architecture, name: str) -> None:
    """Nor on the parts that pairs are worked off in. To the bit in compiled code; grouped convolutions round."""
    weights, partner = networks(architecture), networks(architecture, seed=1)
    settings = SHORT if name == "mode_connectivity" else {}
    measure = METRICS[name].measure
    whole = measure(architecture, weights, partner, X, Y, **settings)
    for pair in range(3):
        only = slice(pair, pair + 1)
        alone = measure(architecture, weights[only], partner[only], X, Y.expand(1, -1), **settings)
        if architecture in (MLP, CNN):
            same(whole, alone, only)
        else:
            assert np.allclose(whole.value[only], alone.value, atol=3)  # percent: less than three of 96 samples


def test_a_small_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, partner = networks(NORM), networks(NORM, seed=1)
    whole = curve(NORM, weights, partner, X, Y, recipe=Recipe(**SHORT))
    found = linear_barrier(NORM, weights, partner, X, Y, points=3)
    for module in ("connectivity", "norms", "paths"):
        monkeypatch.setattr(f"zoo.landscape.{module}.FLOATS", 1 << 15)
    torch.testing.assert_close(curve(NORM, weights, partner, X, Y, recipe=Recipe(**SHORT)), whole, rtol=1e-4, atol=1e-5)
    assert np.allclose(linear_barrier(NORM, weights, partner, X, Y, points=3).value, found.value, atol=1.1)


@pytest.mark.parametrize("architecture", [MLP, NORM], ids=lambda one: one.name)
def test_every_pair_has_its_own_labels(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, of threads or of memory, as alone."""
    monkeypatch.setattr("zoo.landscape.connectivity.FLOATS", 1)
    monkeypatch.setattr("zoo.landscape.paths.FLOATS", 1)
    weights, partner = networks(architecture), networks(architecture, seed=1)
    labels = torch.stack([Y, (Y + 1) % 10, Y.flip(0)])
    theta = curve(architecture, weights, partner, X, labels, recipe=Recipe(**SHORT), threads=2)
    line = linear_barrier(architecture, weights, partner, X, labels, points=3)
    for pair in range(3):
        only = slice(pair, pair + 1)
        alone = curve(architecture, weights[only], partner[only], X, labels[pair], recipe=Recipe(**SHORT))
        torch.testing.assert_close(theta[only], alone, rtol=1e-5, atol=1e-6)
        same(line, linear_barrier(architecture, weights[only], partner[only], X, labels[pair], points=3), only)


@pytest.mark.gpu
@pytest.mark.parametrize("name", METRICS)
@every
def test_on_a_gpu_as_on_a_cpu(architecture: Architecture, name: str) -> None:
    weights, partner = networks(architecture).double(), networks(architecture, seed=1).double()
    settings = SHORT if name == "mode_connectivity" else {}
    data = (weights, partner, X.double(), Y)
    there = METRICS[name].measure(architecture, *(part.cuda() for part in data), **settings)
    here = METRICS[name].measure(architecture, *data, **settings)
    assert np.allclose(there.value, here.value, atol=1.1)  # percent: one of 96 samples


def test_implementations_agree() -> None:
    weights, partner = networks(MLP).double(), networks(MLP, seed=1).double()
    one, other = (
        curve(MLP, weights, partner, X.double(), Y, recipe=Recipe(**SHORT), impl=impl, threads=2)
        for impl in ("compiled", "reference")
    )
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("measure", [mode_connectivity, linear_barrier])
def test_what_is_not_finite_has_a_reason_and_the_others_a_value(measure: Callable[..., Measured]) -> None:
    weights, partner = networks(MLP), networks(MLP, seed=1)
    weights[1] = 3e38
    partner[1] = 3e38
    found = measure(MLP, weights, partner, X, Y)
    assert found.reasons is not None
    assert [bool(reason) for reason in found.reasons] == [False, True, False]
    assert "not finite" in found.reasons[1]
    assert np.isnan(found.value).tolist() == np.isnan(found.standard_error).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"epochs": 0}, InvalidSpecError),
        ({"points": 2}, InvalidSpecError),
        ({"points": 5.0}, InvalidSpecError),
        ({"batch_size": 0}, InvalidSpecError),
        ({"learning_rate": -1}, InvalidSpecError),
        ({"learning_rate": math.nan}, InvalidSpecError),
        ({"momentum": 1.0}, InvalidSpecError),
        ({"momentum": "much"}, InvalidSpecError),
        ({"weight_decay": -1e-3}, InvalidSpecError),
        ({"seed": -1}, InvalidSpecError),
        ({"loss_function": "hinge"}, UnknownNameError),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        mode_connectivity(MLP, networks(MLP), networks(MLP), X, Y, **settings)


def test_more_settings_that_make_no_sense() -> None:
    weights = networks(NORM)
    with pytest.raises(InvalidSpecError, match="two samples or more"):
        mode_connectivity(NORM, weights, weights, X, Y, batch_size=1)
    wrong: list[dict[str, Any]] = [{"points": 1}, {"frame": ""}, {"frame": 3}]
    for settings in wrong:
        with pytest.raises(InvalidSpecError):
            linear_barrier(NORM, weights, weights, X, Y, **settings)
    with pytest.raises(InvalidSpecError, match="no samples"):
        curve(MLP, networks(MLP), networks(MLP), X[:0], Y[:0])


def test_settings_are_plain() -> None:
    settings = METRICS["mode_connectivity"].settings
    assert settings["epochs"] == 50
    assert settings["points"] == 5
    assert METRICS["mode_connectivity"].given == {"loss_function", "train_x"}
    assert METRICS["linear_barrier"].settings["frame"] is None
