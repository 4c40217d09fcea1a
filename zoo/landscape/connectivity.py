"""Between two networks: Bezier curves of low loss, and the barrier on the straight line."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from catalog.errors import InvalidSpecError, unknown_name
from kernels.curves.recipe import Recipe, at
from kernels.curves.reference import reference
from kernels.losses import LOSSES
from zoo.architectures import Architecture
from zoo.evaluate import widest
from zoo.implementations import choose
from zoo.landscape.metric import Measured
from zoo.landscape.norms import FLOATS
from zoo.landscape.paths import Path, check_frame, check_points, measured, walk

DEFAULT = Recipe()


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
        value = getattr(recipe, name)
        if type(value) not in (int, float) or not 0 <= value < most:
            raise InvalidSpecError(f"{name} of a curve must be a number in [0, {most}), got {value!r}")
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
    path = _on_curve(architecture, weights, theta, partner, x, y, ts, loss_function)
    return path.errors, path.losses


def _on_curve(
    architecture: Architecture,
    weights: Tensor,
    theta: Tensor,
    partner: Tensor,
    x: Tensor,
    y: Tensor,
    ts: Sequence[float] | np.ndarray,
    loss_function: str,
    train_x: Tensor | None = None,
) -> Path:
    def point(part: slice, t: float) -> Tensor:
        return at(t, weights[part], theta[part], partner[part])

    return walk(architecture, point, len(weights), x, y, ts, loss_function, train_x)


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
    train_x: Tensor | None = None,
) -> Measured:
    """How far the error on a trained Bezier curve is from that at its ends, in percentage points of error.

    mc = (e(0) + e(1)) / 2 - e(t*), e the error in percent at evenly spaced t, t* where it is farthest from the mean of
    the ends. Below zero: a barrier; above: the ends are under-trained; near zero: connected. The ends are among the
    points, as published: where they differ by more than anything between them, mc is half their difference, positive if
    the first is better and negative otherwise (`mc_interior` leaves them out).

    How long a curve is trained is part of the definition: mc rises with the epochs, in narrow networks without end,
    since training a curve goes on where that of its ends stopped. Means on `phases_small` after 10, 50, 100 and 400
    epochs: width 4 -40, -22, -16, -10; width 8 -16, -4.9, -2.7, -0.2; width 32 -1.8, 0, 0.1, 0.2; another seed moves
    50 epochs by 0.7 in the mean, 0.07 from width 16 on. At rate 0.01, 50 epochs are less than 10 at 0.1.

    Args:
        weights, partner: (pairs, size). x: (samples, *input_shape). y: (samples,) or (pairs, samples) int64.
        epochs, learning_rate, momentum, weight_decay, batch_size, seed: see `kernels.curves.recipe.Recipe`.
        points: three or more, 0 and 1 among them.
        loss_function: that of the runs.
        train_x: inputs of the training split, for statistics of BatchNorm; None for `x`, which is then of that split.

    Returns:
        The value. Its standard error is that of the difference at t* over the samples, as if they were drawn anew and
        t* and the curve were not; the seed of the curve is not in it. Columns: mc_peak, (e(0) + e(1)) / 2 - max e(t);
        mc_t, t*; mc_interior, mc with t* not at the ends; mc_errors and mc_losses at the points.

    Raises:
        InvalidSpecError, UnknownNameError: settings that make no sense.

    Source: Yang et al. 2021, "Taxonomizing local versus global structure in neural network loss landscapes", section 2;
    mc_peak: Zhou et al. 2024, "MD tree". Epochs are those of Yang et al. (at rate 0.01); rate, batch and decay those of
    "A Model Zoo on Phase Transitions in Neural Networks", arXiv 2504.18072 (10 epochs).
    """
    check_points(points)
    recipe = Recipe(epochs, batch_size, learning_rate, momentum, weight_decay, seed, loss_function)
    theta = curve(architecture, weights, partner, x, y, recipe=recipe)
    ts, rows = np.linspace(0, 1, points), np.arange(len(weights))
    path = _on_curve(architecture, weights, theta, partner, x, y, ts, loss_function, train_x)
    far = np.abs(path.rise).argmax(1)
    inner = np.abs(path.rise[:, 1:-1]).argmax(1) + 1
    numbers = {"mc_peak": -path.rise.max(1), "mc_t": ts[far], "mc_interior": -path.rise[rows, inner]}
    curves = {"mc_errors": path.errors, "mc_losses": path.losses}
    return measured(path, -path.rise[rows, far], path.standard_error(far), numbers, curves)


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
    train_x: Tensor | None = None,
) -> Measured:
    """The highest error on the straight line less the mean of the ends, in percentage points of error.

    Never below 0: where nothing between is worse than the worse end, it is half the difference of the ends. BatchNorm
    is re-estimated at every point, the ends too.

    Args:
        weights, partner: (pairs, size). x: (samples, *input_shape). y: (samples,) or (pairs, samples) int64.
        points: evenly spaced, three or more, 0 and 1 among them.
        frame: name of the alignment that both were read in, see `weightscape align`; None for weights as they are.
        loss_function: that of the runs.
        train_x: inputs of the training split, for statistics of BatchNorm; None for `x`, which is then of that split.

    Returns:
        The value; its standard error is that of the difference at t over the samples. Columns: linear_barrier_t, where;
        linear_barrier_loss, the same of the loss, at its own highest point; linear_barrier_errors at the points.

    Raises:
        InvalidSpecError: settings that make no sense.

    Source: Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis", arXiv 1912.05671, section
    2. Differs: they take 30 points; statistics of BatchNorm are new ones, as in Jordan et al. 2022, "REPAIR", arXiv
    2211.08403.
    """
    check_points(points)
    check_frame(frame)
    ts = np.linspace(0, 1, points)

    def point(part: slice, t: float) -> Tensor:
        return (1 - t) * weights[part] + t * partner[part]

    path = walk(architecture, point, len(weights), x, y, ts, loss_function, train_x)
    top = path.rise.argmax(1)
    numbers = {"linear_barrier_t": ts[top], "linear_barrier_loss": path.climb.max(1)}
    curves = {"linear_barrier_errors": path.errors}
    return measured(path, path.rise.max(1), path.standard_error(top), numbers, curves)
