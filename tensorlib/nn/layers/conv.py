"""Convolutions (cross-correlations, as everywhere in deep learning)."""

from __future__ import annotations

import math
from typing import Any

import tensorlib
import tensorlib.nn.functional as F
from tensorlib.errors import ArgumentError
from tensorlib.nn import init
from tensorlib.nn.layers.sizes import tuple_of
from tensorlib.nn.module import Module
from tensorlib.nn.parameter import Parameter
from tensorlib.tensor import Tensor

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _ConvNd(Module):
    """What convolutions of all dimensions share; a subclass sets ``n_dims``."""

    n_dims: int
    bias: Parameter | None
    padding: str | tuple[int, ...]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Makes the parameters.

        Args:
            in_channels: Channels of inputs.
            out_channels: Channels of outputs.
            kernel_size: Of the kernel, one number for all dimensions or one for each.
            stride: Steps of the kernel.
            padding: Elements added on both sides; or "valid" (none), or "same" (such that
                outputs are as large as inputs).
            dilation: Distance of the kernel's elements.
            groups: Each of this many groups of outputs sees only its group of inputs.
            bias: Whether to add one.
            padding_mode: What is added: "zeros", "reflect", "replicate" or "circular".
            device: Where the parameters live.
            dtype: Of the parameters.

        Raises:
            ArgumentError: An option out of its range, or channels that groups do not divide.
        """
        super().__init__()
        if groups <= 0:
            raise ArgumentError(f"groups must be a positive integer, received {groups}")
        for name, n in (("in_channels", in_channels), ("out_channels", out_channels)):
            if n % groups != 0:
                raise ArgumentError(f"{name} must be divisible by groups: {n} and {groups}")
        if padding_mode not in _PADDING_MODES:
            raise ArgumentError(
                f"padding_mode must be one of {_PADDING_MODES}, but got {padding_mode!r}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = tuple_of(kernel_size, self.n_dims)
        self.stride = tuple_of(stride, self.n_dims)
        self.padding = padding if isinstance(padding, str) else tuple_of(padding, self.n_dims)
        self.dilation = tuple_of(dilation, self.n_dims)
        self.groups = groups
        self.padding_mode = padding_mode
        self._pad = self._sides()
        options = {"device": device, "dtype": dtype}
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(tensorlib.empty(shape, **options))
        if bias:
            self.bias = Parameter(tensorlib.empty(out_channels, **options))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _sides(self) -> list[int]:
        """The padding in the order of ``F.pad``: both sides of the last dimension first."""
        if not isinstance(self.padding, str):
            return [p for p in reversed(self.padding) for _ in range(2)]
        if self.padding not in ("same", "valid"):
            raise ArgumentError(
                f"Invalid padding string {self.padding!r}, should be 'same' or 'valid'"
            )
        if self.padding == "valid":
            return [0] * (2 * self.n_dims)
        if any(s != 1 for s in self.stride):
            raise ArgumentError("padding='same' is not supported for strided convolutions")
        totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return [side for n in reversed(totals) for side in (n // 2, n - n // 2)]

    def reset_parameters(self) -> None:
        """Draws the parameters anew, uniform in ±1/√fan_in."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in = math.prod(self.weight.shape[1:])
            bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0
            init.uniform_(self.bias, -bound, bound)

    def _convolve(self, conv: Any, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._pad, mode=self.padding_mode)
            padding = (0,) * self.n_dims
        return conv(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """The options that are not the defaults."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        if self.padding != (0,) * self.n_dims:
            text += f", padding={self.padding}"
        if self.dilation != (1,) * self.n_dims:
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text


class Conv1d(_ConvNd):
    """Convolves along the last dimension.

    Attributes:
        weight: Of shape (out_channels, in_channels / groups, kernel_size).
        bias: Of shape (out_channels,), or None.
    """

    n_dims = 1

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, L) or (in_channels, L) -> (N, out_channels, L') likewise."""
        return self._convolve(F.conv1d, input)


class Conv2d(_ConvNd):
    """Convolves along the last two dimensions.

    Attributes:
        weight: Of shape (out_channels, in_channels / groups, *kernel_size).
        bias: Of shape (out_channels,), or None.

    Example:
        >>> import tensorlib as tl
        >>> tl.nn.Conv2d(3, 8, 3, padding=1)(tl.randn(2, 3, 16, 16)).shape == (2, 8, 16, 16)
        True
    """

    n_dims = 2

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) or (in_channels, H, W) -> (N, out_channels, H', W') likewise."""
        return self._convolve(F.conv2d, input)
