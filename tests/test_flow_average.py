"""The running average of parameters: its closed form, and going on from what was stored."""

import numpy as np
import pytest
import torch
from torch import nn

from generators.flow.average import Average


def module(value: float = 0.0) -> nn.Module:
    out = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    for parameter in out.parameters():
        nn.init.constant_(parameter, value)
    return out


def one(average: Average) -> float:
    """The number that all averages have; parameters here are all equal."""
    (value,) = {float(x) for values in average.values.values() for x in values.ravel()}
    return value


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.5, 0.9, 0.999])
def test_closed_form(decay: float) -> None:
    average, expected = Average(module(5.0), decay), 5.0
    for number, value in enumerate(np.random.default_rng(0).normal(size=60)):
        average.update(module(value))
        d = min(decay, (1 + number) / (10 + number))
        expected = d * expected + (1 - d) * value
        assert one(average) == pytest.approx(expected, rel=1e-5, abs=1e-6)  # float32
    assert average.count == 60


def test_the_beginning_is_forgotten() -> None:
    """With .999 alone the first value would still weigh .9; warmed up it weighs prod (1 + n) / (10 + n)."""
    average = Average(module(1.0), 0.999)
    for _ in range(100):
        average.update(module(0.0))
    assert one(average) == pytest.approx(np.prod([(1 + n) / (10 + n) for n in range(100)]), rel=1e-4)
    assert one(average) < 1e-6


def test_it_is_a_copy() -> None:
    averaged = module(1.0)
    average = Average(averaged, 0.5)
    nn.init.constant_(next(averaged.parameters()), 9.0)
    assert one(average) == 1
    average.copy_to(averaged)
    assert all(bool((parameter == 1).all()) for parameter in averaged.parameters())
    average.update(module(3.0))
    assert all(bool((parameter == 1).all()) for parameter in averaged.parameters())


def test_stored_it_goes_on_with_the_same_bits() -> None:
    values = [0.3, -1.2, 0.7, 2.1]
    whole, first, second = (Average(module(0.1), 0.9) for _ in range(3))
    for value in values:
        whole.update(module(value))
    for value in values[:2]:
        first.update(module(value))
    second.load_state_dict(first.state_dict())
    for value in values[2:]:
        second.update(module(value))
    assert one(second) == one(whole)
    assert second.count == whole.count
    assert one(first) != one(whole)


def test_of_another_module() -> None:
    with pytest.raises(ValueError, match="other parameters"):
        Average(nn.Linear(2, 2), 0.9).load_state_dict(Average(module(), 0.9).state_dict())


def test_moving_it() -> None:
    average = Average(module(2.0), 0.9).to("meta")
    assert {value.device.type for value in average.values.values()} == {"meta"}


def test_averaging_asks_for_no_gradients() -> None:
    average = Average(module(), 0.9)
    average.update(module(1.0))
    assert not any(value.requires_grad for value in average.values.values())
    torch.testing.assert_close(average.values["0.bias"], torch.full((3,), 0.9))
