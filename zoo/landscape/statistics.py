"""Norms and spectra of the weights themselves, layer by layer. They need no data: x and y are not looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from weightspace.layout import Layout
from zoo.architectures import Architecture
from zoo.landscape.chunks import check_weights, chunks, fitting, measured
from zoo.landscape.metric import Measured, Values

BIN = 0.05  # width of a bin of ln|w|
OUT = -(2**31)  # bin of what has no logarithm
NO_NORM = "a weight is not finite"
NO_RANK = "a weight matrix is zero throughout, or not finite, and has no stable rank"
NO_ENTROPY = "all weights are zero, or one is not finite"


def weight_norm(
    architecture: Architecture, weights: Tensor, x: Tensor | None = None, y: Tensor | None = None
) -> Measured:
    """Euclidean length of all parameters, and of each tensor in a column weight_norm_<tensor>.

    Columns carry the tensor's name with underscores for dots. Buffers, such as running statistics, do not count.

    Args:
        weights: (models, size).
    """
    check_weights(architecture, weights)
    squares = {name: np.empty(len(weights)) for name in _parameters(architecture.layout)}
    for part in chunks(len(weights), fitting(weights, 4)):
        for name, found in squares.items():
            tensor = architecture.layout.tensor(weights[part], name).flatten(1)
            found[part] = tensor.double().square().sum(1).cpu().numpy()
    value = np.sqrt(np.sum(list(squares.values()), axis=0))
    others = {name: np.sqrt(found) for name, found in squares.items()}
    return measured(value, None, _columns("weight_norm", others), [NO_NORM] * len(weights))


def stable_rank(
    architecture: Architecture, weights: Tensor, x: Tensor | None = None, y: Tensor | None = None
) -> Measured:
    """Mean over the weight matrices of |W|_F^2 / |W|_2^2, and that of each in a column stable_rank_<tensor>.

    From 1, a matrix of rank one, to the length of its smaller side. The kernel of a convolution is the matrix (out,
    in * height * width). Computed in float64 from the eigenvalues of W W' or W' W, whichever is smaller.

    Args:
        weights: (models, size).

    Source: Rudelson and Vershynin 2007, "Sampling from large matrices: an approach through geometric functional
        analysis", where it is called the numerical rank.
    """
    check_weights(architecture, weights)
    ranks = {name: np.empty(len(weights)) for name in _matrices(architecture.layout)}
    for part in chunks(len(weights), fitting(weights, 8)):
        for name, found in ranks.items():
            found[part] = _stable_rank(architecture.layout.tensor(weights[part], name).flatten(2))
    value = np.mean(list(ranks.values()), axis=0)
    return measured(value, None, _columns("stable_rank", ranks), [NO_RANK] * len(weights))


def _stable_rank(matrices: Tensor) -> np.ndarray:
    """(models,) of (models, rows, columns); NaN for zeros and what is not finite."""
    wide = matrices.double() if matrices.shape[1] <= matrices.shape[2] else matrices.double().mT
    wide = wide / wide.abs().amax((1, 2), keepdim=True)  # squares of tiny weights would be zero
    gram = wide @ wide.mT
    found = gram.isfinite().all(-1).all(-1)
    gram = torch.where(found[:, None, None], gram, 0)  # LAPACK refuses NaN
    rank = gram.diagonal(dim1=1, dim2=2).sum(1) / torch.linalg.eigvalsh(gram)[:, -1]
    return torch.where(found, rank, torch.nan).cpu().numpy()


def log_magnitude_entropy(
    architecture: Architecture, weights: Tensor, x: Tensor | None = None, y: Tensor | None = None
) -> Measured:
    """Entropy of ln|w| in nats, over the entries of all weight matrices: a shape of their distribution, not a scale.

    From a histogram with bins [0.05 k, 0.05 (k + 1)): -sum p ln p + ln 0.05, an estimate of the differential entropy,
    which does not depend on the width of the bins. Another scale changes nothing but how the entries fall into bins. A
    Gaussian has 1.361. The histogram of n entries finds about (filled bins) / 2n less, which is much for n below 1,000:
    compare matrices of equal size. Entries that are exactly zero have no logarithm and are left out.

    Args:
        weights: (models, size).

    Returns:
        The value; columns log_magnitude_entropy_<tensor>, that of each matrix, NaN where it is zero throughout; and
        log_magnitude_entropy_zeros, the share of the entries that were left out.

    Source: the entropy of Xiang et al. 2026, arXiv 2602.03918, taken of log-magnitudes: for floats of few bits the
        entropy of exact values, which their code computes, is this plus a constant, and for those of many it is ln n.
    """
    check_weights(architecture, weights)
    names = _matrices(architecture.layout)
    every, zeros = np.empty((2, len(weights)))
    layers = {name: np.empty(len(weights)) for name in names}
    for part in chunks(len(weights), fitting(weights, 12)):
        bins = {name: _bins(architecture.layout.tensor(weights[part], name).flatten(1)) for name in names}
        for name, found in layers.items():
            found[part] = _entropy(bins[name])
        together = torch.cat(list(bins.values()), 1)
        finite = weights[part].isfinite().all(1).cpu().numpy()
        every[part] = np.where(finite, _entropy(together), np.nan)
        zeros[part] = np.where(finite, (together == OUT).double().mean(1).cpu().numpy(), np.nan)
    layers["zeros"] = zeros
    return measured(every, None, _columns("log_magnitude_entropy", layers), [NO_ENTROPY] * len(weights))


def _bins(entries: Tensor) -> Tensor:
    """The bin of each entry, (models, entries) int64; OUT for zeros, and for all of a matrix that is not finite."""
    inside = (entries != 0) & entries.isfinite().all(1, keepdim=True)
    logarithms = torch.where(inside, entries, 1).double().abs().log()
    return torch.where(inside, (logarithms / BIN).floor().long(), OUT)


def _entropy(bins: Tensor) -> np.ndarray:
    """(models,) of (models, entries); NaN where no entry is in a bin."""
    inside = bins != OUT
    if not inside.any():
        return np.full(len(bins), np.nan)
    low, high = int(bins[inside].min()), int(bins[inside].max())
    width = high - low + 2  # the last is for what is left out
    places = torch.where(inside, bins - low, width - 1) + width * torch.arange(len(bins), device=bins.device)[:, None]
    counts = torch.bincount(places.flatten(), minlength=width * len(bins)).view(-1, width)[:, :-1].double()
    shares = counts / counts.sum(1, keepdim=True)  # 0 / 0 is NaN
    return (torch.special.entr(shares).sum(1) + math.log(BIN)).cpu().numpy()


def _parameters(layout: Layout) -> list[str]:
    return [name for name, role in zip(layout.names, layout.roles, strict=True) if role == "parameter"]


def _matrices(layout: Layout) -> list[str]:
    """Weights of linear layers and kernels of convolutions."""
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    return [name for name in _parameters(layout) if len(shapes[name]) >= 2]


def _columns(metric: str, found: Mapping[str, np.ndarray]) -> dict[str, Values]:
    return {f"{metric}_{name.replace('.', '_')}": values for name, values in found.items()}
