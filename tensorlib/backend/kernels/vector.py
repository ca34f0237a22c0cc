"""Elementary functions that vectorize: range reduction and a polynomial, without a branch.

Each is a function of the floating type that returns a helper for kernel bodies::

    exponential = exp(real)
    ...
    out[i] = exponential(x[i])

They are within 2 units in the last place everywhere, subnormal numbers included, and treat NaN,
infinities and signed zeros as C's do (`gaussian`, which trades some of that for speed, says so). On
each machine they cost what the operations of one polynomial do: several elements are under way at
once, so the latency of a chain does not matter.

The polynomials' coefficients come from Remez' exchange algorithm in 40 digits, relative errors
weighted equally; the first ones were rounded and fixed before the others were fitted.

Source: Cody & Waite, "Software Manual for the Elementary Functions" (1980), for the reductions;
fdlibm's s_log1p.c for the order of summation of the logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .compiler import STRICT, inline

# (eʳ - 1 - r) / r² on ±ln 2 / 2.
_EXP = (
    (0.49999994, 0.16666512, 0.041668043, 0.008369716, 0.0013845647),
    (
        0.5000000000000011, 0.16666666666665875, 0.04166666666652061, 0.008333333333525691,
        0.001388888894882391, 0.00019841269932283496, 2.480148519489826e-05,
        2.755687038556734e-06, 2.7633790844571353e-07, 2.5310071372822947e-08,
    ),
)  # fmt: skip
# (log(1 + f) - f + f²/2) / f³ on √½ - 1 to √2 - 1, in single precision.
_LOG = (
    0.33333313, -0.2500017, 0.20002225, -0.16659214, 0.14209425, -0.12552172, 0.12112203,
    -0.10903744, 0.053169254,
)  # fmt: skip
# (log((1 + s) / (1 - s)) / s - 2) / s² as a polynomial in s², for s² up to 0.0295.
_LOG_QUOTIENT = (
    0.6666666666666683, 0.39999999999683356, 0.28571428692096645, 0.2222220308137093,
    0.181833547802466, 0.15318923259679516, 0.1475111723508539,
)  # fmt: skip
# The same for s² up to 1/9.
_LOG1P = (
    (0.6666641, 0.4002175, 0.27998212, 0.2802943),
    (
        0.6666666666666652, 0.4000000000009808, 0.28571428553967926, 0.22222223644548295,
        0.1818175401400335, 0.1538636687940167, 0.13303283312093403, 0.12089248996895473,
        0.0840850093595569, 0.16899853261482534,
    ),
)  # fmt: skip
# erf(x) / x - 1 as a polynomial in x², for x up to 1.
_ERF = (
    (
        0.12837917, -0.3761263, 0.11283618, -0.026855126, 0.005190734, -0.00080307614,
        7.920363e-05,
    ),
    (
        0.12837916709551256, -0.3761263890318334, 0.11283791670936535, -0.02686617064186814,
        0.005223977595823827, -0.0008548325434894304, 0.00012055278846016473,
        -1.4924431630907761e-05, 1.6443708903363737e-06, -1.61804799636868e-07,
        1.3601097982504571e-08, -7.578138801627724e-10,
    ),
)  # fmt: skip
# erfc(z) exp(z²) / t as a polynomial in t = 1 / (1 + rate z), for z from 0 to 10.3, and to 27.
_ERFC_RATE = (0.3, 0.25)
_ERFC = (
    (
        0.16918758, 0.17072146, 0.14830075, 0.21505761, -0.09492488, 0.5480767, -0.5125614,
        0.485689, -0.12954685,
    ),
    (
        0.14104739585144235, 0.14104739810837083, 0.13663960019412127, 0.12782536215842327,
        0.11499979498399344, 0.09916880205496376, 0.08013265041862437, 0.06764555845181808,
        0.02206369549887303, 0.10990084266427567, -0.21696967485655794, 0.5579386974824984,
        -1.0560690390004193, 1.6495854614924208, -2.076507797093289, 2.071373883160063,
        -1.612018373531592, 0.9447889370161332, -0.3973085749880652, 0.11231068288871031,
        -0.019063074504041273, 0.0014677715492327208,
    ),
)  # fmt: skip

_UNROLLED = 12

# ln 2 in two parts, the first with trailing zeros: a whole multiple of it is exact.
_LN2 = ((0.693359375, -2.12194440054690583e-4), (6.93145751953125e-1, 1.42860682030941723212e-6))


def magic(real: Any) -> Any:
    """Added to a small number, it leaves the nearest integer in the lowest bits."""
    return real(1.5 * 2.0 ** (23 if real is np.float32 else 52))


def _format(real: Any) -> tuple[int, int, int]:
    """Bits of a number, bits of its mantissa, bias of its exponent."""
    return (32, 23, 127) if real is np.float32 else (64, 52, 1023)


def on_bits(real: Any, results: int, generate: Callable[..., list[Any]]) -> Any:
    """An intrinsic of a number, written on its bits.

    Args:
        real: The floating type.
        results: How many numbers it returns.
        generate: Takes the builder, the integer that holds the number's bits, and a function that
            makes an integer constant; returns integers to be taken as numbers.
    """
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    number = types.float32 if real is np.float32 else types.float64
    word = ir.IntType(_format(real)[0])
    kind = ir.FloatType() if real is np.float32 else ir.DoubleType()
    returned = number if results == 1 else types.UniTuple(number, results)

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out = generate(builder, builder.bitcast(args[0], word), lambda n: ir.Constant(word, n))
        numbers = [builder.bitcast(x, kind) for x in out]
        return numbers[0] if results == 1 else context.make_tuple(builder, returned, numbers)

    @intrinsic  # type: ignore[untyped-decorator]
    def of_one(typing: Any, x: Any) -> Any:
        return returned(number), lower

    return of_one


def power_of_two(real: Any) -> Any:
    """A helper: 2ⁿ of the number ``n + magic(real)``, for n within the exponent's range."""
    _, mantissa, bias = _format(real)

    def generate(builder: Any, bits: Any, constant: Any) -> list[Any]:
        shifted = builder.shl(bits, constant(mantissa))
        return [builder.add(shifted, constant(bias << mantissa))]

    return on_bits(real, 1, generate)


def _two_powers(real: Any) -> Any:
    """A helper: two numbers with the product 2ⁿ, of ``n + 2 bias + magic(real)``.

    n may lie outside the exponent's range, where the result of an exponential is subnormal or
    infinite.
    """
    _, mantissa, _ = _format(real)

    def generate(builder: Any, bits: Any, constant: Any) -> list[Any]:
        first = builder.lshr(bits, constant(1))  # half of the sum carries one bias
        second = builder.sub(bits, first)
        return [builder.shl(half, constant(mantissa)) for half in (first, second)]

    return on_bits(real, 2, generate)


def mantissa_and_exponent(real: Any) -> Any:
    """A helper: m and ``n + magic(real)``, where x = m · 2ⁿ with m from √½ to √2."""
    _, mantissa, _ = _format(real)
    integer = np.int32 if real is np.float32 else np.int64
    root = int(np.asarray(math.sqrt(0.5), real).view(integer))
    big = int(np.asarray(magic(real)).view(integer))

    def generate(builder: Any, bits: Any, constant: Any) -> list[Any]:
        n = builder.ashr(builder.sub(bits, constant(root)), constant(mantissa))
        m = builder.sub(bits, builder.shl(n, constant(mantissa)))
        return [m, builder.add(n, constant(big))]

    return on_bits(real, 2, generate)


def with_sign(real: Any) -> Any:
    """A helper: the magnitude of its first argument with the sign of its second."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    number = types.float32 if real is np.float32 else types.float64
    kind = ir.FloatType() if real is np.float32 else ir.DoubleType()

    @intrinsic  # type: ignore[untyped-decorator]
    def copysign(typing: Any, x: Any, y: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            called = ir.FunctionType(kind, [kind, kind])
            function = builder.module.declare_intrinsic("llvm.copysign", [kind], called)
            return builder.call(function, args)

        return number(number, number), lower

    return copysign


def polynomial(real: Any, coefficients: tuple[float, ...]) -> Any:
    """A helper: c₀ + c₁ x + c₂ x² + ... by Horner's rule."""
    terms = tuple(real(c) for c in reversed(coefficients))
    # LLVM unrolls no longer loops than this, and vectorizes none that it has not unrolled.
    first, rest = terms[:_UNROLLED], terms[_UNROLLED:]

    def horner(x: Any) -> Any:
        p = first[0]
        for c in first[1:]:
            p = p * x + c
        return p

    start = inline(horner, STRICT)
    if not rest:
        return start

    def longer(x: Any) -> Any:
        p = start(x)
        for c in rest:
            p = p * x + c
        return p

    return inline(longer, STRICT)


def _choose(real: Any, table: tuple[tuple[float, ...], tuple[float, ...]]) -> Any:
    """A helper: the polynomial with this type's coefficients."""
    return polynomial(real, table[0 if real is np.float32 else 1])


def _powers(real: Any) -> tuple[Any, Any, Any]:
    """1 / ln 2, and ln 2 in two parts."""
    high, low = _LN2[0 if real is np.float32 else 1]
    return real(1 / math.log(2)), real(high), real(low)


def exp(real: Any) -> Any:
    """A helper: eˣ."""
    single = real is np.float32
    low, high = (real(-104), real(89)) if single else (real(-746), real(710))
    below = _exp_below(real, high)

    def exponential(x: Any) -> Any:
        return below(low if low > x else x)

    return inline(exponential, STRICT)


def exp_negative(real: Any) -> Any:
    """A helper: eˣ for x up to 0."""
    low = real(-104) if real is np.float32 else real(-746)
    below = _exp_below(real, None)

    def exponential(x: Any) -> Any:
        return below(low if low > x else x)

    return inline(exponential, STRICT)


def _exp_below(real: Any, high: Any) -> Any:
    big, powers = real(magic(real) + 2 * _format(real)[2]), _two_powers(real)
    log2_e, ln2_high, ln2_low = _powers(real)
    terms, one = _choose(real, _EXP), real(1)
    limited = high is not None

    def below(x: Any) -> Any:
        if limited:
            x = high if high < x else x
        z = x * log2_e + big
        n = z - big
        r = x - n * ln2_high - n * ln2_low
        p = terms(r)
        first, second = powers(z)
        return ((p * r + one) * r + one) * first * second

    return inline(below, STRICT)


def _expm1_parts(real: Any) -> Any:
    """A helper for x within the range of eˣ: s and s · (eʳ - 1), where eˣ = s eʳ."""
    big, power = magic(real), power_of_two(real)
    log2_e, ln2_high, ln2_low = _powers(real)
    terms = _choose(real, _EXP)

    def parts(x: Any) -> Any:
        z = x * log2_e + big
        n = z - big
        r = x - n * ln2_high - n * ln2_low
        p = terms(r)
        return power(z), p * (r * r) + r

    return inline(parts, STRICT)


def expm1_negative(real: Any) -> Any:
    """A helper: eˣ - 1 for x up to 0 (where it does not lose what 1 takes away)."""
    low, one = (real(-20) if real is np.float32 else real(-40)), real(1)
    parts = _expm1_parts(real)

    def difference(x: Any) -> Any:
        s, p = parts(low if low > x else x)
        return p * s + (s - one)

    return inline(difference, STRICT)


def tanh(real: Any) -> Any:
    """A helper: the hyperbolic tangent, -d / (2 + d) of d = exp(-2 |x|) - 1."""
    low, one, two = (real(-20) if real is np.float32 else real(-40)), real(1), real(2)
    parts, signed, quotient = _expm1_parts(real), with_sign(real), _quotient(real)
    single = real is np.float32

    def tangent(x: Any) -> Any:
        y = -two * abs(x)
        s, p = parts(low if low > y else y)
        p = p * s
        upper, lower = one - s, one + s
        numerator, denominator = upper - p, lower + p
        if single:
            return signed(numerator / denominator, x)
        rest = (lower - denominator) + p
        return signed(quotient(numerator, (upper - numerator) - p, denominator, rest), x)

    return inline(tangent, STRICT)


def _quotient(real: Any) -> Any:
    """A helper: (a + a') / (b + b'), where a' and b' are what rounding took from a and b."""
    one = real(1)

    def quotient(a: Any, a_rest: Any, b: Any, b_rest: Any) -> Any:
        inverse = one / b
        q = a * inverse
        return q + ((a - q * b) + (a_rest - q * b_rest)) * inverse

    return inline(quotient, STRICT)


def sigmoid(real: Any) -> Any:
    """A helper: 1 / (1 + e⁻ˣ), exact also where that is tiny."""
    one, zero = real(1), real(0)
    exponential, quotient = exp_negative(real), _quotient(real)

    def logistic(x: Any) -> Any:
        s = exponential(-abs(x))
        total = one + s
        return quotient(s if x < zero else one, zero, total, (one - total) + s)

    return inline(logistic, STRICT)


def log(real: Any) -> Any:
    """A helper: the natural logarithm."""
    single = real is np.float32
    split, big = mantissa_and_exponent(real), magic(real)
    _, ln2_high, ln2_low = _powers(real)
    zero, half, one, two = real(0), real(0.5), real(1), real(2)
    tiny, lift = real(np.finfo(real).tiny), real(2.0 ** (24 if single else 54))
    shift = real(24 if single else 54)
    infinity, nan = real(math.inf), real(math.nan)
    terms = polynomial(real, _LOG if single else _LOG_QUOTIENT)

    def logarithm(x: Any) -> Any:
        small = x < tiny
        m, z = split(x * lift if small else x)
        n = z - big - (shift if small else zero)
        f = m - one
        h = half * f * f
        if single:
            out = n * ln2_low + terms(f) * f * (f * f) - h
        else:
            s = f / (f + two)
            square = s * s
            out = n * ln2_low + s * (h + terms(square) * square) - h
        out = n * ln2_high + (out + f)
        out = out if x < infinity else x
        return out if x > zero else (-infinity if x == zero else nan)

    return inline(logarithm, STRICT)


def log1p_unit(real: Any) -> Any:
    """A helper: log(1 + x) for x from 0 to 1."""
    half, two, terms = real(0.5), real(2), _choose(real, _LOG1P)

    def logarithm(x: Any) -> Any:
        s = x / (x + two)
        square = s * s
        p = terms(square)
        h = half * x * x
        return x - (h - s * (h + p * square))

    return inline(logarithm, STRICT)


def _erfc_and_exp(real: Any) -> Any:
    """A helper: erfc(z) and exp(-z²) for z from 0."""
    rate, one = real(_ERFC_RATE[0 if real is np.float32 else 1]), real(1)
    exponential, terms = exp_negative(real), _choose(real, _ERFC)

    def both(z: Any) -> Any:
        e = exponential(-z * z)
        t = one / (rate * z + one)
        p = terms(t)
        return e * (p * t), e

    return inline(both, STRICT)


def erf(real: Any) -> Any:
    """A helper: the error function."""
    one, terms = real(1), _choose(real, _ERF)
    both, signed = _erfc_and_exp(real), with_sign(real)

    def error_function(x: Any) -> Any:
        z = abs(x)
        square = x * x
        p = terms(square)
        rest, _ = both(z)
        return x * p + x if z < one else signed(one - rest, x)

    return inline(error_function, STRICT)


def gaussian(real: Any) -> Any:
    """A helper: the normal distribution Φ(x), and exp(-x²/2), at little more than one's cost.

    Φ is within 1e-6 (in double precision 1e-13) of its value for x down to -5, and within as much
    of 1 beyond; the rounding of x² counts more and more towards -∞.
    """
    root_half, half, one, zero = real(math.sqrt(0.5)), real(0.5), real(1), real(0)
    both = _erfc_and_exp(real)

    def distribution(x: Any) -> Any:
        rest, e = both(abs(x) * root_half)
        rest = half * rest
        return (rest if x < zero else one - rest), e

    return inline(distribution, STRICT)
