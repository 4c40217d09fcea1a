"""Population training: the same as one network after another, and each run as if it were alone."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.agreement import CASES, Agreement, compare
from catalog.errors import InvalidSpecError
from kernels.population import Dropout
from zoo.architectures import ACTIVATIONS
from zoo.batches import Batches
from zoo.datasets import load_dataset
from zoo.implementations import IMPLEMENTATIONS
from zoo.initialization import initial_weights
from zoo.plan import Run, make_plan
from zoo.shards import groups
from zoo.spec import ZooSpec
from zoo.train import Trained, noisy_labels, train

DIGITS = load_dataset("digits")


def runs_of(spec: ZooSpec) -> list[Run]:
    return [run for runs in make_plan(spec).runs.values() for run in runs]


def small(family: str = "mlp", **changes: Any) -> ZooSpec:
    hyper = {"epochs": 2, "data_fraction": 0.05, "momentum": 0.5, **changes.pop("hyperparameters", {})}
    numbers = {"width": 6, "activation": "tanh"} if family == "mlp" else {"channels": 4}
    return ZooSpec("small", family, changes.pop("numbers", numbers), hyperparameters=hyper, **changes)


# The oracle of the project


@pytest.fixture(scope="module", params=[*((name, "reference") for name in CASES), ("mlp", "compiled")], ids="-".join)
def agreement(request: pytest.FixtureRequest) -> Agreement:
    name, impl = request.param
    found = compare(CASES[name], impl=impl)
    print(found)
    return found


def test_mixed_groups_train_as_one_network_after_another(agreement: Agreement) -> None:
    """Rounding of float64 is 1e-16; sums of some hundred terms and ten steps, of AdamW too, leave room for 1e-12."""
    assert agreement.groups < agreement.runs  # several of them did train together
    assert agreement.gradient_relative < 1e-13
    assert agreement.weights_relative < 1e-12
    assert agreement.shift > 0.05  # they did go somewhere


# Companions


def weights_of(trained: Trained) -> np.ndarray:
    return trained.weights.numpy()


AXES: dict[str, tuple[Any, ...]] = {
    "batch_size": (16, 32, 48), "learning_rate": (0.1, 0.02), "dropout": (0.0, 0.3), "epochs": (1, 3),
    "label_noise": (0.0, 0.5),
}  # fmt: skip  # a table


@pytest.mark.parametrize("batches", [(16, 32, 48), (4, 8, 12)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_companions_change_no_bit_of_an_mlp(
    impl: str, optimizer: str, activation: str, batches: tuple[int, ...]
) -> None:
    hyper = {"optimizer": optimizer, "weight_decay": 0.01}
    numbers = {"width": 5, "activation": activation}  # an odd number, so that runs meet other lanes of the processor
    runs = runs_of(small(axes={**AXES, "batch_size": batches}, numbers=numbers, hyperparameters=hyper))
    assert {run.micro for run in runs} == {batches[0]}
    order = np.random.default_rng(0).permutation(len(runs))
    alone = {number: weights_of(train([runs[number]], DIGITS, impl=impl))[0] for number in order[:3]}
    for companions in (1, 5, 20):
        for number, expected in alone.items():
            others = [other for other in order[::-1] if other != number][:companions]
            chosen = [runs[other] for other in [*others[: companions // 2], number, *others[companions // 2 :]]]
            found = weights_of(train(chosen, DIGITS, impl=impl))[companions // 2]
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_companions_change_only_rounding_of_a_cnn(norm: str) -> None:
    runs = runs_of(small("cnn", axes={**AXES, "batch_size": (16,)}, numbers={"channels": 8, "norm": norm}))
    alone = weights_of(train(runs[5:6], DIGITS))[0]
    together = weights_of(train(runs, DIGITS))[5]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)  # float32, weights below 1, some tens of steps


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_longer_training_of_others_changes_nothing(impl: str) -> None:
    short, long = (small(hyperparameters={"min_steps": steps}) for steps in (0, 30))
    run, companion = runs_of(short)[0], runs_of(long)[0]
    assert companion.epochs * companion.updates >= 30 > run.epochs * run.updates
    np.testing.assert_array_equal(
        train([companion, run], DIGITS, impl=impl).weights[1], train([run], DIGITS, impl=impl).weights[0]
    )


def test_the_length_of_blocks_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_of(small(axes=AXES, hyperparameters={"data_fraction": 0.2}))
    whole = weights_of(train(runs, DIGITS, impl="reference"))
    block = Batches.block
    lengths = []

    def noted(self: Batches, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths.append(stop - start)
        return block(self, start, stop)

    monkeypatch.setattr(Batches, "block", noted)
    monkeypatch.setattr("zoo.train.BLOCK", 1)
    np.testing.assert_array_equal(weights_of(train(runs, DIGITS, impl="reference")), whole)
    assert max(lengths) == 16


# What a run is


def test_same_call_same_bits_and_another_seed_others() -> None:
    for family in ("mlp", "cnn"):
        runs = runs_of(small(family, seeds=(0, 1), hyperparameters={"dropout": 0.1}))
        first, again = (weights_of(train(runs, DIGITS)) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first[0] - first[1]).max() > 0.1


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_more_checkpoints_are_the_same_ones_and_the_first_is_the_start(impl: str) -> None:
    axes = {name: values for name, values in AXES.items() if name != "epochs"}
    many, few = (
        runs_of(small(axes=axes, checkpoints=epochs, hyperparameters={"epochs": 3}))
        for epochs in ((0, 1, 2, 3), (0, 2))
    )
    assert [run.run for run in many] == [run.run for run in few]
    dense, sparse = weights_of(train(many, DIGITS, impl=impl)), weights_of(train(few, DIGITS, impl=impl))
    np.testing.assert_array_equal(dense[:, [0, 2]], sparse)
    keys = np.array([run.key for run in many], np.uint64)
    start = initial_weights(many[0].architecture, keys, ["torch"] * len(many), np.ones(len(many)))
    np.testing.assert_array_equal(dense[:, 0], start.astype(np.float32))
    assert (np.abs(np.diff(dense, axis=1)).max(2) > 0).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_epochs_keeps_the_start(impl: str) -> None:
    trained = train(runs_of(small(hyperparameters={"epochs": 0})), DIGITS, impl=impl)
    assert trained.weights.shape[:2] == (1, 1)
    assert trained.weights.isfinite().all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_only_the_first_samples_are_used(impl: str) -> None:
    run = runs_of(small())[0]
    assert run.samples == 60
    broken = DIGITS.train_x.copy()
    broken[run.samples :] = np.nan
    data = dataclasses.replace(DIGITS, train_x=broken)
    np.testing.assert_array_equal(train([run], data, impl=impl).weights, train([run], DIGITS, impl=impl).weights)


def test_padding_is_not_looked_at() -> None:
    run = dataclasses.replace(
        runs_of(small(hyperparameters={"batch_size": 31}))[0], samples=62, epochs=1, checkpoints=(1,)
    )
    assert (run.micro, run.updates) == (16, 2)  # 32 places for 31 samples
    padded = train([run], DIGITS, dtype=torch.float64, impl="reference").weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "micro", 31)
        whole = train([run], DIGITS, dtype=torch.float64, impl="reference").weights
    torch.testing.assert_close(padded, whole, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_progress_counts_samples(impl: str) -> None:
    runs = runs_of(small(seeds=(0, 1, 2)))
    seen: list[int] = []
    train(runs, DIGITS, progress=seen.append, impl=impl)
    assert sum(seen) == sum(run.epochs * run.updates * 32 for run in runs)


def test_runs_of_different_groups_are_refused() -> None:
    runs = runs_of(small(axes={"batch_size": (4, 16)}))
    assert len(groups(runs)) == 2
    with pytest.raises(ValueError, match="must share"):
        train(runs, DIGITS)
    with pytest.raises(ValueError, match="got none"):
        train([], DIGITS)


def test_groups_are_bounded() -> None:
    runs = runs_of(small(seeds=tuple(range(150))))
    assert [len(group) for group in groups(runs)] == [64, 64, 22]
    assert [run for group in groups(runs) for run in group] == runs


# Labels


@pytest.mark.parametrize("data", ["digits", "moons"])
def test_label_noise(data: str) -> None:
    rates = (0.0, 0.2, 1.0)
    plan = make_plan(ZooSpec("noise", dataset=data, axes={"label_noise": rates}, seeds=tuple(range(20))))
    runs = [run for variant in plan.runs.values() for run in variant]
    labels, classes = noisy_labels(runs, plan.data.train_y, plan.data.num_classes), plan.data.num_classes
    for rate in rates:
        mine = labels[[run.values["label_noise"] == rate for run in runs]]
        assert abs((mine != plan.data.train_y).mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / mine.size) + 1e-12
    assert labels.min() == 0
    assert labels.max() == classes - 1
    shift = (mine - plan.data.train_y) % classes  # rate 1: never the own class, the others equally often
    counts = np.bincount(shift.reshape(-1), minlength=classes)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:] / counts.sum(), 1 / (classes - 1), rtol=0.1)
    np.testing.assert_array_equal(noisy_labels(runs[7:8], plan.data.train_y, classes)[0], labels[7])


# Divergence


@pytest.mark.parametrize(("family", "impl"), [("mlp", "compiled"), ("mlp", "reference"), ("cnn", "reference")])
def test_a_run_that_diverges_says_so_and_hurts_nobody(family: str, impl: str) -> None:
    hyper = {"epochs": 4, "batch_size": 16, "weight_decay": 0.3}
    numbers = {"width": 6, "activation": "relu"} if family == "mlp" else {"channels": 4}
    axes = {"learning_rate": (0.05, 1000.0, 0.02)}
    runs = runs_of(small(family, axes=axes, numbers=numbers, checkpoints=(0, 1, 2, 3, 4), hyperparameters=hyper))
    trained = train(runs, DIGITS, impl=impl)
    rates = [run.values["learning_rate"] for run in runs]
    bad = rates.index(1000.0)
    assert [bool(reason) for reason in trained.diverged] == [rate == 1000.0 for rate in rates]
    words = trained.diverged[bad].split()
    assert trained.diverged[bad].startswith("loss not finite at step ")
    step, epoch = int(words[5]), int(words[7][:-1])
    assert epoch == step // runs[bad].updates
    finite = trained.weights[bad].isfinite().all(1).tolist()
    assert finite[0]
    assert not any(trained.weights[bad, e].isfinite().any() for e in range(5) if e * runs[bad].updates > step)
    others = [number for number in range(3) if number != bad]
    assert trained.weights[others].isfinite().all()
    without = train([runs[number] for number in others], DIGITS, impl=impl).weights
    if family == "mlp":
        assert torch.equal(trained.weights[others], without)
    else:
        torch.testing.assert_close(trained.weights[others], without, rtol=0, atol=1e-6)


def test_dropout_sites_do_not_meet_other_streams() -> None:
    from zoo import batches, initialization, plan
    from zoo import train as training

    sites = {batches.SITE, initialization.SITE, plan.CELL_SITE, training.LABEL_SITE}
    assert len(sites) == 4
    assert max(sites) < Dropout.SITE


# Given weights to begin with

STARTED = [
    ("mlp", "compiled"),
    ("mlp", "reference"),
    ("cnn", "compiled"),
    ("cnn", "reference"),
    ("normed", "reference"),
]


def started(family: str) -> list[Run]:
    """Four runs that differ in much, of an MLP, a CNN (in compiled code: of lanes) or one with BatchNorm."""
    if family == "mlp":
        return runs_of(small(axes={"learning_rate": (0.1, 0.01)}, seeds=(0, 1), checkpoints=(0, 1, 2)))
    numbers = {"style": "small_cnn_zoo", "channels": 2, "norm": "batch" if family == "normed" else "none"}
    return runs_of(small("cnn", numbers=numbers, seeds=(0, 1, 2, 3), checkpoints=(0, 1, 2)))


def drawn(runs: list[Run]) -> torch.Tensor:
    keys = np.array([run.key for run in runs], np.uint64)
    return torch.from_numpy(initial_weights(runs[0].architecture, keys, ["torch"] * len(runs), np.ones(len(runs))))


@pytest.mark.parametrize(("family", "impl"), STARTED)
def test_its_own_first_weights_given_change_no_bit(family: str, impl: str) -> None:
    runs = started(family)
    own = drawn(runs)
    alone = train(runs, DIGITS, impl=impl)
    assert alone.impl == impl
    for start in (own, own.float()):  # training is float32
        np.testing.assert_array_equal(weights_of(train(runs, DIGITS, start=start, impl=impl)), weights_of(alone))


@pytest.mark.parametrize(("family", "impl"), STARTED)
def test_training_goes_on_from_what_is_given(family: str, impl: str) -> None:
    """One epoch of two kept, given as a start: it is the checkpoint of epoch 0, and stays where it is given."""
    runs = started(family)
    given = train(runs, DIGITS, impl=impl).weights[:, -1].clone()
    before = given.clone()
    slow = [dataclasses.replace(run, values={**run.values, "learning_rate": 1e-12}) for run in runs]
    stayed = train(slow, DIGITS, start=given, impl=impl).weights
    parameters = runs[0].architecture.layout.num_parameters
    np.testing.assert_array_equal(stayed[:, 0], before)
    np.testing.assert_allclose(stayed[:, -1, :parameters], before[:, :parameters], atol=1e-9)
    moved = train(runs, DIGITS, start=given, impl=impl).weights
    assert (moved[:, -1] - before).abs().amax(1).min() > 1e-3
    np.testing.assert_array_equal(given, before)  # training works on a copy
    order = [2, 0, 3, 1]
    turned = train([runs[n] for n in order], DIGITS, start=given[order], impl=impl).weights
    np.testing.assert_allclose(turned, moved[order], atol=1e-5)  # each has its own; rounding of grouped convolutions


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_float64_start_is_not_written_to(impl: str) -> None:
    runs = started("mlp")
    given = drawn(runs)
    before = given.clone()
    train(runs, DIGITS, start=given, impl=impl, dtype=torch.float64)
    np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_start_that_is_not_finite_diverges_alone(impl: str) -> None:
    runs = started("mlp")
    given = drawn(runs).float()
    given[1, 3] = torch.nan
    found = train(runs, DIGITS, start=given, impl=impl)
    assert [bool(reason) for reason in found.diverged] == [False, True, False, False]
    assert found.diverged[1].startswith("loss not finite at step 0")
    assert found.weights[[0, 2, 3]].isfinite().all()


def test_starts_that_do_not_fit() -> None:
    runs = started("mlp")
    size = runs[0].architecture.layout.size
    for start in (torch.zeros(4, size - 1), torch.zeros(3, size), torch.zeros(size), torch.zeros(4, size).long()):
        with pytest.raises(InvalidSpecError, match=r"start must be the weights of each run, \(4, "):
            train(runs, DIGITS, start=start)
