"""What a match will cost, before it begins."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from weightspace.rebasin.matching import MEMORY, match_weights, takes_compiled, working_bytes
from weightspace.rebasin.objective import checked, chosen_groups
from weightspace.symmetry import Symmetry

PROBE = 4  # models that are matched to find out


@dataclass(frozen=True)
class Cost:
    """About how long a match takes, and the most memory beside the weights themselves."""

    seconds: float
    bytes: int


def estimate(
    symmetry: Symmetry, models: int, *, weights: Any | None = None, reference: Any | None = None, **options: Any
) -> Cost:
    """Cost of `match_weights` of so many models with these options, from a timed match of a few.

    Args:
        models: of the population.
        weights: some of its models (a few, size); the more like the rest, the better. None: random ones, which need
            more sweeps than trained networks.
        reference: None for the first of the weights.
        options: of `match_weights`, without `start` and `on_models`.

    Raises:
        AlignmentError: see `match_weights`.
    """
    names = chosen_groups(symmetry, options.get("groups"), options.get("layers"))
    if weights is None:
        weights = torch.randn(PROBE + 1, symmetry.layout.size, generator=torch.Generator().manual_seed(0))
    few = checked(symmetry, weights, "weights")[: PROBE + 1]
    target = few[0] if reference is None else checked(symmetry, reference, "the reference", (1,)).to(few.device)
    seconds = 0.0
    for _ in range(2):  # the first call pays for what is made once
        begin = time.perf_counter()
        match_weights(symmetry, few, target, **options)
        seconds = time.perf_counter() - begin
    compiled = takes_compiled(symmetry, few, target, options.get("impl"))
    each = working_bytes(symmetry, names, options.get("heads", "joint"), few.element_size(), compiled)
    total = seconds * models / max(1, len(few))
    return Cost(min(total, options.get("budget") or total), max(each, min(each * models, MEMORY)))
