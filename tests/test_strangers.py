"""A published zoo opened by tools that know nothing of us: zarr, tensorstore, polars, DuckDB, pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pytest
import zarr

import catalog
from catalog.grid import from_stored
from catalog.serve import Serving
from catalog.store import Zoo
from tests.catalog_zoos import fill, long, net
from tests.servers import put

Published = dict[str, tuple[Zoo, Path, str]]
DTYPES = ("float32", "float16", "bfloat16")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    """A published zoo of each stored type, opened, with the folder of its files and their URL on `weightscape serve`.

    Two variants, one of them with vectors that are split.
    """
    found = {}
    with ExitStack() as stack:
        for dtype in DTYPES:
            folder = tmp_path_factory.mktemp(dtype)
            zoo, _ = fill(folder / "zoo", net(dtype=dtype), long(dtype=dtype))
            catalog.split(zoo)
            catalog.publish(zoo, folder / "pub")
            zoo, url = catalog.open(folder / "pub"), stack.enter_context(Serving(folder / "pub"))
            found[dtype] = zoo, Path(zoo.folder.root), f"{url.rstrip('/')}/{zoo.record.digest[:12]}"
        yield found


def truth(zoo: Zoo, variant: str) -> np.ndarray:
    """(models, checkpoints, size) as `read` gives them; NaN where there are no weights."""
    rows = zoo.scan(None).filter(pl.col("stored"), pl.col("variant") == variant).collect()
    whole = np.full(zoo.record.variant(variant).grid.shape, np.nan, np.float32)
    whole[rows["model"].to_numpy(), rows["checkpoint"].to_numpy()] = zoo.read(rows, dtype="float32")
    return whole


def same(zoo: Zoo, variant: str, array: Any) -> None:
    """What a stranger reads is what we read; bfloat16 are bits to them."""
    whole = np.asarray(array)
    assert whole.dtype == {"bfloat16": "uint16"}.get(zoo.record.dtype, zoo.record.dtype)
    np.testing.assert_array_equal(from_stored(whole, zoo.record.dtype).astype(np.float32), truth(zoo, variant))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_opens_the_folder(published: Published, dtype: str) -> None:
    zoo, folder, _url = published[dtype]
    group: Any = zarr.open(folder, mode="r")
    assert group.metadata.consolidated_metadata is not None
    assert sorted(name for name, _ in group["weights"].arrays()) == ["long", "net"]
    for name in zoo.record.variants:
        array = group[f"weights/{name}"]
        same(zoo, name, array[:])
        np.testing.assert_array_equal(np.asarray(array[1:3, :, 4:7]), np.asarray(array[:])[1:3, :, 4:7])


def test_bits_of_bfloat16_widen_as_the_readme_says(published: Published) -> None:
    zoo, folder, _url = published["bfloat16"]
    group: Any = zarr.open(folder, mode="r")
    bits = np.asarray(group["weights/net"][:])
    widened = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(widened, truth(zoo, "net"))


def test_zarr_opens_it_far_away(published: Published) -> None:
    zoo, _folder, url = published["float32"]
    group: Any = zarr.open(url, mode="r")
    for name in zoo.record.variants:
        same(zoo, name, group[f"weights/{name}"][:])


def test_zarr_opens_it_on_s3(published: Published, bucket: str, s3_options: dict[str, Any]) -> None:
    zoo, folder, _url = published["float32"]
    put(folder, f"{bucket}/far", **s3_options)
    group: Any = zarr.open(f"{bucket}/far", mode="r", storage_options=s3_options)
    same(zoo, "net", group["weights/net"][:])
    options = {
        "aws_endpoint_url": s3_options["endpoint_url"], "aws_access_key_id": "k", "aws_secret_access_key": "s",
        "aws_region": "x", "aws_allow_http": "true",
    }  # fmt: skip
    table = pl.scan_parquet(f"{bucket}/far/{table_of(zoo)}", storage_options=options)
    same_rows(zoo, table.collect())


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensorstore_opens_the_arrays(published: Published, dtype: str) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    zoo, folder, url = published[dtype]
    for name in zoo.record.variants:
        for kvstore in (
            {"driver": "file", "path": f"{folder}/weights/{name}/"},
            {"driver": "http", "base_url": f"{url}/weights/{name}/"},
        ):
            opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
            assert opened.domain.labels == ("models", "checkpoints", "size")
            same(zoo, name, opened.read().result())


def table_of(zoo: Zoo) -> str:
    assert zoo.folder.manifest is not None
    return zoo.folder.manifest.columns.path


def same_rows(zoo: Zoo, table: pl.DataFrame) -> None:
    """A table with its measured columns, as `scan` gives it, but for the name of the zoo."""
    ours = zoo.scan(None).drop("zoo").collect()
    assert set(table.columns) == set(ours.columns) >= {"split", "accuracy", "bits", "run"}
    assert table.select(ours.columns).equals(ours)


def test_polars_scans_the_table(published: Published) -> None:
    zoo, folder, url = published["float32"]
    name = table_of(zoo)
    for source in (folder / name, f"{url}/{name}"):
        same_rows(zoo, pl.scan_parquet(source).collect())
        some = pl.scan_parquet(source).filter(pl.col("accuracy") > 0.3).select("run").collect()
        assert some.equals(zoo.scan(None).filter(pl.col("accuracy") > 0.3).select("run").collect())


def test_duckdb_asks_the_table(published: Published) -> None:
    duckdb = pytest.importorskip("duckdb")
    zoo, folder, _url = published["float32"]
    with duckdb.connect() as connection:
        found = connection.execute(
            "select split, count(distinct run), max(accuracy) from read_parquet(?) where status = 'ok' group by split "
            "order by split",
            [str(folder / table_of(zoo))],
        ).fetchall()
    ours = zoo.scan().group_by("split").agg(pl.col("run").n_unique(), pl.col("accuracy").max()).sort("split").collect()
    assert found == ours.rows()
    assert len(found) == 3


def test_pyarrow_reads_the_table(published: Published) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    zoo, folder, url = published["float32"]
    name = table_of(zoo)
    same_rows(zoo, pl.DataFrame(parquet.read_table(folder / name)))
    with fsspec.open(f"{url}/{name}", "rb") as file:
        some = parquet.ParquetFile(file).read(columns=["run", "crc32c"])
    assert pl.DataFrame(some).equals(zoo.scan(None).select("run", "crc32c").collect())
