"""One model out of a zoo, as a safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from catalog.folder import Folder
from catalog.store import address_of, one_row
from weightspace.arrays import INTEGERS

if TYPE_CHECKING:
    from catalog.store import Zoo

NAMES = {"bool": "BOOL", "float16": "F16", "float32": "F32"}
NAMES |= {f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}


def export_safetensors(zoo: Zoo, row: Mapping[str, Any] | pl.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write one row's tensors under their names, with the row's columns as metadata.

    Floats come in the zoo's stored type, integer buffers in their own; tied tensors are written once, under the name
    that stores them. The file is complete or absent.

    Raises:
        QueryError, MissingDataError, CorruptError: as for `Zoo.read`. StorageError: the disk refused.
    """
    columns = one_row(row)
    weights = zoo.read(address_of(columns))[0]
    stored, layout = zoo.record.dtype, zoo.layouts[columns["variant"]]
    kept = "float32" if stored == "bfloat16" else stored
    layout = replace(layout, dtypes=tuple(dtype if dtype in INTEGERS else kept for dtype in layout.dtypes))
    tensors = layout.unflatten(weights, cast=True)
    metadata = {key: str(value) for key, value in columns.items() if value is not None and not isinstance(value, bytes)}
    metadata |= {f"tied.{name}": owner for name, owner in layout.aliases}
    target = Path(os.path.abspath(path))
    Folder.at(target.parent).write(
        target.name, encode({name: tensors[name] for name in layout.names}, metadata, stored)
    )


def encode(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], stored: str) -> bytes:
    """The bytes of a safetensors file: length of the header, header, tensors one after another.

    By hand, since the numpy functions of the library know no bfloat16, and those below them change with its versions.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts, end = [], 0
    for name, tensor in tensors.items():
        kind, data = NAMES.get(tensor.dtype.name, ""), np.ascontiguousarray(tensor)
        if stored == "bfloat16" and tensor.dtype == np.float32:  # as which it was read: its bits are the upper half
            kind, data = "BF16", (data.view(np.uint32) >> 16).astype("<u2")
        parts.append(data.tobytes())
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned in memory
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])
