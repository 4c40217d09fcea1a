"""Stacked optimisers against torch.optim, one model at a time, and turns."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.optimizers import OPTIMIZERS

MODELS, SIZE, STEPS = 5, 17, 20


def hyperparameters(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    columns = {
        "learning_rate": [0.1, 0.01, 1e-3, 0.5, 0.05],
        "momentum": [0.9, 0.0, 0.5, 0.99, 0.8],
        "beta2": [0.999, 0.9, 0.0, 0.99, 0.95],
        "epsilon": [1e-8, 1e-3, 1e-6, 1e-8, 1e-1],
        "weight_decay": [0.0, 0.1, 1e-3, 0.01, 1.0],
    }
    return {name: torch.tensor(values, dtype=dtype)[:, None] for name, values in columns.items()}


def by_torch(name: str, start: Tensor, gradients: Tensor, hyper: dict[str, Tensor]) -> Tensor:
    """One model, by torch.optim. (size,), (steps, size) -> (size,)."""
    value = {key: float(column) for key, column in hyper.items()}
    parameter = torch.nn.Parameter(start.clone())
    common: dict[str, Any] = {"lr": value["learning_rate"], "weight_decay": value["weight_decay"]}
    optimizer: torch.optim.Optimizer
    if name == "sgd":
        optimizer = torch.optim.SGD([parameter], momentum=value["momentum"], **common)
    else:
        betas = value["momentum"], value["beta2"]
        optimizer = torch.optim.AdamW([parameter], betas=betas, eps=value["epsilon"], **common)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_model_moves_as_with_torch(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(MODELS, SIZE, dtype=torch.float64, generator=generator)
    gradients = torch.randn(STEPS, MODELS, SIZE, dtype=torch.float64, generator=generator)
    hyper = hyperparameters()
    parameters = start.clone()
    state = OPTIMIZERS[name].start(parameters)
    for gradient in gradients:
        OPTIMIZERS[name].step(parameters, gradient, state, hyper)
    expected = [by_torch(name, start[m], gradients[:, m], {k: v[m] for k, v in hyper.items()}) for m in range(MODELS)]
    torch.testing.assert_close(parameters, torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_turn_moves_some_and_leaves_the_others_to_the_bit(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    parameters = torch.randn(MODELS, SIZE, generator=generator)
    hyper, optimizer = hyperparameters(torch.float32), OPTIMIZERS[name]
    state = optimizer.start(parameters)
    alone = parameters.clone()
    alone_state = optimizer.start(alone)
    turn = torch.tensor([True, False, True, False, True])
    for number in range(6):
        gradients = torch.randn(MODELS, SIZE, generator=generator)
        if number % 2:  # the gradients of those that wait must not be looked at
            before, before_state = parameters.clone(), {k: v.clone() for k, v in state.items()}
            gradients[~turn] = torch.nan
            optimizer.step(parameters, gradients, state, hyper, turn)
            assert torch.equal(parameters[~turn], before[~turn])
            assert all(torch.equal(state[k][~turn], before_state[k][~turn]) for k in state)
        else:
            optimizer.step(parameters, gradients, state, hyper)
        optimizer.step(alone, gradients, alone_state, hyper)
    torch.testing.assert_close(parameters[turn], alone[turn], rtol=1e-6, atol=1e-7)  # float32, another vector length
    assert torch.equal(state["steps"][:, 0], torch.tensor([6.0, 3.0, 6.0, 3.0, 6.0]))
