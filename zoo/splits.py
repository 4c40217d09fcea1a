"""Samples that know which split they are of, so that what fits or chooses something can refuse the test split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from catalog.errors import InvalidSpecError, unknown_name
from zoo.datasets import Dataset

NAMES = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)  # eq=False: `==` on tensors has no truth value
class Split:
    """Inputs and labels of one split.

    Args:
        x: (samples, *input_shape). y: (samples,) int64.
        name: "train", "validation" or "test": what these samples are for.

    Raises:
        UnknownNameError: another name. InvalidSpecError: no samples, or not a label for each.
    """

    x: Tensor
    y: Tensor
    name: str

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise unknown_name("split", self.name, NAMES)
        if not len(self.x) or self.y.shape != self.x.shape[:1]:
            raise InvalidSpecError(
                f"a split needs samples, and a label for each; got {tuple(self.x.shape)} and {tuple(self.y.shape)}"
            )


def train_split(data: Dataset, samples: int | None = None) -> Split:
    """The training samples, or the first of them: what a run with that many `samples` was trained on."""
    used = _first(data, samples)
    return _of(data.train_x[:used], data.train_y[:used], "train")


def test_split(data: Dataset) -> Split:
    """The test samples, to report on."""
    return _of(data.test_x, data.test_y, "test")


def with_validation(data: Dataset, fraction: float = 0.2, samples: int | None = None) -> tuple[Split, Split]:
    """Training samples cut in two: those before, and the last ones, to choose on. Always the same ones.

    A run has been trained on the second part too, unless its cell used so few samples that it ends before: choices are
    then made on samples that the models have seen, which favours those that fit them best.

    Args:
        fraction: of the samples for the second part, rounded.
        samples: how many training samples there are, None for all.

    Raises:
        InvalidSpecError: a fraction that leaves one part empty.
    """
    used = _first(data, samples)
    held = round(fraction * used) if isinstance(fraction, float) and 0 < fraction < 1 else 0
    if not 0 < held < used:
        raise InvalidSpecError(
            f"validation must be a fraction that leaves samples in both parts of {used}, got {fraction!r}"
        )
    cut = used - held
    return (
        _of(data.train_x[:cut], data.train_y[:cut], "train"),
        _of(data.train_x[cut:used], data.train_y[cut:used], "validation"),
    )


def fitting(split: object, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and labels to take statistics or make choices from, where the weights are and of their type.

    Raises:
        InvalidSpecError: the test split, or samples that do not say which split they are of.
    """
    if not isinstance(split, Split):
        raise InvalidSpecError(
            f"samples must come as a zoo.splits.Split, which says what they are for; got {type(split).__name__}"
        )
    if split.name == "test":
        raise InvalidSpecError(
            "statistics and choices come from training or validation data; got the test split. Use"
            " zoo.splits.train_split or with_validation"
        )
    return split.x.to(weights.device, weights.dtype), split.y.to(weights.device)


def _first(data: Dataset, samples: int | None) -> int:
    if samples is None:
        return data.num_train
    if type(samples) is not int or not 1 <= samples <= data.num_train:
        raise InvalidSpecError(f"samples must be an integer from 1 to {data.num_train}, got {samples!r}")
    return samples


def _of(x: np.ndarray, y: np.ndarray, name: str) -> Split:
    return Split(torch.from_numpy(x), torch.from_numpy(y), name)
