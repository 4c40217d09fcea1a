"""What training minimises, sample by sample: the reference in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of the softmax, in nats, (samples,), from logits (samples, classes) and labels (samples,) int64."""
    return F.cross_entropy(logits, labels, reduction="none")


def mse(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes of the squared difference between outputs and the one-hot label, (samples,).

    Source: Hui and Belkin 2021, "Evaluation of neural architectures trained with square loss vs cross-entropy in
    classification tasks", section 2, without their rescaling.
    """
    return (logits - F.one_hot(labels, logits.shape[-1]).to(logits.dtype)).square().mean(-1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": cross_entropy, "mse": mse}
