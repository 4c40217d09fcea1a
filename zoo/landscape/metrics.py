"""All metrics by name. Adding one is a function, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernels.curvature.trace import has_exact_trace
from zoo.architectures import Architecture
from zoo.landscape.averaging import averaging_gain, seed_averaging_gain
from zoo.landscape.connectivity import linear_barrier, mode_connectivity
from zoo.landscape.hessian import gradient_norm, hessian_top_eigenvalue, hessian_trace
from zoo.landscape.metric import Metric
from zoo.landscape.sharpness import sharpness
from zoo.landscape.similarity import cka_ptmz, cka_yang, disagreement, weight_distance
from zoo.landscape.spectrum import hessian_spectrum
from zoo.landscape.statistics import log_magnitude_entropy, stable_rank, weight_norm

CURVATURE = "loss / weight²"
POINTS = "percentage points"


def _passes_of_trace(settings: Mapping[str, Any], architecture: Architecture) -> float:
    """Exact traces go once through the network for each class, of convolutions sample by sample; others by probes."""
    if settings["method"] in ("auto", "exact") and has_exact_trace(architecture.build("meta")):
        return architecture.num_classes * (1 if architecture.family == "mlp" else 10)
    return float(settings["probes"])


METRICS: dict[str, Metric] = {
    "gradient_norm": Metric(gradient_norm, unit="loss / weight"),
    "hessian_trace": Metric(
        hessian_trace,
        columns=("hessian_trace_method",),
        unit=CURVATURE,
        passes=_passes_of_trace,
    ),
    "hessian_top_eigenvalue": Metric(
        hessian_top_eigenvalue,
        columns=("hessian_top_eigenvalue_residual", "hessian_top_eigenvalue_iterations", "hessian_lowest_ritz"),
        unit=CURVATURE,
        passes=lambda s, _: min(s["iterations"], 30),
    ),
    "hessian_spectrum": Metric(
        hessian_spectrum,
        columns=("hessian_spectrum_nodes", "hessian_spectrum_weights"),
        unit="negative share",
        passes=lambda s, _: 2 * s["probes"] * s["steps"],
    ),
    "sharpness": Metric(
        sharpness, columns=("sharpness_first_order",), unit="loss", passes=lambda s, _: 1.5 * s["steps"]
    ),
    "weight_norm": Metric(weight_norm, split=None),
    "stable_rank": Metric(stable_rank, split=None),
    "log_magnitude_entropy": Metric(
        log_magnitude_entropy, split=None, columns=("log_magnitude_entropy_zeros",), unit="nats"
    ),
    "cka_yang": Metric(cka_yang, needs="partner", labels="clean"),
    "cka_ptmz": Metric(cka_ptmz, needs="partner", split="test", labels="clean"),
    "mode_connectivity": Metric(
        mode_connectivity,
        needs="partner",
        labels="clean",
        columns=("mc_peak", "mc_t", "mc_interior", "mc_errors", "mc_losses"),
        unit=POINTS,
        passes=lambda s, _: 1.4 * s["epochs"] + s["points"],
    ),
    "linear_barrier": Metric(
        linear_barrier,
        needs="partner",
        labels="clean",
        columns=("linear_barrier_t", "linear_barrier_loss", "linear_barrier_errors"),
        unit=POINTS,
        passes=lambda s, _: s["points"] / 2,
    ),
    "weight_distance": Metric(
        weight_distance, needs="partner", split=None, labels="clean", columns=("weight_distance_relative",)
    ),
    "disagreement": Metric(
        disagreement, needs="partner", split="test", labels="clean", columns=("disagreement_normalised",), unit="share"
    ),
    "averaging_gain": Metric(
        averaging_gain,
        needs="history",
        split="test",
        labels="clean",
        columns=("averaging_gain_accuracy", "averaging_gain_count"),
        unit=POINTS,
    ),
    "seed_averaging_gain": Metric(
        seed_averaging_gain,
        needs="cell",
        split="test",
        labels="clean",
        columns=("seed_averaging_gain_accuracy", "seed_averaging_gain_count"),
        unit=POINTS,
    ),
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
