"""What `make bench` measured last, as `weightscape bench` shows it. Reads JSON lines and runs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from catalog.errors import FormatError, MissingDataError

COLUMNS = ("what", "ours", "against", "ratio (smallest to largest pair)", "device", "date")
NO_SETTING = {"operation", "setting", "ours", "against", "theirs", "bar", "met", "device", "date", "python", "seed"}


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """One comparison after the other, oldest first in each file: operation, setting, ours, against, ratio, machine.

    Raises:
        MissingDataError: no such folder. FormatError: a line that is no result.
    """
    if not folder.is_dir():
        raise MissingDataError(
            f"no benchmark results in {folder}: they belong to a checkout of the source, an installed package has none;"
            " clone the repository and run `make bench` there"
        )
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            try:
                if line.strip():
                    yield from _comparisons(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise FormatError(
                    f"{file}, line {number}: not a result of `make bench` ({type(error).__name__}: {error});"
                    " repair or delete the line"
                ) from error


def _comparisons(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a row compares; rows that name no operation, of experiments that find faults, say, have nothing to show."""
    if not isinstance(row, dict):
        raise TypeError("a row is a JSON object")
    if "operation" not in row:
        return
    settings = {k: v for k, v in row.items() if isinstance(v, int | str) and k not in NO_SETTING}
    settings = {k: v for k, v in settings.items() if not k.endswith(("_per_second", "seconds"))}
    rates = {k: v.get("wall") if isinstance(v, dict) else v for k, v in row.items() if k.endswith("_per_second")}
    speeds = [f"{v:,} {k.removesuffix('_per_second').replace('_', '-')}/s" for k, v in rates.items() if v is not None]
    shown = {
        "operation": str(row["operation"]),
        "setting": dict(row.get("setting", settings)),
        "ours": str(row.get("ours", ", ".join(speeds))),
        "against": str(row.get("against", "")),
        "theirs": str(row.get("theirs", "")),
        "ratio": _ratio(row["ratio"]) if "ratio" in row else None,
        "bar": str(row.get("bar", "")),
        "met": bool(row.get("met", True)),
        **{name: str(row[name]) for name in ("device", "date")},
    }
    named = {k.removeprefix("ratio_to_"): v for k, v in row.items() if k.startswith("ratio_to_")}
    for against, ratio in named.items():
        yield {**shown, "against": against, "ratio": _ratio(ratio.get("wall", ratio))}
    if not named:
        yield shown


def _ratio(found: dict[str, Any]) -> dict[str, float]:
    return {name: float(found[name]) for name in ("median", "low", "high")}


def latest(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest row of each operation, setting and side compared with, in the order in which they came."""
    newest: dict[str, dict[str, Any]] = {}
    for row in found:
        key = json.dumps([row[name] for name in ("operation", "setting", "against")], sort_keys=True)
        if key not in newest or row["date"] >= newest[key]["date"]:
            newest[key] = row
    return list(newest.values())


def cells(row: dict[str, Any]) -> list[str]:
    """What, ours, against what, ratio, device, date."""
    setting = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row["setting"].items())
    against = f"{row['against']}: {row['theirs']}" if row["theirs"] else row["against"]
    found, goal = row["ratio"], f"goal {row['bar']}: {'met' if row['met'] else 'missed'}" if row["bar"] else ""
    ratio = f"{found['median']:.3g}x ({found['low']:.3g} to {found['high']:.3g})" if found else ""
    what = f"{row['operation']} ({setting})" if setting else row["operation"]
    return [what, row["ours"], against, "; ".join(filter(None, (ratio, goal))), row["device"], row["date"]]
