"""How fast `verify` reads: MiB/s of a core, beside sha256 alone on the same bytes, of hot and packed zoos.

CPU time of the process over the bytes, so that a busy machine matters little; on one thread. sha256 of the files, the
least that anybody must do to check them, runs in turn with it.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import catalog
from benchmarks.record import record
from benchmarks.sides import ratio
from weightspace.layout import Layout

BAR = 200.0  # MiB/s a core
TURNS = 5
ZOOS = {
    "small": (20_000, 2, 500),
    "middle": (2_000, 10, 3_466),
    "large": (16, 2, 3_000_000),
    "split": (1, 2, 12_000_000),
}


def make(folder: Path, models: int, checkpoints: int, size: int) -> None:
    """A zoo of noise."""
    net = catalog.make_variant("net", Layout(("w",), ((size,),)), models=models, checkpoints=checkpoints)
    zoo = catalog.create(folder, name="noise", variants=[net])
    generator = np.random.default_rng(0)
    for shard in range(net.grid.num_shards):
        numbers = net.grid.models(shard)
        places = [(model, epoch) for model in numbers for epoch in range(checkpoints)]
        rows = pl.DataFrame(
            {
                "run": [f"run-{model}" for model, _ in places],
                "epoch": [epoch for _, epoch in places],
                **dict.fromkeys(("status", "reason"), "ok"),
                "stored": True,
                "accuracy": generator.random(len(places)),
            }
        )
        weights = generator.normal(size=(len(numbers), checkpoints, size)).astype(np.float32)
        catalog.write_shard(zoo, "net", shard, weights, rows, software={})
    catalog.rebuild_table(zoo)


def timed(call: Any) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(name: str, kind: str, folder: Path) -> None:
    """A row: how fast this zoo is verified."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20

    def hashed() -> None:
        for path in files:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

    def whole() -> None:
        assert catalog.verify(folder, workers=1).ok

    def quick() -> None:
        assert catalog.verify(folder, workers=1, quick=True).ok

    whole()
    turns = [(timed(hashed), timed(whole), timed(quick)) for _ in range(TURNS)]
    alone, ours, looks = zip(*turns, strict=True)
    speed = size / statistics.median(ours)
    record(
        "verifying",
        {
            "operation": f"verify, {kind}",
            "setting": {"zoo": name, "MiB": round(size), "files": len(files), "threads": 1},
            "ours": f"{speed:,.0f} MiB/s a core",
            "against": "sha256 of the files",
            "theirs": f"{size / statistics.median(alone):,.0f} MiB/s a core",
            "ratio": {**ratio({"sha256": alone, "ours": ours}, "sha256", "ours"), "pairs": TURNS},
            "bar": f">= {BAR:g} MiB/s a core",
            "met": speed >= BAR,
            "quick": f"{statistics.median(looks):.3f} s",
        },
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        for name, shape in ZOOS.items():
            folder = Path(place) / name
            make(folder, *shape)
            measure(name, "hot", folder)
            catalog.pack(folder, Path(place) / f"{name}-packed")
            measure(name, "packed", Path(place) / f"{name}-packed")


if __name__ == "__main__":
    main()
