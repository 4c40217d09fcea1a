"""What an entry of `GENERATORS` is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from generators.generator import Generator


@dataclass(frozen=True)
class Kind:
    """A kind of generator.

    Args:
        fit: (population, *, seed, **settings) -> Generator.
        settings: name -> default, for a baseline.
        baseline: fitted again from the zoo wherever it is needed; others are trained once and stored.
    """

    fit: Callable[..., Generator]
    settings: Mapping[str, Any]
    baseline: bool = True
