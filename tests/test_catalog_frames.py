"""Frames on disk: permutations and scales of runs, seen when weights are read, and exactly undone. No torch."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import catalog
from catalog.errors import CorruptError, FormatError, MissingDataError, QueryError, UnknownNameError
from catalog.fragments import KEY, read_content, write_parquet
from catalog.frames import compact_frame, frame_files, write_rows, write_universe
from catalog.store import Zoo
from catalog.verify import verify
from catalog.views import COLUMNS, View, encode_rows, smallest
from tests.catalog_zoos import LAYOUT, Truth, fill, forge_fragment, net
from weightspace.layout import Layout
from weightspace.symmetry import Scale, Symmetry

SYMMETRY = Symmetry(
    LAYOUT,
    {"w": ("hidden", "inputs"), "b": ("hidden",)},
    scales=(Scale("hidden", "positive", (("w", 0, 1), ("b", 0, 1))),),
)
RUNS = ("net-0", "net-2", "net-3", "net-4")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Zoo, Truth]:
    return fill(tmp_path / "zoo", net())


def aligned(
    runs: tuple[str, ...] = RUNS, epoch: int | None = None, seed: int = 0, scaled: bool = True, **changes: Any
) -> View:
    """A view with permutations and scales drawn from a seed; the same runs get the same ones."""
    permutations = SYMMETRY.random(len(RUNS), seed)
    scales = {"hidden": 2.0 ** np.random.default_rng(seed).integers(-3, 4, (len(RUNS), 2))}
    moves, factors = encode_rows(SYMMETRY, permutations, scales if scaled else {})
    chosen = [RUNS.index(run) for run in runs]
    rows = pl.DataFrame(
        {
            "run": runs,
            "epoch": [epoch] * len(runs),
            "permutations": [moves[place] for place in chosen],
            "scales": [factors[place] for place in chosen],
            "objective_before": 1.0,
            "objective_after": 2.0,
            "sweeps": 3,
            "finished": True,
            "certificate": 0.0,
        },
        schema_overrides=COLUMNS,
    )
    view = View("net", SYMMETRY, np.arange(9, dtype=np.float32), {"method": "universe"}, rows=rows)
    return replace(view, **changes)


def commit(zoo: Zoo, view: View | None = None, frame: str = "universe") -> None:
    view = view or aligned()
    write_universe(zoo, frame, view)
    write_rows(zoo, frame, view)


def expected(truth: Truth, model: int, checkpoint: int, seed: int = 0) -> np.ndarray:
    """What a row looks like in the frame, by hand: hidden unit i comes from p[i], multiplied by its scale."""
    place = RUNS.index(f"net-{model}")
    p = {name: array[place] for name, array in SYMMETRY.random(len(RUNS), seed).items()}
    s = 2.0 ** np.random.default_rng(seed).integers(-3, 4, (len(RUNS), 2))[place]
    row = truth["net", model, checkpoint]
    w, b = row[:6].reshape(2, 3) * s[:, None], row[6:8] * s
    return np.concatenate([w[p["hidden"]][:, p["inputs"]].ravel(), b[p["hidden"]], row[8:]])


def test_reading_in_a_frame_moves_every_checkpoint_of_a_run(made: tuple[Zoo, Truth]) -> None:
    zoo, truth = made
    commit(zoo)
    opened = catalog.open(zoo.url)
    rows = opened.scan().filter(pl.col("run").is_in(RUNS)).collect()
    seen = opened.read(rows, frame="universe")
    places = rows.select("model", "checkpoint").rows()
    assert len(places) == 8
    np.testing.assert_array_equal(seen, [expected(truth, *place) for place in places])
    assert not np.array_equal(seen, opened.read(rows))


def test_a_view_undoes_what_it_does_to_the_bit(made: tuple[Zoo, Truth]) -> None:
    zoo, _ = made
    commit(zoo)
    rows = zoo.scan().filter(pl.col("run").is_in(RUNS)).collect()
    view = zoo.frame("universe")
    places = [view.place(run, epoch) for run, epoch in rows.select("run", "epoch").iter_rows()]
    raw, seen = zoo.read(rows), zoo.read(rows, frame="universe")
    assert None not in places
    np.testing.assert_array_equal(view.apply(seen, [p for p in places if p is not None], inverse=True), raw)


def test_torch_and_other_types_are_moved_alike(made: tuple[Zoo, Truth]) -> None:
    torch = pytest.importorskip("torch")
    zoo, _ = made
    commit(zoo)
    rows = zoo.scan().filter(pl.col("run").is_in(RUNS)).collect()
    seen = zoo.read(rows, frame="universe")
    torch.testing.assert_close(zoo.read(rows, frame="universe", torch=True), torch.from_numpy(seen), rtol=0, atol=0)
    wide = zoo.read(rows, frame="universe", dtype="float64")
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(wide, seen)


def test_some_tensors_alone(made: tuple[Zoo, Truth]) -> None:
    zoo, _ = made
    commit(zoo)
    rows = zoo.scan().filter(pl.col("run").is_in(RUNS)).collect()
    whole = zoo.read(rows, frame="universe")
    np.testing.assert_array_equal(zoo.read(rows, ["b"], frame="universe"), whole[:, 6:8])


def test_rows_that_came_with_their_address_alone_are_found(made: tuple[Zoo, Truth]) -> None:
    zoo, truth = made
    commit(zoo)
    rows = pl.DataFrame({"variant": ["net"], "model": [3], "checkpoint": [1]})
    np.testing.assert_array_equal(zoo.read(rows, frame="universe")[0], expected(truth, 3, 1))


def test_permutations_of_one_epoch_go_before_those_of_the_run(made: tuple[Zoo, Truth]) -> None:
    zoo, truth = made
    commit(zoo)
    write_rows(zoo, "universe", aligned(("net-2",), epoch=10, seed=5))
    rows = zoo.scan().filter(pl.col("run") == "net-2").sort("epoch").collect()
    seen = zoo.read(rows, frame="universe")
    np.testing.assert_array_equal(seen[0], expected(truth, 2, 0, seed=0))
    np.testing.assert_array_equal(seen[1], expected(truth, 2, 1, seed=5))


def test_a_row_that_is_not_aligned_is_an_error_that_says_how_to_add_it(made: tuple[Zoo, Truth]) -> None:
    zoo, _ = made
    commit(zoo, aligned(("net-0",)))
    with pytest.raises(MissingDataError, match=r"run net-2 at epoch 0 is not in frame 'universe'.*weightscape align"):
        zoo.read(zoo.scan(), frame="universe")


def test_unknown_frames_and_variants_without_one(tmp_path: Path) -> None:
    zoo, _ = fill(tmp_path / "two")  # net and long
    with pytest.raises(UnknownNameError, match=r"has no frame 'universe', nor any other; `weightscape align"):
        zoo.read(zoo.scan().filter(pl.col("variant") == "net"), frame="universe")
    commit(zoo)
    with pytest.raises(UnknownNameError, match="did you mean 'universe'"):
        zoo.read(zoo.scan().filter(pl.col("variant") == "net"), frame="univers")
    with pytest.raises(MissingDataError, match="does not have long"):
        zoo.read(zoo.scan().filter(pl.col("variant") == "long"), frame="universe")
    with pytest.raises(QueryError, match="2 variants"):
        zoo.frame("universe")
    assert zoo.frames() == {"universe": ("net",)}
    assert len(zoo.frame("universe", "net").rows) == 4


def test_a_frame_without_its_universe_does_not_exist(made: tuple[Zoo, Truth]) -> None:
    zoo, _ = made
    write_rows(zoo, "universe", aligned())
    assert zoo.frames() == {}
    assert verify(zoo.url).ok


def test_files_of_rows_become_one(made: tuple[Zoo, Truth]) -> None:
    zoo, _ = made
    commit(zoo, aligned(("net-0",)))
    write_rows(zoo, "universe", aligned(("net-2", "net-3")))
    write_rows(zoo, "universe", aligned(("net-3", "net-4")))  # net-3 again: the same thing, matched twice
    rows = zoo.scan().filter(pl.col("run").is_in(RUNS))
    before = zoo.read(rows, frame="universe")
    compact_frame(zoo, "universe", "net")
    assert len(frame_files(zoo.folder)["universe", "net", "rows"]) == 1
    np.testing.assert_array_equal(catalog.open(zoo.url).read(rows, frame="universe"), before)


def test_rows_of_another_universe_or_other_settings_are_refused(made: tuple[Zoo, Truth]) -> None:
    zoo, _ = made
    commit(zoo, aligned(("net-0",)))
    for change in ({"universe": np.ones(9, np.float32), "origin": ""}, {"settings": {"method": "reference"}}):
        name = write_rows(zoo, "universe", aligned(("net-2",), **change))
        with pytest.raises(FormatError, match="another universe or with other settings"):
            catalog.open(zoo.url).frame("universe")
        zoo.folder.remove(name)


def test_a_zoo_that_cannot_be_written_has_its_frames_beside(made: tuple[Zoo, Truth], tmp_path: Path) -> None:
    zoo, _ = made
    beside = catalog.open(zoo.url, metrics_at=tmp_path / "beside")
    commit(beside)
    assert zoo.frames() == {}
    assert (tmp_path / "beside" / "frames" / "universe").is_dir()
    rows = zoo.scan().filter(pl.col("run").is_in(RUNS))
    assert beside.read(rows, frame="universe").shape == (8, 9)


def test_packing_carries_frames_there_and_back(made: tuple[Zoo, Truth], tmp_path: Path) -> None:
    zoo, _ = made
    commit(zoo)
    rows = zoo.scan().filter(pl.col("run").is_in(RUNS))
    packed = catalog.pack(zoo.url, tmp_path / "packed").zoo
    np.testing.assert_array_equal(packed.read(rows, frame="universe"), zoo.read(rows, frame="universe"))
    back = catalog.unpack(packed.url, tmp_path / "back").zoo
    assert verify(back.url).digest == verify(zoo.url).digest


def test_verify_finds_every_flipped_byte(made: tuple[Zoo, Truth]) -> None:
    zoo, _ = made
    commit(zoo)
    files = sorted((Path(zoo.url) / "frames" / "universe").iterdir())
    assert len(files) == 2
    for file in files:
        good = file.read_bytes()
        for place in np.random.default_rng(0).integers(0, len(good), 20).tolist():
            file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            found = verify(zoo.url)
            assert [problem.kind for problem in found.problems] == ["corrupt"]
            with pytest.raises(CorruptError, match="damaged"):
                catalog.open(zoo.url).frame("universe")
        file.write_bytes(good)
    assert verify(zoo.url).ok


def hostile(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Contents of a universe's metadata that are wrong in one way each."""
    symmetry = content["symmetry"]
    axes = {**symmetry["axes"], "w": ["hidden", "hidden"]}
    return [
        {**content, "format": 2},
        {**content, "frame": "other"},
        {**content, "scales": "pickle"},
        {**content, "settings": 3},
        {**content, "symmetry": []},
        {**content, "symmetry": {**symmetry, "axes": axes}},
        {**content, "symmetry": {**symmetry, "groups": {"hidden": {"size": 10**12, "parent": None, "fixed": False}}}},
        {**content, "symmetry": {**symmetry, "groups": {"hidden": {"size": 2, "parent": "hidden", "fixed": False}}}},
        {**content, "symmetry": {**symmetry, "groups": {"hidden": {"size": 2, "parent": "no", "fixed": False}}}},
        {**content, "origin": "0" * 32},
        {key: value for key, value in content.items() if key != "symmetry"},
    ]


def test_what_a_stranger_writes_is_checked(made: tuple[Zoo, Truth]) -> None:
    zoo, _ = made
    commit(zoo)
    ((name,),) = [files for (_, _, kind), files in frame_files(zoo.folder).items() if kind == "universe"]
    good = zoo.folder.read(name)
    rows = pl.DataFrame({"universe": [aligned().universe.astype("<f4").tobytes()]})
    content = read_content(good)
    for forged in hostile(content):
        now = forge_fragment(Path(zoo.url), name, write_parquet(rows, {KEY: json.dumps(forged)}))
        with pytest.raises(FormatError, match="does not follow format 1"):
            catalog.open(zoo.url).frame("universe")
        (Path(zoo.url) / now).unlink()
    for bad in (np.ones(8, "<f4"), np.full(9, np.nan, "<f4")):
        data = write_parquet(pl.DataFrame({"universe": [bad.tobytes()]}), {KEY: json.dumps(content)})
        now = forge_fragment(Path(zoo.url), name, data)
        with pytest.raises(FormatError, match="9 finite numbers"):
            catalog.open(zoo.url).frame("universe")
        (Path(zoo.url) / now).unlink()
    (Path(zoo.url) / name).write_bytes(good)
    (Path(zoo.url) / "frames" / "universe" / "net.py").write_text("")
    with pytest.raises(FormatError, match="no file of a frame"):
        catalog.open(zoo.url).frames()


@pytest.mark.parametrize("moves", [b"", b"\x00\x01\x00\x01", b"\x00\x00\x00\x01\x02", b"\x00\x02\x00\x01\x02"])
def test_permutations_that_are_none_are_refused_when_read(made: tuple[Zoo, Truth], moves: bytes) -> None:
    zoo, _ = made
    view = aligned(("net-0",))
    commit(zoo, replace(view, rows=view.rows.with_columns(permutations=pl.lit(moves, pl.Binary))))
    with pytest.raises(ValueError, match=r"no permutation|bytes a row"):
        zoo.read(zoo.scan().filter(pl.col("run") == "net-0"), frame="universe")


def test_a_frame_of_another_zoo_is_refused(made: tuple[Zoo, Truth], tmp_path: Path) -> None:
    zoo, _ = made
    commit(zoo)
    other, _ = fill(tmp_path / "other", net(), name="other")
    shutil.copytree(Path(zoo.url) / "frames", Path(other.url) / "frames")
    with pytest.raises(CorruptError, match="of another zoo"):
        other.frame("universe")


def test_names_that_are_none(made: tuple[Zoo, Truth]) -> None:
    zoo, _ = made
    for name in ("", "../up", "a/b", "Universe", "a" * 65):
        with pytest.raises(FormatError, match="no name of a frame"):
            write_rows(zoo, name, aligned())


@pytest.mark.parametrize(("size", "width"), [(2, 1), (256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_permutations_take_the_smallest_type_and_come_back(size: int, width: int) -> None:
    symmetry = Symmetry(Layout(("b",), ((size,),)), {"b": ("units",)})
    permutations = symmetry.random(2, 1)
    moves, _ = encode_rows(symmetry, permutations, {})
    assert [len(move) for move in moves] == [width * size] * 2
    assert smallest(size).itemsize == width
    rows = pl.DataFrame({"run": ["a", "b"], "epoch": [None, None], "permutations": moves, "scales": [b"", b""]})
    found, scales = View("net", symmetry, np.zeros(size), {}, rows=rows).decode([1, 0])
    np.testing.assert_array_equal(found["units"], permutations["units"][::-1])
    assert not scales


def test_scales_as_float32_and_scales_that_are_no_powers_of_two() -> None:
    factors = {"hidden": np.array([[3.0, 0.1]])}
    with pytest.raises(ValueError, match="powers of two"):
        encode_rows(SYMMETRY, SYMMETRY.identity(1), factors)
    moves, scales = encode_rows(SYMMETRY, SYMMETRY.identity(1), factors, "float32")
    rows = pl.DataFrame({"run": ["a"], "epoch": [None], "permutations": moves, "scales": scales})
    _, found = View("net", SYMMETRY, np.zeros(9), {}, "float32", rows).decode([0])
    np.testing.assert_array_equal(found["hidden"], factors["hidden"].astype(np.float32))
