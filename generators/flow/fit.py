"""Train a flow on a population: data, module, trainer, watchdogs; and the generator that comes out."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from catalog.errors import CorruptError, InvalidSpecError
from catalog.folder import Folder
from catalog.sealed import strict_json
from generators.codec import Codec
from generators.codec_file import load_codec, save_codec
from generators.flow.checkpoints import Checkpoints, Stop, VerifiedCheckpoints, checkpoints, newest
from generators.flow.drawing import FlowDraw, content_of
from generators.flow.estimate import Estimate, estimate, peak_bytes
from generators.flow.logs import Log, OnStep, mirrored, quiet
from generators.flow.looks import Bench
from generators.flow.prepare import Prepared, prepare
from generators.flow.watchdogs import Watchdogs
from generators.generator import Generator
from generators.population import Population
from generators.recipe import FlowRecipe, flow_settings, recipe_of
from generators.requests import check_request, request_of

LOG, TRAINING = "log.csv", "training"  # in the folder of a generator
REQUEST, CODEC = "request.json", "codec.safetensors"  # in `training`, beside the checkpoints


def fit_flow(
    population: Population,
    *,
    seed: int = 0,
    preset: str | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    wandb: str | None = None,
    resume: bool = True,
    on_cost: Callable[[Estimate], None] | None = None,
    on_step: OnStep | None = None,
    codec: Codec | str | None = None,
    force: bool = False,
    checkpoint_every: float = 30.0,
    **settings: Any,
) -> Generator:
    """Train a flow on the training split of a population.

    Bits depend on the machine and its number of threads, and on nothing else: an interrupted training that goes on ends
    with those of one that ran through.

    Args:
        seed: of everything random. preset: a name in `RECIPES`; `settings` replace its fields.
        out: folder for the log and, while it is trained, checkpoints; None for neither.
        wandb: project on Weights & Biases where the log is mirrored.
        resume: go on from the checkpoints in `out`; False begins anew.
        on_cost: called before training with what it will take; raising in it stops. on_step: called with (iterations
            done, of how many, values of the log).
        codec: a fitted one, or what the field of the recipe takes.
        force: train although the codec loses the networks (see `generators.flow.prepare.check_round_trip`).
        checkpoint_every: seconds.

    Raises:
        UnknownNameError, InvalidSpecError: settings. GeneratorError: columns that cannot be conditions, a codec of
            another population or one that loses the networks, a loss that is not finite. SpecMismatchError: `out` holds
            another training. CorruptError: all its checkpoints are damaged. StorageError: the disk refused.
        KeyboardInterrupt: Ctrl-C, after a checkpoint is written.
    """
    recipe, codec = _asked(preset, settings, codec)
    complete = flow_settings(recipe, seed)
    check_device(device)
    request = request_of("flow", complete, population.source(), "" if codec is None else codec.fingerprint)
    checkpoint, fitted = (None, None) if out is None else open_folder(out, request, resume)
    ready = prepare(population, recipe, seed, codec or fitted, force, request)
    folder = None if out is None else Path(out)
    if folder and not fitted:
        save_codec(ready.codec, folder / TRAINING / CODEC)
    if on_cost:
        on_cost(estimate(ready, 0 if checkpoint is None else int(checkpoint.stem), device))
    with mirrored(wandb, ready.module.request, complete, folder) as mirror:
        watchdogs = Watchdogs(recipe, lambda device: _bench(population, ready, device))
        log = Log(recipe, watchdogs, folder and folder / LOG, mirror, on_step)
        keeper = Checkpoints(folder and folder / TRAINING, checkpoint_every, Stop())
        run(ready, [watchdogs, log, keeper], keeper.stop, device, checkpoint)
    return _generator(population, ready, watchdogs, complete, keeper.seconds, device)


def preview(
    population: Population,
    *,
    seed: int = 0,
    preset: str | None = None,
    device: str = "cpu",
    codec: Codec | str | None = None,
    force: bool = False,
    **settings: Any,
) -> Estimate:
    """What `fit_flow` would take. The codec is fitted for it, and a few steps are timed; nothing is written."""
    recipe, codec = _asked(preset, settings, codec)
    flow_settings(recipe, seed)
    check_device(device)
    return estimate(prepare(population, recipe, seed, codec, force), 0, device)


def _asked(
    preset: str | None, settings: Mapping[str, Any], codec: Codec | str | None
) -> tuple[FlowRecipe, Codec | None]:
    """The recipe, and a fitted codec if one was given; then the recipe says what that is."""
    if isinstance(codec, str):
        return recipe_of(preset, {**settings, "codec": codec}), None
    recipe = recipe_of(preset, settings)
    return (recipe if codec is None else replace(recipe, **codec.settings)), codec


def check_device(device: str) -> None:
    """Raise InvalidSpecError unless torch can use it."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidSpecError(f"device must be one that torch can use here, such as cpu; got {device!r}") from error


def open_folder(
    out: str | os.PathLike[str], request: Mapping[str, Any], resume: bool = True
) -> tuple[Path | None, Codec | None]:
    """Make the folder of a training, or go on in it: the newest checkpoint and the fitted codec, None for a new one.

    Raises:
        SpecMismatchError: it is of another request. CorruptError: no request, or no whole checkpoint, where one was.
    """
    folder, name = Folder.at(os.fspath(out)), f"{TRAINING}/{REQUEST}"
    folder.sweep()
    if folder.exists(name):
        try:
            found = strict_json(folder.read(name))
        except ValueError as error:
            raise CorruptError(
                f"{name} in {folder.url} is damaged ({error}); remove the folder to begin anew"
            ) from error
        check_request(found, request, folder.url)
    if not resume:
        for path in checkpoints(Path(out) / TRAINING):
            path.unlink()
        folder.remove(f"{TRAINING}/{CODEC}")
    folder.write(name, json.dumps(request, indent=1).encode())
    fitted = load_codec(folder.path(f"{TRAINING}/{CODEC}")) if folder.exists(f"{TRAINING}/{CODEC}") else None
    return newest(Path(out) / TRAINING), fitted


def _bench(population: Population, ready: Prepared, device: torch.device) -> Bench:
    module = ready.module
    return Bench.of(population, ready.codec, ready.data.conditions, module.source, module.recipe, module.seed, device)


def run(ready: Prepared, callbacks: list[lightning.Callback], stop: Stop, device: str, checkpoint: Path | None) -> None:
    """Train to the end, or until a signal, which is passed on once the checkpoint is written."""
    kind, place = torch.device(device).type, torch.device(device).index
    with stop.watching(), quiet():
        trainer = lightning.Trainer(
            accelerator="gpu" if kind == "cuda" else kind, devices=1 if place is None or kind == "cpu" else [place],
            max_steps=ready.recipe.iterations, max_epochs=-1, gradient_clip_val=ready.recipe.clip or None,
            plugins=[VerifiedCheckpoints()], callbacks=callbacks, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        )  # fmt: skip
        try:
            trainer.fit(ready.module, datamodule=ready.data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as end:  # what Lightning makes of signals
            if isinstance(end.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from end
            if stop.signal is None:
                raise


def _generator(
    population: Population,
    ready: Prepared,
    watchdogs: Watchdogs,
    settings: Mapping[str, Any],
    seconds: float,
    device: str,
) -> Generator:
    """With the parameters of the best look, or of the end, whichever the recipe says."""
    module = ready.module
    chosen = watchdogs.kept if ready.recipe.select == "best" and watchdogs.kept else module.average.values
    network = copy.deepcopy(module.network).to(device).eval().requires_grad_(False)
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(chosen[name])
    best = None if watchdogs.best is None else watchdogs.history[watchdogs.best]["iteration"]
    kept = best if ready.recipe.select == "best" else ready.recipe.iterations
    history = [{**look, "chosen": look["iteration"] == kept} for look in watchdogs.history]
    planned = ready.data.cost()
    cost = {
        "seconds": seconds,
        "iterations": ready.recipe.iterations,
        "bytes_read": planned["setup_read_bytes"] + ready.recipe.iterations * planned["step_read_bytes"],
        "peak_bytes": peak_bytes(device),
    }
    draw = FlowDraw(network, ready.codec, module.source.to(device), ready.recipe, device)
    return Generator(
        "flow", settings, population.source(), draw, ready.data.conditions, cost,
        content=content_of(network, ready.codec), history=history,
    )  # fmt: skip
