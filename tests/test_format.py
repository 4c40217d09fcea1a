"""FORMAT.md is enough: a reader written from it alone gets every number. And old zoos stay readable."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import catalog
from tests.catalog_zoos import fill, net
from tests.test_catalog_frames import commit

ROOT = Path(__file__).resolve().parent.parent
ARCHIVES = sorted((ROOT / "tests" / "data").glob("format*"))
VALUE = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


def crc32c(data: bytes) -> int:
    """Castagnoli, bit by bit: slow, and nobody else's."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def read_by_the_page(path: Path) -> dict[tuple[str, int, int], np.ndarray]:
    """(variant, model, checkpoint) -> stored values, checking what the page says a reader must check."""
    data = (path / "zoo.json").read_bytes()
    body, tail = data[:-82], data[-82:]
    digest = hashlib.sha256(body).hexdigest()
    assert tail == f',\n "digest": "{digest}"\n}}\n'.encode()
    content = json.loads(data)
    assert content["format"] == 1
    found = {}
    variants = {variant["name"]: variant for variant in content["variants"]}
    for fragment in sorted((path / "index").iterdir()):
        raw = fragment.read_bytes()
        parts = re.fullmatch(r"(.+)\.(\d{5,})\.([0-9a-f]{32})\.parquet", fragment.name)
        assert parts
        name, shard, named = parts.groups()
        assert hashlib.sha256(raw).hexdigest()[:32] == named
        metadata = json.loads(pl.read_parquet_metadata(fragment)["weightscape"])
        assert (metadata["zoo"], metadata["variant"], metadata["shard"]) == (digest, name, int(shard))
        values = read_shard(path, variants[name], content["dtype"], metadata["files"], int(shard))
        rows = pl.read_parquet(fragment)
        for row in rows.iter_rows(named=True):
            vector = values[row["model"] - int(shard) * variants[name]["shard"][0], row["checkpoint"]]
            assert crc32c(vector.tobytes()) == row["crc32c"]
            found[name, row["model"], row["checkpoint"]] = vector
    return found


def read_shard(path: Path, variant: dict, dtype: str, files: list[dict], shard: int) -> np.ndarray:
    """(models, checkpoints, size) of a shard; positions beyond the array's edge included."""
    (models, checkpoints, size), (m, _, p), (many, _, part) = (variant[k] for k in ("shape", "chunk", "shard"))
    item = np.dtype(VALUE[dtype]).itemsize
    out = np.full((many, checkpoints, len(files) * part), 0, VALUE[dtype])
    for number, file in enumerate(files):
        assert file["path"] == f"weights/{variant['name']}/c/{shard}/0/{number}"
        data = (path / file["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
        grid = (many // m, checkpoints, part // p)
        length = int(np.prod(grid)) * 16
        assert struct.unpack("<I", data[-4:])[0] == crc32c(data[-4 - length : -4])
        index = np.frombuffer(data[-4 - length : -4], "<u8").reshape(*grid, 2)
        for a, b, c in np.ndindex(*grid):
            offset, long = index[a, b, c].tolist()
            if offset == 2**64 - 1:
                assert shard * many + a * m >= models or number * part + c * p >= size
                continue
            assert long == m * p * item + 4
            raw = data[offset : offset + long - 4]
            assert struct.unpack("<I", data[offset + long - 4 : offset + long])[0] == crc32c(raw)
            where = number * part + c * p
            out[a * m : (a + 1) * m, b, where : where + p] = np.frombuffer(raw, VALUE[dtype]).reshape(m, p)
    return out[..., :size]


def values_of(zoo: catalog.Zoo) -> dict[tuple[str, int, int], np.ndarray]:
    """The same, as our reader gives it, in float32."""
    table = zoo.scan(status=None).filter(pl.col("stored")).collect()
    found = {}
    for (variant,), rows in table.group_by("variant"):
        for row, vector in zip(rows.iter_rows(named=True), zoo.read(rows, dtype="float32"), strict=True):
            found[variant, row["model"], row["checkpoint"]] = vector
    return found


def widened(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_old_zoos_are_read_for_ever(archive: Path, tmp_path: Path) -> None:
    """Zoos as earlier versions wrote them; `expected.npz` beside them holds what is in them."""
    path = tmp_path / "old.zoo"
    shutil.copytree(archive / "zoo", path)
    assert catalog.verify(str(path)).ok
    zoo = catalog.open(path)
    ours, pages = values_of(zoo), read_by_the_page(path)
    with np.load(archive / "expected.npz") as expected:
        assert {f"{v}/{m}/{c}" for v, m, c in ours} == set(expected.files)
        for (variant, model, checkpoint), vector in ours.items():
            assert np.array_equal(vector, expected[f"{variant}/{model}/{checkpoint}"])
            assert np.array_equal(vector, widened(pages[variant, model, checkpoint], zoo.record.dtype))


def test_there_is_an_archive_of_each_type() -> None:
    assert {catalog.open(path / "zoo").record.dtype for path in ARCHIVES} == {"float32", "float16", "bfloat16"}
    assert sum(file.stat().st_size for path in ARCHIVES for file in path.rglob("*") if file.is_file()) < 300_000


def frame_by_the_page(path: Path, frame: str, layout: dict) -> dict[str, np.ndarray]:
    """Run -> (which stored element comes to each place, its factor), (2, size), from FORMAT.md alone; plain axes."""
    files = {}
    for file in (path / "frames" / frame).iterdir():
        parts = re.fullmatch(r"(.+)\.(universe|rows)\.([0-9a-f]{32})\.parquet", file.name)
        assert parts
        assert hashlib.sha256(file.read_bytes()).hexdigest()[:32] == parts[3]
        files[parts[2]] = pl.read_parquet(file), json.loads(pl.read_parquet_metadata(file)["weightscape"])
    head = files["universe"][1]
    symmetry, layout_digest = head["symmetry"], sha256_of_json(layout)[:16]
    text = json.dumps(symmetry, sort_keys=True, separators=(",", ":")) + layout_digest
    universe = hashlib.sha256(files["universe"][0]["universe"][0]).hexdigest()
    assert head["origin"] == hashlib.sha256(text.encode()).hexdigest()[:16] + universe[:16]
    assert files["rows"][1]["origin"] == head["origin"]
    found = {}
    for row in files["rows"][0].iter_rows(named=True):
        moves, start = {}, 0
        for name in sorted(symmetry["groups"]):
            moves[name] = np.frombuffer(row["permutations"], "u1", symmetry["groups"][name]["size"], start)
            start += len(moves[name])
        assert start == len(row["permutations"])
        (scale,) = symmetry["scales"]
        found[row["run"]] = seen(layout, symmetry, moves, scale, 2.0 ** np.frombuffer(row["scales"], "i1"))
    return found


def seen(layout: dict, symmetry: dict, moves: dict, scale: dict, factors: np.ndarray) -> np.ndarray:
    """Multiply, then move, axis by axis."""
    index, by = np.arange(layout["size"], dtype=float), np.ones(layout["size"])
    for tensor in layout["tensors"]:
        part = slice(tensor["offset"], tensor["offset"] + int(np.prod(tensor["shape"])))
        both = np.stack([index[part], by[part]]).reshape(2, *tensor["shape"])
        for name, axis, exponent in scale["tensors"]:
            if name == tensor["name"]:
                both[1] *= np.expand_dims(factors**exponent, [a for a in range(both.ndim - 1) if a != axis])
        for axis, group in enumerate(symmetry["axes"].get(tensor["name"], ())):
            both = both if group is None else both.take(moves[group], axis + 1)
        index[part], by[part] = both.reshape(2, -1)
    return np.stack([index, by])


def sha256_of_json(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_a_frame_is_seen_from_the_page_alone(tmp_path: Path) -> None:
    zoo, truth = fill(tmp_path / "zoo", net())
    commit(zoo)
    layout = json.loads((tmp_path / "zoo" / "zoo.json").read_bytes())["variants"][0]["layout"]
    frame = frame_by_the_page(tmp_path / "zoo", "universe", layout)
    rows = zoo.scan().filter(pl.col("run").is_in(list(frame))).collect()
    assert len(rows) == 8
    for row, vector in zip(rows.iter_rows(named=True), zoo.read(rows, frame="universe"), strict=True):
        index, by = frame[row["run"]]
        stored = truth["net", row["model"], row["checkpoint"]]
        np.testing.assert_array_equal(vector, stored[index.astype(int)] * by)
