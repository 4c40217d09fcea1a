"""What every metric promises, whichever it is: one test each over the dict, so that a new one is tested at once."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch

from catalog.metrics import COLUMN, METRIC
from zoo.architectures import Architecture
from zoo.initialization import initial_weights
from zoo.landscape.metric import Measured
from zoo.landscape.metrics import METRICS

ARCHITECTURES = {
    "linear": Architecture("mlp", {"depth": 0}, (1, 8, 8), 4),
    "relu": Architecture("mlp", {"depth": 2, "width": 5}, (1, 8, 8), 4),
    "tanh": Architecture("mlp", {"depth": 1, "width": 3, "activation": "tanh"}, (7,), 3),
    "cnn": Architecture("cnn", {"style": "small_cnn_zoo", "channels": 3}, (1, 8, 8), 4),
    "group": Architecture("cnn", {"channels": 16, "norm": "group", "activation": "gelu"}, (1, 8, 8), 4),
    "batch": Architecture("cnn", {"channels": 4, "norm": "batch"}, (1, 8, 8), 4),
}
QUICK = {"epochs": 2, "probes": 6, "steps": 4, "points": 3, "batch_size": 16, "checkpoints": 2}
MODELS = 3


def population(architecture: Architecture, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    keys = np.arange(MODELS, dtype=np.uint64) + np.uint64(100 * seed + 1)
    drawn = initial_weights(architecture, keys, ["kaiming_normal"] * MODELS, np.ones(MODELS))
    return torch.from_numpy(drawn).to(dtype)


def call(
    name: str,
    architecture: Architecture,
    models: slice = slice(None),
    spoil: int | None = None,
    dtype: torch.dtype = torch.float32,
    loss_function: str = "cross_entropy",
) -> Measured:
    """The metric of some models of a population, on 32 samples."""
    metric = METRICS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, *architecture.input_shape, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.arange(32) % architecture.num_classes
    weights, partner, third = (population(architecture, seed, dtype) for seed in range(3))
    if spoil is not None:
        weights[spoil] *= 1e30
    arguments: list[Any] = [architecture, weights[models]]
    if metric.needs == "partner":
        arguments.append(partner[models])
    elif metric.needs != "model":
        others = [weights, third] if metric.needs == "cell" else [partner, weights]
        arguments.append(torch.stack(others, 1)[models])
    settings: dict[str, Any] = {setting: value for setting, value in QUICK.items() if setting in metric.settings}
    if "loss_function" in metric.given:
        settings["loss_function"] = loss_function
    if "train_x" in metric.given:
        settings["train_x"] = x
    return metric.measure(*arguments, *((x, y) if metric.split else (None, None)), **settings)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("name", METRICS)
def test_shapes_types_and_independence_of_companions(name: str, kind: str) -> None:
    architecture = ARCHITECTURES[kind]
    found = call(name, architecture)
    for values in (found.value, found.standard_error):
        assert values.shape == (MODELS,)
        assert values.dtype == np.float64
    assert np.isfinite(found.value).all() or found.reasons
    assert not (found.standard_error < 0).any()
    for column, other in found.others.items():
        assert column in METRICS[name].columns or column.startswith(f"{name}_")
        assert COLUMN.fullmatch(column)
        assert len(other) == MODELS
    assert set(METRICS[name].columns) <= set(found.others)
    alone = call(name, architecture, slice(1, 2))
    np.testing.assert_allclose(alone.value, found.value[1:2], rtol=2e-3, atol=2e-5)
    again = call(name, architecture)
    np.testing.assert_array_equal(again.value, found.value)


@pytest.mark.parametrize("name", METRICS)
def test_a_model_that_overflows_stops_no_other(name: str) -> None:
    architecture = ARCHITECTURES["relu"]
    whole, spoilt = call(name, architecture), call(name, architecture, spoil=1)
    assert np.isfinite(spoilt.value[1]) or (spoilt.reasons and spoilt.reasons[1])
    np.testing.assert_allclose(spoilt.value[[0, 2]], whole.value[[0, 2]], rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("kind", ["relu", "batch"])
@pytest.mark.parametrize("name", METRICS)
def test_single_precision_is_enough(name: str, kind: str) -> None:
    architecture = ARCHITECTURES[kind]
    single, double = call(name, architecture), call(name, architecture, dtype=torch.float64)
    np.testing.assert_allclose(single.value, double.value, rtol=5e-3, atol=5e-4)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if "loss_function" in metric.given])
def test_the_loss_is_that_of_the_runs(name: str) -> None:
    """Values under the squared error differ from those under cross-entropy, and are as sound."""
    architecture = ARCHITECTURES["relu"]
    squared = call(name, architecture, loss_function="mse")
    assert squared.value.shape == (MODELS,)
    if METRICS[name].needs == "model":
        assert not np.allclose(squared.value, call(name, architecture).value, rtol=0.05)


@pytest.mark.parametrize("name", METRICS)
def test_settings_are_json_and_names_fit_the_format(name: str) -> None:
    metric = METRICS[name]
    assert METRIC.fullmatch(name)
    assert json.loads(json.dumps(metric.settings)) == metric.settings
    assert metric.complete(name, {}) == metric.settings
    assert all(metric.passes(metric.settings, architecture) > 0 for architecture in ARCHITECTURES.values())
    assert re.fullmatch(r"[1-9][0-9]*", str(metric.version))


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.needs == "model"])
def test_relabelling_hidden_units_changes_nothing(name: str) -> None:
    """A permutation of hidden units gives the same function, in a rotated space of weights."""
    architecture = ARCHITECTURES["relu"]
    layout, weights = architecture.layout, population(ARCHITECTURES["relu"], dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = {key: value.clone() for key, value in layout.unflatten(weights).items()}
    moved["hidden0.weight"] = moved["hidden0.weight"][:, order]
    moved["hidden0.bias"] = moved["hidden0.bias"][:, order]
    moved["hidden1.weight"] = moved["hidden1.weight"][:, :, order]
    metric = METRICS[name]
    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = (x, torch.arange(32) % 4) if metric.split else (None, None)
    settings: dict[str, Any] = {"loss_function": "cross_entropy"} if "loss_function" in metric.given else {}
    before = metric.measure(architecture, weights, *data, **settings)
    after = metric.measure(architecture, layout.flatten(moved), *data, **settings)
    error = np.hypot(before.standard_error, after.standard_error)  # probes are of other directions then
    assert (np.abs(before.value - after.value) <= 5 * error + 2e-3 * np.abs(before.value)).all()
