"""The inner loops of shortest augmenting paths, a register of columns at a time: relax distances, find the nearest.

LLVM makes no vector code of a loop that looks for the place of a minimum, so these are written as its instructions.
All arrays are flat and begin at whole registers; columns beyond the last hold infinite costs. Infinity is never the
nearest unless nothing else is left.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from kernels.lanes.vectors import INDEX, WORD, Vectors, instructions, pointers, times


class _Columns:
    """Registers of numbers, and registers of as many column numbers of the same size."""

    def __init__(self, builder: Any, scalar: Any) -> None:
        self.builder, self.vectors = builder, Vectors(builder, scalar)
        self.width = self.vectors.width
        self.integer = INDEX if isinstance(scalar, ir.DoubleType) else WORD
        self.places = ir.VectorType(self.integer, self.width)
        self.infinity = self.vectors.constant(float("inf"))

    def offset(self, start: Any, k: Any) -> Any:
        return self.builder.add(start, times(self.builder, k, self.width))

    def places_at(self, data: Any, k: Any) -> Any:
        pointer = self.builder.gep(data, [times(self.builder, k, self.width)])
        return self.builder.bitcast(pointer, self.places.as_pointer())

    def splat(self, value: Any) -> Any:
        kind = ir.VectorType(value.type, self.width)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(WORD, 0))
        return self.builder.shuffle_vector(
            one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(WORD, self.width), None)
        )

    def nearest(self, count: Any, value: Any) -> tuple[Any, Any]:
        """Smallest of what `value(k)` gives for the registers k < count, and its column."""
        builder = self.builder
        first = ir.Constant(self.places, list(range(self.width)))
        step = ir.Constant(self.places, [self.width] * self.width)

        def body(k: Any, running: list[Any]) -> list[Any]:
            least, found, here = running
            one = value(k)
            closer = builder.fcmp_ordered("<", one, least)
            return [
                builder.select(closer, one, least),
                builder.select(closer, here, found),
                builder.add(here, step),
            ]

        least, found, _ = self.vectors.loop(count, [self.infinity, first, first], body)
        return self._of_lanes(least, found)

    def _of_lanes(self, values: Any, places: Any) -> tuple[Any, Any]:
        builder, least, half = self.builder, values, self.width // 2
        while half:
            order = ir.Constant(ir.VectorType(WORD, self.width), [lane ^ half for lane in range(self.width)])
            other = builder.shuffle_vector(least, ir.Constant(least.type, ir.Undefined), order)
            least = builder.select(builder.fcmp_ordered("<", other, least), other, least)
            half //= 2
        bits = builder.bitcast(builder.fcmp_ordered("==", values, least), ir.IntType(self.width))
        lane = builder.cttz(bits, ir.Constant(ir.IntType(1), 0))
        place = builder.extract_element(places, builder.zext(lane, WORD) if self.width < 32 else lane)
        place = place if self.integer == INDEX else builder.sext(place, INDEX)
        return builder.extract_element(least, ir.Constant(WORD, 0)), place


def _answer(context: Any, builder: Any, signature: Any, found: tuple[Any, Any]) -> Any:
    return context.make_tuple(builder, signature.return_type, list(found))


@instructions
def nearest(typing: Any, cost: Any, c0: Any, prices: Any, count: Any) -> Any:
    """Smallest of cost[c0 + j] - prices[j] over `count` registers, and its column."""
    i = types.int64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        cost, c0, prices, count = pointers(context, builder, signature, arguments)
        columns = _Columns(builder, cost.type.pointee)
        zero = ir.Constant(INDEX, 0)

        def value(k: Any) -> Any:
            row = columns.vectors.load(cost, columns.offset(c0, k))
            return builder.fsub(row, columns.vectors.load(prices, columns.offset(zero, k)))

        return _answer(context, builder, signature, columns.nearest(count, value))

    return types.Tuple((cost.dtype, i))(cost, i, prices, i), generate


@instructions
def leave(typing: Any, cost: Any, c0: Any, prices: Any, distances: Any, before: Any, row: Any, count: Any) -> Any:
    """As `nearest`; what it compares becomes `distances`, and `before` is `row` everywhere."""
    i = types.int64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        cost, c0, prices, distances, before, row, count = pointers(context, builder, signature, arguments)
        columns = _Columns(builder, cost.type.pointee)
        zero = ir.Constant(INDEX, 0)
        rows = columns.splat(builder.trunc(row, columns.integer) if columns.integer != INDEX else row)

        def value(k: Any) -> Any:
            at = columns.offset(zero, k)
            row = columns.vectors.load(cost, columns.offset(c0, k))
            distance = builder.fsub(row, columns.vectors.load(prices, at))
            columns.vectors.store(distance, distances, at)
            builder.store(rows, columns.places_at(before, k))
            return distance

        return _answer(context, builder, signature, columns.nearest(count, value))

    return types.Tuple((cost.dtype, i))(cost, i, prices, distances, before, i, i), generate


@instructions
def relax(
    typing: Any, cost: Any, c0: Any, prices: Any, distances: Any, before: Any, row: Any, less: Any, count: Any
) -> Any:
    """Distances by way of a row, cost[c0 + j] - prices[j] - less, where they are shorter; the nearest, as `nearest`."""
    i = types.int64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        cost, c0, prices, distances, before, row, less, count = pointers(context, builder, signature, arguments)
        columns = _Columns(builder, cost.type.pointee)
        zero = ir.Constant(INDEX, 0)
        rows = columns.splat(builder.trunc(row, columns.integer) if columns.integer != INDEX else row)
        shift = columns.splat(less)

        def value(k: Any) -> Any:
            at = columns.offset(zero, k)
            row = columns.vectors.load(cost, columns.offset(c0, k))
            by_way = builder.fsub(builder.fsub(row, columns.vectors.load(prices, at)), shift)
            known = columns.vectors.load(distances, at)
            shorter = builder.fcmp_ordered("<", by_way, known)
            distance = builder.select(shorter, by_way, known)
            columns.vectors.store(distance, distances, at)
            place = columns.places_at(before, k)
            builder.store(builder.select(shorter, rows, builder.load(place)), place)
            return distance

        return _answer(context, builder, signature, columns.nearest(count, value))

    return types.Tuple((cost.dtype, i))(cost, i, prices, distances, before, i, cost.dtype, i), generate
