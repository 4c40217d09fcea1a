"""Paths, times, noise and pairs: ends, derivatives, moments, and the same numbers whatever else is drawn."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.optimize import linear_sum_assignment

from catalog.errors import UnknownNameError
from generators.flow.coupling import COUPLINGS, couple
from generators.flow.paths import PATHS
from generators.flow.source import Source, make_source
from generators.flow.times import draw_times
from generators.recipe import CHOICES, FlowRecipe


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_choice_of_a_recipe_is_there() -> None:
    assert set(PATHS) == set(CHOICES["path"])
    assert set(COUPLINGS) == set(CHOICES["coupling"])


@pytest.mark.parametrize("name", PATHS)
def test_a_path_goes_from_noise_to_data(name: str) -> None:
    x_0, x_1 = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator())
    for t, end in ((0.0, x_0), (1.0, x_1)):
        x_t, _ = PATHS[name].between(x_0, x_1, torch.full((5,), t, dtype=torch.float64))
        torch.testing.assert_close(x_t, end)


@pytest.mark.parametrize("name", PATHS)
def test_the_target_is_the_derivative_of_the_path(name: str) -> None:
    x_0, x_1 = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator())
    t, h, path = torch.linspace(0.1, 0.9, 5, dtype=torch.float64), 1e-4, PATHS[name]
    rate = (path.between(x_0, x_1, t + h)[0] - path.between(x_0, x_1, t - h)[0]) / (2 * h)
    torch.testing.assert_close(path.between(x_0, x_1, t)[1], rate, rtol=0, atol=1e-7)  # h^2 of third derivatives


def test_variance_is_preserved() -> None:
    t, path = torch.linspace(0, 1, 9, dtype=torch.float64), PATHS["variance_preserving"]
    torch.testing.assert_close(path.signal(t) ** 2 + path.noise(t) ** 2, torch.ones_like(t))


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 5.0), (0.5, 0.7), (30.0, 1.0)])
def test_times_are_beta(alpha: float, beta: float) -> None:
    t = draw_times(FlowRecipe(times="beta", alpha=alpha, beta=beta), 20_000, generator())
    truth = scipy.stats.beta(alpha, beta)
    assert scipy.stats.kstest(t.numpy(), truth.cdf).pvalue > 0.01  # of a fixed seed: it passes always or never
    error = truth.std() / len(t) ** 0.5
    assert abs(t.mean() - truth.mean()) < 4 * error
    assert abs(t.var() / truth.var() - 1) < 0.06  # 4 standard errors of a variance are at most .057 of these


@pytest.mark.parametrize(
    "recipe",
    [
        FlowRecipe(),
        FlowRecipe(times="beta"),
        FlowRecipe(times="beta", alpha=1e-3, beta=1e-3),
        FlowRecipe(times="beta", alpha=1e3),
    ],
)
def test_times_are_between_and_of_the_generator_alone(recipe: FlowRecipe) -> None:
    t = draw_times(recipe, 1000, generator(3))
    torch.manual_seed(5)
    assert torch.equal(t, draw_times(recipe, 1000, generator(3)))
    assert not torch.equal(t, draw_times(recipe, 1000, generator(4)))
    assert t.dtype == torch.float32
    assert 0 < t.min() < t.max() < 1


def test_samples_begin_from_their_own_noise() -> None:
    source = make_source(FlowRecipe(source_scale=2.0, pool=3), torch.ones(40), seed=1)
    together = source.at(np.arange(2000), 7)
    assert together.dtype == torch.float32
    assert torch.equal(together[[5, 1999, 0]], source.at(np.array([5, 1999, 0]), 7))
    assert not torch.equal(together[:3], source.at(np.arange(3), 8))
    assert scipy.stats.kstest(together.numpy().ravel() / 2, "norm").pvalue > 0.01
    correlations = np.corrcoef(together.numpy().T) - np.eye(40)
    assert abs(correlations).max() < 5 / len(together) ** 0.5


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_noise_does_not_depend_on_how_much_is_drawn_at_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(torch.ones(10))
    whole = source.at(np.arange(25), 0)
    monkeypatch.setattr("generators.flow.source.TOGETHER", 10 * rows)
    assert torch.equal(source.at(np.arange(25), 0), whole)


def test_scale_of_the_noise() -> None:
    spread = torch.tensor([0.5, 1.0, 4.0])
    fixed = make_source(FlowRecipe(source_scale=0.1), spread, 0)
    matched = make_source(FlowRecipe(source_scale=0.1, source="matched"), spread, 0)
    torch.testing.assert_close(fixed.scale, torch.full((3,), 0.1))
    torch.testing.assert_close(matched.scale, 0.1 * spread)
    for source in (fixed, matched):
        drawn = source.draw(20_000, generator())
        torch.testing.assert_close(drawn.std(0), source.scale, rtol=0.02, atol=0)  # 4 standard errors of a deviation
        torch.testing.assert_close(source.at(np.arange(20_000), 3).std(0), source.scale, rtol=0.02, atol=0)


def test_a_pool_is_drawn_again_and_again() -> None:
    recipe = FlowRecipe(pool=7, source="matched", source_scale=0.5)
    source = make_source(recipe, torch.full((4,), 3.0), seed=2)
    assert source.pool is not None
    drawn = source.draw(200, generator())
    assert torch.equal(drawn.unique(dim=0), source.pool.unique(dim=0))
    assert torch.equal(make_source(recipe, torch.full((4,), 3.0), seed=2).draw(200, generator()), drawn)
    assert not torch.isin(make_source(recipe, torch.full((4,), 3.0), seed=3).pool, source.pool).any()  # type: ignore[arg-type]
    assert not torch.isin(source.at(np.arange(7), 2), source.pool).any()  # sampling draws new ones
    pool = make_source(dataclasses.replace(recipe, pool=5000), torch.full((4,), 3.0), seed=2).pool
    assert pool is not None
    torch.testing.assert_close(pool.std(0), torch.full((4,), 1.5), rtol=0.04, atol=0)  # 4 standard errors


@pytest.mark.parametrize("kind", COUPLINGS)
@pytest.mark.parametrize("batch", [1, 2, 40])
def test_coupling_rearranges(kind: str, batch: int) -> None:
    x_0, x_1 = torch.randn(2, batch, 6, generator=generator(batch))
    paired = couple(x_0, x_1, kind)
    assert torch.equal(paired.unique(dim=0), x_0.unique(dim=0))
    assert (paired - x_1).square().sum() <= (x_0 - x_1).square().sum() * (1 + 1e-6)  # rounding of float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_optimal_transport_equals_scipy(dtype: torch.dtype) -> None:
    x_0, x_1 = torch.randn(2, 64, 5, generator=generator(), dtype=dtype)
    x_1 = 3 * x_1 + 20  # far from the noise: products alone are large, their differences small
    distances = torch.cdist(x_1.double(), x_0.double()).square().numpy()
    rows, columns = linear_sum_assignment(distances)
    assert torch.equal(couple(x_0, x_1, "optimal_transport"), x_0[columns])
    assert distances[rows, columns].sum() < distances.trace()


def test_noise_does_not_tell_the_class() -> None:
    """Within each class the pairs are optimal, and no noise goes to another class."""
    x_0, x_1 = torch.randn(2, 60, 5, generator=generator())
    classes = torch.arange(60) % 3
    x_1 = x_1 + 4 * classes[:, None]
    given = torch.cat((torch.nn.functional.one_hot(classes), torch.ones(60, 1)), 1)
    paired = couple(x_0, x_1, "optimal_transport", given)
    for number in range(3):
        here = classes == number
        assert torch.equal(paired[here], couple(x_0[here], x_1[here], "optimal_transport"))
    assert torch.equal(couple(x_0, x_1, "optimal_transport", torch.ones(60, 2)), couple(x_0, x_1, "optimal_transport"))


def test_noise_hardly_tells_a_number() -> None:
    """Data whose first coordinate is the condition: pairs that ignore it carry it in the noise."""
    x_0, x_1 = torch.randn(2, 400, 4, generator=generator())
    blind, aware = couple(x_0, x_1, "optimal_transport"), couple(x_0, x_1, "optimal_transport", x_1[:, :1])
    assert np.corrcoef(blind[:, 0], x_1[:, 0])[0, 1] > 0.7
    assert abs(np.corrcoef(aware[:, 0], x_1[:, 0])[0, 1]) < 0.15  # 3 standard errors
    assert (aware - x_1)[:, 1:].square().sum() < 0.8 * (x_0 - x_1)[:, 1:].square().sum()  # and still worth doing


def test_unknown_coupling() -> None:
    with pytest.raises(UnknownNameError, match="optimal_transport"):
        couple(torch.zeros(1, 1), torch.zeros(1, 1), "optimal")
