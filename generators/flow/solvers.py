"""Following a velocity from noise to data, or back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from catalog.errors import unknown_name
from generators.flow.guidance import Velocity

Step = Callable[[Velocity, Tensor, float, float], Tensor]


@dataclass(frozen=True)
class Solver:
    """A fixed-step solver: step(velocity, x, t, h) -> x at t + h; error in h^order; evaluations of each step."""

    step: Step
    order: int
    evaluations: int


def euler(velocity: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    return x + h * velocity(x, _at(t, x))


def midpoint(velocity: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    half = x + 0.5 * h * velocity(x, _at(t, x))
    return x + h * velocity(half, _at(t + 0.5 * h, x))


def rk4(velocity: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    """The classical Runge-Kutta method; torchdiffeq's "rk4" is the 3/8 rule, of the same order."""
    middle = _at(t + 0.5 * h, x)
    k_1 = velocity(x, _at(t, x))
    k_2 = velocity(x + 0.5 * h * k_1, middle)
    k_3 = velocity(x + 0.5 * h * k_2, middle)
    k_4 = velocity(x + h * k_3, _at(t + h, x))
    return x + h / 6 * (k_1 + 2 * (k_2 + k_3) + k_4)


def _at(t: float, x: Tensor) -> Tensor:
    return torch.tensor(t, dtype=x.dtype, device=x.device)


SOLVERS: dict[str, Solver | None] = {
    "euler": Solver(euler, 1, 1),
    "midpoint": Solver(midpoint, 2, 2),
    "rk4": Solver(rk4, 4, 4),
    "adaptive": None,  # Dormand and Prince's of order 5, by torchdiffeq
}


def integrate(
    velocity: Velocity,
    x_0: Tensor,
    solver: str = "midpoint",
    steps: int = 32,
    tolerance: float = 1e-4,
    t_0: float = 0.0,
    t_1: float = 1.0,
) -> Tensor:
    """x at t_1 of dx/dt = velocity(x, t) that starts from x_0 at t_0; t_1 below t_0 goes backwards.

    Args:
        velocity: (x (batch, width), t a scalar tensor) -> (batch, width).
        x_0: (batch, width). steps: of the fixed solvers, all of one length. tolerance: of "adaptive", relative and
            absolute, kept for each sample by the worst of the batch. Its steps are common to the batch, so which
            samples are integrated together changes a result within the tolerance; fixed steps are not changed.

    Raises:
        UnknownNameError: a solver that is not in `SOLVERS`.

    Source: fixed steps, Hairer, Norsett and Wanner, "Solving ordinary differential equations I", section II.1.
    """
    if solver not in SOLVERS:
        raise unknown_name("solver", solver, SOLVERS)
    fixed = SOLVERS[solver]
    if fixed is None:
        return _adaptive(velocity, x_0, tolerance, t_0, t_1)
    x, h = x_0, (t_1 - t_0) / steps
    for number in range(steps):
        x = fixed.step(velocity, x, t_0 + number * h, h)
    return x


def evaluations(solver: str, steps: int) -> int | None:
    """How often `integrate` calls the velocity; None for "adaptive", which is known afterwards only."""
    if solver not in SOLVERS:
        raise unknown_name("solver", solver, SOLVERS)
    fixed = SOLVERS[solver]
    return None if fixed is None else steps * fixed.evaluations


def _adaptive(velocity: Velocity, x_0: Tensor, tolerance: float, t_0: float, t_1: float) -> Tensor:
    import torchdiffeq

    if t_0 == t_1 or not x_0.numel():
        return x_0
    ends = torch.tensor([t_0, t_1], dtype=x_0.dtype, device=x_0.device)
    path: Tensor = torchdiffeq.odeint(
        lambda t, x: velocity(x, t),
        x_0,
        ends,
        rtol=tolerance,
        atol=tolerance,
        method="dopri5",
        options={"norm": _worst},
    )
    return path[-1]


def _worst(error: Tensor) -> Tensor:
    """The largest root mean square of a sample's error: over the whole batch the good ones would hide the bad."""
    return error.square().mean(-1).sqrt().max()
