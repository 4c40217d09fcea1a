"""README.md and croissant.json of published zoos: true, readable by others, without markup of a stranger."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import polars as pl
import pytest

import catalog
from catalog.datacard import HUB_LICENCES, MARK, bibtex, code, datacard, plain, public_url
from catalog.folder import Folder
from catalog.metrics import Measurement, version_of, write_measurement
from catalog.publish import Published, publish
from catalog.store import Zoo
from tests.catalog_zoos import fill, long, net, write

HOSTILE = (
    "<script>alert(1)</script> `x` | [a](javascript:b) ![i](http://e.org/i) **b** \N{SNOWMAN} \"q\" 'p' $x$ & # y: z "
    "--- www.e.org"
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSCAPE_CACHE", os.fspath(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Zoo, Published]:
    folder = tmp_path_factory.mktemp("card")
    zoo = catalog.create(
        folder / "zoo", name=HOSTILE, variants=[net(), long()], spec={"lr": [0.1], HOSTILE: HOSTILE},
        info={"notes": ["Imported from `elsewhere`."], "citation": "Somebody {2020}", "license": "CC-BY-4.0"},
    )  # fmt: skip
    for variant, shard in zoo.record.shards:
        write(zoo, variant, shard)
    runs = [f"net-{n}" for n in range(6)]
    split = pl.DataFrame({"run": runs, "epoch": [10] * 6, "split": ["train"] * 4 + ["validation", "test"]})
    write_measurement(zoo, Measurement("split", version_of(1, {}), {}, True, split, {}))
    return zoo, publish(zoo, folder / "to", description="It is *small*.\n\n<img src=x onerror=alert(1)>\n- no list")


def card_of(made: tuple[Zoo, Published]) -> str:
    return (Path(made[1].url) / "README.md").read_text()


def front(text: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    head, rest = text.removeprefix("---\n").split("\n---\n", 1)
    assert rest.startswith(f"\n{MARK}\n")
    found: dict[str, Any] = yaml.safe_load(head)
    return found


def test_the_front_matter_is_what_hubs_read(made: tuple[Zoo, Published]) -> None:
    found = front(card_of(made))
    assert found["pretty_name"] == HOSTILE
    assert found["license"] == "cc-by-4.0"
    assert found["size_categories"] == ["n<1K"]
    assert {"weightscape", "model-zoo"} <= set(found["tags"])
    (config,) = found["configs"]
    assert config["config_name"] == "default"
    rows = pl.read_parquet(Path(made[1].url) / config["data_files"])
    assert rows.equals(made[0].table().select(rows.columns))
    assert set(found) == {"license", "pretty_name", "tags", "size_categories", "configs"}


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", {"license": "mit"}),
        ("CC0-1.0", {"license": "cc0-1.0"}),
        ("", {"license": "unknown"}),
        ("My: licence #1 'x'", {"license": "other", "license_name": "my-licence-1-x"}),
        ("---", {"license": "other", "license_name": "other"}),
        ("\N{SNOWMAN}", {"license": "other", "license_name": "other"}),
    ],
)
def test_licences(made: tuple[Zoo, Published], licence: str, expected: dict[str, str]) -> None:
    zoo, done = made
    text = datacard(replace(done.manifest, licence=licence), zoo.record, zoo.table(), "s3://lab/x")
    found = front(text)
    assert {key: found[key] for key in found if key.startswith("license")} == expected
    assert ("ask the authors" in text) == (not licence)
    assert len(set(HUB_LICENCES)) == len(HUB_LICENCES)


def rows_times(made: tuple[Zoo, Published], times: int) -> str:
    zoo, done = made
    return datacard(done.manifest, zoo.record, pl.concat([zoo.table()] * times), "x")


def test_sizes_are_named_as_hubs_do(made: tuple[Zoo, Published]) -> None:
    assert front(rows_times(made, 55))["size_categories"] == ["n<1K"]  # 990 rows
    assert front(rows_times(made, 56))["size_categories"] == ["1K<n<10K"]
    assert front(rows_times(made, 5556))["size_categories"] == ["100K<n<1M"]


def test_the_card_tells_what_is_there(made: tuple[Zoo, Published]) -> None:
    text = card_of(made)
    for line in (
        "| `diverged` | 4 |",
        "| `ok` | 14 |",
        "| `net` | `mlp` | 6 | 2 | 9 | float32 |",
        "| `epoch` | Int64 | epochs trained |",
        "| `train` | 4 | 4 |",
        "| in none | 12 | 9 |",
        "| `lr` | `[0.1]` |",
        "- 4 diverged:",
        "- 2 rows hold no weights",
        "- Column `split` is null in 12 of 18 rows.",
        "- Imported from \\`elsewhere\\`.",
        made[1].manifest.tree,
    ):
        assert line in text, line


def test_nothing_of_the_zoo_is_markup(made: tuple[Zoo, Published]) -> None:
    text = card_of(made).split("\n---\n", 1)[1].replace(MARK, "")
    outside = re.sub(r"(?s)```.*?```", "", text)
    outside = re.sub(r"`[^`\n]*`", "", outside.replace("\\`", ""))
    assert "<" not in outside
    assert not re.search(r"(?<!\\)\]\(|(?<!\\)!?\[", outside)
    assert not re.search(r"(?<!\\)://", outside)
    assert not re.search(r"(?<!\\)\*", outside)
    for line in outside.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 5, 7), line
    headings = re.findall(r"(?m)^#+ .*", outside)
    assert len([line for line in headings if line.startswith("# ")]) == 1
    assert "\n- no list" not in text


def test_names_that_would_be_markup() -> None:
    for text, shown in (
        ("- a", "\\- a"),
        ("# a", "\\# a"),
        ("1. a", "1\\. a"),
        ("a_b*", "a\\_b\\*"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("http://e.org", "http\\://e.org"),
        ("WWW.e.org", "WWW\\.e.org"),
        ("a\nb\x1b\N{RIGHT-TO-LEFT OVERRIDE}", "a b\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"),
    ):
        assert plain(text) == shown
    as_code = ["`a_b`", "a\\`b", "a\\|b", "a", " ", "a b"]
    assert [code(text) for text in ("a_b", "a`b", "a|b", " a", "", "a\nb")] == as_code


def test_markdown_shows_no_markup(made: tuple[Zoo, Published]) -> None:
    """As CommonMark with tables reads it: another library's opinion of the escaping."""
    library = pytest.importorskip("markdown_it")
    reader = library.MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = reader.parse(card_of(made).split("\n---\n", 1)[1])
    inline = [child for token in tokens for child in token.children or []]
    kinds = {token.type for token in [*tokens, *inline]}
    assert not kinds & {"html_inline", "link_open", "image", "strong_open", "em_open", "blockquote_open", "hr"}
    assert [token.content.strip() for token in tokens if token.type == "html_block"] == [MARK]
    shown = ["".join(c.content for c in token.children or []) for token in tokens if token.type == "inline"]
    assert HOSTILE in shown  # the title, as it is


def test_the_code_in_the_card_runs(made: tuple[Zoo, Published], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made[1].url)
    blocks = re.findall(r"```(\w+)\n(.*?)\n```", card_of(made), re.DOTALL)
    assert [language for language, _ in blocks] == ["python", "python", "sql", "bibtex"]
    names: dict[str, Any] = {}
    exec(blocks[0][1], names)
    first = names["weights"][0]
    exec(blocks[1][1], names)
    np.testing.assert_array_equal(names["weights"], first)
    duckdb = pytest.importorskip("duckdb")
    assert sorted(duckdb.sql(blocks[2][1]).fetchall()) == [("diverged", 4), ("ok", 14)]


def test_citations(made: tuple[Zoo, Published]) -> None:
    manifest = made[1].manifest
    assert "annote = {Somebody \\{2020\\}}" in bibtex(manifest, ".")
    assert bibtex(manifest, "s3://a/b").count("url = {s3://a/b}") == 1
    ours = replace(manifest, citation="@article{a,\n title = {T}\n}")
    assert bibtex(ours, ".") == ours.citation
    fenced = datacard(replace(manifest, citation="@misc{a}\n```\n# out"), made[0].record, made[0].table(), ".")
    assert "````bibtex\n@misc{a}\n```\n# out\n````" in fenced


def test_places_have_no_secrets() -> None:
    assert public_url("https://user:secret@e.org:8/x") == "https://e.org:8/x"
    assert public_url("s3://lab/a b") == "s3://lab/a b"
    assert public_url("/srv/me/zoo") == public_url("file:///srv/me/zoo") == "."


def test_a_card_written_by_hand_stays(tmp_path: Path) -> None:
    zoo, _ = fill(tmp_path / "zoo", net(models=2))
    publish(zoo, tmp_path / "to")
    card = tmp_path / "to/README.md"
    card.write_text("# My own\n")
    publish(zoo, tmp_path / "to", licence="MIT")
    assert card.read_text() == "# My own\n"
    card.unlink()
    assert not publish(zoo, tmp_path / "to").changed  # which writes it again
    assert "mit" in card.read_text()


# --- Croissant


def test_croissant_describes_the_files(made: tuple[Zoo, Published]) -> None:
    folder = Path(made[1].url)
    found = json.loads((folder / "croissant.json").read_text())
    assert found["@type"] == "sc:Dataset"
    assert found["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert (found["name"], found["license"], found["version"]) == (HOSTILE, "CC-BY-4.0", "1.0.0")
    objects = {item["@id"]: item for item in found["distribution"]}
    assert len(objects) == len(found["distribution"]) == len(made[1].manifest.files) + 1
    for item in objects.values():
        data = (folder / unquote(item["contentUrl"])).read_bytes()
        assert hashlib.sha256(data).hexdigest() == item["sha256"]
        assert item["contentSize"] == f"{len(data)} B"
    (rows,) = found["recordSet"]
    table = pl.read_parquet(folder / unquote(objects["table"]["contentUrl"]))
    types = {"sc:Integer": pl.Int64, "sc:Float": pl.Float64, "sc:Boolean": pl.Boolean, "sc:Text": pl.String}
    fields = {field["source"]["extract"]["column"]: field for field in rows["field"]}
    assert set(fields) == {name for name, kind in table.schema.items() if kind != pl.Binary}
    for name, field in fields.items():
        assert field["source"]["fileObject"]["@id"] == "table"
        assert table.schema[name] in (types[field["dataType"]], pl.UInt32)
    assert {key["@id"] for key in rows["key"]} <= {field["@id"] for field in rows["field"]}
    assert set(found["@context"]) >= {"cr", "sc", "recordSet", "field", "dataType", "fileObject", "column", "extract"}


def test_croissant_says_where_it_is(tmp_path: Path) -> None:
    zoo, _ = fill(tmp_path / "zoo", net(models=2))
    publish(zoo, f"memory://card{os.getpid()}/x")
    found = json.loads(Folder.at(f"memory://card{os.getpid()}/x").read("croissant.json"))
    assert found["url"] == f"memory://card{os.getpid()}/x"
    assert found["license"] == "unknown"
