"""Train a generator on a zoo, in one call: choose the population, fit, store. The same call again goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import catalog
from catalog.errors import GeneratorError, unknown_name
from catalog.folder import Folder
from catalog.store import Zoo
from generators.generator import Generator
from generators.kinds import GENERATORS, fit
from generators.population import Population, population
from generators.recipe import flow_settings, recipe_of
from generators.requests import check_request, request_of
from generators.stored import RECORD, load, read_record, save

TRAINING = "training"  # what is needed to go on; removed once the generator is stored


def train(
    zoo: Zoo | str | os.PathLike[str],
    out: str | os.PathLike[str],
    kind: str = "flow",
    *,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    where: str | None = None,
    variant: str | None = None,
    epoch: int | None = None,
    every_epoch: bool = False,
    frame: str | None = None,
    held_out: float | None = None,
    split_seed: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    wandb: str | None = None,
    on_cost: Callable[[Any], None] | None = None,
    on_step: Callable[[int, int, Mapping[str, float]], None] | None = None,
    dry_run: bool = False,
    force: bool = False,
) -> Generator | None:
    """Train a generator on networks of a zoo and store it in a folder.

    The same call again returns what is there or goes on where it was stopped, to the same bits.

    Args:
        zoo: or where one is. out: the folder, see `generators.stored`.
        kind: name in `GENERATORS`. preset, settings: see `generators.flow.fit.fit_flow`, or the settings of a baseline.
        where, variant, epoch, every_epoch, frame, held_out, split_seed: see `generators.population.population`.
        seed: of all that is random in training; the split stays the same.
        device, wandb, on_cost, on_step, force: see `fit_flow`.
        dry_run: only say what it would cost, by `on_cost`; returns None.

    Raises:
        SpecMismatchError: the folder holds another generator, or a training of another. UnknownNameError,
        InvalidSpecError, QueryError, GeneratorError: see `population` and `fit_flow`. KeyboardInterrupt: Ctrl-C; the
        checkpoint is kept.
    """
    if kind not in GENERATORS:
        raise unknown_name("generator", kind, GENERATORS)
    opened = zoo if isinstance(zoo, Zoo) else catalog.open(zoo)
    chosen = population(
        opened, where, variant=variant, epoch=epoch, every_epoch=every_epoch, frame=frame, held_out=held_out,
        seed=split_seed,
    )  # fmt: skip
    asked = request_of(kind, complete_settings(kind, preset, settings or {}, seed), chosen.source())
    if (place := Folder.at(out)).exists(RECORD):
        there = read_record(place)
        check_request(request_of(there["kind"], there["settings"], there["source"]), asked, place.url)
        return None if dry_run else load(out, opened, device)
    if kind == "flow":
        options = {"seed": seed, "preset": preset, "device": device, "force": force, **(settings or {})}
        if dry_run:
            _preview(chosen, on_cost, options)
            return None
        options |= {"out": out, "wandb": wandb, "on_cost": on_cost, "on_step": on_step}
        made = GENERATORS[kind].fit(chosen, **options)
    elif dry_run:
        return None
    else:
        made = fit(kind, chosen, settings, seed=seed)
    save(made, out)
    shutil.rmtree(Path(out) / TRAINING, ignore_errors=True)
    return made


def complete_settings(kind: str, preset: str | None, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """All settings that a generator of this kind will have.

    Raises:
        UnknownNameError, InvalidSpecError: settings or a preset that there are not. GeneratorError: a preset of a
            baseline.
    """
    if kind == "flow":
        return flow_settings(recipe_of(preset, settings), seed)
    if preset is not None:
        raise GeneratorError(f"presets are for flows, {kind} has none; got {preset!r}")
    return {**GENERATORS[kind].settings, **settings}


def _preview(chosen: Population, on_cost: Callable[[Any], None] | None, options: dict[str, Any]) -> None:
    from generators.flow.fit import preview  # Lightning takes seconds to import

    cost = preview(chosen, **options)
    if on_cost:
        on_cost(cost)
