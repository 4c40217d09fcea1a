"""The table: all rows of a zoo. An index that can be deleted and rebuilt from the fragments."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from catalog.errors import CorruptError, QueryError, unknown_name
from catalog.folder import Folder
from catalog.fragments import KEY, write_parquet
from catalog.record import FORMAT, Record

if TYPE_CHECKING:
    from catalog.store import Zoo, Zoos

NAME = re.compile(r"table\.(?P<digest>[0-9a-f]{32})\.parquet")


def rebuild_table(zoo: Zoo) -> str:
    """Write the table file from the fragments and remove older ones; returns its name.

    One file instead of one a shard: a reader far away opens the zoo in one request. Readers use it only while it
    matches the committed fragments to the digest.
    """
    committed = zoo.committed()
    order = [committed[key] for key in zoo.record.shards if key in committed]
    rows = concat_rows([zoo.fragment(name).rows for name in order])
    content = {"format": FORMAT, "zoo": zoo.record.digest, "fragments": _fingerprint(committed)}
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
    """
    for name in table_files(folder):
        try:
            data = folder.read(name)
        except FileNotFoundError:  # replaced by a newer one since the listing
            continue
        content = check_table(name, data, folder.url)
        if (content["zoo"], content["fragments"]) == (record.digest, _fingerprint(committed)):
            return pl.read_parquet(io.BytesIO(data))
    return None


def check_table(name: str, data: bytes, where: str) -> dict[str, str]:
    """The metadata of a table file, after its digest."""
    match = NAME.fullmatch(name)
    if not match or hashlib.sha256(data).hexdigest()[:32] != match["digest"]:
        raise CorruptError(f"{name} of {where} is damaged; delete it: the table is rebuilt from the fragments")
    content: dict[str, str] = json.loads(pl.read_parquet_metadata(io.BytesIO(data))[KEY])
    return content


def table_files(folder: Folder) -> list[str]:
    """Table files of a zoo (one, or two for a moment while a new one replaces the old)."""
    return [name for name in folder.top() if NAME.fullmatch(name)]


def _fingerprint(committed: Mapping[tuple[str, int], str]) -> str:
    return hashlib.sha256("\n".join(sorted(committed.values())).encode()).hexdigest()


def concat_rows(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Rows of several shards; a column that one lacks is null there."""
    return (
        pl.concat(tables, how="diagonal_relaxed")
        if tables
        else pl.DataFrame(schema={"variant": pl.String, "status": pl.String})
    )


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
        columns: names to show; None for all but packed bits.
        sort: columns to sort by, nulls last.

    Raises:
        UnknownNameError: a column the table does not have, listing those it has.
        QueryError: an expression polars cannot read, or that is no condition.
    """
    rows = zoo.scan(status)
    schema = rows.collect_schema()
    shown = list(columns) if columns is not None else [name for name, dtype in schema.items() if dtype != pl.Binary]
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
        if sort := list(sort):
            rows = rows.sort(sort, descending=descending, nulls_last=True)
        if limit is not None:
            rows = rows.head(limit)
        return rows.select(shown).collect()
    except pl.exceptions.PolarsError as error:
        raise QueryError(
            f"cannot evaluate {where!r}: {error}; write a condition such as: width >= 32 and status = 'ok'"
        ) from error


def missing_column(name: str, known: Iterable[str]) -> QueryError:
    """The error for rows that lack a column that `read` needs."""
    return QueryError(
        f"rows need the column {name!r} of scan() to be read, got columns {', '.join(known)}; keep it in select()"
    )
