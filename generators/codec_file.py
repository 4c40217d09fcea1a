"""A codec as one safetensors file: what decodes samples where the zoo is not. Reading it runs no code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from catalog.errors import CorruptError, FormatError, GeneratorError
from catalog.export import encode
from catalog.folder import Folder
from generators.codec import Codec
from weightspace.layout import Layout

FORMAT = "weightscape codec 1"
ARRAYS = ("mean", "scale", "spread", "basis", "factor")
KEYS = {"layout", "population", "settings", "report"}


def save_codec(codec: Codec, path: str | os.PathLike[str]) -> None:
    """Write a codec; the file is complete or absent, also after a power cut.

    Raises:
        StorageError: the disk refused.
    """
    arrays = {name: getattr(codec, name) for name in ARRAYS if getattr(codec, name) is not None}
    about = {
        "layout": codec.layout.to_json(),
        "population": codec.population,
        "settings": dict(codec.settings),
        "report": dict(codec.report),
    }
    text = json.dumps(about, sort_keys=True, allow_nan=False)
    metadata = {"format": FORMAT, "codec": text, "digest": _digest(text, arrays)}
    target = Path(os.path.abspath(path))
    Folder.at(target.parent).write(target.name, encode(arrays, metadata, "float32"))


def load_codec(path: str | os.PathLike[str]) -> Codec:
    """Read what `save_codec` wrote, trusting none of it.

    Raises:
        GeneratorError: no such file. FormatError: it is no codec, or of another version. CorruptError: its content is
            not what was written.
    """
    target = Path(os.path.abspath(path))
    try:
        data = Folder.at(target.parent).read(target.name)
    except FileNotFoundError as error:
        raise GeneratorError(f"there is no codec at {path}") from error
    try:
        arrays = safetensors.numpy.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if metadata["format"] != FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}, this weightscape reads {FORMAT!r}")
        text = metadata["codec"]
        if metadata["digest"] != _digest(text, arrays):
            raise CorruptError(f"{path} is damaged: its content does not have its digest; restore it from a copy")
        return _checked(json.loads(text), arrays)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, CorruptError):
            raise
        raise FormatError(f"{path} is no codec: {error}") from error


def _checked(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Codec:
    """The codec of these parts; ValueError says what does not fit."""
    if set(about) != KEYS or not set(ARRAYS[:3]) <= set(arrays) <= set(ARRAYS):
        raise ValueError(f"expected {', '.join(sorted(KEYS))} and arrays {', '.join(ARRAYS)}")
    layout, population = Layout.from_json(about["layout"]), about["population"]
    if not isinstance(population, str) or not all(isinstance(about[key], dict) for key in ("settings", "report")):
        raise ValueError("population must be text, settings and report objects")
    basis = arrays.get("basis")
    width = layout.num_parameters if basis is None else len(basis)
    shapes = {
        "mean": (layout.size,),
        "scale": (layout.num_parameters,),
        "spread": (width,),
        "basis": (width, layout.num_parameters),
        "factor": (*arrays["factor"].shape[:1], width) if "factor" in arrays else (),
    }
    for name, array in arrays.items():
        if array.shape != shapes[name] or array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite float32 of shape {shapes[name]}, got {array.dtype} {array.shape}")
    if not (arrays["scale"] > 0).all() or not (arrays["spread"] >= 0).all():
        raise ValueError("scales must be above 0, and spreads not below")
    if basis is not None and not (arrays["spread"] > 0).all():
        raise ValueError("spreads of components must be above 0")
    mean, scale, spread = (arrays[name] for name in ARRAYS[:3])
    told = (population, about["settings"], about["report"])
    return Codec(layout, mean, scale, basis, spread, *told, arrays.get("factor"))


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
