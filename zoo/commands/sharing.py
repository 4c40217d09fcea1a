"""The commands that bring zoos to others and from others: publish, serve, pull, list, import, explore."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.commands.shared import Json, MetricsAt, Quiet, Storage, ZooArgument, console, errors, kept, names, settings_of

if TYPE_CHECKING:
    from catalog.pull import Pulled

DAY = 86400.0

Registry = Annotated[
    str | None, typer.Option("--registry", help="A registry file or URL; WEIGHTSCAPE_REGISTRY when left out.")
]
Licence = Annotated[str | None, typer.Option(help="SPDX identifier, such as CC-BY-4.0.")]
Citation = Annotated[str | None, typer.Option(help="BibTeX, or text.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")]


def publish(
    zoo: ZooArgument,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where: a folder, or any fsspec URL.", show_default=False)],
    licence: Licence = None,
    citation: Citation = None,
    description: Annotated[str | None, typer.Option(help="A paragraph for the data card.")] = None,
    check: Annotated[str, typer.Option(help="full: read back all that was written; sizes: list it.")] = "full",
    allow_incomplete: Annotated[bool, typer.Option("--allow-incomplete", help="Publish the shards there are.")] = False,
    storage: Storage = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish a zoo, or a new version of it: manifest, data card, files, verified. The same command resumes."""
    with errors(as_json):
        from catalog.publish import publish as work
        from zoo.bars import transferring
        from zoo.sizes import size

        with (
            transferring("publishing", console(), quiet or as_json) as progress,
            kept("uploaded; readers see the version before; the same command goes on"),
        ):
            made = work(
                zoo,
                url,
                licence=licence,
                citation=citation,
                description=description,
                verify=check,
                allow_incomplete=allow_incomplete,
                dry_run=dry_run,
                progress=progress,
                **settings_of(storage or []),
            )
        if as_json:
            about = {"url": made.url, "version": made.version, "changed": made.changed, "tree": made.manifest.tree}
            sent = {"files": len(made.uploaded), "bytes": made.uploaded_bytes, "dry_run": dry_run}
            print(json.dumps(about | sent | {"left_out": list(made.left_out)}))
        elif not quiet:
            for name in made.left_out:
                print(f"left out: {name}, which nobody committed", file=sys.stderr)
            did = "to upload" if dry_run else "uploaded"
            what = f"{len(made.uploaded)} files, {size(made.uploaded_bytes)} {did}"
            news = f"version {made.version}" if made.changed else f"is version {made.version} already"
            print(f"{made.url}: {news}; {what}, tree {made.manifest.tree}")


def serve(
    folder: Annotated[str, typer.Argument(metavar="ZOO", help="A local zoo, a published one, or a folder of them.")],
    host: Annotated[
        str, typer.Option(help="An address of this machine; the default is for itself alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    origins: Annotated[str | None, typer.Option(help="Value of Access-Control-Allow-Origin.")] = None,
    log: Annotated[bool, typer.Option("--log", help="Print a line a request.")] = False,
) -> None:
    """Serve a zoo over HTTP, read-only and with byte ranges, until Ctrl-C."""
    with errors(as_json=False):
        import warnings

        from catalog.serve import serve as work

        def said(method: str, path: str, status: int, size: int) -> None:
            print(f"{method} {path} {status} {size}", file=sys.stderr)

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")

            def ready(url: str) -> None:
                for warning in told:
                    print(f"warning: {warning.message}", file=sys.stderr)
                print(f'serving {folder} at {url}; read it with catalog.open("{url}"), stop with Ctrl-C', flush=True)

            work(folder, host, port, on_ready=ready, log=said if log else None, origins=origins)


def pull(
    url: Annotated[str, typer.Argument(metavar="URL", help="A published zoo, or a zoo.", show_default=False)],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="A new folder, or a pull to go on with.")],
    where: Annotated[str | None, typer.Option(help='A condition; all rows when left out, as in "epoch = 60".')] = None,
    storage: Storage = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Copy the shards that a query needs; the copy is a zoo that verifies. The same command resumes."""
    with errors(as_json):
        from catalog.pull import pull as work
        from zoo.bars import transferring
        from zoo.sizes import size

        def on_cost(cost: Pulled) -> None:
            if not (quiet or as_json):
                have = f", {size(cost.cached_bytes)} of them in the cache" if cost.cached_bytes else ""
                there = f"; {cost.there} files are there" if cost.there else ""
                what = f"{cost.rows} rows in {cost.shards} of {cost.all_shards} shards: {cost.files} files"
                console().print(f"{what}, {size(cost.bytes)}{have}{there}", highlight=False, soft_wrap=True)

        with (
            transferring("pulling", console(), quiet or as_json) as progress,
            kept("fetched; the same command goes on"),
        ):
            made = work(
                url,
                dest,
                where=where,
                dry_run=dry_run,
                on_cost=on_cost,
                progress=progress,
                **settings_of(storage or []),
            )
        if as_json:
            print(json.dumps(made.to_json() | {"dry_run": dry_run}))
        elif not (quiet or dry_run):
            print(f"{dest}: {made.shards} shards pulled; read it like any zoo")


def listing(
    pattern: Annotated[str, typer.Argument(help="Names, with * and ?.")] = "*",
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """The zoos of a registry: names, versions, URLs, licences, retractions. Open one as zoo:NAME@stable."""
    with errors(as_json):
        import catalog
        from zoo.printing import print_rows

        print_rows(catalog.list(pattern, registry=registry), "json" if as_json else "table")


def register(
    name: Annotated[str, typer.Argument(help="Of the zoo, in lower-case letters, digits and -.", show_default=False)],
    version: Annotated[str, typer.Argument(help="As in 1.2.0; 1.3.0-rc1 is a pre-release.", show_default=False)],
    url: Annotated[str, typer.Argument(metavar="URL", help="Where it is published.", show_default=False)],
    registry: Registry = None,
    storage: Storage = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add a published zoo to a local registry file, with its digest and licence."""
    with errors(as_json):
        import catalog

        entry = catalog.register(name, version, url, registry, **settings_of(storage or []))
        if as_json:
            print(
                json.dumps(
                    {"name": entry.name, "version": str(entry.version), "url": entry.url, "digest": entry.digest}
                )
            )
        elif not quiet:
            print(f"{entry.name} {entry.version}: {entry.url}, tree {entry.digest}")


def retract(
    name: Annotated[str, typer.Argument(help="Of the zoo.", show_default=False)],
    version: Annotated[str, typer.Argument(help="The one to retract.", show_default=False)],
    reason: Annotated[str, typer.Argument(help="Why, for those who meet it.", show_default=False)],
    registry: Registry = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say in a local registry file that a version should not be used any more, and why."""
    with errors(as_json):
        import catalog

        entry = catalog.retract(name, version, reason, registry)
        if as_json:
            print(json.dumps({"name": entry.name, "version": str(entry.version), "retracted": reason}))
        elif not quiet:
            print(f"{entry.name} {entry.version}: retracted, {reason}")


def importing(
    source: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE... ZOO", help="A folder, or Hugging Face repositories; then the new zoo."),
    ],
    form: Annotated[
        str | None, typer.Option("--format", help="ray, small_cnn, folder or hf; found out when left out.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the zoo; that of the source when left out.")] = None,
    licence: Licence = None,
    citation: Citation = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, as in file_column=path or memory_limit=1e9.")
    ] = None,
    allow_pickle_subset: Annotated[
        bool, typer.Option("--allow-pickle-subset", help="Read .pt files: tensors alone, in a process with limits.")
    ] = False,
    storage: Storage = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a zoo of networks from elsewhere: Ray Tune zoos, the Small CNN Zoo, folders of weights, Hugging Face."""
    with errors(as_json):
        from catalog.errors import QueryError
        from catalog.importers import import_zoo, told
        from zoo.bars import counted

        *sources, zoo = source
        if not sources:
            raise QueryError(f"expected where the networks are, then the new zoo; got {zoo!r} alone")
        with counted("rows", console(), quiet or as_json) as progress, kept("stored; the same command goes on"):
            report = import_zoo(
                sources[0] if len(sources) == 1 else sources,
                zoo,
                form,
                name=name,
                licence=licence,
                citation=citation,
                allow_pickle_subset=allow_pickle_subset,
                dry_run=dry_run,
                progress=progress,
                storage_options=settings_of(storage or []),
                **settings_of(settings or []),
            )
        if as_json:
            print(json.dumps(report.to_json()))
        elif not quiet:
            print(told(report))


def explore(
    zoo: ZooArgument,
    out: Annotated[str, typer.Argument(metavar="OUT.html", help="File to write.", show_default=False)],
    models: Annotated[int, typer.Option(min=0, help="So many have weight histograms, chosen by --seed.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of that choice.")] = 0,
    check: Annotated[bool, typer.Option("--verify", help="Verify the zoo first, and show what was found.")] = False,
    title: Annotated[str | None, typer.Option(help="Of the page; the zoo's name when left out.")] = None,
    metrics_at: MetricsAt = None,
    storage: Storage = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page to look at a zoo: phase map, table, models, health. It needs no network and no server."""
    with errors(as_json):
        import catalog
        from catalog.explorer import explore as work
        from zoo.bars import counted
        from zoo.sizes import size

        options = settings_of(storage or [])
        found = None
        if check:
            with counted("files", console(), quiet or as_json) as progress:
                found = catalog.verify(zoo, progress, **options)
        with counted("models", console(), quiet or as_json) as progress:
            page = work(
                zoo,
                out,
                models=models,
                seed=seed,
                verification=found,
                title=title,
                progress=progress,
                metrics_at=metrics_at,
                **options,
            )
        if as_json:
            print(json.dumps({"file": str(page), "bytes": page.stat().st_size}))
        elif not quiet:
            print(f"{page}: {size(page.stat().st_size)}; open it in a browser")


def split(
    zoo: ZooArgument,
    fractions: Annotated[str, typer.Option(help="Train, validation and test.")] = "0.8,0.1,0.1",
    by: Annotated[str, typer.Option(help="Columns whose values stay together, by commas.")] = "run",
    stratify: Annotated[str | None, typer.Option(help="Columns with like shares in each, by commas.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
    metrics_at: MetricsAt = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put each lineage into train, validation or test, and store that as the column `split`."""
    with errors(as_json):
        import catalog
        from catalog.errors import QueryError

        try:
            shares = tuple(float(share) for share in fractions.split(","))
        except ValueError as error:
            raise QueryError(f"--fractions takes numbers such as 0.8,0.1,0.1, got {fractions!r}") from error
        rows = catalog.split(
            catalog.open(zoo, metrics_at=metrics_at),
            fractions=shares,
            seed=seed,
            by=names(by) or (),
            stratify=names(stratify),
        )
        counts = dict(rows.unique("run")["split"].value_counts().sort("split").iter_rows())
        if as_json:
            print(json.dumps(counts))
        elif not quiet:
            print(f"{zoo}: " + ", ".join(f"{count} runs {name}" for name, count in counts.items()))


def cache(
    action: Annotated[str, typer.Argument(help="info or clear.")] = "info",
    older_than: Annotated[float | None, typer.Option(help="Clear what was not used for so many days.")] = None,
    as_json: Json = False,
) -> None:
    """What published zoos left on this machine (WEIGHTSCAPE_CACHE), and how to be rid of it."""
    with errors(as_json):
        from catalog import cache as kept_files
        from catalog.errors import unknown_name
        from zoo.sizes import size

        if action not in ("info", "clear"):
            raise unknown_name("action", action, ("info", "clear"))
        age = None if older_than is None else older_than * DAY
        files, freed = kept_files.clear(age) if action == "clear" else (0, 0)
        left = kept_files.size()
        if as_json:
            print(json.dumps({"folder": str(kept_files.root()), "bytes": left, "freed": freed}))
        else:
            gone = f", {files} files with {size(freed)} removed" if action == "clear" else ""
            print(f"{kept_files.root()}: {size(left)}{gone}")


COMMANDS = {
    "publish": publish,
    "serve": serve,
    "pull": pull,
    "list": listing,
    "register": register,
    "retract": retract,
    "import": importing,
    "explore": explore,
    "split": split,
    "cache": cache,
}
