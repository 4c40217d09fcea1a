"""Queries and rows of a published zoo, wherever it lies: those of the zoo it was made from; few bytes, all checked."""

from __future__ import annotations

import hashlib
import json
import pickle
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import catalog
from catalog import cache, inventory, objects, ranges
from catalog.errors import CorruptError, FormatError, MissingDataError, OfflineError, QueryError, StorageError, ZooError
from catalog.fragments import StoredFile, encode_fragment, write_parquet
from catalog.grid import Grid, checksum, encode_shard
from catalog.manifest import Chunk, Columns, Manifest
from catalog.metrics import Measurement, version_of, write_measurement
from catalog.parquet import columns_of
from catalog.publish import publish
from catalog.published import Catalog
from catalog.record import Variant
from catalog.shards import decode_index, index_bytes, planned_offsets
from catalog.store import Zoo
from tests.catalog_zoos import SOFTWARE, Truth, check_reads, fill, long, manifest_of, net
from tests.servers import Counted, Server, put
from weightspace.layout import Layout

GROUP = 4  # rows of a row group in small zoos, which then have five


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for each test."""
    monkeypatch.setenv("WEIGHTSCAPE_CACHE", str(tmp_path / "cache"))


def published(folder: Path) -> tuple[Zoo, Truth]:
    """A zoo in `zoo`, published in `site`; the zoo, opened where it was made, and the truth."""
    zoo, truth = fill(folder / "zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inventory, "GROUP", GROUP)
        publish(zoo, folder / "site")
    return zoo, truth


def manifest_at(url: Any) -> Manifest:
    return manifest_of(catalog.open(url))


def big(folder: Path, models: int = 900, checkpoints: int = 2) -> tuple[Zoo, np.ndarray]:
    """A published zoo of MLPs 64-32-32-10, and its weights."""
    size = 3466
    layout = Layout(("w",), ((size,),))
    variant = catalog.make_variant("mlp", layout, models, checkpoints)
    weights = np.random.default_rng(0).standard_normal((models, checkpoints, size), np.float32)
    zoo = catalog.create(folder / "zoo", name="big", variants=[variant])
    for _, shard in zoo.record.shards:
        inside = variant.grid.models(shard)
        count = len(inside) * checkpoints
        number = np.arange(inside.start * checkpoints, inside.stop * checkpoints)
        rows = pl.DataFrame(
            {
                "run": [f"{model:016x}" for model in inside for _ in range(checkpoints)],
                "epoch": list(range(checkpoints)) * len(inside),
                "status": "ok",
                "reason": "",
                "stored": True,
                "accuracy": np.random.default_rng(shard).random(count),
                "width": number % 7,
                "bits": [np.random.default_rng(n).bytes(200) for n in number.tolist()],
            }
        )
        catalog.write_shard(zoo, "mlp", shard, weights[inside.start : inside.stop], rows, SOFTWARE)
    publish(zoo, folder / "site")
    return zoo, weights


def check_same(far: Zoo, near: Zoo) -> None:
    """The same rows by all ways to ask for them; the columns of the published table have an order of their own."""
    columns = far.table().columns
    assert columns[0] == "zoo"
    assert sorted(columns) == sorted(near.table().columns)
    assert far.scan(None).collect_schema().names() == columns
    assert far.table().equals(near.table().select(columns))
    for status in (None, "ok", "diverged", "failed"):
        assert far.scan(status).collect().equals(near.scan(status).select(columns).collect())
    queries = [
        lambda rows: rows.filter(pl.col("width") == 2, pl.col("model") > 3).select("run", "accuracy"),
        lambda rows: rows.filter(pl.col("accuracy") > pl.col("accuracy").mean()).select("run"),
        lambda rows: rows.filter(pl.col("variant") == "long").select("bits", "zoo"),
        lambda rows: rows.filter(pl.col("zoo") == "nobody").select("run"),
        lambda rows: rows.filter(pl.lit(True)).select("epoch"),
        lambda rows: rows.select("zoo"),
        lambda rows: rows.select(pl.len()),
        lambda rows: rows.head(5).select("model"),
        lambda rows: rows.filter(pl.col("model") == 2).head(3),
        lambda rows: rows.filter(pl.col("model") == -1),
        lambda rows: rows.group_by("width", maintain_order=True).agg(pl.col("accuracy").max()),
        lambda rows: rows.slice(7, 4).select("run"),
    ]
    for number, ask in enumerate(queries):
        for engine in ("in-memory", "streaming"):
            found = ask(far.scan(None)).collect(engine=engine)
            expected = ask(near.scan(None).select(columns)).collect()
            if engine == "streaming":
                found, expected = found.sort(found.columns), expected.sort(found.columns)
            assert found.equals(expected), number
    assert catalog.query(far, "width = 2 and model > 3", columns=["run"], sort="run", limit=2).equals(
        catalog.query(near, "width = 2 and model > 3", columns=["run"], sort="run", limit=2)
    )


# --- the same, wherever it lies


@pytest.mark.parametrize("place", ["folder", "memory", "s3", "web"])
def test_the_rows_and_weights_of_the_zoo_it_was_made_from(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, truth = published(tmp_path)
    options: dict[str, Any] = {}
    if place == "folder":
        url = str(tmp_path / "site")
    elif place == "web":
        url = request.getfixturevalue("web")[1] + "/site"
    elif place == "s3":
        options = request.getfixturevalue("s3_options")
        url = request.getfixturevalue("bucket") + "/a/zoo"
        put(tmp_path / "site", url, **options)
    else:
        url = request.getfixturevalue("memory")
        put(tmp_path / "site", url)
    far = catalog.open(url, **options)
    assert len(manifest_at(tmp_path / "site").columns.groups) == 5
    check_same(far, near)
    monkeypatch.setattr("catalog.published.WAIT", 0)  # the columns of the filter first, as of large tables
    check_same(far, near)
    check_reads(far, truth)
    with pytest.raises(
        MissingDataError, match=r"run net-1 in shard 0 of net in .* at epoch 10 \(diverged: loss is NaN"
    ):
        far.read(far.scan(None).filter(variant="net"))
    again = pickle.loads(pickle.dumps(far))
    assert again.scan().collect().equals(far.scan().collect())


def test_packed_zoos(tmp_path: Path, memory: str) -> None:
    near, truth = fill(tmp_path / "zoo")
    catalog.pack(tmp_path / "zoo", tmp_path / "packed")
    publish(tmp_path / "packed", memory)
    check_same(catalog.open(memory), near)
    check_reads(catalog.open(memory), truth)


def test_several_places_are_one_table(tmp_path: Path, web: tuple[Server, str]) -> None:
    published(tmp_path)
    other, _ = fill(tmp_path / "other", name="other", seed=1)
    server, url = web
    zoos = catalog.open({"far": f"{url}/site", "near": tmp_path / "other"})
    server.requests.clear()
    found = zoos.scan().filter(pl.col("model") == 2).select("zoo", "run").collect()
    assert found["zoo"].unique(maintain_order=True).to_list() == ["far", "near"]
    assert found["run"].to_list() == other.scan().filter(model=2).collect()["run"].to_list() * 2
    assert len(server.requests) == 1


def test_measured_columns_of_another_folder_or_version(tmp_path: Path) -> None:
    near, _ = fill(tmp_path / "zoo")
    keys = near.table().select("run", "epoch")
    for definition in (1, 2):
        rows = keys.with_columns(sharpness=pl.lit(float(definition)))
        found = Measurement("sharpness", version_of(definition, {}), {}, True, rows, SOFTWARE)
        write_measurement(near, found)
    publish(near, tmp_path / "site")
    far = catalog.open(tmp_path / "site")
    assert far.scan().select("sharpness").collect()["sharpness"].unique().to_list() == [2.0]
    older = catalog.open(tmp_path / "site", versions={"sharpness": version_of(1, {})})
    assert older.scan().select("sharpness").collect()["sharpness"].unique().to_list() == [1.0]
    assert "sharpness" not in catalog.open(tmp_path / "site", metrics_at=tmp_path / "mine").scan().collect_schema()
    assert "sharpness" not in far.table(metrics=False).columns


# --- few bytes


def test_a_query_and_64_models_over_http(tmp_path: Path, web: tuple[Server, str], monkeypatch: Any) -> None:
    near, weights = big(tmp_path)
    server, url = web
    far = catalog.open(f"{url}/site")
    found = far.scan().filter(pl.col("accuracy") > 0.9).select("run", "width").collect()
    assert found.equals(near.scan().filter(pl.col("accuracy") > 0.9).select("run", "width").collect())
    assert len(server.requests) <= 4
    assert server.sent <= 200_000  # of a table of 450,000
    server.requests.clear()
    far.scan().filter(pl.col("accuracy") < 0.1).select("run").collect()  # from the cache
    assert server.requests == []
    rows = far.table().sample(64, shuffle=True, seed=0)
    server.sent = 0
    picked = rows["model"].to_numpy(), rows["checkpoint"].to_numpy()
    np.testing.assert_array_equal(far.read(rows), weights[picked])
    assert server.sent <= 1.5 * 64 * 3466 * 4
    assert not [request for request in server.requests if "index/" in request]
    far = catalog.open(f"{url}/site")
    server.requests.clear()
    far.read(rows[:1])
    assert len(server.requests) == 1  # not even the index of the shard
    monkeypatch.setenv("WEIGHTSCAPE_OFFLINE", "1")
    calm = catalog.open(f"{url}/site")
    assert calm.scan().filter(pl.col("accuracy") > 0.9).select("run", "width").collect().equals(found)
    with pytest.raises(OfflineError):
        calm.read(rows)


def test_a_query_and_64_models_on_s3(tmp_path: Path, counted_s3: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    near, weights = big(tmp_path)
    filesystem = fsspec.filesystem("s3", **counted_s3.options)
    filesystem.mkdir("lab-big")
    put(tmp_path / "site", "s3://lab-big/zoo", **counted_s3.options)
    expected = near.scan().filter(pl.col("accuracy") > 0.9).select("run", "width").collect()
    for number, fast in enumerate((True, False)):
        with monkeypatch.context() as patch:
            patch.setenv("WEIGHTSCAPE_CACHE", str(tmp_path / f"cache{number}"))
            if not fast:
                patch.setattr(objects.importlib.util, "find_spec", lambda name: None)
            counted_s3.requests.clear()
            counted_s3.sent = 0
            far = catalog.open("s3://lab-big/zoo", **counted_s3.options)
            assert far.scan().filter(pl.col("accuracy") > 0.9).select("run", "width").collect().equals(expected)
            assert len(counted_s3.requests) <= 4, counted_s3.requests
            assert counted_s3.sent <= 200_000
            rows = far.table().sample(64, shuffle=True, seed=0)
            far.read(rows[:1])
            counted_s3.sent = 0
            picked = rows["model"].to_numpy(), rows["checkpoint"].to_numpy()
            np.testing.assert_array_equal(far.read(rows), weights[picked])
            assert counted_s3.sent <= 1.5 * 64 * 3466 * 4
            every = far.scan().filter(pl.col("epoch") == 1).select("variant", "model", "checkpoint").collect()
            counted_s3.sent = 0
            np.testing.assert_array_equal(far.read(every), weights[:, 1])
            assert counted_s3.sent <= 1.3 * weights[:, 1].nbytes
            # a file that is gone is told by both ways to ask
            path = "lab-big/zoo/" + far.folder.root.rsplit("/", 1)[1] + "/weights/mlp/c/0/0/0"
            data = filesystem.cat_file(path)
            filesystem.rm_file(path)
            with pytest.raises(MissingDataError, match="weights/mlp/c/0/0/0 is not there"):
                far.read(rows)
            filesystem.pipe_file(path, data)
            patch.setattr(objects, "_store", None)  # what the faster library cannot do, the other one does
            np.testing.assert_array_equal(far.read(rows), weights[picked])


def test_of_row_groups_without_a_match_only_the_filter_is_fetched(tmp_path: Path, memory: str) -> None:
    published(tmp_path)
    put(tmp_path / "site", memory)
    far = catalog.open(memory)
    columns = manifest_at(tmp_path / "site").columns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("catalog.published.FREE", 0)
        patch.setattr("catalog.published.WAIT", 0)
        patch.setattr(ranges, "SPARE", 1 << 40)  # nothing beside what is asked for
        assert len(far.scan(None).filter(pl.col("model") == 5).select("run").collect()) == 2
    here = [cache.find_piece(chunk.digest) is not None for chunk in columns.chunks["run"]]
    assert here == [False, False, True, False, False]
    assert all(cache.find_piece(chunk.digest) is not None for chunk in columns.chunks["model"])
    # a column nobody named, nor any that has the same bytes
    assert [cache.find_piece(chunk.digest) for chunk in columns.chunks["accuracy"]] == [None] * 5


def test_a_server_without_ranges_gives_the_same(tmp_path: Path, web: tuple[Server, str]) -> None:
    near, truth = published(tmp_path)
    server, url = web
    server.mode = "no ranges"
    far = catalog.open(f"{url}/site")
    check_same(far, near)
    check_reads(far, truth)


@settings(max_examples=60)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5000), st.integers(0, 300)), max_size=30),
    free=st.sampled_from([0, 0, 500]),
)
def test_joined_ranges_cover_what_was_asked_for_and_little_more(pieces: list[tuple[int, int, int]], free: int) -> None:
    asked = sorted((number, start, start + size) for number, start, size in pieces)
    parts = ranges.joined(asked, free)
    assert [at for part in parts for at in range(part.start, part.stop)] == list(range(len(asked)))
    wanted = len({(number, at) for number, start, stop in asked for at in range(start, stop)})
    sent = 0
    for part in parts:
        some = asked[part]
        assert len({number for number, _, _ in some}) == 1
        sent += max(stop for _, _, stop in some) - some[0][1]
    assert sent <= wanted + max(wanted // 4, free)


# --- where chunks lie


@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 9)),
    chunk=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    shard=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_offsets_follow_from_the_grid(shape: Any, chunk: tuple[int, int], shard: tuple[int, int]) -> None:
    m, p = chunk
    grid = Grid(shape, (m, 1, p), (m * shard[0], shape[1], p * shard[1]), "float16")
    for number in range(grid.num_shards):
        for part, (_, place) in enumerate(grid.parts(number)):
            block = np.ones((len(grid.models(number)), shape[1], place.stop - place.start), "<f2")
            data = np.asarray(encode_shard(grid, block))
            expected = decode_index(grid, data[-index_bytes(grid) :], len(data))
            found = planned_offsets(grid, number, part, len(data))
            assert found is not None
            np.testing.assert_array_equal(found, expected)
            assert planned_offsets(grid, number, part, len(data) + 1) is None


def test_chunks_in_an_order_of_their_own(tmp_path: Path, memory: str) -> None:
    """Another writer's shard, which keeps to Zarr and not to our format: its own index is asked."""
    variant = net()
    zoo, truth = fill(tmp_path / "zoo", variant)
    length = 2 * 9 * 4 + 4
    file = tmp_path / "zoo/weights/net/c/0/0/0"
    data = bytearray(file.read_bytes())
    data[:length], data[length : 2 * length] = data[length : 2 * length], data[:length]
    tail = np.frombuffer(data[-index_bytes(variant.grid) : -4], "<u8").reshape(-1, 2).copy()
    tail[[0, 1]] = tail[[1, 0]]
    data[-index_bytes(variant.grid) :] = tail.tobytes() + checksum(tail.tobytes()).to_bytes(4, "little")
    _recommit(zoo, file, bytes(data))
    publish(zoo, memory)
    check_reads(catalog.open(memory), truth)


def _recommit(zoo: Zoo, file: Path, data: bytes) -> None:
    """Put other bytes into a shard, and commit them."""
    name = zoo.committed()["net", 0]
    fragment = zoo.fragment(name)
    entry = StoredFile(fragment.files[0].path, len(data), hashlib.sha256(data).hexdigest())
    file.write_bytes(data)
    root = Path(zoo.folder.root)
    (root / name).unlink()
    new, content = encode_fragment(zoo.record, replace(fragment, files=(entry,)))
    (root / new).write_bytes(content)


# --- damage


def test_a_flipped_bit_is_an_error_or_the_right_rows(tmp_path: Path, memory: str) -> None:
    near, truth = published(tmp_path)
    columns = manifest_at(tmp_path / "site").columns
    filesystem = put(tmp_path / "site", memory)
    _, root = fsspec.core.url_to_fs(memory)
    random = np.random.default_rng(0)
    caught: dict[str, int] = {}
    expected = near.scan(None).select(catalog.open(memory).table().columns).collect()
    names = [path.relative_to(tmp_path / "site").as_posix() for path in sorted((tmp_path / "site").rglob("*"))]
    parts = {"manifest.json": 8, "zoo.json": 8, ".parquet": 12, "c/0/0/0": 8, "c/0/0/2": 4, "c/1/0/0": 4}
    for name in names:
        count = next((count for end, count in parts.items() if name.endswith(end) and "index/" not in name), 0)
        data = (tmp_path / "site" / name).read_bytes() if count else b""
        kind = "shard" if "/c/" in name else name.rsplit("/", 1)[-1].split(".")[0]
        if kind == "catalog":  # but for its head and footer, which nobody fetches
            used = range(4, len(data) - len(columns.footer))
        else:
            used = range(len(data))
        for at in {used[0], used[-1], *random.choice(used, count - 2).tolist()} if count else ():
            flipped = bytearray(data)
            flipped[at] ^= 1 << int(random.integers(8))
            filesystem.pipe_file(f"{root}/{name}", bytes(flipped))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("WEIGHTSCAPE_CACHE", str(tmp_path / "caches" / uuid.uuid4().hex))
                try:
                    far = catalog.open(memory)
                    assert far.scan(None).collect().equals(expected)
                    check_reads(far, truth)
                except ZooError:
                    caught[kind] = caught.get(kind, 0) + 1
        if count:
            filesystem.pipe_file(f"{root}/{name}", data)
    assert caught["manifest"] == caught["zoo"] == 8
    assert caught["catalog"] >= 10
    assert caught["shard"] >= 12  # the others in its index and in what fills the last chunk, which nobody looks at


@pytest.mark.parametrize("place", ["folder", "web"])
def test_a_table_that_is_short_gone_or_changed(place: str, tmp_path: Path, web: tuple[Server, str]) -> None:
    published(tmp_path)
    site = tmp_path / "site"
    url = str(site) if place == "folder" else f"{web[1]}/site"
    (file,) = site.rglob("catalog.*.parquet")
    data = file.read_bytes()
    options = {} if place == "folder" else {"retries": 0}
    for changed in (data[: len(data) // 2], bytes(len(data)), b""):
        file.write_bytes(changed)
        # by the web such a table may come as an answer that the client refuses
        with pytest.raises(CorruptError if place == "folder" else ZooError):
            catalog.open(url, **options).scan().collect()
        with pytest.raises(ZooError):
            catalog.open(url, **options).table()
    file.unlink()
    with pytest.raises(MissingDataError, match="is not there"):
        catalog.open(url, **options).scan().collect()


def forge(site: Path, columns: Columns | None = None, data: bytes | None = None) -> Zoo:
    """The zoo with another manifest, as a stranger would write one."""
    zoo, manifest = catalog.open(site), manifest_at(site)
    if data is not None:
        path = "catalog.00000000000000000000000000000000.parquet"
        (Path(zoo.folder.root) / path).write_bytes(data)
        columns = columns_of(path, data)
        files = {name: file for name, file in manifest.files.items() if name != manifest.columns.path}
        files[path] = StoredFile(path, len(data), hashlib.sha256(data).hexdigest())
    else:
        files = dict(manifest.files)
    assert columns is not None
    forged = replace(manifest, files=files, columns=columns)
    (site / "manifest.json").write_bytes(forged.encode())
    return catalog.open(site)


def test_tables_that_strangers_forge(tmp_path: Path) -> None:
    near, _ = published(tmp_path)
    site = tmp_path / "site"
    good = manifest_at(site)
    pointer = (site / "manifest.json").read_bytes()
    columns = good.columns
    data = (site / good.base / columns.path).read_bytes()
    rows = catalog.open(site).table().drop("zoo")
    random = np.random.default_rng(0)

    def written(table: pl.DataFrame, zoo: str = good.zoo) -> bytes:
        content = json.dumps({"format": 1, "zoo": zoo})
        return write_parquet(table, {"weightscape": content}, row_group_size=GROUP)

    footers = [bytes(len(columns.footer)), columns.footer[:-8] + b"\xff\xff\xff\x7fPAR1"]
    flips = [(4905, 0), (6473, 7), (6147, 0)]  # which polars 2.1 met with a panic
    for at, bit in flips + random.integers([0, 0], [len(columns.footer), 8], (37, 2)).tolist():
        footer = bytearray(columns.footer)
        footer[at % len(footer)] ^= 1 << bit
        footers.append(bytes(footer))
    swapped = {name: chunks[::-1] for name, chunks in columns.chunks.items()}
    moved = {**columns.chunks, "model": columns.chunks["epoch"], "epoch": columns.chunks["model"]}
    cases: list[dict[str, Any]] = [{"columns": replace(columns, footer=footer)} for footer in footers]
    cases += [
        {"columns": replace(columns, groups=(18,) + (0,) * 4)},
        {"columns": replace(columns, groups=(4, 4, 4, 4, 3))},
        {"columns": replace(columns, chunks=dict(list(columns.chunks.items())[1:]))},
        {"columns": replace(columns, chunks={f"{name}x": chunks for name, chunks in columns.chunks.items()})},
        {"columns": replace(columns, chunks=swapped)},
        {"columns": replace(columns, chunks=moved)},
        {"data": written(rows[:-1])},
        {"data": written(pl.concat([rows, rows]))},
        {"data": written(rows.drop("crc32c"))},
        {"data": written(rows.with_columns(pl.col("model").cast(pl.Int32)))},
        {"data": written(rows.with_columns(zoo=pl.lit("mine")))},
        {"data": written(rows[:0])},
        {"data": written(rows, "0" * 64)},
    ]
    caught = 0
    for number, case in enumerate(cases):
        (site / "manifest.json").write_bytes(pointer)
        try:
            zoo = forge(site, **case)
            found = zoo.scan(None).collect()
            zoo.read(found.filter(pl.col("stored"), pl.col("variant") == "net"))
        except (ZooError, ValueError):
            caught += 1
        else:  # such as a bit of statistics that nobody asked for, or names changed over of columns that all came
            assert number < 48, case
            assert found.select(sorted(found.columns)).equals(near.table().select(sorted(found.columns)))
    assert caught >= 20
    assert data == (site / good.base / columns.path).read_bytes()


def test_columns_that_unpack_to_far_more_than_rows_need(tmp_path: Path) -> None:
    """80 MB of one letter in a row of text: few bytes to fetch, which nobody makes room for."""
    published(tmp_path)
    rows = catalog.open(tmp_path / "site").table().drop("zoo")
    large = rows.with_columns(reason=pl.concat([pl.Series(["a" * (80 << 20)]), rows["reason"][1:]]))
    content = json.dumps({"format": 1, "zoo": manifest_at(tmp_path / "site").zoo})
    zoo = forge(tmp_path / "site", data=write_parquet(large, {"weightscape": content}, row_group_size=GROUP))
    assert len(zoo.scan(None).select("run").collect()) == len(rows)  # which does not need that column
    with pytest.raises(FormatError, match=r"column reason .* unpack to more"):
        zoo.scan(None).select("reason").collect()


def test_rows_in_another_order_are_no_wrong_weights(tmp_path: Path) -> None:
    """Where a row lies follows from its place in the table, so one with rows changed over fits no checksum."""
    published(tmp_path)
    site = tmp_path / "site"
    rows = catalog.open(site).table().drop("zoo")
    manifest = manifest_at(site)
    content = json.dumps({"format": 1, "zoo": manifest.zoo})
    zoo = forge(site, data=write_parquet(rows.reverse(), {"weightscape": content}, row_group_size=GROUP))
    with pytest.raises(CorruptError):
        zoo.read(zoo.scan().filter(variant="net", model=0, checkpoint=0))


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path)
    zoo = catalog.open(tmp_path / "site")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    with pytest.raises(StorageError, match="making room"):
        zoo.scan().collect()


# --- polars itself


def test_polars_reads_it_by_url(tmp_path: Path, web: tuple[Server, str], bucket: str, s3_options: Any) -> None:
    published(tmp_path)
    near = catalog.open(tmp_path / "site")
    put(tmp_path / "site", f"{bucket}/zoo", **s3_options)
    for url, options in (
        (tmp_path / "site", {}),
        (f"{web[1]}/site", {}),
        (f"{bucket}/zoo", s3_options),
    ):
        address, how = catalog.open(url, **options).polars_source()
        rows = (
            pl.scan_parquet(address, storage_options=how or None).filter(pl.col("model") == 3).select("run").collect()
        )
        assert rows.equals(near.scan(None).filter(model=3).select("run").collect())


def test_options_in_other_words() -> None:
    given = {"key": "a", "secret": "b", "token": "c", "client_kwargs": {"region_name": "d"}, "endpoint_url": "http://e"}
    assert objects.s3_options(given) == {
        "aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_session_token": "c", "aws_region": "d",
        "aws_endpoint_url": "http://e", "aws_allow_http": "true",
    }  # fmt: skip  # a table
    assert objects.s3_options({"anon": True}) == {"aws_skip_signature": "true"}
    with pytest.raises(QueryError, match="'profile' has no counterpart"):
        objects.s3_options({"profile": "lab"})


def test_no_source_for_polars(tmp_path: Path, memory: str) -> None:
    near, _ = published(tmp_path)
    with pytest.raises(QueryError, match="is not published"):
        near.polars_source()
    put(tmp_path / "site", memory)
    with pytest.raises(QueryError, match="does not read memory"):
        catalog.open(memory).polars_source()


@settings(max_examples=20)
@given(groups=st.lists(st.integers(0, 5), min_size=1, max_size=12), data=st.data())
def test_runs_of_row_groups(groups: list[int], data: st.DataObject) -> None:
    chosen = sorted(data.draw(st.sets(st.sampled_from(range(len(groups))))))
    columns = Columns("x", tuple(groups), {"a": tuple(Chunk(4, 1, "0" * 32) for _ in groups)}, b"")
    found: Any = Catalog.__new__(Catalog)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("catalog.published.DECODED", 6)
        patch.setattr(Catalog, "columns", columns)
        runs = list(found._runs(chosen))
    assert [group for run in runs for group in run] == chosen
    assert all(sum(groups[group] for group in run) <= 6 or len(run) == 1 for run in runs)


def test_a_variant_of_split_vectors_far_away(tmp_path: Path, memory: str) -> None:
    variant: Variant = long()
    zoo, truth = fill(tmp_path / "zoo", variant)
    publish(zoo, memory)
    far = catalog.open(memory)
    check_reads(far, truth)
    rows = far.scan().collect()
    np.testing.assert_array_equal(far.read(rows, tensors=["b"]), zoo.read(rows, tensors=["b"]))


def test_a_table_without_rows(tmp_path: Path, memory: str) -> None:
    zoo = catalog.create(tmp_path / "zoo", name="none", variants=[net()])
    try:
        publish(zoo, memory, allow_incomplete=True)
    except (FormatError, ZooError):
        return  # nothing to publish is an error there
    assert catalog.open(memory).scan().collect().height == 0
