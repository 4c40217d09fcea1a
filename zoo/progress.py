"""What a person sees while a zoo is built: an estimate first, then a bar. Off when nobody watches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from zoo.alignment.settings import Cost as AlignCost
from zoo.build import Estimate, Event, work
from zoo.landscape.measure import Cost
from zoo.local import Task as Shard
from zoo.plan import Plan
from zoo.sizes import seconds, size

PROGRAMS = logging.getLogger("kernels.programs")  # where compiled code says what its first call took


class BuildProgress:
    """Turns the events of a build into a bar with models done, models a second and time left.

    Use as a context manager; `on_estimate` and `on_event` go to `zoo.build.build`.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        columns = (TextColumn("{task.description}"), BarColumn(), _Models(), TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
        self.compiling = _Compiling(console, quiet)
        self.committed, self.shards, self.models = 0, 0, 0
        self._work: dict[Shard, int] = {}
        self._runs: dict[Shard, int] = {}
        self._done: dict[Shard, int] = {}

    def __enter__(self) -> BuildProgress:
        self.bar.start()
        PROGRAMS.addHandler(self.compiling)
        PROGRAMS.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        PROGRAMS.removeHandler(self.compiling)
        PROGRAMS.setLevel(logging.NOTSET)
        self.bar.stop()

    def on_estimate(self, estimate: Estimate, plan: Plan, shards: Sequence[Shard]) -> None:
        """Say what the build will cost, then set up the bar."""
        self.shards = len(shards)
        for shard in shards:
            runs = plan.shard(*shard)
            self._work[shard], self._runs[shard] = max(work(runs), 1), len(runs)
        if not self.quiet:
            self.console.print(describe(estimate), highlight=False, soft_wrap=True)
        self.task = self.bar.add_task("training", total=sum(self._work.values()), models=0, of=estimate.runs)

    def on_event(self, event: Event) -> None:
        """Advance. A shard that is tried again after its worker died never counts twice."""
        total, done = self._work[event.task], self._done.get(event.task, 0)
        now = total if event.committed else min(done + event.samples, total)
        self._done[event.task] = now
        if event.committed:
            self.committed += 1
            self.models += self._runs[event.task]
        partial = sum(self._done[s] / self._work[s] * self._runs[s] for s in self._done)
        self.bar.update(self.task, advance=now - done, models=partial)


class _Compiling(logging.Handler):
    """Says what the first call of compiled code took: the user waited for it."""

    def __init__(self, console: Console, quiet: bool) -> None:
        super().__init__(logging.INFO)
        self.console, self.quiet = console, quiet

    def emit(self, record: logging.LogRecord) -> None:
        if not self.quiet:
            self.console.print(record.getMessage(), highlight=False, soft_wrap=True)


@contextmanager
def measuring(
    console: Console, quiet: bool = False
) -> Iterator[tuple[Callable[[Cost], None], Callable[[str, int], None]]]:
    """The cost in a sentence, then a bar over all rows, while the block runs: `on_cost` and `on_rows` of `measure`."""
    with _rows("measuring", console, quiet) as (say, advance):

        def on_cost(cost: Cost) -> None:
            say(describe_cost(cost), sum(cost.rows.values()))

        yield on_cost, lambda metric, rows: advance(rows, metric)


@contextmanager
def aligning(
    console: Console, quiet: bool = False
) -> Iterator[tuple[Callable[[AlignCost], None], Callable[[int], None]]]:
    """The same for `zoo.align.align`."""
    with _rows("aligning", console, quiet) as (say, advance):
        yield lambda cost: say(describe_align(cost), cost.rows), lambda rows: advance(rows, "aligning")


@contextmanager
def _rows(
    what: str, console: Console, quiet: bool
) -> Iterator[tuple[Callable[[str, int], None], Callable[[int, str], None]]]:
    """A bar over rows: what to say before with their number, and how to advance it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} rows"))
    bar = Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True,
        disable=quiet or not console.is_terminal,
    )  # fmt: skip
    compiling = _Compiling(console, quiet)
    task = bar.add_task(what, total=None)

    def say(sentence: str, rows: int) -> None:
        if not quiet:
            console.print(sentence, highlight=False, soft_wrap=True)
        bar.update(task, total=rows)

    PROGRAMS.addHandler(compiling)
    PROGRAMS.setLevel(logging.INFO)
    try:
        with bar:
            yield say, lambda rows, description: bar.update(task, advance=rows, description=description)
    finally:
        PROGRAMS.removeHandler(compiling)
        PROGRAMS.setLevel(logging.NOTSET)


def describe_align(cost: AlignCost) -> str:
    """What aligning will cost, in a sentence."""
    before = f" ({cost.done} are aligned already)" if cost.done else ""
    if not cost.rows:
        return f"nothing to align{before}"
    return f"{cost.rows} rows to align{before}: about {seconds(cost.seconds)}, {size(cost.bytes)} of memory"


def describe_cost(cost: Cost) -> str:
    """What measuring will cost, in a sentence."""
    before = f" ({done} are measured already)" if (done := sum(cost.done.values())) else ""
    refused = f"; {without} cannot be measured" if (without := sum(cost.refused.values())) else ""
    rows, metrics = sum(cost.rows.values()), sum(count > 0 for count in cost.rows.values())
    if not rows:
        return f"nothing to measure{before}{refused}"
    return (
        f"{rows} values of {metrics} metric(s) to measure{before}{refused} with {max(cost.workers, 1)} process(es): "
        f"about {seconds(cost.seconds)}"
    )


class _Models(ProgressColumn):
    """Models done of all, and models a second."""

    def render(self, task: Task) -> Text:
        done, of = float(task.fields["models"]), task.fields["of"]
        rate = done / task.elapsed if task.elapsed else 0.0
        return Text(f"{int(done)}/{of} models, {rate:.2f} models/s")


def describe(estimate: Estimate) -> str:
    """The estimate in a sentence or two."""
    if not estimate.runs:
        return f"nothing to train: all {estimate.done} models are committed"
    before = f" ({estimate.done} are committed already)" if estimate.done else ""
    return (
        f"{estimate.runs} models to train{before} in {estimate.shards} shards with {estimate.workers} process(es): "
        f"about {seconds(estimate.seconds)}, {size(estimate.bytes)} on disk"
    )
