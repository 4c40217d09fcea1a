"""Arrays of numpy as tensors, and large ones in parts."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensor_of(values: np.ndarray | Tensor) -> Tensor:
    """The values as a tensor, not copied; numpy's may be read-only, as nothing here writes to them."""
    if isinstance(values, Tensor):
        return values.detach()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(values))


def like(found: Tensor, model: Any) -> Any:
    """What was found, of the library of the model: numpy's or torch's."""
    return found if isinstance(model, Tensor) else found.numpy()


def labels_of(groups: Any, device: torch.device) -> Tensor | None:
    """Integers that say to which group a vector belongs, as a tensor, (models,) int64; None for None."""
    if groups is None:
        return None
    return (groups if isinstance(groups, Tensor) else torch.from_numpy(np.array(groups, np.int64))).to(device).long()


def parts(count: int, most: int) -> list[slice]:
    """Consecutive parts of so many things, of nearly equal size."""
    number = -(-count // most)
    return [slice(i * count // number, (i + 1) * count // number) for i in range(number)]
