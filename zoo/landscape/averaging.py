"""What the mean of several networks' weights is worth: the last checkpoints of a run, or the seeds of a cell."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from catalog.errors import InvalidSpecError
from zoo.architectures import Architecture
from zoo.evaluate import evaluate
from zoo.landscape.metric import Measured
from zoo.landscape.norms import FLOATS, reestimate
from zoo.landscape.paths import check_frame


def averaging_gain(
    architecture: Architecture,
    weights: Tensor,
    others: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    train_x: Tensor,
    checkpoints: int = 5,
) -> Measured:
    """Accuracy of the mean of a run's last checkpoints less that of the model, in percentage points.

    All tensors are averaged, biases too. The statistics of BatchNorm are re-estimated for both, so that the gain is
    that of averaging alone.

    Args:
        weights: (models, size). others: (models, count, size), the last checkpoints of each, itself among them.
        x: (samples, *input_shape), of the test split. y: (samples,) or (models, samples) int64.
        train_x: inputs of the training split, for the statistics.
        checkpoints: how many of the last ones, for the record: `others` holds them, or fewer where a run has no more.

    Returns:
        The value; its standard error is that of the paired difference over the samples. Columns: accuracy of the mean
        (averaging_gain_accuracy, in [0, 1]) and how many were averaged (averaging_gain_count).

    Raises:
        InvalidSpecError: settings that make no sense.

    Source: Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization", arXiv 1803.05407,
    section 3; "A Model Zoo on Phase Transitions in Neural Networks", arXiv 2504.18072, whose code leaves biases out.
    """
    if type(checkpoints) is not int or checkpoints < 2:
        raise InvalidSpecError(f"checkpoints to average must be an integer from 2, got {checkpoints!r}")
    return _gain("averaging_gain", architecture, weights, others, x, y, train_x)


def seed_averaging_gain(
    architecture: Architecture,
    weights: Tensor,
    others: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    train_x: Tensor,
    frame: str | None = None,
) -> Measured:
    """Accuracy of the mean of all seeds of a cell less that of the model, in percentage points. As `averaging_gain`.

    Args:
        others: (models, seeds, size), all runs of its cell, itself first.
        frame: name of the alignment that all were read in, see `weightscape align`; None for weights as they are.
    """
    check_frame(frame)
    return _gain("seed_averaging_gain", architecture, weights, others, x, y, train_x)


def _gain(
    name: str, architecture: Architecture, weights: Tensor, others: Tensor, x: Tensor, y: Tensor, train_x: Tensor
) -> Measured:
    if others.dim() != 3 or others.shape[::2] != weights.shape or not others.shape[1]:
        raise ValueError(f"others must be ({len(weights)}, count, {weights.shape[1]}), got {tuple(others.shape)}")
    models, samples = len(weights), len(x)
    values, error, accuracy, finite = np.empty(models), np.empty(models), np.empty(models), np.empty(models, bool)
    each = max(FLOATS // (others.shape[1] * architecture.layout.size), 1)
    for first in range(0, models, each):
        part = slice(first, first + each)
        mean = others[part].double().mean(1).to(weights.dtype)
        labels = y if y.dim() == 1 else y[part]
        both = [
            evaluate(architecture, reestimate(architecture, one, train_x), x, labels) for one in (mean, weights[part])
        ]
        averaged, own = (np.unpackbits(found.error_bits, axis=1, count=samples).astype(np.int8) for found in both)
        gained = own - averaged
        values[part] = gained.sum(1) * 100 / samples
        error[part] = 100 * gained.std(1, ddof=1) / math.sqrt(samples) if samples > 1 else math.nan
        accuracy[part] = 1 - averaged.mean(1)
        finite[part] = np.isfinite([found.loss for found in both]).all(0)
    columns = {f"{name}_accuracy": accuracy, f"{name}_count": np.full(models, float(others.shape[1]))}
    if finite.all():
        return Measured(values, error, columns)
    reasons = ["" if fine else "the loss of the mean, or of the model, is not finite" for fine in finite]
    values, error, accuracy = (np.where(finite, found, math.nan) for found in (values, error, accuracy))
    return Measured(values, error, {**columns, f"{name}_accuracy": accuracy}, reasons)
