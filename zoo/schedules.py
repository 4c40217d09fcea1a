"""Learning-rate schedules as factors of the run's learning rate, for many runs at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Schedule = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def constant(step: np.ndarray, total: np.ndarray, period: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """Always 1."""
    return np.ones(np.broadcast_shapes(step.shape, total.shape))


def step_decay(step: np.ndarray, total: np.ndarray, period: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """Multiplied by `decay` each `period` (a fraction of the training)."""
    return np.asarray(decay ** np.floor(step / np.maximum(period * total, 1)))


def cosine(step: np.ndarray, total: np.ndarray, period: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter 2017, equation 5, without restarts)."""
    return np.asarray((1 + np.cos(np.pi * step / total)) / 2)


def one_cycle(step: np.ndarray, total: np.ndarray, period: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """Smith and Topin 2018 as torch.optim.OneCycleLR has it: 1/25 up to 1 at 30 %, down to 4e-6; momentum stays."""
    rise = np.maximum(0.3 * total - 1, 1e-9)
    fall = np.maximum(total - 1 - rise, 1e-9)
    up = np.clip(step / rise, 0, 1)
    down = np.clip((step - rise) / fall, 0, 1)
    low, end = 1 / 25, 1 / 25e4
    return np.where(
        step <= rise, low + (1 - low) * (1 - np.cos(np.pi * up)) / 2, end + (1 - end) * (1 + np.cos(np.pi * down)) / 2
    )


SCHEDULES: dict[str, Schedule] = {"constant": constant, "step": step_decay, "cosine": cosine, "one_cycle": one_cycle}
