"""Generators from the command line: train, judge, draw; interrupted and resumed, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import catalog
import weightscape
from generators.kinds import GENERATORS
from generators.recipe import RECIPES
from tests.generator_zoos import moons
from zoo.alignment.align import align
from zoo.commands.shared import INTERRUPTED

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("--set", "iterations=20", "--set", "width=16", "--set", "depth=1", "--set", "batch_size=16")
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of torch, in Lightning


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a zoo, its universe, and a flow and a baseline that learned from it."""
    path = tmp_path_factory.mktemp("cli")
    align(moons(path).url, "universe")
    for kind, settings in (("flow", QUICK), ("soup", ("--set", "members=3"))):
        made = run("train", kind, path / "moons.zoo", path / kind, "--frame", "universe", *settings)
        assert made.exit_code == 0, made.output
        assert f"judge it with `weightscape card {path / kind}`" in made.output
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(weightscape.app, list(map(str, arguments)))


def test_a_trained_one_says_what_it_saw(folder: Path) -> None:
    again = run("train", "flow", folder / "moons.zoo", folder / "flow", "--frame", "universe", *QUICK, "--json")
    said = json.loads(again.stdout)
    assert said["fingerprint"] == json.loads((folder / "flow" / "generator.json").read_text())["fingerprint"]
    assert said["cost"]["iterations"] == 20
    assert {"iteration", "accuracy", "nearest", "verdict"} <= set(said["history"][0])


@pytest.mark.parametrize("kind", ["flow", "soup"])
def test_samples_are_a_zoo(folder: Path, tmp_path: Path, kind: str) -> None:
    made = run("sample", folder / kind, tmp_path / "out.zoo", "-n", 12, "--seed", 3, "--json")
    assert json.loads(made.stdout)["networks"] == 12
    rows = catalog.open(tmp_path / "out.zoo").scan().collect()
    assert rows["generator_kind"].unique().to_list() == [kind]
    assert set(rows["nearest_run"]) <= set(catalog.open(folder / "moons.zoo").scan().collect()["run"])
    again = run("sample", folder / kind, tmp_path / "out.zoo", "-n", 12, "--seed", 3)
    assert "12 networks, median test accuracy" in again.output
    other = run("sample", folder / kind, tmp_path / "out.zoo", "-n", 12, "--seed", 4)
    assert other.exit_code == 1
    assert other.output.startswith("error:")


def test_a_card_is_written_and_told(folder: Path, tmp_path: Path) -> None:
    few = ("-n", 24, "--baseline", "soup", "--baseline", "retrieval", "--out", tmp_path)
    told = run("card", folder / "flow", *few)
    assert told.exit_code == 0, told.output
    assert "retrieval" in told.output
    assert "judged on 24 samples" in " ".join(told.output.split())
    content = json.loads((tmp_path / "card.json").read_text())
    assert {row["name"] for row in content["baselines"]} == {"soup", "retrieval"}
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")
    as_json = json.loads(run("card", folder / "flow", *few, "--json").stdout)
    assert as_json["generator"]["fingerprint"] == content["generator"]["fingerprint"]


def test_generators_and_recipes_are_listed() -> None:
    listed = run("generators").output
    assert all(name in listed for name in (*GENERATORS, *RECIPES))
    known = json.loads(run("generators", "--json").stdout)
    assert set(known["generators"]) == set(GENERATORS)
    assert known["presets"]["deepweightflow"]["iterations"] == 30_000


def test_a_dry_run_says_the_cost_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    said = run("train", "flow", folder / "moons.zoo", tmp_path / "new", "--frame", "universe", *QUICK, "--dry-run")
    assert said.exit_code == 0
    assert "20 iterations to train on" in said.output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "flwo", "{zoo}", "{new}"), "unknown generator 'flwo'"),
        (("train", "flow", "{zoo}", "{new}", "--set", "widht=3"), "unknown setting of a flow 'widht'"),
        (("train", "flow", "{zoo}", "{new}", "--set", "width=-3"), "width of a flow must be an integer"),
        (("train", "flow", "{zoo}", "{new}", "--preset", "best"), "deepweightflow, weightscape"),
        (
            ("train", "flow", "{zoo}", "{new}", "--frame", "universe", "--where", "seed < 2"),
            "8 lineages (runs) or more",
        ),
        (("train", "flow", "{zoo}", "{new}", "--frame", "nowhere"), "has no frame 'nowhere'; it has universe"),
        (("train", "flow", "{zoo}", "{new}", "--condition", "colour"), "colour"),
        (("sample", "{zoo}", "{new}"), "generator"),
        (("sample", "{flow}", "{new}", "--condition", "test_accuracy=0.9"), "trained without conditions"),
        (("card", "{flow}", "--baseline", "magic"), "unknown baseline 'magic'"),
    ],
)
def test_refusals_are_one_line(folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    places = {"zoo": folder / "moons.zoo", "flow": folder / "flow", "new": tmp_path / "new"}
    found = run(*(argument.format(**places) for argument in arguments))
    assert found.exit_code == 1, found.output
    assert found.output.startswith("error: ")
    assert len(found.output.strip().splitlines()) == 1
    assert message in found.output
    assert not (tmp_path / "new" / "generator.json").exists()


def test_ctrl_c_keeps_what_is_trained(folder: Path, tmp_path: Path) -> None:
    """A real process, interrupted while it trains; that the same command goes on is in test_generators_training."""
    arguments = ["train", "flow", str(folder / "moons.zoo"), str(tmp_path / "out"), "--frame", "universe"]
    arguments += ["--set", "width=16", "--set", "depth=1", "--set", "iterations=4000", "--set", "judge_every=4000"]
    command = [sys.executable, "-c", "import weightscape; weightscape.main()", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "out" / "log.csv", time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 1) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == INTERRUPTED, said
    assert "the same command goes on" in said
    assert not (tmp_path / "out" / "generator.json").exists()
    assert max(int(path.stem) for path in (tmp_path / "out" / "training").glob("*.ckpt")) > 0
