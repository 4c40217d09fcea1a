"""Population forward: batched, under vmap, and one torch module after another give the same numbers."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kernels.population import Dropout, Noise, forward, forward_batched, forward_of, forward_vmap
from kernels.random import words
from weightspace.layout import Layout
from zoo.architectures import ARCHITECTURES, Architecture

MODELS, BATCH = 3, 5
CASES = [
    Architecture("mlp", {"depth": depth, "width": 7, "activation": activation}, shape, 4)
    for depth, activation, shape in [
        (0, "relu", (6,)),
        (1, "tanh", (2, 3, 3)),
        (2, "gelu", (6,)),
        (3, "silu", (1, 8, 8)),
    ]
] + [
    Architecture("cnn", {"style": style, "channels": channels, "activation": activation, "norm": norm}, shape, 3)
    for style, channels, activation, norm, shape in [
        ("model_zoo", 8, "relu", "none", (1, 8, 8)),
        ("model_zoo", 6, "gelu", "group", (3, 28, 28)),
        ("model_zoo", 4, "tanh", "batch", (3, 12, 12)),
        ("small_cnn_zoo", 8, "silu", "group", (1, 16, 16)),
        ("small_cnn_zoo", 5, "relu", "batch", (3, 32, 32)),
        ("small_cnn_zoo", 1, "tanh", "none", (1, 9, 9)),
    ]
]
NORMED = [case for case in CASES if case.has_batch_norm]


def test_every_family_is_covered() -> None:
    assert {case.family for case in CASES} == set(ARCHITECTURES)


def population(module: nn.Module, models: int = MODELS) -> tuple[Layout, Tensor]:
    """Weights (models, size), float64, cut out of a larger buffer of NaN."""
    layout = Layout.from_module(module)
    generator = torch.Generator().manual_seed(0)
    buffer = torch.full((models + 2, layout.size + 4), torch.nan, dtype=torch.float64)
    weights = buffer[1:-1, 2:-2]
    weights.copy_(torch.randn(models, layout.size, dtype=torch.float64, generator=generator) / 3)
    for name in layout.names:
        if name.endswith("running_var"):
            layout.tensor(weights, name).abs_().add_(0.5)
    return layout, weights


def images(shape: tuple[int, ...], shared: bool) -> Tensor:
    lead = (BATCH,) if shared else (MODELS, BATCH)
    return torch.randn(*lead, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def one_by_one(module: nn.Module, layout: Layout, weights: Tensor, x: Tensor, shared: bool, training: bool) -> Tensor:
    """Outputs of every model by itself; in training, running statistics are written back into `weights`."""
    out = []
    for model, row in enumerate(weights):
        module.load_state_dict(layout.unflatten(row))
        out.append(module.train(training)(x if shared else x[model]).detach())
        row.copy_(layout.flatten(module.state_dict()))
    return torch.stack(out)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # float64, sums of at most some hundred terms


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_batched_is_vmap_is_one_by_one(case: Architecture, shared: bool) -> None:
    module = case.build().double()
    layout, weights = population(module)
    x = images(case.input_shape, shared)
    truth = one_by_one(module, layout, weights, x, shared, training=False)
    assert truth.isfinite().all()
    assert forward_of(module) is forward_batched
    tensors = layout.unflatten(weights)
    close(forward_batched(case.build("meta"), tensors, x, shared=shared), truth)
    close(forward_vmap(module, tensors, x, shared=shared), truth)
    if not case.has_batch_norm:
        close(forward(module, tensors, x, shared=shared, training=True), truth)


@pytest.mark.parametrize("case", NORMED, ids=lambda case: case.name)
def test_batch_norm_in_training_also_updates_its_statistics(case: Architecture) -> None:
    module = case.build().double()
    layout, weights = population(module)
    before, ours, x = weights.clone(), weights.clone(), images(case.input_shape, shared=False)
    truth = one_by_one(module, layout, weights, x, shared=False, training=True)
    close(forward(case.build("meta"), layout.unflatten(ours), x, training=True), truth)
    close(ours, weights)
    changed = {name for name in layout.names if not torch.equal(layout.tensor(ours, name), layout.tensor(before, name))}
    assert changed == {name for name, role in zip(layout.names, layout.roles, strict=True) if role == "buffer"}
    with pytest.raises(ValueError, match="'norm0' is BatchNorm"):
        forward_vmap(module, layout.unflatten(ours), x, training=True)


def some_noise() -> Noise:
    return Noise(
        torch.tensor([1, -5, 2**62]), torch.tensor([0, 7, 9]), torch.arange(MODELS * BATCH).view(MODELS, BATCH) * 3,
        torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64),
    )  # fmt: skip  # a row an argument would hide that these are four columns


def mask_of(noise: Noise, model: int, sample: int, site: int, count: int) -> np.ndarray:
    """One sample's mask by the definition, (count,) float64."""
    key, rate = noise.key[model : model + 1].numpy().view(np.uint64), float(noise.rate[model])
    drawn = words(key, site, int(noise.step[model]), int(noise.position[model, sample]), count=count)[0]
    return np.where(drawn < np.ceil(rate * 2**32), 0, 1 / (1 - rate))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("case", [c for c in CASES if not c.has_batch_norm], ids=lambda case: case.name)
def test_dropout_is_the_same_in_both_paths_and_by_hand(case: Architecture, shared: bool) -> None:
    module, noise, x = case.build().double(), some_noise(), images(case.input_shape, shared)
    layout, weights = population(module)
    tensors = layout.unflatten(weights)
    current = {"model": 0}

    def drop(layer: nn.Module, _inputs: object, out: Tensor) -> Tensor:
        assert isinstance(layer, Dropout)
        masks = [mask_of(noise, current["model"], n, layer.site, out[0].numel()) for n in range(BATCH)]
        return out * torch.from_numpy(np.stack(masks)).view_as(out)

    batched = forward_batched(module, tensors, x, shared=shared, noise=noise)
    close(forward_vmap(module, tensors, x, shared=shared, noise=noise), batched)
    hooks = [layer.register_forward_hook(drop) for layer in module.modules() if isinstance(layer, Dropout)]
    for current["model"] in range(MODELS):
        module.load_state_dict(layout.unflatten(weights[current["model"]]))
        close(batched[current["model"]], module(x if shared else x[current["model"]]).detach())
    assert hooks or case.numbers.get("depth") == 0


class Residual(nn.Module):
    """Not a Sequential: only vmap can take it."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.drop, self.out = nn.Linear(6, 6), Dropout(0), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.drop(torch.tanh(self.inside(x))))


def test_any_module_runs_under_vmap_with_dropout() -> None:
    module, noise, x = Residual().double(), some_noise(), images((6,), shared=False)
    layout, weights = population(module)
    assert forward_of(module) is forward_vmap
    close(
        forward(module, layout.unflatten(weights), x),
        one_by_one(module, layout, weights, x, shared=False, training=False),
    )
    out = forward(module.train(), layout.unflatten(weights), x, training=True, noise=noise)
    for model in range(MODELS):
        t = layout.unflatten(weights[model])
        mask = torch.from_numpy(np.stack([mask_of(noise, model, n, Dropout.SITE, 6) for n in range(BATCH)]))
        hidden = x[model] + mask * torch.tanh(x[model] @ t["inside.weight"].T + t["inside.bias"])
        close(out[model], hidden @ t["out.weight"].T + t["out.bias"])
    assert module.drop.mask is None  # afterwards it is an ordinary module again
    assert module.training


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


RELU = nn.ReLU()
ODD = {
    "a layer in two places": nn.Sequential(nn.Linear(4, 4), RELU, nn.Linear(4, 4), RELU, nn.Linear(4, 2)),
    "a subclass": nn.Sequential(Doubled(4, 2)),
    "a norm on vectors": nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Linear(4, 2)),
    "no bias": nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)),
    "no flatten": nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU()),
    "grouped": nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 2)),
    "norm first": nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 2)),
    "bare convolution": nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.MaxPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    "nested": nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), nn.Linear(3, 2)),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_modules_from_elsewhere(name: str, shared: bool) -> None:
    module = ODD[name].double()
    layout, weights = population(module)
    convolves = any(isinstance(layer, nn.Conv2d) for layer in module)
    x = images((4, 3, 3) if convolves else (4,), shared)
    truth = one_by_one(module, layout, weights, x, shared, training=False)
    close(forward(module, layout.unflatten(weights), x, shared=shared), truth)


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.Dropout1d(0.1), nn.AlphaDropout(0.1)])
def test_dropout_of_torch_is_refused_in_training(layer: nn.Module) -> None:
    module = nn.Sequential(nn.Linear(4, 4), layer).double()
    layout, weights = population(module)
    with pytest.raises(ValueError, match=r"use kernels\.population\.Dropout"):
        forward(module, layout.unflatten(weights), images((4,), shared=False), training=True)
    assert forward(module, layout.unflatten(weights), images((4,), shared=False)).isfinite().all()
