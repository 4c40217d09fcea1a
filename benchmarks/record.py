"""One JSON line a measurement, with what it was measured on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("torch", "numba", "numpy", "zarr", "polars")
RESULTS = Path(__file__).resolve().parent / "results"


def device() -> str:
    """The processor's name and the cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def bar(found: float, least: float | None = None, most: float | None = None) -> dict[str, object]:
    """What a row says of a goal: what was to be reached, and whether it was; nothing where there is none."""
    if least is not None:
        return {"bar": f">= {least:g}x", "met": found >= least}
    return {"bar": f"< {most:g} s", "met": found < most} if most is not None else {}


def record(name: str, row: Mapping[str, object], libraries: Iterable[str] = ()) -> None:
    """Print the row and append it to benchmarks/results/<name>.jsonl with date, device and versions.

    For `weightscape bench --summary` a row has an operation (text), a setting (names and numbers: a later row of equal
    operation, setting and `against` replaces it), and as far as they apply ours (how fast, as text), against (what),
    theirs (how fast that is) and ratio (median, low, high).

    Args:
        libraries: further ones whose versions matter.
    """
    versions = {library: version(library) for library in (*LIBRARIES, *libraries) if find_spec(library)}
    whole = {
        **row,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device(),
        "python": sys.version.split()[0],
        "versions": versions,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    line = json.dumps(whole)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)
