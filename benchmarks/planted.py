"""What weight matching finds: `python -m benchmarks.planted`.

Planted permutations of 200 random networks of each family, found again or not, and whether outputs stay the same. Then
100 pairs of trained networks: the objective reached against scipy-based ports, a plain one in float64 and the package
`rebasin` (which needs torchview and graphviz to trace; left out where they are not installed).
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from benchmarks.families import FAMILIES, Network, mlp
from benchmarks.populations import Population, lay_out
from benchmarks.record import record
from weightspace.rebasin.matching import match_weights
from weightspace.rebasin.objective import objective
from weightspace.symmetry import Permutations, Symmetry
from zoo.shards import one_thread
from zoo.train import train

NETWORKS, PAIRS = 200, 100
CASES: dict[str, tuple[dict[str, Any], ...]] = {
    "mlp": tuple({"width": w, "depth": d} for w, d in ((8, 2), (8, 4), (32, 2), (128, 2), (32, 4))),
    "cnn": ({"channels": 8}, {"channels": 16}, {"channels": 32}),
    "resnet": ({"width": 8, "blocks": 2}, {"width": 16, "blocks": 2}, {"width": 8, "blocks": 4}),
    "vit": tuple({"width": w, "heads": 4, "depth": d} for w, d in ((16, 2), (32, 2), (32, 4))),
}
WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "restarts=5": {"restarts": 5},
    "one descent from the identity": {"layerwise": False},
    "the same, group by group": {"layerwise": False, "heads": "plain"},
}
SAME = 1e-10  # of the largest output, in float64
TRAINED = ((32, 2), (128, 2), (32, 4))  # widths and depths


def weights_of(network: Network, models: int, spread: str) -> torch.Tensor:
    """Random weights: "fan in" as networks begin, or "equal", where no tensor tells more of its units than another."""
    if spread == "fan in":
        return network.random_weights(models)
    weights = torch.randn(models, network.symmetry.layout.size, generator=torch.Generator().manual_seed(0))
    for name in network.symmetry.layout.names:
        if name.endswith("running_var"):
            network.symmetry.layout.tensor(weights, name).abs_()
    return weights


def recovery(family: str, numbers: dict[str, Any], networks: int, spread: str) -> bool:
    """A row for one family and width; whether every permutation was found and all outputs stay."""
    network = FAMILIES[family](**numbers)
    symmetry = network.symmetry
    weights = weights_of(network, networks, spread)
    planted = symmetry.permute(weights, symmetry.random(networks, seed=1))
    ways = {}
    for name, options in WAYS.items():
        if name == "the same, group by group" and not any(group.parent for group in symmetry.groups.values()):
            continue
        begin = time.perf_counter()
        found = match_weights(symmetry, planted, weights, seed=2, **options)
        seconds = time.perf_counter() - begin
        back = symmetry.permute(planted, found.permutations)
        ways[name] = {"recovered": int((back == weights).all(1).sum()), "seconds": round(seconds, 3)}
        if not options:
            difference = largest_difference(network, weights, planted, back)
    first, last = ways["as it comes"], ways["one descent from the identity"]
    row = {
        "operation": f"planted permutations, {family}",
        "setting": {**numbers, "networks": networks, "weights": spread, "size": symmetry.layout.size},
        "ours": f"{first['recovered']} of {networks}, {ways['restarts=5']['recovered']} with 5 restarts",
        "against": "one descent from the identity, as published",
        "theirs": f"{last['recovered']} of {networks}",
        "ways": ways,
        "largest_output_difference": difference,
        "groups": len(symmetry.moving),
    }
    record("planted", row)
    return difference <= SAME


def largest_difference(network: Network, *populations: torch.Tensor) -> float:
    """Between outputs of the first population and of the others in float64, of the largest output of each network."""
    inputs = torch.randn(8, *network.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    truth, *others = (network.outputs(weights.double(), inputs) for weights in populations)
    scale = truth.abs().amax((1, 2)).clamp_min(1e-300)
    return max(float(((other - truth).abs().amax((1, 2)) / scale).max()) for other in others)


def plain_port(symmetry: Symmetry, a: np.ndarray, b: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Git Re-Basin's weight matching (algorithm 1) of one pair as it is published, for groups that lie in no other.

    Permutations of b (size,) to a (size,), in float64, by scipy.
    """
    ours, theirs = (symmetry.layout.unflatten(v.astype(np.float64)) for v in (a, b))
    order = {name: np.arange(group.size) for name, group in symmetry.groups.items()}
    generator = np.random.default_rng(seed)
    for _ in range(100):
        progress = False
        for number in generator.permutation(len(order)):
            group = list(order)[number]
            n = symmetry.groups[group].size
            worth = np.zeros((n, n))
            for name, axes in symmetry.axes.items():
                if group not in axes:
                    continue
                moved, at = theirs[name], axes.index(group)
                for axis, other in enumerate(axes):
                    if other is not None and axis != at:
                        moved = np.take(moved, order[other], axis)
                worth += np.moveaxis(ours[name], at, 0).reshape(n, -1) @ np.moveaxis(moved, at, 0).reshape(n, -1).T
            _, columns = linear_sum_assignment(worth, maximize=True)
            rows = np.arange(n)
            progress |= bool(worth[rows, columns].sum() > worth[rows, order[group]].sum() + 1e-12)
            order[group] = columns
        if not progress:
            break
    return order


def by_package(network: Network, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Weights of b as the package `rebasin` permutes them to a."""
    from rebasin import PermutationCoordinateDescent

    layout, modules = network.symmetry.layout, []
    for weights in (a, b):
        module = copy.deepcopy(network.module).eval()
        module.load_state_dict(layout.unflatten(weights))
        modules.append(module)
    PermutationCoordinateDescent(*modules, torch.zeros(2, *network.input_shape)).rebasin()
    return layout.flatten({name: value.detach() for name, value in modules[1].state_dict().items()})


@functools.lru_cache
def trained(width: int, depth: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two populations (pairs, size) of MLPs trained on digits for 20 epochs."""
    numbers = (("depth", depth), ("width", width), ("activation", "relu"))
    plan = lay_out(Population(2 * pairs, epochs=20, numbers=numbers))
    (runs,) = plan.runs.values()
    weights = train(runs, plan.data).weights[:, -1]
    return weights[:pairs], weights[pairs:]


def objectives(width: int, depth: int, pairs: int) -> None:
    """A row for each peer: how often, and by how much, our objective on trained pairs is above theirs."""
    network = mlp(width, depth)
    symmetry = network.symmetry
    a, b = trained(width, depth, pairs)
    ours = {name: match_weights(symmetry, b, a, **options).after for name, options in OURS.items()}

    def apply(permutations: Permutations, model: int) -> torch.Tensor:
        whole = {name: p[None] for name, p in permutations.items()}
        return symmetry.permute(b[model : model + 1], whole)[0]

    peers = {
        "plain port, scipy, float64": torch.stack(
            [apply(plain_port(symmetry, a[model].numpy(), b[model].numpy()), model) for model in range(pairs)]
        )
    }
    if all(importlib.util.find_spec(name) for name in ("rebasin", "torchview", "graphviz")):
        torch.manual_seed(0)  # its order of groups
        peers["rebasin 0.0.47"] = torch.stack([by_package(network, x, y) for x, y in zip(a, b, strict=True)])
    for peer, moved in peers.items():
        theirs = objective(symmetry, moved, a)
        shares = {
            name: {
                "not_below": int((value >= theirs * (1 - 1e-9)).sum()),
                "mean_gain": float((value / theirs - 1).mean()),
                "standard_error": float((value / theirs - 1).std(ddof=1) / np.sqrt(pairs)),
                "least_gain": float((value / theirs - 1).min()),
            }
            for name, value in ours.items()
        }
        row = {
            "operation": "objective of weight matching, trained pairs",
            "setting": {"network": f"mlp 64-{'-'.join([str(width)] * depth)}-10", "pairs": pairs},
            "ours": ", ".join(f"{name}: not below in {share['not_below']}" for name, share in shares.items()),
            "against": peer,
            "theirs": f"mean objective {theirs.mean():.3f}",
            "before": float(objective(symmetry, b, a).mean()),
            "means": {name: float(value.mean()) for name, value in ours.items()},
            "shares": shares,
        }
        record("planted", row)


OURS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "layerwise start too": {"layerwise": True},
    "restarts=5": {"layerwise": True, "restarts": 5},
    "restarts=20": {"layerwise": True, "restarts": 20},
}


def main(argv: Sequence[str] | None = None) -> int:
    """All families and widths, then trained pairs; 1 when outputs differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted", description=__doc__)
    parser.add_argument("--networks", type=int, default=NETWORKS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    given = parser.parse_args(argv)
    with one_thread():
        good = [
            recovery(family, numbers, given.networks, spread)
            for family, cases in CASES.items()
            for numbers in cases
            for spread in ("fan in", "equal")
        ]
        for width, depth in TRAINED:
            objectives(width, depth, given.pairs)
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
