"""One model out of a zoo, as a safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from safetensors import serialize

from catalog.folder import Folder

if TYPE_CHECKING:
    from catalog.store import Zoo


def export_safetensors(zoo: Zoo, row: Mapping[str, Any] | pl.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write one row's tensors under their names, with the row's columns as metadata.

    Tensors come in the zoo's stored type (integer buffers in their own); tied tensors are written once, under the name
    that stores them. The file is complete or absent.
    """
    columns = row.row(0, named=True) if isinstance(row, pl.DataFrame) and len(row) == 1 else row
    tensors = zoo.state_dict(row)
    layout = zoo.layouts[columns["variant"]]
    content = {name: _entry(tensors[name], zoo.record.dtype) for name in layout.names}
    metadata = {key: str(value) for key, value in dict(columns).items() if not isinstance(value, bytes)}
    metadata |= {f"tied.{name}": stored for name, stored in layout.aliases}
    target = Path(os.path.abspath(path))
    Folder.at(target.parent).write(target.name, serialize(content, metadata=metadata))


def _entry(tensor: np.ndarray, stored: str) -> dict[str, Any]:
    if stored == "bfloat16" and tensor.dtype == np.float32:
        bits = (np.ascontiguousarray(tensor).view(np.uint32) >> 16).astype("<u2")
        return {"dtype": "bfloat16", "shape": list(tensor.shape), "data": bits.tobytes()}
    return {"dtype": tensor.dtype.name, "shape": list(tensor.shape), "data": np.ascontiguousarray(tensor).tobytes()}
