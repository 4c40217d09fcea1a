"""How alike two networks are: representations (CKA), predictions, weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from catalog.errors import InvalidSpecError
from zoo.architectures import Architecture
from zoo.evaluate import compilable
from zoo.landscape.metric import Measured
from zoo.landscape.norms import FLOATS, activations
from zoo.landscape.paths import check_frame

GROUPS = 10  # of samples, left out in turn for the standard error
CONSTANT = "activations are the same for all samples, which leaves nothing to compare"


def cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment of each model's activations with its partner's, (models,) float64 in [0, 1].

    ||Xc' Yc||^2 / (||Xc' Xc|| ||Yc' Yc||), Frobenius norms of centred activations; the same for Y = X Q for an
    orthogonal Q (a permutation of units, say) and for scaled or shifted activations. Computed in float64 by products of
    features, or of samples where that is cheaper. NaN where activations are constant.

    Args:
        x: (models, samples, features). y: (models, samples, other features).

    Source: Kornblith et al. 2019, "Similarity of neural network representations revisited", section 3.
    """
    if x.dim() != 3 or y.shape[:2] != x.shape[:2]:
        raise ValueError(f"expected (models, samples, features) twice, got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = (_centred(values.double()) for values in (x, y))
    samples, p, q = x.shape[1], x.shape[2], y.shape[2]
    if samples * (p + q) < p * p + p * q + q * q:
        k, m = x @ x.mT, y @ y.mT
        inner, norms = (k * m).sum((1, 2)), k.norm(dim=(1, 2)) * m.norm(dim=(1, 2))
    else:
        inner, norms = (x.mT @ y).square().sum((1, 2)), (x.mT @ x).norm(dim=(1, 2)) * (y.mT @ y).norm(dim=(1, 2))
    return inner / norms


def _centred(values: Tensor) -> Tensor:
    """Less the mean over samples, and scaled so that no square overflows or underflows."""
    values = values - values[:, :1]  # first, so that constants become zeros whatever their mean rounds to
    values = values - values.mean(1, keepdim=True)
    largest = values.abs().amax((1, 2), keepdim=True)
    return values / torch.where(largest > 0, largest, 1)


def cka_yang(
    architecture: Architecture,
    weights: Tensor,
    partner: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    alpha: float = 16.0,
    seed: int = 0,
    layer: str | None = None,
) -> Measured:
    """Linear CKA of the softmax outputs on mixtures of images, all samples at once. Not comparable with `cka_ptmz`.

    Each sample is mixed with another, a random permutation's, in shares lambda and 1 - lambda, lambda ~ Beta(alpha,
    alpha); the same mixtures for all pairs.

    Args:
        weights, partner: (pairs, size). x: (samples, *input_shape), of the training split. y: not used.
        alpha: of the mixtures. seed: of the mixtures.
        layer: a layer's name for its activations, flattened, instead of softmax outputs.

    Returns:
        The value; its standard error by the jackknife over ten groups of samples (NaN for fewer samples).

    Raises:
        InvalidSpecError: alpha not positive, no seed, fewer than two samples. UnknownNameError: no such layer.

    Source: Yang et al. 2021, "Taxonomizing local versus global structure in neural network loss landscapes", section 2,
    and their code. Differs: they draw a lambda for each of eleven batches of 128, here each sample has its own, and all
    samples count.
    """
    if not (isinstance(alpha, float | int) and 0 < alpha < math.inf):
        raise InvalidSpecError(f"alpha of the mixtures must be above 0, got {alpha!r}")
    if type(seed) is not int or seed < 0:
        raise InvalidSpecError(f"seed of the mixtures must be an integer from 0, got {seed!r}")
    _enough(x, 2)
    mixed = mixtures(x, float(alpha), seed)
    groups = np.arange(len(x)) * GROUPS // len(x)
    keep = [torch.from_numpy(np.flatnonzero(groups != group)).to(x.device) for group in range(GROUPS)]

    def one(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        if layer is None:
            a, b = a.double().softmax(-1), b.double().softmax(-1)
        left_out = torch.stack([cka(a[:, rows], b[:, rows]) for rows in keep]) if len(x) > 2 * GROUPS else None
        whole = cka(a, b)
        if left_out is None:
            return whole, torch.full_like(whole, math.nan)
        return whole, (left_out.var(0, correction=0) * (GROUPS - 1)).sqrt()

    return _by_pairs(architecture, weights, partner, mixed, layer, one)


def mixtures(x: Tensor, alpha: float, seed: int) -> Tensor:
    """Each sample mixed with another one, (samples, *input_shape)."""
    random = np.random.default_rng(seed)
    order = torch.from_numpy(random.permutation(len(x))).to(x.device)
    share = torch.from_numpy(random.beta(alpha, alpha, len(x))).to(x.device, x.dtype)
    share = share.view(-1, *(1 for _ in x.shape[1:]))
    return share * x + (1 - share) * x[order]


def cka_ptmz(
    architecture: Architecture,
    weights: Tensor,
    partner: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int = 128,
    batches: int = 10,
    layer: str | None = None,
) -> Measured:
    """Linear CKA of the logits on clean images, the mean over batches. Not comparable with `cka_yang`.

    Args:
        weights, partner: (pairs, size). x: (samples, *input_shape), of the test split. y: not used.
        batch_size, batches: the first whole batches; one smaller batch if there is no whole one. Few samples make CKA
            larger.
        layer: a layer's name for its activations, flattened, instead of logits.

    Returns:
        The value and its standard error over batches, NaN for one batch.

    Raises:
        InvalidSpecError: fewer than two samples a batch, or no batch. UnknownNameError: no such layer.

    Source: "A Model Zoo on Phase Transitions in Neural Networks", arXiv 2504.18072, as in its code.
    """
    for name, value, least in (("batch_size", batch_size, 2), ("batches", batches, 1)):
        if type(value) is not int or value < least:
            raise InvalidSpecError(f"{name} must be an integer from {least}, got {value!r}")
    _enough(x, 2)
    size = min(batch_size, len(x))
    count = min(batches, len(x) // size)

    def one(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.stack([cka(*both) for both in zip(a.split(size, 1), b.split(size, 1), strict=True)])
        return found.mean(0), found.std(0) / math.sqrt(count) if count > 1 else torch.full_like(found[0], math.nan)

    return _by_pairs(architecture, weights, partner, x[: count * size], layer, one)


def _enough(x: Tensor, least: int) -> None:
    if len(x) < least:
        raise InvalidSpecError(f"needs {least} samples or more, got {len(x)}")


def _by_pairs(
    architecture: Architecture,
    weights: Tensor,
    partner: Tensor,
    x: Tensor,
    layer: str | None,
    compare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Measured:
    """Value and standard error of the comparison of each pair's activations, as many pairs at a time as memory allows.

    Activations of all samples are held at once: a wide layer on many samples takes as much as one pair needs.
    """
    if not len(weights):
        return Measured(np.empty(0), np.empty(0))
    features = activations(architecture, weights[:1], x[:1], layer).shape[-1]
    each = max(FLOATS // (8 * len(x) * features), 1)
    value, error = np.empty(len(weights)), np.empty(len(weights))
    finite = np.ones(len(weights), bool)
    for first in range(0, len(weights), each):
        part = slice(first, first + each)
        a, b = (outputs(architecture, one[part], x, layer) for one in (weights, partner))
        value[part], error[part] = (found.cpu().numpy() for found in compare(a, b))
        finite[part] = (a.isfinite() & b.isfinite()).all(2).all(1).cpu().numpy()
    bad = ~np.isfinite(value)
    error[bad] = math.nan
    value[bad] = math.nan
    reasons = np.where(bad, np.where(finite, CONSTANT, "activations are not finite"), "")
    return Measured(value, error, reasons=[str(why) for why in reasons] if bad.any() else None)


def outputs(architecture: Architecture, weights: Tensor, x: Tensor, layer: str | None = None) -> Tensor:
    """Logits, or activations behind a layer, (models, samples, features), by compiled code where there is some."""
    network = None
    if layer is None:
        network = compilable(architecture, weights.device, weights.dtype, None)
    if network is None:
        return activations(architecture, weights, x, layer)
    from kernels.lanes.evaluation import logits

    return torch.from_numpy(logits(network, weights.detach().numpy(), x.numpy()))


def disagreement(architecture: Architecture, weights: Tensor, partner: Tensor, x: Tensor, y: Tensor) -> Measured:
    """Share of the samples on which the predictions of a pair differ, in [0, 1].

    Args:
        weights, partner: (pairs, size). x: (samples, *input_shape), of the test split. y: (samples,) or (pairs,
            samples) int64, for the column only.

    Returns:
        The value and its binomial standard error. Column: disagreement_normalised, divided by the mean error of the
        two; 1 means that they differ as often as they err, NaN that neither errs.

    Source: Fort et al. 2019, "Deep ensembles: a loss landscape perspective", arXiv 1912.02757, diversity-accuracy
    plane. Differs: they divide by the error of one network, which is the same for all pairs.
    """
    _enough(x, 1)
    differ, errors = np.empty(len(weights)), np.empty(len(weights))
    finite = np.empty(len(weights), bool)
    each = max(FLOATS // (4 * len(x) * architecture.num_classes), 1)
    for first in range(0, len(weights), each):
        part = slice(first, first + each)
        labels = y if y.dim() == 1 else y[part]
        both = [outputs(architecture, one[part], x) for one in (weights, partner)]
        a, b = (logits.argmax(-1) for logits in both)
        differ[part] = (a != b).double().mean(1).cpu().numpy()
        errors[part] = ((a != labels).double() + (b != labels).double()).mean(1).cpu().numpy() / 2
        finite[part] = (both[0].isfinite() & both[1].isfinite()).all(2).all(1).cpu().numpy()
    value = np.where(finite, differ, math.nan)
    normalised = np.divide(value, errors, out=np.full(len(value), math.nan), where=errors > 0)
    reasons = ["" if fine else "outputs are not finite" for fine in finite]
    error = np.sqrt(value * (1 - value) / len(x))
    return Measured(value, error, {"disagreement_normalised": normalised}, None if finite.all() else reasons)


def weight_distance(
    architecture: Architecture,
    weights: Tensor,
    partner: Tensor,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    frame: str | None = None,
) -> Measured:
    """Euclidean distance of the parameters of a pair; buffers take no part. Exact: the standard error is 0.

    Args:
        weights, partner: (pairs, size). x, y: not used.
        frame: name of the alignment that both were read in, see `weightscape align`; None for weights as they are.

    Returns:
        The value. Column: weight_distance_relative, divided by the mean of both norms, NaN for two networks of zeros.
    """
    check_frame(frame)
    count, each = architecture.layout.num_parameters, max(FLOATS // (3 * architecture.layout.size), 1)
    found = np.empty((3, len(weights)))
    for first in range(0, len(weights), each):
        a, b = (one[first : first + each, :count].double() for one in (weights, partner))
        norms = torch.stack([(a - b).norm(dim=1), a.norm(dim=1), b.norm(dim=1)])
        found[:, first : first + each] = norms.cpu().numpy()
    distance, mean = found[0], (found[1] + found[2]) / 2
    relative = np.divide(distance, mean, out=np.full(len(mean), math.nan), where=mean > 0)
    return Measured(distance, np.zeros(len(mean)), {"weight_distance_relative": relative})
