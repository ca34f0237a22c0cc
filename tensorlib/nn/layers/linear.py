"""Linear maps of the last dimension."""

from __future__ import annotations

import math
from typing import Any

import tensorlib
import tensorlib.nn.functional as F
from tensorlib.nn import init
from tensorlib.nn.module import Module
from tensorlib.nn.parameter import Parameter
from tensorlib.tensor import Tensor


class Identity(Module):
    """Returns its input, whatever its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes anything and keeps nothing."""
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        """(*) -> (*)."""
        return input


class Linear(Module):
    """``y = x Aᵀ + b``.

    Attributes:
        weight: A, of shape (out_features, in_features), uniform in ±1/√in_features at first.
        bias: b, of shape (out_features,), likewise; None with ``bias=False``.

    Example:
        >>> import tensorlib as tl
        >>> tl.nn.Linear(20, 30)(tl.randn(128, 20)).shape == (128, 30)
        True
    """

    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Makes the parameters.

        Args:
            in_features: Size of the last dimension of inputs.
            out_features: Size of the last dimension of outputs.
            bias: Whether to add b.
            device: Where the parameters live.
            dtype: Of the parameters.
        """
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        options = {"device": device, "dtype": dtype}
        self.weight = Parameter(tensorlib.empty((out_features, in_features), **options))
        if bias:
            self.bias = Parameter(tensorlib.empty(out_features, **options))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """(*, in_features) -> (*, out_features)."""
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The sizes, and whether there is a bias."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
