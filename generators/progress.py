"""What a person sees while a generator is trained or judged: the cost first, then a bar. Off when nobody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from zoo.sizes import seconds, size

OnStep = Callable[[int, int, Mapping[str, float]], None]


@contextmanager
def training(console: Console, quiet: bool = False) -> Iterator[tuple[Callable[[Any], None], OnStep]]:
    """The cost in a sentence, then a bar over iterations: `on_cost` and `on_step` of `generators.train.train`.

    Looks of the watchdogs are said in a line each, also where there is no bar.
    """
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.completed}/{task.total} iterations"))
    bar = Progress(
        *columns, TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn(), console=console,
        transient=True, disable=quiet or not console.is_terminal,
    )  # fmt: skip
    task = bar.add_task("", total=None)

    def say(sentence: str) -> None:
        if not quiet:
            console.print(sentence, highlight=False, soft_wrap=True)

    def on_cost(cost: Any) -> None:
        say(describe(cost))
        bar.update(task, total=cost.iterations, completed=cost.done)

    def on_step(done: int, of: int, values: Mapping[str, float]) -> None:
        bar.update(task, completed=done, total=of, description=f"loss {values['loss']:.3f}" if "loss" in values else "")
        if "nearest" in values:
            say(describe_look(done, values))

    with bar:
        yield on_cost, on_step


@contextmanager
def stages(console: Console, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """What is being done, in words, while it is done: `on_stage` of `generators.judge.judge`."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("judging", total=None)
        yield lambda stage: bar.update(task, description=stage)


def describe(cost: Any) -> str:
    """What training will cost, in a sentence; see `generators.flow.estimate.Estimate`."""
    before = f" ({cost.done} are done)" if cost.done else ""
    return (
        f"{cost.iterations - cost.done} iterations to train{before} on {cost.models} networks, {cost.parameters:,} "
        f"parameters: about {seconds(cost.seconds)}, {size(cost.bytes)} of memory; what passes the codec has accuracy "
        f"{cost.ceiling:.3f} on validation data"
    )


def describe_look(done: int, values: Mapping[str, float]) -> str:
    """What the watchdogs saw, in a line."""
    return (
        f"iteration {done}: accuracy {values['accuracy']:.3f} on validation data, nearest network at "
        f"{values['nearest']:.2f} of the zoo's spacing, {values['share']:.0%} work and are new"
    )
