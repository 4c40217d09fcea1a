"""Zoos that Ray Tune wrote: a folder a trial with `params.json`, `result.json` and `checkpoint_000NNN/`.

So are those of ModelZooDataset (Schuerholt et al. 2022, "Model Zoos", arXiv 2209.14764) and PhaseTransitionModelZoo.
Their readers take metrics by line number; here a line belongs to the epoch that it names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from catalog.errors import SourceError
from catalog.importers.found import (
    NO_LAYOUT,
    SMALL,
    SPARSE,
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
from catalog.importers.values import flat, read_table, tabulate

CHECKPOINT = re.compile(r"checkpoint_0*(\d{1,9})")
# Names of a state dict in a checkpoint; the first that is there counts. The optimiser's lies beside it.
STATES = ("model.safetensors", "checkpoints", "checkpoint", "model.pt", "model.pth", "checkpoint.pt", "checkpoint.pth")
EPOCH_FIELDS = ("training_iteration", "epoch")  # Ray names checkpoints by the first
# What Ray says of the machine and of itself; the configuration is in params.json.
INTERNAL = {"config", "date", "timestamp", "pid", "hostname", "node_ip", "done", "should_checkpoint", "episodes_total"}
INTERNAL |= {
    "iterations_since_restore",
    "time_since_restore",
    "timesteps_since_restore",
    "timesteps_total",
    "warmup_time",
}
INTERNAL |= {"experiment_id", "experiment_tag", "trial_id", "checkpoint_dir_name", *EPOCH_FIELDS}
PARAMS_BYTES, LINE_BYTES, RESULT_BYTES = 4 << 20, 1 << 20, 256 << 20
OF_TRIAL = ("model", "trial", "trial_name", "logdir", "name", "run", "trial_id")  # in a table beside the trials


@dataclass
class Trial:
    """A run as it lies there: its folder, parameters, records by epoch and checkpoints by epoch."""

    folder: PurePosixPath
    params: dict[str, Any] = field(default_factory=dict)
    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    states: dict[int, PurePosixPath | None] = field(default_factory=dict)
    trial_id: str | None = None
    duplicate_of: str | None = None

    @property
    def run(self) -> str:
        return self.folder.as_posix()


def from_ray(source: Any, options: Options, pickles: Pickles) -> Found:
    """Trials below a folder, in the order of their names."""
    place = local_folder(source, "a zoo of Ray Tune")
    notes = Notes()
    skipped: list[tuple[str, str]] = []
    trials = _trials(place, notes, skipped)
    if not trials:
        raise DoesNotFitError("there is no folder with a params.json or result.json and checkpoint_* folders")
    _mark_duplicates(trials, notes)
    tables = _tables(place, trials, skipped)
    layouts, own, values, ours = Layouts(), [], [], []
    files: list[PurePosixPath | None] = []
    for trial, epoch in _rows(trials):
        files.append(trial.states.get(epoch))
        own.append({"run": trial.run, "epoch": epoch, **_member(place, trial, epoch, layouts, notes, pickles)})
        extra = tables.get((trial.run, epoch), {}) | tables.get((trial.run, None), {})
        reported = trial.records.get(epoch, {}) | extra
        values.append({**trial.params, **_apart(reported, trial.params)})
        ours.append((trial.trial_id, trial.duplicate_of))
    columns, remarks = tabulate(values)
    beside = pl.DataFrame(ours, schema={"trial_id": pl.String, "duplicate_of": pl.String}, orient="row")
    members = make_members(own, pl.concat([beside, columns], how="horizontal"))

    def load(at: int) -> Tensors:
        return _state(place, files[at], pickles).load()

    return Found("ray", members, tuple(layouts.found), load, tuple(skipped), (*remarks, *notes.told()))


def _rows(trials: list[Trial]) -> Iterator[tuple[Trial, int]]:
    """Trials with the epochs of all, since what a trial reported is worth keeping without its checkpoint too.

    Where trials hardly share an epoch, each with its own.
    """
    epochs = sorted({epoch for trial in trials for epoch in trial.states})
    count = sum(len(trial.states) for trial in trials)
    shared = len(trials) * len(epochs) <= max(SPARSE * count, SMALL)  # if too many, the writer leaves them out
    return ((trial, epoch) for trial in trials for epoch in (epochs if shared else sorted(trial.states)))


def _trials(place: Place, notes: Notes, skipped: list[tuple[str, str]]) -> list[Trial]:
    """Trials by their files, sorted by folder: the order of a listing is nobody's."""
    trials: dict[PurePosixPath, Trial] = {}
    states: dict[tuple[PurePosixPath, int], list[PurePosixPath]] = {}
    texts: list[PurePosixPath] = []
    for name in place.files(skipped):
        found = CHECKPOINT.fullmatch(name.parent.name)
        if found:
            states.setdefault((name.parent.parent, int(found[1])), []).append(name)
        elif name.name in ("params.json", "result.json"):
            texts.append(name)
    for folder in sorted({name.parent for name in texts} | {folder for folder, _ in states}):
        trials[folder] = Trial(folder)
    for (folder, epoch), names in states.items():
        states_of = [name for known in STATES for name in names if name.name == known]
        trials[folder].states[epoch] = states_of[0] if states_of else None
    wanted = {epoch for _, epoch in states}
    for name in sorted(texts):
        trial = trials[name.parent]
        try:
            if name.name == "params.json":
                trial.params = flat(_json_object(_small(place, name, PARAMS_BYTES).read_text("utf-8")))
            else:
                trial.records, trial.trial_id = _records(_small(place, name, RESULT_BYTES), wanted, notes)
        except (BrokenError, ValueError) as error:
            skipped.append((name.as_posix(), str(error)[:300]))
    return [trial for _, trial in sorted(trials.items()) if trial.states]


def _member(place: Place, trial: Trial, epoch: int, layouts: Layouts, notes: Notes, pickles: Pickles) -> dict[str, Any]:
    """Source, layout and reason of a trial at an epoch."""
    name = trial.states.get(epoch)
    if name is None:
        source = f"{trial.run}/checkpoint_{epoch:06d}" if epoch in trial.states else ""
        reason = (
            f"no file of weights is in it; known are {', '.join(STATES)}"
            if source
            else "the trial has no such checkpoint"
        )
        return {"source": source, "layout": NO_LAYOUT, "reason": reason}
    try:
        state = _state(place, name, pickles)
    except BrokenError as error:
        return {"source": name.as_posix(), "layout": NO_LAYOUT, "reason": str(error)}
    notes.add(state.notes)
    return {"source": name.as_posix(), "layout": layouts.add(state.layout), "reason": ""}


def _state(place: Place, name: PurePosixPath | None, pickles: Pickles) -> TensorFile:
    assert name is not None  # only what was found is loaded
    blob = LocalBlob.of(place, name)
    if name.suffix == ".safetensors":
        return open_safetensors({name.as_posix(): blob})
    return pickles.open(blob.path, name.as_posix())


def _small(place: Place, name: PurePosixPath, limit: int) -> Path:
    """A file of at most so many bytes."""
    path = place.file(name)
    if (size := path.stat().st_size) > limit:
        raise BrokenError(f"{size:,} bytes, more than the {limit:,} allowed")
    return path


def _json_object(text: str) -> dict[str, Any]:
    """An object; NaN and Infinity are allowed, since Ray writes them."""
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    return content


def _records(path: Path, wanted: set[int], notes: Notes) -> tuple[dict[int, dict[str, Any]], str | None]:
    """Epoch -> what was reported then, for the epochs wanted; and the id of the trial.

    Of several lines for an epoch, as after a restart, the last counts.
    """
    records: dict[int, dict[str, Any]] = {}
    trial_id = None
    with path.open("rb") as file:
        while line := file.readline(LINE_BYTES):
            if not line.strip():
                continue
            try:
                record = _json_object(line.decode())
            except ValueError:  # of which a UnicodeDecodeError is one
                notes.add(["a line of result.json is cut short or damaged, and was left out"])
                while line and not line.endswith(b"\n"):
                    line = file.readline(LINE_BYTES)
                continue
            epoch = next((record[name] for name in EPOCH_FIELDS if name in record), None)  # an epoch of 0 is one too
            if type(epoch) is not int:
                notes.add(["a line of result.json that names no epoch was left out"])
                continue
            trial_id = trial_id or str(record.get("trial_id") or "")[:200] or None
            if epoch in records:
                notes.add(["an epoch stands twice in result.json; the later line counts"])
            if epoch in wanted:
                records[epoch] = flat({key: value for key, value in record.items() if key not in INTERNAL})
    return records, trial_id


def _apart(record: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says beside the parameters; a name that both have with other values is told apart."""
    out = {}
    for name, value in record.items():
        if name in params and params[name] == value:
            continue
        out[f"result_{name}" if name in params else name] = value
    return out


def _mark_duplicates(trials: list[Trial], notes: Notes) -> None:
    """A trial with the parameters of one before it, seed and all, says so: they are no two samples."""
    seen: dict[str, str] = {}
    for trial in trials:
        key = json.dumps(trial.params, sort_keys=True)
        if trial.params and (first := seen.setdefault(key, trial.run)) != trial.run:
            trial.duplicate_of = first
            notes.add(["trials with the parameters of another one; see the column duplicate_of"])


def _tables(place: Place, trials: list[Trial], skipped: list[tuple[str, str]]) -> dict[Any, dict[str, Any]]:
    """(run, epoch) -> columns of tables that lie beside the trials; epoch None where a table has no epochs."""
    runs = {trial.folder.name: trial.run for trial in trials} | {t.trial_id: t.run for t in trials if t.trial_id}
    out: dict[Any, dict[str, Any]] = {}
    for name in sorted(path.name for path in place.root.iterdir() if path.name.endswith((".csv", ".csv.gz"))):
        try:
            table = read_table(place.file(name))
        except (SourceError, BrokenError) as error:
            skipped.append((name, str(error)))
            continue
        key = next((c for c in OF_TRIAL if c in table.columns and set(table[c].cast(pl.String)) & set(runs)), None)
        if key is None:
            skipped.append((name, f"no column names the trials; known are {few(OF_TRIAL, 9)}"))
            continue
        at = next((c for c in EPOCH_FIELDS if c in table.columns and table[c].dtype.is_integer()), None)
        for row in table.iter_rows(named=True):
            run = runs.get(str(row[key]))
            if run is not None:
                kept = {k: v for k, v in row.items() if k not in (key, at) and k not in INTERNAL and v is not None}
                out.setdefault((run, row[at] if at else None), {}).update(kept)
    return out
