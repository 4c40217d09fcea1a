"""Whether long runs end alike, compiled and by the reference: `python -m benchmarks.distributions`.

Rounding makes two implementations drift apart, so that after some hundred steps single runs differ; what must not
differ is the distribution of the results. Compared are test accuracy and loss of

* the reference and compiled runs with the same seeds, pair by pair: a bias shows even where it is small;
* the reference and compiled runs with other seeds: two independent samples, as the tests want them;
* the reference and compiled runs whose learning rate is a tenth larger: these must be told apart, or tests are blind.

A third of the labels is wrong and learnt by heart, which makes results depend on the learning rate.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.record import record
from catalog.errors import InvalidSpecError
from zoo.evaluate import evaluate
from zoo.plan import make_plan
from zoo.shards import groups, one_thread
from zoo.spec import ZooSpec
from zoo.train import train

RESAMPLES = 9999
LEVEL = 0.05
CHANGED = 1.1  # learning rate of the control, relative


@dataclasses.dataclass(frozen=True)
class Long:
    """A cell that is trained with many seeds."""

    spec: ZooSpec
    runs: int


MLP = ZooSpec(
    "mlp 64-32-32-10",
    numbers={"depth": 2, "width": 32, "activation": "relu"},
    hyperparameters={"epochs": 60, "learning_rate": 0.02, "label_noise": 0.3},
)
CNN = ZooSpec(
    "cnn model_zoo, 8 channels, 8x8",
    "cnn",
    {"style": "model_zoo", "channels": 8},
    hyperparameters={"epochs": 15, "learning_rate": 0.02, "label_noise": 0.3},
)
LONG = {"mlp": Long(MLP, 1000), "cnn": Long(CNN, 1000)}


def results(spec: ZooSpec, seeds: range, impl: str) -> dict[str, np.ndarray]:
    """Test accuracy and loss (runs,) at the end of training; diverged runs are an error."""
    plan = make_plan(dataclasses.replace(spec, seeds=tuple(seeds)))
    (runs,) = plan.runs.values()
    x, y = torch.from_numpy(plan.data.test_x), torch.from_numpy(plan.data.test_y)
    with one_thread():
        trained = [train(group, plan.data, impl=impl) for group in groups(runs)]
        if any(reason for group in trained for reason in group.diverged):
            raise ValueError(f"runs of {spec.name} diverged; the comparison needs a smaller learning rate")
        weights = torch.cat([group.weights[:, -1] for group in trained])
        found = evaluate(runs[0].architecture, weights, x, y)
    return {"accuracy": found.accuracy, "loss": found.loss}


def independent(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Two-sample tests: Kolmogorov-Smirnov, and of the means by permutation; effect size with a 95 % interval.

    The effect is Cohen's d, (mean b - mean a) / pooled standard deviation; its standard error is that of Hedges and
    Olkin 1985 (Statistical Methods for Meta-Analysis, chapter 5, equation 14).
    """
    effect, error = effect_size(a, b)
    means = stats.permutation_test(
        (a, b),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=500,
        rng=np.random.default_rng(0),
    )
    found = {
        "ks_p": stats.ks_2samp(a, b).pvalue,
        "means_p": means.pvalue,
        "effect": effect,
        "effect_low": effect - 1.96 * error,
        "effect_high": effect + 1.96 * error,
    }
    return {name: _digits(value) for name, value in found.items()}


def effect_size(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Cohen's d of b against a, and its standard error."""
    n, m = len(a), len(b)
    pooled = math.sqrt(((n - 1) * a.var(ddof=1) + (m - 1) * b.var(ddof=1)) / (n + m - 2))
    effect = float((b.mean() - a.mean()) / pooled)
    return effect, math.sqrt((n + m) / (n * m) + effect**2 / (2 * (n + m)))


def paired(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """The mean of b - a with a 95 % interval, its p-value when signs are flipped at random, and how the runs drift."""
    difference = b - a
    flipped = stats.permutation_test(
        (difference,),
        lambda x, axis: x.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=500,
        rng=np.random.default_rng(0),
    )
    half = stats.t.ppf(0.975, len(a) - 1) * difference.std(ddof=1) / math.sqrt(len(a))
    found = {
        "mean_difference": difference.mean(),
        "low": difference.mean() - half,
        "high": difference.mean() + half,
        "p": flipped.pvalue,
        "equal": (difference == 0).mean(),
        "correlation": np.corrcoef(a, b)[0, 1],
    }
    return {name: _digits(value) for name, value in found.items()}


def distributions(spec: ZooSpec, runs: int) -> dict[str, Any]:
    """All comparisons of one cell, a row."""
    results(spec, range(1), "compiled")  # whether compiled code can, before the long part
    changed = {**spec.hyperparameters, "learning_rate": spec.value("learning_rate") * CHANGED}
    reference = results(spec, range(runs), "reference")
    same = results(spec, range(runs), "compiled")
    other = results(spec, range(runs, 2 * runs), "compiled")
    control = results(dataclasses.replace(spec, hyperparameters=changed), range(2 * runs, 3 * runs), "compiled")
    found: dict[str, Any] = {}
    for name, values in reference.items():
        found[name] = {
            "mean": _digits(values.mean()),
            "deviation": _digits(values.std(ddof=1)),
            "paired": paired(values, same[name]),
            "independent": independent(values, other[name]),
            "control": independent(values, control[name]),
        }
    return found


def verdict(found: Mapping[str, Any]) -> tuple[str, bool]:
    """A sentence, and whether the tests tell the control apart and the implementations not.

    The level is shared out among the tests (Bonferroni): four must find nothing, and of the four of the control one
    something.
    """
    level = LEVEL / 4
    tests = [found[name]["independent"][test] for name in ("accuracy", "loss") for test in ("ks_p", "means_p")]
    controls = [found[name]["control"][test] for name in ("accuracy", "loss") for test in ("ks_p", "means_p")]
    effect = found["accuracy"]["independent"]
    text = (
        f"accuracy: KS p = {effect['ks_p']:.2f}, means p = {effect['means_p']:.2f},"
        f" effect {effect['effect']:.2f} [{effect['effect_low']:.2f}, {effect['effect_high']:.2f}];"
        f" control p = {min(controls):.1e}"
    )
    return text, min(tests) > level and min(controls) < level


def _digits(value: float) -> float:
    return float(f"{float(value):.4g}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 1 when the distributions differ or the tests are blind."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributions", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(LONG)}; all when left out")
    parser.add_argument("--runs", type=int, help="seeds on each side")
    given = parser.parse_args(argv)
    if unknown := set(given.names) - set(LONG):
        parser.error(f"unknown population {min(unknown)!r}; known: {', '.join(LONG)}")
    good = True
    for name in given.names or LONG:
        spec, runs = LONG[name].spec, given.runs or LONG[name].runs
        try:
            found = distributions(spec, runs)
        except InvalidSpecError as error:
            print(f"{name}: left out: {error}")
            continue
        text, fine = verdict(found)
        good = good and fine
        record(
            "agreement",
            {
                "operation": f"long runs of {spec.name}",
                "setting": {"runs": runs, "epochs": spec.value("epochs"), "learning_rate": spec.value("learning_rate")},
                "ours": text,
                "against": "the reference, other seeds",
                "agree": fine,
                "detectable_effect": _digits(2.8 * math.sqrt(2 / runs)),  # two-sided 5 %, power 80 %
                "control": f"learning rate x {CHANGED:g}",
                **found,
            },
        )
    return int(not good)


if __name__ == "__main__":
    raise SystemExit(main())
