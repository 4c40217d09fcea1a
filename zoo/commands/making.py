"""The commands that make a zoo."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from zoo.commands.shared import Json, Quiet, Terminated, console, errors, stopped


def build(
    spec: Annotated[
        str, typer.Argument(metavar="PRESET|SPEC.json", help="See `weightscape presets`.", show_default=False)
    ],
    zoo: Annotated[
        str, typer.Argument(metavar="ZOO", help="A new folder, or a zoo to go on with.", show_default=False)
    ],
    workers: Annotated[int | None, typer.Option(help="Processes; one a core when left out, 0 for none.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or a torch device such as cuda.")] = "cpu",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a population and store it. The same command again resumes, to the same bytes."""
    with errors(as_json):
        from zoo.build import build as make
        from zoo.build import preview
        from zoo.presets import load_spec
        from zoo.progress import BuildProgress, describe

        made_from = load_spec(spec)
        if dry_run:
            cost = preview(made_from, workers=workers, device=device)
            print(json.dumps(vars(cost)) if as_json else describe(cost))
            return
        with BuildProgress(console(), quiet or as_json) as progress:
            try:
                made = make(
                    made_from,
                    zoo,
                    workers=workers,
                    device=device,
                    on_estimate=progress.on_estimate,
                    on_event=progress.on_event,
                )
            except (KeyboardInterrupt, Terminated) as stop:
                progress.bar.stop()
                stopped(
                    stop, f"{progress.committed} of {progress.shards} shards were committed; the same command resumes"
                )
        if as_json:
            print(json.dumps({"zoo": zoo, "name": made.name, "models": progress.models, "shards": progress.committed}))
        elif not quiet:
            models = made.table()["run"].n_unique()
            print(f"{zoo}: {models} models committed; look at them with `weightscape info {zoo}`")


def presets(
    name: Annotated[str | None, typer.Argument(help="Print this one's spec as JSON, to change and build from.")] = None,
    as_json: Json = False,
) -> None:
    """The named specs that `build` knows."""
    with errors(as_json):
        from catalog.errors import unknown_name
        from zoo.presets import PRESETS

        if name is not None:
            if name not in PRESETS:
                raise unknown_name("preset", name, PRESETS)
            print(json.dumps(PRESETS[name]().to_json(), indent=1))
        elif as_json:
            print(json.dumps({name: preset().to_json() for name, preset in PRESETS.items()}))
        else:
            for name, preset in PRESETS.items():
                print(f"{name:14} {(preset.__doc__ or '').splitlines()[0]}")


COMMANDS = {"build": build, "presets": presets}
