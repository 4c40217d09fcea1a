"""How good samples are as they come, with no gradient step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from generators.evaluation.estimate import Estimate, as_column, mean, median, share
from zoo.architectures import Architecture
from zoo.landscape.norms import reestimate
from zoo.splits import Split, fitting


@dataclass(frozen=True)
class Performance:
    """Accuracy of a set of networks. NaN where all have failed.

    Args:
        smallest, largest, mean, median: of those that have not failed. failed: share of all.
    """

    smallest: float
    mean: Estimate
    median: Estimate
    largest: float
    failed: Estimate


def performance(accuracy: np.ndarray) -> Performance:
    """Sum up accuracies.

    Args:
        accuracy: (models,), NaN for networks that failed.

    Raises:
        GeneratorError: no column of numbers.
    """
    values = as_column(accuracy, None, "accuracies")
    good = np.isfinite(values)
    low, high = (values[good].min(), values[good].max()) if good.any() else (np.nan, np.nan)
    return Performance(float(low), mean(values), median(values), float(high), share(~good))


def with_statistics(architecture: Architecture, weights: np.ndarray, train: Split) -> np.ndarray:
    """(models, size) with the statistics of BatchNorm taken anew from training data; others as they are.

    Args:
        weights: (models, size) float32. Models that are not finite stay as they are.

    Raises:
        InvalidSpecError: the test split.
    """
    if not architecture.has_batch_norm:
        return weights
    good = np.isfinite(weights).all(1)
    some = torch.from_numpy(np.ascontiguousarray(weights[good]))
    out = weights.copy()
    out[good] = reestimate(architecture, some, fitting(train, some)[0]).numpy()
    return out
