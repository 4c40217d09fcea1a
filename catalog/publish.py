"""Publish a zoo: its files, each checked, then a version that names them all, then the pointer to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import polars as pl

from catalog.errors import PublishError, unknown_name
from catalog.folder import Folder
from catalog.fragments import StoredFile
from catalog.inventory import Item, described, inventory, left_out, table_of
from catalog.manifest import Columns, Manifest
from catalog.store import Zoo, open_zoo
from catalog.versions import TRIES, history, settle, take_number

WORKERS = 4  # files in memory at once
CHECKS = ("full", "sizes")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Published:
    """What `publish` did, or with `dry_run` would do.

    Args:
        manifest: of the version that shows the zoo now.
        changed: whether this is a new version; the zoo was published as it is before, otherwise.
        uploaded: files that were written below the manifest's base.
        left_out: files of the source that nobody committed.
    """

    url: str
    manifest: Manifest
    changed: bool
    uploaded: tuple[StoredFile, ...]
    left_out: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def uploaded_bytes(self) -> int:
        return sum(file.size for file in self.uploaded)


def publish(
    zoo: Zoo | str | os.PathLike[str],
    url: str | os.PathLike[str],
    *,
    licence: str | None = None,
    citation: str | None = None,
    description: str | None = None,
    verify: str = "full",
    allow_incomplete: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    **storage_options: Any,
) -> Published:
    """Make a zoo, as it is now, the newest version at a URL.

    Files go to `<url>/<first digits of the zoo's digest>/`, where versions share them; then `versions/<n>.json` names
    them all with their digests, then README.md and croissant.json describe it, then `manifest.json` shows it. Readers
    see the version before until the last of these. Stopped at any point, the same call goes on from there.

    Args:
        zoo: a folder, a URL (also of a published zoo, which is mirrored), or a zoo opened with `metrics_at`.
        url: a local folder or any fsspec URL that can be written.
        licence: SPDX identifier such as CC-BY-4.0. Like citation (BibTeX or text) and description it stays as in the
            version before where it is None, else what `info` of the zoo says.
        verify: `full` reads back all that was written and compares; `sizes` lists it.
        allow_incomplete: publish shards that are built, though not all are.
        dry_run: only say what would be written.
        progress: called with (bytes done, bytes in all).
        storage_options: for fsspec, of whichever side is remote.

    On hf:// every file would be a commit of its own: publish to a folder here and upload that folder, which is one.

    Two publishers at once get two versions. Two that publish different builds of one `zoo.json` for the first time at
    once are not kept apart: build elsewhere under another name.

    Raises:
        PublishError: the source is incomplete or damaged, the target no place for it, or a file of an earlier version
            would change. What is published stays as it is.
        StorageError: the target refused.
    """
    if verify not in CHECKS:
        raise unknown_name("check", verify, CHECKS)
    source = zoo if isinstance(zoo, Zoo) else open_zoo(zoo, **storage_options)
    target = Folder.at(os.fspath(url).rstrip("/"), **storage_options)
    _check_target(source, target)
    versions = history(target)
    latest = versions[-1] if versions else None
    items, rows = inventory(source, allow_incomplete)
    table, columns = table_of(source, rows, items, latest)
    items.append(table)
    about = _about(source, latest, licence=licence, citation=citation, description=description)
    manifest = _manifest(source, rows, items, columns, about)
    strangers = left_out(source, manifest.files)
    if not dry_run:
        target.sweep()
    if latest and _same(manifest, latest):
        return Published(target.url, latest if dry_run else settle(target), False, (), strangers, dry_run)
    there = _published(manifest, versions)
    wanted = [item for item in items if item.file.path not in there]
    wanted.sort(key=lambda item: item.file.path)
    if dry_run:
        return Published(
            target.url, _after(manifest, latest), True, tuple(item.file for item in wanted), strangers, True
        )
    base = target.below(manifest.base)
    uploaded = _upload(wanted, base, progress)
    _check_uploaded(base, uploaded, verify)
    done = _commit(target, manifest, versions)
    settle(target)
    return Published(target.url, done, done.version > (latest.version if latest else 0), uploaded, strangers)


def _check_target(source: Zoo, target: Folder) -> None:
    """PublishError where nothing can be published."""
    if not target.local:
        protocol = target.fs.protocol
        if {"http", "https"} & {protocol, *(() if isinstance(protocol, str) else protocol)}:
            raise PublishError(f"{target.url} is a web server, which takes no files; publish to the store behind it")
    elif source.folder.local:
        here, there = os.path.realpath(source.folder.root), os.path.realpath(target.root)
        if here == there or there.startswith(f"{here}{os.sep}") or here.startswith(f"{there}{os.sep}"):
            raise PublishError(f"{target.url} and the zoo {source.url} lie in each other; choose another folder")
    if target.exists("zoo.json"):
        raise PublishError(f"{target.url} is a zoo itself; publish to a folder of its own")


def _about(source: Zoo, latest: Manifest | None, **given: str | None) -> dict[str, str]:
    """licence, citation and description: as given, else as in the version before, else as `info` of the zoo says."""
    names = {"licence": ("licence", "license"), "citation": ("citation", "bibtex"), "description": ("description",)}
    found = {}
    for key, members in names.items():
        said = (source.record.info.get(name) for name in members)
        texts = (given[key], getattr(latest, key, ""), *(text for text in said if isinstance(text, str)))
        chosen = texts[0] if texts[0] is not None else next((text for text in texts[1:] if text), "")
        found[key] = chosen.replace("\r\n", "\n").strip()
    return found


def _manifest(
    source: Zoo, rows: pl.DataFrame, items: Iterable[Item], columns: Columns, about: Mapping[str, str]
) -> Manifest:
    """The manifest of a first version.

    Raises:
        PublishError: names or texts that no manifest can hold.
    """
    record = source.record
    counts = dict(rows["status"].value_counts().sort("status").iter_rows())
    today = datetime.now(UTC).date().isoformat()
    files = {item.file.path: item.file for item in items}
    try:
        return Manifest(
            record.name, 1, record.digest[:12], record.digest, files, columns, today, counts=counts, **about
        )
    except ValueError as error:
        raise PublishError(f"{source.url} cannot be published: {error}") from error


def _same(manifest: Manifest, other: Manifest) -> bool:
    """Whether a version shows the same, whenever it was published."""
    return replace(manifest, version=other.version, created=other.created, previous=other.previous) == other


def _after(manifest: Manifest, latest: Manifest | None) -> Manifest:
    """The manifest as the version behind the latest."""
    return replace(manifest, version=latest.version + 1, previous=latest.digest) if latest else manifest


def _published(manifest: Manifest, versions: Sequence[Manifest]) -> dict[str, StoredFile]:
    """Files that versions of this zoo have already.

    Raises:
        PublishError: one of them would change.
    """
    there: dict[str, StoredFile] = {}
    for version in versions:
        if version.base == manifest.base:
            for path in manifest.files.keys() & version.files.keys():
                there[path] = version.files[path]
                if there[path] != manifest.files[path]:
                    raise PublishError(
                        f"{path} has other bytes than in version {version.version}, which never changes: this is "
                        "another build of the zoo, or was written anew; publish elsewhere, or build under another name"
                    )
    return there


def _upload(items: Sequence[Item], base: Folder, progress: Progress | None) -> tuple[StoredFile, ...]:
    """Write files, several at once; those that an interrupted call left whole are not written again."""
    left = set(base.files()) if items else set()
    total, done, written = sum(item.file.size for item in items), 0, []

    def put(item: Item) -> bool:
        data = item.load()
        if item.file.path in left and base.read(item.file.path) == data:
            return False
        base.write(item.file.path, data)
        return True

    with ThreadPoolExecutor(WORKERS) as pool:
        running = {pool.submit(put, item): item for item in items}
        try:
            for future in as_completed(running):
                file = running[future].file
                if future.result():
                    written.append(file)
                done += file.size
                if progress:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return tuple(sorted(written, key=lambda file: file.path))


def _check_uploaded(base: Folder, files: Sequence[StoredFile], verify: str) -> None:
    """PublishError unless what was written comes back as it was sent."""

    def sound(file: StoredFile) -> bool:
        try:
            if verify == "sizes":
                return base.size(file.path) == file.size
            return described(file.path, base.read(file.path)) == file
        except FileNotFoundError:
            return False

    with ThreadPoolExecutor(WORKERS) as pool:
        for file, good in zip(files, pool.map(sound, files), strict=True):
            if not good:
                raise PublishError(
                    f"{file.path} comes back from {base.url} otherwise than it was sent; nothing was published. Run "
                    "the same command again; is anybody else writing there?"
                )


def _commit(target: Folder, manifest: Manifest, versions: Sequence[Manifest]) -> Manifest:
    """The manifest under the next number that is free."""
    for _ in range(TRIES):
        latest = versions[-1] if versions else None
        if latest and _same(manifest, latest):  # somebody else published the same meanwhile
            return latest
        if done := take_number(target, _after(manifest, latest)):
            return done
        versions = history(target, versions)
        _published(manifest, versions)
    raise PublishError(f"others publish at {target.url} all the time; run the same command again later")
