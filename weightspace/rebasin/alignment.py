"""What every alignment gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


class AlignmentError(ValueError):
    """Weights that cannot be aligned: not finite, of another layout, or of an architecture without symmetry."""


@dataclass(frozen=True)
class Alignment:
    """Permutations of a population, and what they were worth.

    Canonical weights are `symmetry.permute(symmetry.scale(weights, scales), permutations)`.

    Args:
        permutations: group -> (models, ...) integers, as `Symmetry.permute` takes them.
        before, after: (models,) float64, the objective: the inner product of reference and model, scaled, before and
            after they are moved, over all tensors that the symmetry moves.
        sweeps: (models,) int64, passes over all groups.
        scales: group -> (models, ...), as `Symmetry.scale` takes them; empty for none.
        universe: (size,) what they are aligned to.
        finished: (models,) whether nothing improved any more; False where sweeps or time ran out.
    """

    permutations: Mapping[str, np.ndarray]
    before: np.ndarray
    after: np.ndarray
    sweeps: np.ndarray
    universe: np.ndarray
    finished: np.ndarray
    scales: Mapping[str, np.ndarray] = field(default_factory=dict)
