"""The commands about the order of units."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from zoo.commands.shared import Json, MetricsAt, Quiet, ZooArgument, console, errors, kept

KEPT_ALIGNED = "aligned; the same command aligns the rest"


def align(
    zoo: ZooArgument,
    frame: Annotated[str, typer.Option(help="Name of the alignment.")] = "universe",
    method: Annotated[
        str, typer.Option(help="universe, frank_wolfe; to one run: reference, activations.")
    ] = "universe",
    by: Annotated[
        str, typer.Option(help="run: one permutation for all its checkpoints; checkpoint: one each.")
    ] = "run",
    where: Annotated[str | None, typer.Option(help='A condition, such as "width >= 32".')] = None,
    epoch: Annotated[
        int | None, typer.Option(help="At which runs are matched; the last of each when left out.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="The run to align to; the first when left out.")] = None,
    members: Annotated[int, typer.Option(help="So many runs make the universe at most; the others join it.")] = 256,
    balance: Annotated[bool, typer.Option("--balance", help="Balance scales of ReLU, signs of tanh first.")] = False,
    layer: Annotated[
        list[str] | None, typer.Option(help="A layer or tensor whose units may move; again for more.")
    ] = None,
    restarts: Annotated[int, typer.Option(help="Random starts of each matching beside the identity.")] = 0,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    budget: Annotated[float | None, typer.Option(help="Seconds; what is left stays for another call.")] = None,
    threads: Annotated[int | None, typer.Option(help="One a core when left out.")] = None,
    metrics_at: MetricsAt = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Align a zoo's networks (re-basin): permutations to a common frame, stored beside the weights. Again adds runs."""
    with errors(as_json):
        from zoo.alignment.align import align as work
        from zoo.alignment.settings import Settings
        from zoo.printing import print_aligned
        from zoo.progress import aligning

        layers = tuple(layer) if layer else None
        settings = Settings(
            method, by, epoch, reference, members=members, balance=balance, layers=layers, restarts=restarts, seed=seed
        )
        with aligning(console(), quiet or as_json) as (on_cost, on_rows), kept(KEPT_ALIGNED):
            found = work(
                zoo,
                frame,
                settings,
                where=where,
                budget=budget,
                threads=threads,
                metrics_at=metrics_at,
                dry_run=dry_run,
                on_cost=on_cost,
                on_rows=on_rows,
            )
        if as_json:
            print(json.dumps([vars(result) for result in found]))
        elif not quiet and not dry_run:
            print_aligned(found)


def duplicates(
    zoo: ZooArgument,
    where: Annotated[str | None, typer.Option(help='A condition, such as "width >= 32".')] = None,
    epoch: Annotated[int | None, typer.Option(help="Which checkpoints; the last of each run when left out.")] = None,
    near: Annotated[
        float | None, typer.Option(help="Relative distance below which two are near, 0.2 when left out; 0: exact ones.")
    ] = None,
    scale: Annotated[bool, typer.Option("--scale", help="Find copies with scaled or flipped units too.")] = False,
    form: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
    quiet: Quiet = False,
) -> None:
    """Find networks that are the same, exactly or nearly, but for the order of their units."""
    with errors(form == "json"):
        from weightspace.duplicates import NEAR
        from zoo.duplicates import duplicates as work
        from zoo.printing import print_rows

        found = work(zoo, where=where, epoch=epoch, near=NEAR if near is None else near or None, scale=scale)
        if len(found):
            print_rows(found, form)
        elif not quiet:
            print("no duplicates", file=sys.stderr)


COMMANDS = {"align": align, "duplicates": duplicates}
