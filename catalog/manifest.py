"""`manifest.json` of a published zoo: each file of a version with its digest, and where the table's columns lie."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from catalog.errors import FormatError
from catalog.fragments import MAX_COLUMNS, StoredFile
from catalog.record import brief
from catalog.sealed import seal, unseal

FORMAT = 1
NAME = "manifest.json"
VERSION = re.compile(r"versions/([1-9][0-9]{0,8})\.json")  # below the URL, behind which the file's version is
LIMIT = 256 << 20  # bytes of a manifest, ~150 a file
MAX_ENTRIES = 1 << 21  # files of a zoo
MAX_GROUPS = 1 << 12  # row groups of a table
FOOTER = 16 << 20  # bytes of a Parquet footer
SHA256 = re.compile(r"[0-9a-f]{64}")
SHORT = re.compile(r"[0-9a-f]{32}")  # of a column chunk
BASE = re.compile(r"[0-9a-f]{12}")
WORDS = ("name", "base", "zoo", "created", "licence", "citation", "description", "previous")
TEXT = 1 << 16  # characters of a citation or description
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True)
class Chunk:
    """A column of a row group: bytes [offset, offset + size) of the file; digest is 32 digits of their sha256."""

    offset: int
    size: int
    digest: str


@dataclass(frozen=True)
class Columns:
    """Where in a Parquet file its columns lie, so that some can be fetched alone and checked.

    Args:
        path: the file, `catalog.<digest>.parquet`.
        groups: rows of each row group.
        chunks: column -> its chunk of each row group, in the order of the file's schema.
        footer: the end of the file, from behind the last chunk on.
    """

    path: str
    groups: tuple[int, ...]
    chunks: Mapping[str, tuple[Chunk, ...]]
    footer: bytes

    @property
    def rows(self) -> int:
        return sum(self.groups)


@dataclass(frozen=True)
class Manifest:
    """A version of a published zoo. It never changes; a later version has a manifest of its own.

    Args:
        name: of the zoo.
        version: 1, 2, ...
        base: folder of the zoo's files, below the URL: the first 12 digits of `zoo`.
        zoo: digest of its zoo.json.
        files: path below `base` -> file; all that belongs to this version.
        columns: of the table of all rows.
        created: date of publication, as 2026-11-23.
        licence: SPDX identifier, empty when none was named.
        counts: rows by status.
        citation: how to cite it, BibTeX or text; empty when nobody said.
        description: what it is, for people; may be empty.
        previous: digest of the manifest of the version before, empty for the first.
        digest: sha256 of the body of the manifest: its identity.
    """

    name: str
    version: int
    base: str
    zoo: str
    files: Mapping[str, StoredFile]
    columns: Columns
    created: str
    licence: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    citation: str = ""
    description: str = ""
    previous: str = ""
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        text = self.name and self.name.isprintable() and len(self.name) <= 200
        known = [
            (text, f"name is 1 to 200 printable characters, got {self.name!r:.80}"),
            (1 <= self.version < 10**9, f"version is 1 or more, got {self.version!r}"),
            (BASE.fullmatch(self.base) and self.zoo.startswith(self.base), "base is not the start of the zoo's digest"),
            (SHA256.fullmatch(self.zoo), "zoo is no sha256"),
            (DATE.fullmatch(self.created), f"created is a date, got {self.created!r:.80}"),
            (not self.previous or SHA256.fullmatch(self.previous), "previous is no sha256"),
            (len(self.licence) <= 200 and (self.licence or "x").isprintable(), "licence is a line of text"),
            (_is_text(self.citation) and _is_text(self.description), f"citation and description are text of {TEXT}"),
            (len(self.files) <= MAX_ENTRIES, f"at most {MAX_ENTRIES:,} files, got {len(self.files):,}"),
            ("zoo.json" in self.files, "no zoo.json among the files"),
            (self.columns.path in self.files, f"{self.columns.path!r:.80} is not among the files"),
        ]
        for sound, problem in known:
            if not sound:
                raise ValueError(problem)
        folded: set[str] = set()
        for path in self.files:
            check_path(path)
            if path.casefold() in folded:
                raise ValueError(f"{path!r:.120} stands twice, or differs from another name by its case alone")
            folded.add(path.casefold())
        _check_columns(self.columns, self.files[self.columns.path].size)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def tree(self) -> str:
        """The tree digest: sha256 over the names and sha256 of all files, as `verify` gives it."""
        return tree_digest((file.path, file.sha256) for file in self.files.values())

    def encode(self) -> bytes:
        """The bytes of the file, the same for the same content."""
        columns = self.columns
        content = {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "base": self.base,
            "zoo": self.zoo,
            "created": self.created,
            "licence": self.licence,
            "counts": dict(sorted(self.counts.items())),
            "bytes": self.size,
            "tree": self.tree,
            "citation": self.citation,
            "description": self.description,
            "previous": self.previous,
            "files": [[file.path, file.size, file.sha256] for _, file in sorted(self.files.items())],
            "columns": {
                "path": columns.path,
                "groups": list(columns.groups),
                "chunks": [
                    [name, [[c.offset, c.size, c.digest] for c in chunks]] for name, chunks in columns.chunks.items()
                ],
                "footer": b64encode(columns.footer).decode(),
            },
        }
        return seal(content)


def decode_manifest(data: bytes, name: str, where: str) -> Manifest:
    """The manifest in the bytes of a file, which may come from a stranger.

    Raises:
        CorruptError: the bytes are not what was written.
        FormatError: another format, or content that it does not allow.
    """
    content, digest = unseal(data, name, where, LIMIT)
    if (found := content.get("format")) is not None and (type(found) is not int or found != FORMAT):
        raise FormatError(
            f"{name} of {where} is of format {str(found)[:20]}; this weightscape reads format {FORMAT}: "
            "install a newer weightscape"
        )
    try:
        files = [_file(entry) for entry in content["files"]]
        by_path = {file.path: file for file in files}
        if len(by_path) != len(files):
            raise ValueError("a file stands twice")
        words = {key: _text(content, key) for key in WORDS}
        tree = _text(content, "tree")
        counts = {str(status): _count(number) for status, number in dict(content["counts"]).items()}
        version = _count(content["version"])
        manifest = Manifest(
            **words, version=version, files=by_path, columns=_columns(content["columns"]), counts=counts, digest=digest
        )
        if manifest.tree != tree or manifest.size != content["bytes"]:
            raise ValueError("tree digest or bytes are not those of its files")
        return manifest
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{name} of {where} does not follow format {FORMAT}: {brief(error)}") from error


def tree_digest(files: Iterable[tuple[str, str]]) -> str:
    """sha256 of the lines `<sha256>  <path>`, sorted by path."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def check_path(path: str) -> None:
    """ValueError unless this is a plain relative path with forward slashes, on every system.

    >>> check_path("weights/mlp/c/0/0/0")
    >>> check_path("../secret")
    Traceback (most recent call last):
    ValueError: '../secret' is not a plain relative path
    """
    parts = path.split("/")
    plain = all(part and part not in (".", "..") and part.isprintable() for part in parts)
    if not plain or len(path) > 512 or {"\\", ":"} & set(path) or parts[-1].startswith(".tmp-"):
        raise ValueError(f"{path!r:.120} is not a plain relative path")


def _is_text(text: str) -> bool:
    """Whether it can be shown: lines without control characters."""
    return len(text) <= TEXT and all(line.isprintable() for line in text.replace("\t", " ").split("\n"))


def _check_columns(columns: Columns, size: int) -> None:
    """ValueError unless the chunks lie in the file, in front of the footer."""
    end = size - len(columns.footer)
    if not columns.groups or len(columns.groups) > MAX_GROUPS or min(columns.groups) < 0:
        raise ValueError(f"a table has 1 to {MAX_GROUPS:,} row groups, got {columns.groups!r:.80}")
    if not 1 <= len(columns.chunks) <= MAX_COLUMNS or not 12 <= len(columns.footer) <= FOOTER or end < 4:
        raise ValueError(f"a table has 1 to {MAX_COLUMNS} columns and a footer")
    for name, chunks in columns.chunks.items():
        if len(chunks) != len(columns.groups):
            raise ValueError(f"column {name!r:.80} has {len(chunks)} chunks in {len(columns.groups)} row groups")
        for chunk in chunks:
            if chunk.offset < 4 or chunk.offset + chunk.size > end or not SHORT.fullmatch(chunk.digest):
                raise ValueError(f"column {name!r:.80} lies outside its file")


def _columns(content: Mapping[str, Any]) -> Columns:
    chunks = {
        name: tuple(Chunk(_count(offset), _count(size), digest) for offset, size, digest in entries)
        for name, entries in content["chunks"]
    }
    if len(chunks) != len(content["chunks"]) or not all(type(name) is str for name in chunks):
        raise ValueError("a column stands twice")
    footer = b64decode(content["footer"], validate=True)
    return Columns(_text(content, "path"), tuple(_count(rows) for rows in content["groups"]), chunks, footer)


def _file(entry: Any) -> StoredFile:
    path, size, digest = entry
    if type(path) is not str or type(digest) is not str or not SHA256.fullmatch(digest):
        raise ValueError(f"a file is a path, a size and a sha256, got {json.dumps(entry)[:100]}")
    return StoredFile(path, _count(size), digest)


def _text(content: Mapping[str, Any], key: str) -> str:
    if type(content[key]) is not str:
        raise ValueError(f"{key} is no text")
    return str(content[key])


def _count(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**60:
        raise ValueError(f"expected a number of 0 or more, got {number!r:.80}")
    return number
