"""The command `weightscape`: picks a function, calls it, prints what came back. Python can do all of it in one call.

Heavy imports are inside the commands, so that `--help` is fast.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

INTERRUPTED, TERMINATED = 130, 143
KEPT = "measured; the same command measures the rest"
KEPT_ALIGNED = "aligned; the same command aligns the rest"
RESULTS = Path(__file__).resolve().parent / "benchmarks" / "results"  # in a checkout; never in an installed package

app = typer.Typer(
    name="weightscape",
    help="Populations of trained neural networks: build a zoo, store it, query it, get weights back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ZooArgument = Annotated[
    str, typer.Argument(metavar="ZOO", help="A zoo: a folder, or any fsspec URL.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MetricsAt = Annotated[
    str | None, typer.Option("--metrics-at", help="Folder or URL of measured columns, if not in the zoo.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]


class Terminated(BaseException):
    """SIGTERM came."""


@app.command()
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
    with _errors(as_json):
        from zoo.build import build as make
        from zoo.build import preview
        from zoo.presets import load_spec
        from zoo.progress import BuildProgress, describe

        made_from = load_spec(spec)
        if dry_run:
            cost = preview(made_from, workers=workers, device=device)
            print(json.dumps(vars(cost)) if as_json else describe(cost))
            return
        with BuildProgress(_console(), quiet or as_json) as progress:
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
                _stopped(
                    stop, f"{progress.committed} of {progress.shards} shards were committed; the same command resumes"
                )
        if as_json:
            print(json.dumps({"zoo": zoo, "name": made.name, "models": progress.models, "shards": progress.committed}))
        elif not quiet:
            models = made.table()["run"].n_unique()
            print(f"{zoo}: {models} models committed; look at them with `weightscape info {zoo}`")


@app.command()
def info(zoo: ZooArgument, as_json: Json = False) -> None:
    """What is in a zoo: variants, rows by status, size, spec."""
    with _errors(as_json):
        import catalog
        from catalog.summary import summary
        from zoo.printing import print_summary

        found = summary(catalog.open(zoo))
        if as_json:
            print(json.dumps(found))
            return
        print_summary(found)


@app.command()
def query(
    zoo: Annotated[
        list[str], typer.Argument(metavar="ZOO... [WHERE]", help="Zoos, then a condition.", show_default=False)
    ],
    columns: Annotated[str | None, typer.Option(help="Columns to show, separated by commas.")] = None,
    sort: Annotated[str | None, typer.Option(help="Columns to sort by, separated by commas.")] = None,
    descending: Annotated[bool, typer.Option("--descending", help="Largest first.")] = False,
    limit: Annotated[int | None, typer.Option(min=0, help="At most so many rows.")] = None,
    form: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
    status: Annotated[str, typer.Option(help="ok, diverged, failed or all.")] = "ok",
    as_json: Json = False,
) -> None:
    """Rows that fit a condition, a polars SQL expression such as "width >= 32 and test_accuracy > 0.96"."""
    with _errors(as_json):
        import catalog
        from catalog.errors import unknown_name
        from zoo.printing import print_rows

        form = "json" if as_json else form
        if form not in ("table", "csv", "json"):
            raise unknown_name("format", form, ("table", "csv", "json"))
        if status not in (known := ("ok", "diverged", "failed", "all")):
            raise unknown_name("status", status, known)
        urls, where = (zoo[:-1], zoo[-1]) if len(zoo) > 1 and not _is_place(zoo[-1]) else (zoo, None)
        rows = catalog.query(
            catalog.open(urls[0] if len(urls) == 1 else urls),
            where,
            columns=_names(columns),
            sort=_names(sort) or (),
            descending=descending,
            limit=limit,
            status=None if status == "all" else status,
        )
        print_rows(rows, form)


@app.command()
def measure(
    zoo: ZooArgument,
    metric: Annotated[list[str] | None, typer.Option(help="A metric, or all; again for more.")] = None,
    where: Annotated[str | None, typer.Option(help='A condition, such as "width >= 32".')] = None,
    epoch: Annotated[int | None, typer.Option(help="Which checkpoints; the last of each run when left out.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE or METRIC.NAME=VALUE, as in probes=200.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core when left out, 0 for none.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or a torch device such as cuda.")] = "cpu",
    metrics_at: MetricsAt = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the loss landscape of a zoo's models, and store the values as columns. The same command resumes."""
    with _errors(as_json):
        from zoo.landscape.measure import measure as work
        from zoo.progress import measuring

        with measuring(_console(), quiet or as_json) as (on_cost, on_rows), _kept(KEPT):
            found = work(
                zoo,
                metric or ["all"],
                where=where,
                epoch=epoch,
                settings=_settings(settings or []),
                workers=workers,
                device=device,
                metrics_at=metrics_at,
                dry_run=dry_run,
                on_cost=on_cost,
                on_rows=on_rows,
            )
        if as_json:
            print(json.dumps([vars(result) for result in found]))
        elif not quiet and not dry_run:
            for result in found:
                without = f", {result.without} without a value" if result.without else ""
                before = f", {result.before} were there" if result.before else ""
                print(f"{result.metric}@{result.version}: {result.measured} measured{before}{without}")


@app.command()
def metrics(
    zoo: Annotated[str | None, typer.Argument(metavar="[ZOO]", help="Show what is measured there.")] = None,
    metrics_at: MetricsAt = None,
    as_json: Json = False,
) -> None:
    """The metrics that `measure` knows, or those a zoo has, with their settings."""
    with _errors(as_json):
        import catalog
        from zoo.printing import print_metrics

        if zoo is None:
            from zoo.landscape.metrics import known

            rows = known()
        else:
            found = catalog.open(zoo, metrics_at=metrics_at).measurements().values()
            rows = [
                {"metric": one.name, "rows": len(one.rows), "columns": one.columns, "settings": dict(one.settings)}
                for one in found
            ]
        if as_json:
            print(json.dumps(rows))
        else:
            print_metrics(rows)


@app.command()
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
    with _errors(as_json):
        from zoo.alignment.align import align as work
        from zoo.alignment.settings import Settings
        from zoo.printing import print_aligned
        from zoo.progress import aligning

        layers = tuple(layer) if layer else None
        settings = Settings(
            method, by, epoch, reference, members=members, balance=balance, layers=layers, restarts=restarts, seed=seed
        )
        with aligning(_console(), quiet or as_json) as (on_cost, on_rows), _kept(KEPT_ALIGNED):
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


@app.command()
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
    with _errors(form == "json"):
        from weightspace.duplicates import NEAR
        from zoo.duplicates import duplicates as work
        from zoo.printing import print_rows

        found = work(zoo, where=where, epoch=epoch, near=NEAR if near is None else near or None, scale=scale)
        if len(found):
            print_rows(found, form)
        elif not quiet:
            print("no duplicates", file=sys.stderr)


@app.command()
def train(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="flow, or a baseline; see `weightscape generators`.")],
    zoo: ZooArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder, or a training to go on with.")],
    preset: Annotated[str | None, typer.Option(help="A flow's recipe; weightscape when left out.")] = None,
    where: Annotated[str | None, typer.Option(help='A condition, such as "width = 32".')] = None,
    epoch: Annotated[int | None, typer.Option(help="Which checkpoints; the last of each run when left out.")] = None,
    frame: Annotated[str | None, typer.Option(help="An alignment to learn in, see `weightscape align`.")] = None,
    condition: Annotated[list[str] | None, typer.Option(help="A column to condition on; again for more.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the runs to choose on, and as many to report on.")] = 0.1,
    settings: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, as in iterations=1000.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random in training.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, or a torch device such as cuda.")] = "cpu",
    wandb: Annotated[str | None, typer.Option(help="Mirror the log to this project on Weights & Biases.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a generator of networks on a zoo and store it. The same command resumes."""
    with _errors(as_json):
        from generators.progress import training
        from generators.train import train as work

        given = _settings(settings or []) | ({"conditions": tuple(condition)} if condition else {})
        with training(_console(), quiet or as_json) as (on_cost, on_step), _kept("trained; the same command goes on"):
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


@app.command()
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
    with _errors(as_json):
        from generators.samples import write_samples
        from generators.stored import load
        from zoo.progress import counted

        with counted("networks", _console(), quiet) as progress, _kept("drawn; the same command draws the rest"):
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
                conditions=_settings(condition or []),
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


@app.command()
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
    with _errors(as_json):
        from generators.judge import judge, write_card
        from generators.printing import print_card
        from generators.progress import stages
        from generators.stored import load, population_of

        loaded = load(generator, zoo, device)
        with stages(_console(), quiet or as_json) as on_stage:
            found = judge(
                loaded,
                population_of(loaded.source, zoo) if zoo else None,
                samples=number,
                seed=seed,
                baselines=baseline or None,
                conditions=_settings(condition or []) or None,
                on_stage=on_stage,
                device=device,
            )
        write_card(found, out or generator)
        if as_json:
            print(json.dumps(found.to_json()))
        elif not quiet:
            print_card(found)


@app.command()
def generators(as_json: Json = False) -> None:
    """The kinds of generator that `train` knows, with their settings, and the presets of flows."""
    with _errors(as_json):
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


@app.command()
def phases(
    zoo: ZooArgument,
    rule: Annotated[str, typer.Option(help="yang, median, ptmz or md_tree.")] = "yang",
    settings: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, as in tau_loss=0.2.")] = None,
    where: Annotated[str | None, typer.Option(help="A condition on rows.")] = None,
    epoch: Annotated[int | None, typer.Option(help="Which checkpoints; the last of each run when left out.")] = None,
    metrics_at: MetricsAt = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Label each cell with its phase, from measured columns, and store the labels."""
    with _errors(as_json):
        from zoo.label import label, label_md_tree
        from zoo.printing import print_diagnosis, print_phases

        if rule == "md_tree":
            shape = _settings(settings or []).get("shape", "source")
            tree = label_md_tree(zoo, shape, where=where, epoch=epoch, metrics_at=metrics_at)
            if as_json:
                judged = tree.judged.to_dicts()
                print(json.dumps({"version": tree.version, "tree": tree.tree.settings(), "judged": judged}))
            elif not quiet:
                print_diagnosis(tree.cells, tree.judged)
                print(f"md_tree@{tree.version}: {len(tree.cells)} cells diagnosed")
            return
        found = label(zoo, rule, settings=_settings(settings or []), where=where, epoch=epoch, metrics_at=metrics_at)
        summary = found.by_phase()
        if as_json:
            print(json.dumps({"version": found.version, "rule": found.rule.settings(), "phases": summary.to_dicts()}))
        elif not quiet:
            print_phases(summary)
            print(f"phase@{found.version}: {len(found.rows)} rows labelled")


@app.command()
def plot(
    zoo: ZooArgument,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="map, scatter, line, plane, bezier or spectrum.")],
    out: Annotated[str, typer.Argument(metavar="OUT.png|OUT.svg", help="File to write.")],
    columns: Annotated[str | None, typer.Option(help="Columns of a map or scatter, separated by commas.")] = None,
    against: Annotated[str, typer.Option(help="Column on the other axis of a scatter.")] = "test_accuracy",
    where: Annotated[str | None, typer.Option(help="A condition on rows.")] = None,
    epoch: Annotated[int | None, typer.Option(help="Which checkpoints; the last of each run when left out.")] = None,
    run: Annotated[list[str] | None, typer.Option(help="A run's id; again for more.")] = None,
    width: Annotated[str, typer.Option(help="single or double column of a paper, or inches.")] = "",
    title: Annotated[str, typer.Option(help="Above the picture.")] = "",
    metrics_at: MetricsAt = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw a zoo: phase maps, metrics against accuracy, loss slices, curves between models, Hessian spectra."""
    with _errors(as_json):
        import catalog
        from zoo.pictures import picture
        from zoo.plots.style import save

        options = {"width": width} if width else {}
        figure = picture(
            catalog.open(zoo, metrics_at=metrics_at),
            kind,
            columns=_names(columns) or (),
            against=against,
            where=where,
            epoch=epoch,
            runs=run or (),
            title=title,
            **options,
        )
        path = save(figure, out)
        if as_json:
            print(json.dumps({"file": str(path), "kind": kind}))
        elif not quiet:
            print(f"{path}: {kind} of {zoo}")


@app.command()
def export(
    zoo: ZooArgument,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id.", show_default=False)],
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="File to write.", show_default=False)],
    epoch: Annotated[int | None, typer.Option(help="Which checkpoint; the last when left out.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one network as a safetensors file."""
    with _errors(as_json):
        import catalog
        from catalog.summary import find_row

        opened = catalog.open(zoo)
        row = find_row(opened, run, epoch)
        opened.export(row, out)
        if as_json:
            print(json.dumps({"file": out, "run": run, "epoch": row["epoch"][0]}))
        elif not quiet:
            print(f"{out}: run {run} at epoch {row['epoch'][0]}")


@app.command()
def verify(zoo: ZooArgument, as_json: Json = False, quiet: Quiet = False) -> None:
    """Check every byte of a zoo against what was committed. Exit status 1 when something is wrong."""
    with _errors(as_json):
        import catalog
        from zoo.progress import counted

        with counted("files", _console(), quiet) as progress:
            found = catalog.verify(zoo, progress)
        if as_json:
            problems = [vars(problem) for problem in found.problems]
            print(json.dumps({**vars(found), "problems": problems, "ok": found.ok}))
        else:
            for problem in found.problems:
                print(f"{problem.kind}: {problem.message}")
            if not quiet:
                verdict = "sound" if found.ok else f"{len(found.problems)} problem(s)"
                extent = f"{found.files} files, {found.bytes:,} bytes, {found.rows} rows"
                print(f"{zoo}: {verdict}; {extent}, digest {found.digest}")
        if not found.ok:
            raise typer.Exit(1)


@app.command()
def pack(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A complete zoo.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A new folder or URL.", show_default=False)],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a zoo in smaller files, for download; it opens like any other. The same command again resumes."""
    _repack("pack", source, target, as_json, quiet)


@app.command()
def unpack(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A packed zoo.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A new folder or URL.", show_default=False)],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a packed zoo as it was before, to the byte, for fast reading. The same command again resumes."""
    _repack("unpack", source, target, as_json, quiet)


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Print this one's spec as JSON, to change and build from.")] = None,
    as_json: Json = False,
) -> None:
    """The named specs that `build` knows."""
    with _errors(as_json):
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


@app.command()
def bench(
    summary: Annotated[bool, typer.Option("--summary", help="Print the latest results as a table.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print them as a Markdown table.")] = False,
    as_json: Json = False,
) -> None:
    """How fast it is: what `make bench` measured last, from a checkout of the source."""
    with _errors(as_json):
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


def _repack(command: str, source: str, target: str, as_json: bool, quiet: bool) -> None:
    with _errors(as_json):
        import catalog
        from zoo.progress import counted
        from zoo.sizes import size

        with counted("shards", _console(), quiet) as progress:
            made = (catalog.pack if command == "pack" else catalog.unpack)(source, target, progress)
        hot, packed, ratio = made.hot_bytes, made.packed_bytes, made.ratio
        if as_json:
            print(json.dumps({"zoo": target, "hot_bytes": hot, "packed_bytes": packed, "ratio": ratio}))
        elif not quiet:
            print(f"{target}: {command}ed; weights take {size(packed)} packed, {size(hot)} unpacked ({ratio:.2f}x)")


@contextmanager
def _errors(as_json: bool) -> Iterator[None]:
    """Errors of ours become a line and exit status 1; a signal its own status."""
    from catalog.errors import ZooError

    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except ZooError as error:
        if as_json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        else:
            print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    except (KeyboardInterrupt, Terminated) as stop:
        _stopped(stop, "nothing was left half-written")
    except BrokenPipeError as error:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(*_: object) -> NoReturn:
    raise Terminated


@contextmanager
def _kept(what: str) -> Iterator[None]:
    """Says what is kept when a signal stops the block."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        _stopped(stop, f"kept is what was {what}")


def _stopped(stop: BaseException, message: str) -> NoReturn:
    print(f"stopped: {message}", file=sys.stderr)
    raise typer.Exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED) from stop


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _is_place(text: str) -> bool:
    """Whether the last argument of `query` is one more zoo rather than a condition."""
    return "://" in text or os.path.exists(text) or text.rstrip("/").endswith(".zoo")


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _settings(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE as JSON where it is some, else as text; an empty value is null."""
    from catalog.errors import QueryError

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise QueryError(f"--set takes NAME=VALUE, got {text!r}; `weightscape metrics` lists the settings")
        try:
            found[name.strip()] = json.loads(value or "null")
        except ValueError:
            found[name.strip()] = value
    return found


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
