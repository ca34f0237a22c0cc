"""Convolution kernels in any number of dimensions: implicit im2col and matrix products.

The windows of a few images, as many as fit the cache, are copied into the columns of a matrix
(Chellapilla, Puri, Simard: "High performance convolutional neural networks for document
processing", 2006), and BLAS does the rest::

    out (O, N·P)  =  weight (O, C·K)  @  columns (C·K, N·P)         K: elements of the kernel
    columns       =  weightᵀ @ g, added back to the image             P: elements of an output plane
    weight        =  g (O, N·P) @ columnsᵀ

Half precisions are multiplied and summed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ..dtypes import HALF
from . import layout
from .windows import Pairs, Sizes, count, pad, taps, view

# Of the columns of one chunk: a core's L2 cache, or a share of a GPU's memory.
_CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 28}


def _wide(x: Any) -> Any:
    return x.astype("float32") if x.dtype in HALF else x


def _chunks(b: Any, images: int, bytes_per_image: int) -> Iterator[slice]:
    size = max(1, _CHUNK_BYTES[b.name] // max(1, bytes_per_image))
    return (slice(i, min(i + size, images)) for i in range(0, images, size))


def convolve(
    b: Any,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sizes,
    padding: Pairs,
    dilation: Sizes,
    groups: int,
) -> Any:
    """The cross-correlation of `x` with `weight`, plus `bias`.

    Args:
        b: The backend.
        x: (N, C, *sizes).
        weight: (O, C / groups, *kernel).
        bias: (O,), or None.
        stride: Steps of the windows.
        padding: Zeros (before, after) each axis; negative numbers cut off.
        dilation: Distance of the kernel's elements.
        groups: Groups of channels that do not see each other.

    Returns:
        (N, O, *windows).
    """
    fused = b.kernel("convolve", x, weight, bias)
    if fused and x.size and weight.size:
        return fused(x, weight, bias, stride, padding, dilation, groups)
    order = layout.order_of_images(x, weight)
    dtype, (x, w) = x.dtype, (_wide(x), _wide(weight))
    o, kernel = w.shape[0], w.shape[2:]
    axes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    windows = tuple(count(*axis) for axis in axes)
    found = view(b, pad(b, x, padding), windows, kernel, stride, dilation)
    w = w.reshape(groups, o // groups, -1)
    shift = None if bias is None else _wide(bias).reshape(o, *[1] * len(windows))
    out = b.empty((x.shape[0], o, *windows), dtype)
    area = math.prod(windows)
    for images in _chunks(b, x.shape[0], w.shape[2] * groups * area * x.itemsize):
        n = images.stop - images.start
        columns = found[(slice(None),) * (1 + len(kernel)) + (images,)].reshape(
            groups, -1, n * area
        )
        result = b.matmul(w, columns).reshape(o, n, *windows).swapaxes(0, 1)
        out[images] = result if shift is None else b.add(result, shift)
    return layout.arranged(b, out, order)


def convolve_data(
    b: Any,
    y: Any,
    weight: Any,
    shape: Sizes,
    stride: Sizes,
    padding: Pairs,
    dilation: Sizes,
    groups: int,
) -> Any:
    """The adjoint of `convolve` in its input, also known as transposed convolution.

    Args:
        b: The backend.
        y: (N, O, *windows).
        weight: (O, C / groups, *kernel).
        shape: Sizes of the spatial axes of the result.
        stride: As for `convolve`, as are the others.
        padding: As for `convolve`.
        dilation: As for `convolve`.
        groups: As for `convolve`.

    Returns:
        (N, C, *shape).
    """
    fused = b.kernel("convolve_data", y, weight)
    if fused and y.size and weight.size:
        return fused(y, weight, shape, stride, padding, dilation, groups)
    order = layout.order_of_images(y, weight)
    dtype, (y, w) = y.dtype, (_wide(y), _wide(weight))
    o, kernel, windows = w.shape[0], w.shape[2:], y.shape[2:]
    c = w.shape[1] * groups
    w = w.reshape(groups, o // groups, -1).swapaxes(1, 2)
    out = b.zeros((y.shape[0], c, *shape), y.dtype)
    before = tuple(a for a, _ in padding)
    places = list(taps(shape, windows, kernel, stride, before, dilation))
    area = math.prod(windows)
    for images in _chunks(b, y.shape[0], w.shape[1] * groups * area * y.itemsize):
        n = images.stop - images.start
        rows = y[images].swapaxes(0, 1).reshape(groups, -1, n * area)
        columns = b.matmul(w, rows).reshape(c, *kernel, n, *windows)
        target = out[images].swapaxes(0, 1)
        for _, offset, reads, found in places:
            target[(..., *reads)] += columns[(slice(None), *offset, slice(None), *found)]
    return layout.arranged(b, out.astype(dtype, copy=False), order)


def convolve_weight(
    b: Any,
    x: Any,
    y: Any,
    kernel: Sizes,
    stride: Sizes,
    padding: Pairs,
    dilation: Sizes,
    groups: int,
) -> Any:
    """The adjoint of `convolve` in its weight.

    Args:
        b: The backend.
        x: (N, C, *sizes).
        y: (N, O, *windows).
        kernel: Sizes of the spatial axes of the result.
        stride: As for `convolve`, as are the others.
        padding: As for `convolve`.
        dilation: As for `convolve`.
        groups: As for `convolve`.

    Returns:
        (O, C / groups, *kernel).
    """
    fused = b.kernel("convolve_weight", x, y)
    if fused and x.size and y.size:
        return fused(x, y, kernel, stride, padding, dilation, groups)
    order = layout.order_of_images(x, y)
    dtype, (x, y) = x.dtype, (_wide(x), _wide(y))
    c, o, windows = x.shape[1], y.shape[1], y.shape[2:]
    found = view(b, pad(b, x, padding), windows, kernel, stride, dilation)
    out = b.zeros((o, c // groups, *kernel), x.dtype)
    flat = out.reshape(groups, o // groups, -1)
    area = math.prod(windows)
    for images in _chunks(b, x.shape[0], c * math.prod(kernel) * area * x.itemsize):
        n = images.stop - images.start
        columns = found[(slice(None),) * (1 + len(kernel)) + (images,)].reshape(
            groups, -1, n * area
        )
        rows = y[images].swapaxes(0, 1).reshape(groups, -1, n * area)
        flat += b.matmul(rows, columns.swapaxes(1, 2))
    return layout.arranged(b, out.astype(dtype, copy=False), order)


def windows_to_columns(
    b: Any, x: Any, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes
) -> Any:
    """The windows of images as columns: (N, C, *sizes) -> (N, C * kernel elements, windows)."""
    axes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    windows = tuple(count(*axis) for axis in axes)
    found = view(b, pad(b, x, padding), windows, kernel, stride, dilation)
    shape = (x.shape[0], x.shape[1] * math.prod(kernel), math.prod(windows))
    return b.moveaxis(found, 1 + len(kernel), 0).copy().reshape(shape)


def columns_to_windows(
    b: Any, y: Any, shape: Sizes, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes
) -> Any:
    """The adjoint: columns added back to images of spatial sizes `shape`, overlaps summed."""
    dtype, y = y.dtype, _wide(y)
    axes = zip(shape, kernel, stride, padding, dilation, strict=True)
    windows = tuple(count(*axis) for axis in axes)
    columns = y.reshape(y.shape[0], -1, *kernel, *windows)
    out = b.zeros((*columns.shape[:2], *shape), y.dtype)
    before = tuple(a for a, _ in padding)
    for _, offset, reads, found in taps(shape, windows, kernel, stride, before, dilation):
        out[(..., *reads)] += columns[(slice(None), slice(None), *offset, *found)]
    return out.astype(dtype, copy=False)
