"""What a column is to a reader of the page: an address, a setting of the run, an outcome, a measured value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from catalog.store import Zoo

ADDRESS = ("zoo", "variant", "model", "checkpoint", "run", "cell", "epoch", "step", "progress")
STATE = ("status", "reason", "stored", "split")
HIDDEN = ("crc32c",)  # says something to readers of weights alone
LOADS = ("width", "channels", "depth", "load")
TEMPERATURES = ("batch_size", "learning_rate", "lr", "temperature")
SMALL_IS_HOT = ("batch_size",)
OUTCOME = re.compile(r"(^|_)(loss|acc|accuracy|error|auc|score|gap|norm)s?(_|$)")
CELLS = 30  # distinct values of an axis; more are put into bins


def roles_of(zoo: Zoo, table: pl.DataFrame) -> dict[str, str]:
    """Role of each column the page has: address, state, setting, outcome or measured. Binary columns have none.

    A setting is the same on all rows of a run, and either the spec names it or its name does not sound like an outcome.
    """
    measured = {name for one in zoo.measurements().values() for name in one.columns}
    measured |= {f"{name}@{one.version}" for one in zoo.measurements().values() for name in one.columns}
    named = set(_keys(zoo.record.spec)) | {"load", "temperature"}
    names = [name for name, dtype in table.schema.items() if dtype != pl.Binary and name not in HIDDEN]
    varies = _varying_in_a_run(table, names)
    roles = {}
    for name in names:
        if name in ADDRESS:
            roles[name] = "address"
        elif name in STATE:
            roles[name] = "state"
        elif name in measured:
            roles[name] = "measured"
        elif name not in varies and (name in named or not OUTCOME.search(name.removesuffix("loss_function"))):
            roles[name] = "setting"
        else:
            roles[name] = "outcome"
    return roles


def axes_of(zoo: Zoo, table: pl.DataFrame, roles: Mapping[str, str]) -> dict[str, Any]:
    """Columns that can be axes of the map, which two to begin with, and which have their small values on top."""
    settings = [name for name, role in roles.items() if role == "setting"]
    varied = [name for name in settings if table[name].drop_nulls().n_unique() > 1]
    numbers = [name for name in varied if table[name].dtype.is_numeric() and name != "seed"]
    asked = [zoo.record.spec.get("load"), zoo.record.spec.get("temperature")]
    if not all(isinstance(name, str) and name in varied for name in asked):
        by_use = sorted(numbers, key=lambda name: _rank(table, name))
        x = next((name for name in LOADS if name in numbers), by_use[0] if by_use else None)
        rest = [name for name in by_use if x and name != x and not _same(table, x, name)]
        asked = [x, next((name for name in TEMPERATURES if name in rest), rest[0] if rest else None)]
    hot = [n for n in varied if n in SMALL_IS_HOT or (n == "temperature" and _same(table, "batch_size", n))]
    return {"choices": varied, "x": asked[0], "y": asked[1], "small_on_top": hot, "cells": CELLS}


def shown_first(table: pl.DataFrame, roles: Mapping[str, str]) -> list[str]:
    """Columns that the table shows before anybody chooses: at most twelve that say something."""
    varied = {name for name in roles if table[name].n_unique() > 1}
    settings = [name for name in roles if roles[name] == "setting" and name in varied]
    settings = [name for name in settings if not any(_same(table, other, name) for other in _before(settings, name))]
    outcomes = [name for name in roles if roles[name] == "outcome" and name in varied]
    outcomes.sort(key=lambda name: (not name.startswith("test"), "accuracy" not in name))
    measured = [n for n in roles if roles[n] == "measured" and n in varied and n.startswith("phase")][:1]
    wanted = ["run", *(["variant"] if "variant" in varied and not settings else []), "epoch", "status"]
    return [name for name in dict.fromkeys([*wanted, *measured, *settings[:4], *outcomes[:4]]) if name in roles]


def units_of(table: pl.DataFrame) -> dict[str, str]:
    """Units that are known for certain: of cross entropies, shares and epochs."""
    functions = table["loss_function"].drop_nulls().unique().to_list() if "loss_function" in table.columns else []
    units = {name: "share" for name in table.columns if re.search(r"(^|_)accuracy$", name)}
    if functions == ["cross_entropy"]:
        units |= {name: "nats" for name in table.columns if re.search(r"(^|_)loss$", name)}
    return units | {"mode_connectivity": "pp", "linear_barrier": "pp"}


def _keys(content: Any) -> Iterator[str]:
    """All keys of nested objects; a spec is nested at most `catalog.record.DEPTH` deep."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield str(key)
            yield from _keys(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _keys(value)


def _varying_in_a_run(table: pl.DataFrame, names: list[str]) -> set[str]:
    if table.is_empty():
        return set()
    most = table.group_by("run").agg(pl.col(n).n_unique() for n in names if n != "run").drop("run").max().row(0)
    return {name for name, count in zip((n for n in names if n != "run"), most, strict=True) if count > 1}


def _rank(table: pl.DataFrame, name: str) -> tuple[bool, int]:
    """Axes of few values go before others, the more of these few the better."""
    count = table[name].n_unique()
    return count > CELLS, -count


def _same(table: pl.DataFrame, one: str, other: str) -> bool:
    """Whether two columns of numbers say the same on every row."""
    if one not in table.columns or not all(table[name].dtype.is_numeric() for name in (one, other)):
        return False
    return table[one].cast(pl.Float64).equals(table[other].cast(pl.Float64), check_names=False)


def _before(names: list[str], name: str) -> list[str]:
    return names[: names.index(name)]
