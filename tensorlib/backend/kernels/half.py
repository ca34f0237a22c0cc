"""Half precisions: conversions in one pass, and arithmetic in single precision between them.

NumPy computes on float16 and bfloat16 one element at a time. Here their bits are taken apart in
vectors: float16 has 5 bits of exponent and 10 of mantissa, bfloat16 is the upper half of a float32.

Source: the conversions from and to float16 follow Giesen, "Half to float done quic" (2012).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import layout
from ..pool import parallel
from .compiler import STRICT, inline, kernel

_GRAIN = 1 << 16  # elements that are worth waking a thread for


def _intrinsic(narrow: bool, generate: Callable[..., Any]) -> Any:
    """A helper from bits of a half precision to float32, or back if `narrow`.

    Args:
        narrow: The direction.
        generate: Takes the builder, an integer of 32 bits, and functions that make an integer
            constant, and turn an integer into a float and back; returns an integer of 32 bits.
    """
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    word, half, number = ir.IntType(32), ir.IntType(16), ir.FloatType()

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = builder.bitcast(args[0], word) if narrow else builder.zext(args[0], word)
        out = generate(
            builder,
            x,
            lambda n: ir.Constant(word, n),
            lambda n: builder.bitcast(n, number),
            lambda f: builder.bitcast(f, word),
        )
        return builder.trunc(out, half) if narrow else builder.bitcast(out, number)

    @intrinsic  # type: ignore[untyped-decorator]
    def convert(typing: Any, x: Any) -> Any:
        given, returned = (types.float32, types.uint16)[:: 1 if narrow else -1]
        return returned(given), lower

    return convert


def _from_float16(builder: Any, x: Any, constant: Any, number: Any, bits: Any) -> Any:
    magnitude = builder.shl(builder.and_(x, constant(0x7FFF)), constant(13))
    scale = number(constant((127 + 112) << 23))  # the difference of the biases; exact
    finite = bits(builder.fmul(number(magnitude), scale))
    special = builder.icmp_unsigned(">=", magnitude, constant(0x7C00 << 13))
    out = builder.select(special, builder.or_(magnitude, constant(0x7F800000)), finite)
    return builder.or_(out, builder.shl(builder.and_(x, constant(0x8000)), constant(16)))


def _to_float16(builder: Any, x: Any, constant: Any, number: Any, bits: Any) -> Any:
    magnitude = builder.and_(x, constant(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, constant(13)), constant(1))
    # Rounded to even by a carry into what remains; a large number's carry makes infinity.
    bias = constant((((15 - 127) << 23) + 0xFFF) & 0xFFFFFFFF)
    normal = builder.lshr(builder.add(builder.add(magnitude, bias), odd), constant(13))
    half = constant(0x3F000000)  # 0.5: its last bit is that of the subnormal result
    subnormal = builder.sub(bits(builder.fadd(number(magnitude), number(half))), half)
    is_nan = builder.icmp_unsigned(">", magnitude, constant(0x7F800000))
    special = builder.select(is_nan, constant(0x7E00), constant(0x7C00))
    small = builder.icmp_unsigned("<", magnitude, constant(0x38800000))
    large = builder.icmp_unsigned(">=", magnitude, constant(0x47800000))
    out = builder.select(large, special, builder.select(small, subnormal, normal))
    return builder.or_(out, builder.lshr(builder.and_(x, constant(0x80000000)), constant(16)))


def _from_bfloat16(builder: Any, x: Any, constant: Any, number: Any, bits: Any) -> Any:
    return builder.shl(x, constant(16))


def _to_bfloat16(builder: Any, x: Any, constant: Any, number: Any, bits: Any) -> Any:
    upper = builder.lshr(x, constant(16))
    odd = builder.and_(upper, constant(1))
    rounded = builder.lshr(builder.add(builder.add(x, constant(0x7FFF)), odd), constant(16))
    magnitude = builder.and_(x, constant(0x7FFFFFFF))
    is_nan = builder.icmp_unsigned(">", magnitude, constant(0x7F800000))
    return builder.select(is_nan, builder.or_(upper, constant(0x40)), rounded)


NAMES = ("float16", "bfloat16")
_CONVERSIONS = {"float16": (_from_float16, _to_float16), "bfloat16": (_from_bfloat16, _to_bfloat16)}
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "true_divide": lambda x, y: x / y,
}


def _conversion(name: str, narrow: bool) -> Any:
    def all_of(real: Any) -> Any:
        convert = _intrinsic(narrow, _CONVERSIONS[name][narrow])

        def body(x: Any, out: Any, start: Any, stop: Any) -> None:
            for i in range(start, stop):
                out[i] = convert(x[i])

        return body

    all_of.__name__ = f"{'narrow' if narrow else 'widen'}_{name}"
    arrays = "x: f4[1], out: u2[1]" if narrow else "x: u2[1], out: f4[1]"
    return kernel(f"{arrays}, start: int, stop: int", fastmath=STRICT)(all_of)


def _operation(name: str, operation: str) -> Any:
    def calculate(real: Any) -> Any:
        widen, narrow = (_intrinsic(i == 1, c) for i, c in enumerate(_CONVERSIONS[name]))
        function = inline(OPERATIONS[operation], STRICT)

        def body(x: Any, y: Any, out: Any, step: Any, start: Any, stop: Any) -> None:
            if step == 0:
                number = widen(y[0])
                for i in range(start, stop):
                    out[i] = narrow(function(widen(x[i]), number))
            else:
                for i in range(start, stop):
                    out[i] = narrow(function(widen(x[i]), widen(y[i])))

        return body

    calculate.__name__ = f"{operation}_{name}"
    signature = "x: u2[1], y: u2[1], out: u2[1], step: int, start: int, stop: int"
    return kernel(signature, fastmath=STRICT)(calculate)


_WIDEN = {name: _conversion(name, narrow=False) for name in NAMES}
_NARROW = {name: _conversion(name, narrow=True) for name in NAMES}
_ARITHMETIC = {
    (operation, name): _operation(name, operation) for operation in OPERATIONS for name in NAMES
}


def convert(x: Any, dtype: Any) -> Any:
    """A dense copy of an array of half precision in float32, or the other way."""
    if not x.flags.c_contiguous:
        order = layout.kept_order(x)
        dense = np.ascontiguousarray(x.transpose(order))
        return layout.from_memory_order(convert(dense, dtype), order)
    flat = x.reshape(-1)
    out = np.empty(x.shape, dtype)
    to = out.reshape(-1)
    if dtype == np.float32:
        parallel(_WIDEN[x.dtype.name], to.size, _GRAIN, flat.view(np.uint16), to)
    else:
        parallel(_NARROW[dtype.name], to.size, _GRAIN, flat, to.view(np.uint16))
    return out


def arithmetic(operation: str, x: Any, y: Any) -> Any:
    """A sum, difference, product or quotient of arrays of one half precision, that broadcast.

    Each element is computed in float32 and rounded once.
    """
    if x.shape != y.shape and y.ndim:
        x, y = np.broadcast_arrays(x, y)
    out = np.empty(x.shape, x.dtype)
    x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
    flat = [a.reshape(-1).view(np.uint16) for a in (x, y, out)]
    step = 1 if y.shape == x.shape else 0
    parallel(_ARITHMETIC[operation, x.dtype.name], out.size, _GRAIN, *flat, step)
    return out
