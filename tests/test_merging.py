"""Means, soups and REPAIR of small trained networks, against loops and closed forms; none takes the test split."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from catalog.errors import InvalidSpecError, UnknownNameError
from weightspace.rebasin.matching import match_weights
from weightspace.symmetry import Symmetry
from zoo import architectures
from zoo.architectures import Architecture, Family
from zoo.datasets import load_dataset
from zoo.evaluate import evaluate
from zoo.landscape.norms import channel_moments, reestimate
from zoo.merging.averages import average, interpolate
from zoo.merging.repairs import repair
from zoo.merging.soups import soup
from zoo.plan import make_plan
from zoo.spec import ZooSpec
from zoo.splits import Split, train_split, with_validation
from zoo.splits import test_split as held_out_split
from zoo.train import train

DIGITS = load_dataset("digits")
TRAIN, VALIDATION = with_validation(DIGITS)
TEST = held_out_split(DIGITS)
NETWORKS: dict[str, tuple[str, dict[str, Any], float]] = {
    "mlp": ("mlp", {"depth": 2, "width": 12, "activation": "relu"}, 0.1),
    "batch": ("cnn", {"style": "small_cnn_zoo", "channels": 3, "norm": "batch"}, 0.1),
    "mixed": ("cnn", {"style": "model_zoo", "channels": 4, "norm": "batch"}, 0.05),  # a linear layer behind the norms
    "group": ("cnn", {"style": "small_cnn_zoo", "channels": 4, "norm": "group"}, 0.05),
}
every = pytest.mark.parametrize("name", NETWORKS)
normed = pytest.mark.parametrize("name", ["batch", "mixed"])


@cache
def zoo(name: str) -> tuple[Architecture, Tensor]:
    """Four seeds, trained in plain torch, (4, size) float64."""
    family, numbers, rate = NETWORKS[name]
    hyper = {"epochs": 10, "learning_rate": rate, "batch_size": 50, "data_fraction": 0.5, "momentum": 0.9}
    (runs,) = make_plan(ZooSpec("four", family, numbers, hyperparameters=hyper, seeds=(0, 1, 2, 3))).runs.values()
    return runs[0].architecture, train(runs, DIGITS, impl="reference").weights[:, -1].double()


def few(split: Split, count: int = 150) -> Split:
    """Fewer samples, in the weights' type, so that a plain loop can use them too."""
    return Split(split.x[:count].double(), split.y[:count], split.name)


SOME, HELD = few(TRAIN), few(VALIDATION)


# Splits


def test_the_validation_split_is_the_last_training_samples() -> None:
    whole = train_split(DIGITS)
    assert torch.equal(torch.cat([TRAIN.x, VALIDATION.x]), whole.x)
    assert torch.equal(torch.cat([TRAIN.y, VALIDATION.y]), whole.y)
    assert (len(TRAIN.x), len(VALIDATION.x)) == (960, 240)
    assert (TRAIN.name, VALIDATION.name, whole.name) == ("train", "validation", "train")
    assert torch.equal(TEST.x, torch.from_numpy(DIGITS.test_x))
    assert TEST.name == "test"
    assert torch.equal(train_split(DIGITS, 100).x, whole.x[:100])
    first, second = with_validation(DIGITS, 0.1, samples=100)
    assert torch.equal(torch.cat([first.y, second.y]), whole.y[:100])
    assert len(second.x) == 10


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1e-9, 0.9999, float("nan"), 1, "half"])
def test_no_part_is_empty(fraction: Any) -> None:
    with pytest.raises(InvalidSpecError, match="leaves samples in both parts of 1200"):
        with_validation(DIGITS, fraction)


def test_a_split_says_what_it_is() -> None:
    with pytest.raises(UnknownNameError, match="known: test, train, validation"):
        Split(TRAIN.x, TRAIN.y, "val")
    for x, y in ((TRAIN.x[:0], TRAIN.y[:0]), (TRAIN.x, TRAIN.y[1:])):
        with pytest.raises(InvalidSpecError, match="a label for each"):
            Split(x, y, "train")
    for samples in (0, 1201, 2.0):
        with pytest.raises(InvalidSpecError, match="from 1 to 1200"):
            train_split(DIGITS, samples)  # type: ignore[arg-type]


@every
def test_nothing_is_fitted_to_the_test_split(name: str) -> None:
    architecture, weights = zoo(name)
    ways: list[Callable[[Any], object]] = [
        lambda split: average(architecture, weights, train=split),
        lambda split: interpolate(architecture, weights, weights, [0.5], train=split),
        lambda split: soup(architecture, weights, split, train=HELD),
        lambda split: soup(architecture, weights, HELD, train=split),
        lambda split: repair(architecture, weights[:1], weights[None, :2], None, split),
    ]
    for way in ways:
        with pytest.raises(InvalidSpecError, match="got the test split"):
            way(TEST)
        with pytest.raises(InvalidSpecError, match=r"must come as a zoo\.splits\.Split"):
            way(TRAIN.x)


# Means


def test_a_mean_is_that_of_each_weight() -> None:
    architecture, weights = zoo("mlp")
    values = weights.numpy()
    np.testing.assert_allclose(average(architecture, weights).numpy(), values.mean(0), rtol=0, atol=1e-15)
    shares = [0.5, 0.25, -0.25, 0.5]
    found = average(architecture, weights, coefficients=shares)
    np.testing.assert_allclose(found.numpy(), np.average(values, 0, shares), rtol=0, atol=1e-15)
    several = average(architecture, torch.stack([weights, weights.flip(0)]), coefficients=torch.tensor([1, 0, 0, 0.0]))
    assert torch.equal(several, weights[[0, 3]])
    assert torch.equal(average(architecture, weights[2:3].float()), weights[2].float())


@normed
def test_the_statistics_of_a_mean_are_those_of_training_samples(name: str) -> None:
    architecture, weights = zoo(name)
    found = average(architecture, weights, train=SOME)
    torch.testing.assert_close(found, reestimate(architecture, weights.mean(0)[None], SOME.x)[0], rtol=1e-12, atol=0)
    with pytest.raises(InvalidSpecError, match=r"has BatchNorm layers.*train_split"):
        average(architecture, weights)
    with pytest.raises(InvalidSpecError, match="has BatchNorm layers"):
        interpolate(architecture, weights, weights, [0.0, 1.0])


@pytest.mark.parametrize("name", ["mlp", "batch"])
def test_between_two_networks(name: str) -> None:
    architecture, weights = zoo(name)
    found = interpolate(architecture, weights[:2], weights[2:], np.array([0.0, 0.25, 1.0]), train=SOME)
    assert found.shape == (2, 3, architecture.layout.size)
    for pair in range(2):
        ends = weights[[pair, 2 + pair]]
        for point, t in enumerate((0.0, 0.25, 1.0)):
            expected = average(architecture, ends, coefficients=[1 - t, t], train=SOME)
            torch.testing.assert_close(found[pair, point], expected, rtol=1e-12, atol=1e-14)


def test_the_mean_of_aligned_copies_is_the_network() -> None:
    architecture, weights = zoo("mlp")
    axes = {
        "hidden0.weight": ("first", None), "hidden0.bias": ("first",), "hidden1.weight": ("second", "first"),
        "hidden1.bias": ("second",), "output.weight": (None, "second"),
    }  # fmt: skip  # a table
    symmetry = Symmetry(architecture.layout, axes)
    copies = symmetry.permute(weights[:1].expand(6, -1), symmetry.random(6, seed=1))
    assert (average(architecture, copies) - weights[0]).abs().max() > 0.1
    aligned = symmetry.permute(copies, match_weights(symmetry, copies.numpy(), weights[0].numpy()).permutations)
    torch.testing.assert_close(average(architecture, aligned), weights[0], rtol=0, atol=1e-15)


def test_what_has_no_mean() -> None:
    architecture, weights = zoo("mlp")
    for shares in ([0.5, 0.5], [1.0, 1.0, 1.0, 1.0], [float("nan"), 0.5, 0.25, 0.25], [[0.25] * 4]):
        with pytest.raises(InvalidSpecError, match="coefficients"):
            average(architecture, weights, coefficients=shares)  # type: ignore[arg-type]
    for wrong in (weights[0], weights[:, 1:], weights[:0], weights.int()):
        with pytest.raises(InvalidSpecError, match="weights must"):
            average(architecture, wrong)
    with pytest.raises(InvalidSpecError, match="as many models"):
        interpolate(architecture, weights, weights[:2], [0.5])
    for points in ([], [float("inf")], [[0.5]]):
        with pytest.raises(InvalidSpecError, match="list of finite numbers"):
            interpolate(architecture, weights, weights, points)  # type: ignore[arg-type]


# Soups


def by_recipe(architecture: Architecture, weights: Tensor) -> tuple[set[int], float]:
    """Recipe 1 of the paper, one network after another."""

    def accuracy(chosen: list[int]) -> float:
        mean = average(architecture, weights[chosen], train=SOME) if len(chosen) > 1 else weights[chosen[0]]
        return float(evaluate(architecture, mean[None], HELD.x, HELD.y).accuracy[0])

    alone = [accuracy([model]) for model in range(len(weights))]
    chosen: list[int] = []
    for model in sorted(range(len(weights)), key=lambda model: -alone[model]):
        if not chosen or accuracy([*chosen, model]) >= accuracy(chosen):
            chosen.append(model)
    return set(chosen), accuracy(chosen)


@every
def test_greedy_soups_are_those_of_the_recipe(name: str) -> None:
    """Of each network and noisy copies of it, whose means are good: members are taken and left."""
    architecture, weights = zoo(name)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(4, 5, architecture.layout.num_parameters, dtype=torch.float64, generator=generator)
    pots = weights[:, None].repeat(1, 5, 1)
    pots[:, 1:, : noise.shape[2]] += 0.1 * noise[:, 1:]
    found = soup(architecture, pots, HELD, kind="greedy", train=SOME)
    for number, pot in enumerate(pots):
        members, accuracy = by_recipe(architecture, pot)
        assert set(np.flatnonzero(found.members[number])) == members
        assert found.accuracy[number] == pytest.approx(accuracy)
        expected = average(architecture, pot[sorted(members)], train=SOME) if len(members) > 1 else pot[min(members)]
        torch.testing.assert_close(found.weights[number], expected, rtol=1e-9, atol=1e-12)
    assert (found.accuracy >= found.best).all()
    sizes = found.members.sum(1)
    assert sizes.max() > 1  # otherwise this says little
    assert sizes.min() < 5


def test_a_uniform_soup_is_the_mean() -> None:
    architecture, weights = zoo("batch")
    found = soup(architecture, weights, HELD, train=SOME)
    assert torch.equal(found.weights, average(architecture, weights, train=SOME))
    assert found.members.tolist() == [True] * 4
    alone = evaluate(architecture, torch.cat([weights, found.weights[None]]), HELD.x, HELD.y).accuracy
    assert [found.best, found.accuracy] == pytest.approx([alone[:4].max(), alone[4]])


def test_a_soup_of_one_is_the_network() -> None:
    architecture, weights = zoo("mixed")
    for kind in ("uniform", "greedy"):
        found = soup(architecture, weights[:1], HELD, kind=kind)
        assert torch.equal(found.weights, weights[0])
        assert found.accuracy == found.best


def test_what_is_no_soup() -> None:
    architecture, weights = zoo("mlp")
    with pytest.raises(UnknownNameError, match="known: greedy, uniform"):
        soup(architecture, weights, HELD, kind="greedi")
    broken = weights.clone()
    broken[2, 5] = float("inf")
    with pytest.raises(InvalidSpecError, match="model 2 are not finite"):
        soup(architecture, broken, HELD)


# REPAIR


def spread(architecture: Architecture, weights: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    mean, var = channel_moments(architecture, weights, SOME.x, layer)
    return mean, var.sqrt()


REPAIRED = {"mlp": ("hidden0", "hidden1"), "mixed": ("hidden0",), "group": ("norm0", "norm1", "norm2")}


@pytest.mark.parametrize("name", REPAIRED)
def test_hidden_units_get_the_spread_between_those_of_the_ends(name: str) -> None:
    """Sums of 150 samples in float64, relative to spreads of about 1: 1e-10 leaves room for the layers before."""
    architecture, weights = zoo(name)
    ends = torch.stack([weights[:3], weights[[3, 0, 1]]])
    alphas = torch.tensor([[0.2, 0.3, 0.5], [0.4, 0.4, 0.2]], dtype=torch.float64)
    merged = average(architecture, ends, coefficients=alphas, train=SOME)
    found = repair(architecture, merged, ends, alphas, SOME)
    for layer in REPAIRED[name]:
        means, deviations = (values.view(2, 3, -1) for values in spread(architecture, ends.flatten(0, 1), layer))
        mean, deviation = spread(architecture, found, layer)
        torch.testing.assert_close(mean, (alphas[..., None] * means).sum(1), rtol=0, atol=1e-10)
        torch.testing.assert_close(deviation, (alphas[..., None] * deviations).sum(1), rtol=1e-10, atol=0)
        before = spread(architecture, merged, layer)[1]
        assert ((before / deviation - 1).abs() > 0.05).double().mean() > 0.5  # otherwise nothing was amiss
        assert name == "group" or before.mean() < 0.9 * deviation.mean()  # variance is lost, where no norm keeps it
    for tensor in ("output.weight", "output.bias"):
        assert torch.equal(architecture.layout.tensor(found, tensor), architecture.layout.tensor(merged, tensor))


@every
def test_what_was_merged_with_itself_stays(name: str) -> None:
    architecture, weights = zoo(name)
    merged = average(architecture, weights[:, None].expand(-1, 3, -1), train=SOME)
    ends = merged[:, None].expand(-1, 3, -1)
    found = repair(architecture, merged, ends, None, SOME)
    torch.testing.assert_close(found, merged, rtol=1e-9, atol=1e-12)


def test_with_norms_everywhere_it_is_their_statistics() -> None:
    architecture, weights = zoo("batch")
    merged = weights.mean(0)[None]
    found = repair(architecture, merged, weights[None], None, SOME)
    assert torch.equal(found, reestimate(architecture, merged, SOME.x))
    assert not torch.equal(found, merged)


def test_models_do_not_depend_on_their_companions(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, weights = zoo("mixed")
    ends = torch.stack([weights, weights.flip(0), weights.roll(1, 0)])
    merged = average(architecture, ends, train=SOME)
    whole = repair(architecture, merged, ends, None, SOME)
    monkeypatch.setattr("zoo.merging.repairs.FLOATS", 1)
    torch.testing.assert_close(repair(architecture, merged, ends, None, SOME), whole, rtol=1e-10, atol=1e-12)


def test_a_constant_unit_gets_the_mean_alone() -> None:
    architecture, weights = zoo("mlp")
    merged = weights[:1].clone()
    architecture.layout.tensor(merged, "hidden0.weight")[0, 3] = 0
    found = repair(architecture, merged, weights[None, :2], None, SOME)
    assert found.isfinite().all()
    mean, deviation = spread(architecture, found, "hidden0")
    torch.testing.assert_close(mean[0], spread(architecture, weights[:2], "hidden0")[0].mean(0), rtol=0, atol=1e-10)
    assert deviation[0, 3] < 1e-14  # rounding of the mean
    assert (deviation[0, [0, 1, 2]] > 0).all()


def test_what_cannot_be_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, weights = zoo("mlp")
    with pytest.raises(InvalidSpecError, match="endpoints of 2 merged networks, got those of 1"):
        repair(architecture, weights[:2], weights[None], None, SOME)
    with pytest.raises(InvalidSpecError, match="coefficients"):
        repair(architecture, weights[:1], weights[None], [1.0, 1.0], SOME)

    def without_bias(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 5, bias=False), nn.ReLU(), nn.Linear(5, classes))

    monkeypatch.setitem(architectures.ARCHITECTURES, "plain", Family(without_bias, {}, {}))
    bare = Architecture("plain", {}, (1, 8, 8), 10)
    some = torch.randn(3, bare.layout.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(InvalidSpecError, match=r"layer '1' of .* has no bias"):
        repair(bare, some[:1], some[None], None, SOME)
