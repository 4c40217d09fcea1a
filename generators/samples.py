"""Samples are a zoo: drawn, made ready, evaluated and stored shard by shard, with where they come from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl
import torch

import catalog
from catalog.errors import FormatError, GeneratorError, InvalidSpecError, NotAZooError, StorageError, UnknownNameError
from catalog.fragments import software
from catalog.record import Variant
from catalog.store import Zoo
from catalog.write import make_variant, write_shard
from generators.generator import Generator
from generators.members import Members
from generators.population import Population
from generators.stored import population_of
from kernels.distance.distance import nearest_streamed
from zoo.architectures import Architecture
from zoo.datasets import Dataset
from zoo.landscape.norms import reestimate
from zoo.plan import TRAINED_LIKE, Plan, make_plan, stored_spec
from zoo.shards import measured, one_thread
from zoo.splits import fitting, train_split

FAILED = "its weights are not finite"


def finish(
    of: Architecture | Population, weights: np.ndarray, data: Dataset, *, samples: int | None = None
) -> np.ndarray:
    """Samples as they are to be used: with statistics of BatchNorm from training inputs. Others come back as they are.

    Args:
        weights: (models, size) float32; models that are not finite stay as they are.
        samples: so many of the first training inputs, None for all.

    Raises:
        GeneratorError: weights of another size.
    """
    architecture = of.architecture if isinstance(of, Population) else of
    if weights.ndim != 2 or weights.shape[1] != architecture.layout.size:
        raise GeneratorError(
            f"weights of {architecture.name} must be (models, {architecture.layout.size}), got {tuple(weights.shape)}"
        )
    if not architecture.has_batch_norm:
        return weights
    good, out = np.isfinite(weights).all(1), weights.copy()
    some = torch.from_numpy(weights[good])
    with one_thread():  # bits of sums depend on the number of threads
        out[good] = reestimate(architecture, some, fitting(train_split(data, samples), some)[0]).numpy()
    return out


def write_samples(
    generator: Generator,
    url: str | os.PathLike[str],
    count: int,
    *,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
    zoo: Zoo | str | os.PathLike[str] | None = None,
    threads: int | None = None,
    on_models: Callable[[int], None] | None = None,
    **storage_options: Any,
) -> Zoo:
    """Draw networks and store them as a zoo. Calling again after an interruption draws what is missing.

    Each row says its generator, seed and number, what was asked for (`requested_<name>`), and the nearest member of
    the training split by distance of parameters, in the frame of the generator. Networks that are not finite are rows
    with status "failed".

    Args:
        url: an empty or absent folder, or a zoo of this very request.
        count: how many; numbers 0 to count of the seed.
        conditions: as for `Generator.sample`.
        zoo: that it learned from, where it has moved; without any, distances are null.
        threads: of evaluation, None for as many as torch uses. No bit depends on it.
        on_models: called with a number of networks each time so many are drawn; raising in it stops.

    Raises:
        GeneratorError: a count below 1, conditions that it was not trained with, another zoo, one without a spec.
        SpecMismatchError: another zoo is there. FormatError: the data set has changed. StorageError: the disk refused.
    """
    if type(count) is not int or count < 1:
        raise GeneratorError(f"count must be a whole number above 0, got {count!r}")
    asked = dict(conditions or {})
    generator.sample(0, seed=seed, conditions=None if generator.conditions else asked)  # may refuse
    if generator.conditions:
        generator.conditions.request(asked, count)
    parent = _parent(generator, zoo)
    members = None if parent is None else Members.of(parent)
    variant = make_variant(
        generator.source["variant"], generator.layout, count, 1, architecture=generator.architecture.to_json()
    )
    spec = _spec(generator, count, seed, asked)
    plan = _plan(generator, spec)
    name = f"{generator.source['zoo'][:150]}-{generator.kind}"
    made = catalog.create(url, name=name, variants=[variant], spec=spec, info=_info(generator), **storage_options)
    threads = threads or torch.get_num_threads()
    committed = made.committed()
    for shard in range(variant.grid.num_shards):
        if (variant.name, shard) not in committed:
            _write(made, generator, plan, members, shard, asked, seed, threads, on_models)
    catalog.rebuild_table(made)
    return made


def _write(
    made: Zoo,
    generator: Generator,
    plan: Plan,
    members: Members | None,
    shard: int,
    asked: Mapping[str, Any],
    seed: int,
    threads: int,
    on_models: Callable[[int], None] | None,
) -> None:
    """Draw, finish, evaluate and commit a shard."""
    (variant,) = made.record.variants.values()
    models = variant.grid.models(shard)
    here = slice(models.start, models.stop)
    given = {name: _part(value, here) for name, value in asked.items()}
    drawn = generator.sample(len(models), seed=seed, first=here.start, conditions=given, on_models=on_models)
    runs = plan.runs[variant.name][here]
    weights = finish(generator.architecture, drawn, plan.data, samples=runs[0].samples)
    stored = np.isfinite(weights).all(1)
    rows = _identity(generator, variant, models, seed, given)
    columns = _nearest(members, weights, stored)
    with one_thread():
        found = measured(plan, runs, torch.from_numpy(weights)[:, None], stored[:, None], threads)
    statuses = {
        "status": pl.Series(np.where(stored, "ok", "failed").tolist(), dtype=pl.String),
        "reason": pl.Series(np.where(stored, "", FAILED).tolist(), dtype=pl.String),
        "stored": pl.Series(stored),
    }
    table = pl.DataFrame({**rows, **statuses, **columns, **found})
    versions = software(torch=torch.__version__, device="cpu")
    write_shard(made, variant.name, shard, weights[:, None], table, versions)


def _identity(
    generator: Generator, variant: Variant, models: range, seed: int, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Who each sample is: a run and a cell of its own, as metrics of a cell compare all its members with each other."""
    count, source = len(models), generator.source
    asked = {name: pl.Series(_values(value, count)) for name, value in given.items()}
    requests = [dict(zip(asked, values, strict=True)) for values in zip(*asked.values(), strict=True)] or [{}] * count
    ids = [
        _digest({"generator": generator.fingerprint, "seed": seed, "number": number, "conditions": request})
        for number, request in zip(models, requests, strict=True)
    ]
    return {
        "run": pl.Series(ids, dtype=pl.String),
        "cell": pl.Series(ids, dtype=pl.String),
        "seed": pl.Series([seed] * count, dtype=pl.Int64),
        "number": pl.Series(list(models), dtype=pl.Int64),
        "family": [generator.architecture.family] * count,
        **{name: [value] * count for name, value in generator.architecture.numbers.items()},
        "epoch": pl.Series([0] * count, dtype=pl.Int64),
        "step": pl.Series([0] * count, dtype=pl.Int64),
        "progress": pl.Series([1.0] * count),
        "generator": [generator.fingerprint] * count,
        "generator_kind": [generator.kind] * count,
        "parent": [source["zoo"]] * count,
        "parent_digest": [source["digest"]] * count,
        "frame": pl.Series([source["frame"]] * count, dtype=pl.String),
        **{f"requested_{name}": values for name, values in asked.items()},
    }


def _parent(generator: Generator, zoo: Zoo | str | os.PathLike[str] | None) -> Population | None:
    """What the generator learned from: in this zoo, or where it was, if it is still there as it was."""
    if zoo is not None:
        return population_of(generator.source, zoo if isinstance(zoo, Zoo) else os.fspath(zoo))
    try:
        return population_of(generator.source)
    except (NotAZooError, StorageError, GeneratorError, UnknownNameError):  # the last one: its frame is gone
        return None


def _nearest(members: Members | None, weights: np.ndarray, stored: np.ndarray) -> dict[str, pl.Series]:
    """Run, epoch and distance of the nearest member of the training split, by parameters."""
    runs: list[str | None] = [None] * len(weights)
    epochs: list[int | None] = [None] * len(weights)
    distances: list[float | None] = [None] * len(weights)
    if members is not None and stored.any():
        rows, parameters = members.population.split("train"), members.population.layout.num_parameters
        chunks = (batch[:, :parameters] for batch in members.batches())
        distance, place = nearest_streamed(weights[stored, :parameters], chunks)
        for model, far, at in zip(np.flatnonzero(stored), distance[:, 0].tolist(), place[:, 0].tolist(), strict=True):
            runs[model], epochs[model], distances[model] = rows["run"][at], rows["epoch"][at], far
    return {
        "nearest_run": pl.Series(runs, dtype=pl.String),
        "nearest_epoch": pl.Series(epochs, dtype=pl.Int64),
        "nearest_distance": pl.Series(distances, dtype=pl.Float64),
    }


def _plan(generator: Generator, spec: Mapping[str, Any]) -> Plan:
    """Data and recipe of samples, before anything is written."""
    if spec[TRAINED_LIKE] is None:
        raise GeneratorError(
            f"this {generator.kind} learned from the zoo {generator.source['zoo']}, which has no spec of `weightscape "
            "build` to say on what data its networks work; take a generator of one that has"
        )
    plan = make_plan(*stored_spec(spec))
    known = generator.source["data"].get("fingerprint", plan.data.fingerprint)
    if known != plan.data.fingerprint:
        raise FormatError(
            f"the generator learned networks of data with fingerprint {known}, {plan.data.name} here has "
            f"{plan.data.fingerprint}; restore the data they were trained on"
        )
    if list(plan.runs) != [generator.source["variant"]]:
        raise InvalidSpecError(f"samples are of {generator.source['variant']}, their recipe is of {list(plan.runs)}")
    return plan


def _spec(generator: Generator, count: int, seed: int, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The request, as `zoo.json` keeps it; a list of conditions by its digest, as the rows hold its values."""
    return {
        "generator": generator.fingerprint,
        "kind": generator.kind,
        "count": count,
        "seed": seed,
        "conditions": {name: _short(value) for name, value in asked.items()},
        TRAINED_LIKE: generator.source.get(TRAINED_LIKE),
    }


def _info(generator: Generator) -> dict[str, Any]:
    """Where samples come from."""
    source = generator.source
    parent = {name: source[name] for name in ("zoo", "url", "digest", "population", "frame", "frame_origin")}
    settings = json.loads(json.dumps(dict(generator.settings)))
    made = {"kind": generator.kind, "fingerprint": generator.fingerprint, "settings": settings}
    return {"data": source["data"], "licence": source.get("licence", ""), "parent": parent, "generator": made}


def _part(value: Any, here: slice) -> Any:
    """The values of some samples, of one for all or one for each."""
    values = np.asarray(value)
    return values[here].tolist() if values.ndim else values.tolist()


def _values(value: Any, count: int) -> list[Any]:
    return value if isinstance(value, list) else [value] * count


def _short(value: Any) -> Any:
    values = np.asarray(value)
    return f"{len(values)} values, {_digest(values.tolist())}" if values.ndim else values.tolist()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
