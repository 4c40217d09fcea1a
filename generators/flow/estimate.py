"""What a training will take, from a few steps of it."""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from generators.flow.looks import SAMPLES, quick
from generators.flow.loss import flow_loss
from generators.flow.module import make_optimizer
from generators.flow.prepare import Prepared
from generators.flow.solvers import evaluations
from generators.flow.watchdogs import look_every

WARM, TIMED = 2, 5  # steps
TRAINER = 4e-4  # seconds a step that Lightning adds, measured on two cores of an EPYC, November 2026


@dataclass(frozen=True)
class Estimate:
    """What a training will cost.

    Args:
        models: to learn from. width: numbers in a code. parameters: of the velocity network.
        iterations, done: in all, and by earlier calls. looks: of the watchdogs.
        seconds: roughly, for what is left. bytes: roughly, of memory beside the libraries.
        read: bytes of weights from the zoo.
        ceiling: accuracy on validation data of held-out networks behind the codec.
    """

    models: int
    width: int
    parameters: int
    iterations: int
    done: int
    looks: int
    seconds: float
    bytes: int
    read: int
    ceiling: float


def estimate(ready: Prepared, done: int, device: str = "cpu") -> Estimate:
    """Time a few steps of a copy of the network; the training itself is left as it is."""
    recipe, data = ready.recipe, ready.data
    network = copy.deepcopy(ready.module.network).to(device).train()
    step = _seconds_of_a_step(ready, network, device)
    left = recipe.iterations - done
    looks = -(-left // look_every(recipe))
    shorter = quick(recipe)
    calls = evaluations(shorter.solver, shorter.steps) or 0
    look = step / 3 * calls * max(1.0, SAMPLES / recipe.batch_size)  # a step goes forward and twice as far back
    parameters, cost = sum(value.numel() for value in network.parameters()), data.cost()
    batch = 4 * recipe.batch_size * (8 * ready.codec.width + 16 * recipe.width)
    return Estimate(
        models=cost["models"],
        width=ready.codec.width,
        parameters=parameters,
        iterations=recipe.iterations,
        done=done,
        looks=looks,
        seconds=left * (step + TRAINER) + looks * look,
        bytes=cost["kept_bytes"] + 4 * 7 * parameters + batch,
        read=cost["setup_read_bytes"] + left * cost["step_read_bytes"],
        ceiling=ready.codec.report["ceiling"]["after"],
    )


def _seconds_of_a_step(ready: Prepared, network: nn.Module, device: str) -> float:
    source, optimizer = ready.module.source.to(device), make_optimizer(network, ready.recipe)

    def step(number: int) -> None:
        batch = {name: value.to(device) for name, value in ready.data.batch(number).items()}
        given = batch.get("conditions")
        loss = flow_loss(network, batch["codes"], given, source, ready.recipe, ready.module.seed, number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    _timed(step, WARM, device)
    return _timed(step, TIMED, device) / TIMED


def _timed(step: Callable[[int], None], count: int, device: str) -> float:
    begin = time.perf_counter()
    for number in range(count):
        step(number)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def peak_bytes(device: str) -> int:
    """Most memory taken so far: of the GPU, or of this process on a CPU."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
