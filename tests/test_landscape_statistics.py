"""Statistics of the weights against numpy, closed forms and what they must not depend on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import zoo.landscape.chunks
from tests.landscape_models import CASES, LINEAR, MLP, MODELS, as_float32, numbers, population
from zoo.architectures import Architecture
from zoo.landscape.metrics import METRICS
from zoo.landscape.statistics import NO_ENTROPY, NO_NORM, NO_RANK, log_magnitude_entropy, stable_rank, weight_norm

STATISTICS = {name: METRICS[name].measure for name in ("weight_norm", "stable_rank", "log_magnitude_entropy")}
every_case = pytest.mark.parametrize("architecture", CASES, ids=lambda a: a.name)
WIDE = Architecture("mlp", {"depth": 0}, (4000,), 25)  # one matrix of 100,000 entries


def matrices(architecture: Architecture, weights: Tensor) -> dict[str, Tensor]:
    """(models, rows, columns) of each weight matrix, by column name."""
    return {
        name.replace(".", "_"): tensor.flatten(2)
        for name, tensor in architecture.layout.unflatten(weights).items()
        if tensor.dim() >= 3
    }


@every_case
def test_weight_norm(architecture: Architecture) -> None:
    weights, _, _ = population(architecture)
    found = weight_norm(architecture, weights)
    parameters = weights[:, : architecture.layout.num_parameters]
    np.testing.assert_allclose(found.value, parameters.norm(dim=1), rtol=1e-13)
    names = dict(architecture.build().named_parameters())
    assert set(found.others) == {f"weight_norm_{name.replace('.', '_')}" for name in names}
    for name in names:
        expected = architecture.layout.tensor(weights, name).flatten(1).norm(dim=1)
        np.testing.assert_allclose(numbers(found, f"weight_norm_{name.replace('.', '_')}"), expected, rtol=1e-13)
    columns = [np.asarray(column, np.float64) for column in found.others.values()]
    np.testing.assert_allclose(np.sqrt(np.square(columns).sum(0)), found.value, rtol=1e-13)


@every_case
def test_stable_rank(architecture: Architecture) -> None:
    weights, _, _ = population(architecture)
    found = stable_rank(architecture, weights)
    expected = {}
    for name, some in matrices(architecture, weights).items():
        singular = torch.linalg.svdvals(some)
        expected[f"stable_rank_{name}"] = (singular.square().sum(1) / singular[:, 0] ** 2).numpy()
    assert set(found.others) == set(expected)
    for name, ranks in expected.items():
        np.testing.assert_allclose(numbers(found, name), ranks, rtol=1e-12)
    np.testing.assert_allclose(found.value, np.mean(list(expected.values()), 0), rtol=1e-12)
    np.testing.assert_allclose(stable_rank(architecture, weights * 1e-160).value, found.value, rtol=1e-12)


def test_stable_ranks_known_beforehand() -> None:
    weights = torch.zeros(3, LINEAR.layout.size)
    matrix = LINEAR.layout.tensor(weights, "output.weight")  # (3, 3, 4)
    matrix[0] = torch.outer(torch.arange(3.0), torch.arange(4.0))
    matrix[1, :, :3] = torch.linalg.qr(torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 10]])).Q
    found = stable_rank(LINEAR, weights)
    np.testing.assert_allclose(found.value[:2], [1, 3], rtol=1e-6)  # QR in float32
    assert np.isnan(found.value[2])
    assert found.reasons == ["", "", NO_RANK]


@every_case
def test_log_magnitude_entropy_is_that_of_a_histogram(architecture: Architecture) -> None:
    weights, _, _ = population(architecture)
    found = log_magnitude_entropy(architecture, weights)

    def expected(entries: np.ndarray) -> float:
        _, counts = np.unique(np.floor(np.log(abs(entries)) / 0.05), return_counts=True)
        return float(stats.entropy(counts)) + math.log(0.05)

    layers = matrices(architecture, weights)
    assert set(found.others) == {f"log_magnitude_entropy_{name}" for name in (*layers, "zeros")}
    for model in range(MODELS):
        for name, some in layers.items():
            value = numbers(found, f"log_magnitude_entropy_{name}")[model]
            assert value == pytest.approx(expected(some[model].numpy().ravel()), rel=1e-12)
        together = np.concatenate([some[model].numpy().ravel() for some in layers.values()])
        assert found.value[model] == pytest.approx(expected(together), rel=1e-12)
    np.testing.assert_array_equal(numbers(found, "log_magnitude_entropy_zeros"), 0)


@given(scale=st.floats(1e-30, 1e30))
@settings(max_examples=15)  # a histogram of 300,000 each
def test_entropy_of_known_distributions_at_any_scale(scale: float) -> None:
    """Differential entropies of ln|w|: of Gaussians, of magnitudes uniform from 0, and of uniform logarithms."""
    generator = np.random.default_rng(0)
    count = WIDE.layout.size - 25
    draws = np.stack([generator.standard_normal(count), generator.random(count), np.exp(3 * generator.random(count))])
    weights = torch.zeros(3, WIDE.layout.size, dtype=torch.float64)
    weights[:, :count] = torch.from_numpy(draws * scale)
    weights[:, count:] = 1e9  # biases are no part of it
    found = log_magnitude_entropy(WIDE, weights).value
    gauss = math.log(math.pi * math.e / 2) / 2 + (np.euler_gamma + math.log(2)) / 2
    assert gauss == pytest.approx(1.361, abs=1e-3)
    np.testing.assert_allclose(found[0], gauss, atol=0.015)  # a spread of .004, and .002 too low
    np.testing.assert_allclose(found[1:], [1, math.log(3)], atol=0.03)  # and ends that cut a bin of .05


def test_zeros_are_left_out_and_counted() -> None:
    weights, _, _ = population(MLP, models=5)
    whole = log_magnitude_entropy(MLP, weights)
    output = MLP.layout.slice("output.weight")
    weights[0, output] = 0
    weights[1, MLP.layout.slice("hidden0.weight").start] = -0.0
    weights[2] = 0
    weights[3, output.start] = torch.nan
    found = log_magnitude_entropy(MLP, weights)
    assert found.reasons == ["", "", NO_ENTROPY, NO_ENTROPY, ""]
    assert np.isnan(numbers(found, "log_magnitude_entropy_output_weight")).tolist() == [True, False, True, True, False]
    assert found.value[0] == pytest.approx(numbers(found, "log_magnitude_entropy_hidden0_weight")[0], rel=1e-12)
    assert found.value[4] == pytest.approx(whole.value[4], rel=1e-12)
    np.testing.assert_allclose(numbers(found, "log_magnitude_entropy_zeros"), [12 / 32, 1 / 32, 1, np.nan, 0])


@pytest.mark.parametrize("name", STATISTICS)
@every_case
def test_chunks_and_companions_change_nothing(
    name: str, architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, _, _ = as_float32(*population(architecture))
    whole = STATISTICS[name](architecture, weights, None, None)
    assert all(column.startswith(f"{name}_") and column.isidentifier() for column in whole.others)
    assert set(METRICS[name].columns) <= set(whole.others)
    np.testing.assert_array_equal(whole.standard_error, 0)
    monkeypatch.setattr(zoo.landscape.chunks, "VECTORS", 1)
    for rows, found in (
        (slice(None), STATISTICS[name](architecture, weights, None, None)),
        (slice(2, 3), STATISTICS[name](architecture, weights[2:3], None, None)),
        (slice(0), STATISTICS[name](architecture, weights[:0], None, None)),
    ):
        np.testing.assert_allclose(found.value, whole.value[rows], rtol=1e-12)
        for column, values in whole.others.items():
            np.testing.assert_allclose(numbers(found, column), np.asarray(values)[rows], rtol=1e-12)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_broken_model_hurts_no_other(name: str) -> None:
    weights, _, _ = as_float32(*population(MLP))
    whole = STATISTICS[name](MLP, weights, None, None)
    weights[1, 0] = torch.inf
    found = STATISTICS[name](MLP, weights, None, None)
    why = {"weight_norm": NO_NORM, "stable_rank": NO_RANK, "log_magnitude_entropy": NO_ENTROPY}[name]
    assert found.reasons == ["", why, "", ""]
    assert np.isnan(found.value[1])
    np.testing.assert_allclose(found.value[[0, 2, 3]], whole.value[[0, 2, 3]], rtol=1e-12)


@pytest.mark.parametrize("name", STATISTICS)
def test_weights_of_another_architecture(name: str) -> None:
    with pytest.raises(ValueError, match=f"weights must be .models, {MLP.layout.size}. for {MLP.name}, got"):
        STATISTICS[name](MLP, torch.zeros(2, 3), None, None)
