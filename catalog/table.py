"""The table: all rows of a zoo. An index that can be deleted and rebuilt from the fragments."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from catalog.errors import CorruptError, FormatError, QueryError, unknown_name
from catalog.folder import Folder
from catalog.fragments import KEY, STATUSES, columns_problem, read_content, read_table, write_parquet
from catalog.record import FORMAT, Record, brief

if TYPE_CHECKING:
    from catalog.store import Zoo, Zoos

# Columns of a zoo without any committed shard; the others are known once there is one.
EMPTY = {"run": pl.String, "epoch": pl.Int64, "status": pl.String, "reason": pl.String, "variant": pl.String}
EMPTY |= {"model": pl.Int64, "checkpoint": pl.Int64, "stored": pl.Boolean, "crc32c": pl.UInt32}
LEAST, A_ROW = 64 << 20, 4 << 10  # bytes that a table may have: so many, and for each of its rows
NAME = re.compile(r"table\.(?P<digest>[0-9a-f]{32})\.parquet")


def rebuild_table(zoo: Zoo) -> str:
    """Write the table file from the fragments and remove older ones; returns its name.

    One file instead of one a shard: a reader far away opens the zoo in one request. Readers use it only while it
    matches the committed fragments to the digest.
    """
    committed = zoo.committed()
    rows = fragment_rows(zoo, committed)
    content = {"format": FORMAT, "zoo": zoo.record.digest, "fragments": fingerprint(committed)}
    data = write_parquet(rows, {KEY: json.dumps(content)})
    name = f"table.{hashlib.sha256(data).hexdigest()[:32]}.parquet"
    old = [found for found in table_files(zoo.folder) if found != name]
    if not zoo.folder.exists(name):
        zoo.folder.write(name, data)
    for found in old:
        zoo.folder.remove(found)
    return name


def cached_table(folder: Folder, record: Record, committed: Mapping[tuple[str, int], str]) -> pl.DataFrame | None:
    """The rows of the table file that matches these fragments, None when there is none.

    Raises:
        CorruptError: a table file whose bytes do not match the digest in its name.
        FormatError: one whose content is none of ours.
    """
    grids = {variant.name: variant.grid for variant in record.variants.values()}
    count = sum(len(grids[name].models(shard)) * grids[name].shape[1] for name, shard in committed)
    for name in table_files(folder):
        try:
            data = folder.read(name, LEAST + A_ROW * count)
        except FileNotFoundError:  # replaced by a newer one since the listing
            continue
        content = check_table(name, data, folder.url)
        if (content.get("zoo"), content.get("fragments")) != (record.digest, fingerprint(committed)):
            continue
        try:
            rows = read_table(data, count)
            if problem := columns_problem(rows):
                raise ValueError(problem)
        except ValueError as error:
            raise _no_table(name, folder.url, error) from error
        return rows
    return None


def check_table(name: str, data: bytes, where: str) -> dict[str, Any]:
    """The metadata of a table file, after its digest; errors as for `cached_table`."""
    match = NAME.fullmatch(name)
    if not match or hashlib.sha256(data).hexdigest()[:32] != match["digest"]:
        raise CorruptError(f"{name} of {where} is damaged; delete it: the table is rebuilt from the fragments")
    try:
        return read_content(data)
    except ValueError as error:
        raise _no_table(name, where, error) from error


def _no_table(name: str, where: str, error: Exception) -> FormatError:
    return FormatError(f"{name} of {where} is no table: {brief(error)}; delete it: it is rebuilt from the fragments")


def table_files(folder: Folder) -> list[str]:
    """Table files of a zoo (one, or two for a moment while a new one replaces the old)."""
    return [name for name in folder.top() if NAME.fullmatch(name)]


def fingerprint(committed: Mapping[tuple[str, int], str]) -> str:
    """Which fragments a table was made from."""
    return hashlib.sha256("\n".join(sorted(committed.values())).encode()).hexdigest()


def fragment_rows(zoo: Zoo, committed: Mapping[tuple[str, int], str]) -> pl.DataFrame:
    """All rows from the fragments, in the order (variant, model, checkpoint)."""
    places = {name: place for place, name in enumerate(zoo.record.variants)}
    order = sorted(committed, key=lambda key: (places[key[0]], key[1]))
    return concat_rows([zoo.fragment(committed[key]).rows for key in order], zoo.url)


def concat_rows(tables: Sequence[pl.DataFrame], where: str) -> pl.DataFrame:
    """Rows of several shards; a column that one lacks is null there.

    Raises:
        FormatError: a column holds text in one shard and numbers in another.
    """
    if not tables:
        return pl.DataFrame(schema=EMPTY)
    try:
        return pl.concat(tables, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"the fragments of {where} do not make one table: {error}") from error


def query(
    zoo: Zoo | Zoos,
    where: str | None = None,
    *,
    columns: Iterable[str] | None = None,
    sort: Iterable[str] = (),
    descending: bool = False,
    limit: int | None = None,
    status: str | None = "ok",
) -> pl.DataFrame:
    """Rows that fit a polars SQL expression such as `width >= 32 and test_accuracy > 0.96`.

    Args:
        where: the expression; None or empty for all rows.
        columns: names to show, in this order; None for all but packed bits.
        sort: columns to sort by, nulls last.
        limit: at most so many rows.
        status: ok, diverged or failed rows alone; None for all.

    Raises:
        UnknownNameError: a column the table does not have, listing those it has.
        QueryError: an expression polars cannot read, or that is no condition.
    """
    if limit is not None and limit < 0:
        raise QueryError(f"limit must be 0 or more, got {limit}")
    rows = zoo.scan(status)
    schema = rows.collect_schema()
    shown = [name for name, dtype in schema.items() if dtype != pl.Binary] if columns is None else _listed(columns)
    sort = _listed(sort)
    for name in (*shown, *sort):
        if name not in schema:
            raise unknown_name("column", name, schema.names())
    try:
        if where and where.strip():
            condition = pl.sql_expr(where)
            for name in condition.meta.root_names():
                if name not in schema:
                    raise unknown_name("column", name, schema.names())
            rows = rows.filter(condition)
        if sort:
            rows = rows.sort(sort, descending=descending, nulls_last=True)
        if limit is not None:
            rows = rows.head(limit)
        return rows.select(shown).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise QueryError(
            f"cannot evaluate {where!r}: {error}; write a condition such as: width >= 32 and status = 'ok'"
        ) from error


def _listed(names: Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def with_status(rows: pl.LazyFrame, status: str | None) -> pl.LazyFrame:
    """The rows of one status, or all."""
    if status is not None and status not in STATUSES:
        raise unknown_name("status", status, STATUSES)
    return rows if status is None else rows.filter(pl.col("status") == status)


def missing_column(name: str, known: Iterable[str]) -> QueryError:
    """The error for rows that lack a column that `read` needs."""
    return QueryError(
        f"rows need the column {name!r} of scan() to be read, got columns {', '.join(known)}; keep it in select()"
    )
