"""Activations with rules of their own; the others are expressions in `nn.functional`.

On the CPU forward and gradient are one pass each (`backend/kernels/activation.py`); the expressions
here are what the kernels compute, for other devices and dtypes. Where a rule calls a kernel, the
`reference` is what `create_graph` differentiates.
"""

from __future__ import annotations

import math
from typing import Any

from ..autograd.primitive import primitive
from .elementwise import mask_p, minimum
from .precision import SMALL, like, wide
from .transcendental import erf, exp, expm1, log1p, sigmoid, tanh

_ROOT_2_OVER_PI = math.sqrt(2 / math.pi)
_LINEAR = 40.0  # log(1 + eˣ) is x from here on
_CUBIC = 0.044715  # Hendrycks & Gimpel 2016, the tanh approximation of GELU


# --- piecewise linear ----------------------------------------------------------------------------


@primitive(promotion=None, d=lambda g, out: relu_back_p(g, out))
def relu_back_p(b, d, out):
    """The gradient of `relu`: d, and 0 where the output is 0."""
    fused = b.kernel("relu_back", d, out)
    return fused(d, out) if fused else mask_p.forward(b, d, b.logical_not(out <= 0))


@primitive(x=lambda g, out: relu_back_p(g, out))
def relu(b, x, *, out=None):
    """max(x, 0)."""
    if x.size > SMALL and (out is None or out.flags.c_contiguous):
        fused = b.kernel("relu", x)
        if fused:
            return fused(x, out=out)
    return b.maximum(x, 0, out=out)


@primitive(
    promotion=None,
    d=lambda g, x, low, high: hardtanh_back_p(g, x, low=low, high=high),
)
def hardtanh_back_p(b, d, x, *, low, high):
    """The gradient of `hardtanh`: d, and 0 where x is at a limit or beyond."""
    fused = b.kernel("hardtanh_back", d, x)
    if fused:
        return fused(d, x, low, high)
    return mask_p.forward(b, d, (x > low) & (x < high))


@primitive(x=lambda g, x, low, high: hardtanh_back_p(g, x, low=low, high=high))
def hardtanh_p(b, x, *, low, high):
    """x kept within [low, high]; unlike clamp's, the gradient at the limits is 0."""
    return like(b.clip(x, low, high), x)


def _hardsigmoid_reference(x: Any) -> Any:
    return hardtanh_p(x + 3, low=0, high=6) / 6


def _hardsigmoid_x(g: Any, b: Any, x: Any) -> Any:
    fused = b.kernel("hardsigmoid_back", g, x)
    return fused(g, x) if fused else hardtanh_back_p(g / 6, x, low=-3, high=3)


@primitive(promotion="float", reference=_hardsigmoid_reference, x=_hardsigmoid_x)
def hardsigmoid_p(b, x):
    """min(max(x + 3, 0), 6) / 6."""
    fused = b.kernel("hardsigmoid", x)
    return fused(x) if fused else like(b.clip(wide(x) + 3, 0, 6) / 6, x)


def _hardswish_reference(x: Any) -> Any:
    return x * hardsigmoid_p(x)


def _hardswish_x(g: Any, b: Any, x: Any) -> Any:
    fused = b.kernel("hardswish_back", g, x)
    if fused:
        return fused(g, x)
    return g * hardsigmoid_p(x) + hardtanh_back_p(g * x / 6, x, low=-3, high=3)


@primitive(promotion="float", reference=_hardswish_reference, x=_hardswish_x)
def hardswish_p(b, x):
    """x · min(max(x + 3, 0), 6) / 6 (Howard et al. 2019)."""
    fused = b.kernel("hardswish", x)
    if fused:
        return fused(x)
    wide_x = wide(x)
    return like(wide_x * b.clip(wide_x + 3, 0, 6) / 6, x)


def _leaky_relu_reference(x: Any, *, slope: float) -> Any:
    return x * slope + mask_p(x * (1 - slope), x > 0)


def _leaky_relu_x(g: Any, b: Any, x: Any, slope: float) -> Any:
    fused = b.kernel("leaky_relu_back", g, x)
    return fused(g, x, slope) if fused else g * slope + mask_p(g * (1 - slope), x > 0)


@primitive(promotion="float", reference=_leaky_relu_reference, x=_leaky_relu_x)
def leaky_relu_p(b, x, *, slope):
    """x for x > 0, slope · x elsewhere."""
    fused = b.kernel("leaky_relu", x)
    if fused:
        return fused(x, slope)
    below = like(x * slope, x)
    return b.maximum(x, below) if 0 <= slope <= 1 else b.where(x > 0, x, below)


# --- exponential ---------------------------------------------------------------------------------


def _elu_reference(x: Any, *, alpha: float, scale: float, input_scale: float) -> Any:
    above = x > 0
    below = expm1(mask_p(x, above == 0) * input_scale) * (scale * alpha)
    return below + mask_p(x * scale, above)


def _elu_x(g: Any, b: Any, x: Any, alpha: float, scale: float, input_scale: float) -> Any:
    """The slope is scale · alpha · input_scale · exp(input_scale · x), and `scale` above 0."""
    fused = b.kernel("elu_back", g, x)
    if fused and input_scale > 0:
        return fused(g, x, alpha, scale, input_scale)
    slope = alpha * input_scale
    out = g * exp(minimum(x, 0) * input_scale) * (scale * slope)
    return out if slope == 1 else out + mask_p(g * (scale * (1 - slope)), x > 0)


@primitive(promotion="float", reference=_elu_reference, x=_elu_x)
def elu_p(b, x, *, alpha=1.0, scale=1.0, input_scale=1.0):
    """scale · x for x > 0, scale · alpha · (exp(input_scale · x) - 1) elsewhere."""
    fused = b.kernel("elu", x)
    if fused and input_scale > 0:
        return fused(x, alpha, scale, input_scale)
    out = b.minimum(wide(x), 0)
    out *= input_scale
    out = b.expm1(out)
    out *= alpha
    out += b.maximum(x, 0)
    out *= scale
    return like(out, x)


def _softplus_reference(x: Any, *, beta: float, threshold: float) -> Any:
    above = x * beta > min(threshold, _LINEAR)
    below = above == 0
    curved = mask_p(log1p(exp(mask_p(x * beta, below))), below)
    return curved / beta + mask_p(x, above)


def _softplus_x(g: Any, b: Any, x: Any, beta: float, threshold: float) -> Any:
    fused = b.kernel("softplus_back", g, x)
    if fused:
        return fused(g, x, beta, threshold)
    scaled = x * beta
    slope = g * sigmoid(scaled)
    return slope + mask_p(g - slope, scaled > threshold)


@primitive(promotion="float", reference=_softplus_reference, x=_softplus_x)
def softplus_p(b, x, *, beta=1.0, threshold=math.inf):
    """log(1 + exp(beta · x)) / beta without overflow; x where beta · x > `threshold`."""
    fused = b.kernel("softplus", x)
    if fused:
        return fused(x, beta, threshold)
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
    fused = b.kernel("silu_back", g, x)
    if fused:
        return fused(g, x)
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
    fused = b.kernel("silu", x)
    if fused:
        return fused(x)
    out = sigmoid.forward(b, wide(x))
    out *= x
    return like(out, x)


def _mish_reference(x: Any) -> Any:
    return x * tanh(softplus_p(x))


def _mish_x(g: Any, b: Any, x: Any) -> Any:
    fused = b.kernel("mish_back", g, x)
    if fused:
        return fused(g, x)
    t = tanh(softplus_p(x))
    return g * (t + x * (1 - t * t) * sigmoid(x))


@primitive(promotion="float", reference=_mish_reference, x=_mish_x)
def mish_p(b, x):
    """x · tanh(softplus(x)) (Misra 2019)."""
    fused = b.kernel("mish", x)
    if fused:
        return fused(x)
    out = b.tanh(softplus_p.forward(b, wide(x)))
    out *= x
    return like(out, x)


# --- GELU ----------------------------------------------------------------------------------------


def _gelu_reference(x: Any, *, approximate: bool) -> Any:
    if approximate:
        return 0.5 * x * (1 + tanh(_ROOT_2_OVER_PI * (x + _CUBIC * x * x * x)))
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def _gelu_x(g: Any, b: Any, x: Any, approximate: bool) -> Any:
    fused = b.kernel("gelu_tanh_back" if approximate else "gelu_back", g, x)
    if fused:
        return fused(g, x)
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
    fused = b.kernel("gelu_tanh" if approximate else "gelu", x)
    if fused:
        return fused(x)
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
