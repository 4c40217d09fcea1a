"""One JSON line a measurement, with what it was measured on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

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


def record(name: str, row: Mapping[str, object]) -> None:
    """Print the row and append it to benchmarks/results/<name>.jsonl with date, device and versions."""
    versions = {library: version(library) for library in ("torch", "numba", "numpy", "zarr", "polars")}
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
    print(line)
