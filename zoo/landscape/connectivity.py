"""Between two networks: Bezier curves of low loss, and the barrier on the straight line."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from catalog.errors import InvalidSpecError, unknown_name
from kernels.curves.recipe import Recipe, at
from kernels.curves.reference import reference
from kernels.losses import LOSSES
from zoo.architectures import Architecture
from zoo.evaluate import evaluate
from zoo.implementations import choose
from zoo.landscape.metric import Measured
from zoo.landscape.norms import FLOATS, reestimate, widest

DEFAULT = Recipe()


@dataclass(frozen=True)
class Path:
    """What was found along a path between the networks of each pair.

    Args:
        errors: (pairs, points) percent of the samples misclassified, float64.
        losses: (pairs, points) float64.
        wrong: (pairs, points, ceil(samples / 8)) uint8, `zoo.evaluate.Evaluation.error_bits`.
        samples: how many.
    """

    errors: np.ndarray
    losses: np.ndarray
    wrong: np.ndarray
    samples: int


def curve(
    architecture: Architecture,
    weights: Tensor,
    partner: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    recipe: Recipe = DEFAULT,
    impl: str | None = None,
    threads: int | None = None,
) -> Tensor:
    """The middle control point of a Bezier curve between the networks of each pair, see `kernels.curves`.

    Args:
        weights, partner: (pairs, size). x: (samples, *input_shape). y: (samples,) or (pairs, samples) int64.
        impl: "compiled" for numba (MLPs and CNNs without norms on a CPU), "reference" for plain torch, None for the
            first that can.
        threads: parts of the pairs that compiled code works on at once, None for as many as torch uses.

    Returns:
        (pairs, size); parameters are NaN where a loss was not finite, buffers the mean of both ends.

    Raises:
        InvalidSpecError, UnknownNameError: a recipe that makes no sense; `impl` as for `zoo.train.train`.
    """
    _check(architecture, x, recipe)
    network = None if impl == "reference" else _compilable(architecture, weights, impl)
    theta = torch.empty_like(weights)

    def work(part: slice) -> None:
        labels = y if y.dim() == 1 else y[part]
        if network is None:
            module = architecture.build("meta")
            theta[part] = reference(module, weights[part], partner[part], x, labels, recipe)
        else:
            arrays = (weights[part].numpy(), partner[part].numpy(), x.numpy(), labels.numpy())
            from kernels.curves.compiled import compiled

            theta[part] = torch.from_numpy(compiled(network, *arrays, recipe))

    if network is None:
        held = 8 * architecture.layout.size + 4 * recipe.batch(len(x)) * widest(architecture)
        each = max(FLOATS // held, 1)
        for first in range(0, len(weights), each):
            work(slice(first, first + each))
        return theta
    parts = max(min(threads or torch.get_num_threads(), len(weights)), 1)
    ends = [len(weights) * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(work, (slice(a, b) for a, b in itertools.pairwise(ends))))
    return theta


def _check(architecture: Architecture, x: Tensor, recipe: Recipe) -> None:
    """Raise a typed error for a recipe that makes no sense."""
    for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
        value = getattr(recipe, name)
        if type(value) is not int or not least <= value < 2**63:
            raise InvalidSpecError(f"{name} of a curve must be an integer from {least}, got {value!r}")
    for name, most in (("learning_rate", math.inf), ("momentum", 1), ("weight_decay", math.inf)):
        if not 0 <= getattr(recipe, name) < most:
            raise InvalidSpecError(f"{name} of a curve must be in [0, {most}), got {getattr(recipe, name)!r}")
    if recipe.loss not in LOSSES:
        raise unknown_name("loss function", recipe.loss, LOSSES)
    if not len(x):
        raise InvalidSpecError("no samples to train a curve on; give one or more")
    if architecture.has_batch_norm and recipe.batch(len(x)) < 2:
        raise InvalidSpecError("BatchNorm needs batches of two samples or more to train a curve, got one")


def _compilable(architecture: Architecture, weights: Tensor, impl: str | None) -> object:
    """The network, if compiled code can train it; else None. As `zoo.train.train` chooses."""

    def network() -> object:
        import kernels.curves.compiled  # noqa: F401  # whether numba is there and fits this numpy
        from kernels.lanes.network import network_of
        from kernels.mlp.network import UnsupportedError, mlp_of

        module = architecture.build("meta")
        try:
            return mlp_of(module)
        except UnsupportedError:
            return network_of(module, architecture.input_shape)

    return choose(network, "train curves of", architecture, weights.device, weights.dtype, impl)


def along(
    architecture: Architecture,
    weights: Tensor,
    theta: Tensor,
    partner: Tensor,
    x: Tensor,
    y: Tensor,
    ts: Sequence[float] | np.ndarray,
    *,
    loss_function: str = "cross_entropy",
) -> tuple[np.ndarray, np.ndarray]:
    """Errors in percent and losses on the Bezier curve, (pairs, points) float64; BatchNorm re-estimated everywhere.

    Args:
        weights, theta, partner: (pairs, size): start, middle control point and end. ts: in [0, 1].
    """
    path = _walk(architecture, lambda part, t: at(t, weights[part], theta[part], partner[part]), len(weights), x, y, ts,
                 loss_function)  # fmt: skip
    return path.errors, path.losses


def _walk(
    architecture: Architecture,
    point: Callable[[slice, float], Tensor],
    pairs: int,
    x: Tensor,
    y: Tensor,
    ts: Sequence[float] | np.ndarray,
    loss_function: str,
) -> Path:
    """Evaluate `point(pairs, t)` (pairs, size) at each t, some pairs at a time."""
    errors, losses = np.empty((pairs, len(ts))), np.empty((pairs, len(ts)))
    wrong = np.empty((pairs, len(ts), -(-len(x) // 8)), np.uint8)
    each = max(FLOATS // architecture.layout.size, 1)
    for first in range(0, pairs, each):
        part = slice(first, min(first + each, pairs))
        labels = y if y.dim() == 1 else y[part]
        for number, t in enumerate(ts):
            phi = reestimate(architecture, point(part, float(t)), x)
            found = evaluate(architecture, phi, x, labels, loss_functions=loss_function)
            # counts, so that equal errors are equal numbers
            errors[part, number] = np.round((1 - found.accuracy) * len(x)) * 100 / len(x)
            losses[part, number], wrong[part, number] = found.loss, found.error_bits
    return Path(errors, losses, wrong, len(x))


def mode_connectivity(
    architecture: Architecture,
    weights: Tensor,
    partner: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = DEFAULT.epochs,
    learning_rate: float = DEFAULT.learning_rate,
    momentum: float = DEFAULT.momentum,
    weight_decay: float = DEFAULT.weight_decay,
    batch_size: int = DEFAULT.batch_size,
    seed: int = DEFAULT.seed,
    points: int = 5,
    loss_function: str = "cross_entropy",
) -> Measured:
    """How far the error on a trained Bezier curve is from that at its ends, in percentage points of error.

    mc = (e(0) + e(1)) / 2 - e(t*), e the error in percent at evenly spaced t, t* where it is farthest from the mean of
    the ends. Below zero: a barrier; above: the ends are under-trained; near zero: connected. The ends are among the
    points, as published: where they differ by more than anything between them, mc is half their difference, positive if
    the first is better and negative otherwise (`mc_interior` leaves them out).

    Args:
        weights, partner: (pairs, size). x: (samples, *input_shape). y: (samples,) or (pairs, samples) int64.
        epochs, learning_rate, momentum, weight_decay, batch_size, seed: see `kernels.curves.recipe.Recipe`.
        points: three or more, 0 and 1 among them.
        loss_function: that of the runs.

    Returns:
        The value. Its standard error is that of the difference at t* over the samples, as if they were drawn anew and
        t* and the curve were not; the seed of the curve is not in it. Columns: mc_peak, (e(0) + e(1)) / 2 - max e(t);
        mc_t, t*; mc_interior, mc with t* not at the ends; mc_errors and mc_losses at the points.

    Raises:
        InvalidSpecError, UnknownNameError: settings that make no sense.

    Source: Yang et al. 2021, "Taxonomizing local versus global structure in neural network loss landscapes", section 2
    (50 epochs, rate 0.01); mc_peak: Zhou et al. 2024, "MD tree". Here 5e-4 decay, the rate of PTMZ (arXiv 2504.18072).
    """
    if type(points) is not int or points < 3:
        raise InvalidSpecError(f"points on a curve must be an integer from 3, got {points!r}")
    recipe = Recipe(epochs, batch_size, learning_rate, momentum, weight_decay, seed, loss_function)
    theta = curve(architecture, weights, partner, x, y, recipe=recipe)
    ts = np.linspace(0, 1, points)
    path = _walk(architecture, lambda part, t: at(t, weights[part], theta[part], partner[part]), len(weights), x, y, ts,
                 loss_function)  # fmt: skip
    ends = (path.errors[:, 0] + path.errors[:, -1]) / 2
    rise = path.errors - ends[:, None]
    far = np.abs(rise).argmax(1)
    inner = np.abs(rise[:, 1:-1]).argmax(1) + 1
    rows = np.arange(len(weights))
    reasons = _reasons(theta.isfinite().all(1), path, "training the curve ended in a loss that is not finite")
    return _measured(
        ends - path.errors[rows, far],
        _difference(path, far),
        {
            "mc_peak": -rise.max(1),
            "mc_t": ts[far],
            "mc_interior": -rise[rows, inner],
            "mc_errors": _bytes(path.errors),
            "mc_losses": _bytes(path.losses),
        },
        reasons,
    )


def linear_barrier(
    architecture: Architecture,
    weights: Tensor,
    partner: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    points: int = 11,
    frame: str | None = None,
    loss_function: str = "cross_entropy",
) -> Measured:
    """The highest error on the straight line less the mean of the ends, in percentage points of error; 0 or more where
    the ends are equally good. BatchNorm is re-estimated at every point, the ends too.

    Args:
        weights, partner: (pairs, size). x: (samples, *input_shape). y: (samples,) or (pairs, samples) int64.
        points: evenly spaced, three or more, 0 and 1 among them.
        frame: name of the alignment that `partner` was given in; it is recorded and not applied here.
        loss_function: that of the runs.

    Returns:
        The value; its standard error is that of the difference at t over the samples. Columns: linear_barrier_t, where;
        linear_barrier_loss, the same of the loss, at its own highest point; linear_barrier_errors at the points.

    Raises:
        InvalidSpecError: settings that make no sense.

    Source: Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis", arXiv 1912.05671, section
    2. Differs: they take 30 points and train error or test error; statistics of BatchNorm are anew, as in Jordan et al.
    2022, "REPAIR", arXiv 2211.08403.
    """
    if type(points) is not int or points < 3:
        raise InvalidSpecError(f"points on a line must be an integer from 3, got {points!r}")
    check_frame(frame)
    ts = np.linspace(0, 1, points)
    path = _walk(architecture, lambda part, t: (1 - t) * weights[part] + t * partner[part], len(weights), x, y, ts,
                 loss_function)  # fmt: skip
    with np.errstate(invalid="ignore"):  # losses that overflow
        rise, climb = (values - (values[:, :1] + values[:, -1:]) / 2 for values in (path.errors, path.losses))
    top = rise.argmax(1)
    return _measured(
        rise.max(1),
        _difference(path, top),
        {
            "linear_barrier_t": ts[top],
            "linear_barrier_loss": climb.max(1),
            "linear_barrier_errors": _bytes(path.errors),
        },
        _reasons(torch.ones(len(weights), dtype=torch.bool), path, ""),
    )


def check_frame(frame: str | None) -> None:
    """Raise InvalidSpecError for what is no name of an alignment."""
    if frame is not None and (not isinstance(frame, str) or not frame):
        raise InvalidSpecError(
            f"frame must be the name of an alignment, or None for weights as they are; got {frame!r}"
        )


def _difference(path: Path, place: np.ndarray) -> np.ndarray:
    """Standard error of (e(0) + e(1)) / 2 - e(t) over the samples, paired, in percentage points; (pairs,)."""
    wrong = path.wrong[np.arange(len(place))[:, None], np.stack([0 * place, 0 * place - 1, place], 1)]
    first, last, here = np.moveaxis(np.unpackbits(wrong, axis=-1, count=path.samples).astype(np.int8), 1, 0)
    if path.samples < 2:
        return np.full(len(place), math.nan)
    return np.asarray(50 * (first + last - 2 * here).std(1, ddof=1) / math.sqrt(path.samples))


def _reasons(finite: Tensor, path: Path, otherwise: str) -> list[str]:
    """Why a pair has no value, "" where it has one."""
    lost = np.where(np.isfinite(path.losses).all(1), "", "the loss on the path is not finite")
    return [str(why) for why in np.where(finite.cpu().numpy(), lost, otherwise)]


def _measured(
    value: np.ndarray, error: np.ndarray, others: dict[str, np.ndarray | list[bytes]], reasons: list[str]
) -> Measured:
    """NaN where there is a reason."""
    bad = np.array([bool(reason) for reason in reasons], bool)
    numbers = {k: np.where(bad, math.nan, v) if isinstance(v, np.ndarray) else v for k, v in others.items()}
    return Measured(
        np.where(bad, math.nan, value), np.where(bad, math.nan, error), numbers, reasons if bad.any() else None
    )


def _bytes(values: np.ndarray) -> list[bytes]:
    """Each row as little-endian float64."""
    return [row.tobytes() for row in values.astype("<f8")]
