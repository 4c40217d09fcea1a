"""The commands that bring zoos to others and from others, as a person types them."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

import catalog
from tests.catalog_zoos import net, write
from tests.processes import command
from weightscape import app


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def said(*arguments: object) -> str:
    """What a command that succeeds prints."""
    done = call(*arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def told(*arguments: object) -> Any:
    """The JSON that a command that succeeds prints."""
    return json.loads(said(*arguments, "--json"))


def rows_of(*arguments: object) -> list[Any]:
    """The rows that a command prints as a line of JSON each."""
    return [json.loads(line) for line in said(*arguments, "--json").splitlines()]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("WEIGHTSCAPE_CACHE", str(path))
    monkeypatch.delenv("WEIGHTSCAPE_REGISTRY", raising=False)
    return path


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Two shards of four models and of two, two checkpoints each; the run of model 1 diverged."""
    made = catalog.create(tmp_path / "nets.zoo", name="nets", variants=[net()], info={"licence": "CC0-1.0"})
    for shard in (0, 1):
        write(made, "net", shard)
    return tmp_path / "nets.zoo"


def test_publish_query_pull_verify(zoo: Path, tmp_path: Path) -> None:
    there = tmp_path / "published"
    plan = told("publish", zoo, there, "--dry-run")
    assert not there.exists()
    first = told("publish", zoo, there)
    assert (first["version"], first["changed"], first["bytes"]) == (1, True, plan["bytes"])
    assert "is version 1 already" in said("publish", zoo, there)

    rows = rows_of("query", there, "accuracy > 0.4", "--columns", "run,epoch")
    local = catalog.query(catalog.open(zoo), "accuracy > 0.4", columns=["run", "epoch"])
    assert rows == local.to_dicts()
    assert rows

    priced = told("pull", there, tmp_path / "part.zoo", "--where", "accuracy > 0.4", "--dry-run")
    assert not (tmp_path / "part.zoo").exists()
    pulled = told("pull", there, tmp_path / "part.zoo", "--where", "accuracy > 0.4")
    assert pulled["parts"] == [["net", 1]]
    assert pulled["bytes"] == priced["bytes"]
    assert pulled["rows"] == len(local)
    assert "sound" in said("verify", tmp_path / "part.zoo")
    part, whole = catalog.open(tmp_path / "part.zoo"), catalog.open(zoo)
    mine = whole.scan().filter(pl.col("model") >= 4).collect()
    assert (part.read(part.scan().collect()) == whole.read(mine)).all()

    checked = told("verify", there)
    assert checked["ok"]
    assert checked["digest"] == first["tree"]
    assert "sound" in said("verify", there, "--quick")


def test_verify_says_what_is_wrong_by_its_exit_status(zoo: Path, tmp_path: Path) -> None:
    said("publish", zoo, tmp_path / "published")
    shard = next((tmp_path / "published").rglob("c/1/0/0"))
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)
    done = call("verify", tmp_path / "published", "--json")
    assert done.exit_code == 1
    assert "c/1/0/0" in done.stdout
    assert not json.loads(done.stdout)["ok"]
    assert call("verify", tmp_path / "published", "--quick").exit_code == 0  # which reads no weights
    shard.write_bytes(data[:-1])
    assert call("verify", tmp_path / "published", "--quick").exit_code == 1


def test_a_registry(zoo: Path, tmp_path: Path) -> None:
    there, registry = tmp_path / "published", tmp_path / "registry.json"
    said("publish", zoo, there)
    known = ("--registry", registry)
    entry = told("register", "nets", "1.0.0", there, *known)
    assert entry["digest"] == catalog.verify(there).digest
    listed = rows_of("list", "ne*", *known)
    assert [row["name"] for row in listed] == ["nets"]
    assert rows_of("list", "x*", *known) == []
    opened = catalog.open("zoo:nets@stable", registry=registry)
    assert opened.name == "nets"
    assert "retracted" in said("retract", "nets", "1.0.0", "labels were shuffled", *known)
    with pytest.raises(catalog.errors.RetractedError, match="labels were shuffled"):
        catalog.open("zoo:nets@1.0.0", registry=registry)


def test_split_and_cache(zoo: Path, tmp_path: Path, cache: Path) -> None:
    counts = told("split", zoo, "--fractions", "0.5,0.3,0.2", "--seed", "3")
    assert counts == {"train": 3, "validation": 2, "test": 1}
    assert call("split", zoo, "--fractions", "half").exit_code == 1
    assert catalog.open(zoo).scan(None).select(pl.col("split").null_count()).collect().item() == 0
    (cache / "files" / "ab").mkdir(parents=True)
    (cache / "files" / "ab" / ("ab" * 32)).write_bytes(b"x" * 100)
    assert told("cache") == {"folder": str(cache), "bytes": 100, "freed": 0}
    assert told("cache", "clear", "--older-than", "1") == {"folder": str(cache), "bytes": 100, "freed": 0}
    assert told("cache", "clear") == {"folder": str(cache), "bytes": 0, "freed": 100}
    assert call("cache", "burn").exit_code == 1


def test_import_a_folder(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    (tmp_path / "nets").mkdir()
    for number in range(3):
        save_file({"w": np.full((2, 3), number, np.float32)}, tmp_path / "nets" / f"net{number}.safetensors")
    (tmp_path / "nets" / "broken.safetensors").write_bytes(b"no")
    plan = told("import", tmp_path / "nets", tmp_path / "nets.zoo", "--dry-run")
    assert plan["members"] == 4
    assert not (tmp_path / "nets.zoo").exists()
    text = said("import", tmp_path / "nets", tmp_path / "nets.zoo", "--name", "nets")
    assert "3 stored" in text
    assert "1 failed" in text
    assert "broken" in text
    assert "sound" in said("verify", tmp_path / "nets.zoo")


def test_explore(zoo: Path, tmp_path: Path) -> None:
    pytest.importorskip("altair")
    found = told("explore", zoo, tmp_path / "page.html", "--verify", "--title", "A <b>title</b>")
    page = (tmp_path / "page.html").read_text()
    assert found["bytes"] == len(page.encode())
    assert "<b>title" not in page


def test_serve_until_it_is_told_to_stop(zoo: Path) -> None:
    process = command("serve", zoo, "--port", "0")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split(" at ")[1].split(";")[0]
        assert catalog.open(url).scan().collect().equals(catalog.open(zoo).scan().collect())
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode in (0, 143)


def test_storage_options_reach_the_store(zoo: Path, bucket: str, s3_options: dict[str, object]) -> None:
    options = [text for name, value in s3_options.items() for text in ("--storage", f"{name}={_text(value)}")]
    said("publish", zoo, f"{bucket}/nets", *options)
    rows = rows_of("query", f"{bucket}/nets", "run = 'net-4'", "--columns", "run,epoch", *options)
    assert rows == [{"run": "net-4", "epoch": 0}, {"run": "net-4", "epoch": 10}]
    assert "sound" in said("verify", f"{bucket}/nets", *options)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
