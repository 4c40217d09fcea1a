"""LLVM instructions on whole vector registers, for what LLVM does not find in loops, and how numba calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload
from numba.np.numpy_support import as_dtype

from kernels.mlp.tiles import OPTIONS, REGISTER, lanes

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


def pointers(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """Arguments of an intrinsic, arrays as pointers to their data."""
    return [
        context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
        for kind, value in zip(signature.args, arguments, strict=True)
    ]


def switch(builder: Any, code: Any, cases: dict[int, Any], body: Callable[[Any], None]) -> None:
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


def times(builder: Any, step: Any, count: int) -> Any:
    return builder.mul(step, ir.Constant(INDEX, count))


@instructions
def once(typing: Any) -> Any:
    """Keeps LLVM from copying the function it is called in into its callers: that of all tiles is long to compile."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


# As arguments: numba compiles a function once more for each number that is written out.
ZERO, ONE = np.int64(0), np.int64(1)
# What is called in one place: numba puts it there itself, and LLVM sees the tiles below it once less. Not for what
# walks over the strips of a convolution: that then takes a sixth longer.
inlined = njit(inline="always", **OPTIONS)


def lanes_of(array: np.ndarray) -> int:
    """Samples in a register of the array's type; in compiled code a constant, which LLVM makes whole registers of."""
    return lanes(array.dtype)


@overload(lanes_of)
def _lanes_of(array: Any) -> Callable[..., Any]:
    count = np.int64(lanes(as_dtype(array.dtype)))  # no literal, see ZERO

    def constant(array: Any) -> Any:
        return count

    return constant
