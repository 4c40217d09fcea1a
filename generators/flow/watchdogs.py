"""Looks at a flow while it is trained: what its samples are worth, and which iteration's network is kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor

from generators.flow.looks import Bench, look, score, verdict
from generators.flow.module import FlowModule
from generators.recipe import FlowRecipe

LOOKS = 10  # where the recipe does not say how often


def look_every(recipe: FlowRecipe) -> int:
    """Iterations between two looks."""
    return recipe.judge_every or max(1, recipe.iterations // LOOKS)


class Watchdogs(lightning.Callback):
    """Looks at the averaged network every so many iterations and at the end, and keeps the best one.

    The best look is that with the largest share of samples both performant and new (see `looks.look`), and of equal
    ones that of the highest accuracy on validation data: never by the loss in training, which copies win. Samples
    depend on the seed alone, so an interrupted training makes the same choice.

    Args:
        make_bench: gives what looks compare with; called on the first look, on the device of the module.
    """

    def __init__(self, recipe: FlowRecipe, make_bench: Callable[[torch.device], Bench]) -> None:
        self.recipe, self.make_bench = recipe, make_bench
        self.history: list[dict[str, Any]] = []
        self.best: int | None = None  # place in the history
        self.kept: dict[str, Tensor] = {}  # the averaged parameters of that look
        self._bench: Bench | None = None

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step % look_every(self.recipe) and step < self.recipe.iterations:
            return
        assert isinstance(pl_module, FlowModule)
        self._bench = self._bench or self.make_bench(pl_module.device)
        network = copy.deepcopy(pl_module.network).eval()
        pl_module.average.copy_to(network)
        values = look(network, self._bench)
        words = verdict(values, self._bench.least)
        seen = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        self.history.append({"iteration": step, **seen, "least": self._bench.least, "verdict": words})
        if self.best is None or score(values) > score(self.history[self.best]):
            self.best = len(self.history) - 1
            self.kept = {name: value.clone() for name, value in pl_module.average.values.items()}

    def at(self, step: int) -> dict[str, Any] | None:
        """The look at an iteration, if there was one."""
        return self.history[-1] if self.history and self.history[-1]["iteration"] == step else None

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "best": self.best, "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.best, self.kept = state_dict["history"], state_dict["best"], state_dict["kept"]
