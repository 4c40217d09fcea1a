"""README.md of a published zoo: what is in it, how to read it, what it is not good for. With Hugging Face front matter.

All that comes from the zoo is escaped: a stranger may have made it, and a mirror may publish it again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import polars as pl

from catalog.fragments import ADDRESS, REQUIRED
from catalog.grid import PACKED
from catalog.manifest import Manifest
from catalog.metrics import NAME as METRIC_FILE
from catalog.record import Record

MARK = "<!-- written by weightscape publish; remove this line to keep a text of your own -->"
# licences that the hub knows, as it writes them; others are "other" with a name
HUB_LICENCES = (
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gpl-2.0 gpl-3.0 isc "
    "lgpl-2.1 lgpl-3.0 mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 osl-3.0 pddl postgresql unlicense wtfpl zlib"
).split()
KNOWN = {
    "variant": "architecture, a key of `variants` in zoo.json",
    "model": "position on the first axis of the variant's array",
    "checkpoint": "position on its second axis",
    "run": "id of the training run, the lineage of its checkpoints",
    "epoch": "epochs trained",
    "status": "ok, diverged or failed",
    "reason": "why it is not ok",
    "stored": "whether the row holds weights",
    "crc32c": "of the row's stored bytes",
    "split": "train, validation or test, by lineage",
    "cell": "combination of hyperparameters, the same for its seeds",
    "seed": "of everything random in the run",
    "load": "value on the first axis of the phase diagram",
    "temperature": "value on the second axis of the phase diagram",
    "step": "optimiser steps done",
    "progress": "share of the training done, 1 at its end",
    "train_loss": "mean loss on training samples, in the loss function trained with",
    "test_loss": "mean loss on test samples, in the loss function trained with",
    "train_accuracy": "share of training samples classified right, by the labels trained on",
    "test_accuracy": "share of test samples classified right",
    "train_error_bits": "a bit a training sample, most significant first: 1 where it is misclassified",
    "test_error_bits": "a bit a test sample, most significant first: 1 where it is misclassified",
    "source": "file it was imported from",
}
ROWS_SHOWN = 64  # of a table in the text
Rows = Iterable[Sequence[str]]


def datacard(manifest: Manifest, record: Record, rows: pl.DataFrame, url: str) -> str:
    """The text of README.md; the same for the same version.

    Args:
        rows: of the version's table.
        url: where it is published; a local folder is called `.`, since paths of this machine mean nothing elsewhere.
    """
    place = public_url(url)
    parts = [
        _front_matter(manifest, rows),
        MARK,
        f"# {plain(manifest.name)}",
        *([_paragraphs(manifest.description)] if manifest.description else []),
        f"{_count(len(rows), 'trained network')} of {_count(rows['run'].n_unique(), 'run')} in "
        f"{_count(len(record.variants), 'architecture')}: a zoo in the format of weightscape. "
        f"Version {manifest.version}, published {manifest.created}, {manifest.size:,} bytes in "
        f"{_count(len(manifest.files), 'file')}.",
        "## Rows by status",
        _table(("status", "rows"), ((code(name), f"{count:,}") for name, count in sorted(manifest.counts.items()))),
        "## Architectures",
        _table(("variant", "family", "models", "checkpoints", "weights each", "type"), _variants(record)),
        "## Columns",
        _table(("column", "type", "what it is"), _columns(manifest, rows)),
        "## Splits",
        _splits(rows),
        "## How it was made",
        _made(record),
        "## Known limits",
        "\n".join(f"- {limit}" for limit in _limits(manifest, record, rows)),
        "## Reading it",
        _reading(manifest, record, place),
        "## Licence",
        code(manifest.licence) if manifest.licence else "None was named: ask the authors before you use it.",
        "## Citation",
        _fenced(bibtex(manifest, place), "bibtex"),
        "## Digests",
        f"Tree {code(manifest.tree)}, zoo {code(manifest.zoo)}. `manifest.json` has the sha256 of every file.",
    ]
    return "\n\n".join(parts) + "\n"


def public_url(url: str) -> str:
    """A URL without user and password; `.` for a local folder."""
    if "://" not in url or url.startswith(("file://", "local://")):
        return "."
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text).strip()
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*_\[\]|~$@])", r"\\\1", shown)
    shown = re.sub(r"(?i)(?<=www)(?=\.)|(?=://)|^(?=[-+#=])|(?<=\d)(?=[.)]\s)", r"\\", shown)
    return shown  # no links, lists or headings, though it may look like one


def code(text: str) -> str:
    """Text as code, also in a table; in another way where code cannot hold it."""
    if not text or not text.isprintable() or {"`", "|", "<", ">", "&"} & set(text) or text != text.strip():
        return plain(text) or " "
    return f"`{text}`"


def bibtex(manifest: Manifest, place: str) -> str:
    """How to cite it: as the authors said, else an entry made of what is known."""
    if manifest.citation.startswith("@"):
        return manifest.citation
    key = re.sub(r"[^a-z0-9]+", "-", manifest.name.lower()).strip("-") or "zoo"
    fields = {
        "title": manifest.name,
        "year": manifest.created[:4],
        "note": f"Version {manifest.version}, tree digest {manifest.tree[:16]}",
        **({"url": place} if place != "." else {}),
        **({"annote": manifest.citation} if manifest.citation else {}),
    }
    lines = (f"  {name} = {{{_latex(text)}}}" for name, text in fields.items())
    return f"@misc{{{key}-{manifest.created[:4]},\n" + ",\n".join(lines) + "\n}"


def _front_matter(manifest: Manifest, rows: pl.DataFrame) -> str:
    """YAML with every text in double quotes, as JSON has them, which YAML reads the same."""
    licence = manifest.licence.lower()
    name = re.sub(r"[^a-z0-9.]+", "-", licence).strip("-.") or "other"
    if not licence:
        licences = ["license: unknown"]
    elif licence in HUB_LICENCES:
        licences = [f"license: {licence}"]
    else:
        licences = ["license: other", f"license_name: {_quoted(name)}"]
    lines = [
        *licences,
        f"pretty_name: {_quoted(manifest.name)}",
        "tags:",
        *(f"- {tag}" for tag in ("weightscape", "model-zoo", "neural-network-weights", "weight-space-learning")),
        "size_categories:",
        f"- {_quoted(_size_category(len(rows)))}",
        "configs:",
        "- config_name: default",
        f"  data_files: {_quoted(f'{manifest.base}/{manifest.columns.path}')}",
    ]
    return "---\n" + "\n".join(lines) + "\n---"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _size_category(rows: int) -> str:
    steps = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
    for power, step in enumerate(steps, 3):
        if rows < 10**power:
            return f"n<{step}" if power == 3 else f"{steps[power - 4]}<n<{step}"
    return "1B<n<10B"


def _variants(record: Record) -> Iterator[Sequence[str]]:
    for name, variant in record.variants.items():
        models, checkpoints, size = variant.grid.shape
        family = str(variant.architecture.get("family", ""))
        yield code(name), code(family), f"{models:,}", f"{checkpoints:,}", f"{size:,}", record.dtype


def _columns(manifest: Manifest, rows: pl.DataFrame) -> Iterator[Sequence[str]]:
    metrics = measured(manifest)
    for name, dtype in rows.schema.items():
        metric = next((m for m in metrics if re.fullmatch(rf"{re.escape(m)}(_se|_reason|_partner)?(@.*)?", name)), None)
        what = KNOWN.get(name) or (f"measured: {code(', '.join(metrics[metric]))}" if metric else "as recorded")
        yield code(name), str(dtype), what


def measured(manifest: Manifest) -> dict[str, list[str]]:
    """Metric -> its versions, as metric@version; longer names first, which begin with shorter ones."""
    found: dict[str, set[str]] = {}
    for match in map(METRIC_FILE.fullmatch, manifest.files):
        if match:
            found.setdefault(match["metric"], set()).add(f"{match['metric']}@{match['version']}")
    return {name: sorted(found[name]) for name in sorted(found, key=lambda name: (-len(name), name))}


def _splits(rows: pl.DataFrame) -> str:
    if "split" not in rows.columns:
        return (
            "None is stored. Split by `run`: the checkpoints of one run resemble each other, and so do those of runs "
            "that share a start."
        )
    counts = rows.group_by("split").agg(pl.len(), pl.col("run").n_unique()).sort("split", nulls_last=True)
    shown = ((code(str(name)) if name else "in none", f"{count:,}", f"{runs:,}") for name, count, runs in counts.rows())
    return "By lineage, in the column `split`.\n\n" + _table(("split", "rows", "runs"), shown)


def _made(record: Record) -> str:
    """What the spec and `info` say, a line a member, cut short."""
    found = [
        (code(key), code(_short(value)))
        for content in (record.spec, record.info)
        for key, value in content.items()
        if value not in (None, "", [], {}) and key not in ("citation", "bibtex", "description", "licence", "license")
    ]
    if not found:
        return "The zoo does not say."
    return "From `spec` and `info` of zoo.json:\n\n" + _table(("what", "value"), found)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:157] + "..."


def _limits(manifest: Manifest, record: Record, rows: pl.DataFrame) -> Iterator[str]:
    whole = sum(variant.grid.shape[0] * variant.grid.shape[1] for variant in record.variants.values())
    if len(rows) < whole:
        yield f"Incomplete: {len(rows):,} of {whole:,} rows are there."
    if bad := {name: count for name, count in manifest.counts.items() if name != "ok" and count}:
        said = " and ".join(f"{count:,} {name}" for name, count in sorted(bad.items()))
        yield f"{said}: these rows are kept, with the reason, and `scan()` leaves them out unless asked."
    if absent := int((~rows["stored"]).sum()):
        yield f"{_count(absent, 'row')} hold no weights (`stored` is false); the arrays are NaN there."
    partly = [
        (name, rows[name].null_count())
        for name in rows.columns
        if rows[name].null_count() and name not in (*ADDRESS, *REQUIRED)
    ]
    for name, nulls in partly[:ROWS_SHOWN]:
        yield f"Column {code(name)} is null in {nulls:,} of {_count(len(rows), 'row')}."
    if not measured(manifest):
        yield "Nothing was measured after training."
    if record.dtype != "float32":
        yield f"Weights are rounded to {record.dtype}."
    if record.tier == PACKED:
        yield "Packed: plain Zarr readers do not know the codec; weightscape reads it, and `unpack` makes a plain one."
    notes = record.info.get("notes")
    for note in notes[:ROWS_SHOWN] if isinstance(notes, list) else [notes] if isinstance(notes, str) else []:
        yield plain(_short(note))
    frames = sorted({path.split("/")[1] for path in manifest.files if path.startswith("frames/")})
    if frames:
        yield f"Weights are stored as trained; aligned by the frames {', '.join(map(code, frames))}."
    else:
        yield "Weights are not aligned: units stand in any order, and networks may be equal up to that order."
    if not manifest.licence:
        yield "No licence was named."


def _reading(manifest: Manifest, record: Record, place: str) -> str:
    name = next(iter(record.variants))
    table = f"{manifest.base}/{manifest.columns.path}"
    lines = [
        "import catalog",
        "import polars as pl",
        "",
        f"url = {json.dumps(place)}" + ("  # where this folder lies" if place == "." else ""),
        "models = catalog.open(url)",
        f'rows = models.scan().filter(pl.col("variant") == {json.dumps(name)}).head(8).collect()',
        "weights = models.read(rows)  # (models, size), each row checked",
    ]
    others = [
        "import zarr",
        "",
        f'rows = pl.read_parquet(f"{{url}}/{table}")',
        f'array = zarr.open_array(f"{{url}}/{manifest.base}/weights/{name}", mode="r")',
        'weights = array[rows["model"][0], rows["checkpoint"][0]]',
    ]
    sql = f"SELECT status, count(*) FROM '{'' if place == '.' else place + '/'}{table}' GROUP BY status"
    text = ["With weightscape:", _fenced("\n".join(lines), "python")]
    if record.tier != PACKED:
        text += ["With polars and Zarr alone:", _fenced("\n".join(others), "python")]
    return "\n\n".join([*text, "With DuckDB:", _fenced(sql, "sql")])


def _table(head: Sequence[str], rows: Rows) -> str:
    listed = list(rows)
    lines = [head, ["---"] * len(head), *listed[:ROWS_SHOWN]]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text if len(listed) <= ROWS_SHOWN else f"{text}\n\nand {len(listed) - ROWS_SHOWN:,} more."


def _fenced(text: str, language: str) -> str:
    """A code block that its content cannot end."""
    ticks = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _paragraphs(text: str) -> str:
    return "\n\n".join(plain(" ".join(part.split("\n"))) for part in re.split(r"\n\s*\n", text) if part.strip())


def _latex(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(named.get(c) or (f"\\{c}" if c in "{}%$#_&" else " " if c.isspace() else c) for c in text)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
