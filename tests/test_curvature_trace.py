"""Traces without sampling against the definition, one product a parameter, in float64."""

import pytest
import torch
from torch import nn

from kernels.curvature import chunks, columns
from kernels.curvature.trace import dense_trace, exact_trace, has_exact_trace
from kernels.losses import LOSSES
from kernels.mlp.network import UnsupportedError
from tests.test_curvature import EXACT, IMPLEMENTATIONS, NAMES, ROUGH, close, cnn, mlp, problem
from zoo.architectures import ARCHITECTURES, Architecture

CANCELS = 100  # times the tolerance: traces are sums of terms of both signs


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss_function", LOSSES)
@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize(
    "widths", [(3, 2), (4, 5, 3), (1, 1, 2), (3, 9, 4, 3), (2, 5, 3, 4, 3), (2, 3, 17, 4, 5, 3), (3, 20, 2)]
)
def test_multilayer_perceptrons(widths: tuple[int, ...], activation: str, loss_function: str, impl: str) -> None:
    module = mlp(widths, activation)
    weights, x, y, _ = problem(module, widths[:1], widths[-1])
    true = dense_trace(module, weights, x, y, loss_function=loss_function)
    found = exact_trace(module, weights, x, y, loss_function=loss_function, impl=impl)
    close(found, true, CANCELS * EXACT)
    single = exact_trace(module, weights.float(), x.float(), y, loss_function=loss_function, impl=impl)
    assert single.dtype == torch.float32
    close(single, true, CANCELS * ROUGH)
    assert has_exact_trace(module)


@pytest.mark.parametrize("activation", NAMES)
def test_many_samples_and_odd_widths(activation: str) -> None:
    """Several blocks, chunks of columns that do not fill tiles, and two threads: against the reference."""
    module = mlp((6, 33, 18, 21, 12), activation)
    weights, x, y, _ = problem(module, (6,), 12, models=3, samples=301)
    true = exact_trace(module, weights, x, y, impl="reference")
    close(exact_trace(module, weights, x, y, threads=2), true, EXACT)
    close(exact_trace(module, weights.float(), x.float(), y), true, 1e-5)


@pytest.mark.parametrize("loss_function", LOSSES)
def test_sure_and_unsure_networks(loss_function: str) -> None:
    """Where a probability is nearly 1, what is left in float32 is still right to some digits."""
    module = mlp((4, 7, 3), "tanh")
    weights, x, y, _ = problem(module, (4,), 3)
    weights[:, -3] = torch.tensor([12.0, -12.0], dtype=torch.float64)
    true = dense_trace(module, weights, x, y, loss_function=loss_function)
    found = exact_trace(module, weights.float(), x.float(), y, loss_function=loss_function)
    torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=0)


def test_no_bit_depends_on_companions_or_threads() -> None:
    module = mlp((6, 17, 9, 5), "silu")
    weights, x, y, _ = problem(module, (6,), 5, models=5, samples=150)
    weights, x = weights.float(), x.float()
    whole = exact_trace(module, weights, x, y, threads=1)
    assert torch.equal(exact_trace(module, weights, x, y, threads=3), whole)
    assert torch.equal(exact_trace(module, weights[2:3], x, y[2:3]), whole[2:3])


@pytest.mark.parametrize("loss_function", LOSSES)
@pytest.mark.parametrize(("norm", "channels"), [("none", 3), ("batch", 4), ("batch", 2)])
def test_networks_with_convolutions(norm: str, channels: int, loss_function: str) -> None:
    module = cnn(norm, channels).build("meta")
    weights, x, y, _ = problem(module, (1, 8, 8), 3, samples=5)
    true = dense_trace(module, weights, x, y, loss_function=loss_function)
    assert has_exact_trace(module)
    close(exact_trace(module, weights, x, y, loss_function=loss_function), true, EXACT)
    assert module.training  # as it was


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.LeakyReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                      nn.Linear(3, 2)),
        nn.Sequential(nn.Sequential(nn.Conv2d(2, 4, (2, 3), dilation=(1, 2), bias=False), nn.AvgPool2d(2)), nn.ReLU(),
                      nn.Flatten(), nn.Linear(8, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)),
        nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(2), nn.Flatten(), nn.Identity(), nn.Linear(18, 2)),
        nn.Linear(6, 2),
    ],
    ids=["strides", "dilation", "norm first", "one layer"],
)  # fmt: skip  # a table
@pytest.mark.parametrize("room", [1, 1 << 20])
def test_piecewise_linear_layers(module: nn.Module, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunks.ROOM, "cpu", room)
    shape = (6,) if isinstance(module, nn.Linear) else (2, 6, 6)
    weights, x, y, _ = problem(module, shape, 2, samples=4)
    close(exact_trace(module, weights, x, y), dense_trace(module, weights, x, y), EXACT)


def test_what_has_no_exact_trace() -> None:
    shared = nn.Linear(4, 4)
    for module, message in (
        (cnn("group").build("meta"), "GroupNorm"),
        (nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(2, 2)), "Tanh"),
        (nn.Sequential(shared, nn.ReLU(), shared, nn.LeakyReLU(), nn.Linear(4, 2)), "twice"),
        (nn.Sequential(nn.Conv2d(2, 2, 2, groups=2), nn.Flatten()), "groups"),
        (nn.Sequential(nn.Conv2d(1, 2, 2, padding="same"), nn.Flatten()), "numbers"),
        (nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.Flatten()), "BatchNorm"),
        (nn.Sequential(nn.Linear(2, 2), nn.Flatten(0)), "flatten"),
        (nn.Sequential(), "no layers"),
    ):
        assert not has_exact_trace(module)
        with pytest.raises(UnsupportedError, match=message):
            exact_trace(module, torch.zeros(1, 9), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))


def test_arguments_that_do_not_fit() -> None:
    module = mlp((4, 5, 3))
    weights, x, y, _ = problem(module, (4,), 3)
    with pytest.raises(ValueError, match="loss_function must be one of"):
        exact_trace(module, weights, x, y, loss_function="hinge")
    with pytest.raises(ValueError, match="labels must be from"):
        exact_trace(module, weights, x, y + 3)
    with pytest.raises(UnsupportedError, match="Conv2d"):
        exact_trace(cnn("none").build("meta"), weights, x, y, impl="compiled")


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_family_is_answered_for(family: str) -> None:
    module = Architecture(family, {}, (1, 8, 8), 3).build("meta")
    weights, x, y, _ = problem(module, (1, 8, 8), 3, models=1, samples=2)
    if has_exact_trace(module):
        assert exact_trace(module, weights, x, y).isfinite().all()
    else:
        with pytest.raises(UnsupportedError):
            exact_trace(module, weights, x, y)


def test_columns_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No chunk of samples is too small or too large."""
    module = mlp((3, 6, 5, 7, 4), "gelu")
    weights, x, y, _ = problem(module, (3,), 4, samples=70)
    true = exact_trace(module, weights, x, y, impl="reference")
    for numbers in (1, 300, 1 << 20):
        monkeypatch.setattr(columns, "COLUMNS", numbers)
        close(exact_trace(module, weights, x, y), true, EXACT)
