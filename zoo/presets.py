"""Named specs. A preset is a function that returns a complete `ZooSpec`; a variant calls it and changes a field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from catalog.errors import InvalidSpecError, unknown_name
from zoo.spec import Range, ZooSpec


def tiny() -> ZooSpec:
    """24 small MLPs on two moons: every part of a zoo in seconds. For tests and first looks."""
    return ZooSpec(
        name="tiny",
        numbers={"depth": 1, "activation": "tanh"},
        dataset="moons",
        hyperparameters={"epochs": 4, "learning_rate": 0.1},
        axes={"width": (4, 8), "batch_size": (8, 16, 32, 64)},
        load="width",
        temperature="batch_size",
        seeds=(0, 1, 2),
        checkpoints=(0, 1, 4),
    )


def demo() -> ZooSpec:
    """64 MLPs on digits over width and batch size: what `make demo` builds."""
    return ZooSpec(
        name="demo",
        numbers={"depth": 2, "activation": "tanh"},
        hyperparameters={"epochs": 20, "learning_rate": 0.05, "weight_decay": 5e-4, "schedule": "cosine"},
        axes={"width": (2, 4, 16, 64), "batch_size": (8, 32, 128, 512)},
        load="width",
        temperature="batch_size",
        seeds=(0, 1, 2, 3),
        checkpoints=(0, 1, 2, 5, 10, 20),
    )


def phases_small() -> ZooSpec:
    """168 tanh MLPs on digits, width x batch size x 3 seeds: a grid that shows all five phases of loss landscapes."""
    return ZooSpec(
        name="phases_small",
        numbers={"depth": 2, "activation": "tanh"},
        dataset_options={"standardise": "feature"},  # without it batch size 4 ends in chaos rather than in phase II
        hyperparameters={"epochs": 60, "min_steps": 1500, "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        axes={"width": (2, 4, 8, 16, 32, 64, 128), "batch_size": (4, 8, 16, 32, 64, 128, 256, 512)},
        load="width",
        temperature="batch_size",
        seeds=(0, 1, 2),
        checkpoints=(0, 1, 5, 15, 30, 45, 60),
    )


def cnn_small() -> ZooSpec:
    """300 small CNNs on digits, hyperparameters drawn at random as in the Small CNN Zoo, 10 checkpoints each."""
    return ZooSpec(
        name="cnn_small",
        family="cnn",
        numbers={"style": "model_zoo", "channels": 8},
        hyperparameters={"epochs": 30},
        axes={
            "optimizer": ("sgd", "adamw"),
            "learning_rate": Range(5e-4, 5e-2, log=True),
            "weight_decay": Range(1e-6, 1e-2, log=True),
            "dropout": Range(0.0, 0.4),
            "batch_size": (16, 32, 64),
            "data_fraction": (0.25, 0.5, 1.0),
            "activation": ("relu", "tanh"),
            "initialization": ("torch", "kaiming_normal", "xavier_normal", "orthogonal", "truncated_normal"),
        },
        cells=300,
        checkpoints=(0, 1, 2, 3, 5, 8, 12, 18, 24, 30),
    )


def lineages() -> ZooSpec:
    """1,024 ReLU MLPs on digits, 64-16-10, that differ in their seeds alone: for generators to learn from."""
    return ZooSpec(
        name="lineages",
        numbers={"depth": 1, "width": 16, "activation": "relu"},
        hyperparameters={"epochs": 30, "learning_rate": 0.05, "weight_decay": 5e-3},
        seeds=tuple(range(1024)),
    )


PRESETS: dict[str, Callable[[], ZooSpec]] = {
    "tiny": tiny,
    "demo": demo,
    "phases_small": phases_small,
    "cnn_small": cnn_small,
    "lineages": lineages,
}


def load_spec(name: str) -> ZooSpec:
    """The preset of this name, or the spec in a JSON file.

    Raises:
        UnknownNameError: neither a preset nor a file.
        InvalidSpecError: a file that is no spec.
    """
    if name in PRESETS:
        return PRESETS[name]()
    path = Path(name)
    if path.suffix != ".json" and not path.is_file():
        raise unknown_name("preset", name, [*PRESETS, "SPEC.json"])
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidSpecError(f"no spec file {name}; presets are {', '.join(PRESETS)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidSpecError(f"cannot read a spec from {name}: {error}") from error
    return ZooSpec.from_json(content)
