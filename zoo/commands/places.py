"""The commands that look into a zoo, wherever it lies, and bring it to another form or place."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from zoo.commands.shared import Json, Quiet, Storage, ZooArgument, console, errors, is_place, names, settings_of


def info(zoo: ZooArgument, storage: Storage = None, as_json: Json = False) -> None:
    """What is in a zoo: variants, rows by status, size, spec."""
    with errors(as_json):
        import catalog
        from catalog.summary import summary
        from zoo.printing import print_summary

        found = summary(catalog.open(zoo, **settings_of(storage or [])))
        if as_json:
            print(json.dumps(found))
            return
        print_summary(found)


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
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Rows that fit a condition, a polars SQL expression such as "width >= 32 and test_accuracy > 0.96"."""
    with errors(as_json):
        import catalog
        from catalog.errors import unknown_name
        from zoo.printing import print_rows

        form = "json" if as_json else form
        if form not in ("table", "csv", "json"):
            raise unknown_name("format", form, ("table", "csv", "json"))
        if status not in (known := ("ok", "diverged", "failed", "all")):
            raise unknown_name("status", status, known)
        urls, where = (zoo[:-1], zoo[-1]) if len(zoo) > 1 and not is_place(zoo[-1]) else (zoo, None)
        rows = catalog.query(
            catalog.open(urls[0] if len(urls) == 1 else urls, **settings_of(storage or [])),
            where,
            columns=names(columns),
            sort=names(sort) or (),
            descending=descending,
            limit=limit,
            status=None if status == "all" else status,
        )
        print_rows(rows, form)


def export(
    zoo: ZooArgument,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id.", show_default=False)],
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="File to write.", show_default=False)],
    epoch: Annotated[int | None, typer.Option(help="Which checkpoint; the last when left out.")] = None,
    storage: Storage = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one network as a safetensors file."""
    with errors(as_json):
        import catalog
        from catalog.summary import find_row

        opened = catalog.open(zoo, **settings_of(storage or []))
        row = find_row(opened, run, epoch)
        opened.export(row, out)
        if as_json:
            print(json.dumps({"file": out, "run": run, "epoch": row["epoch"][0]}))
        elif not quiet:
            print(f"{out}: run {run} at epoch {row['epoch'][0]}")


def verify(
    zoo: ZooArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Read no weights: sizes, and all small files.")] = False,
    storage: Storage = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check every byte of a zoo against what was committed or published. Exit status 1 when something is wrong."""
    with errors(as_json):
        import catalog
        from zoo.bars import counted

        with counted("files", console(), quiet) as progress:
            found = catalog.verify(zoo, progress, quick=quick, **settings_of(storage or []))
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


def pack(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A complete zoo.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A new folder or URL.", show_default=False)],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a zoo in smaller files, for download; it opens like any other. The same command again resumes."""
    _repack("pack", source, target, as_json, quiet)


def unpack(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A packed zoo.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A new folder or URL.", show_default=False)],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a packed zoo as it was before, to the byte, for fast reading. The same command again resumes."""
    _repack("unpack", source, target, as_json, quiet)


def _repack(command: str, source: str, target: str, as_json: bool, quiet: bool) -> None:
    with errors(as_json):
        import catalog
        from zoo.bars import counted
        from zoo.sizes import size

        with counted("shards", console(), quiet) as progress:
            made = (catalog.pack if command == "pack" else catalog.unpack)(source, target, progress)
        hot, packed, ratio = made.hot_bytes, made.packed_bytes, made.ratio
        if as_json:
            print(json.dumps({"zoo": target, "hot_bytes": hot, "packed_bytes": packed, "ratio": ratio}))
        elif not quiet:
            print(f"{target}: {command}ed; weights take {size(packed)} packed, {size(hot)} unpacked ({ratio:.2f}x)")


COMMANDS = {"info": info, "query": query, "export": export, "verify": verify, "pack": pack, "unpack": unpack}
