"""The commands that learn from a zoo."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from zoo.commands.shared import Json, Quiet, ZooArgument, console, errors, kept, settings_of


def train(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="flow, or a baseline; see `weightscape generators`.")],
    zoo: ZooArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder, or a training to go on with.")],
    preset: Annotated[str | None, typer.Option(help="A flow's recipe; weightscape when left out.")] = None,
    where: Annotated[str | None, typer.Option(help='A condition, such as "width = 32".')] = None,
    epoch: Annotated[int | None, typer.Option(help="Which checkpoints; the last of each run when left out.")] = None,
    frame: Annotated[str | None, typer.Option(help="An alignment to learn in, see `weightscape align`.")] = None,
    condition: Annotated[list[str] | None, typer.Option(help="A column to condition on; again for more.")] = None,
    held_out: Annotated[
        float | None,
        typer.Option(help="Share of the runs to choose on, and as many to report on; the zoo's own split, or 0.1."),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, as in iterations=1000.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random in training.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, or a torch device such as cuda.")] = "cpu",
    wandb: Annotated[str | None, typer.Option(help="Mirror the log to this project on Weights & Biases.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a generator of networks on a zoo and store it. The same command resumes."""
    with errors(as_json):
        from generators.progress import training
        from generators.train import train as work

        given = settings_of(settings or []) | ({"conditions": tuple(condition)} if condition else {})
        with training(console(), quiet or as_json) as (on_cost, on_step), kept("trained; the same command goes on"):
            made = work(
                zoo,
                out,
                kind,
                preset=preset,
                settings=given,
                where=where,
                epoch=epoch,
                frame=frame,
                held_out=held_out,
                seed=seed,
                device=device,
                wandb=wandb,
                dry_run=dry_run,
                on_cost=on_cost,
                on_step=on_step,
            )
        if made is None:
            return
        if as_json:
            about = {"folder": out, "kind": kind, "fingerprint": made.fingerprint, "cost": dict(made.cost)}
            print(json.dumps(about | {"history": list(made.history)}))
        elif not quiet:
            print(f"{out}: {kind} {made.fingerprint} trained; judge it with `weightscape card {out}`")


def sample(
    generator: Annotated[str, typer.Argument(metavar="GENERATOR", help="A folder of `weightscape train`.")],
    out: Annotated[str, typer.Argument(metavar="OUT.zoo", help="A new folder, or samples to go on with.")],
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="How many networks.")] = 1000,
    seed: Annotated[int, typer.Option(help="Number k of a seed is always the same network.")] = 0,
    condition: Annotated[
        list[str] | None, typer.Option(help="COLUMN=VALUE, as in test_accuracy=0.97; again for more.")
    ] = None,
    zoo: Annotated[str | None, typer.Option(help="The zoo it learned from, where that has moved.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or a torch device such as cuda.")] = "cpu",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw networks from a generator and store them as a zoo. The same command resumes."""
    with errors(as_json):
        from generators.samples import write_samples
        from generators.stored import load
        from zoo.bars import counted

        with counted("networks", console(), quiet) as progress, kept("drawn; the same command draws the rest"):
            drawn = 0

            def on_models(count: int) -> None:
                nonlocal drawn
                drawn += count
                progress(drawn, number)

            made = write_samples(
                load(generator, zoo, device),
                out,
                number,
                seed=seed,
                conditions=settings_of(condition or []),
                zoo=zoo,
                on_models=on_models,
            )
        rows = made.table()
        accuracy: Any = rows["test_accuracy"].median()
        failed = int((rows["status"] != "ok").sum())
        if as_json:
            print(json.dumps({"zoo": out, "networks": len(rows), "failed": failed, "median_test_accuracy": accuracy}))
        elif not quiet:
            what = "none of them finite" if accuracy is None else f"median test accuracy {accuracy:.3f}"
            print(f"{out}: {len(rows)} networks, {what}" + (f", {failed} failed" if failed else ""))


def card(
    generator: Annotated[str, typer.Argument(metavar="GENERATOR", help="A folder of `weightscape train`.")],
    number: Annotated[int, typer.Option("-n", "--number", min=2, help="Samples of it and of each baseline.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    baseline: Annotated[list[str] | None, typer.Option(help="A baseline; again for more; all when left out.")] = None,
    condition: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE to ask of the samples.")] = None,
    zoo: Annotated[str | None, typer.Option(help="The zoo it learned from, where that has moved.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder for card.json and card.png; the generator's.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or a torch device such as cuda.")] = "cpu",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Judge a generator: does it work, is it new, does it beat trivial baselines? Writes card.json and card.png."""
    with errors(as_json):
        from generators.judge import judge, write_card
        from generators.printing import print_card
        from generators.progress import stages
        from generators.stored import load, population_of

        loaded = load(generator, zoo, device)
        with stages(console(), quiet or as_json) as on_stage:
            found = judge(
                loaded,
                population_of(loaded.source, zoo) if zoo else None,
                samples=number,
                seed=seed,
                baselines=baseline or None,
                conditions=settings_of(condition or []) or None,
                on_stage=on_stage,
                device=device,
            )
        write_card(found, out or generator)
        if as_json:
            print(json.dumps(found.to_json()))
        elif not quiet:
            print_card(found)


def generators(as_json: Json = False) -> None:
    """The kinds of generator that `train` knows, with their settings, and the presets of flows."""
    with errors(as_json):
        from generators.kinds import GENERATORS
        from generators.recipe import RECIPES

        known = {name: dict(kind.settings) for name, kind in GENERATORS.items()}
        recipes = {name: recipe().to_json() for name, recipe in RECIPES.items()}
        if as_json:
            print(json.dumps({"generators": known, "presets": recipes}))
            return
        for name, kind in GENERATORS.items():
            settings = ", ".join(f"{setting}={value}" for setting, value in kind.settings.items())
            print(f"{name:14} {settings if kind.baseline else 'presets: ' + ', '.join(recipes)}".rstrip())
        for name, recipe in RECIPES.items():
            print(f"\n{name}: {(recipe.__doc__ or '').splitlines()[0]}")
            print(", ".join(f"{key}={value}" for key, value in recipes[name].items()))


COMMANDS = {"train": train, "sample": sample, "card": card, "generators": generators}
