"""Architectures as data: bounded, exactly what their module holds, nothing of them runs code."""

import json
from typing import Any

import pytest
import torch

from catalog.errors import InvalidSpecError, UnknownNameError, ZooError
from zoo.architectures import ARCHITECTURES, NORMS, Architecture

SHAPE = (1, 12, 12)
SMALL = [Architecture(family, {}, SHAPE, 10) for family in ARCHITECTURES] + [
    Architecture("cnn", {"norm": norm, "style": style, "channels": 5}, (3, 16, 16), 7)
    for norm in NORMS
    for style in ("model_zoo", "small_cnn_zoo")
]


@pytest.mark.parametrize("architecture", SMALL, ids=lambda a: a.name)
def test_weights_are_a_state_dict(architecture: Architecture) -> None:
    module, layout = architecture.build(), architecture.layout
    assert set(layout.names) == set(module.state_dict())
    assert layout.num_parameters == sum(p.numel() for p in module.parameters())
    assert list(layout.names[: len(list(module.parameters()))]) == [name for name, _ in module.named_parameters()]
    weights = torch.arange(layout.size, dtype=torch.float32)
    module.load_state_dict(layout.unflatten(weights), strict=True)
    assert torch.equal(layout.flatten(module.state_dict()), weights)
    assert module.eval()(torch.zeros(2, *architecture.input_shape)).shape == (2, architecture.num_classes)


@pytest.mark.parametrize(
    ("numbers", "shape", "count"),
    [
        ({"style": "model_zoo", "channels": 8}, (1, 28, 28), 2464),  # Schuerholt et al. 2022
        ({"style": "small_cnn_zoo", "channels": 16}, (1, 32, 32), 4970),  # Unterthiner et al. 2020
    ],
)
def test_published_counts(numbers: dict[str, Any], shape: tuple[int, ...], count: int) -> None:
    assert Architecture("cnn", numbers, shape, 10).layout.size == count


@pytest.mark.parametrize("size", range(8, 33))
@pytest.mark.parametrize("style", ["model_zoo", "small_cnn_zoo"])
@pytest.mark.parametrize("norm", NORMS)
def test_cnn_takes_every_size_it_says_and_looks_at_its_input(size: int, style: str, norm: str) -> None:
    torch.manual_seed(size)
    module = Architecture("cnn", {"style": style, "norm": norm, "activation": "tanh"}, (1, size, size), 4).build()
    out = module(torch.randn(3, 1, size, size))
    assert out.shape == (3, 4)
    assert (out.std(0) > 1e-3).all()  # a norm over a single value would hide the input


def test_group_norm_of_a_single_value_is_refused() -> None:
    with pytest.raises(InvalidSpecError, match="constant"):
        _ = Architecture("cnn", {"norm": "group", "channels": 2}, (1, 8, 8), 4).layout


def test_meta_builds_only_shapes() -> None:
    large = Architecture("mlp", {"depth": 3, "width": 8192}, (1, 32, 32), 10)
    assert large.layout.size > 10**8
    assert all(p.is_meta for p in large.build("meta").parameters())


def test_more_weights_than_allowed_are_refused_before_they_are_made() -> None:
    with pytest.raises(InvalidSpecError, match="137,506,160,650 weights"):
        Architecture("mlp", {"width": 8192}, (4096, 4096), 10).build()
    with pytest.raises(InvalidSpecError, match="281,474,976,710,656 entries"):
        Architecture("mlp", {"width": 8192}, (4096,) * 4, 10)


@pytest.mark.parametrize("architecture", SMALL, ids=lambda a: a.name)
def test_json_round_trip(architecture: Architecture) -> None:
    back = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    assert back == architecture
    assert back.name == architecture.name
    assert back.layout == architecture.layout


GOOD: dict[str, Any] = {"family": "mlp", "numbers": {}, "input_shape": [4], "num_classes": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"family": "__import__('os')"}, {"family": None}, {"family": ["mlp"]}, {"numbers": {"width": True}},
        {"numbers": {"width": 10**9}}, {"numbers": {"depth": -1}}, {"numbers": {"width": 4.0}},
        {"numbers": {"width": "__import__('os')"}}, {"numbers": {"activation": "eval"}},
        {"numbers": {"activation": []}},
        {"numbers": {"channels": 8}}, {"numbers": [4]}, {"numbers": None},
        {"input_shape": []}, {"input_shape": [0]}, {"input_shape": [10**6]}, {"input_shape": ["4"]}, {"input_shape": 4},
        {"input_shape": [1] * 5}, {"num_classes": 1}, {"num_classes": 10**9}, {"num_classes": 2.0},
        {"family": "cnn"}, {"family": "cnn", "input_shape": [1, 7, 7]}, {"family": "cnn", "input_shape": [1, 8, 9]},
    ],
    ids=str,
)  # fmt: skip  # one hostile description after another
def test_hostile_descriptions_are_refused(change: dict[str, Any]) -> None:
    assert Architecture.from_json(GOOD)
    with pytest.raises(ZooError):
        Architecture.from_json({**GOOD, **change})


def test_what_is_missing_or_unknown_is_said() -> None:
    with pytest.raises(InvalidSpecError, match="needs family"):
        Architecture.from_json({"family": "mlp"})
    with pytest.raises(UnknownNameError, match="known: cnn, mlp"):
        Architecture.from_json({**GOOD, "family": "mpl"})
