"""Learning-rate schedules, step by step against torch.optim.lr_scheduler."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from zoo.schedules import SCHEDULES

RATE = 0.3
Make = Callable[[torch.optim.Optimizer, int], lr_scheduler.LRScheduler]
TORCH: dict[str, Make] = {
    "constant": lambda optimizer, total: lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
    "step": lambda optimizer, total: lr_scheduler.StepLR(optimizer, total // 4, gamma=0.2),
    "cosine": lambda optimizer, total: lr_scheduler.CosineAnnealingLR(optimizer, total),
    "one_cycle": lambda optimizer, total: lr_scheduler.OneCycleLR(optimizer, RATE, total, cycle_momentum=False),
}


def test_all_schedules_have_a_counterpart() -> None:
    assert TORCH.keys() == SCHEDULES.keys()


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("total", [4, 40, 400])
def test_schedule_is_that_of_torch(name: str, total: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=RATE)
    schedule = TORCH[name](optimizer, total)
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(expected) < total else None
    one = np.ones(1)
    factors = SCHEDULES[name](np.arange(total)[:, None], total * one, 0.25 * one, 0.2 * one)
    np.testing.assert_allclose(RATE * factors[:, 0], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", SCHEDULES)
def test_runs_of_different_length_do_not_mix(name: str) -> None:
    step, total = np.arange(9)[:, None], np.array([9.0, 20.0, 1.0])
    period, decay = np.array([0.3, 0.5, 1.0]), np.array([0.1, 0.9, 0.5])
    together = SCHEDULES[name](step, total, period, decay)
    for run in range(3):
        mine = slice(run, run + 1)
        np.testing.assert_array_equal(SCHEDULES[name](step, total[mine], period[mine], decay[mine]), together[:, mine])
    assert (together >= 0).all()
    assert (together <= 1).all()
