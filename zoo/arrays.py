"""Inputs and labels out of foreign files: npz, parquet, safetensors, Hugging Face data sets. Never opens a pickle."""

from __future__ import annotations

import inspect
import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import fsspec
import numpy as np
import polars as pl
import safetensors.numpy

from catalog.errors import FormatError, InvalidSpecError, StorageError, ZooError, unknown_name

IMAGES = (
    "images",
    "image",
    "img",
    "x",
    "X",
    "data",
    "inputs",
)  # the names looked for when none is given, in this order
LABELS = ("labels", "label", "y", "target", "targets")
HF_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json"}
IMAGE_FORMATS = ("PNG", "JPEG")  # of Pillow's many decoders only these two see foreign bytes
EXTENSION = getattr(pl, "BaseExtension", ())  # types that wrap others, as Array2D of `datasets`; unknown to polars 1
# Whether an empty list explodes to a null: there is none by then, but versions differ in whether one may or must say.
EXPLODE = {"empty_as_null": True} if "empty_as_null" in inspect.signature(pl.Series.explode).parameters else {}
MAX_CHANNELS = 4  # an axis this short can be the channels

Part = tuple[np.ndarray, np.ndarray]  # inputs (n, *input_shape), labels (n,)
Columns = dict[str, Callable[[], np.ndarray]]  # name -> reads it, so that only what is used is decoded


def read_parts(
    url: str,
    names: dict[str, str | None],
    channels: str | None,
    split: str,
    test_url: str | None,
    test_split: str | None,
) -> tuple[Part, Part | None]:
    """Training and test part of a source: checked, not yet encoded or standardised. No test part where there is none.

    Args: as `zoo.datasets.arrays`; `names` has "images" and "labels". Inputs come as real numbers (n, features) or
        (n, channels, height, width), labels as whole numbers or text.
    """
    if channels not in (None, "first", "last"):
        raise InvalidSpecError(f"channels must be 'first', 'last' or None (found by size), got {channels!r}")
    if wrong := [value for value in names.values() if not isinstance(value, str | None)]:
        raise InvalidSpecError(f"images and labels must be names of arrays or columns, got {wrong[0]!r}")
    columns = _open(url, split)
    if test_url is None and test_split is None:
        if _pair(columns, names, "train") and _pair(columns, names, "test"):
            return _part(url, columns, names, channels, ["train"]), _part(url, columns, names, channels, ["test"])
        return _part(url, columns, names, channels, ["", "train"]), None
    test_url = test_url or url
    if test_split is not None and not _is_hf(test_url):
        raise InvalidSpecError(f"test_split={test_split!r} is for Hugging Face data sets (hf:...), not for {test_url}")
    test = _part(test_url, _open(test_url, test_split or split), names, channels, ["", "test"])
    return _part(url, columns, names, channels, ["", "train"]), test


def _pair(columns: Columns, names: dict[str, str | None], part: str) -> tuple[str, str] | None:
    """Names of images and labels: each the first candidate there; a part has `train_x` or `x_train` for `x`."""
    found = []
    for kind, usual in (("images", IMAGES), ("labels", LABELS)):
        given = names[kind]
        forms = ("{1}",) if not part else ("{0}_{1}", "{1}_{0}")
        candidates = [form.format(part, name) for name in ((given,) if given else usual) for form in forms]
        found.append(next((name for name in candidates if name in columns), None))
    images, labels = found
    return (images, labels) if images and labels else None


def _part(url: str, columns: Columns, names: dict[str, str | None], channels: str | None, parts: list[str]) -> Part:
    pair = next(filter(None, (_pair(columns, names, part) for part in parts)), None)
    if pair is None:
        for kind, name in names.items():
            if name and name not in columns:
                raise unknown_name(f"{kind} in {url}:", name, columns)
        raise InvalidSpecError(
            f"{url} has {', '.join(columns) or 'nothing'}; images are looked for as {', '.join(IMAGES)}, labels as"
            f" {', '.join(LABELS)}. Say which to take: images=..., labels=..."
        )
    with _as_format_error(f"{url}, {pair[0]!r}"):
        x = _inputs(columns[pair[0]](), channels)
    with _as_format_error(f"{url}, {pair[1]!r}"):
        y = _labels(columns[pair[1]]())
    if len(x) != len(y):
        raise FormatError(f"{url}: {len(x)} inputs in {pair[0]!r} but {len(y)} labels in {pair[1]!r}")
    return x, y


def _inputs(x: np.ndarray, channels: str | None) -> np.ndarray:
    if x.dtype.kind not in "biuf":
        raise FormatError(f"inputs must be numbers or images, got {x.dtype}")
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise FormatError(
            f"inputs must be (n, features), (n, h, w), (n, c, h, w) or (n, h, w, c), not empty; got {x.shape}"
        )
    if x.dtype.kind == "f" and not (finite := np.isfinite(x)).all():
        first = tuple(int(i) for i in np.unravel_index(np.argmin(finite), x.shape))
        count = x.size - np.count_nonzero(finite)
        raise FormatError(f"{count} of {x.size} values are not finite, the first at {first}: {x[first]}")
    if x.ndim < 4:
        if channels is not None:
            raise InvalidSpecError(f"channels={channels!r} is for inputs of four axes, got {x.shape}")
        return x if x.ndim == 2 else x[:, None]
    if channels is None:
        first_fits, last_fits = (x.shape[axis] <= MAX_CHANNELS for axis in (1, 3))
        if first_fits == last_fits:
            raise InvalidSpecError(f"which axis of {x.shape} is the channels? Say channels='first' or channels='last'")
        channels = "first" if first_fits else "last"
    return x if channels == "first" else np.moveaxis(x, 3, 1)


def _labels(y: np.ndarray) -> np.ndarray:
    if y.ndim != 1 or not len(y):
        raise FormatError(f"labels must have one axis, one label per sample, and not be empty; got shape {y.shape}")
    if y.dtype.kind not in "biuUS":
        raise FormatError(f"labels must be whole numbers or text, got {y.dtype}; convert them first")
    if y.dtype.kind == "i" and y.min() < 0:
        raise FormatError(f"{np.count_nonzero(y < 0)} labels are negative ({y.min()}), as if unknown; leave those out")
    return y


def _open(url: str, split: str) -> Columns:
    """What a source holds, by name."""
    if not isinstance(url, str) or not url:
        raise InvalidSpecError(f"data set 'arrays' needs url=..., a path, URL or hf:name; got {url!r}")
    if "::" in url:
        raise InvalidSpecError(f"{url}: chained URLs (::) are not opened; name one file")
    if _is_hf(url):
        return _hugging_face(url.removeprefix("hf:"), split)
    if split != "train":
        raise InvalidSpecError(f"split={split!r} is for Hugging Face data sets (hf:...), not for {url}")
    plain = url.partition("?")[0] if "://" in url else url  # without the query of a signed URL
    suffix = PurePosixPath(plain).suffix.lower()
    if suffix not in READERS:
        raise InvalidSpecError(f"{url}: file type {suffix!r} is not read; known: {', '.join(READERS)}, or hf:...")
    try:
        with fsspec.open(url, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        cause = f", or no answer: {error.__cause__}" if error.__cause__ else ""  # over http both are "not found"
        raise InvalidSpecError(f"{url}: no such file{cause}") from error
    except (ImportError, ValueError) as error:  # a protocol that fsspec does not know, or whose package is missing
        raise InvalidSpecError(f"{url} cannot be opened: {error}") from error
    except Exception as error:  # each backend has its own exceptions for what network or permissions refuse
        raise StorageError(f"{url} cannot be read: {type(error).__name__}: {error}") from error
    with _as_format_error(url):
        return READERS[suffix](data)


def _npz(data: bytes) -> Columns:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise FormatError("no .npz (zip) file; pickles are never opened, they can run code")
    file = np.load(io.BytesIO(data), allow_pickle=False)

    def read(name: str) -> np.ndarray:
        try:
            return file[name]
        except ValueError as error:
            why = "arrays of Python objects are pickles, which can run code: save numbers or text"
            raise FormatError(why if "pickle" in str(error) else f"damaged: {error}") from error

    return {name: partial(read, name) for name in file.files}


def _safetensors(data: bytes) -> Columns:
    tensors = safetensors.numpy.load(data)
    return {name: partial(tensors.__getitem__, name) for name in tensors}


def _parquet(data: bytes) -> Columns:
    def read(name: str) -> np.ndarray:
        return _values(pl.read_parquet(io.BytesIO(data), columns=[name])[name])

    return {name: partial(read, name) for name in pl.read_parquet_schema(io.BytesIO(data))}


def _hugging_face(name: str, split: str) -> Columns:
    try:
        import datasets
        import pyarrow
    except ImportError as error:
        raise InvalidSpecError(f"hf:{name} needs the Hugging Face packages: pip install weightscape[hf]") from error
    builder = HF_BUILDERS.get(PurePosixPath(name).suffix.lower())
    source: dict[str, Any] = {"path": builder, "data_files": name} if builder else {"path": name}
    try:
        data = datasets.load_dataset(**source, split=split).with_format("arrow")
    except Exception as error:
        what = f"hf:{name}, split {split!r}: {type(error).__name__}: {error}"
        if isinstance(error, ConnectionError):
            raise StorageError(what) from error
        if isinstance(error, FileNotFoundError | ValueError) and not isinstance(error, pyarrow.ArrowException):
            raise InvalidSpecError(what) from error  # no such name, file, split or configuration
        raise FormatError(what) from error

    def read(column: str) -> np.ndarray:
        return _values(pl.Series(column, data.select_columns([column])[:].column(column)))

    return {column: partial(read, column) for column in data.column_names}


READERS: dict[str, Callable[[bytes], Columns]] = {".npz": _npz, ".parquet": _parquet, ".safetensors": _safetensors}


def _values(series: pl.Series) -> np.ndarray:
    """A column as one array: numbers and text (n,), nested lists (n, ...), encoded images (n, height, width[, c])."""
    shape = [len(series)]
    while True:
        if nulls := series.null_count():
            first = series.is_null().arg_max()
            raise FormatError(f"{nulls} values are missing (null), the first is value {first}")
        if isinstance(series.dtype, EXTENSION):
            series = series.ext.storage()
        if isinstance(series.dtype, pl.Array):
            series = series.arr.to_list()
        if not isinstance(series.dtype, pl.List) or not len(series):
            break
        lengths = series.list.len().unique().sort().to_list()
        if len(lengths) != 1 or not lengths[0]:
            raise FormatError(f"lists must all be of one length above zero, got lengths {lengths[:10]}")
        shape.append(lengths[0])
        series = series.explode(**EXPLODE)
    if isinstance(series.dtype, pl.Struct):
        if "bytes" not in [field.name for field in series.dtype.fields]:
            raise FormatError(f"images must be structs with bytes, got {series.dtype}")
        series = series.struct.field("bytes")
        if nulls := series.null_count():  # a path in foreign data could name any file of this machine
            raise FormatError(f"{nulls} images are only paths, which are not followed; save them with their bytes")
    if series.dtype == pl.Binary:
        return _decode(series.to_list())
    if isinstance(series.dtype, pl.Categorical | pl.Enum | pl.String):
        return np.array(series.cast(pl.String).to_list(), dtype=np.str_).reshape(shape)
    return series.to_numpy().reshape(shape)


def _decode(images: list[bytes]) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise InvalidSpecError("encoded images need Pillow: pip install weightscape[hf]") from error
    arrays: list[np.ndarray] = []
    for index, data in enumerate(images):
        try:
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
            arrays.append(np.asarray(image.convert({"1": "L", "P": "RGB"}.get(image.mode, image.mode))))
        except Exception as error:  # Pillow raises many kinds for foreign bytes, one of them for images of absurd size
            raise FormatError(f"image {index} is no readable PNG or JPEG: {error}") from error
        if (shape := arrays[index].shape) != arrays[0].shape:
            raise FormatError(f"image {index} is {shape}, the first {arrays[0].shape}; bring all to one size and mode")
    return np.stack(arrays) if arrays else np.empty((0, 0, 0), np.uint8)


def _is_hf(url: str) -> bool:
    return url.startswith("hf:") and not url.startswith("hf://")


@contextmanager
def _as_format_error(what: str) -> Iterator[None]:
    """Whatever a parser raises on foreign bytes becomes a typed error that says where."""
    try:
        yield
    except ZooError as error:
        raise type(error)(f"{what}: {error}") from error
    except Exception as error:
        raise FormatError(f"{what}: cannot be read: {type(error).__name__}: {error}") from error
