"""What commands print: rows, summaries, results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoo.alignment.settings import Aligned
from zoo.results import COLUMNS, cells
from zoo.sizes import size


def print_phases(summary: pl.DataFrame) -> None:
    """A row a phase; means over its cells with their standard errors."""
    rows = []
    for row in summary.iter_rows(named=True):
        counts = {name: str(row[name]) for name in ("cells", "runs", "outliers")}
        means = {}
        for name in (name for name in row if f"{name}_se" in row):
            value, error = row[name], row[f"{name}_se"]
            text = "" if value is None else f"{value:.4g}"
            means[name.replace("_", " ")] = text if error is None else f"{text} ± {error:.2g}"
        rows.append({"phase": row["phase"] or "none", **counts, **means})
    _table_of(rows)


def print_diagnosis(cells: pl.DataFrame, judged: pl.DataFrame) -> None:
    """Cells a diagnosis and the splits that lead to it, then how good such a tree is on loads it was not fitted to."""
    counts = cells.group_by("diagnosis", "diagnosis_path").len("cells").sort("diagnosis", "diagnosis_path")
    _table_of([{name: str(value) for name, value in row.items()} for row in counts.iter_rows(named=True)])
    rows = []
    for row in judged.iter_rows(named=True):
        gain = f"{row['gain']:+.3f} ± {row['gain_se']:.3f}"
        accuracy = f"{row['accuracy']:.3f} ± {row['accuracy_se']:.3f}"
        rows.append({"rule": row["rule"], "accuracy on loads held out": accuracy, "gain over the majority": gain})
    _table_of(rows)


def print_metrics(rows: list[dict[str, Any]]) -> None:
    """A paragraph a metric."""
    for row in rows:
        facts = [f"{row['rows']} rows"] if "rows" in row else [f"needs a {row['needs']}", row["unit"]]
        print(f"{row['metric']} ({', '.join(filter(None, facts))})")
        print(f"    columns: {', '.join(row['columns'])}")
        if row["settings"]:
            settings = (f"{name}={json.dumps(value)}" for name, value in row["settings"].items())
            print(f"    settings: {', '.join(settings)}")
    if not rows:
        print("nothing is measured yet; `weightscape measure ZOO` does")


def print_aligned(found: Sequence[Aligned]) -> None:
    """A line a variant."""
    for one in found:
        if one.reason:
            print(f"{one.variant}: left out, {one.reason}")
            continue
        before = f", {one.before} were there" if one.before else ""
        left = f", {one.left} left for want of time" if one.left else ""
        gain = (
            ""
            if one.similarity is None
            else f"; cosine with the universe {one.similarity[0]:.2f} -> {one.similarity[1]:.2f}"
        )
        proof = f", outputs equal to {one.certificate:.0e}" if one.rows else ""
        cut = "" if one.finished else "; not finished, more would be gained in a new frame with more time"
        print(f"{one.variant}: {one.rows} rows aligned by {one.groups} permutations{before}{left}{gain}{proof}{cut}")


def _table_of(rows: list[dict[str, str]]) -> None:
    """A table of texts with the same keys."""
    table = Table()
    for name in rows[0] if rows else ():
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row.values()))
    Console().print(table)


def print_rows(rows: pl.DataFrame, form: str) -> None:
    """Rows as a table (the first 100), as csv, or as JSON, an object a line."""
    binary = [name for name, dtype in rows.schema.items() if dtype == pl.Binary]
    rows = rows.with_columns(pl.col(name).bin.encode("hex") for name in binary)
    if form == "json":
        for record in rows.iter_rows(named=True):
            print(json.dumps(record))
        return
    if form == "csv":
        print(harmless(rows).write_csv(), end="")
        return
    table = Table()
    for name in rows.columns:
        table.add_column(Text(name), overflow="fold")
    for row in rows.head(100).iter_rows():
        table.add_row(*(Text(f"{value:.6g}" if isinstance(value, float) else str(value)) for value in row))
    console = Console()
    console.print(table)
    console.print(f"{len(rows)} rows" + (", the first 100 shown; --format csv prints all" if len(rows) > 100 else ""))


def harmless(rows: pl.DataFrame) -> pl.DataFrame:
    """Text cells that a spreadsheet would run as a formula get an apostrophe in front."""
    text = pl.selectors.string()
    return rows.with_columns(
        pl.when(text.str.contains(r"^[=+\-@\t\r]")).then(pl.lit("'") + text).otherwise(text).name.keep()
    )


def print_summary(found: dict[str, Any]) -> None:
    """What `catalog.summary.summary` says of a zoo."""
    console = Console()
    state = "complete" if found["complete"] else f"{found['committed']} of {found['shards']} shards committed"
    rows = ", ".join(f"{count} {status}" for status, count in found["rows"].items()) or "none"
    extent = f"{size(found['bytes'])} of {found['dtype']} weights"
    if "packed_bytes" in found:
        ratio = f" ({found['bytes'] / found['packed_bytes']:.2f}x)" if found["complete"] else ""
        extent += f", packed in {size(found['packed_bytes'])}{ratio}"
    console.print(Text(f"{found['name']}: {found['models']} models, {state}; {extent}"))
    console.print(Text(f"rows: {rows}"))
    table = Table()
    for name in ("variant", "models", "checkpoints", "weights", "shards", "size"):
        table.add_column(name, justify="left" if name == "variant" else "right", overflow="fold")
    for variant_name, variant in found["variants"].items():
        counts = [str(variant[key]) for key in ("models", "checkpoints", "weights")]
        table.add_row(
            Text(variant_name), *counts, f"{variant['committed']}/{variant['shards']}", size(variant["bytes"])
        )
    console.print(table)
    if found["metrics"]:
        measured = ", ".join(f"{name} ({one['rows']} rows)" for name, one in found["metrics"].items())
        console.print(Text(f"measured: {measured}"), soft_wrap=True)
    if found["frames"]:
        frames = ", ".join(f"{name} ({one['runs']} runs)" for name, one in found["frames"].items())
        console.print(Text(f"aligned: {frames}"), soft_wrap=True)
    axes = found["spec"].get("axes") or {}
    for name, values in axes.items():
        console.print(Text(f"{name}: {values}"), soft_wrap=True)


def print_bench(rows: list[dict[str, Any]]) -> None:
    """Results of benchmarks, of `zoo.results.latest`, as a table."""
    table = Table(show_lines=True)
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, cells(row)))
    Console().print(table)


def print_markdown(rows: list[dict[str, Any]]) -> None:
    """The same as a table in Markdown."""
    for line in (COLUMNS, ["---"] * len(COLUMNS), *map(cells, rows)):
        print("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |")
