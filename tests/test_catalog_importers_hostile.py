"""Sources from strangers: typed errors or failed rows with a reason, within limits, and nothing outside is read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import catalog
from catalog.errors import SourceError, ZooError
from catalog.importers import import_zoo, values
from catalog.importers.found import BrokenError
from catalog.importers.place import LocalBlob, Place
from catalog.importers.tensors import open_safetensors
from tests.import_sources import (
    check,
    repositories,
    save_safetensors,
    small_cnn_zoo,
    tensors,
    weights_folder,
    write_shards,
)

ROOT = Path(__file__).parent.parent


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of this header, whatever it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: list[Any], start: int, stop: int, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no safetensors file"),
    "seven bytes": (b"1234567", "no safetensors file"),
    "header longer than the file": (raw({}, length=1 << 40), "no safetensors file"),
    "header of 2**64 - 1": (raw({}, length=2**64 - 1), "no safetensors file"),
    "header of a list": (raw([1]), "header that is none"),
    "header that is no JSON": (raw(b"{'a': 1}"), "header that is none"),
    "header nested deeply": (raw(b"[" * 100_000 + b"]" * 100_000), "header that is none"),
    "key twice": (raw(b'{"a": {}, "a": {}}'), "stands twice"),
    "no tensors": (raw({}), "no weights"),
    "tensor is a number": (raw({"a": 1}), "header that is none"),
    "unknown type": (raw({"a": tensor([1], 0, 1, "F8_E4M3")}, b"1"), "floats and integers are stored"),
    "type is a list": (raw({"a": tensor([1], 0, 4, ["F32"])}, b"1234"), "header that is none"),
    "negative shape": (raw({"a": tensor([-1, -1], 0, 4)}, b"1234"), "has shape or offsets"),
    "shape of floats": (raw({"a": tensor([1.0], 0, 4)}, b"1234"), "has shape or offsets"),
    "shape of truths": (raw({"a": tensor([True], 0, 4)}, b"1234"), "has shape or offsets"),
    "shape beyond everything": (raw({"a": tensor([2**60], 0, 2**62)}, b"1234"), "has shape or offsets"),
    "shape overflows": (raw({"a": tensor([2**40, 2**40], 0, 4)}, b"1234"), "does not fit"),
    "1000 axes": (raw({"a": tensor([1] * 1000, 0, 4)}, b"1234"), "has shape or offsets"),
    "begins late": (raw({"a": tensor([1], 4, 8)}, b"12345678"), "begins at byte"),
    "overlap": (raw({"a": tensor([1], 0, 4), "b": tensor([1], 2, 6)}, b"123456"), "begins at byte"),
    "backwards": (raw({"a": tensor([1], 4, 0)}, b"1234"), "does not fit"),
    "one offset": (raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"1234"), "header that is none"),
    "cut short": (raw({"a": tensor([2], 0, 8)}, b"1234"), "its tensors end at"),
    "more behind it": (raw({"a": tensor([1], 0, 4)}, b"1234#!/bin/sh"), "its tensors end at"),
    "name with a line feed": (raw({"a\nb": tensor([1], 0, 4)}, b"1234"), "control characters"),
    "name of 10,000 letters": (raw({"a" * 10_000: tensor([1], 0, 4)}, b"1234"), "1 to 512 characters"),
    "name of nothing": (raw({"": tensor([1], 0, 4)}, b"1234"), "1 to 512 characters"),
    "metadata is a list": (raw({"__metadata__": [1]}), "header that is none"),
}


@pytest.mark.parametrize("case", FILES)
def test_safetensors_that_lie(case: str, tmp_path: Path) -> None:
    content, said = FILES[case]
    (tmp_path / "x.safetensors").write_bytes(content)
    blob = LocalBlob.of(Place.at(tmp_path), "x.safetensors")
    with pytest.raises(BrokenError, match=said):
        open_safetensors({blob.name: blob})


def test_they_are_failed_rows_beside_good_ones(tmp_path: Path) -> None:
    for number, (content, _) in enumerate(FILES.values()):
        (tmp_path / "nets").mkdir(exist_ok=True)
        (tmp_path / "nets" / f"x{number}.safetensors").write_bytes(content)
    save_safetensors(tmp_path / "nets" / "good.safetensors", tensors(1))
    report = import_zoo(tmp_path / "nets", tmp_path / "zoo")
    check(catalog.open(tmp_path / "zoo"), {("good", 0): tensors(1)})
    reasons = dict(report.failed)
    assert len(reasons) == len(FILES)
    for number, (_, said) in enumerate(FILES.values()):
        assert said in reasons[f"x{number}.safetensors"]
    assert not catalog.verify(tmp_path / "zoo").problems


def secret(folder: Path) -> Path:
    """A file outside the source, which would be read if it could be."""
    path = folder / "outside" / "secret.safetensors"
    save_safetensors(path, tensors(66))
    return path


NAMES: dict[str, tuple[str, str]] = {
    "up": ("../outside/secret.safetensors", "no name of a file inside"),
    "up from below": ("sub/../../outside/secret.safetensors", "no name of a file inside"),
    "absolute": ("{outside}", "no name of a file inside"),
    "link": ("link.safetensors", "leads out of the source"),
    "through a linked folder": ("linked/secret.safetensors", "leads out of the source"),
    "null": ("a\0b.safetensors", "no name of a file inside"),
    "a folder": ("sub", "is no file"),
    "a pipe": ("pipe.safetensors", "is no file"),
    "a table": ("rows.csv", "no file of weights"),
    "nothing": ("gone.safetensors", "not there"),
}


def test_names_in_a_table_lead_nowhere_else(tmp_path: Path) -> None:
    source, outside = tmp_path / "nets", secret(tmp_path)
    (source / "sub").mkdir(parents=True)
    os.symlink(outside, source / "link.safetensors")
    os.symlink(outside.parent, source / "linked")
    os.mkfifo(source / "pipe.safetensors")
    save_safetensors(source / "good.safetensors", tensors(1))
    rows = ["file,acc", "good.safetensors,1"]
    rows += [f'"{name.format(outside=outside)}",{number}' for number, (name, _) in enumerate(NAMES.values())]
    (source / "rows.csv").write_text("\n".join(rows))
    report = import_zoo(source, tmp_path / "zoo")
    check(catalog.open(tmp_path / "zoo"), {("good", 0): tensors(1)})
    assert len(report.failed) == len(NAMES)
    for number, (name, said) in enumerate(NAMES.values(), 1):
        (reason,) = [why for source, why in report.failed if source == name or f"row {number} of rows" in source]
        assert said in reason


def test_links_out_of_a_repository_are_not_followed(tmp_path: Path) -> None:
    outside = secret(tmp_path)
    repositories(tmp_path / "hub")
    for name in ("file", "folder"):
        (tmp_path / "hub" / name).mkdir()
    os.symlink(outside, tmp_path / "hub" / "file" / "model.safetensors")
    (tmp_path / "elsewhere").mkdir()
    os.rename(tmp_path / "hub" / "folder", tmp_path / "elsewhere" / "repo")
    save_safetensors(tmp_path / "elsewhere" / "repo" / "model.safetensors", tensors(67))
    os.symlink(tmp_path / "elsewhere" / "repo", tmp_path / "hub" / "linked")
    fake = tmp_path / "hub" / "models--a--b" / "snapshots" / "x"
    fake.mkdir(parents=True)
    os.symlink(outside, fake / "model.safetensors")
    report = import_zoo(tmp_path / "hub", tmp_path / "zoo")
    assert (report.stored, report.members) == (3, 5)
    assert [(source, "leads out" in reason) for source, reason in sorted(report.failed)] == [
        ("file", True),
        ("models--a--b/snapshots/x", True),
    ]


INDEXES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "up": (lambda index: index["weight_map"].update({"head.weight": "../x.safetensors"}), "expected files of the"),
    "absolute": (lambda index: index["weight_map"].update({"head.weight": "/x.safetensors"}), "expected files of the"),
    "a script": (lambda index: index["weight_map"].update({"head.weight": "x.py"}), "expected files of the"),
    "a number": (lambda index: index["weight_map"].update({"head.weight": 3}), "expected files of the"),
    "a tensor no file has": (
        lambda index: index["weight_map"].update({"more": "model-00001-of-00002.safetensors"}),
        "is not in model-00001",
    ),
    "a file that is not there": (lambda index: index["weight_map"].update({"x": "y.safetensors"}), "not there"),
    "no map": (lambda index: index.pop("weight_map"), "index.json is none"),
    "empty": (lambda index: index["weight_map"].clear(), "names 0 files"),
    "5,000 files": (
        lambda index: index["weight_map"].update({str(n): f"{n}.safetensors" for n in range(5000)}),
        "names 5,002 files",
    ),
}


@pytest.mark.parametrize("case", INDEXES)
def test_indexes_that_lie(case: str, tmp_path: Path) -> None:
    change, said = INDEXES[case]
    write_shards(tmp_path / "hub" / "bad", tensors(2), {})
    file = tmp_path / "hub" / "bad" / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
    save_safetensors(tmp_path / "hub" / "good" / "model.safetensors", tensors(1))
    report = import_zoo(tmp_path / "hub", tmp_path / "zoo", "hf", dry_run=True)
    ((source, reason),) = report.failed
    assert source == "bad"
    assert said in reason


CONFIGS = {
    "no JSON": b"{",
    "a list": b"[1]",
    "nested": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "binary": b"\xff\xfe\x00",
    "too long": b'{"a": "' + b"x" * (4 << 20) + b'"}',
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_cannot_be_read(case: str, tmp_path: Path) -> None:
    save_safetensors(tmp_path / "r" / "model.safetensors", tensors(1))
    (tmp_path / "r" / "config.json").write_bytes(CONFIGS[case])
    report = import_zoo(tmp_path / "r", tmp_path / "zoo", dry_run=True)
    assert report.format == "hf"
    assert report.notes == ("a config.json that cannot be read was left out (1 files)",)


TABLES: dict[str, tuple[bytes, str]] = {
    "binary": (b"path,a\n\xff\xfe\x00,1\n", "not a table"),
    "other lengths": (b"path,a\n1,2,3,4\n", "not a table"),
    "gzip cut short": (gzip.compress(b"path,a\n" * 1000)[:30], "not a table"),
    "gzip damaged": (b"\x1f\x8b" + b"x" * 100, "not a table"),
    "gzip bomb": (gzip.compress(b"0" * (4 << 20)), "more than the"),
    "empty": (b"", "not a table"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_cannot_be_read(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are passed over with the reason, and an error where they were asked for."""
    monkeypatch.setattr(values, "TABLE_BYTES", 1 << 20)
    content, said = TABLES[case]
    weights_folder(tmp_path / "nets")
    (tmp_path / "nets" / "properties.csv").write_bytes(content)
    report = import_zoo(tmp_path / "nets", tmp_path / "zoo", dry_run=True)
    assert report.stored == 5
    assert said in dict(report.skipped)["properties.csv"]
    with pytest.raises(SourceError, match=said):
        import_zoo(tmp_path / "nets", tmp_path / "zoo", table="properties.csv")


def test_parquet_that_is_none_and_nested_columns(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "nets" / "a.safetensors", tensors(1))
    (tmp_path / "nets" / "bad.parquet").write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    rows = pl.DataFrame({"file": ["a"], "nested": [[1, 2]], "blob": [b"x"], "acc": [0.5]})
    rows.write_parquet(tmp_path / "nets" / "rows.parquet")
    report = import_zoo(tmp_path / "nets", tmp_path / "zoo")
    table = catalog.open(tmp_path / "zoo").table()
    assert table["acc"].to_list() == [0.5]
    assert not {"nested", "blob"} & set(table.columns)
    assert "not a table" in dict(report.skipped)["bad.parquet"]


def test_columns_of_any_name_and_number(tmp_path: Path) -> None:
    """Names that are taken, code, formulas, 500 columns: tame names, at most 200, and a zoo that verifies."""
    save_safetensors(tmp_path / "nets" / "a.safetensors", tensors(1))
    odd = ["zoo", "stored", "crc32c", "__import__('os')", "=cmd|' /C calc'!A0", "<script>", "a b", "a-b", "\u202eevil"]
    names = ["file", *odd, *(f"c{n}" for n in range(500))]
    cells = ["a", *("=1+1" for _ in odd), *("1" for _ in range(500))]
    text = "\n".join(",".join(f'"{cell}"' for cell in row) for row in (names, cells))
    (tmp_path / "nets" / "rows.csv").write_text(text)
    report = import_zoo(tmp_path / "nets", tmp_path / "zoo")
    table = catalog.open(tmp_path / "zoo").table()
    assert all(name.replace("_", "a").isalnum() and name.isascii() for name in table.columns)
    assert {"source_zoo", "source_stored", "import_os", "a_b", "a_b_2", "evil", "script"} <= set(table.columns)
    assert table["source_zoo"].to_list() == ["=1+1"]
    assert table["zoo"].to_list() == ["nets"]
    assert len(table.columns) <= 220
    assert any("left out: at most 200" in note for note in report.notes)
    assert not catalog.verify(tmp_path / "zoo").problems


def object_array(path: Path) -> None:
    """A matrix of objects is a pickle: what is in it would run when it is read."""

    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(path.parent / "ran"),)

    np.save(path, np.array([[Runs()]], dtype=object), allow_pickle=True)


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros((35, 88), np.float32))


def header_of_much(path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000), }".ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"1234")


MATRICES: dict[str, Callable[[Path], Any]] = {
    "objects": object_array,
    "a shape beyond the file": header_of_much,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights"),
    "one axis": lambda path: np.save(path, np.zeros(9, np.float32)),
    "integers": lambda path: np.save(path, np.zeros((35, 88), np.int64)),
    "no rows": lambda path: np.save(path, np.zeros((0, 88), np.float32)),
    "text cells": lambda path: np.save(path, np.array([["a"]])),
    "an archive": archive,
}


@pytest.mark.parametrize("case", MATRICES)
def test_matrices_that_are_none(case: str, tmp_path: Path) -> None:
    small_cnn_zoo(tmp_path / "a")
    MATRICES[case](tmp_path / "a" / "weights.npy")
    with pytest.raises(SourceError, match=r"weights\.npy .*(is no matrix|must be a matrix)"):
        import_zoo(tmp_path / "a", tmp_path / "zoo")
    assert not (tmp_path / "a" / "ran").exists()
    assert not (tmp_path / "zoo").exists()


def test_trials_of_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links out, parameters that are a list or endless, results that are binary or too long."""
    source, outside = tmp_path / "zoo", secret(tmp_path)
    monkeypatch.setattr("catalog.importers.ray_tune.RESULT_BYTES", 1 << 20)
    for number in range(4):
        save_safetensors(source / f"t{number}" / "checkpoint_1" / "model.safetensors", tensors(number))
        (source / f"t{number}" / "params.json").write_text("{}")
    (source / "t0" / "params.json").write_text("[1]")
    (source / "t1" / "params.json").write_text('{"a":' * 100_000)
    (source / "t2" / "result.json").write_bytes(b"\xff\xfe" * 10)
    (source / "t3" / "result.json").write_bytes(b"x" * (2 << 20))
    os.symlink(outside, source / "t0" / "checkpoint_1" / "x.safetensors")
    (source / "t4" / "checkpoint_1").mkdir(parents=True)
    os.symlink(outside, source / "t4" / "checkpoint_1" / "model.safetensors")
    (source / "t5").mkdir()
    os.symlink(outside, source / "t5" / "params.json")
    report = import_zoo(source, tmp_path / "out")
    check(catalog.open(tmp_path / "out"), {(f"t{number}", 1): tensors(number) for number in range(4)})
    assert [name for name, _ in report.skipped] == [
        "t0/params.json",
        "t1/params.json",
        "t3/result.json",
        "t5/params.json",
    ]
    ((source_name, reason),) = report.failed
    assert source_name.startswith("t4/")
    assert "leads out" in reason


MEASURED = """
import resource, sys
from catalog.importers import import_zoo
for name in sys.argv[1:]:
    report = import_zoo(name, name + ".zoo", dry_run=True)
    print(report.format, len(report.failed) + len(report.skipped) + len(report.notes))
if sys.platform == "darwin":
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
else:  # there ru_maxrss counts what the process was forked from
    print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024)
"""


def test_little_files_do_not_become_much_memory(tmp_path: Path) -> None:
    """A header, parameters and lines of empty lists, a table of run lengths, a million columns: below 500 MB."""
    lists = b'{"a":[' + b"[]," * (1 << 20) + b"[]]}"
    for name in ("header", "runs", "wide"):
        save_safetensors(tmp_path / name / "good.safetensors", tensors(1))
    (tmp_path / "header" / "bad.safetensors").write_bytes(len(lists).to_bytes(8, "little") + lists)
    rows = {f"c{n}": pl.repeat(0, 10_000_000, dtype=pl.Int8, eager=True) for n in range(2)}
    pl.DataFrame(rows).write_parquet(tmp_path / "runs" / "p.parquet")
    (tmp_path / "wide" / "p.csv").write_bytes(b"1," * (1 << 20) + b"\n")
    save_safetensors(tmp_path / "trials" / "t" / "checkpoint_1" / "model.safetensors", tensors(1))
    (tmp_path / "trials" / "t" / "params.json").write_bytes(lists)
    (tmp_path / "trials" / "t" / "result.json").write_bytes(b'{"training_iteration": 1, "a": ' + lists + b"}\n{}\n")
    names = [str(tmp_path / name) for name in ("header", "runs", "wide", "trials")]
    code = [sys.executable, "-c", MEASURED, *names]
    out = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[:4] == ["folder 1", "folder 1", "folder 1", "ray 2"]
    assert int(out[4]) < 500 << 20


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.importers.place.MAX_FILES", 3)
    weights_folder(tmp_path / "nets")
    with pytest.raises(SourceError, match="more than 3 files"):
        import_zoo(tmp_path / "nets", tmp_path / "zoo")


@pytest.mark.parametrize("url", ["nosuch://a/b", "simplecache::https://a/b", "http://127.0.0.1:9/org/name"])
def test_urls_that_lead_nowhere(url: str, tmp_path: Path) -> None:
    if url.startswith("http"):
        pytest.importorskip("aiohttp")
    with pytest.raises(ZooError):
        import_zoo([url], tmp_path / "zoo", storage_options={"retries": 0} if url.startswith("http") else None)
    assert not (tmp_path / "zoo").exists()


def test_pickles_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "a.pt").write_bytes(b"PK")
    with pytest.raises(SourceError, match=r"a\.pt is a pickle.*--allow-pickle-subset"):
        import_zoo(tmp_path / "nets", tmp_path / "zoo")


def test_without_torch_pickles_say_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "torch.py").write_text("raise ImportError('none here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "a.pt").write_bytes(b"PK")
    with pytest.raises(SourceError, match="needs torch"):
        import_zoo(tmp_path / "nets", tmp_path / "zoo", allow_pickle_subset=True)
