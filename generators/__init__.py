"""Learning from populations: what makes new networks, and what says whether they are new and any good."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`WeightDataModule`, once somebody asks for it: Lightning takes seconds to import."""
    if name == "WeightDataModule":
        from generators.data import WeightDataModule

        return WeightDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
