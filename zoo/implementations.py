"""Which implementation does it: compiled code where there is some, else plain torch, which says so once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from catalog.errors import InvalidSpecError, unknown_name
from kernels.mlp.network import UnsupportedError
from zoo.architectures import Architecture

IMPLEMENTATIONS = ("compiled", "reference")
NUMPY: dict[torch.dtype, type[np.floating]] = {torch.float32: np.float32, torch.float64: np.float64}
Network = TypeVar("Network")


def choose(
    network: Callable[[], Network],
    doing: str,
    architecture: Architecture,
    device: torch.device,
    dtype: torch.dtype,
    impl: str | None,
) -> Network | None:
    """The network as compiled code takes it, or None for plain torch; then, on a CPU, a note in the log, once a reason.

    Args:
        network: imports the compiled code and reads the module; raises UnsupportedError for what it cannot do.
        doing: "train" or "evaluate", for messages.
        impl: "compiled" or None.

    Raises:
        InvalidSpecError: there is no compiled code for it, and `impl` is "compiled".
        UnknownNameError: `impl` is neither that nor None.
    """
    if impl not in (None, "compiled"):
        raise unknown_name("implementation", str(impl), IMPLEMENTATIONS)
    try:
        if device.type != "cpu":
            raise UnsupportedError(f"compiled code runs on a CPU, not on {device}")
        if dtype not in NUMPY:
            raise UnsupportedError(f"compiled code is for float32 or float64, not for {dtype}")
        return network()
    except (UnsupportedError, ImportError) as error:
        if impl is not None:
            raise InvalidSpecError(f"impl 'compiled' cannot {doing} {architecture.name}: {error}") from error
        if device.type == "cpu":
            _note(f"plain torch is used to {doing} models of the family {architecture.family}: {error}")
        return None


@functools.cache
def _note(text: str) -> None:
    """Log a warning, once."""
    logging.getLogger(__name__).warning(text)
