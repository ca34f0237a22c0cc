"""Activations with rules of their own; the others are expressions in `nn.functional`.

A rule multiplies by a mask where it can: choosing elements by `where` takes several times as long.
"""

from __future__ import annotations

import math
from typing import Any

from ..autograd.primitive import primitive
from .elementwise import minimum, where
from .precision import like, wide
from .transcendental import erf, exp, sigmoid, tanh

_ROOT_2_OVER_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715  # Hendrycks & Gimpel 2016, the tanh approximation of GELU


# --- piecewise linear ----------------------------------------------------------------------------


@primitive(x=lambda g, out: g * (out > 0))
def relu(b, x, *, out=None):
    """max(x, 0)."""
    return b.maximum(x, 0, out=out)


@primitive(x=lambda g, x, low, high: g * ((x > low) & (x < high)))
def hardtanh_p(b, x, *, low, high):
    """x kept within [low, high]; unlike clamp's, the gradient at the limits is 0."""
    return like(b.clip(x, low, high), x)


@primitive(promotion="float", x=lambda g, x, slope: where(x > 0, g, g * slope))
def leaky_relu_p(b, x, *, slope):
    """x for x > 0, slope · x elsewhere."""
    below = like(x * slope, x)
    return b.maximum(x, below) if 0 <= slope <= 1 else b.where(x > 0, x, below)


# --- exponential ---------------------------------------------------------------------------------


def _elu_x(g: Any, x: Any, alpha: float, scale: float, input_scale: float) -> Any:
    below = exp(minimum(x, 0) * input_scale) * (alpha * input_scale)
    return g * scale * where(x > 0, 1, below)


@primitive(promotion="float", x=_elu_x)
def elu_p(b, x, *, alpha=1.0, scale=1.0, input_scale=1.0):
    """scale · x for x > 0, scale · alpha · (exp(input_scale · x) - 1) elsewhere."""
    below = b.minimum(wide(x), 0)
    below *= input_scale
    below = b.expm1(below)
    below *= alpha
    return like(b.where(x > 0, x, below) * scale, x)


@primitive(
    promotion="float",
    x=lambda g, x, beta, threshold: g * where(x * beta > threshold, 1, sigmoid(x * beta)),
)
def softplus_p(b, x, *, beta=1.0, threshold=math.inf):
    """log(1 + exp(beta · x)) / beta without overflow; x where beta · x > `threshold`."""
    scaled = wide(x) * beta
    out = b.abs(scaled)
    out = b.exp(-out)
    out = b.log1p(out)
    out += b.maximum(scaled, 0)
    if threshold < math.inf:
        out = b.where(scaled > threshold, scaled, out)
    return like(out / beta, x)


def _silu_reference(x: Any) -> Any:
    return x * sigmoid(x)


def _silu_x(g: Any, b: Any, x: Any) -> Any:
    """g · s · (1 + x · (1 - s)), where s = sigmoid(x)."""
    x = wide(x)
    s = sigmoid(x)
    out = 1 - s
    out *= x
    out += 1
    out *= s
    out *= g
    return out


@primitive(promotion="float", reference=_silu_reference, x=_silu_x)
def silu_p(b, x):
    """x · sigmoid(x)."""
    out = sigmoid(wide(x))
    out *= x
    return like(out, x)


def _mish_x(g: Any, x: Any) -> Any:
    t = tanh(softplus_p(x))
    return g * (t + x * (1 - t * t) * sigmoid(x))


@primitive(promotion="float", x=_mish_x)
def mish_p(b, x):
    """x · tanh(softplus(x)) (Misra 2019)."""
    out = b.tanh(softplus_p.forward(b, wide(x)))
    out *= x
    return like(out, x)


# --- GELU ----------------------------------------------------------------------------------------


def _gelu_reference(x: Any, *, approximate: bool) -> Any:
    if approximate:
        return 0.5 * x * (1 + tanh(_ROOT_2_OVER_PI * (x + _CUBIC * x * x * x)))
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def _gelu_x(g: Any, b: Any, x: Any, approximate: bool) -> Any:
    x = wide(x)
    square = b.asarray(x * x)
    if not approximate:  # Φ(x) + x · φ(x)
        square *= -0.5
        out = b.exp(square, out=square if square.ndim else None)
        out *= 1 / math.sqrt(2 * math.pi)
        out *= x
        cdf = b.special("erf")(x * math.sqrt(0.5))
        cdf += 1
        cdf *= 0.5
        out += cdf
        out *= g
        return out
    # With u = √(2/π) (x + c x³) and t = tanh u:  ½ (1 + t) (1 + x (1 - t) u')
    t = b.asarray(square * (_CUBIC * _ROOT_2_OVER_PI))
    t += _ROOT_2_OVER_PI
    t *= x
    t = b.tanh(t, out=t if t.ndim else None)
    out = square
    out *= 3 * _CUBIC * _ROOT_2_OVER_PI
    out += _ROOT_2_OVER_PI
    out *= x
    out *= 1 - t
    out += 1
    t += 1
    t *= 0.5
    out *= t
    out *= g
    return out


@primitive(promotion="float", reference=_gelu_reference, x=_gelu_x)
def gelu_p(b, x, *, approximate=False):
    """x · Φ(x), the normal distribution function by erf, or approximately by tanh."""
    wide_x = wide(x)
    if approximate:
        out = b.asarray(wide_x * wide_x)
        out *= _CUBIC * _ROOT_2_OVER_PI
        out += _ROOT_2_OVER_PI
        out *= wide_x
        out = b.tanh(out, out=out)
    else:
        out = b.special("erf")(wide_x * math.sqrt(0.5))
    out += 1
    out *= wide_x
    out *= 0.5
    return like(out, x)
