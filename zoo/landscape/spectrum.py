"""The spectral density of the Hessian by stochastic Lanczos quadrature."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from zoo.architectures import Architecture
from zoo.landscape.chunks import OVERFLOW, Problem, check_count, check_positive, chunks, fitting, measured
from zoo.landscape.lanczos import eigen, tridiagonalise
from zoo.landscape.metric import Measured, Values
from zoo.landscape.probes import PROBE, check_seed, rademacher

ZERO = "the Hessian is zero: no curvature to have a sign"
GRID = 256  # points of a grid worked on at once


def hessian_spectrum(
    architecture: Architecture,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    loss_function: str,
    probes: int = 8,
    steps: int = 30,
    seed: int = 0,
) -> Measured:
    """Share of the curvature that is negative: sum of |eigenvalue| over the negative ones, divided by that over all.

    From 0 (convex) to 1 (concave), whatever the scale of the loss; a saddle of equal curvatures has 0.5. Each probe
    spends its mass on as many nodes as there are steps: the density's Gauss quadrature, exact for its first 2 * steps
    moments. Weights, x, y, loss_function and seed as for `hessian_trace`.

    Args:
        probes: random vectors, the same for every model of a variant.
        steps: Hessian-vector products a probe.

    Returns:
        The value; its standard error over the probes, by the linearised ratio of two means (NaN for one probe); columns
        hessian_spectrum_nodes and hessian_spectrum_weights, bytes of little-endian float64 for `decode`, probes * steps
        each, a probe after the other: places on the axis of eigenvalues, and the share of all eigenvalues there; the
        weights of a model sum to 1. A model whose Hessian is zero has no value.

    Raises:
        InvalidSpecError: probes or steps below 1.

    Source: Ghorbani, Krishnan and Xiao 2019, arXiv 1901.10159, section 2; Yao et al. 2020, PyHessian, arXiv 1912.07145,
        on stochastic Lanczos quadrature. Differs: Rademacher vectors as in the second; the nodes are kept, and
        broadening them is left to who draws them.
    """
    check_count("probes", probes)
    check_count("steps", steps)
    check_seed(seed)
    problem = Problem(architecture, x, y, loss_function)
    nodes, shares = np.empty((2, len(weights), probes, steps))
    together = max(min(probes, fitting(weights, steps + 4)), 1)
    for part in problem.chunks(weights, together * (steps + 4)):
        here = problem.surface(weights[part], part)
        for some in chunks(probes, together):
            drawn = rademacher(seed, PROBE, range(probes)[some], problem.parameters, weights)
            starts = (drawn / problem.parameters**0.5).expand(part.stop - part.start, -1, -1)
            diagonal, below = tridiagonalise(here, starts, steps, problem.parameters)
            values, vectors = eigen(diagonal.cpu().numpy(), below.cpu().numpy())
            nodes[part, some], shares[part, some] = values, vectors[..., 0, :] ** 2
    value, error = _negative_share(nodes, shares)
    missing = np.isnan(value)
    others: dict[str, Values] = {
        "hessian_spectrum_nodes": _encode(nodes, missing),
        "hessian_spectrum_weights": _encode(shares / probes, missing),
    }
    reasons = [ZERO if none else OVERFLOW for none in (nodes == 0).all((1, 2))]
    return measured(value, error, others, reasons)


def _negative_share(nodes: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and standard error, (models,) each, of quadratures (models, probes, steps)."""
    size = (shares * np.abs(nodes)).sum(-1)
    negative = (shares * np.maximum(-nodes, 0)).sum(-1)
    probes = nodes.shape[1]
    with np.errstate(invalid="ignore"):  # 0 / 0 of a zero Hessian
        value = negative.mean(1) / size.mean(1)
        if probes == 1:
            return value, np.full(len(nodes), np.nan)
        spread = (negative - value[:, None] * size).std(1, ddof=1)
        return value, spread / (probes**0.5 * size.mean(1))


def _encode(curves: np.ndarray, missing: np.ndarray) -> list[bytes]:
    """A curve a model; none where the value is missing."""
    return [b"" if none else curve.astype("<f8").tobytes() for curve, none in zip(curves, missing, strict=True)]


def decode(curve: bytes) -> np.ndarray:
    """A curve of a column, as float64.

    >>> decode(np.array([1.0, -2.0], "<f8").tobytes())
    array([ 1., -2.])
    """
    return np.frombuffer(curve, "<f8").astype(np.float64)


def density(nodes: np.ndarray, weights: np.ndarray, grid: np.ndarray, width: float) -> np.ndarray:
    """The density of eigenvalues at the points of a grid, (len(grid),), each node broadened to a Gaussian.

    Args:
        nodes, weights: (nodes,), from the columns of `hessian_spectrum`.
        width: standard deviation of the Gaussians, in units of the grid.

    Source: Ghorbani et al. 2019, section 2.

    >>> density(np.array([0.0]), np.array([1.0]), np.array([0.0, 1.0]), width=1.0).round(4).tolist()
    [0.3989, 0.242]
    """
    check_positive("width", width)
    found = np.empty(len(grid))
    for part in chunks(len(grid), GRID):
        away = (grid[part, None] - nodes) / width
        found[part] = np.exp(-0.5 * away**2) @ weights
    return found / (width * (2 * np.pi) ** 0.5)
