"""Loss, accuracy and error bits of a population on one set of samples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from catalog.errors import InvalidSpecError, unknown_name
from kernels.dispatch import on_gpu
from kernels.forward.forward import mlp_forward
from kernels.losses import LOSSES
from kernels.mlp.network import UnsupportedError, mlp_of
from kernels.population import forward
from zoo.architectures import Architecture
from zoo.implementations import IMPLEMENTATIONS as ON_CPU
from zoo.implementations import choose

IMPLEMENTATIONS = (*ON_CPU, "triton")
ACTIVATIONS = 1 << 21  # floats of input and activations worked on at once, to stay near the caches


@dataclass(frozen=True)
class Evaluation:
    """Results of a population.

    Args:
        loss: (models,) float64, mean over the samples of the model's loss function.
        accuracy: (models,) float64.
        error_bits: (models, ceil(samples / 8)) uint8; bit i, most significant first, is 1 where sample i
            is misclassified.
        impl: "compiled", "triton" or "reference".
    """

    loss: np.ndarray
    accuracy: np.ndarray
    error_bits: np.ndarray
    impl: str = "reference"


def evaluate(
    architecture: Architecture,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    samples: Tensor | None = None,
    *,
    loss_functions: Sequence[str] | str = "cross_entropy",
    impl: str | None = None,
    threads: int | None = None,
) -> Evaluation:
    """Evaluate all models, in eval mode. On a CPU, no bit of a model depends on its companions in compiled code.

    Args:
        weights: (models, size).
        x: (samples, *input_shape) on the device of `weights`.
        y: (samples,) labels, or (rows, samples) where models have labels of their own: each row serves models / rows
            consecutive models (the checkpoints of a run).
        samples: (models,) how many of the first samples count for a model's loss and accuracy; None for all. The error
            bits cover all samples.
        loss_functions: a name in `kernels.losses.LOSSES` for all models, or one for each.
        impl: "compiled" for numba (MLPs and CNNs without norms on a CPU), "triton" for a fused kernel (MLPs on a GPU
            that `kernels.forward.triton_forward.unfit` has nothing against), "reference" for plain torch, None for the
            first that can.
        threads: parts of the population that compiled code works on at once, None for as many as torch uses.

    Raises:
        ValueError: weights that do not fit the architecture; labels or samples that do not fit the weights.
        InvalidSpecError: "compiled" or "triton" was asked for what it cannot do. UnknownNameError: another `impl`, or a
            loss function that is none.
    """
    layout = architecture.layout
    if weights.shape[-1] != layout.size:
        raise ValueError(f"last axis must hold {layout.size} weights ({architecture.name}), got {weights.shape[-1]}")
    _check_samples(architecture, len(weights), x, y, samples)
    losses = [loss_functions] * len(weights) if isinstance(loss_functions, str) else list(loss_functions)
    if len(losses) != len(weights):
        raise ValueError(f"expected a loss function a model, {len(weights)}, got {len(losses)}")
    for name in set(losses) - set(LOSSES):
        raise unknown_name("loss function", name, LOSSES)
    counted = np.full(len(weights), len(x)) if samples is None else samples.cpu().numpy()
    if impl not in (None, *IMPLEMENTATIONS):
        raise unknown_name("implementation", impl, IMPLEMENTATIONS)
    if impl == "triton" or (impl is None and on_gpu(weights)):
        found = _triton(architecture, weights, x, y, counted, losses, impl)
        if found is not None:
            return found
    network = None if impl == "reference" else compilable(architecture, weights.device, weights.dtype, impl)
    if network is None:
        return _reference(architecture, weights, x, y, counted, losses)
    return _compiled(network, weights, x, y, counted, losses, threads or torch.get_num_threads())


def _check_samples(architecture: Architecture, models: int, x: Tensor, y: Tensor, samples: Tensor | None) -> None:
    """Raise ValueError unless inputs, labels and counts fit each other."""
    if not len(x):
        raise ValueError("no samples to evaluate on; give one or more")
    if x.shape[1:] != architecture.input_shape:
        raise ValueError(f"inputs must be (samples, *{architecture.input_shape}), got {tuple(x.shape)}")
    if y.dim() not in (1, 2) or y.shape[-1] != len(x):
        raise ValueError(f"labels must be of {len(x)} samples, got {tuple(y.shape)}")
    if y.dim() == 2 and (not len(y) or models % len(y)):
        raise ValueError(f"{len(y)} rows of labels do not divide {models} models")
    if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < architecture.num_classes:
        raise ValueError(
            f"labels must be from 0 to {architecture.num_classes - 1}, got {int(y.min())} to {int(y.max())}"
        )
    if samples is not None and (samples.shape != (models,) or not ((samples >= 1) & (samples <= len(x))).all()):
        raise ValueError(f"samples must be {models} counts from 1 to {len(x)}, got {samples.tolist()[:5]}")


def compilable(architecture: Architecture, device: torch.device, dtype: torch.dtype, impl: str | None) -> Any:
    """The `kernels.lanes.network.Network`, if compiled code can evaluate it; else None, with a note in the log.

    Raises:
        InvalidSpecError: it cannot, and `impl` is "compiled". UnknownNameError: `impl` is neither that nor None.
    """

    def network() -> Any:
        import kernels.lanes.evaluation  # noqa: F401  # whether numba is there and fits this numpy
        from kernels.lanes.network import network_of

        return network_of(architecture.build("meta"), architecture.input_shape)

    return choose(network, "evaluate", architecture, device, dtype, impl)


def _compiled(
    network: Any, weights: Tensor, x: Tensor, y: Tensor, counted: np.ndarray, loss_functions: list[str], threads: int
) -> Evaluation:
    """In compiled code; arguments as for `evaluate`."""
    from kernels.lanes.evaluation import evaluate as run

    labels = np.broadcast_to(y.numpy(), (len(y) if y.dim() == 2 else 1, len(x)))
    squared = np.array([name == "mse" for name in loss_functions], bool)
    each = len(weights) // len(labels)
    ends = [len(labels) * part // threads for part in range(threads + 1)]  # whole rows of labels
    if len(labels) == 1:
        ends, each = [len(weights) * part // threads for part in range(threads + 1)], 1

    def work(part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = labels if len(labels) == 1 else labels[part]
        mine = slice(part.start * each, part.stop * each)
        return run(network, weights[mine].detach().numpy(), x.numpy(), rows, counted[mine], squared[mine])

    parts = [slice(a, b) for a, b in itertools.pairwise(ends) if b > a] or [slice(0, 0)]
    if len(parts) == 1:
        found = [work(parts[0])]
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            found = list(pool.map(work, parts))
    loss, accuracy, error_bits = (np.concatenate(values) for values in zip(*found, strict=True))
    return Evaluation(loss, accuracy, error_bits, "compiled")


def _triton(
    architecture: Architecture,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    counted: np.ndarray,
    loss_functions: list[str],
    impl: str | None,
) -> Evaluation | None:
    """In one kernel; None for networks that it cannot do, unless `impl` asks for it. Arguments as for `evaluate`."""
    try:
        activation = mlp_of(architecture.build("meta")).activation
        tensors = architecture.layout.unflatten(weights).values()
        layers = [tensor for tensor in tensors if tensor.dim() == 3], [one for one in tensors if one.dim() == 2]
        counts = torch.from_numpy(counted).to(weights.device)
        found = mlp_forward(x.flatten(1), y, *layers, activation, loss=loss_functions, counted=counts, impl="triton")
    except (UnsupportedError, ImportError) as error:
        if impl is not None:
            raise InvalidSpecError(f"impl 'triton' cannot evaluate {architecture.name}: {error}") from error
        return None
    loss, correct = (column.cpu().numpy() / counted for column in (found.loss_sum, found.correct))
    return Evaluation(loss, correct, found.error_bits.cpu().numpy(), "triton")


def _reference(
    architecture: Architecture, weights: Tensor, x: Tensor, y: Tensor, counted: np.ndarray, loss_functions: list[str]
) -> Evaluation:
    """In plain torch, some models and samples at a time. Arguments as for `evaluate`."""
    module = architecture.build("meta")
    numbers = widest(architecture)
    models = max(min(64, ACTIVATIONS // (numbers * min(len(x), 256))), 1)
    batch = max(ACTIVATIONS // (numbers * models), 1)
    mean_loss, accuracy = np.empty(len(weights)), np.empty(len(weights))
    error_bits = np.empty((len(weights), -(-len(x) // 8)), np.uint8)
    with torch.inference_mode():
        for first in range(0, len(weights), models):
            part = slice(first, min(first + models, len(weights)))
            tensors = architecture.layout.unflatten(weights[part])
            labels = y.expand(part.stop - first, -1) if y.dim() == 1 else y[_rows(part, len(weights) // len(y), y)]
            losses, wrongs = [], []
            for start in range(0, len(x), batch):
                logits = forward(module, tensors, x[start : start + batch], shared=True)
                target = labels[:, start : start + batch]
                losses.append(_losses(logits, target, loss_functions[part]))
                wrongs.append(logits.argmax(-1) != target)
            wrong = torch.cat(wrongs, 1).cpu().numpy()
            counts = np.arange(len(x)) < counted[part, None]
            mean_loss[part] = torch.cat(losses, 1).double().cpu().numpy().sum(1, where=counts) / counted[part]
            accuracy[part] = 1 - (wrong & counts).sum(1) / counted[part]
            error_bits[part] = np.packbits(wrong, axis=1)
    return Evaluation(mean_loss, accuracy, error_bits)


def _losses(logits: Tensor, target: Tensor, names: list[str]) -> Tensor:
    """(models, samples), each model's by its own function."""
    found = {name: LOSSES[name](logits.flatten(0, 1), target.flatten()).view_as(target) for name in set(names)}
    if len(found) == 1:
        return found[names[0]]
    return torch.stack([found[name][model] for model, name in enumerate(names)])


def _rows(models: slice, each: int, y: Tensor) -> Tensor:
    """Which row of labels each of these models has, where a row serves `each` consecutive ones."""
    return torch.arange(models.start, models.stop, device=y.device) // each


def widest(architecture: Architecture) -> int:
    """The most numbers that one sample has anywhere in the network, its input included."""
    x = torch.empty(1, *architecture.input_shape, device="meta")
    found = [x.numel()]
    for layer in architecture.build("meta").eval().children():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
            x = layer(x)  # a norm changes no shape, and on this device torch imports its compiler for it, 4 s
        found.append(x.numel())
    return max(found)
