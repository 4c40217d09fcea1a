"""Means of networks, and statistics of BatchNorm taken anew, against torch's own layer by layer."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from catalog.errors import InvalidSpecError, UnknownNameError
from zoo.architectures import Architecture
from zoo.evaluate import evaluate, widest
from zoo.landscape import metrics
from zoo.landscape.averaging import averaging_gain, seed_averaging_gain
from zoo.landscape.metric import Measured
from zoo.landscape.norms import activations, reestimate

MLP = Architecture("mlp", {"depth": 2, "width": 6, "activation": "tanh"}, (1, 8, 8), 4)
CNN = Architecture("cnn", {"channels": 4}, (1, 8, 8), 4)
NORM = Architecture("cnn", {"channels": 4, "norm": "batch"}, (1, 8, 8), 4)
SMALL = Architecture("cnn", {"style": "small_cnn_zoo", "norm": "batch", "channels": 4}, (3, 8, 8), 4)
every = pytest.mark.parametrize("architecture", [MLP, CNN, NORM, SMALL], ids=lambda one: one.name)
normed = pytest.mark.parametrize("architecture", [NORM, SMALL], ids=lambda one: one.name)
METRICS = {name: metrics.METRICS[name] for name in ("averaging_gain", "seed_averaging_gain")}
each = pytest.mark.parametrize("name", METRICS)


def sample(architecture: Architecture, models: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Weights, test inputs and labels, training inputs; the statistics of BatchNorm are those of no data."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(models, architecture.layout.size, generator=generator, dtype=torch.float64) / 3
    for name in architecture.layout.names:
        if name.endswith("running_var"):
            architecture.layout.tensor(weights, name).abs_().add_(0.5)
    x, train_x = torch.randn(2, 60, *architecture.input_shape, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (60,), generator=generator)
    return weights.to(dtype), x.to(dtype), y, train_x.to(dtype)


# Statistics of BatchNorm


@normed
def test_statistics_are_those_of_torch_in_one_batch(architecture: Architecture) -> None:
    """Torch normalises a batch by its biased variance, so the layers behind the first see factors of 1 - 1/n."""
    weights, x, _, _ = sample(architecture, dtype=torch.float64)
    found = architecture.layout.unflatten(reestimate(architecture, weights, x))
    for model in range(len(weights)):
        module = architecture.build().double().train()
        module.load_state_dict(architecture.layout.unflatten(weights[model]))
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        module(x)
        for name, buffer in module.named_buffers():
            first = name.startswith("norm0")
            torch.testing.assert_close(
                found[name][model], buffer, rtol=1e-10 if first else 0.05, atol=1e-12 if first else 0.02
            )
        for name, parameter in module.named_parameters():
            assert torch.equal(found[name][model], parameter)


@normed
def test_every_layer_is_normalised_by_its_own_statistics(architecture: Architecture) -> None:
    """In eval mode, behind each norm: mean and variance of its channels are its bias and the square of its weight."""
    weights, x, _, _ = sample(architecture, dtype=torch.float64)
    fresh = reestimate(architecture, weights, x)
    tensors = architecture.layout.unflatten(fresh)
    for number in range(3):
        found = activations(architecture, fresh, x, f"norm{number}")
        found = found.unflatten(2, (tensors[f"norm{number}.bias"].shape[1], -1)).transpose(1, 2).flatten(2)
        torch.testing.assert_close(found.mean(2), tensors[f"norm{number}.bias"], rtol=1e-9, atol=1e-9)
        scale = tensors[f"norm{number}.weight"].square()
        var = tensors[f"norm{number}.running_var"]
        torch.testing.assert_close(found.var(2), scale * var / (var + 1e-5), rtol=1e-9, atol=1e-9)


@normed
def test_twice_is_once_and_parts_are_the_whole(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, x, _, _ = sample(architecture, dtype=torch.float64)
    kept = weights.clone()
    once = reestimate(architecture, weights, x)
    assert torch.equal(weights, kept)
    torch.testing.assert_close(reestimate(architecture, once, x), once, rtol=1e-12, atol=1e-13)
    monkeypatch.setattr("zoo.landscape.norms.FLOATS", 4 * 7 * widest(architecture))
    torch.testing.assert_close(reestimate(architecture, weights, x), once, rtol=1e-12, atol=1e-13)
    for model in range(len(weights)):
        only = slice(model, model + 1)
        torch.testing.assert_close(reestimate(architecture, weights[only], x), once[only], rtol=1e-12, atol=1e-13)


def test_without_norms_nothing_changes() -> None:
    weights, x, _, _ = sample(CNN)
    assert reestimate(CNN, weights, x) is weights


def test_one_number_has_no_variance() -> None:
    architecture = Architecture("cnn", {"style": "small_cnn_zoo", "norm": "batch", "channels": 4}, (1, 8, 8), 4)
    weights, x, _, _ = sample(architecture)
    with pytest.raises(InvalidSpecError, match="two samples or more"):
        reestimate(architecture, weights, x[:1])


@every
def test_activations_are_those_of_the_module(architecture: Architecture) -> None:
    weights, x, _, _ = sample(architecture, dtype=torch.float64)
    for model in range(len(weights)):
        module = architecture.build().double().eval()
        module.load_state_dict(architecture.layout.unflatten(weights[model]))
        h = x
        for name, layer in module.named_children():
            h = layer(h).detach()
            found = activations(architecture, weights, x, name)
            torch.testing.assert_close(found[model], h.flatten(1), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(activations(architecture, weights, x)[model], h, rtol=1e-9, atol=1e-10)


def test_an_unknown_layer_lists_the_known() -> None:
    weights, x, _, _ = sample(MLP)
    with pytest.raises(UnknownNameError, match="hidden0, hidden1, output; did you mean 'hidden1'"):
        activations(MLP, weights, x, "hiden1")


# Averaging


@each
@every
def test_the_mean_of_equal_networks_is_the_network(architecture: Architecture, name: str) -> None:
    weights, x, y, train_x = sample(architecture)
    others = weights[:, None].repeat(1, 4, 1)
    found = METRICS[name].measure(architecture, weights, others, x, y, train_x=train_x)
    assert (found.value == 0).all()
    assert (found.standard_error == 0).all()
    accuracy = evaluate(architecture, reestimate(architecture, weights, train_x), x, y).accuracy
    assert np.allclose(found.others[f"{name}_accuracy"], accuracy)
    assert (np.array(found.others[f"{name}_count"]) == 4).all()


@each
@every
def test_the_gain_is_the_definition(architecture: Architecture, name: str) -> None:
    weights, x, y, train_x = sample(architecture, 6, torch.float64)
    others = torch.stack([weights, weights.flip(0), weights.roll(1, 0)], 1)
    found = METRICS[name].measure(architecture, weights, others, x, y, train_x=train_x)
    for model in range(6):
        mean = architecture.layout.flatten(
            {key: value.mean(0) for key, value in architecture.layout.unflatten(others[model]).items()}
        )
        one, own = (
            evaluate(architecture, reestimate(architecture, row[None], train_x), x, y)
            for row in (torch.as_tensor(mean), weights[model])
        )
        assert found.value[model] == pytest.approx(100 * (one.accuracy - own.accuracy)[0], abs=1e-9)
        right, was = (1.0 - np.unpackbits(bits.error_bits, axis=1, count=60)[0] for bits in (one, own))
        assert found.standard_error[model] == pytest.approx(100 * (right - was).std(ddof=1) / math.sqrt(60))
    assert np.abs(found.value).max() > 0


@pytest.mark.gpu
@each
@every
def test_on_a_gpu_as_on_a_cpu(architecture: Architecture, name: str) -> None:
    weights, x, y, train_x = sample(architecture, 6, torch.float64)
    others = torch.stack([weights, weights.flip(0)], 1)
    here = METRICS[name].measure(architecture, weights, others, x, y, train_x=train_x)
    there = METRICS[name].measure(
        architecture, weights.cuda(), others.cuda(), x.cuda(), y.cuda(), train_x=train_x.cuda()
    )
    assert np.allclose(there.value, here.value, atol=1.7)  # percent: one of 60 samples


def test_biases_are_averaged_too() -> None:
    """Two networks that differ in the bias of the output only: their mean has the mean bias."""
    architecture = Architecture("mlp", {"depth": 0}, (1,), 2)
    weights = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 3.0, 0.0]])  # of two weights and two biases
    others = torch.stack([weights, weights.flip(0)], 1)
    x, y = torch.zeros(4, 1), torch.tensor([0, 0, 0, 1])
    found = averaging_gain(architecture, weights, others, x, y, train_x=x)
    assert found.value.tolist() == [50, 0]  # the mean bias is (1.5, .5)


@each
def test_own_labels_and_what_is_not_finite(name: str) -> None:
    weights, x, y, train_x = sample(MLP)
    labels = torch.stack([y, (y + 1) % 4, y])
    others = torch.stack([weights, weights.flip(0)], 1)
    found = METRICS[name].measure(MLP, weights, others, x, labels, train_x=train_x)
    only = slice(1, 2)
    alone = METRICS[name].measure(MLP, weights[only], others[only], x, labels[only], train_x=train_x)
    assert found.value[only] == alone.value
    others[1] = 3e38
    broken = METRICS[name].measure(MLP, weights, others, x, y, train_x=train_x)
    assert broken.reasons is not None
    assert [bool(reason) for reason in broken.reasons] == [False, True, False]
    assert np.isnan(broken.value).tolist() == [False, True, False]
    assert (
        broken.value[[0, 2]] == METRICS[name].measure(MLP, weights, others, x, y, train_x=train_x).value[[0, 2]]
    ).all()


@pytest.mark.parametrize(
    ("measure", "settings"),
    [
        (averaging_gain, {"checkpoints": 1}),
        (averaging_gain, {"checkpoints": 2.5}),
        (seed_averaging_gain, {"frame": ""}),
    ],
)
def test_settings_that_make_no_sense(measure: Callable[..., Measured], settings: dict[str, Any]) -> None:
    weights, x, y, train_x = sample(MLP)
    with pytest.raises(InvalidSpecError):
        measure(MLP, weights, weights[:, None], x, y, train_x=train_x, **settings)
    with pytest.raises(ValueError, match="others must be"):
        measure(MLP, weights, weights, x, y, train_x=train_x)


def test_training_inputs_are_given_and_no_setting() -> None:
    assert METRICS["averaging_gain"].settings == {"split": "test", "samples": None, "checkpoints": 5}
    assert METRICS["averaging_gain"].given == {"train_x"}
