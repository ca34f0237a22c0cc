"""Comparison, logic and bits."""

from __future__ import annotations

import math
from typing import Any

from ..autograd.primitive import primitive, write_out
from ..dtypes import as_dtype, finfo
from .elementwise import clone, refuse_complex, where

# --- comparison ----------------------------------------------------------------------------------


@primitive()
def eq(b, x, y):
    """x == y."""
    return b.equal(x, y)


@primitive()
def ne(b, x, y):
    """x != y."""
    return b.not_equal(x, y)


@primitive()
def lt(b, x, y):
    """x < y."""
    refuse_complex("lt", x, y)
    return b.less(x, y)


@primitive()
def le(b, x, y):
    """x <= y."""
    refuse_complex("le", x, y)
    return b.less_equal(x, y)


@primitive()
def gt(b, x, y):
    """x > y."""
    refuse_complex("gt", x, y)
    return b.greater(x, y)


@primitive()
def ge(b, x, y):
    """x >= y."""
    refuse_complex("ge", x, y)
    return b.greater_equal(x, y)


@primitive(promotion=None)
def isnan(b, x):
    """x is not a number."""
    return b.isnan(x) if x.dtype.kind not in "iub" else b.zeros(x.shape, bool)


@primitive(promotion=None)
def isinf(b, x):
    """x is infinite."""
    return b.isinf(x) if x.dtype.kind not in "iub" else b.zeros(x.shape, bool)


@primitive(promotion=None)
def isfinite(b, x):
    """x is neither infinite nor NaN."""
    return b.isfinite(x) if x.dtype.kind not in "iub" else b.ones(x.shape, bool)


def isclose(
    input: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> Any:
    """|input - other| <= atol + rtol · |other|, elementwise; infinities equal themselves."""
    close = (input == other) | (
        (abs(input - other) <= atol + rtol * abs(other)) & isfinite(other) & isfinite(input)
    )
    return close | (isnan(input) & isnan(other)) if equal_nan else close


def allclose(
    input: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> bool:
    """Whether all elements are close (see `isclose`)."""
    return bool(isclose(input, other, rtol, atol, equal_nan)._array.all())


def nan_to_num(
    input: Any, nan: float = 0.0, posinf: Any = None, neginf: Any = None, *, out: Any = None
) -> Any:
    """NaN and infinities replaced; by default by 0 and the largest finite numbers."""
    if input._array.dtype.kind in "iub":
        return write_out(out, clone(input))
    limits = finfo(as_dtype(input._array.dtype))
    high = limits.max if posinf is None else posinf
    low = limits.min if neginf is None else neginf
    filled = where(isnan(input), nan, input)
    filled = where(input == math.inf, high, filled)
    return write_out(out, where(input == -math.inf, low, filled))


# --- logic and bits ------------------------------------------------------------------------------


@primitive(promotion=None)
def logical_and(b, x, y):
    """Both are non-zero."""
    return b.logical_and(x, y)


@primitive(promotion=None)
def logical_or(b, x, y):
    """One is non-zero."""
    return b.logical_or(x, y)


@primitive(promotion=None)
def logical_xor(b, x, y):
    """Exactly one is non-zero."""
    return b.logical_xor(x, y)


@primitive(promotion=None)
def logical_not(b, x):
    """x is zero."""
    return b.logical_not(x)


@primitive()
def bitwise_and(b, x, y):
    """Bitwise and of integers or bools."""
    return b.bitwise_and(x, y)


@primitive()
def bitwise_or(b, x, y):
    """Bitwise or of integers or bools."""
    return b.bitwise_or(x, y)


@primitive()
def bitwise_xor(b, x, y):
    """Bitwise exclusive or of integers or bools."""
    return b.bitwise_xor(x, y)


@primitive()
def bitwise_not(b, x):
    """Bitwise complement of integers or bools."""
    return b.invert(x)


@primitive()
def bitwise_left_shift(b, x, y):
    """x · 2ʸ for integers."""
    return b.left_shift(x, y)


@primitive()
def bitwise_right_shift(b, x, y):
    """⌊x / 2ʸ⌋ for integers."""
    return b.right_shift(x, y)


def equal(input: Any, other: Any) -> bool:
    """Whether two tensors have the same shape and the same elements."""
    return input._array.shape == other._array.shape and bool((input == other).all())
