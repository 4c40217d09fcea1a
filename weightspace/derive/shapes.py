"""How views, slices and copies move axes: one rule an operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from weightspace.derive.terms import SUM, Atom, Axis, fixed, length, movable, one, wild
from weightspace.derive.values import (
    Value,
    concatenate,
    constant_value,
    expand,
    fix_dims,
    mix,
    reshape,
    take,
    unknown_value,
    used,
)

Shape = Sequence[int]
Rule = Callable[..., Any]


def view(shape: Shape, x: Value, *_: Any) -> Value:
    return Value(reshape(x, shape))


def same(shape: Shape, x: Value, *_: Any) -> Value:
    return Value(x.axes, x.tensor)


def permute(shape: Shape, x: Value, dims: Sequence[int]) -> Value:
    return Value([x.axes[dim] for dim in dims])


def transpose(shape: Shape, x: Value, first: int, second: int) -> Value:
    axes = list(x.axes)
    if axes:
        axes[first], axes[second] = axes[second], axes[first]
    return Value(axes)


def flip_all(shape: Shape, x: Value) -> Value:
    return Value(x.axes[::-1])


def swap_last(shape: Shape, x: Value) -> Value:
    return transpose(shape, x, -2, -1)


def movedim(shape: Shape, x: Value, source: Any, target: Any) -> Value:
    sources = [dim % x.ndim for dim in (source if isinstance(source, Sequence) else [source])]
    targets = [dim % x.ndim for dim in (target if isinstance(target, Sequence) else [target])]
    order = [dim for dim in range(x.ndim) if dim not in sources]
    for to, dim in sorted(zip(targets, sources, strict=True)):
        order.insert(to, dim)
    return Value([x.axes[dim] for dim in order])


def expanded(shape: Shape, x: Value, *_: Any) -> Value:
    return Value(expand(x, shape))


def repeat(shape: Shape, x: Value, repeats: Sequence[int]) -> Value:
    axes = [wild(1)] * (len(repeats) - x.ndim) + x.axes
    return Value([axis if n == 1 else [*wild(n), *axis] for axis, n in zip(axes, repeats, strict=True)])


def tile(shape: Shape, x: Value, dims: Sequence[int]) -> Value:
    return repeat(shape, x, [1] * (x.ndim - len(dims)) + list(dims))


def repeat_interleave(shape: Shape, x: Value, repeats: Any, dim: int | None = None, *_: Any) -> Value | None:
    if dim is None or not isinstance(repeats, int):
        return None
    axes = list(x.axes)
    axes[dim] = [*axes[dim], *wild(repeats)]
    return Value(axes)


def cat(shape: Shape, values: Sequence[Value], dim: int = 0) -> Value:
    values = [value for value in values if value.shape != (0,)]  # torch lets these pass, whatever the others are
    used(values)
    return Value(concatenate(values, dim % len(shape)))


def stack(shape: Shape, values: Sequence[Value], dim: int = 0) -> Value:
    dim %= len(shape)
    return cat(shape, [Value([*v.axes[:dim], [Atom(1)], *v.axes[dim:]]) for v in values], dim)


def slice_(shape: Shape, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    dim %= x.ndim
    if step != 1:
        fix_dims(x, [dim])
        return Value([*x.axes[:dim], fixed(shape[dim]), *x.axes[dim + 1 :]])
    first, last, _ = slice(start, end).indices(length(x.axes[dim]))
    return Value(take(x.axes, dim, first, last))


def narrow(shape: Shape, x: Value, dim: int, start: int, size: int) -> Value:
    return slice_(shape, x, dim, start, start + size if start + size else None)


def select(shape: Shape, x: Value, dim: int, index: int) -> Value:
    dim %= x.ndim
    index %= length(x.axes[dim])
    axes = take(x.axes, dim, index, index + 1)
    return Value([*axes[:dim], *axes[dim + 1 :]])


def unbind(shape: Sequence[Shape], x: Value, dim: int = 0) -> list[Value]:
    return [select(part, x, dim, index) for index, part in enumerate(shape)]


def split(shape: Sequence[Shape], x: Value, _sizes: Any, dim: int = 0) -> list[Value]:
    """Also chunk and tensor_split: where the parts end is known from the shapes that came out."""
    dim %= x.ndim
    out, start = [], 0
    for part in shape:
        out.append(Value(take(x.axes, dim, start, start + part[dim])))
        start += part[dim]
    return out


def diagonal_fixed(shape: Shape, x: Value, *_: Any) -> Value:
    """tril and triu: places in the last two axes matter."""
    return Value(fix_dims(x, [x.ndim - 2, x.ndim - 1]))


def roll(shape: Shape, x: Value, _shifts: Any, dims: Sequence[int] = ()) -> Value:
    return Value(fix_dims(x, dims or range(x.ndim)))


def flip(shape: Shape, x: Value, dims: Sequence[int]) -> Value:
    return roll(shape, x, None, dims)


def pad(shape: Shape, x: Value, widths: Sequence[int], mode: Any = "constant", *_: Any) -> Value:
    """Constant entries before and behind are parts of equal entries; other modes copy from certain places."""
    axes = list(x.axes)
    for number in range(len(widths) // 2):
        dim, (before, behind) = x.ndim - 1 - number, widths[2 * number : 2 * number + 2]
        if not before and not behind:
            continue
        if mode in ("reflect", "replicate", "circular") or min(before, behind) < 0 or not movable(axes[dim]):
            fix_dims(x, [dim])
            axes[dim] = fixed(shape[dim])
        else:
            parts = [*wild(before), one(axes[dim]), *wild(behind)]
            axes[dim] = [Atom(shape[dim], SUM, tuple(part for part in parts if part.size))]
    used([x])
    return Value(axes)


def cumulative(shape: Shape, x: Value, dim: int, *_: Any) -> Value:
    return Value(fix_dims(x, [dim]))


def reduce(shape: Shape, x: Value, dims: Any = None, *_: Any) -> Value:
    """Sums, means, extremes over some axes, or over all."""
    chosen = [dims] if type(dims) is int else dims
    gone = {dim % x.ndim for dim in (chosen if isinstance(chosen, Sequence) and chosen else range(x.ndim))}
    mix(x, gone)
    used([x])
    keep = len(shape) == x.ndim
    return Value([wild(1) if dim in gone else a for dim, a in enumerate(x.axes) if keep or dim not in gone])


def reduce_norm(shape: Shape, x: Value, _order: Any = None, dims: Any = None, *_: Any) -> Value:
    return reduce(shape, x, dims)


def arg_reduce(shape: Shape, x: Value, dim: int | None = None, *_: Any) -> Value:
    """argmax, argmin: which unit it was depends on their order."""
    fix_dims(x, range(x.ndim) if dim is None else [dim % x.ndim])
    return reduce(shape, x, dim)


def extreme_with_index(shape: Sequence[Shape], x: Value, dim: int, *_: Any) -> list[Value]:
    out = arg_reduce(shape[0], x, dim)
    return [out, Value(out.axes)]


def embedding(shape: Shape, table: Value, ids: Value, *_: Any) -> Value:
    fix_dims(table, [0])
    used([table])
    return Value([*ids.axes, table.axes[1]])


def index_select(shape: Shape, x: Value, dim: int, ids: Value) -> Value:
    dim %= x.ndim
    fix_dims(x, [dim])
    return Value([*x.axes[:dim], fixed(shape[dim]), *x.axes[dim + 1 :]])


def index(shape: Shape, x: Value, indices: Sequence[Value | None]) -> Value | None:
    """x[ids, :, ...]: axes that are indexed stay, the others move on."""
    at = [dim for dim, ids in enumerate(indices) if ids is not None]
    if not at or at != list(range(at[0], at[-1] + 1)):
        return None
    fix_dims(x, at)
    for ids in indices:
        if ids is not None:
            fix_dims(ids, range(ids.ndim))
    before, after = x.axes[: at[0]], x.axes[at[-1] + 1 :]
    new: list[Axis] = [fixed(n) for n in shape[len(before) : len(shape) - len(after)]]
    return Value([*before, *new, *after])


def equal_entries(shape: Shape, *_: Any) -> Value:
    return constant_value(shape)


def places(shape: Shape, *_: Any) -> Value:
    return unknown_value(shape)


def on_places(count: int) -> Rule:
    """Pooling and resizing: the last axes, so many, are places and matter; batch and channels do not."""

    def rule(shape: Shape, x: Value, *_: Any) -> Value:
        first = x.ndim - count
        fix_dims(x, range(first, x.ndim))
        used([x])
        return Value([*x.axes[:first], *(fixed(n) for n in shape[first:])])

    return rule


VIEWS: dict[str, Rule] = {
    **dict.fromkeys("view reshape _unsafe_view unflatten flatten squeeze unsqueeze ravel view_as".split(), view),
    **dict.fromkeys(
        "to _to_copy clone contiguous detach alias dropout feature_dropout lift_fresh_copy type_as positive".split(),
        same,
    ),
    **dict.fromkeys("expand expand_as broadcast_to".split(), expanded),
    **dict.fromkeys("transpose swapaxes swapdims".split(), transpose),
    **dict.fromkeys("t numpy_T".split(), flip_all),
    **dict.fromkeys("mT adjoint".split(), swap_last),
    "permute": permute,
    "movedim": movedim,
}

SHAPES: dict[str, Rule] = {
    "repeat": repeat,
    "tile": tile,
    "repeat_interleave": repeat_interleave,
    **dict.fromkeys("cat concat concatenate".split(), cat),
    "stack": stack,
    "slice": slice_,
    "narrow": narrow,
    "select": select,
    "unbind": unbind,
    **dict.fromkeys("split split_with_sizes chunk tensor_split".split(), split),
    **dict.fromkeys("tril triu".split(), diagonal_fixed),
    "roll": roll,
    "flip": flip,
    **dict.fromkeys("pad constant_pad_nd".split(), pad),
    **dict.fromkeys("cumsum cumprod logcumsumexp".split(), cumulative),
    **dict.fromkeys("sum mean amax amin logsumexp all any prod var std".split(), reduce),
    **dict.fromkeys("linalg_vector_norm norm".split(), reduce_norm),
    **dict.fromkeys("argmax argmin".split(), arg_reduce),
    "embedding": embedding,
    "index_select": index_select,
    "index": index,
    **dict.fromkeys(
        "zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full".split(), equal_entries
    ),
    **dict.fromkeys("arange linspace eye scalar_tensor".split(), places),
    **{f"{kind}_pool{n}d": on_places(n) for kind in ("max", "avg", "adaptive_avg") for n in (1, 2, 3)},
    **{f"upsample_{kind}{n}d": on_places(n) for kind in ("nearest", "nearest_exact") for n in (1, 2, 3)},
    **{f"upsample_{kind}2d": on_places(2) for kind in ("bilinear", "bicubic")},
    **{f"{kind}.dim": extreme_with_index for kind in ("max", "min")},
    **{f"{kind}.default": reduce for kind in ("max", "min")},
}
