"""What a metric is: a function of a whole population, its version, and what else it says beside the value."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from catalog.errors import InvalidSpecError, unknown_name
from zoo.architectures import Architecture

NEEDS = ("model", "partner", "history", "cell")
GIVEN = frozenset({"loss_function", "train_x"})  # arguments that are no settings
Values = np.ndarray | Sequence[bytes] | Sequence[str]


@dataclass(frozen=True)
class Measured:
    """What a metric found.

    Args:
        value: (models,) float64. NaN where it could not be measured.
        standard_error: (models,) float64, of sampling (probes, batches); 0 for what is computed without any, NaN where
            one draw gives no error.
        others: further columns, (models,) each: numbers, or bytes of little-endian float64 for curves.
        reasons: (models,) why a value is missing, "" where it is not; None for none missing.
    """

    value: np.ndarray
    standard_error: np.ndarray
    others: Mapping[str, Values] = field(default_factory=dict)
    reasons: Sequence[str] | None = None


@dataclass(frozen=True)
class Metric:
    """A function that measures a population, and how it is called.

    Args:
        measure: (architecture, weights, x, y, *, settings...) -> Measured. Before `x`, a metric that needs a partner
            takes partner (models, size); one that needs a history or cell takes others (models, count, size). Weights
            (models, size), x (samples, *input_shape), y (samples,) or (models, samples). Keyword arguments with a
            JSON default are the settings. Two that are none come where they are arguments: `loss_function`, the run's
            own, and `train_x`, inputs of the training split for statistics of BatchNorm.
        needs: "model": nothing more; "partner": the next seed of its cell; "history": the model's last `checkpoints`
            (itself among them); "cell": all seeds of its cell (itself first).
        version: of the definition. Values of different versions are different columns.
        split: the data it is measured on, "train" or "test"; None for none.
        samples: how many of the first samples of the split, None for all.
        labels: "own", those the run was trained on, noise included; "clean", those of the data.
        columns: names of `Measured.others` known beforehand; further ones, by layer say, begin with the metric's name
            and an underscore.
        unit: of the value, for tables and pictures.
        passes: from settings and architecture to about how many gradients of the loss on its samples a row costs.
    """

    measure: Callable[..., Measured]
    needs: str = "model"
    version: int = 1
    split: str | None = "train"
    samples: int | None = None
    labels: str = "own"
    columns: tuple[str, ...] = ()
    unit: str = ""
    passes: Callable[[Mapping[str, Any], Architecture], float] = lambda settings, architecture: 1.0

    def __post_init__(self) -> None:
        assert self.needs in NEEDS, f"needs must be one of {NEEDS}, got {self.needs!r}"
        assert self.split in (None, "train", "test"), self.split
        assert self.labels in ("own", "clean"), self.labels

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Defaults of everything a user may set: the split's name and size, and the function's own arguments."""
        own = inspect.signature(self.measure).parameters.values()
        defaults = {p.name: p.default for p in own if p.kind is p.KEYWORD_ONLY and p.name not in GIVEN}
        data = {} if self.split is None else {"split": self.split, "samples": self.samples}
        return data | defaults

    def complete(self, name: str, changed: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with these changed.

        Raises:
            UnknownNameError: a setting that it does not have. InvalidSpecError: a value of another type.
        """
        for key, value in changed.items():
            if key not in self.settings:
                raise unknown_name(f"setting of {name}", key, self.settings)
            default = self.settings[key]
            if not _fits(value, default):
                kind = "a whole number or nothing" if default is None else f"like {default!r}"
                raise InvalidSpecError(f"{key} of {name} must be {kind}, got {value!r}")
        samples = changed.get("samples")
        if samples is not None and (type(samples) is not int or samples < 1):
            raise InvalidSpecError(
                f"samples of {name} must be a whole number from 1, or nothing for all, got {samples!r}"
            )
        if changed.get("split", "train") not in ("train", "test"):
            raise unknown_name("split", changed["split"], ("train", "test"))
        return {key: _like(changed.get(key, default), default) for key, default in self.settings.items()}

    @cached_property
    def given(self) -> frozenset[str]:
        """Which of `GIVEN` it takes."""
        return GIVEN & set(inspect.signature(self.measure).parameters)


def _fits(value: Any, default: Any) -> bool:
    """Whether a value may stand where the default does. Without a default anything of JSON may."""
    if default is None:
        return value is None or (isinstance(value, int | float | str) and not isinstance(value, bool))
    if isinstance(default, bool) or isinstance(default, str):
        return type(value) is type(default)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is int


def _like(value: Any, default: Any) -> Any:
    """1 is 1.0 where the default is a float: equal settings are one version."""
    return float(value) if isinstance(default, float) else value
