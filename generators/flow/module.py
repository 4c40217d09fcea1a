"""A flow under Lightning: thin around `flow_loss`, with the learning rate and the average by iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from catalog.errors import GeneratorError
from generators.flow.average import Average
from generators.flow.loss import flow_loss
from generators.flow.source import Source
from generators.recipe import FlowRecipe


def learning_rate(recipe: FlowRecipe, step: int) -> float:
    """Of iteration `step`, from 0: a linear warm-up, then constant or half a cosine that ends at `final_rate`.

    >>> recipe = FlowRecipe(learning_rate=1.0, final_rate=0.0, warmup=2, iterations=6)
    >>> [round(learning_rate(recipe, step), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return recipe.learning_rate
    share = (step - recipe.warmup) / max(1, recipe.iterations - recipe.warmup)
    return recipe.final_rate + (recipe.learning_rate - recipe.final_rate) * 0.5 * (1 + math.cos(math.pi * share))


def make_optimizer(network: nn.Module, recipe: FlowRecipe) -> torch.optim.AdamW:
    """AdamW in its fused implementation, of which one step of a small network takes a third of the time."""
    return torch.optim.AdamW(
        network.parameters(),
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def not_finite(recipe: FlowRecipe, step: int, what: str) -> GeneratorError:
    """The error for a training that has gone wrong at iteration `step`, from 0."""
    return GeneratorError(
        f"{what} at iteration {step + 1} of {recipe.iterations}, learning rate {learning_rate(recipe, step):.3g}: "
        f"train again with a smaller learning_rate (now {recipe.learning_rate:g}), a warmup or a clip (now "
        f"{recipe.clip:g}); nothing was overwritten, the last good checkpoint is where it was"
    )


class FlowModule(lightning.LightningModule):
    """Trains a velocity network. Everything random follows from (seed, iteration).

    Args:
        network: see `generators.flow.networks`; the average starts from its parameters.
        source: on any device, it goes where the module goes. seed: of the training.
        request: digest of what this training is for: a checkpoint of another one is refused.
    """

    def __init__(self, network: nn.Module, source: Source, recipe: FlowRecipe, seed: int, request: str = "") -> None:
        super().__init__()
        self.network, self.source, self.recipe, self.seed, self.request = network, source, recipe, seed, request
        self.average = Average(network, recipe.ema)

    def on_fit_start(self) -> None:
        self.source = self.source.to(self.device)
        self.average.to(self.device)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        given = batch.get("conditions")
        step = self.trainer.global_step
        return flow_loss(self.network, batch["codes"], given, self.source, self.recipe, self.seed, step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.network, self.recipe)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.trainer.global_step)
        optimizer.step(closure=optimizer_closure)
        self.average.update(self.network)

    def check(self) -> None:
        """Raise GeneratorError unless all parameters are finite: what is not must never become a checkpoint."""
        parameters = [*self.network.parameters(), *self.average.values.values()]
        if not torch.stack([value.detach().isfinite().all() for value in parameters]).all():
            raise not_finite(self.recipe, self.trainer.global_step - 1, "parameters of the network are not finite")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check()
        checkpoint["average"] = self.average.state_dict()
        checkpoint["request"] = self.request

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("request") != self.request:
            raise GeneratorError(
                f"the checkpoint is of another training (expected request {self.request}, got "
                f"{checkpoint.get('request')}); give another folder, or resume=False to begin anew"
            )
        self.average.load_state_dict(checkpoint["average"])
