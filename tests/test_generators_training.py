"""Training of flows: the same bits however it is interrupted, typed errors, looks at known samples, the log."""

from __future__ import annotations

import copy
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from torch import nn

from catalog.errors import CorruptError, GeneratorError, InvalidSpecError, SpecMismatchError, UnknownNameError
from catalog.store import Zoo
from generators.codec import fit_codec
from generators.flow.checkpoints import Checkpoints, VerifiedCheckpoints, checkpoints, newest, read_checkpoint
from generators.flow.drawing import FlowDraw, network_of, source_of
from generators.flow.fit import fit_flow, preview, run
from generators.flow.logs import COLUMNS, read_log, truncate
from generators.flow.looks import SAMPLES, Bench, look, quick, score, verdict
from generators.flow.module import learning_rate
from generators.flow.prepare import check_ceiling, prepare
from generators.flow.watchdogs import look_every
from generators.generator import TOGETHER, Generator
from generators.population import Population, population
from generators.recipe import DEFAULTS, RECIPES, SEEDS, FlowRecipe, recipe_of
from tests.generator_zoos import moons
from tests.processes import ROOT, wait_until

PLAIN = {name: value for name, value in DEFAULTS.items() if name not in ("codec", "conditions", "select")}
SMALL: dict[str, Any] = {  # whatever the presets are
    **PLAIN, "iterations": 60, "batch_size": 8, "width": 16, "depth": 1, "steps": 4, "dropout": 0.2, "seed": 3
}  # fmt: skip
OURS_FIELDS: dict[str, Any] = {"iterations": 12, "batch_size": 8, "width": 16, "depth": 1, "steps": 4}
OURS: dict[str, Any] = {**OURS_FIELDS, "seed": 3}


@pytest.fixture(scope="session")
def moons_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return moons(tmp_path_factory.mktemp("zoos"))


@pytest.fixture(scope="session")
def chosen(moons_zoo: Zoo) -> Population:
    return population(moons_zoo)


@pytest.fixture(scope="session")
def whole(chosen: Population, tmp_path_factory: pytest.TempPathFactory) -> tuple[Generator, Path]:
    """A training that nothing interrupted, and its folder."""
    out = tmp_path_factory.mktemp("whole")
    return fit_flow(chosen, out=out, checkpoint_every=0, **SMALL), out


def drawn(generator: Generator) -> FlowDraw:
    assert isinstance(generator.draw, FlowDraw)
    return generator.draw


def same(one: Generator, other: Generator) -> None:
    """All bits of two generators are the same."""
    first, second = drawn(one).network.state_dict(), drawn(other).network.state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert one.fingerprint == other.fingerprint
    assert one.history == other.history
    assert np.array_equal(one.sample(5, seed=1), other.sample(5, seed=1))


# Interruption


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [1, 7, 33, 59])
def test_a_training_goes_on_to_the_same_bits(
    chosen: Population, whole: tuple[Generator, Path], tmp_path: Path, at: int
) -> None:
    def stop(step: int, of: int, values: Any) -> None:
        if step >= at:
            raise Stopped

    with pytest.raises(Stopped):
        fit_flow(chosen, out=tmp_path, checkpoint_every=0, on_step=stop, **SMALL)
    assert len(checkpoints(tmp_path / "training")) == min(at - 1, 2)
    before = [path.name for path in checkpoints(tmp_path / "training")]
    steps: list[int] = []
    again = fit_flow(chosen, out=tmp_path, on_step=lambda step, of, values: steps.append(step), **SMALL)
    assert steps[0] == (int(before[0][:9]) if before else 0) + 1, "what was done is not done again"
    same(again, whole[0])
    assert (tmp_path / "log.csv").read_bytes() == (whole[1] / "log.csv").read_bytes()


def test_our_preset_goes_on_to_the_same_bits(chosen: Population, tmp_path: Path) -> None:
    """Its noise has the covariance of the codes, its network the symmetry of the architecture; both come back."""

    def stop(step: int, of: int, values: Any) -> None:
        if step == 8:
            raise Stopped

    whole = fit_flow(chosen, **OURS)
    with pytest.raises(Stopped):
        fit_flow(chosen, out=tmp_path, checkpoint_every=0, on_step=stop, **OURS)
    same(fit_flow(chosen, out=tmp_path, **OURS), whole)


def test_initialisation_is_the_seeds_alone(chosen: Population, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else draws numbers: a symmetry that is looked up for the first time is proven at random points."""
    from generators.flow import drawing

    recipe, codec = recipe_of("weightscape", OURS_FIELDS), fit_codec(chosen, scaling="coordinate")
    once = network_of(recipe, codec, 0, chosen.architecture, 5).state_dict()
    found = drawing.symmetry_of(chosen.architecture)
    monkeypatch.setattr(drawing, "symmetry_of", lambda _: (torch.rand(3), found)[1])
    again = network_of(recipe, codec, 0, chosen.architecture, 5).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in once.items())
    other = network_of(recipe, codec, 0, chosen.architecture, 6).state_dict()
    assert not all(torch.equal(value, other[name]) for name, value in once.items())


TRAINING = """
import sys
import catalog
from generators.flow.fit import fit_flow
from generators.population import population
fit_flow(population(catalog.open(sys.argv[1])), out=sys.argv[2], checkpoint_every=0, **{settings})
"""


def test_a_training_that_is_killed_goes_on_to_the_same_bits(
    chosen: Population, moons_zoo: Zoo, whole: tuple[Generator, Path], tmp_path: Path
) -> None:
    code = TRAINING.replace("{settings}", repr(SMALL))
    command = [sys.executable, "-W", "error", "-c", code, moons_zoo.url, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: checkpoints(tmp_path / "training") or process.poll() is not None)
    time.sleep(float(np.random.default_rng().uniform(0, 0.3)))  # anywhere, at each run of the tests somewhere else
    process.kill()
    said = process.communicate(timeout=60)[1]
    assert process.returncode in (-signal.SIGKILL, 0), said  # 0: it was through before
    assert newest(tmp_path / "training") is not None
    same(fit_flow(chosen, out=tmp_path, **SMALL), whole[0])
    assert (tmp_path / "log.csv").read_bytes() == (whole[1] / "log.csv").read_bytes()


class Terminated(BaseException):
    pass


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_leaves_a_checkpoint_of_the_step_it_came_in(
    chosen: Population, tmp_path: Path, number: signal.Signals, error: type[BaseException]
) -> None:
    def press(step: int, of: int, values: Any) -> None:
        if step == 20:
            signal.raise_signal(number)

    def terminate(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)  # as the command does
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    try:
        with pytest.raises(error):
            fit_flow(chosen, out=tmp_path, on_step=press, **SMALL)
        assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [path.name for path in checkpoints(tmp_path / "training")] == ["000000020.ckpt"]


def test_a_checkpoint_that_is_damaged_is_passed_over(
    chosen: Population, whole: tuple[Generator, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(step: int, of: int, values: Any) -> None:
        if step == 30:
            raise Stopped

    with pytest.raises(Stopped):
        fit_flow(chosen, out=tmp_path, checkpoint_every=0, on_step=stop, **SMALL)
    last, _ = checkpoints(tmp_path / "training")
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    same(fit_flow(chosen, out=tmp_path, **SMALL), whole[0])
    assert f"{last} is no whole checkpoint" in caplog.text
    for path in checkpoints(tmp_path / "training"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptError, match="no other is left"):
        fit_flow(chosen, out=tmp_path, **SMALL)
    assert fit_flow(chosen, out=tmp_path, resume=False, **SMALL).fingerprint == whole[0].fingerprint


def test_checkpoints_hold_tensors_and_nothing_that_runs(tmp_path: Path) -> None:
    files = VerifiedCheckpoints()
    files.save_checkpoint({"x": torch.arange(3), "y": [1, 2.5, "z"]}, tmp_path / "one.ckpt")
    found = files.load_checkpoint(tmp_path / "one.ckpt")
    assert torch.equal(found["x"], torch.arange(3))
    assert found["y"] == [1, 2.5, "z"]
    files.save_checkpoint({"x": Path("code")}, tmp_path / "two.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        files.load_checkpoint(tmp_path / "two.ckpt")
    assert not list(tmp_path.glob(".tmp-*"))
    (tmp_path / "three.ckpt").write_bytes((tmp_path / "one.ckpt").read_bytes() + b"x")
    with pytest.raises(CorruptError, match=r"three\.ckpt"):
        read_checkpoint(tmp_path / "three.ckpt")


def test_another_training_in_the_folder_is_refused(chosen: Population, whole: tuple[Generator, Path]) -> None:
    with pytest.raises(SpecMismatchError, match="width is 16 there, 32 was asked for"):
        fit_flow(chosen, out=whole[1], **{**SMALL, "width": 32})
    with pytest.raises(SpecMismatchError, match="seed is 3 there, 4"):
        fit_flow(chosen, out=whole[1], **{**SMALL, "seed": 4})
    other = population(chosen.zoo, epoch=1)
    with pytest.raises(SpecMismatchError, match="population is"):
        fit_flow(other, out=whole[1], **SMALL)


# Bad input


def test_a_loss_that_is_not_finite_stops_the_training(chosen: Population, tmp_path: Path) -> None:
    codec = fit_codec(chosen, scaling="none")
    huge = replace(codec, scale=codec.scale * np.float32(1e-25))  # codes whose squares are infinite
    with pytest.raises(GeneratorError, match=r"the loss is (inf|nan) at iteration 1 of 60, learning rate 0.*smaller"):
        fit_flow(chosen, out=tmp_path, codec=huge, force=True, **SMALL)
    assert checkpoints(tmp_path / "training") == []
    assert read_log((tmp_path / "log.csv").read_text()) == []


def test_a_training_that_diverges_says_where(chosen: Population) -> None:
    wild = {**SMALL, "learning_rate": 10.0, "clip": 0.0, "schedule": "constant", "scaling": "none", "judge_every": 60}
    done: list[int] = []
    huge = replace(fit_codec(chosen, scaling="none"), scale=np.full(chosen.layout.num_parameters, 1e-17, np.float32))
    with pytest.raises(GeneratorError) as error:
        fit_flow(chosen, codec=huge, force=True, on_step=lambda step, of, values: done.append(step), **wild)
    assert f"at iteration {len(done) + 1} of 60, learning rate 10" in str(error.value)


class Spoiled(lightning.Callback):
    """Makes a parameter NaN behind the 30th step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 30:
            next(pl_module.network.parameters()).data[0] = math.nan


def test_parameters_that_are_not_finite_never_become_a_checkpoint(chosen: Population, tmp_path: Path) -> None:
    ready, keeper = prepare(chosen, FlowRecipe(iterations=60, width=16), 0), Checkpoints(tmp_path, 0)
    with pytest.raises(GeneratorError, match=r"parameters of the network are not finite at iteration 30"):
        run(ready, [Spoiled(), keeper], keeper.stop, "cpu", None)
    assert [path.name for path in checkpoints(tmp_path)] == ["000000029.ckpt", "000000028.ckpt"]


def test_what_cannot_be_trained_is_said_before(chosen: Population, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'width'"):
        fit_flow(chosen, out=tmp_path, widht=3)
    with pytest.raises(UnknownNameError, match="unknown preset of a flow 'best'"):
        fit_flow(chosen, out=tmp_path, preset="best")
    with pytest.raises(InvalidSpecError, match="seed must be"):
        fit_flow(chosen, out=tmp_path, seed=-1)
    with pytest.raises(InvalidSpecError, match="device must be"):
        fit_flow(chosen, out=tmp_path, device="abacus")
    with pytest.raises(UnknownNameError, match="unknown column 'acc'"):
        fit_flow(chosen, conditions="acc", **SMALL)
    with pytest.raises(GeneratorError, match="fitted on population"):
        fit_flow(chosen, codec=fit_codec(population(chosen.zoo, epoch=1)), **SMALL)


def test_a_codec_that_loses_the_networks_is_no_go() -> None:
    trip = {"before": 0.9, "after": 0.55, "chance": 0.5}
    with pytest.raises(GeneratorError, match=r"accuracy 0\.900, 0\.550 after encoding.*force=True"):
        check_ceiling(trip)
    check_ceiling({**trip, "after": 0.65})
    check_ceiling({"before": 0.5, "after": 0.5, "chance": 0.5})  # networks that never were any good


# What is trained


@pytest.mark.parametrize("preset", RECIPES)
def test_presets_train(chosen: Population, preset: str) -> None:
    short: dict[str, Any] = {"iterations": 4, "width": 16, "steps": 2, "seed": 0}
    made = fit_flow(chosen, preset=preset, **short)
    assert made.settings == {**RECIPES[preset]().to_json(), **short}
    assert np.isfinite(made.sample(3)).all()


def test_the_rate_warms_up_and_falls_to_its_end() -> None:
    recipe = FlowRecipe(learning_rate=0.1, final_rate=0.01, warmup=4, iterations=104)
    rates = [learning_rate(recipe, step) for step in range(105)]
    assert np.allclose(rates[:4], [0.025, 0.05, 0.075, 0.1])
    assert np.isclose(rates[54], (0.1 + 0.01) / 2)
    assert np.isclose(rates[104], 0.01)
    network = nn.Linear(1, 1)  # torch's own schedule
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, 0.01)
    for rate in rates[4:104]:
        assert np.isclose(rate, schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert {learning_rate(replace(recipe, schedule="constant"), step) for step in range(4, 104)} == {0.1}


def test_a_training_is_the_plain_loop(chosen: Population) -> None:
    """What Lightning does is what twenty lines of torch do: the same batches, the same bits."""
    from generators.data import WeightDataModule
    from generators.flow.average import Average
    from generators.flow.loss import flow_loss
    from generators.flow.networks import build_network

    given = {**SMALL, "iterations": 20, "warmup": 5, "clip": 0.5, "ema": 0.9, "select": "last"}
    made = fit_flow(chosen, **given)
    recipe = drawn(made).recipe
    codec = fit_codec(chosen)
    data = WeightDataModule(chosen, codec=codec, batch_size=8, seed=3)
    data.setup()
    torch.manual_seed(3)
    network = build_network(recipe, codec.width)
    average, source = Average(network, 0.9), source_of(codec, recipe, 3)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.95), weight_decay=1e-5, fused=True)
    for step in range(20):
        loss = flow_loss(network, data.batch(step)["codes"], None, source, recipe, 3, step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step)
        optimizer.step()
        average.update(network)
    for name, value in drawn(made).network.named_parameters():
        assert torch.equal(value, average.values[name]), name


def test_conditions_are_learned(chosen: Population, tmp_path: Path) -> None:
    made = fit_flow(chosen, conditions="label_noise", **SMALL)
    assert made.conditions is not None
    assert made.conditions.names == ("label_noise",)
    some = [made.sample(4, seed=1, conditions=asked) for asked in ({"label_noise": 0.0}, {"label_noise": 0.1}, {})]
    assert not np.array_equal(some[0], some[1])
    assert not np.array_equal(some[0], some[2])


def test_a_preview_says_what_a_training_takes(chosen: Population, tmp_path: Path) -> None:
    costs: list[Any] = []
    cost = preview(chosen, **SMALL)
    fit_flow(chosen, on_cost=costs.append, **SMALL)
    assert (cost.models, cost.iterations, cost.done, cost.looks) == (20, 60, 0, 10)
    assert replace(cost, seconds=costs[0].seconds) == costs[0]
    assert 0 < cost.seconds < 60
    assert cost.ceiling > 0.7


# Drawing


def test_a_sample_depends_on_no_other(whole: tuple[Generator, Path]) -> None:
    made = whole[0]
    many = made.sample(TOGETHER + 9, seed=5)
    assert np.array_equal(made.sample(3, seed=5, first=TOGETHER - 1), many[TOGETHER - 1 : TOGETHER + 2])
    assert np.array_equal(made.sample(1, seed=5, first=100), many[100:101])
    assert np.array_equal(made.sample(len(many), seed=5, threads=2), many)
    numbers = np.array([7, 2, TOGETHER + 1])
    assert np.array_equal(made.draw(numbers, 5, None), many[numbers])
    assert not np.array_equal(made.sample(3, seed=6), many[:3])
    adaptive = replace(drawn(made), recipe=replace(drawn(made).recipe, solver="adaptive"))
    assert np.array_equal(adaptive(np.arange(3), 5, None)[1:2], adaptive(np.array([1]), 5, None))


def test_the_noise_is_that_of_the_codes(chosen: Population) -> None:
    """A matched source has the deviation of the codes: of each coordinate, and 1 for components, which have it."""
    weights = chosen.read()
    for name, scaling in (("identity", "global"), ("identity", "coordinate"), ("pca", "global")):
        codec = fit_codec(chosen, codec=name, scaling=scaling, components=5 if name == "pca" else 0)
        source = source_of(codec, FlowRecipe(source="matched", source_scale=2.0), 0)
        spread = codec.encode(weights).std(0)
        assert np.allclose(source.scale, 2 * spread, rtol=0.1)  # n or n-1


# Looks


class Known(nn.Module):
    """The velocity of a linear path that ends where it is told, from anywhere."""

    def __init__(self, ends: torch.Tensor) -> None:
        super().__init__()
        self.ends = ends

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        ends = self.ends[torch.arange(len(x)) % len(self.ends)]
        return (ends - x) / (1 - t[:, None])


@pytest.fixture(scope="session")
def bench(chosen: Population) -> Bench:
    codec = fit_codec(chosen)
    recipe = FlowRecipe(solver="euler", steps=8)
    return Bench.of(chosen, codec, None, source_of(codec, recipe, 0), recipe, 0, torch.device("cpu"))


def test_looks_tell_copies_from_new_networks(bench: Bench, chosen: Population) -> None:
    codes = torch.from_numpy(bench.codec.encode(chosen.read()))
    copies = look(Known(codes), bench)
    assert copies["nearest"] < 1e-3
    assert copies["share"] == 0
    assert copies["accuracy"] >= bench.least
    assert np.isclose(copies["rms"], 1, atol=0.15)
    assert "copies its training set" in verdict(copies, bench.least)
    others = torch.from_numpy(bench.codec.encode(chosen.read("validation")))
    new = look(Known(others), bench)
    distances = np.linalg.norm(chosen.read("validation")[:, None] - chosen.read()[None], axis=2).min(1)
    each = (distances / bench.spacing)[np.arange(SAMPLES) % len(distances)]
    assert np.isclose(new["nearest"], np.median(each), rtol=1e-4)
    assert score(new) > score(copies), "what is new and works is better than copies"
    mean = look(Known(codes.mean(0, keepdim=True)), bench)
    assert mean["rms"] < 1e-3
    assert "collapses to the mean" in verdict(mean, bench.least)
    still = look(Still(), bench)
    assert still["velocity"] == 0
    assert still["finite"] == 1
    assert "velocity has all but vanished" in verdict(still, bench.least)


class Still(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return torch.zeros_like(x)


class Broken(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return x * (math.nan if len(x) == SAMPLES else 1)


def test_samples_that_are_not_finite_do_not_work(bench: Bench) -> None:
    broken = look(Broken(), bench)
    assert broken["finite"] == 0
    assert broken["accuracy"] == 0
    assert broken["share"] == 0
    assert "100% of the samples are not finite" in verdict(broken, bench.least)


def test_the_spacing_is_between_lineages(chosen: Population, moons_zoo: Zoo) -> None:
    """With all checkpoints of a run in it, the nearest one of the same run does not count."""
    every = population(moons_zoo, every_epoch=True)
    codec, recipe = fit_codec(every), FlowRecipe()
    bench = Bench.of(every, codec, None, source_of(codec, recipe, 0), recipe, 0, torch.device("cpu"))
    weights, runs = every.read(), every.split("train")["run"].to_numpy()
    distances = np.linalg.norm(weights[:, None].astype(float) - weights[None], axis=2)
    distances[runs[:, None] == runs[None]] = np.inf
    assert np.isclose(bench.spacing, np.median(distances.min(1)), rtol=1e-5)


def test_looks_never_see_test_data(bench: Bench) -> None:
    data = bench.population.data
    assert bench.samples.name == "validation"
    assert torch.equal(torch.cat([bench.fitting.x, bench.samples.x]), torch.from_numpy(data.train_x))


def test_the_best_look_is_the_generator(chosen: Population, whole: tuple[Generator, Path]) -> None:
    made = whole[0]
    history = made.history
    assert [one["iteration"] for one in history] == list(range(6, 61, 6))
    best = max(range(len(history)), key=lambda place: (score(history[place]), -place))
    assert [one["chosen"] for one in history] == [place == best for place in range(len(history))]
    last = fit_flow(chosen, select="last", **SMALL)
    assert [one["chosen"] for one in last.history] == [False] * 9 + [True]
    assert [score(one) for one in last.history] == [score(one) for one in history]
    first, second = (list(drawn(one).network.parameters()) for one in (made, last))
    assert all(map(torch.equal, first, second)) == (best == len(history) - 1)


def test_a_look_takes_few_evaluations_and_its_own_noise() -> None:
    assert quick(FlowRecipe(solver="rk4", steps=99)).steps == 16
    assert quick(FlowRecipe(solver="euler", steps=10)).steps == 10
    assert quick(FlowRecipe(solver="adaptive")).solver == "midpoint"
    assert SEEDS > 2**32
    assert look_every(FlowRecipe(iterations=5)) == 1
    assert look_every(FlowRecipe(iterations=500, judge_every=7)) == 7


# The log


def test_the_log_has_means_and_looks(whole: tuple[Generator, Path]) -> None:
    text = (whole[1] / "log.csv").read_text()
    rows = read_log(text)
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert [row["iteration"] for row in rows] == list(range(1, 61))
    looks = [row for row in rows if "share" in row]
    for seen, kept in zip(looks, whole[0].history, strict=True):
        assert all(seen[name] == kept[name] for name in ("iteration", "share", "nearest", "held_out_loss"))
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["learning_rate"] < rows[0]["learning_rate"]


def test_a_row_is_the_mean_since_the_last(chosen: Population, tmp_path: Path) -> None:
    """Also where a checkpoint was written between two rows."""
    each: dict[int, float] = {}

    def keep(step: int, of: int, values: Any) -> None:
        each[step] = values["loss"]

    def stop(step: int, of: int, values: Any) -> None:
        if step == 10:
            raise Stopped

    long = {**SMALL, "iterations": 200, "judge_every": 200}
    fit_flow(chosen, on_step=keep, **long)
    assert list(each) == list(range(2, 201, 2))
    with pytest.raises(Stopped):
        fit_flow(chosen, out=tmp_path, checkpoint_every=0, on_step=stop, **long)
    assert checkpoints(tmp_path / "training")[0].name == "000000009.ckpt"
    before = dict(each)
    each.clear()
    fit_flow(chosen, out=tmp_path, on_step=keep, **long)
    assert each == {step: loss for step, loss in before.items() if step >= 10}


def test_a_log_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    truncate(path, 0)
    header = path.read_text()
    assert header == ",".join(COLUMNS) + "\n"
    path.write_text(header + "1,.5\n2,.4\n3,.3\n1")
    truncate(path, 2)
    assert path.read_text() == header + "1,.5\n2,.4\n"
    path.write_text("something else\n1,2\n")
    truncate(path, 2)
    assert path.read_text() == header


def test_a_mirror_on_wandb_offline(chosen: Population, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    fit_flow(chosen, out=tmp_path, wandb="flows", iterations=4, width=8, steps=2)
    (stored,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"held_out_loss" in stored.read_bytes()
    assert len(read_log((tmp_path / "log.csv").read_text())) == 4


def test_defaults_of_a_recipe_are_its_fields() -> None:
    assert json.loads(json.dumps(FlowRecipe().to_json())) == {**DEFAULTS, "conditions": []}
    assert copy.deepcopy(FlowRecipe()) == FlowRecipe()
