"""`verify` finds every kind of damage in every kind of file: bare, packed, published, a slice. No torch."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import catalog
from catalog import check
from catalog.errors import StorageError, ZooError
from catalog.frames import write_rows, write_universe
from catalog.grid import Grid
from catalog.manifest import Manifest, decode_manifest
from catalog.metrics import Measurement, version_of, write_measurement
from catalog.publish import publish
from catalog.record import Variant
from catalog.sealed import seal
from catalog.store import Zoo
from catalog.verify import Verification, verify
from catalog.views import View, encode_rows
from tests.catalog_zoos import LAYOUT, fill, forge_fragment, long, manifest_of, net, tree
from weightspace.symmetry import Symmetry

FORMS = ("bare", "packed", "published", "slice")


def furnish(zoo: Zoo) -> None:
    """A measured column and an alignment."""
    rows = pl.DataFrame({"run": ["net-0", "net-3"], "epoch": [10, 10], "trace": [1.0, 3.0], "trace_reason": ["", ""]})
    write_measurement(zoo, Measurement("trace", version_of(1, {"n": 1}), {"n": 1}, True, rows, {"maker": "test"}))
    symmetry = Symmetry(LAYOUT, {"w": ("hidden", "inputs"), "b": ("hidden",)})
    moves, _ = encode_rows(symmetry, symmetry.random(2, 0), {})
    moved = {"run": ["net-0", "net-3"], "epoch": None, "permutations": moves, "scales": [b"", b""]}
    told = {"objective_before": 1.0, "objective_after": 2.0, "sweeps": 3, "finished": True, "certificate": 0.0}
    view = View("net", symmetry, np.arange(9, dtype=np.float32), {"method": "test"})
    table = pl.DataFrame({**moved, **told}, schema_overrides=view.rows.schema, strict=False)
    write_universe(zoo, "universe", view)
    write_rows(zoo, "universe", replace(view, rows=table))


def make_slice(folder: Path, record: Any) -> None:
    """Leave the first shard of each variant alone."""
    for path in [*folder.glob("index/*.0000[1-9].*"), *folder.glob("table.*")]:
        path.unlink()
    for number in (1, 2):
        for variant in record.variants:
            shutil.rmtree(folder / f"weights/{variant}/c/{number}", ignore_errors=True)
    shards = [[variant, 0] for variant in record.variants]
    content = {"format": 1, "of": "s3://lab/zoo", "version": 1, "tree": "0" * 64, "zoo": record.digest, "where": []}
    (folder / "slice.json").write_bytes(seal({**content, "shards": shards, "date": "2026-11-23"}))


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("forms")
    zoo, _ = fill(home / "bare")
    furnish(zoo)
    catalog.pack(home / "bare", home / "packed")
    publish(home / "bare", home / "published")
    shutil.copytree(home / "bare", home / "slice")
    make_slice(home / "slice", zoo.record)
    return {form: home / form for form in FORMS}


@pytest.fixture
def copy(request: pytest.FixtureRequest, forms: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(forms[request.param], tmp_path / "zoo"))


def every_form(test: Callable[..., None]) -> Any:
    return pytest.mark.parametrize("copy", FORMS, indirect=True)(test)


def one_form(form: str) -> Any:
    return pytest.mark.parametrize("copy", [form], indirect=True)


def looked_at(place: Any, **options: Any) -> Verification | ZooError:
    try:
        return verify(place, **options)
    except ZooError as error:
        return error


def found(place: Any, **options: Any) -> bool:
    result = looked_at(place, **options)
    return isinstance(result, ZooError) or not result.ok


def is_shard(name: str) -> bool:
    return "/c/" in name


@every_form
def test_sound_ones(copy: Path) -> None:
    whole, quick = verify(copy), verify(copy, quick=True)
    assert (whole.problems, quick.problems) == ((), ())
    assert replace(whole, quick=True) == quick
    files = {name: digest for name, digest in tree(copy).items() if not name.startswith(("manifest", "versions"))}
    if whole.version:
        assert files.pop("README.md", "") or True
        files.pop("croissant.json", "")
        files = {name.partition("/")[2]: digest for name, digest in files.items()}
        assert whole.digest == manifest_of(catalog.open(copy)).tree
    assert whole.files == len(files)
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    assert whole.digest == hashlib.sha256(lines.encode()).hexdigest()
    base = next(copy.rglob("zoo.json")).parent
    assert whole.bytes == sum((base / name).stat().st_size for name in files)
    assert whole.rows == (18 if copy.name != "slice" and not (copy / "slice.json").exists() else 10)
    assert verify(copy, workers=1) == whole


def kinds(folder: Path) -> dict[str, str]:
    """A file of each kind: what stays of its path without numbers and digests -> the first of them."""
    chosen: dict[str, str] = {}
    for name in sorted(tree(folder)):
        parts = [part for part in name.split("/") if part not in ("0", "1", "2") and len(part) != 12]
        parts[-1] = ".".join(part for part in parts[-1].split(".") if not part.isdigit() and len(part) != 32)
        chosen.setdefault("/".join(parts), name)
    return {kind: name for kind, name in chosen.items() if kind not in ("README.md", "croissant.json")}


def flip(path: Path, _: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def remove(path: Path, _: bytes) -> None:
    path.unlink()


def folder_instead(path: Path, _: bytes) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, bytes], object]] = {
    "flip": flip,
    "truncate": lambda path, _: path.write_bytes(path.read_bytes()[:-1]),
    "extra": lambda path, _: path.write_bytes(path.read_bytes() + b"\n"),
    "empty": lambda path, _: path.write_bytes(b""),
    "swap": lambda path, other: path.write_bytes(other),
    "delete": remove,
    "folder": folder_instead,
}
GONE = ("delete", "folder")
# nobody says that they were there; they are made anew, or measured again
LOSSES = ("table", "metrics/", "frames/")


@every_form
def test_every_damage_in_every_kind_of_file(copy: Path) -> None:
    files = kinds(copy)
    missed, seen = [], 0
    for kind, name in files.items():
        path = copy / name
        good = path.read_bytes()
        alike = [p for p in sorted(path.parent.glob("*")) if p.is_file() and p != path and p.suffix == path.suffix]
        other = (alike[0] if alike else next(copy.rglob("zarr.json"))).read_bytes()
        if is_shard(name):  # of another shard, of the same length where there is one
            others = [p for p in path.parents[2].rglob("*") if p.is_file() and p.read_bytes() != good]
            other = max(others, key=str, default=path.parents[3] / "zarr.json").read_bytes()
        for damage, inflict in DAMAGES.items():
            if other == good and damage == "swap":
                continue
            inflict(path, other)
            size = path.stat().st_size if path.is_file() else -1
            for quick in (False, True):
                seen += 1
                blind = quick and is_shard(name) and size == len(good)
                lost = damage in GONE and kind.startswith(LOSSES) and not (copy / "manifest.json").exists()
                if found(copy, quick=quick) == (blind or lost):
                    missed.append((kind, damage, quick))
            if path.is_dir():
                path.rmdir()
            path.write_bytes(good)
    assert not missed
    assert seen >= 2 * 6 * 8
    assert verify(copy).ok


@every_form
def test_problems_name_the_file(copy: Path) -> None:
    base = next(copy.rglob("zoo.json")).parent
    name = "weights/net/c/0/0/0"
    good = (base / name).read_bytes()
    for damage, kind in (("flip", "corrupt"), ("delete", "missing"), ("folder", "missing"), ("extra", "corrupt")):
        DAMAGES[damage](base / name, b"")
        (problem,) = verify(copy).problems
        assert (problem.kind, problem.file) == (kind, name)
        assert "restore it from a copy" in problem.message
        assert f"shard 0 of net in {base}" in problem.message
        if (base / name).is_dir():
            (base / name).rmdir()
        (base / name).write_bytes(good)
    (base / "weights/net/c/9").mkdir()
    (base / "weights/net/c/9/stranger").write_bytes(b"x")
    for quick in (False, True):
        assert [(p.kind, p.file) for p in verify(copy, quick=quick).problems] == [
            ("unknown", "weights/net/c/9/stranger")
        ]


# --- every checksum is right, and the content is not


def reseal(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_bytes())
    del content["digest"]
    change(content)
    path.write_bytes(seal(content))


def update(change: dict[str, Any], content: dict[str, Any]) -> None:
    content.update(change)


def republish(copy: Path, change: Callable[[Manifest], Manifest]) -> None:
    """A manifest that another publisher could have written, as the only version."""
    manifest = change(decode_manifest((copy / "manifest.json").read_bytes(), "manifest.json", ""))
    for name in ("manifest.json", "versions/1.json"):
        (copy / name).write_bytes(manifest.encode())


def renewed(copy: Path, old: str, new: str, data: bytes, **more: Any) -> None:
    """Put other bytes in the place of a published file, and say so in the manifest."""
    (base,) = (path.parent for path in copy.glob("*/zoo.json"))
    (base / old).unlink()
    (base / new).write_bytes(data)
    entry = check_entry(new, data)
    republish(
        copy,
        lambda m: replace(m, files={n: f for n, f in m.files.items() if n != old} | {new: entry}, **more),
    )


def check_entry(name: str, data: bytes) -> Any:
    from catalog.fragments import StoredFile

    return StoredFile(name, len(data), hashlib.sha256(data).hexdigest())


@one_form("published")
def test_a_manifest_that_says_something_else(copy: Path) -> None:
    manifest = catalog.open(copy).folder.manifest
    assert manifest
    republish(copy, lambda m: replace(m, counts={"ok": 18}))
    (problem,) = verify(copy, quick=True).problems
    assert (problem.kind, problem.file) == ("corrupt", "manifest.json")
    assert "the manifest counts {'ok': 18}" in problem.message
    republish(copy, lambda m: replace(manifest, name="other"))
    assert [p.file for p in verify(copy).problems] == ["manifest.json"]
    name = next(name for name in manifest.files if name.endswith("net.00000.parquet") or "index/net.00000" in name)
    republish(copy, lambda m: replace(manifest, files={n: f for n, f in manifest.files.items() if n != name}))
    kinds = {(p.kind, p.file) for p in verify(copy).problems}
    assert ("incomplete", "index/net.00000") in kinds
    assert ("unknown", name) in kinds
    shard = "weights/net/c/1/0/0"
    republish(copy, lambda m: replace(manifest, files={n: f for n, f in manifest.files.items() if n != shard}))
    assert {(p.kind, p.file) for p in verify(copy).problems} >= {("corrupt", shard)}


@one_form("published")
def test_a_table_that_lies(copy: Path) -> None:
    """Its name, digest and place are right; its rows are not those of the fragments and measured columns."""
    from catalog.parquet import columns_of

    manifest = catalog.open(copy).folder.manifest
    assert manifest
    path = copy / manifest.base / manifest.columns.path
    rows = pl.read_parquet(path)
    metadata = {"weightscape": pl.read_parquet_metadata(path)["weightscape"]}
    lies = {
        "accuracy": rows.with_columns(pl.lit(1.0).alias("accuracy")),
        "metric": rows.with_columns(pl.col("trace") + 1),
        "crc": rows.with_columns(pl.col("crc32c") ^ pl.lit(1, pl.UInt32)),
        "order": rows[::-1],
        "lacking": rows.drop("trace"),
        "short": rows[:-1],
        "more": rows.with_columns(pl.lit(1).alias("more")),
    }
    for table in lies.values():
        out = io.BytesIO()
        table.write_parquet(out, metadata=metadata)
        data = out.getvalue()
        name = f"catalog.{hashlib.sha256(data).hexdigest()[:32]}.parquet"
        renewed(copy, verify_columns(copy), name, data, columns=columns_of(name, data))
        for quick in (True, False):
            assert [(p.kind, p.file) for p in verify(copy, quick=quick).problems] == [("corrupt", name)]
    # the map says where columns lie: that of another column is no good
    out = io.BytesIO()
    rows.write_parquet(out, metadata=metadata)
    name = f"catalog.{hashlib.sha256(out.getvalue()).hexdigest()[:32]}.parquet"
    columns = columns_of(name, out.getvalue())
    swapped = {**columns.chunks, "model": columns.chunks["checkpoint"], "checkpoint": columns.chunks["model"]}
    renewed(copy, verify_columns(copy), name, out.getvalue(), columns=columns)
    assert verify(copy).ok
    republish(copy, lambda m: replace(m, columns=replace(columns, chunks=swapped)))
    assert ["columns" in p.message for p in verify(copy).problems] == [True]


def verify_columns(copy: Path) -> str:
    manifest = catalog.open(copy).folder.manifest
    assert manifest
    return manifest.columns.path


@one_form("published")
def test_versions(copy: Path, forms: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(forms["bare"], source)
    rows = pl.DataFrame({"run": ["net-0"], "epoch": [0], "loss": [1.0], "loss_reason": [""]})
    write_measurement(catalog.open(source), Measurement("loss", version_of(1, {}), {}, True, rows, {"maker": "test"}))
    assert publish(source, copy).version == 2
    first, second = (verify(copy / "versions" / f"{number}.json") for number in (1, 2))
    assert first.ok
    assert second == verify(copy)
    assert (first.version, second.version, second.files - first.files) == (1, 2, 1)
    (copy / "versions/1.json").rename(tmp_path / "1.json")
    assert [(p.kind, p.file) for p in verify(copy, quick=True).problems if p.kind != "unknown"] == [
        ("missing", "versions/1.json")
    ]
    (tmp_path / "1.json").rename(copy / "versions/1.json")
    republished = decode_manifest((copy / "versions/1.json").read_bytes(), "", "")
    (copy / "versions/1.json").write_bytes(replace(republished, created="2020-01-01").encode())
    assert [p.file for p in verify(copy, quick=True).problems] == ["versions/1.json"]
    (copy / "versions/1.json").write_bytes((copy / "versions/2.json").read_bytes())
    assert [p.file for p in verify(copy, quick=True).problems] == ["versions/1.json"]


@one_form("slice")
def test_a_slice_lacks_what_it_says_and_no_more(copy: Path) -> None:
    shutil.rmtree(copy / "weights/long/c/0")
    next(copy.glob("index/long.00000.*")).unlink()
    assert [(p.kind, p.file) for p in verify(copy).problems] == [("incomplete", "index/long.00000")]
    reseal(copy / "slice.json", lambda content: content.update(shards=[["net", 0]]))
    assert verify(copy).ok
    changes: list[dict[str, Any]] = [
        {"zoo": "0" * 64},
        {"shards": [["net", 9]]},
        {"shards": [["../x", 0]]},
        {"shards": 7},
        {"shards": [["net"]]},
        {"format": 2},
    ]
    for change in changes:
        reseal(copy / "slice.json", partial(update, change))
        problems = [(p.kind, p.file) for p in verify(copy, quick=True).problems]
        assert ("corrupt", "slice.json") in problems
        reseal(copy / "slice.json", lambda content: content.update(shards=[["net", 0]], format=1))
        reseal(copy / "slice.json", lambda content: content.update(zoo=catalog.open(copy).record.digest))


# --- how it reads


@pytest.mark.parametrize("tier", ["hot", "packed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_are_checked_in_files_that_are_as_committed(
    tier: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fragments that claim other rows than their files hold, or files of swapped shards; also read in pieces."""
    part = Variant("part", {"family": "mlp"}, LAYOUT, Grid((5, 2, 9), (2, 1, 2), (4, 2, 4), dtype))
    fill(tmp_path / "hot", net(dtype=dtype), long(dtype=dtype), part)
    if tier == "packed":
        catalog.pack(tmp_path / "hot", tmp_path / "packed")
    folder = tmp_path / tier
    next(folder.glob("table.*")).unlink()
    assert verify(folder).ok
    for held in (check.HELD, 64):
        monkeypatch.setattr(check, "HELD", held)
        monkeypatch.setattr(check, "PIECE", 1000 if held == 64 else check.PIECE)
        assert verify(folder).ok
        for path in sorted(folder.glob("index/*.00000.*")):
            good = path.read_bytes()
            rows = pl.read_parquet(path)
            changed = rows.with_columns(pl.Series("crc32c", [*rows["crc32c"][:-1], 7], pl.UInt32))
            out = io.BytesIO()
            changed.write_parquet(out, metadata={"weightscape": pl.read_parquet_metadata(path)["weightscape"]})
            forged = forge_fragment(folder, f"index/{path.name}", out.getvalue())
            (problem,) = verify(folder).problems
            assert "not those committed" in problem.message
            assert verify(folder, quick=True).ok
            (folder / forged).unlink()
            path.write_bytes(good)


def test_far_away(
    forms: dict[str, Path], bucket: str, s3_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes come from there, not from a cache that has the right ones."""
    from tests.servers import put

    monkeypatch.setattr(check, "HELD", 300)  # some files whole, some in pieces
    for form, damaged in (("bare", ["zoo.json"]), ("published", ["weights/net/c/0/0/0", "weights/zarr.json"])):
        url = f"{bucket}/{form}"
        filesystem = put(forms[form], url, **s3_options)
        zoo = catalog.open(url, **s3_options)
        zoo.read(zoo.scan().filter(pl.col("variant") == "net"))  # into the cache
        sound = verify(url, **s3_options)
        assert (sound.ok, sound.digest) == (True, verify(forms[form]).digest)
        base = zoo.folder.root
        for name in damaged:
            good = filesystem.cat_file(f"{base}/{name}")
            filesystem.pipe_file(f"{base}/{name}", good[:-1] + bytes([good[-1] ^ 1]))
            assert found(url, **s3_options)
            for data in (good[:-1], good + b"x"):
                filesystem.pipe_file(f"{base}/{name}", data)
                assert found(url, quick=True, **s3_options)
            filesystem.pipe_file(f"{base}/{name}", good)


@one_form("published")
def test_over_http(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    from catalog.serve import Serving

    asked: list[tuple[str, str, int, int]] = []
    with Serving(copy, log=lambda *said: asked.append(said)) as url:
        assert verify(url).digest == verify(copy).digest
        del asked[:]
        assert verify(url, quick=True).problems == ()
        assert not [count for _, path, _, count in asked if is_shard(path) and "." not in path and count > 1000]
        assert {method for method, path, _, _ in asked if path.endswith("/c/0/0/0")} == {"HEAD"}
        path = copy / manifest_of(catalog.open(copy)).base / "weights/net/c/0/0/0"
        flip(path, b"")
        assert [(p.kind, p.file) for p in verify(url).problems] == [("corrupt", "weights/net/c/0/0/0")]
        assert verify(url, quick=True).ok
        path.write_bytes(b"")
        assert not verify(url, quick=True).ok


@one_form("bare")
def test_a_quick_look_reads_no_shard(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = check._open

    def noted(folder: Any, name: str) -> Any:
        read.append(name)
        return real(folder, name)

    monkeypatch.setattr(check, "_open", noted)
    assert verify(copy, quick=True).ok
    assert read
    assert not [name for name in read if is_shard(name)]
    del read[:]
    assert verify(copy).ok
    assert sorted(name for name in read if is_shard(name)) == sorted(name for name in tree(copy) if is_shard(name))


@one_form("bare")
def test_progress_and_errors(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, int]] = []
    result = verify(copy, lambda *counts: said.append(counts))
    assert said[-1] == (result.files, result.files)
    assert said == sorted(said)
    with pytest.raises(KeyboardInterrupt):
        verify(copy, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))

    def refuse(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.pread", refuse)
    with pytest.raises(StorageError, match=r"Input/output error"):
        verify(copy)
