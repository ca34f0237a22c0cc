"""Losses of pairs of elements: a sum without temporaries, and the gradient in one pass.

`KINDS` gives for each loss f(x, y) the value and the slope ∂f/∂x. The parameter p is β of the
smooth L1 loss and δ of Huber's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..pool import parallel
from .compiler import STRICT, inline, kernel
from .reduction import BLOCK, CHUNK, contiguous
from .vector import exp, exp_negative, log, log1p_unit, sigmoid

GRAIN = 1 << 14


def _mse(real: Any) -> tuple[Any, Any]:
    two = real(2)
    return lambda x, y, p: (x - y) * (x - y), lambda x, y, p: two * (x - y)


def _sign(real: Any) -> Any:
    one, zero = real(1), real(0)

    def sign(d: Any) -> Any:
        return one if d > zero else (-one if d < zero else d * zero)

    return inline(sign)


def _l1(real: Any) -> tuple[Any, Any]:
    one, zero = real(1), real(0)

    def slope(x: Any, y: Any, p: Any) -> Any:
        return one if x > y else (-one if x < y else zero)  # for NaN too, as in torch

    return lambda x, y, p: abs(x - y), slope


def _smooth_l1(real: Any) -> tuple[Any, Any]:
    half, sign = real(0.5), _sign(real)

    def value(x: Any, y: Any, p: Any) -> Any:
        d = abs(x - y)
        return d * d * (half / p) if d < p else d - half * p

    def slope(x: Any, y: Any, p: Any) -> Any:
        d = x - y
        return d / p if abs(d) < p else sign(d)

    return value, slope


def _huber(real: Any) -> tuple[Any, Any]:
    half, sign = real(0.5), _sign(real)

    def value(x: Any, y: Any, p: Any) -> Any:
        d = abs(x - y)
        return d * d * half if d <= p else (d - half * p) * p

    def slope(x: Any, y: Any, p: Any) -> Any:
        d = x - y
        return d if abs(d) <= p else sign(d) * p

    return value, slope


def _logits(real: Any) -> tuple[Any, Any]:
    one, zero = real(1), real(0)
    power, rest, logistic = exp_negative(real), log1p_unit(real), sigmoid(real)

    def value(x: Any, y: Any, p: Any) -> Any:
        return (one - y) * x + ((-x if x < zero else zero) + rest(power(-abs(x))))

    return value, lambda x, y, p: logistic(x) - y


def _bce(real: Any) -> tuple[Any, Any]:
    one, least, tiny = real(1), real(-100), real(1e-12)
    logarithm = log(real)

    def complement(x: Any) -> Any:
        """log(1 - x), with what rounding takes from 1 - x."""
        rest = one - x
        return logarithm(rest) - (((rest - one) + x) / rest if rest > tiny else real(0))

    log_complement = inline(complement, STRICT)

    def value(x: Any, y: Any, p: Any) -> Any:
        a, b = logarithm(x), log_complement(x)
        a = least if a < least else a
        b = least if b < least else b
        return (y - one) * b - y * a

    def slope(x: Any, y: Any, p: Any) -> Any:
        width = x * (one - x)
        return (x - y) / (tiny if width < tiny else width)

    return value, slope


def _kl(real: Any) -> tuple[Any, Any]:
    zero, nan, logarithm = real(0), real(math.nan), log(real)

    def value(x: Any, y: Any, p: Any) -> Any:
        product = y * logarithm(y)
        return (product if y > zero else (zero if y == zero else nan)) - y * x

    return value, lambda x, y, p: -y


def _kl_log(real: Any) -> tuple[Any, Any]:
    power = exp(real)
    return lambda x, y, p: power(y) * (y - x), lambda x, y, p: -power(y)


KINDS = {
    "mse": _mse, "l1": _l1, "smooth_l1": _smooth_l1, "huber": _huber,
    "binary_cross_entropy_with_logits": _logits, "binary_cross_entropy": _bce,
    "kl_div": _kl, "kl_div_log": _kl_log,
}  # fmt: skip


def _total_kernel(kind: str) -> Any:
    def make(real: Any) -> Any:
        value, zero = inline(KINDS[kind](real)[0], STRICT), real(0)

        def body(x: Any, y: Any, p: Any, sums: Any, start: Any, stop: Any) -> None:
            for k in range(start, stop):
                total = 0.0
                for first in range(k * CHUNK, min((k + 1) * CHUNK, len(x)), BLOCK):
                    a, b = x[first : first + BLOCK], y[first : first + BLOCK]
                    part = zero
                    for j in range(len(a)):
                        part += value(a[j], b[j], p)
                    total += part
                sums[k] = total

        return body

    make.__name__ = f"{kind}_total"
    return kernel("x: real[1], y: real[1], p: real, sums: f8[1], start: int, stop: int")(make)


def _each_kernel(kind: str) -> Any:
    def make(real: Any) -> Any:
        value = inline(KINDS[kind](real)[0], STRICT)

        def body(x: Any, y: Any, p: Any, out: Any, start: Any, stop: Any) -> None:
            for j in range(start, stop):
                out[j] = value(x[j], y[j], p)

        return body

    make.__name__ = f"{kind}_each"
    return kernel("x: real[1], y: real[1], p: real, out: real[1], start: int, stop: int")(make)


def _back_kernel(kind: str) -> Any:
    def make(real: Any) -> Any:
        slope = inline(KINDS[kind](real)[1], STRICT)

        def body(
            g: Any, x: Any, y: Any, p: Any, scale: Any, dx: Any, start: Any, stop: Any
        ) -> None:
            if len(g) > 1:
                for j in range(start, stop):
                    dx[j] = slope(x[j], y[j], p) * (g[j] * scale)
            else:
                factor = g[0] * scale
                for j in range(start, stop):
                    dx[j] = slope(x[j], y[j], p) * factor

        return body

    make.__name__ = f"{kind}_back"
    return kernel(
        "g: real[1], x: real[1], y: real[1], p: real, scale: real, dx: real[1], start: int, "
        "stop: int"
    )(make)


_TOTAL = {kind: _total_kernel(kind) for kind in KINDS}
_EACH = {kind: _each_kernel(kind) for kind in KINDS}
_BACK = {kind: _back_kernel(kind) for kind in KINDS}


def pointwise_loss(x: Any, y: Any, kind: str, p: float, scale: float | None) -> Any:
    """Σ f(x, y) · scale for x and y of one shape; f of each pair without a scale."""
    flat = contiguous(x).reshape(-1), contiguous(y).reshape(-1)
    if scale is None:
        out = np.empty(x.shape, x.dtype)
        parallel(_EACH[kind], x.size, GRAIN, *flat, p, out.reshape(-1))
        return out
    count = -(-x.size // CHUNK)
    sums = np.empty(count)
    parallel(_TOTAL[kind], count, 1, *flat, p, sums)
    return np.asarray(float(np.add.reduce(sums)) * scale, x.dtype)


def pointwise_loss_back(g: Any, x: Any, y: Any, kind: str, p: float, scale: float | None) -> Any:
    """The gradient of x."""
    dx = np.empty(x.shape, x.dtype)
    arrays = (contiguous(a).reshape(-1) for a in (g, x, y))
    parallel(
        _BACK[kind], x.size, GRAIN, *arrays, p, 1.0 if scale is None else scale, dx.reshape(-1)
    )
    return dx
