"""Importing zoos of others: what is read is what was written, for every format and its quirks. No torch."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import catalog
from catalog import grid
from catalog.errors import SourceError, SpecMismatchError, UnknownNameError
from catalog.export import export_safetensors
from catalog.importers import IMPORTERS, ImportReport, import_zoo, told
from catalog.importers.writer import plan
from catalog.summary import find_row, summary
from tests.import_sources import (
    STEPS,
    Truth,
    check,
    labelled_folder,
    prefixed,
    ray_zoo,
    record,
    repositories,
    save_safetensors,
    small_cnn_zoo,
    tensors,
    trial_name,
    weights_folder,
)

ROOT = Path(__file__).parent.parent


def ray_of_safetensors(root: Path) -> Truth:
    return ray_zoo(root, save=save_safetensors, state="model.safetensors")


SOURCES: dict[str, tuple[str, Callable[[Path], Truth]]] = {
    "small_cnn": ("small_cnn", small_cnn_zoo),
    "ray": ("ray", ray_of_safetensors),
    "hf": ("hf", repositories),
    "folder with a table": ("folder", weights_folder),
    "folder with labels": ("folder", labelled_folder),
}


def test_every_importer_has_a_source_here() -> None:
    assert {name for name, _ in SOURCES.values()} == set(IMPORTERS)


@pytest.mark.parametrize("kind", SOURCES)
def test_rows_in_are_rows_out(kind: str, tmp_path: Path) -> None:
    """Detected, imported, verified; every tensor is the one that was written; no row is lost without a word."""
    expected, make = SOURCES[kind]
    truth = make(tmp_path / "source")
    planned = import_zoo(tmp_path / "source", tmp_path / "zoo", dry_run=True)
    assert not (tmp_path / "zoo").exists()
    seen: list[tuple[int, int]] = []
    report = import_zoo(
        tmp_path / "source",
        tmp_path / "zoo",
        licence="CC-BY-4.0",
        citation="@misc{x}",
        progress=lambda done, of: seen.append((done, of)),
    )
    zoo = catalog.open(tmp_path / "zoo")
    table = check(zoo, truth)
    assert report.format == expected
    assert report.stored == len(truth) == report.members - len(report.failed)
    assert len(table) == report.members + report.missing == seen[-1][0] == seen[-1][1]
    assert not catalog.verify(zoo.url).problems
    assert planned == dataclasses.replace(
        report, zoo=planned.zoo, dry_run=True, stored=planned.stored, failed=planned.failed
    )
    assert planned.stored >= report.stored  # weights that are not finite are seen when they are read
    info = summary(zoo)["info"]
    assert (info["licence"], info["citation"], info["members"]) == ("CC-BY-4.0", "@misc{x}", report.members)
    assert json.loads(json.dumps(report.to_json()))["stored"] == len(truth)


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_call_again_changes_nothing(kind: str, tmp_path: Path) -> None:
    SOURCES[kind][1](tmp_path / "source")
    report = import_zoo(tmp_path / "source", tmp_path / "zoo")
    digest = catalog.verify(tmp_path / "zoo").digest
    assert import_zoo(tmp_path / "source", tmp_path / "zoo") == report
    assert catalog.verify(tmp_path / "zoo").digest == digest


# The Small CNN Zoo


def test_small_cnn_columns_and_losses(tmp_path: Path) -> None:
    truth = small_cnn_zoo(tmp_path / "mnist", zipped=False)
    report = import_zoo(tmp_path / "mnist", tmp_path / "zoo")
    zoo = catalog.open(tmp_path / "zoo")
    table = zoo.table()
    assert report.variants == {"net": (4, 9, zoo.layout.size)}
    assert zoo.name == "mnist"
    first = min(run for run, _ in truth)
    rows = table.filter(run=first)
    assert rows["epoch"].to_list() == list(STEPS)
    assert rows["test_accuracy"].to_list() == [step / 100 for step in STEPS]
    assert rows["activation"].unique().to_list() == ["tanh"]
    assert rows["learning_rate"].dtype == pl.Float64
    assert not {"modeldir", "step", "laststep", "config_dropout"} & set(table.columns)
    lost = table.filter(~pl.col("stored")).select("epoch", "status", "reason", "source").rows()
    assert [row[:2] for row in lost] == [(40, "failed"), (86, "diverged")]
    assert "no checkpoint of this run" in lost[0][2]
    assert lost[0][3] == ""
    assert "finite" in lost[1][2]
    assert zoo.layout.names[:2] == ("sequential/conv2d/bias", "sequential/conv2d/kernel")
    assert zoo.layout.shapes[1] == (3, 3, 1, 2)


def test_small_cnn_that_is_cut_short(tmp_path: Path) -> None:
    """By row number is how the two belong together; with another number of rows nothing can be trusted."""
    small_cnn_zoo(tmp_path / "a", zipped=False)
    metrics = tmp_path / "a" / "metrics.csv"
    metrics.write_text("".join(metrics.read_text().splitlines(True)[:-1]))
    with pytest.raises(SourceError, match=r"35 rows and metrics\.csv 34"):
        import_zoo(tmp_path / "a", tmp_path / "zoo")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("2,20,18", "3,20,18", "expected from 2"),
        ('"(2, 10)"', '"(2, 11)"', "expected from"),
        ('"(2, 10)"', "\"__import__('os')\"", "expected from"),
        ("start_idx", "begin", "lacks the columns start_idx"),
        ("conv2d_1/", "conv2d/", "stands twice"),
    ],
)
def test_small_cnn_layouts_that_do_not_fit(old: str, new: str, said: str, tmp_path: Path) -> None:
    small_cnn_zoo(tmp_path / "a")
    layout = tmp_path / "a" / "layout.csv"
    assert old in layout.read_text()
    layout.write_text(layout.read_text().replace(old, new))
    with pytest.raises(SourceError, match=said):
        import_zoo(tmp_path / "a", tmp_path / "zoo")


# Ray Tune


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImportReport, catalog.Zoo]:
    place = tmp_path_factory.mktemp("ray")
    ray_of_safetensors(place / "source")
    report = import_zoo(place / "source", place / "zoo")
    return report, catalog.open(place / "zoo")


def test_ray_metrics_belong_to_the_epoch_they_name(ray: tuple[ImportReport, catalog.Zoo]) -> None:
    table = ray[1].table().filter(pl.col("epoch") > 0, pl.col("run") != trial_name(2, 0.01, 3))
    for row in table.iter_rows(named=True):
        number = int(row["trial_id"].split("_")[1])
        assert row["test_acc"] == record(number, row["epoch"], 0)["test_acc"]
        assert row["time_total_s"] == 10.0 * row["epoch"]


def test_ray_columns(ray: tuple[ImportReport, catalog.Zoo]) -> None:
    table = ray[1].table()
    expected = {"seed": pl.Int64, "optim_lr": pl.Float64, "model_width": pl.Int64, "model_type": pl.String}
    expected |= {"cuda": pl.Boolean, "test_acc": pl.Float64, "log_hessian_trace": pl.Float64}
    assert {name: table.schema[name] for name in expected} == expected
    assert not {"hostname", "node_ip", "pid", "config", "date", "training_iteration"} & set(table.columns)


def test_ray_epoch_zero_is_there(ray: tuple[ImportReport, catalog.Zoo]) -> None:
    zero = ray[1].table().filter(epoch=0)
    assert zero["stored"].to_list() == [True] * 5
    assert zero["test_acc"].null_count() == 0


def test_ray_names_with_commas_join_the_table_beside(ray: tuple[ImportReport, catalog.Zoo]) -> None:
    table = ray[1].table().filter(pl.col("log_hessian_trace").is_not_null())
    values = {(row["trial_id"], row["epoch"]): row["log_hessian_trace"] for row in table.iter_rows(named=True)}
    assert values == {(f"541f4_{n:05d}", epoch): n + epoch / 8 for n in (0, 2) for epoch in (0, 1, 5)}


def test_ray_rows_that_hold_nothing_say_why(ray: tuple[ImportReport, catalog.Zoo]) -> None:
    report, zoo = ray
    lost = zoo.table().filter(~pl.col("stored")).sort("run", "epoch")
    assert lost.select("trial_id", "epoch", "status").rows() == [
        ("541f4_00002", 1, "failed"),
        ("541f4_00003", 5, "failed"),
        ("541f4_00004", 5, "diverged"),
    ]
    missing, damaged, diverged = lost["reason"]
    assert "no such checkpoint" in missing
    assert "cut short" in damaged
    assert "finite" in diverged
    assert lost["test_acc"][0] == pytest.approx(0.152)  # the trial reported epoch 1, though its checkpoint is lost
    assert (report.members, report.missing, len(report.failed)) == (14, 1, 2)


def test_ray_trials_twice_and_half_lines_are_told(ray: tuple[ImportReport, catalog.Zoo]) -> None:
    report, zoo = ray
    again = zoo.table().filter(pl.col("duplicate_of").is_not_null())
    assert set(again["run"]) == {trial_name(3, 0.01, 1)}
    assert set(again["duplicate_of"]) == {trial_name(0, 0.01, 1)}
    assert any("line of result.json is cut short" in note and "(1 files)" in note for note in report.notes)
    assert any("'module.'" in note and "(3 files)" in note for note in report.notes)
    assert ("experiment_state-2024.json", "") not in report.skipped


def test_ray_lines_that_begin_at_one(tmp_path: Path) -> None:
    """The first checkpoint is before training there, and has no line; the others have those of their own epochs."""
    ray_zoo(tmp_path / "source", first_line=1, save=save_safetensors, state="model.safetensors")
    import_zoo(tmp_path / "source", tmp_path / "zoo")
    rows = catalog.open(tmp_path / "zoo").table().filter(run=trial_name(0, 0.01, 1))
    assert rows["epoch"].to_list() == [0, 1, 5]
    assert rows["time_total_s"].to_list() == [None, 10.0, 50.0]


def trial(folder: Path, lines: list[Any], epochs: Mapping[str, int], params: Any = None) -> None:
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps({"seed": 1} if params is None else params))
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "result.json").write_text("\n".join(text))
    for name, seed in epochs.items():
        save_safetensors(folder / name / "model.safetensors", tensors(seed))


def test_ray_records_of_every_kind(tmp_path: Path) -> None:
    """Restarts, the field `epoch` alone, NaN as Ray writes it, numbers and text in one column, damaged lines."""
    lines = [
        {"training_iteration": 1, "loss": 5.0, "seed": 9, "epoch": 0},
        "not json",
        {"training_iteration": 1, "loss": 4.0, "seed": 1, "model": "a", "nested": {"deep": {"er": 3}}},
        {"loss": 1.0},
        {"epoch": 2, "loss": float("nan"), "model": 7, "big": 10**30, "list": [1, 2], "long": list(range(500))},
        "[" * 10_000,
    ]
    trial(tmp_path / "zoo" / "t", lines, {"checkpoint_1": 1, "checkpoint_000002": 2})
    report = import_zoo(tmp_path / "zoo", tmp_path / "out")
    rows = catalog.open(tmp_path / "out").table()
    assert rows["epoch"].to_list() == [1, 2]
    assert rows["loss"].to_list()[0] == 4.0
    assert np.isnan(rows["loss"][1])
    assert rows["source_model"].to_list() == ["a", "7"]
    assert rows["nested_deep_er"].to_list() == [3, None]
    assert rows["list"].to_list() == [None, "[1, 2]"]
    assert rows["big"].to_list() == [None, 1e30]
    assert "long" not in rows.columns
    told = "; ".join(report.notes)
    for words in ("damaged, and was left out (2 files)", "names no epoch", "stands twice", "model -> source_model"):
        assert words in told


def test_ray_runs_that_change_their_layout(tmp_path: Path) -> None:
    """The layout that most checkpoints of a run have is that of the run; trials of another width are a variant."""
    for number, width in enumerate((3, 3, 5)):
        for epoch in (1, 2, 3):
            wide = tensors(number, hidden=7 if (number, epoch) == (0, 2) else width)
            save_safetensors(tmp_path / "zoo" / f"t{number}" / f"checkpoint_{epoch}" / "model.safetensors", wide)
    report = import_zoo(tmp_path / "zoo", tmp_path / "out")
    assert sorted(shape[:2] for shape in report.variants.values()) == [(1, 3), (2, 3)]
    ((source, reason),) = report.failed
    assert "t0/checkpoint_2" in source
    assert "in other checkpoints of the run" in reason


def test_reports_are_told(ray: tuple[ImportReport, catalog.Zoo]) -> None:
    text = told(ray[0], limit=1).splitlines()
    assert text[0].endswith("12 of 14 networks stored, found as ray")
    assert text[1].startswith("net 5 x 3 x 25 (models x checkpoints x weights), 1,500 bytes of float32")
    assert "1 rows without a checkpoint in the source" in text
    assert [line.split(": ")[0] for line in text[-2:]] == ["failed", "failed"]
    assert text[-1] == "failed: and 1 more"


# Folders


def test_folder_with_a_table(tmp_path: Path) -> None:
    weights_folder(tmp_path / "nets")
    report = import_zoo(tmp_path / "nets", tmp_path / "zoo")
    table = catalog.open(tmp_path / "zoo").table()
    assert {name: table.schema[name] for name in ("test_accuracy", "_2nd", "code", "augmented")} == {
        "test_accuracy": pl.Float64,
        "_2nd": pl.Int64,
        "code": pl.String,  # 07 is a name, not a number
        "augmented": pl.Boolean,
    }
    rows = table.filter(pl.col("stored")).sort("_2nd")
    assert rows["run"].to_list() == [f'models/net,lr=0.{number} "a"' for number in range(5)]
    assert rows["test_accuracy"].to_list() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert rows["notes"].to_list() == ["x,y", None, "x,y", "x,y", "x,y"]
    ((source, reason),) = report.failed
    assert "gone" in source
    assert "not there" in reason
    assert report.skipped == (("README.md", "no file of weights"),)


def test_folder_with_a_table_of_runs_and_epochs(tmp_path: Path) -> None:
    """Parquet; files called by their stem; columns that say run and epoch; a file that no row names; a row twice."""
    for number in range(4):
        save_safetensors(tmp_path / "nets" / f"n{number}.safetensors", tensors(number))
    rows = {"file": ["n0", "n1", "n2", "n2"], "run": ["a", "a", "b", "b"], "step": [0, 10, 10, 10], "acc": [1, 2, 3, 4]}
    pl.DataFrame(rows).write_parquet(tmp_path / "nets" / "rows.parquet")
    report = import_zoo(tmp_path / "nets", tmp_path / "zoo")
    zoo = catalog.open(tmp_path / "zoo")
    check(zoo, {("a", 0): tensors(0), ("a", 10): tensors(1), ("b", 10): tensors(2), ("n3", 0): tensors(3)})
    assert zoo.scan().filter(run="b").select("acc").collect().item() == 3
    assert ("n2.safetensors", "row 3 of rows.parquet: a run and epoch, or a file, stand twice; the first counts") in (
        report.skipped
    )
    assert any("1 files are not named" in note for note in report.notes)


def test_folder_names_that_fit_several_files(tmp_path: Path) -> None:
    """A table may call a file by its last name, unless two have it."""
    for number, name in enumerate(("a/net", "b/net", "b/other")):
        save_safetensors(tmp_path / "nets" / f"{name}.safetensors", tensors(number))
    (tmp_path / "nets" / "rows.csv").write_text("name,acc\nnet,1\nother,2\na/net,3\n")
    report = import_zoo(tmp_path / "nets", tmp_path / "zoo")
    ((source, reason),) = report.failed
    assert source.startswith("net ")
    assert "several files are called 'net'" in reason
    rows = catalog.open(tmp_path / "zoo").scan().select("run", "acc").collect()
    assert sorted(rows.rows()) == [("a/net", 3), ("b/net", None), ("b/other", 2)]


def test_folder_options_are_checked(tmp_path: Path) -> None:
    weights_folder(tmp_path / "nets")
    source, out = tmp_path / "nets", tmp_path / "zoo"
    with pytest.raises(UnknownNameError, match=r"table 'x\.csv'; known: properties\.csv"):
        import_zoo(source, out, table="x.csv")
    with pytest.raises(UnknownNameError, match="column 'nope'"):
        import_zoo(source, out, table="properties.csv", file_column="nope")
    with pytest.raises(UnknownNameError, match="column 'nope'"):
        import_zoo(source, out, run_column="nope")
    with pytest.raises(SourceError, match=r"test accuracy.*whole numbers"):
        import_zoo(source, out, epoch_column="test accuracy")
    with pytest.raises(SourceError, match=r"no column of properties\.csv names files"):
        import_zoo(source, out, table="properties.csv", file_column="code")
    with pytest.raises(UnknownNameError, match=r"unknown option 'tabel'; .*did you mean 'table'"):
        import_zoo(source, out, tabel="x")
    with pytest.raises(UnknownNameError, match="unknown format 'safetensors'"):
        import_zoo(source, out, "safetensors")
    report = import_zoo(source, out, run_column="code", epoch_column="2nd", file_column="path")
    assert catalog.open(out).table().filter(pl.col("stored")).select("run", "epoch").rows()[:2] == [
        ("00", 0),
        ("01", 1),
    ]
    assert report.missing > 0


def test_folder_epochs_in_names_of_files(tmp_path: Path) -> None:
    for name, seed in (("a/net_epoch_07", 1), ("a/net-epoch10", 2), ("a/net", 3), ("b/step=500", 4), ("b/x_2", 5)):
        save_safetensors(tmp_path / "nets" / f"{name}.safetensors", tensors(seed))
    import_zoo(tmp_path / "nets", tmp_path / "zoo")
    zoo = catalog.open(tmp_path / "zoo")
    expected = {("a/net", 7): 1, ("a/net", 10): 2, ("a/net", 0): 3, ("b", 500): 4, ("b/x_2", 0): 5}
    table = check(zoo, {key: tensors(seed) for key, seed in expected.items()})
    assert set(table["label"].drop_nulls()) == {"a", "b"}


@pytest.mark.parametrize(
    ("dtypes", "stored"),
    [
        (("float16", "float16"), "float16"),
        (("float16", "float32"), "float32"),
        (("float64", "float32"), "float32"),
        (("float16", "int64"), "float32"),
    ],
)
def test_type_of_the_zoo(dtypes: tuple[str, str], stored: str, tmp_path: Path) -> None:
    content = {name: np.arange(4).astype(kind) / np.array(8, kind) for name, kind in zip("ab", dtypes, strict=True)}
    content = {name: value.astype(kind) for (name, value), kind in zip(content.items(), dtypes, strict=True)}
    save_safetensors(tmp_path / "nets" / "n.safetensors", content)
    report = import_zoo(tmp_path / "nets", tmp_path / "zoo")
    zoo = catalog.open(tmp_path / "zoo")
    assert zoo.record.dtype == report.dtype == stored
    check(zoo, {("n", 0): content})
    assert any("float64" in note for note in report.notes) == ("float64" in dtypes)


def bfloat16_file(path: Path, bits: np.ndarray) -> None:
    """A safetensors file by hand: numpy has no bfloat16."""
    header = {"w": {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [0, bits.nbytes]}}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + bits.tobytes())


def test_bfloat16_keeps_its_bits(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 0x7F80, (3, 5)).astype("<u2")
    bfloat16_file(tmp_path / "nets" / "n.safetensors", bits)
    import_zoo(tmp_path / "nets", tmp_path / "zoo")
    zoo = catalog.open(tmp_path / "zoo")
    assert zoo.record.dtype == "bfloat16"
    weights = zoo.read(zoo.scan())
    np.testing.assert_array_equal(weights.view(np.uint32) >> 16, bits.reshape(1, -1))
    zoo.export(zoo.scan().collect(), tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes().endswith(bits.tobytes())


def test_weights_that_do_not_fit_are_failed_rows(tmp_path: Path) -> None:
    """float64 beyond float32, integers beyond 2**24, and a network without any weights."""
    save_safetensors(tmp_path / "nets" / "a.safetensors", {"w": np.array([1.0, 2.0])})
    save_safetensors(tmp_path / "nets" / "b.safetensors", {"w": np.array([1.0, 1e300])})
    save_safetensors(tmp_path / "nets" / "c.safetensors", {"w": np.ones(2, np.float32), "n": np.array(2**24 + 1)})
    save_safetensors(tmp_path / "nets" / "d.safetensors", {"w": np.ones((0, 3), np.float32)})
    report = import_zoo(tmp_path / "nets", tmp_path / "zoo")
    reasons = dict(report.failed)
    assert "not finite as float32" in reasons["b.safetensors"]
    assert "cannot hold exactly" in reasons["c.safetensors"]
    assert "no weights" in reasons["d.safetensors"]
    check(catalog.open(tmp_path / "zoo"), {("a", 0): {"w": np.array([1.0, 2.0])}})


def test_order_and_prefix_make_no_other_architecture(tmp_path: Path) -> None:
    content = tensors(1)
    save_safetensors(tmp_path / "nets" / "a.safetensors", content)
    bits = {
        name: value.astype(np.float32) if name == "norm.num_batches_tracked" else value
        for name, value in content.items()
    }
    save_safetensors(tmp_path / "nets" / "b.safetensors", prefixed(prefixed(content), "_orig_mod."))
    save_safetensors(tmp_path / "nets" / "c.safetensors", bits)
    import_zoo(tmp_path / "nets", tmp_path / "zoo")
    zoo = catalog.open(tmp_path / "zoo")
    variants = {row["run"]: row["variant"] for row in zoo.table().iter_rows(named=True)}
    assert variants["a"] == variants["b"]
    assert variants["a"] != variants["c"]  # another dtype is another layout


def test_roles_and_what_a_zoo_of_ours_exports(tmp_path: Path) -> None:
    """A file of `weightscape export` comes back with its tied tensors; statistics and counts are buffers."""
    content = {**tensors(1), "steps": np.array(7, np.int32), "tied": tensors(1)["head.weight"]}
    first, zoo = tmp_path / "first", tmp_path / "zoo"
    from weightspace.layout import Layout

    layout = Layout.of({**content, "tied": content["head.weight"]})
    made = catalog.create(first, name="x", variants=[catalog.make_variant("net", layout, 1, 1)])
    rows = pl.DataFrame({"run": ["a"], "epoch": [0], "status": "ok", "reason": "", "stored": True})
    weights = layout.flatten({**content, "tied": content["head.weight"]}, "float32")
    catalog.write_shard(made, "net", 0, weights[None, None], rows, {})
    export_safetensors(made, made.scan().collect(), tmp_path / "nets" / "a.safetensors")
    import_zoo(tmp_path / "nets", zoo)
    back = catalog.open(zoo)
    assert back.layout.aliases == (("tied", "head.weight"),)
    roles = dict(zip(back.layout.names, back.layout.roles, strict=True))
    buffers = {name for name, role in roles.items() if role == "buffer"}
    assert buffers == {"norm.running_mean", "norm.num_batches_tracked", "steps"}
    check(back, {("a", 0): content})


# Hugging Face


def test_hf_columns_and_runs(tmp_path: Path) -> None:
    repositories(tmp_path / "hub")
    import_zoo(tmp_path / "hub", tmp_path / "zoo")
    table = catalog.open(tmp_path / "zoo").table()
    assert table.sort("seed").select("run", "seed", "model_type", "eps").rows() == [
        ("alpha", 1, "tiny", 1e-5),
        ("beta", 2, "tiny", 1e-5),
        ("org/gamma@abc123", 3, "tiny", 1e-5),
    ]
    assert not {"id2label_0", "torch_dtype", "transformers_version"} & set(table.columns)


def test_hf_lists_urls_and_checkpoints(tmp_path: Path) -> None:
    """A list in its order; a repository with checkpoints of its training; one behind a URL, in two files."""
    import fsspec

    repositories(tmp_path / "hub")
    for step, seed in ((500, 11), (1000, 12)):
        folder = tmp_path / "trained" / f"checkpoint-{step}"
        save_safetensors(folder / "model.safetensors", tensors(seed))
        (folder / "config.json").write_text('{"seed": 5}')
    save_safetensors(tmp_path / "trained" / "model.safetensors", tensors(13))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "hub" / "beta") + "/", "/imp/org/beta", recursive=True)
    try:
        sources = [str(tmp_path / "trained"), "memory://imp/org/beta", str(tmp_path / "hub" / "alpha")]
        report = import_zoo(sources, tmp_path / "zoo", "hf", name="three")
        zoo = catalog.open(tmp_path / "zoo")
        truth = {("trained", 500): 11, ("trained", 1000): 12, ("trained", 0): 13, ("org/beta", 0): 2, ("alpha", 0): 1}
        check(zoo, {key: tensors(seed) for key, seed in truth.items()})
        assert (zoo.name, report.members, report.missing) == ("three", 5, 4)
        memory.rm("/imp/org/beta/model-00002-of-00002.safetensors")
        report = import_zoo(sources, tmp_path / "second", name="three")
        assert report.failed == (("memory://imp/org/beta", "model-00002-of-00002.safetensors is not there"),)
    finally:
        memory.rm("/imp", recursive=True)


def test_hf_errors(tmp_path: Path) -> None:
    repositories(tmp_path / "hub")
    with pytest.raises(SourceError, match="two repositories are called 'alpha'"):
        import_zoo([tmp_path / "hub" / "alpha"] * 2, tmp_path / "zoo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"tried small_cnn: .*ray: .*hf: .*folder: there are no files \.safetensors"):
        import_zoo(tmp_path / "empty", tmp_path / "zoo")
    with pytest.raises(SourceError, match=r"is not of format small_cnn: there is no weights\.npy"):
        import_zoo(tmp_path / "hub", tmp_path / "zoo", "small_cnn")
    with pytest.raises(SourceError, match="is no folder"):
        import_zoo(tmp_path / "nowhere", tmp_path / "zoo")
    (tmp_path / "bare" / "r").mkdir(parents=True)
    (tmp_path / "bare" / "r" / "model.safetensors").write_bytes(b"config")
    with pytest.raises(SourceError, match=r"nothing in the source can be read: .*6 bytes"):
        import_zoo(tmp_path / "bare", tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


# The writer


def test_runs_without_a_common_epoch_do_not_make_a_square(tmp_path: Path) -> None:
    """200 runs with two epochs of their own each: lined up by epoch they would be 200 x 400 rows."""
    for run in range(200):
        for epoch in (run, 1000 + run)[: 1 + run % 2]:
            save_safetensors(tmp_path / "nets" / f"n{run}_epoch{epoch}.safetensors", {"w": np.full(2, run, np.float32)})
    report = import_zoo(tmp_path / "nets", tmp_path / "zoo")
    assert report.variants == {"net-1": (100, 1, 2), "net-2": (100, 2, 2)}
    table = catalog.open(tmp_path / "zoo").table()
    assert (table.height, report.stored, report.missing) == (300, 300, 0)
    assert table.filter(run="n3").select("epoch", "stored").rows() == [(3, True), (1003, True)]
    assert not catalog.verify(tmp_path / "zoo").problems


def test_a_run_that_no_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights_folder(tmp_path / "nets")
    monkeypatch.setattr("catalog.importers.writer.memory_of", lambda parts: 1 << 60)
    with pytest.raises(SourceError, match="takes 1,152,921,504,606,846,976 bytes of memory"):
        import_zoo(tmp_path / "nets", tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_memory_is_that_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """48 MiB of weights in shards of 1 MiB; at most a few shards are held at once."""
    monkeypatch.setattr(grid, "SHARD_BYTES", 1 << 20)
    for number in range(48):
        save_safetensors(tmp_path / "nets" / f"{number}.safetensors", {"w": np.full(1 << 18, number, np.float32)})
    planned = import_zoo(tmp_path / "nets", tmp_path / "zoo", dry_run=True)
    tracemalloc.start()
    try:
        report = import_zoo(tmp_path / "nets", tmp_path / "zoo")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.bytes == 48 << 20
    assert planned.memory == 2 << 20
    assert peak < 8 << 20


def test_another_source_does_not_go_into_a_zoo(tmp_path: Path) -> None:
    weights_folder(tmp_path / "a")
    weights_folder(tmp_path / "b", count=3)
    import_zoo(tmp_path / "a", tmp_path / "zoo")
    with pytest.raises(SpecMismatchError):
        import_zoo(tmp_path / "b", tmp_path / "zoo")


KILLED = """
import os, signal, sys
from catalog.importers import import_zoo
calls = []
def progress(done, of):
    calls.append(done)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
import_zoo(sys.argv[1], sys.argv[2], progress=progress)
"""


def test_killed_imports_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    source, zoo = tmp_path / "source", tmp_path / "zoo"
    for number in range(40):
        save_safetensors(source / f"n{number}.safetensors", tensors(number))
    import_zoo(source, tmp_path / "whole")
    shards = len(catalog.open(tmp_path / "whole").record.shards)
    assert shards == 3
    committed: list[int] = []
    for _ in range(2):  # each time right after the first shard that was not there
        code = [sys.executable, "-c", KILLED, str(source), str(zoo), str(len(committed) + 1)]
        assert subprocess.run(code, cwd=ROOT, check=False).returncode == -signal.SIGKILL
        committed.append(len(catalog.open(zoo).committed()))
    assert committed == [1, 2]
    stamps = {path: path.stat().st_mtime_ns for path in zoo.rglob("c/*/0/0")}
    report = import_zoo(source, zoo)
    assert report.stored == 40
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps  # committed shards are not written again
    assert catalog.verify(zoo).digest == catalog.verify(tmp_path / "whole").digest


def test_a_file_that_changes_on_the_way_is_a_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking at headers and reading weights a file was replaced by one of another network."""
    for number in range(3):
        save_safetensors(tmp_path / "nets" / f"{number}.safetensors", tensors(number))
    import catalog.importers as importers

    def planned(*arguments: Any) -> Any:
        found = plan(*arguments)
        save_safetensors(tmp_path / "nets" / "1.safetensors", tensors(1, hidden=9))
        os.unlink(tmp_path / "nets" / "2.safetensors")
        return found

    monkeypatch.setattr(importers, "plan", planned)
    report = import_zoo(tmp_path / "nets", tmp_path / "zoo")
    assert report.stored == 1
    assert "it was (3,)" in dict(report.failed)["1.safetensors"] or "it was" in dict(report.failed)["1.safetensors"]
    assert "not there" in dict(report.failed)["2.safetensors"]


def test_rows_of_an_imported_zoo_are_found(tmp_path: Path) -> None:
    weights_folder(tmp_path / "nets")
    import_zoo(tmp_path / "nets", tmp_path / "zoo", input_shape=(1, 28, 28), num_classes=10)
    zoo = catalog.open(tmp_path / "zoo")
    found = catalog.query(zoo, "test_accuracy > 0.6", columns=["run", "test_accuracy"])
    assert found["test_accuracy"].to_list() == [0.75, 1.0]
    assert len(find_row(zoo, found["run"][0])) == 1
    architecture = zoo.record.variants["net"].architecture
    assert architecture == {"family": "imported", "numbers": {}, "input_shape": [1, 28, 28], "num_classes": 10}
