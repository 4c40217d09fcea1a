"""Sums of products in register tiles, with one sample in each lane of a vector register.

A tile is a block of sums, rows by columns, that stays in registers while the terms go by. Which numbers a term
multiplies is read from a table of taps, so that one piece of code is a convolution with any kernel, padding and stride,
a linear layer, and the gradients of both. Each sum is one chain of multiply-adds in the order of the table, whatever
the shape of the tile: no bit depends on how sums are laid into tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload
from numba.np.numpy_support import as_dtype

from kernels.lanes.network import LARGEST_POOL
from kernels.mlp.tiles import OPTIONS, REGISTER, compiled, lanes

# Accumulators, and columns of a tile: with the columns' operands and one of the rows they fill 32 registers, or 16.
ACCUMULATORS, COLUMNS = (24, 6) if REGISTER == 64 else (12, 3)
ROWS = 8
SHAPES = [(r, c) for c in range(1, COLUMNS + 1) for r in range(1, min(ROWS, ACCUMULATORS // c) + 1)]
INDEX, WORD = ir.IntType(64), ir.IntType(32)


def instructions(function: Callable[..., Any]) -> Any:
    """numba's `intrinsic`, whose type hides that the first argument is numba's."""
    return intrinsic(function)


class Vectors:
    """LLVM instructions on whole registers of a flat array."""

    def __init__(self, builder: Any, scalar: Any) -> None:
        self.builder, self.scalar = builder, scalar
        self.width = REGISTER // (8 if isinstance(scalar, ir.DoubleType) else 4)
        self.kind = ir.VectorType(scalar, self.width)

    def load(self, data: Any, offset: Any) -> Any:
        """The register that begins at an offset, which must be a whole number of registers."""
        value = self.builder.load(self._pointer(data, offset))
        value.align = REGISTER
        return value

    def store(self, value: Any, data: Any, offset: Any) -> None:
        self.builder.store(value, self._pointer(data, offset)).align = REGISTER

    def splat(self, data: Any, offset: Any) -> Any:
        """One number, in all lanes."""
        undefined, first = ir.Constant(self.kind, ir.Undefined), ir.Constant(WORD, 0)
        one = self.builder.insert_element(undefined, self.builder.load(self.builder.gep(data, [offset])), first)
        return self.builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(WORD, self.width), None))

    def constant(self, value: float) -> Any:
        return ir.Constant(self.kind, [value] * self.width)

    def loop(self, count: Any, values: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """What becomes of values in registers that `body(k, values)` replaces, for k below count."""
        builder, before = self.builder, self.builder.block
        inside, after = builder.append_basic_block("terms"), builder.append_basic_block("sums")
        builder.cbranch(builder.icmp_signed(">", count, ir.Constant(INDEX, 0)), inside, after)
        builder.position_at_end(inside)
        k = builder.phi(INDEX)
        k.add_incoming(ir.Constant(INDEX, 0), before)
        running = [builder.phi(value.type) for value in values]
        changed = body(k, list(running))
        following = builder.add(k, ir.Constant(INDEX, 1))
        k.add_incoming(following, inside)
        builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
        builder.position_at_end(after)
        ends = []
        for phi, begin, end in zip(running, values, changed, strict=True):
            phi.add_incoming(begin, before)
            phi.add_incoming(end, inside)
            ends.append(builder.phi(begin.type))
            ends[-1].add_incoming(begin, before)
            ends[-1].add_incoming(end, inside)
        return ends

    def _pointer(self, data: Any, offset: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(data, [offset]), self.kind.as_pointer())


def _pointers(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """Arguments of an intrinsic, arrays as pointers to their data."""
    return [
        context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
        for kind, value in zip(signature.args, arguments, strict=True)
    ]


def _switch(builder: Any, code: Any, cases: dict[int, Any], body: Callable[[Any], None]) -> None:
    """The instructions of `body(case)` for the case whose number is `code`."""
    done = builder.append_basic_block("done")
    choice = builder.switch(code, done)
    for number, case in cases.items():
        block = builder.append_basic_block(f"case{number}")
        choice.add_case(ir.Constant(INDEX, number), block)
        builder.position_at_end(block)
        body(case)
        builder.branch(done)
    builder.position_at_end(done)


def _times(builder: Any, step: Any, count: int) -> Any:
    return builder.mul(step, ir.Constant(INDEX, count))


def _tile(builder: Any, rows: int, columns: int, splat: bool, arguments: Any) -> None:
    """One tile; the arguments are those of the intrinsics, arrays as pointers."""
    left, l0, l_row, right, r0, r_column, table, t0, terms, start, s0, s_row, y, y0, y_row, y_column = arguments
    vectors = Vectors(builder, right.type.pointee)
    sums = [(r, c) for r in range(rows) for c in range(columns)]
    places = [builder.add(builder.add(y0, _times(builder, y_row, r)), _times(builder, y_column, c)) for r, c in sums]
    if splat:
        begins = [vectors.splat(start, builder.add(s0, _times(builder, s_row, r))) for r in range(rows)]
        initial = [begins[r] for r, _ in sums]
    else:
        initial = [vectors.load(y, place) for place in places]

    def term(k: Any, running: list[Any]) -> list[Any]:
        entry = builder.add(t0, _times(builder, k, 2))
        l_tap = builder.load(builder.gep(table, [entry]))
        r_tap = builder.load(builder.gep(table, [builder.add(entry, ir.Constant(INDEX, 1))]))
        l_at, r_at = builder.add(l0, l_tap), builder.add(r0, r_tap)
        across = [vectors.load(right, builder.add(r_at, _times(builder, r_column, c))) for c in range(columns)]
        added = []
        for r in range(rows):
            offset = builder.add(l_at, _times(builder, l_row, r))
            down = vectors.splat(left, offset) if splat else vectors.load(left, offset)
            for c in range(columns):
                product = builder.fmul(down, across[c], flags=["contract"])  # fuse, and nothing else
                added.append(builder.fadd(product, running[r * columns + c], flags=["contract"]))
        return added

    for total, place in zip(vectors.loop(terms, initial, term), places, strict=True):
        vectors.store(total, y, place)


def _tiles(splat: bool) -> Callable[..., None]:
    """An intrinsic: y[r, c] = start[r, c] + sum over k of left[r, k] * right[k, c], for a tile of any of `SHAPES`.

    All arrays are flat; each comes with the offset of its block and the distances of its rows and columns, the table
    with where its pairs (offset in left, offset in right) begin. With `splat` left and start are single numbers for all
    lanes; else they are vectors, and start is y.
    """

    @instructions
    def tiles(
        typing: Any, rows: Any, columns: Any, left: Any, l0: Any, l_row: Any, right: Any, r0: Any, r_column: Any,
        table: Any, t0: Any, terms: Any, start: Any, s0: Any, s_row: Any, y: Any, y0: Any, y_row: Any, y_column: Any,
    ) -> Any:  # fmt: skip  # intrinsics take no *args
        i = types.int64
        signature = types.void(i, i, left, i, i, right, i, i, table, i, i, start, i, i, y, i, i, i)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointers = _pointers(context, builder, signature, arguments)
            code = builder.add(_times(builder, arguments[0], 16), arguments[1])
            shapes = {16 * r + c: (r, c) for r, c in SHAPES}
            _switch(builder, code, shapes, lambda shape: _tile(builder, shape[0], shape[1], splat, pointers[2:]))
            return context.get_dummy_value()

        return signature, generate

    return tiles


_gathered, _outer = _tiles(True), _tiles(False)


@instructions
def once(typing: Any) -> Any:
    """Keeps LLVM from copying the function it is called in into its callers: that of all tiles is long to compile."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


# As arguments: numba compiles a function once more for each number that is written out.
ZERO, ONE = np.int64(0), np.int64(1)
# What is called in one place: numba puts it there itself, and LLVM sees the tiles below it once less. Not for what walks
# over the strips of a convolution: that then takes a sixth longer.
inlined = njit(inline="always", **OPTIONS)


@compiled
def _share(count: int, most: int) -> int:
    """How many of `count` the next tile takes, so that tiles are about equal and none has more than `most`."""
    if count <= most:
        return count
    tiles = (count + most - 1) // most
    return (count + tiles - 1) // tiles


@compiled
def gathered(
    rows: int, columns: int, left: np.ndarray, l0: int, l_row: int, right: np.ndarray, r0: int, r_column: int,
    table: np.ndarray, t0: int, terms: int, start: np.ndarray, s0: int, s_row: int, y: np.ndarray, y0: int, y_row: int,
    y_column: int,
) -> None:  # fmt: skip  # as the intrinsic
    """y[r, c] = start[r] + sum over taps of left[r, tap] * right[tap, c]; `left` and `start` are the same in all lanes.

    Offsets and distances are in numbers. The table is flat, pairs of offsets (left, right) from t0 on.
    """
    once()
    c = 0
    while c < columns:
        across = _share(columns - c, COLUMNS)
        most = min(ROWS, ACCUMULATORS // across)
        r = 0
        while r < rows:
            down = _share(rows - r, most)
            _gathered(
                down, across, left, l0 + r * l_row, l_row, right, r0 + c * r_column, r_column, table, t0, terms, start,
                s0 + r * s_row, s_row, y, y0 + r * y_row + c * y_column, y_row, y_column,
            )  # fmt: skip
            r += down
        c += across


@compiled
def outer(
    rows: int, columns: int, left: np.ndarray, l0: int, l_row: int, right: np.ndarray, r0: int, r_column: int,
    table: np.ndarray, t0: int, terms: int, y: np.ndarray, y0: int, y_row: int, y_column: int,
) -> None:  # fmt: skip  # as the intrinsic
    """y[r, c] += sum over taps of left[r, tap] * right[tap, c], lane by lane; the table is as in `gathered`."""
    once()
    c = 0
    while c < columns:
        across = _share(columns - c, COLUMNS)
        most = min(ROWS, ACCUMULATORS // across)
        r = 0
        while r < rows:
            down = _share(rows - r, most)
            _outer(
                down, across, left, l0 + r * l_row, l_row, right, r0 + c * r_column, r_column, table, t0, terms, y, 0,
                0, y, y0 + r * y_row + c * y_column, y_row, y_column,
            )  # fmt: skip
            r += down
        c += across


def _peak(builder: Any, side: int, indexed: bool, arguments: Any) -> None:
    """One window of side * side positions; the arguments are those of `peak`, arrays as pointers."""
    x, x0, x_row, y, y0, index, i0 = arguments
    vectors = Vectors(builder, x.type.pointee)
    values = []
    for row in range(side):
        for column in range(side):
            inside = ir.Constant(INDEX, column * vectors.width)
            values.append(vectors.load(x, builder.add(builder.add(x0, _times(builder, x_row, row)), inside)))
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
            pointers = _pointers(context, builder, signature, arguments)
            windows = {one: one for one in range(2, LARGEST_POOL + 1)}
            _switch(builder, arguments[0], windows, lambda one: _peak(builder, one, indexed, pointers[1:]))
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
        count, x, x0, y, y0, place, p0 = _pointers(context, builder, signature, arguments)
        vectors = Vectors(builder, x.type.pointee)

        def compare(k: Any, values: list[Any]) -> list[Any]:
            largest, first, here = values
            value = vectors.load(x, builder.add(x0, _times(builder, k, vectors.width)))
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
            count, x, x0, y, y0 = _pointers(context, builder, signature, arguments)
            vectors = Vectors(builder, x.type.pointee)
            other = vectors.load(y, y0)

            def one(k: Any, _: list[Any]) -> list[Any]:
                at = builder.add(x0, _times(builder, k, vectors.width))
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
        count, x, x0, y, y0 = _pointers(context, builder, signature, arguments)
        vectors = Vectors(builder, x.type.pointee)

        def one(k: Any, _: list[Any]) -> list[Any]:
            value, width = vectors.load(x, builder.add(x0, _times(builder, k, vectors.width))), vectors.width
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
        count, x, x0, y, y0 = _pointers(context, builder, signature, arguments)
        vectors = Vectors(builder, x.type.pointee)

        def one(k: Any, values: list[Any]) -> list[Any]:
            at = builder.add(x0, _times(builder, k, vectors.width))
            return [builder.fadd(values[0], vectors.load(x, at))]

        vectors.store(vectors.loop(count, [vectors.constant(0.0)], one)[0], y, y0)
        return context.get_dummy_value()

    return types.void(i, x, i, y, i), generate


@instructions
def differing(typing: Any, x: Any, x0: Any, y: Any, y0: Any) -> Any:
    """A word with a bit for each lane, from the most significant on: 1 where two registers differ."""
    i = types.int64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, x0, y, y0 = _pointers(context, builder, signature, arguments)
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


def lanes_of(array: np.ndarray) -> int:
    """Samples in a register of the array's type; in compiled code a constant, which LLVM makes whole registers of."""
    return lanes(array.dtype)


@overload(lanes_of)
def _lanes_of(array: Any) -> Callable[..., Any]:
    count = np.int64(lanes(as_dtype(array.dtype)))  # no literal, see ZERO

    def constant(array: Any) -> Any:
        return count

    return constant
