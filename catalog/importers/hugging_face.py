"""Hugging Face model repositories: `config.json` and safetensors, in one file or several with an index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.errors import SourceError, ZooError
from catalog.folder import Folder
from catalog.importers.found import (
    NO_LAYOUT,
    BrokenError,
    DoesNotFitError,
    Found,
    Layouts,
    Notes,
    Options,
    Tensors,
    make_members,
)
from catalog.importers.pickles import Pickles
from catalog.importers.place import LocalBlob, Place, RemoteBlob
from catalog.importers.tensors import Blob, TensorFile, open_safetensors
from catalog.importers.values import flat, tabulate
from catalog.record import brief, strict_json

ONE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
ADAPTERS = ("adapter_model.safetensors", "diffusion_pytorch_model.safetensors")  # where there is no whole model
PICKLED = "pytorch_model.bin"
SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.safetensors")
CONFIG_BYTES, INDEX_BYTES, MAX_SHARDS = 4 << 20, 12 << 20, 4096
STEP = re.compile(r"(?:checkpoint|step|global_step|epoch)[-_]?0*(\d{1,12})")
CACHED = re.compile(r"models--(?P<org>[^/]+?)--(?P<name>[^/]+)")
DULL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")  # of a config: paths and versions


@dataclass(frozen=True)
class Repository:
    """A repository: its run and epoch, and where its files are."""

    run: str
    epoch: int
    where: str
    place: Place | Folder

    def has(self, name: str) -> bool:
        return (self.place.root / name).is_file() if isinstance(self.place, Place) else self.place.exists(name)

    def blob(self, name: str) -> Blob:
        return LocalBlob.of(self.place, name) if isinstance(self.place, Place) else RemoteBlob.of(self.place, name)

    def text(self, name: str, limit: int) -> bytes:
        blob = self.blob(name)
        if blob.size > limit:
            raise BrokenError(f"{name} has {blob.size:,} bytes, more than the {limit:,} allowed")
        return blob.read(0, blob.size)


def from_hub(source: Any, options: Options, pickles: Pickles) -> Found:
    """Repositories: one, those below a folder, or a list of folders and `hf://org/name` URLs.

    `checkpoint-500` below a repository is its epoch 500; a repository itself has epoch 0.
    """
    repositories = _repositories(source, options.storage)
    layouts, notes, own, values = Layouts(), Notes(), [], []
    for repository in repositories:
        member: dict[str, Any] = {"run": repository.run, "epoch": repository.epoch, "source": repository.where}
        try:
            found = _open(repository, pickles)
            notes.add(found.notes)
            member |= {"layout": layouts.add(found.layout), "reason": ""}
        except BrokenError as error:
            member |= {"layout": NO_LAYOUT, "reason": str(error)}
        own.append(member)
        values.append(_config(repository, notes))
    columns, remarks = tabulate(values)

    def load(at: int) -> Tensors:
        return _open(repositories[at], pickles).load()

    return Found("hf", make_members(own, columns), tuple(layouts.found), load, (), (*remarks, *notes.told()))


def _open(repository: Repository, pickles: Pickles) -> TensorFile:
    """The tensors of a repository, from one file or all that its index names."""
    try:
        if repository.has(INDEX):
            wanted = _index(repository)
            return open_safetensors({name: repository.blob(name) for name in sorted(set(wanted.values()))}, wanted)
        if name := next((name for name in (ONE, *ADAPTERS) if repository.has(name)), None):
            return open_safetensors({name: repository.blob(name)})
        if isinstance(repository.place, Place) and repository.has(PICKLED):
            return pickles.open(repository.place.file(PICKLED), f"{repository.where}/{PICKLED}")
    except SourceError:  # pickles that are not allowed
        raise
    except ZooError as error:
        raise BrokenError(str(error)) from error
    raise BrokenError(f"it has no {ONE} and no {INDEX}")


def _index(repository: Repository) -> dict[str, str]:
    """Tensor -> file, as the index says."""
    try:
        content = strict_json(repository.text(INDEX, INDEX_BYTES))
        wanted = dict(content["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenError(f"{INDEX} is none: {brief(error)}") from error
    names = set(map(str, wanted.values()))
    if bad := [name for name in names if not SHARD.fullmatch(name)]:
        raise BrokenError(f"{INDEX} names {bad[0][:80]!r}, expected files of the repository")
    if not 0 < len(names) <= MAX_SHARDS:
        raise BrokenError(f"{INDEX} names {len(names):,} files")
    return {str(tensor): str(name) for tensor, name in wanted.items()}


def _config(repository: Repository, notes: Notes) -> dict[str, Any]:
    """Numbers, truths and text of `config.json`."""
    try:
        if not repository.has(CONFIG):
            return {}
        content = json.loads(repository.text(CONFIG, CONFIG_BYTES).decode())
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (BrokenError, ZooError, ValueError, RecursionError):
        notes.add([f"a {CONFIG} that cannot be read was left out"])
        return {}
    labels = {"id2label", "label2id"}
    return flat({name: value for name, value in content.items() if name not in DULL and name not in labels})


def _repositories(source: Any, storage: Mapping[str, Any]) -> list[Repository]:
    """Repositories in the order given, those below a folder sorted.

    Raises:
        DoesNotFitError: there is none. SourceError: two have one name.
    """
    given: Sequence[Any] = [source] if isinstance(source, str | os.PathLike) else list(source)
    found = [repository for one in given for repository in _below(os.fspath(one), storage)]
    if not found:
        raise DoesNotFitError(f"there is no {CONFIG} with {ONE} or {INDEX}")
    keys = [(repository.run, repository.epoch) for repository in found]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise SourceError(f"two repositories are called {twice[0][0]!r}; rename a folder, or import them apart")
    return found


def _below(text: str, storage: Mapping[str, Any]) -> list[Repository]:
    if "://" in text and not text.startswith("file://"):
        text = text.rstrip("/")
        name = "/".join(text.split("://", 1)[1].split("/")[-2:]) if text.count("/") > 2 else text.split("://", 1)[1]
        try:
            return [Repository(name, 0, text, Folder.at(text, **storage))]
        except ZooError as error:
            raise SourceError(str(error)) from error
    place = Place.at(text.removeprefix("file://"))
    if not place.root.is_dir():
        raise SourceError(f"{text} is no folder")
    if is_repository(place.root):
        return [_local(place, place.root), *_checkpoints(place, place.root)]
    found = []
    for path in sorted(path for path in place.root.iterdir() if _folder(path) and not path.name.startswith(".")):
        snapshots = (
            sorted((path / "snapshots").iterdir())
            if CACHED.fullmatch(path.name) and _folder(path / "snapshots")
            else [path]
        )
        for folder in snapshots:
            if _folder(folder) and is_repository(folder):
                found.append(_local(place, folder))
            if _folder(folder):
                found += _checkpoints(place, folder)
    return found


def _checkpoints(place: Place, folder: Path) -> list[Repository]:
    """`checkpoint-500` and the like below a folder."""
    inside = sorted(path for path in folder.iterdir() if _folder(path) and STEP.fullmatch(path.name))
    return [_local(place, path) for path in inside if is_repository(path)]


def _folder(path: Path) -> bool:
    """A folder that is no link, which could lead anywhere."""
    return path.is_dir() and not path.is_symlink()


def is_repository(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return bool({ONE, INDEX, *ADAPTERS} & names) or {CONFIG, PICKLED} <= names


def _local(source: Place, folder: Path) -> Repository:
    """A repository in a folder. In the cache of the hub files are links, into the cache and not out of it."""
    step = STEP.fullmatch(folder.name)
    named = folder.parent if step else folder
    cached = CACHED.fullmatch(named.parent.parent.name) if named.parent.name == "snapshots" else None
    run = f"{cached['org']}/{cached['name']}@{named.name}" if cached else named.name
    real = Path(os.path.realpath(named.parent.parent if cached else folder))
    where = folder.relative_to(source.root).as_posix() if folder != source.root else folder.name
    return Repository(run, int(step[1]) if step else 0, where, Place(folder, real))
