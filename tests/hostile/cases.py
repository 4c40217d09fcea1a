"""The corpus: what a stranger may put into a zoo, with right digests wherever they can be right.

A case changes a copy of a sound zoo (bare, packed or published); what must come of it is a typed error that says so,
found by `verify` too, or nothing at all where it does no harm.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import catalog
from catalog.fragments import KEY
from catalog.grid import checksum
from catalog.publish import publish
from catalog.sealed import seal
from tests.catalog_zoos import Truth, fill, forge, forge_fragment, net

Build = Callable[[Path], str | None]  # may give what is opened below the folder


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Args:
        form: of the zoo that `build` changes: bare, packed or published.
        said: a pattern that some error or problem must match; empty when it does no harm.
        skip: what is not tried.
        verified: whether `verify` must tell too.
    """

    name: str
    form: str
    build: Build
    said: str = ""
    skip: tuple[str, ...] = ()
    verified: bool = True


def templates(home: Path) -> dict[str, tuple[Path, Truth]]:
    """A sound zoo of each form, and the truth about it. Without a table, which would hide the fragments."""
    _, truth = fill(home / "bare", net())
    for table in (home / "bare").glob("table.*"):
        table.unlink()
    catalog.pack(home / "bare", home / "packed")
    for table in (home / "packed").glob("table.*"):
        table.unlink()
    publish(home / "bare", home / "published")
    return {form: (home / form, truth) for form in ("bare", "packed", "published")}


# --- manifests


def manifest(change: Callable[[dict[str, Any]], object]) -> Build:
    """Another manifest with the right digest, tree and sum of bytes, as pointer and as version 1."""

    def build(place: Path) -> None:
        content = json.loads((place / "manifest.json").read_bytes())
        del content["digest"]
        change(content)
        try:
            lines = sorted(f"{digest}  {path}\n" for path, _, digest in content["files"])
            lines = [line for _, line in sorted((line.split("  ", 1)[1], line) for line in lines)]
            content["tree"] = hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
            content["bytes"] = sum(size for _, size, _ in content["files"])
        except (TypeError, ValueError, KeyError):
            pass
        try:
            data = seal(content)
        except ValueError:  # surrogates
            body = json.dumps(content, indent=1).removesuffix("\n}").encode()
            data = sealed(body)
        for name in ("manifest.json", "versions/1.json"):
            (place / name).write_bytes(data)

    return build


def sealed(body: bytes) -> bytes:
    return body + f',\n "digest": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def text(old: str, new: str) -> Build:
    """The text of the manifest changed, with the right digest."""

    def build(place: Path) -> None:
        content = json.loads((place / "manifest.json").read_bytes())
        del content["digest"]
        body = json.dumps(content, indent=1)
        assert old in body
        (place / "manifest.json").write_bytes(sealed(body.replace(old, new, 1).removesuffix("\n}").encode()))

    return build


def member(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.update({key: value})


def variant(key: str, value: Any, content: dict[str, Any]) -> None:
    content["variants"][0][key] = value


def instead(data: bytes, _: bytes) -> bytes:
    return data


def put(*path: Any, to: Any) -> Build:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return manifest(change)


def without(key: str) -> Build:
    return manifest(lambda content: content.pop(key))


def added(entry: Any) -> Build:
    return manifest(lambda content: content["files"].append(entry))


PATHS = [
    *("../secret.txt", "../../etc/passwd", "weights/../../secret.txt", "/etc/passwd", "//etc/passwd", "C:\\windows\\x"),
    *(
        "C:/windows/x",
        "c:x",
        "a\\b",
        "\\\\host\\share\\x",
        "a\0b",
        "a\nb",
        "a//b",
        "./a",
        "a/./b",
        "a/..",
        "..",
        ".",
        "",
    ),
    *("a/", "/", "\u202ea", "a\u2028b", "\x7f", "\ud800", "x" * 600, ".tmp-x", "weights/.tmp-x", "file:///etc/passwd"),
    *("http://other.example/x", "s3://bucket/x", "simplecache::http://other.example/x", "NUL:", "a:b"),
]
COLLISIONS = ["ZOO.JSON", "Weights/net/c/0/0/0", "zoo.json", "WEIGHTS/NET/ZARR.JSON"]
FEW = ("measured", "quick", "pack", "publish")  # left out where they do no more than others, to save time
EMPTY = hashlib.sha256(b"").hexdigest()


def manifests() -> Iterator[Case]:
    def case(name: str, build: Build, said: str = "does not follow format 1") -> Case:
        return Case(f"manifest {name}", "published", build, said, FEW)

    path: Any
    value: Any
    for path in PATHS:
        yield case(f"path {path[:40]!r}", added([path, 0, EMPTY]))
    for path in COLLISIONS:
        yield case(f"collision {path}", added([path, 0, EMPTY]))
    for path in (7, None, True, ["x"], {"x": 1}):
        yield case(f"path of type {type(path).__name__}", added([path, 0, EMPTY]))
    for size in (-1, 1.5, 1.0, True, "5", None, 2**60, 10**30, [1]):
        yield case(f"size {size!r}", added(["x", size, EMPTY]))
    for digest in ("", "x", EMPTY.upper(), EMPTY[1:], "0" + EMPTY, 7, None, [EMPTY]):
        yield case(f"sha256 {str(digest)[:10]!r}", added(["x", 0, digest]))
    for entry in ([], ["x"], ["x", 0], ["x", 0, EMPTY, 1], {"path": "x"}, "x", 7, None):
        yield case(f"entry {str(entry)[:20]}", added(entry))
    for key in (
        "name",
        "version",
        "base",
        "zoo",
        "created",
        "licence",
        "counts",
        "files",
        "columns",
        "previous",
    ):
        yield case(f"without {key}", without(key))
    for key in ("files", "columns", "counts"):
        for value in (7, None, "x", True):
            yield case(f"{key} {value!r}", put(key, to=value))
    for value in (0, -1, 1.0, True, "1", 10**12, None):
        yield case(f"version {value!r}", put("version", to=value))
    for value in ("../..", "/etc", "", ".", "0" * 12, "..%2f..", 7, None, "a" * 100_000):
        yield case(f"base {str(value)[:10]!r}", put("base", to=value))
    for value in ("0" * 64, "../x", "", 7):
        yield case(f"zoo {str(value)[:10]!r}", put("zoo", to=value))
    for value in ("", "a\nb", "a\u202eb", "x" * 300, 7, None):
        yield case(f"name {str(value)[:10]!r}", put("name", to=value))
    for value in ("yesterday", "2026-1-1", "2026-11-23\n", 7):
        yield case(f"created {value!r}", put("created", to=value))
    for value in ({"ok": -1}, {"ok": 1.5}, {"ok": True}, {"ok": "1"}, [["ok"]], {"ok": 10**30}):
        yield case(f"counts {value!r}", put("counts", to=value))
    yield case("counts that lie", put("counts", to={"ok": 10**9}), "the manifest counts")
    for value, said in ((2, "of format 2"), (True, "of format"), ("1", "of format"), (1.0, "of format")):
        yield case(f"format {value!r}", put("format", to=value), said)
    nested = "[" * 100_000
    for name, old, new in (
        ("NaN", '"version": 1', '"version": NaN'),
        ("Infinity", '"version": 1', '"version": -Infinity'),
        ("1e400", '"version": 1', '"version": 1e400'),
        ("duplicate key", '"version": 1', '"version": 1, "version": 1'),
        ("deep list", '"version": 1', f'"version": {nested}{"]" * 100_000}'),
        ("open list", '"version": 1', f'"version": {nested}'),
        ("deep object", '"version": 1', '"version": ' + '{"a":' * 100_000 + "1" + "}" * 100_000),
        ("long number", '"version": 1', f'"version": {"9" * 10_000}'),
        ("comment", '"version": 1', '/* */ "version": 1'),
        ("byte-order mark", "{", "\ufeff{"),
    ):
        yield case(name, text(old, new), "is not the JSON it should be")
    yield case("utf-16", lambda place: write(place / "manifest.json", sealed("{}".encode("utf-16"))), "manifest.json")
    yield case("too large", lambda place: hole(place / "manifest.json", 8 << 30), "more than the")
    yield case("empty", lambda place: write(place / "manifest.json", b""), "damaged")
    yield case("no object", lambda place: write(place / "manifest.json", sealed(b"[1")), "not the JSON|damaged")
    yield case("a pipe", pipe("manifest.json"), "no zoo")
    yield case("a device", link("manifest.json", "/dev/zero"), "no zoo")
    yield Case("version of another number", "published", other_version, "is the manifest of version 1")
    for number in ("0", "01", "9" * 12, "x", "1.json/../../../secret.txt", "-1"):
        yield Case(f"versions/{number}", "published", opened(f"versions/{number}.json"), "no zoo|no Parquet|not there")
    yield from columns()


def columns() -> Iterator[Case]:
    """Maps of columns that lead elsewhere."""

    def case(name: str, change: Callable[[dict[str, Any]], object], said: str = "does not follow format 1") -> Case:
        return Case(f"columns {name}", "published", manifest(lambda content: change(content["columns"])), said, FEW)

    def chunk(place: int, value: Any) -> Callable[[dict[str, Any]], object]:
        return lambda columns: columns["chunks"][0][1][0].__setitem__(place, value)

    for value in (-1, 0, 3, 10**9, 2**63, 1.5, True, "4", None):
        yield case(f"offset {value!r}", chunk(0, value))
    for value in (-1, 10**9, 2**59, 1.5, "4", None):
        yield case(f"size {value!r}", chunk(1, value))
    for value in ("", "x" * 32, "0" * 31, 7, None):
        yield case(f"digest {value!r}", chunk(2, value))
    yield case("another digest", chunk(2, "0" * 32), "columns .* do not lie where")
    yield case("another offset", chunk(0, 5), "columns .* do not lie where")
    yield case("another size", chunk(1, 0), "columns .* do not lie where")
    for value in ("../x", "zoo2.json", "", 7, "/etc/passwd"):
        yield case(f"path {value!r}", member("path", value))
    yield case("path of another file", lambda columns: columns.update(path="zoo.json"))
    for groups in ([], [-1], [1.5], [True], ["8"], [2**61], 7, [1] * 5000, [8, 10]):
        yield case(f"groups {str(groups)[:20]}", member("groups", groups))
    yield case("groups that lie", lambda columns: columns.update(groups=[10**6]), "rows")
    yield case("a column twice", lambda columns: columns["chunks"].append(columns["chunks"][0]))
    yield case("no column", lambda columns: columns.update(chunks=[]))
    yield case("a column less", lambda columns: columns["chunks"].pop(), "columns")
    yield case(
        "300 columns", lambda columns: columns.update(chunks=[[f"c{i}", columns["chunks"][0][1]] for i in range(300)])
    )
    yield case("columns swapped", swapped, "do not lie where|not those")
    for footer in ("", "x", "AAAA", "\u00fc", 7, None, b64encode(b"x").decode(), "A" * (23 << 20)):
        yield case(f"footer {str(footer)[:8]!r}", member("footer", footer))
    long = b64encode(bytes(100) + b"\xff\xff\xff\x7fPAR1").decode()
    yield case("footer of a long length", lambda columns: columns.update(footer=long), "not a Parquet|columns|damaged")
    list_bomb = b"\x15\x02\x19\xfc\xff\xff\xff\xff\x07" + bytes(20)
    bomb = b64encode(list_bomb + struct.pack("<I", len(list_bomb)) + b"PAR1").decode()
    yield case(
        "footer with a list of 2^31", lambda columns: columns.update(footer=bomb), "not a Parquet|columns|damaged"
    )
    for seed in range(20):
        yield case(f"footer flipped {seed}", partial(flip, seed), "columns|Parquet|rows")


def flip(seed: int, columns: dict[str, Any]) -> None:
    data = bytearray(b64decode(columns["footer"]))
    data[random.Random(seed).randrange(len(data) - 8)] ^= 1 << seed % 8
    columns["footer"] = b64encode(data).decode()


def swapped(columns: dict[str, Any]) -> None:
    by_name = dict(columns["chunks"])
    exchanged = {"run": "reason", "reason": "run"}
    columns["chunks"] = [[name, by_name[exchanged.get(name, name)]] for name in by_name]


def other_version(place: Path) -> str:
    (place / "versions/2.json").write_bytes((place / "versions/1.json").read_bytes())
    return "versions/2.json"


def opened(name: str) -> Build:
    return lambda place: name


# --- Parquet


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def hole(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def parquet(rows: pl.DataFrame, said: str, **options: Any) -> bytes:
    out = io.BytesIO()
    rows.write_parquet(out, metadata={KEY: said}, **options)
    return out.getvalue()


def fragment(
    change: Callable[[pl.DataFrame], pl.DataFrame], raw: Callable[[bytes], bytes] = bytes, **options: Any
) -> Build:
    """The fragment of a shard with other rows, or other bytes, under its right name."""

    def build(place: Path) -> None:
        path = next(place.glob("index/net.00000.*"))
        data = parquet(change(pl.read_parquet(path)), pl.read_parquet_metadata(path)[KEY], **options)
        forge_fragment(place, f"index/{path.name}", raw(data))

    return build


def column(name: str, value: Any, dtype: Any = None) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return lambda rows: rows.with_columns(pl.lit(value, dtype).alias(name))


def once(name: str, value: str) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """A column with a text in its first row."""
    return lambda rows: rows.with_columns(pl.Series(name, [value, *[""] * (len(rows) - 1)]))


def page(field: int, value: int) -> Callable[[bytes], bytes]:
    """A page of the file claims another size: the first varint of that field of the first page header."""

    def change(data: bytes) -> bytes:
        # a header begins 15 xx 15 <unpacked> 15 <packed>; a longer number moves all behind it, so it stays as long
        at = 4
        for _ in range(field):
            at += 1
            while data[at] & 128:
                at += 1
            at += 1
        number = value.to_bytes(1, "little")
        return data[: at + 1] + number + data[at + 2 :]

    return change


def parquets() -> Iterator[Case]:
    large = "a" * (128 << 20)
    for name, build, said in (
        ("128 MB of text in zstd", fragment(once("text", large)), "unpack to more"),
        ("128 MB in a reason", fragment(once("reason", large)), "unpack to more"),
        (
            "20 million rows",
            fragment(lambda rows: pl.select(pl.repeat(0, 20_000_000, dtype=pl.Int8))),
            "20,000,000 rows",
        ),
        ("nested", fragment(column("x", [[1]])), "is List"),
        (
            "300 columns",
            fragment(lambda r: r.with_columns(pl.lit(0).alias(f"c{i}") for i in range(300))),
            "at most 256",
        ),
        ("nulls", fragment(lambda rows: rows.with_columns(pl.lit(None, pl.Int64).alias("epoch"))), "has nulls"),
        ("wrong type", fragment(column("crc32c", 1.0)), "column crc32c is"),
        (
            "duplicate ids",
            fragment(lambda r: r.with_columns(pl.lit("r").alias("run"), pl.lit(0, pl.Int64).alias("epoch"))),
            "stand twice",
        ),
        ("a column too many", fragment(column("zoo", "x")), "column zoo"),
        ("another order", fragment(lambda rows: rows[::-1]), "not those of the shard"),
        (
            "a run id of 10 MB",
            fragment(lambda r: r.with_columns((pl.col("run") + "x" * (10 << 20)).alias("run"))),
            "",
        ),
        ("a page of other size", fragment(lambda r: r, page(1, 2)), "Parquet|page|unpack|values|damaged"),
    ):
        yield Case(f"parquet {name}", "bare", build, said)
    for seed in range(30):
        yield Case(
            f"parquet flipped {seed}",
            "bare",
            fragment(lambda r: r, flips(seed)),
            "",
            (*FEW, "query", "pull"),
            verified=False,
        )
    for data in (b"", b"PAR1", b"PAR1PAR1", bytes(1000), b"PAR1" + bytes(64) + b"\xff\xff\xff\x7fPAR1"):
        yield Case(
            f"parquet of {len(data)} bytes", "bare", fragment(lambda r: r, partial(instead, data)), "not a Parquet"
        )


def flips(seed: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        chosen, out = random.Random(seed), bytearray(data)
        for _ in range(chosen.choice((1, 1, 3))):
            out[chosen.randrange(4, len(out) - 8)] ^= 1 << chosen.randrange(8)
        return bytes(out)

    return change


# --- files that are none


def pipe(name: str) -> Build:
    def build(place: Path) -> None:
        path = next(place.glob(name))
        path.unlink()
        os.mkfifo(path)

    return build


def link(name: str, target: str) -> Build:
    def build(place: Path) -> None:
        path = next(place.glob(name))
        path.unlink()
        path.symlink_to(place.parent.parent / target[1:] if target.startswith("~") else target)

    return build


def holed(name: str) -> Build:
    return lambda place: hole(next(place.glob(name)), 8 << 30)


FILES = {
    "zoo.json": "no zoo|damaged|more than",
    "zarr.json": "zarr.json",
    "weights/net/zarr.json": "zarr.json",
    "weights/net/c/0/0/0": "not there|bytes, .* were committed",
    "index/net.00000.*": "net.00000",
}


def places() -> Iterator[Case]:
    for form, base in (("bare", ""), ("published", "*/")):
        for name, said in FILES.items():
            for kind, build in (
                ("pipe", pipe(base + name)),
                ("device", link(base + name, "/dev/zero")),
                ("link to a secret", link(base + name, "~secret.txt")),
                ("link to itself", link(base + name, "loop")),
                ("hole of 8 GiB", holed(base + name)),
            ):
                # as a stranger of another kind: a link is followed, its bytes are compared and told to nobody
                yield Case(
                    f"{form} {name} {kind}", form, build, f"{said}|is not what|is not there|symbolic|damaged|no zoo"
                )


# --- zoo.json and Zarr


def zoo_json(change: Callable[[dict[str, Any]], object]) -> Build:
    return lambda place: forge(place, change)


def architectures() -> Iterator[Case]:
    """Architectures are data that the catalog never reads; only the digest of the zoo is another one then."""
    value: Any
    for value in (
        {"family": "__import__('os').system('touch hacked')"},
        {"family": "mlp", "width": 10**9, "depth": -1},
        {"family": "../../secret", "class": "os.system"},
        {"family": "mlp", "__reduce__": ["os.system", ["touch hacked"]]},
        {"py/object": "subprocess.Popen", "args": "touch hacked"},
        {"family": "<script>alert(1)</script>", "width": "{{7*7}}"},
    ):
        change = zoo_json(partial(variant, "architecture", value))
        yield Case(f"architecture {str(value)[:60]}", "bare", change, "belongs to another zoo")
    for key, value in (
        ("shape", [10**9, 2, 9]),
        ("shape", [6, 2, 10**9]),
        ("shape", [6, -1, 9]),
        ("shape", [6, 2**62, 9]),
    ):
        change = zoo_json(partial(variant, key, value))
        yield Case(f"zoo.json {key} {value}", "bare", change, "follow|another zoo|rows")
    tensors = [
        {"name": f"t{i}", "shape": [1], "offset": i, "dtype": "float32", "role": "parameter"} for i in range(20_000)
    ]
    many = {"tensors": tensors, "aliases": [], "size": 9}
    yield Case("20,000 tensors", "bare", zoo_json(lambda c: c["variants"][0].update(layout=many)), "follow|size must")


ZARR: dict[str, Any] = {
    "big-endian": ("endian", "big"),
    "vlen-utf8": ("data_type", "string"),
    "object": ("data_type", "|O"),
    "unknown codec": ("codecs", [{"name": "os.system", "configuration": {"command": "touch hacked"}}]),
    "pickle codec": ("codecs", [{"name": "numcodecs.pickle", "configuration": {}}]),
    "1000 codecs": ("codecs", [{"name": "bytes"}] * 1000),
    "negative shape": ("shape", [-1, 2, 9]),
    "shape of 10^15": ("shape", [10**15, 2, 9]),
    "chunk of 0": ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0, 0, 0]}}),
    "a fill value": ("fill_value", 0.0),
    "deep attributes": ("attributes", json.loads("[" * 500 + "]" * 500)),
    "code in attributes": ("attributes", {"__class__": "os.system", "py/reduce": ["os.system", "touch hacked"]}),
}


def zarrs() -> Iterator[Case]:
    """Zarr metadata that say something else than zoo.json: nobody follows them, and `verify` tells."""

    def changed(key: str, value: Any, form: str) -> Build:
        def build(place: Path) -> None:
            path = next(place.glob("weights/net/zarr.json" if form != "published" else "*/weights/net/zarr.json"))
            path.write_text(json.dumps({**json.loads(path.read_bytes()), key: value}))

        return build

    for form in ("bare", "packed", "published"):
        for name, (key, value) in ZARR.items():
            said = "zarr.json is not what|zarr.json has"
            yield Case(f"{form} zarr {name}", form, changed(key, value, form), said, skip=("publish", "pull"))
    yield Case("zarr v2 with a pickle filter", "bare", version_2, "committed by nobody")
    for data in (b'{"a": NaN}', b"[" * 100_000, b"\xef\xbb\xbf{}", b'{"zarr_format": 2}', b'{"a": 1, "a": 2}'):
        build = lambda place, data=data: write(place / "weights/net/zarr.json", data)  # noqa: E731
        yield Case(f"zarr.json {data[:12]!r}", "bare", build, "zarr.json is not what")


def version_2(place: Path) -> None:
    """What ran code in numcodecs up to 0.16.5."""
    filters = [{"id": "pickle", "protocol": 5}]
    about = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": None, "fill_value": None}
    (place / "weights/net/.zarray").write_text(json.dumps({**about, "filters": filters, "order": "C"}))
    (place / ".zgroup").write_text('{"zarr_format": 2}')
    (place / "weights/net/0").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")


# --- shards


def shard(change: Callable[[np.ndarray, bytearray], object]) -> Build:
    """Another index and body of a shard, with all its checksums."""

    def build(place: Path) -> None:
        path = place / "weights/net/c/0/0/0"
        data = path.read_bytes()
        length = index_length(place)
        index = np.frombuffer(data[-length:-4], "<u8").reshape(-1, 2).copy()
        body = bytearray(data[:-length])
        change(index, body)
        tail = index.tobytes()
        whole = bytes(body) + tail + checksum(tail).to_bytes(4, "little")
        path.write_bytes(whole)
        claim(place, whole)

    return build


def index_length(place: Path) -> int:
    content = json.loads((place / "zoo.json").read_bytes())["variants"][0]
    return 16 * int(np.prod([s // c for s, c in zip(content["shard"], content["chunk"], strict=True)])) + 4


def claim(place: Path, data: bytes) -> None:
    path = next(place.glob("index/net.00000.*"))
    said = json.loads(pl.read_parquet_metadata(path)[KEY])
    said["files"][0] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forge_fragment(place, f"index/{path.name}", parquet(pl.read_parquet(path), json.dumps(said)))


def entry(row: int, value: int, at: int = 0) -> Callable[[np.ndarray, bytearray], object]:
    return lambda index, _: index.__setitem__((at, row), value)


def blosc_header(at: int, value: int) -> Callable[[np.ndarray, bytearray], object]:
    """A number in the header of the first packed chunk, whose checksum is right again."""

    def change(index: np.ndarray, body: bytearray) -> None:
        offset, length = map(int, index[0])
        body[offset + at : offset + at + 4] = struct.pack("<I", value)
        chunk = bytes(body[offset : offset + length - 4])
        body[offset + length - 4 : offset + length] = checksum(chunk).to_bytes(4, "little")

    return change


def bomb(index: np.ndarray, body: bytearray) -> None:
    """A chunk of few bytes that unpacks to 256 MiB."""
    from numcodecs import blosc

    data = blosc.compress(np.zeros(64 << 20, np.uint32), b"zstd", 1, blosc.SHUFFLE)
    body[:] = data + checksum(data).to_bytes(4, "little")
    index[0] = 0, len(body)


def shards() -> Iterator[Case]:
    said = "points outside|not raw|damaged|not those committed|lacks|not what the format|too few"
    for form in ("bare", "packed"):
        for value in (1, 2**31, 2**63, 2**64 - 1, 2**64 - 2, 10**6):
            yield Case(f"{form} index offset {value}", form, shard(entry(0, value)), said)
        for value in (0, 1, 2**31, 2**63, 2**64 - 1):
            yield Case(f"{form} index length {value}", form, shard(entry(1, value)), said)
        yield Case(f"{form} no chunk", form, shard(lambda index, _: index.fill(2**64 - 1)), said)
    yield Case("chunks on each other", "bare", shard(lambda index, _: index.__setitem__(1, index[0])), said)
    yield Case("packed bomb", "packed", shard(bomb), said)
    for at, name in ((4, "unpacked bytes"), (8, "size of a block"), (12, "packed bytes"), (0, "version")):
        for value in (0, 3, 2**31 - 1, 2**32 - 1):
            if (name, value) != ("size of a block", 3):  # of no consequence to a chunk so small
                yield Case(f"packed header {name} {value}", "packed", shard(blosc_header(at, value)), said)


# --- names that do harm elsewhere: shells, pages, tables

TEXTS = {
    "script": "<script>alert(1)</script>",
    "attribute": '" onmouseover="alert(1)',
    "markdown": "](javascript:alert(1))\n---\nlicense: mit",
    "right to left": "abc\u202etxt.exe",
    "formula": "=cmd|' /C calc'!A0",
    "formula at": "@SUM(1+1)*cmd|' /C calc'!A0",
    "nul": "a\0b",
    "path": "../../../etc/passwd",
    "template": "{{7*7}}${7*7}%s%n",
    "sql": "'; DROP TABLE rows; --",
}


def renamed(value: str, rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns((pl.col("run") + value).alias("run"))


def names() -> Iterator[Case]:
    for name, value in TEXTS.items():
        for where in ("run", "reason", "note"):
            if where == "run":
                build = fragment(partial(renamed, value))
            else:
                build = fragment(column(where, value))
            yield Case(f"{where} is {name}", "bare", build, skip=("pack", "pull"))


def slices() -> Iterator[Case]:
    """slice.json: a zoo that claims to need less than it has, or makes no sense."""
    good = {"format": 1, "of": "s3://lab/zoo", "version": 0, "tree": "", "where": [], "date": "2026-11-23"}
    changes: dict[str, dict[str, Any]] = {
        "of another zoo": {"zoo": "0" * 64, "shards": []},
        "format 2": {"format": 2, "shards": []},
        "shard 9": {"shards": [["net", 9]]},
        "shard -1": {"shards": [["net", -1]]},
        "variant ../x": {"shards": [["../x", 0]]},
        "a number": {"shards": 7},
        "twice": {"shards": [["net", 0], ["net", 0]]},
        "a URL with a line": {"shards": [], "of": "s3://x\ny"},
        "a query of 1 MB": {"shards": [], "where": ["x" * 1_000_000]},
    }
    for name, more in changes.items():

        def build(place: Path, more: dict[str, Any] = more) -> None:
            zoo = json.loads((place / "zoo.json").read_bytes())["digest"]
            (place / "slice.json").write_bytes(seal({**good, "zoo": zoo, **more}))

        yield Case(f"slice {name}", "bare", build, "slice.json of .* does not follow")


CASES: tuple[Case, ...] = (
    *manifests(),
    *parquets(),
    *places(),
    *architectures(),
    *zarrs(),
    *shards(),
    *names(),
    *slices(),
)
