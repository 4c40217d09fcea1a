"""A registry of zoos: names, versions, aliases, retractions; opened zoos are what it says. No torch."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import catalog
import catalog.registering
from catalog.errors import CorruptError, FormatError, OfflineError, QueryError, RetractedError, UnknownNameError
from catalog.folder import Folder
from catalog.publish import publish
from catalog.registry import Entry, read_registry, resolve
from tests.catalog_zoos import fill, net
from tests.servers import Server

DIGEST = "0" * 64


def entry(version: str = "1.0.0", name: str = "cifar10", **members: Any) -> dict[str, Any]:
    known = {"name": name, "version": version, "url": "s3://lab/x", "digest": DIGEST, "licence": "", "retracted": None}
    return known | members


def retracted(version: str, reason: str = "labels were wrong", **members: Any) -> dict[str, Any]:
    return entry(version, retracted={"reason": reason, "date": "2026-11-01"}, **members)


def save(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"format": 1, "zoos": list(entries)}))
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return save(
        tmp_path / "zoos.json",
        entry("1.2.0"),
        entry("1.10.0", licence="MIT"),
        entry("1.9"),
        retracted("1.11.0"),
        entry("2.0.0-rc.2"),
        entry("2.0.0-rc.10"),
        retracted("2.0.0-rc.11"),
        entry("0.1", name="CIFAR10-long"),
        entry("0.1.0-dev", name="mnist"),
        retracted("1.0", name="gone"),
    )


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSCAPE_CACHE", os.fspath(tmp_path_factory.getbasetemp() / "cache"))


# --- names


def test_zoos_are_listed(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = catalog.list("cifar10*", registry)
    assert found.columns == ["name", "version", "url", "digest", "licence", "retracted"]
    versions = ["2.0.0-rc.11", "2.0.0-rc.10", "2.0.0-rc.2", "1.11.0", "1.10.0", "1.9", "1.2.0"]
    assert found["version"].to_list() == [*versions, "0.1"]
    reasons = dict(found.select("version", "retracted").iter_rows())
    assert {version for version in reasons if reasons[version] == "labels were wrong"} == {"1.11.0", "2.0.0-rc.11"}
    assert found["name"].unique().sort().to_list() == ["CIFAR10-long", "cifar10"]
    assert catalog.list("*LONG", registry)["name"].to_list() == ["CIFAR10-long"]
    monkeypatch.setenv("WEIGHTSCAPE_REGISTRY", os.fspath(registry))
    assert len(catalog.list()) == 10
    assert catalog.list("imagenet").schema == found.schema
    monkeypatch.delenv("WEIGHTSCAPE_REGISTRY")
    with pytest.raises(QueryError, match="WEIGHTSCAPE_REGISTRY"):
        catalog.list()
    with pytest.raises(FileNotFoundError):
        catalog.list(registry=registry.parent / "other.json")


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("cifar10", "1.10.0"),
        ("cifar10@stable", "1.10.0"),
        ("zoo:cifar10@latest", "2.0.0-rc.10"),
        ("cifar10@1.2.0", "1.2.0"),
        ("cifar10@1.2", "1.2.0"),
        ("cifar10@1.9.0", "1.9"),
        ("cifar10@2.0-rc.2", "2.0.0-rc.2"),
        ("mnist@latest", "0.1.0-dev"),
    ],
)
def test_names_and_aliases(registry: Path, name: str, version: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert resolve(name, registry).version == version
    said = capsys.readouterr()
    assert said.out == ""
    assert f"is {name.removeprefix('zoo:').partition('@')[0]} {version} at s3://lab/x\n" in said.err
    assert said.err.startswith("zoo:")
    resolve(name, registry, quiet=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["cifar10@1.11.0", "cifar10@1.11", "gone", "gone@latest", "gone@1.0"])
def test_retracted_versions_say_why(registry: Path, name: str) -> None:
    with pytest.raises(RetractedError, match="retracted on 2026-11-01: labels were wrong"):
        resolve(name, registry)
    assert resolve(name, registry, allow_retracted=True).retracted


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar", "unknown zoo 'cifar'; known: .*cifar10"),
        ("Cifar10", "unknown zoo"),
        ("", "unknown zoo"),
        ("cifar10@3.0", r"unknown version of cifar10 '3\.0'; known: .*stable"),
        ("cifar10@newest", "unknown version"),
        ("cifar10@../x", "unknown version"),
        ("mnist", r"no release yet; name a version: 0\.1\.0-dev"),
    ],
)
def test_unknown_names_list_the_known(registry: Path, name: str, said: str) -> None:
    with pytest.raises(UnknownNameError, match=said):
        resolve(name, registry)


def test_versions_are_ordered_as_semantic_versioning_orders_them() -> None:
    before = ("alpha", "alpha.1", "alpha.beta", "beta", "beta.2", "beta.11", "rc.1")  # semver.org, section 11
    ordered = ["0.9", *(f"1.0.0-{part}" for part in before), "1.0", "1.0.1", "1.2", "1.10"]
    entries = [Entry("x", version, "s3://x", DIGEST) for version in ordered]
    assert sorted(reversed(entries), key=lambda entry: entry.order) == entries
    assert [entry.version for entry in entries if entry.released] == ["0.9", "1.0", "1.0.1", "1.2", "1.10"]
    for version in ("1", "v1.0", "1.0.0.0", "01.0", "1.0 ", "1.0\n", "", "1.x", "1.0-", "-1.0", "1.0.0+b", "\u0661.0"):
        with pytest.raises(ValueError, match="MAJOR"):
            Entry("x", version, "s3://x", DIGEST)


# --- a registry from a stranger


def test_urls_are_of_a_few_kinds(tmp_path: Path) -> None:
    for url in ("https://a.org/x", "http://a.org/x", "s3://a/x", "gs://a/x", "hf://datasets/a/x"):
        assert read_registry(save(tmp_path / "r.json", entry(url=url)))[0].url == url
    # a path, as the registry lies on this machine: below it where it is relative
    assert read_registry(save(tmp_path / "r.json", entry(url="sub/x")))[0].url == f"{tmp_path}/sub/x"
    assert read_registry(save(tmp_path / "r.json", entry(url="/srv/x")))[0].url == "/srv/x"
    for url in (
        *("file:///etc/passwd", "local:///x", "memory://x", "ftp://a/x", "ssh://a/x", "S3://a/x", "github://a:b@/x"),
        *("simplecache::s3://a/x", "zip://x::https://a", "a\\b", "", " \n", "s3://a/\n", "s3://" + "x" * 2000),
        *("reference://x", "filecache::/etc", "://x"),
    ):
        with pytest.raises(FormatError, match="is no registry"):
            read_registry(save(tmp_path / "r.json", entry(url=url)))


def test_paths_stand_in_local_registries_alone(tmp_path: Path, web: tuple[Server, str]) -> None:
    save(tmp_path / "far.json", entry())
    assert read_registry(f"{web[1]}/far.json")[0].url == "s3://lab/x"
    for url in ("/etc", "x/y", "file:///etc"):
        save(tmp_path / "far.json", entry(url=url))
        with pytest.raises(FormatError, match="is none of"):
            read_registry(f"{web[1]}/far.json")


def test_a_registry_far_away_is_remembered(
    tmp_path: Path, web: tuple[Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTSCAPE_CACHE", os.fspath(tmp_path / "cache"))
    save(tmp_path / "far.json", entry())
    before = catalog.list(registry=f"{web[1]}/far.json")
    monkeypatch.setenv("WEIGHTSCAPE_OFFLINE", "1")
    count = len(web[0].requests)
    assert catalog.list(registry=f"{web[1]}/far.json").equals(before)
    with pytest.raises(OfflineError, match="unset it"):
        catalog.list(registry=f"{web[1]}/other.json")
    assert len(web[0].requests) == count


def without(member: str) -> dict[str, Any]:
    return {name: value for name, value in entry().items() if name != member}


@pytest.mark.parametrize(
    ("zoos", "said"),
    [
        ([entry(), entry()], "stands twice"),
        ([entry("1.0"), entry("1.0.0")], "stands twice"),
        ([entry(), entry("2.0", name="CIFAR10")], "case alone"),
        ([entry(name="../x")], "a name is"),
        ([entry(name="a b")], "a name is"),
        ([entry(name="<script>")], "a name is"),
        ([entry(name="x" * 100)], "a name is"),
        ([entry(name="a..b")], "a name is"),
        ([entry("x")], "MAJOR"),
        ([entry(digest="x")], "no sha256"),
        ([entry(digest=None)], "holds text"),
        ([entry(licence="a\nb")], "licence"),
        ([entry(licence=1)], "holds text"),
        ([entry(retracted=True)], "retracted is null or"),
        ([entry(retracted={"reason": "x"})], "retracted is null or"),
        ([entry(retracted={"reason": "", "date": "2026-11-01"})], "a reason"),
        ([entry(retracted={"reason": "a\x1b[2J", "date": "2026-11-01"})], "a reason"),
        ([entry(retracted={"reason": "x", "date": "now"})], "a date"),
        ([entry(retracted={"reason": 1, "date": "2026-11-01"})], "are text"),
        ([entry(more=1)], "members"),
        ([without("url")], "members"),
        (["cifar10"], "members"),
        ({}, "a list"),
        (None, "a list"),
        ([entry()] * ((1 << 16) + 1), "at most 65,536"),
    ],
)  # fmt: skip
def test_a_strangers_registry_is_refused(tmp_path: Path, zoos: Any, said: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"format": 1, "zoos": zoos}))
    with pytest.raises(FormatError, match=said) as caught:
        catalog.list(registry=tmp_path / "r.json")
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '{"format": 2, "zoos": []}', '{"format": true, "zoos": []}', '{"format": 1}',
             '{"format": 1, "format": 1, "zoos": []}', '{"format": 1, "zoos": [], "x": NaN}', "\ufeff{}", "[" * 99_999,
             "<html></html>", "\xff"],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_bytes(text.encode("latin-1" if text == "\xff" else "utf-8"))
    with pytest.raises(FormatError, match="is no registry"):
        catalog.list(registry=tmp_path / "r.json")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5), st.data())
def test_any_value_in_any_place_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, value: Any, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    save(path, entry(**{data.draw(st.sampled_from([*entry()])): value}))
    try:
        assert len(read_registry(path)) == 1
    except FormatError:
        pass


# --- adding, retracting, opening


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo published twice."""
    folder = tmp_path_factory.mktemp("registered")
    fill(folder / "zoo", net(models=2))
    publish(folder / "zoo", folder / "to", licence="MIT")
    publish(folder / "zoo", folder / "to", licence="CC0-1.0")
    return folder


def test_what_is_registered_is_opened(zoos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSCAPE_REGISTRY", os.fspath(tmp_path / "new/zoos.json"))
    made = catalog.register("tiny", "1.0", zoos / "to/versions/1.json")
    assert (made.licence, made.url) == ("MIT", f"{zoos}/to/versions/1.json")
    catalog.register("tiny", "1.1", zoos / "to")
    assert catalog.register("tiny", "1.1", zoos / "to").version == "1.1"  # again
    with pytest.raises(QueryError, match="registered already"):
        catalog.register("tiny", "1.1", zoos / "to/versions/1.json")
    with pytest.raises(FormatError, match="case alone"):
        catalog.register("TINY", "1.0", zoos / "to")
    with pytest.raises(FormatError, match="a name is"):
        catalog.register("ti ny", "1.0", zoos / "to")
    with pytest.raises(QueryError, match="is not published"):
        catalog.register("other", "1.0", zoos / "zoo")
    newest = catalog.open("zoo:tiny")
    assert newest.folder.manifest
    assert newest.folder.manifest.version == 2
    assert newest.folder.manifest.tree == made.digest  # the same files, under another licence
    oldest = catalog.open("zoo:tiny@1.0", registry=tmp_path / "new/zoos.json")
    assert oldest.folder.manifest
    assert oldest.folder.manifest.version == 1
    np.testing.assert_array_equal(newest.read(newest.scan()), oldest.read(oldest.scan()))
    several = catalog.open({"a": "zoo:tiny@1.0", "b": "zoo:tiny@1.1"})
    assert several.scan().collect()["zoo"].unique().sort().to_list() == ["a", "b"]
    done = catalog.retract("tiny", "1.1", "found a mistake", date="2026-11-23")
    assert done.retracted
    assert catalog.list()["retracted"].to_list() == ["found a mistake", None]
    assert catalog.open("zoo:tiny").folder.manifest == oldest.folder.manifest
    with pytest.raises(RetractedError, match="found a mistake"):
        catalog.open("zoo:tiny@1.1")
    assert catalog.open("zoo:tiny@1.1", allow_retracted=True).folder.manifest == newest.folder.manifest
    assert catalog.register("tiny", "1.1", zoos / "to").retracted == done.retracted  # and stays retracted
    with pytest.raises(UnknownNameError, match=r"known: .*1\.0"):
        catalog.retract("tiny", "3.0", "x")
    with pytest.raises(UnknownNameError, match="tiny"):
        catalog.retract("tny", "1.0", "x")
    with pytest.raises(FormatError, match="a reason"):
        catalog.retract("tiny", "1.0", "")


def test_a_zoo_that_is_another_one_is_refused(zoos: Path, tmp_path: Path) -> None:
    path = tmp_path / "zoos.json"
    made = catalog.register("tiny", "1.0", zoos / "to", path)
    for digest, url in ((DIGEST, made.url), (made.digest, f"{zoos}/zoo")):  # other files; not published at all
        save(path, entry("1.0", name="tiny", url=url, digest=digest))
        with pytest.raises(CorruptError, match="as the registry knows it"):
            catalog.open("zoo:tiny", registry=path)


def test_a_registry_far_away_is_not_changed(zoos: Path, tmp_path: Path, web: tuple[Server, str]) -> None:
    save(tmp_path / "far.json", entry())
    with pytest.raises(QueryError, match="change a copy"):
        catalog.retract("cifar10", "1.0", "x", f"{web[1]}/far.json")
    with pytest.raises(QueryError, match="change a copy"):
        catalog.register("tiny", "1.0", zoos / "to", f"{web[1]}/far.json")
    assert Folder.at(tmp_path).files() == ["far.json"]


def test_what_two_register_at_once_is_kept(zoos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zoos.json"
    catalog.register("first", "1.0", zoos / "to", path)
    real = catalog.registering._write
    other = threading.Thread(target=catalog.register, args=("other", "1.0", zoos / "to", path))

    def write(*given: Any) -> None:  # the other comes after this one has read the file, and must wait
        if other.ident is None:
            other.start()
            other.join(0.5)
        real(*given)

    monkeypatch.setattr(catalog.registering, "_write", write)
    catalog.register("mine", "1.0", zoos / "to", path)
    other.join()
    assert catalog.list(registry=path)["name"].to_list() == ["first", "mine", "other"]
