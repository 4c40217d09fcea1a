"""Data sets with a fixed split: `DATASETS` maps a name to the function that makes one. Importable without torch."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from catalog.errors import FormatError, InvalidSpecError, unknown_name
from zoo.arrays import Part, read_parts

# What a random stream is for: the upper half of Philox's 128-bit key, above the seed, so that none shares numbers.
SPLIT, SUBSET, TEST_SUBSET, NOISE = range(4)
DIGITS = 1797  # images in scikit-learn's digits, 174 to 183 of each class


@dataclass(frozen=True, eq=False)  # eq=False: `==` on arrays has no truth value; compare fingerprints
class Dataset:
    """Inputs and labels with a fixed split: C-contiguous numpy, never shuffled again; order is part of the data."""

    name: str
    train_x: np.ndarray  # (num_train, *input_shape) float32, standardised with statistics of the training split only
    train_y: np.ndarray  # (num_train,) int64 in [0, num_classes)
    test_x: np.ndarray  # (num_test, *input_shape) float32
    test_y: np.ndarray  # (num_test,) int64
    num_classes: int

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            what = f"{part} part of data set {self.name!r}"
            if (x.dtype, y.dtype) != (np.float32, np.int64) or not (x.flags.c_contiguous and y.flags.c_contiguous):
                raise FormatError(
                    f"{what}: must be float32 inputs, int64 labels, C-contiguous; got {x.dtype}, {y.dtype}"
                )
            if x.ndim < 2 or x.shape[1:] != self.input_shape or 0 in x.shape or y.shape != x.shape[:1]:
                raise FormatError(
                    f"{what}: inputs {x.shape}, labels {y.shape} and {self.input_shape} do not fit together"
                )
            if y.min() < 0 or y.max() >= self.num_classes:
                raise FormatError(f"{what}: labels must lie in [0, {self.num_classes}), got {y.min()} to {y.max()}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: (channels, height, width) of images, (features,) otherwise."""
        return self.train_x.shape[1:]

    @property
    def num_train(self) -> int:
        return len(self.train_x)

    @property
    def num_test(self) -> int:
        return len(self.test_x)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a sha256 over shapes, dtypes and bytes of the four arrays."""
        digest = hashlib.sha256()
        for array in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(f"{array.shape} {array.dtype.str};".encode())
            digest.update(array.data.cast("B"))
        return digest.hexdigest()[:16]


def digits(split_seed: int = 0, size: int = 8, test_samples: int = 597) -> Dataset:
    """Handwritten digits of scikit-learn: 1797 images (1, size, size), 10 classes; above 8x8 enlarged (bilinear).

    >>> digits().input_shape, digits().num_train, digits().num_test
    ((1, 8, 8), 1200, 597)
    """
    from sklearn.datasets import load_digits  # with scipy about a second: only who asks for digits pays

    _whole("size", size, 8, 32)
    _whole("test_samples", test_samples, 1, DIGITS - 10)
    raw = load_digits()
    x = raw.images.astype(np.uint8)  # the values are whole, 0..16
    if size > 8:
        from scipy.ndimage import zoom

        x = zoom(x.astype(np.float64), (1, size / 8, size / 8), order=1, mode="nearest", grid_mode=True)
    return _split("digits", x[:, None], raw.target.astype(np.int64), test_samples, split_seed)


def moons(split_seed: int = 0, samples: int = 1000, noise: float = 0.1, test_samples: int = 250) -> Dataset:
    """Two interleaved half circles of radius 1 with normal noise: inputs (2,), 2 classes. The seed only splits them."""
    _whole("samples", samples, 4, 10_000_000)
    _whole("test_samples", test_samples, 1, samples - 2)
    if not _is_number(noise) or not 0 <= noise <= 1e6:
        raise InvalidSpecError(f"noise must be a number in [0, 1e6] (standard deviation; radius 1), got {noise!r}")
    upper, lower = (np.linspace(0, np.pi, n) for n in (samples - samples // 2, samples // 2))
    x = np.concatenate(
        [np.stack([np.cos(upper), np.sin(upper)], 1), np.stack([1 - np.cos(lower), 0.5 - np.sin(lower)], 1)]
    )
    x += noise * np.random.Generator(_stream(0, NOISE)).standard_normal(x.shape)
    return _split("moons", x, np.repeat([0, 1], [len(upper), len(lower)]), test_samples, split_seed)


def arrays(
    split_seed: int = 0,
    url: str = "",
    images: str | None = None,
    labels: str | None = None,
    test_fraction: float = 0.25,
    test_url: str | None = None,
    split: str = "train",
    test_split: str | None = None,
    max_samples: int | None = None,
    channels: str | None = None,
) -> Dataset:
    """Your own data: an .npz, .parquet or .safetensors file, or a Hugging Face data set.

    Args:
        url: path or any fsspec URL of one file (`s3://`, `https://`, `hf://datasets/org/name/file.parquet`), or
            `hf:org/name`, `hf:file.parquet`, read by the `datasets` package (extra `hf`).
        images, labels: names of array or column; by default the first of `zoo.arrays.IMAGES` and `LABELS` that is
            there. A file with a training and a test pair (`train_x`, `test_x`, or `x_train`, ...) keeps its own split.
        test_fraction: part of the samples that becomes the test split, where the source brings none.
        test_url, test_split: where the test split comes from instead.
        split: which split of a Hugging Face data set; `test_split` likewise.
        max_samples: keep at most so many samples of each source, drawn with the class proportions.
        channels: "first" or "last", for images of four axes; by default the axis of 1 to 4 entries, if there is one.

    Labels become 0, 1, ... in sorted order. Pickles are never opened.

    Raises:
        InvalidSpecError: an option is impossible, or names what is not there.
        FormatError: the file is there and cannot serve as a data set.
        StorageError: the place refused.
    """
    if not _is_number(test_fraction) or not 0 < test_fraction < 1:
        raise InvalidSpecError(f"test_fraction must be a number between 0 and 1, got {test_fraction!r}")
    if max_samples is not None:
        _whole("max_samples", max_samples, 2, 2**40)
    names = {"images": images, "labels": labels}
    train, test = read_parts(url, names, channels, split, test_url, test_split)
    (x, y), classes = train, np.unique(train[1])
    if len(classes) < 2:
        raise FormatError(f"{url}: a data set needs at least 2 classes, all {len(y)} labels are {classes[0]}")
    y = np.searchsorted(classes, y)
    x, y = _at_most(max_samples, x, y, split_seed, SUBSET)
    if test is None:
        test_samples = max(1, round(test_fraction * len(x)))
        if test_samples > len(x) - len(classes):
            raise InvalidSpecError(
                f"{url}: with {test_samples} of {len(x)} samples for testing, some of {len(classes)} classes would have"
                " none to train on; lower test_fraction"
            )
        return _split("arrays", x, y, test_samples, split_seed)
    test_x, test_y = test
    if unseen := sorted(set(np.unique(test_y).tolist()) - set(classes.tolist()), key=str):
        raise FormatError(f"{test_url or url}: test labels that no training sample has: {str(unseen[:10])[1:-1]}")
    if test_x.shape[1:] != x.shape[1:]:
        raise FormatError(f"{test_url or url}: test inputs are {test_x.shape[1:]}, training inputs {x.shape[1:]}")
    test_x, test_y = _at_most(max_samples, test_x, np.searchsorted(classes, test_y), split_seed, TEST_SUBSET)
    return _standardised("arrays", x, y, test_x, test_y)


DATASETS: dict[str, Callable[..., Dataset]] = {"digits": digits, "moons": moons, "arrays": arrays}


STANDARDISE = ("all", "feature")


def load_dataset(name: str, split_seed: int = 0, standardise: str = "all", **options: object) -> Dataset:
    """The data set of this name, split by this seed.

    Args:
        standardise: mean 0 and deviation 1 over the training part for "all" inputs together, or for each "feature"
            (pixel) by itself.

    Raises:
        UnknownNameError: no such data set. InvalidSpecError: it has no such option, or not with this value.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    known = [option for option in inspect.signature(DATASETS[name]).parameters if option != "split_seed"]
    if unknown := sorted(set(options) - set(known)):
        known.append("standardise")
        raise InvalidSpecError(f"data set {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    if standardise not in STANDARDISE:
        raise unknown_name("way to standardise", standardise, STANDARDISE)
    data = DATASETS[name](split_seed=split_seed, **options)
    return data if standardise == "all" else by_feature(data)


def by_feature(data: Dataset) -> Dataset:
    """The data with mean 0 and deviation 1 of each feature over the training part; constant features become 0."""
    mean, deviation = (getattr(data.train_x, kind)(0, dtype=np.float64) for kind in ("mean", "std"))
    deviation[deviation < 1e-6] = np.inf  # inputs have deviation 1 over all features: this is rounding of a constant
    train_x, test_x = (np.ascontiguousarray((x - mean) / deviation, np.float32) for x in (data.train_x, data.test_x))
    return replace(data, train_x=train_x, test_x=test_x)


def stratified(labels: np.ndarray, samples: int, seed: int, purpose: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (samples,) drawn with the class proportions of `labels`, and all others; both in the seed's random order.

    Every class keeps one or more among the others, so `samples` is at most `len(labels)` minus the number of classes.
    """
    # By sorting raw words of the stream: numpy promises to keep their bits for ever, but not those of `permutation`.
    order = np.argsort(_stream(seed, purpose).random_raw(len(labels)), kind="stable")
    by_class = order[np.argsort(labels[order], kind="stable")]
    kept = np.flatnonzero(np.diff(labels[by_class], prepend=-1))  # the first of each class
    pool = np.delete(by_class, kept)
    chosen = np.zeros(len(labels), bool)
    steps = (2 * np.arange(samples) + 1) * len(pool) // (2 * samples)  # even ones, so each class gets its share
    chosen[pool[steps]] = True
    return order[chosen[order]], order[~chosen[order]]


def _split(name: str, x: np.ndarray, y: np.ndarray, test_samples: int, seed: int) -> Dataset:
    test, train = stratified(y, test_samples, seed, SPLIT)
    return _standardised(name, x[train], y[train], x[test], y[test])


def _at_most(limit: int | None, x: np.ndarray, y: np.ndarray, seed: int, purpose: int) -> Part:
    if limit is None or len(x) <= limit:
        return x, y
    if limit < (num_classes := len(np.unique(y))):
        raise InvalidSpecError(f"max_samples={limit} is less than one sample for each of {num_classes} classes")
    rows = np.sort(stratified(y, len(x) - limit, seed, purpose)[1])  # the others: every class stays
    return x[rows], y[rows]


def _standardised(
    name: str, train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray
) -> Dataset:
    """One mean and one deviation for all inputs, those of training: per pixel, constant ones would divide by zero."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below
        pivot = float(train_x.mean(dtype=np.float64))
        if train_x.dtype.kind in "biu":
            pivot = float(round(pivot))  # whole numbers keep every sum exact: the same bytes on every machine
        total = squares = 0.0
        for _, block in _blocks(train_x):
            block -= pivot
            total, squares = total + float(block.sum()), squares + float(np.square(block).sum())
        offset = total / train_x.size
        deviation = math.sqrt(max(squares / train_x.size - offset**2, 0.0))
        if train_x.min() == train_x.max() or deviation == 0:
            raise FormatError(f"data set {name!r}: all training inputs are equal to {train_x.flat[0]}")
        scaled = [np.empty(x.shape, np.float32) for x in (train_x, test_x)]
        for x, result in zip((train_x, test_x), scaled, strict=True):
            for rows, block in _blocks(x):
                result[rows] = (block - (pivot + offset)) / deviation
    if not (np.isfinite(deviation) and all(np.isfinite(x).all() for x in scaled)):
        raise FormatError(f"data set {name!r}: inputs too far apart for float32 (standard deviation {deviation:.3g})")
    train_y, test_y = (np.ascontiguousarray(y, np.int64) for y in (train_y, test_y))
    return Dataset(name, scaled[0], train_y, scaled[1], test_y, int(train_y.max()) + 1)


def _blocks(x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows as float64, some at a time: a float64 copy of all images could be eight times the data."""
    for start in range(0, len(x), 4096):
        rows = slice(start, start + 4096)
        yield rows, x[rows].astype(np.float64)


def _stream(seed: int, purpose: int) -> np.random.Philox:
    _whole("split_seed", seed, 0, 2**64 - 1)
    return np.random.Philox(key=purpose << 64 | int(seed))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidSpecError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
