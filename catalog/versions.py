"""The versions below a published URL: which there are, taking the next number, moving the pointer to the newest."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from catalog import cache
from catalog.croissant import croissant
from catalog.datacard import MARK, datacard
from catalog.errors import CorruptError, OfflineError, PublishError, StorageError
from catalog.folder import Folder
from catalog.manifest import NAME, VERSION, Manifest, decode_manifest
from catalog.record import LIMIT, decode

TRIES = 50  # times that other publishers may be faster


def numbers(target: Folder) -> list[int]:
    """Versions that were ever published here, sorted."""
    found = (VERSION.fullmatch(name) for name in target.files("versions"))
    return sorted(int(match[1]) for match in found if match)


def history(target: Folder, known: Sequence[Manifest] = ()) -> list[Manifest]:
    """The manifests of all versions in their order; those known already, which never change, are not read again.

    Raises:
        CorruptError, FormatError: one of them is damaged. OfflineError: nothing may be asked of other machines.
    """
    if not target.local and cache.offline():
        raise OfflineError(f"WEIGHTSCAPE_OFFLINE is set: nothing can be published at {target.url}; unset it")
    there = {manifest.version: manifest for manifest in known}
    return [there.get(number) or _read(target, number)[0] for number in numbers(target)]


def _read(target: Folder, number: int) -> tuple[Manifest, bytes]:
    name = f"versions/{number}.json"
    data = target.read(name)
    manifest = decode_manifest(data, name, target.url)
    if manifest.version != number:
        raise CorruptError(f"{name} of {target.url} is the manifest of version {manifest.version}; restore it")
    return manifest, data


def settle(target: Folder) -> Manifest:
    """Let the pointer, data card and Croissant file show the newest version; returns that.

    Whoever publishes does this at the end, for whichever version is the newest then: its files are all there, since a
    version is written after them. So the last one to write has seen all others.

    Raises:
        PublishError: others publish all the time.
    """
    for _ in range(TRIES):
        number = numbers(target)[-1]
        manifest, data = _read(target, number)
        files = {**_about(target, manifest, data), NAME: data}
        stale = [name for name, content in files.items() if _found(target, name) != content]
        if "README.md" in stale and not _ours(target):
            stale.remove("README.md")
        for name in stale:  # the pointer is the last
            target.write(name, files[name])
        if numbers(target)[-1] == number:
            return manifest
    raise PublishError(f"others publish at {target.url} all the time; version {number} is there, try again later")


def _about(target: Folder, manifest: Manifest, data: bytes) -> dict[str, bytes]:
    """Data card and Croissant file of a version, which follow from it alone, so that any publisher can write them."""
    folder = replace(target.below(manifest.base), manifest=manifest)
    record = decode(folder.read("zoo.json", LIMIT), folder.url)
    rows = pl.read_parquet(io.BytesIO(folder.read(manifest.columns.path)))
    return {
        "README.md": datacard(manifest, record, rows, target.url).encode(),
        "croissant.json": croissant(manifest, data, rows, target.url).encode(),
    }


def _found(target: Folder, name: str) -> bytes | None:
    try:
        return target.read(name)
    except FileNotFoundError:
        return None


def _ours(target: Folder) -> bool:
    """Whether the README there, if any, was written here: one that somebody wrote by hand stays."""
    found = _found(target, "README.md")
    return found is None or MARK.encode() in found


def take_number(target: Folder, manifest: Manifest) -> Manifest | None:
    """Write a manifest as its version; None when somebody else took the number before.

    Raises:
        StorageError: it cannot be written.
    """
    name = f"versions/{manifest.version}.json"
    data = manifest.encode()
    if not target.write_new(name, data):
        return None
    if target.read(name) != data:
        raise StorageError(f"{name} of {target.url} comes back otherwise than it was written; is the store sound?")
    return decode_manifest(data, name, target.url)
