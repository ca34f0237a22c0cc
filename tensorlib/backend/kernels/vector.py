"""Elementary functions that vectorize: range reduction and a polynomial, without a branch.

Each is a function of the floating type that returns a helper for kernel bodies::

    exponential = exp(real)
    ...
    out[i] = exponential(x[i])

Source: Cody & Waite, "Software Manual for the Elementary Functions" (1980), for the reductions;
Moshier's Cephes library for the form of the polynomials.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .compiler import STRICT, inline


def power_of_two(real: Any) -> Any:
    """A helper: 2ⁿ of the number ``n + magic(real)``, for n within the exponent's range."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    single = real is np.float32
    bits, mantissa, bias = (32, 23, 127) if single else (64, 52, 1023)
    word, kind = ir.IntType(bits), ir.FloatType() if single else ir.DoubleType()
    number = types.float32 if single else types.float64

    @intrinsic  # type: ignore[untyped-decorator]
    def power(typing: Any, z: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            shifted = builder.shl(builder.bitcast(args[0], word), ir.Constant(word, mantissa))
            return builder.bitcast(builder.add(shifted, ir.Constant(word, bias << mantissa)), kind)

        return number(number), generate

    return power


def magic(real: Any) -> Any:
    """Added to a small number, it leaves the nearest integer in the lowest bits."""
    return real(1.5 * 2.0 ** (23 if real is np.float32 else 52))


def exp(real: Any) -> Any:
    """A helper: eˣ, within 1 ulp; 0 and infinity where it leaves the range, NaN for NaN."""
    single = real is np.float32
    big, power = magic(real), power_of_two(real)
    low, high = (real(-104), real(89)) if single else (real(-746), real(710))
    log2_e, half = real(1 / math.log(2)), real(0.5)
    # ln 2 in two parts, the first with trailing zeros: n times it is exact.
    ln2_high = real(0.693359375) if single else real(6.93145751953125e-1)
    ln2_low = real(-2.12194440054690583e-4) if single else real(1.42860682030941723212e-6)
    terms = tuple(real(1 / math.factorial(k)) for k in range(7 if single else 14, -1, -1))

    def exponential(x: Any) -> Any:
        x = low if x < low else x
        x = high if x > high else x
        n = x * log2_e + big - big
        r = x - n * ln2_high - n * ln2_low
        p = terms[0]
        for c in terms[1:]:
            p = p * r + c
        first = n * half + big - big
        return p * power(first + big) * power(n - first + big)

    return inline(exponential, STRICT)
