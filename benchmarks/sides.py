"""Two or more ways to do the same thing, measured in turn in one run: what every claim of speed here rests on.

A busy or throttled machine slows both sides of a pair, so the ratio of a pair says more than either time.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PAIRS = 5
Side = Callable[[], object]


@dataclass(frozen=True)
class Turns:
    """Seconds of one side, turn by turn: on the clock, and of processors, child processes included."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]


def measure(
    sides: Mapping[str, Side],
    pairs: int = PAIRS,
    *,
    warm: Mapping[str, Side] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    processor: Callable[[], float] | None = None,
) -> dict[str, Turns]:
    """Run the sides in turn, every other turn in reversed order, after one turn that is not counted.

    Args:
        warm: what the uncounted turn runs instead, by side, where a whole turn would take too long.
        clock, processor: what time is read from, in seconds.
    """
    read = processor or cpu_seconds
    for name, side in sides.items():
        _tell(f"{name}: a turn that is not counted")
        (warm or {}).get(name, side)()
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(pairs):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            _tell(f"{name}: turn {turn + 1} of {pairs}")
            begin, used = clock(), read()
            sides[name]()
            wall[name].append(clock() - begin)
            cpu[name].append(read() - used)
    _tell("")
    return {name: Turns(tuple(wall[name]), tuple(cpu[name])) for name in sides}


def compare(
    turns: Mapping[str, Turns], slow: str, fast: str, per_slow: float = 1, per_fast: float = 1
) -> dict[str, float]:
    """`ratio` of wall times, with the number of pairs and the median ratio of processor times."""
    wall = {name: list(turn.wall) for name, turn in turns.items()}
    cpu = {name: [max(used, 1e-9) for used in turn.cpu] for name, turn in turns.items()}
    found = ratio(wall, slow, fast, per_slow, per_fast)
    return {**found, "pairs": len(wall[fast]), "cpu": ratio(cpu, slow, fast, per_slow, per_fast)["median"]}


def alternate(sides: Mapping[str, Side], repeats: int = PAIRS) -> dict[str, list[float]]:
    """Seconds of each side, taken in turn; one turn before that is not counted."""
    return {name: list(turns.wall) for name, turns in measure(sides, repeats).items()}


def ratio(
    seconds: Mapping[str, Sequence[float]], slow: str, fast: str, per_slow: float = 1, per_fast: float = 1
) -> dict[str, float]:
    """Median, smallest and largest of the paired ratios, after dividing each side by its amount of work."""
    pairs = [(a / per_slow) / (b / per_fast) for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    return {"median": _short(statistics.median(pairs)), "low": _short(min(pairs)), "high": _short(max(pairs))}


def cpu_seconds() -> float:
    """Processor seconds used so far by this process, by children that ended, and (on Linux) by all that live."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = sum(_ticks(process) for process in _below(os.getpid()))
    return time.process_time() + ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def _below(process: int) -> Iterator[int]:
    """Processes that this one started, and those that they started."""
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = file.read_text().split()
        except OSError:  # a thread that has just ended
            continue
        for child in children:
            yield int(child)
            yield from _below(int(child))


def _ticks(process: int) -> int:
    """Clock ticks of a living process and of its children that ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))


def _short(value: float) -> float:
    return round(value, 2 if abs(value) >= 0.1 else 4)


def _tell(text: str) -> None:
    """Say on the terminal, if there is one, what runs now."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
