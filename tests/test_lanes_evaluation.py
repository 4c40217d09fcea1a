"""Compiled evaluation of MLPs and CNNs against torch in float64, and what it does with odd sizes and bad input."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernels.lanes.evaluation import evaluate, logits
from kernels.lanes.network import AVERAGE, CONV, LINEAR, Network, network_of
from kernels.lanes.plan import Plan, plan_of
from kernels.learning import aligned
from kernels.mlp.network import ACTIVATIONS, UnsupportedError
from kernels.mlp.tiles import lanes
from kernels.population import Dropout
from zoo.architectures import Architecture

NAMES = tuple(ACTIVATIONS.values())
MLPS = [
    Architecture("mlp", {"depth": depth, "width": width, "activation": activation}, shape, classes)
    for (depth, width, shape, classes), activation in zip(
        [(0, 1, (7,), 2), (1, 1, (1, 3, 5), 3), (2, 33, (1, 8, 8), 10), (3, 13, (2, 4, 4), 17)], NAMES, strict=True
    )
]
CNNS = [
    Architecture("cnn", {"style": style, "channels": channels, "activation": activation}, (inputs, side, side), 10)
    for (style, side), (channels, inputs), activation in zip(
        itertools.product(("model_zoo", "small_cnn_zoo"), (8, 15, 22, 28)),
        itertools.cycle([(8, 1), (1, 3), (5, 8), (11, 2), (17, 1)]),
        itertools.cycle(NAMES),
        strict=False,
    )
]
DTYPES = (np.float32, np.float64)


def population(
    architecture: Architecture, models: int, samples: int, dtype: Any = np.float64, seed: int = 0
) -> tuple[Network, np.ndarray, np.ndarray]:
    """Network, weights of usual sizes, and inputs."""
    random = np.random.default_rng(seed)
    network = network_of(architecture.build("meta"), architecture.input_shape)
    assert network.size == architecture.layout.size
    weights = random.uniform(-1, 1, (models, network.size))
    x = random.normal(size=(samples, *architecture.input_shape))
    return network, (weights / 3).astype(dtype), x.astype(dtype)


def truth(module: nn.Module, weights: np.ndarray, x: np.ndarray) -> torch.Tensor:
    """Logits (models, samples, outputs) of torch in float64, one model after the other."""
    out = []
    with torch.inference_mode():
        for one in weights:
            torch.nn.utils.vector_to_parameters(torch.from_numpy(one.astype(np.float64)), module.parameters())
            out.append(module(torch.from_numpy(x.astype(np.float64))))
    return torch.stack(out)


def relative(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.abs(found - true).max() / np.abs(true).max())


@pytest.mark.parametrize("architecture", [*MLPS, *CNNS], ids=lambda a: a.name)
def test_logits_are_those_of_torch(architecture: Architecture) -> None:
    """Sums of up to some hundred terms, each rounded by 1e-16 or 6e-8, through five layers; our float32 activations
    are good to 3e-7.
    """
    module = architecture.build().double()
    for dtype, most in ((np.float64, 1e-13), (np.float32, 1e-5)):
        network, weights, x = population(architecture, 2, 37, dtype)
        found = logits(network, weights, x)
        assert found.dtype == dtype
        assert relative(found, truth(module, weights, x).numpy()) < most


SEQUENCES = [
    (nn.Conv2d(3, 5, (2, 3), (3, 1), (1, 0)), nn.MaxPool2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(15, 4)),
    (nn.Conv2d(3, 2, 1), nn.Conv2d(2, 9, 3, 2, 4), nn.AdaptiveAvgPool2d(1), nn.GELU(), nn.Flatten()),
    (nn.Conv2d(3, 1, 4, 5, 2), nn.Flatten(), nn.Linear(9, 3), nn.Linear(3, 2), nn.ReLU()),
    (nn.Conv2d(3, 7, 5, padding=2), nn.MaxPool2d(4), nn.Conv2d(7, 2, 2, padding=1), nn.MaxPool2d(2), nn.Flatten()),
    (nn.Conv2d(3, 4, 8, padding=1), nn.Tanh(), nn.Flatten()),
    (nn.Flatten(), nn.Linear(3 * 11 * 11, 40), nn.SiLU(), nn.Linear(40, 3)),
]


@pytest.mark.parametrize("layers", SEQUENCES)
def test_other_sequences(layers: tuple[nn.Module, ...]) -> None:
    """Odd kernels, strides that leave rows over, wide padding, pools of 3 and 4, no activation."""
    module = nn.Sequential(*layers).double()
    network, random = network_of(module, (3, 11, 11)), np.random.default_rng(1)
    weights, x = random.uniform(-0.4, 0.4, (1, network.size)), random.normal(size=(21, 3, 11, 11))
    found = logits(network, weights, x)
    assert relative(found, truth(module, weights, x).numpy()) < 1e-13


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", [MLPS[2], CNNS[0], CNNS[7]], ids=lambda a: a.name)
def test_loss_accuracy_and_bits(architecture: Architecture, dtype: Any) -> None:
    """Both losses, labels of their own, samples that do not count, batches that fill no register."""
    random = np.random.default_rng(3)
    module = architecture.build().double()
    for samples in (1, 8, 37):
        network, weights, x = population(architecture, 6, samples, dtype, samples)
        outputs = truth(module, weights, x)
        for rows in (1, 2, 6):
            y = random.integers(0, 3, (rows, samples))  # classes above never occur
            counted, squared = random.integers(1, samples + 1, 6), random.integers(0, 2, 6) > 0
            loss, accuracy, bits = evaluate(network, weights, x, y, counted, squared)
            for model in range(6):
                z, target = outputs[model], torch.from_numpy(y[model // (6 // rows)])
                some = slice(0, counted[model])
                expected = (
                    (z - F.one_hot(target, z.shape[1])).square()[some].mean()
                    if squared[model]
                    else F.cross_entropy(z[some], target[some])
                )
                assert loss[model] == pytest.approx(float(expected), rel=1e-12 if dtype == np.float64 else 1e-5)
                wrong = (z.argmax(1) != target).numpy()
                np.testing.assert_array_equal(bits[model], np.packbits(wrong))
                assert accuracy[model] == pytest.approx(1 - wrong[some].mean(), abs=1e-12)


@given(
    st.lists(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, -0.0, 1.0, np.inf, np.nan]), min_size=3, max_size=3)),
    st.sampled_from(DTYPES),
)
def test_the_largest_is_that_of_torch(rows: list[list[float]], dtype: Any) -> None:
    """The first of equals, and NaN before all; each row is a model whose biases are the logits."""
    network = network_of(nn.Sequential(nn.Linear(1, 3)), (1,))
    weights = np.zeros((len(rows), 6), dtype)
    weights[:, 3:] = np.array(rows).reshape(-1, 3)
    y, x = np.arange(3)[None], np.zeros((3, 1), dtype)
    loss, _, bits = evaluate(network, weights, x, y, np.full(len(rows), 3), np.zeros(len(rows), bool))
    outputs = torch.from_numpy(weights[:, 3:].astype(np.float64))
    places = outputs.argmax(1).numpy() if len(rows) else np.zeros(0, int)
    np.testing.assert_array_equal(bits, np.packbits(places[:, None] != y, axis=1).reshape(-1, 1))
    expected = [float(F.cross_entropy(z.expand(3, 3), torch.arange(3))) for z in outputs]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_in_a_window_passes_the_pooling(dtype: Any) -> None:
    for side in (2, 3, 4):
        module = nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(side), nn.ReLU(), nn.Flatten(), nn.Linear(1, 2))
        for bad, place in itertools.product((np.nan, np.inf, -np.inf), range(side * side)):
            x = np.random.default_rng(place).normal(size=(3, 1, side, side)).astype(dtype)
            x[1].reshape(-1)[place] = bad
            weights = np.array([[1, 0, 1, -1, 0.5, 0.5]], dtype)
            expected = truth(module.double(), weights, x).numpy()
            np.testing.assert_allclose(logits(network_of(module, x.shape[1:]), weights, x), expected, rtol=1e-6)


@pytest.mark.parametrize("architecture", [MLPS[3], CNNS[1], CNNS[4]], ids=lambda a: a.name)
def test_no_bit_depends_on_companions_or_on_what_stood_in_the_buffers(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, weights, x = population(architecture, 5, 131, np.float32)
    y = np.random.default_rng(0).integers(0, 10, (1, 131))
    counted, squared = np.full(5, 131), np.arange(5) % 2 > 0
    whole = evaluate(network, weights, x, y, counted, squared)
    scratch = Plan.scratch
    monkeypatch.setattr(Plan, "scratch", lambda plan, dtype: scratch(plan, dtype, np.nan))
    for model in (0, 3):
        part = slice(model, model + 1)
        alone = evaluate(network, weights[part], x, y, counted[part], squared[part])
        for one, all_ in zip(alone, whole, strict=True):
            np.testing.assert_array_equal(one[0], all_[model])


def test_more_samples_than_a_chunk_has() -> None:
    network, weights, x = population(MLPS[2], 2, 1000)
    y = np.zeros((1, 1000), np.int64)
    loss, accuracy, bits = evaluate(network, weights, x, y, np.full(2, 777), np.zeros(2, bool))
    outputs = truth(MLPS[2].build().double(), weights, x)
    for model in range(2):
        expected = F.cross_entropy(outputs[model, :777], torch.zeros(777, dtype=torch.int64))
        assert loss[model] == pytest.approx(float(expected), rel=1e-12)
    wrong = (outputs.argmax(2) != 0).numpy()
    np.testing.assert_array_equal(bits, np.packbits(wrong, axis=1))
    np.testing.assert_allclose(accuracy, 1 - wrong[:, :777].mean(1))


def test_no_models_and_bad_input() -> None:
    network, weights, x = population(MLPS[2], 4, 9)
    y, counted, squared = np.zeros((1, 9), np.int64), np.full(4, 9), np.zeros(4, bool)
    loss, accuracy, bits = evaluate(network, weights[:0], x, y, counted[:0], squared[:0])
    assert (loss.shape, accuracy.shape, bits.shape) == ((0,), (0,), (0, 2))
    assert logits(network, weights, x[:0]).shape == (4, 0, 10)
    for arguments, message in (
        ((weights[:, 1:], x, y, counted, squared), "must be \\(models, 3607\\), got \\(4, 3606\\)"),
        ((weights, x[:, :, 1:], y, counted, squared), "must be \\(samples, 1, 8, 8\\), got \\(9, 1, 7, 8\\)"),
        ((weights, x, y[:, 1:], counted, squared), "rows, 9"),
        ((weights, x, np.repeat(y, 3, 0), counted, squared), "divisor of 4 models, got \\(3, 9\\)"),
        ((weights, x, y[:0], counted, squared), "divisor of 4 models"),
        ((weights, x, y + 10, counted, squared), "classes from 0 to 9, got 10 to 10"),
        ((weights, x, y - 1, counted, squared), "classes from 0 to 9, got -1"),
        ((weights, x, y, counted[1:], squared), "must be \\(4,\\), got \\(3,\\)"),
        ((weights, x, y, counted + 1, squared), "from 1 to 9 samples must count, got 10"),
        ((weights, x, y, counted * 0, squared), "from 1 to 9 samples must count, got 0"),
        ((weights.astype(np.float16), x, y, counted, squared), "float32 or float64, got float16"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(network, *arguments)


def test_what_is_supported() -> None:
    conv, linear = nn.Conv2d(2, 3, 3), nn.Linear(27, 2)
    found = network_of(nn.Sequential(conv, nn.MaxPool2d(2), nn.GELU(), Dropout(1), nn.Flatten(), linear), (2, 8, 9))
    assert [stage.kind for stage in found.stages] == [CONV, LINEAR]
    first = found.stages[0]
    assert (first.outputs, first.pool, first.activation, first.site) == ((3, 3, 3), 2, "gelu", 257)
    average = nn.AdaptiveAvgPool2d(1)
    assert network_of(nn.Sequential(conv, average, nn.Flatten()), (2, 8, 8)).stages[1].kind == AVERAGE
    for layers in (
        (), (nn.Flatten(),), (conv,), (conv, average), (nn.ReLU(), conv, nn.Flatten()), (conv, linear),
        (conv, nn.BatchNorm2d(3), nn.Flatten()), (conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        (conv, nn.MaxPool2d(2, 1), nn.Flatten()), (conv, nn.MaxPool2d(2, ceil_mode=True), nn.Flatten()),
        (conv, nn.MaxPool2d(5), nn.Flatten()), (conv, nn.MaxPool2d((2, 1)), nn.Flatten()),
        (conv, nn.ReLU(), nn.ReLU(), nn.Flatten()), (conv, nn.GELU("tanh"), nn.Flatten()), (conv, conv, nn.Flatten()),
        (nn.Conv2d(2, 2, 3, groups=2), nn.Flatten()), (nn.Conv2d(2, 2, 3, dilation=2), nn.Flatten()),
        (nn.Conv2d(2, 2, 3, padding="same"), nn.Flatten()), (nn.Conv2d(2, 2, 3, bias=False), nn.Flatten()),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.Flatten()), (nn.Conv2d(1, 2, 3), nn.Flatten()),
        (nn.Conv2d(2, 2, 9), nn.Flatten()), (conv, nn.Dropout(), nn.Flatten()), (nn.Flatten(), nn.Linear(3, 2)),
        (nn.Flatten(), nn.Linear(128, 2, bias=False)), (conv, nn.AdaptiveAvgPool2d(2), nn.Flatten()),
    ):  # fmt: skip  # a list
        with pytest.raises(UnsupportedError):
            network_of(nn.Sequential(*layers), (2, 8, 8))
    with pytest.raises(UnsupportedError, match="Sequential"):
        network_of(nn.Linear(2, 2), (2,))
    with pytest.raises(UnsupportedError, match="vectors or images"):
        network_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (2, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_buffers_begin_at_a_cache_line_and_images_at_a_register(dtype: Any) -> None:
    assert aligned(3, dtype).ctypes.data % 64 == 0
    for architecture in (*MLPS, *CNNS):
        plan = plan_of(network_of(architecture.build("meta"), architecture.input_shape), 3, dtype)
        assert all(place % lanes(dtype) == 0 for place in plan.places[1:])
        assert all(image.pitch // lanes(dtype) % 2 == 1 for image in plan.images)
