"""The explorer's page in a real browser, against polars and numpy on the same zoo."""

from __future__ import annotations

import csv
import io
import itertools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import catalog
from catalog.store import Zoo
from catalog.verify import verify
from tests.browser import opened, running
from tests.explorer_zoos import HOSTILE, ODD, RATES, WIDTHS, awkward, many, store

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from catalog.explorer import explore

PLAIN = [text for text in HOSTILE if "\n" not in text]  # what can be typed into a field
SHOWN = {0.1: "0.1", 0.03162277660168379: "0.031623", 1e-7: "1e\u22127", 3e6: "3000000"}
CASES = [
    ("width", "eq", "4"),
    ("rate", "ge", "0.03162277660168379"),
    ("rate", "eq", "1e-7"),
    ("drawn", "gt", "0.5"),
    ("order", "lt", "-10"),
    ("order", "ne", "-5"),
    ("order", "null", ""),
    ("small", "le", "3"),
    ("small", "gt", "-1"),
    ("small", "lt", "2.5"),
    ("single", "eq", "0.3"),
    ("single", "ge", "0.3"),
    ("single", "lt", "3.3"),
    ("large", "eq", str(2**60 + 2)),
    ("large", "ne", str(2**60 + 2)),
    ("truth", "yes", ""),
    ("truth", "no", ""),
    ("truth", "known", ""),
    ("train_loss", "gt", "1"),
    ("train_loss", "le", "1"),
    ("train_loss", "ne", "1"),
    ("test_accuracy", "known", ""),
    ("far", "gt", "1e300"),
    ("far", "lt", "0"),
    ("status", "eq", "diverged"),
    ("phase", "eq", "I"),
    ("phase_outlier", "yes", ""),
    ("nothing", "null", ""),
    (ODD, "eq", "1"),
    ("text", "contains", "'"),
    ("text", "contains", "%"),
    ("text", "contains", "\\"),
    ("text", "starts", "="),
    ("text", "ne", "no such text"),
    *(("text", "eq", text) for text in PLAIN),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explorer")


@pytest.fixture(scope="module")
def zoo(folder: Path) -> Zoo:
    return awkward(folder / "awkward.zoo")


@pytest.fixture(scope="module")
def page(zoo: Zoo, folder: Path) -> Path:
    checked = verify(folder / "awkward.zoo")
    return explore(folder / "awkward.zoo", folder / "awkward.html", verification=checked)


def text_of(tab: Any, selector: str) -> str:
    return str(tab.locator(selector).text_content())


def until(tab: Any, expression: str) -> None:
    """Waits for it. Playwright's own way compiles text in the page, which the policy forbids."""
    for _ in range(1000):
        if tab.evaluate(expression):
            return
        tab.wait_for_timeout(10)
    raise AssertionError(f"never: {expression}")


def add(tab: Any, column: str, operator: str, value: str) -> None:
    """Adds a condition, in one step, as there are many."""
    tab.evaluate(
        """([column, operator, value]) => {
        const at = (id) => document.getElementById(`filter-${id}`);
        at('column').value = column;
        at('column').dispatchEvent(new Event('change'));
        at('operator').value = operator;
        at('value').value = value;
        at('form').requestSubmit();
        }""",
        [column, operator, value],
    )


def type_in(tab: Any, column: str, operator: str, value: str) -> None:
    """Adds a condition as a person does."""
    tab.select_option("#filter-column", column)
    tab.select_option("#filter-operator", operator)
    if value:
        tab.fill("#filter-value", value)
    tab.click("#filter-form button[type=submit]")


def saved_text(tab: Any) -> str:
    """The rows of the table that fit the conditions, as the page saves them."""
    with tab.expect_download() as download:
        tab.click("#save-csv")
    return Path(download.value.path()).read_bytes().decode()


def copied(tab: Any, button: str) -> str:
    """What a button puts on the clipboard."""
    found = tab.evaluate(
        """async (button) => {
        const told = document.getElementById('copied');
        told.textContent = '';
        document.querySelector(button).click();
        while (!told.textContent) await new Promise((done) => setTimeout(done, 1));
        return navigator.clipboard.readText();
        }""",
        button,
    )
    return str(found)


def saved(tab: Any) -> list[dict[str, str]]:
    """The rows of the table that fit the conditions, as the page copies them."""
    return list(csv.DictReader(io.StringIO(copied(tab, "#copy-csv"), newline="")))


def keys(rows: pl.DataFrame) -> list[tuple[str, str]]:
    return [(run, str(epoch)) for run, epoch in rows.select("run", "epoch").iter_rows()]


def keys_of(tab: Any) -> list[tuple[str, str]]:
    return [(row["run"], row["epoch"]) for row in saved(tab)]


def in_python(tab: Any, name: str = "python") -> pl.DataFrame:
    """What the code that the page shows finds."""
    space: dict[str, Any] = {"catalog": catalog, "pl": pl}
    exec(text_of(tab, f"#{name}"), space)
    rows = space["rows"]
    assert isinstance(rows, pl.DataFrame)
    return rows


def by_command(tab: Any, zoo: Zoo) -> pl.DataFrame | None:
    """What the command that the page shows asks for; None where it says that a command cannot show it."""
    told = ["sh", "-c", "printf '%s\\0' " + text_of(tab, "#command")]
    words = subprocess.run(told, capture_output=True, check=True, text=True).stdout.split("\0")[:-1]
    assert not Path("pwned").exists(), "the shell ran what a text of the zoo says"
    if words[:2] != ["weightscape", "query"]:  # a comment, to the shell
        assert "use the Python" in text_of(tab, "#command")
        return None
    where = None if words[3].startswith("--") else words[3]
    options = dict(itertools.pairwise(words))
    assert (words[2], options["--status"]) == ("awkward.zoo", "all")
    sort = [options["--sort"]] if "--sort" in options else ()
    columns = options["--columns"].split(",")
    return catalog.query(zoo, where, columns=columns, sort=sort, descending="--descending" in words, status=None)


def test_filters_mean_the_same_in_the_page_in_polars_and_in_sql(
    browser: Any, page: Path, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(page.parent)
    some = 0
    with opened(browser, page) as tab:
        for column, operator, value in CASES:
            add(tab, column, operator, value)
            found = keys_of(tab)
            assert found == keys(in_python(tab)), (column, operator, value)
            asked = by_command(tab, zoo)
            assert asked is None or found == keys(asked), (column, operator, value)
            assert text_of(tab, "#count").startswith(f"{len(found)} of 72 rows")
            assert tab.locator("#rows tbody tr[data-place]").count() == min(len(found), 50)
            some += 0 < len(found) < 72
            tab.evaluate("document.getElementById('filter-clear').click()")
        assert len(keys_of(tab)) == 72
    assert some > 25, "conditions that fit all rows or none tell little"


def test_conditions_are_joined_and_removed(browser: Any, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(page.parent)
    with opened(browser, page) as tab:
        add(tab, "width", "ge", "4")
        type_in(tab, "test_accuracy", "lt", "0.5")
        type_in(tab, "text", "contains", "'")
        three = keys_of(tab)
        assert three == keys(in_python(tab))
        assert len(three) > 0
        tab.get_by_role("button", name="Remove test accuracy < 0.5").click()
        assert keys_of(tab) == keys(in_python(tab)) != three
        add(tab, "width", "ge", "wide")
        assert "holds numbers" in text_of(tab, "#filter-error")
        assert tab.locator("#conditions li").count() == 2


AT = "(name) => [...document.querySelectorAll('#rows th button')].findIndex((button) => button.value === name)"


def place_of(zoo: Zoo, column: str) -> int:
    """Which of the boxes is that of a column."""
    return [name for name in zoo.table().columns if name != "crc32c"].index(column)


@pytest.mark.parametrize("column", ["train_loss", "drawn", "phase", ODD])
def test_sorting_is_that_of_polars(
    browser: Any, page: Path, zoo: Zoo, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(page.parent)
    with opened(browser, page) as tab:
        tab.evaluate("document.getElementById('columns-choice').open = true")
        tab.locator("#columns input").nth(place_of(zoo, column)).check()
        for direction in ("ascending", "descending"):
            head = tab.locator("#rows th").nth(tab.evaluate(AT, column))
            head.locator("button").click()
            assert head.get_attribute("aria-sort") == direction
            assert keys_of(tab) == keys(in_python(tab))
        asked = by_command(tab, zoo)
        if asked is not None and column != "train_loss":  # NaN is not itself
            assert asked[column].to_list() == in_python(tab)[column].to_list()


def test_a_click_on_a_cell_shows_its_models(
    browser: Any, page: Path, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(page.parent)
    table = zoo.table()
    with opened(browser, page) as tab:
        for width, rate in ((4, 0.03162277660168379), (8, 0.03162277660168379), (2, 3e6)):
            j, i = sorted(RATES).index(rate), WIDTHS.index(width)
            cells = tab.locator("#map-chart path[aria-label^='width '][aria-label*='rate ']")
            assert cells.count() == 12
            label = tab.locator(f'#map-cells [data-cell="{i} {j}"]')
            wanted = table.filter(pl.col("width") == width, pl.col("rate") == rate)
            last = wanted.filter(pl.col("test_accuracy").is_not_null()).sort("epoch").unique("run", keep="last")
            assert float(label.text_content()) == pytest.approx(last["test_accuracy"].mean(), abs=1e-4)
            tab.locator(f"#map-chart path[aria-label^='width {width}, rate {SHOWN[rate]}:']").click()
            assert keys_of(tab) == keys(wanted) == keys(in_python(tab))
            tab.wait_for_selector(f'#map-cells [data-cell="{i} {j}"][aria-pressed=true]', state="attached")
        assert tab.locator("#conditions li").count() == 2, "another cell takes the place of the last one"


def test_cells_of_bins_hold_their_models(browser: Any, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row with a value is in exactly one cell, and the cell's conditions find it."""
    monkeypatch.chdir(page.parent)
    many_values = page.parent / "bins.zoo"
    rows = pl.DataFrame(
        {
            "variant": ["net"] * 61,
            "run": [f"r{number}" for number in range(61)],
            "epoch": [1] * 61,
            "status": ["ok"] * 61,
            "reason": [""] * 61,
            "stored": [True] * 61,
            "rate": [float(f"{10 ** (number / 10 - 5):.3g}") for number in range(61)],  # some on edges
            "width": [number % 2 for number in range(61)],
        }
    )
    store(many_values, rows)
    made = explore(many_values, page.parent / "bins.html")
    with opened(browser, made) as tab:
        assert "bins" in text_of(tab, "#map-note")
        tab.select_option("#map-value", "(runs)")
        seen: list[tuple[str, str]] = []
        for place in [one.get_attribute("data-cell") for one in tab.locator("#map-cells [data-cell]").all()]:
            tab.evaluate("(place) => document.querySelector(`#map-cells [data-cell='${place}']`).click()", place)
            cell = tab.locator(f'#map-cells [data-cell="{place}"]')
            assert cell.get_attribute("aria-pressed") == "true"
            found = keys_of(tab)
            assert len(found) == int(cell.text_content())
            assert found == keys(in_python(tab))
            seen += found
        assert sorted(seen) == sorted(keys(rows))


def test_the_map_shows_other_columns(browser: Any, page: Path) -> None:
    with opened(browser, page) as tab:
        tab.select_option("#map-value", "phase")
        tab.wait_for_selector("#map-chart path[aria-label*='phase IV-B']")
        assert tab.locator("#map-cells tbody button").all_text_contents().count("I") == 3
        assert tab.locator("#map-chart").get_by_text("IV-B", exact=True).count() > 0
        tab.select_option("#map-value", "(share of runs not ok)")
        tab.wait_for_selector("#map-chart path[aria-label*='not ok']")
        assert tab.locator("#map-cells tbody button").all_text_contents().count("1") == 1
        tab.select_option("#map-x", "drawn")
        tab.wait_for_selector("#map-chart path[aria-label^='drawn']")


def test_the_keyboard_reaches_everything(browser: Any, page: Path) -> None:
    with opened(browser, page) as tab:
        focused = "document.activeElement"
        tab.keyboard.press("Tab")
        assert tab.evaluate(f"{focused}.className") == "skip"
        assert tab.evaluate(f"getComputedStyle({focused}).outlineStyle") == "solid"
        tab.keyboard.press("Enter")
        assert tab.evaluate("location.hash") == "#table"
        seen = set()
        for _ in range(40):
            tab.keyboard.press("Tab")
            seen.add(tab.evaluate(f"{focused}.id || {focused}.tagName"))
            if tab.evaluate(f"{focused}.closest('tbody') !== null"):
                break
        assert {"filter-column", "filter-operator", "filter-value", "python", "command", "SUMMARY"} <= seen
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("ArrowUp")
        assert tab.evaluate(f"{focused}.dataset.place") == "1"
        tab.keyboard.press("End")
        assert tab.evaluate(f"{focused}.dataset.place") == "49"
        tab.keyboard.press("ArrowDown")
        assert (tab.evaluate(f"{focused}.dataset.place"), text_of(tab, "#place")) == ("0", "page 2 of 2")
        tab.keyboard.press("ArrowUp")
        assert (tab.evaluate(f"{focused}.dataset.place"), text_of(tab, "#place")) == ("49", "page 1 of 2")
        tab.keyboard.press("Enter")
        assert tab.evaluate(f"{focused}.id") == "model"
        assert tab.get_attribute('#rows tr[data-place="49"]', "aria-selected") == "true"
        tab.focus("#map-cells summary")
        tab.keyboard.press("Enter")
        tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")
        assert tab.locator("#conditions li").count() == 2
        until(tab, "document.activeElement.ariaPressed === 'true'")


def test_every_control_has_a_name(browser: Any, page: Path) -> None:
    with opened(browser, page) as tab:
        tab.click("#rows tbody tr >> nth=0")
        tab.wait_for_selector("#model-panel .layers")
        nameless = tab.evaluate(
            """[...document.querySelectorAll('button, input, select, a, table, section, [role=img]')]
            .filter((node) => !(node.textContent.trim() && ['BUTTON', 'A'].includes(node.tagName)))
            .filter((node) => !node.ariaLabel && !node.labels?.length && !node.getAttribute('aria-labelledby'))
            .filter((node) => !node.querySelector('caption')).map((node) => node.outerHTML)"""
        )
        assert nameless == []
        assert tab.evaluate("document.documentElement.lang") == "en"


def test_dark_and_light(browser: Any, page: Path) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, page, color_scheme="dark") as tab:
        dark = tab.evaluate(back)
        assert tab.get_attribute("#theme", "aria-pressed") == "true"
        tab.click("#theme")
        light = tab.evaluate(back)
        assert tab.get_attribute("#theme", "aria-pressed") == "false"
        until(tab, "document.querySelector('#map-chart text').getAttribute('fill') === '#1b2026'")
    with opened(browser, page, color_scheme="light") as tab:
        assert tab.evaluate(back) == light != dark
        tab.click("#theme")
        assert tab.evaluate(back) == dark
        assert contrast(tab) > 7


def contrast(tab: Any) -> float:
    """Of text on its ground, as WCAG defines it."""
    colours = tab.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.querySelector('section')).backgroundColor]"
    )
    shares = np.array([[int(part) for part in re.findall(r"\d+", colour)[:3]] for colour in colours]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return float((high + 0.05) / (low + 0.05))


def test_a_model_has_curves_layers_and_a_histogram(
    browser: Any, page: Path, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(page.parent)
    rows = zoo.scan(None).filter(pl.col("variant") == "other", pl.col("epoch") == 10, pl.col("stored")).collect()
    row = rows[7]
    weights = zoo.read(row)[0].astype(np.float64)
    with opened(browser, page) as tab:
        add(tab, "variant", "eq", "other")
        add(tab, "epoch", "eq", "10")
        add(tab, "stored", "yes", "")
        tab.click("#rows tbody tr >> nth=7")
        tab.wait_for_selector(
            "#model-panel svg[aria-roledescription], #model-panel .layers + div, #model-panel .layers"
        )
        space: dict[str, Any] = {"catalog": catalog, "pl": pl}
        exec(text_of(tab, "#model-panel pre"), space)
        assert keys(space["row"]) == keys(row)
        lines = [[cell.strip() for cell in line.locator("th, td").all_text_contents()]
                 for line in tab.locator("#model-panel .layers tbody tr").all()]  # fmt: skip
        assert [line[:3] for line in lines] == [
            ["w</script>", "2 \u00d7 3", "6"], ["b", "2", "2"], ["mean (buffer)", "2", "2"], ["empty", "0", "0"]
        ]  # fmt: skip
        for line, part in zip(lines, (slice(0, 6), slice(6, 8), slice(8, 10)), strict=False):
            values = weights[part]
            numbers = [float(text.replace("\u2212", "-")) for text in line[3:]]
            expected = [values.mean(), values.std(), np.linalg.norm(values), np.abs(values).max()]
            np.testing.assert_allclose(numbers, expected, rtol=2e-3)
        assert lines[3][3:] == ["\u2013"] * 4
        bars = tab.locator("#model-panel path[aria-label*=' to ']")
        bars.first.wait_for()
        counts = [int(bar.get_attribute("aria-label").split()[0]) for bar in bars.all()]
        assert counts == np.histogram(weights[:8], 40)[0].tolist(), "parameters alone, without the buffer"
        losses = tab.locator("#model-panel path[aria-roledescription=point][aria-label^='train loss']")
        known = zoo.table().filter(pl.col("run") == row["run"][0], pl.col("train_loss").is_finite())
        assert losses.count() == len(known) >= 2
    with opened(browser, page, fragment=tab_link(row["run"][0])) as tab:
        tab.wait_for_selector("#model-panel .layers")
        assert "other" in text_of(tab, "#model-panel")


def tab_link(run: str) -> str:
    from urllib.parse import quote

    return f"#run={quote(run, safe='')}"


def test_a_run_that_diverged_says_so(browser: Any, page: Path) -> None:
    with opened(browser, page) as tab:
        add(tab, "status", "eq", "diverged")
        tab.click("#rows tbody tr >> nth=0")
        tab.wait_for_selector("#model-panel .layers")
        assert "diverged from epoch 10: loss is NaN <b>" in text_of(tab, "#model-panel")
        assert "At epoch 1, the last checkpoint with weights" in text_of(tab, "#model-panel")
        health = text_of(tab, "#health")
        assert "width 8, rate 0.031623 2 of 2 runs not ok" in health
        assert "width 4, rate 0.1 outlier" in health
        tab.get_by_role("button", name="width 8, rate 0.031623").click()
        assert {row["width"] for row in saved(tab)} == {"8"}


def test_what_is_copied_is_what_is_shown(browser: Any, page: Path) -> None:
    with opened(browser, page) as tab:
        add(tab, "width", "eq", "4")
        for name in ("python", "command"):
            assert copied(tab, f"[data-copy={name}]") == text_of(tab, f"#{name}")
        assert copied(tab, "#copy-csv") == saved_text(tab)


def test_formulas_do_not_get_into_a_spreadsheet(browser: Any, page: Path) -> None:
    with opened(browser, page) as tab:
        tab.evaluate("document.getElementById('columns-choice').open = true")
        tab.check('#columns input[value="order"]')
        add(tab, "text", "starts", "=")
        rows = saved(tab)
        assert {row["text"] for row in rows} == {"'" + HOSTILE[2]}
        assert all(float(row["order"]) < 0 for row in rows if row["order"]), "a number is no formula"


def test_hostile_texts_run_nothing(browser: Any, page: Path, zoo: Zoo) -> None:
    with opened(browser, page) as tab:
        for place in (0, 3):
            tab.click(f"#rows tbody tr[data-place='{place}']")
            tab.wait_for_selector("#model-panel .layers")
        tab.select_option("#map-value", "phase")
        assert tab.evaluate("typeof pwned") == "undefined"
        assert tab.evaluate("document.querySelectorAll('main img, main script').length") == 0
        assert text_of(tab, "#title") == tab.title() == HOSTILE[0]
        shown = text_of(tab, "body")
        assert "abc[U+202E]txt.exe[U+200B]" in shown
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f]", text_of(tab, "main"))
        assert "</script><img src=x" in shown


def test_the_policy_refuses_what_is_not_of_the_page(browser: Any, page: Path) -> None:
    """The page would stay safe if an escape were forgotten: these are things that a browser without a policy does."""
    with opened(browser, page) as tab:
        refused = tab.evaluate(
            """async () => {
            const seen = [];
            document.addEventListener('securitypolicyviolation', (event) => seen.push(event.effectiveDirective));
            const script = document.createElement('script');
            script.textContent = 'pwned = 1';
            document.body.append(script);
            const markup = '<img src="https://example.org/x.png"><b onclick="pwned = 1">';
            document.body.insertAdjacentHTML('beforeend', markup);
            document.body.lastElementChild.click();
            const image = new Image();
            image.src = 'https://example.org/y.png';
            await fetch('https://example.org/').catch(() => 0);
            await new Promise((done) => setTimeout(done, 200));
            return [seen.sort(), typeof pwned];
            }"""
        )
        kinds, pwned = refused
        assert pwned == "undefined"
        assert {"connect-src", "img-src", "script-src-attr", "script-src-elem"} <= set(kinds)
        assert tab.seen.refused == {"https://example.org/x.png", "https://example.org/y.png"}
        assert tab.seen.sent == [page.as_uri()]
        policy = tab.get_attribute("meta[http-equiv]", "content")
        assert "unsafe" not in policy
        tab.seen.said.clear()
        tab.seen.asked[:] = tab.seen.sent


def test_the_card_and_the_result_of_verify(browser: Any, page: Path, zoo: Zoo) -> None:
    with opened(browser, page) as tab:
        card, health = text_of(tab, "#card"), text_of(tab, "#health")
        assert zoo.record.digest in card
        assert "axes.width[2, 4, 8]" in card
        assert "</script><b>" in card
        assert "Every byte is what was committed: " in health
        assert text_of(tab, "#numbers").startswith("models24checkpoints72ok22diverged2")


def test_a_small_page_says_what_it_leaves_out(browser: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.explorer.TABLE_BYTES", 6000)
    problems = {"files": 3, "bytes": 5000, "problems": [{"kind": "corrupt", "file": "<b>", "message": "bad"}]}
    made = explore(folder / "awkward.zoo", folder / "small.html", models=2, title="A title", verification=problems)
    with opened(browser, made) as tab:
        count = text_of(tab, "#count")
        held = re.search(r"holds (\d+) of the zoo's 72 rows: (\d+) of 24 runs, drawn at random \(seed 0\)", count)
        assert held is not None
        assert int(held[1]) == 3 * int(held[2]) < 72
        assert "1 problem in 3 files" in text_of(tab, "#health")
        assert text_of(tab, "#title") == "A title"
        for place in range(0, int(held[1]), 3):
            tab.click(f"#rows tbody tr[data-place='{place}']")
            until(tab, "document.querySelector('#model-panel .layers, #model-panel div > p.muted')")
            if "weights of this model are not in the page: it has those of 2 models" in text_of(tab, "#model-panel"):
                break
        else:
            raise AssertionError("every model has its weights in the page")


def test_zoos_without_rows_metrics_or_spec(browser: Any, folder: Path) -> None:
    rows = pl.DataFrame({"variant": ["net"], "run": ["a"], "epoch": [0], "status": ["ok"], "reason": [""],
                         "stored": [True]})  # fmt: skip
    store(folder / "one.zoo", rows)
    with opened(browser, explore(folder / "one.zoo", folder / "one.html")) as tab:
        assert "fewer than two settings vary" in text_of(tab, "#map-note")
        tab.click("#rows tbody tr")
        tab.wait_for_selector("#model-panel .layers")
        assert "One checkpoint makes no curve" in text_of(tab, "#model-panel")
        assert "imported or put together by hand" in text_of(tab, "#card")
    catalog.create(folder / "none.zoo", name="none", variants=[catalog.open(folder / "one.zoo").record.variant("net")])
    with opened(browser, explore(folder / "none.zoo", folder / "none.html")) as tab:
        assert "no rows yet" in text_of(tab, "#map-note")
        assert "no rows yet" in text_of(tab, "#rows")
        assert text_of(tab, "#count").startswith("0 of 0 rows, 0 runs")
        assert "0 of 1 shard" in text_of(tab, "#card")


def test_a_thousand_models_fit_into_five_megabytes(browser: Any, folder: Path) -> None:
    many(folder / "many.zoo", outcomes=30)
    made = explore(folder / "many.zoo", folder / "many.html")
    assert 2e6 < made.stat().st_size <= 5_000_000
    with opened(browser, made) as tab:
        add(tab, "metric_0_loss", "gt", "1")
        table = catalog.open(folder / "many.zoo").table()
        held = {row["run"] for row in saved(tab)}
        assert held <= set(table["run"])
        tab.click("#rows tbody tr >> nth=0")
        tab.wait_for_selector("#model-panel .layers")
