"""`zoo.json`: what a zoo is. Written first, never changed, and it checks itself."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from catalog.errors import CorruptError, FormatError, unknown_name
from catalog.grid import CODEC, HOT, PACKED, TIERS, Grid, array_metadata, group_metadata
from catalog.sealed import seal, sealed_body, strict_json
from weightspace.layout import Layout

FORMAT = 1
IMPORTED = "imported"  # family of networks of others, and what their spec holds
LIMIT = 64 << 20  # bytes of a zoo.json; a layout costs ~100 bytes a tensor
MAX_SHARDS = 1 << 20  # of a zoo, whose fragments all lie in one folder
NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.)){0,98}")


@dataclass(frozen=True)
class Variant:
    """One concrete architecture of a zoo: its description, the layout of its vectors, the grid of its array.

    Args:
        architecture: data for the registry that builds it (family and bounded numbers); never code.
        unpacked: of a packed variant, the grid of the hot one it was packed from.
    """

    name: str
    architecture: Mapping[str, Any]
    layout: Layout
    grid: Grid
    unpacked: Grid | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name == "zarr.json":  # a file beside the arrays is called so
            raise ValueError(
                f"variant name must be lower-case letters, digits, '.', '_', '-' (at most 99), got {self.name!r}"
            )
        if self.layout.size != self.grid.shape[2]:
            raise ValueError(f"layout of {self.name} holds {self.layout.size} weights, its array {self.grid.shape[2]}")
        if not isinstance(self.architecture, Mapping):
            raise ValueError(f"architecture of {self.name} must be an object, got {type(self.architecture).__name__}")
        if (self.grid.tier == PACKED) != (self.unpacked is not None):
            raise ValueError(
                f"packed variants, and no others, say how they are cut when unpacked; {self.name} does not"
            )
        if self.unpacked and not _same_rows(self.grid, self.unpacked):
            raise ValueError(f"{self.name} is cut into other shards packed than unpacked")

    @property
    def path(self) -> str:
        return f"weights/{self.name}"


@dataclass(frozen=True)
class Record:
    """The content of `zoo.json`.

    Args:
        spec: what the zoo was made from, as JSON; the catalog keeps it and does not read it.
        info: licence, citation, provenance: free JSON.
        digest: sha256 of the body of the `zoo.json` it was read from: the identity that every fragment names.
    """

    name: str
    spec: Mapping[str, Any]
    variants: Mapping[str, Variant]
    dtype: str = "float32"
    info: Mapping[str, Any] = field(default_factory=dict)
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable() or len(self.name) > 200:
            raise ValueError(f"a zoo's name is 1 to 200 printable characters, got {self.name!r}")
        for what, content in (("spec", self.spec), ("info", self.info)):
            if not isinstance(content, Mapping):
                raise ValueError(f"{what} must be an object, got {type(content).__name__}")
        if not self.variants:
            raise ValueError("a zoo has at least one variant")
        if (count := sum(variant.grid.num_shards for variant in self.variants.values())) > MAX_SHARDS:
            raise ValueError(f"a zoo has at most {MAX_SHARDS:,} shards, this one {count:,}")
        for variant in self.variants.values():
            if variant.grid.dtype != self.dtype:
                raise ValueError(f"variant {variant.name} is {variant.grid.dtype}, the zoo {self.dtype}")
        if len({variant.grid.tier for variant in self.variants.values()}) != 1:
            raise ValueError("the variants of a zoo are all hot or all packed")

    @property
    def tier(self) -> str:
        """hot (raw) or packed (for download)."""
        return next(iter(self.variants.values())).grid.tier

    def variant(self, name: str) -> Variant:
        if name not in self.variants:
            raise unknown_name("variant", name, self.variants)
        return self.variants[name]

    @property
    def shards(self) -> list[tuple[str, int]]:
        """Every (variant, shard) a complete zoo has."""
        return [(name, shard) for name, variant in self.variants.items() for shard in range(variant.grid.num_shards)]

    def metadata_files(self) -> dict[str, bytes]:
        """The Zarr metadata files, which follow from the record to the byte."""
        arrays = {f"{variant.path}/zarr.json": array_metadata(variant.grid) for variant in self.variants.values()}
        return {"zarr.json": group_metadata(), "weights/zarr.json": group_metadata(), **arrays}

    def consolidated(self) -> bytes:
        """The root's Zarr metadata in a published zoo: those of all nodes in one file, as zarr-python consolidates."""
        files = {name.rpartition("/")[0]: json.loads(data) for name, data in self.metadata_files().items()}
        root = files.pop("")
        files["weights"] |= {"consolidated_metadata": _inline({})}
        return (json.dumps(root | {"consolidated_metadata": _inline(files)}, indent=1) + "\n").encode()

    def encode(self) -> bytes:
        """The bytes of `zoo.json`: indented JSON whose last member is the sha256 of all bytes before it."""
        content = {
            "format": FORMAT,
            "name": self.name,
            "dtype": self.dtype,
            **({} if self.tier == HOT else {"tier": self.tier, "codec": CODEC}),  # hot zoos were first: no member
            "spec": self.spec,
            "variants": [_entry(variant) for variant in self.variants.values()],
            "info": self.info,
        }
        return seal(content)


def decode(data: bytes, where: str) -> Record:
    """The record in the bytes of a `zoo.json`.

    Raises:
        CorruptError: the bytes are not what was written.
        FormatError: another format version, or content that format 1 does not allow.
    """
    if len(data) > LIMIT:
        raise FormatError(f"zoo.json of {where} has {len(data):,} bytes, more than the {LIMIT:,} allowed")
    body = sealed_body(data)
    if body is None:
        _refuse_other_format(data, where)
        raise CorruptError(
            f"zoo.json of {where} is damaged: its bytes do not match its own sha256; restore it from a copy"
        )
    try:
        content = strict_json(data)
    except ValueError as error:
        raise FormatError(f"zoo.json of {where} is not the JSON of a zoo: {error}") from error
    if not isinstance(content, dict) or type(content.get("format")) is not int or content["format"] != FORMAT:
        _refuse_other_format(data, where)
        raise FormatError(f"zoo.json of {where} names no format")
    tier = _tier(content, where)
    try:
        dtype = content["dtype"]
        variants = [_variant(entry, dtype, tier) for entry in content["variants"]]
        names = [variant.name for variant in variants]
        if len(set(names)) != len(names):
            raise ValueError(f"variants named twice: {names}")
        by_name = {variant.name: variant for variant in variants}
        return Record(
            content["name"], content["spec"], by_name, dtype, content["info"], hashlib.sha256(body).hexdigest()
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"zoo.json of {where} does not follow format {FORMAT}: {brief(error)}") from error


def _tier(content: Mapping[str, Any], where: str) -> str:
    """hot or packed; FormatError for a tier or codec that came after this version."""
    tier, codec = content.get("tier", HOT), content.get("codec")
    if tier not in TIERS:
        raise FormatError(
            f"{where} is a zoo of tier {str(tier)[:80]!r}; this weightscape reads {' and '.join(TIERS)}: "
            "install a newer weightscape"
        )
    if json.dumps(codec) != json.dumps(None if tier == HOT else CODEC):  # as text: true == 1 in Python
        raise FormatError(
            f"{where} is {tier} with codec {str(codec)[:120]}; this weightscape reads {CODEC} in packed zoos: "
            "install a newer weightscape"
        )
    return str(tier)


def _variant(entry: Mapping[str, Any], dtype: str, tier: str) -> Variant:
    shape = tuple(entry["shape"])
    grid = Grid(shape, tuple(entry["chunk"]), tuple(entry["shard"]), dtype, tier)
    cut = entry["unpacked"] if tier == PACKED else None
    unpacked = Grid(shape, tuple(cut["chunk"]), tuple(cut["shard"]), dtype) if cut else None
    return Variant(entry["name"], entry["architecture"], Layout.from_json(entry["layout"]), grid, unpacked)


def _inline(nodes: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": dict(sorted(nodes.items()))}


def _entry(variant: Variant) -> dict[str, Any]:
    """What `zoo.json` says of a variant."""
    grid, hot = variant.grid, variant.unpacked
    return {
        "name": variant.name,
        "architecture": variant.architecture,
        "shape": grid.shape,
        "chunk": grid.chunk,
        "shard": grid.shard,
        **({"unpacked": {"chunk": hot.chunk, "shard": hot.shard}} if hot else {}),
        "layout": variant.layout.to_json(),
    }


def _same_rows(packed: Grid, hot: Grid) -> bool:
    """Whether shard number n has the same models in both."""
    return (packed.shape, packed.shard[0], packed.dtype, hot.tier) == (hot.shape, hot.shard[0], hot.dtype, HOT)


def brief(error: Exception) -> str:
    """What is wrong, cut short: it may quote a hostile file."""
    text = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
    return text if len(text) <= 300 else text[:297] + "..."


def _refuse_other_format(data: bytes, where: str) -> None:
    found = re.match(rb'\s*\{\s*"format"\s*:\s*(\d{1,9})\s*,', data)
    if found and int(found[1]) != FORMAT:
        raise FormatError(
            f"{where} is a zoo of format {int(found[1])}; this weightscape reads format {FORMAT}: "
            "install a newer weightscape"
        )
