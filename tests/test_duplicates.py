"""Duplicates in a zoo: planted copies are found by row, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import catalog
from catalog.errors import QueryError
from weightscape import app
from zoo.architectures import Architecture
from zoo.duplicates import duplicates
from zoo.symmetries import symmetry_of

ARCHITECTURE = Architecture("mlp", {"depth": 2, "width": 8, "activation": "relu"}, (3,), 2)
COPIES = {"exact": 5, "near": 6, "scaled": 7}  # runs that are made from the runs 0, 1 and 2


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight networks with random weights: five alone, a permuted copy, one that is a little off, a scaled one."""
    path = tmp_path_factory.mktemp("zoo") / "copies.zoo"
    symmetry = symmetry_of(ARCHITECTURE)
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(8, symmetry.layout.size)).astype(np.float32)
    permuted = symmetry.permute(weights[:3], symmetry.random(3, 1))
    weights[5], weights[6] = permuted[0], permuted[1] + 0.01 * generator.normal(size=permuted[1].shape)
    weights[7] = symmetry.scale(permuted[2:], {"hidden0": np.full((1, 8), 3.0), "hidden1": np.full((1, 8), 0.2)})[0]
    variant = catalog.make_variant("net", symmetry.layout, models=8, checkpoints=1)
    made = catalog.create(path, name="copies", variants=[replace(variant, architecture=ARCHITECTURE.to_json())])
    rows = pl.DataFrame(
        {"run": [f"run{n}" for n in range(8)], "epoch": [0] * 8, "status": "ok", "reason": "", "stored": True}
    )
    catalog.write_shard(made, "net", 0, weights[:, None], rows, software={})
    return path


def groups(found: pl.DataFrame) -> list[tuple[str, list[str]]]:
    return [(part["kind"][0], part["run"].to_list()) for _, part in found.group_by("group", maintain_order=True)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [("exact", ["run0", "run5"]), ("near", ["run1", "run6"])]),
        ({"near": None}, [("exact", ["run0", "run5"])]),
        ({"scale": True}, [("exact", ["run0", "run5"]), ("near", ["run1", "run6"]), ("near", ["run2", "run7"])]),
        ({"where": "run != 'run5'", "near": None}, []),
    ],
)
def test_planted_copies_are_found(zoo: Path, options: dict[str, Any], expected: list[tuple[str, list[str]]]) -> None:
    found = duplicates(zoo, **options)
    assert groups(found) == expected
    assert (found.filter(pl.col("kind") == "exact")["distance"] == 0).all()
    near = found.filter(pl.col("kind") == "near")["distance"]
    assert ((near > 0) & (near < 0.03)).all() or options.get("scale")  # noise of 1 %; scales come back but for rounding


def test_the_command(zoo: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["duplicates", str(zoo), "--format", "json"])
    assert [json.loads(line)["run"] for line in done.stdout.splitlines()] == ["run0", "run5", "run1", "run6"]
    done = runner.invoke(app, ["duplicates", str(zoo), "--where", "run = 'run3'"])
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "no duplicates\n")
    with pytest.raises(QueryError):
        duplicates(zoo, where="run = ")
