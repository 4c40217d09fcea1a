"""What happens to a register of each channel, class or weight: largest, sums, and windows of max pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from kernels.lanes.network import LARGEST_POOL
from kernels.lanes.vectors import INDEX, WORD, Vectors, instructions, pointers, switch, times


def _peak(builder: Any, side: int, indexed: bool, arguments: Any) -> None:
    """One window of side * side positions; the arguments are those of `peak`, arrays as pointers."""
    x, x0, x_row, y, y0, index, i0 = arguments
    vectors = Vectors(builder, x.type.pointee)
    values = []
    for row in range(side):
        for column in range(side):
            inside = ir.Constant(INDEX, column * vectors.width)
            values.append(vectors.load(x, builder.add(builder.add(x0, times(builder, x_row, row)), inside)))
    largest, lost = values[0], None
    for value in values[1:]:
        largest = builder.select(builder.fcmp_ordered(">", value, largest), value, largest)
    for a, b in zip(values[::2], [*values[1::2], values[-1]], strict=False):
        one = builder.fcmp_unordered("uno", a, b)
        lost = one if lost is None else builder.or_(lost, one)
    vectors.store(builder.select(lost, vectors.constant(float("nan")), largest), y, y0)
    if indexed:
        first = vectors.constant(0.0)
        for number in range(len(values) - 1, 0, -1):
            first = builder.select(builder.fcmp_ordered("==", values[number], largest), vectors.constant(number), first)
        first = builder.select(builder.fcmp_ordered("==", values[0], largest), vectors.constant(0.0), first)
        vectors.store(first, index, i0)


def _peaks(indexed: bool) -> Callable[..., None]:
    """An intrinsic: y = largest of a window of `side` by `side` registers in x, NaN if one of them is.

    With `indexed` also which of them is the first largest, as a number.
    """

    @instructions
    def peaks(typing: Any, side: Any, x: Any, x0: Any, x_row: Any, y: Any, y0: Any, index: Any, i0: Any) -> Any:
        i = types.int64

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            flat = pointers(context, builder, signature, arguments)
            windows = {one: one for one in range(2, LARGEST_POOL + 1)}
            switch(builder, arguments[0], windows, lambda one: _peak(builder, one, indexed, flat[1:]))
            return context.get_dummy_value()

        return types.void(i, x, i, i, y, i, index, i), generate

    return peaks


peak, peak_and_place = _peaks(False), _peaks(True)


@instructions
def first_largest(typing: Any, count: Any, x: Any, x0: Any, y: Any, y0: Any, place: Any, p0: Any) -> Any:
    """y = largest of `count` registers in x, place = which is the first of them, as a number.

    NaN is larger than all, as in torch.
    """
    i = types.int64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count, x, x0, y, y0, place, p0 = pointers(context, builder, signature, arguments)
        vectors = Vectors(builder, x.type.pointee)

        def compare(k: Any, values: list[Any]) -> list[Any]:
            largest, first, here = values
            value = vectors.load(x, builder.add(x0, times(builder, k, vectors.width)))
            lost = builder.and_(
                builder.fcmp_unordered("uno", value, value), builder.fcmp_ordered("ord", largest, largest)
            )
            takes = builder.or_(builder.fcmp_ordered(">", value, largest), lost)
            following = builder.fadd(here, vectors.constant(1.0))
            return [builder.select(takes, value, largest), builder.select(takes, here, first), following]

        begin = [vectors.load(x, x0), vectors.constant(0.0), vectors.constant(0.0)]
        largest, first, _ = vectors.loop(count, begin, compare)
        vectors.store(largest, y, y0)
        vectors.store(first, place, p0)
        return context.get_dummy_value()

    return types.void(i, x, i, y, i, place, i), generate


def _by_register(operation: str) -> Any:
    """An intrinsic: each of `count` registers in x becomes itself and the register y, by an operation of LLVM."""

    @instructions
    def change(typing: Any, count: Any, x: Any, x0: Any, y: Any, y0: Any) -> Any:
        i = types.int64

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            count, x, x0, y, y0 = pointers(context, builder, signature, arguments)
            vectors = Vectors(builder, x.type.pointee)
            other = vectors.load(y, y0)

            def one(k: Any, _: list[Any]) -> list[Any]:
                at = builder.add(x0, times(builder, k, vectors.width))
                vectors.store(getattr(builder, operation)(vectors.load(x, at), other), x, at)
                return []

            vectors.loop(count, [], one)
            return context.get_dummy_value()

        return types.void(i, x, i, y, i), generate

    return change


subtract, scale = _by_register("fsub"), _by_register("fmul")


@instructions
def lane_sums(typing: Any, count: Any, x: Any, x0: Any, y: Any, y0: Any) -> Any:
    """y[k] = sum over the lanes of register k of x, for k below `count`: halves first, then their halves."""
    i = types.int64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count, x, x0, y, y0 = pointers(context, builder, signature, arguments)
        vectors = Vectors(builder, x.type.pointee)

        def one(k: Any, _: list[Any]) -> list[Any]:
            value, width = vectors.load(x, builder.add(x0, times(builder, k, vectors.width))), vectors.width
            while width > 1:
                width //= 2
                halves = [
                    builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(WORD, width), [*places]))
                    for places in (range(width), range(width, 2 * width))
                ]
                value = builder.fadd(*halves)
            single = builder.extract_element(value, ir.Constant(WORD, 0))
            builder.store(single, builder.gep(y, [builder.add(y0, k)]))
            return []

        vectors.loop(count, [], one)
        return context.get_dummy_value()

    return types.void(i, x, i, y, i), generate


@instructions
def total(typing: Any, count: Any, x: Any, x0: Any, y: Any, y0: Any) -> Any:
    """y = sum of `count` registers in x, from the first to the last."""
    i = types.int64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count, x, x0, y, y0 = pointers(context, builder, signature, arguments)
        vectors = Vectors(builder, x.type.pointee)

        def one(k: Any, values: list[Any]) -> list[Any]:
            at = builder.add(x0, times(builder, k, vectors.width))
            return [builder.fadd(values[0], vectors.load(x, at))]

        vectors.store(vectors.loop(count, [vectors.constant(0.0)], one)[0], y, y0)
        return context.get_dummy_value()

    return types.void(i, x, i, y, i), generate


@instructions
def differing(typing: Any, x: Any, x0: Any, y: Any, y0: Any) -> Any:
    """A word with a bit for each lane, from the most significant on: 1 where two registers differ."""
    i = types.int64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, x0, y, y0 = pointers(context, builder, signature, arguments)
        vectors = Vectors(builder, x.type.pointee)
        mask = builder.fcmp_unordered("!=", vectors.load(x, x0), vectors.load(y, y0))
        bits = builder.zext(builder.bitcast(mask, ir.IntType(vectors.width)), INDEX)
        return builder.bitreverse(bits)

    return types.uint64(x, i, y, i), generate


@instructions
def ones(typing: Any, word: Any) -> Any:
    """How many bits of a word are 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate
