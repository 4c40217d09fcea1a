"""Solvers and guidance: known ends, orders as slopes, there and back, and identities."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from catalog.errors import UnknownNameError
from generators.flow.guidance import Velocity, velocity_of
from generators.flow.paths import PATHS
from generators.flow.solvers import SOLVERS, evaluations, integrate
from generators.recipe import CHOICES

FIXED = [name for name, solver in SOLVERS.items() if solver]


def counted(velocity: Velocity) -> tuple[Velocity, list[float]]:
    """The same velocity, and the times it was asked for."""
    times: list[float] = []

    def asked(x: Tensor, t: Tensor) -> Tensor:
        times.append(float(t))
        return velocity(x, t)

    return asked, times


def swing(x: Tensor, t: Tensor) -> Tensor:
    """dx/dt = x cos t, whose solution is x(t) = x(0) exp(sin t)."""
    return x * torch.cos(t)


def noise(batch: int = 6, width: int = 3) -> Tensor:
    return torch.randn(batch, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_every_choice_of_a_recipe_is_there() -> None:
    assert set(SOLVERS) == set(CHOICES["solver"])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 7])
def test_straight_paths_end_where_they_should(solver: str, steps: int) -> None:
    """The velocity of a linear path between two points is constant: any solver is exact in any number of steps."""
    x_0, x_1 = noise(), noise() ** 2
    end = integrate(lambda x, t: x_1 - x_0, x_0, solver, steps)
    torch.testing.assert_close(end, x_1)
    assert end.dtype == x_0.dtype


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("path", PATHS)
def test_gaussians_are_carried_to_gaussians(path: str, solver: str) -> None:
    """Between N(0, a^2) and N(m, b^2) the marginal velocity is known, and carries x_0 to m + b/a x_0."""
    of, a, m, b = PATHS[path], 0.7, torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64), 1.9

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        s, n, ds, dn = of.signal(t), of.noise(t), of.signal_rate(t), of.noise_rate(t)
        slope = (s * ds * b**2 + n * dn * a**2) / (s**2 * b**2 + n**2 * a**2)
        return ds * m + slope * (x - s * m)

    x_0 = a * noise(200)
    steps, allowed = {"euler": (2000, 1e-2), "midpoint": (200, 1e-3)}.get(solver, (60, 1e-4))
    end = integrate(velocity, x_0, solver, steps, 1e-7)
    # errors fall as 1/steps and 1/steps^2; values reach 10
    torch.testing.assert_close(end, m + b / a * x_0, rtol=0, atol=allowed)


@pytest.mark.parametrize("solver", FIXED)
@pytest.mark.parametrize(("t_0", "t_1"), [(0.0, 1.0), (1.0, 0.0), (0.25, 2.0)])
def test_order_is_the_slope_of_the_error(solver: str, t_0: float, t_1: float) -> None:
    x_0, counts = noise(), np.array([8, 16, 32, 64])
    end = x_0 * math.exp(math.sin(t_1) - math.sin(t_0))
    errors = [float((integrate(swing, x_0, solver, int(n), t_0=t_0, t_1=t_1) - end).norm()) for n in counts]
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    order = SOLVERS[solver].order  # type: ignore[union-attr]
    assert abs(slope + order) < 0.15, errors  # the next term of the error bends the line by 1/steps


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_adaptive_keeps_its_tolerance(tolerance: float) -> None:
    x_0, (velocity, times) = noise(), counted(swing)
    growth = math.exp(math.sin(1))
    end = integrate(velocity, x_0, "adaptive", tolerance=tolerance)
    # each step of six evaluations may err by tolerance (1 + |x|) in the mean over 3 coordinates, and errors grow as x
    allowed = len(times) / 6 * tolerance * (1 + float(end.abs().max())) * math.sqrt(3) * growth
    assert float((end - x_0 * growth).abs().max()) < allowed


def test_the_worst_sample_sets_the_adaptive_step() -> None:
    """Forty-nine easy samples do not hide the error of one: it is integrated as if alone."""
    x_0 = noise(50)
    x_0[1:] *= 1e-6
    together = integrate(swing, x_0, "adaptive", tolerance=1e-5)
    assert torch.equal(together[:1], integrate(swing, x_0[:1], "adaptive", tolerance=1e-5))


def test_a_smaller_tolerance_costs_more() -> None:
    counts = []
    for tolerance in (1e-2, 1e-8):
        velocity, times = counted(swing)
        integrate(velocity, noise(), "adaptive", tolerance=tolerance)
        counts.append(len(times))
    assert counts[0] < counts[1]


@pytest.mark.parametrize("solver", SOLVERS)
def test_there_and_back(solver: str) -> None:
    x_0 = noise()
    x_1 = integrate(swing, x_0, solver, 200, 1e-8)
    back = integrate(swing, x_1, solver, 200, 1e-8, t_0=1.0, t_1=0.0)
    # twice the error of one way, of Euler 1e-2 of values up to 3
    torch.testing.assert_close(back, x_0, rtol=0, atol=3e-2 if solver == "euler" else 1e-4)
    assert not torch.allclose(x_1, x_0, atol=0.1)


@pytest.mark.parametrize("solver", FIXED)
def test_evaluations_are_as_many_as_said(solver: str) -> None:
    velocity, times = counted(swing)
    integrate(velocity, noise(), solver, 5)
    assert len(times) == evaluations(solver, 5)
    assert min(times) == 0
    assert max(times) <= 1
    assert evaluations("adaptive", 5) is None


@pytest.mark.parametrize("solver", FIXED)
def test_a_sample_does_not_depend_on_the_others(solver: str) -> None:
    x_0 = noise()
    assert torch.equal(integrate(swing, x_0, solver, 5)[2:4], integrate(swing, x_0[2:4], solver, 5))


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_to_integrate(solver: str) -> None:
    assert integrate(swing, noise(0), solver, 5).shape == (0, 3)
    x_0 = noise()
    assert torch.equal(integrate(swing, x_0, solver, 5, t_0=0.5, t_1=0.5), x_0)


@pytest.mark.parametrize("call", [lambda: integrate(swing, noise(), "heun"), lambda: evaluations("heun", 1)])
def test_unknown_solver(call: Callable[[], object]) -> None:
    with pytest.raises(UnknownNameError, match="midpoint"):
        call()


class Sum(nn.Module):
    """A network whose velocity is told from its inputs: x + t + 10 * the sum of the condition."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        self.calls += 1
        assert t.shape == x.shape[:1]
        return x + t[:, None] + (0 if condition is None else 10 * condition.sum(1, keepdim=True))


@pytest.mark.parametrize(("guidance", "calls"), [(0.0, 1), (1.0, 1), (0.5, 2), (3.0, 2)])
@pytest.mark.parametrize("t", [0.25, torch.tensor(0.25), torch.full((6,), 0.25)])
def test_guidance_moves_from_unconditional_through_conditional(guidance: float, calls: int, t: Tensor | float) -> None:
    network, x, condition = Sum(), noise().float(), torch.arange(12.0).reshape(6, 2)
    guided = velocity_of(network, condition, guidance)(x, t)  # type: ignore[arg-type]
    assert network.calls == calls
    torch.testing.assert_close(guided, x + 0.25 + guidance * 10 * condition.sum(1, keepdim=True))


@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.0])
def test_without_a_condition_guidance_is_nothing(guidance: float) -> None:
    network, x = Sum(), noise()
    torch.testing.assert_close(velocity_of(network, None, guidance)(x, torch.tensor(0.5)), x + 0.5)
    assert network.calls == 1
