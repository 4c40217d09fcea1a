"""A zoo far away gives the same rows and weights as one on this disk: memory://, S3, a web server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import catalog
from catalog.errors import CorruptError, FormatError, MissingDataError, NotAZooError, StorageError, ZooError
from catalog.store import Zoo
from tests.catalog_zoos import check_reads, create, fill, long, net, write
from tests.servers import Server, put


def check_same(far: Zoo, near: Zoo, truth: Any) -> None:
    assert far.table().equals(near.table())
    check_reads(far, truth)
    rows = near.scan().filter(variant="long").collect()[[3, 0, 3]]
    np.testing.assert_array_equal(far.read(rows, tensors=["b"]), near.read(rows, tensors=["b"]))
    row = rows.row(0, named=True)
    np.testing.assert_array_equal(far.state_dict(row)["w"], near.state_dict(row)["w"])


# --- the same, wherever it lies


def test_memory(tmp_path: Path, memory: str) -> None:
    near, truth = fill(tmp_path)
    put(tmp_path, memory)
    check_same(catalog.open(memory), near, truth)
    assert catalog.verify(memory).digest == catalog.verify(tmp_path).digest


def test_s3(tmp_path: Path, bucket: str, s3_options: dict[str, Any]) -> None:
    near, truth = fill(tmp_path)
    put(tmp_path, f"{bucket}/a/zoo", **s3_options)
    check_same(catalog.open(f"{bucket}/a/zoo", **s3_options), near, truth)
    assert catalog.verify(f"{bucket}/a/zoo", **s3_options).digest == catalog.verify(tmp_path).digest


def test_http(tmp_path: Path, web: tuple[Server, str]) -> None:
    near, truth = fill(tmp_path / "a zoo")
    _, url = web
    check_same(catalog.open(f"{url}/a%20zoo"), near, truth)
    verification = catalog.verify(f"{url}/a%20zoo")
    assert verification.problems == ()
    assert verification.digest == catalog.verify(tmp_path / "a zoo").digest


def test_several_places_are_one_table(tmp_path: Path, memory: str, web: tuple[Server, str]) -> None:
    truths = {name: fill(tmp_path / name, name=name, seed=seed)[1] for seed, name in enumerate(("near", "far", "web"))}
    put(tmp_path / "far", memory)
    zoos = catalog.open([tmp_path / "near", memory, f"{web[1]}/web"])
    rows = zoos.scan().filter(variant="net").collect().sample(fraction=1, shuffle=True, seed=0)
    assert set(rows["zoo"]) == set(truths)
    expected = [truths[z][v, m, c] for z, v, m, c in rows.select("zoo", "variant", "model", "checkpoint").iter_rows()]
    np.testing.assert_array_equal(zoos.read(rows), np.stack(expected))


def test_only_the_shard_of_a_row_is_touched(tmp_path: Path, web: tuple[Server, str]) -> None:
    near, _ = fill(tmp_path / "zoo", net())
    server, url = web
    far = catalog.open(f"{url}/zoo")
    row = near.table().filter(model=4, checkpoint=0)
    np.testing.assert_array_equal(far.read(row), near.read(row))
    assert {request for request in server.requests if "/c/" in request} == {"/zoo/weights/net/c/1/0/0"}


# --- writing


def test_write_to_memory(tmp_path: Path, memory: str) -> None:
    near, truth = fill(tmp_path)
    far, _ = fill(memory)
    check_same(far, near, truth)
    assert catalog.verify(memory).digest == catalog.verify(tmp_path).digest
    create(memory)  # a build that resumes
    write(far, "net", 0)
    with pytest.raises(ValueError, match="another content"):
        write(far, "net", 0, seed=1)
    with pytest.raises(FormatError, match="not empty"):
        create(memory + "/weights")


def test_write_to_s3(tmp_path: Path, bucket: str, s3_options: dict[str, Any]) -> None:
    near, truth = fill(tmp_path)
    far, _ = fill(f"{bucket}/zoo", **s3_options)
    check_same(far, near, truth)
    assert catalog.verify(f"{bucket}/zoo", **s3_options).digest == catalog.verify(tmp_path).digest


def test_a_reader_sees_what_others_commit(bucket: str, s3_options: dict[str, Any]) -> None:
    writer = create(f"{bucket}/zoo", net(), **s3_options)
    reader = catalog.open(f"{bucket}/zoo", use_listings_cache=True, skip_instance_cache=True, **s3_options)
    assert len(reader.table()) == 0
    write(writer, "net", 0)
    assert len(reader.table()) == 8
    write(writer, "net", 1)
    assert reader.read(reader.scan()).shape == (10, 9)


def test_listings_are_fresh(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some filesystems keep listings for ever, unless told."""
    zoo = create(memory, net())
    told: list[str] = []
    monkeypatch.setattr(zoo.folder.fs, "invalidate_cache", lambda *_: told.append("told"))
    for listing in (zoo.committed, zoo.folder.top):
        told.clear()
        listing()
        assert told == ["told"]


def test_a_bucket_that_does_not_exist(s3_options: dict[str, Any]) -> None:
    with pytest.raises(NotAZooError):
        catalog.open("s3://nobody-has-this/zoo", **s3_options)
    with pytest.raises(StorageError, match=r"writing zoo\.json"):
        create("s3://nobody-has-this/zoo", **s3_options)


# --- what is missing or damaged there


@pytest.mark.parametrize("place", ["memory", "s3"])
def test_a_shard_that_is_gone(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    options: dict[str, Any] = request.getfixturevalue("s3_options") if place == "s3" else {}
    url = request.getfixturevalue("memory" if place == "memory" else "bucket") + "/zoo"
    _, truth = fill(tmp_path)
    filesystem = put(tmp_path, url, **options)
    zoo = catalog.open(url, **options)
    check_reads(zoo, truth)
    root = fsspec.core.url_to_fs(url, **options)[1]
    filesystem.rm_file(f"{root}/weights/net/c/0/0/0")
    with pytest.raises(MissingDataError, match=r"shard 0 of net in .*: weights/net/c/0/0/0 is not there"):
        zoo.read(zoo.scan().filter(variant="net"))
    rest = zoo.scan().filter(variant="net", model=4).collect()
    np.testing.assert_array_equal(zoo.read(rest)[0], truth["net", 4, 0])
    assert [p.kind for p in catalog.verify(url, **options).problems] == ["missing"]
    filesystem.pipe_file(f"{root}/weights/long/c/0/0/0", (tmp_path / "weights/long/c/1/0/0").read_bytes())
    with pytest.raises(CorruptError, match="not those committed"):
        zoo.read(zoo.scan().filter(variant="long"))


def test_no_zoo_there(memory: str, web: tuple[Server, str]) -> None:
    for url in (memory, f"{web[1]}/nothing", web[1]):
        with pytest.raises(NotAZooError, match="is no zoo"):
            catalog.open(url)


def test_a_shard_that_is_gone_from_a_web_server(tmp_path: Path, web: tuple[Server, str]) -> None:
    zoo, _ = fill(tmp_path / "zoo")
    far = catalog.open(f"{web[1]}/zoo")
    rows = zoo.scan().filter(variant="net").collect()
    shard = tmp_path / "zoo/weights/net/c/0/0/0"
    data = shard.read_bytes()
    shard.unlink()
    with pytest.raises(MissingDataError, match=r"weights/net/c/0/0/0 is not there"):
        far.read(rows)
    shard.write_bytes(data[:-7])
    with pytest.raises(CorruptError, match=r"bytes, .* were committed"):
        far.read(rows)


@pytest.mark.parametrize("mode", ["unlisted", "blank"])
@pytest.mark.parametrize("call", ["scan", "committed", "verify"])
def test_servers_that_list_nothing_do_not_pass_for_empty_zoos(
    mode: str, call: str, tmp_path: Path, web: tuple[Server, str]
) -> None:
    fill(tmp_path / "zoo", net())
    server, url = web
    zoo = catalog.open(f"{url}/zoo")
    server.mode = mode
    with pytest.raises(FormatError, match=r"cannot be listed; use a server that lists its folders, or copy"):
        catalog.verify(f"{url}/zoo") if call == "verify" else getattr(zoo, call)()


def test_a_zoo_without_shards_is_empty_over_http(tmp_path: Path, web: tuple[Server, str]) -> None:
    create(tmp_path / "zoo", net())
    assert catalog.open(f"{web[1]}/zoo").scan().collect().height == 0


def test_a_server_without_ranges(tmp_path: Path, web: tuple[Server, str]) -> None:
    zoo, _ = fill(tmp_path / "zoo", net())
    server, url = web
    far = catalog.open(f"{url}/zoo")
    server.mode = "no ranges"
    with pytest.raises(FormatError, match="does not answer byte ranges"):
        far.read(zoo.scan())


def test_a_server_that_is_down(tmp_path: Path, web: tuple[Server, str]) -> None:
    zoo, _ = fill(tmp_path / "zoo", net())
    server, url = web
    far = catalog.open(f"{url}/zoo", retries=1, backoff=0.001)
    server.mode = "down"
    for call in (lambda: far.read(zoo.scan()), far.scan, lambda: catalog.open(f"{url}/zoo", retries=0)):
        with pytest.raises(StorageError, match="answer 503"):
            call()


def test_a_web_server_cannot_be_written(web: tuple[Server, str]) -> None:
    with pytest.raises(ZooError):
        create(f"{web[1]}/zoo", long())
