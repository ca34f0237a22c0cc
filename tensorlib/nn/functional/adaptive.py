"""Adaptive pooling: as many windows as the output has elements, of nearly equal sizes.

Window i of m over n elements reaches from ⌊i n / m⌋ to ⌈(i + 1) n / m⌉. Where m divides n that is
ordinary pooling.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...autograd.core import apply, wrap
from ...backend import get_backend
from ...backend.layout import order_of_images
from ...backend.windows import Sizes
from ...errors import ShapeError
from ...ops.creation import arange
from ...ops.indexing import index_select
from ...ops.pooling import max_pool_p, sum_pool_p
from ...ops.resampling import Taps, resample_p
from .pooling import positions
from .sizes import batched, per_axis


def _output_sizes(name: str, output_size: Any, sizes: Sizes) -> Sizes:
    """The output's spatial sizes; None keeps the input's.

    Raises:
        ShapeError: the input is empty.
    """
    if min(sizes) < 1:
        raise ShapeError(f"{name}: the input has spatial sizes {list(sizes)}; none may be 0")
    given = output_size if isinstance(output_size, tuple | list) else (output_size,) * len(sizes)
    if len(given) == len(sizes):
        given = [n if m is None else m for m, n in zip(given, sizes, strict=True)]
    return per_axis(name, "output_size", tuple(given), len(sizes), least=1)


def _elements(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """The elements of m windows over n, (m, longest), the last one repeated; and their lengths."""
    window = np.arange(m)
    start, stop = window * n // m, -(-(window + 1) * n // m)
    index = start[:, None] + np.arange((stop - start).max())
    return np.minimum(index, stop[:, None] - 1), stop - start


def average_taps(n: int, m: int) -> Taps:
    """The means of m windows over n elements."""
    index, length = _elements(n, m)
    inside = np.arange(index.shape[1]) < length[:, None]
    return Taps(index, inside / length[:, None], n)


def _adaptive_avg_pool(n: int, input: Any, output_size: Any) -> Any:
    name = f"adaptive_avg_pool{n}d"
    x, had_batch = batched(name, input, n)
    sizes = tuple(x.shape[2:])
    shape = _output_sizes(name, output_size, sizes)
    if all(size % m == 0 for size, m in zip(sizes, shape, strict=True)):
        kernel = tuple(size // m for size, m in zip(sizes, shape, strict=True))
        options = {"kernel": kernel, "stride": kernel, "padding": (0,) * n, "shape": shape}
        options |= {"scale": 1 / math.prod(kernel), "order": order_of_images(x._array)}
        x = apply(sum_pool_p, (x,), options)
    else:
        for dim, (size, m) in enumerate(zip(sizes, shape, strict=True), start=2):
            if size != m:
                x = apply(resample_p, (x,), {"dim": dim, "taps": average_taps(size, m)})
    return x if had_batch else x.squeeze(0)


def adaptive_avg_pool1d(input: Any, output_size: Any) -> Any:
    """The means of windows of the last dimension; see `adaptive_avg_pool2d`."""
    return _adaptive_avg_pool(1, input, output_size)


def adaptive_avg_pool2d(input: Any, output_size: Any) -> Any:
    """The means of windows such that the output has a given size.

    Args:
        input: (N, C, H, W), or (C, H, W).
        output_size: One number, or (H', W'); None keeps a size.

    Returns:
        (N, C, H', W'), without N if the input has none.

    Raises:
        ShapeError: dimensions that do not fit, or an empty input.
        ArgumentError: an output size that is not positive.
    """
    return _adaptive_avg_pool(2, input, output_size)


def adaptive_avg_pool3d(input: Any, output_size: Any) -> Any:
    """The means of windows of the last three dimensions; see `adaptive_avg_pool2d`."""
    return _adaptive_avg_pool(3, input, output_size)


def _adaptive_max_pool(n: int, input: Any, output_size: Any, return_indices: bool) -> Any:
    """Max pooling of windows of one length, the shorter ones with their last element repeated."""
    name = f"adaptive_max_pool{n}d"
    x, had_batch = batched(name, input, n)
    sizes = tuple(x.shape[2:])
    shape = _output_sizes(name, output_size, sizes)
    origin = arange(math.prod(sizes), device=x.device).reshape(sizes) if return_indices else None
    kernel = []
    for axis, (size, m) in enumerate(zip(sizes, shape, strict=True)):
        index, length = _elements(size, m)
        kernel.append(index.shape[1])
        if length.sum() != size or index.size != size:
            chosen = wrap(get_backend(x._array).asarray(index.reshape(-1)))
            x = index_select(x, 2 + axis, chosen)
            if origin is not None:
                origin = index_select(origin, axis, chosen)
    window = tuple(kernel)
    same = {"kernel": window, "stride": window, "padding": (0,) * n, "dilation": (1,) * n}
    out, numbers = apply(max_pool_p, (x,), same | {"shape": shape})
    out = out if had_batch else out.squeeze(0)
    if origin is None:
        return out
    flat = positions(numbers, tuple(x.shape[2:]), window, window, (0,) * n, (1,) * n)
    indices = origin.reshape(-1)[flat]
    return out, indices if had_batch else indices.squeeze(0)


def adaptive_max_pool1d(input: Any, output_size: Any, return_indices: bool = False) -> Any:
    """The largest elements of windows of the last dimension; see `adaptive_max_pool2d`."""
    return _adaptive_max_pool(1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Any, output_size: Any, return_indices: bool = False) -> Any:
    """The largest elements of windows such that the output has a given size.

    Args:
        input: (N, C, H, W), or (C, H, W).
        output_size: One number, or (H', W'); None keeps a size.
        return_indices: Also return where the elements were, as positions in the flattened (H, W).

    Returns:
        (N, C, H', W'), and the int64 indices if asked for; without N if the input has none.

    Raises:
        ShapeError: dimensions that do not fit, or an empty input.
        ArgumentError: an output size that is not positive.
    """
    return _adaptive_max_pool(2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Any, output_size: Any, return_indices: bool = False) -> Any:
    """The largest elements of windows of the last three dimensions; see `adaptive_max_pool2d`."""
    return _adaptive_max_pool(3, input, output_size, return_indices)


def adaptive_max_pool1d_with_indices(input: Any, output_size: Any) -> Any:
    """`adaptive_max_pool1d` with ``return_indices=True``."""
    return _adaptive_max_pool(1, input, output_size, True)


def adaptive_max_pool2d_with_indices(input: Any, output_size: Any) -> Any:
    """`adaptive_max_pool2d` with ``return_indices=True``."""
    return _adaptive_max_pool(2, input, output_size, True)


def adaptive_max_pool3d_with_indices(input: Any, output_size: Any) -> Any:
    """`adaptive_max_pool3d` with ``return_indices=True``."""
    return _adaptive_max_pool(3, input, output_size, True)
