"""Activations and their gradients, each in one pass.

A gradient takes ``g``, the output's, and the input or output that it is cheaper from. At
infinities the functions are NaN exactly where their formulas in PyTorch are.
"""

from __future__ import annotations

import math
from typing import Any

from .compiler import STRICT, inline
from .elementwise import Elementwise
from .vector import erf as erf_of
from .vector import exp, exp_negative, expm1_negative, gaussian, log1p_unit
from .vector import tanh as tanh_of

_ROOT_2_OVER_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715  # Hendrycks & Gimpel 2016, the tanh approximation of GELU


# --- piecewise linear ----------------------------------------------------------------------------


def _relu(real: Any) -> Any:
    zero = real(0)
    return inline(lambda x: zero if x <= zero else x, STRICT)


def _relu_back(real: Any) -> Any:
    zero = real(0)
    return inline(lambda g, out: zero if out <= zero else g, STRICT)


def _leaky_relu(real: Any) -> Any:
    zero = real(0)
    return inline(lambda x, slope: x if x > zero else x * slope, STRICT)


def _leaky_relu_back(real: Any) -> Any:
    zero = real(0)
    return inline(lambda g, x, slope: g if x > zero else g * slope, STRICT)


def _hardtanh_back(real: Any) -> Any:
    zero = real(0)
    return inline(lambda g, x, low, high: g if x > low and x < high else zero, STRICT)


def _hardswish(real: Any) -> Any:
    zero, three, six, sixth = real(0), real(3), real(6), real(1 / 6)

    def value(x: Any) -> Any:
        y = x + three
        y = zero if y < zero else y
        return x * (six if y > six else y) * sixth

    return inline(value, STRICT)


def _hardswish_back(real: Any) -> Any:
    zero, half, one, three, third = real(0), real(0.5), real(1), real(3), real(1 / 3)

    def value(g: Any, x: Any) -> Any:
        slope = one if x >= three else x * third + half
        return zero if x <= -three else g * slope

    return inline(value, STRICT)


def _hardsigmoid(real: Any) -> Any:
    zero, three, six, sixth = real(0), real(3), real(6), real(1 / 6)

    def value(x: Any) -> Any:
        y = x + three
        y = zero if y < zero else y
        return (six if y > six else y) * sixth

    return inline(value, STRICT)


def _hardsigmoid_back(real: Any) -> Any:
    zero, three, sixth = real(0), real(3), real(1 / 6)
    return inline(lambda g, x: g * sixth if x > -three and x < three else zero, STRICT)


relu = Elementwise("relu", _relu)
hardswish = Elementwise("hardswish", _hardswish)
hardswish_back = Elementwise("hardswish_back", _hardswish_back, "g: real, x: real")
hardsigmoid = Elementwise("hardsigmoid", _hardsigmoid)
hardsigmoid_back = Elementwise("hardsigmoid_back", _hardsigmoid_back, "g: real, x: real")
relu_back = Elementwise("relu_back", _relu_back, "g: real, out: real")
leaky_relu = Elementwise("leaky_relu", _leaky_relu, numbers=1)
leaky_relu_back = Elementwise("leaky_relu_back", _leaky_relu_back, "g: real, x: real", numbers=1)
hardtanh_back = Elementwise("hardtanh_back", _hardtanh_back, "g: real, x: real", numbers=2)


# --- exponential ---------------------------------------------------------------------------------


def _elu(real: Any) -> Any:
    zero, expm1 = real(0), expm1_negative(real)

    def value(x: Any, alpha: Any, scale: Any, input_scale: Any) -> Any:
        y = x * input_scale
        below = expm1(zero if y > zero else y) * (scale * alpha)
        return x * scale if x > zero else below

    return inline(value, STRICT)


def _elu_back(real: Any) -> Any:
    zero, exponential = real(0), exp_negative(real)

    def value(g: Any, x: Any, alpha: Any, scale: Any, input_scale: Any) -> Any:
        y = x * input_scale
        below = exponential(zero if y > zero else y) * (scale * alpha * input_scale)
        return g * (scale if x > zero else below)

    return inline(value, STRICT)


def _softplus(real: Any) -> Any:
    zero, one, exponential, log1p = real(0), real(1), exp_negative(real), log1p_unit(real)

    def value(x: Any, beta: Any, threshold: Any) -> Any:
        y = x * beta
        out = (y if y > zero else zero) + log1p(exponential(-abs(y)))
        out *= one / beta
        return x if y > threshold else out

    return inline(value, STRICT)


def _softplus_back(real: Any) -> Any:
    one, exponential = real(1), exp(real)

    def value(g: Any, x: Any, beta: Any, threshold: Any) -> Any:
        y = x * beta
        slope = one / (one + exponential(-y))
        return g if y > threshold else g * slope

    return inline(value, STRICT)


def _sigmoid(real: Any) -> Any:
    one, exponential = real(1), exp(real)
    return inline(lambda x: one / (one + exponential(-x)), STRICT)


def _sigmoid_back(real: Any) -> Any:
    one = real(1)
    return inline(lambda g, out: g * (one - out) * out, STRICT)


def _tanh_back(real: Any) -> Any:
    one = real(1)
    return inline(lambda g, out: g * (one - out * out), STRICT)


def _silu(real: Any) -> Any:
    one, exponential = real(1), exp(real)
    return inline(lambda x: x / (one + exponential(-x)), STRICT)


def _silu_back(real: Any) -> Any:
    one, exponential = real(1), exp(real)

    def value(g: Any, x: Any) -> Any:
        s = one / (one + exponential(-x))
        return g * s * (one + x * (one - s))

    return inline(value, STRICT)


def _mish(real: Any) -> Any:
    """x · tanh(log(1 + eˣ)) = x n / d, where both are polynomials in s = exp(-|x|)."""
    zero, one, two, exponential = real(0), real(1), real(2), exp_negative(real)

    def value(x: Any) -> Any:
        s = exponential(-abs(x))
        n = s * (s + two) if x < zero else one + two * s
        d = n + (two if x < zero else two * s * s)
        return x * (n / d)

    return inline(value, STRICT)


def _mish_back(real: Any) -> Any:
    zero, one, two, four = real(0), real(1), real(2), real(4)
    exponential = exp_negative(real)

    def value(g: Any, x: Any) -> Any:
        s = exponential(-abs(x))
        n = s * (s + two) if x < zero else one + two * s
        d = n + (two if x < zero else two * s * s)
        inverse = one / d
        # (1 - t²) sigmoid(x), where t = n / d.
        slope = four * s * (one + s) * (one if x < zero else s) * (inverse * inverse)
        return g * (n * inverse + x * slope)

    return inline(value, STRICT)


def _exp(real: Any) -> Any:
    return exp(real)


def _tanh(real: Any) -> Any:
    return tanh_of(real)


def _erf(real: Any) -> Any:
    return erf_of(real)


exponential = Elementwise("exponential", _exp)
tanh = Elementwise("tanh", _tanh)
erf = Elementwise("erf", _erf)
sigmoid = Elementwise("sigmoid", _sigmoid)
sigmoid_back = Elementwise("sigmoid_back", _sigmoid_back, "g: real, out: real")
tanh_back = Elementwise("tanh_back", _tanh_back, "g: real, out: real")
elu = Elementwise("elu", _elu, numbers=3)
elu_back = Elementwise("elu_back", _elu_back, "g: real, x: real", numbers=3)
softplus = Elementwise("softplus", _softplus, numbers=2)
softplus_back = Elementwise("softplus_back", _softplus_back, "g: real, x: real", numbers=2)
silu = Elementwise("silu", _silu)
silu_back = Elementwise("silu_back", _silu_back, "g: real, x: real")
mish = Elementwise("mish", _mish)
mish_back = Elementwise("mish_back", _mish_back, "g: real, x: real")


# --- GELU ----------------------------------------------------------------------------------------


def _gelu(real: Any) -> Any:
    both = gaussian(real)

    def value(x: Any) -> Any:
        cdf, _ = both(x)
        return x * cdf

    return inline(value, STRICT)


def _gelu_back(real: Any) -> Any:
    both, density = gaussian(real), real(1 / math.sqrt(2 * math.pi))

    def value(g: Any, x: Any) -> Any:
        cdf, power = both(x)
        return g * (cdf + x * (density * power))

    return inline(value, STRICT)


def _gelu_tanh(real: Any) -> Any:
    """½ x (1 + tanh u) = x sigmoid(2u), where u = √(2/π) (x + c x³)."""
    one, exponential = real(1), exp(real)
    linear, cubic = real(-2 * _ROOT_2_OVER_PI), real(-2 * _ROOT_2_OVER_PI * _CUBIC)
    return inline(lambda x: x / (one + exponential(x * (cubic * (x * x) + linear))), STRICT)


def _gelu_tanh_back(real: Any) -> Any:
    one, three, exponential = real(1), real(3), exp(real)
    linear, cubic = real(2 * _ROOT_2_OVER_PI), real(2 * _ROOT_2_OVER_PI * _CUBIC)

    def value(g: Any, x: Any) -> Any:
        bend = cubic * (x * x)
        s = one / (one + exponential(-x * (bend + linear)))
        return g * s * (one + x * (one - s) * (three * bend + linear))

    return inline(value, STRICT)


gelu = Elementwise("gelu", _gelu)
gelu_back = Elementwise("gelu_back", _gelu_back, "g: real, x: real")
gelu_tanh = Elementwise("gelu_tanh", _gelu_tanh)
gelu_tanh_back = Elementwise("gelu_tanh_back", _gelu_tanh_back, "g: real, x: real")
