"""What the explorer puts into its page, without a browser."""

from __future__ import annotations

import base64
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import catalog
from catalog.errors import InvalidSpecError, NotAZooError, QueryError
from catalog.explorer import content_of, explore
from catalog.explorer.about import place_of
from catalog.explorer.charts import charts
from catalog.explorer.columns import encode_columns
from catalog.explorer.page import as_json, page
from tests.browser import chromium
from tests.catalog_zoos import create, fill
from tests.catalog_zoos import write as write_shard
from tests.explorer_zoos import HOSTILE, awkward, many


def decoded(column: dict[str, Any], rows: int) -> list[Any]:
    """Values of a column, read as the page reads them."""
    if "floats" in column:
        floats = np.frombuffer(base64.b64decode(column["floats"]), f"<f{column['width']}").tolist()
        bits = np.unpackbits(np.frombuffer(base64.b64decode(column["nulls"]), np.uint8), bitorder="little")
        values = iter(floats)
        return [None if len(bits) and bits[row] else next(values) for row in range(rows)]
    if not column["width"]:
        return [column["values"][0] if column["values"] else None] * rows
    codes = np.frombuffer(base64.b64decode(column["codes"]), f"<u{column['width']}")
    return [column["values"][code - 1] if code else None for code in codes.tolist()]


@given(
    st.sampled_from([pl.Float64, pl.Float32, pl.Int64, pl.UInt8, pl.Boolean, pl.String]).flatmap(
        lambda dtype: st.tuples(
            st.just(dtype),
            st.lists(
                st.none()
                | {
                    pl.Float64: st.floats(),
                    pl.Float32: st.floats(width=32),
                    pl.Int64: st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3),
                    pl.UInt8: st.integers(0, 255),
                    pl.Boolean: st.booleans(),
                    pl.String: st.text(max_size=10),
                }[dtype],
                max_size=30,
            ),
        )
    )
)
def test_columns_are_exact(drawn: tuple[Any, list[Any]]) -> None:
    dtype, values = drawn
    (column,), size = encode_columns(pl.DataFrame({"x": pl.Series(values, dtype=dtype)}))
    column = json.loads(json.dumps(column, allow_nan=False))
    expected = [str(v) if column["type"] == "large" and v is not None else v for v in values]
    found = decoded(column, len(values))
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == theirs or (isinstance(theirs, float) and math.isnan(theirs) and math.isnan(mine))
    assert size == len(json.dumps(column))


def test_columns_are_small() -> None:
    """Few values take a byte or none a row, numbers four where they are float32, eight else, nulls a bit."""
    normal = np.random.default_rng(0).normal(size=3000)
    rows = pl.DataFrame(
        {
            "same": [0.1] * 3000,
            "few": [0.1 * (i % 7) for i in range(3000)],
            "names": [f"run {i % 1000}" for i in range(3000)],
            "single": normal.astype(np.float32).astype(np.float64),
            "double": normal,
            "rare": [normal[i] if i % 10 == 0 else None for i in range(3000)],
            "bits": [b"1234"] * 3000,
        }
    )
    columns = {column["name"]: column for column in encode_columns(rows)[0]}
    sizes = {name: len(base64.b64decode(c.get("codes") or c.get("floats") or "")) for name, c in columns.items()}
    assert sizes == {"same": 0, "few": 3000, "names": 6000, "single": 12000, "double": 24000, "rare": 2400}
    assert len(base64.b64decode(columns["rare"]["nulls"])) == 375


def test_long_texts_are_cut() -> None:
    (column,), _ = encode_columns(pl.DataFrame({"x": ["a" * 1000]}))
    assert column["values"] == ["a" * 299 + "…"]


@given(st.text() | st.lists(st.dictionaries(st.text(), st.text())))
def test_json_cannot_end_its_element(content: Any) -> None:
    text = as_json([content, *HOSTILE])
    assert json.loads(text) == [content, *HOSTILE]
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_a_page_has_nothing_of_the_zoo_outside_its_data() -> None:
    """Two pages differ in title, data and nothing else, so that the hashes of the policy cover all that is run."""
    contents = [{"title": title, "table": {}} for title in ("plain", HOSTILE[1])]
    plain, hostile = (page(content, "var library;").decode() for content in contents)
    parts = [text.split('id="data">')[1].split("</script>", 1)[1] for text in (plain, hostile)]
    assert parts[0] == parts[1]
    assert "<img src=x" not in hostile
    heads = [text.split("<title>")[0] for text in (plain, hostile)]
    assert heads[0] == heads[1]
    assert hostile.count("sha256-") == 3
    assert "%%" not in plain


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("demo.zoo", "demo.zoo"),
        ("data/demo.zoo/", "data/demo.zoo"),
        ("/data/somebody/demo.zoo", "demo.zoo"),
        ("file:///data/somebody/demo.zoo", "demo.zoo"),
        ("https://me:secret@host.org/zoo?signature=1#x", "https://host.org/zoo"),
        ("s3://bucket/zoo", "s3://bucket/zoo"),
        ("hf://datasets/org/name@main/zoo", "hf://datasets/org/name@main/zoo"),
    ],
)
def test_code_to_copy_tells_no_secrets(url: str, shown: str) -> None:
    assert place_of(url) == shown


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> catalog.Zoo:
    return awkward(tmp_path_factory.mktemp("content") / "awkward.zoo")


def test_roles_and_axes_follow_from_the_columns(zoo: catalog.Zoo) -> None:
    content = content_of(zoo, models=0)
    roles = {column["name"]: column["role"] for column in content["table"]["columns"]}
    assert {name for name, role in roles.items() if role == "setting"} == {"width", "rate", "drawn", "nothing"}
    assert (roles["run"], roles["status"], roles["phase"]) == ("address", "state", "measured")
    assert (roles["train_loss"], roles["test_accuracy"]) == ("outcome", "outcome")
    assert (content["axes"]["x"], content["axes"]["y"]) == ("width", "rate"), "those the spec names"
    assert content["weights"] == []
    assert content["health"]["reasons"] == [["diverged", "loss is NaN <b>", 2]]


def test_axes_without_a_spec(tmp_path: Path) -> None:
    content = content_of(many(tmp_path / "many.zoo", models=50, epochs=2, outcomes=2), models=7)
    assert (content["axes"]["x"], content["axes"]["y"]) == ("width", "learning_rate")
    assert "metric_0_loss" not in content["axes"]["choices"]
    assert sum(len(part["rows"]) for part in content["weights"]) == 7


def test_models_are_chosen_by_the_seed_and_all_are_last(zoo: catalog.Zoo) -> None:
    rows = zoo.table()
    first, again, other = (content_of(zoo, models=8, seed=seed)["weights"] for seed in (1, 1, 2))
    assert first == again != other
    places = [place for part in first for place in part["rows"]]
    assert len(places) == 8
    assert all(rows["stored"][place] for place in places)
    assert set(rows["epoch"][places]) <= {1, 10}


def test_few_models_fit_when_they_have_many_tensors(zoo: catalog.Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.explorer.WEIGHT_BYTES", 2000)
    weights = content_of(zoo)["weights"]
    assert 0 < sum(len(part["rows"]) for part in weights) < 10
    assert len(json.dumps(weights)) < 2000 + 1000


def test_a_page_never_holds_more_rows_than_a_browser_bears(zoo: catalog.Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.explorer.MOST_ROWS", 10)
    table = content_of(zoo, models=0)["table"]
    assert (table["rows"], table["runs"], table["all_rows"], table["all_runs"]) == (9, 3, 72, 24)
    assert all(len(decoded(column, 9)) == 9 for column in table["columns"])


def test_batches_of_any_size_give_the_same(zoo: catalog.Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = content_of(zoo)["weights"]
    monkeypatch.setattr("catalog.explorer.weights.MEMORY", 120)  # three rows
    steps: list[tuple[int, int]] = []
    assert content_of(zoo, progress=lambda done, count: steps.append((done, count)))["weights"] == whole
    assert steps[-1] == (24, 24)
    assert len(steps) == 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_zoos_give_the_same(tmp_path: Path, dtype: str) -> None:
    fill(tmp_path / "hot.zoo", dtype=dtype)
    catalog.pack(tmp_path / "hot.zoo", tmp_path / "packed.zoo")
    hot, packed = (content_of(catalog.open(tmp_path / f"{name}.zoo")) for name in ("hot", "packed"))
    assert hot["weights"] == packed["weights"] != []
    assert hot["table"] == packed["table"]


def test_a_zoo_on_the_web(tmp_path: Path, web: Any) -> None:
    fill(tmp_path / "tiny.zoo")
    here, there = content_of(catalog.open(tmp_path / "tiny.zoo")), content_of(catalog.open(f"{web[1]}/tiny.zoo"))
    assert here == there


def test_a_zoo_half_built(tmp_path: Path) -> None:
    zoo = create(tmp_path / "half.zoo")
    write_shard(zoo, "net", 0)
    content = content_of(zoo)
    assert (content["card"]["committed"], content["card"]["shards"]) == (1, 5)
    assert [part["variant"] for part in content["weights"]] == ["net"]


def test_errors_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("altair")
    with pytest.raises(QueryError, match="0 or more, got -1"):
        explore(tmp_path, tmp_path / "out.html", models=-1)
    with pytest.raises(NotAZooError, match="no zoo"):
        explore(tmp_path / "nothing", tmp_path / "out.html")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(sys.modules, "altair", None)
    charts.cache_clear()
    with pytest.raises(InvalidSpecError, match=r"weightscape\[explore\]"):
        explore(tmp_path, tmp_path / "out.html")
    charts.cache_clear()


def test_no_browser_is_a_failure_in_ci_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("WEIGHTSCAPE_CHROMIUM", raising=False)
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="no Chromium"):
        chromium()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no Chromium"):
        chromium()
    monkeypatch.setenv("WEIGHTSCAPE_CHROMIUM", "/somewhere/chromium")
    assert chromium() == "/somewhere/chromium"
