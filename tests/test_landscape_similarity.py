"""CKA against the formula in numpy and what leaves it unchanged; predictions and distances of planted pairs."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from catalog.errors import InvalidSpecError, UnknownNameError
from tests.strategies import seeds
from zoo.architectures import Architecture
from zoo.landscape import metrics
from zoo.landscape.metric import Measured
from zoo.landscape.norms import activations
from zoo.landscape.similarity import (
    CONSTANT,
    cka,
    cka_ptmz,
    cka_yang,
    disagreement,
    mixtures,
    outputs,
    weight_distance,
)

MLP = Architecture("mlp", {"depth": 2, "width": 6, "activation": "tanh"}, (1, 8, 8), 4)
CNN = Architecture("cnn", {"channels": 4, "activation": "tanh"}, (1, 8, 8), 4)  # of random ReLUs many are dead
NORM = Architecture("cnn", {"channels": 4, "norm": "batch"}, (1, 8, 8), 4)
GROUP = Architecture("cnn", {"style": "small_cnn_zoo", "norm": "group", "channels": 4}, (3, 8, 8), 4)
every = pytest.mark.parametrize("architecture", [MLP, CNN, NORM, GROUP], ids=lambda one: one.name)
METRICS = {name: metrics.METRICS[name] for name in ("cka_yang", "cka_ptmz", "disagreement", "weight_distance")}
each = pytest.mark.parametrize("name", METRICS)


def by_formula(x: np.ndarray, y: np.ndarray) -> float:
    """With the centring matrix, as it is written: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    h = np.eye(len(x)) - 1 / len(x)
    k, m = h @ (x @ x.T) @ h, h @ (y @ y.T) @ h
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def sample(architecture: Architecture, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of pairs, inputs and labels."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 3, architecture.layout.size, generator=generator, dtype=torch.float64) / 3
    for name in architecture.layout.names:
        if name.endswith("running_var"):
            architecture.layout.tensor(weights, name).abs_().add_(0.5)
    x = torch.randn(70, *architecture.input_shape, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (70,), generator=generator)
    return weights[0].to(dtype), weights[1].to(dtype), x.to(dtype), y


def permuted(weights: Tensor, architecture: Architecture = MLP) -> Tensor:
    """The MLP with its first hidden units in another order."""
    out = weights.clone()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for name, axis in (("hidden0.weight", 1), ("hidden0.bias", 1), ("hidden1.weight", 2)):
        part = architecture.layout.tensor(out, name)
        part.copy_(part.index_select(axis, order))
    return out


# CKA of activations


@given(seeds, st.integers(2, 30), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1e-30, 1.0, 1e6]))
def test_cka_is_the_formula(seed: int, samples: int, features: int, others: int, scale: float) -> None:
    """Few samples and many features and the reverse; the two forms are the same number."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(2, samples, features)) + random.normal(size=(2, 1, features))
    y = random.normal(size=(2, samples, others))
    found = cka(torch.from_numpy(x * scale), torch.from_numpy(y))
    assert np.allclose(found.numpy(), [by_formula(a, b) for a, b in zip(x, y, strict=True)], rtol=1e-9, atol=1e-12)


@given(seeds, st.integers(1, 12))
def test_cka_does_not_see_rotations_scales_shifts_and_the_order_of_units(seed: int, features: int) -> None:
    random = np.random.default_rng(seed)
    x, y = torch.from_numpy(random.normal(size=(2, 1, 20, features)))
    rotation = torch.from_numpy(np.linalg.qr(random.normal(size=(features, features)))[0])
    order = torch.from_numpy(random.permutation(features))
    true = cka(x, y)
    for other in (y @ rotation, -7 * y, y + 3, y[..., order]):
        torch.testing.assert_close(cka(x, other), true, rtol=1e-9, atol=1e-12)
    for other in (x @ rotation, 5 * x, x[..., order]):
        torch.testing.assert_close(cka(x, other), torch.ones(1, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    stretched = x * torch.linspace(1, 30, features, dtype=torch.float64)
    assert features == 1 or cka(x, stretched).item() < 0.9999  # it does see what is no rotation


def test_constant_activations_have_no_cka() -> None:
    x = torch.full((1, 9, 3), 0.1)
    assert cka(x, torch.randn(1, 9, 2, generator=torch.Generator().manual_seed(0))).isnan().all()
    random = torch.randn(100, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert cka(random.expand(-1, 9, -1), torch.randn(100, 9, 2)).isnan().all()  # whatever their mean rounds to
    with pytest.raises(ValueError, match=r"\(models, samples, features\) twice"):
        cka(x, torch.zeros(1, 8, 3))


# The published variants


@every
def test_yang_is_softmax_of_mixtures(architecture: Architecture) -> None:
    weights, partner, x, y = sample(architecture, torch.float64)
    found = cka_yang(architecture, weights, partner, x, y, seed=3)
    mixed = mixtures(x, 16.0, 3)
    for pair in range(3):
        logits = [F.softmax(by_hand(architecture, one[pair], mixed), 1).numpy() for one in (weights, partner)]
        assert found.value[pair] == pytest.approx(by_formula(*logits), rel=1e-9)
        groups = np.arange(70) * 10 // 70
        left = [by_formula(*(one[groups != group] for one in logits)) for group in range(10)]
        assert found.standard_error[pair] == pytest.approx(math.sqrt(9 * np.var(left)), rel=1e-6)
    assert (found.value != cka_yang(architecture, weights, partner, x, y, seed=4).value).all()


@every
def test_ptmz_is_the_mean_over_batches_of_logits(architecture: Architecture) -> None:
    weights, partner, x, y = sample(architecture, torch.float64)
    found = cka_ptmz(architecture, weights, partner, x, y, batch_size=20, batches=5)
    for pair in range(3):
        a, b = (by_hand(architecture, one[pair], x).numpy() for one in (weights, partner))
        batches = [by_formula(a[at : at + 20], b[at : at + 20]) for at in (0, 20, 40)]  # what is left is no batch
        assert found.value[pair] == pytest.approx(np.mean(batches), rel=1e-9)
        assert found.standard_error[pair] == pytest.approx(np.std(batches, ddof=1) / math.sqrt(3), rel=1e-6)
    one = cka_ptmz(architecture, weights, partner, x, y)  # fewer samples than a batch
    assert one.value[0] == pytest.approx(
        by_formula(*(by_hand(architecture, w[0], x).numpy() for w in (weights, partner)))
    )
    assert np.isnan(one.standard_error).all()


def by_hand(architecture: Architecture, row: Tensor, x: Tensor) -> Tensor:
    module = architecture.build().to(row.dtype).eval()
    module.load_state_dict(architecture.layout.unflatten(row))
    return module(x).detach()


@pytest.mark.parametrize("measure", [cka_yang, cka_ptmz])
@every
def test_any_layer(architecture: Architecture, measure: Callable[..., Measured]) -> None:
    weights, partner, x, y = sample(architecture)
    seen = mixtures(x, 16.0, 0) if measure is cka_yang else x
    for layer, _ in architecture.build("meta").named_children():
        found = measure(architecture, weights, partner, x, y, layer=layer)
        a, b = (activations(architecture, one, seen, layer) for one in (weights, partner))
        assert np.allclose(found.value, cka(a, b).numpy(), rtol=1e-6)
    with pytest.raises(UnknownNameError, match="known: "):
        measure(architecture, weights, partner, x, y, layer="nothing")


def test_mixtures_are_of_two_samples_each() -> None:
    x = torch.eye(2000, dtype=torch.float64)
    mixed = mixtures(x, 16.0, 0)
    assert torch.equal(mixed, mixtures(x, 16.0, 0))
    own = mixed.diagonal()
    other = own < 1
    assert ((mixed > 0).sum(1)[other] == 2).all()
    torch.testing.assert_close(mixed.sum(1), torch.ones(2000, dtype=torch.float64))
    share = own[other]
    assert abs(share.mean() - 0.5) < 4 * 0.087 / math.sqrt(2000)
    assert abs(share.std() - 0.5 / math.sqrt(33)) < 0.005  # of Beta(16, 16)


@pytest.mark.parametrize("measure", [cka_yang, cka_ptmz])
def test_constant_outputs_have_a_reason(measure: Callable[..., Measured]) -> None:
    weights, partner, x, y = sample(MLP)
    weights[1] = 0
    partner[2] = math.inf
    found = measure(MLP, weights, partner, x, y)
    assert found.reasons == ["", CONSTANT, "activations are not finite"]
    assert np.isnan(found.value).tolist() == [False, True, True]


# Predictions and weights


def test_permuted_units_are_far_away_and_agree() -> None:
    weights, _, x, y = sample(MLP)
    partner = permuted(weights)
    far = weight_distance(MLP, weights, partner)
    assert (far.value > 1).all()
    assert (far.standard_error == 0).all()
    agree = disagreement(MLP, weights, partner, x, y)
    assert (agree.value == 0).all()
    assert (agree.standard_error == 0).all()
    for layer in (None, "hidden0", "activation1"):
        assert np.allclose(cka_ptmz(MLP, weights, partner, x, y, layer=layer).value, 1)
        assert np.allclose(cka_yang(MLP, weights, partner, x, y, layer=layer).value, 1)


@every
def test_disagreement_is_the_definition(architecture: Architecture) -> None:
    weights, partner, x, y = sample(architecture)
    labels = torch.stack([y, (y + 1) % 4, y])
    found = disagreement(architecture, weights, partner, x, labels)
    for pair in range(3):
        a, b = (by_hand(architecture, one[pair], x).argmax(1) for one in (weights, partner))
        share = float((a != b).double().mean())
        wrong = float(((a != labels[pair]).double().mean() + (b != labels[pair]).double().mean()) / 2)
        assert found.value[pair] == pytest.approx(share)
        assert found.standard_error[pair] == pytest.approx(math.sqrt(share * (1 - share) / 70))
        assert found.others["disagreement_normalised"][pair] == pytest.approx(share / wrong)
    nowhere = disagreement(architecture, weights, weights, x, by_hand(architecture, weights[0], x).argmax(1))
    assert nowhere.value.tolist() == [0, 0, 0]
    assert math.isnan(nowhere.others["disagreement_normalised"][0])  # type: ignore[arg-type]  # numbers, no bytes


@every
def test_distance_is_of_parameters_only(architecture: Architecture) -> None:
    weights, partner, _, _ = sample(architecture)
    count = architecture.layout.num_parameters
    partner[:, count:] += 100
    found = weight_distance(architecture, weights, partner, frame="universe")
    a, b = (one[:, :count].double().numpy() for one in (weights, partner))
    true = np.linalg.norm(a - b, axis=1)
    assert np.allclose(found.value, true, rtol=1e-12)
    mean = (np.linalg.norm(a, axis=1) + np.linalg.norm(b, axis=1)) / 2
    assert np.allclose(found.others["weight_distance_relative"], true / mean, rtol=1e-12)
    assert weight_distance(architecture, weights, weights).value.tolist() == [0, 0, 0]


# All of them


@pytest.mark.gpu
@each
@every
def test_on_a_gpu_as_on_a_cpu(architecture: Architecture, name: str) -> None:
    there = METRICS[name].measure(architecture, *(part.cuda() for part in sample(architecture, torch.float64)))
    here = METRICS[name].measure(architecture, *sample(architecture, torch.float64))
    assert np.allclose(there.value, here.value, rtol=1e-9)


@each
@every
def test_a_pair_does_not_depend_on_its_companions(
    architecture: Architecture, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on the parts that pairs are worked off in, up to rounding."""
    weights, partner, x, y = sample(architecture)
    whole = METRICS[name].measure(architecture, weights, partner, x, y)
    monkeypatch.setattr("zoo.landscape.similarity.FLOATS", 1)
    parts = METRICS[name].measure(architecture, weights, partner, x, y)
    assert np.allclose(whole.value, parts.value, rtol=1e-5)
    for pair in range(3):
        only = slice(pair, pair + 1)
        alone = METRICS[name].measure(architecture, weights[only], partner[only], x, y)
        assert np.allclose(whole.value[only], alone.value, rtol=1e-5)
        assert np.allclose(whole.standard_error[only], alone.standard_error, rtol=1e-3, equal_nan=True)


@each
@every
def test_no_pairs_are_no_values(architecture: Architecture, name: str) -> None:
    weights, partner, x, y = sample(architecture)
    assert METRICS[name].measure(architecture, weights[:0], partner[:0], x, y).value.shape == (0,)


@every
def test_outputs_are_those_of_the_module(architecture: Architecture) -> None:
    weights, _, x, _ = sample(architecture)
    true = torch.stack([by_hand(architecture, row, x) for row in weights])
    torch.testing.assert_close(outputs(architecture, weights, x), true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("measure", "settings"),
    [
        (cka_yang, {"alpha": 0.0}),
        (cka_yang, {"alpha": math.nan}),
        (cka_yang, {"alpha": "much"}),
        (cka_yang, {"seed": -1}),
        (cka_ptmz, {"batch_size": 1}),
        (cka_ptmz, {"batches": 0}),
        (weight_distance, {"frame": ""}),
    ],
)
def test_settings_that_make_no_sense(measure: Callable[..., Measured], settings: dict[str, Any]) -> None:
    weights, partner, x, y = sample(MLP)
    with pytest.raises(InvalidSpecError):
        measure(MLP, weights, partner, x, y, **settings)


@pytest.mark.parametrize("measure", [cka_yang, cka_ptmz, disagreement])
def test_too_few_samples(measure: Callable[..., Measured]) -> None:
    weights, partner, x, y = sample(MLP)
    with pytest.raises(InvalidSpecError, match="samples or more, got 0"):
        measure(MLP, weights, partner, x[:0], y[:0])
