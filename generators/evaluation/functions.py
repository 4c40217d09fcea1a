"""What networks do, whatever their weights: predictions, errors, and how much two of them have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from catalog.errors import GeneratorError
from generators.evaluation.estimate import as_weights
from generators.evaluation.novelty import lineage_codes
from kernels.overlap.overlap import largest_overlap
from zoo.architectures import Architecture
from zoo.evaluate import evaluate
from zoo.landscape.similarity import outputs

LOGITS = 1 << 24  # numbers held at once


@dataclass(frozen=True)
class Behaviour:
    """What networks do on one set of samples.

    Args:
        predictions: (models, samples), unsigned integers: classes, or the number of classes where there is no answer.
        bits: (models, ceil(samples / 8)) uint8, 1 where a sample is misclassified, most significant bit first; all
            samples of a model that failed.
        accuracy, loss: (models,) float64; NaN for models that failed.
        failed: (models,) bool, weights or outputs are not finite.
    """

    predictions: np.ndarray
    bits: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    failed: np.ndarray

    def pick(self, models: Any) -> Behaviour:
        """That of some models."""
        return Behaviour(
            self.predictions[models], self.bits[models], self.accuracy[models], self.loss[models], self.failed[models]
        )


def behaviour(
    architecture: Architecture, weights: np.ndarray, x: Any, y: Any, *, loss_function: str = "cross_entropy"
) -> Behaviour:
    """All that the metrics of functions need, in two passes.

    Args:
        weights: (models, size) float32. x: (samples, *input_shape). y: (samples,) labels; numpy or torch.

    Raises:
        GeneratorError: weights that do not fit. ValueError: samples that do not fit, see `zoo.evaluate.evaluate`.
    """
    values = as_weights(weights, architecture.layout.size, f"weights of {architecture.name}")
    found = predictions(architecture, values, x)
    failed = (found == architecture.num_classes).any(1)
    bits = np.full((len(values), -(-len(x) // 8)), 255, np.uint8)
    bits[:, -1] = np.packbits(np.ones(len(x) - 8 * (bits.shape[1] - 1), bool))[0]
    accuracy, loss = np.full(len(values), math.nan), np.full(len(values), math.nan)
    if not failed.all():
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        some = torch.from_numpy(np.ascontiguousarray(values[~failed], np.float32))
        result = evaluate(architecture, some, x, y, loss_functions=loss_function)
        bits[~failed], accuracy[~failed], loss[~failed] = result.error_bits, result.accuracy, result.loss
    return Behaviour(found, bits, accuracy, loss, failed)


def predictions(architecture: Architecture, weights: np.ndarray, x: Any) -> np.ndarray:
    """Classes, (models, samples), in the smallest unsigned integers that hold one more than there are.

    All of a model's are the number of classes, which is none, if its weights or outputs are not finite.
    """
    values = as_weights(weights, architecture.layout.size, f"weights of {architecture.name}")
    inputs, none = torch.as_tensor(x), architecture.num_classes
    found = np.full((len(values), len(inputs)), none, np.min_scalar_type(none))
    good = np.flatnonzero(np.isfinite(values).all(1))
    step = max(1, LOGITS // (max(len(inputs), 1) * none))
    for first in range(0, len(good), step):
        some = good[first : first + step]
        logits = outputs(architecture, torch.from_numpy(np.ascontiguousarray(values[some], np.float32)), inputs)
        finite = logits.isfinite().flatten(1).all(1).numpy()
        found[some[finite]] = logits.argmax(-1).numpy()[finite]
    return found


@dataclass(frozen=True)
class Overlap:
    """The training model whose errors a network shares most.

    Args:
        iou: (models,) float64 in [0, 1], |E & T| / |E | T| of the sets of misclassified samples; NaN for models that
            failed. Two networks without errors have nothing in common that would show a copy: 0.
        nearest: (models,) int64, which that is; -1 for models that failed.
    """

    iou: np.ndarray
    nearest: np.ndarray


def error_iou(sample_bits: np.ndarray, training_bits: np.ndarray, failed: np.ndarray | None = None) -> Overlap:
    """Largest intersection over union of each model's errors with those of any training model.

    Args:
        sample_bits: (samples, bytes), training_bits: (models, bytes), uint8, as `zoo.evaluate` packs them.
        failed: (samples,) bool, which have no errors worth comparing.

    Raises:
        GeneratorError: bits that do not fit each other, no training models.

    Source: Zeng et al. 2025, arXiv 2506.07998, section 4.2.
    """
    _check_bits(sample_bits, training_bits)
    return _largest(sample_bits, training_bits, failed, None, None)


def own_error_iou(training_bits: np.ndarray, lineages: Sequence[object] | np.ndarray) -> Overlap:
    """The same of training models with those of other lineages: the level to compare with."""
    _check_bits(training_bits, training_bits)
    codes = lineage_codes(lineages, len(training_bits))
    return _largest(training_bits, training_bits, None, codes, codes)


def _largest(
    a: np.ndarray, b: np.ndarray, failed: np.ndarray | None, groups_a: np.ndarray | None, groups_b: np.ndarray | None
) -> Overlap:
    found, index = largest_overlap(a, b, groups_a=groups_a, groups_b=groups_b)
    iou = found.astype(np.float64)
    if failed is not None:
        iou[failed], index[failed] = math.nan, -1
    return Overlap(iou, index)


def disagreement(predictions_a: np.ndarray, predictions_b: np.ndarray) -> np.ndarray:
    """(models,) share of samples on which two models, row by row, give different answers.

    Of a sample and its nearest training model: `disagreement(samples, training[novelty.nearest])`, to be compared with
    `disagreement(training, training[novelty.spacing.nearest])`.

    Raises:
        GeneratorError: predictions of another shape.
    """
    a, b = np.asarray(predictions_a), np.asarray(predictions_b)
    if a.ndim != 2 or a.shape != b.shape or not a.shape[1]:
        raise GeneratorError(f"predictions must be (models, samples) twice, got {a.shape} and {b.shape}")
    found: np.ndarray = (a != b).mean(1)
    return found


def pairwise_disagreement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(models a, models b) float64 share of samples on which answers differ."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        raise GeneratorError(f"predictions must be (models, samples) on the same samples, got {a.shape} and {b.shape}")
    same = np.zeros((len(a), len(b)), np.float32)
    for label in np.union1d(np.unique(a), np.unique(b)):
        same += (a == label).astype(np.float32) @ (b == label).astype(np.float32).T
    found: np.ndarray = 1 - same.astype(np.float64) / a.shape[1]
    return found


def _check_bits(a: np.ndarray, b: np.ndarray) -> None:
    if any(bits.ndim != 2 or bits.dtype != np.uint8 for bits in (a, b)) or a.shape[1] != b.shape[1] or not len(b):
        raise GeneratorError(
            f"error bits must be (models, bytes) uint8 of the same samples, got {a.shape} {a.dtype} and {b.shape} "
            f"{b.dtype}"
        )
