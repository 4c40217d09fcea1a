"""Small zoos that generators are trained on in tests."""

from __future__ import annotations

from pathlib import Path

from catalog.store import Zoo
from zoo.build import build
from zoo.spec import ZooSpec


def moons(folder: Path, seeds: int = 24) -> Zoo:
    """MLPs 2-8-2 on two moons, two checkpoints each."""
    spec = ZooSpec(
        name="moons",
        family="mlp",
        numbers={"depth": 1, "activation": "tanh", "width": 8},
        dataset="moons",
        hyperparameters={"epochs": 4, "learning_rate": 0.2, "batch_size": 16},
        axes={"label_noise": (0.0, 0.1)},
        seeds=tuple(range(seeds // 2)),
        checkpoints=(1, 4),
    )
    return build(spec, folder / "moons.zoo", workers=0)
