"""All metrics by name. Adding one is a function and a line here."""

from __future__ import annotations

from typing import Any

import torch

from zoo.architectures import Architecture
from zoo.landscape.metric import Measured, Metric


def gradient_norm(
    architecture: Architecture, weights: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *, loss_function: str
) -> Measured:
    from kernels.curvature.surface import surface

    g = surface(architecture.build("meta"), weights, x, y, loss_function=loss_function).gradients()
    value = g.double().norm(dim=1).cpu().numpy()
    return Measured(value, 0 * value)


def weight_distance(
    architecture: Architecture, weights: torch.Tensor, partner: torch.Tensor, x: None, y: None
) -> Measured:
    value = (weights - partner).double().norm(dim=1).cpu().numpy()
    return Measured(value, 0 * value)


METRICS: dict[str, Metric] = {
    "gradient_norm": Metric(gradient_norm),
    "weight_distance": Metric(weight_distance, needs="partner", split=None),
}


def known() -> list[dict[str, Any]]:
    """Every metric with its columns, what it needs, its unit and its settings; JSON-ready."""
    return [
        {
            "metric": name,
            "columns": [name, f"{name}_se", *metric.columns],
            "needs": metric.needs,
            "unit": metric.unit,
            "settings": metric.settings,
        }
        for name, metric in METRICS.items()
    ]
