"""How a flow is trained: a complete frozen record, and the named ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from catalog.errors import InvalidSpecError, unknown_name

CHOICES: dict[str, tuple[str, ...]] = {
    "codec": ("identity", "pca"),
    "scaling": ("none", "global", "tensor", "coordinate"),
    "path": ("linear", "variance_preserving"),
    "coupling": ("independent", "optimal_transport"),
    "times": ("uniform", "beta"),
    "source": ("fixed", "matched", "gaussian"),
    "network": ("mlp", "residual", "transformer", "units"),
    "schedule": ("cosine", "constant"),
    "solver": ("euler", "midpoint", "rk4", "adaptive"),
    "select": ("best", "last"),
}


@dataclass(frozen=True)
class FlowRecipe:
    """A flow-matching generator.

    Args:
        codec: "identity", or "pca" with so many `components`; 0 chooses them by the held-out lineages.
        scaling: what weights are divided by before: "none", "global" (one number), "tensor", "coordinate"; all but
            "none" also subtract the mean of the training split.
        path: "linear" (x_t = (1-t) x_0 + t x_1) or "variance_preserving" (sine and cosine); `noise` is the deviation
            of what is added to x_t.
        coupling: of noise and data within a batch, "independent" or "optimal_transport".
        times: t is "uniform", or "beta" with (`alpha`, `beta`).
        source: deviation of the noise, "fixed" to `source_scale`; "matched": `source_scale` times the spread of the
            training codes, coordinate by coordinate; or "gaussian": noise with their whole covariance, and a velocity
            that begins at that of the Gaussian, so that training starts from that baseline.
        temperature: what the noise is multiplied by when samples are drawn.
        pool: so many noise vectors drawn once and used again; 0 draws new ones at each step.
        network: "mlp" (DeepWeightFlow's), "residual", "transformer" over layer tokens or "units" over hidden
            units, of this `width`; `depth` blocks (not for mlp), `heads` of a transformer, `token` numbers in a layer
            token. dropout: in the network.
        conditions: columns of the rows. condition_dropout: how often they are left out in training, so that guidance
            and unconditional sampling work. guidance: 1 is the conditional velocity, 0 the unconditional, more
            exaggerates.
        learning_rate, final_rate, schedule, beta1, beta2, weight_decay, warmup, clip: of AdamW; clip 0 for none.
        batch_size, iterations: iterations are optimiser steps. ema: decay of the averaged weights that sample; 0: none.
        solver, steps: how samples are integrated; steps of the fixed solvers, tolerance of "adaptive".
        judge_every: iterations between two looks of the watchdogs; 0 for ten looks in all. select: the network of the
            "best" look (most samples that work and are new, see `generators.flow.watchdogs`) or the "last" iteration.
    """

    codec: str = "identity"
    components: int = 0
    scaling: str = "global"
    path: str = "linear"
    noise: float = 0.0
    coupling: str = "independent"
    times: str = "uniform"
    alpha: float = 2.0
    beta: float = 5.0
    source: str = "fixed"
    source_scale: float = 1.0
    temperature: float = 1.0
    pool: int = 0
    network: str = "residual"
    width: int = 512
    depth: int = 3
    heads: int = 4
    token: int = 128
    dropout: float = 0.0
    conditions: tuple[str, ...] = ()
    condition_dropout: float = 0.1
    guidance: float = 1.0
    learning_rate: float = 1e-3
    final_rate: float = 1e-6
    schedule: str = "cosine"
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 1e-5
    warmup: int = 0
    clip: float = 1.0
    batch_size: int = 128
    iterations: int = 5000
    ema: float = 0.999
    solver: str = "midpoint"
    steps: int = 32
    tolerance: float = 1e-4
    judge_every: int = 0
    select: str = "best"

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", tuple(self.conditions))
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        for name, (low, high) in BOUNDS.items():
            value, whole = getattr(self, name), isinstance(DEFAULTS[name], int)
            good = type(value) is int if whole else isinstance(value, int | float) and not isinstance(value, bool)
            if not good or not low <= value <= high:
                kind = "an integer" if whole else "a number"
                raise InvalidSpecError(f"{name} of a flow must be {kind} from {low:g} to {high:g}, got {value!r}")
        if not all(isinstance(name, str) for name in self.conditions):
            raise InvalidSpecError(f"conditions must be names of columns, got {self.conditions!r}")
        tokens = self.network in ("transformer", "units")
        if tokens and self.codec != "identity":
            raise InvalidSpecError(f"{self.network} works on the tokens of networks: it takes codec='identity'")
        if self.source == "gaussian" and self.pool:
            raise InvalidSpecError("a pool of noise is for the sources fixed and matched; take pool=0 with gaussian")
        if tokens and self.width % self.heads:
            raise InvalidSpecError(f"width {self.width} of a transformer must be a multiple of its {self.heads} heads")

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "conditions": list(self.conditions)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FlowRecipe:
        """Raises UnknownNameError for a setting that there is not, InvalidSpecError for a value that is none."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in content:
            if name not in known:
                raise unknown_name("setting of a flow", name, known)
        given = dict(content)
        if isinstance(given.get("conditions"), str):
            given["conditions"] = tuple(part.strip() for part in given["conditions"].split(",") if part.strip())
        return cls(**given)


SEEDS = 1 << 48  # those above are for looks during training
DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(FlowRecipe)}
BOUNDS: dict[str, tuple[float, float]] = {
    "components": (0, 2**20),
    "noise": (0, 100),
    "alpha": (1e-3, 1e3),
    "beta": (1e-3, 1e3),
    "source_scale": (1e-9, 1e6),
    "temperature": (0, 100),
    "pool": (0, 2**24),
    "width": (4, 2**16),
    "depth": (1, 256),
    "heads": (1, 256),
    "token": (1, 2**20),
    "dropout": (0, 0.95),
    "condition_dropout": (0, 1),
    "guidance": (0, 100),
    "learning_rate": (1e-9, 10),
    "final_rate": (0, 10),
    "beta1": (0, 0.99999),
    "beta2": (0, 0.99999),
    "weight_decay": (0, 100),
    "warmup": (0, 10**8),
    "clip": (0, 1e9),
    "batch_size": (1, 2**20),
    "iterations": (1, 10**8),
    "ema": (0, 0.9999999),
    "steps": (1, 10**5),
    "tolerance": (1e-12, 1),
    "judge_every": (0, 10**8),
}


def deepweightflow() -> FlowRecipe:
    """The published one: arXiv 2601.05052, for MLPs and small ResNets; d_h (`width`) is 64 to 512 there.

    Source N(0, .01^2) from a fixed array (pool: 100 vectors, as many as the zoos there have models), MLP velocity
    network with dropout .1, x_t with noise .001, AdamW, batches of 8, 30,000 iterations, 99 steps of RK4.
    """
    return FlowRecipe(
        codec="identity",
        scaling="none",
        path="linear",
        noise=0.001,
        source="fixed",
        source_scale=0.01,
        pool=100,
        network="mlp",
        width=512,
        dropout=0.1,
        learning_rate=5e-4,
        final_rate=1e-6,
        schedule="cosine",
        beta1=0.9,
        beta2=0.95,
        weight_decay=1e-5,
        clip=0.0,
        batch_size=8,
        iterations=30_000,
        ema=0.0,
        solver="rk4",
        steps=99,
        select="last",
    )


def weightscape() -> FlowRecipe:
    """Ours: from noise with the covariance of the zoo, which alone is a Gaussian baseline, by a network over units.

    For an aligned frame: units have places of their own. The temperature makes up for what a trained network takes from
    the spread: at 1 samples deviate .905 of what 15,360 MLPs 64-16-10 do from their mean; on validation data more were
    novel and performant the higher it was, up to 1.3 (`python -m benchmarks.flows prize`, November 2026).
    """
    return FlowRecipe(
        scaling="coordinate",
        source="gaussian",
        temperature=1.15,
        network="units",
        width=96,
        depth=3,
        learning_rate=2e-3,
        batch_size=128,
        iterations=3000,
        warmup=200,
        steps=24,
    )


RECIPES: dict[str, Callable[[], FlowRecipe]] = {"deepweightflow": deepweightflow, "weightscape": weightscape}


def recipe_of(preset: str | None, settings: Mapping[str, Any]) -> FlowRecipe:
    """A named recipe, "weightscape" without a name, with some fields replaced.

    Raises:
        UnknownNameError: no such recipe or setting. InvalidSpecError: a value that is none.
    """
    name = preset or "weightscape"
    if name not in RECIPES:
        raise unknown_name("preset of a flow", name, RECIPES)
    return FlowRecipe.from_json({**RECIPES[name]().to_json(), **settings})


def flow_settings(recipe: FlowRecipe, seed: int) -> dict[str, Any]:
    """What is stored as the settings of a generator: all fields and the seed.

    Raises:
        InvalidSpecError: a seed that is none.
    """
    if type(seed) is not int or not 0 <= seed < SEEDS:
        raise InvalidSpecError(f"seed must be an integer from 0 and below {SEEDS}, got {seed!r}")
    return {**recipe.to_json(), "seed": seed}
