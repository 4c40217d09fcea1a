"""Write the zoos in tests/data, once per format version: `python -m tests.make_archive`. Never change those there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

import catalog
from tests.test_format import values_of
from zoo.build import build
from zoo.presets import tiny

DATA = Path(__file__).resolve().parent / "data"


def main() -> None:
    """A zoo of four runs, one of them diverged, for each stored type."""
    for dtype in ("float32", "float16", "bfloat16"):
        folder = DATA / f"format1-{dtype}"
        folder.mkdir(parents=True)
        spec = dataclasses.replace(
            tiny(),
            name=f"archive {dtype}",
            numbers={"depth": 2, "width": 4, "activation": "relu"},
            hyperparameters={"epochs": 4, "weight_decay": 0.05},
            axes={"learning_rate": (0.1, 900.0)},  # the second diverges
            load=None,
            temperature=None,
            seeds=(0, 1),
            dtype=dtype,
        )
        build(spec, folder / "zoo", workers=0)
        values = {"/".join(map(str, key)): vector for key, vector in values_of(catalog.open(folder / "zoo")).items()}
        np.savez(folder / "expected.npz", allow_pickle=False, **values)


if __name__ == "__main__":
    main()
