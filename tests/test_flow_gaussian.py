"""A source with the covariance of the data, and what a network adds to the flow between two equal Gaussians."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from catalog.errors import GeneratorError, InvalidSpecError
from generators import covariance
from generators.codec import fit_codec
from generators.codec_file import load_codec, save_codec
from generators.covariance import with_covariance
from generators.flow.networks import Preconditioned, build_network
from generators.flow.paths import PATHS
from generators.flow.solvers import integrate
from generators.flow.source import make_source
from generators.population import population
from generators.recipe import FlowRecipe, weightscape
from tests.weight_zoos import store
from zoo.architectures import Architecture
from zoo.symmetries import symmetry_of

MLP = Architecture("mlp", {"depth": 2, "width": 5}, (3,), 4)
CNN = Architecture("cnn", {"norm": "batch", "channels": 4}, (1, 8, 8), 3)
SMALL = replace(weightscape(), width=16, depth=2)


def correlated(models: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.standard_normal((models, size)) @ rng.standard_normal((size, size)) + 5).astype(np.float32)


@pytest.mark.parametrize(("models", "size"), [(20, 40), (60, 7)], ids=["fewer models", "more models"])
def test_the_factor_is_a_root_of_the_covariance(tmp_path: Path, models: int, size: int) -> None:
    found = population(store(tmp_path / "zoo", correlated(models, size)))
    codec = with_covariance(fit_codec(found, scaling="coordinate"), found)
    assert codec.factor is not None
    assert len(codec.factor) == min(len(found.split("train")), size)
    expected = np.cov(codec.encode(found.read("train")).astype(np.float64), rowvar=False, bias=True)
    np.testing.assert_allclose(codec.factor.T.astype(np.float64) @ codec.factor, expected, atol=2e-6)
    np.testing.assert_allclose(np.diag(expected), 1, atol=1e-5)  # scaled by coordinate


@pytest.mark.parametrize(("models", "size"), [(20, 40), (60, 7)])
def test_the_factor_without_scaling_leaves_the_mean_out(tmp_path: Path, models: int, size: int) -> None:
    found = population(store(tmp_path / "zoo", correlated(models, size)))
    codec = with_covariance(fit_codec(found, scaling="none"), found)
    assert codec.factor is not None
    expected = np.cov(found.read("train").astype(np.float64), rowvar=False, bias=True)
    np.testing.assert_allclose(codec.factor.T @ codec.factor, expected, rtol=1e-4, atol=1e-3)


def test_of_long_codes_and_many_models_some_models_stand_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(covariance, "LARGEST", 10)
    found = population(store(tmp_path / "zoo", correlated(60, 30)))
    codec = with_covariance(fit_codec(found), found)
    assert codec.factor is not None
    assert codec.factor.shape == (10, 30)


def test_a_codec_keeps_its_factor(tmp_path: Path) -> None:
    found = population(store(tmp_path / "zoo", correlated(20, 9)))
    plain = fit_codec(found)
    codec = with_covariance(plain, found)
    save_codec(codec, tmp_path / "codec.safetensors")
    again = load_codec(tmp_path / "codec.safetensors")
    assert again.factor is not None
    np.testing.assert_array_equal(again.factor, codec.factor)
    assert again.fingerprint == codec.fingerprint != plain.fingerprint


def test_noise_has_the_covariance() -> None:
    factor = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
    source = make_source(replace(SMALL, source_scale=0.5, temperature=3.0), torch.ones(3), 0, factor)
    trained = source.draw(200_000, torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(trained.T.cov(), 0.25 * (factor.T @ factor).double(), rtol=0, atol=0.02)
    sampled = source.at(np.arange(20_000), 1).double()
    torch.testing.assert_close(sampled.T.cov(), 9 * 0.25 * (factor.T @ factor).double(), rtol=0, atol=0.25)
    with pytest.raises(GeneratorError, match="needs the covariance"):
        make_source(SMALL, torch.ones(3), 0)


@pytest.mark.parametrize("path", ["linear", "variance_preserving"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_network_that_adds_nothing_carries_noise_to_the_gaussian(path: str, scale: float) -> None:
    """x_1 = x_0 / s: the flow between N(0, s^2 C) and N(0, C) moves every point on its own ray, whatever C is."""
    recipe = replace(SMALL, path=path, source_scale=scale, network="residual")
    network = build_network(recipe, 6)
    x_0 = torch.randn(4, 6)
    with torch.no_grad():
        x_1 = integrate(lambda x, t: network(x, t.expand(len(x))), x_0, "rk4", 64)
    torch.testing.assert_close(x_1, x_0 / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("path", "scale"), [("linear", 1.0), ("linear", 0.5), ("variance_preserving", 0.5)])
def test_the_network_sees_numbers_of_the_datas_deviation(path: str, scale: float) -> None:
    seen = []

    class Recorder(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
            seen.append(x)
            return torch.zeros_like(x)

    generator = torch.Generator().manual_seed(0)
    x_0, x_1 = (torch.randn(100_000, 2, generator=generator) for _ in range(2))
    network = Preconditioned(Recorder(), PATHS[path], scale)
    for time in (0.1, 0.5, 0.8):
        t = torch.full((len(x_0),), time)
        network(PATHS[path].between(scale * x_0, x_1, t)[0], t)
        torch.testing.assert_close(seen[-1].std(0), torch.ones(2), rtol=0, atol=0.01)


@pytest.mark.parametrize("architecture", [MLP, CNN], ids=str)
def test_a_network_over_units_sees_all_and_writes_all(architecture: Architecture) -> None:
    size = architecture.layout.num_parameters
    network = build_network(SMALL, size, 3, architecture.layout, symmetry_of(architecture))
    x, t, condition = torch.randn(2, size), torch.tensor([0.2, 0.7]), torch.randn(2, 3)
    skip = ((2 * t - 1) / (t**2 + (1 - t) ** 2))[:, None]
    torch.testing.assert_close(network(x, t, condition), skip * x)  # zero at first
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x.requires_grad_(), condition.requires_grad_()
    out = network(x, t, condition)
    assert ((out - skip * x).abs() > 0).all()
    gradients = torch.autograd.grad((out * torch.randn_like(out)).sum(), [x, condition, *network.parameters()])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert (gradients[0] != 0).all()


def test_units_need_a_symmetry_and_whole_codes() -> None:
    with pytest.raises(InvalidSpecError, match="needs their symmetry, got none"):
        build_network(SMALL, 74)
    with pytest.raises(InvalidSpecError, match="one of 74 parameters"):
        build_network(SMALL, 70, symmetry=symmetry_of(MLP))
    with pytest.raises(InvalidSpecError, match="takes codec='identity'"):
        replace(SMALL, codec="pca")
    with pytest.raises(InvalidSpecError, match="take pool=0"):
        replace(SMALL, pool=10)
    with pytest.raises(InvalidSpecError, match="multiple of its 4 heads"):
        FlowRecipe(network="units", width=30)
