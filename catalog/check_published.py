"""What the manifest of a published zoo says, against the files it lists and the other versions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from catalog.errors import CorruptError, FormatError, ZooError
from catalog.folder import Folder
from catalog.fragments import read_table
from catalog.manifest import VERSION, Manifest
from catalog.metrics import with_metrics
from catalog.parquet import columns_of
from catalog.publication import read_manifest
from catalog.store import Zoo
from catalog.table import fragment_rows
from catalog.versions import numbers

Say = Callable[[str, str, str], Any]  # kind, file, message


def check_table_file(zoo: Zoo, shards: Mapping[tuple[str, int], str], counts: Mapping[str, int], say: Say) -> None:
    """Whether the table has the rows of the fragments with their measured columns, and lies as the manifest says."""
    manifest = _manifest(zoo)
    name, advice = manifest.columns.path, "publish the zoo again"
    if {status: count for status, count in manifest.counts.items() if count} != dict(counts):
        said = f"the manifest counts {dict(manifest.counts)}, its rows are {dict(counts)}; {advice}"
        say("corrupt", "manifest.json", said)
    if (manifest.zoo, manifest.name) != (zoo.record.digest, zoo.record.name):
        say("corrupt", "manifest.json", f"the manifest is of another zoo than its zoo.json; {advice}")
    try:
        data = zoo.folder.read(name)
        if columns_of(name, data) != manifest.columns:
            say("corrupt", name, f"the columns of {name} do not lie where the manifest says; {advice}")
        expected = with_metrics(zoo, fragment_rows(zoo, shards))
        rows = read_table(data, len(expected))
        if set(rows.columns) != set(expected.columns) or not rows.equals(expected.select(rows.columns)):
            say("corrupt", name, f"{name} has other rows than the fragments and measured columns; {advice}")
    except FileNotFoundError:
        return  # said already
    except (CorruptError, FormatError, ValueError) as error:
        say("corrupt", name, f"{name} of {zoo.url}: {error}; {advice}")


def check_versions(zoo: Zoo, url: str | os.PathLike[str], options: Mapping[str, Any], say: Say) -> None:
    """Whether the version has its own manifest, and follows the one before."""
    manifest, folder = _manifest(zoo), _above(url, options)
    for version, digest in ((manifest.version, manifest.digest), (manifest.version - 1, manifest.previous)):
        if not version:
            continue
        name = f"versions/{version}.json"
        try:
            found = read_manifest(folder, name)
        except (CorruptError, FormatError) as error:
            say("corrupt", name, str(error))
            continue
        if found is None:
            say("missing", name, f"{name} of {folder.url} is not there; restore it from a copy, or from manifest.json")
        elif found.digest != digest:
            say("corrupt", name, f"{name} of {folder.url} is not the manifest that version {manifest.version} follows")


def strangers(zoo: Zoo, folder: Folder, url: str | os.PathLike[str], options: Mapping[str, Any]) -> list[str]:
    """Files below the manifest's base that no version has; none where the place cannot be listed.

    Args:
        folder: of the zoo, without the manifest.
    """
    try:
        names = set(folder.files()) - set(_manifest(zoo).files)
        above = _above(url, options)
        for number in numbers(above) if names else ():
            other = read_manifest(above, f"versions/{number}.json")
            if other and other.base == _manifest(zoo).base:
                names -= set(other.files)
    except ZooError:
        return []
    return sorted(names)


def _manifest(zoo: Zoo) -> Manifest:
    assert zoo.folder.manifest is not None
    return zoo.folder.manifest


def _above(url: str | os.PathLike[str], options: Mapping[str, Any]) -> Folder:
    """The published folder, in which the manifests are."""
    text = os.fspath(url).rstrip("/")
    head, slash, tail = text.rpartition("/versions/")
    return Folder.at(head if slash and VERSION.fullmatch(f"versions/{tail}") else text, **options)
