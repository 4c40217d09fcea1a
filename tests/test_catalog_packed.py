"""Packed zoos: FORMAT.md is enough to decode them, `pack` and `unpack` give every byte back, damage is found."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import random
import re
import shutil
import struct
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc

import catalog
from catalog import grid as grids
from catalog.errors import CorruptError, FormatError, MissingDataError, NotAZooError, SpecMismatchError, StorageError
from catalog.folder import TEMPORARY, Folder
from catalog.fragments import Fragment, StoredFile, encode_fragment
from catalog.grid import (
    PACKED,
    STORED_AS,
    Grid,
    checksum,
    encode_shard,
    from_stored,
)
from catalog.packed import decode_packed, encode_delta
from catalog.record import Variant, decode
from catalog.store import Zoo
from catalog.summary import summary
from tests.catalog_zoos import (
    LAYOUT,
    SOFTWARE,
    Stop,
    Truth,
    check_reads,
    create,
    files_by_kind,
    fill,
    forge,
    net,
    one,
    stopping,
    tree,
    write,
)
from tests.packed_values import ARCHIVES, GRID, MIB, ROOT, bits_of, dtypes, same_bits
from weightspace.layout import Layout

# --- the page is enough


def unpacked_by_the_page(path: Path) -> dict[tuple[str, int, int], np.ndarray]:
    """(variant, model, checkpoint) -> stored values of every row; from FORMAT.md, with blosc for that one codec."""
    content = json.loads((path / "zoo.json").read_bytes())
    assert (content["tier"], content["codec"]) == ("packed", {"name": "weightscape.delta", "version": 1})
    item = {"float32": 4, "float16": 2, "bfloat16": 2}[content["dtype"]]
    found: dict[tuple[str, int, int], np.ndarray] = {}
    for variant in content["variants"]:
        name, (models, checkpoints, size) = variant["name"], variant["shape"]
        (m, _, p), (many, _, part) = variant["chunk"], variant["shard"]
        grid = many // m, part // p
        for shard in range(-(-models // many)):
            for number in range(-(-size // part)):
                data = (path / "weights" / name / "c" / str(shard) / "0" / str(number)).read_bytes()
                index = np.frombuffer(data[-4 - 16 * grid[0] * grid[1] : -4], "<u8").reshape(*grid, 2)
                end = 0
                for a, c in np.ndindex(*grid):
                    offset, length = index[a, c].tolist()
                    first, start = shard * many + a * m, number * part + c * p
                    if offset == 2**64 - 1:
                        assert first >= models or start >= min((number + 1) * part, size)
                        continue
                    assert offset == end
                    end += length
                    buffer = data[offset : offset + length - 4]
                    assert (buffer[0], buffer[2] >> 5, buffer[3]) == (2, 4, item)
                    assert struct.unpack("<III", buffer[4:16])[::2] == (m * checkpoints * p * item, len(buffer))
                    coded = np.frombuffer(blosc.decompress(buffer), f"<u{item}").reshape(m, checkpoints, p)
                    for i, j in np.ndindex(min(m, models - first), min(p, size - start)):
                        key = 0
                        for t in range(checkpoints):
                            z = int(coded[i, t, j])
                            key = (key + (z // 2 if z % 2 == 0 else -(z + 1) // 2)) % 2 ** (8 * item)
                            top = 2 ** (8 * item - 1)
                            row = found.setdefault((name, first + i, t), np.zeros(size, f"<u{item}"))
                            row[start + j] = key if key < top else key ^ (top - 1)
    return found


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_the_page_is_enough(archive: Path, tmp_path: Path) -> None:
    catalog.pack(archive / "zoo", tmp_path / "packed")
    zoo = catalog.open(tmp_path / "packed")
    found = unpacked_by_the_page(tmp_path / "packed")
    rows = zoo.table()
    assert len(found) == len(rows)
    expected = np.load(archive / "expected.npz")
    for variant, model, checkpoint, stored, crc in rows.select(
        "variant", "model", "checkpoint", "stored", "crc32c"
    ).iter_rows():
        row = found[variant, model, checkpoint]
        assert checksum(row.tobytes()) == crc  # rows without weights too
        if stored:
            truth = expected[f"{variant}/{model}/{checkpoint}"]
            assert np.array_equal(from_stored(row.view(STORED_AS[zoo.record.dtype]), zoo.record.dtype), truth)
    metadata = json.loads((tmp_path / "packed" / "weights" / variant / "zarr.json").read_bytes())
    (sharding,) = metadata["codecs"]
    page = (ROOT / "catalog" / "FORMAT.md").read_text()
    (text,) = re.findall(r"```json no-run\n(\[\{\"name\": \"weightscape.delta\".*?\])\n```", page, re.DOTALL)
    width = np.dtype(STORED_AS[zoo.record.dtype]).itemsize
    text = text.replace("<typesize>", str(width)).replace("<blocksize>", str(131072 * width))
    assert json.loads(text) == sharding["configuration"]["codecs"]


# --- there and back


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Truth]:
    """A complete hot zoo, the packed one made of it, and the truth. Its files are small: chunks of a few bytes."""
    folder = tmp_path_factory.mktemp("whole")
    _, truth = fill(folder / "hot")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grids, "LONG_BYTES", 16)  # so that vectors are split
        catalog.pack(folder / "hot", folder / "packed")
    return folder / "hot", folder / "packed", truth


@pytest.fixture
def copy(whole: tuple[Path, Path, Truth], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole[1], tmp_path / "zoo"))


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_archives_there_and_back(archive: Path, tmp_path: Path) -> None:
    """Zoos in the tree, with diverged runs: every file comes back to the byte."""
    source = archive / "zoo"
    seen: list[tuple[int, int]] = []
    packed = catalog.pack(source, tmp_path / "packed", lambda done, of: seen.append((done, of)))
    count = len(packed.zoo.record.shards)
    assert seen == [(n, count) for n in range(1, count + 1)]
    assert packed.ratio == packed.hot_bytes / packed.packed_bytes
    assert catalog.verify(tmp_path / "packed").ok
    hot = catalog.unpack(tmp_path / "packed", tmp_path / "hot")
    assert (hot.hot_bytes, hot.packed_bytes) == (packed.hot_bytes, packed.packed_bytes)
    assert catalog.verify(tmp_path / "hot").digest == catalog.verify(source).digest
    assert tree(tmp_path / "hot") == tree(source)
    before = tree(tmp_path / "packed")
    catalog.pack(source, tmp_path / "packed")  # metrics of diverged runs, which are NaN, are the same ones again
    assert tree(tmp_path / "packed") == before


def commit(zoo: Zoo, variant: Variant, shard: int, block: np.ndarray, stored: np.ndarray) -> None:
    """A shard of any bits, those of rows without weights included, as another writer might make it."""
    grid, models = variant.grid, variant.grid.models(shard)
    files = []
    for key, part in grid.parts(shard):
        data = bytes(encode_shard(grid, block[:, :, part]))
        zoo.folder.write(f"{variant.path}/{key}", data)
        files.append(StoredFile(f"{variant.path}/{key}", len(data), hashlib.sha256(data).hexdigest()))
    count = stored.size
    rows = pl.DataFrame(
        {
            "variant": [variant.name] * count,
            "model": np.repeat(np.array(models), grid.shape[1]),
            "checkpoint": np.tile(np.arange(grid.shape[1]), len(models)),
            "crc32c": np.array([checksum(row.tobytes()) for row in block.reshape(count, -1)], np.uint32),
            "run": [f"{variant.name}-{m}" for m in models for _ in range(grid.shape[1])],
            "epoch": np.tile(np.arange(grid.shape[1]), len(models)),
            "status": np.where(stored.ravel(), "ok", "diverged"),
            "reason": [""] * count,
            "stored": stored.ravel(),
        }
    )
    zoo.folder.write(*encode_fragment(zoo.record, Fragment(variant.name, shard, rows, tuple(files), SOFTWARE)))


@st.composite
def hot_variants(draw: st.DrawFn) -> Variant:
    models, checkpoints, size = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 12))
    m, p = draw(st.integers(1, 3)), draw(st.integers(1, size))
    shard = m * draw(st.integers(1, 3)), checkpoints, p * draw(st.integers(1, 3))
    grid = Grid((models, checkpoints, size), (m, 1, p), shard, draw(dtypes))
    return Variant("any", {}, Layout(("w",), ((size,),)), grid)


@given(hot_variants(), st.integers(0, 2**32 - 1), st.sampled_from([16, 64, 1000, 4 * MIB]), st.data())
@settings(max_examples=25)
def test_any_zoo_there_and_back(variant: Variant, seed: int, long_bytes: int, data: st.DataObject) -> None:
    """Any bits that are finite in rows with weights, and any at all in the others: a run that diverged midway."""
    chosen = np.random.default_rng(seed)
    grid = variant.grid
    truth: dict[tuple[int, int], np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(grids, "LONG_BYTES", long_bytes)
        hot, packed, back = (Path(folder, name) for name in ("hot", "packed", "back"))
        zoo = create(hot, variant)
        for shard in range(grid.num_shards):
            models = grid.models(shard)
            block = bits_of((len(models), *grid.shape[1:]), grid.dtype, seed + shard, finite=True)
            stored = chosen.random(block.shape[:2]) < 0.7
            block[~stored] = bits_of(block[~stored].shape, grid.dtype, seed + shard + 1)
            commit(zoo, variant, shard, block, stored)
            truth |= {(models.start + a, b): block[a, b] for a, b in np.argwhere(stored).tolist()}
        catalog.pack(hot, packed)
        assert catalog.verify(packed).ok
        catalog.unpack(packed, back)
        assert tree(back) == tree(hot)
        places = data.draw(st.lists(st.sampled_from(sorted(truth)), max_size=12)) if truth else []
        if places:  # in any order, some twice
            rows = pl.DataFrame(places, schema=["model", "checkpoint"], orient="row").with_columns(
                variant=pl.lit("any")
            )
            read = catalog.open(packed).read(rows)
            expected = np.stack([from_stored(truth[place], grid.dtype) for place in places])
            assert same_bits(read, expected)


def test_a_packed_zoo_is_a_zoo(whole: tuple[Path, Path, Truth], tmp_path: Path) -> None:
    hot, packed = (catalog.open(path) for path in whole[:2])
    check_reads(packed, whole[2])
    assert packed.table().equals(hot.table())
    assert catalog.query(packed, "width = 1 and epoch = 10").equals(catalog.query(hot, "width = 1 and epoch = 10"))
    rows = packed.scan().filter(pl.col("variant") == "long").collect()
    for options in ({"tensors": ["b", "steps"]}, {"dtype": "float64"}, {"dtype": "float16", "tensors": "w"}):
        np.testing.assert_array_equal(packed.read(rows, **options), hot.read(rows, **options))
    row = one(packed.table(), variant="net", model=3, checkpoint=1)
    for zoo, name in ((hot, "hot"), (packed, "packed")):
        zoo.export(row, tmp_path / name)
        assert {key: value.tolist() for key, value in zoo.state_dict(row).items()}.keys() == set(LAYOUT.names) | {
            "tied"
        }
    assert (tmp_path / "hot").read_bytes() == (tmp_path / "packed").read_bytes()
    found = summary(packed)
    assert (found["tier"], summary(hot)["tier"]) == ("packed", "hot")
    assert found["packed_bytes"] == sum((whole[1] / name).stat().st_size for name in files_by_kind(whole[1])["shard"])
    assert "packed_bytes" not in summary(hot)
    with pytest.raises(MissingDataError, match="has no weights at epoch 10"):
        packed.read(pl.DataFrame({"variant": "net", "model": [1], "checkpoint": [1]}))
    both = catalog.open({"hot": hot.url, "packed": packed.url})
    assert both.members["packed"].record.tier == PACKED
    assert len(both.read(both.scan().filter(pl.col("variant") == "net"))) == 20


def test_a_hot_zoo_is_as_it_was() -> None:
    for archive in ARCHIVES:
        data = (archive / "zoo" / "zoo.json").read_bytes()
        assert decode(data, "there").encode() == data
        assert not {"tier", "codec"} & set(json.loads(data))


def test_far_away(whole: tuple[Path, Path, Truth], tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    try:
        catalog.pack(whole[0], url)
        check_reads(catalog.open(url), whole[2])
        catalog.unpack(url, tmp_path / "hot")
        assert tree(tmp_path / "hot") == tree(whole[0])
    finally:
        fsspec.filesystem("memory").rm(url, recursive=True)


# --- what cannot be packed


def test_what_cannot_be_packed(whole: tuple[Path, Path, Truth], tmp_path: Path) -> None:
    hot, packed, _ = whole
    before = tree(hot), tree(packed)
    with pytest.raises(FormatError, match=r"is packed already"):
        catalog.pack(packed, tmp_path / "new")
    with pytest.raises(FormatError, match=r"is hot already"):
        catalog.unpack(hot, tmp_path / "new")
    with pytest.raises(NotAZooError):
        catalog.pack(tmp_path / "nothing", tmp_path / "new")
    create(tmp_path / "begun")
    write(catalog.open(tmp_path / "begun"), "net", 0)
    with pytest.raises(MissingDataError, match=r"4 of 5 shards of .*begun are not built yet; run the build"):
        catalog.pack(tmp_path / "begun", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    for target in (hot, packed.parent / "hot"):
        with pytest.raises(SpecMismatchError, match=r"tier: there \"hot\", asked \"packed\".*choose another folder"):
            catalog.pack(hot, target)
    fill(tmp_path / "other", name="other")
    with pytest.raises(SpecMismatchError, match=r"name: there \"tiny\", asked \"other\""):
        catalog.pack(tmp_path / "other", packed)
    with pytest.raises(ValueError, match=r"is packed; write a hot zoo and pack it"):
        write(catalog.open(packed), "net", 0)
    assert (tree(hot), tree(packed)) == before


def test_another_build_of_the_same_spec_is_not_mixed_in(whole: tuple[Path, Path, Truth], tmp_path: Path) -> None:
    catalog.pack(whole[0], tmp_path / "packed")
    fill(tmp_path / "again", seed=1)
    for name in files_by_kind(tmp_path / "packed")["fragment"][1:]:
        (tmp_path / "packed" / name).unlink()
    with pytest.raises(SpecMismatchError, match=r"shard 0 of \w+ in .* made from another build of this zoo"):
        catalog.pack(tmp_path / "again", tmp_path / "packed")


@pytest.mark.parametrize("tier", ["hot", "packed"])
@pytest.mark.parametrize("damage", ["bit", "gone", "short"])
def test_a_damaged_source_is_not_passed_on(tier: str, damage: str, whole: Any, tmp_path: Path) -> None:
    source = Path(shutil.copytree(whole[tier == "packed"], tmp_path / "source"))
    name = "weights/long/c/1/0/1"
    data = bytearray((source / name).read_bytes())
    data[3] ^= 4
    if damage == "gone":
        (source / name).unlink()
    else:
        (source / name).write_bytes(data if damage == "bit" else data[:-1])
    kind = MissingDataError if damage == "gone" else CorruptError
    with pytest.raises(kind, match=rf"shard 1 of long in {source}: {name} is not"):
        (catalog.unpack if tier == "packed" else catalog.pack)(source, tmp_path / "target")
    assert ("long", 1) not in catalog.open(tmp_path / "target").committed()


def test_rows_that_are_not_their_checksums_are_not_passed_on(tmp_path: Path) -> None:
    """Files and fragments that agree with each other, and rows that are not those committed."""
    variant = net(models=4)
    zoo = create(tmp_path / "hot", variant)
    block = bits_of((4, 2, 9), "float32", 0, finite=True)
    commit(zoo, variant, 0, block, np.ones((4, 2), bool))
    fragment = zoo.fragment(zoo.committed()["net", 0])
    rows = fragment.rows.with_columns(crc32c=pl.col("crc32c").reverse())
    Path(zoo.folder.path(zoo.committed()["net", 0])).unlink()
    zoo.folder.write(*encode_fragment(zoo.record, Fragment("net", 0, rows, fragment.files, SOFTWARE)))
    with pytest.raises(CorruptError, match="the weights are not those committed"):
        catalog.pack(tmp_path / "hot", tmp_path / "packed")


def test_what_would_not_come_back_is_not_packed(whole: tuple[Path, Path, Truth], tmp_path: Path) -> None:
    """zoo.json in other words, chunks in another order: sound, but not to be rebuilt from the values."""
    source = Path(shutil.copytree(whole[0], tmp_path / "words"))
    for name in files_by_kind(source)["fragment"] + files_by_kind(source)["table"]:
        (source / name).unlink()
    forge(source, lambda content: content)  # without the indentation
    with pytest.raises(FormatError, match=r"zoo.json .* written by other software"):
        catalog.pack(source, tmp_path / "packed")
    variant = net(models=4)
    zoo = create(tmp_path / "order", variant)
    block = bits_of((4, 2, 9), "float32", 0, finite=True)
    commit(zoo, variant, 0, block, np.ones((4, 2), bool))
    fragment, name = zoo.fragment(zoo.committed()["net", 0]), zoo.committed()["net", 0]
    path = Path(zoo.folder.path(fragment.files[0].path))
    data, length = path.read_bytes(), 2 * 9 * 4 + 4
    index = np.frombuffer(data[4 * length : -4], "<u8").reshape(4, 2)[::-1]
    parts = [data[start : start + length] for start in range(0, 4 * length, length)]
    tail = np.ascontiguousarray(index).tobytes()
    mixed = b"".join(parts[::-1]) + tail + checksum(tail).to_bytes(4, "little")
    path.write_bytes(mixed)
    Path(zoo.folder.path(name)).unlink()
    files = (StoredFile(fragment.files[0].path, len(mixed), hashlib.sha256(mixed).hexdigest()),)
    zoo.folder.write(*encode_fragment(zoo.record, Fragment("net", 0, fragment.rows, files, SOFTWARE)))
    check_reads(zoo, {("net", m, c): block[m, c] for m in range(4) for c in range(2)})
    with pytest.raises(FormatError, match="does not have its chunks in order"):
        catalog.pack(tmp_path / "order", tmp_path / "packed")


# --- interrupted


def refuse() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def stop() -> None:
    raise Stop


@pytest.mark.parametrize(("how", "raised", "step"), [(stop, Stop, 2), (refuse, StorageError, 13)])
@pytest.mark.parametrize("call", [catalog.pack, catalog.unpack])
def test_it_goes_on_where_it_was_stopped(
    how: Callable[[], None],
    raised: type[Exception],
    step: int,
    call: Callable[[Path, Path], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At every other step; that a single file is absent or whole is tested at each of its steps elsewhere."""
    monkeypatch.setattr(grids, "LONG_BYTES", 16)  # so that a shard has several files
    parts = Variant("parts", {}, LAYOUT, Grid((2, 2, 9), (1, 1, 2), (1, 2, 4), "float32"))
    _, truth = fill(tmp_path / "hot", parts)
    catalog.pack(tmp_path / "hot", tmp_path / "packed")
    source, done = (tmp_path / name for name in (("hot", "packed") if call is catalog.pack else ("packed", "hot")))
    for nth in range(1, 400, step):
        place = tmp_path / str(nth)
        with stopping(nth, how, monkeypatch) as seen, contextlib.suppress(raised):
            call(source, place)
        if (place / "zoo.json").exists():  # whatever was committed is sound
            half = catalog.open(place)
            check_reads(half, truth)
            assert len(half.table()) == 2 * len(half.committed())
        call(source, place)
        assert tree(place) == tree(done)
        assert not list(place.rglob(f"{TEMPORARY}*"))
        if len(seen) < nth:
            assert nth > 50
            return
        shutil.rmtree(place)
    pytest.fail("no run passed without a failure")


def test_what_is_committed_is_not_done_again(
    whole: tuple[Path, Path, Truth], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grids, "LONG_BYTES", 16)
    gone = "weights/long/c/1/0/1"
    (copy / gone).unlink()
    written: list[str] = []
    real = Folder.write

    def note(folder: Folder, name: str, data: bytes) -> None:
        written.append(name)
        real(folder, name, data)

    monkeypatch.setattr(Folder, "write", note)
    catalog.pack(whole[0], copy)
    assert tree(copy) == tree(whole[1])  # a file that was lost is mended
    assert {name.rsplit("/", 1)[0] for name in written} <= {"weights/long/c/1/0", "index"}
    written.clear()
    catalog.pack(whole[0], copy)
    assert written == []


# --- damaged packed zoos


def found_by_verify(folder: Path) -> bool:
    try:
        return not catalog.verify(folder).ok
    except (CorruptError, FormatError):
        return True


@pytest.mark.parametrize("kind", ["zoo.json", "zarr.json", "shard", "fragment", "table"])
def test_every_flipped_bit_is_found(kind: str, whole: tuple[Path, Path, Truth], copy: Path) -> None:
    """40 flips in each kind of file: `verify` finds all; whatever can be read is the truth, never anything else."""
    chosen = random.Random(kind)
    names = files_by_kind(copy)[kind]
    missed = []
    for _ in range(40):
        name = chosen.choice(names)
        good = (copy / name).read_bytes()
        data = bytearray(good)
        bit = chosen.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        (copy / name).write_bytes(data)
        if not found_by_verify(copy):
            missed.append((name, bit))
        with contextlib.suppress(CorruptError, FormatError):
            check_reads(catalog.open(copy), whole[2])
        (copy / name).write_bytes(good)
    assert missed == []


def test_flipped_bytes_of_a_shard_are_found(copy: Path) -> None:
    name = "weights/net/c/1/0/0"
    good = (copy / name).read_bytes()
    zoo = catalog.open(copy)
    rows = zoo.scan().filter(variant="net").collect()
    for byte in range(0, len(good), 2):
        data = bytearray(good)
        data[byte] ^= 1 << byte % 8
        (copy / name).write_bytes(data)
        with pytest.raises(CorruptError, match=r"shard 1 of net"):
            zoo.read(rows)
    (copy / name).unlink()
    with pytest.raises(MissingDataError, match=rf"shard 1 of net in {copy}: {name} is not there"):
        zoo.read(rows)
    (copy / name).write_bytes(good[:30])
    with pytest.raises(CorruptError, match=r"has 30 bytes, .* were committed"):
        zoo.read(rows)


def test_swapped_shards(copy: Path) -> None:
    """Sound by themselves: the rows' checksums tell."""
    one, other = (copy / f"weights/long/c/{shard}/0/0" for shard in (0, 2))
    if one.stat().st_size != other.stat().st_size:
        pytest.fail("choose shards of one size")
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    zoo = catalog.open(copy)
    with pytest.raises(CorruptError, match="the weights are not those committed"):
        zoo.read(zoo.scan().filter(variant="long"))


# --- hostile ones


def set_variant(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["variants"][0].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c.update(tier="frozen"),
            r"of tier 'frozen'; this weightscape reads hot and packed: install a newer",
        ),
        (lambda c: c.update(tier=["packed"]), r"install a newer weightscape"),
        (lambda c: c["codec"].update(version=2), r"'version': 2.*reads .*'version': 1.*install a newer weightscape"),
        (lambda c: c["codec"].update(version=True), r"install a newer weightscape"),
        (lambda c: c["codec"].update(name="other"), r"'other'.*install a newer weightscape"),
        (lambda c: c.pop("codec"), r"packed with codec None"),
        (lambda c: c.pop("tier"), r"hot with codec"),
        (lambda c: (c.pop("tier"), c.pop("codec")), r"a chunk holds one checkpoint"),
        (lambda c: c["variants"][0].pop("unpacked"), r"'unpacked' is missing"),
        (set_variant(unpacked={}), r"say how they are cut when unpacked"),
        (set_variant(unpacked={"chunk": [1, 2, 9], "shard": [4, 2, 9]}), r"a chunk holds one checkpoint"),
        (set_variant(unpacked={"chunk": [1, 1, 9], "shard": [2, 2, 9]}), r"other shards packed than unpacked"),
        (set_variant(chunk=[4, 1, 5]), r"all checkpoints of its models when packed"),
        (set_variant(chunk=[4, 2, 2**20], shard=[4, 2, 2**20]), r"larger than 16 MiB"),
    ],
)
def test_forged_zoo_json(change: Callable[[dict[str, Any]], Any], said: str, copy: Path) -> None:
    forge(copy, change)
    with pytest.raises(FormatError, match=said):
        catalog.open(copy)


def shard_of(chunk: bytes, crc: bool = True, place: tuple[int, int] | None = None) -> bytes:
    """A shard file whose one chunk has these bytes, and whose index names that place."""
    body = chunk + checksum(chunk).to_bytes(4, "little") if crc else chunk
    index = struct.pack("<QQ", *(place or (0, len(body))))
    return body + index + checksum(index).to_bytes(4, "little")


def chunk_of(values: np.ndarray, **header: int) -> bytes:
    data = bytearray(blosc.compress(values, b"zstd", 1, 1, 4 << 17, 4))
    for name, value in header.items():
        offset, kind = {
            "nbytes": (4, "<I"),
            "block": (8, "<I"),
            "cbytes": (12, "<I"),
            "type": (3, "B"),
            "how": (2, "B"),
        }[name]
        struct.pack_into(kind, data, offset, value)
    return bytes(data)


ZEROS = np.zeros((2, 3, 50), np.uint32)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (shard_of(b""), "damaged"),
        (shard_of(b"\0" * 15), "damaged"),
        (shard_of(chunk_of(ZEROS), crc=False), "damaged"),
        (shard_of(chunk_of(np.zeros(1 << 22, np.uint8))), "claims to unpack to 4,194,304 bytes"),  # a bomb
        (shard_of(chunk_of(ZEROS, nbytes=2**32 - 1)), "claims to unpack to 4,294,967,295 bytes"),
        (shard_of(chunk_of(ZEROS, nbytes=0)), "not what the format says"),
        (shard_of(chunk_of(ZEROS, cbytes=17)), "not what the format says"),
        (shard_of(chunk_of(ZEROS, type=2)), "not what the format says"),
        (shard_of(chunk_of(ZEROS, block=0)), "not what the format says"),
        (shard_of(chunk_of(ZEROS, block=2**31)), "not what the format says"),
        (shard_of(blosc.compress(ZEROS, b"lz4", 1, 1, 0, 4)), "not what the format says"),
        (shard_of(chunk_of(np.zeros(1 << 22, np.uint8), nbytes=1200, block=1200)), "is damaged"),  # more than it says
        (shard_of(chunk_of(ZEROS), place=(2**63, 100)), "points outside"),
        (shard_of(chunk_of(ZEROS), place=(0, 2**64 - 1)), "points outside"),
        (shard_of(chunk_of(ZEROS), place=(1, len(chunk_of(ZEROS)) + 4)), "points outside"),
        (shard_of(chunk_of(ZEROS), place=(2**64 - 1, 2**64 - 1)), "lacks the chunk"),
        (shard_of(chunk_of(ZEROS) + bytes(2000)), "at chunks of more than 1,220 bytes"),
        (b"", "too few"),
    ],
    ids=map(str, range(18)),
)
def test_hostile_shards(data: bytes, said: str) -> None:
    with pytest.raises(CorruptError, match=said):
        decode_packed(GRID, data, GRID.shape, "there")


def test_streams_of_noise() -> None:
    """A sound frame around changed bytes: an error or other numbers, which the rows' checksums tell; never a crash."""
    chosen = random.Random(0)
    values = np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32)
    good = chunk_of(encode_delta(values))
    refused = 0
    for turn in range(3000):
        data = bytearray(good if turn % 2 else chunk_of(ZEROS))
        for _ in range(chosen.choice((1, 2, 8))):
            data[chosen.randrange(16 if turn % 3 else 4, len(data))] = chosen.randrange(256)
        try:
            assert decode_packed(GRID, shard_of(bytes(data)), GRID.shape, "there").shape == GRID.shape
        except CorruptError:
            refused += 1
    assert refused > 300


# --- the command line


def test_commands(whole: tuple[Path, Path, Truth], tmp_path: Path) -> None:
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    import weightscape

    def run(*arguments: object) -> tuple[int, str, str]:
        found = CliRunner().invoke(weightscape.app, list(map(str, arguments)))
        return found.exit_code, found.stdout, found.stderr

    code, out, _ = run("pack", whole[0], tmp_path / "packed")
    assert code == 0
    assert re.fullmatch(rf"{tmp_path}/packed: packed; weights take .* packed, .* unpacked \([\d.]+x\)\n", out)
    code, out, _ = run("unpack", tmp_path / "packed", tmp_path / "hot", "--json")
    assert code == 0
    assert json.loads(out)["hot_bytes"] > 0
    assert tree(tmp_path / "hot") == tree(whole[0])
    assert re.search(
        r"complete; .* weights, packed in .* \([\d.]+x\)", " ".join(run("info", tmp_path / "packed")[1].split())
    )
    code, out, err = run("pack", tmp_path / "packed", tmp_path / "twice")
    assert (code, out) == (1, "")
    assert err == f"error: {tmp_path}/packed is packed already; copy it, or give another zoo\n"
