"""Activations: functions of each element, or normalizations over one dimension."""

from __future__ import annotations

import tensorlib
import tensorlib.nn.functional as F
from tensorlib.errors import ArgumentError
from tensorlib.nn.module import Module
from tensorlib.tensor import Tensor


class _InPlace(Module):
    """An activation that can overwrite its input, and has no other options."""

    def __init__(self, inplace: bool = False) -> None:
        """Takes whether the input is overwritten."""
        super().__init__()
        self.inplace = inplace

    def extra_repr(self) -> str:
        """Whether it works in place."""
        return "inplace=True" if self.inplace else ""


def _in_place(module: Module) -> str:
    return ", inplace=True" if module.inplace else ""


class ReLU(_InPlace):
    """``max(0, x)``."""

    def forward(self, input: Tensor) -> Tensor:
        """(*) -> (*)."""
        return F.relu(input, inplace=self.inplace)


class SiLU(_InPlace):
    """``x · sigmoid(x)``."""

    def forward(self, input: Tensor) -> Tensor:
        """(*) -> (*)."""
        return F.silu(input, inplace=self.inplace)


class Sigmoid(Module):
    """``1 / (1 + exp(-x))``."""

    def forward(self, input: Tensor) -> Tensor:
        """(*) -> (*)."""
        return tensorlib.sigmoid(input)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, input: Tensor) -> Tensor:
        """(*) -> (*)."""
        return tensorlib.tanh(input)


class GELU(Module):
    """``x · Φ(x)``, with the distribution function Φ of the normal distribution.

    Source: Hendrycks, Gimpel (2016), "Gaussian Error Linear Units (GELUs)".
    """

    def __init__(self, approximate: str = "none") -> None:
        """Takes "none", or "tanh" for the approximation of Φ by a hyperbolic tangent."""
        super().__init__()
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        """(*) -> (*)."""
        return F.gelu(input, approximate=self.approximate)

    def extra_repr(self) -> str:
        """The approximation."""
        return f"approximate={self.approximate!r}"


class LeakyReLU(Module):
    """``x`` where it is positive, else ``negative_slope · x``."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        """Takes the slope, and whether the input is overwritten."""
        super().__init__()
        self.negative_slope = negative_slope
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """(*) -> (*)."""
        return F.leaky_relu(input, self.negative_slope, self.inplace)

    def extra_repr(self) -> str:
        """The options."""
        return f"negative_slope={self.negative_slope}{_in_place(self)}"


class ELU(Module):
    """``x`` where it is positive, else ``alpha · (exp(x) - 1)``."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        """Takes alpha, and whether the input is overwritten."""
        super().__init__()
        self.alpha = alpha
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """(*) -> (*)."""
        return F.elu(input, self.alpha, self.inplace)

    def extra_repr(self) -> str:
        """The options."""
        return f"alpha={self.alpha}{_in_place(self)}"


class Softplus(Module):
    """``log(1 + exp(beta · x)) / beta``; x itself where ``beta · x`` is above the threshold."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        """Takes beta and the threshold."""
        super().__init__()
        self.beta = beta
        self.threshold = threshold

    def forward(self, input: Tensor) -> Tensor:
        """(*) -> (*)."""
        return F.softplus(input, self.beta, self.threshold)

    def extra_repr(self) -> str:
        """The options."""
        return f"beta={self.beta}, threshold={self.threshold}"


class Hardtanh(Module):
    """``x``, limited to [min_val, max_val]."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        """Takes the limits, and whether the input is overwritten.

        Raises:
            ArgumentError: The limits are not in order.
        """
        super().__init__()
        if max_val <= min_val:
            raise ArgumentError(f"max_val ({max_val}) must be greater than min_val ({min_val})")
        self.min_val = min_val
        self.max_val = max_val
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """(*) -> (*)."""
        return F.hardtanh(input, self.min_val, self.max_val, self.inplace)

    def extra_repr(self) -> str:
        """The options."""
        return f"min_val={self.min_val}, max_val={self.max_val}{_in_place(self)}"


class ReLU6(Hardtanh):
    """``min(max(0, x), 6)``."""

    def __init__(self, inplace: bool = False) -> None:
        """Takes whether the input is overwritten."""
        super().__init__(0.0, 6.0, inplace)

    def extra_repr(self) -> str:
        """Whether it works in place."""
        return "inplace=True" if self.inplace else ""


class Softmax(Module):
    """``exp(x) / Σ exp(x)`` along a dimension: positive numbers that sum to 1."""

    def __init__(self, dim: int | None = None) -> None:
        """Takes the dimension."""
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """(*) -> (*)."""
        return F.softmax(input, self.dim, _stacklevel=5)

    def extra_repr(self) -> str:
        """The dimension."""
        return f"dim={self.dim}"


class LogSoftmax(Module):
    """The logarithm of the softmax along a dimension."""

    def __init__(self, dim: int | None = None) -> None:
        """Takes the dimension."""
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """(*) -> (*)."""
        return F.log_softmax(input, self.dim, _stacklevel=5)

    def extra_repr(self) -> str:
        """The dimension."""
        return f"dim={self.dim}"
