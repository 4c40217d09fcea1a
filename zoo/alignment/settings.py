"""What determines a frame, and what comes of aligning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from catalog.errors import InvalidSpecError, unknown_name

METHODS = ("universe", "frank_wolfe", "reference", "activations")
TO_ONE = ("reference", "activations")  # methods that align to one run
BY = ("run", "checkpoint")


@dataclass(frozen=True)
class Settings:
    """What determines a frame, beside the rows it has; stored in it.

    Args:
        method: "universe" (barycentre of the members), "frank_wolfe" (the members' relaxed permutations together),
            "reference" (weights of one run), "activations" (what its units do on training inputs).
        by: "run", one permutation for all checkpoints of a run, found at `epoch`; or "checkpoint", one each.
        epoch: at which runs are matched; None for the last of each.
        reference: the run that the last two align to; None for the first.
        members: of the runs, so many at most make the universe; the others join it.
        balance: first balance the scales of ReLU units, by powers of two, which is exactly reversible, and make the
            signs of units with an odd activation canonical.
        layers: layers or tensors whose units may move; None for all.
        restarts: random starts of each matching beside the identity.
        samples: training inputs that "activations" looks at.
        seed: of everything random. sweeps: at most, of a matching.
    """

    method: str = "universe"
    by: str = "run"
    epoch: int | None = None
    reference: str | None = None
    members: int = 256
    balance: bool = False
    layers: tuple[str, ...] | None = None
    restarts: int = 0
    samples: int = 1024
    seed: int = 0
    sweeps: int = 100

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS)
        if self.by not in BY:
            raise unknown_name("by", self.by, BY)
        if self.reference is not None and self.method not in TO_ONE:
            raise InvalidSpecError(f"a reference run needs one of {', '.join(TO_ONE)}, got the method {self.method!r}")
        for name, least in (("members", 2), ("restarts", 0), ("samples", 1), ("seed", 0), ("sweeps", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InvalidSpecError(f"{name} must be an integer of {least} or more, got {value!r}")

    def to_json(self) -> dict[str, Any]:
        layers = None if self.layers is None else list(self.layers)
        return {**asdict(self), "layers": layers}


@dataclass(frozen=True)
class Cost:
    """What aligning will cost: rows to match and those that are there, roughly wall time and memory."""

    rows: int
    done: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Aligned:
    """What became of a variant.

    Args:
        groups: permutations of a network. rows: aligned now; before: there already; left: for want of time.
        similarity: mean cosine with the universe of what was aligned now, before and after; None for nothing.
        certificate: largest relative difference of outputs.
        finished: whether nothing could be improved any more; False where time or sweeps ran out.
        reason: why it was left out, "" if it was not.
    """

    variant: str
    groups: int
    rows: int
    before: int
    left: int
    similarity: tuple[float, float] | None
    certificate: float
    finished: bool
    reason: str = ""
