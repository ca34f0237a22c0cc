"""Pooling: the largest, or the mean, of each window."""

from __future__ import annotations

from typing import Any

import tensorlib.nn.functional as F
from tensorlib.nn.layers.sizes import tuple_of
from tensorlib.nn.module import Module
from tensorlib.tensor import Tensor

Size = int | tuple[int, ...]


class _MaxPool(Module):
    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        """Sets the options.

        Args:
            kernel_size: Of the window, one number for all dimensions or one for each.
            stride: Steps of the window; by default its size.
            padding: Elements of minus infinity added on both sides.
            dilation: Distance of the window's elements.
            return_indices: Whether to return the places of the maxima too.
            ceil_mode: Whether a last window may hang over the edge.
        """
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.return_indices = return_indices
        self.ceil_mode = ceil_mode

    def _pool(self, pool: Any, input: Tensor) -> Any:
        return pool(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )

    def extra_repr(self) -> str:
        """The options."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPool):
    """The largest element of each window along the last dimension."""

    def forward(self, input: Tensor) -> Any:
        """(N, C, L) or (C, L) -> (N, C, L') likewise."""
        return self._pool(F.max_pool1d, input)


class MaxPool2d(_MaxPool):
    """The largest element of each window along the last two dimensions."""

    def forward(self, input: Tensor) -> Any:
        """(N, C, H, W) or (C, H, W) -> (N, C, H', W') likewise."""
        return self._pool(F.max_pool2d, input)


class _AvgPool(Module):
    kernel_size: Size
    stride: Size
    padding: Size

    def extra_repr(self) -> str:
        """The options."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool1d(_AvgPool):
    """The mean of each window along the last dimension."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        """Sets the options.

        Args:
            kernel_size: Of the window.
            stride: Steps of the window; by default its size.
            padding: Zeros added on both sides.
            ceil_mode: Whether a last window may hang over the edge.
            count_include_pad: Whether these zeros count in the mean.
        """
        super().__init__()
        self.kernel_size = tuple_of(kernel_size, 1)
        self.stride = tuple_of(kernel_size if stride is None else stride, 1)
        self.padding = tuple_of(padding, 1)
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) or (C, L) -> (N, C, L') likewise."""
        return F.avg_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
        )


class AvgPool2d(_AvgPool):
    """The mean of each window along the last two dimensions."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        """Sets the options.

        Args:
            kernel_size: Of the window, one number for both dimensions or one for each.
            stride: Steps of the window; by default its size.
            padding: Zeros added on both sides.
            ceil_mode: Whether a last window may hang over the edge.
            count_include_pad: Whether these zeros count in the mean.
            divisor_override: What sums are divided by instead.
        """
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) -> (N, C, H', W') likewise."""
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class _AdaptiveAvgPool(Module):
    def __init__(self, output_size: Any) -> None:
        """Takes the size of outputs: a number, or one (or None: as the input) per dimension."""
        super().__init__()
        self.output_size = output_size

    def extra_repr(self) -> str:
        """The size."""
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """The mean of windows such that outputs have a given length."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) or (C, L) -> (N, C, output_size) likewise."""
        return F.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """The mean of windows such that outputs have a given height and width."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) -> (N, C, *output_size) likewise."""
        return F.adaptive_avg_pool2d(input, self.output_size)
