"""Where compiled code keeps what: tables of places for a network, a number of samples and a type."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.learning import aligned, part
from kernels.mlp.network import MLP
from kernels.mlp.tiles import ROWS, compiled, padded

# Columns of the table of layers: sizes, sizes with padding, and the place in flat weights as torch has them;
INPUTS, OUTPUTS, IN, OUT, FLAT = range(5)
# in expanded weights: the matrix (inputs, outputs) and the bias behind it, and the matrix (outputs, inputs);
FORWARD, BIAS, BACK = range(5, 8)
# in the state of a block of samples: outputs (of the last layer: probabilities), slopes, second derivatives times the
# gradient of outputs, and gradients of inputs of the activation, all (samples, OUT);
HERE, SLOPE, BEND, DELTA = range(8, 12)
# in the work on one vector: changes of inputs of the activation, of outputs and of gradients;
INTO, CHANGE, TURN = range(12, 15)
# in sums over samples: the matrix (outputs, inputs) and the bias.
MATRIX, SHIFT = range(15, 17)
BLOCK = 64  # samples at once, fewer in wide networks: what a block needs shares the second cache with the weights
CACHE = 1 << 17  # numbers


@dataclass(frozen=True)
class Places:
    """Tables for blocks of samples.

    Args:
        layers: (layers, 17) int64. block: samples of a block, whole tiles. widest: numbers in the longest row.
        weights, state, work, sums: numbers of one model's expanded weights, of a block's state, of the work on a
            vector and of sums over samples.
    """

    network: MLP
    layers: np.ndarray
    block: int
    blocks: int
    widest: int
    weights: int
    state: int
    work: int
    sums: int

    @classmethod
    def of(cls, network: MLP, samples: int, dtype: Any, most: int = BLOCK) -> Places:
        """Args: most: samples of a block at most."""
        widths = [padded(width, dtype) for width in network.widths]
        most = min(most, max(CACHE // (7 * sum(widths)), ROWS))
        blocks = -(-samples // most)
        block = -(-samples // blocks // ROWS) * ROWS
        rows, flat, weight, state, work, total = [], 0, 0, 0, 0, 0
        for (inputs, outputs), (into, out) in zip(
            itertools.pairwise(network.widths), itertools.pairwise(widths), strict=True
        ):
            each = block * out
            places = (
                (inputs, outputs, into, out, flat),
                (weight, weight + into * out, weight + into * out + out),
                range(state, state + 4 * each, each),
                range(work, work + 3 * each, each),
                (total, total + out * into),
            )
            rows.append(tuple(itertools.chain.from_iterable(places)))
            flat += (inputs + 1) * outputs
            weight, state, work, total = (
                weight + 2 * into * out + out,
                state + 4 * each,
                work + 3 * each,
                total + (into + 1) * out,
            )
        widest = max(widths)
        return cls(network, np.array(rows, np.int64), block, blocks, widest, weight, state, work, total)

    def pad(self, x: np.ndarray) -> np.ndarray:
        """Inputs (samples, features) as compiled code reads them, flat: rows of whole registers, whole blocks."""
        out = aligned(self.blocks * self.block * self.layers[0, IN], x.dtype)
        out.reshape(-1, self.layers[0, IN])[: len(x), : x.shape[1]] = x
        return out


@compiled
def expand(layers: np.ndarray, flat: np.ndarray, both: bool, room: np.ndarray) -> None:
    """Flat weights to the forward order, or `both`; what is between them stays as it is, zeros."""
    for number in range(len(layers)):
        layer = layers[number]
        inputs, outputs, into, out = layer[INPUTS], layer[OUTPUTS], layer[IN], layer[OUT]
        for top in range(0, outputs, ROWS):  # in blocks, so that every line of the cache is used while it is there
            stop = min(top + ROWS, outputs)
            for c in range(inputs):
                for r in range(top, stop):
                    room[layer[FORWARD] + c * out + r] = flat[layer[FLAT] + r * inputs + c]
        for r in range(outputs if both else 0):
            source, target = part(flat, layer[FLAT] + r * inputs, inputs), part(room, layer[BACK] + r * into, inputs)
            for c in range(inputs):
                target[c] = source[c]
        source, target = part(flat, layer[FLAT] + inputs * outputs, outputs), part(room, layer[BIAS], outputs)
        for c in range(outputs):
            target[c] = source[c]


@compiled
def collect(layers: np.ndarray, sums: np.ndarray, flat: np.ndarray) -> None:
    """Sums over samples to the order of flat weights."""
    for number in range(len(layers)):
        layer = layers[number]
        inputs, outputs, into = layer[INPUTS], layer[OUTPUTS], layer[IN]
        for r in range(outputs):
            source, target = part(sums, layer[MATRIX] + r * into, inputs), part(flat, layer[FLAT] + r * inputs, inputs)
            for c in range(inputs):
                target[c] = source[c]
        source, target = part(sums, layer[SHIFT], outputs), part(flat, layer[FLAT] + inputs * outputs, outputs)
        for c in range(outputs):
            target[c] = source[c]
