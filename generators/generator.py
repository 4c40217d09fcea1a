"""What all generators are: something fitted to a population that draws networks, by number and seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from catalog.errors import GeneratorError
from generators.conditions import Conditions
from weightspace.layout import Layout
from zoo.architectures import Architecture

TOGETHER = 256  # samples drawn at once: the bits of a sample depend on no others, so this never changes

Draw = Callable[[np.ndarray, int, "np.ndarray | None"], np.ndarray]


@dataclass(frozen=True)
class Generator:
    """Draws networks. Made by a function of `generators.kinds.GENERATORS`, or by `generators.stored.load`.

    Args:
        kind: name in `GENERATORS`. settings: all of them, as JSON.
        source: what it learned from, see `Population.source`; JSON.
        draw: (numbers (n,) int64, seed, conditions (n, width) float32 or None) -> weights (n, size) float32 in the
            frame of the source. Number n of a seed is always the same network, whatever else is drawn with it.
        conditions: how columns are given to it; None for an unconditional one.
        cost: what fitting took: seconds, iterations, bytes_read, peak_bytes; as far as known.
        content: digest of learned arrays, so that two trainings of one recipe have two fingerprints.
        history: what the watchdogs saw while it was trained, see `generators.flow.looks.look`; JSON.
    """

    kind: str
    settings: Mapping[str, Any]
    source: Mapping[str, Any]
    draw: Draw = field(repr=False, compare=False)
    conditions: Conditions | None = None
    cost: Mapping[str, Any] = field(default_factory=dict, compare=False)
    content: str = ""
    history: Sequence[Mapping[str, Any]] = field(default=(), repr=False, compare=False)

    @cached_property
    def architecture(self) -> Architecture:
        return Architecture.from_json(self.source["architecture"])

    @property
    def layout(self) -> Layout:
        return self.architecture.layout

    @cached_property
    def fingerprint(self) -> str:
        """16 digits of kind, settings, source and learned arrays."""
        about = {"kind": self.kind, "settings": dict(self.settings), "content": self.content}
        about["population"] = self.source["population"]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        first: int = 0,
        conditions: Mapping[str, Any] | None = None,
        on_models: Callable[[int], None] | None = None,
        threads: int = 1,
    ) -> np.ndarray:
        """Networks number first to first + count of a seed, (count, size) float32.

        They are in the frame of the source, which is as good as any: outputs do not depend on the order of units. NaN
        where drawing failed. Statistics of BatchNorm are those of the mean network: re-estimate them, as
        `generators.samples` does.

        Args:
            conditions: column -> one value for all, or one for each; columns left out are not conditioned on.
            on_models: called with a number of networks each time so many are drawn.
            threads: blocks of networks drawn at once, which pays where torch uses one thread. No bit depends on it.

        Raises:
            GeneratorError: numbers below 0, conditions that it was not trained with.
        """
        if count < 0 or first < 0 or seed < 0:
            raise GeneratorError(f"count, first and seed must be 0 or more, got {count}, {first}, {seed}")
        if conditions and self.conditions is None:
            raise GeneratorError(
                f"this {self.kind} was trained without conditions, got {', '.join(conditions)}; train it with them"
            )
        given = self.conditions.request(conditions or {}, count) if self.conditions else None
        out = np.empty((count, self.layout.size), np.float32)

        def block(start: int) -> int:
            here = slice(start, min(start + TOGETHER, count))
            numbers = np.arange(first + here.start, first + here.stop, dtype=np.int64)
            out[here] = self.draw(numbers, seed, None if given is None else given[here])
            return here.stop - here.start

        starts = range(0, count, TOGETHER)
        with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
            for drawn in pool.map(block, starts) if pool else map(block, starts):
                if on_models:
                    on_models(drawn)
        return out
