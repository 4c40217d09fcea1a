"""Build one shard: train its runs, evaluate every checkpoint, commit. What executors hand to their workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl
import torch

from catalog.fragments import software
from catalog.grid import from_stored, to_stored
from catalog.store import Zoo
from catalog.write import write_shard
from zoo.evaluate import evaluate
from zoo.plan import Plan, Run
from zoo.train import Trained, noisy_labels, train

Progress = Callable[[int], None]
GROUP = 64  # runs in one batch: about here a core is fastest (activations stay near it), and memory is bounded


def groups(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """The runs of a shard that train as one batch each, at most `GROUP`."""
    alike = (tuple(members) for _, members in itertools.groupby(runs, key=lambda run: run.group))
    return [members[first : first + GROUP] for members in alike for first in range(0, len(members), GROUP)]


def build_shard(
    zoo: Zoo, plan: Plan, variant: str, shard: int, device: str = "cpu", progress: Progress | None = None
) -> None:
    """Train, evaluate and commit a shard. Until it is committed nothing of it can be seen; afterwards all of it.

    Args:
        progress: called now and then with samples worked off.

    Raises:
        StorageError: the disk refused; nothing of the shard is committed.
    """
    runs = plan.shard(variant, shard)
    with one_thread():
        trained = [train(group, plan.data, device=device, progress=progress) for group in groups(runs)]
        rows, weights = _table(zoo, plan, runs, trained)
    versions = software(torch=torch.__version__, device=torch.device(device).type, **_compiled(trained))
    write_shard(zoo, variant, shard, weights, rows, versions)


def _compiled(trained: Sequence[Trained]) -> dict[str, str]:
    """What a fragment says of compiled code, if some trained it."""
    used = any(result.impl == "compiled" for result in trained)
    return {"impl": "compiled", "numba": version("numba")} if used else {}


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: bits do not depend on the number of cores, and two on busy cores are 5-20x slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _table(zoo: Zoo, plan: Plan, runs: Sequence[Run], trained: Sequence[Trained]) -> tuple[pl.DataFrame, np.ndarray]:
    """Rows and weights (runs, checkpoints, size) of a shard."""
    weights = torch.cat([result.weights for result in trained])
    reasons = [reason for result in trained for reason in result.diverged]
    kept = from_stored(to_stored(weights.cpu().numpy(), zoo.record.dtype), zoo.record.dtype)  # what readers will see
    stored = np.isfinite(kept).all(-1)
    statuses = _statuses(runs, reasons, stored, zoo.record.dtype)
    columns = measured(plan, runs, torch.from_numpy(kept).to(weights), stored)
    return plan.rows(runs).with_columns(statuses, **columns), kept


def _statuses(runs: Sequence[Run], reasons: list[str], stored: np.ndarray, dtype: str) -> list[pl.Series]:
    """status, reason and stored of each row. A run that diverged keeps its early checkpoints, marked as its."""
    for number, run in enumerate(runs):
        if not reasons[number] and not stored[number].all():
            epoch = run.checkpoints[int(np.argmin(stored[number]))]
            reasons[number] = f"weights at epoch {epoch} are not finite as {dtype}"
    each = stored.shape[1]
    return [
        pl.Series("status", ["diverged" if reason else "ok" for reason in reasons for _ in range(each)], pl.String),
        pl.Series("reason", [reason for reason in reasons for _ in range(each)], pl.String),
        pl.Series("stored", stored.reshape(-1)),
    ]


def measured(
    plan: Plan, runs: Sequence[Run], weights: torch.Tensor, stored: np.ndarray, threads: int | None = None
) -> dict[str, pl.Series]:
    """Loss (the one trained with), accuracy and error bits of every checkpoint; null where there are no weights.

    `train_*`: the labels the run was trained on, over those of the first `train_samples` that it used.

    Args:
        weights: (runs, checkpoints, size). stored: (runs, checkpoints) bool. threads: as for `zoo.evaluate.evaluate`.
    """
    each, device, data = weights.shape[1], weights.device, plan.data
    count = min(plan.spec.train_samples or data.num_train, data.num_train)
    labels = torch.from_numpy(noisy_labels(runs, data.train_y, data.num_classes)[:, :count]).to(device)
    used = torch.tensor([min(run.samples, count) for run in runs]).repeat_interleave(each)
    flat = weights.flatten(0, 1)
    losses = [run.values["loss_function"] for run in runs for _ in range(each)]
    train_x, test_x = (torch.from_numpy(x).to(device, flat.dtype) for x in (data.train_x[:count], data.test_x))
    parts = {
        "train": (train_x, labels, used),
        "test": (test_x, torch.from_numpy(data.test_y).to(device), None),
    }
    columns: dict[str, pl.Series] = {}
    known = stored.reshape(-1)
    for name, (x, y, samples) in parts.items():
        found = evaluate(runs[0].architecture, flat, x, y, samples, loss_functions=losses, threads=threads)
        values_of: dict[str, tuple[list[Any], type[pl.DataType]]] = {
            "loss": (found.loss.tolist(), pl.Float64),
            "accuracy": (found.accuracy.tolist(), pl.Float64),
            "error_bits": ([bits.tobytes() for bits in found.error_bits], pl.Binary),
        }
        for kind, (values, dtype) in values_of.items():
            kept = [value if is_known else None for value, is_known in zip(values, known, strict=True)]
            columns[f"{name}_{kind}"] = pl.Series(kept, dtype=dtype)
    return columns
