"""Hessians of populations against PyHessian, one model after the other: `python -m benchmarks.curvature`.

100 networks, one core each side: traces by as many probes, top eigenvalues by as many products, and exact traces
against the mean of 100 probes. PyHessian measures a sample of the networks; ratios are of networks a second. Probes are
drawn on both sides, and the linearisation at the weights is made once a network.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.evaluation import population_weights
from benchmarks.populations import MLP, MODEL_ZOO, Population, lay_out, plain_module
from benchmarks.record import bar, record
from benchmarks.sides import PAIRS, compare, measure
from benchmarks.team import Team
from kernels.curvature.surface import surface
from kernels.curvature.trace import dense_trace, exact_trace
from zoo.landscape.hessian import hessian_top_eigenvalue
from zoo.shards import one_thread

PROBES = 20  # vectors, or products one after the other
MANY = 100  # probes of PyHessian against an exact trace: its standard error is then some percent
AGAINST = "PyHessian, model by model"
TANH = (("depth", 2), ("width", 32), ("activation", "tanh"))


@dataclass(frozen=True)
class Task:
    """What is measured.

    Args:
        what: "trace", "eigenvalue" (by as many products), "converged" (the metric, to 1e-3) or "exact".
        least: the bar. sample: networks of PyHessian a turn.
    """

    what: str
    population: Population
    samples: int
    least: float | None = None
    sample: int = 4

    @property
    def operation(self) -> str:
        kind = {
            "trace": "Hessian trace by probes",
            "eigenvalue": "top Hessian eigenvalue by power iteration",
            "converged": "top Hessian eigenvalue to 1e-3",
        }
        activation = dict(self.population.numbers).get("activation", "relu")
        return f"{kind.get(self.what, 'exact Hessian trace')}, {self.population.name}, {activation}"

    @property
    def probes(self) -> int:
        """Of PyHessian."""
        return MANY if self.what == "exact" else PROBES


def data_of(population: Population, samples: int) -> tuple[Tensor, Tensor]:
    """The first samples of the training set."""
    data = lay_out(population.share(1)).data
    return torch.from_numpy(data.train_x)[:samples], torch.from_numpy(data.train_y)[:samples]


@functools.lru_cache(maxsize=1)
def modules(population: Population, file: str, count: int) -> list[nn.Module]:
    """The first networks, as they would come out of a file."""
    architecture = population.architecture
    found = []
    for one in torch.from_numpy(np.load(file))[:count]:
        module = plain_module(architecture).eval()
        module.load_state_dict(architecture.layout.unflatten(one))
        found.append(module)
    return found


def pyhessian(task: Task, file: str) -> list[Any]:
    """Its values for a sample of the networks: probes' forms, or the eigenvalue."""
    from pyhessian import hessian

    x, y = data_of(task.population, task.samples)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # backward() with create_graph makes a cycle, which is collected
        for module in modules(task.population, file, task.sample):
            module.zero_grad()
            here = hessian(module, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
            if task.what == "converged":
                found.append(here.eigenvalues()[0][0])
            elif task.what == "eigenvalue":
                found.append(here.eigenvalues(maxIter=task.probes, tol=-math.inf)[0][0])
            else:
                found.append(here.trace(maxIter=task.probes, tol=-math.inf))
    return found


def ours(task: Task, weights: Tensor) -> Tensor:
    """(models,) or, for probes, (models, probes): values of all networks."""
    module = task.population.architecture.build("meta")
    x, y = data_of(task.population, task.samples)
    if task.what == "exact":
        return exact_trace(module, weights, x, y, threads=1)
    if task.what == "converged":
        architecture = task.population.architecture
        found = hessian_top_eigenvalue(architecture, weights, x, y, loss_function="cross_entropy")
        return torch.from_numpy(found.value)
    here = surface(module, weights, x, y, threads=1)
    if task.what == "trace":
        signs = torch.randint(0, 2, (task.probes, weights.shape[1]), dtype=weights.dtype) * 2 - 1
        return here.forms(signs.expand(len(weights), -1, -1))
    vectors = torch.randn(1, weights.shape[1]).expand(len(weights), -1)
    for _ in range(task.probes):
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
        products = here.products(vectors[:, None])[:, 0]
        values, vectors = (vectors * products).sum(1), products
    return values


def measured(task: Task, pairs: int) -> None:
    """A row."""
    population = task.population
    with one_thread(), tempfile.TemporaryDirectory() as folder, Team(1, plain=True) as one:
        weights = population_weights(population)
        file = str(Path(folder) / "weights.npy")
        np.save(file, weights.numpy())
        sides: Mapping[str, Callable[[], object]] = {
            "pyhessian": lambda: one.each(pyhessian, [(task, file)]),
            "ours": lambda: ours(task, weights),
        }
        turns = measure(sides, pairs)
        (theirs,) = one.each(pyhessian, [(task, file)])
    compared = compare(turns, "pyhessian", "ours", task.sample, len(weights))
    rates = {
        "pyhessian": task.sample / statistics.median(turns["pyhessian"].wall),
        "ours": len(weights) / statistics.median(turns["ours"].wall),
    }
    products = {} if task.what == "converged" else {"probes": task.probes}
    row = {
        "operation": task.operation,
        "setting": {"models": len(weights), "samples": task.samples, "cores": 1, **products},
        "ours": f"{rates['ours']:,.0f} models/s" + (", no sampling error" if task.what == "exact" else ""),
        "against": AGAINST,
        "theirs": f"{rates['pyhessian']:,.1f} models/s",
        "ratio": compared,
        **(bar(compared["median"], task.least) if task.least else {}),
        **agreement(task, weights, theirs),
    }
    record("curvature", row, libraries=["pyhessian"])


def agreement(task: Task, weights: Tensor, theirs: Sequence[Any]) -> dict[str, object]:
    """How far the values of both sides are from each other; exact ones also from the dense trace in float64."""
    found = ours(task, weights)[: task.sample].double()
    if task.what in ("eigenvalue", "converged"):  # after so many steps from another start
        apart = (found - torch.tensor(theirs).double()).abs() / found.abs()
        return {"median_relative_difference": float(apart.median())}
    probes = torch.tensor(theirs).double()
    errors = probes.var(1) / task.probes
    if task.what == "trace":
        errors, found = errors + found.var(1) / task.probes, found.mean(1)
    said: dict[str, object] = {
        "largest_difference_in_standard_errors": float(((probes.mean(1) - found) / errors.sqrt()).abs().max())
    }
    if task.what == "exact":
        said["standard_error_of_theirs"] = float((errors.sqrt() / found.abs()).median())
        module, (x, y) = task.population.architecture.build("meta"), data_of(task.population, min(task.samples, 128))
        dense = dense_trace(module, weights[:1].double(), x.double(), y)
        single = exact_trace(module, weights[:1], x, y).double()
        said["relative_difference_from_dense_float64"] = float(((single - dense) / dense).abs())
    return said


def main(argv: Sequence[str] | None = None) -> int:
    """MLPs at 128 samples and the whole training set; a CNN at 128."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curvature", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--models", type=int, default=100)
    given = parser.parse_args(argv)
    relu = Population(given.models, epochs=3, test=360, numbers=MLP)
    tanh = replace(relu, numbers=TANH)
    cnn = replace(relu, family="cnn", numbers=MODEL_ZOO)
    for task in (
        Task("trace", relu, 128, 6),
        Task("trace", relu, 1437, 1.6),
        Task("eigenvalue", relu, 128, 6),
        Task("eigenvalue", relu, 1437, 1.6),
        Task("converged", relu, 128),
        Task("converged", relu, 1437),
        Task("exact", relu, 128, 150),
        Task("exact", relu, 1437, 30),
        Task("exact", tanh, 128),
        Task("exact", tanh, 1437),
        Task("exact", cnn, 128, sample=2),
    ):
        measured(task, given.pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
