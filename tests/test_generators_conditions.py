"""Condition vectors: fitted on training rows alone, strict about what comes, the same after a trip through JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from catalog.errors import GeneratorError, UnknownNameError
from generators.conditions import LARGEST, MOST, Conditions

ROWS = pl.DataFrame(
    {
        "run": [f"r{n:03d}" for n in range(6)],
        "accuracy": [0.9, 0.8, 0.7, 0.9, 0.5, 0.4],
        "width": [4, 8, 4, 8, 4, 4],
        "constant": [0.1] * 6,
        "phase": ["IV-A", "III", "I", "IV-A", "I", "I"],
        "nesterov": [True, False, True, True, False, True],
        "gap": [0.1, None, 0.3, None, 0.2, 0.1],
        "word": ["a", None, "b", "a", "b", "a"],
        "loss": [0.1, math.nan, 0.3, math.inf, 0.2, 0.1],
        "bits": [b"a"] * 6,
        "nothing": [None] * 6,
    }
)
NAMES = ("accuracy", "phase", "nesterov", "width")


def test_numbers_are_standardised_and_categories_have_a_place_each() -> None:
    found = Conditions.fit(ROWS, NAMES)
    vectors = found.encode(ROWS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (6, found.width) == (6, 2 + 4 + 3 + 2)
    accuracy, width = ROWS["accuracy"].to_numpy(), ROWS["width"].to_numpy()
    np.testing.assert_allclose(vectors[:, 0], (accuracy - accuracy.mean()) / accuracy.std(), rtol=1e-6)
    np.testing.assert_allclose(vectors[:, 9], (width - width.mean()) / width.std(), rtol=1e-6)
    assert found.categories == {"phase": ("I", "III", "IV-A"), "nesterov": ("false", "true")}
    np.testing.assert_array_equal(vectors[:, 2:5].argmax(1), [2, 1, 0, 2, 0, 0])
    np.testing.assert_array_equal(vectors[:, 6:8], np.stack([~ROWS["nesterov"].to_numpy(), ROWS["nesterov"]], 1))
    np.testing.assert_array_equal(vectors[:, 2:5].sum(1), 1)
    np.testing.assert_array_equal(vectors[:, [1, 5, 8, 10]], 1)


def test_a_constant_column_keeps_its_scale() -> None:
    found = Conditions.fit(ROWS, ["constant"])
    assert (found.centres, found.scales) == ({"constant": 0.1}, {"constant": 1.0})
    np.testing.assert_array_equal(found.encode(ROWS)[:, 0], 0)
    np.testing.assert_allclose(found.request({"constant": 0.6}, 1)[0], [0.5, 1])


def test_held_out_rows_are_encoded_with_what_training_had() -> None:
    found = Conditions.fit(ROWS[:3], NAMES)
    np.testing.assert_array_equal(found.encode(ROWS)[:3], found.encode(ROWS[:3]))
    changed = ROWS.with_columns(accuracy=pl.col("accuracy") * pl.when(pl.int_range(6) < 3).then(1).otherwise(2))
    assert Conditions.fit(changed[:3], NAMES) == found
    far = ROWS.with_columns(accuracy=pl.lit(1e300))
    np.testing.assert_array_equal(found.encode(far)[:, 0], np.float32(LARGEST))


def test_requests_are_what_rows_of_these_values_are() -> None:
    found = Conditions.fit(ROWS, NAMES)
    each: dict[str, Any] = {name: ROWS[name].to_list() for name in NAMES}
    np.testing.assert_array_equal(found.request(each, 6), found.encode(ROWS))
    np.testing.assert_array_equal(found.request({name: ROWS[name].to_numpy() for name in NAMES}, 6), found.encode(ROWS))
    one = {name: values[0] for name, values in each.items()}
    np.testing.assert_array_equal(found.request(one, 3), np.repeat(found.encode(ROWS[:1]), 3, axis=0))
    assert found.request(one, 0).shape == (0, found.width)
    scalars = {"accuracy": np.float32(0.5), "width": np.array(4), "nesterov": np.True_, "phase": np.str_("I")}
    np.testing.assert_array_equal(
        found.request(scalars, 1), found.encode(ROWS[4:5].with_columns(nesterov=pl.lit(True)))
    )


def test_what_is_left_out_is_marked() -> None:
    found = Conditions.fit(ROWS, NAMES)
    np.testing.assert_array_equal(found.request({}, 2), 0)
    some = found.request({"phase": "III"}, 2)
    whole = found.encode(ROWS[1:2])
    np.testing.assert_array_equal(some[:, 2:6], np.repeat(whole[:, 2:6], 2, axis=0))
    np.testing.assert_array_equal(np.delete(some, range(2, 6), axis=1), 0)
    mean = found.request({"accuracy": float(ROWS["accuracy"].mean())}, 1)  # type: ignore[arg-type]
    assert (mean[0, 0], mean[0, 1]) == (pytest.approx(0, abs=1e-6), 1)  # the mean is not the same as nothing


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gap", "column 'gap' is null in 2 of 6 rows"),
        ("word", "column 'word' is null in 1 of 6 rows"),
        ("nothing", "column 'nothing' is null in 6 of 6 rows"),
        ("loss", "column 'loss' is NaN or infinite in 2 of 6 rows"),
        ("bits", "column 'bits' must hold numbers, text or booleans"),
    ],
)
def test_columns_that_are_none(name: str, said: str) -> None:
    with pytest.raises(GeneratorError, match=said):
        Conditions.fit(ROWS, [name])
    if name not in ("bits", "nothing"):
        good = Conditions.fit(ROWS[:1], [name])
        with pytest.raises(GeneratorError, match=f"column '{name}' is"):
            good.encode(ROWS)


def test_what_cannot_be_conditions() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown column 'acuracy'; .* did you mean 'accuracy'"):
        Conditions.fit(ROWS, ["acuracy"])
    with pytest.raises(GeneratorError, match="named once, got phase twice"):
        Conditions.fit(ROWS, ["phase", "phase"])
    with pytest.raises(GeneratorError, match="got the string 'phase'"):
        Conditions.fit(ROWS, "phase")
    with pytest.raises(GeneratorError, match="got none"):
        Conditions.fit(ROWS[:0], ["phase"])
    many = pl.DataFrame({"run": [str(n) for n in range(MOST + 1)]})
    with pytest.raises(GeneratorError, match=f"has {MOST + 1} different values"):
        Conditions.fit(many, ["run"])
    with (
        pytest.raises(GeneratorError, match="no usable mean and deviation"),
        np.errstate(over="ignore", invalid="ignore"),
    ):
        Conditions.fit(pl.DataFrame({"big": [1e308, -1e308, 1e308]}), ["big"])
    found = Conditions.fit(ROWS, [])
    assert (found.width, found.encode(ROWS).shape) == (0, (6, 0))


def test_rows_that_do_not_fit() -> None:
    found = Conditions.fit(ROWS[:2], NAMES)
    with pytest.raises(GeneratorError, match=r"column 'phase' is I in 3 of 6 values .* it has III, IV-A"):
        found.encode(ROWS)
    with pytest.raises(UnknownNameError, match="unknown column 'width'"):
        found.encode(ROWS.drop("width"))
    for wrong in (pl.col("accuracy").cast(pl.String), pl.col("width").alias("phase")):
        with pytest.raises(GeneratorError, match=r"held (numbers|categories) in training, the rows hold"):
            Conditions.fit(ROWS, NAMES).encode(ROWS.with_columns(wrong))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"accuracy": "high"}, "'accuracy' must be a number, got 'high'"),
        ({"accuracy": True}, "must be a number, got True"),
        ({"accuracy": None}, "must be a number, got None"),
        ({"accuracy": [0.9, None]}, "must be a number, got None in 1 of 2"),
        ({"accuracy": math.nan}, "must be finite, 1 of 1"),
        ({"accuracy": [0.1, math.inf]}, "must be finite, 1 of 2"),
        ({"accuracy": [0.1, 0.2, 0.3]}, r"one for each of 2 networks, got \(3,\)"),
        ({"accuracy": [[0.1, 0.2]]}, r"one for each of 2 networks, got \(1, 2\)"),
        ({"accuracy": 10**400}, "must be finite"),
        ({"phase": 4}, "'phase' must be one of I, III, IV-A, got 4"),
        ({"phase": "V"}, "column 'phase' is V in 2 of 2 values of the request"),
        ({"phase": ["I", 3]}, "'phase' must be"),
        ({"nesterov": 1}, "must be one of false, true"),
    ],
)
def test_requests_that_do_not_fit(values: dict[str, Any], said: str) -> None:
    with pytest.raises(GeneratorError, match=said):
        Conditions.fit(ROWS, NAMES).request(values, 2)


def test_a_request_for_another_column() -> None:
    with pytest.raises(UnknownNameError, match="unknown condition 'loss'; known: accuracy, nesterov, phase, width"):
        Conditions.fit(ROWS, NAMES).request({"loss": 0.1}, 2)


def test_json_gives_the_same_conditions() -> None:
    found = Conditions.fit(ROWS, NAMES)
    back = Conditions.from_json(json.loads(json.dumps(found.to_json())))
    assert back == found
    np.testing.assert_array_equal(back.encode(ROWS), found.encode(ROWS))


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["accuracy"]},
        {"names": "accuracy"},
        {"names": [*NAMES, "width"]},
        {"names": [*NAMES, "more"]},
        {"centres": {"accuracy": 0.1}},
        {"centres": {"accuracy": 0.1, "width": "x"}},
        {"centres": {"accuracy": 0.1, "width": math.nan}},
        {"scales": {"accuracy": 0.1, "width": 0.0}},
        {"scales": {"accuracy": True, "width": 1.0}},
        {"scales": None},
        {"categories": {"phase": ["I"]}},
        {"categories": {"phase": [], "nesterov": ["true"]}},
        {"categories": {"phase": ["I", "I"], "nesterov": ["true"]}},
        {"categories": {"phase": "I", "nesterov": ["true"]}},
        {"categories": {"phase": ["I"], "nesterov": [3]}},
        {"more": 1},
    ],
)
def test_json_that_is_none(change: dict[str, Any]) -> None:
    content = Conditions.fit(ROWS, NAMES).to_json()
    with pytest.raises(GeneratorError, match="no stored conditions"):
        Conditions.from_json(content | change)
    others: list[Any] = [{}, [], None]
    for other in others:
        with pytest.raises(GeneratorError, match="expected the keys"):
            Conditions.from_json(other)
