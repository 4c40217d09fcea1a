"""Files of named tensors: safetensors, whose header says all, and pickles, which another process reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from catalog.errors import FormatError
from catalog.grid import from_stored
from catalog.importers.found import BrokenError, Tensors
from catalog.record import brief, strict_json
from weightspace.arrays import FLOATS, INTEGERS
from weightspace.layout import Layout

HEADER_BYTES = 4 << 20  # of a safetensors file: 25,000 tensors. More could become gigabytes of Python objects
PREFIXES = ("module.", "_orig_mod.")  # put before every name by wrappers for many devices, and by compiling
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
KINDS = {"BOOL": "bool", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
KINDS |= {f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}


class Blob(Protocol):
    """Bytes of a file, local or far away."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def read(self, start: int, stop: int) -> bytes: ...


@dataclass(frozen=True)
class TensorFile:
    """Tensors that were found, and how to read them."""

    layout: Layout
    load: Callable[[], Tensors]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: dtype and shape, and where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(blob: Blob) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors of a safetensors file in the order of their bytes, and its metadata.

    Raises:
        BrokenError: the header is damaged, or does not fit the file.
    """
    called = blob.name.rsplit("/", 1)[-1]  # the whole name stands beside it, in the column `source`
    head = blob.read(0, min(8, blob.size))
    length = int.from_bytes(head, "little")
    if len(head) < 8 or not 2 <= length <= min(HEADER_BYTES, blob.size - 8):
        raise BrokenError(f"{called} is no safetensors file: {blob.size:,} bytes, a header of {length:,}")
    try:
        header = strict_json(blob.read(8, 8 + length))
        metadata = {str(k): str(v) for k, v in dict(header.pop("__metadata__", None) or {}).items()}
        entries = {name: _entry(name, value, 8 + length) for name, value in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BrokenError(f"{called} has a header that is none: {brief(error)}") from error
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise BrokenError(f"{called}: tensor {name[:80]!r} begins at byte {entry.start:,}, expected {end:,}")
        end = entry.stop
    if end != blob.size:
        raise BrokenError(f"{called} has {blob.size:,} bytes, its tensors end at {end:,}; it is cut short or damaged")
    order = sorted(entries, key=lambda name: (entries[name].start, entries[name].stop))
    return {name: entries[name] for name in order}, metadata


def _entry(name: str, value: Any, base: int) -> Entry:
    kind, shape, (start, stop) = KINDS.get(value["dtype"]), tuple(value["shape"]), value["data_offsets"]
    if kind is None:
        raise ValueError(f"tensor {name[:80]!r} is {value['dtype']!r:.40}; floats and integers are stored")
    if any(type(n) is not int or not 0 <= n <= 2**48 for n in (*shape, start, stop)) or len(shape) > 32:
        raise ValueError(f"tensor {name[:80]!r} has shape or offsets {value!r:.120}")
    if stop - start != math.prod(shape) * width(kind):
        raise ValueError(f"tensor {name[:80]!r} has {stop - start:,} bytes, which does not fit {value!r:.120}")
    return Entry(kind, shape, base + start, base + stop)


def width(dtype: str) -> int:
    """Bytes of a number."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def as_array(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Little-endian bytes as an array; bfloat16 as the float32 it equals."""
    stored = "<u2" if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<")
    array = np.frombuffer(data, stored).reshape(shape)
    return from_stored(array, "bfloat16") if dtype == "bfloat16" else array


def open_safetensors(blobs: Mapping[str, Blob], wanted: Mapping[str, str] | None = None) -> TensorFile:
    """Tensors of one file, or of several that make one network.

    Args:
        blobs: files by name.
        wanted: tensor -> name of its file, as an index says; None for all.

    Raises:
        BrokenError: a damaged file, a tensor twice, or one that the index names and no file has.
    """
    places: dict[str, tuple[Blob, Entry]] = {}
    metadata: dict[str, str] = {}
    for name, blob in blobs.items():
        entries, more = read_header(blob)
        metadata |= more
        for tensor, entry in entries.items():
            if tensor in places:
                raise BrokenError(f"tensor {tensor[:80]!r} is in {places[tensor][0].name} and in {name}")
            places[tensor] = blob, entry
    for tensor, name in (wanted or {}).items():
        if tensor not in places or places[tensor][0] is not blobs.get(name):
            raise BrokenError(f"tensor {tensor[:80]!r} is not in {name[:80]}, where the index has it")
    names, notes = plain_names(places)
    tied = [(k[5:], v) for k, v in metadata.items() if k.startswith("tied.") and v in places and k[5:] not in places]
    layout = make_layout(
        {names[name]: (entry.dtype, entry.shape) for name, (_, entry) in places.items()},
        [(new_name(alias, names), names[owner]) for alias, owner in tied],
    )

    def load() -> Tensors:
        out = {}
        for name, (blob, entry) in places.items():
            data = blob.read(entry.start, entry.stop)
            if len(data) != entry.stop - entry.start:
                raise BrokenError(f"{blob.name} is shorter than it was")
            out[names[name]] = as_array(data, entry.dtype, entry.shape)
        return out

    return TensorFile(layout, load, notes)


def make_layout(tensors: Mapping[str, tuple[str, tuple[int, ...]]], aliases: list[tuple[str, str]]) -> Layout:
    """Layout of (dtype, shape) by name. Integers and the statistics of normalisation are buffers, the rest parameters.

    Raises:
        BrokenError: tensors that make no layout, or none.
    """
    shapes = {name: shape for name, (_, shape) in tensors.items()}
    dtypes = {name: dtype for name, (dtype, _) in tensors.items()}
    if odd := [name for name, dtype in dtypes.items() if dtype not in FLOATS + INTEGERS]:
        raise BrokenError(f"tensor {odd[0][:80]!r} is {dtypes[odd[0]][:40]}; floats and integers are stored")
    try:
        layout = Layout(
            tuple(tensors),
            tuple(shapes.values()),
            tuple(dtypes.values()),
            tuple("buffer" if _is_buffer(name, dtypes[name]) else "parameter" for name in tensors),
            tuple(aliases),
        )
    except (ValueError, FormatError) as error:
        raise BrokenError(brief(error)) from error
    if not layout.size:
        raise BrokenError("it holds no weights")
    return layout


def _is_buffer(name: str, dtype: str) -> bool:
    return dtype in INTEGERS or name.rsplit(".", 1)[-1] in BUFFERS


def plain_names(names: Mapping[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Name in the file -> name without the prefix that all have, and a note on that."""
    out, notes = {name: name for name in names}, []
    while prefix := next((p for p in PREFIXES if out and all(_longer(name, p) for name in out.values())), ""):
        out = {old: name.removeprefix(prefix) for old, name in out.items()}
        notes.append(f"the prefix {prefix!r} was taken from all names")
    return out, tuple(notes)


def _longer(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and len(name) > len(prefix)


def new_name(name: str, names: Mapping[str, str]) -> str:
    """An alias without the prefix that was taken from the stored names."""
    old, new = next(iter(names.items()))
    return name.removeprefix(old.removesuffix(new))
