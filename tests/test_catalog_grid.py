"""Grids cut arrays by bytes and lose no element; shard bytes are Zarr's; bfloat16 rounds as it should."""

from __future__ import annotations

import itertools
import json
import math
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from catalog import grid as grids
from catalog.grid import STORED_AS, Grid, array_metadata, encode_shard, from_stored, make_grid, to_stored

dtypes = st.sampled_from(sorted(STORED_AS))
MIB = 1 << 20


# --- cutting


@given(
    models=st.integers(1, 100_000),
    checkpoints=st.integers(1, 400),
    size=st.one_of(st.integers(1, 200), st.integers(1, 10**6), st.integers(1, 10**9)),
    dtype=dtypes,
)
@example(models=1, checkpoints=1, size=1, dtype="float16")
@example(models=10**5, checkpoints=1, size=1, dtype="float16")
@example(models=3, checkpoints=1, size=16 * MIB, dtype="float32")  # 64 MiB to the byte: still one file
@example(models=3, checkpoints=1, size=16 * MIB + 1, dtype="float32")
@example(models=33, checkpoints=7, size=130_000, dtype="float32")
@settings(max_examples=300)
def test_grids_keep_to_their_sizes(models: int, checkpoints: int, size: int, dtype: str) -> None:
    files = -(-size * checkpoints * 4 // (16 * MIB)) * models
    if files > grids.MAX_FILES // 4:
        return
    grid = make_grid(models, checkpoints, size, dtype)
    assert grid == make_grid(models, checkpoints, size, dtype)
    assert grid.shape == (models, checkpoints, size)
    assert [s % c for s, c in zip(grid.shard, grid.chunk, strict=True)] == [0, 0, 0]
    assert grid.chunk[0] <= 64
    assert math.prod(grid.chunk) * grid.itemsize <= 4 * MIB or grid.chunk == (1, 1, size)
    shard_bytes = math.prod(grid.shard) * grid.itemsize
    assert shard_bytes <= 64 * MIB or math.prod(grid.chunk[1:]) * checkpoints * grid.itemsize > 32 * MIB
    if models >= 8 * 64 and size * checkpoints * grid.itemsize < MIB:
        assert grid.num_shards >= 7  # work for several processes; eight, but for rounding up to whole chunks
    # every model, and every element of a vector, in exactly one place
    assert [m for s in range(min(grid.num_shards, 50)) for m in grid.models(s)] == list(
        range(min(models, 50 * grid.shard[0]))
    )
    assert grid.models(grid.num_shards - 1).stop == models
    assert len(grid.models(grid.num_shards - 1)) > 0
    parts = [part for _, part in grid.parts(0)]
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == size
    assert all(part.stop > part.start for part in parts)
    assert len({key for key, _ in grid.parts(0)}) == len(parts) == grid.num_parts


@pytest.mark.parametrize(("models", "checkpoints", "size"), [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1)])
def test_empty_arrays_are_refused(models: int, checkpoints: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        make_grid(models, checkpoints, size)


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="float32, float16, bfloat16, got 'float8'"):
        make_grid(1, 1, 1, "float8")


@pytest.mark.parametrize(
    ("shape", "chunk", "shard", "said"),
    [
        ((4, 2, 9), (3, 1, 9), (4, 2, 9), "not a multiple"),
        ((4, 2, 9), (2, 2, 9), (4, 2, 9), "one checkpoint"),
        ((4, 2, 9), (2, 1, 9), (4, 1, 9), "all checkpoints"),
        ((4, 2, 9), (0, 1, 9), (4, 2, 9), "positive"),
        ((4, 2, -9), (2, 1, 9), (4, 2, 9), "positive"),
        ((4, 2, True), (2, 1, 9), (4, 2, 9), "positive"),
        ((4, 2), (2, 1, 9), (4, 2, 9), "three"),
        ((2**48, 1, 9), (2**20, 1, 2**20), (2**20, 1, 2**20), "256 MiB"),
        ((2**48, 1, 9), (1, 1, 9), (1, 1, 9), "shard files"),
        ((1, 1, 2**48), (1, 1, 1), (1, 1, 1), "shard files"),
        ((1, 2**40, 9), (1, 1, 9), (1, 2**40, 9), "rows"),
        ((1, 1, 2**40), (1, 1, 1), (1, 1, 2**40), "chunks"),
    ],
)
def test_impossible_grids_are_refused(
    shape: tuple[int, int, int], chunk: tuple[int, int, int], shard: tuple[int, int, int], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Grid(shape, chunk, shard, "float32")


# --- bytes


def element_by_element(grid: Grid, path: Path) -> np.ndarray:
    """Read with stock zarr what `encode_shard` wrote of an array whose every element is another one."""
    count = math.prod(grid.shape)
    truth = np.arange(count, dtype=np.uint32).reshape(grid.shape)
    raw = truth.astype("<u2") if grid.itemsize == 2 else truth.view("<f4")  # small subnormals: exact, never NaN
    values = raw if grid.dtype != "float16" else raw.view("<f2")
    (path / "zarr.json").write_bytes(array_metadata(grid))
    for shard in range(grid.num_shards):
        models = grid.models(shard)
        for key, part in grid.parts(shard):
            (path / key).parent.mkdir(parents=True, exist_ok=True)
            (path / key).write_bytes(encode_shard(grid, values[models.start : models.stop, :, part]))
    array = zarr.open_array(path, mode="r")
    assert array.shape == grid.shape
    assert array.shards == grid.shard
    assert array.chunks == grid.chunk
    np.testing.assert_array_equal(np.asarray(array[:]).view("<u2" if grid.itemsize == 2 else "<u4"), truth)
    return np.asarray(array[:])


@pytest.mark.parametrize("dtype", sorted(STORED_AS))
@pytest.mark.parametrize(
    ("shape", "chunk", "shard"),
    [
        ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
        ((5, 3, 7), (2, 1, 7), (4, 3, 7)),
        ((4, 2, 6), (2, 1, 6), (4, 2, 6)),
        ((3, 2, 9), (1, 1, 2), (1, 2, 4)),
        ((2, 1, 9), (1, 1, 4), (1, 1, 12)),
    ],
)
def test_stock_zarr_reads_every_element(
    shape: tuple[int, int, int], chunk: tuple[int, int, int], shard: tuple[int, int, int], dtype: str, tmp_path: Path
) -> None:
    element_by_element(Grid(shape, chunk, shard, dtype), tmp_path)


@pytest.mark.parametrize("dtype", sorted(STORED_AS))
def test_stock_zarr_reads_grids_cut_by_bytes(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant, value in (("CHUNK_BYTES", 64), ("LONG_BYTES", 32), ("SHARD_BYTES", 128), ("SHARD_LIMIT", 256)):
        monkeypatch.setattr(grids, constant, value)
    for number, (models, checkpoints, size) in enumerate(itertools.product((1, 17, 40), (1, 3), (1, 5, 60))):
        path = tmp_path / str(number)
        path.mkdir()
        element_by_element(make_grid(models, checkpoints, size, dtype), path)
    assert make_grid(2, 3, 60, dtype).num_parts > 1


def test_metadata_is_plain_zarr() -> None:
    grid = make_grid(5, 2, 9, "bfloat16")
    content = json.loads(array_metadata(grid))
    assert content["data_type"] == "uint16"  # Zarr v3 has no bfloat16
    assert content["attributes"] == {"weightscape": {"dtype": "bfloat16"}}
    assert np.isnan(from_stored(np.array([content["fill_value"]], "<u2"), "bfloat16")).all()


# --- rounding

SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0**-149, -(2.0**-149), 2.0**-126, 3.3e38, 3.4028235e38]


def nearest_bfloat16(value: float) -> int:
    """Bits of the bfloat16 nearest to a float32, by definition: of the two around it the nearer, else the even one."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    down = bits >> 16
    if bits & 0x7F800000 == 0x7F800000 or not bits & 0xFFFF:
        return down

    def exact(half: int) -> Fraction:
        if half & 0x7FFF == 0x7F80:  # infinity counts as the next power of two
            return Fraction(2) ** 128 * (-1 if half & 0x8000 else 1)
        return Fraction(struct.unpack("<f", struct.pack("<I", half << 16))[0])

    below, above = abs(exact(down) - Fraction(value)), abs(exact(down + 1) - Fraction(value))
    return down if below < above or (below == above and down % 2 == 0) else down + 1


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=20))
@example([*(x for x in SPECIAL if x == x)])
@example([1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, 1.0 + 2.0**-8 + 2.0**-20])  # ties to even, and just above a tie
def test_bfloat16_is_the_nearest(values: list[float]) -> None:
    stored = to_stored(np.array(values, np.float32), "bfloat16")
    assert stored.dtype == np.dtype("<u2")
    assert stored.tolist() == [nearest_bfloat16(float(np.float32(value))) for value in values]


def test_bfloat16_as_torch() -> None:
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    bits[: 2**16] = np.arange(2**16, dtype=np.uint32) << 16  # every bfloat16
    bits[2**16 : 2**17] = (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000  # every tie
    values = np.concatenate([bits.view(np.float32), np.array(SPECIAL, np.float32)])
    stored = to_stored(values, "bfloat16")
    expected = torch.from_numpy(values).bfloat16()
    number = ~np.isnan(values)
    np.testing.assert_array_equal(stored[number], expected.view(torch.int16).numpy().view(np.uint16)[number])
    widened = from_stored(stored, "bfloat16")
    assert np.isnan(widened[~number]).all()
    np.testing.assert_array_equal(widened[number], expected.float().numpy()[number])


@pytest.mark.parametrize("dtype", sorted(STORED_AS))
@pytest.mark.parametrize("given_as", ["float16", "float32", "float64"])
def test_special_values_survive(dtype: str, given_as: str) -> None:
    values = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.5, -2.0], given_as)
    back = from_stored(to_stored(values, dtype), dtype)
    np.testing.assert_array_equal(back, values)
    np.testing.assert_array_equal(np.signbit(back[:2]), [False, True])


@pytest.mark.parametrize("dtype", sorted(STORED_AS))
def test_an_overflow_becomes_infinity_without_a_warning(dtype: str) -> None:
    assert np.isposinf(from_stored(to_stored(np.array([1e300]), dtype), dtype)).all()


def test_stored_bits_are_kept() -> None:
    bits = np.random.default_rng(1).integers(0, 2**32, 1000, dtype=np.uint32)
    np.testing.assert_array_equal(to_stored(bits.view(np.float32), "float32").view(np.uint32), bits)
    halves = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(to_stored(halves.view(np.float16), "float16").view(np.uint16), halves)
    numbers = halves[~np.isnan(from_stored(halves, "bfloat16"))]
    np.testing.assert_array_equal(to_stored(from_stored(numbers, "bfloat16"), "bfloat16"), numbers)
