"""Rows of a zoo as data for learners: a map-style torch Dataset that any DataLoader takes, with any start method.

It subclasses nothing but for type checkers, so that importing it needs no torch: a DataLoader asks for `__len__`,
`__getitem__` and, for a batch in one read, `__getitems__`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from catalog.errors import MissingDataError, QueryError, unknown_name
from catalog.normal import Normaliser, fit_normaliser
from catalog.splits import METRIC, SPLITS, stored_split
from catalog.store import ADDRESS, DTYPES, Zoo, open_zoo
from weightspace.layout import Layout

if TYPE_CHECKING:
    import torch

    Base = torch.utils.data.Dataset[Any]
else:
    Base = object

BYTES = 16 << 20  # of weights read at once while statistics are taken
KEY = ("run", "epoch")


@dataclass(frozen=True)
class WeightDataset(Base):
    """Networks of one variant with what is to be learned about them. Made by `catalog.dataset`.

    `self[i]` is a tensor (size,), or with targets a pair of it and a scalar (of several columns: a vector). What goes
    to other processes is where the zoo lies, numbers that say which rows, and the normaliser: each opens its own files.

    Args:
        models, checkpoints: (rows,), which rows of the variant.
        keys: run and epoch of each row, for frames alone.
        targets: (rows,) or (rows, columns), None for none.
        normaliser: undo it with `normaliser.undo`, or `denormalise`.
    """

    zoo: Zoo = field(repr=False)
    variant: str
    models: np.ndarray = field(repr=False)
    checkpoints: np.ndarray = field(repr=False)
    targets: np.ndarray | None = field(default=None, repr=False)
    keys: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)
    tensors: tuple[str, ...] | None = None
    frame: str | None = None
    normaliser: Normaliser | None = None
    transform: Callable[[Any], Any] | None = None
    dtype: str = "float32"

    @property
    def layout(self) -> Layout:
        """Which tensor is where in a vector."""
        whole = self.zoo.layouts[self.variant]
        return whole if self.tensors is None else whole.select(self.tensors)

    def __len__(self) -> int:
        return len(self.models)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{len(self)} networks, none is number {index}")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples at these places, in one read."""
        places = np.asarray(indices, np.int64)
        return self.samples(self._stored(places), places)

    def samples(self, stored: np.ndarray, places: np.ndarray) -> list[Any]:
        """What `self[i]` gives for each of these places, from the weights (models, size) that are stored for them."""
        import torch

        exact = torch.from_numpy(stored if self.normaliser is None else self.normaliser.apply(stored))
        weights = exact.to(getattr(torch, self.dtype))
        if self.dtype == "float16" and not torch.isfinite(weights).all():
            raise QueryError("some of these weights pass the range of float16; take them as float32, or normalise")
        samples = list(weights) if self.transform is None else [self.transform(sample) for sample in weights]
        if self.targets is None:
            return samples
        return list(zip(samples, torch.from_numpy(self.targets[places]), strict=True))

    def read(self, places: np.ndarray) -> np.ndarray:
        """Normalised weights (models, size) of the networks at these places; float64 if `dtype` is, else float32."""
        weights = self._stored(places)
        return weights if self.normaliser is None else self.normaliser.apply(weights)

    def stream(
        self,
        batch: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        memory: int = 256 << 20,
        part: tuple[int, int] = (0, 1),
    ) -> Any:
        """The same as a torch IterableDataset of whole batches, for populations larger than memory.

        Give it to a DataLoader with `batch_size=None`. Each of its workers has a part of the rows, and a share of the
        memory. The order is that of `Zoo.iterate` for `seed` and the epoch; `set_epoch(n)` chooses that, before each
        epoch, also for workers that stay.

        Args:
            batch: rows of a batch. memory: bytes of weights that all workers hold, about.
            part: (i, n) for process i of n that learn together.
        """
        from catalog.stream import stream_of

        return stream_of(self, batch, seed=seed, shuffle=shuffle, drop_last=drop_last, memory=memory, part=part)

    def denormalise(self, weights: Any) -> Any:
        """What `normalise` did, undone, for an array or tensor (..., size)."""
        return weights if self.normaliser is None else self.normaliser.undo(weights)

    @property
    def read_as(self) -> str:
        """The type that weights are read in, before they become `dtype`."""
        return "float64" if self.dtype == "float64" else "float32"

    def rows(self, places: np.ndarray) -> pl.DataFrame:
        """What `Zoo.read` needs of the rows at these places."""
        columns = {"model": self.models[places], "checkpoint": self.checkpoints[places]}
        if self.keys is not None:
            columns |= {name: column[places] for name, column in zip(KEY, self.keys, strict=True)}
        return pl.DataFrame(columns).with_columns(pl.lit(self.variant).alias("variant"))

    def _stored(self, places: np.ndarray) -> np.ndarray:
        weights: np.ndarray = self.zoo.read(self.rows(places), self.tensors, dtype=self.read_as, frame=self.frame)
        return weights


def dataset(
    zoo: Zoo | str | os.PathLike[str],
    rows: pl.DataFrame | pl.LazyFrame | None = None,
    *,
    target: str | Sequence[str] | None = None,
    split: str | None = "train",
    tensors: Iterable[str] | None = None,
    frame: str | None = None,
    normalise: str | Normaliser | None = None,
    transform: Callable[[torch.Tensor], Any] | None = None,
    dtype: str = "float32",
    **storage_options: Any,
) -> WeightDataset:
    """Networks of a zoo for a torch DataLoader: shuffled, in workers of any start method, a batch a read.

    Args:
        zoo: or where one is.
        rows: of `scan()`, of one variant; None for all that are ok.
        target: a column of numbers or truths, or several.
        split: train, validation or test, as `catalog.split` stored it (or as a column `split` of the rows says); None
            for all rows.
        tensors: names, None for whole vectors. frame: an alignment to see them in.
        normalise: "standard" (each weight has mean 0 and variance 1), "layer" (each tensor), "global" (all weights).
            The statistics are those of the rows of the training split, whichever split is asked for. Or a `Normaliser`,
            as another dataset has it.
        transform: what is done to each normalised vector (size,) last. A function of a module, for workers that spawn.
        dtype: of the tensors: float32, float64, float16 or bfloat16.

    Raises:
        QueryError: no split is stored, rows of several variants, of another zoo or none at all, a target that is not a
            number in all rows, options that make no sense. UnknownNameError: no such column, split, tensor or frame.
        MissingDataError: rows without weights.
    """
    opened = zoo if isinstance(zoo, Zoo) else open_zoo(zoo, **storage_options)
    if split is not None and split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    names = [] if target is None else [target] if isinstance(target, str) else list(target)
    chosen = None if tensors is None else tuple([tensors] if isinstance(tensors, str) else tensors)
    fits = isinstance(normalise, str)
    table = _complete(opened, rows, names, split is not None or fits)
    mine = table if split is None else _of_split(opened, table, split)
    found = _of_rows(opened, mine, names, tensors=chosen, frame=frame, transform=transform, dtype=dtype)
    if not isinstance(normalise, str):
        return _with(found, normalise)
    stick = found if split == "train" else _of_rows(
        opened, _of_split(opened, table, "train"), [], tensors=chosen, frame=frame, dtype=dtype
    )  # fmt: skip
    return _with(found, fit_normaliser(normalise, found.layout, _batches(stick)))


def _with(found: WeightDataset, normaliser: Normaliser | None) -> WeightDataset:
    if normaliser is not None and normaliser.layout != found.layout.fingerprint:
        raise QueryError("this normaliser was fitted to vectors of another layout; fit one to these rows")
    return replace(found, normaliser=normaliser)


def _batches(found: WeightDataset) -> Iterator[np.ndarray]:
    """All weights of a dataset in order, without its transform, about `BYTES` at a time."""
    some = max(1, BYTES // (4 * found.layout.size))
    for first in range(0, len(found), some):
        yield found._stored(np.arange(first, min(first + some, len(found))))


def _complete(zoo: Zoo, rows: pl.DataFrame | pl.LazyFrame | None, target: list[str], split: bool) -> pl.DataFrame:
    """The rows with their address, run, epoch, whether they are stored, targets, and the split if it is needed."""
    needed = [*dict.fromkeys([*ADDRESS, *KEY, "stored", *target])]
    if rows is None:
        table = zoo.scan().filter("stored")
        _check_columns(target, table.collect_schema().names())
    else:
        table = rows.lazy()
        lacking = [name for name in needed if name not in table.collect_schema().names()]
        if lacking and not set(lacking) & set(ADDRESS):
            whole = zoo.scan(None)
            _check_columns(target, whole.collect_schema().names())
            there = whole.select(*ADDRESS, *lacking)
            table = table.join(there, on=list(ADDRESS), how="left", maintain_order="left")
    names = table.collect_schema().names()
    if "zoo" in names and rows is not None:
        others = set(table.select("zoo").unique().collect()["zoo"]) - {zoo.name}
        if others:
            raise QueryError(f"rows of zoo {sorted(map(str, others))[0]!r} were given to zoo {zoo.name!r}")
    _check_columns(needed, names)
    found = table.select(*needed, *([METRIC] if split and METRIC in names and METRIC not in needed else [])).collect()
    if split and METRIC not in found.columns:
        if (named := stored_split(zoo)) is None:
            raise QueryError(
                f"{zoo.url} has no split of its lineages; store one with catalog.split(zoo), or give split=None "
                "(without normalise, or with a fitted one)"
            )
        found = found.join(named, on="run", how="left", maintain_order="left")
    return found


def _check_columns(names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise unknown_name("column", name, known)


def _of_split(zoo: Zoo, table: pl.DataFrame, split: str) -> pl.DataFrame:
    if odd := table[METRIC].null_count():
        raise QueryError(
            f"{odd} of {len(table)} rows of {zoo.url} are in no split: they came after it was made; call "
            "catalog.split(zoo) again"
        )
    return table.filter(pl.col(METRIC) == split)


def _of_rows(zoo: Zoo, table: pl.DataFrame, target: list[str], **options: Any) -> WeightDataset:
    if not len(table):
        raise QueryError(f"no rows of {zoo.url} are left: a condition or a split that none of them fits")
    variants = table["variant"].unique().sort().to_list()
    if len(variants) > 1:
        raise QueryError(
            f"a dataset is of one variant, whose networks have one layout; these rows are of {len(variants)}: "
            f"{', '.join(map(str, variants[:5]))}; filter by variant"
        )
    layout = zoo.record.variant(variants[0]).layout
    for name in options["tensors"] or ():
        if name not in layout:
            raise unknown_name("tensor", name, layout.names)
    bare = table.filter(~pl.col("stored").fill_null(False))
    if len(bare):
        raise MissingDataError(
            f"{len(bare)} of {len(table)} rows hold no weights, such as run {bare['run'][0]} at epoch "
            f"{bare['epoch'][0]}; filter by stored"
        )
    if options["frame"] is not None:
        zoo.frame(options["frame"], variants[0])  # UnknownNameError here, not in a worker
        options["keys"] = (np.array(table["run"].to_list(), str), table["epoch"].to_numpy())
    models, checkpoints = (table[name].cast(pl.Int64).to_numpy() for name in ADDRESS[1:])
    return WeightDataset(zoo, variants[0], models, checkpoints, _targets(table, target), **options)


def _targets(table: pl.DataFrame, names: list[str]) -> np.ndarray | None:
    """Integers and truths as int64, all else as float32; several columns as float32."""
    for name in names:
        column = table[name]
        if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
            raise QueryError(f"a target is a column of numbers, {name} holds {column.dtype}")
        if column.null_count() or (column.dtype.is_float() and not column.is_finite().all()):
            raise QueryError(f"target {name} has no number in some of these {len(table)} rows; filter them out")
    if not names:
        return None
    whole = len(names) == 1 and not table[names[0]].dtype.is_float()
    found = table.select(pl.col(names).cast(pl.Int64 if whole else pl.Float32)).to_numpy()
    return np.ascontiguousarray(found[:, 0] if len(names) == 1 else found)
