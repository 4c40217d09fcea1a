"""A published zoo as a folder: the manifest that its URL points to, and the zoo's files as of that version."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from catalog import cache
from catalog.errors import CorruptError, OfflineError
from catalog.folder import Folder
from catalog.manifest import LIMIT, NAME, VERSION, Manifest, decode_manifest


def published_folder(
    url: str | os.PathLike[str],
    *,
    registry: str | os.PathLike[str] | None = None,
    allow_retracted: bool = False,
    **storage_options: Any,
) -> Folder:
    """The folder of a zoo: as a published version shows it where there is a manifest, else as it is.

    Args:
        url: of a zoo or of `versions/<n>.json`; or `zoo:name@version`, which `registry` knows.

    Raises:
        CorruptError, FormatError: a manifest that is none. OfflineError: it is not in the cache.
        RetractedError, UnknownNameError, QueryError: see `catalog.registry.resolve`.
    """
    text = os.fspath(url).rstrip("/")
    if text.startswith("zoo:"):
        from catalog.registry import open_folder

        return open_folder(text, registry, allow_retracted=allow_retracted, **storage_options)
    name = NAME
    head, slash, tail = text.rpartition("/versions/")
    if slash and VERSION.fullmatch(f"versions/{tail}"):
        text, name = head, f"versions/{tail}"
    folder = Folder.at(text, **storage_options)
    manifest = read_manifest(folder, name)
    if manifest is None:
        return folder
    return replace(folder.below(manifest.base), manifest=manifest)


def read_manifest(folder: Folder, name: str = NAME) -> Manifest | None:
    """A manifest of a published zoo, None when it has none of this name.

    Raises:
        CorruptError, FormatError: it is none, or not the version its name says. OfflineError: it is not in the cache.
    """
    if not folder.local and cache.offline():
        data = cache.recall(folder.url, name)
        if data is None:
            raise OfflineError(f"WEIGHTSCAPE_OFFLINE is set, and {folder.url} was not opened before; unset it once")
    else:
        try:
            data = folder.read(name, LIMIT)
        except FileNotFoundError:
            return None
        if not folder.local:
            cache.remember(folder.url, name, data)
    manifest = decode_manifest(data, name, folder.url)
    if (match := VERSION.fullmatch(name)) and manifest.version != int(match[1]):
        raise CorruptError(f"{name} of {folder.url} is the manifest of version {manifest.version}; restore it")
    return manifest
