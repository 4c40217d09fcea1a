"""Frames: alignments of a zoo, `frames/<name>/`. Permutations and scales of its runs, never a copy of the weights.

A frame has, for each variant, one file with its universe and symmetry, which commits it, and files with rows: run,
epoch and what moves the units of that run. Files are named by their own digest, as those of metrics are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from catalog.errors import CorruptError, FormatError, MissingDataError, UnknownNameError, unknown_name
from catalog.folder import Folder
from catalog.fragments import KEY, read_content, read_table, write_parquet
from catalog.record import FORMAT, Record, brief
from catalog.views import COLUMNS, SCALES, View
from weightspace.symmetry import Symmetry, SymmetryError

if TYPE_CHECKING:
    from catalog.store import Zoo

FRAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
NAME = re.compile(
    rf"frames/(?P<frame>{FRAME.pattern})/(?P<variant>[^/]+)\.(?P<kind>universe|rows)\.(?P<digest>[0-9a-f]{{32}})\.parquet"
)
LIMIT = 1 << 30  # bytes of a file: a universe is one model
TRIES = 5  # listings, while writers replace files


# --- writing


def write_universe(zoo: Zoo, frame: str, view: View) -> str:
    """Commit a variant's part of a frame, without its rows; returns the file's name."""
    rows = pl.DataFrame({"universe": [view.universe.astype("<f4").tobytes()]}, schema={"universe": pl.Binary})
    return _write(zoo, frame, view, "universe", rows, {"symmetry": view.symmetry.to_json()})


def write_rows(zoo: Zoo, frame: str, view: View) -> str:
    """Add the view's rows to a frame; returns the file's name.

    Raises:
        FormatError: rows that the format does not allow. StorageError: the place cannot be written.
    """
    if problem := _problem(view.rows):
        raise FormatError(f"rows of the frame {frame!r}: {problem}")
    return _write(zoo, frame, view, "rows", view.rows.select(*COLUMNS).sort("run", "epoch"), {})


def _write(zoo: Zoo, frame: str, view: View, kind: str, rows: pl.DataFrame, more: Mapping[str, Any]) -> str:
    content = {
        "format": FORMAT,
        "zoo": zoo.record.digest,
        "frame": frame,
        "variant": view.variant,
        "kind": kind,
        "origin": view.origin,
        "settings": dict(view.settings),
        "scales": view.encoding,
        "software": dict(view.software),
        **more,
    }
    data = write_parquet(rows, {KEY: json.dumps(content)})
    name = f"frames/{frame}/{view.variant}.{kind}.{hashlib.sha256(data).hexdigest()[:32]}.parquet"
    check_name(frame)
    if not zoo.metrics_folder.exists(name):
        zoo.metrics_folder.write(name, data)
    return name


def check_name(frame: str) -> None:
    """Raise FormatError unless this can be the name of a frame."""
    if not FRAME.fullmatch(frame):
        raise FormatError(
            f"{frame[:80]!r} is no name of a frame: lower-case letters, digits, '_' and '-', a letter first, at most 64"
        )


def compact_frame(zoo: Zoo, frame: str, variant: str) -> None:
    """Write the rows of a variant as one file and remove those that are in it."""
    names = frame_files(zoo.metrics_folder).get((frame, variant, "rows"), [])
    if len(names) > 1:
        view = read_view(zoo, frame, variant)
        kept = write_rows(zoo, frame, view)
        for name in names:
            if name != kept:
                zoo.metrics_folder.remove(name)


def copy_frames(zoo: Zoo, made: Zoo) -> None:
    """Write all frames of a zoo for another with the same runs, its packed one say: their files name the zoo."""
    for (frame, _, kind), names in sorted(frame_files(zoo.folder).items()):
        write = write_rows if kind == "rows" else write_universe
        for name in names:
            write(made, frame, decode_frame(zoo.record, name, zoo.folder.read(name), zoo.url))


# --- reading


def frame_files(folder: Folder) -> dict[tuple[str, str, str], list[str]]:
    """(frame, variant, kind) -> files, as of now.

    Raises:
        FormatError: a file below frames/ with another name.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for name in folder.files("frames"):
        match = NAME.fullmatch(name)
        if not match:
            raise FormatError(f"{name} in {folder.url} is no file of a frame; move it away")
        found.setdefault((match["frame"], match["variant"], match["kind"]), []).append(name)
    return found


def frame_names(zoo: Zoo) -> dict[str, tuple[str, ...]]:
    """Frame -> the variants it has."""
    found: dict[str, tuple[str, ...]] = {}
    for frame, variant, kind in sorted(frame_files(zoo.metrics_folder)):
        if kind == "universe":
            found[frame] = (*found.get(frame, ()), variant)
    return found


def read_view(zoo: Zoo, frame: str, variant: str) -> View:
    """A frame of one variant.

    Raises:
        UnknownNameError: no frame of that name. MissingDataError: it does not have this variant.
        CorruptError, FormatError: files that are not what was written, or of another zoo.
    """
    for _ in range(TRIES):
        files = frame_files(zoo.metrics_folder)
        heads = files.get((frame, variant, "universe"), [])
        if not heads:
            break
        if len(heads) > 1:
            raise FormatError(f"frame {frame!r} of {variant} in {zoo.url} has two universes; remove one of {heads}")
        names = files.get((frame, variant, "rows"), [])
        if (together := "|".join([*heads, *names])) in zoo._frames:
            return zoo._frames[together]
        loaded = {name: data for name in names if (data := _load(zoo, name)) is not None}
        head = _load(zoo, heads[0])
        if head is not None and len(loaded) == len(names):  # else a writer has just put some into one
            zoo._frames[together] = _joined(head, list(loaded.values()), zoo)
            return zoo._frames[together]
    known = frame_names(zoo)
    if frame not in known:
        raise unknown_name("frame", frame, known) if known else _no_frames(zoo, frame)
    raise MissingDataError(
        f"frame {frame!r} of {zoo.url} does not have {variant}; `weightscape align {zoo.url} --frame {frame}` adds it"
    )


def _no_frames(zoo: Zoo, frame: str) -> UnknownNameError:
    return UnknownNameError(
        f"{zoo.url} has no frame {frame!r}, nor any other; `weightscape align {zoo.url} --frame {frame}` makes it"
    )


def seen_in(zoo: Zoo, frame: str, variant: str, rows: pl.DataFrame, weights: Any) -> Any:
    """Weights of these rows, as they are seen in a frame.

    Raises:
        MissingDataError: a row that is not aligned.
    """
    view = read_view(zoo, frame, variant)
    if lacking := [name for name in ("run", "epoch") if name not in rows.columns]:
        rows = _with_runs(zoo, variant, rows, lacking)
    places = [view.place(run, epoch) for run, epoch in rows.select("run", "epoch").iter_rows()]
    if None in places:
        run, epoch = rows.select("run", "epoch").row(places.index(None))
        raise MissingDataError(
            f"run {run} at epoch {epoch} is not in frame {frame!r} of {zoo.url}; `weightscape align {zoo.url} --frame "
            f"{frame}` adds what is missing"
        )
    return view.apply(weights, [place for place in places if place is not None])


def _with_runs(zoo: Zoo, variant: str, rows: pl.DataFrame, lacking: Iterable[str]) -> pl.DataFrame:
    """Rows that came with their address alone, with run and epoch."""
    table = zoo.table(metrics=False).filter(pl.col("variant") == variant).select("model", "checkpoint", *lacking)
    return rows.join(table, on=["model", "checkpoint"], how="left", maintain_order="left")


def _joined(head: View, parts: Sequence[View], zoo: Zoo) -> View:
    """A view with all its rows; those written under another universe are an error."""
    for part in parts:
        if part.origin != head.origin or part.encoding != head.encoding or dict(part.settings) != dict(head.settings):
            raise FormatError(
                f"rows of a frame of {head.variant} in {zoo.url} were made for another universe or with other settings "
                "than it has; remove the frame's folder and align again"
            )
    rows = pl.concat([part.rows for part in parts]) if parts else head.rows
    rows = rows.unique(["run", "epoch"], keep="first", maintain_order=True).sort("run", "epoch")
    return replace(head, rows=rows)


def _load(zoo: Zoo, name: str) -> View | None:
    """A file as a view; None where another process has just put it into a larger one."""
    kept = zoo._frames
    if name not in kept:
        try:
            data = zoo.metrics_folder.read(name, LIMIT)
        except FileNotFoundError:
            return None
        kept[name] = decode_frame(zoo.record, name, data, zoo.metrics_folder.url)
    return kept[name]


def decode_frame(record: Record, name: str, data: bytes, where: str) -> View:
    """The content of a frame's file: a universe without rows, or rows without universe; errors as for `read_view`."""
    match = NAME.fullmatch(name)
    if not match:
        raise FormatError(f"{name} in {where} is no file of a frame; move it away")
    if hashlib.sha256(data).hexdigest()[:32] != match["digest"]:
        raise CorruptError(f"{name} of {where} is damaged ({len(data):,} bytes); delete it and align again")
    try:
        content = read_content(data)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, this weightscape reads {FORMAT}")
        if content["zoo"] != record.digest:
            raise CorruptError(f"{name} of {where} is of another zoo; move it to that")
        if (content["frame"], content["variant"], content["kind"]) != (match["frame"], match["variant"], match["kind"]):
            raise ValueError("its frame, variant and kind are not those of its name")
        if content["scales"] not in SCALES:
            raise ValueError(f"scales are one of {', '.join(SCALES)}, got {brief(content['scales'])}")
        layout = record.variant(match["variant"]).layout
        settings, software = dict(content["settings"]), dict(content["software"])
        if match["kind"] == "universe":
            symmetry = Symmetry.from_json(layout, content["symmetry"])
            rows = read_table(data, 1, more=8 * layout.size)
            universe = np.frombuffer(rows["universe"][0], "<f4").copy()
            if universe.shape != (layout.size,) or not np.isfinite(universe).all():
                raise ValueError(f"its universe must be {layout.size} finite numbers")
            view = View(match["variant"], symmetry, universe, settings, content["scales"], software=software)
            if view.origin != content["origin"]:
                raise ValueError("its symmetry and universe do not have the digests it names")
            return view
        most = _most_rows(record)
        rows = read_table(data, most, fewer=True, more=8 * layout.size * most)
        if problem := _problem(rows):
            raise ValueError(problem)
    except (KeyError, TypeError, ValueError, SymmetryError, pl.exceptions.PolarsError) as error:
        raise FormatError(f"{name} of {where} does not follow format {FORMAT}: {brief(error)}") from error
    nothing = Symmetry(layout, {}), np.empty(0, np.float32)
    return View(match["variant"], *nothing, settings, content["scales"], rows, software, str(content["origin"]))


def _most_rows(record: Record) -> int:
    return sum(variant.grid.shape[0] * (variant.grid.shape[1] + 1) for variant in record.variants.values())


def _problem(rows: pl.DataFrame) -> str | None:
    """What is wrong with the rows of a frame, or None."""
    for name, dtype in COLUMNS.items():
        if rows.schema.get(name) != dtype:
            return f"column {name} is {rows.schema.get(name)}, expected {dtype}"
        if name != "epoch" and rows[name].null_count():
            return f"column {name} has nulls"
    if rows.select(pl.struct("run", "epoch").is_duplicated().any()).item():
        return "a run and epoch stand twice"
    return None
