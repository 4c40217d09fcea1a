"""The covariance of training codes, for noise that has it: a Gaussian source."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from generators.codec import Codec
from generators.population import Population

LARGEST = 8192  # rows of a factor, and numbers of a code of which a whole covariance is held: 0.5 GB in float64


def with_covariance(codec: Codec, population: Population) -> Codec:
    """The codec with `factor` (rank, width) float32, whose F' F is the covariance of the training codes.

    With no more models than numbers in a code these are the centred codes over the root of their count, so that noise
    is a random mixture of all models. Else the covariance is summed up batch by batch in float64 and F is its root, by
    eigenvalues. Of codes longer than `LARGEST` and as many models, models evenly spread over all are taken.
    """
    models = len(population.split("train"))
    if models <= codec.width or codec.width > LARGEST:
        chosen = np.linspace(0, models - 1, min(models, LARGEST)).astype(int)
        codes = codec.encode(population.read("train", chosen)).astype(np.float64)
        codes -= codes.mean(0)
        return replace(codec, factor=(codes / np.sqrt(len(codes))).astype(np.float32))
    total, products = np.zeros(codec.width), np.zeros((codec.width, codec.width))
    for some in population.batches():
        codes = codec.encode(some).astype(np.float64)  # near 0 in the mean: the codec centres, or there is no centre
        total += codes.sum(0)
        products += codes.T @ codes
    mean = total / models
    values, vectors = np.linalg.eigh(products / models - np.outer(mean, mean))
    return replace(codec, factor=(vectors * np.sqrt(np.maximum(values, 0))).T.astype(np.float32))
