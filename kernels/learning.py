"""What compiled training of one network needs, whichever kernel runs it: optimisers, and a learner's state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.mlp.tiles import compiled

SGD, ADAMW = range(2)
OPTIMIZERS = {"sgd": SGD, "adamw": ADAMW}
CROSS_ENTROPY, MSE = range(2)
LOSSES = {"cross_entropy": CROSS_ENTROPY, "mse": MSE}
# Entries of the hyperparameters' array.
MOMENTUM, BETA2, EPSILON, DECAY, KEPT = range(5)


@compiled
def part(flat: np.ndarray, start: int, count: int) -> np.ndarray:
    """A view. In it loops count from zero, which LLVM must know to make vector code: numba allows negative indices."""
    return flat[start : start + count]


@compiled
def sgd(weights: np.ndarray, momentum: np.ndarray, change: np.ndarray, rate: Any, hyper: np.ndarray) -> None:
    """`kernels.optimizers.sgd` with gradients `change`; all (count,)."""
    keep, decay = hyper[MOMENTUM], hyper[DECAY]
    for i in range(len(weights)):
        velocity = keep * momentum[i] + (change[i] + decay * weights[i])
        momentum[i] = velocity
        weights[i] -= rate * velocity


@compiled
def adamw(
    weights: np.ndarray, first: np.ndarray, second: np.ndarray, change: np.ndarray, rate: Any, hyper: np.ndarray,
    ones: np.ndarray,
) -> None:  # fmt: skip
    """`kernels.optimizers.adamw` with gradients `change`, all (count,); `ones` are the two averages of ones."""
    number = weights.dtype.type
    one = number(1)
    beta1, beta2, epsilon = hyper[MOMENTUM], hyper[BETA2], hyper[EPSILON]
    shrink, size, root = one - rate * hyper[DECAY], rate / number(ones[0]), number(math.sqrt(number(ones[1])))
    for i in range(len(weights)):
        g, m = change[i], first[i]
        m += (one - beta1) * (g - m)
        v = beta2 * second[i] + (one - beta2) * (g * g)
        first[i], second[i] = m, v
        weights[i] = shrink * weights[i] - m * size / (number(math.sqrt(v)) / root + epsilon)


def aligned(size: int, dtype: Any, fill: float = 0.0) -> np.ndarray:
    """A flat array that begins at a cache line, so that no load of a register touches two."""
    room = np.full(size + 64, fill, dtype)
    skipped = -room.ctypes.data % 64 // room.itemsize
    return room[skipped : skipped + size]


def _read_only(labels: np.ndarray) -> np.ndarray:
    """As a view that cannot be written, whatever came: numba compiles once more for arrays that can."""
    view = np.ascontiguousarray(labels, np.int64).view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True)
class Learner:
    """One network in training. Its arrays are changed in place.

    Args:
        weights, first, second: flat, in the order of the kernel: parameters and the optimiser's averages.
        ones: (2,) averages of ones, AdamW's bias corrections. hyper: in the order of `MOMENTUM` to `KEPT`.
        threshold: of dropout, see `kernels.random.keep_mask`. site: random stream of the order of samples.
        order, spare: (samples,) int64, buffers for the order of an epoch.
    """

    optimizer: int
    loss: int
    weights: np.ndarray
    first: np.ndarray
    second: np.ndarray
    ones: np.ndarray
    hyper: np.ndarray
    threshold: int
    key: np.uint64
    inputs: np.ndarray
    labels: np.ndarray
    order: np.ndarray
    spare: np.ndarray
    site: int

    @classmethod
    def of(
        cls,
        weights: np.ndarray,
        optimizer: str,
        hyperparameters: Mapping[str, float],
        key: int,
        inputs: np.ndarray,
        labels: np.ndarray,
        samples: int,
        site: int,
        loss: str,
        *,
        input_shape: tuple[int, ...],
        outputs: int,
        batch_size: int,
    ) -> Learner:
        """A learner at its start.

        Args:
            weights: flat, in the order of the kernel, in the type to train in.
            hyperparameters: momentum, beta2, epsilon, weight_decay, dropout.
            inputs: (samples, *input_shape) in the type of the weights. labels: (samples,) int64 below the outputs.
            samples: how many of them it uses, the first ones; at least a batch.

        Raises:
            ValueError: what does not fit, or hyperparameters that are not finite.
        """
        dtype = weights.dtype
        if inputs.shape[1:] != input_shape or inputs.dtype != dtype:
            raise ValueError(f"inputs must be (samples, *{input_shape}) {dtype}, got {inputs.shape} {inputs.dtype}")
        if len(labels) != len(inputs) or not (0 <= labels.min(initial=0) and labels.max(initial=0) < outputs):
            raise ValueError(f"labels must be {len(inputs)} classes below {outputs}")
        if not batch_size <= samples <= len(inputs):
            raise ValueError(f"{samples} samples of {len(inputs)} do not fill batches of {batch_size}")
        dropout = hyperparameters["dropout"]
        names = ("momentum", "beta2", "epsilon", "weight_decay")
        hyper = np.array([*(hyperparameters[name] for name in names), 1 - dropout], dtype)
        if not np.isfinite(hyper).all() or not 0 <= dropout < 1:
            raise ValueError(f"hyperparameters must be finite and dropout in [0, 1), got {dict(hyperparameters)}")
        for kind, name, known in (("optimizer", optimizer, OPTIMIZERS), ("loss", loss, LOSSES)):
            if name not in known:
                raise ValueError(f"{kind} must be one of {', '.join(known)}, got {name!r}")
        hyper[KEPT] = 1 / hyper[KEPT]
        second = aligned(len(weights) if optimizer == "adamw" else 0, dtype)
        return cls(
            OPTIMIZERS[optimizer], LOSSES[loss], weights, aligned(len(weights), dtype), second, np.zeros(2), hyper,
            math.ceil(dropout * 2**32), np.uint64(key), np.ascontiguousarray(inputs),
            _read_only(labels), np.empty(samples, np.int64), np.empty(samples, np.int64), site,
        )  # fmt: skip

    def rates(self, start: int, stop: int, rates: np.ndarray) -> np.ndarray:
        """Learning rates of the steps start..stop as compiled code takes them; ValueError for others."""
        if not 0 <= start < stop or len(rates) != stop - start:
            raise ValueError(f"steps {start} to {stop} need as many learning rates, got {len(rates)}")
        if not np.isfinite(rates).all():
            raise ValueError(f"learning rates must be finite, got {rates[~np.isfinite(rates)][0]}")
        return np.ascontiguousarray(rates, self.weights.dtype)
