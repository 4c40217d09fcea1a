"""Specs are checked when made, survive JSON, and determine their runs."""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import InvalidSpecError, UnknownNameError, ZooError
from zoo.architectures import ARCHITECTURES
from zoo.plan import Plan, Run, make_plan
from zoo.presets import PRESETS, load_spec
from zoo.spec import HYPERPARAMETERS, Range, ZooSpec


def runs_of(plan: Plan) -> dict[str, Run]:
    """All runs by id, found by walking the shards; fails if one is in two."""
    found = [
        run
        for name, variant in plan.variants.items()
        for shard in range(variant.grid.num_shards)
        for run in plan.shard(name, shard)
    ]
    assert max(Counter(run.run for run in found).values()) == 1
    return {run.run: run for run in found}


def tiny(**changes: Any) -> ZooSpec:
    return dataclasses.replace(PRESETS["tiny"](), **changes)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json_and_plan(name: str) -> None:
    spec = PRESETS[name]()
    text = json.dumps(spec.to_json())
    back = ZooSpec.from_json(json.loads(text))
    assert json.dumps(back.to_json()) == text
    ids = runs_of(make_plan(spec))
    assert len(ids) == spec.num_runs
    assert ids.keys() == runs_of(make_plan(back)).keys()


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "optimizer": st.sampled_from(["sgd", "adamw"]),
    "loss_function": st.sampled_from(["cross_entropy", "mse"]),
    "learning_rate": st.floats(1e-6, 1e3),
    "batch_size": st.integers(1, 2**20),
    "dropout": st.floats(0, 0.999),
    "width": st.integers(1, 8192),
    "initialization": st.sampled_from(["torch", "orthogonal"]),
    "min_steps": st.integers(0, 1000),
}
axes = st.dictionaries(st.sampled_from(sorted(VALUES)), st.none(), max_size=4).flatmap(
    lambda chosen: st.fixed_dictionaries(
        {name: st.lists(VALUES[name], min_size=1, max_size=3, unique=True).map(tuple) for name in chosen}
    )
)


@given(axes=axes, seeds=st.sets(st.integers(0, 2**63 - 1), min_size=1, max_size=3), drawn=st.none() | st.integers(1, 9))
def test_specs_survive_json(axes: dict[str, Any], seeds: set[int], drawn: int | None) -> None:
    if drawn:
        axes = {**axes, "weight_decay": Range(1e-6, 1.0, log=True), "epochs": Range(2, 5)}
    load = next(iter(axes), None)
    spec = ZooSpec("a zoo", axes=axes, seeds=tuple(seeds), cells=drawn, load=load, citation='"q" é')
    back = ZooSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert back.to_json() == spec.to_json()
    assert (back.axes, back.seeds, back.num_runs, back.load) == (spec.axes, spec.seeds, spec.num_runs, load)


BAD: list[dict[str, Any]] = [
    {"family": "mpl"}, {"family": "__import__('os')"}, {"family": ["mlp"]}, {"family": None}, {"dataset": "digit"},
    {"dataset": 3}, {"dtype": "int8"}, {"dtype": []}, {"name": ""}, {"name": "a\nb"}, {"name": 3}, {"name": "x" * 999},
    {"numbers": {"width": 10**9}}, {"numbers": {"depth": -1}}, {"numbers": {"channels": 8}}, {"numbers": [1]},
    {"numbers": {"activation": "__import__('os')"}}, {"numbers": {1: 2}}, {"dataset_options": {1: 2}}, {"licence": 3},
    {"hyperparameters": {"optimizer": "sdg"}}, {"hyperparameters": {"optimizer": []}}, {"citation": None},
    {"hyperparameters": {"learning_rate": math.nan}}, {"hyperparameters": {"learning_rate": math.inf}},
    {"hyperparameters": {"learning_rate": 10**400}}, {"hyperparameters": {"learning_rate": 0}},
    {"hyperparameters": {"learning_rate": "0.1"}}, {"hyperparameters": {"learning_rate": True}},
    {"hyperparameters": {"dropout": 1.0}}, {"hyperparameters": {"batch_size": 0}}, {"hyperparameters": {"epochs": -1}},
    {"hyperparameters": {"batch_size": 8.0}}, {"hyperparameters": {"schedule": "cos"}}, {"hyperparameters": {"lr": 1}},
    {"hyperparameters": None}, {"axes": {}, "load": "width"}, {"load": ["width"]}, {"load": "depth"},
    {"axes": {"width": ()}}, {"axes": {"width": (4, 4)}}, {"axes": {"width": 4}}, {"axes": {"width": "48"}},
    {"axes": {"width": ([4],)}}, {"axes": {"wdith": (4,)}}, {"axes": {"width": (4, 10**9)}},
    {"axes": {"width": (1, 1.0)}},
    {"axes": {"width": Range(4, 8)}}, {"axes": {"width": range(10**7 + 1)}}, {"axes": {"learning_rate": (math.nan,)}},
    {"axes": {"width": Range(4, 10**9)}, "cells": 3}, {"axes": {"activation": Range(0, 1)}, "cells": 3},
    {"axes": {"batch_size": Range(8.0, 64.0)}, "cells": 3}, {"cells": 0}, {"cells": 2.0}, {"cells": 10**9},
    {"seeds": ()}, {"seeds": (0, 0)}, {"seeds": (-1,)}, {"seeds": ("0",)}, {"seeds": 3}, {"seeds": (2**63,)},
    {"checkpoints": (0, 5)}, {"checkpoints": (1, 0)}, {"checkpoints": (0, 0)}, {"checkpoints": (-1,)},
    {"checkpoints": (1.0,)}, {"train_samples": 0}, {"split_seed": -1}, {"cells_seed": 1.5},
    {"axes": {"epochs": (1, 2)}, "load": None, "temperature": None},
    {"axes": {n: tuple(range(1, 999)) for n in ("width", "batch_size", "epochs")}, "checkpoints": ()},
]  # fmt: skip  # one impossible wish after another


@pytest.mark.parametrize("change", BAD, ids=lambda change: str(change)[:60])
def test_bad_specs_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ZooError) as caught:
        tiny(**{"load": None, "temperature": None, **change})
    assert isinstance(caught.value, InvalidSpecError | UnknownNameError)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"family": "mpl"}, "known: cnn, mlp"),
        ({"dataset": "digit"}, "known: arrays, digits, moons; did you mean 'digits'"),
        ({"hyperparameters": {"optimizer": "sdg"}}, "one of sgd, adamw, got 'sdg'"),
        ({"axes": {"lr": (1,)}}, "known: activation, "),
        ({"numbers": {"width": 10**9}}, "width must be an integer from 1 to 8192, got 1000000000"),
        ({"numbers": {"depth": -1}}, "depth must be an integer from 0 to 64, got -1"),
        ({"hyperparameters": {"learning_rate": math.nan}}, "at most 1000, got nan"),
        ({"axes": {"width": ()}}, "the grid is empty"),
        ({"checkpoints": (0, 5)}, "epochs from 0 to 4, got"),
        ({"axes": {"width": Range(4, 8)}}, "set cells to their number"),
        ({"load": "width", "temperature": "width"}, "two different axes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_said(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ZooError) as caught:
        tiny(**{"load": None, "temperature": None, **change})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "ends",
    [(2, 1), (1, 1), (math.nan, 1), (0, math.inf), (0, 1, True), ("0", 1), (0, 10**400), (0, 1, "log"), (False, 1)],
)
def test_bad_ranges_are_refused(ends: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidSpecError, match="finite low < high"):
        Range(*ends)


@given(st.integers(-50, 50), st.integers(1, 50), st.floats(0, 1, exclude_max=True))
def test_range_of_integers(low: int, width: int, fraction: float) -> None:
    value = Range(low, low + width).at(fraction)
    assert type(value) is int
    assert low <= value <= low + width
    assert Range(low, low + width).at(0.0) == low
    assert Range(low, low + width).at(1 - 1e-12) == low + width


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "a spec is a JSON object, got list"),
        ({"spec_format": 2, "name": "x"}, "install a newer weightscape"),
        ({"spec_format": "1", "name": "x"}, "spec_format must be"),
        ({"spec_format": 0, "name": "x"}, "spec_format must be"),
        ({}, "a spec needs a name"),
        ({"name": "x", "widht": 3}, "unknown field of a spec 'widht'"),
        ({"name": "x", "axes": {"width": {"low": 1, "hihg": 2}}, "cells": 2}, "wrong shape"),
        ({"name": "x", "axes": 3}, "axes must be a mapping"),
        ({"name": "x", "axes": {"width": {"low": 9, "high": 2}}, "cells": 2}, "finite low < high"),
    ],
)
def test_bad_json_is_refused(content: Any, said: str) -> None:
    with pytest.raises(ZooError) as caught:
        ZooSpec.from_json(content)
    assert said in str(caught.value)


def test_specs_from_files(tmp_path: Path) -> None:
    path = tmp_path / "zoo.json"
    path.write_text(json.dumps(tiny().to_json()))
    assert load_spec(str(path)).to_json() == tiny().to_json()
    for name, text, said in (
        ("no.json", None, "no spec file"),
        ("cut.json", '{"name": ', "cannot read a spec"),
        ("deep.json", "[" * 100_000, "cannot read a spec"),
        ("bytes.json", "\udcff", "cannot read a spec"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text, errors="surrogateescape")
        with pytest.raises(InvalidSpecError, match=said):
            load_spec(str(tmp_path / name))
    with pytest.raises(UnknownNameError, match=r"known: SPEC\.json, cnn_small, demo, lineages, phases_small, tiny"):
        load_spec("tinny")


def test_names_of_axes_do_not_clash() -> None:
    columns = {"run", "cell", "seed", "family", "epoch", "step", "progress", "load", "temperature", "status", "reason"}
    for family in ARCHITECTURES.values():
        assert not set(family.numbers) & set(HYPERPARAMETERS)
        assert not {*family.numbers, *HYPERPARAMETERS} & columns


# Plans


def test_ids_are_what_they_were() -> None:
    """These may only change with the data or with what training does: ids seed the runs and name them for ever."""
    spec = ZooSpec("ids", seeds=(3,), numbers={"width": 4}, axes={"learning_rate": (0.05, 0.01)})  # one is the default
    found = {run.values["learning_rate"]: run.run for run in runs_of(make_plan(spec)).values()}
    assert found == {0.05: "4eff5073f1c8351e", 0.01: "ac6ecab32a200375"}


def test_an_id_depends_on_neither_place_nor_companions() -> None:
    ids = set(runs_of(make_plan(tiny())))
    turned = tiny(axes={"batch_size": (64, 8), "width": (8,)}, seeds=(2, 0), checkpoints=(4,), name="other")
    assert len(set(runs_of(make_plan(turned)))) == 4
    assert set(runs_of(make_plan(turned))) < ids
    written_out = ZooSpec.from_json(json.loads(json.dumps(tiny().to_json())))
    assert set(runs_of(make_plan(written_out))) == ids


OTHER: dict[str, Any] = {
    "optimizer": "adamw", "loss_function": "mse", "learning_rate": 0.01, "momentum": 0.5, "beta2": 0.9,
    "epsilon": 1e-6, "weight_decay": 0.1,
    "schedule": "cosine", "schedule_period": 0.5, "schedule_decay": 0.5, "batch_size": 4, "epochs": 5, "min_steps": 9,
    "label_noise": 0.1, "data_fraction": 0.5, "dropout": 0.1, "initialization": "orthogonal",
    "initialization_gain": 2.0,
}  # fmt: skip  # a table


def test_an_id_changes_with_everything_that_changes_the_run() -> None:
    assert OTHER.keys() == HYPERPARAMETERS.keys()
    base = ZooSpec("x", dataset="moons")
    changed = [dataclasses.replace(base, hyperparameters={name: value}) for name, value in OTHER.items()]
    changed += [dataclasses.replace(base, numbers={"width": 5}), dataclasses.replace(base, seeds=(1,))]
    changed += [
        dataclasses.replace(base, split_seed=1),
        dataclasses.replace(base, dataset_options={"noise": 0.2}),
        base,
    ]
    found = [*(run for spec in changed for run in runs_of(make_plan(spec)).values())]
    assert len({run.run for run in found}) == len(changed)
    assert len({run.cell for run in found}) == len(changed) - 1  # a seed is no cell


def test_phases_small_is_the_grid_of_168() -> None:
    plan = make_plan(PRESETS["phases_small"]())
    found = runs_of(plan).values()
    cells = Counter((run.architecture.numbers["width"], run.values["batch_size"]) for run in found)
    assert cells == {(w, b): 3 for w in (2, 4, 8, 16, 32, 64, 128) for b in (4, 8, 16, 32, 64, 128, 256, 512)}
    assert all(run.epochs * run.updates >= 1500 and run.checkpoints[-1] == run.epochs for run in found)
    assert {run.architecture.numbers["activation"] for run in found} == {"tanh"}
    by_batch = {run.values["batch_size"]: run for run in found}
    assert by_batch[4].epochs == 60
    assert by_batch[512].epochs == 750  # 2 updates an epoch
    assert by_batch[512].checkpoints == (0, 12, 62, 188, 375, 562, 750)


def test_cnn_small_is_300_networks_with_10_checkpoints() -> None:
    found = runs_of(make_plan(PRESETS["cnn_small"]()))
    assert len(found) == 300
    assert {len(run.checkpoints) for run in found.values()} == {10}
    for name, values in PRESETS["cnn_small"]().axes.items():
        taken = {{**run.values, **run.architecture.numbers}[name] for run in found.values()}
        if isinstance(values, Range):
            assert len(taken) == 300
            assert values.low <= min(taken) < max(taken) <= values.high
        else:
            assert taken == set(values)


def test_more_random_cells_keep_the_first_ones() -> None:
    spec = PRESETS["cnn_small"]()
    few, more = (set(runs_of(make_plan(dataclasses.replace(spec, cells=n)))) for n in (5, 9))
    assert few < more
    assert not few & set(runs_of(make_plan(dataclasses.replace(spec, cells=5, cells_seed=1))))


def test_a_range_on_a_fraction_gives_fractions() -> None:
    found = runs_of(make_plan(tiny(axes={"label_noise": Range(0, 1)}, cells=20, load=None, temperature=None))).values()
    assert 0 < min(run.values["label_noise"] for run in found) < max(run.values["label_noise"] for run in found) < 1


def test_rows_say_when_each_checkpoint_was() -> None:
    plan = make_plan(tiny(hyperparameters={"epochs": 4, "min_steps": 200, "data_fraction": 0.58}))
    for name, runs in plan.runs.items():
        rows = plan.rows(runs)
        assert rows.height == 3 * len(runs) == 3 * len(plan.runs[name])
        assert rows["load"].equals(rows["width"].alias("load"))
        for row in rows.iter_rows(named=True):
            # 0.58 * 750 is a little less in floating point
            updates = 435 // row["batch_size"]
            assert row["step"] == row["epoch"] * updates
        assert rows.filter(progress=1.0)["step"].min() >= 200  # type: ignore[operator]  # it has rows


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(InvalidSpecError, match="batch_size 1024 exceeds the 750 training samples"):
        make_plan(tiny(axes={"batch_size": (1024,)}, load=None))
    with pytest.raises(InvalidSpecError, match="single sample"):
        make_plan(ZooSpec("x", "cnn", {"norm": "batch"}, hyperparameters={"batch_size": 1}))
