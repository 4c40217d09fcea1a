"""The loss of every model of a population near its weights: value, gradient, products of the Hessian with vectors.

The loss is the mean over the samples given, in eval mode. Vectors are flat, as weights are: parameters in the order of
`named_parameters`, then buffers. Buffers (running statistics) are constants: their entries of a vector are ignored, of
a result zero.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from kernels.losses import LOSSES
from kernels.mlp.network import MLP, UnsupportedError, mlp_of


class Surface(Protocol):
    """Losses of a population at its weights. Made by `surface`; keeps what its products share."""

    def losses(self) -> Tensor:
        """(models,), mean over the samples."""
        ...

    def gradients(self) -> Tensor:
        """(models, size)."""
        ...

    def products(self, vectors: Tensor) -> Tensor:
        """H v, (models, vectors, size), of vectors (models, vectors, size)."""
        ...

    def forms(self, vectors: Tensor) -> Tensor:
        """v' H v, (models, vectors), of vectors (models, vectors, size): cheaper than their products."""
        ...


def surface(
    module: nn.Module,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    loss_function: str = "cross_entropy",
    impl: str | None = None,
    threads: int | None = None,
) -> Surface:
    """The losses of all models on one set of samples.

    Args:
        module: one network; only its structure is used, it may be on the meta device.
        weights: (models, size), float32 or float64: parameters, then buffers.
        x: (samples, ...) inputs, shared by all models, of the type of the weights.
        y: (samples,) int64 labels, or (models, samples) where each model has its own.
        loss_function: a name in `kernels.losses.LOSSES`.
        impl: "compiled" (MLPs on a CPU) or "reference" (plain torch, any device); None for the first that can.
        threads: parts of the population that compiled code works on at once, None for as many as torch uses.

    Raises:
        UnsupportedError: "compiled" was asked for what it cannot do.
        ValueError: shapes, types or labels that do not fit; names that are none.
    """
    from kernels.curvature.autograd import Autograd

    if loss_function not in LOSSES:
        raise ValueError(f"loss_function must be one of {', '.join(LOSSES)}, got {loss_function!r}")
    network = compilable(module, weights, impl)
    if network is None:
        return Autograd(module, weights, x, y, loss_function)
    from kernels.curvature.compiled import Compiled

    return Compiled(network, weights, x, y, loss_function, threads)


def compilable(module: nn.Module, weights: Tensor, impl: str | None) -> MLP | None:
    """The network as compiled code takes it, None where plain torch does it. Arguments and errors as of `surface`."""
    if impl not in (None, "compiled", "reference"):
        raise ValueError(f'impl must be "compiled", "reference" or None, got {impl!r}')
    if impl == "reference":
        return None
    try:
        if weights.device.type != "cpu" or weights.dtype not in (torch.float32, torch.float64):
            raise UnsupportedError(
                f"compiled code is for float32 or float64 on a CPU, not for {weights.dtype} on {weights.device}"
            )
        import kernels.curvature.compiled  # noqa: F401  # may lack numba, and takes a second

        return mlp_of(module)
    except (UnsupportedError, ImportError) as error:
        if impl is not None:
            raise UnsupportedError(f"no compiled code: {error}") from error
        return None
