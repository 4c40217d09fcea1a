"""Make a zoo and commit its shards. A shard belongs to one worker, is written once, and counts from its fragment on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import FormatError, SpecMismatchError
from catalog.folder import Folder
from catalog.fragments import REQUIRED, Fragment, StoredFile, check_fragment, encode_fragment
from catalog.grid import HOT, checksums, encode_shard, from_stored, make_grid, to_stored
from catalog.record import LIMIT, Record, Variant, decode
from catalog.store import Zoo
from weightspace.layout import Layout

THREAD = 1 << 20  # bytes from which a second thread is worth starting


def make_variant(
    name: str,
    layout: Layout,
    models: int,
    checkpoints: int,
    dtype: str = "float32",
    architecture: Mapping[str, Any] | None = None,
) -> Variant:
    """A variant with the standard cut into chunks and shards."""
    return Variant(name, dict(architecture or {}), layout, make_grid(models, checkpoints, layout.size, dtype))


def create(
    url: str | os.PathLike[str],
    *,
    name: str,
    variants: Iterable[Variant],
    spec: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    **storage_options: Any,
) -> Zoo:
    """Make a zoo, or open it again when it exists with exactly this content (a build that resumes).

    Raises:
        SpecMismatchError: a zoo of other content is there; says what differs.
        FormatError: the folder holds other files.
        StorageError: the disk refused.
    """
    listed = list(variants)
    by_name = {variant.name: variant for variant in listed}
    if len(by_name) != len(listed):
        raise ValueError(f"variants need distinct names, got {[variant.name for variant in listed]}")
    dtypes = {variant.grid.dtype for variant in listed}
    if len(dtypes) != 1:
        raise ValueError(f"the variants of a zoo share one dtype and there is at least one, got {sorted(dtypes)}")
    data = Record(name, dict(spec or {}), by_name, dtypes.pop(), dict(info or {})).encode()
    folder = Folder.at(url, **storage_options)
    record = decode(data, folder.url)
    if folder.local and (file := _file_in_the_way(folder.root)):
        raise FormatError(f"{folder.url} cannot be a folder, {file} is a file; choose another folder")
    try:
        found = folder.read("zoo.json", LIMIT)
    except FileNotFoundError as error:
        if others := folder.files():
            raise FormatError(f"{folder.url} is no zoo and not empty ({others[:3]}); choose another folder") from error
        folder.write("zoo.json", data)
    else:
        if found != data:
            raise SpecMismatchError(_difference(record, decode(found, folder.url), folder.url))
    folder.sweep()
    for file, content in record.metadata_files().items():
        if not folder.exists(file):
            folder.write(file, content)
    return Zoo(folder, record)


def write_shard(
    zoo: Zoo, variant: str, shard: int, weights: np.ndarray, rows: pl.DataFrame, software: Mapping[str, str]
) -> None:
    """Write a shard's weights, then commit its rows. Afterwards it is readable, also after a power cut.

    Args:
        weights: (models of the shard, checkpoints, size) floats; rows with stored=False are filled with NaN.
        rows: one a (model, checkpoint) in that order, with run, epoch, status, reason, stored and any columns.
        software: versions of what made the weights, kept in the fragment.

    Writing a committed shard again is allowed with the same content, and mends files that were lost or damaged.

    Raises:
        ValueError: wrong shape or rows, weights to store that are not finite in the stored type, or a shard that is
            committed with another content. Nothing is written.
        StorageError: the disk refused; nothing is committed.
    """
    entry = zoo.record.variant(variant)
    grid = entry.grid
    if grid.tier != HOT:
        raise ValueError(f"{zoo.url} is packed; write a hot zoo and pack it")
    if not 0 <= shard < grid.num_shards:
        raise ValueError(f"{variant} has shards 0 to {grid.num_shards - 1}, got {shard}")
    models = grid.models(shard)
    expected = (len(models), *grid.shape[1:])
    if weights.shape != expected:
        raise ValueError(f"shard {shard} of {variant} holds weights {expected}, got {weights.shape}")
    if len(rows) != expected[0] * expected[1]:
        raise ValueError(f"shard {shard} of {variant} has {expected[0] * expected[1]} rows, got {len(rows)}")
    if missing := [name for name in (*REQUIRED, "stored") if name not in rows.columns]:
        raise ValueError(f"rows of a shard need the columns {missing}, got {rows.columns}")
    if rows.schema["stored"] != pl.Boolean or rows["stored"].null_count():
        raise ValueError(f"column stored must be true or false, got {rows.schema['stored']}")
    keep = rows["stored"].to_numpy().reshape(expected[:2])
    if not keep.all():
        weights = np.where(keep[..., None], weights, np.nan)
    stored = np.ascontiguousarray(to_stored(weights, grid.dtype))
    finite = np.isfinite(from_stored(stored, grid.dtype)).all(-1)
    if (keep & ~finite).any():
        model, checkpoint = np.argwhere(keep & ~finite)[0].tolist()
        raise ValueError(
            f"model {model}, checkpoint {checkpoint} of shard {shard} of {variant} is not finite as {grid.dtype}"
        )
    flat = stored.reshape(len(rows), -1)
    address = pl.DataFrame(
        {
            "variant": [variant] * len(rows),
            "model": np.repeat(np.array(models, np.int64), grid.shape[1]),
            "checkpoint": np.tile(np.arange(grid.shape[1], dtype=np.int64), len(models)),
            "crc32c": np.array(checksums(flat), np.uint32),
        }
    )
    table = pl.concat([address, rows.drop(address.columns, strict=False)], how="horizontal")

    def encoded() -> Iterator[tuple[str, memoryview]]:  # one at a time: long vectors have many of 64 MiB
        for key, part in grid.parts(shard):
            yield f"{entry.path}/{key}", encode_shard(grid, stored[:, :, part])

    def fragment(files: Iterable[StoredFile]) -> Fragment:
        return Fragment(variant, shard, table, tuple(files), software)

    planned = [StoredFile(f"{entry.path}/{key}", 0, "") for key, _ in grid.parts(shard)]
    check_fragment(zoo.record, fragment(planned), zoo.url)  # before anything is written
    if committed := zoo.committed().get((variant, shard)):
        name, _ = encode_fragment(zoo.record, fragment(StoredFile(p, len(d), _sha256(d)) for p, d in encoded()))
        if name != committed:
            raise ValueError(
                f"shard {shard} of {variant} in {zoo.url} is committed with another content ({committed}), and what is "
                "committed never changes; write another zoo"
            )
    files = [StoredFile(path, len(data), _write(zoo.folder, path, data)) for path, data in encoded()]
    zoo.folder.write(*encode_fragment(zoo.record, fragment(files)))


def _write(folder: Folder, path: str, data: memoryview) -> str:
    """Write a file; returns its sha256, which another thread finds while the disk is busy."""
    if len(data) < THREAD:
        folder.write(path, data)
        return _sha256(data)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(_sha256, data)
        folder.write(path, data)
        return digest.result()


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_in_the_way(root: str) -> str | None:
    """The file that stands where the folder `root` or one above it should be."""
    path = root
    while path != os.path.dirname(path):
        if os.path.isfile(path):
            return path
        path = os.path.dirname(path)
    return None


def _difference(wanted: Record, found: Record, where: str) -> str:
    """What to say of a zoo that is there already with another content."""

    def flat(record: Record) -> dict[str, str]:
        # the cause before what follows from it
        content: dict[str, Any] = {"name": record.name, "dtype": record.dtype, "tier": record.tier}
        for key, value in record.spec.items():
            content |= {f"spec.{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {}
            content |= {} if isinstance(value, dict) else {f"spec.{key}": value}
        content |= {f"info.{key}": value for key, value in record.info.items()}
        content["variants"] = list(record.variants)
        for name, variant in record.variants.items():
            content |= {f"{name}.architecture": dict(variant.architecture), f"{name}.shape": variant.grid.shape}
        return {key: json.dumps(value) for key, value in content.items()}

    new, old = flat(wanted), flat(found)
    changed = [
        f"{key}: there {old.get(key, 'nothing'):.80}, asked {new.get(key, 'nothing'):.80}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    what = "; ".join(changed[:6]) or "the layouts or chunks differ"
    return f"{where} holds a zoo of another spec ({what}); choose another folder, or build with the spec it has"
