"""The page of a card: all of it is there, nothing overlaps, and it is the same picture each time."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text

from catalog.errors import GeneratorError
from generators.evaluation.card import Card, Fidelity, Spread
from generators.evaluation.page import card_page, frontier_figure
from generators.evaluation.panels import looks
from generators.evaluation.table import cells
from generators.evaluation.verdicts import verdicts
from generators.printing import print_card
from tests.hand_cards import BASELINES, card, row
from zoo.plots.style import save

ASKED = Fidelity("test_accuracy", ("0.7", "0.8", "0.9"), (0.75, 0.8, 0.84), (0.01,) * 3, 0.8, 0.03, 0.1, None)
SETTING = dataclasses.replace(ASKED, column="width", requested=(), obtained=(), error=(), reason="how it was made")


def spoken(made: Card) -> Card:
    return dataclasses.replace(made, verdicts=verdicts(made))


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text().strip()]


def boxes(figure: Any) -> dict[str, Any]:
    """Where each text outside of axes and legends stands, by what it says."""
    parts = [text for part in (figure, *figure.subfigs) for text in part.texts]
    return {f"{place} {text.get_text()}": text.get_window_extent() for place, text in enumerate(parts)}


@pytest.fixture(scope="module")
def page() -> Any:
    return card_page(spoken(card(row("flow", 0.85, 0.6, 0.12, frame="universe"), fidelity=[ASKED, SETTING])))


def test_everything_is_on_the_page(page: Any) -> None:
    made = spoken(card(row("flow", 0.85, 0.6, 0.12, frame="universe")))
    seen = "\n".join(texts(page))
    for name in (*BASELINES, "held out", "flow (universe)", "Verdict", "fine-tuning", "rank correlation 0.80"):
        assert name in seen
    for sentence in made.verdicts:
        assert sentence in " ".join(seen.split())
    for cell in cells(made, made.baselines[3]):
        assert cell in seen
    assert len(page.findobj(lambda part: hasattr(part, "get_xlim") and hasattr(part, "get_ylim"))) >= 6


def test_no_texts_overlap_and_none_is_cut_off(page: Any) -> None:
    found = boxes(page)
    assert len(found) > 100
    for (one, a), (other, b) in itertools.combinations(found.items(), 2):
        deep = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(deep) < 2, (one, other)  # pixels at 300 dots per inch: rims of letters may touch
    drawn = [axes.get_tightbbox() for axes in page.axes]  # ticks beyond the axes are not drawn
    legends = [legend.get_window_extent() for part in (page, *page.subfigs) for legend in part.legends]
    assert len(legends) == 1
    for box in (*found.values(), *drawn, *legends):
        assert box.x0 > -3
        assert box.x1 < page.bbox.x1 + 3
        assert box.y0 > -3
        assert box.y1 < page.bbox.y1 + 3


def test_panels_do_not_overlap(page: Any) -> None:
    boxes = [axes.get_tightbbox() for axes in page.axes]
    for a, b in itertools.combinations(boxes, 2):
        assert min(min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)) < 2


def test_the_same_card_gives_the_same_bytes(tmp_path: Path) -> None:
    made = card(baselines=[row("soup", frame="universe")], finetuned=[])
    one, other = (save(card_page(made), tmp_path / f"{n}.png").read_bytes() for n in "ab")
    assert one == other


def test_a_card_of_nothing_but_broken_samples_can_be_drawn() -> None:
    empty = Spread.of([])
    parts: dict[str, Any] = {
        name: empty for name in ("accuracy", "loss", "raw", "quotient", "error_iou", "disagreement")
    }
    nothing: dict[str, Any] = {
        "accuracies": (0,) * 200,
        "ious": (0,) * 200,
        "points": (),
        "broken": 1.0,
        "rms": math.nan,
    }
    broken = dataclasses.replace(row("fl$ow$"), **parts, **nothing)
    made = spoken(card(broken, [], finetuned=[], codec=None, frame=None))
    seen = texts(card_page(made))
    assert any("100 % of the samples are broken" in text for text in seen)
    assert any("fl\\$ow\\$" in text for text in seen)  # no formula


def test_several_cards_on_one_plot() -> None:
    cards = [card(row("flow", 0.85, 0.6)), card(row("flow", 0.97, 0.05))]
    figure = frontier_figure(cards, names=["ours", "deepweightflow"])
    assert {"ours", "deepweightflow", "soup", "held-out lineages"} <= set(texts(figure))
    figure.savefig(io.BytesIO())
    with pytest.raises(GeneratorError, match="no cards"):
        frontier_figure([])
    with pytest.raises(GeneratorError, match="a name a card, 2, got 1"):
        frontier_figure(cards, names=["one"])
    other = dataclasses.replace(cards[1], protocol=dataclasses.replace(cards[1].protocol, tau_quotient=1.0))
    with pytest.raises(GeneratorError, match="of 2 populations"):
        frontier_figure([cards[0], other])


def test_looks_are_told_apart() -> None:
    found = looks([*BASELINES, *BASELINES])
    assert len(set(found.values())) == len(BASELINES)
    assert len({mark for _, mark in found.values()}) == len(BASELINES)  # in grey too


def test_a_card_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    made = spoken(card(row("flow", 0.85, 0.6, 0.12, frame="universe")))
    print_card(made)
    printed = capsys.readouterr().out
    for text in (*BASELINES, "flow (universe)", "held out", "N&P, m = 1", *cells(made, made.samples)[1:3]):
        assert text in printed
    flat = " ".join(printed.split())
    assert all(sentence in flat for sentence in made.verdicts)
