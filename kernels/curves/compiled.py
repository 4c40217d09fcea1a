"""Middle points of curves by compiled code: one pair after the other, a step of its training kernel at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

import kernels.lanes.training
import kernels.mlp.training
from kernels.curves.recipe import ORDER_SITE, Recipe, shares
from kernels.learning import aligned
from kernels.mlp.network import MLP
from kernels.mlp.tiles import OPTIONS
from kernels.programs import Program, sources


def _advance(digest: str) -> Any:
    """The compiled program. `digest` is part of what its cache is found by."""

    def advance(
        start: np.ndarray, middle: np.ndarray, end: np.ndarray, velocity: np.ndarray, gradient: np.ndarray,
        phi: np.ndarray, keep: Any, share: Any, rate: Any, ahead: np.ndarray,
    ) -> None:  # fmt: skip
        """One step of SGD of the middle point, by the gradient at phi times its share there; then phi of the next step.

        All but `ahead`, the three shares of that step, are (size,), and scalars are of their type.
        """
        digest  # noqa: B018  # makes it a part of the function
        a, b, c = ahead[0], ahead[1], ahead[2]
        for i in range(len(phi)):  # two loops: LLVM makes no vector code of one that writes three arrays of six
            moved = keep * velocity[i] + share * gradient[i]
            velocity[i] = moved
            middle[i] -= rate * moved
        for i in range(len(phi)):
            phi[i] = a * start[i] + b * middle[i] + c * end[i]

    return advance


ADVANCE = Program(_advance, sources("curves/compiled.py", "mlp/tiles.py"), OPTIONS)


def compiled(network: Any, start: np.ndarray, end: np.ndarray, x: np.ndarray, y: np.ndarray, recipe: Recipe) -> Any:
    """As `kernels.curves.reference.reference`, of networks without buffers, in one thread of a CPU.

    Args:
        network: `kernels.mlp.network.MLP` or `kernels.lanes.network.Network`.
        start, end: (pairs, size), float32 or float64. x: (samples, *input_shape), of the same type.
        y: (samples,) or (pairs, samples) int64.

    Raises:
        ValueError: what does not fit.
    """
    training: Any = kernels.mlp.training if isinstance(network, MLP) else kernels.lanes.training
    x = x.reshape(len(x), -1) if isinstance(network, MLP) else x
    space = training.Workspace.of(network, recipe.batch(len(x)), start.dtype)
    labels = np.broadcast_to(y, (len(start), len(x)))
    # a step of SGD at rate 0 without momentum changes no weight, and leaves gradient and decay in its first average
    hyper = {"momentum": 0.0, "beta2": 0.0, "epsilon": 0.0, "weight_decay": recipe.weight_decay, "dropout": 0.0}
    theta = np.empty_like(start)
    for pair, ends in enumerate(zip(start, end, strict=True)):
        rows = (*ends, ends[0] / 2 + ends[1] / 2)
        first, last, model = (
            training.Model(space, row, "sgd", hyper, recipe.seed, x, labels[pair], len(x), ORDER_SITE, recipe.loss)
            for row in rows
        )
        with np.errstate(over="ignore", invalid="ignore"):  # of a pair that diverges
            _descend(first, last, model, recipe)
        theta[pair] = model.weights
    return theta


def _descend(start: Any, end: Any, model: Any, recipe: Recipe) -> None:
    """Train the middle point of one pair; the three come and go as models of the compiled code, in its own order."""
    own = model.learner
    phi, gradient, samples, kind = own.weights, own.first, len(own.inputs), own.weights.dtype.type
    middle, velocity = aligned(len(phi), phi.dtype), aligned(len(phi), phi.dtype)
    middle[:] = phi
    points, rates = recipe.points(samples), recipe.rates(samples).astype(phi.dtype)
    ahead = np.stack(shares(points), 1).astype(phi.dtype)
    keep, still = kind(recipe.momentum), np.zeros(1)
    ends = (start.learner.weights, middle, end.learner.weights)
    ADVANCE(*ends, velocity, gradient, phi, keep, kind(0), kind(0), ahead[0])
    for step in range(len(points)):
        if model.train(step, step + 1, still) >= 0:
            phi[:] = np.nan
            return
        following = ahead[min(step + 1, len(points) - 1)]
        ADVANCE(*ends, velocity, gradient, phi, keep, ahead[step, 1], rates[step], following)
    phi[:] = middle
