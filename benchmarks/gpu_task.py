"""What is measured on a GPU: one operation by several implementations, and whether ours is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OURS = "Triton"


@dataclass(frozen=True)
class Task:
    """What is measured.

    Args:
        sides: the first is ours, called `OURS` where Triton does it; the others are peers, or variants of ours.
        wrong: what is the matter with the results, an empty text if nothing.
        work: amount a call, with its unit.
    """

    operation: str
    setting: Mapping[str, Any]
    sides: Mapping[str, Callable[[], object]]
    wrong: Callable[[], str]
    work: tuple[float, str]

    @property
    def ours(self) -> str:
        return next(iter(self.sides))
