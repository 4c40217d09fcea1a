"""Linear assignment on costs as weight matching has them: `python -m benchmarks.assignment`.

The similarities that matching trained digits MLPs 64-n-n-10 solves, in order, captured from the usual loop; one core
each. Ours in float32, as matching uses it, and as `assign` gives it, in float64 with a proof; against scipy, the
Jonker-Volgenant solvers of lapx, and torch-linear-assignment, whose CPU path this is. Totals in float64 must be scipy's
to 1e-6; when one is worse, the exit status is 1. Random costs would mislead: solvers differ most near ties.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from benchmarks.alignment import POPULATIONS, trained
from benchmarks.families import mlp
from benchmarks.record import bar, record
from benchmarks.sides import PAIRS, compare, measure
from benchmarks.weight_matching import captured
from kernels.assignment.assign import assign
from kernels.assignment.compiled import solve
from zoo.shards import one_thread

MODELS = {32: 190, 128: 20, 512: 3}  # whose matchings are captured
LEAST = 4.0
WORSE = 1e-6  # of a total
Solver = Callable[[np.ndarray], np.ndarray]


def ours(costs: np.ndarray) -> np.ndarray:
    """Columns (batch, n), in float32."""
    return solve(costs)[0]


def proven(costs: np.ndarray) -> np.ndarray:
    """In float64, each with a certificate."""
    found = assign(torch.from_numpy(costs), threads=1)
    assert bool(found.certified.all())
    return found.columns.numpy()


def scipy(costs: np.ndarray) -> np.ndarray:
    return np.array([linear_sum_assignment(cost)[1] for cost in costs])


def lapx(costs: np.ndarray) -> np.ndarray:
    """Its batch call, in float32 too."""
    import lap

    rows, columns = lap.lapjvs_batch(costs, return_cost=False, n_threads=1)
    assert all((row == np.arange(costs.shape[1])).all() for row in rows)
    return np.array(columns)


def torch_linear_assignment(costs: np.ndarray) -> np.ndarray:
    from torch_linear_assignment import batch_linear_assignment  # type: ignore[import-untyped]

    columns: np.ndarray = batch_linear_assignment(torch.from_numpy(costs)).numpy()
    return columns


OURS: dict[str, Solver] = {"float32": ours, "float64, each proven": proven}
PEERS: dict[str, tuple[Solver, str | None]] = {
    "scipy linear_sum_assignment": (scipy, None),
    "lapx lapjvs_batch": (lapx, "lap"),
    "torch-linear-assignment, CPU": (torch_linear_assignment, "torch_linear_assignment"),
}


def real_costs(width: int, models: int) -> np.ndarray:
    """(problems, n, n) float32, to be minimised."""
    weights = trained(width, models + 1, POPULATIONS[width][1])
    with one_thread():
        return -np.array(captured(mlp(width).symmetry, weights[0], weights[1:]))


def totals(costs: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(problems,) float64."""
    chosen: np.ndarray = np.take_along_axis(costs.astype(np.float64), columns[..., None].astype(np.int64), 2)
    return chosen.sum((1, 2))


def assignment(width: int, models: int, pairs: int = PAIRS) -> int:
    """A row for each of our solvers and each peer; how many of our totals are worse than scipy's."""
    costs = real_costs(width, models)
    peers = {name: solver for name, (solver, module) in PEERS.items() if module is None or find_spec(module)}
    least = totals(costs, scipy(costs))
    worse = 0
    with one_thread():
        for name, solver in OURS.items():
            above = (totals(costs, solver(costs)) - least) / np.abs(least)
            worse += int((above > WORSE).sum())
            sides = {peer: (lambda other=other: other(costs)) for peer, other in peers.items()}
            turns = measure({"ours": lambda: solver(costs), **sides}, pairs)  # noqa: B023
            seconds = {side: statistics.median(turn.wall) / len(costs) for side, turn in turns.items()}
            for peer in peers:
                ratio = compare(turns, peer, "ours")
                record("assignment", row(costs, name, peer, seconds, ratio, float(above.max())))
    return worse


def row(
    costs: np.ndarray, name: str, peer: str, seconds: dict[str, float], ratio: dict[str, float], above: float
) -> dict[str, object]:
    """What is recorded of one comparison."""
    reached = bar(ratio["median"], LEAST) if name == "float32" and peer.startswith("scipy") else {}
    return {
        "operation": f"assign {costs.shape[1]} units, {name}",
        "setting": {"problems": len(costs), "cores": 1},
        "ours": f"{1e6 * seconds['ours']:.3g} us",
        "against": peer,
        "theirs": f"{1e6 * seconds[peer]:.3g} us",
        "ratio": ratio,
        **reached,
        "largest_excess_of_a_total": above,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Three widths; 1 when a total is worse than scipy's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.assignment", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--widths", type=int, nargs="*", default=list(MODELS), choices=list(MODELS))
    given = parser.parse_args(argv)
    return int(sum(assignment(width, MODELS[width], given.pairs) for width in given.widths) > 0)


if __name__ == "__main__":
    sys.exit(main())
