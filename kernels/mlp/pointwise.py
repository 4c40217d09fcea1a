"""What happens to single numbers: activations with their slopes, and dropout.

In float32 the exponential is written out without branches, so that LLVM makes vector code of it: that of the C library,
called a number at a time, costs more than the products of a small network. In float64 it is that of the C library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from kernels.mlp.tiles import compiled
from kernels.random import MASK, MULTIPLIERS, WEYL

RELU, TANH, GELU, SILU = range(4)
KINDS = {"relu": RELU, "tanh": TANH, "gelu": GELU, "silu": SILU}

f32, u32, u64 = np.float32, np.uint32, np.uint64
LOG2_E = f32(1 / math.log(2))
LN2_HIGH = f32(0.693359375)  # nine bits, so that its product with an exponent is exact
LN2_LOW = f32(math.log(2) - 0.693359375)
TAYLOR = tuple(f32(1 / math.factorial(n)) for n in range(8))  # |r| <= ln(2) / 2: the next term is below 6e-9
# erfc(x) exp(x^2) = t * (this polynomial in t), t = 1 / (1 + x / 2): our fit by least squares, 3e-10 on [0, 6].
ERFC = tuple(
    f32(c)
    for c in (
        0.28524637813455245, 0.2451389295678013, 0.4341234332123268, -0.3542076634541304,
        0.9819548888355963, -0.8831778619479201, 0.3423879790497684, -0.051466083284639086,
    )
)  # fmt: skip  # a table


@register_jitable
def _halved(x: Any) -> tuple[Any, Any]:
    """2^n and p with exp(x) = 2^n (1 + p), |p| < 0.42; x clamped to the range of finite results."""
    x = min(max(x, f32(-87.0)), f32(88.0))
    n = math.floor(x * LOG2_E + f32(0.5))
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = TAYLOR[7]
    for order in range(6, 0, -1):
        p = p * r + TAYLOR[order]
    return np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32), p * r


def exp(x: Any) -> Any:
    """e^x; NaN stays NaN."""
    return math.exp(x)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent; NaN stays NaN."""
    return math.tanh(x)


def normal_cdf(x: Any) -> tuple[Any, Any]:
    """Distribution function and density of the standard normal, for numbers; NaN may give any."""
    return 0.5 * (1.0 + math.erf(x * math.sqrt(0.5))), math.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


@overload(exp)
def _exp(x: Any) -> Callable[..., Any]:
    def double(x: Any) -> Any:
        return math.exp(x)

    def single(x: Any) -> Any:
        scale, p = _halved(x)
        y = scale + scale * p if x > f32(-87.0) else f32(0.0)
        return y if x == x else x

    return single if x == types.float32 else double


@overload(tanh)
def _tanh(x: Any) -> Callable[..., Any]:
    def double(x: Any) -> Any:
        return math.tanh(x)

    def single(x: Any) -> Any:
        scale, p = _halved(min(max(x + x, f32(-40.0)), f32(40.0)))
        less_one = scale * p + (scale - f32(1.0))  # exp(2x) - 1 without cancellation
        return less_one / (less_one + f32(2.0)) if x == x else x

    return single if x == types.float32 else double


@overload(normal_cdf)
def _normal_cdf(x: Any) -> Callable[..., Any]:
    root, norm = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)
    root32, norm32 = f32(root), f32(norm)

    def double(x: Any) -> Any:
        return 0.5 * (1.0 + math.erf(x * root)), math.exp(-0.5 * x * x) * norm

    def single(x: Any) -> Any:
        size = abs(x) * root32
        t = f32(1.0) / (f32(1.0) + f32(0.5) * size)
        p = ERFC[7]
        for order in range(6, -1, -1):
            p = p * t + ERFC[order]
        bell = exp(-size * size)
        tail = f32(0.5) * p * t * bell
        return (f32(1.0) - tail if x > f32(0.0) else tail), bell * norm32

    return single if x == types.float32 else double


@compiled
def activate(kind: int, h: np.ndarray, slope: np.ndarray) -> None:
    """Replaces inputs of an activation by its outputs, and writes its derivatives to `slope`; both (count,)."""
    number = h.dtype.type
    zero, one = number(0), number(1)
    if kind == RELU:
        for i in range(len(h)):
            x = h[i]
            h[i] = zero if x <= zero else x  # NaN passes
            slope[i] = zero if x <= zero else one
    elif kind == TANH:
        for i in range(len(h)):
            y = tanh(h[i])
            h[i] = y
            slope[i] = one - y * y
    elif kind == GELU:
        for i in range(len(h)):
            x = h[i]
            below, density = normal_cdf(x)
            h[i] = x * below
            slope[i] = below + x * density
    else:
        for i in range(len(h)):
            x = h[i]
            gate = one / (one + exp(-x))
            h[i] = x * gate
            slope[i] = gate * (one + x * (one - gate))


@compiled
def philox(c0: Any, c1: Any, c2: Any, c3: Any, key: Any) -> tuple[Any, Any, Any, Any]:
    """`kernels.random.philox` of one counter; all are uint64 that hold 32-bit words, but the key, which holds two."""
    k0, k1 = key & u64(MASK), key >> u64(32)
    for _ in range(10):
        left, right = c0 * u64(MULTIPLIERS[0]), c2 * u64(MULTIPLIERS[1])
        c0, c1 = (right >> u64(32)) ^ c1 ^ k0, right & u64(MASK)
        c2, c3 = (left >> u64(32)) ^ c3 ^ k1, left & u64(MASK)
        k0, k1 = (k0 + u64(WEYL[0])) & u64(MASK), (k1 + u64(WEYL[1])) & u64(MASK)
    return c0, c1, c2, c3


@compiled
def draw(key: Any, site: int, step: int, position: int, out: np.ndarray) -> None:
    """`kernels.random.words` to `out`, uint32, a multiple of four; nothing else stands in this loop, so that LLVM makes
    vector code of it (0.6 ns a word instead of 7).
    """
    for block in range(len(out) // 4):
        w0, w1, w2, w3 = philox(u64(block), u64(site), u64(step), u64(position), key)
        out[4 * block] = u32(w0)
        out[4 * block + 1] = u32(w1)
        out[4 * block + 2] = u32(w2)
        out[4 * block + 3] = u32(w3)


@compiled
def drop(
    key: Any, site: int, step: int, threshold: int, kept: Any, columns: int, h: np.ndarray, slope: np.ndarray
) -> None:
    """Multiplies outputs and slopes by the dropout mask of a step: 0, or `kept` where the word reaches the threshold.

    Both are (batch, columns and padding to whole blocks of four); see `kernels.random.keep_mask`.
    """
    zero = h.dtype.type(0)
    least = u64(threshold)
    drawn = np.empty((columns + 3) // 4 * 4, np.uint32)
    for row in range(len(h)):
        draw(key, site, step, row, drawn)
        outputs, slopes = h[row], slope[row]
        for i in range(len(drawn)):
            mask = kept if u64(drawn[i]) >= least else zero
            outputs[i] *= mask
            slopes[i] *= mask


@compiled
def shuffle(key: Any, site: int, epoch: int, out: np.ndarray, spare: np.ndarray) -> None:
    """A random order of range(samples) to `out`, (samples,) int64: that of `kernels.random.permutation`.

    Words tagged with their index are sorted by word, byte by byte, each time keeping the order of equals; `spare` is as
    long. What remains in the upper bits of `out` is the word.
    """
    samples = len(out)
    drawn = np.empty((samples + 3) // 4 * 4, np.uint32)
    draw(key, site, epoch, 0, drawn)
    for i in range(samples):
        out[i] = np.int64(u64(drawn[i]) << u64(31)) | np.int64(i)
    counts = np.zeros((4, 256), np.int64)
    for i in range(samples):
        for byte in range(4):
            counts[byte, (out[i] >> (31 + 8 * byte)) & 255] += 1
    for byte in range(4):
        place = 0
        for value in range(256):
            counts[byte, value], place = place, place + counts[byte, value]
    source, target = out, spare
    for byte in range(4):
        places = counts[byte]
        for i in range(samples):
            value = (source[i] >> (31 + 8 * byte)) & 255
            target[places[value]] = source[i]
            places[value] += 1
        source, target = target, source
