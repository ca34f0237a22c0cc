"""Cases of the elementwise primitives."""

import math
from typing import Any

import numpy as np
import scipy.special

from .cases import Case, Values, binary, unary

NONZERO = {"low": 0.5, "high": 3.0, "ints": (1, 6)}
POSITIVE = {"low": 0.2, "high": 3.0}


def mod_c(x: Any, y: Any) -> Any:
    """The remainder with the sign of x, as C's fmod."""
    return x - y * np.trunc(x / y).astype(x.dtype)


def mod_floor(x: Any, y: Any) -> Any:
    """The remainder with the sign of y, as Python's %."""
    return x - y * np.floor(x / y).astype(x.dtype)


def clamp(x: Any, low: Any, high: Any) -> Any:
    """min(max(x, low), high) with None for no limit."""
    return np.clip(x, -np.inf if low is None else low, np.inf if high is None else high)


def trigamma(x: Any, n: int) -> Any:
    """The n-th derivative of digamma: a series (Abramowitz & Stegun 6.4.10) and its tail."""
    terms, z = 200, x + 200
    total = sum((x + k) ** -(n + 1.0) for k in range(terms))
    tail = z ** -float(n) / n + z ** -(n + 1.0) / 2 + (n + 1) * z ** -(n + 2.0) / 12
    tail = tail - (n + 1) * (n + 2) * (n + 3) * z ** -(n + 4.0) / 720
    return (-1) ** (n + 1) * math.factorial(n) * (total + tail)


def softened(function: Any) -> Any:
    """A function that sees booleans as integers."""
    return lambda *xs: function(*[x.astype(np.int64) if x.dtype.kind == "b" else x for x in xs])


ARITHMETIC = {
    "add": binary(lambda x, y: x + y, dtypes="fibc"),
    "sub": binary(lambda x, y: x - y, dtypes="flc"),
    "mul": binary(lambda x, y: x * y, dtypes="fibc"),
    "div": binary(lambda x, y: x / y, second_range=NONZERO, dtypes="fic", result="float"),
    "floor_divide": [
        *binary(lambda x, y: np.floor(x / y), second_range=NONZERO, dtypes="fi"),
        Case((np.array([-7, 7, -7, 7]), np.array([2, -2, -2, 2])), lambda x, y: [-4, -4, 3, 3]),
    ],
    "truncate_divide": [
        *binary(lambda x, y: np.trunc(x / y), second_range=NONZERO, dtypes="fi"),
        Case((np.array([-7, 7, -7, 7]), np.array([2, -2, -2, 2])), lambda x, y: [-3, -3, 3, 3]),
    ],
    "remainder": [
        *binary(mod_floor, second_range=NONZERO, dtypes="fi", tolerance=16),
        Case((np.array([-7, 7, -7, 7]), np.array([2, -2, -2, 2])), lambda x, y: [1, -1, -1, 1]),
    ],
    "fmod": [
        *binary(mod_c, second_range=NONZERO, dtypes="fi", tolerance=16),
        Case((np.array([-7, 7, -7, 7]), np.array([2, -2, -2, 2])), lambda x, y: [-1, 1, -1, 1]),
    ],
    "neg": unary(lambda x: -x, dtypes="flc"),
    "pow": [
        *binary(lambda x, y: x**y, first=POSITIVE, dtypes="flc", tolerance=16),
        Case((Values((4,)), 2), lambda x, y: x**2, dtypes="flc"),
        Case((Values((4,)), 3), lambda x, y: x**3, dtypes="flc"),
        Case((Values((4,), **POSITIVE), 0.5), lambda x, y: np.sqrt(x)),
        Case((Values((4,), **POSITIVE), -1.5), lambda x, y: x ** (-1.5)),
        Case((Values((4,)), 0), lambda x, y: np.ones_like(x), dtypes="flc"),
        Case((2.5, Values((4,))), lambda x, y: 2.5**y),
        Case((np.zeros(2), np.array([0.0, 2.0])), lambda x, y: [1.0, 0.0], order=0),
        Case(
            (np.array([1, -1, -1, 2, 0]), np.array([-2, -1, -2, -1, -1])),
            lambda x, y: [1, -1, 1, 0, 0],
        ),
    ],
    "reciprocal": unary(lambda x: 1 / x, **POSITIVE, dtypes="flc", result="float")[:2],
    "abs": unary(np.abs, dtypes="flc", result="real"),
    "sign": unary(np.sign, dtypes="fl"),
    "sgn": unary(lambda x: x / np.abs(x), dtypes="fc"),
    "maximum": binary(np.maximum, dtypes="fib"),
    "minimum": binary(np.minimum, dtypes="fib"),
    "clamp": [
        Case((Values((2, 3)), Values((3,), -1, 0), Values((2, 1), 0.1, 1)), clamp),
        Case((Values((4,)), None, Values((), 0.1, 1)), clamp),
        Case((Values((4,)), -0.5, 0.75), clamp),
        Case((Values((5,), ints=(-6, 6)), -2, None), clamp, dtypes="fl"),
    ],
    "floor": unary(np.floor, dtypes="fi"),
    "ceil": unary(np.ceil, dtypes="fi"),
    "trunc": unary(np.trunc, dtypes="fi"),
    "round": [
        *unary(np.rint, dtypes="fi"),
        Case((np.array([0.5, 1.5, 2.5, -0.5]),), lambda x: [0.0, 2.0, 2.0, -0.0], order=0),
        Case((np.array([1.2345, -2.3456]),), lambda x, decimals: [1.23, -2.35], {"decimals": 2}),
    ],
}

TRANSCENDENTAL = {
    "exp": unary(np.exp, dtypes="flc", result="float"),
    "exp2": unary(lambda x: 2.0**x, dtypes="flc", result="float"),
    "expm1": [
        *unary(np.expm1, dtypes="flc", result="float"),
        Case((np.array([1e-12]),), lambda x: x + x * x / 2),
    ],
    "log": unary(np.log, **POSITIVE, dtypes="fc", result="float"),
    "log2": unary(lambda x: np.log(x) / np.log(2), **POSITIVE, dtypes="fc", tolerance=16),
    "log10": unary(lambda x: np.log(x) / np.log(10), **POSITIVE, dtypes="fc", tolerance=16),
    "log1p": [
        *unary(np.log1p, low=-0.9, dtypes="fc"),
        Case((np.array([1e-12]),), lambda x: x - x * x / 2),
    ],
    "sqrt": unary(np.sqrt, **POSITIVE, dtypes="fc"),
    "rsqrt": unary(lambda x: 1 / np.sqrt(x), **POSITIVE, dtypes="fc"),
    "logaddexp": [
        *binary(lambda x, y: np.log(np.exp(x) + np.exp(y)), tolerance=16),
        Case(
            (np.array([1000.0, -np.inf]), np.array([1000.0, -np.inf])),
            lambda x, y: [1000 + math.log(2), -math.inf],
            order=0,
        ),
    ],
    "sin": unary(np.sin, dtypes="flc", result="float"),
    "cos": unary(np.cos, dtypes="flc", result="float"),
    "tan": unary(np.tan, low=-1, high=1, dtypes="fc"),
    "asin": unary(np.arcsin, low=-0.9, high=0.9, dtypes="fc"),
    "acos": unary(np.arccos, low=-0.9, high=0.9, dtypes="fc"),
    "atan": unary(np.arctan, low=-0.9, high=0.9, dtypes="fc"),
    "atan2": binary(lambda x, y: np.angle(y + 1j * x), dtypes="fl", result="float"),
    "sinh": unary(np.sinh, dtypes="fc"),
    "cosh": unary(np.cosh, dtypes="fc"),
    "tanh": unary(np.tanh, low=-1.2, high=1.2, dtypes="flc", result="float"),
    "tanh_back": binary(lambda d, out: d * (1 - out * out), dtypes="fc"),
    "asinh": unary(np.arcsinh, low=0.1, dtypes="fc"),
    "acosh": unary(np.arccosh, low=1.2, high=3, dtypes="fc"),
    "atanh": unary(np.arctanh, low=-0.9, high=0.9, dtypes="fc"),
    "sigmoid_back": binary(lambda d, out: d * out * (1 - out), dtypes="fc", tolerance=16),
    "sigmoid": [
        *unary(lambda x: 1 / (1 + np.exp(-x)), dtypes="flc", result="float"),
        Case((np.array([-800.0, 800.0]),), lambda x: [0.0, 1.0]),
    ],
    "erf": unary(lambda x: 1 - scipy.special.erfc(x), dtypes="fl", result="float"),
    "erfc": unary(lambda x: 1 - scipy.special.erf(x), tolerance=64),
    "erfinv": unary(
        lambda x: scipy.special.ndtri((x + 1) / 2) / np.sqrt(2), low=-0.9, high=0.9, tolerance=16
    ),
    "lgamma": unary(
        lambda x: np.log(np.abs(scipy.special.gamma(x))), low=0.3, high=4, tolerance=64
    ),
    "digamma": unary(lambda x: scipy.special.polygamma(0, x), low=0.3, high=4, tolerance=64),
    "polygamma": [
        Case((Values(shape, 0.3, 4),), trigamma, {"n": n}, tolerance=64)
        for shape, n in (((2, 3), 1), ((), 2), ((3,), 3))
    ],
}

BOOLEAN = {
    "eq": binary(lambda x, y: x == y, dtypes="fibc", result="bool"),
    "ne": binary(lambda x, y: x != y, dtypes="fibc", result="bool"),
    "lt": binary(lambda x, y: x < y, dtypes="fib", result="bool"),
    "le": binary(lambda x, y: x <= y, dtypes="fib", result="bool"),
    "gt": binary(lambda x, y: x > y, dtypes="fib", result="bool"),
    "ge": binary(lambda x, y: x >= y, dtypes="fib", result="bool"),
    "logical_and": binary(lambda x, y: (x != 0) & (y != 0), dtypes="fibc", result="bool"),
    "logical_or": binary(lambda x, y: (x != 0) | (y != 0), dtypes="fibc", result="bool"),
    "logical_xor": binary(lambda x, y: (x != 0) ^ (y != 0), dtypes="fibc", result="bool"),
    "logical_not": unary(lambda x: x == 0, dtypes="fibc", result="bool"),
    "bitwise_and": binary(lambda x, y: x & y, dtypes="ib"),
    "bitwise_or": binary(lambda x, y: x | y, dtypes="ib"),
    "bitwise_xor": binary(lambda x, y: x ^ y, dtypes="ib"),
    "bitwise_not": unary(lambda x: ~x, dtypes="lb"),
    "bitwise_left_shift": binary(lambda x, y: x * 2**y, dtypes="i"),
    "bitwise_right_shift": binary(lambda x, y: x // 2**y, dtypes="i"),
    "isnan": [
        Case((np.array([0.0, np.nan, np.inf]),), lambda x: [False, True, False], result="bool"),
        Case((Values((3,)),), lambda x: [False] * 3, dtypes="ib", result="bool"),
    ],
    "isinf": [
        Case((np.array([0.0, np.nan, -np.inf]),), lambda x: [False, False, True], result="bool"),
        Case((Values((3,)),), lambda x: [False] * 3, dtypes="ib", result="bool"),
    ],
    "isfinite": [
        Case((np.array([0.0, np.nan, -np.inf]),), lambda x: [True, False, False], result="bool"),
        Case((Values((3,)),), lambda x: [True] * 3, dtypes="ib", result="bool"),
    ],
}

CHOICE_AND_COPIES = {
    "where": [
        Case((Values(c, dtype="bool"), Values(a), Values(b)), np.where, dtypes="fibc")
        for c, a, b in (((2, 3), (2, 3), (2, 3)), ((2, 1), (3,), ()), ((), (2,), (2,)))
    ],
    "cast": [
        Case((Values((2, 3)),), lambda x, dtype: x, {"dtype": np.dtype(t)}, "f", t)
        for t in ("float64", "complex128")
    ]
    + [
        Case((np.array([-1.7, 2.9]),), lambda x, dtype: [-1, 2], {"dtype": np.dtype(t)}, "f", t)
        for t in ("int64", "int8")
    ]
    + [
        Case(
            (np.array([1 - 2j, 3j]),),
            lambda x, dtype: x.real,
            {"dtype": np.dtype(float)},
            "c",
            "float64",
        ),
        Case(
            (np.array([300.0, -1.0]),),
            lambda x, dtype: [44, 255],
            {"dtype": np.dtype("uint8")},
            "f",
            "uint8",
        ),
        Case(
            (np.array([0.0, 0.5]),),
            lambda x, dtype: [False, True],
            {"dtype": np.dtype(bool)},
            "f",
            "bool",
        ),
    ],
    "clone": [
        *unary(lambda x: x, dtypes="fibc"),
        Case((Values((2, 3)),), lambda x, order: x, {"order": (1, 0)}),
    ],
    "detach": unary(lambda x: x, dtypes="fibc", view=True),
    "conj_physical": unary(
        lambda x: x.real - 1j * x.imag if x.dtype.kind == "c" else x, dtypes="fc"
    ),
    "real": unary(np.real, dtypes="c", result="real", view=True),
    "imag": unary(np.imag, dtypes="c", result="real", view=True),
    "complex": [
        Case(
            (Values(a, dtype="float64"), Values(b, dtype="float64")),
            lambda x, y: x + 1j * y,
            result="complex128",
        )
        for a, b in (((2, 3), (2, 3)), ((2, 1), (3,)), ((), ()))
    ]
    + [
        Case(
            (Values((2,), dtype="float32"), Values((2,), dtype="float32")),
            lambda x, y: x + 1j * y,
            result="complex64",
        )
    ],
    "mask": [
        Case((Values(a), Values(m, dtype="bool")), lambda x, m: np.where(m, x, 0), dtypes="fic")
        for a, m in (((2, 3), (2, 3)), ((2, 3), (3,)), ((), (2,)), ((2, 1), (1, 3)))
    ]
    + [
        Case(
            (np.array([np.inf, np.nan]), np.array([False, True])), lambda x, m: [0, np.nan], order=0
        )
    ],
    "relu": unary(lambda x: x * (x > 0), dtypes="fl"),
}

CASES = {**ARITHMETIC, **TRANSCENDENTAL, **BOOLEAN, **CHOICE_AND_COPIES}
