"""Normal numbers from pairs of uniform ones, with the same bits wherever they are made.

Box & Muller (1958): for independent u, v in [0, 1)

    r = √(-2 log(1 - u)),    r cos 2πv  and  r sin 2πv    are independent and normal.

The functions here, `philox.box_muller` for arrays and `box_muller.cuh` for the GPU are one sequence
of additions, multiplications, divisions and square roots, each rounded by itself as IEEE 754 says,
and of exact steps. No library's logarithm or sine is called, and a product is fused with a sum only
where it is exact, which changes no bit (on a CPU that cannot fuse they are two instructions). That
is what makes the bits the same. Most numbers are the nearest ones to the exact transform, and all
within 2 units in the last place:

- 1 - u is exact. Its logarithm is that of a mantissa 1 - f, a polynomial, and of a power of two.
- The root is kept in two parts: `r_head` has half of the digits, so that its products with other
  such numbers are exact, and (r² - r_head²) / (r + r_head) is the rest.
- 2 - 4v is a number of quarter turns. It is folded onto t in [0, ½], all of it exactly: no π is
  taken away, and no digits are lost next to a quarter turn.
- sin(πt/2) = 1.5t + t S(t²), of which 1.5t is exact, and cos(πt/2) = 1 + t² C(t²).

The coefficients come from Remez' exchange algorithm in 40 digits, for relative errors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .compiler import STRICT, inline
from .raw import sqrt
from .vector import magic, mantissa_and_exponent, on_bits, with_sign

EXACT: frozenset[str] = frozenset()  # no flag that would let LLVM fuse or reorder

# S and C, in single and double precision.
SINES = (
    (0.07079632, -0.6459632, 0.07967716, -0.0045944164),
    (
        0.07079632679489661, -0.6459640975062441, 0.07969262624603003, -0.004681754132101595,
        0.0001604411487601744, -3.598635834074152e-06, 5.632869487999191e-08,
    ),
)  # fmt: skip
COSINES = (
    (-1.2337005, 0.25366852, -0.020855235, 0.0008934552),
    (
        -1.2337005501361697, 0.2536695079010403, -0.020863480763126926, 0.0009192602718625697,
        -2.520202232312589e-05, 4.7101724048059753e-07, -6.269846316229046e-09,
    ),
)  # fmt: skip
# (-2 log(1 - f) - 2f) / f², and (2 log((1 + s) / (1 - s)) / s - 4) / s² as a polynomial in s².
LOGARITHMS = (
    (
        1.0, 0.6666666, 0.50001645, 0.40002453, 0.33246714, 0.28403503, 0.26320368, 0.25523242,
        0.15269095,
    ),
    (
        1.3333333333333366, 0.7999999999936671, 0.5714285738419329, 0.4444440616274188,
        0.363667095604932, 0.3063784651935904, 0.2950223447017046,
    ),
)  # fmt: skip
UNITS = (2.0**-24, 2.0**-53)  # of a uniform number, by its random bits
ROOT_HALF = math.sqrt(0.5)  # mantissas lie from it to twice it
# -2 log 2 in two parts, the first with trailing zeros: a whole multiple of it is exact.
LOG_QUARTER = ((-1.38671875, 4.2438881e-04), (-1.38629150390625, -2.857213640620779e-06))


def _polynomial(real: Any, coefficients: tuple[float, ...]) -> Any:
    """A helper: c₀ + c₁ x + c₂ x² + ... by Horner's rule, nothing fused."""
    first, *rest = (real(c) for c in reversed(coefficients))
    terms = tuple(rest)

    def horner(x: Any) -> Any:
        p = first
        for c in terms:
            p = p * x + c
        return p

    return inline(horner, EXACT)


def _head(real: Any) -> Any:
    """A helper: the upper half of a number's digits; the square of that is exact."""
    low = 12 if real is np.float32 else 27
    return on_bits(real, 1, lambda builder, bits, word: [builder.and_(bits, word(-1 << low))])


def _sum() -> Any:
    """A helper: a b + c for an exact product a b, where fusing the two changes no bit."""
    return inline(lambda a, b, c: a * b + c, STRICT)


def squared_radius(real: Any) -> Any:
    """A helper: -2 log(1 - u), from the bits of u as a whole number."""
    single = real is np.float32
    which = 0 if single else 1
    split, big = mantissa_and_exponent(real), magic(real)
    terms = _polynomial(real, LOGARITHMS[which])
    high, low = (real(part) for part in LOG_QUARTER[which])
    one, two, minus_unit, sum_of = real(1), real(2), real(-UNITS[which]), _sum()

    def squared(bits: Any) -> Any:
        m, z = split(sum_of(minus_unit, bits, one))
        n, f = z - big, one - m
        if single:
            rest = n * low + (f * f) * terms(f)
        else:
            s = f / (two - f)
            h, square = f * f, s * s
            rest = n * low + (s * (h + terms(square) * square) + h)
        return sum_of(n, high, sum_of(two, f, rest))

    return inline(squared, EXACT)


def turned(real: Any) -> Any:
    """A helper: r cos 2πv and r sin 2πv, from r² and the bits of v as a whole number."""
    which = 0 if real is np.float32 else 1
    root, head, signed, sum_of = sqrt(real), _head(real), with_sign(real), _sum()
    sines, cosines = _polynomial(real, SINES[which]), _polynomial(real, COSINES[which])
    half, one, two, three_halves = (real(x) for x in (0.5, 1, 2, 1.5))
    minus_quarter, tiny = real(-4 * UNITS[which]), real(np.finfo(real).tiny)

    def both(square: Any, bits: Any) -> Any:
        r = root(square)
        r_head = head(r)
        r_tail = sum_of(-r_head, r_head, square) / (r + r_head + tiny)

        y = sum_of(minus_quarter, bits, two)
        a = abs(y) - one
        distance = abs(a)
        far = distance > half
        t = one - distance if far else distance
        z = t * t

        rest = t * sines(z)
        s = sum_of(three_halves, t, rest)
        s_head = head(s)
        s_tail = sum_of(three_halves, t, -s_head) + rest
        s = sum_of(r_head, s_head, r_head * s_tail + r_tail * s)
        c = z * cosines(z)
        c = r_head + (r_head * c + r_tail * (one + c))
        return signed(c if far else s, a), signed(s if far else c, y)

    return inline(both, EXACT)
