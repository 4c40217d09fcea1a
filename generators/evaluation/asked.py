"""Samples drawn on request, level by level, and whether they came out as asked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from generators.evaluation.card import Fidelity
from generators.evaluation.estimate import Estimate
from generators.evaluation.fidelity import fidelity, not_measurable
from generators.evaluation.functions import behaviour
from generators.evaluation.yardstick import Yardstick
from generators.generator import Generator
from generators.samples import finish
from zoo.splits import train_split

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # quantiles of the training split that are asked for
EACH = 64  # networks a level


def asked_for(generator: Generator, stick: Yardstick, seed: int = 0, each: int = EACH) -> tuple[Fidelity, ...]:
    """For each column that a generator is conditioned on, samples at levels of it against samples without it.

    Each column is asked for alone, the others being left out.
    """
    if generator.conditions is None:
        return ()
    rows = stick.population.split("train")
    free = None
    found = []
    for column in generator.conditions.names:
        if reason := not_measurable(column):
            found.append(Fidelity(column, (), (), (), math.nan, math.nan, math.nan, reason))
            continue
        levels = levels_of(rows[column])
        asked = np.repeat(levels, each)
        obtained = _measured(generator, stick, column, len(asked), seed, {column: asked.tolist()})
        free = _measured(generator, stick, column, len(asked), seed, None)
        found.append(_of(column, asked, obtained, free))
    return tuple(found)


def levels_of(column: pl.Series) -> np.ndarray:
    """Numbers that are asked for: quantiles of a column, each once."""
    return np.unique(np.quantile(column.drop_nulls().to_numpy().astype(np.float64), LEVELS))


def _measured(
    generator: Generator, stick: Yardstick, column: str, count: int, seed: int, conditions: dict[str, Any] | None
) -> np.ndarray:
    """(count,) values of the column for samples, NaN for broken ones."""
    population = stick.population
    weights = generator.sample(count, seed=seed, conditions=conditions)
    weights = finish(population, weights, population.data)
    split = train_split(population.data) if column.startswith("train") else stick.report
    seen = behaviour(population.architecture, weights, split.x, split.y)
    return seen.accuracy if column.endswith("accuracy") else seen.loss


def _of(column: str, asked: np.ndarray, obtained: np.ndarray, free: np.ndarray) -> Fidelity:
    one = fidelity(column, asked, obtained, free)

    def value(estimate: Estimate | None) -> float:
        return math.nan if estimate is None else estimate.value

    return Fidelity(
        column,
        tuple(f"{level.requested:.4g}" for level in one.levels),
        tuple(level.obtained.value for level in one.levels),
        tuple(level.obtained.se for level in one.levels),
        value(one.spearman),
        value(one.error),
        value(one.without),
        None,
    )
