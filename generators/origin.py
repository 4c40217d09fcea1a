"""Back from a generator to the networks that it learned from."""

from __future__ import annotations

import os
from typing import Any

import polars as pl

from catalog.errors import GeneratorError, NotAZooError, QueryError, StorageError, UnknownNameError
from catalog.store import Zoo, open_zoo
from generators.generator import Generator
from generators.population import SPLITS, Population, population


def parent_of(
    generator: Generator, zoo: Zoo | str | os.PathLike[str] | None = None, **storage_options: Any
) -> Population:
    """The population that a generator was fitted to, with the same split.

    Args:
        zoo: where it is now; None for where it was.

    Raises:
        NotAZooError, StorageError: it is not there. GeneratorError: another zoo, or its rows or frame have changed.
    """
    source = generator.source
    found = zoo if isinstance(zoo, Zoo) else open_zoo(source["url"] if zoo is None else zoo, **storage_options)
    if found.record.digest != source["digest"]:
        raise GeneratorError(
            f"this {generator.kind} learned from the zoo {source['zoo']} with digest {source['digest'][:16]}, and "
            f"{found.url} is another ({found.name}, {found.record.digest[:16]}); give the one that it learned from"
        )
    members = [(run, epoch, name) for name in SPLITS for run, epoch in source["members"][name]]
    wanted = pl.DataFrame(members, schema={"run": pl.String, "epoch": pl.Int64, "split": pl.String}, orient="row")
    rows = found.scan().filter(pl.col("variant") == source["variant"]).collect()
    rows = rows.join(wanted.drop("split"), on=["run", "epoch"], how="semi", maintain_order="left")
    split = {name: wanted.filter(pl.col("split") == name)["run"].unique().to_list() for name in SPLITS}
    try:
        made = population(found, rows=rows, every_epoch=True, frame=source["frame"], split=split)
    except (GeneratorError, UnknownNameError, QueryError):  # rows or the frame are gone
        made = None
    if made is None or made.fingerprint != source["population"]:
        raise GeneratorError(
            f"the networks that this {generator.kind} learned from are not all in {found.url} as they were, or its "
            f"frame {source['frame']!r} is another one; fit the generator again"
        )
    return made


def parent_if_there(generator: Generator) -> Population | None:
    """The same where it was, or None if there is no zoo any more, or another one."""
    try:
        return parent_of(generator)
    except (NotAZooError, StorageError, GeneratorError):
        return None
