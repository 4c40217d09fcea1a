"""Train a flow on a population: data, module, trainer, watchdogs; and the generator that comes out."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import nn

from catalog.errors import CorruptError, InvalidSpecError
from catalog.folder import Folder
from catalog.record import strict_json
from generators.codec import Codec
from generators.flow.checkpoints import Checkpoints, Stop, VerifiedCheckpoints, checkpoints, newest
from generators.flow.drawing import FlowDraw
from generators.flow.estimate import Estimate, estimate, peak_bytes
from generators.flow.logs import Log, OnStep, mirrored, quiet
from generators.flow.looks import Bench
from generators.flow.prepare import Prepared, prepare, recipe_of
from generators.flow.watchdogs import Watchdogs
from generators.generator import Generator
from generators.population import Population
from generators.requests import check_request

LOG, TRAINING, REQUEST = "log.csv", "training", "request.json"  # in the folder of a generator, and in `training` there


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
    if isinstance(codec, str):
        settings, codec = {**settings, "codec": codec}, None
    check_device(device)
    ready = prepare(population, recipe_of(preset, settings), seed, codec, force)
    checkpoint = None if out is None else open_folder(out, ready.request, resume)
    if on_cost:
        on_cost(estimate(ready, 0 if checkpoint is None else int(checkpoint.stem), device))
    folder = None if out is None else Path(out)
    with mirrored(wandb, ready.module.request, ready.settings, folder) as mirror:
        bench = _bench(population, ready)
        watchdogs = Watchdogs(ready.recipe, bench)
        log = Log(ready.recipe, watchdogs, folder and folder / LOG, mirror, on_step)
        keeper = Checkpoints(folder and folder / TRAINING, checkpoint_every, Stop())
        _run(ready, [watchdogs, log, keeper], keeper.stop, device, checkpoint)
    return _generator(population, ready, watchdogs, keeper.seconds, device)


def check_device(device: str) -> None:
    """Raise InvalidSpecError unless torch can use it."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidSpecError(f"device must be one that torch can use here, such as cpu; got {device!r}") from error


def open_folder(out: str | os.PathLike[str], request: Mapping[str, Any], resume: bool = True) -> Path | None:
    """Make the folder of a training, or go on in it: the newest checkpoint, None to begin.

    Raises:
        SpecMismatchError: it is of another request. CorruptError: no request, or no whole checkpoint, where one was.
    """
    folder, name = Folder.at(os.fspath(out)), f"{TRAINING}/{REQUEST}"
    folder.sweep()
    if folder.exists(name):
        try:
            found = strict_json(folder.read(name))
        except ValueError as error:
            raise CorruptError(f"{name} in {folder.url} is damaged ({error}); remove the folder to begin anew") from error
        check_request(found, request, folder.url)
    if not resume:
        for path in checkpoints(Path(out) / TRAINING):
            path.unlink()
    folder.write(name, json.dumps(request, indent=1).encode())
    return newest(Path(out) / TRAINING)


def _bench(population: Population, ready: Prepared) -> Callable[[torch.device], Bench]:
    module, conditions = ready.module, ready.data.conditions
    return lambda device: Bench.of(
        population, ready.codec, conditions, module.source, module.recipe, module.seed, device
    )


def _run(
    ready: Prepared, callbacks: list[lightning.Callback], stop: Stop, device: str, checkpoint: Path | None
) -> None:
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
        except SystemExit:  # what Lightning makes of signals
            if stop.signal is None:
                raise


def _generator(
    population: Population, ready: Prepared, watchdogs: Watchdogs, seconds: float, device: str
) -> Generator:
    """With the parameters of the best look, or of the end, whichever the recipe says."""
    module = ready.module
    chosen = watchdogs.kept if ready.recipe.select == "best" and watchdogs.kept else module.average.values
    network = copy.deepcopy(module.network).to(device).eval().requires_grad_(False)
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(chosen[name])
    best = None if watchdogs.best is None else watchdogs.history[watchdogs.best]["iteration"]
    history = [{**look, "chosen": ready.recipe.select == "best" and look["iteration"] == best} for look in watchdogs.history]
    planned = ready.data.cost()
    cost = {
        "seconds": seconds,
        "iterations": ready.recipe.iterations,
        "bytes_read": planned["setup_read_bytes"] + ready.recipe.iterations * planned["batch_read_bytes"],
        "peak_bytes": peak_bytes(device),
    }
    draw = FlowDraw(network, ready.codec, module.source.to(device), ready.recipe, device)
    return Generator(
        "flow", ready.settings, population.source(), draw, ready.data.conditions, cost,
        content=content_of(network, ready.codec), history=history,
    )  # fmt: skip


def content_of(network: nn.Module, codec: Codec) -> str:
    """16 digits of what was learned."""
    digest = hashlib.sha256(codec.fingerprint.encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
