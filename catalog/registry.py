"""A registry: a JSON file that says which zoos there are, in which versions, where, and which were retracted and why.

It has no code and no powers: what it says of a zoo is compared with the zoo's own manifest when it is opened.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from catalog import cache
from catalog.errors import (
    CorruptError,
    FormatError,
    OfflineError,
    QueryError,
    RetractedError,
    UnknownNameError,
    unknown_name,
)
from catalog.folder import Folder
from catalog.manifest import DATE, SHA256
from catalog.publication import published_folder
from catalog.record import brief
from catalog.sealed import strict_json

FORMAT = 1
SCHEME = "zoo:"  # what a name of a registry begins with
LIMIT = 16 << 20  # bytes of a registry, ~300 a version
MAX_ENTRIES = 1 << 16
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,98}")
VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})(?:\.(0|[1-9][0-9]{0,8}))?(?:-([0-9A-Za-z.-]{1,40}))?")
SCHEMES = ("https", "http", "s3", "gs", "hf")  # which an entry may name; of others who knows what a package does
ALIASES = ("stable", "latest")
MEMBERS = ("name", "version", "url", "digest", "licence", "retracted")


@dataclass(frozen=True)
class Retraction:
    """Why a version should not be used any more, and since when (a date)."""

    reason: str
    date: str

    def __post_init__(self) -> None:
        if not self.reason or len(self.reason) > 1000 or not self.reason.isprintable():
            raise ValueError(f"a retraction has a reason in a line of text, got {self.reason!r:.80}")
        if not DATE.fullmatch(self.date):
            raise ValueError(f"a retraction has a date such as 2026-11-23, got {self.date!r:.80}")


@dataclass(frozen=True)
class Entry:
    """A version of a zoo.

    Args:
        version: MAJOR.MINOR or MAJOR.MINOR.PATCH, with -something for what comes before a release.
        url: where it is published, or, for a version that is not the newest there, of its `versions/<n>.json`.
        digest: tree digest of its manifest.
        licence: SPDX identifier, may be empty.
    """

    name: str
    version: str
    url: str
    digest: str
    licence: str = ""
    retracted: Retraction | None = None

    def __post_init__(self) -> None:
        for sound, problem in (
            (NAME.fullmatch(self.name), f"a name is letters, digits, '.', '_', '-', got {self.name!r:.80}"),
            (VERSION.fullmatch(self.version), f"a version is MAJOR.MINOR.PATCH, got {self.version!r:.80}"),
            (SHA256.fullmatch(self.digest), f"the digest of {self.name} {self.version} is no sha256"),
            (len(self.licence) <= 200 and (self.licence or "x").isprintable(), "a licence is a line of text"),
            (self.url and self.url.isprintable() and len(self.url) <= 2000, f"{self.url!r:.80} is no URL"),
        ):
            if not sound:
                raise ValueError(problem)

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts versions as semantic versioning does: 1.9 < 1.10-rc.1 < 1.10 = 1.10.0."""
        match = VERSION.fullmatch(self.version)
        assert match
        numbers = tuple(int(number or 0) for number in match.groups()[:3])
        before = tuple(
            (not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in self._before.split(".")
        )
        return numbers, not self._before, before

    @property
    def _before(self) -> str:
        return self.version.partition("-")[2]

    @property
    def released(self) -> bool:
        return not self._before


def list_zoos(
    pattern: str = "*", registry: str | os.PathLike[str] | None = None, **storage_options: Any
) -> pl.DataFrame:
    """The zoos of a registry whose names fit a pattern such as `cifar10*`, in any case; newest versions first.

    Args:
        registry: path or URL of the file; None for `WEIGHTSCAPE_REGISTRY`.

    Returns:
        name, version, url, digest, licence, retracted (the reason, null for what is not).

    Raises:
        QueryError: no registry is named. FormatError: it is none. FileNotFoundError: it is not there.
    """
    entries = [
        entry
        for entry in read_registry(registry, **storage_options)
        if fnmatch.fnmatchcase(entry.name.casefold(), pattern.casefold())
    ]
    entries.sort(key=lambda entry: entry.order, reverse=True)
    entries.sort(key=lambda entry: entry.name.casefold())
    rows = [
        {**{name: getattr(entry, name) for name in MEMBERS}, "retracted": entry.retracted and entry.retracted.reason}
        for entry in entries
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(MEMBERS, pl.String))


def resolve(
    name: str,
    registry: str | os.PathLike[str] | None = None,
    *,
    allow_retracted: bool = False,
    quiet: bool = False,
    **storage_options: Any,
) -> Entry:
    """The version that a name means; says on stderr which that is.

    Args:
        name: `cifar10@1.2.0`; `cifar10@stable`, the highest release; `cifar10@latest`, the highest of all, also
            before a release; `cifar10` is the stable one. Neither takes what was retracted. May begin with `zoo:`.
        allow_retracted: take a retracted version that is named by its number.

    Raises:
        UnknownNameError: no such zoo or version, listing those there are.
        RetractedError: it was retracted, or all were; with the reason.
        QueryError, FormatError, FileNotFoundError: as for `list_zoos`.
    """
    wanted, _, version = name.removeprefix(SCHEME).partition("@")
    version = version or "stable"
    entries = read_registry(registry, **storage_options)
    known = sorted({entry.name for entry in entries})
    versions = sorted((entry for entry in entries if entry.name == wanted), key=lambda entry: entry.order)
    if not versions:
        raise unknown_name("zoo", wanted, known)
    found = _by_alias(versions, version) if version in ALIASES else by_number(versions, version)
    if found.retracted and not allow_retracted:
        raise RetractedError(
            f"{found.name} {found.version} was retracted on {found.retracted.date}: {found.retracted.reason}; take "
            f"another version, or allow retracted ones"
        )
    if not quiet:
        print(f"{SCHEME}{wanted}@{version} is {found.name} {found.version} at {found.url}", file=sys.stderr)
    return found


def _by_alias(versions: list[Entry], alias: str) -> Entry:
    """The highest version that an alias takes; the highest retracted one, for its error, if all were."""
    whole = [entry for entry in versions if alias == "latest" or entry.released]
    if not whole:
        raise UnknownNameError(
            f"{versions[0].name} has no release yet; name a version: {', '.join(entry.version for entry in versions)}"
        )
    return ([entry for entry in whole if not entry.retracted] or whole)[-1]


def by_number(versions: list[Entry], version: str) -> Entry:
    if VERSION.fullmatch(version):
        order = Entry("x", version, "x", "0" * 64).order  # 1.2 is 1.2.0
        for entry in versions:
            if entry.order == order:
                return entry
    raise unknown_name(f"version of {versions[0].name}", version, [*ALIASES, *(entry.version for entry in versions)])


def open_folder(
    name: str,
    registry: str | os.PathLike[str] | None = None,
    *,
    allow_retracted: bool = False,
    **storage_options: Any,
) -> Folder:
    """The folder of a zoo named in a registry, if it is what the registry says.

    Raises:
        CorruptError: the manifest there has another tree digest: it was replaced, or a newer version was published.
        errors of `resolve` and of opening it.
    """
    far = os.fspath(registry) if registry is not None else os.environ.get("WEIGHTSCAPE_REGISTRY", "")
    same = storage_options if far.partition("://")[0] in ("s3", "gs", "hf") else {}  # others take no such options
    entry = resolve(name, registry, allow_retracted=allow_retracted, **same)
    folder = published_folder(entry.url, **storage_options)
    found = folder.manifest.tree if folder.manifest else "none"
    if found != entry.digest:
        raise CorruptError(
            f"{entry.url} is not {entry.name} {entry.version} as the registry knows it: tree digest "
            f"{entry.digest[:16]} was expected, {found[:16]} is there; if a newer version was published, let the "
            "registry name the versions/<n>.json of this one"
        )
    return folder


def read_registry(registry: str | os.PathLike[str] | None = None, **storage_options: Any) -> list[Entry]:
    """All entries of a registry, which may come from a stranger; errors as for `list_zoos`."""
    folder, name = place_of(registry, storage_options)
    where = f"{folder.url}/{name}"
    if not folder.local and cache.offline():
        if (data := cache.recall(folder.url, name)) is None:
            raise OfflineError(f"WEIGHTSCAPE_OFFLINE is set, and {where} was not read before; unset it once")
    else:
        data = folder.read(name, LIMIT)
    try:
        content = strict_json(data)
        if not isinstance(content, dict) or type(content.get("format")) is not int:
            raise ValueError("it names no format")
        if content["format"] != FORMAT:
            raise ValueError(
                f"it is of format {content['format']}, this weightscape reads {FORMAT}: install a newer one"
            )
        if not isinstance(content["zoos"], list) or len(content["zoos"]) > MAX_ENTRIES:
            raise ValueError(f"zoos is a list of at most {MAX_ENTRIES:,}")
        entries = [_entry(item) for item in content["zoos"]]
        for entry in entries:
            check_url(entry.url, folder.local)
        no_twins(entries)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{where} is no registry: {brief(error)}") from error
    if not folder.local:
        cache.remember(folder.url, name, data)
    else:
        entries = [replace(entry, url=_beside(entry.url, folder.root)) for entry in entries]
    return entries


def place_of(registry: str | os.PathLike[str] | None, storage_options: Mapping[str, Any]) -> tuple[Folder, str]:
    """Folder and name of the file."""
    text = os.fspath(registry) if registry is not None else os.environ.get("WEIGHTSCAPE_REGISTRY", "")
    if not text:
        raise QueryError("no registry is named; give registry= a path or URL, or set WEIGHTSCAPE_REGISTRY")
    if "://" not in text:
        text = os.path.abspath(text)
    head, _, name = text.rpartition("/")
    if not name or head.endswith(("/", ":")):
        raise QueryError(f"a registry is a file, got {text!r:.200}")
    return Folder.at(head or "/", **storage_options), name


def _entry(item: Any) -> Entry:
    if not isinstance(item, dict) or set(item) != set(MEMBERS):
        raise ValueError(f"an entry has the members {', '.join(MEMBERS)}, got {json.dumps(item)[:100]}")
    texts = {name: item[name] for name in MEMBERS[:-1]}
    retracted = item["retracted"]
    if not all(type(text) is str for text in texts.values()):
        raise ValueError(f"an entry holds text, got {json.dumps(item)[:100]}")
    if retracted is None:
        return Entry(**texts)
    if not isinstance(retracted, dict) or set(retracted) != {"reason", "date"}:
        raise ValueError("retracted is null or has a reason and a date")
    if not all(type(text) is str for text in retracted.values()):
        raise ValueError("the reason and date of a retraction are text")
    return Entry(**texts, retracted=Retraction(**retracted))


def check_url(url: str, local: bool) -> None:
    """ValueError for what a registry must not make anybody open."""
    if "::" in url or "\\" in url:
        raise ValueError(f"{url!r:.120} is a chained URL, or has a backslash")
    scheme, separator, _ = url.partition("://")
    if separator and scheme in SCHEMES:
        return
    if separator or not local:
        kinds = ", ".join(SCHEMES) + (" and paths" if local else "; paths stand in local registries alone")
        raise ValueError(f"{url!r:.120} is none of {kinds}")


def _beside(url: str, root: str) -> str:
    """A path of a local registry, which may be relative to it."""
    return url if "://" in url else os.path.join(root, url)


def no_twins(entries: Iterable[Entry]) -> None:
    seen: dict[tuple[str, Any], str] = {}
    names: dict[str, str] = {}
    for entry in entries:
        key = entry.name, entry.order
        if key in seen:
            raise ValueError(f"{entry.name} {entry.version} stands twice")
        seen[key] = entry.version
        if names.setdefault(entry.name.casefold(), entry.name) != entry.name:
            raise ValueError(f"{entry.name} differs from another name by its case alone")
