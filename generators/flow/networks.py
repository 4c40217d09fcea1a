"""Networks that give the velocity of a flow: (x, t, condition) -> dx/dt."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from catalog.errors import InvalidSpecError, unknown_name
from generators.flow.embedding import Embedding, given, zeroed
from generators.flow.paths import PATHS, Path
from generators.recipe import FlowRecipe
from weightspace.layout import Layout
from weightspace.symmetry import Symmetry

TIME = 64  # width of the embedding of time in DeepWeightFlow
EMBEDDED = 128  # and in ours: modulation costs a fraction of the blocks
GATES = 8  # functions of time and condition that the skip from the input is made of


class MLP(nn.Module):
    """Velocity network of DeepWeightFlow, arXiv 2601.05052: h -> h/2 -> h, the last layer zero at first.

    e = Linear-GELU-Linear(t), 1 -> 64 -> 64; [x, e] -> h -> h/2 -> h -> dim, each hidden one with LayerNorm and GELU,
    dropout on the first two. Differs: a condition is a vector beside e; there it is the class number as one scalar.
    """

    def __init__(self, dim: int, width: int, condition_width: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.condition_width = condition_width
        self.time = nn.Sequential(nn.Linear(1, TIME), nn.GELU(), nn.Linear(TIME, TIME))
        # one layer in two parts: the gradient with respect to x, a sixth of a step's work, is then left out
        self.first = nn.Linear(dim, width)
        self.beside = nn.Linear(TIME + condition_width, width, bias=False)
        bound = 1 / math.sqrt(dim + TIME + condition_width)
        for part in (self.first.weight, self.first.bias, self.beside.weight):
            nn.init.uniform_(part, -bound, bound)
        self.layers = nn.Sequential(
            *_hidden(width, dropout),
            nn.Linear(width, width // 2),
            *_hidden(width // 2, dropout),
            nn.Linear(width // 2, width),
            *_hidden(width, 0.0),
            zeroed(nn.Linear(width, dim)),
        )

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        beside = self.time(t[:, None])
        if self.condition_width:
            beside = torch.cat((beside, given(condition, t, self.condition_width)), 1)
        out: Tensor = self.layers(self.first(x) + self.beside(beside))
        return out


def _hidden(width: int, dropout: float) -> list[nn.Module]:
    """What follows a hidden layer."""
    layers: list[nn.Module] = [nn.LayerNorm(width), nn.GELU()]
    return [*layers, nn.Dropout(dropout)] if dropout else layers


class Residual(nn.Module):
    """Residual velocity network: linear in, `depth` blocks modulated by time and condition, linear out, and a skip.

    velocity = out(blocks(in(x))) + gate(t, condition) * x, zero at first. Without the skip a network narrower than x
    cannot take the noise out of the directions it does not carry: its velocity has the rank of its last layer, and
    what noise lies beside stays in the samples. Of 600 coordinates, 20 with structure and noise of deviation .55 in the
    others, from a source of deviation 1, 800 steps of width 64 give .58 with the skip, .99 without it and 1.00 by `MLP`
    (256 wide: .55, .88, 1.00); predicting the data in place of the velocity gains nothing beyond the skip. Each
    coordinate's gate is a mix of 8 functions of time and condition.
    """

    def __init__(self, dim: int, width: int, depth: int, condition_width: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = Embedding(EMBEDDED, condition_width)
        self.first = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = zeroed(nn.Linear(width, dim))
        self.gate = nn.Linear(EMBEDDED, GATES)
        self.mix = zeroed(nn.Linear(GATES, dim))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        e = self.embedding(t, condition)
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden, e)
        out: Tensor = torch.addcmul(self.last(self.norm(hidden)), self.mix(self.gate(e)), x)
        return out


class Block(nn.Module):
    """x + gate * MLP(scale * LayerNorm(x) + shift): the feed-forward half of a DiT block with adaLN-Zero.

    Source: Peebles and Xie 2023, "Scalable diffusion models with transformers", arXiv 2212.09748, section 3.2. Differs:
        the hidden layer is as wide as the stream, which on a CPU buys more depth; the block is the identity at first.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.modulation = zeroed(nn.Linear(EMBEDDED, 3 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.layers = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(e).chunk(3, 1)
        inside = torch.addcmul(shift, self.norm(x), 1 + scale)
        return torch.addcmul(x, gate, self.layers(inside))


def _mlp(recipe: FlowRecipe, dim: int, condition_width: int, layout: Layout | None) -> nn.Module:
    return MLP(dim, recipe.width, condition_width, recipe.dropout)


def _residual(recipe: FlowRecipe, dim: int, condition_width: int, layout: Layout | None) -> nn.Module:
    return Residual(dim, recipe.width, recipe.depth, condition_width, recipe.dropout)


def _transformer(recipe: FlowRecipe, dim: int, condition_width: int, layout: Layout | None) -> nn.Module:
    from generators.flow.transformer import LayerTransformer
    from weightspace.tokens import Tokens

    if layout is None or layout.num_parameters != dim:
        known = "none" if layout is None else f"one of {layout.num_parameters} parameters"
        raise InvalidSpecError(f"a transformer over {dim} weights needs the layout they have, got {known}")
    tokens = Tokens.of(layout, recipe.token)
    return LayerTransformer(tokens, recipe.width, recipe.depth, recipe.heads, condition_width, recipe.dropout)


def _units(recipe: FlowRecipe, dim: int, condition_width: int, symmetry: Symmetry | None) -> nn.Module:
    from generators.flow.units import UnitTransformer
    from weightspace.units import Units

    if symmetry is None or symmetry.layout.num_parameters != dim:
        known = "none" if symmetry is None else f"one of {symmetry.layout.num_parameters} parameters"
        raise InvalidSpecError(f"a network over the units of {dim} weights needs their symmetry, got {known}")
    units = Units.of(symmetry)
    return UnitTransformer(units, recipe.width, recipe.depth, recipe.heads, condition_width, recipe.dropout)


class Preconditioned(nn.Module):
    """The velocity between two Gaussians of equal covariance, in closed form, and what a network adds to it.

    For x_0 ~ N(0, s^2 C), x_1 ~ N(0, C) and x_t = a x_1 + b x_0 the best velocity is x_t times
    (a a' + s^2 b b') / (a^2 + s^2 b^2), whatever C is, so that a network that adds nothing samples N(0, C): the
    baseline "pca_gaussian" with all components. The network sees x_t with the deviation of the data.

    Source: ours; for diffusion, Karras et al. 2022, arXiv 2206.00364, section 5, whose skip is for C = 1.
    """

    def __init__(self, network: nn.Module, path: Path, scale: float) -> None:
        super().__init__()
        self.network, self.path, self.scale = network, path, scale

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        signal, noise = self.path.signal(t), self.path.noise(t)
        variance = signal**2 + self.scale**2 * noise**2
        skip = signal * self.path.signal_rate(t) + self.scale**2 * noise * self.path.noise_rate(t)
        added: Tensor = self.network(x * variance.rsqrt()[:, None], t, condition)
        return torch.addcmul(added, (skip / variance)[:, None], x)


Build = Callable[[FlowRecipe, int, int, "Layout | None"], nn.Module]
DENSE: dict[str, Build] = {"mlp": _mlp, "residual": _residual, "transformer": _transformer}
NETWORKS = (*DENSE, "units")


def build_network(
    recipe: FlowRecipe,
    dim: int,
    condition_width: int = 0,
    layout: Layout | None = None,
    symmetry: Symmetry | None = None,
) -> nn.Module:
    """The velocity network of a recipe, forward(x, t, condition) -> velocity.

    Until it is trained it is zero everywhere; with a Gaussian source, the velocity of the Gaussian.

    x and the velocity are (batch, dim), t (batch,), condition (batch, condition_width) or None, which is all zeros.
    Initialisation depends on torch's seed alone, which the caller sets.

    Args:
        dim: numbers in a code. layout: of the networks, whose parameters the codes are; for a transformer only.
        symmetry: of the networks, for "units" only.

    Raises:
        InvalidSpecError: a transformer without the layout of its codes. UnknownNameError: no such network.
    """
    if recipe.network not in NETWORKS:
        raise unknown_name("network", recipe.network, NETWORKS)
    if recipe.network == "units":
        network = _units(recipe, dim, condition_width, symmetry)
    else:
        network = DENSE[recipe.network](recipe, dim, condition_width, layout)
    if recipe.source == "gaussian":
        return Preconditioned(network, PATHS[recipe.path], recipe.source_scale)
    return network
