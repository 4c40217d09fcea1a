"""Principal components of a population by its Gram matrix, and how many of them hold for networks not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from catalog.errors import GeneratorError
from generators.moments import Standard, gram, second_moment
from generators.population import Population

TOLERANCE = 0.01  # of the held-out variance: components that add less than this in all are left out
RANK = 1e-10  # of the largest eigenvalue: what lies below is rounding, not a direction


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


def principal(population: Population, standard: Standard, components: int, memory: int) -> Components:
    """Fit components to the training split; 0 chooses how many by the validation split.

    With fewer parameters than networks from their covariance, else from the Gram matrix of the networks, whose
    eigenvectors U with roots S of its eigenvalues give the components X' U / S.

    Raises:
        GeneratorError: more components than the training split has directions.

    Source: DeepWeightFlow, arXiv 2601.05052, section on incremental PCA, which keeps N - 1 components of N models: a
    re-encoding of the training set. Differs: float64 sums; their number by held-out networks, see `choose`.
    """
    rows, wide = len(population.split("train")), len(standard.places)
    if wide <= rows:
        found, reads = np.linalg.eigh(second_moment(population, standard, "train")), 1.0
        values, vectors = _descending(*found)
        held = second_moment(population, standard, "validation")
        energy, gains = float(np.trace(held)), np.einsum("pk,pq,qk->k", vectors, held, vectors, optimize=True)
    else:
        inner, outer, lengths, reads = gram(population, standard, memory)
        values, vectors = _descending(*np.linalg.eigh(inner / rows))
        energy = float(lengths.mean())
        gains = np.square(outer @ (vectors / np.sqrt(values * rows))).mean(axis=0)
    if not len(values):
        raise GeneratorError("all networks of the training split are equal: there are no components to find")
    # all N - 1 components of N networks describe each of them exactly and say nothing of others
    most = len(values) if len(values) < rows - 1 else max(1, rows - 2)
    residuals = np.clip(1 - np.cumsum(gains) / max(energy, 1e-300), 0, None)
    number = components or choose(residuals[:most])
    if number > len(values):
        raise GeneratorError(
            f"the {rows} networks of the training split have {len(values)} directions, got components={components}"
        )
    values, vectors = values[:number], vectors[:, :number]
    basis = vectors.T.copy() if wide <= rows else _project(population, standard, vectors / np.sqrt(values * rows))
    total = float(np.trace(inner) / rows) if wide > rows else float(found[0].sum())
    report = {
        "components": number,
        "chosen": not components,
        "most": most,
        "tolerance": TOLERANCE,
        "held_out_residual": residuals.tolist(),
        "explained_variance": (values / max(total, 1e-300)).tolist(),
        "reads_of_training": reads + (wide > rows),
    }
    return Components(_signed(basis).astype(np.float32), np.sqrt(values).astype(np.float32), report)


def choose(residuals: np.ndarray) -> int:
    """The smallest number of components whose held-out residual is within `TOLERANCE` of the best.

    Args:
        residuals: (most,), of 1, 2, ... components: share of the squared distance of held-out networks from the
            training mean that they leave.

    >>> choose(np.array([0.5, 0.2, 0.105, 0.1, 0.099]))
    3
    """
    return int(np.argmax(residuals <= residuals.min() + TOLERANCE)) + 1


def _descending(values: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors, the largest first, those of rounding left out."""
    keep = values > RANK * max(float(values[-1]), 0.0) if len(values) else np.zeros(0, bool)
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
