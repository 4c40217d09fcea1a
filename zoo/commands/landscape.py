"""The commands that measure a zoo and show what was measured."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from zoo.commands.shared import Json, MetricsAt, Quiet, ZooArgument, console, errors, kept, names, settings_of

KEPT = "measured; the same command measures the rest"


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
    with errors(as_json):
        from zoo.landscape.measure import measure as work
        from zoo.progress import measuring

        with measuring(console(), quiet or as_json) as (on_cost, on_rows), kept(KEPT):
            found = work(
                zoo,
                metric or ["all"],
                where=where,
                epoch=epoch,
                settings=settings_of(settings or []),
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


def metrics(
    zoo: Annotated[str | None, typer.Argument(metavar="[ZOO]", help="Show what is measured there.")] = None,
    metrics_at: MetricsAt = None,
    as_json: Json = False,
) -> None:
    """The metrics that `measure` knows, or those a zoo has, with their settings."""
    with errors(as_json):
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
    with errors(as_json):
        from zoo.label import label, label_md_tree
        from zoo.printing import print_diagnosis, print_phases

        if rule == "md_tree":
            shape = settings_of(settings or []).get("shape", "source")
            tree = label_md_tree(zoo, shape, where=where, epoch=epoch, metrics_at=metrics_at)
            if as_json:
                judged = tree.judged.to_dicts()
                print(json.dumps({"version": tree.version, "tree": tree.tree.settings(), "judged": judged}))
            elif not quiet:
                print_diagnosis(tree.cells, tree.judged)
                print(f"md_tree@{tree.version}: {len(tree.cells)} cells diagnosed")
            return
        found = label(zoo, rule, settings=settings_of(settings or []), where=where, epoch=epoch, metrics_at=metrics_at)
        summary = found.by_phase()
        if as_json:
            print(json.dumps({"version": found.version, "rule": found.rule.settings(), "phases": summary.to_dicts()}))
        elif not quiet:
            print_phases(summary)
            print(f"phase@{found.version}: {len(found.rows)} rows labelled")


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
    with errors(as_json):
        import catalog
        from zoo.pictures import picture
        from zoo.plots.style import save

        options = {"width": width} if width else {}
        figure = picture(
            catalog.open(zoo, metrics_at=metrics_at),
            kind,
            columns=names(columns) or (),
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


COMMANDS = {"measure": measure, "metrics": metrics, "phases": phases, "plot": plot}
