"""Random vectors to probe a Hessian with: the same for every model of a variant, whatever is drawn beside them.

Common random numbers: the errors of two models with one seed are correlated, so that a difference between them is more
certain than their standard errors say, and an average over models less. Another seed draws anew.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from catalog.errors import InvalidSpecError
from kernels.random import normal, words

PROBE, SKETCH, START = 5, 6, 7  # sites of the random streams


def rademacher(seed: int, site: int, rows: range, parameters: int, like: Tensor) -> Tensor:
    """Vectors of -1 and 1, (rows, size), of the type and on the device of `like` (..., size); 0 for buffers."""
    key = torch.full((len(rows),), seed, dtype=torch.int64, device=like.device)
    steps = torch.tensor(rows, dtype=torch.int64, device=like.device)
    drawn = words(key, site, steps, count=-(-parameters // 32))
    bits = (drawn[..., None] >> torch.arange(32, device=like.device)) & 1
    vectors = like.new_zeros(len(rows), like.shape[-1])
    vectors[:, :parameters] = (2 * bits - 1).flatten(1)[:, :parameters]
    return vectors


def direction(seed: int, parameters: int, like: Tensor) -> Tensor:
    """A uniformly random unit vector, (size,), as above."""
    drawn = normal(np.array([seed]), START, count=parameters)[0]
    vector = like.new_zeros(like.shape[-1])
    vector[:parameters] = torch.from_numpy(drawn / np.linalg.norm(drawn)).to(like)
    return vector


def check_seed(seed: object) -> None:
    """Raise InvalidSpecError unless it is a whole number of 63 bits."""
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise InvalidSpecError(f"seed must be a whole number from 0 to 2**63 - 1, got {seed!r}")
