"""Which implementation of an operation runs."""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec

from torch import Tensor

IMPLEMENTATIONS = ("reference", "compiled", "triton")


@functools.cache
def has(library: str) -> bool:
    """Whether a library is installed; it is not imported."""
    return find_spec(library) is not None


def on_gpu(tensor: Tensor) -> bool:
    """Whether Triton is the choice for this tensor."""
    return tensor.is_cuda and has("triton")


def checked_name(impl: str | None, tensor: Tensor, known: tuple[str, ...] = IMPLEMENTATIONS) -> None:
    """Raises ValueError for an implementation that there is not, or that this tensor is on the wrong device for."""
    if impl is not None and impl not in known:
        raise ValueError(f"impl must be one of {', '.join(known)} or None, got {impl!r}")
    if impl == "compiled" and tensor.device.type != "cpu":
        raise ValueError(f"impl='compiled' works on a CPU, the tensor is on {tensor.device}; move it with .cpu()")
    if impl == "triton" and not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"impl='triton' works on a CUDA device, the tensor is on {tensor.device}")
