"""What commands about generators print."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from generators.evaluation.card import Card
from generators.evaluation.table import cells, headings

WIDE = 112  # columns of a terminal that the table takes


def print_card(card: Card) -> None:
    """A row for the generator, each baseline and the zoo's own networks; then the verdict, a line a sentence."""
    console, table = Console(), Table(box=None, pad_edge=False)
    console.width = max(console.width, WIDE)  # a table that is folded is no table
    for name in headings(card):
        table.add_column(Text(name), no_wrap=True)
    for row in (card.samples, *card.baselines, card.held_out, card.training):
        table.add_row(*map(Text, cells(card, row)), style="bold" if row is card.samples else None)
    console.print(table)
    for sentence in card.verdicts or ("nothing to remark",):
        console.print(Text(f"* {sentence}"), soft_wrap=True)
