"""Training one small network for many steps in one call of compiled code, with 16 samples in the lanes of a register.

As `kernels.mlp.training`: one program is one model, no bit depends on companions or on how the steps are cut into
calls, formulas are those of `kernels.population` and `kernels.optimizers`, random streams are the same. Weights lie as
torch has them. A batch goes through in chunks of some groups of samples; gradients are summed in registers of a weight
each, whose lanes are added once a step. Lanes that a batch leaves over repeat its first sample, so that nothing in them
is infinite unless it is in that sample, and their gradients are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.lanes.backplan import Backplan, backplan_of
from kernels.lanes.backward import backward
from kernels.lanes.forward import forward
from kernels.lanes.losses import gradient_of
from kernels.lanes.network import Network
from kernels.lanes.plan import (
    BELOW,
    BELOW_PITCH,
    COUNT,
    HERE,
    PITCH,
    STREAM,
    Plan,
    plan_of,
)
from kernels.lanes.registers import lane_sums
from kernels.lanes.streams import drop, gather
from kernels.lanes.vectors import lanes_of
from kernels.learning import KEPT, MOMENTUM, SGD, Learner, adamw, aligned, part, sgd
from kernels.mlp.pointwise import shuffle
from kernels.mlp.tiles import OPTIONS, lanes
from kernels.programs import Program, sources

CACHE = 1 << 19  # bytes of buffers that a chunk of a batch may fill, unless one group has more


def _train(digest: str) -> Any:
    """The compiled program. `digest` is part of what its cache is found by: numba looks at this file only."""

    def train(
        stages: np.ndarray, strips: np.ndarray, taps: np.ndarray, backs: np.ndarray, back_strips: np.ndarray,
        back_taps: np.ndarray, image: np.ndarray, most: int, loss: int, optimizer: int, weights: np.ndarray,
        first: np.ndarray, second: np.ndarray, ones: np.ndarray, inputs: np.ndarray, labels: np.ndarray,
        order: np.ndarray, spare: np.ndarray, site: int, batch: int, start: int, stop: int, rates: np.ndarray,
        hyper: np.ndarray, threshold: int, key: Any, x: np.ndarray, scratch: np.ndarray, constants: np.ndarray,
        sums: np.ndarray, change: np.ndarray, rooms: np.ndarray, picked: np.ndarray,
    ) -> int:  # fmt: skip
        """Steps start..stop of one model, in place.

        Args:
            image: how inputs lie in `x`, see `kernels.lanes.streams.gather`. most: groups of a chunk.
            order, spare: (samples,) int64, buffers for the order of an epoch, drawn at `site`; `samples` may be fewer
                than there are labels.
            rates: (stop - start,) learning rates.

        Returns:
            the first step with a loss that is not finite, before its update; -1 for none.
        """
        digest  # noqa: B018  # makes it a part of the function
        lane, depth = lanes_of(scratch), len(stages)
        last = stages[depth - 1]
        classes = last[COUNT] // lane
        updates = len(order) // batch
        groups = (batch + lane - 1) // lane
        chunks = (groups + most - 1) // most
        share = scratch.dtype.type(1 / batch)
        zero = scratch.dtype.type(0)
        for step in range(start, stop):
            begin = (step % updates) * batch
            if begin == 0 or step == start:
                shuffle(key, site, step // updates, order, spare)
            for i in range(len(sums)):
                sums[i] = zero
            finite = True
            for chunk in range(chunks):
                low, high = chunk * groups // chunks, (chunk + 1) * groups // chunks
                for group in range(low, high):
                    for i in range(lane):
                        row = group * lane + i
                        sample = order[begin + (row if row < batch else 0)] & np.int64(2**31 - 1)
                        picked[0, i] = sample
                        picked[1 + group - low, i] = labels[sample]
                    gather(inputs, picked[0], image, x, (group - low) * stages[0, BELOW_PITCH])
                for number in range(depth):
                    stage = stages[number]
                    source, below = (x, 0) if number == 0 else (scratch, stage[BELOW])
                    forward(stage, strips, taps, weights, source, below, high - low, scratch, x)
                    if threshold > 0 and stage[STREAM] >= 0:
                        for group in range(high - low):
                            at = group * stage[PITCH]
                            drop(
                                key, stage[STREAM], step, threshold, hyper[KEPT], (low + group) * lane, batch, stage,
                                scratch, at,
                            )  # fmt: skip
                for group in range(high - low):
                    logits = part(scratch, last[HERE] + group * last[PITCH], classes * lane)
                    count = min(batch - (low + group) * lane, lane)
                    finite &= gradient_of(loss, logits, classes, picked[1 + group], count, share, rooms)
                if not finite:
                    return step
                for number in range(depth - 1, -1, -1):
                    stage = stages[number]
                    source, below = (x, 0) if number == 0 else (scratch, stage[BELOW])
                    backward(
                        number == 0, stage, backs[number], back_strips, back_taps, weights, source, below, high - low,
                        scratch, constants, sums,
                    )  # fmt: skip
            lane_sums(len(weights), sums, 0, change, 0)
            if optimizer == SGD:
                sgd(weights, first, change, rates[step - start], hyper)
            else:
                for k in range(2):
                    beta = np.float64(hyper[MOMENTUM + k])
                    ones[k] = ones[k] * beta + (1.0 - beta)
                adamw(weights, first, second, change, rates[step - start], hyper, ones)
        return -1

    return train


TRAIN = Program(_train, sources("lanes/*.py", "mlp/*.py", "learning.py", "random.py"), OPTIONS)


@dataclass(frozen=True)
class Workspace:
    """Where one model after the other is trained: tables and buffers for a network, a batch size and a type."""

    network: Network
    batch_size: int
    dtype: Any
    plan: Plan
    back: Backplan
    image: np.ndarray
    x: np.ndarray
    scratch: np.ndarray
    constants: np.ndarray
    sums: np.ndarray
    change: np.ndarray
    rooms: np.ndarray
    picked: np.ndarray

    @classmethod
    def of(cls, network: Network, batch_size: int, dtype: Any, fill: float = 0.0) -> Workspace:
        """Args: fill: what buffers hold before they are used; no result depends on it."""
        dtype, lane = np.dtype(dtype), lanes(dtype)
        one = plan_of(network, 1, dtype, training=True)
        held = (backplan_of(one, dtype).size + one.images[0].pitch) * dtype.itemsize
        groups = min(max(CACHE // held, 1), -(-batch_size // lane))
        plan = plan_of(network, groups, dtype, training=True)
        back = backplan_of(plan, dtype)
        scratch, x = aligned(back.size, dtype, fill), aligned(groups * plan.images[0].pitch, dtype, fill)
        plan.clear(scratch)
        plan.images[0].clear(x)
        for place, spread in back.spread:
            spread.clear(scratch[place : place + spread.pitch])
        below = plan.images[0]
        image = np.array([*below.shape, below.channel, below.row, below.border * lane], np.int64)
        constants = aligned(2 * lane, dtype)
        constants[lane:] = 1
        return cls(
            network, batch_size, dtype, plan, back, image, x, scratch, constants,
            aligned(network.size * lane, dtype, fill), aligned(network.size, dtype, fill),
            aligned(2 * lane, dtype, fill), np.empty((groups + 1, lane), np.int64),
        )  # fmt: skip


class Model:
    """One network in training.

    Args:
        workspace: of its network and batch size; models may take turns in it, not in two threads at once.
        weights: (size,) flat.
        hyperparameters: momentum, beta2, epsilon, weight_decay, dropout.
        key: its random streams.
        inputs: (samples, *input_shape), of the workspace's type. labels: (samples,) int64 below the outputs.
        samples: how many of them it uses, the first ones; at least a batch. An epoch is one pass over them in whole
            batches. site: random stream of their order. loss: a name in `kernels.losses.LOSSES`.

    Raises:
        ValueError: what does not fit.
    """

    def __init__(
        self,
        workspace: Workspace,
        weights: np.ndarray,
        optimizer: str,
        hyperparameters: Mapping[str, float],
        key: int,
        inputs: np.ndarray,
        labels: np.ndarray,
        samples: int,
        site: int,
        loss: str = "cross_entropy",
    ) -> None:
        network = workspace.network
        if weights.shape != (network.size,):
            raise ValueError(f"weights must be ({network.size},), got {weights.shape}")
        flat = aligned(network.size, workspace.dtype)
        flat[:] = weights
        self.workspace = workspace
        self.learner = Learner.of(
            flat, optimizer, hyperparameters, key, inputs, labels, samples, site, loss,
            input_shape=network.input_shape, outputs=network.outputs, batch_size=workspace.batch_size,
        )  # fmt: skip

    @property
    def weights(self) -> np.ndarray:
        """(size,) flat, a copy."""
        return self.learner.weights.copy()

    def train(self, start: int, stop: int, rates: np.ndarray) -> int:
        """Optimiser steps start..stop, counted from the beginning of the training.

        Args:
            rates: (stop - start,) learning rates.

        Returns:
            the first step whose loss was not finite; the model stopped there. -1 if all were.
        """
        space, own = self.workspace, self.learner
        return int(
            TRAIN(
                space.plan.stages, space.plan.strips, space.plan.taps, space.back.stages, space.back.strips,
                space.back.taps, space.image, space.plan.groups, own.loss, own.optimizer, own.weights, own.first,
                own.second, own.ones, own.inputs.reshape(-1), own.labels, own.order, own.spare, own.site,
                space.batch_size, start, stop, own.rates(start, stop, rates), own.hyper, own.threshold, own.key,
                space.x, space.scratch, space.constants, space.sums, space.change, space.rooms, space.picked,
            )
        )  # fmt: skip
