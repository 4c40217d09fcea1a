"""`slice.json`: which part of a published zoo a folder holds, so that the absence of the rest is no damage."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from catalog.errors import FormatError
from catalog.folder import Folder
from catalog.manifest import DATE, SHA256
from catalog.record import MAX_SHARDS, Record, brief
from catalog.sealed import seal, unseal

NAME = "slice.json"
FORMAT = 1
LIMIT = 64 << 20  # bytes; a shard takes ~30
QUERIES = 1000  # of them the last are kept
TEXT = 10_000  # characters of a query
URL = 4096  # characters

Shard = tuple[str, int]  # variant, number


@dataclass(frozen=True)
class Slice:
    """A part of a zoo.

    Args:
        of: URL that it was pulled from. version, tree: of the manifest there, 0 and empty for a bare zoo.
        zoo: digest of the zoo.
        where: the queries that it was pulled for, empty when that was all rows that there were.
        shards: those that must be there.
        date: of the last change, as 2026-11-23.
    """

    of: str
    version: int
    tree: str
    zoo: str
    where: tuple[str, ...]
    shards: frozenset[Shard]
    date: str
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        known = [
            (0 < len(self.of) <= URL and self.of.isprintable(), "of is no URL"),
            (0 <= self.version < 10**9, f"version is 0 or more, got {self.version!r}"),
            (bool(SHA256.fullmatch(self.tree)) == (self.version > 0), "tree is the sha256 of a published version"),
            (self.tree == "" or SHA256.fullmatch(self.tree), "tree is no sha256"),
            (SHA256.fullmatch(self.zoo), "zoo is no sha256"),
            (len(self.where) <= QUERIES and all(len(text) <= TEXT for text in self.where), "where is too long"),
            (len(self.shards) <= MAX_SHARDS, f"at most {MAX_SHARDS:,} shards, got {len(self.shards):,}"),
            (DATE.fullmatch(self.date), f"date is a date, got {self.date!r:.40}"),
        ]
        for sound, problem in known:
            if not sound:
                raise ValueError(problem)

    def encode(self) -> bytes:
        """The bytes of the file, the same for the same content."""
        return seal(
            {
                "format": FORMAT,
                "of": self.of,
                "version": self.version,
                "tree": self.tree,
                "zoo": self.zoo,
                "where": list(self.where),
                "shards": [list(shard) for shard in sorted(self.shards)],
                "date": self.date,
            }
        )


def decode_slice(data: bytes, record: Record, where: str) -> Slice:
    """The slice in the bytes of a file, which may come from a stranger.

    Raises:
        CorruptError: the bytes are not what was written.
        FormatError: another format, content that it does not allow, or a slice of another zoo.
    """
    content, digest = unseal(data, NAME, where, LIMIT)
    try:
        if (found := content["format"]) != FORMAT or type(found) is not int:
            raise ValueError(f"format {found!r:.20}, this weightscape reads {FORMAT}")
        words = {key: content[key] for key in ("of", "tree", "zoo", "date")}
        if not all(type(word) is str for word in (*words.values(), *content["where"])):
            raise ValueError("of, tree, zoo, date and where are text")
        if type(content["version"]) is not int:
            raise ValueError("version is no number")
        shards = frozenset(_shard(entry, record) for entry in content["shards"])
        if len(shards) != len(content["shards"]):
            raise ValueError("a shard stands twice")
        if words["zoo"] != record.digest:
            raise ValueError("it is a slice of another zoo")
        return Slice(
            **words, version=content["version"], where=tuple(content["where"]), shards=shards, digest=digest
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{NAME} of {where} does not follow format {FORMAT}: {brief(error)}") from error


def _shard(entry: Any, record: Record) -> Shard:
    variant, number = entry
    if type(variant) is not str or type(number) is not int or variant not in record.variants:
        raise ValueError(f"a shard is a variant and a number, got {entry!r:.80}")
    if not 0 <= number < record.variants[variant].grid.num_shards:
        raise ValueError(f"{variant:.80} has no shard {number}")
    return variant, number


def read_slice(folder: Folder, record: Record) -> Slice | None:
    """The slice that a folder is, None for a zoo that means to be whole; raises as `decode_slice`."""
    try:
        data = folder.read(NAME, LIMIT)
    except FileNotFoundError:
        return None
    return decode_slice(data, record, folder.url)


def allowed_missing(folder: Folder, record: Record) -> Set[Shard]:
    """Shards whose absence is no damage; raises as `decode_slice`."""
    found = read_slice(folder, record)
    return set() if found is None else {*record.shards} - found.shards


def without_password(url: str) -> str:
    """A URL as it may be shown to others.

    >>> without_password("https://me:secret@example.org/zoo?key=1")
    'https://example.org/zoo'
    """
    if not re.match(r"[a-z0-9+.-]+://", url):
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
