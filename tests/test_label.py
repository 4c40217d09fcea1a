"""Phases stored as columns of a zoo, pictures of it, and the commands that make them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

import catalog
import weightscape
from catalog.errors import InvalidSpecError, MissingDataError, QueryError, UnknownNameError
from catalog.metrics import plain_versions
from zoo.build import build
from zoo.label import label, label_md_tree
from zoo.landscape.measure import measure
from zoo.md_tree import read_md_tree
from zoo.phases import PHASES, RULES, label_rows
from zoo.pictures import picture
from zoo.plots import KINDS
from zoo.presets import tiny

METRICS = ("mode_connectivity", "cka_yang", "hessian_spectrum", "hessian_trace")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bare") / "tiny.zoo"
    build(tiny(), path, workers=0)
    return path


@pytest.fixture(scope="module")
def measured(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(shutil.copytree(bare, tmp_path_factory.mktemp("measured") / "tiny.zoo"))
    settings = {"mode_connectivity.epochs": 10, "hessian_spectrum.probes": 2, "hessian_spectrum.steps": 5}
    measure(path, METRICS, settings=settings, workers=0)
    return path


@pytest.fixture
def zoo(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "tiny.zoo"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(weightscape.app, list(map(str, arguments)))


def test_labels_are_those_of_the_rule_and_stay_with_the_rows(zoo: Path) -> None:
    found = label(zoo)
    rows = catalog.open(zoo).scan(None).collect()
    labelled = rows.filter(pl.col("phase").is_not_null())
    assert labelled["epoch"].unique().to_list() == [4]
    assert len(labelled) == 24
    assert set(labelled["phase"]) <= set(PHASES)
    expected = label_rows(labelled.drop("phase_of_run"), found.rule)
    assert expected.select("run", "phase", "phase_margin").equals(labelled.select("run", "phase", "phase_margin"))
    assert found.rule.chance == 0.5  # of two classes
    by_phase = found.by_phase()
    assert by_phase["cells"].sum() == 8
    assert by_phase["runs"].sum() == 24
    assert catalog.verify(zoo).ok


def test_a_version_names_the_rule_its_thresholds_and_what_it_read(zoo: Path) -> None:
    first, other = label(zoo), label(zoo, settings={"tau_loss": 0.2})
    assert first.version != other.version
    opened = catalog.open(zoo)
    settings = opened.measurements()[f"phase@{first.version}"].settings
    assert settings["tau_loss"] == 0.1
    assert settings["read"] == {name: plain_versions(opened)[name] for name in ("mode_connectivity", "cka_yang")}
    assert opened.measurements()[f"phase@{other.version}"].settings["tau_loss"] == 0.2
    assert {"phase", f"phase@{other.version}"} <= set(opened.table().columns)  # the default has the plain name
    assert label(zoo).version == first.version
    assert len(list((zoo / "metrics" / f"phase@{first.version}").iterdir())) == 1


def test_labels_change_with_what_they_were_read_from(zoo: Path) -> None:
    """A new version of a metric is read only when it is chosen; labels at another epoch come beside."""
    first = label(zoo)
    made = measure(zoo, "mode_connectivity", settings={"epochs": 2}, workers=0)[0]
    with pytest.raises(QueryError, match="mode_connectivity"):
        label(zoo)  # two versions, neither the default
    other = label(zoo, versions={"mode_connectivity": made.version})
    assert other.version != first.version
    measure(zoo, ["mode_connectivity", "cka_yang"], settings={"mode_connectivity.epochs": 2}, epoch=1, workers=0)
    again = label(zoo, versions={"mode_connectivity": made.version}, epoch=1)
    assert again.version == other.version
    kept = catalog.open(zoo).measurements()[f"phase@{again.version}"].rows
    assert sorted(kept["epoch"].unique()) == [1, 4]
    assert len(kept) == 48


def test_an_md_tree_is_fitted_judged_and_stored(zoo: Path) -> None:
    found = label_md_tree(zoo)
    assert len(found.cells) == 8
    assert found.judged["rule"].to_list() == ["majority", "validation", "md_tree"]
    rows = catalog.open(zoo).scan().filter(epoch=4).collect()
    expected = dict(found.cells.select("cell", "diagnosis").iter_rows())
    assert all(expected[cell] == diagnosis for cell, diagnosis in rows.select("cell", "diagnosis").iter_rows())
    settings = catalog.open(zoo).measurements()[f"md_tree@{found.version}"].settings
    assert read_md_tree({key: value for key, value in settings.items() if key != "read"}) == found.tree
    assert set(settings["read"]) == {"mode_connectivity"}
    said = run("phases", zoo, "--rule", "md_tree", "--set", "shape=side")
    assert said.exit_code == 0, said.output
    assert "8 cells diagnosed" in said.stdout
    with pytest.raises(UnknownNameError, match="unknown shape of an MD tree 'round'"):
        label_md_tree(zoo, "round")


def test_what_is_not_measured_is_said(bare: Path) -> None:
    with pytest.raises(QueryError, match=r"weightscape measure .*mode_connectivity"):
        label(bare)
    with pytest.raises(QueryError, match=r"weightscape measure .*mc_peak"):
        label_md_tree(bare)
    with pytest.raises(UnknownNameError, match="unknown phase rule 'young'; known: median, ptmz, yang"):
        label(bare, "young")
    with pytest.raises(UnknownNameError, match="unknown setting of a phase rule 'tau'"):
        label(bare, settings={"tau": 1})
    with pytest.raises(InvalidSpecError, match="tau_loss"):
        label(bare, settings={"tau_loss": -1})
    assert set(RULES) == {"yang", "median", "ptmz"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_of_a_zoo(measured: Path, tmp_path: Path, kind: str) -> None:
    for suffix in ("png", "svg"):
        out = tmp_path / f"{kind}.{suffix}"
        found = run("plot", measured, kind, out, "--where", "width = 8")
        assert found.exit_code == 0, found.output
        assert out.stat().st_size > 5000


def test_pictures_of_chosen_runs_and_columns(measured: Path, tmp_path: Path) -> None:
    opened = catalog.open(measured)
    rows = opened.scan().filter(width=4, epoch=4).sort("cell").collect()
    pair = [rows["run"][0], rows["run"][-1]]
    assert rows["cell"].n_unique() > 1
    figure = picture(opened, "line", runs=pair)
    (legend,) = figure.legends
    assert "seeds" in legend.get_texts()[0].get_text()
    with pytest.raises(QueryError, match="of two variants"):
        picture(opened, "line", runs=[pair[0], opened.scan().filter(width=8).collect()["run"][0]])
    found = run(
        "plot", measured, "map", tmp_path / "m.png", "--columns", "hessian_trace,test_accuracy", "--width", "double"
    )
    assert found.exit_code == 0, found.output
    found = run(
        "plot", measured, "scatter", tmp_path / "s.png", "--columns", "hessian_trace", "--against", "train_loss"
    )
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pie", "x.png"), "unknown kind of picture 'pie'"),
        (("map", "x.gif"), "png"),
        (("map", "x.png", "--columns", "acc"), "unknown column 'acc'"),
        (("spectrum", "x.png"), "weightscape measure"),
        (("scatter", "x.png"), "nothing is measured"),
        (("bezier", "x.png"), "no pairs are measured"),
        (("plane", "x.png", "--run", "zzz"), "run 'zzz'"),
        (("map", "x.png", "--where", "width = 77"), "none fits"),
    ],
)
def test_pictures_that_cannot_be(bare: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    kind, out, *rest = arguments
    found = run("plot", bare, kind, tmp_path / out, *rest)
    assert found.exit_code == 1
    assert message in found.output
    assert not list(tmp_path.iterdir())


def test_the_commands_say_what_they_did(zoo: Path) -> None:
    found = run("phases", zoo)
    assert found.exit_code == 0, found.output
    assert "24 rows labelled" in found.stdout
    as_json = json.loads(run("phases", zoo, "--rule", "median", "--json").stdout)
    assert sum(row["cells"] for row in as_json["phases"]) == 8
    assert as_json["rule"]["name"] == "median"
    listed = json.loads(run("metrics", zoo, "--json").stdout)
    assert {row["metric"].split("@")[0] for row in listed} == {*METRICS, "phase"}
    assert "mode_connectivity" in run("metrics").stdout
    assert "measured: " in run("info", zoo).stdout
    done = json.loads(run("measure", zoo, "--metric", "weight_norm", "--workers", 0, "--json").stdout)
    assert [(one["metric"], one["measured"]) for one in done] == [("weight_norm", 24)]
    said = run("measure", zoo, "--metric", "weight_norm", "--workers", 0)
    assert "weight_norm@" in said.stdout
    assert "24 were there" in said.stdout
    dry = run("measure", zoo, "--metric", "sharpness", "--set", "radius=0.1", "--dry-run")
    assert dry.exit_code == 0
    assert "24 values of 1 metric(s) to measure" in dry.output
    assert run("measure", zoo, "--set", "radius").exit_code == 1


def test_the_labels_are_columns_to_query(zoo: Path) -> None:
    label(zoo)
    chosen: Any = catalog.query(catalog.open(zoo), "phase in ('I', 'II', 'III') or phase = 'IV-A'", columns=["run"])
    rest: Any = catalog.query(catalog.open(zoo), "phase = 'IV-B'", columns=["run"])
    assert len(chosen) + len(rest) == 24


def test_no_pairs_without_partners(bare: Path) -> None:
    with pytest.raises(MissingDataError, match="name two runs"):
        picture(catalog.open(bare), "line")
