"""Activation matching: units are alike when they do the same on the same inputs.

Sources: Li et al. 2016, "Convergent Learning", arXiv 1511.07543, section 3; Ainsworth et al. 2023, "Git Re-Basin",
arXiv 2209.04836, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightspace.arrays import few, is_torch
from weightspace.rebasin.alignment import Alignment, AlignmentError
from weightspace.rebasin.costs import best_order
from weightspace.rebasin.matching import match_weights
from weightspace.rebasin.objective import checked, chosen_groups, objective, products
from weightspace.rebasin.taps import CHUNK, Batch, Chain, Tap, activations, find_taps
from weightspace.symmetry import Symmetry


class Correlations:
    """Running sums over samples of what units of the reference and of each model do together.

    Takes (models, units, units) float64 for each group that is looked at, units counted over all its parents' units.

    Args:
        models: of the population. units: of the group.
    """

    def __init__(self, models: int, units: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.samples = np.zeros(models, np.int64)
        self.products = zeros(models, units, units)
        self.sums, self.squares = zeros(2, models, units), zeros(2, models, units)  # of the reference, of the models

    def add(self, a: Tensor, b: Tensor, models: slice) -> None:
        """Add samples: a (samples, units) of the reference, b (some models, samples, units)."""
        a, b = a.double(), b.double()
        self.samples[models] += len(a)
        self.products[models] += products(a.T[None], b.mT)
        for number, values in enumerate((a[None], b)):
            self.sums[number, models] += values.sum(1)
            self.squares[number, models] += values.square().sum(1)

    def worth(self, correlation: bool = False) -> Tensor:
        """(models, units of the reference, units of the model) float64: E[a b], or correlations.

        Units that never change have correlation 0 with all.
        """
        count = torch.from_numpy(self.samples).to(self.products.device).clamp_min(1).double()[:, None]
        together, means = self.products / count[..., None], self.sums / count
        if not correlation:
            return together
        variances = self.squares / count - means.square()
        # what rounding leaves of the variance of a constant: 1e-16 of its square, more for sums of many
        still = variances <= 1e-12 * self.squares / count
        scales = torch.where(still, 0.0, variances.clamp_min(1e-300).rsqrt())
        covariances = together - means[0][:, :, None] * means[1][:, None, :]
        return covariances * scales[0][:, :, None] * scales[1][:, None, :]


def match_activations(
    symmetry: Symmetry,
    module: nn.Module,
    weights: Any,
    reference: Any,
    batches: Iterable[Batch],
    *,
    correlation: bool = False,
    groups: Iterable[str] | None = None,
    on_models: Callable[[int], None] | None = None,
) -> Alignment:
    """Permute each model so that its units do what those of the reference do on the same inputs.

    One assignment a group, on E[a b] over all samples, pixels and tokens of what the layers put out whose output units
    are the group's; a group with groups inside (attention heads) and these are ordered jointly. Groups that no layer
    shows are matched by weights, with the others held.

    Args:
        module: the network, in evaluation mode afterwards; its own weights are not used.
        weights: (models, size), numpy or torch. reference: (size,).
        batches: inputs (samples, ...), or mappings of named ones, read once; all go through all models.
        correlation: compare correlations instead (Li et al.), which no scale of a unit changes.
        groups: those that may move, None for all.
        on_models: called with the number of models each time a batch is done.

    Returns:
        `before` and `after` are the objective of weight matching, which is not what is raised here: it can fall.

    Raises:
        AlignmentError: weights that do not fit, no batches, activations that are not finite.
    """
    names = chosen_groups(symmetry, groups)
    population, target = checked(symmetry, weights, "weights"), checked(symmetry, reference, "the reference", (1,))
    target = target.to(population.device)
    taps = [tap for tap in find_taps(symmetry, module) if set(tap.chain) & set(names)]
    sums = _stream(symmetry, module, population, target, batches, taps, on_models)
    found = symmetry.identity(len(population))
    seen: set[str] = set()
    for root in dict.fromkeys(chain[0] for chain in sums):
        family = {chain: total.worth(correlation) for chain, total in sums.items() if chain[0] == root}
        shaped = {chain: _by_level(symmetry, chain, worth) for chain, worth in family.items()}
        ordered, _ = order_family(symmetry, shaped, set(names))
        found |= ordered
        seen |= {name for chain in family for name in chain}
    if rest := [name for name in names if name not in seen]:
        found = dict(match_weights(symmetry, population, target, start=found, groups=rest).permutations)
    ones = np.ones(len(population), np.int64)
    before = objective(symmetry, population, target)
    after = objective(symmetry, symmetry.permute(population, found), target) if len(population) else before
    return Alignment(found, before, after, ones, target.cpu().numpy(), ones.astype(bool))


def _stream(
    symmetry: Symmetry,
    module: nn.Module,
    weights: Tensor,
    reference: Tensor,
    batches: Iterable[Batch],
    taps: list[Tap],
    on_models: Callable[[int], None] | None,
) -> dict[Chain, Correlations]:
    """Sums over all batches, for each chain of groups that a layer shows."""
    sums: dict[Chain, Correlations] = {}
    empty = True
    for batch in batches:
        empty = False
        batch = _to(batch, weights.device)
        seen = {tap: a[0] for tap, a in activations(module, symmetry.layout, reference[None], batch, taps).items()}
        if bad := [tap.module for tap, a in seen.items() if not bool(torch.isfinite(a).all())]:
            raise AlignmentError(
                f"activations of the reference must be finite, not so in {few(bad)}; look at the inputs"
            )
        held = sum(a.numel() * 16 for a in seen.values())  # as they come, and in float64
        some = max(1, CHUNK // max(1, held))
        for first in range(0, len(weights), some):
            here = slice(first, min(first + some, len(weights)))
            for tap, b in activations(module, symmetry.layout, weights[here], batch, list(seen)).items():
                if not bool(torch.isfinite(b).all()):
                    bad_models = first + torch.nonzero(~torch.isfinite(b).flatten(1).all(1))[:, 0]
                    raise AlignmentError(
                        f"activations must be finite, not so in {tap.module!r} of models {few(bad_models.tolist())}"
                    )
                if tap.chain not in sums:
                    sums[tap.chain] = Correlations(len(weights), b.shape[-1], weights.device)
                sums[tap.chain].add(seen[tap], b, here)
        if on_models:
            on_models(len(weights))
    if empty:
        raise AlignmentError("activation matching needs inputs, got no batches; an iterator may have been read before")
    return sums


def order_family(
    symmetry: Symmetry, worth: Mapping[Chain, Tensor], names: set[str]
) -> tuple[dict[str, np.ndarray], Tensor]:
    """Best orders of a group and of all groups inside its units together, and what they are worth, (batch,).

    Args:
        worth: chain of groups, all with the same first -> (batch, *sizes, *sizes): of units of the reference with units
            of the model. names: groups that may move.
    """
    root = next(iter(worth))[0]
    units, batch = symmetry.groups[root].size, len(next(iter(worth.values())))
    total = next(iter(worth.values())).new_zeros(batch, units, units)
    inner: dict[str, np.ndarray] = {}
    for child in dict.fromkeys(chain[1:2] for chain in worth):
        inside = {chain[1:]: values for chain, values in worth.items() if chain[1:2] == child}
        if not child:
            total = total + inside[()]
            continue
        pairs = {chain: _pairs(values) for chain, values in inside.items()}
        found, value = order_family(symmetry, pairs, names)
        inner |= found
        total = total + value.view(batch, units, units)
    order = best_order(total)[0] if root in names else np.tile(np.arange(units, dtype=np.int32), (batch, 1))
    columns = torch.from_numpy(order).long().to(total.device)
    out = {root: order} if root in symmetry.moving else {}
    for name, p in inner.items():
        p = p.reshape(batch, units, units, *p.shape[1:])
        out[name] = p[np.arange(batch)[:, None], np.arange(units), order]
    return out, total.gather(2, columns[..., None])[..., 0].sum(1)


def _pairs(values: Tensor) -> Tensor:
    """(batch, a, *sizes, a, *sizes) -> (batch * a * a, *sizes, *sizes)."""
    levels = (values.dim() - 1) // 2
    flat = values.permute(0, 1, levels + 1, *range(2, levels + 1), *range(levels + 2, 2 * levels + 1))
    return flat.reshape(-1, *flat.shape[3:])


def _by_level(symmetry: Symmetry, chain: Chain, worth: Tensor) -> Tensor:
    """(models, *sizes, *sizes) of (models, units, units)."""
    sizes = [symmetry.groups[name].size for name in chain]
    return worth.view(len(worth), *sizes, *sizes)


def _to(batch: Batch, device: torch.device) -> Batch:
    if isinstance(batch, Mapping):
        return {name: value.to(device) if is_torch(value) else value for name, value in batch.items()}
    return batch.to(device)
