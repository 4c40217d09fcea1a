"""Train a flow on a population: data, module, trainer, watchdogs; and the generator that comes out."""

from __future__ import annotations

from typing import Any

from generators.generator import Generator
from generators.population import Population


def fit_flow(population: Population, *, seed: int = 0, **settings: Any) -> Generator:
    """Train a flow; settings as for `generators.recipe.FlowRecipe`, with `preset` for a name in `RECIPES`."""
    raise NotImplementedError
