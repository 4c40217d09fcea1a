"""`ZooSpec`: everything that determines a zoo, frozen, checked when made, stored in the zoo."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from catalog.errors import InvalidSpecError, unknown_name
from catalog.grid import STORED_AS
from catalog.record import IMPORTED
from kernels.losses import LOSSES
from kernels.optimizers import OPTIMIZERS
from zoo.architectures import ARCHITECTURES, check_number
from zoo.datasets import DATASETS
from zoo.initialization import INITIALIZATIONS
from zoo.schedules import SCHEDULES

SPEC_FORMAT = 1
MAX_RUNS = 10_000_000


@dataclass(frozen=True)
class Range:
    """Values of an axis from which random cells draw: uniform between low and high, or in their logarithm.

    Two integers give integers, both ends included, on the axis of an integer.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        numbers = all(_number(-1e300, 1e300)(value) for value in (self.low, self.high)) and isinstance(self.log, bool)
        if not numbers or not self.low < self.high or (self.log and self.low <= 0):
            raise InvalidSpecError(f"a Range needs finite low < high (and low > 0 with log), got {self}")

    def at(self, fraction: float) -> float | int:
        """The value at a fraction in (0, 1) of the way."""
        integers = isinstance(self.low, int) and isinstance(self.high, int)
        low, high = self.low, self.high + 1 if integers else self.high
        value = low * (high / low) ** fraction if self.log else low + (high - low) * fraction
        return min(int(value), int(self.high)) if integers else value


@dataclass(frozen=True)
class Hyperparameter:
    """A training hyperparameter: its default and what it may be."""

    default: Any
    allowed: str
    check: Callable[[Any], bool]


def _number(low: float, high: float, low_open: bool = False, high_open: bool = False) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False  # NaN and infinities compare false below
        return (low < value if low_open else low <= value) and (value < high if high_open else value <= high)

    return check


def _integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _name(known: Mapping[str, Any]) -> Hyperparameter:
    allowed = f"one of {', '.join(known)}"
    return Hyperparameter(next(iter(known)), allowed, lambda value: isinstance(value, str) and value in known)


HYPERPARAMETERS: dict[str, Hyperparameter] = {
    "optimizer": _name(OPTIMIZERS),
    "loss_function": _name(LOSSES),
    "learning_rate": Hyperparameter(0.05, "a number above 0, at most 1000", _number(0, 1e3, low_open=True)),
    "momentum": Hyperparameter(0.9, "a number in [0, 1); AdamW's first beta", _number(0, 1, high_open=True)),
    "beta2": Hyperparameter(0.999, "a number in [0, 1)", _number(0, 1, high_open=True)),
    "epsilon": Hyperparameter(1e-8, "a number above 0, at most 1", _number(0, 1, low_open=True)),
    "weight_decay": Hyperparameter(0.0, "a number from 0 to 100", _number(0, 100)),
    "schedule": _name(SCHEDULES),
    "schedule_period": Hyperparameter(1 / 3, "a fraction of the training, above 0 to 1", _number(0, 1, low_open=True)),
    "schedule_decay": Hyperparameter(0.1, "a factor above 0 to 1", _number(0, 1, low_open=True)),
    "batch_size": Hyperparameter(32, "an integer from 1 to 1048576", _integer(1, 2**20)),
    "epochs": Hyperparameter(10, "an integer from 0 to 1000000", _integer(0, 10**6)),
    "min_steps": Hyperparameter(0, "an integer from 0 to 100000000", _integer(0, 10**8)),
    "label_noise": Hyperparameter(0.0, "a fraction from 0 to 1", _number(0, 1)),
    "data_fraction": Hyperparameter(1.0, "a fraction above 0 to 1", _number(0, 1, low_open=True)),
    "dropout": Hyperparameter(0.0, "a probability in [0, 1)", _number(0, 1, high_open=True)),
    "initialization": _name(INITIALIZATIONS),
    "initialization_gain": Hyperparameter(1.0, "a number above 0, at most 100", _number(0, 100, low_open=True)),
}


@dataclass(frozen=True)
class ZooSpec:
    """A population to train.

    Args:
        name: of the zoo.
        family, numbers: architecture; see `zoo.architectures.ARCHITECTURES`.
        dataset, dataset_options, split_seed: see `zoo.datasets.DATASETS`.
        hyperparameters: training values that differ from the defaults in `HYPERPARAMETERS`. `epochs` are passes over
            the run's data; a run that makes fewer than `min_steps` updates in them trains longer, and its checkpoints
            move along.
        axes: name of a number or hyperparameter -> its values (a tuple; a `Range` with random cells). They go before
            what `numbers` and `hyperparameters` say.
        load, temperature: names of the two axes of the phase diagram.
        cells: None for the full grid; a count for so many cells drawn at random from the axes, by `cells_seed`. Equal
            draws are one cell.
        seeds: every cell is trained once with each.
        checkpoints: epochs at which weights are kept, within 0..epochs; () means the last.
        dtype: float32, float16 or bfloat16, of the stored weights. Training is float32.
        train_samples: training samples on which checkpoints are evaluated, None for all.
        licence: SPDX identifier of the zoo's weights. citation: BibTeX or a sentence.
    """

    name: str
    family: str = "mlp"
    numbers: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = "digits"
    dataset_options: Mapping[str, Any] = field(default_factory=dict)
    split_seed: int = 0
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, tuple[Any, ...] | Range] = field(default_factory=dict)
    load: str | None = None
    temperature: str | None = None
    cells: int | None = None
    cells_seed: int = 0
    seeds: tuple[int, ...] = (0,)
    checkpoints: tuple[int, ...] = ()
    dtype: str = "float32"
    train_samples: int | None = None
    licence: str = "CC-BY-4.0"
    citation: str = ""

    def __post_init__(self) -> None:
        for name in ("numbers", "dataset_options", "hyperparameters", "axes"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise InvalidSpecError(f"{name} must be a mapping from names, got {value!r}")
            object.__setattr__(self, name, types.MappingProxyType(dict(value)))
        for name in ("seeds", "checkpoints"):
            object.__setattr__(self, name, _tuple(name, getattr(self, name)))
        axes = {name: _axis(name, values) for name, values in self.axes.items()}
        object.__setattr__(self, "axes", types.MappingProxyType(axes))
        self._check_names()
        self._check_values()
        self._check_axes()
        self._check_checkpoints()

    def _check_names(self) -> None:
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= 200 or not self.name.isprintable():
            raise InvalidSpecError(f"name must be 1 to 200 printable characters, got {self.name!r}")
        _check_known("architecture family", self.family, ARCHITECTURES)
        _check_known("data set", self.dataset, DATASETS)
        _check_known("dtype", self.dtype, STORED_AS)
        for name in ("licence", "citation"):
            if not isinstance(getattr(self, name), str):
                raise InvalidSpecError(f"{name} must be text, got {getattr(self, name)!r}")

    def _check_values(self) -> None:
        for name, value in self.numbers.items():
            _check_known(f"number of the family {self.family}", name, ARCHITECTURES[self.family].numbers)
            check_number(self.family, name, value)
        for name, value in self.hyperparameters.items():
            _check_known("hyperparameter", name, HYPERPARAMETERS)
            self._check_value(name, value)
        for name, low in (("split_seed", 0), ("cells_seed", 0), ("cells", 1), ("train_samples", 1)):
            value = getattr(self, name)
            if (value is not None or name.endswith("seed")) and not _integer(low, 2**31)(value):
                raise InvalidSpecError(f"{name} must be an integer from {low}, got {value!r}")
        if (
            not self.seeds
            or not all(_integer(0, 2**63 - 1)(seed) for seed in self.seeds)
            or len(set(self.seeds)) != len(self.seeds)
        ):
            raise InvalidSpecError(f"seeds must be distinct integers from 0, at least one, got {self.seeds!r}")

    def _check_axes(self) -> None:
        for name, values in self.axes.items():
            _check_known("axis", name, self.known)
            if isinstance(values, Range):
                if self.cells is None:
                    raise InvalidSpecError(
                        f"axis {name} is a Range, which needs random cells: set cells to their number"
                    )
                self._check_value(name, values.at(0.0))
                self._check_value(name, values.at(1 - 1e-12))
                continue
            for value in values:
                self._check_value(name, value)
            if not values:
                raise InvalidSpecError(f"axis {name} has no values: the grid is empty; give it one or more")
            if len(set(values)) != len(values):
                raise InvalidSpecError(f"axis {name} must have distinct values, got {values!r}")
        for role in ("load", "temperature"):
            if getattr(self, role) is not None:
                _check_known(f"{role} axis", getattr(self, role), self.axes)
        if self.load is not None and self.load == self.temperature:
            raise InvalidSpecError(f"load and temperature must be two different axes, got {self.load!r} for both")
        if self.num_runs > MAX_RUNS:
            raise InvalidSpecError(
                f"the grid has {self.num_runs:,} runs, more than the {MAX_RUNS:,} allowed; use random cells"
            )

    def _check_value(self, name: str, value: Any) -> None:
        if name in ARCHITECTURES[self.family].numbers:
            check_number(self.family, name, value)
        elif not HYPERPARAMETERS[name].check(value):
            raise InvalidSpecError(f"{name} must be {HYPERPARAMETERS[name].allowed}, got {value!r}")

    def _check_checkpoints(self) -> None:
        if "epochs" in self.axes and self.checkpoints:
            raise InvalidSpecError("with an axis of epochs only the last epoch is kept; leave checkpoints out")
        epochs = self.value("epochs")
        increasing = all(a < b for a, b in zip(self.checkpoints, self.checkpoints[1:], strict=False))
        if not all(_integer(0, epochs)(epoch) for epoch in self.checkpoints) or not increasing:
            raise InvalidSpecError(
                f"checkpoints must be increasing epochs from 0 to {epochs}, got {self.checkpoints!r}"
            )

    @property
    def known(self) -> tuple[str, ...]:
        """Names that can be axes: numbers of the family and hyperparameters."""
        return (*ARCHITECTURES[self.family].numbers, *HYPERPARAMETERS)

    @property
    def num_cells(self) -> int:
        if self.cells is not None:
            return self.cells
        return math.prod(len(values) for values in self.axes.values() if not isinstance(values, Range))

    @property
    def num_runs(self) -> int:
        return self.num_cells * len(self.seeds)

    def value(self, name: str) -> Any:
        """Value of a number or hyperparameter outside the axes."""
        if name in ARCHITECTURES[self.family].numbers:
            return self.numbers.get(name, ARCHITECTURES[self.family].defaults[name])
        return self.hyperparameters.get(name, HYPERPARAMETERS[name].default)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, complete: the values of today's defaults are written out."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        axes = {name: dataclasses.asdict(v) if isinstance(v, Range) else list(v) for name, v in self.axes.items()}
        filled = {
            "numbers": {name: self.value(name) for name in ARCHITECTURES[self.family].numbers},
            "hyperparameters": {name: self.value(name) for name in HYPERPARAMETERS},
            "dataset_options": dict(self.dataset_options),
            "axes": axes,
            "seeds": list(self.seeds),
            "checkpoints": list(self.checkpoints),
        }
        return {"spec_format": SPEC_FORMAT, **content, **filled}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ZooSpec:
        """The spec in a JSON object.

        Raises:
            InvalidSpecError, UnknownNameError: a newer spec format, unknown keys or values.
        """
        if not isinstance(content, Mapping):
            raise InvalidSpecError(f"a spec is a JSON object, got {type(content).__name__}")
        version = content.get("spec_format", SPEC_FORMAT)
        if type(version) is not int or version < 1:
            raise InvalidSpecError(f"spec_format must be an integer from 1 to {SPEC_FORMAT}, got {version!r}")
        if version > SPEC_FORMAT:
            raise InvalidSpecError(
                f"spec format {version}; this weightscape reads up to {SPEC_FORMAT}: install a newer weightscape"
            )
        given = {key: value for key, value in content.items() if key != "spec_format"}
        if IMPORTED in given:
            raise InvalidSpecError("its networks were imported; how they were trained, and on what data, is not known")
        known = {f.name for f in dataclasses.fields(cls)}
        for key in given:
            _check_known("field of a spec", key, known)
        if "name" not in given:
            raise InvalidSpecError("a spec needs a name")
        try:
            if isinstance(given.get("axes"), Mapping):
                given["axes"] = {k: Range(**v) if isinstance(v, Mapping) else v for k, v in given["axes"].items()}
            return cls(**given)
        except TypeError as error:
            raise InvalidSpecError(f"a spec of the wrong shape: {error}") from error


def _tuple(name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple | range):
        raise InvalidSpecError(f"{name} must be a list of values, got {values!r}")
    if len(values) > MAX_RUNS:
        raise InvalidSpecError(f"{name} has {len(values):,} values, more than the {MAX_RUNS:,} allowed")
    return tuple(values)


def _axis(name: str, values: Any) -> tuple[Any, ...] | Range:
    if not isinstance(values, Range):
        return _tuple(f"axis {name}", values)
    if name in HYPERPARAMETERS and isinstance(HYPERPARAMETERS[name].default, float):
        return Range(float(values.low), float(values.high), values.log)  # Range(0, 1) means fractions here
    return values


def _check_known(kind: str, name: Any, known: Collection[str]) -> None:
    if not isinstance(name, str) or name not in known:
        raise unknown_name(kind, name, known)
