"""The command `weightscape`: picks a function, calls it, prints what came back. Python can do all of it in one call.

The commands are in `zoo.commands` and `generators.commands`. Heavy imports are inside them, so that `--help` is fast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from generators import commands as learning
from zoo.commands import alignment, landscape, making, places, sharing
from zoo.commands.shared import Json, errors

RESULTS = Path(__file__).resolve().parent / "benchmarks" / "results"  # in a checkout; never in an installed package

app = typer.Typer(
    name="weightscape",
    help="Populations of trained neural networks: build a zoo, store it, query it, get weights back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def bench(
    summary: Annotated[bool, typer.Option("--summary", help="Print the latest results as a table.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print them as a Markdown table.")] = False,
    as_json: Json = False,
) -> None:
    """How fast it is: what `make bench` measured last, from a checkout of the source."""
    with errors(as_json):
        if not (summary or markdown or as_json):
            print("`make bench` in a checkout measures; `weightscape bench --summary` shows the latest results")
            return
        from zoo.printing import print_bench, print_markdown
        from zoo.results import latest, rows

        found = latest(rows(RESULTS))
        if as_json:
            print(json.dumps(found))
        elif markdown:
            print_markdown(found)
        else:
            print_bench(found)


PANELS: dict[str, Mapping[str, Any]] = {
    "Make": making.COMMANDS,
    "Look and check": places.COMMANDS,
    "Share": sharing.COMMANDS,
    "Measure": landscape.COMMANDS,
    "Align": alignment.COMMANDS,
    "Learn": learning.COMMANDS,
    "Other": {"bench": bench},
}
for panel, commands in PANELS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
