"""Explicit vectors in kernel bodies, for what a compiler does not find in loops over scalars.

`emit` makes a helper out of a function that writes LLVM instructions through `Vectors`, where a
vector is an object with operators::

    def twice(v, source, target):               # both are addresses
        x = v.load(source)
        v.store(x + x, target)

    double = emit(real, twice)                  # in a body: double(address_of_x, address_of_y)

A vector has the machine's widest registers' size. Addresses are integers, offsets are bytes.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


@functools.cache
def features() -> tuple[int, int]:
    """The bytes of the machine's widest vector register, and the number of these registers."""
    import llvmlite.binding as llvm

    found = llvm.get_host_cpu_features()
    if found.get("avx512f"):
        return 64, 32
    if found.get("avx"):
        return 32, 16
    return 16, 32 if "aarch64" in llvm.get_process_triple() else 16


def lanes(real: Any) -> int:
    """Numbers of the type `real` in a vector."""
    return features()[0] // np.dtype(real).itemsize


class Vector:
    """A vector of floating-point numbers, or of one number in all lanes."""

    __slots__ = ("of", "value")

    def __init__(self, of: Vectors, value: Any) -> None:
        self.of, self.value = of, value

    def __add__(self, other: Vector) -> Vector:
        return Vector(self.of, self.of.builder.fadd(self.value, other.value))

    def __sub__(self, other: Vector) -> Vector:
        return Vector(self.of, self.of.builder.fsub(self.value, other.value))

    def __mul__(self, number: float) -> Vector:
        return Vector(self.of, self.of.builder.fmul(self.value, self.of.constant(number)))

    def plus(self, number: float, other: Vector) -> Vector:
        """``self + number * other``, rounded once where the machine can."""
        return self.of.fma(Vector(self.of, self.of.constant(number)), other, self)


class Vectors:
    """Writes vector instructions at the place of a builder."""

    def __init__(self, builder: Any, real: Any) -> None:
        from llvmlite import ir

        self.ir, self.builder = ir, builder
        self.bytes = np.dtype(real).itemsize
        self.lanes = lanes(real)
        self.number = ir.FloatType() if self.bytes == 4 else ir.DoubleType()
        self.kind = ir.VectorType(self.number, self.lanes)
        self.word = ir.IntType(64)

    def integer(self, value: int) -> Any:
        """A constant for addresses."""
        return self.ir.Constant(self.word, value)

    def constant(self, number: float) -> Any:
        """`number` in all lanes."""
        return self.ir.Constant(self.kind, [self.ir.Constant(self.number, number)] * self.lanes)

    def zero(self) -> Vector:
        """Zeros."""
        return Vector(self, self.constant(0.0))

    def at(self, base: Any, offset: Any) -> Any:
        """The address `offset` bytes (an int or an instruction) behind `base`."""
        if isinstance(offset, int):
            offset = self.integer(offset)
        return self.builder.add(base, offset)

    def load(self, place: Any) -> Vector:
        """The vector at an address, which need not be aligned."""
        pointer = self.builder.inttoptr(place, self.kind.as_pointer())
        return Vector(self, self.builder.load(pointer, typ=self.kind, align=self.bytes))

    def store(self, x: Vector, place: Any) -> None:
        """Write a vector to an address."""
        pointer = self.builder.inttoptr(place, self.kind.as_pointer())
        self.builder.store(x.value, pointer, align=self.bytes)

    def first(self, count: Any) -> Any:
        """A mask of the first `count` lanes (an integer at run time)."""
        half = self.ir.IntType(32)
        kind = self.ir.VectorType(half, self.lanes)
        nothing = self.ir.Constant(kind, self.ir.Undefined)
        one = self.builder.insert_element(nothing, self.builder.trunc(count, half), half(0))
        every = self.builder.shuffle_vector(one, nothing, self.ir.Constant(kind, None))
        numbers = self.ir.Constant(kind, list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, every)

    def _masked(self, name: str, result: Any, *arguments: Any) -> Any:
        name = f"llvm.masked.{name}.v{self.lanes}f{8 * self.bytes}.p0"
        function = self.builder.module.globals.get(name)
        if function is None:
            kind = self.ir.FunctionType(result, [a.type for a in arguments])
            function = self.ir.Function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)

    def load_some(self, place: Any, mask: Any) -> Vector:
        """The lanes of `mask` from an address, zeros in the others, which are not read."""
        pointer = self.builder.inttoptr(place, self.kind.as_pointer())
        align = self.ir.Constant(self.ir.IntType(32), self.bytes)
        found = self._masked("load", self.kind, pointer, align, mask, self.constant(0.0))
        return Vector(self, found)

    def store_some(self, x: Vector, place: Any, mask: Any) -> None:
        """Write the lanes of `mask` to an address."""
        pointer = self.builder.inttoptr(place, self.kind.as_pointer())
        align = self.ir.Constant(self.ir.IntType(32), self.bytes)
        self._masked("store", self.ir.VoidType(), x.value, pointer, align, mask)

    def word_at(self, place: Any) -> Any:
        """The 64-bit integer at an address."""
        return self.builder.load(
            self.builder.inttoptr(place, self.word.as_pointer()), typ=self.word, align=8
        )

    def broadcast(self, place: Any) -> Vector:
        """The number at an address, in all lanes."""
        pointer = self.builder.inttoptr(place, self.number.as_pointer())
        number = self.builder.load(pointer, typ=self.number, align=self.bytes)
        first = self.builder.insert_element(
            self.ir.Constant(self.kind, self.ir.Undefined), number, self.ir.IntType(32)(0)
        )
        return self.shuffle(Vector(self, first), None, [0] * self.lanes)

    def shuffle(self, x: Vector, y: Vector | None, places: Sequence[int]) -> Vector:
        """Lanes of `x` (0 ... lanes - 1) and `y` (lanes ...) in a new order."""
        other = self.ir.Constant(self.kind, self.ir.Undefined) if y is None else y.value
        mask = self.ir.Constant(self.ir.VectorType(self.ir.IntType(32), self.lanes), list(places))
        return Vector(self, self.builder.shuffle_vector(x.value, other, mask))

    def fma(self, x: Vector, y: Vector, z: Vector) -> Vector:
        """``x * y + z``."""
        name = f"llvm.fmuladd.v{self.lanes}f{8 * self.bytes}"
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            kind = self.ir.FunctionType(self.kind, [self.kind] * 3)
            function = self.ir.Function(module, kind, name)
        return Vector(self, self.builder.call(function, [x.value, y.value, z.value]))

    def loop(
        self, count: Any, carried: Sequence[Any], step: Callable[[list[Any]], Sequence[Any]]
    ) -> list[Any]:
        """Run `step` `count` times (at least once) on values carried from one turn to the next."""
        builder = self.builder
        before = builder.block
        body, behind = (builder.append_basic_block(n) for n in ("turn", "done"))
        builder.branch(body)
        builder.position_at_end(body)
        left = builder.phi(self.word)
        left.add_incoming(count, before)
        phis = []
        for start in carried:
            value = start.value if isinstance(start, Vector) else start
            phi = builder.phi(value.type)
            phi.add_incoming(value, before)
            phis.append((phi, isinstance(start, Vector)))
        results = step([Vector(self, p) if vector else p for p, vector in phis])
        fewer = builder.sub(left, self.integer(1))
        end = builder.block
        left.add_incoming(fewer, end)
        for (phi, _), result in zip(phis, results, strict=True):
            phi.add_incoming(result.value if isinstance(result, Vector) else result, end)
        builder.cbranch(builder.icmp_signed(">", fewer, self.integer(0)), body, behind)
        builder.position_at_end(behind)
        return list(results)

    def transpose(self, rows: Sequence[Vector]) -> list[Vector]:
        """As many vectors as there are lanes, seen as a square matrix, transposed."""
        found, n, half = list(rows), self.lanes, self.lanes // 2
        # Each stage exchanges one bit of the row's number with one of the lane's.
        while half:
            low = [i + (n - half if i & half else 0) for i in range(n)]
            high = [i + half if not i & half else i + n for i in range(n)]
            for i in range(n):
                if not i & half:
                    x, y = found[i], found[i + half]
                    found[i] = self.shuffle(x, y, low)
                    found[i + half] = self.shuffle(x, y, high)
            half //= 2
        return found


def outline(real: Any, write: Callable[..., None], name: str) -> Callable[..., None]:
    """A function of its own, written once per module, that other `write` functions call.

    Returns:
        ``call(v, *arguments)``.
    """
    count = len(inspect.signature(write).parameters) - 1

    def call(v: Vectors, *arguments: Any) -> None:
        from llvmlite import ir

        module = v.builder.module
        function = module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * count)
            function = ir.Function(module, kind, name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            inner = ir.IRBuilder(function.append_basic_block())
            write(Vectors(inner, real), *function.args)
            inner.ret_void()
        v.builder.call(function, arguments)

    return call


_numbers = itertools.count()


def emit(real: Any, write: Callable[..., None], *, alone: bool = False) -> Any:
    """A helper for kernel bodies that runs the instructions of ``write(v, *arguments)``.

    Args:
        real: The floating type.
        write: Its first argument is a `Vectors`, the others are integers at run time.
        alone: Whether it stays a function of its own, for long code with several callers.
    """
    from numba import types
    from numba.extending import intrinsic

    count = len(inspect.signature(write).parameters) - 1
    code = outline(real, write, f"{write.__name__}_{next(_numbers)}") if alone else write

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code(Vectors(builder, real), *args)
        return context.get_dummy_value()

    def run(typing: Any, *arguments: Any) -> Any:
        return types.void(*[types.int64] * count), generate

    # Numba wants a fixed list of parameters: those of `write`, the typing context for `v`.
    run.__signature__ = inspect.signature(write)  # type: ignore[attr-defined]
    return intrinsic(run)
