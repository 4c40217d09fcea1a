"""Batches as a function of seed and step: resumed anywhere to the bit, from memory or from the store."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

import catalog
import generators
from catalog.errors import GeneratorError, QueryError, UnknownNameError
from generators.codec import fit_codec
from generators.conditions import Conditions
from generators.data import Batch, WeightDataModule
from generators.population import population
from tests.processes import ROOT
from tests.weight_zoos import counting, store

# lightning 2.6.6 asks torch 2.13 for a class by its old name, each time it looks into a batch
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

MODELS, SIZE = 50, 30  # 40 of them to train on
SMALL = 4 * 5 * SIZE  # bytes: five networks


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> catalog.Zoo:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "accuracy": rng.uniform(0.5, 1, MODELS),
        "phase": ["III", "IV-A"] * (MODELS // 2),
        "gap": [None if n == 7 else 0.5 for n in range(MODELS)],
    }
    return store(tmp_path_factory.mktemp("data") / "x.zoo", rng.normal(size=(MODELS, SIZE)) + 3, **columns)


def made(zoo: Any, **options: Any) -> WeightDataModule:
    module = WeightDataModule(zoo, **{"batch_size": 8} | options)
    module.setup()
    return module


def same(one: Batch, other: Batch) -> None:
    assert list(one) == list(other)
    for name in one:
        assert torch.equal(one[name], other[name])


def first(module: WeightDataModule, count: int) -> list[Batch]:
    batches = iter(module.train_dataloader())
    return list(itertools.islice(batches, count))


# What a batch is


def test_a_batch_is_codes_and_conditions_of_the_rows_at_its_places(zoo: catalog.Zoo) -> None:
    module = made(zoo, codec="pca", components=4, conditions=("accuracy", "phase"))
    found = population(zoo)
    codec, rows = fit_codec(found, codec="pca", components=4), found.split("train")
    assert module.codec.fingerprint == codec.fingerprint
    vectors = Conditions.fit(rows, ("accuracy", "phase")).encode(rows)
    for batch in first(module, 7):
        place = batch["place"].numpy()
        assert (batch["codes"].dtype, batch["conditions"].dtype) == (torch.float32, torch.float32)
        np.testing.assert_array_equal(batch["codes"], codec.encode(found.read())[place])
        np.testing.assert_array_equal(batch["conditions"], vectors[place])
    assert list(made(zoo).batch(0)) == ["codes", "place"]


def test_the_order_is_of_seed_and_epoch_alone(zoo: catalog.Zoo) -> None:
    module, again = made(zoo), made(zoo)
    assert module.steps_per_epoch == 5
    batches = [module.batch(step) for step in range(15)]
    for step in (14, 3, 9, 4, 3):
        same(again.batch(step), batches[step])
    epochs = [torch.cat([batch["place"] for batch in batches[n : n + 5]]).tolist() for n in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(40)]}) == 4
    assert not torch.equal(made(zoo, seed=1).batch(0)["place"], batches[0]["place"])
    for one, other in zip(first(made(zoo), 15), batches, strict=True):
        same(one, other)


def test_batches_are_full_or_all_there_is(zoo: catalog.Zoo) -> None:
    uneven = made(zoo, batch_size=12)
    places = [batch["place"] for batch in first(uneven, 6)]
    assert [len(place) for place in places] == [12] * 6
    assert len(set(torch.cat(places[:3]).tolist())) == 36
    whole = [batch["place"].tolist() for batch in first(made(zoo, batch_size=128), 3)]
    assert [sorted(place) for place in whole] == [list(range(40))] * 3
    assert whole[0] != whole[1]


def test_everything_is_fitted_on_training_alone(zoo: catalog.Zoo, tmp_path: Path) -> None:
    rows, weights = zoo.scan().collect(), zoo.read(zoo.scan())
    held = set(population(zoo).rows.filter(pl.col("split") != "train")["run"])
    columns: dict[str, Any] = {"accuracy": rows["accuracy"].to_list()}
    where = [place for place, run in enumerate(rows["run"]) if run in held]
    for place in where:
        weights[place] *= 9
        columns["accuracy"][place] += 9
    other = store(tmp_path / "other.zoo", weights, **columns)
    for codec, components in (("identity", 0), ("pca", 5)):
        options: dict[str, Any] = {"codec": codec, "components": components, "conditions": ["accuracy"]}
        one, two = made(zoo, **options), made(other, **options)
        for step in range(5):
            same(one.batch(step), two.batch(step))
        changed = next(iter(two.val_dataloader()))["codes"]
        assert not torch.equal(next(iter(one.val_dataloader()))["codes"], changed)


def test_held_out_splits_come_in_order_each_model_once(zoo: catalog.Zoo) -> None:
    module = made(zoo, conditions=["phase"], batch_size=3)
    for split, loader in (("validation", module.val_dataloader()), ("test", module.test_dataloader())):
        batches = list(loader)
        assert [len(batch["codes"]) for batch in batches] == [3, 2]
        assert len(loader) == 2
        np.testing.assert_array_equal(
            torch.cat([batch["codes"] for batch in batches]), module.codec.encode(module.population.read(split))
        )
        assert torch.cat([batch["place"] for batch in batches]).tolist() == list(range(5))
        assert all(len(batch["conditions"]) == len(batch["codes"]) for batch in batches)


# Memory


@pytest.mark.parametrize("codec", ["identity", "pca"])
def test_a_zoo_that_does_not_fit_gives_the_same_batches(
    zoo: catalog.Zoo, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = fit_codec(population(zoo), codec=codec)
    whole = made(population(zoo), codec=fitted, conditions=["accuracy"])
    small = made(population(zoo), codec=fitted, conditions=["accuracy"], memory=SMALL)
    with counting(monkeypatch) as seen:
        wanted = first(whole, 12)
        assert seen == []
        for one, other in zip(first(small, 12), wanted, strict=True):
            same(one, other)
        assert max(seen) == 8  # never more than a batch
        assert 12 <= len(seen) <= 12 + 3  # some are read ahead
    held = [list(module.val_dataloader()) for module in (whole, small)]
    for one, other in zip(*held, strict=True):
        same(one, other)


def test_readers_end_with_their_stream(zoo: catalog.Zoo) -> None:
    module, before = made(zoo, memory=SMALL), threading.active_count()
    batches: Iterator[Batch] = iter(module.train_dataloader())
    next(batches)
    assert threading.active_count() > before
    del batches
    assert threading.active_count() == before


@pytest.mark.parametrize("memory", [2**31, SMALL, 3 * SMALL])
@pytest.mark.parametrize("codec", ["identity", "pca", "fitted"])
def test_what_it_costs_is_what_it_takes(
    zoo: catalog.Zoo, codec: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Any = fit_codec(population(zoo)) if codec == "fitted" else codec
    components = 4 * (codec == "pca")
    module = WeightDataModule(population(zoo), codec=asked, components=components, batch_size=8, memory=memory)
    cost = module.cost()
    with counting(monkeypatch) as seen:
        module.setup()
        assert cost["setup_read_bytes"] == sum(seen) * 4 * SIZE
        seen.clear()
        module.batch(3)
        assert cost["step_read_bytes"] == sum(seen) * 4 * SIZE
    kept = module._codes.get("train", torch.empty(0))
    assert cost["kept_bytes"] == kept.numel() * 4
    assert cost["models"] == 40
    assert module.cost() == cost


def test_components_of_long_vectors_cost_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = population(store(tmp_path / "long.zoo", np.random.default_rng(0).normal(size=(20, 60))))
    module = WeightDataModule(found, codec="pca", components=2, memory=4 * 60 * 5)
    with counting(monkeypatch) as seen:
        module.setup()
    assert module.cost()["setup_read_bytes"] == sum(seen) * 4 * 60
    assert max(seen[1:-2]) == 5  # of the Gram matrix; the other passes hold 64 MiB


# Resuming


@pytest.mark.parametrize("stop", [0, 1, 5, 7])
def test_a_state_gives_the_batches_that_are_left(zoo: catalog.Zoo, stop: int) -> None:
    module = made(zoo)
    wanted = first(module, 12)
    assert module.state_dict()["step"] == 0  # nobody trained
    state = module.state_dict() | {"step": stop}
    for memory in (2**31, SMALL):
        other = made(zoo, memory=memory)
        other.load_state_dict(state)
        assert other.state_dict() == state
        for one, again in zip(first(other, 12 - stop), wanted[stop:], strict=True):
            same(one, again)


def test_a_state_of_other_batches_is_refused(zoo: catalog.Zoo) -> None:
    state = made(zoo).state_dict()
    for options in ({"seed": 1}, {"batch_size": 9}, {"split_seed": 1}, {"where": "run < 'r040'"}):
        with pytest.raises(GeneratorError, match="the state is of batches"):
            made(zoo, **options).load_state_dict(state)
    for step in (-1, 1.5, None):
        with pytest.raises(GeneratorError, match="step of a state"):
            made(zoo).load_state_dict(state | {"step": step})


class Line(LightningModule):
    """Learns a vector by momentum: its weights depend on all batches and their order."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(SIZE, 1)
        self.line.load_state_dict({"weight": torch.zeros(1, SIZE), "bias": torch.zeros(1)})
        self.seen: list[list[int]] = []

    def training_step(self, batch: Batch, number: int) -> torch.Tensor:
        self.seen.append(batch["place"].tolist())
        return (self.line(batch["codes"]) - batch["place"][:, None]).square().mean()

    def validation_step(self, batch: Batch, number: int) -> None:
        self.line(batch["codes"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4, momentum=0.9)


class Kept(Callback):
    """A checkpoint every so many steps, when Lightning's own callback writes them."""

    def __init__(self, every: int, path: Path) -> None:
        self.every, self.path = every, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.path)


class Killed(Callback):
    """Stops in the middle of a step, as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise InterruptedError


def train(zoo: catalog.Zoo, steps: int, *callbacks: Callback, memory: int = 2**31, **options: Any) -> Line:
    line = Line()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        val_check_interval=4,
    )
    trainer.fit(line, WeightDataModule(zoo, batch_size=8, memory=memory), weights_only=True, **options)
    return line


@pytest.mark.parametrize(("every", "killed"), [(1, 7), (3, 8), (5, 5)])
def test_training_that_was_killed_ends_with_the_same_bits(
    zoo: catalog.Zoo, tmp_path: Path, every: int, killed: int
) -> None:
    whole = train(zoo, 13)
    with pytest.raises(InterruptedError):
        train(zoo, 13, Kept(every, tmp_path / "0"), Killed(killed), memory=SMALL)
    for number, state in enumerate((killed // every * every, 12 // every * every)):
        path = tmp_path / str(number)
        assert torch.load(path, weights_only=True)["WeightDataModule"]["step"] == state
        with pytest.raises(InterruptedError):  # once more: what was resumed counts from the beginning
            train(zoo, 13, Kept(every, tmp_path / str(number + 1)), Killed(12), ckpt_path=path)
        rest = train(zoo, 13, ckpt_path=path)
        assert rest.seen == whole.seen[state:]
        assert torch.equal(rest.line.weight, whole.line.weight)
    assert len(whole.seen) == 13


# Bad input: typed, and before any weights are read


def test_bad_input_is_refused_before_weights_are_read(
    zoo: catalog.Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, rows = population(zoo), zoo.scan().collect()
    names = rows["run"].to_list()
    stranger = fit_codec(population(store(tmp_path / "other.zoo", np.random.default_rng(1).normal(size=(50, 30)))))
    mine = {"train": names[:9], "validation": names[8:10], "test": names[10:12]}
    cases: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (GeneratorError, "needs 8 lineages", zoo, {"rows": rows[:7]}),
        (GeneratorError, "1 lineages are in two splits", zoo, {"split": mine}),
        (GeneratorError, "column 'gap' is null in 1 of", zoo, {"conditions": ["gap"]}),
        (UnknownNameError, "unknown column 'temprature'", zoo, {"conditions": ["temprature"]}),
        (UnknownNameError, "has no frame 'universe'", zoo, {"frame": "universe"}),
        (GeneratorError, "was fitted on population", zoo, {"codec": stranger}),
        (GeneratorError, "was fitted on population", zoo, {"codec": fit_codec(found), "split_seed": 1}),
        (GeneratorError, "has its scaling", zoo, {"codec": fit_codec(found), "components": 3}),
        (UnknownNameError, "unknown codec", zoo, {"codec": "pcaa"}),
        (UnknownNameError, "unknown scaling", zoo, {"scaling": "max"}),
        (GeneratorError, "components must be", zoo, {"components": 3}),
        (QueryError, "no rows", zoo, {"where": "accuracy > 2"}),
        (GeneratorError, "a population has its rows", found, {"rows": rows}),
        (GeneratorError, "a population has its rows", found, {"held_out": 0.2}),
        (GeneratorError, "a population has its rows", found, {"split_seed": 2}),
        (GeneratorError, "batch_size must be an integer, 1 or more, got 0", zoo, {"batch_size": 0}),
        (GeneratorError, "seed must be an integer, 0 or more, got -1", zoo, {"seed": -1}),
        (GeneratorError, "memory must be an integer", zoo, {"memory": 1e9}),
    ]
    with counting(monkeypatch) as seen:
        for kind, said, where, options in cases:
            with pytest.raises(kind, match=said):
                WeightDataModule(where, **options)
        module = WeightDataModule(zoo)
        with pytest.raises(GeneratorError, match="fitted by setup"):
            _ = module.codec
        with pytest.raises(GeneratorError, match="0 or more, got -1"):
            module.batch(-1)
        assert seen == []


def test_a_fitted_codec_may_come_with_its_own_settings(zoo: catalog.Zoo) -> None:
    codec = fit_codec(population(zoo), codec="pca", scaling="tensor", components=3)
    same(made(zoo, codec=codec).batch(2), made(zoo, codec=codec, scaling="tensor", components=3).batch(2))


def test_a_null_in_held_out_rows_alone_is_found_too(zoo: catalog.Zoo) -> None:
    names = zoo.scan().collect()["run"].to_list()
    split = {"train": names[10:], "validation": names[7:8], "test": names[8:10]}
    with pytest.raises(GeneratorError, match="column 'gap' is null in 1 of 1 rows"):
        WeightDataModule(zoo, split=split, conditions=["gap"])
    split = {"train": names[10::2], "validation": names[0:2:2], "test": names[1:2]}
    with pytest.raises(GeneratorError, match="column 'phase' is IV-A in 1 of 1 values"):
        WeightDataModule(zoo, split=split, conditions=["phase"])


def test_a_module_may_come_from_a_path_or_a_population(zoo: catalog.Zoo) -> None:
    wanted = made(zoo, split_seed=3, held_out=0.2).batch(1)
    same(made(zoo.url, split_seed=3, held_out=0.2).batch(1), wanted)
    same(made(population(zoo, seed=3, held_out=0.2)).batch(1), wanted)
    same(made(zoo, rows=zoo.scan().collect().reverse(), split_seed=3, held_out=0.2).batch(1), wanted)


def test_lightning_is_loaded_when_the_module_is_asked_for() -> None:
    code = "import sys, generators; print(*{'torch', 'lightning', 'polars'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert generators.WeightDataModule is WeightDataModule
    assert not hasattr(generators, "nobody")
