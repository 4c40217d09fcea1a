"""Generators as folders: the same networks from what was stored, and a typed error for every other byte."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog.errors import (
    CorruptError,
    FormatError,
    GeneratorError,
    MissingDataError,
    SpecMismatchError,
    UnknownNameError,
    ZooError,
)
from catalog.store import Zoo
from generators.generator import Generator
from generators.kinds import GENERATORS, fit
from generators.population import population
from generators.stored import CODEC, LOG, NETWORK, RECORD, _encode, load, population_of, save
from generators.train import train
from tests.generator_zoos import moons

SMALL: dict[str, Any] = {"iterations": 20, "batch_size": 8, "width": 16, "depth": 1, "steps": 4}


@pytest.fixture(scope="session")
def moons_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return moons(tmp_path_factory.mktemp("stored"))


@pytest.fixture(scope="session")
def stored(moons_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> tuple[Generator, Path]:
    """A trained flow and the folder that `train` made."""
    folder = tmp_path_factory.mktemp("generators") / "flow"
    made = train(moons_zoo, folder, settings={**SMALL, "conditions": "label_noise"}, seed=2)
    assert made is not None
    return made, folder


@pytest.fixture
def copy(stored: tuple[Generator, Path], tmp_path: Path) -> Path:
    """The folder, to be spoiled."""
    return Path(shutil.copytree(stored[1], tmp_path / "copy"))


def test_a_flow_comes_back_without_its_zoo(stored: tuple[Generator, Path], copy: Path) -> None:
    made, found = stored[0], load(copy)
    assert sorted(path.name for path in copy.iterdir()) == [CODEC, RECORD, LOG, NETWORK]
    asked = {"label_noise": 0.1}
    assert np.array_equal(found.sample(7, seed=4, conditions=asked), made.sample(7, seed=4, conditions=asked))
    assert np.array_equal(found.sample(7), made.sample(7))
    assert found.fingerprint == made.fingerprint
    assert found.conditions == made.conditions
    assert found.history == list(made.history)
    for name in ("settings", "source", "cost"):
        assert json.dumps(getattr(found, name)) == json.dumps(getattr(made, name))
    assert found.cost["iterations"] == 20


def test_a_flow_comes_back_from_a_web_server(stored: tuple[Generator, Path]) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(stored[1])))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        found = load(f"http://127.0.0.1:{server.server_port}")
        assert np.array_equal(found.sample(2), stored[0].sample(2))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("kind", [name for name, kind in GENERATORS.items() if kind.baseline])
def test_a_baseline_is_fitted_again(moons_zoo: Zoo, tmp_path: Path, kind: str) -> None:
    made = train(moons_zoo, tmp_path / kind, kind)
    assert made is not None
    assert [path.name for path in (tmp_path / kind).iterdir()] == [RECORD]
    found = load(tmp_path / kind)
    assert np.array_equal(found.sample(5, seed=1), made.sample(5, seed=1))
    assert found.fingerprint == made.fingerprint


def test_a_baseline_takes_the_zoo_it_was_fitted_to_wherever_it_is(moons_zoo: Zoo, tmp_path: Path) -> None:
    made = fit("noise_small", population(moons_zoo), {"level": 0.2})
    save(replace(made, source={**made.source, "url": "gone.zoo"}), tmp_path / "one")
    with pytest.raises(ZooError, match=r"gone\.zoo is no zoo"):
        load(tmp_path / "one")
    shutil.copytree(moons_zoo.url, tmp_path / "moved.zoo")
    found = load(tmp_path / "one", str(tmp_path / "moved.zoo"))
    assert np.array_equal(found.sample(5), made.sample(5))
    assert found.settings == {**made.settings, "level": 0.2}
    other = moons(tmp_path, seeds=20)
    with pytest.raises(GeneratorError, match="does not hold what this generator learned from: 20 of 24 rows"):
        load(tmp_path / "one", other)


def test_the_population_comes_back(moons_zoo: Zoo) -> None:
    chosen = population(moons_zoo, "label_noise < 0.05", epoch=1, seed=5)
    found = population_of(json.loads(json.dumps(chosen.source())))
    assert found.fingerprint == chosen.fingerprint
    assert np.array_equal(found.read("test"), chosen.read("test"))


# What is not as it was written


@pytest.mark.parametrize("name", [RECORD, NETWORK, CODEC, LOG])
def test_every_byte_is_checked(copy: Path, name: str) -> None:
    path = copy / name
    whole = path.read_bytes()
    for place in np.unique(np.linspace(0, len(whole) - 1, 40).astype(int)):
        spoiled = bytearray(whole)
        spoiled[place] ^= 1
        path.write_bytes(spoiled)
        with pytest.raises((CorruptError, FormatError), match=name.replace(".", r"\.") + "|format"):
            load(copy)
    for spoiled in (whole[:-1], whole + b"x", b""):
        path.write_bytes(spoiled)
        with pytest.raises(CorruptError, match=name.replace(".", r"\.")):
            load(copy)
    path.unlink()
    with pytest.raises(GeneratorError if name == RECORD else MissingDataError, match=name.replace(".", r"\.")):
        load(copy)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change `generator.json` and make its digest right again."""
    content = json.loads((folder / RECORD).read_text())
    del content["digest"]
    change(content)
    (folder / RECORD).write_bytes(_encode(content))


def nested(content: dict[str, Any]) -> None:
    content["settings"]["width"] = {"deep": 1}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda content: content.update(format=2), FormatError, "format 2; this weightscape reads format 1"),
        (lambda content: content.update(format=True), FormatError, "names no format"),
        (lambda content: content.update(kind="diffusion"), FormatError, "unknown here"),
        (lambda content: content.update(kind=7), FormatError, "kind missing or of another type"),
        (lambda content: content.pop("history"), FormatError, "history missing"),
        (lambda content: content.pop("content"), FormatError, "content missing"),
        (lambda content: content.pop("conditions"), FormatError, "conditions"),
        (lambda content: content["files"].update({"../x": {}}), FormatError, "unknown files"),
        (lambda content: content["files"].pop(NETWORK), FormatError, "not listed"),
        (lambda content: content["settings"].update(colour=1), FormatError, "unknown setting of a flow 'colour'"),
        (lambda content: content["settings"].pop("seed"), FormatError, "'seed' is missing"),
        (nested, FormatError, "width of a flow must be an integer"),
        (lambda content: content["settings"].update(width=32), FormatError, "not those of its recipe"),
        (lambda content: content["settings"].update(steps=5), CorruptError, "fingerprint"),
        (lambda content: content["source"].pop("architecture"), FormatError, "'architecture' is missing"),
        (lambda content: content["source"]["architecture"]["numbers"].update(width=9), FormatError, "another layout"),
    ],
)
def test_what_does_not_follow_the_format_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], object], error: type[Exception], said: str
) -> None:
    rewrite(copy, change)
    with pytest.raises(error, match=said):
        load(copy)


def test_tensors_that_are_not_finite_are_refused(stored: tuple[Generator, Path], tmp_path: Path) -> None:
    import copy as copying

    draw: Any = copying.deepcopy(stored[0].draw)
    next(draw.network.parameters()).data[0] = float("nan")
    save(replace(stored[0], draw=draw), tmp_path)
    with pytest.raises(FormatError, match="not all finite"):
        load(tmp_path)


def test_a_folder_without_a_generator(tmp_path: Path, moons_zoo: Zoo) -> None:
    for folder in (tmp_path / "nothing", moons_zoo.url):
        with pytest.raises(GeneratorError, match=r"holds no generator: no generator\.json"):
            load(folder)


def test_another_generator_is_not_overwritten(stored: tuple[Generator, Path], copy: Path) -> None:
    save(stored[0], copy)
    with pytest.raises(SpecMismatchError, match="holds another generator"):
        save(replace(stored[0], settings={**stored[0].settings, "steps": 5}), copy)
    assert load(copy).fingerprint == stored[0].fingerprint
    with pytest.raises(GeneratorError, match="only what a flow draws with"):
        save(replace(stored[0], draw=lambda *_: np.empty(0)), copy / "own")
    with pytest.raises(GeneratorError, match="written to a local folder"):
        save(stored[0], "memory://somewhere")


# Training in one call


def test_the_same_call_returns_what_is_there(stored: tuple[Generator, Path], moons_zoo: Zoo) -> None:
    made, folder = stored
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    settings = {**SMALL, "conditions": "label_noise"}
    found = train(moons_zoo.url, folder, settings=settings, seed=2, on_step=lambda *_: pytest.fail("trained again"))
    assert found is not None
    assert found.fingerprint == made.fingerprint
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(SpecMismatchError, match="batch_size is 8 there, 4 was asked for"):
        train(moons_zoo, folder, settings={**settings, "batch_size": 4}, seed=2)
    with pytest.raises(SpecMismatchError, match="kind is 'flow' there, 'soup'"):
        train(moons_zoo, folder, "soup")
    with pytest.raises(SpecMismatchError, match="population is"):
        train(moons_zoo, folder, settings=settings, seed=2, epoch=1)


def test_a_training_that_stopped_goes_on(moons_zoo: Zoo, stored: tuple[Generator, Path], tmp_path: Path) -> None:
    def stop(step: int, of: int, values: Any) -> None:
        if step == 10:
            raise KeyboardInterrupt

    settings = {**SMALL, "conditions": "label_noise"}
    with pytest.raises(KeyboardInterrupt):
        train(moons_zoo, tmp_path, settings=settings, seed=2, on_step=stop)
    assert not (tmp_path / RECORD).exists()
    with pytest.raises(SpecMismatchError, match="holds another generator"):
        train(moons_zoo, tmp_path, settings=SMALL, seed=2)
    again = train(moons_zoo, tmp_path, settings=settings, seed=2)
    assert again is not None
    assert again.fingerprint == stored[0].fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == [CODEC, RECORD, LOG, NETWORK]


def test_a_dry_run_writes_nothing(moons_zoo: Zoo, tmp_path: Path) -> None:
    costs: list[Any] = []
    assert train(moons_zoo, tmp_path / "dry", settings=SMALL, on_cost=costs.append, dry_run=True) is None
    assert train(moons_zoo, tmp_path / "dry", "soup", dry_run=True) is None
    assert costs[0].iterations == 20
    assert not (tmp_path / "dry").exists()


def test_what_cannot_be_trained_is_said_before(moons_zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "bad"
    with pytest.raises(UnknownNameError, match=r"unknown generator 'sop'.*did you mean 'soup'"):
        train(moons_zoo, out, "sop")
    with pytest.raises(UnknownNameError, match="unknown preset"):
        train(moons_zoo, out, preset="x")
    with pytest.raises(GeneratorError, match="presets are for flows"):
        train(moons_zoo, out, "soup", preset="weightscape")
    with pytest.raises(UnknownNameError, match="no frame 'universe'"):
        train(moons_zoo, out, frame="universe")
    with pytest.raises(UnknownNameError, match="unknown setting"):
        train(moons_zoo, out, settings={"colour": 1})
    assert not out.exists()
