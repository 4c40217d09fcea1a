"""What samples are worth as a beginning: accuracy after some epochs of the population's own training."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from catalog.errors import GeneratorError
from generators.evaluation.card import FineTuned
from generators.kinds import fit
from generators.members import Members
from generators.population import Population
from generators.samples import finish
from kernels.distance.distance import nearest_streamed
from zoo.evaluate import evaluate
from zoo.plan import Run, make_plan
from zoo.shards import groups, one_thread
from zoo.spec import ZooSpec
from zoo.train import train
from zoo.typical import typical_spec

EPOCHS = (0, 1, 5, 25)


def finetune(
    population: Population,
    weights: np.ndarray,
    epochs: Sequence[int] = EPOCHS,
    *,
    seed: int = 0,
    runs_like: ZooSpec | None = None,
    learning_rate: float | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Test accuracy of networks after training from these weights. Nothing is chosen by it.

    They are trained like most of the population (`zoo.typical.typical_spec`), its schedule over the last of `epochs`.
    Network n of a seed sees the same batches whatever it begins with, so that curves can be compared in pairs.

    Args:
        weights: (models, size), finished (`generators.samples.finish`).
        epochs: increasing passes over the training data at which to evaluate.
        seed: of the order of batches. runs_like: a spec of one run to train by instead.
        learning_rate: instead of that of the recipe.
        threads: networks trained at once, None for as many as torch uses. No bit of an MLP depends on it.

    Returns:
        (models, epochs) float64; NaN where a network was not finite or diverged.

    Raises:
        GeneratorError: weights of another shape, epochs that do not increase. InvalidSpecError: see `typical_spec`, or
            a learning rate that is none.
    """
    passes = tuple(epochs)
    layout, models = population.layout, len(weights)
    if weights.ndim != 2 or weights.shape[1] != layout.size:
        raise GeneratorError(f"weights must be (models, {layout.size}), got {tuple(weights.shape)}")
    increasing = all(a < b for a, b in itertools.pairwise(passes))
    if not passes or not all(type(one) is int and one >= 0 for one in passes) or not increasing:
        raise GeneratorError(f"epochs must be increasing whole numbers from 0, got {epochs!r}")
    spec = runs_like or typical_spec(population.zoo, population.split("train"))
    runs = _runs(population, spec, passes, models, seed, learning_rate)
    threads, accuracy = threads or torch.get_num_threads(), np.full((models, len(passes)), np.nan)
    data = population.data
    x, y = torch.from_numpy(data.test_x), torch.from_numpy(data.test_y)
    with one_thread():
        for here, group in _together(runs):
            start = torch.from_numpy(np.ascontiguousarray(weights[here], np.float32))
            kept = train(group, data, start=start, threads=threads).weights
            good = kept.isfinite().all(-1).numpy()
            found = evaluate(population.architecture, kept.flatten(0, 1), x, y, threads=threads).accuracy
            accuracy[here] = np.where(good, found.reshape(good.shape), np.nan)
    return accuracy


def starts(population: Population, weights: np.ndarray, *, seed: int = 0) -> dict[str, np.ndarray]:
    """What samples are compared with as a beginning, as many of each, by name: (models, size) float32.

    "random" and "soup" are the baselines; "nearest" is the member of the training split nearest to each sample.

    Args:
        weights: (models, size); where a model is not finite, so is its nearest.
    """
    members, parameters = Members.of(population), population.layout.num_parameters
    chunks = (batch[:, :parameters] for batch in members.batches())
    place = nearest_streamed(np.ascontiguousarray(weights[:, :parameters]), chunks)[1][:, 0]
    nearest = np.full((len(weights), population.layout.size), np.nan, np.float32)
    nearest[place >= 0] = members.at(place[place >= 0])
    drawn = {kind: fit(kind, population).sample(len(weights), seed=seed) for kind in ("soup", "random_init")}
    return {"nearest": nearest, "soup": drawn["soup"], "random": drawn["random_init"]}


def curves(
    population: Population,
    weights: np.ndarray,
    epochs: Sequence[int] = EPOCHS,
    *,
    seed: int = 0,
    threads: int | None = None,
) -> tuple[FineTuned, ...]:
    """Mean accuracy after fine-tuning samples, and what they are compared with, see `starts`; with standard errors.

    All are finished first. A network that is not finite, or diverges, counts as accuracy 0.

    Args:
        weights: (models, size), one or more samples. epochs, seed, threads: as for `finetune`.
    """
    if not len(weights):
        raise GeneratorError("fine-tuning needs one network or more, got none")
    found = []
    for name, given in {"samples": weights, **starts(population, weights, seed=seed)}.items():
        ready = finish(population, given, population.data)
        accuracy = np.nan_to_num(finetune(population, ready, epochs, seed=seed, threads=threads), nan=0.0)
        error = accuracy.std(0, ddof=1) / len(accuracy) ** 0.5 if len(accuracy) > 1 else np.full(len(epochs), np.nan)
        found.append(
            FineTuned(name, len(accuracy), tuple(epochs), tuple(accuracy.mean(0).tolist()), tuple(error.tolist()))
        )
    return tuple(found)


def _runs(
    population: Population, spec: ZooSpec, epochs: tuple[int, ...], models: int, seed: int, rate: float | None
) -> list[Run]:
    """A run a model, with a stream of its own."""
    changed = {**spec.hyperparameters, "epochs": epochs[-1], "min_steps": 0}
    changed |= {} if rate is None else {"learning_rate": rate}
    spec = dataclasses.replace(spec, hyperparameters=changed, checkpoints=epochs, seeds=(0,))
    plan = make_plan(spec)
    if list(plan.runs) != [population.variant]:
        raise GeneratorError(f"the networks are {population.variant}, the recipe trains {', '.join(plan.runs)}")
    run = plan.runs[population.variant][0]
    ids = [hashlib.sha256(f"finetune {seed} {number}".encode()).hexdigest()[:16] for number in range(models)]
    return [dataclasses.replace(run, run=name, seed=number) for number, name in enumerate(ids)]


def _together(runs: Sequence[Run]) -> Iterator[tuple[slice, tuple[Run, ...]]]:
    """Runs that train at once, and where they are."""
    first = 0
    for group in groups(runs):
        yield slice(first, first + len(group)), group
        first += len(group)
