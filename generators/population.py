"""What a generator learns from and is judged against: the networks of one variant, split by lineage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import (
    GeneratorError,
    InvalidSpecError,
    MissingDataError,
    QueryError,
    UnknownNameError,
    unknown_name,
)
from catalog.splits import SPLITS as SPLITS
from catalog.splits import stored_split
from catalog.store import Zoo
from catalog.table import missing_column, query
from kernels.random import permutation
from weightspace.layout import Layout
from zoo.architectures import Architecture
from zoo.datasets import Dataset
from zoo.landscape.measure import plan_of
from zoo.plan import TRAINED_LIKE
from zoo.typical import typical_spec

LEAST = 8  # lineages: fewer leave nothing to learn from, or nothing to judge by
SPLIT_SITE = 6  # of the random streams
COLUMNS = ["variant", "run", "epoch", "model", "checkpoint", "status", "crc32c"]  # that say which rows these are
BYTES = 1 << 26  # of weights read at once


@dataclass(frozen=True, eq=False)  # eq=False: `==` on tables has no truth value; compare fingerprints
class Population:
    """Networks of one variant, seen in one frame, each lineage (a run with all its checkpoints) in one split.

    Args:
        rows: one a network, as `zoo.scan()` gives them, with a column `split`. Sorted by run and epoch.
        frame: name of an alignment of the zoo, None for weights as they are.
    """

    zoo: Zoo
    variant: str
    rows: pl.DataFrame
    frame: str | None = None

    @cached_property
    def architecture(self) -> Architecture:
        return Architecture.from_json(self.zoo.record.variants[self.variant].architecture)

    @property
    def layout(self) -> Layout:
        return self.zoo.layouts[self.variant]

    @cached_property
    def data(self) -> Dataset:
        """The data set that the networks were trained on."""
        return plan_of(self.zoo).data

    @cached_property
    def _parts(self) -> dict[str, pl.DataFrame]:
        return {name: self.rows.filter(pl.col("split") == name) for name in SPLITS}

    def split(self, name: str) -> pl.DataFrame:
        """The rows of "train", "validation" or "test"."""
        if name not in SPLITS:
            raise unknown_name("split of lineages", name, SPLITS)
        return self._parts[name]

    def read(self, split: str = "train", places: Sequence[int] | np.ndarray | slice | None = None) -> np.ndarray:
        """Weights (models, size) float32 in the frame, of all rows of a split or those at some places in it."""
        rows = self.split(split)
        if isinstance(places, slice):
            rows = rows[places]
        elif places is not None:
            rows = rows[np.asarray(places, np.int64).tolist()]
        if not len(rows):
            return np.empty((0, self.layout.size), np.float32)
        weights: np.ndarray = self.zoo.read(rows, dtype="float32", frame=self.frame)
        return weights

    def batches(self, split: str = "train", size: int = BYTES) -> Iterator[np.ndarray]:
        """The same in order, about so many bytes at a time: for what needs one pass and never the whole."""
        some = max(1, size // (4 * self.layout.size))
        for first in range(0, len(self.split(split)), some):
            yield self.read(split, slice(first, first + some))

    def bytes(self, split: str = "train") -> int:
        """Of all weights of a split in float32."""
        return 4 * self.layout.size * len(self.split(split))

    @cached_property
    def fingerprint(self) -> str:
        """16 digits of which networks these are: zoo, variant, frame, and run, epoch and checksum of each row."""
        names = ("run", "epoch", "crc32c", "split")
        lines = [self.zoo.record.digest, self.variant, self.frame_origin or ""]
        lines += ["\t".join(map(str, row)) for row in self.rows.select(names).iter_rows()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    @cached_property
    def frame_origin(self) -> str | None:
        """Which alignment the frame is: two of one name may have another universe."""
        return None if self.frame is None else self.zoo.frame(self.frame, self.variant).origin

    def _trained_like(self) -> dict[str, Any] | None:
        """How most of the training split was trained, so that samples are evaluated without the zoo."""
        try:
            return typical_spec(self.zoo, self.split("train")).to_json()
        except InvalidSpecError:  # of a zoo that was not built from a spec
            return None

    def source(self) -> dict[str, Any]:
        """What is stored with a generator to say what it learned from, as JSON."""
        return {
            "zoo": self.zoo.name,
            "url": self.zoo.url,
            "digest": self.zoo.record.digest,
            "variant": self.variant,
            "architecture": self.architecture.to_json(),
            "layout": self.layout.fingerprint,
            "frame": self.frame,
            "frame_origin": self.frame_origin,
            "population": self.fingerprint,
            "data": dict(self.zoo.record.info.get("data") or {}),
            "licence": self.zoo.record.info.get("licence", ""),
            TRAINED_LIKE: self._trained_like(),
            "lineages": {name: self.split(name)["run"].n_unique() for name in SPLITS},
            "members": {name: self.split(name).select("run", "epoch").rows() for name in SPLITS},
        }


def population(
    zoo: Zoo,
    where: str | None = None,
    *,
    rows: pl.DataFrame | pl.LazyFrame | None = None,
    variant: str | None = None,
    epoch: int | None = None,
    every_epoch: bool = False,
    frame: str | None = None,
    held_out: float | None = None,
    split: Mapping[str, Sequence[str]] | None = None,
    seed: int | None = None,
) -> Population:
    """Choose the networks of a zoo to learn from.

    Their split is the one that `catalog.split` stored with the zoo. Where none is stored, or `held_out` or `seed` is
    given, it is drawn here.

    Args:
        where: a condition on rows, as for `catalog.query`. rows: those to take instead, with all columns of `scan()`
            that say which they are; status ok only.
        variant: not needed where the rows are of one.
        epoch: which checkpoint of each run, the last one when left out; `every_epoch` takes all.
        frame: name of an alignment (`weightscape align`), None for weights as they are.
        held_out: share of the lineages for validation (choices), and as much again for the test split (reports); 0.1
            when left out.
        split: instead of that, name -> runs; each run in one of them.
        seed: of the split, 0 when left out.

    Raises:
        GeneratorError: fewer than `LEAST` lineages or a split without any, a lineage in two splits, rows of several
            variants, a frame that does not cover the rows. UnknownNameError: no such frame. QueryError: no such rows,
            rows of another zoo or given twice.
    """
    if rows is None:
        rows = query(zoo, where, columns=zoo.scan().collect_schema().names())
    elif where is not None:
        raise GeneratorError("give rows or a condition on them, not both")
    else:
        rows = _own(zoo, rows.collect() if isinstance(rows, pl.LazyFrame) else rows)
    rows = rows.filter(pl.col("status") == "ok")
    if variant is not None:
        rows = rows.filter(pl.col("variant") == variant)
    if not every_epoch:
        last = pl.col("epoch").max().over("run")
        rows = rows.filter(pl.col("epoch") == (last if epoch is None else epoch))
    if not len(rows):
        raise QueryError(f"no rows of {zoo.url} fit: a condition, a variant or an epoch that none has")
    if len(variants := rows["variant"].unique().sort().to_list()) > 1:
        raise GeneratorError(
            f"a generator learns one variant, and the rows are of {len(variants)}: {', '.join(variants[:5])}; "
            'give variant=... or a condition such as "width = 32"'
        )
    rows = rows.drop("split", strict=False).sort("run", "epoch")
    stored = stored_split(zoo) if split is None and held_out is None and seed is None else None
    if split is not None:
        named = _given(rows, split)
    elif stored is not None:
        named = _stored(rows, stored, zoo.url)
    else:
        named = _by_lineage(rows, 0.1 if held_out is None else held_out, 0 if seed is None else seed)
    _check_frame(zoo, frame, variants[0], rows)
    return Population(zoo, variants[0], named, frame)


def _own(zoo: Zoo, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows; raises QueryError unless each is one of the zoo, and there once."""
    for name in COLUMNS:
        if name not in rows.columns:
            raise missing_column(name, rows.columns)
    table = zoo.table(metrics=False).select(COLUMNS)
    try:
        strange = rows.join(table, on=COLUMNS, how="anti", nulls_equal=True)
    except pl.exceptions.PolarsError as error:
        raise QueryError(f"rows must be those of scan(): {error}") from error
    if len(strange):
        raise QueryError(
            f"{len(strange)} of {len(rows)} rows are not of {zoo.url}, such as run {strange['run'][0]} at epoch "
            f"{strange['epoch'][0]}; take them from its scan()"
        )
    if twice := int(rows.select("run", "epoch").is_duplicated().sum()):
        raise QueryError(
            f"{twice} of {len(rows)} rows are there more than once; give each network once, as unique() does"
        )
    return rows


def _by_lineage(rows: pl.DataFrame, held_out: float, seed: int) -> pl.DataFrame:
    """Rows with a split each, drawn by the seed from the runs in order."""
    runs = rows["run"].unique().sort()
    if len(runs) < LEAST:
        raise GeneratorError(
            f"a generator needs {LEAST} lineages (runs) or more, to learn from and to hold out; got {len(runs)}. Build "
            "more seeds, or loosen the condition"
        )
    if not isinstance(held_out, int | float) or not 0 < held_out < 0.5:
        raise GeneratorError(f"held_out must be a share of the lineages above 0 and below 0.5, got {held_out!r}")
    if type(seed) is not int or not 0 <= seed < 2**64:
        raise GeneratorError(f"the seed of a split must be an integer from 0 to 2**64 - 1, got {seed!r}")
    each = max(1, round(held_out * len(runs)))
    if len(runs) - 2 * each < LEAST // 2:
        raise GeneratorError(
            f"held_out={held_out:g} of {len(runs)} lineages, twice, leaves {len(runs) - 2 * each} to train on and "
            f"{LEAST // 2} are needed; hold out fewer"
        )
    order = permutation(np.array([seed], np.uint64), SPLIT_SITE, count=len(runs))[0]
    names = np.full(len(runs), "train", object)
    names[order[:each]], names[order[each : 2 * each]] = "validation", "test"
    return rows.join(pl.DataFrame({"run": runs, "split": names.tolist()}), on="run", how="left", maintain_order="left")


def _given(rows: pl.DataFrame, split: Mapping[str, Sequence[str]]) -> pl.DataFrame:
    """Rows with the split that the user names for their runs; others are left out."""
    for name in split:
        if name not in SPLITS:
            raise unknown_name("split of lineages", name, SPLITS)
    pairs = [(run, name) for name, runs in split.items() for run in dict.fromkeys(runs)]
    runs = [run for run, _ in pairs]
    if twice := [run for run in dict.fromkeys(runs) if runs.count(run) > 1] if len(set(runs)) < len(runs) else []:
        raise GeneratorError(
            f"{len(twice)} lineages are in two splits ({', '.join(twice[:3])}): what is held out must be of other runs"
        )
    if missing := set(runs) - set(rows["run"]):
        raise GeneratorError(
            f"{len(missing)} runs of the split are not among the rows: {', '.join(sorted(missing)[:3])}"
        )
    named = pl.DataFrame(pairs, schema={"run": pl.String, "split": pl.String}, orient="row")
    return _enough(rows.join(named, on="run", how="inner", maintain_order="left"))


def _stored(rows: pl.DataFrame, named: pl.DataFrame, url: str) -> pl.DataFrame:
    """Rows with the split that is stored for their runs."""
    found = rows.join(named, on="run", how="left", maintain_order="left")
    if lacking := found.filter(pl.col("split").is_null())["run"].n_unique():
        raise GeneratorError(
            f"{lacking} runs came to {url} after its split was stored; call catalog.split(zoo) again, or give a "
            "seed to draw one"
        )
    return _enough(found, "; split the zoo with stratify=, or give a seed to draw a split of these rows alone")


def _enough(found: pl.DataFrame, advice: str = "") -> pl.DataFrame:
    """The rows, if there are lineages to learn from and some in each of the other splits."""
    lineages = {name: found.filter(pl.col("split") == name)["run"].n_unique() for name in SPLITS}
    if lineages["train"] < LEAST // 2 or not all(lineages.values()):
        raise GeneratorError(
            f"a split needs {LEAST // 2} lineages or more to train on and one or more for validation and test, got "
            f"{lineages}{advice}"
        )
    return found


def _check_frame(zoo: Zoo, frame: str | None, variant: str, rows: pl.DataFrame) -> None:
    """Raise unless the frame is there and has all rows: before hours are spent."""
    if frame is None:
        return
    if frame not in (known := zoo.frames()):
        raise UnknownNameError(
            f"{zoo.url} has no frame {frame!r}; it has {', '.join(known) or 'none'}. `weightscape align` makes one"
        )
    try:
        view = zoo.frame(frame, variant)
    except MissingDataError as error:
        raise GeneratorError(f"{error}; align that variant first") from error
    lacking = [run for run, epoch in rows.select("run", "epoch").iter_rows() if view.place(run, epoch) is None]
    if lacking:
        raise GeneratorError(
            f"frame {frame!r} of {zoo.url} lacks {len(lacking)} of the {len(rows)} rows ({', '.join(lacking[:3])}); "
            "`weightscape align` adds what it does not have yet"
        )
