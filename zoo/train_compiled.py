"""Train a group of networks one after the other by compiled code: what `zoo.train.train` uses on a CPU where it can."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

import kernels.lanes.training
import kernels.mlp.training
from kernels.lanes.network import Network
from kernels.mlp.network import MLP
from zoo.batches import SITE
from zoo.datasets import Dataset
from zoo.plan import Run
from zoo.train import learning_rates

CALL = 1 << 18  # samples a call at most: some tens of milliseconds between reports of progress
AHEAD = 1 << 16  # learning rates computed at once: a call of numpy costs as much as some steps of a small network


class CompiledGroup:
    """Runs of one architecture and optimiser, each its own program; the interface of the reference group.

    Args:
        labels: (runs, samples) int64, what each run is trained on.
        start: (runs, size) float64, what it begins with.
        threads: as many runs train at once. No bit depends on it.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        network: MLP | Network,
        data: Dataset,
        labels: np.ndarray,
        dtype: type[np.floating],
        start: np.ndarray,
        threads: int = 1,
    ) -> None:
        self.runs, self.network, self.labels, self.dtype, self.start = runs, network, labels, dtype, start
        self.threads = min(threads, len(runs))
        self.code: Any = kernels.mlp.training if isinstance(network, MLP) else kernels.lanes.training
        shape = (-1,) if isinstance(network, MLP) else network.input_shape
        self.inputs = np.ascontiguousarray(data.train_x.reshape(len(data.train_x), *shape), dtype)
        self.kept = np.full((len(runs), len(runs[0].checkpoints), start.shape[1]), np.nan, dtype)
        self.diverged = [""] * len(runs)
        self.stopped = False

    def run(self) -> Generator[int]:
        """Train to the end; yields the samples worked off, counted as the reference does, with its padding."""
        waiting = deque(sorted(range(len(self.runs)), key=lambda n: int(self.runs[n].values["batch_size"])))
        if self.threads == 1:
            yield from self._work(waiting)
            return
        done: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                for samples in self._work(waiting):
                    done.put(samples)
                done.put(None)
            except BaseException as error:  # raised again below, in the thread that asked
                done.put(error)

        threads = [threading.Thread(target=work) for _ in range(self.threads)]
        for thread in threads:
            thread.start()
        try:
            running = len(threads)
            while running:
                answer = done.get()
                if isinstance(answer, BaseException):
                    raise answer
                if answer is None:
                    running -= 1
                else:
                    yield answer
        finally:  # also when interrupted: nobody takes another run, and who is at one stops at its next report
            waiting.clear()
            self.stopped = True
            for thread in threads:
                thread.join()

    def _work(self, waiting: deque[int]) -> Iterator[int]:
        """Train runs as long as some wait, in buffers of this thread."""
        workspace: Any = None
        while not self.stopped:
            try:
                number = waiting.popleft()
            except IndexError:
                return
            batch = int(self.runs[number].values["batch_size"])
            if workspace is None or workspace.batch_size != batch:
                workspace = self.code.Workspace.of(self.network, batch, self.dtype)
            yield from self._one(number, workspace)

    def _one(self, number: int, workspace: Any) -> Iterator[int]:
        """Train one run, from checkpoint to checkpoint."""
        run = self.runs[number]
        batch = workspace.batch_size
        model = self.code.Model(
            workspace, self.start[number], run.values["optimizer"], run.values, run.key, self.inputs,
            self.labels[number], run.samples, SITE, run.values["loss_function"],
        )  # fmt: skip
        padded = -(-batch // run.micro) * run.micro
        time, each = 0, max(CALL // batch, 1)
        known, rates = 0, np.empty(0)  # learning rates of the steps up to `known`
        for epoch in sorted({*run.checkpoints, run.epochs}):
            stop = epoch * run.updates
            for start in range(time, stop, each):
                if self.stopped:
                    return
                end = min(start + each, stop)
                if end > known:
                    known = max(end, min(start + AHEAD, run.epochs * run.updates))
                    steps = np.arange(start, known)[:, None]
                    rates = learning_rates([run], steps, np.array([run.updates]))[:, 0].astype(self.dtype)
                bad = model.train(start, end, rates[start - known + len(rates) :][: end - start])
                if bad >= 0:
                    self.diverged[number] = f"loss not finite at step {bad} (epoch {bad // run.updates})"
                    return
                yield padded * (end - start)
            time = stop
            here = [at for at, checkpoint in enumerate(run.checkpoints) if checkpoint == epoch]
            self.kept[number, here] = model.weights
