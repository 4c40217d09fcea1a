"""Rules that give a phase: which columns they read, their thresholds and versions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from catalog.errors import InvalidSpecError, SpecMismatchError

VERSION = 1  # of the definition in `zoo.phases.phases`; thresholds are settings of it
MEDIAN = "median"


@dataclass(frozen=True)
class Rule:
    """Which columns the phase is read from, and where its borders are.

    Args:
        name: of the rule.
        tau_loss: a mean train loss (cross-entropy, eval mode) above it is high: phase I or II.
        tau_connectivity: percentage points of train error; mode connectivity below its negative is a barrier.
        tau_similarity: CKA from which on a cell of phase IV is IV-B; "median" for the median CKA of the cells of phase
            IV at the same checkpoint.
        chance: train accuracy of guessing, one over the number of classes; None to look at non-finite losses only.
        tau_chance: a run is near chance when it got less than this share of the way from chance to 1.
        outlier: how far a cell stands out from its neighbours to be flagged, in robust standard deviations of
            `zoo.cells.distances`.
        loss, connectivity, similarity, accuracy, test_accuracy: columns. Test accuracy only serves to find outliers.

    Raises:
        InvalidSpecError: a threshold that is not positive, or no number.
    """

    name: str
    tau_loss: float = 0.1
    tau_connectivity: float = 1.0
    tau_similarity: float | str = 0.65
    chance: float | None = None
    tau_chance: float = 0.05
    # Twice what smooth grids have: the furthest of the 169 cells of Yang et al. is at 1.5, of the 56 of phases_small at
    # any of 7 checkpoints too (loss and accuracy). Of the cells of Yang's grid that have all neighbours, planted faults
    # are found in 100 % (10 points of accuracy less), 100 % (CKA less by 0.3), 100 % (a barrier of 30 points more) and
    # 77 % (loss times 5; the others lie where the loss falls as steeply from cell to cell).
    outlier: float = 3.0
    loss: str = "train_loss"
    connectivity: str = "mode_connectivity"
    similarity: str = "cka_yang"
    accuracy: str = "train_accuracy"
    test_accuracy: str = "test_accuracy"
    version: int = field(default=VERSION, init=False)

    def __post_init__(self) -> None:
        for name in ("tau_loss", "tau_connectivity", "tau_similarity", "tau_chance", "outlier"):
            value = getattr(self, name)
            if not (name == "tau_similarity" and value == MEDIAN) and not _positive(value):
                raise InvalidSpecError(f"{name} of a phase rule must be a positive number, got {value!r}")
        if self.chance is not None and not (_positive(self.chance) and self.chance < 1):
            raise InvalidSpecError(f"chance of a phase rule must be between 0 and 1, or None, got {self.chance!r}")

    def settings(self) -> dict[str, Any]:
        """All that decides a label, as JSON values."""
        return asdict(self)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


RULES: dict[str, Rule] = {
    "yang": Rule("yang"),
    # Where CKA is measured another way, or on easier data, 0.65 means nothing; the median always splits phase IV.
    "median": Rule("median", tau_similarity=MEDIAN),
    "ptmz": Rule("ptmz", tau_similarity=MEDIAN, similarity="cka_ptmz"),
}


def read_rule(settings: Mapping[str, Any]) -> Rule:
    """The rule of `Rule.settings`.

    Raises:
        SpecMismatchError: settings of another version of the definition. InvalidSpecError: of no rule.
    """
    if settings.get("version") != VERSION:
        raise SpecMismatchError(
            f"phase rule of version {settings.get('version')!r}, this weightscape has {VERSION}; label the cells again"
        )
    known = {entry.name for entry in fields(Rule) if entry.init}
    given = {name: value for name, value in settings.items() if name != "version"}
    if "name" not in given or set(given) - known:
        raise InvalidSpecError(f"settings of a phase rule are {', '.join(sorted(known))}; got {', '.join(given)}")
    return Rule(**given)
