"""How a variant's array is cut into chunks and shards, and the bytes of a shard (Zarr v3 sharding, raw chunks)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np

CHUNK_BYTES = 1 << 20  # zarr-python costs ~0.2 ms an inner chunk, so chunks hold many small models
LONG_BYTES = 4 << 20  # a longer vector is split
SHARD_BYTES = 32 << 20
SHARD_LIMIT = 64 << 20
MAX_ROWS = 1 << 18  # of a shard: its fragment is read whole
MAX_FILES = 1 << 20  # of an array
MAX_CHUNKS = 1 << 20  # of a shard file: its index is read whole
ABSENT = 2**64 - 1  # offset and length of a chunk that lies outside the array (Zarr v3 sharding)
STORED_AS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}  # Zarr v3 has no bfloat16: its bits as uint16
DATA_TYPE = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
BFLOAT16_NAN = 0x7FC0
TIERS = HOT, PACKED = "hot", "packed"
CODEC: dict[str, Any] = {
    "name": "weightscape.delta",
    "version": 1,
}  # of a packed array: this and all that follows it in `zarr.json`
PACKED_LIMIT = 16 << 20  # of a packed chunk, which is decoded whole: a few bytes can claim to hold this much


@dataclass(frozen=True)
class Grid:
    """Shape of an array (models, checkpoints, size) and of its chunks and shards.

    A task is a block of `shard[0]` models with all their checkpoints. It is one Zarr shard file, or several along the
    last axis when a single model's checkpoints pass 64 MiB.

    Args:
        tier: "hot" for raw chunks of one checkpoint, "packed" for compressed chunks of all checkpoints.
    """

    shape: tuple[int, int, int]
    chunk: tuple[int, int, int]
    shard: tuple[int, int, int]
    dtype: str
    tier: str = HOT

    def __post_init__(self) -> None:
        if self.dtype not in STORED_AS:
            raise ValueError(f"dtype must be one of {', '.join(STORED_AS)}, got {self.dtype!r}")
        for name, value in (("shape", self.shape), ("chunk", self.chunk), ("shard", self.shard)):
            if len(value) != 3 or not all(type(n) is int and 1 <= n <= 2**48 for n in value):
                raise ValueError(f"{name} must be three positive integers, got {value!r}")
        if any(s % c for s, c in zip(self.shard, self.chunk, strict=True)):
            raise ValueError(f"shard {self.shard} is not a multiple of chunk {self.chunk}")
        if self.tier not in TIERS:
            raise ValueError(f"tier must be one of {', '.join(TIERS)}, got {self.tier!r}")
        held = {HOT: (1, "one checkpoint"), PACKED: (self.shape[1], "all checkpoints of its models when packed")}
        if self.chunk[1] != held[self.tier][0] or self.shard[1] != self.shape[1]:
            raise ValueError(f"a chunk holds {held[self.tier][1]}, a shard all checkpoints of its models")
        limit = PACKED_LIMIT if self.tier == PACKED else 256 << 20
        if math.prod(self.chunk) * self.itemsize > limit:
            raise ValueError(f"chunk {self.chunk} is larger than {limit >> 20} MiB")
        if (rows := self.shard[0] * self.shard[1]) > MAX_ROWS:
            raise ValueError(f"a shard has at most {MAX_ROWS:,} rows, {self.shard} has {rows:,}")
        # these bound what a reader of a hostile zoo.json would list or allocate
        if (files := self.num_shards * self.num_parts) > MAX_FILES:
            raise ValueError(
                f"an array has at most {MAX_FILES:,} shard files, {self.shape} in {self.shard} has {files:,}"
            )
        if (chunks := math.prod(self.chunks_per_shard)) > MAX_CHUNKS:
            raise ValueError(
                f"a shard file has at most {MAX_CHUNKS:,} chunks, {self.shard} of {self.chunk} has {chunks:,}"
            )

    @property
    def itemsize(self) -> int:
        return np.dtype(STORED_AS[self.dtype]).itemsize

    @property
    def num_shards(self) -> int:
        return -(-self.shape[0] // self.shard[0])

    @property
    def num_parts(self) -> int:
        """Files of a shard."""
        return -(-self.shape[2] // self.shard[2])

    def models(self, shard: int) -> range:
        """The models (positions on the first axis) of a shard."""
        start = shard * self.shard[0]
        return range(start, min(start + self.shard[0], self.shape[0]))

    def parts(self, shard: int) -> Iterator[tuple[str, slice]]:
        """Zarr key of each file of a shard, and the part of the vector it holds."""
        for part in range(self.num_parts):
            start = part * self.shard[2]
            yield f"c/{shard}/0/{part}", slice(start, min(start + self.shard[2], self.shape[2]))

    @property
    def chunks_per_shard(self) -> tuple[int, int, int]:
        a, b, c = (s // k for s, k in zip(self.shard, self.chunk, strict=True))
        return a, b, c


def make_grid(models: int, checkpoints: int, size: int, dtype: str = "float32") -> Grid:
    """Cut an array by bytes: chunks of 1 MiB and at most 64 models, shards of 32 MiB, eight of them where models allow.

    A function of its arguments only, so that every machine cuts a spec the same way.

    >>> make_grid(10_000, 11, 3466).chunk, make_grid(10_000, 11, 3466).shard
    ((55, 1, 3466), (220, 11, 3466))
    >>> make_grid(1, 4, 178_585_866).chunk
    (1, 1, 1048576)
    """
    if dtype not in STORED_AS:
        raise ValueError(f"dtype must be one of {', '.join(STORED_AS)}, got {dtype!r}")
    if min(models, checkpoints, size) < 1:
        raise ValueError(f"expected at least one model, checkpoint and weight, got {(models, checkpoints, size)}")
    itemsize = np.dtype(STORED_AS[dtype]).itemsize
    lineage = size * checkpoints * itemsize  # bytes of one model with all its checkpoints
    if lineage > SHARD_LIMIT:
        part = min(size, LONG_BYTES // itemsize, max(SHARD_BYTES // (checkpoints * itemsize), 1))
        long = min(max(SHARD_BYTES // (checkpoints * part * itemsize), 1), -(-size // part)) * part
        return Grid((models, checkpoints, size), (1, 1, part), (1, checkpoints, long), dtype)
    most = max(min(SHARD_BYTES // lineage, MAX_ROWS // (2 * checkpoints)), 1)  # 2: rounding up to whole chunks
    shards = -(-models // min(most, max(-(-models // 8), 16)))
    per_shard = -(-models // shards)
    together = min(max(CHUNK_BYTES // (size * itemsize), 1), 64)
    together = -(-per_shard // -(-per_shard // together))  # as even as it goes
    per_shard = -(-per_shard // together) * together
    return Grid((models, checkpoints, size), (together, 1, size), (per_shard, checkpoints, size), dtype)


def packed_grid(hot: Grid) -> Grid:
    """The cut of a packed array: the models of a shard stay together, a chunk has all their checkpoints.

    Chunks of about 1 MiB, since one row costs decoding its chunk, and of at most 4 MiB: longer vectors are split.

    >>> packed_grid(make_grid(10_000, 11, 3466)).chunk, packed_grid(make_grid(40, 26, 300_007)).chunk
    ((5, 11, 3466), (1, 26, 37501))
    """
    together, checkpoints, part = hot.shard
    lineage = checkpoints * hot.shape[2] * hot.itemsize
    if lineage <= LONG_BYTES:
        most = min(LONG_BYTES // lineage, 64)
        divisors = [m for m in range(1, min(together, most) + 1) if together % m == 0]
        m = min(divisors, key=lambda m: abs(math.log(m * lineage / CHUNK_BYTES)))
        return Grid(hot.shape, (m, checkpoints, hot.shape[2]), (together, *hot.shape[1:]), hot.dtype, PACKED)
    part = min(part, hot.shape[2])
    chunks = -(-part // max(LONG_BYTES // (checkpoints * hot.itemsize), 1))
    p = -(-part // chunks)  # as even as it goes
    return Grid(hot.shape, (1, checkpoints, p), (together, checkpoints, p * chunks), hot.dtype, PACKED)


def array_metadata(grid: Grid) -> bytes:
    """The bytes of the array's `zarr.json`, the same for every reader and writer."""
    bits = {"name": "bytes", "configuration": {"endian": "little"}}
    crc = {"name": "crc32c"}
    codecs = [bits, crc] if grid.tier == HOT else [_delta(), bits, _blosc(grid), crc]
    sharding = {"chunk_shape": grid.chunk, "codecs": codecs, "index_codecs": [bits, crc], "index_location": "end"}
    return _json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": grid.shape,
            "data_type": DATA_TYPE[grid.dtype],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": grid.shard}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": BFLOAT16_NAN if grid.dtype == "bfloat16" else "NaN",
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "dimension_names": ["models", "checkpoints", "size"],
            "attributes": {"weightscape": {"dtype": grid.dtype}},
        }
    )


def _delta() -> dict[str, Any]:
    return {"name": CODEC["name"], "configuration": {"version": CODEC["version"], "axis": 1}}


def _blosc(grid: Grid) -> dict[str, Any]:
    """Byte planes of 128 KiB each, which zstd takes as a block: every plane gets a code of its own.

    Measured on digits MLPs (two cores, 2026-11): 3 % smaller than bit planes on trajectories, equal for single
    checkpoints, and five times faster to write than zstd-5.
    """
    planes = {"shuffle": "shuffle", "typesize": grid.itemsize, "blocksize": grid.itemsize << 17}
    return {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 1, **planes}}


def group_metadata() -> bytes:
    """The bytes of a Zarr group's `zarr.json`."""
    return _json({"zarr_format": 3, "node_type": "group", "attributes": {}})


def encode_shard(grid: Grid, block: np.ndarray) -> memoryview:
    """The bytes of one shard file.

    Args:
        block: (models, checkpoints, part of the vector) in the stored type (bfloat16 as uint16); fewer models or a
            shorter part than the shard at the array's end.
    """
    counts, (m, _, p) = grid.chunks_per_shard, grid.chunk
    there = -(-block.shape[0] // m), block.shape[1], -(-block.shape[2] // p)  # chunks that hold a part of the block
    length, present = m * p * grid.itemsize + 4, math.prod(there)
    out = np.empty(present * length + math.prod(counts) * 16 + 4, np.uint8)
    index = np.full((*counts, 2), ABSENT, "<u8")
    for number, (a, b, c) in enumerate(np.ndindex(*there)):
        chunk = out[number * length : (number + 1) * length]
        values = chunk[:-4].view(STORED_AS[grid.dtype]).reshape(m, p)
        part = block[a * m : (a + 1) * m, b, c * p : (c + 1) * p]
        if part.shape != (m, p):
            values[:] = BFLOAT16_NAN if grid.dtype == "bfloat16" else np.nan
        values[: part.shape[0], : part.shape[1]] = part
        chunk[-4:] = _crc_bytes(chunk[:-4])
        index[a, b, c] = number * length, length
    tail = out[present * length :]
    tail[:-4] = index.reshape(-1).view(np.uint8)
    tail[-4:] = _crc_bytes(tail[:-4])
    return out.data


def checksum(data: bytes | bytearray | memoryview | np.ndarray) -> int:
    """crc32c (Castagnoli) of bytes, or of the bytes of an array in C order."""
    return extend(0, data)


def checksums(rows: Iterable[np.ndarray]) -> list[int]:
    """crc32c of each array."""
    if google_crc32c.implementation == "c":  # which takes them as they are
        return list(map(google_crc32c.value, rows))
    return list(map(checksum, rows))


def extend(crc: int, data: bytes | bytearray | memoryview | np.ndarray) -> int:
    """crc32c of bytes that follow others, whose crc32c is given."""
    if isinstance(data, bytearray | memoryview):  # not taken by the library; an array over them is, and copies nothing
        data = np.frombuffer(data, np.uint8)
    if google_crc32c.implementation != "c":
        data = bytes(data)
    return int(google_crc32c.extend(crc, data))


def _crc_bytes(data: np.ndarray) -> np.ndarray:
    return np.frombuffer(checksum(data).to_bytes(4, "little"), np.uint8)


def to_stored(weights: np.ndarray, dtype: str) -> np.ndarray:
    """Cast floats to the stored type; bfloat16 rounds to nearest even and comes as uint16. NaN stays NaN."""
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow becomes inf, which `write_shard` refuses
        if dtype != "bfloat16":
            return np.asarray(weights, STORED_AS[dtype])
        bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16).astype("<u2")
    return np.where(np.isnan(weights), np.uint16(BFLOAT16_NAN), rounded)


def from_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Stored values as numpy floats: bfloat16 widens exactly to float32."""
    if dtype != "bfloat16":
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
