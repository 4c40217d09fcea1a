"""What a training says: a CSV file of our own always, a mirror on Weights & Biases if asked for, and nothing else."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning

from catalog.errors import GeneratorError
from catalog.folder import Folder
from generators.flow.looks import VALUES
from generators.flow.module import learning_rate, not_finite
from generators.flow.watchdogs import Watchdogs
from generators.recipe import FlowRecipe

COLUMNS = ("iteration", "loss", "learning_rate", *VALUES)
ROWS = 100  # in a log at least, where there are so many iterations
OnStep = Callable[[int, int, Mapping[str, float]], None]


def log_every(recipe: FlowRecipe) -> int:
    """Iterations whose losses a row of the log is the mean of."""
    return max(1, min(50, recipe.iterations // ROWS))


class Log(lightning.Callback):
    """Writes a row every so many iterations and at each look, and stops a training whose loss is not finite.

    Nothing in it depends on the clock: a resumed training leaves the same file as one that ran through.

    Args:
        path: of the CSV file, None for none. mirror: gets each row with its iteration too. on_step: the same, as
            (iterations done, of how many, values).
    """

    def __init__(
        self,
        recipe: FlowRecipe,
        watchdogs: Watchdogs,
        path: str | os.PathLike[str] | None = None,
        mirror: Callable[[int, Mapping[str, float]], None] | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        self.recipe, self.watchdogs, self.path = recipe, watchdogs, path
        self.mirror, self.on_step = mirror, on_step
        self.pending: list[Any] = []  # losses since the last row; on a GPU tensors, which are not waited for

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.path is not None:
            truncate(self.path, trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, *_: Any
    ) -> None:
        loss, step = outputs["loss"].detach(), trainer.global_step
        self.pending.append(loss)
        look = self.watchdogs.at(step)
        if loss.device.type == "cpu" or step % log_every(self.recipe) == 0 or look:
            self.settle(step)
        if step % log_every(self.recipe) == 0 or look or step == self.recipe.iterations:
            self.write(step, look or {})

    def settle(self, step: int) -> None:
        """Turn pending losses into numbers; raise GeneratorError at the first that is not finite."""
        self.pending = [float(loss) for loss in self.pending]
        for place, loss in enumerate(self.pending):
            if not math.isfinite(loss):
                raise not_finite(self.recipe, step - len(self.pending) + place, f"the loss is {loss}")

    def write(self, step: int, look: Mapping[str, Any]) -> None:
        """A row for the iterations since the last one."""
        self.settle(step)
        rate = learning_rate(self.recipe, step - 1)
        row = {"iteration": step, "loss": sum(self.pending) / len(self.pending), "learning_rate": rate}
        row |= {name: look[name] for name in VALUES if look.get(name) is not None}
        self.pending = []
        if self.path is not None:
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
        values = {name: value for name, value in row.items() if name != "iteration"}
        if self.mirror:
            self.mirror(step, values)
        if self.on_step:
            self.on_step(step, self.recipe.iterations, values)

    def state_dict(self) -> dict[str, Any]:
        return {"pending": [float(loss) for loss in self.pending]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pending = list(state_dict["pending"])


def truncate(path: str | os.PathLike[str], step: int) -> None:
    """Leave the whole rows up to an iteration, and the header; make the file if it is not there."""
    lines = Path(path).read_text().splitlines(keepends=True) if os.path.exists(path) else []
    header, kept = ",".join(COLUMNS) + "\n", []
    for line in lines[1:] if lines[:1] == [header] else []:
        first = line.partition(",")[0]
        if line.endswith("\n") and first.isdigit() and int(first) <= step:
            kept.append(line)
    folder, name = os.path.split(os.path.abspath(path))
    Folder.at(folder).write(name, "".join([header, *kept]).encode())


def read_log(text: str) -> list[dict[str, float]]:
    """The rows of a log, without what a row leaves out.

    >>> read_log("iteration,loss,accuracy\\n10,0.5,\\n20,0.25,0.9\\n")
    [{'iteration': 10.0, 'loss': 0.5}, {'iteration': 20.0, 'loss': 0.25, 'accuracy': 0.9}]
    """
    return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(io.StringIO(text))]


@contextmanager
def mirrored(
    project: str | None, request: str, config: Mapping[str, Any], folder: str | os.PathLike[str] | None
) -> Iterator[Callable[[int, Mapping[str, float]], None] | None]:
    """Where rows go on Weights & Biases while the block runs; None without a project.

    A resumed training goes on in the same run, whose id is that of the request. `WANDB_MODE=offline` writes into the
    folder alone.

    Raises:
        GeneratorError: wandb is not installed, or cannot begin a run.
    """
    if project is None:
        yield None
        return
    try:
        import wandb
    except ImportError as error:
        raise GeneratorError('wandb is not installed: pip install "weightscape[wandb]", or leave it out') from error
    quiet = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
    where = None if folder is None else os.fspath(folder)
    try:
        run = wandb.init(project=project, id=request, resume="allow", config=dict(config), dir=where, settings=quiet)
    except Exception as error:  # wandb's errors share no base with a stable name
        raise GeneratorError(
            f"wandb cannot begin a run ({error}); log in, set WANDB_MODE=offline, or leave it out"
        ) from error
    try:
        yield lambda step, values: run.log(dict(values), step=step)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning says nothing while the block runs: what it would advise on is chosen here on purpose."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
