"""Pooling: the largest, the mean or the p-norm of each window, and undoing max pooling."""

from __future__ import annotations

import math
from typing import Any

from ...autograd.core import apply
from ...backend.layout import order_of_images
from ...backend.windows import Sizes
from ...errors import ArgumentError, ShapeError
from ...ops.activation import relu
from ...ops.creation import arange, zeros
from ...ops.indexing import scatter
from ...ops.pooling import max_pool_p, sum_pool_p
from .sizes import batched, per_axis


def _steps(name: str, stride: Any, kernel: Sizes) -> Sizes:
    """The stride; by default (None, or an empty list) the kernel's size."""
    if stride is None or stride == []:
        return kernel
    return per_axis(name, "stride", stride, len(kernel), least=1)


def _windows(
    name: str,
    sizes: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
) -> Sizes:
    """The number of windows along each axis.

    Raises:
        ShapeError: padding above half the kernel, or a kernel that does not fit.
    """
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if any(2 * p > k for p, k in zip(padding, extents, strict=True)):
        raise ShapeError(
            f"{name}: padding {list(padding)} exceeds half of the kernel {list(kernel)}; pad the "
            "input"
        )
    found = []
    for n, k, s, p in zip(sizes, extents, stride, padding, strict=True):
        room = n + 2 * p - k
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1  # a window must begin inside the input or its padding
        found.append(count)
    if min(found) < 1 or min(sizes) < 1:
        raise ShapeError(
            f"{name}: the kernel {list(kernel)} does not fit the input {list(sizes)} with padding "
            f"{list(padding)}; "
            "use a smaller kernel, or pad"
        )
    return tuple(found)


# --- max pooling ----------------------------------------------------------------------------------


def positions(
    indices: Any, sizes: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Any:
    """Numbers within windows as positions in the flattened plane of the input."""
    rest, flat, plane = indices.long(), 0, 1
    n = len(sizes)
    for axis in reversed(range(n)):
        shape = [-1 if a == axis else 1 for a in range(n)]
        start = (
            arange(indices.shape[2 + axis], device=indices.device) * stride[axis] - padding[axis]
        )
        flat = flat + (rest % kernel[axis] * dilation[axis] + start.reshape(shape)) * plane
        rest = rest // kernel[axis]
        plane *= sizes[axis]
    return flat


def _max_pool(
    n: int,
    input: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    name = f"max_pool{n}d"
    x, had_batch = batched(name, input, n)
    kernel = per_axis(name, "kernel_size", kernel_size, n, least=1)
    steps = _steps(name, stride, kernel)
    pads = per_axis(name, "padding", padding, n)
    spread = per_axis(name, "dilation", dilation, n, least=1)
    sizes = tuple(x.shape[2:])
    shape = _windows(name, sizes, kernel, steps, pads, spread, ceil_mode)
    options = {
        "kernel": kernel,
        "stride": steps,
        "padding": pads,
        "dilation": spread,
        "shape": shape,
    }
    out, indices = apply(max_pool_p, (x,), options)
    out = out if had_batch else out.squeeze(0)
    if not return_indices:
        return out
    flat = positions(indices, sizes, kernel, steps, pads, spread)
    return out, flat if had_batch else flat.squeeze(0)


def max_pool1d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window of the last dimension; arguments as for `max_pool2d`."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window; NaN wins.

    Args:
        input: (N, C, H, W), or (C, H, W).
        kernel_size: Of the window, one number or one per dimension.
        stride: Steps of the window; by default its size.
        padding: Elements of minus infinity added on both sides, at most half the kernel.
        dilation: Distance of the window's elements.
        ceil_mode: Whether a last window may hang over the edge.
        return_indices: Also return where the elements were, as positions in the flattened (H, W).

    Returns:
        (N, C, H', W'), and the int64 indices if asked for; without N if the input has none.

    Raises:
        ShapeError: dimensions, kernel or padding that do not fit.
        ArgumentError: an option out of its range.
    """
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window of three dimensions; arguments as for `max_pool2d`."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool1d_with_indices(*args: Any, **options: Any) -> Any:
    """`max_pool1d` with ``return_indices=True``."""
    return max_pool1d(*args, **options | {"return_indices": True})


def max_pool2d_with_indices(*args: Any, **options: Any) -> Any:
    """`max_pool2d` with ``return_indices=True``."""
    return max_pool2d(*args, **options | {"return_indices": True})


def max_pool3d_with_indices(*args: Any, **options: Any) -> Any:
    """`max_pool3d` with ``return_indices=True``."""
    return max_pool3d(*args, **options | {"return_indices": True})


def _max_unpool(
    n: int, input: Any, indices: Any, kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> Any:
    name = f"max_unpool{n}d"
    x, had_batch = batched(name, input, n)
    kernel = per_axis(name, "kernel_size", kernel_size, n, least=1)
    steps = _steps(name, stride, kernel)
    pads = per_axis(name, "padding", padding, n)
    axes = list(zip(x.shape[2:], kernel, steps, pads, strict=True))
    default = tuple((size - 1) * s - 2 * p + k for size, k, s, p in axes)
    shape = default if output_size is None else tuple(output_size)[-n:]
    if any(not d - s < m < d + s for m, d, s in zip(shape, default, steps, strict=True)):
        raise ArgumentError(
            f"{name}: output_size {list(shape)} is not within a stride of {list(default)}"
        )
    if tuple(indices.shape) != tuple(input.shape):
        raise ShapeError(
            f"{name}: the indices have shape {list(indices.shape)}, the input "
            f"{list(input.shape)}; they must agree"
        )
    base = zeros(*x.shape[:2], math.prod(shape), dtype=x.dtype, device=x.device)
    flat = scatter(base, 2, indices.reshape(*x.shape[:2], -1), x.reshape(*x.shape[:2], -1))
    out = flat.reshape(*x.shape[:2], *shape)
    return out if had_batch else out.squeeze(0)


def max_unpool1d(
    input: Any,
    indices: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Any = None,
) -> Any:
    """The inverse of `max_pool1d`; arguments as for `max_unpool2d`."""
    return _max_unpool(1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    input: Any,
    indices: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Any = None,
) -> Any:
    """The maxima back in their places, zeros elsewhere.

    Args:
        input: The maxima, (N, C, H, W) or (C, H, W).
        indices: Where they were, as `max_pool2d` returns them.
        kernel_size: Of the pooling.
        stride: Of the pooling.
        padding: Of the pooling.
        output_size: The spatial sizes before pooling, where the default is not right.

    Raises:
        ShapeError: indices and input differ in shape, or an index lies beyond the output.
        ArgumentError: an output size that the pooling cannot have had.
    """
    return _max_unpool(2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    input: Any,
    indices: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Any = None,
) -> Any:
    """The inverse of `max_pool3d`; arguments as for `max_unpool2d`."""
    return _max_unpool(3, input, indices, kernel_size, stride, padding, output_size)


# --- averages -------------------------------------------------------------------------------------


def _avg_pool(
    n: int,
    input: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    name = f"avg_pool{n}d"
    x, had_batch = batched(name, input, n)
    kernel = per_axis(name, "kernel_size", kernel_size, n, least=1)
    steps = _steps(name, stride, kernel)
    pads = per_axis(name, "padding", padding, n)
    if divisor_override == 0:
        raise ArgumentError(f"{name}: divisor_override is 0; pass another number, or None")
    shape = _windows(name, tuple(x.shape[2:]), kernel, steps, pads, (1,) * n, ceil_mode)
    scale = 1 / (divisor_override or math.prod(kernel))
    options = {"kernel": kernel, "stride": steps, "padding": pads, "shape": shape, "scale": scale}
    options["order"] = order_of_images(x._array)
    if divisor_override is None:
        options["counts_padding"] = bool(count_include_pad)
    out = apply(sum_pool_p, (x,), options)
    return out if had_batch else out.squeeze(0)


def avg_pool1d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    """The mean of each window of the last dimension; arguments as for `avg_pool2d`."""
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of each window.

    Args:
        input: (N, C, H, W), or (C, H, W).
        kernel_size: Of the window, one number or one per dimension.
        stride: Steps of the window; by default its size.
        padding: Zeros added on both sides, at most half the kernel.
        ceil_mode: Whether a last window may hang over the edge.
        count_include_pad: Whether zeros of the padding count as elements.
        divisor_override: What to divide the sums by, in place of the number of elements.

    Returns:
        (N, C, H', W'), without N if the input has none.

    Raises:
        ShapeError: dimensions, kernel or padding that do not fit.
        ArgumentError: an option out of its range.
    """
    return _avg_pool(
        2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def avg_pool3d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of each window of three dimensions; arguments as for `avg_pool2d`."""
    return _avg_pool(
        3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def _lp_pool(
    n: int, input: Any, norm_type: float, kernel_size: Any, stride: Any, ceil_mode: bool
) -> Any:
    kernel = per_axis(f"lp_pool{n}d", "kernel_size", kernel_size, n, least=1)
    mean = _avg_pool(n, input**norm_type, kernel, stride, 0, ceil_mode, True, None)
    return (mean.sign() * relu(mean.abs()) * math.prod(kernel)) ** (1 / norm_type)


def lp_pool1d(
    input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Any:
    """The p-norm of each window of the last dimension; arguments as for `lp_pool2d`."""
    return _lp_pool(1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(
    input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Any:
    """(Σ xᵖ)^(1/p) over each window.

    Args:
        input: (N, C, H, W), or (C, H, W).
        norm_type: p.
        kernel_size: Of the window, one number or one per dimension.
        stride: Steps of the window; by default its size.
        ceil_mode: Whether a last window may hang over the edge.

    Raises:
        ShapeError: dimensions or a kernel that do not fit.
    """
    return _lp_pool(2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Any:
    """The p-norm of each window of the last three dimensions; arguments as for `lp_pool2d`."""
    return _lp_pool(3, input, norm_type, kernel_size, stride, ceil_mode)
