"""Measured columns: `metrics/<metric>@<version>/<digest>.parquet`, joined to the rows of a zoo by run and epoch.

A version is a definition with its settings: other settings are another version, never an overwrite. Files are named by
their own digest, so that writing one is atomic and two writers cannot destroy each other's; what several files of a
version say of one row is the same thing, measured twice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from catalog.errors import CorruptError, FormatError, QueryError
from catalog.folder import Folder
from catalog.fragments import KEY, MAX_COLUMNS, PLAIN, read_content, read_table, write_parquet
from catalog.record import FORMAT, Record, brief

if TYPE_CHECKING:
    from catalog.store import Zoo

METRIC = re.compile(r"[a-z][a-z0-9_]{0,63}")
VERSION = re.compile(r"(?P<definition>[1-9][0-9]{0,5})-[0-9a-f]{8}")
LIMIT = 256 << 20  # bytes of a file
NAME = re.compile(
    rf"metrics/(?P<metric>{METRIC.pattern})@(?P<version>{VERSION.pattern})/(?P<digest>[0-9a-f]{{32}})\.parquet"
)
KEYS = {"run": pl.String, "epoch": pl.Int64}
COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")  # usable in SQL without quotes
TRIES = 5  # listings, while writers replace files


@dataclass(frozen=True)
class Measurement:
    """One version of a metric, as far as it is measured.

    Args:
        metric, version: its name is metric@version. The version: number of the definition, digest of the settings.
        settings: of the estimator and its data: JSON.
        default: whether these settings were the defaults of what measured it.
        rows: run, epoch, the metric's columns; a (run, epoch) once.
        software: versions of what wrote it.
    """

    metric: str
    version: str
    settings: Mapping[str, Any]
    default: bool
    rows: pl.DataFrame
    software: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.metric}@{self.version}"

    @property
    def definition(self) -> int:
        return int(self.version.split("-")[0])

    @property
    def columns(self) -> list[str]:
        """Without run and epoch."""
        return [name for name in self.rows.columns if name not in KEYS]


def version_of(definition: int, settings: Mapping[str, Any]) -> str:
    """The version of these settings: the number of the definition, and 8 digits of the sha256 of their canonical JSON.

    >>> version_of(1, {"probes": 100, "seed": 0})
    '1-de82f817'
    """
    text = json.dumps(dict(settings), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{definition}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def write_measurement(zoo: Zoo, found: Measurement) -> str:
    """Add rows to a version; returns the file's name. Rows that are there already may come again.

    Raises:
        FormatError: rows that the format does not allow. StorageError: the place cannot be written.
    """
    if problem := _problem(found.rows):
        raise FormatError(f"{found.name}: {problem}")
    content = {
        "format": FORMAT,
        "zoo": zoo.record.digest,
        "metric": found.metric,
        "version": found.version,
        "settings": dict(found.settings),
        "default": found.default,
        "software": dict(found.software),
    }
    data = write_parquet(found.rows.sort("run", "epoch"), {KEY: json.dumps(content)})
    name = f"metrics/{found.name}/{hashlib.sha256(data).hexdigest()[:32]}.parquet"
    if not NAME.fullmatch(name):
        raise FormatError(f"{found.name!r} is not the name of a metric and a version")
    if not zoo.metrics_folder.exists(name):
        zoo.metrics_folder.write(name, data)
    return name


def metric_files(folder: Folder) -> dict[str, list[str]]:
    """metric@version -> its files, as of now.

    Raises:
        FormatError: a file below metrics/ with another name.
    """
    found: dict[str, list[str]] = {}
    for name in folder.files("metrics"):
        match = NAME.fullmatch(name)
        if not match:
            raise FormatError(f"{name} in {folder.url} is no file of a metric; move it away")
        found.setdefault(f"{match['metric']}@{match['version']}", []).append(name)
    return found


def measurements(zoo: Zoo, metrics: Iterable[str] | None = None) -> dict[str, Measurement]:
    """Every version that is measured, by metric@version, sorted; of these metrics alone, if they are given.

    Raises:
        CorruptError: a file that is not what was written, or of another zoo. FormatError: one that is none of ours.
    """
    wanted = None if metrics is None else set(metrics)
    for _ in range(TRIES):
        files = metric_files(zoo.metrics_folder)
        files = {name: found for name, found in files.items() if wanted is None or name.split("@")[0] in wanted}
        names = [name for found in files.values() for name in found]
        loaded = _load(zoo, names)
        if len(loaded) == len(names):  # else a writer has just put some into one
            break
    where = zoo.metrics_folder.url
    parts = {name: [loaded[file] for file in found if file in loaded] for name, found in sorted(files.items())}
    return {name: _one(some, where) for name, some in parts.items() if some}


def compact(zoo: Zoo, name: str) -> None:
    """Write the files of a version as one and remove those that are in it."""
    names = metric_files(zoo.metrics_folder).get(name, [])
    loaded = _load(zoo, names)
    if len(loaded) > 1:
        kept = write_measurement(zoo, _one(list(loaded.values()), zoo.metrics_folder.url))
        for file in loaded:
            if file != kept:
                zoo.metrics_folder.remove(file)


def with_metrics(zoo: Zoo, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with all measured columns, null where a row is not measured.

    A column has its plain name in one version of the metric: that of `zoo.versions`, else the newest definition with
    default settings, else the only version. In the others it is called column@version.

    Raises:
        FormatError: two metrics have a column of one name. QueryError: `zoo.versions` names one that is not there.
    """
    found = measurements(zoo)
    plain = _plain(found, zoo)
    for name, one in found.items():
        named = one.rows.select(c for c in one.rows.columns if not _is_empty_reason(one, c))
        if name not in plain:
            named = named.rename({c: f"{c}@{one.version}" for c in named.columns if c not in KEYS})
        if taken := [c for c in named.columns if c in rows.columns and c not in KEYS]:
            raise FormatError(f"{name} of {zoo.metrics_folder.url} has the column {taken[0]}, which is there already")
        rows = rows.join(named, on=list(KEYS), how="left", maintain_order="left")
    return rows


def plain_versions(zoo: Zoo) -> dict[str, str]:
    """Metric -> the version whose columns have their plain names; errors as for `with_metrics`."""
    found = measurements(zoo)
    return {found[name].metric: found[name].version for name in sorted(_plain(found, zoo))}


def replace_measurement(zoo: Zoo, found: Measurement) -> None:
    """Put these rows in the place of those of the same runs and epochs: for columns that follow from others."""
    known = measurements(zoo, [found.metric]).get(found.name)
    rows = found.rows
    if known is not None:
        old = known.rows.join(rows, on=list(KEYS), how="anti", maintain_order="left")
        rows = pl.concat([rows, old], how="diagonal_relaxed")
    before = metric_files(zoo.metrics_folder).get(found.name, [])
    kept = write_measurement(zoo, replace(found, rows=rows))
    for file in before:
        if file != kept:
            zoo.metrics_folder.remove(file)


def _plain(found: Mapping[str, Measurement], zoo: Zoo) -> set[str]:
    """metric@version of those whose columns have their plain names."""
    by_metric: dict[str, list[Measurement]] = {}
    for one in found.values():
        by_metric.setdefault(one.metric, []).append(one)
    for metric, version in zoo.versions.items():
        if f"{metric}@{version}" not in found:
            known = ", ".join(one.version for one in by_metric.get(metric, [])) or "none"
            raise QueryError(f"{metric}@{version} is not measured in {zoo.url}; its versions: {known}")
    plain = set()
    for metric, versions in by_metric.items():
        newest = max((one.definition for one in versions if one.default), default=None)
        default = [one for one in versions if one.default and one.definition == newest]
        if metric in zoo.versions:
            plain.add(f"{metric}@{zoo.versions[metric]}")
        elif len(default or versions) == 1:
            plain.add((default or versions)[0].name)
    return plain


def _is_empty_reason(one: Measurement, column: str) -> bool:
    return column == f"{one.metric}_reason" and one.rows[column].eq("").all()


def _one(parts: Sequence[Measurement], where: str) -> Measurement:
    """Files of a version together. Of a row measured twice, one with a value goes before one with a reason."""
    first = parts[0]
    if len(parts) == 1:
        return first
    try:
        rows = pl.concat([part.rows for part in parts], how="diagonal_relaxed")
        if f"{first.metric}_reason" in rows.columns:
            rows = rows.sort(pl.col(f"{first.metric}_reason").fill_null("") != "", maintain_order=True)
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"the files of {first.name} in {where} do not make one table: {error}") from error
    rows = rows.unique(list(KEYS), keep="first", maintain_order=True).sort(list(KEYS))
    default = all(part.default for part in parts)
    return Measurement(first.metric, first.version, first.settings, default, rows, first.software)


def _load(zoo: Zoo, names: Sequence[str]) -> dict[str, Measurement]:
    """The content of these files; one that another process has just put into a larger file is left out."""
    kept, folder = zoo._measured, zoo.metrics_folder
    lacking = [name for name in names if name not in kept]
    data: list[Any]
    if folder.local or len(lacking) < 2:
        data = []
        for name in lacking:
            try:
                data.append(folder.read(name, LIMIT))
            except FileNotFoundError as error:
                data.append(error)
    else:
        nothing = [None] * len(lacking)
        data = folder.fetch(lacking, nothing, nothing)
    for name, content in zip(lacking, data, strict=True):
        if isinstance(content, FileNotFoundError):
            continue
        if isinstance(content, BaseException):
            content = folder.read(name, LIMIT)  # which says what is wrong with the store
        kept[name] = decode_measurement(zoo.record, name, content, folder.url)
    return {name: kept[name] for name in names if name in kept}


def decode_measurement(record: Record, name: str, data: bytes, where: str) -> Measurement:
    """The content of a metric's file; errors as for `measurements`."""
    match = NAME.fullmatch(name)
    if not match:
        raise FormatError(f"{name} in {where} is no file of a metric; move it away")
    if hashlib.sha256(data).hexdigest()[:32] != match["digest"]:
        raise CorruptError(f"{name} of {where} is damaged ({len(data):,} bytes); delete it and measure again")
    try:
        content = read_content(data)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, this weightscape reads {FORMAT}")
        settings, software, default = dict(content["settings"]), dict(content["software"]), content["default"]
        if type(default) is not bool:
            raise ValueError(f"default is true or false, got {default!r}")
        came = content["zoo"], content["metric"], content["version"]
        if came[0] != record.digest:
            raise CorruptError(f"{name} of {where} is of another zoo; move it to that")
        definition = int(match["definition"])
        if came[1:] != (match["metric"], match["version"]) or version_of(definition, settings) != match["version"]:
            raise ValueError("its metric, version and settings are not those of its name")
        rows = read_table(data, _most_rows(record), fewer=True)
        if problem := _problem(rows):
            raise ValueError(problem)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{name} of {where} does not follow format {FORMAT}: {brief(error)}") from error
    return Measurement(match["metric"], match["version"], settings, default, rows, software)


def _most_rows(record: Record) -> int:
    """Rows of the whole zoo: more are not measured."""
    return sum(variant.grid.shape[0] * variant.grid.shape[1] for variant in record.variants.values())


def _problem(rows: pl.DataFrame) -> str | None:
    """What is wrong with the rows of a metric, or None."""
    for key, dtype in KEYS.items():
        if rows.schema.get(key) != dtype:
            return f"column {key} is {rows.schema.get(key)}, expected {dtype}"
        if rows[key].null_count():
            return f"column {key} has nulls"
    if odd := [name for name, dtype in rows.schema.items() if dtype not in PLAIN]:
        return f"column {odd[0]!r} is {rows.schema[odd[0]]}; columns are numbers, truths, text or bytes"
    if odd := [name for name in rows.columns if not COLUMN.fullmatch(name)]:
        return f"column {odd[0][:80]!r}; names are letters, digits and '_', at most 128"
    if len(rows.columns) > MAX_COLUMNS:
        return f"{len(rows.columns)} columns, at most {MAX_COLUMNS} are read"
    if rows.select(pl.struct(list(KEYS)).is_duplicated().any()).item():
        return "a run and epoch stand twice"
    return None
