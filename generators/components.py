"""Principal components of a population by its Gram matrix, and how many of them hold for networks not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from catalog.errors import GeneratorError
from generators.moments import Standard, gram, second_moment
from generators.population import Population

TOLERANCE = 0.01  # of the held-out variance: components that add less than this in all are left out
RANK = 1e-10  # of the largest eigenvalue: directions below are not orthogonal to float32 any more


@dataclass(frozen=True)
class Components:
    """Directions of the largest variance of scaled parameters.

    Args:
        basis: (components, parameters) float32, orthonormal rows. spread: (components,) deviations of training codes.
        report: JSON.
    """

    basis: np.ndarray
    spread: np.ndarray
    report: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """All directions, before some are chosen.

    Args:
        values: (most,) variances, the largest first. total: their sum, with those left out.
        weights: (train, most) what the training split is summed with to give the directions, or (parameters, most) the
            directions.
        codes: (validation, most) of networks held out. lengths: (validation,) their squared distances from the mean.
        reads: how often the training split was read.
    """

    values: np.ndarray
    total: float
    weights: np.ndarray
    codes: np.ndarray
    lengths: np.ndarray
    reads: float


def principal(population: Population, standard: Standard, components: int, memory: int) -> Components:
    """Fit components to the training split; 0 chooses how many by the validation split, see `choose`.

    With fewer parameters than networks from their covariance; else from the Gram matrix of the networks, whose
    eigenvectors U with the roots S of its eigenvalues give the components X' U / S.

    Raises:
        GeneratorError: more components than the training split has directions; none to choose by.

    Source: DeepWeightFlow, arXiv 2601.05052, which keeps N - 1 components of N models: a re-encoding of the training
        set. Differs: sums in float64, and as many components as hold for networks not seen.
    """
    rows = len(population.split("train"))
    by_parameters = len(standard.places) <= rows
    found = _by_parameters(population, standard) if by_parameters else _by_networks(population, standard, memory)
    if components > len(found.values):
        raise GeneratorError(
            f"the {rows} networks of the training split have {len(found.values)} directions, got "
            f"components={components}"
        )
    if not components and not len(found.codes):
        raise GeneratorError("components are chosen by a validation split, and this population has none")
    # all N - 1 components of N networks describe each of them exactly and say nothing of others
    most = len(found.values) if len(found.values) < rows - 1 else max(1, rows - 2)
    runs = population.split("validation")["run"].to_numpy()
    curve, slack = held_out(found.codes, found.lengths, runs)
    number = components or choose(curve[:most], slack[:most])
    weights = found.weights[:, :number]
    basis = weights.T.copy() if by_parameters else _project(population, standard, weights)
    report = {
        "components": number,
        "chosen": not components,
        "most": most,
        "tolerance": TOLERANCE,
        "held_out_residual": curve.tolist(),
        "held_out_residual_se": slack.tolist(),
        "explained_variance": (found.values / found.total).tolist(),
        "reads_of_training": found.reads + (not by_parameters),
    }
    spread = np.sqrt(found.values[:number]).astype(np.float32)
    return Components(_signed(basis).astype(np.float32), spread, report)


def held_out(codes: np.ndarray, lengths: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the squared distance from the training mean that 1, 2, ... components leave of held-out networks.

    Args:
        codes: (networks, most), coordinates on orthonormal directions. lengths: (networks,) squared distances.
        runs: (networks,) lineage of each, over which the standard error is taken; 0 with one lineage.

    Returns:
        the share (most,), and its standard error.
    """
    left = np.clip(lengths[:, None] - np.cumsum(np.square(codes), axis=1), 0, None)
    names, which = np.unique(runs, return_inverse=True)
    each = np.zeros((len(names), codes.shape[1]))
    np.add.at(each, which, left)
    each /= np.bincount(which, minlength=len(names))[:, None]
    whole = max(float(lengths.mean()) if len(lengths) else 0.0, 1e-300)
    spread = each.std(axis=0, ddof=1) if len(names) > 1 else np.zeros(codes.shape[1])
    return left.sum(axis=0) / max(len(left), 1) / whole, spread / max(len(names), 1) ** 0.5 / whole


def choose(residuals: np.ndarray, errors: np.ndarray) -> int:
    """The smallest number of components that leaves hardly more of held-out networks than the best number.

    Hardly more: within one standard error of the best, and at least within `TOLERANCE`. Components that only describe
    the training split change the residual of others little, and so are left out.

    Args:
        residuals, errors: (most,), of 1, 2, ... components, see `held_out`.

    Source: the one-standard-error rule, Breiman et al. 1984, "Classification and regression trees", section 3.4.3.

    >>> choose(np.array([0.5, 0.2, 0.105, 0.1, 0.099]), np.zeros(5))
    3
    """
    best = int(np.argmin(residuals))
    return int(np.argmax(residuals <= residuals[best] + max(TOLERANCE, errors[best]))) + 1


def _by_networks(population: Population, standard: Standard, memory: int) -> Found:
    products, rows = gram(population, standard, memory), len(population.split("train"))
    values, vectors = _descending(*np.linalg.eigh(products.train / rows))
    weights = vectors / np.sqrt(values * rows)
    total = float(np.trace(products.train)) / rows
    return Found(values, total, weights, products.validation @ weights, products.lengths, products.reads)


def _by_parameters(population: Population, standard: Standard) -> Found:
    covariance = second_moment(population, standard)
    values, vectors = _descending(*np.linalg.eigh(covariance))
    codes, lengths = [np.empty((0, len(values)))], [np.empty(0)]
    for some in population.batches("validation"):
        for part in standard.rows(some):
            codes.append(part @ vectors)
            lengths.append(np.square(part).sum(axis=1))
    total = float(np.trace(covariance))
    return Found(values, total, vectors, np.concatenate(codes), np.concatenate(lengths), 1.0)


def _descending(values: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors, the largest first, those of rounding left out."""
    keep = values > RANK * values[-1]
    return values[keep][::-1], vectors[:, keep][:, ::-1]


def _project(population: Population, standard: Standard, weights: np.ndarray) -> np.ndarray:
    """weights' @ scaled parameters of the training split, (components, parameters) float64, in one pass."""
    out, first = np.zeros((weights.shape[1], len(standard.places))), 0
    for some in population.batches("train"):
        mine = weights[first : first + len(some)].T
        for here, (x,) in standard.parts(some):
            out[:, here] += mine @ x
        first += len(some)
    return out


def _signed(basis: np.ndarray) -> np.ndarray:
    """Rows whose largest element is positive: eigenvectors come with either sign."""
    largest = basis[np.arange(len(basis)), np.abs(basis).argmax(axis=1)]
    return basis * np.where(largest < 0, -1.0, 1.0)[:, None]
