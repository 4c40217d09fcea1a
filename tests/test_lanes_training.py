"""Compiled training of CNNs against the reference in plain torch, and what it does with odd networks and bad input."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernels.lanes.network import Network, network_of
from kernels.lanes.training import Model, Workspace
from kernels.mlp.network import ACTIVATIONS
from kernels.optimizers import OPTIMIZERS
from kernels.population import Dropout, Noise, forward
from kernels.random import permutation
from zoo.architectures import Architecture
from zoo.batches import SITE
from zoo.datasets import load_dataset
from zoo.initialization import initial_weights
from zoo.plan import Run, make_plan
from zoo.schedules import SCHEDULES
from zoo.spec import Range, ZooSpec
from zoo.train import learning_rates, noisy_labels, train

NAMES = tuple(ACTIVATIONS.values())
DIGITS = load_dataset("digits")
HYPER = {"momentum": 0.9, "beta2": 0.999, "epsilon": 1e-4, "weight_decay": 0.01, "dropout": 0.0}
KEY = 2**63 + 5
CASES = [
    (Architecture("cnn", {"style": style, "channels": channels, "activation": name}, (inputs, side, side), 7), batch)
    for (style, side), (channels, inputs), name, batch in zip(
        itertools.product(("model_zoo", "small_cnn_zoo"), (8, 15, 22, 28)),
        itertools.cycle([(8, 1), (1, 3), (5, 8), (11, 2), (17, 1)]),
        itertools.cycle(NAMES),
        itertools.cycle((16, 5, 37)),
        strict=False,
    )
]
CASES += [
    (Architecture("mlp", {"depth": depth, "width": width, "activation": name}, (3, 7, 7), 10), 21)
    for (depth, width), name in zip([(0, 1), (1, 1), (2, 33), (3, 13)], NAMES, strict=True)
]


def problem(module: nn.Module, shape: tuple[int, ...], samples: int) -> tuple[Network, np.ndarray, np.ndarray, Any]:
    """Network, weights, inputs and labels, of which some classes may not occur."""
    random, network = np.random.default_rng(samples), network_of(module, shape)
    weights = random.uniform(-0.4, 0.4, network.size)
    return network, weights, random.normal(size=(samples, *shape)), random.integers(0, network.outputs, samples)


def steps_of_torch(
    module: nn.Module, weights: np.ndarray, x: np.ndarray, y: np.ndarray, batch: int, steps: int, rate: float,
    optimizer: str, hyper: dict[str, float], loss: str,
) -> np.ndarray:  # fmt: skip
    """Weights after some steps of the reference in float64: `kernels.population` and `kernels.optimizers`."""
    key, updates = np.array([KEY], np.uint64), len(x) // batch
    rates = {"learning_rate": torch.tensor([[rate]], dtype=torch.float64)}
    numbers = {name: torch.tensor([[value]], dtype=torch.float64) for name, value in hyper.items()} | rates
    flat = torch.from_numpy(weights.copy())[None]
    state = OPTIMIZERS[optimizer].start(flat)
    for step in range(steps):
        begin = step % updates * batch
        order = permutation(key, SITE, step // updates, count=len(x))[0, begin : begin + batch]
        leaf = flat.clone().requires_grad_()
        tensors, at = {}, 0
        for name, tensor in module.named_parameters():
            tensors[name] = leaf[:, at : at + tensor.numel()].reshape(1, *tensor.shape)
            at += tensor.numel()
        noise = Noise(
            torch.from_numpy(key.view(np.int64)), torch.tensor([step]), torch.arange(batch)[None],
            numbers["dropout"][:, 0],
        )  # fmt: skip
        logits = forward(
            module, tensors, torch.from_numpy(x[order])[None], training=True, noise=noise if hyper["dropout"] else None
        )[0]
        target = torch.from_numpy(y[order])
        if loss == "mse":
            value = (logits - F.one_hot(target, logits.shape[1])).square().mean()
        else:
            value = F.cross_entropy(logits, target)
        (gradient,) = torch.autograd.grad(value, leaf)
        OPTIMIZERS[optimizer].step(flat, gradient, state, numbers)
    return flat[0].numpy()


def compiled_steps(
    network: Network, weights: np.ndarray, x: np.ndarray, y: np.ndarray, batch: int, steps: int, rate: float,
    optimizer: str, hyper: dict[str, float], loss: str, dtype: Any = np.float64, fill: float = np.nan, each: int = 1000,
) -> np.ndarray:  # fmt: skip
    space = Workspace.of(network, batch, dtype, fill)
    model = Model(space, weights.astype(dtype), optimizer, hyper, KEY, x.astype(dtype), y, len(x), SITE, loss)
    for start in range(0, steps, each):
        stop = min(start + each, steps)
        assert model.train(start, stop, np.full(stop - start, rate)) == -1
    return model.weights


def relative(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.abs(found - true).max() / np.abs(true).max())


# Agreement


@pytest.mark.parametrize(("optimizer", "loss", "dropout"), [("sgd", "cross_entropy", 0.3), ("adamw", "mse", 0.0)])
@pytest.mark.parametrize(("architecture", "batch"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_agrees_with_the_reference(
    architecture: Architecture, batch: int, optimizer: str, loss: str, dropout: float
) -> None:
    """Five steps in two epochs that leave samples over. Gradients round by 1e-16 a term, momentum and AdamW (divided by
    its epsilon, 1e-4, at most) multiply that; float32 comes with that much more rounding.
    """
    module = architecture.build("meta")
    network, weights, x, y = problem(module, architecture.input_shape, 3 * batch + 2)
    hyper = {**HYPER, "dropout": dropout}
    arguments = (weights, x, y, batch, 5, 0.01, optimizer, hyper, loss)
    expected = steps_of_torch(module, *arguments)
    assert relative(compiled_steps(network, *arguments), expected) < 1e-11
    assert relative(compiled_steps(network, *arguments, np.float32), expected) < 1e-4
    assert np.abs(expected - weights).max() > 1e-3


SEQUENCES = [
    (nn.Conv2d(3, 5, (2, 3), (3, 1), (1, 0)), nn.MaxPool2d(3), nn.Tanh(), Dropout(0), nn.Flatten(), nn.Linear(15, 4)),
    (nn.Conv2d(3, 7, 5, padding=2), nn.MaxPool2d(4), Dropout(3), nn.Conv2d(7, 2, 2, padding=1), nn.Flatten()),
    (nn.Conv2d(3, 2, 1), nn.Conv2d(2, 9, 3, 2, 4), nn.Conv2d(9, 3, 2, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    (nn.Conv2d(3, 2, 3, (2, 3)), nn.SiLU(), nn.Conv2d(2, 3, (3, 1), (1, 2), (2, 1)), nn.ReLU(), nn.Flatten()),
    (nn.Conv2d(3, 4, 2, padding=3), nn.Conv2d(4, 3, 3, padding=1), nn.MaxPool2d(3), Dropout(1), nn.Flatten()),
    (nn.Conv2d(3, 2, 2), nn.AdaptiveAvgPool2d(1), nn.GELU(), Dropout(7), nn.Flatten(), nn.Linear(2, 3), nn.Tanh()),
]


@pytest.mark.parametrize("layers", SEQUENCES)
def test_other_sequences(layers: tuple[nn.Module, ...]) -> None:
    """Odd kernels, strides that leave rows and columns over, or are wider than the kernel, pooling that drops some."""
    module = nn.Sequential(*layers)
    network, weights, x, y = problem(module, (3, 11, 11), 40)
    arguments = (weights, x, y, 19, 3, 0.02, "sgd", {**HYPER, "dropout": 0.2}, "cross_entropy")
    assert relative(compiled_steps(network, *arguments), steps_of_torch(module.double(), *arguments)) < 1e-11


@pytest.mark.parametrize("side", [2, 3, 4])
def test_of_equals_the_first_in_a_window_gets_the_gradient(side: int) -> None:
    """The first channel, of small integers, decides which is largest; the second has no weight yet, but gets one."""
    module = nn.Sequential(nn.Conv2d(2, 2, 1), nn.MaxPool2d(side), nn.Flatten(), nn.Linear(8, 3))
    network, weights, x, y = problem(module, (2, 2 * side, 2 * side + 1), 20)
    x[:, 0] = np.random.default_rng(side).integers(0, 3, x[:, 0].shape)
    weights[1:4:2] = 0
    arguments = (weights, x, y, 20, 1, 0.1, "sgd", HYPER, "cross_entropy")
    assert relative(compiled_steps(network, *arguments), steps_of_torch(module, *arguments)) < 1e-13


def runs_of(spec: ZooSpec, samples: int = 70) -> list[Run]:
    runs = [run for runs in make_plan(spec).runs.values() for run in runs]
    return [dataclasses.replace(run, samples=samples, epochs=2, checkpoints=(0, 1, 2)) for run in runs]


@pytest.mark.parametrize("style", ["model_zoo", "small_cnn_zoo"])
def test_runs_of_a_zoo_are_those_of_the_reference(style: str) -> None:
    """The same schedule, label noise, dropout and shuffles, one hyperparameter a run."""
    axes: dict[str, Any] = {
        "learning_rate": Range(1e-3, 3e-2, log=True), "schedule": tuple(SCHEDULES), "label_noise": (0.0, 0.3),
        "dropout": (0.0, 0.4), "batch_size": (16, 32),
    }  # fmt: skip
    numbers = {"style": style, "activation": "tanh", "channels": 4}
    spec = ZooSpec("cnn", "cnn", numbers=numbers, axes=axes, cells=6)
    for run in runs_of(spec):
        data, architecture = DIGITS, run.architecture
        expected = train([run], data, impl="reference", dtype=torch.float64).weights[0].numpy()
        gains = np.array([run.values["initialization_gain"]])
        start = initial_weights(
            architecture, np.array([run.key], np.uint64), [run.values["initialization"]], gains
        )[0]  # fmt: skip
        space = Workspace.of(
            network_of(architecture.build("meta"), architecture.input_shape), run.values["batch_size"], float
        )
        x, y = data.train_x.astype(float), noisy_labels([run], data.train_y, 10)[0]
        model = Model(space, start, run.values["optimizer"], run.values, run.key, x, y, run.samples, SITE)
        for epoch in range(2):
            steps = np.arange(epoch * run.updates, (epoch + 1) * run.updates)
            rates = learning_rates([run], steps[:, None], np.array([run.updates]))[:, 0]
            assert model.train(steps[0], steps[-1] + 1, rates) == -1
            assert relative(model.weights, expected[epoch + 1]) < 1e-11


# Independence


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("architecture", "batch"), CASES[1:6:2], ids=lambda value: getattr(value, "name", str(value)))
def test_neither_what_stood_in_the_buffers_nor_the_cut_into_calls_changes_a_bit(
    architecture: Architecture, batch: int, optimizer: str
) -> None:
    network, weights, x, y = problem(architecture.build("meta"), architecture.input_shape, 2 * batch + 1)
    arguments = (weights, x, y, batch, 5, 0.01, optimizer, {**HYPER, "dropout": 0.25}, "cross_entropy", np.float32)
    whole = compiled_steps(network, *arguments, fill=0.0)
    np.testing.assert_array_equal(compiled_steps(network, *arguments, fill=np.nan, each=2), whole)
    space = Workspace.of(network, batch, np.float32)
    models = [
        Model(space, start.astype(np.float32), optimizer, arguments[7], KEY, x.astype(np.float32), y, len(x), SITE)
        for start in (weights[::-1], weights)
    ]
    for step in range(5):  # taking turns in one workspace
        for model in models:
            model.train(step, step + 1, np.full(1, 0.01))
    np.testing.assert_array_equal(models[1].weights, whole)


def test_lanes_without_a_sample_add_nothing() -> None:
    """Samples that are not in the batch may be anything; one that is shows, whatever its place."""
    architecture, batch = CASES[1]
    network, weights, x, y = problem(architecture.build("meta"), architecture.input_shape, 40)
    order = permutation(np.array([KEY], np.uint64), SITE, 0, count=40)[0]
    x[order[batch:]] = np.nan
    space = Workspace.of(network, batch, np.float64)
    model = Model(space, weights, "sgd", HYPER, KEY, x, y, 40, SITE)
    assert model.train(0, 1, np.full(1, 0.1)) == -1
    assert np.isfinite(model.weights).all()
    assert model.train(1, 3, np.full(2, 0.1)) == 1
    for place in range(batch):
        broken = x.copy()
        broken[order[place]] = np.nan
        model = Model(space, weights, "sgd", HYPER, KEY, broken, y, 40, SITE)
        assert model.train(0, 1, np.full(1, 0.1)) == 0
        np.testing.assert_array_equal(model.weights, weights)


# Odd data


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_divergence_is_noticed_at_the_same_step(activation: str) -> None:
    spec = ZooSpec(
        "bad", "cnn", numbers={"activation": activation, "channels": 4}, axes={"learning_rate": (0.01, 700.0, 1000.0)},
        hyperparameters={"weight_decay": 0.5, "batch_size": 16},
    )  # fmt: skip
    noticed = []
    for run in runs_of(spec):
        run = dataclasses.replace(run, samples=400)
        reference = train([run], DIGITS, impl="reference").diverged[0]
        gains = np.array([run.values["initialization_gain"]])
        start = initial_weights(run.architecture, np.array([run.key], np.uint64), [run.values["initialization"]], gains)
        network = network_of(run.architecture.build("meta"), run.architecture.input_shape)
        space = Workspace.of(network, 16, np.float32)
        model = Model(
            space, start[0].astype(np.float32), "sgd", run.values, run.key, DIGITS.train_x, DIGITS.train_y, 400, SITE
        )
        bad = model.train(0, 50, np.full(50, run.values["learning_rate"]))
        noticed.append(bad)
        assert reference == (f"loss not finite at step {bad} (epoch {bad // 25})" if bad >= 0 else "")
    assert [bad >= 0 for bad in noticed].count(True) >= 1


def test_a_single_sample_is_learnt() -> None:
    architecture = Architecture("cnn", {"style": "small_cnn_zoo", "channels": 3}, (1, 8, 8), 3)
    network, weights, x, y = problem(architecture.build("meta"), (1, 8, 8), 1)
    for loss in ("cross_entropy", "mse"):
        arguments = (weights, x, y, 1, 30, 0.05, "sgd", HYPER, loss)
        expected = steps_of_torch(architecture.build("meta"), *arguments)
        assert relative(compiled_steps(network, *arguments), expected) < 1e-11


def test_models_check_what_they_are_given() -> None:
    network = network_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)), (1, 8, 8))
    space, start = Workspace.of(network, 8, np.float64), np.zeros(network.size)
    x, y = np.zeros((20, 1, 8, 8)), np.zeros(20, np.int64)
    for inputs in (x[:, :, 1:], x.reshape(20, 64), x.astype(np.float32)):
        with pytest.raises(ValueError, match="inputs must be"):
            Model(space, start, "sgd", HYPER, 1, inputs, y, 20, 2)
    for labels in (y - 1, y + 3, y[:19]):
        with pytest.raises(ValueError, match="20 classes below 3"):
            Model(space, start, "sgd", HYPER, 1, x, labels, 20, 2)
    for samples in (7, 21):
        with pytest.raises(ValueError, match="do not fill batches of 8"):
            Model(space, start, "sgd", HYPER, 1, x, y, samples, 2)
    with pytest.raises(ValueError, match="weights must be"):
        Model(space, start[1:], "sgd", HYPER, 1, x, y, 20, 2)
    with pytest.raises(ValueError, match="cross_entropy, mse"):
        Model(space, start, "sgd", HYPER, 1, x, y, 20, 2, "hinge")
    model = Model(space, start, "sgd", HYPER, 1, x, y, 20, 2)
    for first, last, rates in ((0, 3, 2), (2, 2, 0), (-1, 1, 2)):
        with pytest.raises(ValueError, match="need as many"):
            model.train(first, last, np.zeros(rates))
