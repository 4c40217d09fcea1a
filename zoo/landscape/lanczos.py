"""Lanczos tridiagonalisation of the Hessians of many models at once, with full reorthogonalisation.

Vectors are of the type of the weights; inner products, norms and the small tridiagonal matrices are float64. With
vectors in float32, eigenvalues come out to about 1e-6 of the largest magnitude in the spectrum.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kernels.curvature.surface import Surface

STAY = 0.75  # share of a batch that still iterates below which the others leave it: a new batch costs about a product
AHEAD = (
    16  # basis vectors that there is room for at first: most models need fewer, and new pages cost as much as a product
)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products along the last axis, in float64."""
    return torch.linalg.vecdot(a.double(), b.double())


def norms(vectors: Tensor) -> Tensor:
    """Euclidean lengths along the last axis, in float64."""
    return torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)


def extend(here: Surface, basis: Tensor, below: Tensor, place: int) -> tuple[Tensor, Tensor, Tensor]:
    """One step: the product of the Hessian with basis vector `place`, made orthogonal to all vectors so far.

    Args:
        basis: (models, probes, steps, size), of which the vectors up to `place` are orthonormal (or zero).
        below: (models, probes, steps), entries below the diagonal of the steps before.

    Returns:
        diagonal, below: (models, probes) float64, entries of the tridiagonal matrix; rest (models, probes, size), the
        next vector times `below`.

    Source: Golub and Van Loan, "Matrix computations", section 10.3 in the 4th edition, on complete reorthogonalisation.
        The three-term recurrence is the first orthogonalisation, a pass of Gram-Schmidt over all vectors the second:
        twice is enough (Giraud, Langou and Rozloznik 2005).
    """
    vector, known = basis[:, :, place], basis[:, :, : place + 1]
    rest = here.products(vector)
    diagonal = inner(vector, rest)
    rest = rest - diagonal[..., None].to(rest.dtype) * vector
    if place:
        rest -= below[..., place - 1, None].to(rest.dtype) * basis[:, :, place - 1]
    rest -= ((known @ rest[..., None]).mT @ known)[..., 0, :]
    return diagonal, norms(rest), rest


def is_end(diagonal: Tensor, below: Tensor, parameters: int, dtype: torch.dtype) -> Tensor:
    """Whether what is left of the last product is rounding: the vectors so far span an invariant subspace.

    Args:
        diagonal, below: (..., steps), all entries so far.
    """
    scale = torch.maximum(diagonal.abs().amax(-1), below.abs().amax(-1))
    return below[..., -1] <= scale * torch.finfo(dtype).eps * parameters**0.5


def tridiagonalise(here: Surface, starts: Tensor, steps: int, parameters: int) -> tuple[Tensor, Tensor]:
    """The tridiagonal matrices of Krylov spaces.

    Args:
        starts: (models, probes, size), unit vectors.
        steps: of Lanczos, a product a probe each.

    Returns:
        diagonal, below: (models, probes, steps) float64. After the end of a space, zeros; the last of `below` is what
        the next step would have had.
    """
    models, probes, size = starts.shape
    basis = starts.new_zeros(models, probes, steps, size)
    diagonal = torch.zeros(models, probes, steps, dtype=torch.float64, device=starts.device)
    below = torch.zeros_like(diagonal)
    basis[:, :, 0] = starts
    for place in range(min(steps, parameters)):
        diagonal[..., place], below[..., place], rest = extend(here, basis, below, place)
        end = is_end(diagonal[..., : place + 1], below[..., : place + 1], parameters, starts.dtype)
        below[..., place].masked_fill_(end, 0)
        if place + 1 < steps:
            basis[:, :, place + 1] = unit(rest, below[..., place])
    return diagonal, below


def unit(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Vectors divided by their lengths, zero where the length is."""
    return vectors * torch.where(lengths == 0, 0, 1 / lengths)[..., None].to(vectors.dtype)


def largest(
    surface: Callable[[Tensor], Surface], start: Tensor, models: int, steps: int, tolerance: float, parameters: int
) -> np.ndarray:
    """The largest eigenvalue of each model's Hessian. Models that have converged leave the batch.

    Args:
        surface: the surface of some models, by their numbers, (some,) int64.
        start: (size,), a unit vector.
        tolerance: of the residual, relative to the eigenvalue.

    Returns:
        (4, models) float64: value, residual, lowest Ritz value, steps.
    """
    steps = min(steps, parameters)
    vectors = start.new_zeros(models, len(start))
    lowest, used = np.full(models, np.nan), np.zeros(models)
    numbers = torch.arange(models, device=start.device)  # of those in the batch
    waiting = np.ones(models, bool)  # which of these have not converged
    here, basis = surface(numbers), start.new_empty(models, 1, min(steps, AHEAD), len(start))
    diagonal = torch.zeros(models, 1, steps, dtype=torch.float64, device=start.device)
    below = torch.zeros_like(diagonal)
    basis[:, :, 0] = start
    for place in range(steps):
        diagonal[..., place], below[..., place], rest = extend(here, basis, below, place)
        end = is_end(diagonal[..., : place + 1], below[..., : place + 1], parameters, start.dtype)
        below[..., place].masked_fill_(end, 0)
        small = [entries[:, 0, : place + 1].cpu().numpy() for entries in (diagonal, below)]
        values, turns = eigen(*small)
        residual = small[1][:, -1] * np.abs(turns[:, -1, -1])
        goes_on = (residual > tolerance * np.abs(values[:, -1])) & (place + 1 < steps)  # false for what is not finite
        leaves = np.flatnonzero(waiting & ~goes_on)
        if len(leaves):
            turn = torch.from_numpy(turns[leaves, :, -1]).to(start)
            known = basis[torch.from_numpy(leaves).to(start.device), 0, : place + 1]
            outside = numbers.cpu().numpy()[leaves]
            vectors[numbers[torch.from_numpy(leaves).to(start.device)]] = (turn[:, None] @ known)[:, 0]
            lowest[outside], used[outside] = values[leaves, 0], place + 1
            waiting[leaves] = False
        if not waiting.any():
            break
        if place + 1 == basis.shape[2]:
            more = min(basis.shape[2], steps - basis.shape[2])
            basis = torch.cat([basis, basis.new_empty(len(basis), 1, more, len(start))], 2)
        basis[:, :, place + 1] = unit(rest, below[..., place])
        if waiting.mean() <= STAY:
            keep = torch.from_numpy(np.flatnonzero(waiting)).to(start.device)
            numbers, basis, diagonal, below = numbers[keep], basis[keep], diagonal[keep], below[keep]
            here, waiting = surface(numbers), np.ones(len(numbers), bool)
    images = surface(torch.arange(models, device=start.device)).products(vectors[:, None])[:, 0]
    value = inner(vectors, images) / inner(vectors, vectors)
    residual = norms(images - value[:, None] * vectors)
    return np.stack([value.cpu().numpy(), residual.cpu().numpy(), lowest, used])


def eigen(diagonal: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, (..., steps), and eigenvectors, (..., steps, steps), of tridiagonal matrices.

    NaN throughout for a matrix that is not finite.

    >>> values, vectors = eigen(np.array([[0.0, 0.0]]), np.array([[3.0, 9.0]]))
    >>> values.tolist()
    [[-3.0, 3.0]]
    """
    steps = diagonal.shape[-1]
    matrix = np.zeros((*diagonal.shape, steps))
    here = np.arange(steps)
    matrix[..., here, here] = diagonal
    matrix[..., here[1:], here[:-1]] = matrix[..., here[:-1], here[1:]] = below[..., :-1]
    finite = np.asarray(np.isfinite(matrix).all((-2, -1)))[..., None]
    values, vectors = np.linalg.eigh(np.where(finite[..., None], matrix, 0))
    return np.where(finite, values, np.nan), np.where(finite[..., None], vectors, np.nan)
