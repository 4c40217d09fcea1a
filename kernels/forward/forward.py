"""Dense networks on the same inputs, a whole population at once: the operation and its definition in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import checked_name, on_gpu
from kernels.distance.gram import parts
from kernels.losses import LOSSES
from kernels.similarity.similarity import highest

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
}
TOGETHER = 1 << 21  # activations that the reference holds at once, on a CPU; sixteen times as many on a GPU
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Layers(NamedTuple):
    """Weights (models, out, in) and biases (models, out) of each layer, the first one first."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]


@dataclass(frozen=True)
class Forward:
    """What networks do on samples. With alphas, an axis (alphas,) follows that of the models.

    Args:
        loss_sum: (models,) float64, of the samples that count.
        correct: (models,) int64, right answers among them.
        error_bits: (models, ceil(samples / 8)) uint8; bit i, most significant first, is 1 where sample i is
            misclassified, of all samples.
        logits: (models, samples, classes), where asked for.
    """

    loss_sum: Tensor
    correct: Tensor
    error_bits: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True)
class Problem:
    """What the implementations are given, checked.

    Args:
        x: (T, D). y: (rows, T) int64, each row for models / rows consecutive ones.
        other: the second end of the segments; None without alphas. alphas: (A,) in the type of the sums.
        counted: (models,) int64. squared: (models,) bool, whose loss is "mse".
    """

    x: Tensor
    y: Tensor
    layers: Layers
    activation: str
    counted: Tensor
    squared: Tensor
    other: Layers | None
    alphas: Tensor | None

    @property
    def sums(self) -> torch.dtype:
        """Type that is computed in."""
        return torch.float64 if self.layers.weights[0].dtype == torch.float64 else torch.float32

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the layers' outputs; the last are the classes."""
        return tuple(weight.shape[1] for weight in self.layers.weights)


def mlp_forward(
    x: Tensor,
    y: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    *,
    loss: str | Sequence[str] = "cross_entropy",
    other: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    alphas: Sequence[float] | Tensor | None = None,
    counted: Tensor | None = None,
    logits: bool = False,
    impl: str | None = None,
) -> Forward:
    """Loss, right answers and error bits of every network, or of points on the segments between two populations.

    Weights of 16 bits are widened as they are read: activations and sums are float32, products never TF32.

    Args:
        x: (T, D). y: (T,) classes, or (rows, T) where models have labels of their own: each row serves models / rows
            consecutive models.
        weights: (M, out, in) a layer, in torch's order, views into flat vectors are not copied; biases: (M, out).
        activation: between layers, a name in `ACTIVATIONS`.
        loss: a name in `kernels.losses.LOSSES` for all models, or one for each.
        other: weights and biases of other ends, as many; with alphas (A,) the networks are (1 - alpha) w + alpha other.
        counted: (M,) how many of the first samples count for loss and right answers; None for all.
        logits: whether to give them too, in the type of the sums.
        impl: "reference" (torch) or "triton"; None takes Triton on a GPU where it fits, see
            `kernels.forward.triton_forward.unfit`.

    Raises:
        ValueError: what does not fit each other; "triton" for networks that its program cannot hold.
    """
    checked_name(impl, x, ("reference", "triton"))
    problem = checked(x, y, weights, biases, activation, loss, other, alphas, counted)
    if impl == "triton" or (impl is None and on_gpu(x)):
        from kernels.forward.triton_forward import forward_triton, unfit

        reason = unfit(problem)
        if not reason:
            return forward_triton(problem, logits)
        if impl == "triton":
            raise ValueError(f"impl='triton' cannot do this: {reason}; use impl='reference'")
    return reference(problem, logits)


def reference(problem: Problem, logits: bool = False) -> Forward:
    """The definition: batched products, some models and samples at a time."""
    if problem.alphas is None:
        return _reference(problem, problem.layers, logits)
    found = [_reference(problem, _between(problem, alpha), logits) for alpha in problem.alphas]
    loss, correct, bits = (
        torch.stack([getattr(one, name) for one in found], 1) for name in ("loss_sum", "correct", "error_bits")
    )
    outputs = torch.stack([one.logits for one in found if one.logits is not None], 1) if logits else None
    return Forward(loss, correct, bits, outputs)


def _between(problem: Problem, alpha: Tensor) -> Layers:
    """Networks on the segments; the sums' type holds both ends exactly."""
    assert problem.other is not None
    kind = problem.sums
    pairs = (zip(mine, theirs, strict=True) for mine, theirs in zip(problem.layers, problem.other, strict=True))
    return Layers(*(tuple((1 - alpha) * w.to(kind) + alpha * v.to(kind) for w, v in side) for side in pairs))


@torch.no_grad()
def _reference(problem: Problem, layers: Layers, logits: bool) -> Forward:
    models, (samples, inputs) = len(layers.weights[0]), problem.x.shape
    device, kind, classes = problem.x.device, problem.sums, problem.widths[-1]
    loss = torch.zeros(models, dtype=torch.float64, device=device)
    correct = torch.zeros(models, dtype=torch.int64, device=device)
    wrong = torch.zeros(models, -(-samples // 8) * 8, dtype=torch.bool, device=device)
    outputs = torch.empty(models, samples, classes, dtype=kind, device=device) if logits else None
    room = TOGETHER * (1 if device.type == "cpu" else 16) // max(inputs, *problem.widths)
    some = max(1, min(64, room // max(1, min(samples, 256))))
    with highest():
        for part in parts(models, some):
            here = Layers(*(tuple(tensor[part].to(kind) for tensor in side) for side in layers))
            mine = torch.arange(part.start, part.stop, device=device) // (models // len(problem.y))
            for at in parts(samples, max(1, room // some)):
                z = _outputs(here, problem.x[at].to(kind), problem.activation)
                labels = problem.y[mine, at]
                counts = torch.arange(at.start, at.stop, device=device) < problem.counted[part, None]
                each = _losses(z, labels, problem.squared[part])
                wrong[part, at] = missed = z.argmax(-1) != labels
                loss[part] += torch.where(counts, each.double(), 0).sum(1)
                correct[part] += (~missed & counts).sum(1)
                if outputs is not None:
                    outputs[part, at] = z
    return Forward(loss, correct, _packed(wrong), outputs)


def _outputs(layers: Layers, x: Tensor, activation: str) -> Tensor:
    """(models, samples, classes). The first layer of all models is one product."""
    first, *rest = zip(*layers, strict=True)
    h = (x @ first[0].flatten(0, 1).T).unflatten(1, first[1].shape).transpose(0, 1) + first[1][:, None]
    for weight, bias in rest:
        h = torch.baddbmm(bias[:, None], ACTIVATIONS[activation](h), weight.transpose(1, 2))
    return h


def _losses(logits: Tensor, labels: Tensor, squared: Tensor) -> Tensor:
    """(models, samples), each model's by its own function."""
    flat, target = logits.flatten(0, 1), labels.flatten()
    if not bool(squared.any()):
        return LOSSES["cross_entropy"](flat, target).view_as(labels)
    mse = LOSSES["mse"](flat, target).view_as(labels)
    if bool(squared.all()):
        return mse
    return torch.where(squared[:, None], mse, LOSSES["cross_entropy"](flat, target).view_as(labels))


def _packed(wrong: Tensor) -> Tensor:
    """(models, bytes) uint8 of (models, 8 bytes), the first of eight the most significant bit."""
    powers = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=wrong.device)
    return (wrong.unflatten(1, (-1, 8)) * powers).sum(2, dtype=torch.uint8)


def checked(
    x: Tensor,
    y: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    loss: str | Sequence[str],
    other: tuple[Sequence[Tensor], Sequence[Tensor]] | None,
    alphas: Sequence[float] | Tensor | None,
    counted: Tensor | None,
) -> Problem:
    """Arguments of `mlp_forward` as a problem; ValueError for what does not fit."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if x.dim() != 2 or not len(x):
        raise ValueError(f"x must be (samples, inputs) of one sample or more, got {tuple(x.shape)}")
    layers = _checked_layers(x, weights, biases)
    models, samples = len(layers.weights[0]), len(x)
    rows = y if y.dim() == 2 else y[None]
    if y.dim() not in (1, 2) or rows.shape[1] != samples or not len(rows) or models % len(rows):
        raise ValueError(
            f"y must be ({samples},) or (rows, {samples}), rows a divisor of {models} models, got {tuple(y.shape)}"
        )
    classes = layers.weights[-1].shape[1]
    if not 0 <= int(rows.min()) <= int(rows.max()) < classes:
        raise ValueError(f"labels must be classes from 0 to {classes - 1}, got {int(rows.min())} to {int(rows.max())}")
    names = [loss] if isinstance(loss, str) else list(loss)
    if set(names) - set(LOSSES) or (not isinstance(loss, str) and len(names) != models):
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, or one for each of {models} models, got {loss!r}")
    squared = torch.tensor([name == "mse" for name in names], device=x.device).expand(models)
    count = torch.full((models,), samples, device=x.device) if counted is None else counted.to(x.device, torch.int64)
    if count.shape != (models,) or (models and not 0 <= int(count.min()) <= int(count.max()) <= samples):
        raise ValueError(f"counted must be {models} numbers from 0 to {samples}")
    if (other is None) != (alphas is None):
        raise ValueError("give other and alphas, or neither")
    ends, points = None, None
    if other is not None and alphas is not None:
        ends = _checked_layers(x, *other)
        if [w.shape for w in ends.weights] != [w.shape for w in layers.weights]:
            raise ValueError("both ends of the segments must be populations of the same shapes")
        kind = torch.float64 if layers.weights[0].dtype == torch.float64 else torch.float32
        points = torch.as_tensor(alphas, dtype=torch.float64).to(x.device, kind)
    return Problem(x, rows.long(), layers, activation, count, squared, ends, points)


def _checked_layers(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Layers:
    """As tuples, where they are a network on x: one type, one device, widths that follow each other."""
    if not weights or len(weights) != len(biases):
        raise ValueError(f"weights and biases must be of the same layers, got {len(weights)} and {len(biases)}")
    models, inputs = len(weights[0]), x.shape[1]
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.dim() != 3 or weight.shape[::2] != (models, inputs) or bias.shape != weight.shape[:2]:
            raise ValueError(
                f"layer {number} must have weights ({models}, out, {inputs}) and biases ({models}, out), "
                f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        if weight.dtype not in TYPES or {weight.dtype, bias.dtype} != {weights[0].dtype}:
            raise ValueError(f"weights must be of one float type, got {weight.dtype} and {bias.dtype}")
        if weight.device != x.device or bias.device != x.device:
            raise ValueError(f"weights must be on {x.device} as the inputs, got {weight.device} and {bias.device}")
        inputs = weight.shape[1]
    return Layers(tuple(weight.detach() for weight in weights), tuple(bias.detach() for bias in biases))
