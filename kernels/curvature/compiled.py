"""Second-order quantities of multilayer perceptrons, one program a model, in compiled code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.curvature.passes import form, linearize, pull, push, slope_sums
from kernels.curvature.places import Places, collect, expand
from kernels.learning import LOSSES, aligned
from kernels.mlp.network import MLP
from kernels.mlp.pointwise import KINDS
from kernels.mlp.tiles import OPTIONS
from kernels.programs import Program, sources
from kernels.threads import in_parts

VALUES, GRADIENTS, PRODUCTS, FORMS = range(4)
PARTS = tuple(f"curvature/{name}.py" for name in ("compiled", "passes", "places", "pointwise", "tiles"))
SOURCES = sources(*PARTS, "mlp/*.py", "lanes/vectors.py", "learning.py", "random.py")
TOGETHER = 1 << 17  # numbers: vectors that are worked on while a block's state is there
KEPT = 1 << 28  # bytes of states that stay from call to call of `products`; beyond that they are computed anew


def _differentiate(digest: str) -> Any:
    """The compiled program. `digest` is part of what its cache is found by: numba looks at this file only."""

    def differentiate(
        what: int, layers: np.ndarray, activation: int, loss: int, flat: np.ndarray, vectors: np.ndarray,
        together: int, inputs: np.ndarray, samples: int, block: int, labels: np.ndarray, zeros: np.ndarray,
        one: np.ndarray, states: np.ndarray, ready: np.ndarray, weights: np.ndarray, expanded: np.ndarray,
        sums: np.ndarray, work: np.ndarray, values: np.ndarray, out: np.ndarray,
    ) -> None:  # fmt: skip
        """Losses, gradients, products or forms of all models.

        Args:
            vectors: (1 or models, vectors, size); for losses and gradients none, one is counted. labels: (1 or models,
                samples). states: (models, blocks, numbers), kept from call to call, `ready` (models,) where they are;
                or (1, 1, numbers). expanded, sums: (together, numbers), rooms for the vectors of a group.
            values: (models, vectors) float64, losses or forms. out: (models, vectors, size), gradients or products.
        """
        digest  # noqa: B018  # makes it a part of the function
        share = 1.0 / samples
        count = vectors.shape[1] if what >= PRODUCTS else 1
        for model in range(len(flat)):
            expand(layers, flat[model], True, weights)
            mine = labels[model % len(labels)]
            for start in range(0, count, together):
                group = min(together, count - start)
                if what >= PRODUCTS:
                    for k in range(group):
                        expand(layers, vectors[model % len(vectors), start + k], what == PRODUCTS, expanded[k])
                sums[:group] = 0
                for number in range((samples + block - 1) // block):
                    first = number * block
                    here = min(block, samples - first)
                    state = states[model, number] if len(ready) else states[0, 0]
                    if what == VALUES or len(ready) == 0 or not ready[model]:
                        total = linearize(
                            layers, activation, loss, share, weights, inputs, first, here, mine, zeros, state
                        )
                        if what == VALUES:
                            values[model, 0] += total * share
                    if what == GRADIENTS:
                        slope_sums(layers, inputs, first, here, state, one, sums[0])
                    elif what >= PRODUCTS:
                        for k in range(group):
                            push(layers, weights, expanded[k], inputs, first, here, state, work)
                            if what == PRODUCTS:
                                pull(
                                    layers, activation, loss, share, weights, expanded[k], inputs, first, here, zeros,
                                    one, state, work, sums[k],
                                )  # fmt: skip
                            else:
                                values[model, start + k] += form(
                                    layers, activation, loss, share, expanded[k], here, zeros, state, work
                                )
                if len(ready):
                    ready[model] = True
                if what == GRADIENTS or what == PRODUCTS:
                    for k in range(group):
                        collect(layers, sums[k], out[model, start + k])

    return differentiate


DIFFERENTIATE = Program(_differentiate, SOURCES, OPTIONS)


class Compiled:
    """A `kernels.curvature.surface.Surface` of multilayer perceptrons on a CPU, in float32 or float64.

    What products share, the linearisation at the weights, is kept between calls where `KEPT` bytes hold that of all
    models. Sums over samples run block by block. No bit of a model depends on its companions or on `threads`.
    """

    def __init__(
        self, network: MLP, weights: Tensor, x: Tensor, y: Tensor, loss_function: str, threads: int | None = None
    ) -> None:
        self.network, self.loss = network, LOSSES[loss_function]
        self.weights, self.x, self.labels = arrays(network, weights, x, y)
        dtype = self.weights.dtype
        self.places = Places.of(network, len(self.x), dtype)
        self.inputs = self.places.pad(self.x)
        self.threads = max(1, min(threads or torch.get_num_threads(), len(self.weights)))
        self.states: np.ndarray | None = None
        self.ready = np.zeros(0, np.bool_)

    def losses(self) -> Tensor:
        values = np.zeros((len(self.weights), 1))
        self._run(VALUES, self._no_vectors(), values, self._no_vectors())
        return torch.from_numpy(values[:, 0].astype(self.weights.dtype))

    def gradients(self) -> Tensor:
        out = np.empty((len(self.weights), 1, self.network.size), self.weights.dtype)
        self._run(GRADIENTS, self._no_vectors(), np.zeros((len(out), 1)), out)
        return torch.from_numpy(out[:, 0])

    def products(self, vectors: Tensor) -> Tensor:
        given, models = self._vectors(vectors), len(self.weights)
        out = np.empty((models, *given.shape[1:]), given.dtype)
        shape = (models, self.places.blocks, self.places.state)
        if self.states is None and math.prod(shape) * given.itemsize <= KEPT:
            self.states = rows(math.prod(shape[:2]), shape[2], given.dtype).reshape(shape)
            self.ready = np.zeros(models, np.bool_)
        self._run(PRODUCTS, given, np.zeros(out.shape[:2]), out)
        return torch.from_numpy(out)

    def forms(self, vectors: Tensor) -> Tensor:
        given = self._vectors(vectors)
        values = np.zeros((len(self.weights), given.shape[1]))
        self._run(FORMS, given, values, self._no_vectors())
        return torch.from_numpy(values.astype(given.dtype))

    def _no_vectors(self) -> np.ndarray:
        return np.empty((len(self.weights), 0, self.network.size), self.weights.dtype)

    def _vectors(self, vectors: Tensor) -> np.ndarray:
        expected = (len(self.weights), vectors.shape[1] if vectors.dim() == 3 else "vectors", self.network.size)
        if vectors.shape != expected or vectors.dtype != torch.from_numpy(self.weights).dtype:
            raise ValueError(
                f"vectors must be {expected} {self.weights.dtype}, got {tuple(vectors.shape)} {vectors.dtype}"
            )
        shared = len(vectors) > 1 and vectors.stride(0) == 0  # probes that are the same for all models
        return np.ascontiguousarray((vectors[:1] if shared else vectors).detach().numpy())

    def _run(self, what: int, vectors: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
        """Calls the compiled code for parts of the population."""
        places, dtype = self.places, self.weights.dtype
        each = places.weights + places.sums if what == PRODUCTS else places.weights // 2  # no order for going back
        together = max(1, min(TOGETHER // each, vectors.shape[1]))

        def work(models: slice) -> None:
            sums = rows(together if what == PRODUCTS else 1, places.sums, dtype)
            states = rows(1, places.state, dtype)[None] if self.states is None else self.states[models]
            DIFFERENTIATE(
                what, places.layers, KINDS[self.network.activation], self.loss, self.weights[models],
                own(vectors, models), together, self.inputs, len(self.x), places.block, own(self.labels, models),
                aligned(places.widest, dtype), np.ones(1, dtype), states, self.ready[models],
                aligned(places.weights, dtype), aligned(together * places.weights, dtype).reshape(together, -1), sums,
                aligned(places.work, dtype), values[models], out[models],
            )  # fmt: skip

        in_parts(work, len(self.weights), self.threads)


def arrays(network: MLP, weights: Tensor, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (models, size), inputs (samples, features) and labels (1 or models, samples) for compiled code.

    Raises:
        ValueError: shapes, types or labels that do not fit.
    """
    features, classes = network.widths[0], network.widths[-1]
    if weights.dim() != 2 or weights.shape[1] != network.size:
        raise ValueError(f"weights must be (models, {network.size}), got {tuple(weights.shape)}")
    if not len(x) or x[0].numel() != features or x.dtype != weights.dtype:
        raise ValueError(f"inputs must be (samples, {features}) {weights.dtype}, got {tuple(x.shape)} {x.dtype}")
    if y.shape not in ((len(x),), (len(weights), len(x))):
        raise ValueError(f"labels must be ({len(x)},) or ({len(weights)}, {len(x)}), got {tuple(y.shape)}")
    labels = np.ascontiguousarray(y.reshape(-1, len(x)).numpy(), np.int64)
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    return np.ascontiguousarray(weights.detach().numpy()), x.reshape(len(x), -1).numpy(), labels


def rows(count: int, size: int, dtype: Any) -> np.ndarray:
    """(count, size) numbers, any, in whole registers."""
    room = np.empty(count * size + 64, dtype)
    skipped = -room.ctypes.data % 64 // room.itemsize
    return room[skipped : skipped + count * size].reshape(count, size)


def own(rows: np.ndarray, models: slice) -> np.ndarray:
    """Rows of these models, or the one that is all models'."""
    return rows if len(rows) == 1 else rows[models]
