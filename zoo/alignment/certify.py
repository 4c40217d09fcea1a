"""Whether networks compute the same when their units are moved."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from kernels.population import forward
from weightspace.symmetry import Symmetry
from zoo.architectures import Architecture

PROBES = 64  # inputs on which outputs are compared
CERTIFICATE = 1e-9  # the largest relative difference of outputs in float64 that reordering sums can make, and room
BYTES = 1 << 28  # of the weights that are compared at once, and their activations, roughly


def certify(
    architecture: Architecture,
    symmetry: Symmetry,
    weights: np.ndarray,
    permutations: Mapping[str, np.ndarray],
    scales: Mapping[str, np.ndarray] | None = None,
    *,
    seed: int = 0,
) -> np.ndarray:
    """(models,) largest difference of outputs before and after, relative to the largest output, in float64.

    Inputs are standard normal, `PROBES` of them: no data set is needed. NaN where outputs are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(PROBES, *architecture.input_shape, dtype=torch.float64, generator=generator)
    module, together = architecture.build("meta"), max(BYTES // (64 * symmetry.layout.size), 1)
    found = []
    for first in range(0, len(weights), together):
        part = slice(first, first + together)
        raw = weights[part].astype(np.float64)
        moved = symmetry.scale(raw, {name: s[part] for name, s in scales.items()}) if scales else raw
        moved = symmetry.permute(moved, symmetry.pick(permutations, part))
        with torch.inference_mode():
            before, after = (
                forward(module, architecture.layout.unflatten(torch.from_numpy(w)), x, shared=True).flatten(1)
                for w in (raw, moved)
            )
        largest = before.abs().amax(1)
        found.append(((after - before).abs().amax(1) / largest.where(largest > 0, torch.ones_like(largest))).numpy())
    return np.concatenate(found) if found else np.empty(0)
