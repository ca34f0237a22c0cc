"""Powers, exponentials, logarithms, trigonometry and special functions, elementwise."""

from __future__ import annotations

import math
from typing import Any

from ..autograd.core import apply
from ..autograd.primitive import primitive, write_out
from ..dtypes import HALF
from ..errors import DtypeError
from .elementwise import clamp, imag_p, real, real_p, where
from .precision import SMALL, wide

_BY_PRODUCTS = range(2, 9)  # exponents for which products are faster, and nearly as exact

# --- powers --------------------------------------------------------------------------------------


def _pow_x(g: Any, x: Any, y: Any) -> Any:
    """d/dx x^y = y x^(y-1), and 0 where y is 0 (also at x = 0)."""
    if not hasattr(y, "dtype"):
        if y == 2:
            return g * (2 * x)
        return g * (y * pow_p(x, y - 1)) if y != 0 else g * 0
    return where(y == 0, g * 0, g * (y * pow_p(x, y - 1)))


def _pow_y(g: Any, x: Any, y: Any, out: Any) -> Any:
    """d/dy x^y = x^y log x, and 0 where x is 0 and y is not negative."""
    if isinstance(x, int | float):
        return g * (out * math.log(x)) if x > 0 else g * 0 if x == 0 else g * math.nan
    zero = (x == 0) & (real(y) >= 0)
    return where(zero, g * 0, g * (out * log(where(zero, 1, x))))


@primitive(x=_pow_x, y=_pow_y)
def pow_p(b, x, y):
    """x to the power y."""
    if not hasattr(y, "dtype"):
        if y == 2 or (y in _BY_PRODUCTS and x.dtype not in HALF):
            return _repeated_product(b, x, int(y))
        return b.sqrt(x) if y == 0.5 else b.power(x, y)
    if y.dtype.kind == "b":
        raise DtypeError("pow: received bools; convert them with .int()")
    if y.dtype.kind == "i":
        return _integer_power(b, x, y)
    return b.power(x, y)


def _repeated_product(b: Any, x: Any, n: int) -> Any:
    """x to a small whole power; NumPy's power takes hundreds of times as long."""
    if n == 1:
        return x
    root = _repeated_product(b, x, n // 2)
    square = b.multiply(root, root)
    return b.multiply(square, x) if n % 2 else square


def _integer_power(b: Any, x: Any, y: Any) -> Any:
    """Whole powers: of the negative ones only those of 1 and -1 are not 0."""
    negative = y < 0
    out = b.power(b.where(negative, x == 1, x), b.abs(y))
    return b.where(negative & (x == -1), 1 - 2 * (y & 1), out).astype(x.dtype)


def pow(input: Any, exponent: Any, *, out: Any = None) -> Any:
    """`input` to the power `exponent`, of which one may be a number.

    Raises:
        DtypeError: integers to a negative integer power, or bools to a bool.
    """
    if exponent.__class__ is int and exponent < 0 and input._array.dtype.kind in "biu":
        raise DtypeError(
            f"pow: integers to the negative integer power {exponent}; convert them with .float()"
        )
    return write_out(out, apply(pow_p, (input, exponent)))


@primitive(promotion="float", x=lambda g, out: -g * out * out)
def reciprocal(b, x):
    """1 / x."""
    return b.true_divide(1, x)


@primitive(promotion="float", x=lambda g, out: g / (2 * out))
def sqrt(b, x, *, out=None):
    """The square root."""
    return b.sqrt(x, out=out)


@primitive(promotion="float", x=lambda g, out: g * (-0.5 * out * out * out))
def rsqrt(b, x):
    """1 / √x."""
    return b.true_divide(1, b.sqrt(x))


def square(input: Any, *, out: Any = None) -> Any:
    """input²."""
    return write_out(out, pow(input, 2))


# --- exponentials and logarithms -----------------------------------------------------------------


@primitive(promotion="float", x=lambda g, out: g * out)
def exp(b, x, *, out=None):
    """eˣ."""
    fused = b.kernel("exponential", x) if x.size > SMALL and out is None else None
    return fused(x) if fused else b.exp(x, out=out)


@primitive(promotion="float", x=lambda g, out: g * out * math.log(2))
def exp2(b, x):
    """2ˣ."""
    return b.exp2(x) if x.dtype.kind != "c" else b.exp(x * math.log(2))


@primitive(promotion="float", x=lambda g, out: g * (out + 1))
def expm1(b, x):
    """eˣ - 1, exact near 0."""
    return b.expm1(x)


@primitive(promotion="float", x=lambda g, x: g / x)
def log(b, x, *, out=None):
    """The natural logarithm."""
    return b.log(x, out=out)


@primitive(promotion="float", x=lambda g, x: g / (x * math.log(2)))
def log2(b, x):
    """The logarithm to base 2."""
    return b.log2(x)


@primitive(promotion="float", x=lambda g, x: g / (x * math.log(10)))
def log10(b, x):
    """The logarithm to base 10."""
    return b.log10(x)


@primitive(promotion="float", x=lambda g, x: g / (x + 1))
def log1p(b, x):
    """log(1 + x), exact near 0."""
    return b.log1p(x)


def _logaddexp_share(g: Any, x: Any, out: Any) -> Any:
    """g · exp(x - out), with equal infinities taken as no difference."""
    return g * exp(where(x == out, 0, x - out))


@primitive(promotion="float", x=_logaddexp_share, y=lambda g, y, out: _logaddexp_share(g, y, out))
def logaddexp(b, x, y):
    """log(eˣ + eʸ) without overflow."""
    return b.logaddexp(x, y)


def logit(input: Any, eps: float | None = None, *, out: Any = None) -> Any:
    """log(p / (1 - p)), with p first clamped to [eps, 1 - eps] if `eps` is given."""
    p = input if eps is None else clamp(input, eps, 1 - eps)
    return write_out(out, log(p / (1 - p)))


# --- trigonometry --------------------------------------------------------------------------------


@primitive(promotion="float", x=lambda g, x: g * cos(x))
def sin(b, x, *, out=None):
    """The sine of x in radians."""
    return b.sin(x, out=out)


@primitive(promotion="float", x=lambda g, x: -g * sin(x))
def cos(b, x, *, out=None):
    """The cosine of x in radians."""
    return b.cos(x, out=out)


@primitive(promotion="float", x=lambda g, out: g * (1 + out * out))
def tan(b, x):
    """The tangent of x in radians."""
    return b.tan(x)


@primitive(promotion="float", x=lambda g, x: g * rsqrt(1 - x * x))
def asin(b, x):
    """The arc sine in radians."""
    return b.arcsin(x)


@primitive(promotion="float", x=lambda g, x: -g * rsqrt(1 - x * x))
def acos(b, x):
    """The arc cosine in radians."""
    return b.arccos(x)


@primitive(promotion="float", x=lambda g, x: g / (1 + x * x))
def atan(b, x):
    """The arc tangent in radians."""
    return b.arctan(x)


@primitive(
    promotion="float",
    x=lambda g, x, y: g * y / (x * x + y * y),
    y=lambda g, x, y: -g * x / (x * x + y * y),
)
def atan2(b, x, y):
    """The angle of the point (y, x): atan(x / y) in the right quadrant."""
    return b.arctan2(x, y)


def angle(input: Any) -> Any:
    """The argument of each complex number in radians: 0 or π for real ones."""
    if input._array.dtype.kind == "c":
        return atan2(imag_p(input), real_p(input))
    return where(input != input, input, where(input < 0, math.pi, 0.0 * clamp(input, -1, 1)))


@primitive(promotion="float", x=lambda g, x: g * cosh(x))
def sinh(b, x):
    """The hyperbolic sine."""
    return b.sinh(x)


@primitive(promotion="float", x=lambda g, x: g * sinh(x))
def cosh(b, x):
    """The hyperbolic cosine."""
    return b.cosh(x)


@primitive(
    promotion=None,
    d=lambda g, out: tanh_back_p(g, out),
    out=lambda g, d, out: g * d * (-2 * out),
)
def tanh_back_p(b, d, out):
    """The gradient of `tanh`, d (1 - out²)."""
    fused = b.kernel("tanh_back", d, out)
    return fused(d, out) if fused else d * (1 - out * out)


@primitive(promotion="float", x=lambda g, out: tanh_back_p(g, out))
def tanh(b, x, *, out=None):
    """The hyperbolic tangent."""
    fused = b.kernel("tanh", x) if x.size > SMALL and out is None else None
    return fused(x) if fused else b.tanh(x, out=out)


@primitive(promotion="float", x=lambda g, x: g * rsqrt(x * x + 1))
def asinh(b, x):
    """The inverse hyperbolic sine."""
    return b.arcsinh(x)


@primitive(promotion="float", x=lambda g, x: g * (rsqrt(x - 1) * rsqrt(x + 1)))
def acosh(b, x):
    """The inverse hyperbolic cosine."""
    return b.arccosh(x)


@primitive(promotion="float", x=lambda g, x: g / (1 - x * x))
def atanh(b, x):
    """The inverse hyperbolic tangent."""
    return b.arctanh(x)


# --- special functions ---------------------------------------------------------------------------


def _special(b: Any, name: str, *args: Any) -> Any:
    """A function of scipy.special, in float32 for the half precisions, which SciPy lacks."""
    x = args[-1]
    if x.dtype in HALF:
        args = (*args[:-1], x.astype("float32"))
    return b.asarray(b.special(name)(*args), dtype=x.dtype)


@primitive(
    promotion=None,
    d=lambda g, out: sigmoid_back_p(g, out),
    out=lambda g, d, out: g * d * (1 - 2 * out),
)
def sigmoid_back_p(b, d, out):
    """The gradient of `sigmoid`, d · out · (1 - out)."""
    fused = b.kernel("sigmoid_back", d, out)
    return fused(d, out) if fused else d * (out * (1 - out))


@primitive(promotion="float", x=lambda g, out: sigmoid_back_p(g, out))
def sigmoid(b, x):
    """1 / (1 + e⁻ˣ); where e⁻ˣ overflows the result is 0."""
    fused = b.kernel("sigmoid", x)
    if fused:
        return fused(x)
    out = b.asarray(b.negative(wide(x)))
    b.exp(out, out=out)
    out += 1
    b.reciprocal(out, out=out)
    return out.astype(x.dtype, copy=False)


@primitive(promotion="float", x=lambda g, x: g * (2 / math.sqrt(math.pi)) * exp(-(x * x)))
def erf(b, x):
    """The error function, 2/√π ∫₀ˣ exp(-t²) dt."""
    fused = b.kernel("erf", x)
    return fused(x) if fused else _special(b, "erf", x)


@primitive(promotion="float", x=lambda g, x: g * (-2 / math.sqrt(math.pi)) * exp(-(x * x)))
def erfc(b, x):
    """1 - erf(x), exact for large x."""
    return _special(b, "erfc", x)


@primitive(promotion="float", x=lambda g, out: g * (math.sqrt(math.pi) / 2) * exp(out * out))
def erfinv(b, x):
    """The inverse of the error function on (-1, 1)."""
    return _special(b, "erfinv", x)


@primitive(promotion="float", x=lambda g, x: g * digamma(x))
def lgamma(b, x):
    """log |Γ(x)|."""
    out = _special(b, "gammaln", x)
    b.copyto(out, math.inf, where=x == -math.inf)
    return out


@primitive(promotion="float", x=lambda g, x: g * polygamma_p(x, n=1))
def digamma(b, x):
    """The derivative of log Γ(x)."""
    return _special(b, "digamma", x)


@primitive(promotion="float", x=lambda g, x, n: g * polygamma_p(x, n=n + 1))
def polygamma_p(b, x, *, n):
    """The n-th derivative of digamma, n ≥ 1: (-1)ⁿ⁺¹ n! ζ(n+1, x) (Abramowitz & Stegun 6.4.10)."""
    factor = b.asarray((-1) ** (n + 1) * math.factorial(n), dtype=x.dtype)
    return factor * _special(b, "zeta", float(n + 1), x)
