"""Slope and curvature of each model's loss: norm of the gradient, trace and largest eigenvalue of the Hessian.

All of the mean loss over the samples given, in eval mode, with respect to the parameters; buffers are constants.
Products of the Hessian with vectors are exact (no finite differences) and keep their sign.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from catalog.errors import InvalidSpecError, unknown_name
from kernels.curvature.surface import Surface
from kernels.curvature.trace import exact_trace, has_exact_trace
from zoo.architectures import Architecture
from zoo.landscape.chunks import Problem, check_count, check_positive, chunks, fitting, measured
from zoo.landscape.lanczos import largest, norms
from zoo.landscape.metric import Measured, Values
from zoo.landscape.probes import PROBE, SKETCH, check_seed, direction, rademacher

METHODS = ("auto", "exact", "hutch++", "hutchinson")


def gradient_norm(architecture: Architecture, weights: Tensor, x: Tensor, y: Tensor, *, loss_function: str) -> Measured:
    """Euclidean length of the gradient, in loss units per weight unit; exact. Arguments as for `hessian_trace`."""
    problem = Problem(architecture, x, y, loss_function)
    value = np.empty(len(weights))
    for part in problem.chunks(weights, 3):
        value[part] = norms(problem.surface(weights[part], part).gradients()).cpu().numpy()
    return measured(value)


def hessian_trace(
    architecture: Architecture,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    loss_function: str,
    method: str = "auto",
    probes: int = 100,
    seed: int = 0,
) -> Measured:
    """Trace of the Hessian, in loss units per squared weight unit.

    Args:
        weights: (models, size), finite.
        x: (samples, *input_shape) on the device of the weights.
        y: (samples,), or (models, samples) where each model has its own.
        loss_function: a name in `kernels.losses.LOSSES`.
        method: "hutchinson": the mean of v' H v over Rademacher vectors v. "hutch++": the exact trace on a subspace
            found by a third of the products, and Hutchinson's on what is orthogonal to it. "exact": without sampling,
            for networks that have such a way. "auto": exact where there is one, else hutchinson.
        probes: Hessian-vector products a model; the exact way needs none. Hutchinson's error falls as 1/sqrt(probes),
            that of Hutch++ as 1/probes. The probes are the same for every model; see `zoo.landscape.probes`.
        seed: of the probes.

    Returns:
        The value; its standard error, from the spread over the random probes (NaN for a single one; 0 if exact); column
        hessian_trace_method, what "auto" chose.

    Raises:
        InvalidSpecError: probes below 1 (3 for Hutch++), or no exact way for this architecture. UnknownNameError:
            another method.

    Source: Hutchinson 1990; Yao et al. 2020, PyHessian, arXiv 1912.07145, section 3. Differs: a fixed number of probes
        in place of a stopping rule, which stops early by chance. Hutch++: Meyer, Musco, Musco and Woodruff 2021, arXiv
        2010.09649, algorithm 1. Differs: products that are left over after thirds go to the last part.
    """
    if method not in METHODS:
        raise unknown_name("method of hessian_trace", method, METHODS)
    check_count("probes", probes, 3 if method == "hutch++" else 1)
    check_seed(seed)
    problem = Problem(architecture, x, y, loss_function)
    exact = has_exact_trace(problem.module)
    if method == "exact" and not exact:
        raise InvalidSpecError(f"there is no exact trace for {architecture.name}; use method 'hutchinson' or 'hutch++'")
    if method == "auto":
        method = "exact" if exact else "hutchinson"
    sketch = min(probes // 3, problem.parameters) if method == "hutch++" else 0
    value, error = np.empty(len(weights)), np.empty(len(weights))
    for part in problem.chunks(weights, 4 * sketch + 3):
        some, labels = weights[part], y if y.dim() == 1 else y[part]
        if method == "exact":
            trace = exact_trace(problem.module, some, x.to(some.dtype), labels, loss_function=loss_function)
            value[part], error[part] = trace.cpu().numpy(), 0
        else:
            here = problem.surface(some, part)
            value[part], error[part] = _estimate(here, some, problem.parameters, probes, sketch, seed)
    return measured(value, error, {"hessian_trace_method": [method] * len(weights)})


def _estimate(
    here: Surface, weights: Tensor, parameters: int, probes: int, sketch: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Trace and standard error of some models, from `probes` products; without a sketch by Hutchinson's estimator."""
    known, basis = torch.zeros(len(weights), dtype=torch.float64, device=weights.device), None
    if sketch:
        basis = _range(here, weights, parameters, sketch, seed)
        known = here.forms(basis).double().sum(1)
    forms = _forms(here, weights, parameters, probes - 2 * sketch, seed, basis).cpu().numpy()
    count = forms.shape[1]
    error = forms.std(1, ddof=1) / count**0.5 if count > 1 else np.full(len(forms), np.nan)
    return known.cpu().numpy() + forms.mean(1), error


def _forms(here: Surface, weights: Tensor, parameters: int, count: int, seed: int, basis: Tensor | None) -> Tensor:
    """v' H v of `count` Rademacher vectors, less their part in the span of a basis, (models, count) float64."""
    found = torch.empty(len(weights), count, dtype=torch.float64, device=weights.device)
    for part in chunks(count, fitting(weights, 3 * len(weights))):
        vectors = rademacher(seed, PROBE, range(count)[part], parameters, weights).expand(len(weights), -1, -1)
        if basis is not None:
            vectors = vectors - (vectors @ basis.mT) @ basis
        found[:, part] = here.forms(vectors).double()
    return found


def _range(here: Surface, weights: Tensor, parameters: int, sketch: int, seed: int) -> Tensor:
    """An orthonormal basis of the Hessian's action on random vectors, (models, sketch, size)."""
    drawn = rademacher(seed, SKETCH, range(sketch), parameters, weights)
    images = here.products(drawn.expand(len(weights), -1, -1))[..., :parameters]
    images = torch.where(images.isfinite().all(-1).all(-1)[:, None, None], images, 0)  # QR may refuse, the rest is NaN
    basis = weights.new_zeros(len(weights), sketch, weights.shape[1])
    basis[..., :parameters] = torch.linalg.qr(images.mT).Q.mT
    return basis


def hessian_top_eigenvalue(
    architecture: Architecture,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    loss_function: str,
    iterations: int = 100,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Measured:
    """The largest eigenvalue of the Hessian, in loss units per squared weight unit, by Lanczos iteration.

    Largest, not largest in magnitude: where negative curvature is stronger than positive, power iteration finds that.
    Weights, x, y and loss_function as for `hessian_trace`.

    Args:
        iterations: at most so many Hessian-vector products; one more measures the residual.
        tolerance: a model has converged when its residual is at most this times the eigenvalue, or rounding is all
            that is left. One that has not keeps its value, with its residual. With a loose one (0.03) a model was seen
            to stop at its second eigenvalue, 7 % below the first.
        seed: of the first vector, a uniformly random direction, the same for every model of a variant.

    Returns:
        The value, of no sampling error, and columns:
        hessian_top_eigenvalue_residual: |H v - value v| for the unit vector v found, in the units of the value. There
            is an eigenvalue that near; the error of the value is of the order of its square over the spectral gap.
        hessian_top_eigenvalue_iterations: steps used.
        hessian_lowest_ritz: the lowest eigenvalue of the Hessian in the space searched. The lowest of all is no higher.

    Raises:
        InvalidSpecError: iterations below 1, or a tolerance not above 0.

    Source: Yao et al. 2020, PyHessian, arXiv 1912.07145; its package has 100 iterations and the tolerance 1e-3.
        Differs: Lanczos for power iteration, the residual for the change between two iterations.
    """
    check_count("iterations", iterations)
    check_positive("tolerance", tolerance)
    check_seed(seed)
    problem = Problem(architecture, x, y, loss_function)
    found = np.empty((4, len(weights)))
    for part in problem.chunks(weights, 2 * iterations):
        start = direction(seed, problem.parameters, weights)
        models = torch.arange(part.start, part.stop, device=weights.device)

        def here(some: Tensor, models: Tensor = models) -> Surface:
            return problem.surface(weights[models[some]], models[some])

        found[:, part] = largest(here, start, len(models), iterations, tolerance, problem.parameters)
    value, residual, lowest, used = found
    others: dict[str, Values] = {
        "hessian_top_eigenvalue_residual": residual,
        "hessian_top_eigenvalue_iterations": used,
        "hessian_lowest_ritz": lowest,
    }
    return measured(value, None, others)
