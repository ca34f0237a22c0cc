"""Initial values of parameters, written into a tensor in place.

Random values come from ``generator``, or the default generator. Fans count the inputs and outputs
of one unit: a weight of shape (out, in, *kernel) has fan_in = in · prod(kernel) and
fan_out = out · prod(kernel).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import tensorlib
from tensorlib.autograd import no_grad
from tensorlib.errors import ArgumentError
from tensorlib.tensor import Tensor

Generator = Any

_GAINS = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "conv3d": 1.0,
    "conv_transpose1d": 1.0,
    "conv_transpose2d": 1.0,
    "conv_transpose3d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3,
    "relu": math.sqrt(2.0),
    "selu": 3.0 / 4,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Returns the factor by which weights before a nonlinearity are scaled.

    Args:
        nonlinearity: "linear", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu", ...
        param: The negative slope of "leaky_relu", 0.01 by default.

    Raises:
        ArgumentError: An unknown nonlinearity, or a slope that is not a number.
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        if isinstance(slope, bool) or not isinstance(slope, int | float):
            raise ArgumentError(f"negative_slope {slope!r} not a valid number")
        return math.sqrt(2.0 / (1 + slope**2))
    if nonlinearity not in _GAINS:
        expected = ", ".join([*_GAINS, "leaky_relu"])
        raise ArgumentError(
            f"Unsupported nonlinearity {nonlinearity!r}, expected one of {expected}"
        )
    return _GAINS[nonlinearity]


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator = None) -> Tensor:
    """Fills with values uniform in [a, b)."""
    with no_grad():
        return tensor.uniform_(a, b, generator=generator)


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator = None
) -> Tensor:
    """Fills with values of the normal distribution."""
    with no_grad():
        return tensor.normal_(mean, std, generator=generator)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator = None,
) -> Tensor:
    """Fills with values of the normal distribution, given that they lie in [a, b].

    By the inverse of the distribution function at values uniform between those of a and b.

    Args:
        tensor: The tensor to fill.
        mean: Of the distribution before it is cut.
        std: Likewise.
        a: The smallest value, not a number of standard deviations.
        b: The largest value.
        generator: Draws the values.
    """
    if mean < a - 2 * std or mean > b + 2 * std:
        warnings.warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. The distribution of "
            "values may be incorrect.",
            stacklevel=2,
        )
    low, high = (math.erf((x - mean) / (std * math.sqrt(2))) for x in (a, b))
    with no_grad():
        erf = tensorlib.empty(tensor.shape, dtype=tensorlib.float64, device=tensor.device)
        erf.uniform_(low, high, generator=generator)
        values = erf.erfinv_().mul_(std * math.sqrt(2)).add_(mean).clamp_(a, b)
        return tensor.copy_(values)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fills with one value."""
    with no_grad():
        return tensor.fill_(val)


def ones_(tensor: Tensor) -> Tensor:
    """Fills with ones."""
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    """Fills with zeros."""
    return constant_(tensor, 0.0)


def _require_matrix(tensor: Tensor) -> None:
    if tensor.dim() != 2:
        raise ArgumentError(
            f"Only tensors with 2 dimensions are supported, received shape {tuple(tensor.shape)}"
        )


def eye_(tensor: Tensor) -> Tensor:
    """Makes a matrix the identity, so that a linear layer passes on what it can.

    Raises:
        ArgumentError: Not a matrix.
    """
    _require_matrix(tensor)
    with no_grad():
        return tensor.copy_(tensorlib.eye(*tensor.shape, dtype=tensor.dtype, device=tensor.device))


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """Makes a convolution's weight the identity on as many channels as possible.

    Args:
        tensor: Of shape (out, in / groups, *kernel), with 1 to 3 kernel dimensions.
        groups: Each group gets an identity of its own.

    Raises:
        ArgumentError: Another number of dimensions, or ``groups`` does not divide ``out``.
    """
    if tensor.dim() not in (3, 4, 5):
        raise ArgumentError(
            "Only tensors with 3, 4, or 5 dimensions are supported, received shape "
            f"{tuple(tensor.shape)}"
        )
    out, channels, *kernel = tensor.shape
    if out % groups != 0:
        raise ArgumentError(f"dim 0 must be divisible by groups: {out} channels, {groups} groups")
    centre = tuple(size // 2 for size in kernel)
    with no_grad():
        tensor.zero_()
        for start in range(0, out, out // groups):
            for i in range(min(out // groups, channels)):
                tensor[(start + i, i, *centre)] = 1
    return tensor


def _calculate_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    if tensor.dim() < 2:
        raise ArgumentError(
            "Fan in and fan out can not be computed for tensor with fewer than 2 dimensions, "
            f"received shape {tuple(tensor.shape)}"
        )
    out, channels, *kernel = tensor.shape
    return channels * math.prod(kernel), out * math.prod(kernel)


def _calculate_correct_fan(tensor: Tensor, mode: str) -> int:
    modes = ("fan_in", "fan_out")
    if mode.lower() not in modes:
        raise ArgumentError(f"Mode {mode} not supported, please use one of {list(modes)}")
    return _calculate_fan_in_and_fan_out(tensor)[modes.index(mode.lower())]


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator = None) -> Tensor:
    """Fills uniformly with variance ``gain² · 2 / (fan_in + fan_out)``.

    Source: Glorot, Bengio (2010), "Understanding the difficulty of training deep feedforward
    neural networks", equation 16.
    """
    bound = math.sqrt(3.0) * _xavier_std(tensor, gain)
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator = None) -> Tensor:
    """Fills normally with variance ``gain² · 2 / (fan_in + fan_out)``."""
    return normal_(tensor, 0.0, _xavier_std(tensor, gain), generator)


def _xavier_std(tensor: Tensor, gain: float) -> float:
    return gain * math.sqrt(2.0 / sum(_calculate_fan_in_and_fan_out(tensor)))


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator = None,
) -> Tensor:
    """Fills uniformly with variance ``gain² / fan``.

    Args:
        tensor: The tensor to fill.
        a: The negative slope of a following leaky ReLU.
        mode: "fan_in" keeps the variance of activations, "fan_out" that of gradients.
        nonlinearity: What follows, which sets the gain.
        generator: Draws the values.

    Source: He, Zhang, Ren, Sun (2015), "Delving Deep into Rectifiers", equation 10.
    """
    if _is_empty(tensor):
        return tensor
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator = None,
) -> Tensor:
    """Fills normally with variance ``gain² / fan``; the arguments are ``kaiming_uniform_``'s."""
    if _is_empty(tensor):
        return tensor
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    return calculate_gain(nonlinearity, a) / math.sqrt(_calculate_correct_fan(tensor, mode))


def _is_empty(tensor: Tensor) -> bool:
    if 0 not in tensor.shape:
        return False
    warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=3)
    return True


def orthogonal_(tensor: Tensor, gain: float = 1, generator: Generator = None) -> Tensor:
    """Makes the rows (or, if there are fewer, the columns) orthogonal, of length ``gain``.

    Dimensions after the first count as columns.

    Raises:
        ArgumentError: Fewer than 2 dimensions.

    Source: Saxe, McClelland, Ganguli (2014), "Exact solutions to the nonlinear dynamics of
    learning in deep linear neural networks".
    """
    if tensor.dim() < 2:
        raise ArgumentError(
            "Only tensors with 2 or more dimensions are supported, received shape "
            f"{tuple(tensor.shape)}"
        )
    if 0 in tensor.shape:
        return tensor
    rows = tensor.shape[0]
    columns = math.prod(tensor.shape[1:])
    with no_grad():
        draws = tensorlib.empty(max(rows, columns), min(rows, columns), dtype=tensorlib.float64)
        q, r = _qr(draws.normal_(0, 1, generator=generator))
        q = q * r.diagonal().sign()  # makes the distribution uniform
        q = q.t() if rows < columns else q
        return tensor.copy_(q.reshape(tensor.shape).mul(gain))


def _qr(a: Tensor) -> tuple[Tensor, Tensor]:
    import numpy as np

    q, r = np.linalg.qr(a.numpy())
    return tensorlib.from_numpy(q), tensorlib.from_numpy(r)


def sparse_(
    tensor: Tensor, sparsity: float, std: float = 0.01, generator: Generator = None
) -> Tensor:
    """Fills a matrix normally, then sets a share of each column to zero.

    Args:
        tensor: The matrix.
        sparsity: The share, rounded up to whole elements.
        std: Of the other elements.
        generator: Draws the values and the places.

    Raises:
        ArgumentError: Not a matrix.

    Source: Martens (2010), "Deep learning via Hessian-free optimization".
    """
    _require_matrix(tensor)
    rows, columns = tensor.shape
    n_zeros = math.ceil(sparsity * rows)
    normal_(tensor, 0.0, std, generator)
    with no_grad():
        for column in range(columns):
            order = tensorlib.randperm(rows, generator=generator)
            tensor[order[:n_zeros], column] = 0
    return tensor
