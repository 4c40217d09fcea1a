"""A folder of safetensors or `.pt` files, with a table of properties or with labels in the names of its folders."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from catalog.errors import SourceError, unknown_name
from catalog.importers.found import (
    NO_LAYOUT,
    BrokenError,
    DoesNotFitError,
    Found,
    Layouts,
    Notes,
    Options,
    Tensors,
    make_members,
)
from catalog.importers.pickles import Pickles
from catalog.importers.place import LocalBlob, Place, few, local_folder
from catalog.importers.tensors import TensorFile, open_safetensors
from catalog.importers.values import limited, read_table, tabulate

PICKLED = (".pt", ".pth", ".ckpt", ".bin")
WEIGHTS = (".safetensors", *PICKLED)
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
AT_EPOCH = re.compile(r"(?P<run>.*?)[-_. ]*(?:epoch|step|ckpt|checkpoint)[-_=. ]?0*(?P<epoch>\d{1,12})", re.IGNORECASE)
RUNS, EPOCHS = ("run", "run_id", "lineage", "trial", "model", "model_id"), ("epoch", "step", "checkpoint")


def from_folder(source: Any, options: Options, pickles: Pickles) -> Found:
    """Every file of weights below a folder; a table's column that names files joins its other columns."""
    place = local_folder(source, "a folder of weights")
    skipped: list[tuple[str, str]] = []
    names = list(place.files(skipped))
    weights = [name for name in names if name.suffix in WEIGHTS]
    if not weights:
        raise DoesNotFitError(f"there are no files {', '.join(WEIGHTS)}")
    table = _table(place, names, weights, options, skipped)
    own, columns, remarks = (
        _from_names(weights) if table is None else _from_table(place, weights, table, options, skipped)
    )
    notes, layouts = Notes(), Layouts()
    for row in own:
        if not row["reason"]:
            row |= _looked_at(place, row["source"], layouts, notes, pickles)
    taken = {row["source"] for row in own}
    known = (
        {name.as_posix() for name in weights} | taken | {name for name, _ in skipped} | set(table[:1] if table else ())
    )
    skipped += [(str(name), "no file of weights") for name in names if name.as_posix() not in known]
    sources = [row["source"] for row in own]

    def load(at: int) -> Tensors:
        return _open(place, sources[at], pickles).load()

    return Found(
        "folder", make_members(own, columns), tuple(layouts.found), load, tuple(skipped), (*remarks, *notes.told())
    )


def _open(place: Place, name: str, pickles: Pickles) -> TensorFile:
    blob = LocalBlob.of(place, name)
    if name.endswith(".safetensors"):
        return open_safetensors({name: blob})
    return pickles.open(blob.path, name)


def _looked_at(place: Place, name: str, layouts: Layouts, notes: Notes, pickles: Pickles) -> dict[str, Any]:
    try:
        found = _open(place, name, pickles)
    except BrokenError as error:
        return {"layout": NO_LAYOUT, "reason": str(error)}
    notes.add(found.notes)
    return {"layout": layouts.add(found.layout), "reason": ""}


def _member(name: str, run: str, epoch: int, reason: str = "") -> dict[str, Any]:
    return {"run": run, "epoch": epoch, "source": name, "layout": NO_LAYOUT, "reason": reason}


def _from_names(weights: list[PurePosixPath]) -> tuple[list[dict[str, Any]], pl.DataFrame, list[str]]:
    """Members by the names of their files: `<label>/<run>_epoch12.pt`; without an epoch it is 0."""
    own, values, seen = [], [], set()
    for name in weights:
        stem = name.stem
        found = AT_EPOCH.fullmatch(stem)
        run = (name.parent / found["run"] if found else name.with_suffix("")).as_posix()
        key = run if run != "." else "net", int(found["epoch"]) if found else 0
        if key in seen:  # of two files that differ in their suffix or in zeros
            key = name.as_posix(), 0
        seen.add(key)
        own.append(_member(name.as_posix(), *key))
        parts = {f"folder_{depth}": part for depth, part in enumerate(name.parent.parts[:8])}
        values.append({"label": name.parent.as_posix(), **parts} if name.parent.parts else {})
    columns, notes = tabulate(values)
    same = [c for c in columns.columns if c != "label" and columns[c].equals(columns["label"])]
    return own, columns.drop(same), notes


def _table(
    place: Place,
    names: list[PurePosixPath],
    weights: list[PurePosixPath],
    options: Options,
    skipped: list[tuple[str, str]],
) -> tuple[str, pl.DataFrame, str] | None:
    """Name of the table that names most files, its content, and the column that names them; None for none."""
    known = _by_name(weights)
    best: tuple[int, str, pl.DataFrame, str] | None = None
    tables = [name.as_posix() for name in names if name.name.endswith(TABLES) and len(name.parts) <= 2]
    if options.table is not None and options.table not in tables:
        raise unknown_name("table", options.table, tables)
    for name in [options.table] if options.table else tables:
        try:
            table = read_table(place.file(name))
        except (SourceError, BrokenError) as error:
            if options.table:
                raise SourceError(str(error)) from error
            skipped.append((name, str(error)))
            continue
        if options.file_column is not None and options.file_column not in table.columns and options.table:
            raise unknown_name("column", options.file_column, table.columns)
        for column in [options.file_column] if options.file_column in table.columns else table.columns:
            count = sum(_key(value) in known for value in table[column].cast(pl.String).to_list() if value)
            if count and (best is None or count > best[0]):
                best = count, name, table, column
    if options.table and best is None:
        raise SourceError(f"no column of {options.table} names files of the folder; it has {few(known)}")
    return best and best[1:]


def _by_name(weights: list[PurePosixPath]) -> dict[str, PurePosixPath | None]:
    """What a table may call a file -> the file; None where several are called so."""
    known: dict[str, PurePosixPath | None] = {}
    for name in weights:
        for called in {name.as_posix(), name.with_suffix("").as_posix(), name.name, name.stem}:
            known[called] = None if called in known else name
    for name in weights:  # a whole name is never taken for a part of another
        known[name.as_posix()] = name
    return known


def _key(value: Any) -> str:
    return str(value).removeprefix("./")


def _from_table(
    place: Place,
    weights: list[PurePosixPath],
    found: tuple[str, pl.DataFrame, str],
    options: Options,
    skipped: list[tuple[str, str]],
) -> tuple[list[dict[str, Any]], pl.DataFrame, list[str]]:
    """A member a row of the table, and one a file that the table does not name."""
    name, table, column = found
    known = _by_name(weights)
    run_column = _chosen(options.run_column, RUNS, table, column)
    epoch_column = _chosen(options.epoch_column, EPOCHS, table, column)
    if epoch_column and not (table[epoch_column].dtype.is_integer() and not table[epoch_column].null_count()):
        if options.epoch_column:
            raise SourceError(
                f"column {epoch_column} of {name} must hold whole numbers, got {table[epoch_column].dtype}"
            )
        epoch_column = None
    own, kept, seen, named = [], [], set(), set()
    for number, row in enumerate(table.iter_rows(named=True)):
        called = "" if row[column] is None else _key(row[column])
        file = known.get(called)
        reason = "" if file else _why_not(place, called, called in known)
        source = file.as_posix() if file else f"{called[:200]} (row {number} of {name})"
        run = str(row[run_column]) if run_column and row[run_column] is not None else _run(file, called)
        epoch = int(row[epoch_column]) if epoch_column else 0
        if (run, epoch) in seen or file in named:
            skipped.append(
                (source, f"row {number} of {name}: a run and epoch, or a file, stand twice; the first counts")
            )
            continue
        seen.add((run, epoch))
        named |= {file} if file else set()
        own.append(_member(source, run, epoch, reason))
        kept.append(number)
    columns, notes = limited(table[kept].drop([c for c in (column, run_column, epoch_column) if c]))
    if rest := [file for file in weights if file not in named]:
        notes.append(f"{len(rest):,} files are not named in {name} and have no properties: {few(map(str, rest))}")
        for file in rest:
            run = _run(file, "")
            own.append(_member(file.as_posix(), run if (run, 0) not in seen else file.as_posix(), 0))
        columns = (
            pl.concat([columns, pl.DataFrame(schema=columns.schema).clear(len(rest))]) if columns.width else columns
        )
    return own, columns, notes


def _run(file: PurePosixPath | None, called: str) -> str:
    return file.with_suffix("").as_posix() if file else called[:200]


def _chosen(asked: str | None, usual: tuple[str, ...], table: pl.DataFrame, files: str) -> str | None:
    if asked is not None and asked not in table.columns:
        raise unknown_name("column", asked, table.columns)
    return asked or next((name for name in usual if name in table.columns and name != files), None)


def _why_not(place: Place, called: str, several: bool) -> str:
    """Why a row of the table has no file."""
    if several:
        return f"several files are called {called[:100]!r}"
    try:
        place.file(called)
    except BrokenError as error:
        return str(error)
    return f"{called[:100]!r} is no file of weights; known are {', '.join(WEIGHTS)}"
