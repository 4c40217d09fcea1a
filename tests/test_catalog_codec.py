"""The codec of packed zoos: it loses no bit, stock zarr and we read each other, versions to come are refused."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numcodecs import blosc
from zarr.codecs import BytesCodec

from catalog import grid as grids
from catalog.codec import DeltaCodec
from catalog.errors import FormatError
from catalog.grid import (
    CODEC,
    PACKED,
    Grid,
    array_metadata,
    make_grid,
    packed_grid,
)
from catalog.packed import decode_delta, decode_packed, encode_delta, encode_packed
from tests.packed_values import GRID, MIB, ROOT, SPECIAL, bits_of, dtypes, same_bits

# --- the codec


def coded_by_the_page(bits: list[int], width: int) -> list[int]:
    """One model's element at all checkpoints, by the three steps of FORMAT.md, in plain integers."""
    top = 1 << (width - 1)
    keys = [b if b < top else b ^ (top - 1) for b in bits]
    differences = [(key - before) % (2 * top) for before, key in zip([0, *keys], keys, strict=False)]
    return [2 * d if d < top else 2 * (2 * top - d) - 1 for d in differences]


@given(st.sampled_from([16, 32]), st.data())
def test_the_codec_is_the_one_of_the_page(width: int, data: st.DataObject) -> None:
    pattern = st.one_of(st.integers(0, 2**width - 1), st.sampled_from([n % 2**width for n in SPECIAL]))
    bits = data.draw(st.lists(pattern, min_size=1, max_size=12))
    values = np.array(bits, f"u{width // 8}")
    coded = encode_delta(values, 0)
    assert coded.tolist() == coded_by_the_page(bits, width)
    assert decode_delta(coded, 0).tolist() == bits


@given(dtypes, st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1), st.data())
def test_the_codec_is_a_bijection(dtype: str, shape: list[int], seed: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    values = bits_of(tuple(shape), dtype, seed)
    before = values.copy()
    coded = encode_delta(values, axis)
    assert coded.shape == values.shape
    assert same_bits(decode_delta(coded, axis).view(values.dtype), values)
    assert same_bits(encode_delta(decode_delta(values.view(coded.dtype), axis), axis), values)  # and onto
    assert same_bits(values, before)  # which stay as they were


@pytest.mark.parametrize("width", [2, 4])
def test_keys_have_the_order_of_the_floats(width: int) -> None:
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    if width == 4:
        values = np.random.default_rng(0).integers(0, 2**32, 10**5, dtype=np.uint32).view(np.float32)
    values = np.sort(values[np.isfinite(values)])
    pairs = np.stack([values[:-1], values[1:]])
    upward = encode_delta(pairs, 0)[1]
    assert (upward[pairs[0] < pairs[1]] % 2 == 0).all()  # even: not negative
    values = values[:-1]  # the last is followed by infinity
    close = np.stack([values, np.nextafter(values, values.dtype.type(np.inf))])
    assert (encode_delta(close, 0)[1][values != 0] <= 2).all()


# --- shards


@st.composite
def packed_grids(draw: st.DrawFn) -> Grid:
    """Chunks and shards that stand over the array's edges, and that do not."""
    models, checkpoints, size = draw(st.integers(1, 7)), draw(st.integers(1, 4)), draw(st.integers(1, 40))
    m, p = draw(st.integers(1, 3)), draw(st.integers(1, 17))
    shard = m * draw(st.integers(1, 3)), checkpoints, p * draw(st.integers(1, 3))
    return Grid((models, checkpoints, size), (m, checkpoints, p), shard, draw(dtypes), PACKED)


def files_of(grid: Grid, values: np.ndarray) -> dict[str, bytes]:
    blocks = [(s, key, part) for s in range(grid.num_shards) for key, part in grid.parts(s)]
    return {
        key: encode_packed(grid, values[grid.models(s).start : grid.models(s).stop, :, part]) for s, key, part in blocks
    }


@given(packed_grids(), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_stock_zarr_and_we_read_each_other(grid: Grid, seed: int) -> None:
    values = bits_of(grid.shape, grid.dtype, seed)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours"), Path(folder, "theirs")
        for key, data in files_of(grid, values).items():
            (ours / key).parent.mkdir(parents=True, exist_ok=True)
            (ours / key).write_bytes(data)
        theirs.mkdir()
        for path in (ours, theirs):
            (path / "zarr.json").write_bytes(array_metadata(grid))
        read = zarr.open_array(ours, mode="r")[:]
        assert isinstance(read, np.ndarray)
        assert same_bits(read, values)
        with zarr.config.set({"array.write_empty_chunks": True}):
            zarr.open_array(theirs, mode="r+")[:] = values
        for shard in range(grid.num_shards):
            models = grid.models(shard)
            for key, part in grid.parts(shard):
                block = values[models.start : models.stop, :, part]
                found = decode_packed(grid, (theirs / key).read_bytes(), block.shape, "there")
                assert same_bits(found, block)
                assert chunks_of(grid, ours / key) == chunks_of(grid, theirs / key)  # padding and settings too


def chunks_of(grid: Grid, path: Path) -> list[bytes]:
    """The bytes of each chunk of a shard file, whose order zarr may choose."""
    data, count = path.read_bytes(), math.prod(grid.chunks_per_shard)
    index = np.frombuffer(data[-4 - 16 * count : -4], "<u8").reshape(count, 2).tolist()
    return [data[offset : offset + length] for offset, length in index if offset != grids.ABSENT]


def test_packing_gives_the_same_bytes_each_time() -> None:
    """Also where blosc has threads, which would write blocks as they finish."""
    grid = Grid((1, 8, 1 << 17), (1, 8, 1 << 17), (1, 8, 1 << 17), "float32", PACKED)  # eight blocks
    values = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    values[:, ::2] = 0  # which take less time than the others
    threads = blosc.set_nthreads(4)
    try:
        assert len({encode_packed(grid, values) for _ in range(6)}) == 1
    finally:
        blosc.set_nthreads(threads)


@given(st.integers(1, 20_000), st.integers(1, 400), st.one_of(st.integers(1, 10**4), st.integers(1, 10**8)), dtypes)
@example(10_000, 11, 3466, "float32")
@example(3, 1, 16 * MIB + 1, "float32")
@example(2, 26, 300_007, "float32")  # a prime
@example(97, 26, 3466, "float32")  # shards of a number with few divisors
def test_packed_grids_keep_to_their_sizes(models: int, checkpoints: int, size: int, dtype: str) -> None:
    if size * checkpoints * 4 // (16 * MIB) * models > grids.MAX_FILES // 4:
        return
    hot = make_grid(models, checkpoints, size, dtype)
    grid = packed_grid(hot)
    assert (grid.shape, grid.shard[0], grid.num_shards) == (hot.shape, hot.shard[0], hot.num_shards)
    assert math.prod(grid.chunk) * grid.itemsize <= 4 * MIB
    assert grid.chunk[0] <= 64
    lineage = checkpoints * size * grid.itemsize
    if lineage > 4 * MIB:  # as few chunks as that allows, or nearly
        assert math.prod(grid.chunk) * grid.itemsize > 1.9 * MIB
    assert [part.stop for _, part in grid.parts(0)][-1] == size


# --- in zarr


def test_zarr_finds_the_codec() -> None:
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["zarr.codecs"]
    assert entries == {CODEC["name"]: f"{DeltaCodec.__module__}:{DeltaCodec.__name__}"}
    from zarr.registry import get_codec_class

    assert get_codec_class(CODEC["name"]) is DeltaCodec


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ({"version": 2, "axis": 1}, "version 2; this weightscape reads version 1: install a newer"),
        ({"version": True, "axis": 1}, "install a newer"),
        ({"axis": 1}, "a version and an axis"),
        ({"version": 1, "axis": 1, "order": 2}, "a version and an axis"),
        ({}, "a version and an axis"),
        ({"version": 1, "axis": -1}, "axis of"),
        ({"version": 1, "axis": 3}, "along axis 3"),
    ],
)
def test_codecs_of_the_future_are_refused(configuration: Any, said: str, tmp_path: Path) -> None:
    metadata = json.loads(array_metadata(GRID))
    metadata["codecs"][0]["configuration"]["codecs"][0]["configuration"] = configuration
    (tmp_path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(FormatError, match=said):
        zarr.open_array(tmp_path, mode="r")[:]


def test_the_codec_in_arrays_of_other_kinds(tmp_path: Path) -> None:
    """Any axis of any array of 2 or 4 bytes, big-endian in memory too; others are refused."""
    values = bits_of((5, 7), "float32", 3)
    for axis, endian in itertools.product((0, 1), ("little", "big")):
        path = tmp_path / f"{axis}{endian}"
        bits = BytesCodec(endian=endian)
        settings: dict[str, Any] = {"filters": [DeltaCodec(axis)], "serializer": bits, "compressors": None}
        zarr.create_array(path, shape=(5, 7), chunks=(2, 3), dtype="float32", **settings)[:] = values
        assert same_bits(np.asarray(zarr.open_array(path, mode="r")[:], np.float32), values)
        first = np.frombuffer((path / "c/0/0").read_bytes(), "<u4" if endian == "little" else ">u4").reshape(2, 3)
        assert np.array_equal(first, encode_delta(values[:2, :3], axis))
    with pytest.raises(FormatError, match="numbers of 2 or 4 bytes"):
        zarr.create_array(tmp_path / "double", shape=(5, 7), dtype="float64", filters=[DeltaCodec(1)])
