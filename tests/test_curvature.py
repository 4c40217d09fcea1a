"""Products, forms and gradients of Hessians: compiled code and the reference against dense Hessians in float64."""

import functools
import itertools
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kernels.curvature import autograd, chunks, compiled
from kernels.curvature.surface import surface
from kernels.losses import LOSSES
from kernels.mlp.network import ACTIVATIONS, UnsupportedError
from kernels.population import Dropout
from zoo.architectures import Architecture

NAMES = tuple(ACTIVATIONS.values())
IMPLEMENTATIONS = ("compiled", "reference")
EXACT = 1e-12  # relative, of float64: sums of some hundred terms of 1e-16
ROUGH = 2e-6  # of float32, whose terms round by 6e-8


def mlp(widths: tuple[int, ...], activation: str = "relu") -> nn.Sequential:
    kind = next(kind for kind, name in ACTIVATIONS.items() if name == activation)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), kind()]
    return nn.Sequential(*layers[:-1])


def problem(module: nn.Module, shape: tuple[int, ...], classes: int, models: int = 2, samples: int = 9) -> Any:
    """Weights that are not small, inputs, labels of each model's own, and vectors."""
    generator = torch.Generator().manual_seed(0)
    tensors = (*module.named_parameters(), *module.named_buffers())
    size = sum(tensor.numel() for _, tensor in tensors)
    weights = 0.5 * torch.randn(models, size, generator=generator, dtype=torch.float64)
    place = 0
    for name, tensor in tensors:
        if name.endswith("running_var"):
            weights[:, place : place + tensor.numel()] = 0.5 + weights[:, place : place + tensor.numel()].abs()
        place += tensor.numel()
    x = torch.randn(samples, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(0, classes, (models, samples), generator=generator)
    return weights, x, y, torch.randn(models, 3, size, generator=generator, dtype=torch.float64)


@functools.cache
def dense(widths: tuple[int, ...], activation: str, loss_function: str) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, gradients and Hessians by torch, model by model."""
    module = mlp(widths, activation).double()
    weights, x, y, _ = problem(module, widths[:1], widths[-1])
    found = []
    for one, labels in zip(weights, y, strict=True):

        def loss(flat: Tensor, labels: Tensor = labels) -> Tensor:
            state, place = {}, 0
            for name, parameter in module.named_parameters():
                state[name] = flat[place : place + parameter.numel()].view_as(parameter)
                place += parameter.numel()
            return LOSSES[loss_function](torch.func.functional_call(module, state, (x,)), labels).mean()

        functional = torch.autograd.functional
        found.append((loss(one).detach(), functional.jacobian(loss, one), functional.hessian(loss, one)))
    losses, gradients, hessians = (torch.stack(values) for values in zip(*found, strict=True))
    return losses, gradients, hessians


def close(found: Tensor, true: Tensor, tolerance: float) -> None:
    """Relative to the norm of all."""
    assert found.shape == true.shape
    assert float((found.double() - true).norm()) <= tolerance * float(true.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss_function", LOSSES)
@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("widths", [(3, 2), (4, 5, 3), (1, 1, 2), (3, 9, 4, 3), (2, 5, 3, 4, 3)])
def test_agrees_with_dense_hessians(
    widths: tuple[int, ...], activation: str, loss_function: str, impl: str, dtype: torch.dtype
) -> None:
    losses, gradients, hessians = dense(widths, activation, loss_function)
    module = mlp(widths, activation)
    weights, x, y, vectors = problem(module, widths[:1], widths[-1])
    here = surface(module, weights.to(dtype), x.to(dtype), y, loss_function=loss_function, impl=impl)
    tolerance = EXACT if dtype == torch.float64 else ROUGH
    products = vectors @ hessians
    for _ in range(2):  # what is kept between calls changes nothing
        close(here.losses(), losses, tolerance)
        close(here.gradients(), gradients, tolerance)
        close(here.forms(vectors.to(dtype)), (products * vectors).sum(-1), 10 * tolerance)  # they cancel
        close(here.products(vectors.to(dtype)), products, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", NAMES)
def test_of_more_than_a_block(activation: str, dtype: torch.dtype) -> None:
    """1,200 samples in several blocks, widths of several tiles and a rest, against the reference in float64."""
    widths = (20, 33, 18, 10)
    module = mlp(widths, activation)
    weights, x, y, vectors = problem(module, widths[:1], widths[-1], samples=1200)
    true = surface(module, weights, x, y, impl="reference")
    here = surface(module, weights.to(dtype), x.to(dtype), y, impl="compiled")
    tolerance = EXACT if dtype == torch.float64 else ROUGH
    close(here.losses(), true.losses(), tolerance)
    close(here.gradients(), true.gradients(), tolerance)
    close(here.products(vectors.to(dtype)), true.products(vectors), tolerance)
    close(here.forms(vectors.to(dtype)), true.forms(vectors), 10 * tolerance)


@given(
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    classes=st.integers(2, 20),
    samples=st.integers(1, 140),
    models=st.integers(1, 4),
    count=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_any_sizes(widths: list[int], classes: int, samples: int, models: int, count: int, seed: int) -> None:
    """Symmetry, u'Hv = v'Hu, forms, and chunks, of the compiled code alone and against the reference."""
    module = mlp((*widths, classes), NAMES[seed % 4])
    weights, x, y, _ = problem(module, tuple(widths[:1]), classes, models, samples)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(models, count, weights.shape[1], generator=generator, dtype=torch.float64)
    here = surface(module, weights, x, y, impl="compiled", threads=2)
    products = here.products(vectors)
    scale = float(products.norm() * vectors.norm()) + 1e-300
    inner = products @ vectors.transpose(1, 2)
    torch.testing.assert_close(inner, inner.transpose(1, 2), rtol=0, atol=EXACT * scale)
    torch.testing.assert_close(here.forms(vectors), inner.diagonal(0, 1, 2), rtol=0, atol=EXACT * scale)
    true = surface(module, weights, x, y, impl="reference").products(vectors)
    torch.testing.assert_close(products, true, rtol=0, atol=EXACT * (float(true.norm()) + 1e-300))


@pytest.mark.parametrize("kept", [0, 1 << 28])
def test_no_bit_depends_on_companions_threads_or_what_is_kept(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    module = mlp((6, 17, 5), "gelu")
    weights, x, y, vectors = problem(module, (6,), 5, models=5, samples=150)
    weights, x, vectors = weights.float(), x.float(), vectors.float()

    def all_of(models: slice, **options: Any) -> list[Tensor]:
        here = surface(module, weights[models], x, y[models], impl="compiled", **options)
        mine = vectors[models]
        return [here.forms(mine), here.products(mine), here.products(mine), here.forms(mine), here.gradients()]

    whole = all_of(slice(0, 5), threads=1)
    monkeypatch.setattr(compiled, "KEPT", kept)
    monkeypatch.setattr(compiled, "TOGETHER", 1)  # a vector at a time
    for models, options in ((slice(0, 5), {"threads": 3}), (slice(3, 4), {}), (slice(1, 5), {"threads": 9})):
        for found, expected in zip(all_of(models, **options), whole, strict=True):
            assert torch.equal(found, expected[models])


def test_what_buffers_hold_reaches_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms that hold NaN before they are used, as freed memory may."""
    module = mlp((3, 7, 5, 3), "tanh")
    weights, x, y, vectors = problem(module, (3,), 3)

    def everything() -> list[Tensor]:
        here = surface(module, weights, x, y, impl="compiled")
        return [here.losses(), here.gradients(), here.products(vectors), here.forms(vectors)]

    before = everything()
    rows = compiled.rows

    def filled(count: int, size: int, dtype: Any) -> np.ndarray:
        room = rows(count, size, dtype)
        room[:] = np.nan
        return room

    monkeypatch.setattr(compiled, "rows", filled)
    for found, expected in zip(everything(), before, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_shared_labels(impl: str) -> None:
    module = mlp((4, 5, 3))
    weights, x, y, vectors = problem(module, (4,), 3)
    shared = surface(module, weights, x, y[0], impl=impl)
    own = surface(module, weights, x, y[:1].expand(2, -1), impl=impl)
    assert torch.equal(shared.products(vectors), own.products(vectors))
    assert not torch.equal(shared.losses(), surface(module, weights, x, y, impl=impl).losses())


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_vectors_of_all_models(impl: str) -> None:
    """Not copied for each model."""
    module = mlp((4, 5, 3))
    weights, x, y, vectors = problem(module, (4,), 3)
    for threads in (1, 2):
        here = surface(module, weights, x, y, impl=impl, threads=threads)
        shared = vectors[0].expand(2, -1, -1)
        assert torch.equal(here.products(shared), here.products(shared.clone()))
        assert torch.equal(here.forms(shared), here.forms(shared.clone()))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_saturated_and_dead_networks(impl: str) -> None:
    """Weights so large that probabilities are 0 and 1, and ReLUs that never fire: finite, and zero where it should."""
    module = mlp((4, 6, 3))
    weights, x, y, vectors = problem(module, (4,), 3)
    vectors = vectors.float()
    here = surface(module, 1e4 * weights.float(), x.float(), y, impl=impl)
    for found in (here.losses(), here.gradients(), here.products(vectors), here.forms(vectors)):
        assert found.isfinite().all()
    weights[:, 24:30] = -1e6  # biases of the hidden layer
    dead = surface(module, weights, x, y, impl=impl).products(vectors.double())
    assert (dead[:, :, :30] == 0).all()
    assert (dead[:, :, -3:] != 0).any()


def test_a_model_that_is_not_finite_leaves_the_others_alone() -> None:
    module = mlp((4, 6, 3))
    weights, x, y, vectors = problem(module, (4,), 3, models=3)
    good = surface(module, weights, x, y, impl="compiled").products(vectors)
    weights[1, 2] = float("nan")
    found = surface(module, weights, x, y, impl="compiled", threads=1).products(vectors)
    assert torch.equal(found[[0, 2]], good[[0, 2]])
    assert found[1].isnan().any()


def cnn(norm: str, channels: int = 4) -> Architecture:
    return Architecture("cnn", {"channels": channels, "norm": norm}, (1, 8, 8), 3)


# Of two channels the last norm has one: a view of its weight, of all models, has gaps.
@pytest.mark.parametrize(("norm", "channels"), [("none", 4), ("group", 4), ("batch", 4), ("batch", 2)])
def test_networks_with_convolutions(norm: str, channels: int) -> None:
    """By the reference: against differences of gradients; buffers are ignored and get zeros."""
    module = cnn(norm, channels).build("meta")
    weights, x, y, vectors = problem(module, (1, 8, 8), 3)
    here = surface(module, weights, x, y)
    assert isinstance(here, autograd.Autograd)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    products = here.products(vectors)
    assert (products[:, :, parameters:] == 0).all()
    changed = vectors.clone()
    changed[:, :, parameters:] = 7
    assert torch.equal(here.products(changed), products)
    assert torch.equal(here.forms(changed), here.forms(vectors))
    # Central differences of gradients: their error is of the third derivative times the square of the step.
    step = 1e-6 * vectors[:, 0] / vectors[:, 0].norm(dim=-1, keepdim=True)
    step[:, parameters:] = 0
    ends = [surface(module, weights + sign * step, x, y).gradients() for sign in (1, -1)]
    close((ends[0] - ends[1]) / 2 * (vectors[:, 0].norm(dim=-1, keepdim=True) / 1e-6), products[:, 0], 1e-6)


def test_the_reference_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms too small for a model and sample, for some of each, and for all: the same numbers."""
    module = cnn("none").build("meta")
    weights, x, y, vectors = problem(module, (1, 8, 8), 3, models=3, samples=11)
    found, several_kept = [], False
    for room in (1, 1 << 14, 1 << 16, 1 << 30):
        monkeypatch.setitem(chunks.ROOM, "cpu", room)
        monkeypatch.setattr(chunks, "SAMPLES", 4)
        here = autograd.Autograd(module, weights, x, y, "cross_entropy")
        found.append([here.losses(), here.gradients(), here.products(vectors), here.forms(vectors)])
        assert bool(here.kept) == here.keeps == (room > 1 << 14)
        several_kept |= len(here.kept) > 1
        found.append(
            [here.losses(), here.gradients(), here.products(vectors), here.forms(vectors)]
        )  # from what is kept
    assert several_kept
    for several in zip(*found, strict=True):
        for one in several[1:]:
            torch.testing.assert_close(one, several[0], rtol=1e-12, atol=1e-12)


@given(st.integers(1, 50), st.integers(1, 40), st.integers(1, 600), st.integers(1, 10_000))
def test_chunks_cover_all(each: int, models: int, samples: int, room: int) -> None:
    for count, slices in zip((models, samples), chunks.parts(each, models, samples, room), strict=True):
        assert [i for one in slices for i in range(one.start, one.stop)] == list(range(count))
    together, these = (
        max(one.stop - one.start for one in found) for found in chunks.parts(each, models, samples, room)
    )
    assert together * these * each <= max(room, each)


def test_what_compiled_code_cannot_do() -> None:
    module = mlp((4, 5, 3))
    weights, x, y, _ = problem(module, (4,), 3)
    with pytest.raises(UnsupportedError, match="float16"):
        surface(module, weights.half(), x.half(), y, impl="compiled")
    with pytest.raises(UnsupportedError, match="Conv2d"):
        surface(cnn("none").build("meta"), weights, x, y, impl="compiled")
    with pytest.raises(UnsupportedError, match="on meta"):
        surface(module, weights.to("meta"), x, y, impl="compiled")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"impl": "triton"}, "impl must be"),
        ({"loss_function": "hinge"}, "loss_function must be one of"),
        ({"weights": torch.zeros(2, 44)}, r"weights must be \(models, 43\)"),
        ({"x": torch.zeros(9, 5)}, r"inputs must be \(samples, 4\)"),
        ({"x": torch.zeros(0, 4), "y": torch.zeros(0, dtype=torch.int64)}, "inputs must be"),
        ({"x": torch.zeros(9, 4, dtype=torch.float64)}, "float32, got"),
        ({"y": torch.zeros(3, 9, dtype=torch.int64)}, r"labels must be \(9,\) or \(2, 9\)"),
        ({"y": torch.full((9,), 3)}, "labels must be from 0 to 2"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    module = mlp((4, 5, 3))
    weights, x, y, _ = problem(module, (4,), 3)
    given: dict[str, Any] = {"weights": weights.float(), "x": x.float(), "y": y, **change}
    with pytest.raises(ValueError, match=message):
        surface(module, given.pop("weights"), given.pop("x"), given.pop("y"), **given)
    with pytest.raises(ValueError, match="vectors must be"):
        surface(module, weights, x, y).products(torch.zeros(2, 44, dtype=torch.float64))


def test_dropout_and_images_are_no_obstacle() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.SiLU(), Dropout(0), nn.Linear(5, 3))
    weights, x, y, vectors = problem(module, (1, 2, 2), 3)
    found = [surface(module, weights, x, y, impl=impl).products(vectors) for impl in IMPLEMENTATIONS]
    close(found[0], found[1], EXACT)


def test_no_models() -> None:
    module = mlp((4, 5, 3))
    weights, x, y, _ = problem(module, (4,), 3)
    here = surface(module, weights[:0], x, y[0])
    assert here.losses().shape == (0,)
    assert here.products(weights.new_zeros(0, 2, 43)).shape == (0, 2, 43)


def test_surfaces_work_in_threads_at_once() -> None:
    module = mlp((6, 9, 4), "tanh")
    weights, x, y, vectors = problem(module, (6,), 4, models=4, samples=100)
    true = surface(module, weights, x, y).products(vectors)
    found: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: found.append(surface(module, weights, x, y).products(vectors)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(torch.equal(one, true) for one in found)
