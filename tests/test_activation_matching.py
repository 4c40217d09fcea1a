"""Activation matching: planted permutations, correlations in closed form, heads, and units that do nothing."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.families import FAMILIES, Network, mlp, vit
from weightspace.layout import Layout
from weightspace.rebasin.activations import Correlations, match_activations
from weightspace.rebasin.alignment import AlignmentError
from weightspace.rebasin.taps import Tap, activations, find_taps
from weightspace.symmetry import Group, Symmetry


def inputs(network: Network, batches: int = 3, samples: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(samples, *network.input_shape, generator=generator) for _ in range(batches)]


@pytest.mark.parametrize("correlation", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_planted_permutations_are_recovered(family: str, correlation: bool) -> None:
    network = FAMILIES[family](8)
    symmetry = network.symmetry
    reference = network.random_weights(1)
    planted = symmetry.permute(reference.expand(6, -1), symmetry.random(6, seed=1))
    found = match_activations(symmetry, network.module, planted, reference[0], inputs(network), correlation=correlation)
    assert torch.equal(symmetry.permute(planted, found.permutations), reference.expand(6, -1))
    assert found.finished.all()


def test_streamed_correlations_are_those_of_all_samples_at_once() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(90, 5)), generator.normal(size=(3, 90, 5)) + 2
    a[:, 2] = b[1, :, 3] = 7.3  # units that never change
    total = Correlations(3, 5, torch.device("cpu"))
    for part in (slice(0, 40), slice(40, 90)):
        for models in (slice(0, 2), slice(2, 3)):
            total.add(torch.from_numpy(a[part]), torch.from_numpy(b[models, part]), models)
    found = total.worth(correlation=True).numpy()
    for model in range(3):
        np.testing.assert_allclose(total.worth().numpy()[model], a.T @ b[model] / 90, rtol=1e-12)  # sums of 90
        live = [(i, j) for i in range(5) for j in range(5) if i != 2 and (model, j) != (1, 3)]
        for i, j in live:
            assert found[model, i, j] == pytest.approx(np.corrcoef(a[:, i], b[model, :, j])[0, 1], abs=1e-12)
    assert not found[:, 2].any()
    assert not found[1, :, 3].any()


def test_dead_units_give_an_order_all_the_same() -> None:
    network = mlp(12)
    layout = network.symmetry.layout
    weights = network.random_weights(3)
    layout.tensor(weights, "hidden0.weight")[:, :5] = 0
    layout.tensor(weights, "hidden0.bias")[:, :5] = 0
    planted = network.symmetry.permute(weights[:1].expand(3, -1), network.symmetry.random(3))
    batches = inputs(network)
    for correlation in (False, True):
        found = match_activations(
            network.symmetry, network.module, planted, weights[0], batches, correlation=correlation
        )
        network.symmetry.check(found.permutations, 3)
        back = network.symmetry.permute(planted, found.permutations)
        for tensor in ("hidden0.weight", "hidden0.bias"):
            assert torch.equal(layout.tensor(back, tensor), layout.tensor(weights[:1].expand(3, -1), tensor))


class Fused(nn.Module):
    """Attention with one layer for query, key and value, a branch on values, and an embedding by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8, bias=False)

    def forward(self, tokens: Tensor, sharpness: float) -> Tensor:
        x = self.embed(tokens)
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = (sharpness * q @ k.mT).softmax(-1) @ v
        if mixed.abs().sum() < 0:  # vmap refuses this
            raise AssertionError
        return self.out(mixed.transpose(1, 2).flatten(2))


FUSED = Fused()
FUSED_SYMMETRY = Symmetry(
    Layout.from_module(FUSED),
    {
        "embed.weight": (None, "stream"),
        "qkv.weight": ("heads qk + heads qk + heads vo", "stream"),
        "qkv.bias": ("heads qk + heads qk + heads vo",),
        "out.weight": (None, "heads vo"),
    },
    {"heads": Group(2), "qk": Group(4, "heads"), "vo": Group(4, "heads"), "stream": Group(8)},
)


def test_parts_of_a_fused_layer_named_inputs_and_groups_that_no_layer_shows() -> None:
    taps = find_taps(FUSED_SYMMETRY, FUSED)
    assert [(tap.module, tap.start, tap.stop, tap.chain) for tap in taps] == [
        ("qkv", 0, 8, ("heads", "qk")),
        ("qkv", 8, 16, ("heads", "qk")),
        ("qkv", 16, 24, ("heads", "vo")),
    ]
    reference = torch.randn(1, FUSED_SYMMETRY.layout.size, generator=torch.Generator().manual_seed(3))
    planted = FUSED_SYMMETRY.permute(reference.expand(5, -1), FUSED_SYMMETRY.random(5))
    tokens = torch.randint(0, 11, (6, 7), generator=torch.Generator().manual_seed(4))
    batches: Iterator[dict[str, Any]] = iter([{"tokens": tokens, "sharpness": 0.5}])
    found = match_activations(FUSED_SYMMETRY, FUSED, planted, reference[0], batches)
    assert torch.equal(FUSED_SYMMETRY.permute(planted, found.permutations), reference.expand(5, -1))


def test_activations_are_what_the_layers_put_out() -> None:
    network = vit(8, heads=2, depth=1)
    weights = network.random_weights(2)
    batch = inputs(network, 1)[0]
    taps = find_taps(network.symmetry, network.module)
    by_module = {tap.module: values for tap, values in _seen(network, weights, batch).items()}
    assert {"patches", "blocks.0.query", "blocks.0.up", "blocks.0.down"} <= set(by_module)
    assert "norm" not in {tap.module for tap in taps}  # layers with a matrix show the stream already
    tensors = network.symmetry.layout.unflatten(weights[1])
    patches = torch.nn.functional.conv2d(batch, tensors["patches.weight"], tensors["patches.bias"], stride=4)
    torch.testing.assert_close(by_module["patches"][1], patches.movedim(1, -1).reshape(-1, 8), rtol=1e-4, atol=1e-5)


def _seen(network: Network, weights: Tensor, batch: Tensor) -> dict[Tap, Tensor]:
    taps = find_taps(network.symmetry, network.module)
    return activations(network.module, network.symmetry.layout, weights, batch, taps)


def test_only_chosen_groups_move() -> None:
    network = vit(8, heads=2, depth=1)
    weights, reference = network.random_weights(3), network.random_weights(1, seed=5)[0]
    for chosen in (["mlp0"], ["heads0"], ["vo0"]):
        found = match_activations(
            network.symmetry,
            network.module,
            weights,
            reference,
            inputs(network),
            groups=chosen,
        )
        identity = network.symmetry.identity(3)
        for name, p in found.permutations.items():
            assert np.array_equal(p, identity[name]) == (name not in chosen)


def test_bad_input_is_named() -> None:
    network = mlp(4)
    weights = network.random_weights(2)
    with pytest.raises(AlignmentError, match="got no batches"):
        match_activations(network.symmetry, network.module, weights, weights[0], [])
    with pytest.raises(AlignmentError, match="activations of the reference must be finite"):
        match_activations(network.symmetry, network.module, weights, weights[0], [torch.full((2, 64), torch.nan)])
    huge = weights.clone()
    huge[1] *= 1e37
    with pytest.raises(AlignmentError, match="not so in 'hidden0' of models 1"):
        match_activations(network.symmetry, network.module, huge, weights[0], [torch.full((2, 64), 100.0)])
    none = match_activations(network.symmetry, network.module, weights[:0], weights[0], [torch.ones(2, 64)])
    network.symmetry.check(none.permutations, 0)
