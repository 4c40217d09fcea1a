"""Batched evaluation against one module after another."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo.evaluate
from catalog.errors import InvalidSpecError
from zoo.architectures import Architecture
from zoo.evaluate import evaluate
from zoo.implementations import IMPLEMENTATIONS

MODELS, SAMPLES = 7, 43
MLP = Architecture("mlp", {"depth": 2, "width": 5}, (1, 8, 8), 4)
CASES = [  # the last two have no compiled code
    MLP,
    Architecture("cnn", {"activation": "tanh"}, (1, 8, 8), 4),
    Architecture("cnn", {"norm": "batch"}, (1, 8, 8), 4),
    Architecture("cnn", {"style": "small_cnn_zoo", "norm": "group", "activation": "gelu"}, (3, 16, 16), 4),
]
BOTH = [(architecture, impl) for architecture in CASES for impl in IMPLEMENTATIONS[architecture in CASES[2:] :]]
both = pytest.mark.parametrize(("architecture", "impl"), BOTH, ids=lambda value: getattr(value, "name", value))


def population(architecture: Architecture) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, inputs and labels, float64."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(MODELS, architecture.layout.size, dtype=torch.float64, generator=generator) / 4
    for name in architecture.layout.names:
        if name.endswith("running_var"):
            architecture.layout.tensor(weights, name).abs_().add_(0.5)
    x = torch.randn(SAMPLES, *architecture.input_shape, dtype=torch.float64, generator=generator)
    return weights, x, torch.randint(4, (SAMPLES,), generator=generator)


def one_by_one(
    architecture: Architecture, row: Tensor, x: Tensor, y: Tensor, count: int, loss: str = "cross_entropy"
) -> tuple[float, float, Tensor]:
    module = architecture.build().double().eval()
    module.load_state_dict(architecture.layout.unflatten(row))
    logits = module(x).detach()
    wrong = logits.argmax(1) != y
    if loss == "mse":
        mean = F.mse_loss(logits[:count], torch.eye(4, dtype=torch.float64)[y[:count]])
    else:
        mean = F.cross_entropy(logits[:count], y[:count])
    return float(mean), 1 - float(wrong[:count].double().mean()), wrong


@pytest.mark.parametrize("own_labels", [False, True])
@both
def test_as_one_by_one(architecture: Architecture, impl: str, own_labels: bool) -> None:
    weights, x, y = population(architecture)
    labels = torch.stack([(y + model) % 4 for model in range(MODELS)]) if own_labels else y
    samples = torch.arange(1, MODELS + 1) * 6 if own_labels else None
    losses = ["mse" if own_labels and model % 2 else "cross_entropy" for model in range(MODELS)]
    found = evaluate(architecture, weights, x, labels, samples, loss_functions=losses, impl=impl)
    assert found.impl == impl
    assert found.error_bits.shape == (MODELS, 6)
    for model in range(MODELS):
        count = SAMPLES if samples is None else int(samples[model])
        mine = labels[model] if own_labels else y
        loss, accuracy, wrong = one_by_one(architecture, weights[model], x, mine, count, losses[model])
        np.testing.assert_allclose([found.loss[model], found.accuracy[model]], [loss, accuracy], rtol=1e-12)
        bits = np.unpackbits(found.error_bits[model])
        np.testing.assert_array_equal(bits[:SAMPLES], wrong.numpy())  # all samples, also those that do not count
        assert bits[SAMPLES:].sum() == 0
        if samples is None:
            assert bits.sum() == round((1 - found.accuracy[model]) * SAMPLES)


@pytest.mark.parametrize("threads", [1, 2, 5])
@both
def test_a_row_of_labels_serves_the_checkpoints_of_a_run(architecture: Architecture, impl: str, threads: int) -> None:
    weights, x, y = population(architecture)
    rows = torch.stack([y, (y + 1) % 4])
    found = evaluate(architecture, weights[:6], x, rows, impl=impl, threads=threads)
    for model in range(6):
        loss, _, _ = one_by_one(architecture, weights[model], x, rows[model // 3], SAMPLES)
        np.testing.assert_allclose(found.loss[model], loss, rtol=1e-12)
    with pytest.raises(ValueError, match="2 rows of labels do not divide 7 models"):
        evaluate(architecture, weights, x, rows)


@pytest.mark.parametrize("floats", [1, 2000, 10_000])
@pytest.mark.parametrize("architecture", CASES, ids=lambda a: a.name)
def test_chunks_change_nothing(architecture: Architecture, floats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, x, y = population(architecture)
    whole = evaluate(architecture, weights, x, y, impl="reference")
    monkeypatch.setattr(zoo.evaluate, "ACTIVATIONS", floats)
    cut = evaluate(architecture, weights, x, y, impl="reference")
    np.testing.assert_allclose(cut.loss, whole.loss, rtol=1e-12)
    np.testing.assert_array_equal(cut.error_bits, whole.error_bits)


@both
def test_a_broken_model_hurts_no_other(architecture: Architecture, impl: str) -> None:
    weights, x, y = population(architecture)
    whole = evaluate(architecture, weights, x, y, impl=impl)
    weights[3] = torch.nan
    found = evaluate(architecture, weights, x, y, impl=impl)
    others = np.arange(MODELS) != 3
    assert np.isnan(found.loss[3])
    assert found.accuracy[3] == pytest.approx(float((y == 0).double().mean()))  # torch says class 0 of NaN alone
    np.testing.assert_array_equal(found.loss[others], whole.loss[others])


@pytest.mark.parametrize("architecture", CASES[:2], ids=lambda a: a.name)
def test_float32_predicts_what_torch_does(architecture: Architecture) -> None:
    weights, x, y = (tensor.float() if tensor.is_floating_point() else tensor for tensor in population(architecture))
    compiled, reference = (evaluate(architecture, weights, x, y, impl=impl) for impl in IMPLEMENTATIONS)
    np.testing.assert_array_equal(compiled.error_bits, reference.error_bits)  # no two logits here are as close as that
    np.testing.assert_allclose(compiled.loss, reference.loss, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_odd_populations(impl: str) -> None:
    weights, x, y = population(MLP)
    nobody = evaluate(MLP, weights[:0], x, y, impl=impl)
    assert nobody.loss.shape == (0,)
    assert nobody.error_bits.shape == (0, 6)
    for labels in (y, torch.zeros_like(y)):  # of one sample, and with classes that never occur
        one = evaluate(MLP, weights, x[:1], labels[:1], impl=impl)
        np.testing.assert_allclose(one.loss[0], one_by_one(MLP, weights[0], x[:1], labels[:1], 1)[0], rtol=1e-12)


def test_bad_input_is_named() -> None:
    weights, x, y = population(MLP)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"y": y + 1}, "from 0 to 3"),
        ({"y": y[1:]}, "43 samples"),
        ({"x": x[:0], "y": y[:0]}, "no samples"),
        ({"x": x[:, :, 1:]}, "1, 8, 8"),
        ({"samples": torch.ones(3)}, "43"),
        ({"loss_functions": ["mse"]}, "a loss function a model, 7, got 1"),
        ({"loss_functions": "hinge"}, "cross_entropy, mse"),
        ({"impl": "fast"}, "compiled, reference"),
        ({"samples": torch.zeros(MODELS, dtype=torch.int64)}, "from 1 to 43"),
    ]
    for changed, said in cases:
        with pytest.raises((ValueError, KeyError), match=said):
            evaluate(**{"architecture": MLP, "weights": weights, "x": x, "y": y, **changed})
    with pytest.raises(InvalidSpecError, match="cannot evaluate"):
        evaluate(CASES[2], *population(CASES[2]), impl="compiled")


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_on_a_gpu_one_kernel_does_it(activation: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = Architecture("mlp", {"depth": 2, "width": 5, "activation": activation}, (1, 4, 4), 3)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(6, network.layout.size, generator=generator) / 2
    x, y = torch.randn(70, 1, 4, 4, generator=generator), torch.randint(3, (2, 70), generator=generator)
    samples, losses = torch.tensor([70, 1, 64, 65, 9, 30]), ["mse", "cross_entropy"] * 3
    right = evaluate(network, weights, x, y, samples, loss_functions=losses, impl="reference")
    found = evaluate(
        network, weights.to(device), x.to(device), y.to(device), samples, loss_functions=losses, impl="triton"
    )
    assert found.impl == "triton"
    np.testing.assert_allclose(found.loss, right.loss, rtol=1e-5)
    np.testing.assert_allclose(found.accuracy, right.accuracy, rtol=1e-12)
    np.testing.assert_array_equal(found.error_bits, right.error_bits)
    for other, dtype in ((MLP, torch.float64), (CASES[1], torch.float32)):
        wide, inputs, labels = population(other)
        with pytest.raises(InvalidSpecError, match="impl 'triton' cannot evaluate"):
            evaluate(other, wide.to(device, dtype), inputs.to(device, dtype), labels.to(device), impl="triton")


def test_weights_of_another_size_are_refused() -> None:
    weights, x, y = population(CASES[0])
    with pytest.raises(ValueError, match="last axis must hold"):
        evaluate(CASES[0], weights[:, :-1], x, y)
