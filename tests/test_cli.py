"""The command line, as a user types it."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import catalog
import weightscape
from zoo import printing
from zoo.architectures import Architecture
from zoo.build import build
from zoo.presets import PRESETS, tiny

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tiny_zoo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "tiny.zoo"
    build(tiny(), path, workers=0)
    return str(path)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(weightscape.app, list(map(str, arguments)))


def test_help_loads_nothing_heavy() -> None:
    """What makes `--help` fast: none of the heavy libraries is imported."""
    code = (
        "import sys, weightscape\n"
        "sys.argv = ['weightscape', '--help']\n"
        "try: weightscape.main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'polars', 'zarr', 'numpy', 'scipy', 'sklearn', 'lightning') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
    for name in (
        "build",
        "info",
        "query",
        "export",
        "verify",
        "pack",
        "unpack",
        "presets",
        "bench",
        "measure",
        "metrics",
        "phases",
        "plot",
    ):
        assert name in found.stdout


def test_info(tiny_zoo: str) -> None:
    shown = run("info", tiny_zoo)
    assert shown.exit_code == 0
    assert "tiny: 24 models, complete" in shown.stdout
    assert "72 ok" in shown.stdout
    found = json.loads(run("info", tiny_zoo, "--json").stdout)
    assert found["models"] == 24
    assert found["rows"] == {"ok": 72}
    assert found["spec"] == json.loads(json.dumps(tiny().to_json()))


def test_query_formats_agree(tiny_zoo: str) -> None:
    where, columns = "width = 8 and progress = 1.0", "run,width,batch_size,test_accuracy"
    options = ["--columns", columns, "--sort", "test_accuracy,run", "--descending"]
    expected = (
        catalog.open(tiny_zoo)
        .scan()
        .filter(pl.col("width") == 8, pl.col("progress") == 1.0)
        .sort(["test_accuracy", "run"], descending=True)
        .select(columns.split(","))
        .collect()
    )
    as_json = run("query", tiny_zoo, where, *options, "--format", "json")
    assert pl.DataFrame([json.loads(line) for line in as_json.stdout.splitlines()]).equals(expected)
    assert run("query", tiny_zoo, where, *options, "--json").stdout == as_json.stdout
    rows = list(csv.DictReader(io.StringIO(run("query", tiny_zoo, where, *options, "--format", "csv").stdout)))
    assert [row["run"] for row in rows] == expected["run"].to_list()
    table = run("query", tiny_zoo, where, *options, "--limit", 2).stdout
    assert expected["run"][0] in table
    assert "2 rows" in table


def test_query_without_condition_over_two_zoos(tiny_zoo: str, tmp_path: Path) -> None:
    import dataclasses

    other = tmp_path / "other.zoo"
    build(dataclasses.replace(tiny(), name="other", seeds=(7,)), other, workers=0)
    found = run("query", tiny_zoo, other, "--columns", "zoo,run", "--format", "json")
    zoos = [json.loads(line)["zoo"] for line in found.stdout.splitlines()]
    assert (zoos.count("tiny"), zoos.count("other")) == (72, 24)
    one = run("query", tiny_zoo, other, "zoo = 'other' and epoch = 0", "--columns", "run", "--format", "json")
    assert len(one.stdout.splitlines()) == 8


def test_csv_cells_are_no_formulas() -> None:
    rows = pl.DataFrame({"text": ["=1+1", "@x", "-2", "fine", "+3"], "number": [-1, 2, 3, 4, 5]})
    assert printing.harmless(rows)["text"].to_list() == ["'=1+1", "'@x", "'-2", "fine", "'+3"]
    assert printing.harmless(rows)["number"].to_list() == [-1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "ZOO", "witdh > 3"], "unknown column 'witdh'.*did you mean 'width'"),
        (["query", "ZOO", "width >"], "cannot evaluate"),
        (["query", "ZOO", "width > 3", "--columns", "nope"], "unknown column 'nope'"),
        (["query", "ZOO", "width > 3", "--format", "xml"], "unknown format 'xml'; known: csv, json, table"),
        (["query", "ZOO", "width > 3", "--status", "fine"], "unknown status 'fine'"),
        (["info", "/nowhere.zoo"], "is no zoo.*weightscape build"),
        (["verify", "/nowhere.zoo"], "is no zoo"),
        (["build", "tinny", "OUT"], "unknown preset 'tinny'; known: .*did you mean 'tiny'"),
        (["build", "nothing.json", "OUT"], "no spec file"),
        (["presets", "big"], "unknown preset 'big'"),
        (["export", "ZOO", "zzz", "OUT"], "run 'zzz'"),
    ],
)
def test_errors_are_one_line(tiny_zoo: str, tmp_path: Path, arguments: list[str], message: str) -> None:
    given = [{"ZOO": tiny_zoo, "OUT": str(tmp_path / "out")}.get(a, a) for a in arguments]
    found = run(*given)
    assert found.exit_code == 1
    assert found.stdout == ""
    assert re.fullmatch(rf"error: .*{message}.*\n", found.stderr)
    if "--format" not in given and "--status" not in given:
        told = json.loads(run(*given, "--json").stdout)
        assert re.search(message, told["message"])
        assert told["error"].endswith("Error")
    assert not (tmp_path / "out").exists()


def test_export_loads_in_plain_torch(tiny_zoo: str, tmp_path: Path) -> None:
    row = catalog.open(tiny_zoo).scan().filter(pl.col("epoch") == 4).head(1).collect()
    out = tmp_path / "model.safetensors"
    assert run("export", tiny_zoo, row["run"][0][:10], out).exit_code == 0
    variant = catalog.open(tiny_zoo).record.variants[row["variant"][0]]
    module = Architecture.from_json(variant.architecture).build()
    module.load_state_dict(load_file(out))
    assert run("export", tiny_zoo, row["run"][0], tmp_path / "first.safetensors", "--epoch", 0).exit_code == 0
    assert load_file(tmp_path / "first.safetensors")["output.weight"].ne(load_file(out)["output.weight"]).any()
    wrong = run("export", tiny_zoo, row["run"][0], out, "--epoch", 3)
    assert "has weights at epochs [0, 1, 4], asked 3" in wrong.stderr


def test_verify_exits_by_what_it_finds(tiny_zoo: str, tmp_path: Path) -> None:
    import shutil

    path = tmp_path / "hurt.zoo"
    shutil.copytree(tiny_zoo, path)
    assert run("verify", path).exit_code == 0
    assert json.loads(run("verify", path, "--json").stdout)["ok"] is True
    shard = next((path / "weights").rglob("c/0/0/0"))
    data = bytearray(shard.read_bytes())
    data[5] ^= 8
    shard.write_bytes(data)
    found = run("verify", path)
    assert found.exit_code == 1
    assert "is not what was committed" in found.stdout


def test_presets_are_specs_to_change(tmp_path: Path) -> None:
    listed = run("presets").stdout
    assert all(name in listed for name in PRESETS)
    content = json.loads(run("presets", "tiny").stdout)
    content |= {"name": "mine", "seeds": [5], "axes": {"width": [4]}, "load": None, "temperature": None}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    cost = run("build", tmp_path / "mine.json", tmp_path / "mine.zoo", "--dry-run", "--json")
    assert json.loads(cost.stdout)["runs"] == 1
    assert not (tmp_path / "mine.zoo").exists()
    assert run("build", tmp_path / "mine.json", tmp_path / "mine.zoo", "--workers", 0).exit_code == 0
    assert catalog.open(tmp_path / "mine.zoo").scan().collect()["seed"].unique().to_list() == [5]
    (tmp_path / "bad.json").write_text("{")
    assert "cannot read a spec" in run("build", tmp_path / "bad.json", tmp_path / "bad.zoo").stderr


def test_completion_is_offered() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "weightscape", "--show-completion", "bash"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**__import__("os").environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert "complete" in found.stdout
