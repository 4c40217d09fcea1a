"""Compiles what the tests use, each program once, on all cores: `python -m tests.warm`, see the Makefile.

Several processes of pytest that begin with an empty cache would each compile the same programs, at the same time, and
slower, since coverage looks on. What is not compiled here a test compiles itself: this only saves time.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from logging.handlers import BufferingHandler

import numpy as np
import torch
from torch import Tensor

from kernels.assignment.assign import assign
from kernels.curvature.surface import surface
from kernels.curvature.trace import exact_trace
from kernels.curves.recipe import Recipe
from kernels.overlap.overlap import error_overlap, largest_overlap
from kernels.permute.compiled import gather_compiled
from kernels.permute.gather import Gather
from kernels.programs import LOG
from tests.test_registers import HERE, NARROWER, run
from weightspace.rebasin.matching import match_weights
from weightspace.symmetry import Symmetry
from zoo.architectures import Architecture
from zoo.datasets import load_dataset
from zoo.evaluate import evaluate
from zoo.landscape.connectivity import curve
from zoo.plan import make_plan
from zoo.spec import ZooSpec
from zoo.train import train

MLP = Architecture("mlp", {"depth": 1, "width": 4}, (3,), 2)
FLOATS = (torch.float32, torch.float64)


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of two models, inputs and labels."""
    return torch.ones(2, MLP.layout.size, dtype=dtype), torch.ones(4, 3, dtype=dtype), torch.zeros(4).long()


def registers(width: int) -> None:
    run(width).check_returncode()


def products(dtype: torch.dtype) -> None:
    weights, x, y = problem(dtype)
    surface(MLP.build("meta"), weights, x, y, impl="compiled").products(weights[:, None])


def training(dtype: torch.dtype) -> None:
    (runs,) = make_plan(ZooSpec("warm", "cnn")).runs.values()
    short = [replace(run, samples=64, epochs=1, checkpoints=(0, 1)) for run in runs]
    train(short, load_dataset("digits"), dtype=dtype, impl="compiled")


def curves(dtype: torch.dtype) -> None:
    """Training of MLPs is a part of it."""
    weights, x, y = problem(dtype)
    curve(MLP, weights, -weights, x, y, recipe=Recipe(epochs=1, batch_size=2), impl="compiled")


def traces(dtype: torch.dtype) -> None:
    exact_trace(MLP.build("meta"), *problem(dtype), impl="compiled")


def evaluation(dtype: torch.dtype) -> None:
    evaluate(MLP, *problem(dtype), impl="compiled")


def matching(dtype: torch.dtype) -> None:
    """In float32 alone; assignments, and moving what was matched, in both."""
    weights = problem(dtype)[0]
    if dtype == torch.float32:
        symmetry = Symmetry(MLP.layout, {"hidden0.weight": ("hidden", None), "output.weight": (None, "hidden")})
        match_weights(symmetry, weights, weights[0])
    assign(weights[:1, :4].view(1, 2, 2), impl="compiled")
    gather_compiled(weights.numpy(), [Gather(0, 1, 2, 1, None, np.zeros((2, 2), np.int64))])


def overlaps(dtype: torch.dtype) -> None:
    """Of bits, which have no other type."""
    if dtype == torch.float32:
        bits = torch.ones(2, 3, dtype=torch.uint8)
        error_overlap(bits, bits, impl="compiled")
        largest_overlap(bits, bits, impl="compiled")


# The longest first, so that all cores end at about the same time.
PROGRAMS: tuple[Callable[[torch.dtype], None], ...] = (
    products,
    training,
    curves,
    traces,
    evaluation,
    matching,
    overlaps,
)
JOBS = [partial(program, dtype) for program in PROGRAMS for dtype in FLOATS]


def work(job: Callable[[], None]) -> bool:
    """Do a job; whether something was compiled for it, which is said as well."""
    listener = BufferingHandler(1000)
    LOG.addHandler(listener)
    LOG.setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s")
    try:
        job()
    finally:
        LOG.removeHandler(listener)
    return bool(listener.buffer)


def main() -> None:
    """All jobs, as many at a time as there are cores; then those for other processors, unless all was there already."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that start now, as in tests/conftest.py
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        if any(list(pool.map(work, JOBS))) and HERE:
            list(pool.map(registers, NARROWER))


if __name__ == "__main__":
    main()
