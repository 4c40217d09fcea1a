"""How products, norms, attention and elementwise operations move axes: one rule an operation."""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from typing import Any

from weightspace.derive.shapes import SHAPES, VIEWS, Rule, Shape, equal_entries
from weightspace.derive.terms import (
    Axis,
    ancestors,
    cut,
    fix,
    fixed,
    flat,
    forget,
    leaves,
    length,
    unite,
    wild,
)
from weightspace.derive.values import Value, broadcast, dependence, fix_dims, mix, unknown_value, used


def elementwise(shape: Shape, *args: Any) -> Value:
    """Any function of the entries at the same place."""
    values = [value for arg in args for value in (arg if isinstance(arg, list | tuple) else [arg])]
    values = [value for value in values if isinstance(value, Value)]
    if not values:
        return equal_entries(shape)
    axes = broadcast(values)
    used(values)
    return Value([axis if length(axis) == n else wild(n) for axis, n in zip(axes, shape, strict=True)])


def contract(operands: Sequence[tuple[Value, str]], out: str) -> Value:
    """A sum of products, written as in einsum; one letter an axis. Axes of one letter move together."""
    for value, letters in operands:
        _adopt(value, letters, out)
    waiting: dict[str, list[Axis]] = {}
    for value, letters in operands:
        for at, letter in enumerate(letters):
            waiting.setdefault(letter, []).append(value.axes[at])
    axes: dict[str, Axis] = {}
    while waiting:  # parents before their children, and axes that stay before those that are summed over
        letter = min(waiting, key=lambda n: (max(map(dependence, waiting[n])), n not in out))
        long = [axis for axis in waiting.pop(letter) if length(axis) > 1]
        axes[letter] = functools.reduce(unite, long) if long else wild(1)
    lost = [atom for letter, axis in axes.items() if letter not in out for atom in flat(axis)]
    for letter in out:
        forget(axes[letter], lost)
    used(value for value, _ in operands)
    return Value([axes[letter] for letter in out])


def _adopt(value: Value, letters: str, out: str) -> None:
    """The axes of a parameter that stay in a product may depend on each other: weights of their own for each head."""
    stay = [value.axes[at] for at, letter in enumerate(letters) if letter in out]
    for number, axis in enumerate(stay):
        for leaf in leaves(axis):
            if leaf.home is not None:
                before = [atom for other in stay[:number] for atom in flat(other)]
                leaf.ancestors = tuple(dict.fromkeys((*ancestors(leaf), *before)))


def einsum(shape: Shape, equation: str, operands: Sequence[Value], *_: Any) -> Value | None:
    left, arrow, out = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    if "." in equation or not arrow or any(len(set(letters)) < len(letters) for letters in inputs):
        return None
    return contract(list(zip(operands, inputs, strict=True)), out)


def matmul(shape: Shape, a: Value, b: Value) -> Value:
    batch = string.ascii_uppercase
    left = ("" if a.ndim == 1 else "n") + "k"
    right = "k" + ("" if b.ndim == 1 else "m")
    before_a, before_b = batch[: max(a.ndim - 2, 0)][::-1], batch[: max(b.ndim - 2, 0)][::-1]
    longer = max(before_a, before_b, key=len)
    if a.tensor is None and b.tensor is None and b.ndim > 1:
        _label(a.axes[-1], b.axes[-1])
    return contract([(a, before_a + left), (b, before_b + right)], longer + left[:-1] + right[1:])


def _label(contracted: Axis, kept: Axis) -> None:
    """Remember which leaves are the rows of queries and keys, and which those of values: for their names."""
    for leaf in leaves(contracted):
        if not leaf.fixed:
            leaf.label = leaf.label or "qk"
    if not any(not leaf.fixed for leaf in leaves(contracted)):
        for leaf in leaves(kept):
            leaf.label = leaf.label or "vo"


def linear(shape: Shape, x: Value, weight: Value, bias: Value | None = None) -> Value:
    batch = string.ascii_uppercase[: x.ndim - 1]
    out = contract([(x, batch + "i"), (weight, "oi"[-weight.ndim :])], batch + "o"[: weight.ndim - 1])
    return out if bias is None else elementwise(shape, out, bias)


def addmm(shape: Shape, bias: Value, a: Value, b: Value, *_: Any) -> Value:
    return elementwise(shape, matmul(shape, a, b), bias)


def convolution(shape: Shape, x: Value, weight: Value, bias: Value | None = None, *options: Any) -> Value:
    """conv1d, conv2d, conv3d: options are stride, padding, dilation, groups."""
    groups = next((n for n in reversed(options) if type(n) is int), 1)
    return _convolve(shape, x, weight, bias, groups, transposed=False)


def convolution_transposed(shape: Shape, x: Value, weight: Value, bias: Value | None = None, *options: Any) -> Value:
    """conv_transpose1d, 2d, 3d: options are stride, padding, output_padding, groups, dilation."""
    groups = options[3] if len(options) > 3 else 1
    return _convolve(shape, x, weight, bias, groups, transposed=True)


def _convolve(shape: Shape, x: Value, weight: Value, bias: Value | None, groups: int, *, transposed: bool) -> Value:
    """Groups of channels move as wholes, and channels inside each: the weight's axes are (groups x its own, others)."""
    places = weight.ndim - 2
    channel = x.ndim - places - 1
    fix_dims(x, range(channel + 1, x.ndim))
    fix_dims(weight, range(2, weight.ndim))
    own, other = weight.axes[:2]
    if groups > 1:
        group, own = cut(own, groups)
        x_group, x_own = cut(x.axes[channel], groups)
        group = unite(group, x_group)
        inputs, outputs = (own, other) if transposed else (other, own)
        for leaf in leaves(outputs):
            if leaf.home is not None and not leaf.fixed:
                leaf.ancestors = tuple(dict.fromkeys((*ancestors(leaf), *flat(group))))
        unite(x_own, inputs)
        channels = [*group, *outputs]
    else:
        inputs, channels = (own, other) if transposed else (other, own)
        unite(x.axes[channel], inputs)
    if bias is not None:
        channels = unite(channels, bias.axes[0])
    batch = x.axes[:channel]
    for axis in batch:
        forget(axis, flat(x.axes[channel]))
    used([x, weight, *([] if bias is None else [bias])])
    return Value([*batch, channels, *(fixed(n) for n in shape[channel + 1 :])])


def attention(
    shape: Shape,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    _p: float = 0.0,
    causal: bool = False,
    *_: Any,
) -> Value:
    """softmax(q k') v per head (scaled_dot_product_attention); heads of keys may be shared by several of queries."""
    if causal:
        fix_dims(q, [q.ndim - 2])
        fix_dims(k, [k.ndim - 2])
    if q.ndim > 2 and (repeats := length(q.axes[-3]) // length(k.axes[-3])) > 1 and length(k.axes[-3]) > 1:
        k, v = (Value([*o.axes[:-3], [*o.axes[-3], *wild(repeats)], *o.axes[-2:]]) for o in (k, v))
    scores = matmul(shape, q, Value([*k.axes[:-2], k.axes[-1], k.axes[-2]]))
    if mask is not None:
        scores = Value(broadcast([scores, mask]))
    mix(scores, [-1])
    return matmul(shape, scores, v)


def softmax(shape: Shape, x: Value, dim: int, *_: Any) -> Value:
    mix(x, [dim])
    used([x])
    return Value(x.axes)


def normalize(shape: Shape, x: Value, normalized: Sequence[int], *tensors: Any) -> Value:
    """layer_norm, rms_norm: over the last axes; scales and shifts stand on them."""
    mix(x, range(x.ndim - len(normalized), x.ndim))
    return elementwise(shape, x, *tensors)


def channel_norm(shape: Shape, x: Value, *tensors: Any) -> Value:
    """batch_norm, instance_norm and prelu: all that a channel has stands on axis 1, and nothing works across it."""
    dim = min(1, x.ndim - 1)
    channels = x.axes[dim]
    for tensor in tensors:
        if isinstance(tensor, Value) and length(tensor.axes[0]) == length(channels):
            channels = unite(channels, tensor.axes[0])
    mix(x, [n for n in range(x.ndim) if n != dim])
    used([x, *(t for t in tensors if isinstance(t, Value))])
    return Value([*x.axes[:dim], channels, *x.axes[dim + 1 :]])


def batch_norm_with_statistics(shape: Sequence[Shape], x: Value, *tensors: Any) -> list[Value]:
    """What batch_norm is in graphs without changes in place; gives empty statistics too."""
    return [channel_norm(shape[0], x, *tensors), *map(unknown_value, shape[1:])]


def group_norm(shape: Shape, x: Value, groups: int, *tensors: Any) -> Value:
    """Groups of channels move as wholes, and channels inside each."""
    group, own = cut(x.axes[1], groups)
    x = Value([x.axes[0], [*group, *own], *x.axes[2:]])
    mix(x, range(2, x.ndim))
    return channel_norm(shape, x, *tensors)


def glu(shape: Shape, x: Value, dim: int = -1) -> Value:
    dim %= x.ndim
    half = shape[dim]
    sides = [SHAPES["slice"](shape, x, dim, start, start + half) for start in (0, half)]
    return elementwise(shape, *sides)


def unknown(shape: Any, args: Sequence[Any]) -> Any:
    """An operation without a rule: all axes of its inputs stay, and those of its outputs. Gives these."""
    for value in values_in(args):
        for axis in value.axes:
            fix(axis)
    return [unknown_value(s) for s in shape] if shape and not isinstance(shape[0], int) else unknown_value(shape)


def values_in(args: Any) -> list[Value]:
    """All values among arguments, in lists too."""
    if isinstance(args, Value):
        return [args]
    if isinstance(args, dict):
        args = list(args.values())
    return [v for arg in args for v in values_in(arg)] if isinstance(args, list | tuple) else []


RULES: dict[str, Rule] = {
    **VIEWS,
    **SHAPES,
    "einsum": einsum,
    **dict.fromkeys("matmul mm bmm mv dot".split(), matmul),
    "linear": linear,
    **dict.fromkeys("addmm baddbmm addmv".split(), addmm),
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution_transposed for n in (1, 2, 3)},
    "scaled_dot_product_attention": attention,
    **dict.fromkeys("softmax log_softmax _softmax _log_softmax".split(), softmax),
    **dict.fromkeys("layer_norm rms_norm".split(), normalize),
    **dict.fromkeys("batch_norm instance_norm prelu".split(), channel_norm),
    "_native_batch_norm_legit_no_training": batch_norm_with_statistics,
    "group_norm": group_norm,
    "glu": glu,
    **dict.fromkeys(
        "gelu relu relu6 silu mish hardswish hardsigmoid selu celu softplus where masked_fill".split(), elementwise
    ),
}
