"""What is measured: populations of equal runs, trained by us, and networks trained by the loop that people write."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.team import Team
from kernels.population import Dropout
from zoo.architectures import Architecture
from zoo.plan import Plan, Run, make_plan
from zoo.shards import groups, one_thread
from zoo.spec import ZooSpec
from zoo.train import train

MLP = (("depth", 2), ("width", 32), ("activation", "relu"))
MODEL_ZOO = (("style", "model_zoo"), ("channels", 8))
SMALL_CNN_ZOO = (("style", "small_cnn_zoo"), ("channels", 16))


@dataclass(frozen=True)
class Population:
    """Runs on digits that differ in their seeds only: SGD, learning rate 0.05, momentum 0.9.

    Args:
        numbers: of the family. size: of the images, enlarged from 8. test: samples of the test split.
    """

    models: int
    batch: int = 32
    epochs: int = 1
    family: str = "mlp"
    numbers: tuple[tuple[str, Any], ...] = MLP
    size: int = 8
    test: int = 597

    @property
    def name(self) -> str:
        numbers: Mapping[str, Any] = dict(self.numbers)
        if self.family == "mlp":
            hidden = [numbers["width"]] * numbers["depth"]
            return "mlp " + "-".join(map(str, [self.size**2, *hidden, 10]))
        return f"cnn {numbers['style']}, {numbers['channels']} channels, {self.size}x{self.size}"

    @property
    def steps(self) -> int:
        """Optimiser steps of all models."""
        return self.models * self.epochs * self.run.updates

    @property
    def run(self) -> Run:
        """One of the runs."""
        (runs,) = lay_out(self.share(1)).runs.values()
        return runs[0]

    @property
    def architecture(self) -> Architecture:
        return self.run.architecture

    def share(self, models: int) -> Population:
        """The first so many models."""
        return replace(self, models=models)


@functools.lru_cache(maxsize=4)
def lay_out(population: Population) -> Plan:
    """The plan of a population, made once a process."""
    return make_plan(
        ZooSpec(
            "bench",
            population.family,
            dict(population.numbers),
            dataset_options={"size": population.size, "test_samples": population.test},
            hyperparameters={"epochs": population.epochs, "batch_size": population.batch},
            seeds=tuple(range(population.models)),
        )
    )


def prepare(*populations: Population) -> None:
    """Lay out populations, so that no turn does."""
    for population in populations:
        lay_out(population)


def train_ours(population: Population, threads: int) -> None:
    """Train a population in this process, as `zoo.train.train` chooses to."""
    plan = lay_out(population)
    (runs,) = plan.runs.values()
    with one_thread():
        train(runs, plan.data, threads=threads)


def train_reference(population: Population, part: int = 0, parts: int = 1) -> None:
    """Train a share of a population in plain torch, 64 models a call, which is where it is fastest."""
    plan = lay_out(population)
    (runs,) = plan.runs.values()
    for group in groups(runs[part::parts]):
        train(group, plan.data, impl="reference")


def train_reference_on_all_cores(population: Population, team: Team) -> None:
    """A share in each process of the team."""
    team.each(train_reference, [(population, part, team.size) for part in range(team.size)])


def train_loop(population: Population, models: int, first_seed: int = 0) -> int:
    """Train networks one after the other in plain PyTorch, as fast as it is usually written; optimiser steps made.

    The data are tensors that a permutation indexes: a DataLoader would be slower.
    """
    run, data = population.run, lay_out(population.share(1)).data
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    updates, batch = run.updates, population.batch
    for seed in range(first_seed, first_seed + models):
        torch.manual_seed(seed)
        module = plain_module(run.architecture)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
        for _ in range(population.epochs):
            for rows in torch.randperm(len(x))[: updates * batch].split(batch):
                optimizer.zero_grad()
                F.cross_entropy(module(x[rows]), y[rows]).backward()
                optimizer.step()
    return models * population.epochs * updates


def plain_module(architecture: Architecture) -> nn.Sequential:
    """The network without our dropout layers, which do nothing here."""
    layers = architecture.build().named_children()
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers if not isinstance(layer, Dropout)))


def mlp_flops(population: Population) -> int:
    """Floating-point operations of the matrix products of one step of one model, forward and backward.

    Two an entry of a weight matrix and sample forward, two for its gradient, two for the gradient of its inputs,
    which the first layer does not need.
    """
    entries = [math.prod(shape) for shape in population.architecture.layout.shapes if len(shape) == 2]
    return population.batch * (4 * sum(entries) + 2 * sum(entries[1:]))


SIDE = 2048
GEMM_FLOPS = 2.0 * SIDE**3


def multiply(times: int) -> None:
    """Products of square matrices in float32, one after the other: the most that this machine's torch does."""
    a, b = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)
    for _ in range(times):
        torch.mm(a, b)
