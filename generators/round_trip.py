"""How good networks held out still are behind a codec: no generator that works on its codes will do better."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from generators.codec import Codec, check_codec
from generators.population import Population
from zoo.evaluate import evaluate
from zoo.merging.averages import with_statistics
from zoo.splits import train_split


def round_trip(codec: Codec, population: Population, split: str = "validation") -> dict[str, Any]:
    """Accuracy on the test samples of the networks of a split, before and after encoding and decoding.

    Decoded networks have no statistics of BatchNorm of their own: those are re-estimated from training inputs, and the
    accuracy of the networks themselves with such statistics is given too.

    Returns:
        JSON: split, models, `before` and `after` (and `reestimated` with BatchNorm), one accuracy a network, the mean
        of each as `<name>_mean`, of the losses as `drop_mean`, and standard errors over lineages as `<name>_se`, None
        with one lineage.

    Raises:
        GeneratorError: the codec is of another population.
    """
    check_codec(codec, population)
    architecture, data = population.architecture, population.data
    inputs, labels = torch.from_numpy(data.test_x), torch.from_numpy(data.test_y)
    train = train_split(data)
    found: dict[str, list[np.ndarray]] = {"before": [], "after": []}
    for some in population.batches(split):
        kinds = {"before": torch.from_numpy(some)}
        decoded = torch.from_numpy(codec.decode(codec.encode(some)))
        kinds["after"] = with_statistics(architecture, decoded, train)
        if architecture.has_batch_norm:
            kinds["reestimated"] = with_statistics(architecture, kinds["before"], train)
        for name, weights in kinds.items():
            found.setdefault(name, []).append(evaluate(architecture, weights, inputs, labels).accuracy)
    each = {name: np.concatenate(values) for name, values in found.items()}
    report: dict[str, Any] = {"split": split, "models": len(each["before"])}
    runs = population.split(split)["run"].to_numpy()
    for name, values in (each | {"drop": each["before"] - each["after"]}).items():
        report[f"{name}_mean"], report[f"{name}_se"] = _mean(values, runs)
        if name != "drop":
            report[name] = values.tolist()
    return report


def with_round_trip(codec: Codec, population: Population, split: str = "validation") -> Codec:
    """The codec with what `round_trip` finds in its report; its fingerprint stays."""
    return replace(codec, report={**codec.report, "round_trip": round_trip(codec, population, split)})


def _mean(values: np.ndarray, runs: np.ndarray) -> tuple[float, float | None]:
    """Mean over lineages of the mean of each, with its standard error."""
    _, which = np.unique(runs, return_inverse=True)
    each = np.bincount(which, values) / np.bincount(which)
    error = float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else None
    return float(each.mean()), error
