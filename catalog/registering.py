"""Change a registry on this machine: add a version, retract one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from catalog.errors import FormatError, QueryError, unknown_name
from catalog.folder import Folder, storage_error
from catalog.publication import published_folder
from catalog.registry import (
    FORMAT,
    MEMBERS,
    Entry,
    Retraction,
    by_number,
    check_url,
    no_twins,
    place_of,
    read_registry,
)


def register(
    name: str,
    version: str,
    url: str | os.PathLike[str],
    registry: str | os.PathLike[str] | None = None,
    **storage_options: Any,
) -> Entry:
    """Add a published zoo to a local registry, which is made if it is not there; digest and licence come from it.

    A version that is there already stays as it is; the same one again is no error.

    Raises:
        QueryError: the registry is not local, the zoo is not published, or the version is another one's.
        FormatError: a name, version or URL that no registry holds.
    """
    folder, file = place_of(registry, {})
    place = os.fspath(url).rstrip("/")
    manifest = published_folder(place, **storage_options).manifest
    if manifest is None:
        raise QueryError(f"{place} is not published: it has no manifest; `weightscape publish` it first")
    kept = os.path.abspath(place) if "://" not in place else place
    try:
        entry = Entry(name, version, kept, manifest.tree, manifest.licence)
        check_url(entry.url, True)
    except ValueError as error:
        raise FormatError(f"{place} cannot be registered: {error}") from error
    with _alone(folder):
        return _add(folder, file, entry)


def _add(folder: Folder, file: str, entry: Entry) -> Entry:
    entries = _entries(folder, file)
    for known in entries:
        if known.name == entry.name and known.order == entry.order:
            if replace(known, retracted=None) == entry:
                return known
            raise QueryError(
                f"{known.name} {known.version} is registered already, at {known.url}, and stays; take another version"
            )
    _write(folder, file, [*entries, entry])
    return entry


def retract(
    name: str, version: str, reason: str, registry: str | os.PathLike[str] | None = None, date: str | None = None
) -> Entry:
    """Say in a local registry that a version should not be used any more, and why. Its files stay.

    Raises:
        UnknownNameError: no such zoo or version. QueryError: the registry is not local. FormatError: no reason.
    """
    folder, file = place_of(registry, {})
    try:
        retraction = Retraction(reason, date or datetime.now(UTC).date().isoformat())
    except ValueError as error:
        raise FormatError(f"{name} {version} cannot be retracted: {error}") from error
    with _alone(folder):
        entries = _entries(folder, file)
        versions = [entry for entry in entries if entry.name == name]
        if not versions:
            raise unknown_name("zoo", name, {entry.name for entry in entries})
        old = by_number(versions, version)
        new = replace(old, retracted=retraction)
        _write(folder, file, [new if entry == old else entry for entry in entries])
    return new


@contextlib.contextmanager
def _alone(folder: Folder) -> Iterator[None]:
    """Nobody else changes a registry in this folder meanwhile: what two add at once would lose one of them."""
    if not folder.local:
        raise QueryError(f"a registry at {folder.url} is far away; change a copy of it here, and put that there")
    try:
        os.makedirs(folder.root, exist_ok=True)
        descriptor = os.open(folder.root, os.O_RDONLY)
    except OSError as error:
        raise storage_error(error, f"opening {folder.url}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # which ends with the process, however that ends
        yield
    finally:
        os.close(descriptor)


def _entries(folder: Folder, name: str) -> list[Entry]:
    return read_registry(folder.path(name)) if folder.exists(name) else []


def _write(folder: Folder, name: str, entries: Iterable[Entry]) -> None:
    listed = list(entries)
    try:
        no_twins(listed)
    except ValueError as error:
        raise FormatError(f"{folder.url}/{name} cannot hold this: {error}") from error
    zoos = [
        {
            **{member: getattr(entry, member) for member in MEMBERS},
            "retracted": entry.retracted and {"reason": entry.retracted.reason, "date": entry.retracted.date},
        }
        for entry in sorted(listed, key=lambda entry: (entry.name.casefold(), entry.order))
    ]
    text = json.dumps({"format": FORMAT, "zoos": zoos}, indent=1, ensure_ascii=False) + "\n"
    folder.write(name, text.encode())
