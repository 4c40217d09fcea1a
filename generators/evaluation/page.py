"""A card as a page of plots, and several cards on one plot of accuracy against novelty; Figures, no pyplot."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from catalog.errors import GeneratorError
from generators.evaluation.card import Card, Row
from generators.evaluation.panels import (
    COLOURS,
    MINE,
    OWN,
    cross,
    fidelity,
    finetuning,
    frontier,
    histograms,
    looks,
    novel_and_performant,
    novelty_axes,
    plain,
)
from generators.evaluation.table import cells, headings
from zoo.plots import style

LINE = 0.125  # inches of a line of small text
EDGES = (0.0, 0.22, 0.35, 0.53, 0.60, 0.69, 0.79, 0.865)  # where the columns stand
CAPTION = (
    "Accuracy: mean and deviation over networks. Novelty: median distance to the nearest training network over the "
    "zoo's own, with quartiles.\nError-IoU: median of the largest. N&P: share that is novel and performant, with its "
    "standard error."
)


def card_page(card: Card) -> Any:
    """The whole card: frontier, N&P curves, histograms, fine-tuning, fidelity, numbers, verdicts; a Figure.

    Raises:
        InvalidSpecError: matplotlib, which only an extra installs, is not there.
    """
    width = style.WIDTHS["double"]
    verdicts = [line for text in card.verdicts or ("nothing to remark",) for line in _bullet(text)]
    lines = _about(card)
    rows = _table_rows(card)
    heights = (
        LINE * (len(lines) + 1.5), 3.1, _small_rows(card) * 1.95, LINE * (1.35 * (len(rows) + 1) + 3),
        LINE * (1.15 * len(verdicts) + 2.2),
    )  # fmt: skip
    with style.styled():
        figure = style.new_figure(width, sum(heights))
        top, upper, lower, table, words = figure.subfigures(5, 1, height_ratios=heights)
        _head(top, card, lines)
        left, right = upper.subplots(1, 2)
        handles = frontier(left, card)
        novel_and_performant(right, card)
        style_note = "hollow, dashed: fitted to raw weights; filled: aligned" if card.generator.frame else ""
        upper.legend(
            handles=handles, loc="outside lower center", ncols=_columns(handles), handletextpad=0.2, columnspacing=1,
            borderaxespad=0, title=style_note or None, title_fontsize=style.SMALL,
        )  # fmt: skip
        _lower(lower, card)
        _table(table, card, rows)
        _words(words, verdicts)
        return style.settled(figure)


def frontier_figure(cards: Sequence[Card], *, names: Sequence[str] = (), width: str | float = "single") -> Any:
    """Accuracy against novelty of several generators, with the baselines of the first card in grey; a Figure.

    Cards of generators judged against the same population only: novelty is in units of its spacing.

    Args:
        names: of the generators, their kinds when left out.

    Raises:
        GeneratorError: no cards, cards of different populations, another number of names.
    """
    if not cards:
        raise GeneratorError("no cards to draw; give one or more")
    about = {(card.generator.digest, card.protocol.tau_quotient, card.protocol.data) for card in cards}
    if len(about) > 1:
        raise GeneratorError(
            f"{len(cards)} cards are of {len(about)} populations, whose spacings differ; draw those of one together"
        )
    if names and len(names) != len(cards):
        raise GeneratorError(f"expected a name a card, {len(cards)}, got {len(names)}")
    said = list(names) or [card.samples.label for card in cards]
    with style.styled():
        figure = style.new_figure(style.inches(width), 0.75 * style.inches(width) + 0.25 * (len(cards) + 4) ** 0.5)
        axes = figure.subplots()
        handles: list[Any] = []
        baselines = cards[0].baselines
        look = looks([row.name for row in baselines])
        for row in baselines:
            handle = cross(axes, row, "#808080", look[row.name][1], 3.5, plain(row.name))
            if all(handle.get_label() != other.get_label() for other in handles):
                handles.append(handle)
        handles.append(cross(axes, cards[0].held_out, OWN, "d", 5, "held-out lineages"))
        palette = [MINE, *(one for one in COLOURS if one != "#8c8c8c")]
        for place, (card, name) in enumerate(zip(cards, said, strict=True)):
            colour = palette[place % len(palette)]
            handles.append(cross(axes, card.samples, colour, "*", 8, plain(name)))
        shown = [*baselines, *(card.samples for card in cards), cards[0].held_out]
        novelty_axes(axes, cards[0].protocol.alpha, shown)
        style.heading(figure, handles)
        return style.settled(figure)


def _about(card: Card) -> list[str]:
    """What stands under the title: which networks, how judged, what it cost."""
    about, protocol, cost = card.generator, card.protocol, card.cost
    lineages = ", ".join(f"{count} {name}" for name, count in about.lineages.items())
    bits = [f"{about.zoo}, {about.architecture} ({about.parameters:,} parameters)", f"lineages: {lineages}"]
    bits.append(f"frame: {about.frame or 'raw'}")
    judged = [f"{protocol.samples:,} samples, seed {protocol.seed}", f"{protocol.inputs} inputs of {protocol.data}"]
    raw = ", ".join(f"{tau:.3g} ({frame})" for frame, tau in protocol.tau_raw.items())
    judged.append(f"spacing {protocol.tau_quotient:.3g} (quotient), {raw}")
    judged.append("BatchNorm re-estimated on training data" if protocol.batch_norm else "no BatchNorm")
    known = [
        ("training", cost.training_seconds, "s"),
        ("a sample", 1e3 * cost.sample_seconds, "ms"),
        ("training a network of the zoo", 1e3 * cost.model_seconds, "ms"),
        ("breaks even after", cost.break_even, "networks"),
        ("peak memory", cost.peak_bytes / 1e9, "GB"),
        ("read", cost.bytes_read / 1e6, "MB"),
    ]
    costs = [f"{what} {value:,.3g} {unit}" for what, value, unit in known if math.isfinite(value)]
    said = ["; ".join(bits), "; ".join(judged), "; ".join(costs)]
    if card.codec:
        one = card.codec
        disguised = (("with units permuted", one.permuted), ("with units rescaled", one.rescaled))
        said.append(
            f"codec: held-out accuracy {100 * one.before:.1f} % before, {100 * one.after:.1f} % after the round trip"
            + "".join(f", {100 * v:.1f} % {k}" for k, v in disguised if math.isfinite(v))
        )
    said += protocol.notes
    return [line for text in said if text for line in textwrap.wrap(text, 138)]


def _head(part: Any, card: Card, lines: Sequence[str]) -> None:
    title = f"{card.samples.label}, {card.generator.fingerprint}"
    height = LINE * (len(lines) + 1.5)
    part.text(0.01, 1 - 0.06 / height, plain(title), fontsize=style.NORMAL + 2, weight="bold", va="top")
    below = 1 - 0.22 / height
    part.text(
        0.01, below, plain("\n".join(lines)), fontsize=style.SMALL - 0.5, va="top", linespacing=1.25, color="#333"
    )


def _lower(part: Any, card: Card) -> None:
    """Histograms, fine-tuning and fidelity, as far as there are any."""
    asked = any(one.requested for one in card.fidelity)
    panels = 2 + bool(card.finetuned) + asked
    down = _small_rows(card)
    axes = list(part.subplots(down, panels // down, squeeze=False).flat)
    best = max(card.baselines, key=lambda row: row.accuracy.median, default=None)
    zoo, mine = ("training", OWN, card.training.accuracies), (card.samples.label, MINE, card.samples.accuracies)
    histograms(axes[0], [zoo, mine], "accuracy")
    ious: list[tuple[str, str, Sequence[int]]] = [("training, other lineages", OWN, card.training.ious)]
    if best is not None:
        noisy = next((row for row in card.baselines if row.name == "noise_large"), best)
        ious.append((noisy.label, "#0072B2", noisy.ious))
    histograms(
        axes[1], [*ious, (card.samples.label, MINE, card.samples.ious)], "largest error-IoU with one of training"
    )
    if card.finetuned:
        finetuning(axes[2], card.finetuned)
    if asked:
        fidelity(axes[-1], card)


def _small_rows(card: Card) -> int:
    """Lines that the smaller panels take: three fit beside each other."""
    return 2 if card.finetuned and any(one.requested for one in card.fidelity) else 1


def _table_rows(card: Card) -> list[Row]:
    return [card.samples, *card.baselines, card.held_out, card.training]


def _table(part: Any, card: Card, rows: Sequence[Row]) -> None:
    """Rows of text, the generator's in its colour, a rule below the head and above the zoo's own."""
    from matplotlib.lines import Line2D

    height = LINE * (1.35 * (len(rows) + 1) + 3)
    step = 1.35 * LINE / height
    texts = [headings(card), *(cells(card, row) for row in rows)]
    for line, texts_of in enumerate(texts):
        row = rows[line - 1] if line else None
        colour = MINE if row is card.samples else OWN if row in (card.held_out, card.training) else "black"
        for place, text in zip(EDGES, texts_of, strict=True):
            part.text(
                0.01 + 0.98 * place, 1 - step * (line + 0.8), plain(text), fontsize=style.SMALL, color=colour,
                weight="bold" if line == 0 or row is card.samples else "normal",
            )  # fmt: skip
    for line in (1, len(rows) - 1):
        y = 1 - step * (line + 0.1)
        part.add_artist(Line2D([0.01, 0.99], [y, y], color="#808080", linewidth=0.5))
    below = 1 - step * (len(rows) + 1.3)
    part.text(0.01, below, CAPTION, fontsize=style.SMALL - 0.5, color="#333", va="top", linespacing=1.2)


def _words(part: Any, lines: Sequence[str]) -> None:
    height = LINE * (1.15 * len(lines) + 2.2)
    part.text(0.01, 1 - 0.05 / height, "Verdict", fontsize=style.NORMAL + 1, weight="bold", va="top")
    below = 1 - 0.22 / height
    part.text(0.01, below, plain("\n".join(lines)), fontsize=style.NORMAL, va="top", linespacing=1.25)


def _bullet(text: str) -> list[str]:
    return textwrap.wrap(text, 112, initial_indent="•  ", subsequent_indent="    ")


def _columns(handles: Sequence[Any]) -> int:
    most = style.legend_columns([handle.get_label() for handle in handles], style.WIDTHS["double"] - 0.5)
    return -(-len(handles) // -(-len(handles) // most))  # lines of equal length
