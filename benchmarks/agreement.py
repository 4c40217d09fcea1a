"""How far population training is from training one network after another: `python -m benchmarks.agreement`.

Mixed groups (batch sizes 8 to 128, other learning rates, decays, label noise, dropout, schedules and amounts of data)
take ten steps in float64, and so does each network alone: an nn.Module, torch.optim, whole batches, a plain loop.
Then, in float32, ten and fifty steps of compiled code and of the reference, both against the reference in float64.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import record
from catalog.errors import InvalidSpecError
from kernels.losses import LOSSES
from kernels.optimizers import OPTIMIZERS, Optimizer
from kernels.population import Dropout
from kernels.random import permutation, words
from zoo.batches import SITE
from zoo.datasets import Dataset
from zoo.implementations import IMPLEMENTATIONS
from zoo.initialization import initial_weights
from zoo.plan import Run, make_plan
from zoo.schedules import SCHEDULES
from zoo.shards import groups, one_thread
from zoo.spec import Range, ZooSpec
from zoo.train import noisy_labels, train

STEPS = 10
# Of AdamW. A gradient that is zero but for rounding (a bias in front of a norm, a unit hardly active) is divided
# by this: with 1e-8 any two orders of summation differ by 1e-9 and more after ten steps, also two of PyTorch.
EPSILON = 1e-4


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Largest differences over all runs of a case, absolute and relative to the largest entry of the run's vector.

    Args:
        gradient: of the first batch. weights: after five and ten steps, buffers included.
        shift: how far a run moved in ten steps, relative, the median: what the differences are to be seen against.
    """

    case: str
    runs: int
    groups: int
    gradient: float
    gradient_relative: float
    weights: float
    weights_relative: float
    shift: float


def case(name: str, family: str, cells: int, **numbers: object) -> ZooSpec:
    """A spec of mixed runs."""
    axes: dict[str, tuple[Any, ...] | Range] = {
        "batch_size": (8, 16, 32, 64, 128),
        "learning_rate": Range(1e-3, 1e-1, log=True),
        "label_noise": (0.0, 0.3),
        "dropout": (0.0, 0.4),
        "weight_decay": Range(1e-5, 1e-1, log=True),
        "data_fraction": (0.5, 1.0),
        "optimizer": ("sgd", "adamw"),
        "loss_function": tuple(LOSSES),
        "schedule": tuple(SCHEDULES),
        "momentum": (0.0, 0.9),
    }
    return ZooSpec(
        name,
        family,
        numbers,
        dataset_options={"test_samples": 400},
        hyperparameters={"epsilon": EPSILON},
        axes=axes,
        cells=cells,
    )


CASES = {
    "mlp": case("mlp", "mlp", 40, activation="tanh", width=16),
    "cnn": case("cnn", "cnn", 20, activation="relu"),
    "cnn with GroupNorm": case("cnn with GroupNorm", "cnn", 20, norm="group", activation="gelu"),
    "cnn with BatchNorm": case("cnn with BatchNorm", "cnn", 20, norm="batch", style="small_cnn_zoo", activation="silu"),
}


def compare(spec: ZooSpec, device: str = "cpu", impl: str = "reference") -> Agreement:
    """Train the runs of a spec for ten steps, as population and alone, in float64.

    The first gradients are those of the reference.
    """
    plan = make_plan(spec)
    runs = [_ten_steps(run) for variant in plan.runs.values() for run in variant]
    together = groups(runs)
    with one_thread():
        gradients = torch.cat([_first_gradients(group, plan.data, device) for group in together]).cpu()
        double: dict[str, Any] = {"device": device, "dtype": torch.float64, "impl": impl}
        weights = torch.cat([train(group, plan.data, **double).weights for group in together]).cpu()
        alone = [one_by_one(run, plan.data) for run in runs]
    true_gradients, true_weights = (torch.stack([pair[i] for pair in alone]) for i in (0, 1))
    by_gradient, by_weights = (gradients - true_gradients).abs(), (weights - true_weights).abs()
    start, end = true_weights[:, 0], true_weights[:, -1]
    return Agreement(
        spec.name,
        len(runs),
        len(together),
        float(by_gradient.max()),
        float((by_gradient.amax(1) / true_gradients.abs().amax(1)).max()),
        float(by_weights.max()),
        float((by_weights.amax((1, 2)) / true_weights.abs().amax((1, 2))).max()),
        float(((end - start).norm(dim=1) / start.norm(dim=1)).median()),
    )


def one_by_one(run: Run, data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """The first gradient (parameters,) and the checkpoints (checkpoints, size) of a run in a plain PyTorch loop."""
    key, layout, value = np.array([run.key], np.uint64), run.architecture.layout, run.values
    module = run.architecture.build().double().train()
    start = initial_weights(run.architecture, key, [value["initialization"]], np.array([value["initialization_gain"]]))
    module.load_state_dict(layout.unflatten(torch.from_numpy(start[0])))
    labels = torch.from_numpy(noisy_labels([run], data.train_y, data.num_classes)[0])
    inputs = torch.from_numpy(data.train_x).double()
    common: dict[str, Any] = {"lr": value["learning_rate"], "weight_decay": value["weight_decay"]}
    optimizer: torch.optim.Optimizer
    if value["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(module.parameters(), momentum=value["momentum"], **common)
    else:
        betas = value["momentum"], value["beta2"]
        optimizer = torch.optim.AdamW(module.parameters(), betas=betas, eps=value["epsilon"], **common)
    step = 0

    def drop(layer: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        assert isinstance(layer, Dropout)
        drawn = words(key, layer.site, step, np.arange(len(output)), count=output[0].numel())
        kept = torch.from_numpy(drawn >= np.ceil(value["dropout"] * 2**32)).double().view_as(output)
        return output * kept / (1 - value["dropout"])

    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.register_forward_hook(drop)
    total = np.array(run.epochs * run.updates)
    period, decay = np.array(value["schedule_period"]), np.array(value["schedule_decay"])
    kept, gradient = [layout.flatten(module.state_dict())], None
    for epoch in range(run.epochs):
        order = permutation(key, SITE, epoch, count=run.samples)[0]
        for batch in np.split(order[: run.updates * value["batch_size"]], run.updates):
            factor = float(SCHEDULES[value["schedule"]](np.array(step), total, period, decay))
            optimizer.param_groups[0]["lr"] = value["learning_rate"] * factor
            optimizer.zero_grad()
            LOSSES[value["loss_function"]](module(inputs[batch]), labels[batch]).mean().backward()
            if gradient is None:
                gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
            optimizer.step()
            step += 1
            if step in (STEPS // 2, STEPS):
                kept.append(layout.flatten(module.state_dict()).clone())
    assert gradient is not None
    return gradient, torch.stack(kept)


def single_precision(spec: ZooSpec) -> list[dict[str, Any]]:
    """Relative differences of float32 weights from those of the reference in float64, for both implementations."""
    plan = make_plan(spec)
    runs = [_ten_steps(run, epochs=10) for variant in plan.runs.values() for run in variant]

    def trained(impl: str, dtype: torch.dtype) -> torch.Tensor:
        parts = [train(group, plan.data, dtype=dtype, impl=impl).weights for group in groups(runs)]
        return torch.cat(parts)[:, 2:].double()

    with one_thread():
        truth = trained("reference", torch.float64)
        sides = {impl: (trained(impl, torch.float32) - truth).abs().amax(2) for impl in IMPLEMENTATIONS}
    scale = truth.abs().amax(2)
    return [
        {"case": spec.name, "steps": steps}
        | {
            impl: {"median": float(ratio.median()), "largest": float(ratio.max())}
            for impl, difference in sides.items()
            for ratio in (difference[:, at] / scale[:, at],)
        }
        for at, steps in enumerate((STEPS, 5 * STEPS))
    ]


def _ten_steps(run: Run, epochs: int = 2) -> Run:
    """The run, shortened to epochs of five steps; some data is left over in each."""
    batch = run.values["batch_size"]
    samples = 5 * batch + (3 if run.values["data_fraction"] == 1.0 else batch // 2)
    return dataclasses.replace(run, samples=samples, epochs=epochs, checkpoints=(0, 1, *sorted({2, epochs})))


def _first_gradients(group: Sequence[Run], data: Dataset, device: str) -> torch.Tensor:
    """Gradients of the first batch, (runs, parameters): what weights are under an optimiser that copies them once."""

    def copy_once(
        parameters: Tensor, gradients: Tensor, state: dict[str, Tensor], _hyper: Mapping[str, Tensor]
    ) -> None:
        state["steps"] += 1
        parameters.copy_(torch.where(state["steps"] == 1, gradients, parameters))

    with patch.dict(OPTIMIZERS, {group[0].values["optimizer"]: Optimizer(copy_once, (), ())}):
        weights = train(group, data, device=device, dtype=torch.float64, impl="reference").weights
    return weights[:, -1, : group[0].architecture.layout.num_parameters]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args(argv).device
    found, single = [], []
    for name, spec in CASES.items():
        found.append(compare(spec, device))
        if device == "cpu":
            try:
                found.append(dataclasses.replace(compare(spec, device, "compiled"), case=f"{name}, compiled"))
                single += single_precision(spec)
            except InvalidSpecError as error:  # no compiled code for some run of it
                print(f"{name}: {error}")
    for result in found:
        print(
            f"{result.case:28} {result.runs:3} runs in {result.groups} groups   first gradient {result.gradient:.1e}"
            f" ({result.gradient_relative:.1e} relative)   weights in {STEPS} steps {result.weights:.1e}"
            f" ({result.weights_relative:.1e} relative; they moved by {result.shift:.0%})"
        )
    for row in single:
        medians = ", ".join(
            f"{impl} {row[impl]['median']:.1e} (most {row[impl]['largest']:.1e})" for impl in IMPLEMENTATIONS
        )
        print(f"{row['case']}, float32, {row['steps']} steps: {medians}")
    accelerator = {"accelerator": torch.cuda.get_device_name()} if device.startswith("cuda") else {}
    results = [dataclasses.asdict(result) for result in found]
    record("agreement", {"results": results, "float32": single, **accelerator})


if __name__ == "__main__":
    main()
