"""A generator as a folder: what was learned, from what, and a digest of every byte; see catalog/FORMAT.md."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import catalog
from catalog.errors import (
    CorruptError,
    FormatError,
    GeneratorError,
    InvalidSpecError,
    MissingDataError,
    SpecMismatchError,
    UnknownNameError,
    ZooError,
)
from catalog.folder import Folder
from catalog.fragments import software
from catalog.record import brief
from catalog.sealed import strict_json
from catalog.store import Zoo
from generators.codec import Codec
from generators.codec_file import load_codec, save_codec
from generators.conditions import Conditions
from generators.generator import Generator
from generators.kinds import GENERATORS
from generators.population import SPLITS, Population
from zoo.architectures import Architecture

FORMAT, LIMIT = 1, 256 << 20
RECORD, NETWORK, CODEC, LOG = "generator.json", "network.safetensors", "codec.safetensors", "log.csv"
OPTIONAL = (LOG,)  # a file that belongs to a generator if it is there when it is saved


def save(generator: Generator, folder: str | os.PathLike[str]) -> None:
    """Write a generator; `generator.json` comes last, so that there is one or there is none.

    A baseline is its settings and its source, and is fitted again where it is loaded.

    Raises:
        SpecMismatchError: the folder holds another generator. GeneratorError: one that draws by a function of yours.
        StorageError: the disk refused.
    """
    place = Folder.at(folder)
    if not place.local:
        raise GeneratorError(f"a generator is written to a local folder, got {place.url}; copy it there afterwards")
    place.sweep()
    if place.exists(RECORD) and (there := read_record(place)["fingerprint"]) != generator.fingerprint:
        raise SpecMismatchError(
            f"{place.url} holds another generator (fingerprint {there}, this one is {generator.fingerprint}); give "
            "another folder"
        )
    place.remove(RECORD)
    names = _write_learned(generator, place)
    names += [name for name in OPTIONAL if place.exists(name)]
    place.write(RECORD, _encode(_content(generator, {name: _about(place.read(name)) for name in names})))


def load(folder: str | os.PathLike[str], zoo: Zoo | str | None = None, device: str = "cpu") -> Generator:
    """A generator from its folder, local or at any fsspec URL. A flow needs no zoo.

    Args:
        zoo: for a baseline, which is fitted again: where the zoo is, if it is not where it was.
        device: that a flow draws on.

    Raises:
        GeneratorError: there is none; or a zoo that does not hold what the baseline learned from.
        FormatError: of another format. CorruptError, MissingDataError: other bytes than were written.
    """
    place = Folder.at(folder)
    content = read_record(place)
    files = {name: _checked(place, name, about) for name, about in content["files"].items()}
    kind = content["kind"]
    if kind not in GENERATORS:
        raise FormatError(f"{place.url} is a generator of kind {kind!r}, unknown here; install a newer weightscape")
    baseline = GENERATORS[kind].baseline
    try:
        found = _baseline(content, zoo) if baseline else _flow(content, files, place, device)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ZooError) and (baseline or not isinstance(error, InvalidSpecError | UnknownNameError)):
            raise
        raise FormatError(f"{RECORD} of {place.url} does not follow format {FORMAT}: {brief(error)}") from error
    if found.fingerprint != content["fingerprint"]:
        raise CorruptError(f"{place.url} holds other numbers than its fingerprint says; restore it from a copy")
    return found


def read_record(place: Folder) -> dict[str, Any]:
    """The content of `generator.json`.

    Raises:
        GeneratorError: there is none. FormatError, CorruptError: see `load`.
    """
    try:
        data = place.read(RECORD, LIMIT)
    except FileNotFoundError as error:
        raise GeneratorError(f"{place.url} holds no generator: no {RECORD}; `weightscape train` makes one") from error
    body = data[: -len(_tail(b""))]
    try:
        content = strict_json(data)
    except ValueError:
        content = None
    if isinstance(content, dict) and type(content.get("format")) is int and content["format"] != FORMAT:
        raise FormatError(
            f"{place.url} is a generator of format {content['format']}; this weightscape reads format {FORMAT}: "
            "install a newer weightscape"
        )
    if content is None or data[len(body) :] != _tail(body):
        raise CorruptError(f"{RECORD} of {place.url} is damaged: its bytes do not match its own sha256; restore it")
    if problem := _problem(content):
        raise FormatError(f"{RECORD} of {place.url} does not follow format {FORMAT}: {problem}")
    found: dict[str, Any] = content
    return found


def population_of(source: Mapping[str, Any], zoo: Zoo | str | None = None) -> Population:
    """The population that a stored generator learned from, out of its zoo.

    Args:
        zoo: where it is, if not at the URL of the source.

    Raises:
        GeneratorError: it is another zoo, or lacks some of the rows.
    """
    opened = zoo if isinstance(zoo, Zoo) else catalog.open(zoo or str(source["url"]))
    pairs = [(run, epoch, split) for split in SPLITS for run, epoch in source["members"][split]]
    members = pl.DataFrame(pairs, schema={"run": pl.String, "epoch": pl.Int64, "split": pl.String}, orient="row")
    rows = opened.scan().filter(pl.col("variant") == source["variant"]).collect()
    rows = rows.with_columns(pl.col("epoch").cast(pl.Int64)).join(members, on=["run", "epoch"], how="inner")
    found = Population(opened, str(source["variant"]), rows.sort("run", "epoch"), source["frame"])
    if len(rows) != len(members) or found.fingerprint != source["population"]:
        raise GeneratorError(
            f"{opened.url} does not hold what this generator learned from: {len(rows)} of {len(members)} rows of "
            f"{source['variant']} are there, and the population is {found.fingerprint}, not {source['population']}; "
            "give the zoo it was made from"
        )
    return found


def _write_learned(generator: Generator, place: Folder) -> list[str]:
    """Write what was learned; the names of the files, none for a baseline."""
    if GENERATORS[generator.kind].baseline:
        return []
    from safetensors.torch import save as encode

    from generators.flow.drawing import FlowDraw

    if not isinstance(generator.draw, FlowDraw):
        raise GeneratorError(f"only what a {generator.kind} draws with can be stored, got {generator.draw!r}")
    tensors = {name: value.detach().cpu().contiguous() for name, value in generator.draw.network.state_dict().items()}
    place.write(NETWORK, encode(tensors, {"format": "weightscape network 1"}))
    save_codec(generator.draw.codec, place.path(CODEC))
    return [NETWORK, CODEC]


def _content(generator: Generator, files: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": generator.kind,
        "settings": dict(generator.settings),
        "source": dict(generator.source),
        "conditions": None if generator.conditions is None else generator.conditions.to_json(),
        "cost": dict(generator.cost),
        "history": [dict(look) for look in generator.history],
        "content": generator.content,
        "fingerprint": generator.fingerprint,
        "files": files,
        "software": software(),
    }


def _encode(content: Mapping[str, Any]) -> bytes:
    """Indented JSON whose last member is the sha256 of all bytes before it, as in `zoo.json`."""
    body = json.dumps(content, indent=1, allow_nan=False).removesuffix("\n}").encode()
    return body + _tail(body)


def _tail(body: bytes) -> bytes:
    return f',\n "digest": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def _about(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _problem(content: Any) -> str:
    """What is wrong with a record whose bytes are right; "" for nothing."""
    kinds = {"settings": dict, "source": dict, "cost": dict, "history": list, "files": dict, "kind": str}
    if not isinstance(content, dict) or type(content.get("format")) is not int:
        return "it names no format"
    if wrong := [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]:
        return f"{', '.join(wrong)} missing or of another type"
    if not isinstance(content.get("fingerprint"), str) or not isinstance(content.get("content"), str):
        return "fingerprint or content missing"
    known = {NETWORK, CODEC, *OPTIONAL}
    if strange := [name for name in content["files"] if name not in known]:
        return f"unknown files {', '.join(strange[:3])}"
    return ""


def _checked(place: Folder, name: str, about: Mapping[str, Any]) -> bytes:
    """The bytes of a file, which are those that were written."""
    try:
        data = place.read(name)
    except FileNotFoundError as error:
        raise MissingDataError(f"{name} of the generator {place.url} is missing; restore it from a copy") from error
    if _about(data) != about:
        raise CorruptError(
            f"{name} of the generator {place.url} is damaged: its bytes do not match; restore it from a copy"
        )
    return data


def _baseline(content: Mapping[str, Any], zoo: Zoo | str | None) -> Generator:
    """Fitted again, from the rows it was fitted to."""
    return GENERATORS[content["kind"]].fit(population_of(content["source"], zoo), **content["settings"])


def _flow(content: Mapping[str, Any], files: Mapping[str, bytes], place: Folder, device: str) -> Generator:
    """Built by its recipe, with what the files hold."""
    from generators.flow.drawing import FlowDraw, content_of, network_of, source_of
    from generators.recipe import FlowRecipe

    if missing := {NETWORK, CODEC} - set(files):
        raise ValueError(f"{', '.join(sorted(missing))} not listed")
    settings = dict(content["settings"])
    seed = settings.pop("seed")
    recipe, codec = FlowRecipe.from_json(settings), _codec(files[CODEC], place)
    architecture = Architecture.from_json(content["source"]["architecture"])
    if codec.layout != architecture.layout:
        raise ValueError("the codec has another layout than the architecture")
    conditions = None if content["conditions"] is None else Conditions.from_json(content["conditions"])
    network = network_of(recipe, codec, conditions.width if conditions else 0, architecture)
    _fill(network, files[NETWORK])
    network = network.to(device).eval().requires_grad_(False)
    draw = FlowDraw(network, codec, source_of(codec, recipe, seed).to(device), recipe, device)
    return Generator(
        content["kind"], content["settings"], content["source"], draw, conditions, content["cost"],
        content=content_of(network, codec), history=content["history"],
    )  # fmt: skip


def _codec(data: bytes, place: Folder) -> Codec:
    """From a local folder or, by a temporary file, from far away."""
    if place.local:
        return load_codec(place.path(CODEC))
    with tempfile.TemporaryDirectory() as there:
        (path := Path(there) / CODEC).write_bytes(data)
        return load_codec(path)


def _fill(network: Any, data: bytes) -> None:
    """Give a network the tensors of a file; ValueError unless they are all of its own."""
    from safetensors.torch import load as decode

    tensors = decode(data)
    wanted = {name: (value.shape, value.dtype) for name, value in network.state_dict().items()}
    if {name: (value.shape, value.dtype) for name, value in tensors.items()} != wanted:
        raise ValueError("the tensors of the network are not those of its recipe")
    if not all(np.isfinite(value.numpy()).all() for value in tensors.values()):
        raise ValueError("the tensors of the network are not all finite")
    network.load_state_dict(tensors)
