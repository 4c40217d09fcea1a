"""A published zoo of 10,000 checkpoints on S3 (moto) and on `weightscape serve`: a query, and 64 random models.

Beside ours, on the same bytes and the same server: polars' own reader of URLs for queries, zarr-python over fsspec for
weights. The sides alternate; the servers, processes of their own, count requests and the bytes of their answers. Every
query begins with an empty cache and opens the zoo; weights are read by zoos and arrays that are open.

    python -m benchmarks.remote [runs [checkpoints [turns]]]
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import zarr
from zarr.storage import FsspecStore

import catalog
from benchmarks.record import record
from benchmarks.sides import PAIRS, compare, measure
from benchmarks.storage import LAYOUT, PICKS
from catalog.serve import serve
from catalog.store import Zoo

QUERY, RANDOM = "query a published zoo: a filter, two columns", "read 64 random models of a published zoo"
MOST_REQUESTS, MOST_BYTES, MOST_RATIO = 4, 1_000_000, 2.0
BUCKET = "lab-remote"
S3: dict[str, Any] = {"key": "k", "secret": "s", "client_kwargs": {"region_name": "x"}}
START = 60  # seconds a server may take


@dataclass(frozen=True)
class Where:
    """A published zoo on a server that counts; `setting` says what is in the zoo."""

    place: str
    url: str
    options: Mapping[str, Any]
    counts: Any
    setting: Mapping[str, int]
    turns: int


def write_zoo(path: Path, runs: int, checkpoints: int) -> Zoo:
    """MLPs 64-32-32-10 with the columns that a small phase diagram has; random weights."""
    random = np.random.default_rng(0)
    variant = catalog.make_variant("mlp", LAYOUT, runs, checkpoints)
    zoo = catalog.create(path, name="remote", variants=[variant])
    for _, shard in zoo.record.shards:
        models = len(variant.grid.models(shard))
        total = models * checkpoints
        first = variant.grid.models(shard).start
        weights = random.standard_normal((models, checkpoints, LAYOUT.size), dtype=np.float32)
        of_run = {
            "run": [f"{first + model:016x}" for model in range(models)],
            "learning_rate": 10.0 ** random.integers(-4, 0, models),
            "batch_size": 2 ** random.integers(3, 9, models),
            "width": 2 ** random.integers(3, 7, models),
            "seed": random.integers(0, 8, models),
        }
        columns = {name: np.repeat(np.array(values), checkpoints) for name, values in of_run.items()}
        columns |= {"epoch": np.tile(np.arange(checkpoints), models)}
        columns |= {
            name: random.random(total) for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
        }
        columns |= {"test_errors": np.array([random.bytes(45) for _ in range(total)], object)}
        rows = pl.DataFrame(columns, schema_overrides={"test_errors": pl.Binary}).with_columns(
            status=pl.lit("ok"), reason=pl.lit(""), stored=pl.lit(True)
        )
        catalog.write_shard(zoo, "mlp", shard, weights, rows, {})
    return zoo


def serve_s3(ready: Any, counts: Any) -> None:
    """An S3 server that counts requests and bytes of answers."""
    import logging

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = DomainDispatcherApplication(create_backend_app)

    def counting(environ: Any, start_response: Any) -> Iterator[bytes]:
        counts[0] += 1
        for part in application(environ, start_response):
            counts[1] += len(part)
            yield part

    server = make_server("127.0.0.1", 0, counting, threaded=True)
    ready.put(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()


def serve_web(folder: str, ready: Any, counts: Any) -> None:
    """`weightscape serve`, counting likewise."""

    def log(method: str, path: str, status: int, sent: int, *_: Any) -> None:
        counts[0] += 1
        counts[1] += sent

    serve(folder, port=0, on_ready=ready.put, log=log)


@contextmanager
def server(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[str, Any]]:
    """Its address, and [requests, bytes] so far."""
    context = multiprocessing.get_context("spawn")
    ready, counts = context.Queue(), context.Array("q", 2)
    process = context.Process(target=target, args=(*arguments, ready, counts), daemon=True)
    process.start()
    try:
        yield ready.get(timeout=START), counts
    finally:
        process.terminate()
        process.join()


@contextmanager
def caches() -> Iterator[Callable[[], None]]:
    """What makes the cache an empty one; they are removed at the end, outside what is timed."""
    with tempfile.TemporaryDirectory() as folder:
        number = count()

        def empty() -> None:
            os.environ["WEIGHTSCAPE_CACHE"] = f"{folder}/{next(number)}"

        empty()
        yield empty
    del os.environ["WEIGHTSCAPE_CACHE"]


def counted(counts: Any, side: Callable[[], object]) -> tuple[int, int]:
    """Requests and bytes of one call."""
    before = list(counts)
    side()
    return counts[0] - before[0], counts[1] - before[1]


def ask(rows: pl.LazyFrame) -> pl.DataFrame:
    return rows.filter(pl.col("test_accuracy") > 0.96).select("run", "width").collect()


def compare_queries(where: Where) -> None:
    with caches() as empty:

        def ours() -> pl.DataFrame:
            empty()
            return ask(catalog.open(where.url, **where.options).scan())

        zoo = catalog.open(where.url, **where.options)
        source, how = zoo.polars_source()

        def theirs() -> pl.DataFrame:
            return ask(pl.scan_parquet(source, storage_options=how or None).filter(pl.col("status") == "ok"))

        assert ours().equals(theirs())
        sides = {"polars": theirs, "zoo": ours, "again": lambda: ask(zoo.scan())}
        row = _row(QUERY, where, sides, "polars", "polars.scan_parquet")
    met = row["requests"] <= MOST_REQUESTS and row["bytes"] <= MOST_BYTES
    record(
        "remote", {**row, "bar": f"<= {MOST_REQUESTS} requests, <= {MOST_BYTES / 1e6:g} MB", "met": met}, ["obstore"]
    )


def compare_weights(where: Where) -> None:
    last = where.setting["checkpoints"] - 1
    with caches():
        zoo = catalog.open(where.url, **where.options)
        rows = zoo.scan().filter(pl.col("epoch") == last).collect()
        path = f"{where.url}/{zoo.record.digest[:12]}/weights/mlp"
        array = zarr.open_array(FsspecStore.from_url(path, dict(where.options), read_only=True), mode="r")
        random = np.random.default_rng(1)
        picks = (np.sort(random.choice(len(rows), PICKS, replace=False)) for _ in count())  # others each time
        same = next(picks)
        np.testing.assert_array_equal(zoo.read(rows[same]), array.oindex[same, last])
        sides = {"zarr": lambda: array.oindex[next(picks), last], "zoo": lambda: zoo.read(rows[next(picks)])}
        row = _row(RANDOM, where, sides, "zarr", "zarr-python, fsspec")
    of_rows = PICKS * LAYOUT.size * 4
    row |= {"bytes_of_rows": of_rows, "times_their_bytes": round(row["bytes"] / of_rows, 3)}
    met = row["bytes"] <= MOST_RATIO * of_rows
    record("remote", {**row, "bar": f"<= {MOST_RATIO:g}x their bytes", "met": met}, ["obstore"])


def _row(
    operation: str, where: Where, sides: Mapping[str, Callable[[], object]], other: str, against: str
) -> dict[str, Any]:
    found = {name: counted(where.counts, side) for name, side in sides.items()}
    turns = measure(sides, where.turns)

    def said(name: str) -> str:
        requests, size = found[name]
        return f"{1e3 * statistics.median(turns[name].wall):.0f} ms, {requests} requests, {size / 1e6:.2f} MB"

    return {
        "operation": operation,
        "setting": {"place": where.place, **where.setting},
        "ours": said("zoo"),
        "against": against,
        "theirs": said(other),
        "ratio": compare(turns, other, "zoo"),
        "requests": found["zoo"][0],
        "bytes": found["zoo"][1],
        **({"again": said("again")} if "again" in sides else {}),
    }


def main(runs: int = 910, checkpoints: int = 11, turns: int = PAIRS) -> None:
    """All of it, in a temporary folder of 0.3 GB, and 0.15 GB of memory of the S3 server."""
    folder = Path(tempfile.mkdtemp())
    setting = {"runs": runs, "checkpoints": checkpoints, "size": LAYOUT.size}
    try:
        catalog.publish(write_zoo(folder / "zoo", runs, checkpoints), folder / "site")
        with server(serve_s3) as (address, counts):
            options = {**S3, "endpoint_url": address}
            fsspec.filesystem("s3", **options).mkdir(BUCKET)
            filesystem = fsspec.filesystem("s3", **options)
            filesystem.put(f"{folder / 'site'}/", f"{BUCKET}/site/", recursive=True)
            _compare(Where("S3 (moto)", f"s3://{BUCKET}/site", options, counts, setting, turns))
        with server(partial(serve_web, os.fspath(folder / "site"))) as (address, counts):
            _compare(Where("weightscape serve", address.rstrip("/"), {}, counts, setting, turns))
    finally:
        shutil.rmtree(folder)


def _compare(where: Where) -> None:
    compare_queries(where)
    compare_weights(where)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
