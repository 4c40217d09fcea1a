"""What was asked of a generator: how a zoo of samples keeps it, and what it says of each of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from catalog.errors import FormatError, GeneratorError, InvalidSpecError
from generators.generator import Generator
from zoo.plan import TRAINED_LIKE, Plan, make_plan, stored_spec


@dataclass(frozen=True)
class Request:
    """Networks number 0 to count of a seed.

    Args:
        conditions: column -> one value for all, or one for each.

    Raises:
        GeneratorError: a count below 1, a seed below 0, conditions that the generator was not trained with.
    """

    generator: Generator
    count: int
    seed: int = 0
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 1:
            raise GeneratorError(f"count must be a whole number above 0, got {self.count!r}")
        known = self.generator.conditions
        self.generator.sample(0, seed=self.seed, conditions=None if known else self.conditions)  # may refuse
        if known:
            known.request(self.conditions, self.count)

    @property
    def name(self) -> str:
        """Of the zoo of samples."""
        return f"{self.generator.source['zoo'][:150]}-{self.generator.kind}"

    @property
    def spec(self) -> dict[str, Any]:
        """As `zoo.json` keeps it; conditions of each network by their digest, as the rows hold them."""
        return {
            "generator": self.generator.fingerprint,
            "kind": self.generator.kind,
            "count": self.count,
            "seed": self.seed,
            "conditions": {name: _short(value) for name, value in self.conditions.items()},
            TRAINED_LIKE: self.generator.source.get(TRAINED_LIKE),
        }

    @property
    def info(self) -> dict[str, Any]:
        """Where samples come from."""
        source = self.generator.source
        parent = {name: source[name] for name in ("zoo", "url", "digest", "population", "frame", "frame_origin")}
        settings = json.loads(json.dumps(dict(self.generator.settings)))
        made = {"kind": self.generator.kind, "fingerprint": self.generator.fingerprint, "settings": settings}
        return {"data": source["data"], "licence": source.get("licence", ""), "parent": parent, "generator": made}

    @cached_property
    def plan(self) -> Plan:
        """Data and recipe of the samples.

        Raises:
            GeneratorError: a generator of a zoo without a spec. FormatError: the data set has changed.
        """
        source, spec = self.generator.source, self.spec
        if spec[TRAINED_LIKE] is None:
            raise GeneratorError(
                f"this {self.generator.kind} learned from the zoo {source['zoo']}, which has no spec of `weightscape "
                "build` to say on what data its networks work; take a generator of one that has"
            )
        plan = make_plan(*stored_spec(spec))
        known = source["data"].get("fingerprint", plan.data.fingerprint)
        if known != plan.data.fingerprint:
            raise FormatError(
                f"the generator learned networks of data with fingerprint {known}, {plan.data.name} here has "
                f"{plan.data.fingerprint}; restore the data they were trained on"
            )
        if list(plan.runs) != [source["variant"]]:
            raise InvalidSpecError(f"samples are of {source['variant']}, their recipe is of {list(plan.runs)}")
        return plan

    def conditions_of(self, models: range) -> dict[str, Any]:
        """The conditions of some of them, as `Generator.sample` takes them."""
        return {name: _part(value, slice(models.start, models.stop)) for name, value in self.conditions.items()}

    def identity(self, models: range) -> dict[str, pl.Series]:
        """Columns that say who each is: a run and a cell of its own, as metrics of a cell compare all in it."""
        count, source, architecture = len(models), self.generator.source, self.generator.architecture
        asked = {name: pl.Series(_values(value, count)) for name, value in self.conditions_of(models).items()}
        wanted = [dict(zip(asked, values, strict=True)) for values in zip(*asked.values(), strict=True)]
        about = {"generator": self.generator.fingerprint, "seed": self.seed}
        ids = [
            _digest({**about, "number": number, "conditions": request})
            for number, request in zip(models, wanted or [{}] * count, strict=True)
        ]
        same: dict[str, Any] = {
            "seed": self.seed,
            "family": architecture.family,
            **architecture.numbers,
            "epoch": 0,
            "step": 0,
            "progress": 1.0,
            "generator": self.generator.fingerprint,
            "generator_kind": self.generator.kind,
            "parent": source["zoo"],
            "parent_digest": source["digest"],
        }
        return {
            "run": pl.Series(ids, dtype=pl.String),
            "cell": pl.Series(ids, dtype=pl.String),
            "number": pl.Series(list(models), dtype=pl.Int64),
            **{name: pl.Series([value] * count) for name, value in same.items()},
            "frame": pl.Series([source["frame"]] * count, dtype=pl.String),
            **{f"requested_{name}": values for name, values in asked.items()},
        }


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
