"""What packing saves and costs, on weights that were really trained: sizes and CPU time, reading a packed zoo.

The codecs get the same chunks in turn in one run; MB/s are of raw weights and of CPU time, so that a busy machine
matters little.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numcodecs import blosc, zstd

import catalog
from benchmarks.record import record
from benchmarks.sides import alternate, ratio
from catalog.grid import Grid, make_grid, packed_grid, to_stored
from catalog.packed import decode_delta, decode_packed, encode_delta, encode_packed
from weightspace.layout import Layout
from zoo.plan import make_plan
from zoo.shards import groups
from zoo.spec import ZooSpec
from zoo.train import train

EPOCHS = 25
TURNS = 3
Codec = tuple[Callable[[np.ndarray], bytes], Callable[[bytes, np.ndarray], object]]


def trajectories(models: int, schedule: str) -> np.ndarray:
    """Weights (models, epochs 0 to 25, 3466) of MLPs 64-32-32-10 on digits at two learning rates."""
    spec = ZooSpec(
        "packing",
        numbers={"depth": 2, "width": 32, "activation": "relu"},
        hyperparameters={"epochs": EPOCHS, "batch_size": 32, "schedule": schedule},
        axes={"learning_rate": (0.03, 0.1)},
        seeds=tuple(range(models // 2)),
        checkpoints=tuple(range(EPOCHS + 1)),
    )
    plan = make_plan(spec)
    (runs,) = plan.runs.values()
    return np.concatenate([train(group, plan.data).weights.numpy() for group in groups(runs)])


def codecs(grid: Grid) -> dict[str, Codec]:
    """How to make bytes of the values of a chunk, and the values again."""
    size = grid.itemsize
    whole = replace(grid, shape=grid.chunk, shard=grid.chunk)

    def plain(data: bytes, out: np.ndarray) -> None:
        blosc.decompress(data, out)

    def with_delta(data: bytes, out: np.ndarray) -> None:
        bits = np.empty(out.shape, f"u{size}")
        blosc.decompress(data, bits)
        out[:] = decode_delta(bits).view(out.dtype)

    return {
        "zstd-3": (lambda x: zstd.compress(x, 3), lambda data, out: zstd.decompress(data, out)),
        "blosc bit-shuffle zstd-5": (lambda x: blosc.compress(x, b"zstd", 5, 2, 0, size), plain),
        "delta, bit-shuffle zstd-5": (lambda x: blosc.compress(encode_delta(x), b"zstd", 5, 2, 0, size), with_delta),
        "delta, bit-shuffle lz4": (lambda x: blosc.compress(encode_delta(x), b"lz4", 5, 2, 0, size), with_delta),
        "delta, byte-shuffle zstd-5": (
            lambda x: blosc.compress(encode_delta(x), b"zstd", 5, 1, size << 17, size),
            with_delta,
        ),
        "packed": (
            lambda x: encode_packed(whole, x),
            lambda data, out: np.copyto(out, decode_packed(whole, data, out.shape, "here")),
        ),
    }


def sizes(weights: np.ndarray, what: str, dtype: str, schedule: str) -> None:
    """Ratio and speed of each codec, chunk by chunk as a packed zoo is cut; every chunk is compared with its source."""
    grid = packed_grid(make_grid(*weights.shape, dtype))
    stored = to_stored(weights, dtype)
    together = grid.chunk[0]
    full = len(weights) // together * together  # no padding, which compresses to nothing
    chunks = [np.ascontiguousarray(stored[start : start + together]) for start in range(0, full, together)]
    raw = sum(chunk.nbytes for chunk in chunks)
    sides = codecs(grid)
    encoding: dict[str, list[float]] = {name: [] for name in sides}
    decoding: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, int] = {}
    out = np.empty_like(chunks[0])
    for turn in range(TURNS):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            encode, decode = sides[name]
            begin = time.process_time()
            coded = [encode(chunk) for chunk in chunks]
            middle = time.process_time()
            for data in coded:
                decode(data, out)
            encoding[name].append(middle - begin)
            decoding[name].append(time.process_time() - middle)
            found[name] = sum(map(len, coded))
            assert out.tobytes() == chunks[-1].tobytes()
    results = {
        name: {
            "times_smaller": round(raw / found[name], 3),
            "encode_megabytes_per_second": round(raw / 1e6 / statistics.median(encoding[name])),
            "decode_megabytes_per_second": round(raw / 1e6 / statistics.median(decoding[name])),
        }
        for name in sides
    }
    own = results["packed"]
    coded, decoded = (own[f"{way}_megabytes_per_second"] for way in ("encode", "decode"))
    row = {
        "operation": f"packed size: {what}",
        "setting": {"models": full, "dtype": dtype, "schedule": schedule},
        "ours": f"{own['times_smaller']}x smaller than raw; {coded} MB/s to write, {decoded} to read",
        "against": "other codecs",
        "theirs": ", ".join(f"{name} {one['times_smaller']}x" for name, one in results.items() if name != "packed"),
        "chunk": grid.chunk,
        "codecs": results,
    }
    record("packing", row)


def zoos(weights: np.ndarray, picks: int = 64) -> None:
    """`catalog.pack` and `catalog.unpack` of a whole zoo, and reading it packed against reading it hot. Warm cache."""
    models, checkpoints, size = weights.shape
    layout = Layout(("w",), ((size,),))
    with tempfile.TemporaryDirectory() as folder:
        hot, packed = Path(folder, "hot"), Path(folder, "packed")
        zoo = catalog.create(hot, name="bench", variants=[catalog.make_variant("v", layout, models, checkpoints)])
        grid = zoo.record.variants["v"].grid
        for shard in range(grid.num_shards):
            inside = grid.models(shard)
            rows = pl.DataFrame(
                {
                    "run": [f"{m:08}" for m in inside for _ in range(checkpoints)],
                    "epoch": list(range(checkpoints)) * len(inside),
                    "status": "ok",
                    "reason": "",
                    "stored": True,
                }
            )
            catalog.write_shard(zoo, "v", shard, weights[inside.start : inside.stop], rows, {})
        begin = time.process_time()
        made = catalog.pack(hot, packed)
        middle = time.process_time()
        catalog.unpack(packed, Path(folder, "back"))
        took = {"pack": middle - begin, "unpack": time.process_time() - middle}
        speeds = {f"{name}_megabytes_per_second": round(weights.nbytes / 1e6 / spent) for name, spent in took.items()}
        setting = {"models": models, "checkpoints": checkpoints, "size": size}
        told = ", ".join(f"{name} {speeds[f'{name}_megabytes_per_second']} MB/s" for name in took)
        row = {"operation": "pack a zoo", "setting": setting, "ours": f"{made.ratio:.3f}x smaller than raw; {told}"}
        record("packing", {**row, "times_smaller": round(made.ratio, 3), **speeds})
        chosen = np.random.default_rng(0).choice(models, picks, replace=False).tolist()
        sides = {"hot": catalog.open(hot), "packed": catalog.open(packed)}
        table = sides["hot"].scan().filter(pl.col("epoch") == checkpoints - 1).collect()
        for what, rows in ((f"{picks} random models", table[chosen]), ("one checkpoint of all", table)):
            seconds = alternate({name: lambda zoo=zoo, rows=rows: zoo.read(rows) for name, zoo in sides.items()})
            took = {name: round(statistics.median(spent) * 1e3, 2) for name, spent in seconds.items()}
            shown = {
                "ours": f"{took['packed']} ms",
                "against": "the same zoo hot",
                "theirs": f"{took['hot']} ms",
                "ratio": ratio(seconds, "hot", "packed"),
            }
            record("packing", {"operation": f"read a packed zoo: {what}", "setting": setting, **shown})


def main() -> None:
    """All of them."""
    torch.set_num_threads(1)
    for schedule in ("constant", "cosine"):
        weights = trajectories(512, schedule)
        for dtype in ("float32", "float16", "bfloat16") if schedule == "cosine" else ("float32",):
            sizes(weights[:, -1:], "final checkpoints", dtype, schedule)
            sizes(weights[:128], "every epoch", dtype, schedule)
            sizes(weights[:, -8:], "last 8 epochs", dtype, schedule)
    sizes(weights[:48, -1:], "final checkpoints, small shards", "float32", schedule)
    zoos(weights)


if __name__ == "__main__":
    main()
