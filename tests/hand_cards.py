"""A generator card by hand, whose numbers tests choose: no network was trained for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from generators.evaluation.card import (
    About,
    Card,
    CodecReport,
    Cost,
    Diversity,
    Fidelity,
    FineTuned,
    Protocol,
    Row,
    Shares,
    Spread,
    histogram,
)

CODEC = CodecReport(0.974, 0.973, 0.1, 0.97, 0.97)
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 2.0, 3.0, 4.0, 6.0)
BASELINES = {  # accuracy, quotient ratio, error-IoU; as on the digits zoo of the methods page
    "noise_small": (0.973, 0.03, 0.85),
    "noise_large": (0.957, 0.13, 0.48),
    "gaussian": (0.42, 0.95, 0.05),
    "pca_gaussian": (0.55, 0.8, 0.06),
    "mix": (0.90, 0.25, 0.38),
    "soup": (0.69, 0.72, 0.10),
    "retrieval": (0.974, 0.0, 1.0),
    "random": (0.10, 1.6, 0.03),
}


def values(centre: float, width: float, count: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Evenly spread over quantiles of a bell around a centre."""
    bell = NormalDist(centre, max(width, 1e-9))
    return np.clip([bell.inv_cdf((place + 0.5) / count) for place in range(count)], low, high)


def shares(ratios: np.ndarray, good: np.ndarray) -> Shares:
    found = [float(np.mean((ratios >= m) & good)) for m in MULTIPLES]
    return Shares(tuple(found), tuple(math.sqrt(p * (1 - p) / len(ratios)) for p in found))


def row(
    name: str,
    accuracy: float = 0.9,
    ratio: float = 0.5,
    iou: float = 0.2,
    *,
    frame: str | None = None,
    count: int = 1024,
    alpha: float = 0.896,
    **changes: Any,
) -> Row:
    """Samples around these numbers."""
    accuracies = values(accuracy, 0.02 + 0.1 * accuracy * (1 - accuracy), count)
    ratios = values(ratio, 0.08 * ratio, count, high=9)
    np.random.default_rng(len(name)).shuffle(ratios)
    ious = values(iou, 0.1 * iou, count)
    curve = shares(ratios, accuracies >= alpha)
    points = tuple((float(a), float(b)) for a, b in zip(ratios[::4], accuracies[::4], strict=True))
    made = Row(
        name=name,
        frame=frame,
        fingerprint=f"{name}/{frame}",
        count=count,
        accuracy=Spread.of(accuracies),
        loss=Spread.of(1 - accuracies),
        raw=Spread.of(1.2 * ratios),
        quotient=Spread.of(ratios),
        error_iou=Spread.of(ious),
        disagreement=Spread.of(1 - accuracies),
        rms=0.9,
        broken=0.0,
        novel_raw=curve,
        novel_quotient=curve,
        diversity=Diversity(0.9, 0.2, 0.05, 0.01),
        accuracies=histogram(accuracies),
        ious=histogram(ious),
        points=points,
        seconds=1e-4,
    )
    return dataclasses.replace(made, **changes)


def card(
    mine: Row | None = None,
    baselines: Sequence[Row] | None = None,
    *,
    fidelity: Sequence[Fidelity] = (),
    finetuned: Sequence[FineTuned] | None = None,
    codec: CodecReport | None = CODEC,
    settings: Mapping[str, Any] | None = None,
    frame: str | None = "universe",
) -> Card:
    """A card of a flow, no verdicts in it."""
    mine = mine or row("flow", frame=frame)
    others = [row(n, *about, frame=one) for n, about in BASELINES.items() for one in dict.fromkeys((None, frame))]
    epochs = (0, 1, 5, 25)
    curves = {
        "samples": (0.85, 0.94, 0.965, 0.972),
        "nearest": (0.974, 0.974, 0.974, 0.974),
        "soup": (0.69, 0.93, 0.96, 0.972),
        "random": (0.1, 0.85, 0.93, 0.965),
    }
    trained = [FineTuned(name, 32, epochs, found, (0.004,) * 4) for name, found in curves.items()]
    about = About(
        kind="flow",
        settings=dict(settings or {"preset": "weightscape", "iterations": 5000}),
        fingerprint=mine.fingerprint,
        zoo="digits 64-32-32-10",
        url="digits.zoo",
        digest="0" * 64,
        variant="mlp-64-32-32-10",
        architecture="mlp 64-32-32-10",
        parameters=3466,
        population="0123456789abcdef",
        frame=frame,
        lineages={"train": 80, "validation": 10, "test": 10},
        conditions=tuple(one.column for one in fidelity),
    )
    protocol = Protocol(
        samples=mine.count,
        seed=0,
        alpha=0.896,
        tau_raw={"raw": 12.3, "universe": 9.1},
        tau_quotient=7.2,
        candidates=8,
        multiples=MULTIPLES,
        data="test",
        inputs=360,
        batch_norm=False,
        notes=("quotient distances are upper bounds",),
    )
    return Card(
        generator=about,
        protocol=protocol,
        samples=mine,
        held_out=row("held out", 0.974, 1.01, 0.21, count=10),
        training=row("training", 0.974, 1.0, 0.2, count=80),
        baselines=tuple(others if baselines is None else baselines),
        finetuned=tuple(trained if finetuned is None else finetuned),
        fidelity=tuple(fidelity),
        codec=codec,
        cost=Cost(0.001, 120.0, 2e9, 1.4e6, 0.2, 603.0),
        health={"norm_ratio": 0.98},
        seconds={"distances": 20.0},
    )
