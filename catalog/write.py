"""Make a zoo and commit its shards. A shard belongs to one worker, is written once, and counts from its fragment on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import FormatError, SpecMismatchError
from catalog.folder import Folder
from catalog.fragments import Fragment, ShardFile, check_rows, encode_fragment
from catalog.grid import checksum, encode_shard, from_stored, make_grid, to_stored
from catalog.record import Record, Variant, decode
from catalog.store import Zoo
from weightspace.layout import Layout


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
    by_name = {variant.name: variant for variant in variants}
    dtypes = {variant.grid.dtype for variant in by_name.values()}
    if len(dtypes) != 1:
        raise ValueError(f"the variants of a zoo share one dtype and there is at least one, got {sorted(dtypes)}")
    data = Record(name, dict(spec or {}), by_name, dtypes.pop(), dict(info or {})).encode()
    folder = Folder.at(url, **storage_options)
    record = decode(data, folder.url)
    try:
        found = folder.read("zoo.json")
    except NotADirectoryError as error:
        raise FormatError(f"{folder.url} lies below a file; choose another folder") from error
    except FileNotFoundError as error:
        others = [file for file in folder.files() if file != "zoo.json"][:3]
        if others or (folder.local and os.path.isfile(folder.root)):
            raise FormatError(f"{folder.url} is no zoo and not empty ({others}); choose another folder") from error
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

    Raises:
        ValueError: wrong shape, or weights to store that are not finite in the stored type.
        StorageError: the disk refused; nothing is committed.
    """
    entry = zoo.record.variant(variant)
    grid = entry.grid
    models = grid.models(shard)
    expected = (len(models), *grid.shape[1:])
    if weights.shape != expected:
        raise ValueError(f"shard {shard} of {variant} holds weights {expected}, got {weights.shape}")
    if len(rows) != expected[0] * expected[1]:
        raise ValueError(f"shard {shard} of {variant} has {expected[0] * expected[1]} rows, got {len(rows)}")
    keep = rows["stored"].to_numpy().reshape(expected[:2])
    stored = to_stored(np.where(keep[..., None], weights, np.nan), grid.dtype)
    finite = np.isfinite(from_stored(stored, grid.dtype)).all(-1)
    if (keep & ~finite).any():
        model, checkpoint = np.argwhere(keep & ~finite)[0].tolist()
        raise ValueError(
            f"model {model}, checkpoint {checkpoint} of shard {shard} of {variant} is not finite as {grid.dtype}"
        )
    files = []
    for key, part in grid.parts(shard):
        data = encode_shard(grid, stored[:, :, part])
        path = f"{entry.path}/{key}"
        zoo.folder.write(path, data)
        files.append(ShardFile(path, len(data), hashlib.sha256(data).hexdigest()))
    flat = np.ascontiguousarray(stored).reshape(len(rows), -1)
    address = pl.DataFrame(
        {
            "variant": [variant] * len(rows),
            "model": np.repeat(np.array(models, np.int64), grid.shape[1]),
            "checkpoint": np.tile(np.arange(grid.shape[1], dtype=np.int64), len(models)),
            "crc32c": np.array([checksum(memoryview(row).cast("B")) for row in flat], np.uint32),
        }
    )
    fragment = Fragment(
        variant,
        shard,
        pl.concat([address, rows.drop(address.columns, strict=False)], how="horizontal"),
        tuple(files),
        software,
    )
    check_rows(zoo.record, fragment, zoo.url)
    zoo.folder.write(*encode_fragment(zoo.record, fragment))


def _difference(wanted: Record, found: Record, where: str) -> str:
    """What to say of a zoo that is there already with another content."""

    def flat(record: Record) -> dict[str, str]:
        content = {"name": record.name, "dtype": record.dtype, "variants": sorted(record.variants)}
        content |= {f"spec.{key}": value for key, value in record.spec.items()}
        content |= {f"info.{key}": value for key, value in record.info.items()}
        return {key: json.dumps(value) for key, value in content.items()}

    new, old = flat(wanted), flat(found)
    changed = [
        f"{key}: there {old.get(key)}, asked {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)
    ]
    what = "; ".join(changed[:6]) or "the layouts or chunks differ"
    return f"{where} holds a zoo of another spec ({what}); choose another folder, or build with the spec it has"
