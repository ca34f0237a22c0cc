"""Words that threads share, for kernel bodies: each helper is one instruction, all in one order.

Places are addresses of 64-bit integers.
"""

from __future__ import annotations

from typing import Any


def _helper(count: int, result: str, generate: Any) -> Any:
    """An intrinsic of `count` integers that writes ``generate(builder, ir, *values)``."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    kind = getattr(types, result)(*[types.int64] * count)

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = generate(builder, ir, *args)
        return context.get_dummy_value() if value is None else value

    forms = {
        0: lambda typing: (kind, write),
        1: lambda typing, a: (kind, write),
        2: lambda typing, a, b: (kind, write),
        3: lambda typing, a, b, c: (kind, write),
        4: lambda typing, a, b, c, d: (kind, write),
        5: lambda typing, a, b, c, d, e: (kind, write),
    }
    return intrinsic(forms[count])


def _word(builder: Any, ir: Any, place: Any) -> Any:
    return builder.inttoptr(place, ir.IntType(64).as_pointer())


def load() -> Any:
    """A helper: the word at a place."""
    return _helper(
        1,
        "int64",
        lambda builder, ir, place: builder.load_atomic(
            _word(builder, ir, place), "seq_cst", 8, typ=ir.IntType(64)
        ),
    )


def store() -> Any:
    """A helper: write a word to a place."""

    def generate(builder: Any, ir: Any, place: Any, value: Any) -> None:
        builder.store_atomic(value, _word(builder, ir, place), "seq_cst", 8)

    return _helper(2, "void", generate)


def add() -> Any:
    """A helper: add to the word at a place; what it was before."""
    return _helper(
        2,
        "int64",
        lambda builder, ir, place, value: builder.atomic_rmw(
            "add", _word(builder, ir, place), value, "seq_cst"
        ),
    )


def exchange() -> Any:
    """A helper: whether the word at a place was as expected, and has now the new value."""

    def generate(builder: Any, ir: Any, place: Any, expected: Any, value: Any) -> Any:
        pair = builder.cmpxchg(_word(builder, ir, place), expected, value, "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return _helper(3, "boolean", generate)


def pause() -> Any:
    """A helper: tell the processor that this thread waits in a loop."""

    def generate(builder: Any, ir: Any) -> None:
        processor = builder.module.triple.split("-")[0]
        arguments: list[Any] = []
        if processor in ("x86_64", "i386", "i686"):
            name = "llvm.x86.sse2.pause"
        elif processor in ("aarch64", "arm64"):
            name, arguments = "llvm.aarch64.hint", [ir.IntType(32)(1)]
        else:
            return
        kind = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(function, arguments)

    return _helper(0, "void", generate)


def call(count: int = 3) -> Any:
    """A helper: the result of a function of `count` words at an address, which comes first."""

    def generate(builder: Any, ir: Any, function: Any, *words: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64)] * count)
        return builder.call(builder.inttoptr(function, kind.as_pointer()), words)

    return _helper(count + 1, "int64", generate)
