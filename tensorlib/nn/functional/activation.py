"""Activation functions, elementwise or along one dimension."""

from __future__ import annotations

import math
import warnings
from typing import Any

from tensorlib import random
from tensorlib.autograd.core import TensorBase, apply
from tensorlib.autograd.inplace import run_inplace
from tensorlib.errors import ArgumentError, DtypeError, ShapeError
from tensorlib.ops import activation, transcendental
from tensorlib.ops.arguments import not_tensors
from tensorlib.ops.elementwise import abs as abs_
from tensorlib.ops.elementwise import clamp, where
from tensorlib.ops.shaping import check_dim
from tensorlib.ops.softmax import log_softmax as log_softmax_along
from tensorlib.ops.softmax import softmax as softmax_along

_SELU_ALPHA = 1.6732632423543772848170429916717  # Klambauer et al. 2017
_SELU_SCALE = 1.0507009873554804934193349852946


def _run(p: Any, input: Any, inplace: bool, **options: Any) -> Any:
    """Apply a primitive with options, into the input's own memory if `inplace`."""
    if inplace:
        return run_inplace(lambda x: apply(p, (x,), options), f"{p.name}_", input)
    return apply(p, (input,), options)


# --- piecewise linear ----------------------------------------------------------------------------


def relu(input: Any, inplace: bool = False) -> Any:
    """max(x, 0), elementwise.

    Args:
        input: A tensor.
        inplace: Write the result into `input`.
    """
    if not isinstance(input, TensorBase):
        raise not_tensors("relu", input=input)
    if input._array.dtype.kind == "b":
        raise DtypeError("relu: received a bool tensor; convert it with .float()")
    return run_inplace(activation.relu, "relu_", input) if inplace else activation.relu(input)


def relu_(input: Any) -> Any:
    """In-place form of `relu`."""
    return relu(input, inplace=True)


def hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    """x kept within [min_val, max_val].

    Raises:
        ArgumentError: min_val exceeds max_val.
    """
    if min_val > max_val:
        raise ArgumentError(f"hardtanh: min_val is {min_val}, max_val {max_val}; swap them")
    return _run(activation.hardtanh_p, input, inplace, low=min_val, high=max_val)


def hardtanh_(input: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    """In-place form of `hardtanh`."""
    return hardtanh(input, min_val, max_val, inplace=True)


def relu6(input: Any, inplace: bool = False) -> Any:
    """min(max(x, 0), 6)."""
    return hardtanh(input, 0, 6, inplace)


def leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    """x for x > 0, negative_slope · x elsewhere."""
    return _run(activation.leaky_relu_p, input, inplace, slope=negative_slope)


def leaky_relu_(input: Any, negative_slope: float = 0.01) -> Any:
    """In-place form of `leaky_relu`."""
    return leaky_relu(input, negative_slope, inplace=True)


def prelu(input: Any, weight: Any) -> Any:
    """x for x > 0, weight · x elsewhere, with one learned weight, or one per channel (dimension 1).

    Raises:
        ShapeError: the number of weights is neither 1 nor that of the channels.
    """
    count = weight.numel()
    channels = input.shape[1] if input.ndim > 1 else 1
    if weight.ndim > 1 or count not in (1, channels):
        raise ShapeError(
            f"prelu: weight has shape {list(weight.shape)}; an input of shape {list(input.shape)} "
            f"takes 1 or {channels} weights in one dimension"
        )
    if input.ndim > 1 and count > 1:
        weight = weight.reshape((1, count) + (1,) * (input.ndim - 2))
    return where(input > 0, input, weight.reshape(()) * input if count == 1 else weight * input)


def rrelu(
    input: Any,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Any:
    """Leaky ReLU with slopes drawn from [lower, upper] in training, their mean otherwise.

    Raises:
        ArgumentError: lower exceeds upper.
    """
    if lower > upper:
        raise ArgumentError(f"rrelu: lower is {lower}, upper {upper}; swap them")
    if not training:
        return leaky_relu(input, (lower + upper) / 2, inplace)
    slope = (random.uniforms(input) * (upper - lower) + lower).to(input.dtype)

    def leak(x: Any) -> Any:
        return where(x > 0, x, x * slope)

    return run_inplace(leak, "rrelu_", input) if inplace else leak(input)


def rrelu_(
    input: Any, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False
) -> Any:
    """In-place form of `rrelu`."""
    return rrelu(input, lower, upper, training, inplace=True)


def _threshold(input: Any, limit: float, value: float, inplace: bool) -> Any:
    def choose(x: Any) -> Any:
        return where(x <= limit, value, x)

    return run_inplace(choose, "threshold_", input) if inplace else choose(input)


def threshold(input: Any, threshold: float, value: float, inplace: bool = False) -> Any:
    """x where x > threshold, `value` elsewhere."""
    return _threshold(input, threshold, value, inplace)


def threshold_(input: Any, threshold: float, value: float) -> Any:
    """In-place form of `threshold`."""
    return _threshold(input, threshold, value, inplace=True)


def hardsigmoid(input: Any, inplace: bool = False) -> Any:
    """relu6(x + 3) / 6."""
    return _run(activation.hardsigmoid_p, input, inplace)


def hardswish(input: Any, inplace: bool = False) -> Any:
    """x · relu6(x + 3) / 6."""
    return _run(activation.hardswish_p, input, inplace)


def hardshrink(input: Any, lambd: float = 0.5) -> Any:
    """x where abs(x) > lambd, 0 elsewhere."""
    return where(abs_(input) <= lambd, 0, input)


def softshrink(input: Any, lambd: float = 0.5) -> Any:
    """x moved towards 0 by lambd, and 0 where abs(x) <= lambd.

    Raises:
        ArgumentError: lambd is negative.
    """
    if lambd < 0:
        raise ArgumentError(f"softshrink: lambd is {lambd}; it must not be negative")
    return input - clamp(input, -lambd, lambd)


# --- smooth --------------------------------------------------------------------------------------


def gelu(input: Any, approximate: str = "none") -> Any:
    """x · Φ(x), where Φ is the normal distribution function (Hendrycks & Gimpel 2016).

    Args:
        input: A tensor.
        approximate: "none" computes Φ by the error function, "tanh" approximates it.

    Raises:
        ArgumentError: `approximate` is neither.
    """
    if approximate not in ("none", "tanh"):
        raise ArgumentError(f"gelu: approximate is {approximate!r}; pass 'none' or 'tanh'")
    return apply(activation.gelu_p, (input,), {"approximate": approximate == "tanh"})


def silu(input: Any, inplace: bool = False) -> Any:
    """x · sigmoid(x)."""
    return _run(activation.silu_p, input, inplace)


def mish(input: Any, inplace: bool = False) -> Any:
    """x · tanh(softplus(x)) (Misra 2019)."""
    return _run(activation.mish_p, input, inplace)


def elu(input: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    """x for x > 0, alpha · (eˣ - 1) elsewhere."""
    return _run(activation.elu_p, input, inplace, alpha=alpha)


def elu_(input: Any, alpha: float = 1.0) -> Any:
    """In-place form of `elu`."""
    return elu(input, alpha, inplace=True)


def celu(input: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    """x for x > 0, alpha · (exp(x / alpha) - 1) elsewhere.

    Raises:
        ArgumentError: alpha is 0.
    """
    if alpha == 0:
        raise ArgumentError("celu: alpha is 0; it divides the input, so pass another number")
    return _run(activation.elu_p, input, inplace, alpha=alpha, input_scale=1 / alpha)


def celu_(input: Any, alpha: float = 1.0) -> Any:
    """In-place form of `celu`."""
    return celu(input, alpha, inplace=True)


def selu(input: Any, inplace: bool = False) -> Any:
    """ELU scaled so that activations keep mean 0 and variance 1 (Klambauer et al. 2017)."""
    return _run(activation.elu_p, input, inplace, alpha=_SELU_ALPHA, scale=_SELU_SCALE)


def selu_(input: Any) -> Any:
    """In-place form of `selu`."""
    return selu(input, inplace=True)


def softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """log(1 + exp(beta · x)) / beta; x itself where beta · x exceeds `threshold`."""
    return apply(activation.softplus_p, (input,), {"beta": beta, "threshold": threshold})


def logsigmoid(input: Any) -> Any:
    """log(sigmoid(x)), without overflow."""
    return -softplus(-input, threshold=math.inf)


def softsign(input: Any) -> Any:
    """x / (1 + abs(x))."""
    return input / (abs_(input) + 1)


def tanhshrink(input: Any) -> Any:
    """x - tanh(x)."""
    return input - transcendental.tanh(input)


def sigmoid(input: Any) -> Any:
    """1 / (1 + e⁻ˣ)."""
    return transcendental.sigmoid(input)


def tanh(input: Any) -> Any:
    """The hyperbolic tangent."""
    return transcendental.tanh(input)


# --- along one dimension -------------------------------------------------------------------------


def _softmax_dim(name: str, dim: int | None, ndim: int, stacklevel: int) -> int:
    """The dimension, or torch's implicit choice with its warning."""
    if dim is not None:
        return dim
    warnings.warn(
        f"{name}: implicit dimension choice has been deprecated; pass dim=",
        stacklevel=stacklevel + 1,
    )
    return 0 if ndim in (0, 1, 3) else 1


def softmax(input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    """eˣ / Σ eˣ along `dim`.

    Args:
        input: A floating-point tensor.
        dim: The dimension whose elements sum to 1.
        _stacklevel: Of the warning when `dim` is missing.
        dtype: Convert the input first.

    Raises:
        DtypeError: the input is not floating-point and no `dtype` is given.
    """
    return softmax_along(input, _softmax_dim("softmax", dim, input.ndim, _stacklevel), dtype)


def softmin(input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    """softmax(-x) along `dim`."""
    return softmax_along(-input, _softmax_dim("softmin", dim, input.ndim, _stacklevel), dtype)


def log_softmax(input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    """log(softmax(x)) along `dim`, without overflow."""
    axis = _softmax_dim("log_softmax", dim, input.ndim, _stacklevel)
    return log_softmax_along(input, axis, dtype)


def gumbel_softmax(
    logits: Any, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Any:
    """A sample from the Gumbel-softmax distribution (Jang et al. 2017).

    Args:
        logits: Unnormalized log-probabilities.
        tau: The temperature; lower is closer to one-hot.
        hard: Return one-hot samples, differentiated as if they were the soft ones.
        eps: Accepted as in torch, where it has no effect.
        dim: The dimension of the classes.
    """
    exponentials = -transcendental.log(1 - random.uniforms(logits))
    gumbels = -transcendental.log(exponentials.to(logits.dtype))
    soft = softmax_along((logits + gumbels) / tau, dim)
    if not hard:
        return soft
    chosen = soft.detach().argmax(dim, keepdim=True)
    one_hot = (soft.detach() * 0).scatter(dim, chosen, value=1.0)
    return one_hot - soft.detach() + soft


def glu(input: Any, dim: int = -1) -> Any:
    """The first half of `dim` times the sigmoid of the second (Dauphin et al. 2017).

    Raises:
        ShapeError: the size of `dim` is odd, or the input is 0-d.
    """
    axis = check_dim(dim, input.ndim, "glu")
    if input.ndim == 0 or input.shape[axis] % 2:
        raise ShapeError(
            f"glu: halving dimension must be even, but dimension {axis} of {list(input.shape)} "
            "is not"
        )
    a, gate = input.chunk(2, axis)
    return a * transcendental.sigmoid(gate)
