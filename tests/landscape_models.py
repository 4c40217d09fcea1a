"""Small populations for the landscape metrics, and their exact Hessians."""

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from kernels.losses import LOSSES
from zoo.architectures import Architecture
from zoo.landscape.metric import Measured

MODELS, SAMPLES, CLASSES = 4, 16, 3
MLP = Architecture("mlp", {"depth": 1, "width": 4, "activation": "tanh"}, (5,), CLASSES)
LINEAR = Architecture("mlp", {"depth": 0}, (4,), CLASSES)
RELU = Architecture("mlp", {"depth": 2, "width": 4, "activation": "relu"}, (1, 2, 2), CLASSES)
CASES = [
    MLP,
    RELU,
    Architecture("cnn", {"channels": 2, "activation": "relu"}, (1, 8, 8), CLASSES),
    Architecture(
        "cnn", {"style": "small_cnn_zoo", "channels": 2, "norm": "group", "activation": "gelu"}, (1, 8, 8), CLASSES
    ),
    Architecture(
        "cnn", {"style": "small_cnn_zoo", "channels": 2, "norm": "batch", "activation": "tanh"}, (1, 8, 8), CLASSES
    ),
]


def population(architecture: Architecture, models: int = MODELS, scale: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, inputs and labels, float64."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(models, architecture.layout.size, dtype=torch.float64, generator=generator) * scale
    for name in architecture.layout.names:
        if name.endswith("running_var"):
            architecture.layout.tensor(weights, name).abs_().add_(0.5)
    x = torch.randn(SAMPLES, *architecture.input_shape, dtype=torch.float64, generator=generator)
    return weights, x, torch.randint(architecture.num_classes, (SAMPLES,), generator=generator)


def dense_hessians(
    architecture: Architecture, weights: Tensor, x: Tensor, y: Tensor, loss_function: str = "cross_entropy"
) -> Tensor:
    """(models, parameters, parameters): one module after the other, a row after the other."""
    module, count = architecture.build().double().eval(), architecture.layout.num_parameters

    def hessian(row: Tensor, labels: Tensor) -> Tensor:
        buffers = {name: value for name, value in architecture.layout.unflatten(row).items() if name not in trained}

        def loss(parameters: Tensor) -> Tensor:
            tensors = architecture.layout.unflatten(torch.cat([parameters, row[count:]]))
            logits = functional_call(module, {**tensors, **buffers}, (x,))
            return LOSSES[loss_function](logits, labels).mean()

        return torch.autograd.functional.hessian(loss, row[:count])

    trained = dict(module.named_parameters())
    rows = y if y.dim() == 2 else y.expand(len(weights), -1)
    return torch.stack([hessian(row, labels) for row, labels in zip(weights, rows, strict=True)])


def as_float32(weights: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return weights.float(), x.float(), y


def numbers(found: Measured, column: str) -> np.ndarray:
    """A column that holds numbers."""
    values = found.others[column]
    assert isinstance(values, np.ndarray)
    return values
