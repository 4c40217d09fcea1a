"""Manifests: what was written comes back, what a stranger writes is refused with a reason. No torch."""

from __future__ import annotations

import copy
import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import catalog
from catalog.errors import CorruptError, FormatError
from catalog.manifest import FOOTER, MAX_GROUPS, TEXT, Manifest, check_path, decode_manifest, tree_digest
from catalog.publish import publish
from catalog.sealed import seal
from tests.catalog_zoos import fill, net


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifest")
    fill(folder / "zoo", net())
    publish(folder / "zoo", folder / "to", licence="MIT", citation="@misc{a,\n title={b}}", description="A.\n\nB.")
    return folder / "to"


def content_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    del content["digest"]
    return content


def decoded(content: dict[str, Any]) -> Manifest:
    return decode_manifest(seal(content), "manifest.json", "here")


def test_what_was_written_comes_back(published: Path) -> None:
    data = (published / "manifest.json").read_bytes()
    manifest = decode_manifest(data, "manifest.json", "here")
    assert manifest.encode() == data
    assert manifest.citation == "@misc{a,\n title={b}}"
    assert manifest.tree == tree_digest((path, file.sha256) for path, file in manifest.files.items())
    assert decoded(content_of(published)) == manifest
    assert manifest.digest == json.loads(data)["digest"]


def test_every_flipped_bit_is_noticed(published: Path) -> None:
    data = (published / "manifest.json").read_bytes()
    for place in range(0, len(data), 7):
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << place % 8
        with pytest.raises(CorruptError, match="damaged"):
            decode_manifest(bytes(spoilt), "manifest.json", "here")
    for length in (0, 1, 82, len(data) - 1):
        with pytest.raises(CorruptError, match="damaged"):
            decode_manifest(data[:length], "manifest.json", "here")


def files(*paths: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda c: c["files"].extend([path, 1, "0" * 64] for path in paths)


def put(*keys: Any, to: Any) -> Callable[[dict[str, Any]], Any]:
    """Set a member somewhere inside."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


def columns(**members: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda c: c["columns"].update(members)


LONG = "x" * 513
HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    **{f"path {path!r:.30}": (files(path), "plain relative path") for path in (
        "../secret", "a/../../b", "/etc/passwd", "C:/x", "C:\\x", "a\\b", "a//b", "", ".", "./a", "a/", "a\0b", "a\nb",
        "https://elsewhere/x", "weights/.tmp-x", LONG, "a\N{RIGHT-TO-LEFT OVERRIDE}b", "file:x",
    )},
    "path twice": (files("a", "a"), "twice"),
    "paths differ by case": (files("a/B", "A/b"), "case"),
    "paths differ by case folding": (files("straße", "STRASSE"), "case"),
    "path is a number": (files(7), "a path, a size and a sha256"),
    "path is null": (files(None), "a path, a size and a sha256"),
    "size negative": (put("files", 0, 1, to=-1), "number of 0 or more"),
    "size a float": (put("files", 0, 1, to=1.0), "number of 0 or more"),
    "size true": (put("files", 0, 1, to=True), "number of 0 or more"),
    "size huge": (put("files", 0, 1, to=2**60), "number of 0 or more"),
    "size as text": (put("files", 0, 1, to="12"), "number of 0 or more"),
    "digest short": (put("files", 0, 2, to="00"), "a path, a size and a sha256"),
    "digest in capitals": (put("files", 0, 2, to="A" * 64), "a path, a size and a sha256"),
    "digest with a line feed": (put("files", 0, 2, to="0" * 64 + "\n"), "a path, a size and a sha256"),
    "file of four": (put("files", 0, to=["a", 1, "0" * 64, 1]), "unpack"),
    "files an object": (put("files", to={"a": 1}), "unpack|path"),
    "no zoo.json": (lambda c: c.update(files=[f for f in c["files"] if f[0] != "zoo.json"]), r"zoo\.json"),
    "no files": (lambda c: c.pop("files"), "'files' is missing"),
    "tree of others": (put("tree", to="0" * 64), "tree digest"),
    "bytes of others": (put("bytes", to=1), "bytes"),
    "base elsewhere": (put("base", to="000000000000"), "base"),
    "base leads out": (put("base", to="../../../etc"), "base"),
    "zoo no digest": (put("zoo", to="x"), "base|zoo"),
    "version 0": (put("version", to=0), "version"),
    "version negative": (put("version", to=-1), "number of 0 or more"),
    "version true": (put("version", to=True), "number of 0 or more"),
    "version text": (put("version", to="1"), "number of 0 or more"),
    "name empty": (put("name", to=""), "name"),
    "name long": (put("name", to="x" * 201), "name"),
    "name control": (put("name", to="a\x1b[31m"), "name"),
    "name right to left": (put("name", to="a\N{RIGHT-TO-LEFT OVERRIDE}b"), "name"),
    "name a list": (put("name", to=["x"]), "name is no text"),
    "created no date": (put("created", to="yesterday"), "created"),
    "licence lines": (put("licence", to="MIT\nGPL"), "licence"),
    "citation control": (put("citation", to="\x07"), "citation"),
    "citation long": (put("citation", to="x" * (TEXT + 1)), "citation"),
    "description null": (put("description", to=None), "description is no text"),
    "previous no digest": (put("previous", to="x"), "previous"),
    "counts negative": (put("counts", to={"ok": -1}), "number of 0 or more"),
    "counts a list": (put("counts", to=[1]), "format 1"),
    "table not listed": (columns(path="catalog.x.parquet"), "not among the files"),
    "table leads out": (columns(path="../x"), "not among the files"),
    "no groups": (columns(groups=[]), "row groups"),
    "groups many": (columns(groups=[1] * (MAX_GROUPS + 1)), "row groups"),
    "groups negative": (columns(groups=[-1]), "number of 0 or more"),
    "groups more than chunks": (columns(groups=[1, 1]), "chunks in 2 row groups"),
    "no chunks": (columns(chunks=[]), "columns and a footer"),
    "columns many": (columns(chunks=[[f"c{i}", [[4, 1, "0" * 32]]] for i in range(300)]), "columns and a footer"),
    "column twice": (lambda c: c["columns"]["chunks"].append(c["columns"]["chunks"][0]), "stands twice"),
    "column a number": (put("columns", "chunks", 0, 0, to=1), "stands twice"),
    "chunk outside": (put("columns", "chunks", 0, 1, 0, to=[2**40, 1, "0" * 32]), "outside"),
    "chunk in the magic": (put("columns", "chunks", 0, 1, 0, to=[0, 1, "0" * 32]), "outside"),
    "chunk over the footer": (put("columns", "chunks", 0, 1, 0, to=[4, 2**30, "0" * 32]), "outside"),
    "chunk overflows": (put("columns", "chunks", 0, 1, 0, to=[2**59, 2**59, "0" * 32]), "outside"),
    "chunk negative": (put("columns", "chunks", 0, 1, 0, to=[-4, 1, "0" * 32]), "number of 0 or more"),
    "chunk digest": (put("columns", "chunks", 0, 1, 0, 2, to="x"), "outside"),
    "chunk digest a number": (put("columns", "chunks", 0, 1, 0, 2, to=5), "format 1"),
    "footer no base64": (columns(footer="@@@"), "base64"),
    "footer short": (columns(footer=""), "footer"),
    "footer longer than the file": (columns(footer=b64encode(bytes(1 << 20)).decode()), "footer"),
    "footer too long": (columns(footer=b64encode(bytes(FOOTER + 1)).decode()), "footer"),
    "columns null": (put("columns", to=None), "format 1"),
    "format 2": (put("format", to=2), "install a newer weightscape"),
    "format true": (put("format", to=True), "install a newer weightscape"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_strangers_manifest_is_refused(published: Path, tmp_path: Path, name: str) -> None:
    change, said = HOSTILE[name]
    content = copy.deepcopy(content_of(published))
    total = len(content["files"])
    change(content)
    if name.startswith("path"):  # so that nothing else is wrong with it
        content["bytes"] += len(content["files"]) - total
    with pytest.raises(FormatError, match=said) as caught:
        decoded(content)
    assert len(str(caught.value)) < 600
    (tmp_path / "manifest.json").write_bytes(seal(content))
    with pytest.raises(FormatError):
        catalog.open(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 1, "format": 1',
        '{"format": NaN',
        '{"bytes": 1e400',
        '\ufeff{"format": 1',
        '{"a": ' + "[" * 100_000 + "]" * 100_000,
        '["format"',
        "{}",
        "",
        "null",
        "<html>Welcome</html>",
    ],
)
def test_other_json_is_refused(text: str, tmp_path: Path) -> None:
    from tests.catalog_zoos import forge_text  # which seals any text

    forge_text(tmp_path, text)
    with pytest.raises((FormatError, CorruptError)):
        decode_manifest((tmp_path / "zoo.json").read_bytes(), "manifest.json", "here")
    with pytest.raises(CorruptError):
        decode_manifest(text.encode(), "manifest.json", "here")


@settings(max_examples=50)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5), st.data())
def test_any_value_in_any_place_is_accepted_or_refused(value: Any, data: st.DataObject) -> None:
    content = copy.deepcopy(SOUND)
    key = data.draw(st.sampled_from([*SOUND, "unknown"]))
    content[key] = value
    try:
        manifest = decoded(content)
    except FormatError:
        return
    assert manifest.encode()


SOUND: dict[str, Any] = {
    "format": 1,
    "name": "x",
    "version": 1,
    "base": "a" * 12,
    "zoo": "a" * 64,
    "created": "2026-11-23",
    "licence": "",
    "counts": {},
    "bytes": 101,
    "tree": tree_digest([("zoo.json", "b" * 64), ("t", "c" * 64)]),
    "citation": "",
    "description": "",
    "previous": "",
    "files": [["zoo.json", 1, "b" * 64], ["t", 100, "c" * 64]],
    "columns": {"path": "t", "groups": [1], "chunks": [["a", [[4, 10, "0" * 32]]]], "footer": "AAAA" * 10},
}  # fmt: skip


def test_the_sound_one_is_sound() -> None:
    manifest = decoded(SOUND)
    assert (manifest.size, manifest.columns.rows) == (101, 1)
    with pytest.raises(ValueError, match="version"):
        replace(manifest, version=0)


@pytest.mark.parametrize("path", ["zoo.json", "weights/a-b.c_d/c/0/0/0", "metrics/x@1-0a/é.parquet", "a b", "x" * 512])
def test_plain_paths(path: str) -> None:
    check_path(path)


def test_a_version_is_the_one_its_name_says(published: Path, tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions/2.json").write_bytes((published / "versions/1.json").read_bytes())
    with pytest.raises(CorruptError, match="is the manifest of version 1"):
        catalog.open(tmp_path / "versions/2.json")
    first = catalog.open(published / "versions/1.json")
    assert first.folder.manifest == catalog.open(published).folder.manifest
