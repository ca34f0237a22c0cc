"""Activations with rules of their own; the others are expressions in `nn.functional`.

A rule selects by `mask_p` where it can: `where` takes several times as long.
"""

from __future__ import annotations

import math
from typing import Any

from ..autograd.primitive import primitive
from .elementwise import mask_p, minimum
from .precision import like, wide
from .transcendental import erf, exp, sigmoid, tanh

_ROOT_2_OVER_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715  # Hendrycks & Gimpel 2016, the tanh approximation of GELU


# --- piecewise linear ----------------------------------------------------------------------------


@primitive(x=lambda g, out: mask_p(g, out > 0))
def relu(b, x, *, out=None):
    """max(x, 0)."""
    return b.maximum(x, 0, out=out)


@primitive(x=lambda g, x, low, high: mask_p(g, (x > low) & (x < high)))
def hardtanh_p(b, x, *, low, high):
    """x kept within [low, high]; unlike clamp's, the gradient at the limits is 0."""
    return like(b.clip(x, low, high), x)


@primitive(promotion="float", x=lambda g, x, slope: g * slope + mask_p(g * (1 - slope), x > 0))
def leaky_relu_p(b, x, *, slope):
    """x for x > 0, slope · x elsewhere."""
    below = like(x * slope, x)
    return b.maximum(x, below) if 0 <= slope <= 1 else b.where(x > 0, x, below)


# --- exponential ---------------------------------------------------------------------------------


def _elu_x(g: Any, x: Any, alpha: float, scale: float, input_scale: float) -> Any:
    """The slope is scale · alpha · input_scale · exp(input_scale · x), and `scale` above 0."""
    slope = alpha * input_scale
    out = g * exp(minimum(x, 0) * input_scale) * (scale * slope)
    return out if slope == 1 else out + mask_p(g * (scale * (1 - slope)), x > 0)


@primitive(promotion="float", x=_elu_x)
def elu_p(b, x, *, alpha=1.0, scale=1.0, input_scale=1.0):
    """scale · x for x > 0, scale · alpha · (exp(input_scale · x) - 1) elsewhere."""
    out = b.minimum(wide(x), 0)
    out *= input_scale
    out = b.expm1(out)
    out *= alpha
    out += b.maximum(x, 0)
    out *= scale
    return like(out, x)


def _softplus_x(g: Any, x: Any, beta: float, threshold: float) -> Any:
    scaled = x * beta
    slope = g * sigmoid(scaled)
    return slope + mask_p(g - slope, scaled > threshold)


@primitive(promotion="float", x=_softplus_x)
def softplus_p(b, x, *, beta=1.0, threshold=math.inf):
    """log(1 + exp(beta · x)) / beta without overflow; x where beta · x > `threshold`."""
    scaled = wide(x) * beta
    out = b.asarray(b.abs(scaled))
    b.negative(out, out=out)
    b.exp(out, out=out)
    b.log1p(out, out=out)
    out += b.maximum(scaled, 0)
    if threshold < math.inf:
        b.copyto(out, scaled, where=scaled > threshold)
    out /= beta
    return like(out, x)


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
    out = sigmoid.forward(b, wide(x))
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
        out = b.exp(square, out=square)
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
    t = b.tanh(t, out=t)
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
