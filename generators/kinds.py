"""All generators by name: one call for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalog.errors import unknown_name
from generators.baselines import BASELINES
from generators.generator import Generator
from generators.kind import Kind
from generators.population import Population


def _fit_flow(population: Population, *, seed: int = 0, **settings: Any) -> Generator:
    from generators.flow.fit import fit_flow  # Lightning takes seconds to import

    return fit_flow(population, seed=seed, **settings)


GENERATORS: dict[str, Kind] = {**BASELINES, "flow": Kind(_fit_flow, {}, baseline=False)}


def fit(kind: str, population: Population, settings: Mapping[str, Any] | None = None, *, seed: int = 0) -> Generator:
    """Fit a generator of this kind to a population.

    Args:
        settings: those that differ from the kind's defaults.
        seed: of everything random in fitting.

    Raises:
        UnknownNameError: another kind, or a setting that it has not. GeneratorError: see the kind.
    """
    if kind not in GENERATORS:
        raise unknown_name("generator", kind, GENERATORS)
    return GENERATORS[kind].fit(population, seed=seed, **dict(settings or {}))
