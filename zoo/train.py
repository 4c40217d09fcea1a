"""Train a group of runs: compiled code where there is some for it, or as one batch in plain torch, the oracle of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catalog.errors import InvalidSpecError
from kernels.lanes.network import Network, network_of
from kernels.losses import LOSSES
from kernels.mlp.network import MLP, UnsupportedError, mlp_of
from kernels.optimizers import OPTIMIZERS
from kernels.population import Noise, forward_of
from kernels.random import uniform, words
from zoo.architectures import Architecture
from zoo.batches import Batches
from zoo.datasets import Dataset
from zoo.implementations import NUMPY, choose
from zoo.initialization import initial_weights
from zoo.plan import Run
from zoo.schedules import SCHEDULES

LABEL_SITE = 3  # of the random streams
BLOCK = 1 << 20  # sample numbers drawn ahead at once


@dataclass(frozen=True)
class Trained:
    """What training a group gives.

    Args:
        weights: (runs, checkpoints, size), in the type it was trained in; NaN where a run had diverged.
        diverged: (runs,) reason, "" for a run that stayed finite.
        impl: which of `zoo.implementations.IMPLEMENTATIONS` did it.
    """

    weights: Tensor
    diverged: tuple[str, ...]
    impl: str = "reference"


def noisy_labels(runs: Sequence[Run], labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels each run is trained on, (runs, samples) int64.

    With probability `label_noise` a sample's label is one of the other classes, all equally likely, fixed for the run.
    """
    rate = _values(runs, "label_noise")
    some = rate > 0  # what has none draws nothing: that would take as long as an epoch of compiled training
    keys = _keys(runs)[some]
    noisy = uniform(keys, LABEL_SITE, 0, count=len(labels)) < rate[some, None]
    shift = 1 + words(keys, LABEL_SITE, 1, count=len(labels)) % (num_classes - 1)
    out = np.repeat(labels[None], len(runs), axis=0)
    out[some] = np.where(noisy, (labels + shift) % num_classes, labels)
    return out


def train(
    runs: Sequence[Run],
    data: Dataset,
    *,
    start: Tensor | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] | None = None,
    impl: str | None = None,
    threads: int | None = None,
) -> Trained:
    """Train runs of one architecture, optimiser, loss function and micro-batch size together.

    Each has its own hyperparameters, schedule, length, labels and streams; none depends on its companions. To the bit
    in compiled code, and for MLPs in plain torch (on a CPU whose MKL was told so, see `zoo/__init__.py`); CNNs in plain
    torch but for rounding in grouped convolutions (3e-8). Implementations differ by rounding.

    Args:
        start: (runs, size) weights to begin with, statistics of norms included; None for those that each run draws.
            One that is not finite diverges at its first step, alone.
        progress: called now and then with the samples worked off since the last call.
        impl: "compiled" for numba (MLPs and CNNs without norms, on a CPU), "reference" for plain torch, None for the
            first that can.
        threads: runs that compiled code trains at once, None for as many as torch uses. No bit depends on it.

    Raises:
        ValueError: runs that cannot share a group.
        InvalidSpecError: "compiled" was asked for what it cannot do, a `start` of another shape or of no floats.
        UnknownNameError: another `impl`.
    """
    if not runs:
        raise ValueError("expected one run or more, got none")
    if len({(run.architecture.name, run.group) for run in runs}) != 1:
        raise ValueError("runs of one call must share architecture, optimizer, loss_function and micro-batch size")
    network = None if impl == "reference" else _compilable(runs[0].architecture, device, dtype, impl)
    first = _start(runs, start)
    if network:
        from zoo.train_compiled import CompiledGroup

        labels = noisy_labels(runs, data.train_y, data.num_classes)
        threads = threads or torch.get_num_threads()
        compiled = CompiledGroup(runs, network, data, labels, NUMPY[dtype], first, threads)
        _report(compiled.run(), progress)
        return Trained(torch.from_numpy(compiled.kept), tuple(compiled.diverged), "compiled")
    group = _Group(tuple(runs), data, device, dtype, first)
    _report(group.run(), progress)
    return Trained(group.kept, tuple(group.diverged))


def _start(runs: Sequence[Run], given: Tensor | None) -> np.ndarray:
    """What training begins with, (runs, size) float64: as given, or as each run draws it."""
    architecture = runs[0].architecture
    if given is None:
        schemes = [run.values["initialization"] for run in runs]
        return initial_weights(architecture, _keys(runs), schemes, _values(runs, "initialization_gain"))
    expected = (len(runs), architecture.layout.size)
    if given.shape != expected or not given.is_floating_point():
        raise InvalidSpecError(
            f"start must be the weights of each run, {expected} of {architecture.name} in floating point numbers; "
            f"got {tuple(given.shape)} of {given.dtype}"
        )
    return np.array(given.detach().cpu().numpy(), np.float64)  # a copy: training works in place


def _report(working: Generator[int], progress: Callable[[int], None] | None) -> None:
    """Work to the end; when interrupted, its threads end before the interruption goes on."""
    with contextlib.closing(working):
        for samples in working:
            if progress:
                progress(samples)


def _compilable(architecture: Architecture, device: str, dtype: torch.dtype, impl: str | None) -> Any:
    """The network, if compiled code can train it; as `zoo.implementations.choose`."""

    def network() -> MLP | Network:
        import kernels.lanes.training
        import kernels.mlp.training  # noqa: F401  # whether numba is there and fits this numpy

        module = architecture.build("meta")
        try:
            return mlp_of(module)
        except UnsupportedError:
            return network_of(module, architecture.input_shape)

    return choose(network, "train", architecture, torch.device(device), dtype, impl)


class _Group:
    """The reference: stacked state of the runs that still train.

    Finished and diverged ones leave, the rest never notice.
    """

    def __init__(
        self, runs: tuple[Run, ...], data: Dataset, device: str, dtype: torch.dtype, start: np.ndarray
    ) -> None:
        self.runs, self.device, self.dtype = runs, device, dtype
        self.architecture: Architecture = runs[0].architecture
        self.layout, self.module = self.architecture.layout, self.architecture.build("meta")
        self.forward = forward_of(self.module)
        self.optimizer, self.loss = OPTIMIZERS[runs[0].values["optimizer"]], LOSSES[runs[0].values["loss_function"]]
        self.inputs = torch.from_numpy(data.train_x).to(device, dtype)
        self.labels = torch.from_numpy(noisy_labels(runs, data.train_y, data.num_classes)).to(device)
        self.timing = _batches(runs)
        self.length = np.array([run.epochs for run in runs]) * self.timing.updates * self.timing.splits
        self.weights = torch.from_numpy(start).to(device, dtype)
        self.state = self.optimizer.start(self.weights[:, : self.layout.num_parameters])
        self.sums = torch.zeros_like(self.weights[:, : self.layout.num_parameters])  # gradients of an unfinished batch
        self.kept = torch.full(
            (len(runs), len(runs[0].checkpoints), self.layout.size), torch.nan, dtype=dtype, device=device
        )
        self.diverged = [""] * len(runs)
        self.due: dict[int, list[tuple[int, int]]] = {}  # micro-batches done -> (run, checkpoint) to keep then
        for number, run in enumerate(runs):
            each = int(self.timing.updates[number] * self.timing.splits[number])
            for checkpoint, epoch in enumerate(run.checkpoints):
                self.due.setdefault(epoch * each, []).append((number, checkpoint))

    def run(self) -> Generator[int]:
        """Train to the end, block by block; yields the samples worked off."""
        active = np.arange(len(self.runs))
        time = 0
        self._keep(0, active)
        while len(active := self._leave(active, time)):
            each = max(BLOCK // (len(active) * self.timing.micro), 16)
            stop = int(min(time + min(each, 256), self.length[active].min()))
            self._block(active, time, stop)
            yield len(active) * self.timing.micro * (stop - time)
            time = stop

    def _leave(self, active: np.ndarray, time: int) -> np.ndarray:
        """Drop runs that are finished or diverged from the stacked tensors."""
        stay = np.array([self.length[n] > time and not self.diverged[n] for n in active], bool)
        if not stay.all():
            rows = torch.from_numpy(np.flatnonzero(stay)).to(self.device)
            self.weights = self.weights[rows]
            self.state = {name: value[rows] for name, value in self.state.items()}
            self.sums = self.sums[rows]
            self.timing = self.timing.select(stay)
        return active[stay]

    def _keep(self, time: int, active: np.ndarray) -> None:
        """Copy the weights of runs that are at a checkpoint."""
        due = [(number, checkpoint) for number, checkpoint in self.due.get(time, ()) if number in active]
        for number, checkpoint in due:
            self.kept[number, checkpoint] = self.weights[int(np.searchsorted(active, number))]

    def _block(self, active: np.ndarray, start: int, stop: int) -> None:
        """Micro-batches start..stop of the active runs."""
        runs, timing = [self.runs[number] for number in active], self.timing
        index, position, update = timing.block(start, stop)
        last = (np.arange(start, stop)[:, None] + 1) % timing.splits == 0
        rates = learning_rates(runs, update, timing.updates)[..., None]
        shares = (position >= 0) / timing.batch_size[:, None]  # of a sample in the gradient of its batch
        steps = zip(
            *(self._tensor(value) for value in (index, np.maximum(position, 0), update, last)),
            *(self._tensor(value).to(self.dtype) for value in (shares, rates)),
            self.labels[self._tensor(active)[:, None], self._tensor(index)],
            strict=True,
        )
        hyper = self._hyperparameters(runs)
        keys, dropout = self._tensor(_keys(runs).view(np.int64)), self._tensor(_values(runs, "dropout"))
        drops = bool(dropout.any())
        parameters, tensors, leaves = self._tensors()
        losses = torch.empty(shares.shape, dtype=self.dtype, device=self.device)
        for at, (sample, place, number, turn, share, hyper["learning_rate"], labels) in enumerate(steps):
            noise = Noise(keys, number, place, dropout) if drops else None
            logits = self.forward(self.module, tensors, self.inputs[sample], training=True, noise=noise)
            loss = self.loss(logits.flatten(0, 1), labels.flatten()).view_as(share) * share
            gradients = torch.autograd.grad(loss.sum(), leaves)
            losses[at] = loss.detach()
            self._update(parameters, torch.cat([g.flatten(1) for g in gradients], 1), hyper, last[at], turn)
            if start + at + 1 in self.due:
                self._keep(start + at + 1, active)
        self._notice_divergence(active, losses.isfinite().all(2).cpu().numpy(), update)

    def _update(
        self, parameters: Tensor, gradients: Tensor, hyper: dict[str, Tensor], last: np.ndarray, turn: Tensor
    ) -> None:
        """Add a micro-batch's gradients; where it was the `last` one of its batch (on the device: `turn`), step."""
        if (self.timing.splits == 1).all():
            self.optimizer.step(parameters, gradients, self.state, hyper)
            return
        self.sums += gradients
        if last.all():
            self.optimizer.step(parameters, self.sums, self.state, hyper)
            self.sums.zero_()
        elif last.any():
            self.optimizer.step(parameters, self.sums, self.state, hyper, turn)
            self.sums.masked_fill_(turn[:, None], 0)

    def _tensors(self) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """The stacked parameters, all tensors by name as views of the weights, and those of them that are trained."""
        views = self.layout.unflatten(self.weights)
        roles = dict(zip(self.layout.names, self.layout.roles, strict=True))
        # data, not detach(): BatchNorm writes its statistics before the backward pass, which must not look as if it had
        # changed the parameters that share their memory
        tensors = {name: view.data.requires_grad_(roles[name] == "parameter") for name, view in views.items()}
        leaves = [tensors[name] for name in self.layout.names if roles[name] == "parameter"]
        return self.weights[:, : self.layout.num_parameters], tensors, leaves

    def _hyperparameters(self, runs: Sequence[Run]) -> dict[str, Tensor]:
        """(runs, 1) tensors the optimiser reads, the learning rate aside."""
        names = [name for name in self.optimizer.hyperparameters if name != "learning_rate"]
        return {name: self._tensor(_values(runs, name)[:, None]).to(self.dtype) for name in names}

    def _notice_divergence(self, active: np.ndarray, finite: np.ndarray, update: np.ndarray) -> None:
        """Note when a loss was first not finite, (steps, runs); what was kept since then becomes NaN."""
        updates = self.timing.updates.tolist()
        for column in np.flatnonzero(~finite.all(0)).tolist():
            step = int(update[np.argmin(finite[:, column]), column])
            number = int(active[column])
            self.diverged[number] = f"loss not finite at step {step} (epoch {step // updates[column]})"
            for checkpoint, epoch in enumerate(self.runs[number].checkpoints):
                if epoch * updates[column] > step:
                    self.kept[number, checkpoint] = torch.nan

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(values)).to(self.device)


def _keys(runs: Sequence[Run]) -> np.ndarray:
    return np.array([run.key for run in runs], np.uint64)


def _values(runs: Sequence[Run], name: str) -> np.ndarray:
    return np.array([run.values[name] for run in runs], np.float64)


def _batches(runs: Sequence[Run]) -> Batches:
    sizes, samples = (
        np.array(v, np.int64) for v in ([r.values["batch_size"] for r in runs], [r.samples for r in runs])
    )
    return Batches(_keys(runs), sizes, samples, runs[0].micro)


def learning_rates(runs: Sequence[Run], update: np.ndarray, updates: np.ndarray) -> np.ndarray:
    """Learning rate of each run at each micro-batch, (steps, runs) float64."""
    total = np.array([run.epochs for run in runs]) * updates
    period, decay, rate = (_values(runs, name) for name in ("schedule_period", "schedule_decay", "learning_rate"))
    factors = np.empty(update.shape)
    for name in {run.values["schedule"] for run in runs}:
        mine = np.array([run.values["schedule"] == name for run in runs])
        factors[:, mine] = SCHEDULES[name](update[:, mine], total[mine], period[mine], decay[mine])
    return factors * rate
