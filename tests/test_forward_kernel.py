"""Populations of dense networks against one network after the other, in float64."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.forward import forward, triton_forward
from kernels.forward.forward import ACTIVATIONS, Forward, mlp_forward
from tests.kernel_inputs import empty_is_nan, surrounded

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = 1e-5  # float32 sums of up to 70 products, logits up to about 5; triton on a GPU keeps 22 bits of each factor
IMPLEMENTATIONS = ["reference", "triton"]
every = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
Population = tuple[list[Tensor], list[Tensor]]


def population(widths: tuple[int, ...], models: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Population:
    """Weights and biases, views into flat vectors with NaN around them."""
    generator = torch.Generator().manual_seed(seed)
    weights, biases = [], []
    for fan_in, units in itertools.pairwise(widths):
        weights.append(torch.randn(models, units, fan_in, generator=generator) * (2 / fan_in) ** 0.5)
        biases.append(torch.randn(models, units, generator=generator) / 4)
    return [surrounded(w.to(dtype).to(DEVICE)) for w in weights], [surrounded(b.to(dtype).to(DEVICE)) for b in biases]


def samples(widths: tuple[int, ...], count: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(count, widths[0], generator=generator)
    y = torch.randint(widths[-1], (rows, count), generator=generator)
    return surrounded(x.to(DEVICE)), y.to(DEVICE)


def one_by_one(x: Tensor, y: Tensor, ends: Population, activation: str, loss: str, counted: list[int]) -> Forward:
    """The truth: each network alone, in float64, by torch's own layers."""
    sums, rights, bits, outputs = [], [], [], []
    for model in range(len(ends[0][0])):
        h = x.double()
        for layer, (weight, bias) in enumerate(zip(*ends, strict=True)):
            h = F.linear(ACTIVATIONS[activation](h) if layer else h, weight[model].double(), bias[model].double())
        labels = y[model * len(y) // len(ends[0][0])]
        target = F.one_hot(labels, h.shape[1]).double()
        each = (h - target).square().mean(1) if loss == "mse" else F.cross_entropy(h, labels, reduction="none")
        wrong = h.argmax(1) != labels
        sums.append(each[: counted[model]].sum())
        rights.append((~wrong[: counted[model]]).sum())
        bits.append(torch.from_numpy(np.packbits(wrong.cpu().numpy())).to(DEVICE))
        outputs.append(h)
    return Forward(*(torch.stack(column) for column in (sums, rights, bits, outputs)))


def same(found: Forward, right: Forward) -> None:
    assert found.loss_sum.dtype == torch.float64
    assert found.correct.dtype == torch.int64
    assert found.error_bits.dtype == torch.uint8
    assert found.logits is not None
    assert right.logits is not None
    torch.testing.assert_close(found.logits.double(), right.logits, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(found.loss_sum, right.loss_sum, rtol=ROUNDING, atol=ROUNDING)
    assert torch.equal(found.correct, right.correct)  # no two logits here are so close that rounding turns them round
    assert torch.equal(found.error_bits, right.error_bits)


@every
@pytest.mark.parametrize(
    ("widths", "count", "activation", "loss"),
    [
        ((1, 1, 2), 1, "relu", "cross_entropy"),
        ((16, 16, 16), 64, "tanh", "mse"),
        ((7, 33, 3), 65, "gelu", "cross_entropy"),  # one more than a tile; units in two parts
        ((20, 9, 17, 5, 4), 13, "silu", "cross_entropy"),
        ((70, 65, 10), 33, "relu", "mse"),  # units in four parts
    ],
)
def test_as_one_by_one(widths: tuple[int, ...], count: int, activation: str, loss: str, impl: str) -> None:
    ends, (x, y) = population(widths, 2), samples(widths, count)
    right = one_by_one(x, y, ends, activation, loss, [count] * 2)
    with empty_is_nan():
        found = mlp_forward(x, y[0], *ends, activation, loss=loss, logits=True, impl=impl)
    same(found, right)


@every
def test_labels_losses_and_counts_of_each_model(impl: str) -> None:
    widths, counted, losses = (5, 6, 3), [66, 0, 1, 65], ["mse", "mse", "cross_entropy", "cross_entropy"]
    ends, (x, y) = population(widths, 4), samples(widths, 66, 2)
    kinds = [one_by_one(x, y, ends, "relu", loss, counted) for loss in ("mse", "cross_entropy")]
    sums = torch.cat([kinds[0].loss_sum[:2], kinds[1].loss_sum[2:]])
    with empty_is_nan():
        found = mlp_forward(x, y, *ends, "relu", loss=losses, counted=torch.tensor(counted), logits=True, impl=impl)
    same(found, Forward(sums, kinds[0].correct, kinds[0].error_bits, kinds[0].logits))


@every
def test_points_between_two_populations(impl: str) -> None:
    widths, alphas = (4, 5, 33, 3), [0.0, 0.3, 1.0]
    ends, others, (x, y) = population(widths, 2), population(widths, 2, 1), samples(widths, 9)
    with empty_is_nan():
        found = mlp_forward(x, y[0], *ends, "tanh", other=others, alphas=alphas, logits=True, impl=impl)
    assert found.loss_sum.shape == (2, 3)
    for number, alpha in enumerate(alphas):
        between = [
            [(1 - alpha) * a.double() + alpha * b.double() for a, b in zip(*sides, strict=True)]
            for sides in zip(ends, others, strict=True)
        ]
        right = one_by_one(x, y, (between[0], between[1]), "tanh", "cross_entropy", [9, 9])
        assert found.logits is not None
        same(Forward(*(v[:, number] for v in (found.loss_sum, found.correct, found.error_bits, found.logits))), right)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_widened(dtype: torch.dtype, impl: str) -> None:
    widths = (6, 8, 3)
    ends, (x, y) = population(widths, 2, dtype=dtype), samples(widths, 10)
    found = mlp_forward(x, y, *ends, "relu", logits=True, impl=impl)
    same(found, one_by_one(x, y, ends, "relu", "cross_entropy", [10, 10]))


def test_float64_is_computed_in_float64() -> None:
    widths = (6, 8, 3)
    ends, (x, y) = population(widths, 2, dtype=torch.float64), samples(widths, 10)
    found = mlp_forward(x, y, *ends, "gelu", logits=True)
    torch.testing.assert_close(found.logits, one_by_one(x, y, ends, "gelu", "mse", [10, 10]).logits, rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="float64"):
        mlp_forward(x, y, *ends, "gelu", impl="triton")


@every
def test_a_broken_model_hurts_no_other(impl: str) -> None:
    ends, (x, y) = population((5, 6, 3), 3), samples((5, 6, 3), 12)
    whole = mlp_forward(x, y, *ends, "silu", logits=True, impl=impl)
    ends[0][0][1, 2, 3] = torch.nan
    found = mlp_forward(x, y, *ends, "silu", logits=True, impl=impl)
    assert found.loss_sum.isnan().tolist() == [False, True, False]
    assert int(found.correct[1]) == int((y == 0).sum())  # of NaN alone, torch says class 0
    for name in ("loss_sum", "correct", "error_bits", "logits"):
        assert torch.equal(getattr(found, name)[::2], getattr(whole, name)[::2])


@every
def test_extreme_activations_stay_finite(impl: str) -> None:
    """Nothing overflows on the way, and nothing small is lost."""
    for activation in ACTIVATIONS:
        for scale in (1e-4, 300.0):
            ends, (x, y) = population((3, 4, 3), 1), samples((3, 4, 3), 8)
            ends[0][0].mul_(scale)
            ends[1][0].zero_()
            ends[1][1].zero_()
            found = mlp_forward(x, y, *ends, activation, logits=True, impl=impl)
            right = one_by_one(x, y, ends, activation, "mse", [8]).logits
            torch.testing.assert_close(found.logits, right, rtol=ROUNDING, atol=ROUNDING * scale, check_dtype=False)


def test_results_repeat_to_the_bit_and_chunks_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    ends, (x, y) = population((5, 6, 3), 3), samples((5, 6, 3), 70)
    first, second = (mlp_forward(x, y, *ends, "relu", impl="triton").loss_sum for _ in range(2))
    assert torch.equal(first, second)
    whole = mlp_forward(x, y, *ends, "relu", logits=True, impl="reference")
    monkeypatch.setattr(forward, "TOGETHER", 40)
    monkeypatch.setattr(triton_forward, "LAUNCH", 4)  # of six programs
    for impl in IMPLEMENTATIONS:
        cut = mlp_forward(x, y, *ends, "relu", logits=True, impl=impl)
        assert whole.logits is not None
        same(cut, Forward(whole.loss_sum, whole.correct, whole.error_bits, whole.logits.double()))


@every
def test_no_models(impl: str) -> None:
    ends, (x, y) = population((5, 6, 3), 0), samples((5, 6, 3), 9)
    found = mlp_forward(x, y, *ends, "relu", logits=True, impl=impl)
    assert found.loss_sum.shape == (0,)
    assert found.error_bits.shape == (0, 2)


def test_the_definition_does_what_programs_cannot_hold() -> None:
    for widths, alphas, why in (
        ((3, 4), None, "matrix product"),
        ((3, 129, 4), None, "up to 128 units, got 129"),
        ((3, 65, 4), [0.5], "up to 64 units, got 65"),
        ((3, 5, 17), None, "up to 16 classes, got 17"),
    ):
        ends, (x, y) = population(widths, 1), samples(widths, 5)
        given: dict[str, Any] = {"other": ends, "alphas": alphas} if alphas else {}
        with pytest.raises(ValueError, match=why):
            mlp_forward(x, y, *ends, "relu", impl="triton", **given)
        assert mlp_forward(x, y, *ends, "relu", **given).correct.shape == ((1, 1) if alphas else (1,))
    assert set(triton_forward.NUMBERS) == set(ACTIVATIONS)


def test_bad_input_is_refused() -> None:
    (weights, biases), (x, y) = population((5, 6, 3), 2), samples((5, 6, 3), 9)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"activation": "elu"}, "relu, tanh, gelu, silu"),
        ({"x": x[:0]}, "one sample or more"),
        ({"y": y[:, 1:]}, r"\(rows, 9\)"),
        ({"y": y + 3}, "classes from 0 to 2"),
        ({"loss": "hinge"}, "cross_entropy, mse"),
        ({"loss": ["mse"]}, "each of 2 models"),
        ({"counted": torch.tensor([1, 10])}, "from 0 to 9"),
        ({"alphas": [0.5]}, "or neither"),
        ({"other": (weights[:1], biases[:1]), "alphas": [0.5]}, "same shapes"),
        ({"biases": biases[::-1]}, "layer 0 must have"),
        ({"weights": weights[1:], "biases": biases[1:]}, r"\(2, out, 5\)"),
        ({"weights": [w.double() for w in weights]}, "one float type"),
        ({"weights": weights[:1]}, "same layers"),
        ({"impl": "compiled"}, "reference, triton"),
    ]
    plain = {"x": x, "y": y, "weights": weights, "biases": biases, "activation": "relu"}
    for changed, said in cases:
        with pytest.raises(ValueError, match=said):
            mlp_forward(**{**plain, **changed})


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_every_configuration_on_a_gpu(width: int, activation: str) -> None:
    widths = (64, width, width, 10)
    ends, others, (x, y) = population(widths, 50), population(widths, 50, 1), samples(widths, 360)
    for given in ({}, {"other": others, "alphas": [0.0, 0.4, 1.0]}):
        if given and width > triton_forward.MIXED_UP_TO:
            continue
        found, right = (mlp_forward(x, y, *ends, activation, logits=True, impl=i, **given) for i in IMPLEMENTATIONS)  # type: ignore[arg-type]
        torch.testing.assert_close(found.logits, right.logits, rtol=0, atol=10 * ROUNDING)
        torch.testing.assert_close(found.loss_sum, right.loss_sum, rtol=10 * ROUNDING, atol=0)
        wrong = (found.error_bits != right.error_bits).double().mean()
        assert float(wrong) < 1e-3  # a tie that rounding turns round
