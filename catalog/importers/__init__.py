"""Zoos and checkpoints of others as zoos of ours. An importer describes a source; one writer makes the zoo.

An importer takes `(source, options, pickles)` and returns `Found`, or raises `DoesNotFitError`. A new one is such a
function and a line in `IMPORTERS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from catalog.errors import SourceError, unknown_name
from catalog.importers.folder import from_folder
from catalog.importers.found import NO_LAYOUT, DoesNotFitError, Found, Options
from catalog.importers.hugging_face import from_hub
from catalog.importers.pickles import Pickles
from catalog.importers.ray_tune import from_ray
from catalog.importers.small_cnn import from_small_cnn
from catalog.importers.writer import Part, bytes_of, check_memory, memory_of, plan, write
from catalog.record import IMPORTED
from catalog.store import Zoo, open_zoo
from catalog.table import rebuild_table

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
# In this order they are tried: a folder of anything comes last.
IMPORTERS: dict[str, Callable[[Any, Options, Pickles], Found]] = {
    "small_cnn": from_small_cnn,
    "ray": from_ray,
    "hf": from_hub,
    "folder": from_folder,
}


@dataclass(frozen=True)
class ImportReport:
    """What came of an import.

    Args:
        members: networks found. stored: of them, those whose weights were stored; failed: (name, reason) of the others.
        missing: rows of the grid for which the source has no checkpoint.
        skipped: files passed over: (name, reason).
        variants: name -> (models, checkpoints, size).
        bytes: of weights. memory: bytes of weights held at once.
        dry_run: nothing was read but headers and nothing written; `stored` is what can be stored if weights are finite.
    """

    zoo: str
    format: str
    members: int
    stored: int
    failed: tuple[tuple[str, str], ...]
    missing: int
    skipped: tuple[tuple[str, str], ...]
    variants: Mapping[str, tuple[int, int, int]]
    dtype: str
    bytes: int
    memory: int
    notes: tuple[str, ...]
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def import_zoo(
    source: Source,
    target: str | os.PathLike[str],
    format: str | None = None,
    *,
    name: str | None = None,
    licence: str | None = None,
    citation: str | None = None,
    description: str | None = None,
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> ImportReport:
    """Make a zoo of somebody else's networks. The same call again goes on where it was interrupted.

    Args:
        source: a folder, or for Hugging Face repositories also URLs or a list of them.
        target: a new folder, or an fsspec URL.
        format: a name in `IMPORTERS`, None to find out.
        name: of the zoo, None for that of the source.
        description: of the source, for people.
        input_shape, num_classes: of the networks, where known.
        dry_run: describe and count, write nothing.
        progress: is called with (rows done, rows).
        storage_options: for fsspec, of the target and of a source that is a URL.
        options: fields of `catalog.importers.found.Options`, such as `allow_pickle_subset=True`.

    Raises:
        SourceError: no format fits (says which were tried and what they lack), nothing can be read, or pickles are
            there and not allowed.
        UnknownNameError: a format that does not exist.
        SpecMismatchError: another zoo is in the target.
        FormatError, StorageError: as for `catalog.create`.
    """
    unknown = [option for option in options if option not in Options.__dataclass_fields__]
    if unknown:
        raise unknown_name("option", unknown[0], Options.__dataclass_fields__)
    with Pickles(chosen := Options(**{"storage": storage_options or {}, **options})) as pickles:
        found = describe(source, format, chosen, pickles)
        where = _label(source)
        architecture: dict[str, Any] = {
            "family": IMPORTED,
            "numbers": {},
            "input_shape": None if input_shape is None else list(input_shape),
            "num_classes": num_classes,
        }
        dtype, parts = plan(found, architecture)
        if dry_run:
            return _preview(os.fspath(target), found, dtype, parts)
        check_memory(parts)
        info = {
            "source": description or where,
            "format": found.format,
            "licence": licence,
            "citation": citation,
            "members": len(_real(found.members)),
            "notes": [*found.notes, *_rounding(found, dtype)],
        }
        spec = {IMPORTED: {"format": found.format, "source": where}}
        zoo = write(target, name or where[:200], found, parts, info, spec, progress, **(storage_options or {}))
    rebuild_table(zoo)
    return _report(open_zoo(target, **(storage_options or {})), found, dtype, parts)


def told(report: ImportReport, limit: int = 10) -> str:
    """A report for people, with the first of what failed and what was passed over."""
    verb = "can be stored" if report.dry_run else "stored"
    variants = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in report.variants.items())
    lines = [
        f"{report.zoo}: {report.stored:,} of {report.members:,} networks {verb}, found as {report.format}",
        f"{variants} (models x checkpoints x weights), {report.bytes:,} bytes of {report.dtype}, "
        f"{report.memory:,} bytes in memory at once",
    ]
    if report.missing:
        lines.append(f"{report.missing:,} rows without a checkpoint in the source")
    lines += report.notes
    for what, listed in (("failed", report.failed), ("passed over", report.skipped)):
        lines += [f"{what}: {name}: {reason}" for name, reason in listed[:limit]]
        lines += [f"{what}: and {len(listed) - limit:,} more"] if len(listed) > limit else []
    return "\n".join(lines)


def describe(source: Source, format: str | None, options: Options, pickles: Pickles) -> Found:
    """What the importer of a format, or the first that fits, finds; errors as for `import_zoo`."""
    if format is not None:
        if format not in IMPORTERS:
            raise unknown_name("format", format, IMPORTERS)
        try:
            return IMPORTERS[format](source, options, pickles)
        except DoesNotFitError as error:
            raise SourceError(f"{_label(source)} is not of format {format}: {error}") from error
    lacking = []
    for known, importer in IMPORTERS.items():
        try:
            return importer(source, options, pickles)
        except DoesNotFitError as error:
            lacking.append(f"{known}: {error}")
    raise SourceError(f"{_label(source)} is of no format that is known; tried {'; '.join(lacking)}")


def _label(source: Source) -> str:
    """The source by name: without the folders above it, which say more of a machine than of a zoo."""
    if not isinstance(source, str | os.PathLike):
        return f"{len(source)} repositories"
    text = os.fspath(source)
    label = text if "://" in text and not text.startswith("file://") else os.path.basename(os.path.abspath(text))
    return "".join(c if c.isprintable() else "?" for c in label)[:200] or "source"


def _rounding(found: Found, dtype: str) -> list[str]:
    kinds = {kind for layout in found.layouts for kind in layout.dtypes}
    return [f"float64 weights were rounded to {dtype}"] if "float64" in kinds else []


def _real(members: pl.DataFrame) -> pl.DataFrame:
    """Networks, without what an importer says of checkpoints that are not there."""
    return members.filter(pl.col("source") != "")


def _preview(target: str, found: Found, dtype: str, parts: list[Part]) -> ImportReport:
    real = _real(found.members)
    broken = real.filter(pl.col("layout") == NO_LAYOUT)
    failed = tuple(broken.select("source", "reason").iter_rows())
    rows = sum(part.places.size for part in parts)
    return _made(target, found, dtype, parts, len(real) - len(broken), failed, rows - len(real), True)


def _report(zoo: Zoo, found: Found, dtype: str, parts: list[Part]) -> ImportReport:
    table = zoo.table(metrics=False)
    failed = table.filter(~pl.col("stored"), pl.col("source") != "").select("source", "reason")
    missing = len(table.filter(pl.col("source") == ""))
    stored = int(table["stored"].sum())
    return _made(zoo.url, found, dtype, parts, stored, tuple(failed.iter_rows()), missing, False)


def _made(
    target: str,
    found: Found,
    dtype: str,
    parts: list[Part],
    stored: int,
    failed: tuple[Any, ...],
    missing: int,
    dry_run: bool,
) -> ImportReport:
    return ImportReport(
        target,
        found.format,
        len(_real(found.members)),
        stored,
        failed,
        missing,
        found.skipped,
        {part.variant.name: part.variant.grid.shape for part in parts},
        dtype,
        bytes_of(parts),
        memory_of(parts),
        (*found.notes, *_rounding(found, dtype)),
        dry_run,
    )
