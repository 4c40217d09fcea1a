"""Compiled training of MLPs against the reference in plain torch, and what it does with odd networks and bad input."""

import dataclasses
import logging
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from catalog.errors import InvalidSpecError, UnknownNameError
from kernels.mlp.network import ACTIVATIONS, MLP, UnsupportedError, mlp_of
from kernels.mlp.pointwise import shuffle
from kernels.mlp.training import Model, Workspace
from kernels.population import Dropout, forward_of
from kernels.random import permutation
from zoo import implementations, train_compiled
from zoo.datasets import Dataset, load_dataset
from zoo.plan import Run, make_plan
from zoo.schedules import SCHEDULES
from zoo.shards import groups
from zoo.spec import Range, ZooSpec
from zoo.train import train

DIGITS = load_dataset("digits")
STEPS = 12
SHAPES = [(1, 1), (2, 2), (5, 7), (1, 16), (2, 33), (0, 1), (1, 64), (2, 130)]  # depth and width
NAMES = tuple(ACTIVATIONS.values())
MIXED: dict[str, Any] = {
    "batch_size": (8, 17, 32, 100, 128),
    "learning_rate": Range(5e-3, 1e-1, log=True),
    "optimizer": ("sgd", "adamw"),
    "loss_function": ("cross_entropy", "mse"),
    "schedule": tuple(SCHEDULES),
    "momentum": (0.0, 0.9),
    "weight_decay": (0.0, 0.05),
    "label_noise": (0.0, 0.3),
    "dropout": (0.0, 0.4),
    "data_fraction": (0.7, 1.0),
}
HYPER = {"momentum": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01, "dropout": 0.0}


def runs_of(spec: ZooSpec) -> list[Run]:
    return [run for runs in make_plan(spec).runs.values() for run in runs]


def mixed(depth: int, width: int, activation: str, cells: int = 12) -> list[list[Run]]:
    """Groups of runs that take twelve steps or more, in two epochs that leave samples over."""
    numbers = {"depth": depth, "width": width, "activation": activation}
    # epsilon: a gradient of nothing but rounding must not be divided by less, see benchmarks/agreement.py
    spec = ZooSpec("mixed", numbers=numbers, hyperparameters={"epsilon": 1e-4}, axes=MIXED, cells=cells)
    short = []
    for run in runs_of(spec):
        samples = STEPS // 2 * run.values["batch_size"] + (3 if run.values["data_fraction"] == 1 else 1)
        short.append(dataclasses.replace(run, samples=samples, epochs=2, checkpoints=(0, 1, 2)))
    return [list(group) for group in groups(short)]


def numbers(runs: list[Run], impl: str, dtype: torch.dtype = torch.float64, data: Dataset = DIGITS) -> np.ndarray:
    trained = train(runs, data, impl=impl, dtype=dtype)
    assert trained.impl == impl
    assert set(trained.diverged) == {""}
    return trained.weights.numpy()


def relative(found: np.ndarray, true: np.ndarray) -> float:
    """Largest difference, of a run's largest weight."""
    return float((np.abs(found - true).max((1, 2)) / np.abs(true).max((1, 2))).max())


# Agreement


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize(("depth", "width"), SHAPES)
def test_agrees_with_the_reference(depth: int, width: int, activation: str) -> None:
    """Float64 rounds by 1e-16, sums of some hundred terms by 1e-14, and AdamW divides gradients of nothing but rounding
    by its epsilon, 1e-4, in twelve steps: room for 1e-10. A float32 that slipped in anywhere would show as 1e-8.
    """
    together = mixed(depth, width, activation)
    assert len(together) > 2
    for runs in together:
        reference, compiled = numbers(runs, "reference"), numbers(runs, "compiled")
        assert relative(compiled, reference) < 1e-10
        assert np.abs(reference[:, 2] - reference[:, 0]).max() > 1e-3


@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_one_sample_and_classes_that_never_occur(family: str) -> None:
    spec = ZooSpec("few", family, hyperparameters={"batch_size": 1}, axes={"loss_function": ("cross_entropy", "mse")})
    data = dataclasses.replace(DIGITS, train_y=np.full_like(DIGITS.train_y, 3))
    for run in runs_of(spec):
        for samples in (1, 5):
            few = [dataclasses.replace(run, samples=samples, epochs=3, checkpoints=(0, 3))]
            reference, compiled = (numbers(few, impl, data=data) for impl in ("reference", "compiled"))
            assert relative(compiled, reference) < 1e-11
            assert not np.array_equal(compiled[:, 0], compiled[:, 1])


@pytest.mark.parametrize("activation", NAMES)
def test_float32_is_as_near_to_the_truth_as_the_reference(activation: str) -> None:
    """Our activations are good to some 3e-7, those of torch to 1e-7; ReLU has none, but kinks that either may cross."""
    for runs in mixed(2, 33, activation):
        truth = numbers(runs, "reference")
        ours, theirs = (relative(numbers(runs, impl, torch.float32), truth) for impl in ("compiled", "reference"))
        assert ours < max(4 * theirs, 2e-5)


def test_long_runs_end_as_well_as_those_of_the_reference() -> None:
    spec = ZooSpec(
        "long", numbers={"activation": "tanh", "width": 16}, hyperparameters={"epochs": 5}, seeds=tuple(range(12))
    )
    runs = runs_of(spec)
    accuracies = []
    for impl in implementations.IMPLEMENTATIONS:
        weights = torch.from_numpy(numbers(runs, impl, torch.float32)[:, -1])
        tensors, x = runs[0].architecture.layout.unflatten(weights), torch.from_numpy(DIGITS.test_x)
        logits = forward_of(runs[0].architecture.build("meta"))(
            runs[0].architecture.build("meta"), tensors, x, shared=True
        )
        accuracies.append((logits.argmax(-1).numpy() == DIGITS.test_y).mean(1))
    assert accuracies[0].min() > 0.8
    np.testing.assert_allclose(accuracies[0], accuracies[1], atol=0.02)  # a run differs by a handful of 597 samples


def test_shuffles_are_those_of_the_reference() -> None:
    for samples in (1, 3, 4, 301, 1200):
        order, spare = np.empty((2, samples), np.int64)
        for key in np.array([0, 1, 2**63 + 5, 2**64 - 1], np.uint64):
            for epoch in (0, 7, 2**31):
                shuffle(key, 2, epoch, order, spare)
                expected = permutation(key.reshape(1), 2, epoch, count=samples)[0]
                np.testing.assert_array_equal(order & (2**31 - 1), expected)


# Independence


def test_neither_companions_nor_the_cut_into_calls_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    for runs in mixed(2, 33, "gelu", cells=20):
        whole = numbers(runs, "compiled", torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr(train_compiled, "CALL", 1)  # a step a call
            patch.setattr(train_compiled, "AHEAD", 5)
            for position in {0, len(runs) - 1}:
                np.testing.assert_array_equal(numbers([runs[position]], "compiled", torch.float32)[0], whole[position])
        backwards = numbers(runs[::-1], "compiled", torch.float32)[::-1]
        np.testing.assert_array_equal(backwards, whole)


def one(space: Workspace, weights: np.ndarray, data: Dataset, optimizer: str, samples: int, **hyper: float) -> Model:
    x = np.ascontiguousarray(data.train_x.reshape(len(data.train_x), -1), space.dtype)
    return Model(space, weights, optimizer, {**HYPER, **hyper}, 77, x, data.train_y, samples, 2)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("depth", "width"), [(0, 1), (2, 33), (3, 5)])
def test_nothing_that_is_not_written_is_read(depth: int, width: int, optimizer: str) -> None:
    network = MLP((64, *[width] * depth, 10), "tanh", tuple(256 + n for n in range(depth)))
    start = np.random.default_rng(0).normal(size=network.size).astype(np.float32) / 4
    results = []
    for fill in (0.0, np.nan):
        model = one(Workspace.of(network, 17, np.float32, fill), start, DIGITS, optimizer, 60, dropout=0.2)
        for buffer in (model.learner.weights, model.learner.first, model.learner.second):
            true = model.workspace.unpad(buffer) if len(buffer) else None
            if true is not None:
                buffer[:] = model.workspace.pad(true, fill)
        assert model.train(0, 5, np.full(5, 0.05)) == -1
        results.append(model.weights)
    np.testing.assert_array_equal(results[0], results[1])
    assert np.isfinite(results[0]).all()
    assert np.abs(results[0] - start).max() > 1e-3


# Odd data


@pytest.mark.parametrize("impl", implementations.IMPLEMENTATIONS)
def test_a_single_sample_is_learnt(impl: str) -> None:
    spec = ZooSpec("one", hyperparameters={"batch_size": 1, "epochs": 30}, numbers={"width": 3})
    run = dataclasses.replace(runs_of(spec)[0], samples=1)
    weights = numbers([run], impl)
    np.testing.assert_allclose(weights, numbers([run], "reference"), rtol=0, atol=1e-12)


def test_two_classes_and_a_class_that_never_occurs() -> None:
    spec = ZooSpec("moons", dataset="moons", hyperparameters={"epochs": 2}, numbers={"width": 5, "activation": "silu"})
    moons = make_plan(spec).data
    assert moons.num_classes == 2
    runs = [run for run in runs_of(spec)]
    assert relative(numbers(runs, "compiled", data=moons), numbers(runs, "reference", data=moons)) < 1e-12
    few = dataclasses.replace(DIGITS, train_y=DIGITS.train_y % 3)
    digits = runs_of(dataclasses.replace(spec, dataset="digits"))
    assert relative(numbers(digits, "compiled", data=few), numbers(digits, "reference", data=few)) < 1e-12


@pytest.mark.parametrize("activation", NAMES)
def test_divergence_is_noticed_at_the_same_step(activation: str) -> None:
    hyper = {"epochs": 3, "batch_size": 48, "weight_decay": 0.5}
    spec = ZooSpec(
        "bad", hyperparameters=hyper, numbers={"activation": activation}, checkpoints=(0, 1, 2, 3),
        axes={"learning_rate": (0.01, 700.0, 1000.0)},
    )  # fmt: skip
    runs = runs_of(spec)
    compiled, reference = (train(runs, DIGITS, impl=impl) for impl in implementations.IMPLEMENTATIONS)
    assert compiled.diverged == reference.diverged
    assert sum(map(bool, compiled.diverged)) == 2
    assert torch.equal(compiled.weights.isnan(), reference.weights.isnan())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_bad_inputs_show_at_once(value: float) -> None:
    broken = DIGITS.train_x.copy()
    broken[:] = value
    run = runs_of(ZooSpec("bad", hyperparameters={"epochs": 1, "weight_decay": 100.0, "learning_rate": 1000.0}))[0]
    data = dataclasses.replace(DIGITS, train_x=broken)
    compiled, reference = (train([run], data, impl=impl).diverged for impl in implementations.IMPLEMENTATIONS)
    assert compiled == reference
    assert compiled[0].startswith("loss not finite at step")


def test_models_check_what_they_are_given() -> None:
    network = MLP((64, 10), "relu", ())
    space, start = Workspace.of(network, 8, np.float64), np.zeros(network.size)
    x, y = np.zeros((20, 64)), np.zeros(20, np.int64)
    with pytest.raises(ValueError, match="inputs must be"):
        Model(space, start, "sgd", HYPER, 1, x[:, :63], y, 20, 2)
    for labels in (y - 1, y + 10, y[:19]):
        with pytest.raises(ValueError, match="20 classes below 10"):
            Model(space, start, "sgd", HYPER, 1, x, labels, 20, 2)
    for samples in (7, 21):
        with pytest.raises(ValueError, match="do not fill batches of 8"):
            Model(space, start, "sgd", HYPER, 1, x, y, samples, 2)
    for wrong in ({"weight_decay": np.nan}, {"momentum": np.inf}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match="must be finite"):
            Model(space, start, "sgd", {**HYPER, **wrong}, 1, x, y, 20, 2)
    model = Model(space, start, "sgd", HYPER, 1, x, y, 20, 2)
    with pytest.raises(ValueError, match="learning rates must be finite, got nan"):
        model.train(0, 2, np.array([0.1, np.nan]))
    for first, last, rates in ((0, 3, 2), (2, 2, 0), (-1, 1, 2)):
        with pytest.raises(ValueError, match="need as many"):
            model.train(first, last, np.zeros(rates))


# Threads


def test_no_bit_depends_on_threads() -> None:
    for runs in mixed(2, 33, "tanh")[:2]:
        alone, together = (train(runs, DIGITS, threads=threads) for threads in (1, 3))
        assert torch.equal(alone.weights, together.weights)
        assert not alone.weights.isnan().any()


def test_what_goes_wrong_in_a_thread_reaches_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_arguments: Any) -> int:
        raise MemoryError("no room")

    monkeypatch.setattr(Model, "train", breaks)
    before = threading.active_count()
    with pytest.raises(MemoryError, match="no room"):
        train(mixed(1, 5, "relu")[0], DIGITS, threads=2)
    assert threading.active_count() == before


def test_interrupted_no_thread_goes_on() -> None:
    runs = [dataclasses.replace(run, samples=1000, epochs=10_000) for run in runs_of(ZooSpec("x", seeds=(0, 1, 2)))]
    before = threading.active_count()

    def interrupt(_samples: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:  # with its traceback, which holds on to everything
        train(runs, DIGITS, threads=2, progress=interrupt)
    assert threading.active_count() == before
    assert kept


# Choosing


def test_what_is_supported() -> None:
    linear, relu = nn.Linear(3, 3), nn.ReLU()
    found = mlp_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.GELU(), Dropout(5), nn.Linear(3, 2)))
    assert found == MLP((4, 3, 2), "gelu", (256 + 5,))
    assert mlp_of(nn.Sequential(nn.Linear(4, 2))).widths == (4, 2)
    unsupported: list[nn.Module] = [
        linear, nn.Sequential(), nn.Sequential(linear, relu), nn.Sequential(linear, linear),
        nn.Sequential(nn.Conv2d(1, 1, 1)), nn.Sequential(linear, nn.GELU("tanh"), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(3, 2, bias=False)),
        nn.Sequential(linear, relu, linear), nn.Sequential(linear, relu, nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)),
        nn.Sequential(linear, relu, nn.Linear(4, 2)), nn.Sequential(linear, relu, nn.Dropout(), nn.Linear(3, 2)),
    ]  # fmt: skip  # a list
    for network in unsupported:
        with pytest.raises(UnsupportedError):
            mlp_of(network)


def test_what_cannot_be_forced_says_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    mlp = runs_of(ZooSpec("mlp", hyperparameters={"epochs": 0}))
    cnn = runs_of(ZooSpec("cnn", "cnn", numbers={"norm": "group"}, hyperparameters={"epochs": 0}))
    for runs, options, why in (
        (cnn, {}, "GroupNorm"), (mlp, {"dtype": torch.bfloat16}, "bfloat16"), (mlp, {"device": "meta"}, "on a CPU"),
    ):  # fmt: skip
        with pytest.raises(InvalidSpecError, match=why):
            train(runs, DIGITS, impl="compiled", **options)
    with pytest.raises(UnknownNameError, match="compiled, reference"):
        train(mlp, DIGITS, impl="fast")
    implementations._note.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [train(cnn, DIGITS).impl for _ in range(2)] == ["reference"] * 2
    assert ["GroupNorm" in record.message for record in caplog.records] == [True]
    assert train(mlp, DIGITS).impl == "compiled"
    monkeypatch.setitem(__import__("sys").modules, "kernels.mlp.training", None)  # as without numba
    assert train(mlp, DIGITS).impl == "reference"
    assert len(caplog.records) == 2
