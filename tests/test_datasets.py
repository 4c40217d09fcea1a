"""Data sets: what is true of all of them, and what `arrays` does with files that other people wrote."""

from __future__ import annotations

import builtins
import http.server
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.errors import FormatError, InvalidSpecError, StorageError, UnknownNameError, ZooError
from zoo.datasets import DATASETS, Dataset, load_dataset, stratified

GENERATOR = np.random.default_rng(0)
X = GENERATOR.integers(0, 256, (60, 6, 5), dtype=np.uint8)  # all distinct, so that a sample names itself
Y = np.repeat([0, 1, 2], [30, 20, 10])
OPTIONS: dict[str, dict[str, Any]] = {
    "digits": {},
    "moons": {},
}  # what a data set needs beyond its defaults; arrays: a file


@pytest.fixture(params=sorted(DATASETS))
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Dataset]:
    """Any data set, as a function of the split seed."""
    name = request.param
    options = OPTIONS.get(name) or ({"url": save(tmp_path / "a.npz", images=X, labels=Y)} if name == "arrays" else {})
    return lambda seed=0, **more: load_dataset(name, seed, **options, **more)


def save(path: str | Path, **columns: Any) -> str:
    """Write a file of the kind its name says, to a folder or a URL."""
    url, buffer = str(path), io.BytesIO()
    if url.endswith(".npz"):
        np.savez(buffer, **columns)
    elif url.endswith(".safetensors"):
        buffer.write(safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in columns.items()}))
    else:
        lists = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in columns.items()}
        pl.DataFrame(lists).write_parquet(buffer)
    with fsspec.open(url, "wb") as file:
        file.write(buffer.getvalue())
    return url


def samples(data: Dataset) -> Counter[tuple[bytes, int]]:
    """All samples, undone from the standardisation as far as ranks go: equal for two splits of the same data."""
    x = np.concatenate([data.train_x, data.test_x]).astype(np.float64).reshape(data.num_train + data.num_test, -1)
    low, high = x.min(), x.max()
    whole = np.rint((x - low) / (high - low) * 10_000).astype(np.int64)  # far coarser than float32, far finer than data
    return Counter((row.tobytes(), int(y)) for row, y in zip(whole, [*data.train_y, *data.test_y], strict=True))


def png(image: np.ndarray) -> bytes:
    """A gray or RGB PNG, written here so that the test does not believe Pillow about itself."""
    height, width = image.shape[:2]
    color = 0 if image.ndim == 2 else 2
    rows = b"".join(b"\0" + row.tobytes() for row in image)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# What is true of every data set


def test_promises_of_a_dataset(make: Callable[..., Dataset]) -> None:
    data = make()
    assert data.num_train == len(data.train_x) == len(data.train_y) > data.num_test == len(data.test_x) > 0
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        assert x.dtype == np.float32
        assert y.dtype == np.int64
        assert x.flags.c_contiguous
        assert y.flags.c_contiguous
        assert x.shape == (len(y), *data.input_shape)
        assert np.isfinite(x).all()
        assert set(np.unique(y)) == set(range(data.num_classes))
    assert len(data.input_shape) in (1, 3)


def test_standardised_by_the_training_part(make: Callable[..., Dataset]) -> None:
    data = make()
    x = data.train_x.astype(np.float64)
    # Each float32 is off by at most 6e-8 of its size, which here is below 10; means of such errors are smaller.
    assert abs(x.mean()) < 6e-7
    assert abs(x.std() - 1) < 6e-7
    assert abs(data.test_x.mean(dtype=np.float64)) > 6e-7


def test_same_seed_same_bytes_other_seed_other_split(make: Callable[..., Dataset]) -> None:
    one, again, other = make(3), make(3), make(4)
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert one.train_x.tobytes() == again.train_x.tobytes()
    assert (one.num_train, one.num_test) == (other.num_train, other.num_test)
    assert samples(one) == samples(other)  # nothing lost, nothing twice: only the split differs


def test_same_bytes_in_another_process() -> None:
    code = (
        "from zoo.datasets import load_dataset; print(*(load_dataset(n, 5).fingerprint for n in ('digits', 'moons')))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split() == [load_dataset(name, 5).fingerprint for name in ("digits", "moons")]


def test_classes_keep_their_proportions(make: Callable[..., Dataset]) -> None:
    data = make()
    train, test = (np.bincount(y, minlength=data.num_classes) for y in (data.train_y, data.test_y))
    expected = (train + test) * data.num_test / (data.num_train + data.num_test)
    assert (
        np.abs(test - expected).max() < 2
    )  # the even steps round by less than one, the sample kept back shifts by less than one


def test_order_is_mixed(make: Callable[..., Dataset]) -> None:
    data = make()
    for y in (data.train_y, data.test_y):
        assert np.count_nonzero(np.diff(y)) > len(y) / 4  # sorted by class there would be num_classes - 1 changes


def test_fingerprint_sees_every_array(make: Callable[..., Dataset]) -> None:
    data = make()
    fields = {name: getattr(data, name) for name in ("train_x", "train_y", "test_x", "test_y")}
    prints = {data.fingerprint}
    for name in fields:
        changed = fields[name].copy()
        changed.flat[-1] = 0 if changed.flat[-1] else 1
        prints.add(Dataset("changed", **{**fields, name: changed}, num_classes=data.num_classes).fingerprint)
    assert len(prints) == 5
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in prints)


@pytest.mark.parametrize("seed", [-1, 1.0, True, "0", None, 2**64])
def test_seed_must_be_a_whole_number(make: Callable[..., Dataset], seed: object) -> None:
    with pytest.raises(InvalidSpecError, match="split_seed must be a whole number"):
        make(seed)


def test_unknown_option_lists_the_known_ones(make: Callable[..., Dataset]) -> None:
    with pytest.raises(InvalidSpecError, match=r"no option sise; it has .*(test_samples|test_fraction)"):
        make(sise=8)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="arrays, digits, moons; did you mean 'digits'"):
        load_dataset("digit")


def test_import_needs_no_torch() -> None:
    made = "import sys, zoo.datasets as d; d.digits(size=9); d.moons()"
    code = f"{made}; assert not {{'torch', 'datasets'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=8), part=st.floats(0, 1), seed=st.integers(0, 2**64 - 1)
)
@settings(max_examples=50)
def test_stratified_is_a_partition(counts: list[int], part: float, seed: int) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    wanted = int(part * (len(labels) - len(counts)))
    chosen, others = stratified(labels, wanted, seed, 0)
    assert len(chosen) == wanted
    assert sorted([*chosen, *others]) == list(range(len(labels)))
    assert set(labels[others]) == set(labels)  # every class can be learned
    pool = np.array(counts) - 1
    drawn = np.bincount(labels[chosen], minlength=len(counts))
    assert (np.abs(drawn - pool * wanted / max(pool.sum(), 1)) < 1).all()


def test_a_dataset_checks_itself() -> None:
    x, y = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])
    Dataset("fine", x, y, x, y, 2)
    for bad in (
        (x.astype(np.float64), y, x, y, 2),
        (x, y.astype(np.int32), x, y, 2),
        (x.T, y[:2], x, y, 2),
        (x, y[:3], x, y, 2),
        (x, y, x[:, :1].copy(), y, 2),
        (x, y, x[:0], y[:0], 2),
        (x, y, x, y + 1, 2),
        (x, -y, x, y, 2),
    ):
        with pytest.raises(FormatError, match="data set 'bad'"):
            Dataset("bad", *bad)


# Digits and moons


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    data, raw = load_dataset("digits"), load_digits()
    assert (data.input_shape, data.num_train, data.num_test, data.num_classes) == ((1, 8, 8), 1200, 597, 10)
    x = np.concatenate([data.train_x, data.test_x])
    ink = np.rint((x - x.min()) / (x.max() - x.min()) * 16).astype(np.int64).reshape(-1, 64)
    ours = Counter((row.tobytes(), int(y)) for row, y in zip(ink, [*data.train_y, *data.test_y], strict=True))
    theirs = zip(raw.data.astype(np.int64), raw.target, strict=True)
    assert ours == Counter((row.tobytes(), int(y)) for row, y in theirs)


def test_digits_enlarge_bilinearly() -> None:
    torch = pytest.importorskip("torch")
    small, large = load_dataset("digits"), load_dataset("digits", size=20)
    assert large.input_shape == (1, 20, 20)
    assert large.train_y.tobytes() == small.train_y.tobytes()  # the same split
    truth = torch.nn.functional.interpolate(torch.from_numpy(small.train_x).double(), size=20, mode="bilinear").numpy()
    truth = (truth - truth.mean()) / truth.std()
    np.testing.assert_allclose(large.train_x, truth, atol=3e-6)  # of values up to 3 stored as float32


def test_moons_are_two_half_circles() -> None:
    data = load_dataset("moons", samples=401, noise=0, test_samples=100)
    assert (data.num_train, data.num_test, data.num_classes, data.input_shape) == (301, 100, 2, (2,))
    x, y = np.concatenate([data.train_x, data.test_x]), np.concatenate([data.train_y, data.test_y])
    assert np.ptp(x[:, 1]) == pytest.approx(np.ptp(x[:, 0]) / 2, abs=1e-3)  # from -0.5 to 1: half of three radii
    half_width = (x[:, 0].max() - x[:, 0].min()) / 3  # from -1 to 2: three radii
    for label, center in enumerate((0, 1)):
        points = x[y == label] / half_width
        left = points[:, 0].min()
        middle = (left + 1, points[:, 1].min() if label == 0 else points[:, 1].max())
        np.testing.assert_allclose(np.hypot(*(points - middle).T), 1, atol=1e-5)
        assert np.ptp(points[:, 1]) == pytest.approx(1, abs=1e-4)
        assert left == pytest.approx(x[:, 0].min() / half_width + center, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits", {"size": 7}),
        ("digits", {"size": 33}),
        ("digits", {"size": 8.0}),
        ("digits", {"test_samples": 0}),
        ("digits", {"test_samples": 1788}),
        ("moons", {"samples": 3}),
        ("moons", {"samples": 10**9}),
        ("moons", {"samples": 10, "test_samples": 9}),
        ("moons", {"noise": float("nan")}),
        ("moons", {"noise": -0.1}),
        ("moons", {"noise": "much"}),
        ("arrays", {}),
        ("arrays", {"url": 5}),
        ("arrays", {"url": "a.npz", "images": ["x"]}),
        ("arrays", {"url": "a.npz", "channels": "middle"}),
        ("arrays", {"url": "a.npz", "test_fraction": 1.0}),
        ("arrays", {"url": "a.npz", "test_fraction": float("nan")}),
        ("arrays", {"url": "a.npz", "max_samples": 1}),
        ("arrays", {"url": "a.npz", "split": "test"}),
        ("arrays", {"url": "a.txt"}),
        ("arrays", {"url": "folder"}),
        ("arrays", {"url": "nothing-there.npz"}),
        ("arrays", {"url": "nowhere://a.npz"}),
    ],
)
def test_impossible_options(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        load_dataset(name, **options)
    assert str([*options.values()][-1] if options else "url") in str(caught.value)  # what came


# Files of every kind


@pytest.fixture
def memory() -> Iterator[str]:
    fsspec.filesystem("memory").store.clear()
    yield "memory://data"
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("kind", ["npz", "parquet", "safetensors"])
def test_every_kind_of_file_gives_the_same_data(kind: str, tmp_path: Path, memory: str) -> None:
    expected = load_dataset("arrays", url=save(tmp_path / "a.npz", images=X, labels=Y))
    assert expected.input_shape == (1, 6, 5)
    for place in (tmp_path / f"b.{kind}", f"{memory}/b.{kind}", f"memory://b.{kind}", f"{memory}/b.{kind.upper()}"):
        if kind.upper() in str(place):  # any case of the ending is read; the helper writes lower case
            fsspec.filesystem("memory").copy(f"{memory}/b.{kind}", str(place))
        else:
            save(place, images=X, labels=Y)
        assert load_dataset("arrays", url=str(place)).fingerprint == expected.fingerprint


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def test_signed_address(tmp_path: Path) -> None:
    expected = load_dataset("arrays", url=save(tmp_path / "a.npz", images=X, labels=Y))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        place = f"http://127.0.0.1:{server.server_port}"
        found = load_dataset("arrays", url=f"{place}/a.npz?signature=a.b/c")
        with pytest.raises(InvalidSpecError, match=r"gone\.npz: no such file"):
            load_dataset("arrays", url=f"{place}/gone.npz")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert found.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    "names", [("image", "label"), ("x", "y"), ("X", "target"), ("data", "targets"), ("inputs", "y")]
)
def test_usual_names_are_found(names: tuple[str, str], tmp_path: Path) -> None:
    expected = load_dataset("arrays", url=save(tmp_path / "a.npz", images=X, labels=Y))
    found = load_dataset("arrays", url=save(tmp_path / "b.npz", other=Y, **dict(zip(names, (X, Y), strict=True))))
    assert found.fingerprint == expected.fingerprint


def test_named_columns_win_over_usual_ones(tmp_path: Path) -> None:
    url = save(tmp_path / "a.parquet", image=X[::-1], label=Y[::-1], mine=X, what=Y)
    expected = load_dataset("arrays", url=save(tmp_path / "b.npz", images=X, labels=Y))
    assert load_dataset("arrays", url=url, images="mine", labels="what").fingerprint == expected.fingerprint
    with pytest.raises(UnknownNameError, match=r"a\.parquet.*'min'; known: image, label, mine, what"):
        load_dataset("arrays", url=url, images="min")


def test_missing_names_list_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidSpecError, match=r"has pictures, classes; images are looked for as images, .*labels=\.\.\."
    ):
        load_dataset("arrays", url=save(tmp_path / "a.npz", pictures=X, classes=Y))


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((60, 7), None, (7,)),
        ((60, 6, 5), None, (1, 6, 5)),
        ((60, 3, 6, 5), None, (3, 6, 5)),
        ((60, 6, 5, 3), None, (3, 6, 5)),
        ((60, 6, 5, 1), None, (1, 6, 5)),
        ((60, 6, 5, 9), "last", (9, 6, 5)),
        ((60, 9, 6, 5), "first", (9, 6, 5)),
        ((60, 3, 5, 3), "last", (3, 3, 5)),
        ((60, 3, 5, 3), "first", (3, 5, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int64])
def test_shapes(
    shape: tuple[int, ...], channels: str | None, expected: tuple[int, ...], dtype: type, tmp_path: Path
) -> None:
    x: np.ndarray = np.random.default_rng(1).integers(0, 255, shape).astype(dtype)
    url = save(tmp_path / "a.npz", x=x, y=Y, test_x=x, train_x=x, train_y=Y, test_y=Y)
    data = load_dataset("arrays", url=url, channels=channels)
    last = len(shape) == 4 and expected == (shape[3], *shape[1:3]) and channels != "first"
    truth: np.ndarray = (x.astype(np.float64) - x.mean(dtype=np.float64)) / x.std(dtype=np.float64)
    truth = np.moveaxis(truth, 3, 1) if last else truth
    assert data.input_shape == expected
    np.testing.assert_allclose(data.train_x, truth.reshape(60, *expected), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((60, 3, 5, 3), None, "Say channels='first'"),
        ((60, 6, 5, 9), None, "Say channels='first'"),
        ((60, 6, 5), "last", "four axes"),
        ((60,), None, "must be"),
        ((60, 1, 2, 3, 4), None, "must be"),
        ((60, 0, 3), None, "not empty"),
        ((0, 6, 5), None, "not empty"),
    ],
)
def test_bad_shapes(shape: tuple[int, ...], channels: str | None, message: str, tmp_path: Path) -> None:
    url = save(tmp_path / "a.npz", x=np.zeros(shape, np.uint8), y=Y)
    with pytest.raises((FormatError, InvalidSpecError), match=message) as caught:
        load_dataset("arrays", url=url, channels=channels)
    assert "a.npz, 'x'" in str(caught.value)


@pytest.mark.parametrize("form", ["train_{}", "{}_train"])
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_file_keeps_its_own_split(form: str, kind: str, tmp_path: Path) -> None:
    x, y, test_x, test_y = X[::2], Y[::2], X[1::2], Y[1::2]
    other = form.replace("train", "test")
    columns = {form.format("x"): x, form.format("y"): y, other.format("x"): test_x, other.format("y"): test_y}
    one = load_dataset("arrays", url=save(tmp_path / f"a.{kind}", **columns))
    assert (one.train_y.tolist(), one.test_y.tolist()) == (y.tolist(), test_y.tolist())  # order of the file
    scale = X[::2].std(dtype=np.float64)
    np.testing.assert_allclose(
        one.test_x[:, 0] - one.test_x[0, 0], (test_x - test_x[0].astype(float)) / scale, atol=1e-5
    )
    save(tmp_path / "train.npz", x=x, y=y)
    save(tmp_path / "test.npz", test_x=test_x, y_test=test_y)
    two = load_dataset("arrays", url=str(tmp_path / "train.npz"), test_url=str(tmp_path / "test.npz"))
    assert two.fingerprint == one.fingerprint


def test_training_half_alone_is_split(tmp_path: Path) -> None:
    one = load_dataset("arrays", url=save(tmp_path / "a.npz", x_train=X, y_train=Y), test_fraction=0.4)
    assert (one.num_train, one.num_test) == (36, 24)


def test_test_data_never_reach_the_training_part(tmp_path: Path) -> None:
    train = save(tmp_path / "train.npz", x=X, y=Y)
    one = load_dataset("arrays", url=train, test_url=save(tmp_path / "one.npz", x=X[:7], y=Y[:7]))
    two = load_dataset("arrays", url=train, test_url=save(tmp_path / "two.npz", x=X[20:40] // 2 + 9, y=Y[20:40]))
    assert one.train_x.tobytes() == two.train_x.tobytes()
    assert one.fingerprint != two.fingerprint


def test_max_samples_draws_from_all_classes(tmp_path: Path) -> None:
    url = save(tmp_path / "a.npz", x=X, y=Y)
    data = load_dataset("arrays", url=url, test_url=url, max_samples=12)
    assert (data.num_train, data.num_test) == (12, 12)
    assert np.bincount(data.train_y).tolist() == [6, 4, 2]
    assert data.train_x.tobytes() != data.test_x.tobytes()  # drawn apart
    names_itself = np.stack([Y * 10.0, Y * 0], 1)
    pairs = load_dataset("arrays", url=save(tmp_path / "b.npz", x=names_itself, y=Y), max_samples=31)
    for x, y in ((pairs.train_x, pairs.train_y), (pairs.test_x, pairs.test_y)):
        assert (np.searchsorted(np.unique(pairs.train_x[:, 0]), x[:, 0]) == y).all()  # samples keep their labels
    everything = load_dataset("arrays", url=url, max_samples=60)
    assert everything.fingerprint == load_dataset("arrays", url=url).fingerprint
    with pytest.raises(InvalidSpecError, match="max_samples=2 is less than one sample for each of 3 classes"):
        load_dataset("arrays", url=url, max_samples=2)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["cat", "dog", "elk"])[Y],
        np.array([b"cat", b"dog", b"elk"])[Y],
        np.array([3, 7, 2**40])[Y],
        Y.astype(np.uint8),
    ],
)
def test_labels_become_whole_numbers_in_sorted_order(labels: np.ndarray, tmp_path: Path) -> None:
    expected = load_dataset("arrays", url=save(tmp_path / "a.npz", x=X, y=Y))
    assert load_dataset("arrays", url=save(tmp_path / "b.npz", x=X, y=labels)).fingerprint == expected.fingerprint
    if labels.dtype.kind == "U":
        for column in (labels.tolist(), pl.Series(labels.tolist(), dtype=pl.Categorical)):
            url = save(tmp_path / "c.parquet", x=X, y=column)
            assert load_dataset("arrays", url=url).fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y[:59], "60 inputs in 'x' but 59 labels in 'y'"),
        (X, Y[:, None], "one axis"),
        (X, Y[:0], "not be empty"),
        (X, Y * 0, "at least 2 classes, all 60 labels are 0"),
        (X, Y * 0.5, "whole numbers or text, got float64"),
        (X, Y - 1, "30 labels are negative"),
        (X * 1j, Y, "must be numbers or images, got complex128"),
        (X.astype(str), Y, "must be numbers or images"),
        (X * 0, Y, "all training inputs are equal"),
        (np.full(X.shape, 0.3), Y, "all training inputs are equal"),
        (X * 1e305, Y, "too far apart for float32"),
        (X.view([("a", "u1")]), Y, "must be numbers or images"),
    ],
)
def test_data_that_cannot_serve(x: np.ndarray, y: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        load_dataset("arrays", url=save(tmp_path / "a.npz", x=x, y=y))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["npz", "parquet", "safetensors"])
def test_values_that_are_not_finite_are_counted_and_found(bad: float, kind: str, tmp_path: Path) -> None:
    x = X.astype(np.float32)
    x[17, 3, 2] = x[40] = bad
    with pytest.raises(FormatError, match=r"'x': 31 of 1800 values are not finite, the first at \(17, 3, 2\)"):
        load_dataset("arrays", url=save(tmp_path / f"a.{kind}", x=x, y=Y))


def test_test_part_must_fit_the_training_part(tmp_path: Path) -> None:
    train = save(tmp_path / "a.npz", x=X, y=Y)
    with pytest.raises(FormatError, match=r"b\.npz: test labels that no training sample has: 3, 4"):
        load_dataset("arrays", url=train, test_url=save(tmp_path / "b.npz", x=X[:5], y=[0, 1, 2, 3, 4]))
    with pytest.raises(FormatError, match=r"test inputs are \(1, 5, 5\), training inputs \(1, 6, 5\)"):
        load_dataset("arrays", url=train, test_url=save(tmp_path / "b.npz", x=X[:, 1:], y=Y))
    with pytest.raises(InvalidSpecError, match="lower test_fraction"):
        load_dataset("arrays", url=train, test_fraction=0.99)
    with pytest.raises(InvalidSpecError, match="test_split='test' is for Hugging Face"):
        load_dataset("arrays", url=train, test_split="test")


# Hostile and damaged files


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "executed"))


@pytest.mark.parametrize("where", ["x", "y", "file"])
def test_pickles_are_refused_and_not_executed(where: str, tmp_path: Path) -> None:
    witness, url = tmp_path / "witness", tmp_path / "a.npz"
    bomb = np.array([Bomb(witness)] * len(Y), dtype=object)
    if where == "file":
        url.write_bytes(pickle.dumps({"x": bomb, "y": Y}))
    else:
        save(url, **{"x": X, "y": Y, where: bomb})
    with pytest.raises(FormatError, match=r"a\.npz.*pickles.*can run code"):
        load_dataset("arrays", url=str(url))
    assert not witness.exists()
    loaded = np.load(url, allow_pickle=True)  # the bomb is real
    if where != "file":
        with loaded:
            assert loaded[where].shape == Y.shape
    assert witness.read_text() == "executed"


@pytest.mark.parametrize("kind", ["npz", "parquet", "safetensors"])
def test_damaged_files_raise_typed_errors(kind: str, tmp_path: Path) -> None:
    url = tmp_path / f"a.{kind}"
    whole = Path(save(url, x=X, y=Y)).read_bytes()
    step = max(1, len(whole) // 12)
    for damaged in [*(whole[:end] for end in range(0, len(whole), step)), b"not what the name says", whole[::-1]]:
        url.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"a\."):
            load_dataset("arrays", url=str(url))


def test_a_header_that_promises_more_than_the_file_holds(tmp_path: Path) -> None:
    header = str({"descr": "<f8", "fortran_order": False, "shape": (10**15, 2)}).ljust(117) + "\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        buffer = io.BytesIO()
        np.save(buffer, Y)
        file.writestr("y.npy", buffer.getvalue())
    with pytest.raises(FormatError, match=r"a\.npz, 'x'"):
        load_dataset("arrays", url=str(tmp_path / "a.npz"))


def test_what_the_place_refuses(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(StorageError, match=r"folder\.npz cannot be read: IsADirectoryError"):
        load_dataset("arrays", url=str(tmp_path / "folder.npz"))
    with pytest.raises(InvalidSpecError, match=r"memory://gone\.npz: no such file"):
        load_dataset("arrays", url="memory://gone.npz")
    with pytest.raises(InvalidSpecError, match=r"no answer: .*127\.0\.0\.1:9"):  # the discard port: nobody listens
        load_dataset("arrays", url="http://127.0.0.1:9/a.npz")
    with pytest.raises(InvalidSpecError, match="chained URLs"):  # they could open archives in archives
        load_dataset("arrays", url="zip://a.npz::memory://b.npz")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            [[1.0, 2.0], [3.0], [4.0, 5.0]],
            [0, 1, 0],
            r"'x': lists must all be of one length above zero, got lengths \[1, 2\]",
        ),
        ([[1.0, 2.0], None, [4.0, 5.0]], [0, 1, 0], "'x': 1 values are missing"),
        ([[1.0, 2.0], [3.0, None], [4.0, 5.0]], [0, 1, 0], "'x': 1 values are missing"),
        ([[], [], []], [0, 1, 0], "one length above zero"),
        ([[1.0, 2.0], [3.0, 0.0], [4.0, 5.0]], [0, 1, None], "'y': 1 values are missing"),
        ([{"a": 1}] * 3, [0, 1, 0], "structs with bytes"),
    ],
)
def test_parquet_columns_that_cannot_serve(x: list[Any], y: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        load_dataset("arrays", url=save(tmp_path / "a.parquet", x=x, y=y))


def test_parquet_arrays_of_fixed_shape(tmp_path: Path) -> None:
    expected = load_dataset("arrays", url=save(tmp_path / "a.npz", x=X, y=Y))
    for column in (pl.Series(X), pl.Series(X.tolist(), dtype=pl.List(pl.Array(pl.UInt8, 5)))):
        assert (
            load_dataset("arrays", url=save(tmp_path / "b.parquet", x=column, y=Y)).fingerprint == expected.fingerprint
        )


# Encoded images and Hugging Face `datasets`


@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("struct_column", [True, False])
def test_encoded_images(colors: int, struct_column: bool, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    x = X if colors == 1 else np.stack([X, X // 2, 255 - X], -1)
    column = [{"bytes": png(image), "path": None} if struct_column else png(image) for image in x]
    data = load_dataset("arrays", url=save(tmp_path / "a.parquet", image=column, label=Y))
    assert data.input_shape == (colors, 6, 5)
    assert data.fingerprint == load_dataset("arrays", url=save(tmp_path / "b.npz", x=x, y=Y)).fingerprint


def test_encoded_images_that_cannot_serve(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    good, bitmap = [png(image) for image in X], io.BytesIO()
    pillow.fromarray(X[9]).save(bitmap, "BMP")
    for index, bad, message in (
        (7, b"", "image 7 is no readable PNG or JPEG"),
        (8, good[8][:50], "image 8 is no readable"),
        (9, bitmap.getvalue(), "image 9 is no readable"),  # Pillow could: but only two of its decoders are let near
        (5, png(X[5, 1:]), r"image 5 is \(5, 5\), the first \(6, 5\)"),
        (4, png(np.zeros((60_000, 30_000), np.uint8)[:0].reshape(0, 30_000)), "image 4 is no readable"),
    ):
        column = [bad if i == index else data for i, data in enumerate(good)]
        with pytest.raises(FormatError, match=message):
            load_dataset("arrays", url=save(tmp_path / "a.parquet", image=column, label=Y))


def test_paths_in_foreign_data_are_not_followed(tmp_path: Path) -> None:
    Path(tmp_path / "secret.png").write_bytes(png(X[0]))
    column = [{"bytes": None, "path": str(tmp_path / "secret.png")}] * 60
    url = save(
        tmp_path / "a.parquet", image=pl.Series(column, dtype=pl.Struct({"bytes": pl.Binary, "path": pl.String})), y=Y
    )
    with pytest.raises(FormatError, match="60 images are only paths"):
        load_dataset("arrays", url=url)


@pytest.fixture
def hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The `datasets` package, offline and with its cache in the test's folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # both are read at import, which an earlier test may have done
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets


def test_hugging_face_file(hf: Any, tmp_path: Path) -> None:
    names = [["cat", "dog", "elk"][y] for y in Y]
    url = save(tmp_path / "a.parquet", image=X, label=Y, name=names)
    expected = load_dataset("arrays", url=url)
    assert load_dataset("arrays", url=f"hf:{url}").fingerprint == expected.fingerprint
    assert load_dataset("arrays", url=f"hf:{url}", labels="name").fingerprint == expected.fingerprint
    assert (tmp_path / "cache").is_dir()
    halves = load_dataset("arrays", url=f"hf:{url}", split="train[:55]", test_split="train[55:]")
    assert (halves.num_train, halves.num_test) == (55, 5)


def test_hugging_face_features(hf: Any, tmp_path: Path) -> None:
    """Array2D and ClassLabel are types of their own inside the Arrow table."""
    features = hf.Features({"image": hf.Array2D((6, 5), "uint8"), "label": hf.ClassLabel(names=["a", "b", "c"])})
    hf.Dataset.from_dict({"image": X.tolist(), "label": Y.tolist()}, features).to_parquet(tmp_path / "a.parquet")
    expected = load_dataset("arrays", url=save(tmp_path / "b.npz", x=X, y=Y))
    assert load_dataset("arrays", url=f"hf:{tmp_path / 'a.parquet'}").fingerprint == expected.fingerprint
    assert load_dataset("arrays", url=str(tmp_path / "a.parquet")).fingerprint == expected.fingerprint


def test_hugging_face_images(hf: Any, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    url = save(tmp_path / "a.parquet", image=[{"bytes": png(image), "path": "a.png"} for image in X], label=Y)
    expected = load_dataset("arrays", url=save(tmp_path / "b.npz", x=X, y=Y))
    table = hf.load_dataset("parquet", data_files=url, split="train").cast_column("image", hf.Image())
    table.to_parquet(tmp_path / "c.parquet")
    for place in (url, f"hf:{url}", f"hf:{tmp_path / 'c.parquet'}"):
        assert load_dataset("arrays", url=place).fingerprint == expected.fingerprint


def test_hugging_face_names_that_are_not_there(hf: Any, tmp_path: Path) -> None:
    url = save(tmp_path / "a.parquet", image=X, label=Y)
    with pytest.raises(InvalidSpecError, match=r"hf:.*gone\.parquet, split 'train'"):
        load_dataset("arrays", url=f"hf:{tmp_path / 'gone.parquet'}")
    with pytest.raises(InvalidSpecError, match=r"split 'best'"):
        load_dataset("arrays", url=f"hf:{url}", split="best")
    with pytest.raises(ZooError, match="hf:nobody/nothing"):
        load_dataset("arrays", url="hf:nobody/nothing")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(FormatError, match=r"broken\.parquet"):
        load_dataset("arrays", url=f"hf:{tmp_path / 'broken.parquet'}")


@pytest.mark.parametrize(("package", "message"), [("datasets", "Hugging Face packages"), ("PIL", "need Pillow")])
def test_missing_extra_is_named(package: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    url = save(tmp_path / "a.parquet", image=[{"bytes": png(image), "path": None} for image in X], label=Y)
    with pytest.raises(InvalidSpecError, match=rf"{message}.*pip install weightscape\[hf\]"):
        load_dataset("arrays", url=url if package == "PIL" else f"hf:{url}")


def test_standardised_by_feature() -> None:
    plain, data = load_dataset("digits"), load_dataset("digits", standardise="feature")
    assert plain.fingerprint != data.fingerprint
    assert np.array_equal(plain.train_y, data.train_y)
    train = data.train_x.reshape(data.num_train, -1).astype(np.float64)
    varies = np.ptp(plain.train_x.reshape(data.num_train, -1), 0) > 0
    assert 50 < varies.sum() < 64  # the edges of the digits are always empty
    assert (train[:, ~varies] == 0).all()
    # float32 entries below 40, of which 1200 are averaged
    np.testing.assert_allclose(train[:, varies].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train[:, varies].std(0), 1, atol=1e-5)
    # of the training part only: the test part is scaled by the same numbers, wherever they come from
    slope = (data.test_x - data.test_x[:1]).reshape(data.num_test, -1)[:, varies].astype(np.float64)
    raw = (plain.test_x - plain.test_x[:1]).reshape(data.num_test, -1)[:, varies].astype(np.float64)
    np.testing.assert_allclose(
        slope * plain.train_x.reshape(data.num_train, -1)[:, varies].std(0, dtype=np.float64), raw, atol=1e-4
    )
    with pytest.raises(UnknownNameError, match="way to standardise 'pixel'; known: all, feature"):
        load_dataset("digits", standardise="pixel")
