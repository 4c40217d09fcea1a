"""How fast weights are written and read, against one `.pt` file a checkpoint and against zarr-python on the same bytes.

The sides alternate in one run, each ratio is of a pair, in wall time and in CPU time (of all threads). The `.pt` side
has at most 1,000 models and is scaled by the number of rows. Before it is timed, a side must give the right numbers.

    python -m benchmarks.storage [models [checkpoints [turns]]]
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import torch
import zarr

import catalog
from benchmarks.record import bar, record
from benchmarks.sides import PAIRS, alternate, ratio
from catalog.store import Zoo
from weightspace.layout import Layout

# an MLP 64-32-32-10: 3,466 weights, 1,024 of them in the layer in the middle
NAMES = ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")
LAYOUT = Layout(NAMES, ((32, 64), (32,), (32, 32), (32,), (10, 32), (10,)))
LAYER = "2.weight"
COLUMNS = slice(2080, 3104)
PICKS = 64
BATCHES = 8  # of so many models a turn, as somebody who trains on weights reads them
PT_MODELS = 1000
AGAINST = {"pt": "one .pt file a checkpoint", "zarr": "zarr-python, same bytes"}
WRITE, RANDOM, COLD = "write a zoo", "read 64 random models", "read 64 random models, cold"
SCAN, ONE_LAYER = "read one checkpoint of all models", "read one layer of all models"
BARS = {
    (WRITE, "pt"): 25, (RANDOM, "pt"): 50, (RANDOM, "zarr"): 30, (COLD, "pt"): 10, (SCAN, "pt"): 50,
    (ONE_LAYER, "pt"): 300,
}  # fmt: skip  # a table


def pt_path(folder: Path, model: int, checkpoint: int) -> Path:
    return folder / f"model_{model:05d}" / f"checkpoint_{checkpoint:03d}.pt"


def write_files(folder: Path, weights: np.ndarray) -> None:
    """A state dict a checkpoint, a folder a model, as the published zoos have them."""
    for model, lineage in enumerate(weights):
        pt_path(folder, model, 0).parent.mkdir(parents=True)
        for checkpoint, vector in enumerate(lineage):
            tensors = LAYOUT.unflatten(torch.from_numpy(vector))
            torch.save({name: t.clone() for name, t in tensors.items()}, pt_path(folder, model, checkpoint))


def read_files(folder: Path, models: list[int], checkpoint: int, layer: str | None = None) -> torch.Tensor:
    """(models, size), or the weights of one layer."""
    found = []
    for model in models:
        state = torch.load(pt_path(folder, model, checkpoint), weights_only=True)
        kept = state.values() if layer is None else [state[layer]]
        found.append(torch.cat([tensor.reshape(-1) for tensor in kept]))
    return torch.stack(found)


def write_zoo(path: Path, weights: np.ndarray) -> Zoo:
    variant = catalog.make_variant("mlp", LAYOUT, *weights.shape[:2])
    zoo = catalog.create(path, name="bench", variants=[variant])
    for _, shard in zoo.record.shards:
        inside = variant.grid.models(shard)
        run = [f"{model:016x}" for model in inside for _ in range(weights.shape[1])]
        epoch = list(range(weights.shape[1])) * len(inside)
        rows = pl.DataFrame({"run": run, "epoch": epoch, "status": "ok", "reason": "", "stored": True})
        catalog.write_shard(zoo, "mlp", shard, weights[inside.start : inside.stop], rows, {})
    return zoo


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def drop_cache(folder: Path) -> None:
    """Let the operating system forget the files of a folder; what is not on the disk yet is written first."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def compare(
    operation: str,
    setting: Mapping[str, object],
    sides: Mapping[str, tuple[Callable[[], object], float]],
    megabytes: float,
    repeats: int,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> None:
    """Time the sides in turn and record how many times the time of `zoo` each other one needs.

    Args:
        sides: name -> (what to time, its rows); ratios are of the times a row.
        megabytes: of weights that the side `zoo` reads or writes.
        before: name -> what is done before each turn, untimed.
    """
    seconds: dict[str, dict[str, list[float]]] = {"wall": {}, "cpu": {}}

    def timed(name: str) -> Callable[[], None]:
        def side() -> None:
            if before:
                before[name]()
            cpu, wall = time.process_time(), time.perf_counter()
            sides[name][0]()
            seconds["wall"].setdefault(name, []).append(time.perf_counter() - wall)
            seconds["cpu"].setdefault(name, []).append(time.process_time() - cpu)

        return side

    alternate({name: timed(name) for name in sides}, repeats)
    per_row = megabytes / sides["zoo"][1]
    speed = {
        name: {
            clock: round(per_row * sides[name][1] / statistics.median(s[name][1:]), 1) for clock, s in seconds.items()
        }
        for name in sides
    }
    for name in sides:
        if name == "zoo":
            continue
        clocks = {
            clock: ratio({n: s[1:] for n, s in taken.items()}, name, "zoo", sides[name][1], sides["zoo"][1])
            for clock, taken in seconds.items()
        }
        row = {
            "operation": operation,
            "setting": dict(setting),
            "ours": f"{1e3 * statistics.median(seconds['wall']['zoo'][1:]):.4g} ms, {speed['zoo']['wall']:,.0f} MB/s",
            "against": AGAINST[name],
            "theirs": f"{speed[name]['wall']:,.0f} MB/s",
            "ratio": {**clocks["wall"], "cpu": clocks["cpu"]["median"], "pairs": len(seconds["wall"][name]) - 1},
            **bar(clocks["wall"]["median"], BARS.get((operation, name))),
            "cpu_ratio": clocks["cpu"],
            "megabytes_per_second": speed,
            "sampled": f"{PT_MODELS} models at most as .pt files, scaled by rows",
        }
        record("storage", row)


def main(models: int = 10_000, checkpoints: int = 11, repeats: int = PAIRS) -> None:
    """All of it, in a temporary folder: 1.5 GB for 10,000 models of 11 checkpoints, and 0.2 GB of `.pt` files."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    weights = random.standard_normal((models, checkpoints, LAYOUT.size), dtype=np.float32)
    folder = Path(tempfile.mkdtemp())
    some, last = min(models, PT_MODELS), checkpoints - 1
    files, path = folder / "pt", folder / "bench.zoo"
    setting = {"models": models, "checkpoints": checkpoints, "size": LAYOUT.size}
    per_row = LAYOUT.size * 4 / 1e6
    try:
        write = {
            "pt": (lambda: write_files(files, weights[:some]), some * checkpoints),
            "zoo": (lambda: write_zoo(path, weights), models * checkpoints),
        }
        fresh = {"pt": lambda: _remove(files), "zoo": lambda: _remove(path)}
        compare(WRITE, setting, write, per_row * models * checkpoints, repeats, fresh)

        zoo = catalog.open(path)
        array = zarr.open_array(path / "weights" / "mlp", mode="r")
        table = zoo.scan().filter(pl.col("epoch") == last).collect()
        every, sample = list(range(some)), random.choice(models, (1 + repeats) * BATCHES * PICKS).reshape(-1, PICKS)
        chosen = [np.unique(picks).tolist() for picks in sample]  # other models each time
        tables = [table[picks] for picks in chosen]
        small = [(picks % some).tolist() for picks in sample]
        turns = {name: 0 for name in ("pt", "zarr", "zoo")}

        def turn(name: str) -> int:
            turns[name] += 1
            return turns[name] % len(chosen)

        assert np.array_equal(zoo.read(table[chosen[0]]), weights[chosen[0], last])
        assert np.array_equal(array.oindex[chosen[0], last], weights[chosen[0], last])
        assert np.array_equal(read_files(files, small[0], last), weights[small[0], last])
        picked = {
            "pt": (lambda: read_files(files, small[turn("pt")], last), PICKS),
            "zarr": (lambda: array.oindex[chosen[turn("zarr")], last], PICKS),
            "zoo": (lambda: zoo.read(tables[turn("zoo")]), PICKS),
        }

        def batches(read: Callable[[], object]) -> Callable[[], None]:
            def turn() -> None:
                for _ in range(BATCHES):  # each batch is gone before the next comes, as in a loop over them
                    read()

            return turn

        many = {name: (batches(read), BATCHES * rows) for name, (read, rows) in picked.items()}
        compare(RANDOM, {"batches": BATCHES, **setting}, many, BATCHES * PICKS * per_row, 2 * repeats)
        cold = {"pt": lambda: drop_cache(files), "zarr": lambda: drop_cache(path), "zoo": lambda: drop_cache(path)}
        for side in picked:
            turns[side] = 0
        compare(COLD, setting, picked, PICKS * per_row, repeats, cold)

        assert np.array_equal(zoo.read(table), weights[:, last])
        whole = {
            "pt": (lambda: read_files(files, every, last), some),
            "zarr": (lambda: array[:, last], models),
            "zoo": (lambda: zoo.read(table), models),
        }
        compare(SCAN, setting, whole, per_row * models, repeats)

        assert np.array_equal(zoo.read(table, tensors=[LAYER]), weights[:, last, COLUMNS])
        layer = {
            "pt": (lambda: read_files(files, every, last, LAYER), some),
            "zarr": (lambda: array[:, last, COLUMNS], models),
            "zoo": (lambda: zoo.read(table, tensors=[LAYER]), models),
        }
        megabytes = (COLUMNS.stop - COLUMNS.start) * 4 / 1e6 * models
        compare(ONE_LAYER, {"weights": 1024, **setting}, layer, megabytes, repeats)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
