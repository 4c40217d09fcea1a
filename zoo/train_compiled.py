"""Train a group of MLPs one after the other by compiled code: what `zoo.train.train` uses on a CPU where it can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kernels.mlp.network import MLP
from kernels.mlp.training import Model, Workspace
from zoo.batches import SITE
from zoo.datasets import Dataset
from zoo.initialization import initial_weights
from zoo.plan import Run
from zoo.train import learning_rates

CALL = 1 << 18  # samples a call at most: some tens of milliseconds between reports of progress


class CompiledGroup:
    """Runs of one architecture and optimiser, each its own program; the interface of the reference group.

    Args:
        labels: (runs, samples) int64, what each run is trained on.
    """

    def __init__(
        self, runs: Sequence[Run], network: MLP, data: Dataset, labels: np.ndarray, dtype: type[np.floating]
    ) -> None:
        self.runs, self.network, self.labels, self.dtype = runs, network, labels, dtype
        self.inputs = np.ascontiguousarray(data.train_x.reshape(len(data.train_x), -1), dtype)
        architecture = runs[0].architecture
        keys = np.array([run.key for run in runs], np.uint64)
        schemes = [run.values["initialization"] for run in runs]
        gains = np.array([run.values["initialization_gain"] for run in runs])
        self.start = initial_weights(architecture, keys, schemes, gains)
        self.kept = np.full((len(runs), len(runs[0].checkpoints), architecture.layout.size), np.nan, dtype)
        self.diverged = [""] * len(runs)
        self.workspace: Workspace | None = None

    def run(self) -> Iterator[int]:
        """Train to the end; yields the samples worked off, counted as the reference does, with its padding."""
        for number in sorted(range(len(self.runs)), key=lambda n: int(self.runs[n].values["batch_size"])):
            yield from self._one(number)
        self.workspace = None

    def _one(self, number: int) -> Iterator[int]:
        """Train one run, from checkpoint to checkpoint."""
        run = self.runs[number]
        batch = int(run.values["batch_size"])
        if self.workspace is None or self.workspace.batch_size != batch:
            self.workspace = Workspace.of(self.network, batch, self.dtype)
        model = Model(
            self.workspace, self.start[number], run.values["optimizer"], run.values, run.key, self.inputs,
            self.labels[number], run.samples, SITE,
        )  # fmt: skip
        padded = -(-batch // run.micro) * run.micro
        time, each = 0, max(CALL // batch, 1)
        for epoch in sorted({*run.checkpoints, run.epochs}):
            stop = epoch * run.updates
            for start in range(time, stop, each):
                steps = np.arange(start, min(start + each, stop))
                rates = learning_rates([run], steps[:, None], np.array([run.updates]))[:, 0]
                bad = model.train(start, start + len(steps), rates)
                if bad >= 0:
                    self.diverged[number] = f"loss not finite at step {bad} (epoch {bad // run.updates})"
                    return
                yield padded * len(steps)
            time = stop
            here = [at for at, checkpoint in enumerate(run.checkpoints) if checkpoint == epoch]
            self.kept[number, here] = model.weights
