"""Dense networks on the same inputs, a whole population at once: the operation and its definition in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.arrays import parts
from kernels.dispatch import checked_name, on_gpu
from kernels.forward.problem import ACTIVATIONS, Layers, Problem, checked
from kernels.losses import LOSSES
from kernels.mlp.network import UnsupportedError
from kernels.similarity.similarity import highest

TOGETHER = 1 << 21  # activations that the reference holds at once, on a CPU; sixteen times as many on a GPU


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
        ValueError: what does not fit each other. UnsupportedError: "triton" for networks that its program cannot hold.
    """
    checked_name(impl, x, ("reference", "triton"))
    problem = checked(x, y, weights, biases, activation, loss, other, alphas, counted)
    if impl == "triton" or (impl is None and on_gpu(x)):
        from kernels.forward.triton_forward import forward_triton, unfit

        reason = unfit(problem)
        if not reason:
            return forward_triton(problem, logits)
        if impl == "triton":
            raise UnsupportedError(f"impl='triton' cannot do this: {reason}; use impl='reference'")
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
