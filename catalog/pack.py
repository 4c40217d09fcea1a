"""From the hot tier to the packed one and back: the same zoo with smaller files, and every file again to the byte."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from catalog.errors import CorruptError, FormatError, MissingDataError, SpecMismatchError
from catalog.fragments import Fragment, StoredFile, encode_fragment
from catalog.frames import copy_frames
from catalog.grid import HOT, PACKED, STORED_AS, Grid, encode_shard, packed_grid
from catalog.metrics import decode_measurement, metric_files, write_measurement
from catalog.record import LIMIT, Variant
from catalog.store import Zoo, open_zoo
from catalog.table import rebuild_table, table_files
from catalog.write import create


@dataclass(frozen=True)
class Repacked:
    """A zoo in its other tier, with the bytes of the weights' files in each."""

    zoo: Zoo
    hot_bytes: int
    packed_bytes: int

    @property
    def ratio(self) -> float:
        """How many times smaller the packed files are."""
        return self.hot_bytes / self.packed_bytes


def pack(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    **storage_options: Any,
) -> Repacked:
    """Write a complete hot zoo as a packed one, which opens, reads and verifies like any other.

    Shard by shard, from sources checked against their digests; each packed shard is decoded and compared before it is
    committed. The same call again goes on where one was stopped. Holds one shard in memory (64 MiB; a longer lineage
    whole).

    Args:
        target: a new folder, or the one of a call that was stopped.
        progress: called with (shards done, shards in all).
        storage_options: for fsspec, of whichever side is remote.

    Raises:
        NotAZooError, CorruptError: the source is none, or damaged. MissingDataError: it is not complete.
        FormatError: it is packed already, or written otherwise than FORMAT.md says, so that `unpack` could not give
            its bytes back.
        SpecMismatchError: the target is another zoo. StorageError: the disk refused; what was committed stays.
    """
    return _convert(source, target, PACKED, progress, storage_options)


def unpack(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    **storage_options: Any,
) -> Repacked:
    """Write a packed zoo as the hot one it was packed from, to the byte; arguments and errors as for `pack`.

    Fragments and table have the same bytes with the version of polars that wrote them first, the same rows with any.
    """
    return _convert(source, target, HOT, progress, storage_options)


def _convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    tier: str,
    progress: Callable[[int, int], None] | None,
    storage_options: Mapping[str, Any],
) -> Repacked:
    zoo = open_zoo(source, **storage_options)
    if zoo.record.tier == tier:
        raise FormatError(f"{zoo.url} is {tier} already; copy it, or give another zoo")
    if tier == PACKED and zoo.folder.read("zoo.json", LIMIT) != zoo.record.encode():
        raise FormatError(
            f"zoo.json of {zoo.url} was written by other software and could not be given back to the byte; it stays hot"
        )
    committed = zoo.committed()
    if missing := [key for key in zoo.record.shards if key not in committed]:
        raise MissingDataError(
            f"{len(missing)} of {len(zoo.record.shards)} shards of {zoo.url} are not built yet; run the build to its "
            "end"
        )
    variants = [_other(variant) for variant in zoo.record.variants.values()]
    record = zoo.record
    made = create(target, name=record.name, variants=variants, spec=record.spec, info=record.info, **storage_options)
    there = made.committed()
    read = written = 0
    for done, key in enumerate(zoo.record.shards):
        fragment = zoo.fragment(committed[key])
        files = _committed_files(made, there.get(key), fragment) or _convert_shard(zoo, made, fragment, there.get(key))
        read += sum(file.size for file in fragment.files)
        written += sum(file.size for file in files)
        if progress:
            progress(done + 1, len(zoo.record.shards))
    if table_files(zoo.folder):  # a zoo need not have one
        rebuild_table(made)
    for names in metric_files(zoo.folder).values():
        for name in names:
            write_measurement(made, decode_measurement(zoo.record, name, zoo.folder.read(name), zoo.url))
    copy_frames(zoo, made)
    return Repacked(made, read, written) if tier == PACKED else Repacked(made, written, read)


def _other(variant: Variant) -> Variant:
    """The variant in the other tier."""
    if variant.unpacked:
        return replace(variant, grid=variant.unpacked, unpacked=None)
    return replace(variant, grid=packed_grid(variant.grid), unpacked=variant.grid)


def _committed_files(made: Zoo, name: str | None, fragment: Fragment) -> tuple[StoredFile, ...]:
    """The files of a shard that an earlier call committed, if they are there.

    Raises:
        SpecMismatchError: it holds other weights: the target was packed from another build of the same spec.
    """
    if name is None:
        return ()
    found = made.fragment(name)
    if not found.rows.equals(fragment.rows) or found.software != fragment.software:
        raise SpecMismatchError(
            f"shard {found.shard} of {found.variant} in {made.url} has other rows: it was made from another build of "
            "this zoo; choose another folder"
        )
    try:
        whole = all(made.folder.size(file.path) == file.size for file in found.files)
    except FileNotFoundError:
        whole = False
    return found.files if whole else ()


def _convert_shard(zoo: Zoo, made: Zoo, fragment: Fragment, committed: str | None) -> tuple[StoredFile, ...]:
    block = _load(zoo, fragment)
    variant = made.record.variant(fragment.variant)
    parts = [(f"{variant.path}/{key}", part) for key, part in variant.grid.parts(fragment.shard)]

    def encoded() -> Iterator[tuple[str, bytes | memoryview]]:
        for path, part in parts:
            yield path, _encode(variant.grid, block[:, :, part], f"{path} of {made.url}")

    if committed:  # and files are gone: they can be mended, if this software still makes the same
        files = tuple(_described(path, data) for path, data in encoded())
        if encode_fragment(made.record, replace(fragment, files=files))[0] != committed:
            raise CorruptError(
                f"shard {fragment.shard} of {variant.name} in {made.url} has lost files, and they come out otherwise "
                f"now; remove {committed} and run the same command again"
            )
    files = ()
    for path, data in encoded():
        made.folder.write(path, data)
        files += (_described(path, data),)
    made.folder.write(*encode_fragment(made.record, replace(fragment, files=files)))
    return files


def _described(path: str, data: bytes | memoryview) -> StoredFile:
    return StoredFile(path, len(data), hashlib.sha256(data).hexdigest())


def _load(zoo: Zoo, fragment: Fragment) -> np.ndarray:
    """(models, checkpoints, size) of a shard in the stored type, its files and rows checked."""
    from catalog.packed import check_rows, decode_packed  # which loads the compressor

    variant = zoo.record.variant(fragment.variant)
    grid = variant.grid
    where = f"shard {fragment.shard} of {variant.name} in {zoo.url}"
    block = np.empty((len(grid.models(fragment.shard)), *grid.shape[1:]), STORED_AS[grid.dtype])
    for file, (_, part) in zip(fragment.files, grid.parts(fragment.shard), strict=True):
        try:
            # no more than what was committed comes into memory
            long = zoo.folder.local and zoo.folder.size(file.path) > file.size
            data = b"" if long else zoo.folder.read(file.path)
        except FileNotFoundError as error:
            raise MissingDataError(f"{where}: {file.path} is not there; restore it from a copy") from error
        if _described(file.path, data) != file:
            raise CorruptError(f"{where}: {file.path} is not what was committed; restore it from a copy")
        target = block[:, :, part]
        decode = decode_packed if grid.tier == PACKED else _decode_raw
        target[:] = decode(grid, data, target.shape, f"{where}: {file.path}")
    stored = fragment.column("stored", grid.shape[1])
    crc = fragment.column("crc32c", grid.shape[1])
    check_rows((block[place] for place in zip(*np.nonzero(stored), strict=True)), crc[stored], grid.dtype, where)
    return block


def _decode_raw(grid: Grid, data: bytes, shape: tuple[int, int, int], where: str) -> np.ndarray:
    """The block of a hot shard file, which must be as `encode_shard` writes it: so it will be again."""
    (m, _, p), raw = grid.chunk, grid.chunk[0] * grid.chunk[2] * grid.itemsize
    counts = -(-shape[0] // m), shape[1], -(-shape[2] // p)
    if len(data) >= (length := int(np.prod(counts)) * (raw + 4)):
        chunks = np.frombuffer(data, np.uint8, length).reshape(*counts, raw + 4)[..., :raw]
        values = np.ascontiguousarray(chunks).view(STORED_AS[grid.dtype]).reshape(*counts, m, p)
        block = values.transpose(0, 3, 1, 2, 4).reshape(counts[0] * m, shape[1], counts[2] * p)
        block = block[: shape[0], :, : shape[2]]
        if encode_shard(grid, block) == data:
            return block
    raise FormatError(
        f"{where} does not have its chunks in order and NaN around them, and would not come back the same"
    )


def _encode(grid: Grid, block: np.ndarray, where: str) -> bytes | memoryview:
    """The bytes of a shard file; packed ones are decoded and compared, since the hot zoo may be deleted then."""
    if grid.tier == HOT:
        return encode_shard(grid, block)
    from catalog.packed import decode_packed, encode_packed

    data = encode_packed(grid, block)
    bits = f"u{grid.itemsize}"
    if not np.array_equal(
        decode_packed(grid, data, block.shape, where).view(bits), np.ascontiguousarray(block).view(bits)
    ):
        raise CorruptError(f"{where} does not decode to what was encoded; is the memory of this machine sound?")
    return data
