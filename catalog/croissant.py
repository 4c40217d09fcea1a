"""croissant.json of a published zoo: metadata by which search engines and loaders of other projects know it.

Source: Croissant 1.0, the vocabulary at http://mlcommons.org/croissant/1.0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import polars as pl

from catalog.datacard import KNOWN, bibtex, measured, public_url
from catalog.fragments import INTEGERS
from catalog.manifest import Manifest

FILES = 1000  # listed at most; the manifest has them all
TERMS = (  # of Croissant, without a type of their own
    "citeAs column conformsTo equivalentProperty extract field fileProperty fileObject fileSet format includes "
    "isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate "
    "separator source subField transform"
).split()
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    **{term: f"cr:{term}" for term in TERMS},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}
PARQUET = "application/x-parquet"


def croissant(manifest: Manifest, data: bytes, rows: pl.DataFrame, url: str) -> str:
    """The text of croissant.json; the same for the same version.

    Args:
        data: bytes of the manifest.
        rows: of the version's table.
        url: where it is published. Paths in the file are relative, so that a copy elsewhere is described as well.
    """
    place = public_url(url)
    said = (
        manifest.description
        or f"{manifest.name}: {len(rows):,} trained neural networks, with weights and measurements."
    )
    content = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": manifest.name,
        "description": said,
        "license": manifest.licence or "unknown",
        **({"url": place} if place != "." else {}),
        "version": f"{manifest.version}.0.0",
        "datePublished": manifest.created,
        "keywords": ["weightscape", "model zoo", "neural network weights", "weight space learning"],
        "citeAs": bibtex(manifest, place),
        "isLiveDataset": False,
        "distribution": list(_files(manifest, data)),
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "rows",
                "name": "rows",
                "description": "A row for each network: where its weights lie, its hyperparameters, what was measured.",
                "key": [{"@id": "rows/run"}, {"@id": "rows/epoch"}],
                "field": list(_fields(manifest, rows)),
            }
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _files(manifest: Manifest, data: bytes) -> Iterator[dict[str, Any]]:
    """The table first, then the manifest, then the others as far as they are few."""
    table = manifest.columns.path
    yield _file("table", manifest, table, PARQUET)
    name = f"versions/{manifest.version}.json"
    digest = hashlib.sha256(data).hexdigest()
    yield _object("manifest", name, name, len(data), digest, "application/json")
    for path in sorted(manifest.files)[:FILES]:
        if path != table:
            kind = {"json": "application/json", "parquet": PARQUET}.get(path.rpartition(".")[2])
            yield _file(path, manifest, path, kind or "application/octet-stream")


def _file(name: str, manifest: Manifest, path: str, kind: str) -> dict[str, Any]:
    file = manifest.files[path]
    return _object(name, path, f"{manifest.base}/{path}", file.size, file.sha256, kind)


def _object(ident: str, name: str, path: str, size: int, digest: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": quote(ident),
        "name": name,
        "contentUrl": quote(path),
        "contentSize": f"{size} B",
        "encodingFormat": kind,
        "sha256": digest,
    }


def _fields(manifest: Manifest, rows: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """All columns but packed bits and curves, for which Croissant has no type."""
    metrics = measured(manifest)
    for name, dtype in rows.schema.items():
        if dtype == pl.Binary:
            continue
        plain = name.partition("@")[0]
        said = KNOWN.get(name) or (f"measured: {', '.join(metrics[plain])}" if plain in metrics else "")
        yield {
            "@type": "cr:Field",
            "@id": f"rows/{quote(name, safe='')}",
            "name": name,
            **({"description": said.replace("`", "")} if said else {}),
            "dataType": _type(dtype),
            "source": {"fileObject": {"@id": "table"}, "extract": {"column": name}},
        }


def _type(dtype: pl.DataType) -> str:
    if dtype == pl.Boolean:
        return "sc:Boolean"
    if dtype == pl.String:
        return "sc:Text"
    return "sc:Integer" if dtype in INTEGERS else "sc:Float"
