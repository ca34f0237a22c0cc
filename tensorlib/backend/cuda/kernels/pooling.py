"""Pooling over windows, and its adjoints, on arrays; see `pooling.cu` and `pool_sums.cu`.

A thread works at one place of several planes at a time, or of a pack of channels where these are
last: then so are the results. Windows of 2 × 2 that tile their planes go by 16 bytes.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ...layout import Order
from ...windows import Sizes, shortness
from .. import launch
from .arrays import arranged, empty, images
from .reduction import column_sums

_PLANES = 4  # of a thread, `PLANES` in `windows.cuh`
_BUSY = 1 << 20  # places from which on threads have several planes, enough for all of a GPU's
_SHORT = (1 << 31) - (1 << 28)  # where 32-bit indices end: a step of the largest grid is left
_WARP = 1 << 10  # elements up to which a warp sums a plane


def _three(values: Any, filler: int) -> tuple[int, ...]:
    return (*(filler,) * (3 - len(values)), *[int(v) for v in values])


@functools.lru_cache(maxsize=1024)
def _plan(
    count: Sizes, pack: int, sizes: Sizes, windows: Sizes, kernel: Sizes, stride: Sizes,
    padding: Sizes, dilation: Sizes, worked: Sizes,
) -> tuple[launch.Grid, int, tuple[int, ...]]:  # fmt: skip
    """The grid for (images, channels) of size `worked`, the bits of an index, the kernels' numbers.

    `pack` says how many channels a thread has; 0 where these are not last.
    """
    size, planes, channels = math.prod(worked), math.prod(count), count[1] if pack else 0
    each = _PLANES if planes * size >= _BUSY else 1
    places = -(-planes // each) * size
    if pack:
        places = planes * size // (1 if channels % pack else pack)
    # A lone window has no next one, and a lone element neither: how far those are may be anything.
    stride = tuple([s if n > 1 else 1 for s, n in zip(stride, windows, strict=True)])
    dilation = tuple([d if k > 1 else 1 for d, k in zip(dilation, kernel, strict=True)])
    behind = [4 * (n + 2 * p) for n, p in zip(sizes, padding, strict=True)]  # no tap is further
    large = max(planes * size, *behind, *map(math.prod, (sizes, windows, kernel)))
    rows = ((sizes, 1), (windows, 1), (kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
    numbers = [n for values, filler in rows for n in _three(values, filler)]
    return launch.elements(places), 32 if large < _SHORT else 64, (planes, each, channels, *numbers)


def _index_type(kernel: Sizes) -> Any:
    """The type that numbers of a window's elements have."""
    return np.dtype(np.uint8 if math.prod(kernel) <= 256 else np.int32)


def _pack(x: Any, last: bool) -> int:
    return 16 // x.itemsize if last else 0


# --- the largest element --------------------------------------------------------------------------


def max_pool(
    x: Any, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, shape: Sizes
) -> tuple[Any, Any]:
    """The largest element of each window, and its number in the window."""
    order, last = images(x)
    x = arranged(x, order)
    out = empty((*x.shape[:2], *shape), x.dtype, order)
    numbers = empty(out.shape, _index_type(kernel), order)
    if out.size:
        options = (x.shape[2:], tuple(shape), kernel, stride, padding, dilation)
        grid, bits, rest = _plan(x.shape[:2], _pack(x, last), *options, tuple(shape))
        types = (x.dtype, numbers.dtype, bits)
        launch.start("pooling", "max_pool", types, grid, x, out, numbers, *rest)
    return out, numbers


def window_scatter(
    g: Any, numbers: Any, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes,
    shape: Sizes,
) -> Any:  # fmt: skip
    """Zeros with the value of each window added at the element that its number names."""
    order, last = images(numbers)
    g, numbers = arranged(g, order), _numbered(numbers, kernel, order)
    out = empty((*g.shape[:2], *shape), g.dtype, order)
    if out.size:
        options = (tuple(shape), g.shape[2:], kernel, stride, padding, dilation)
        grid, bits, rest = _plan(g.shape[:2], _pack(g, last), *options, tuple(shape))
        types = (g.dtype, numbers.dtype, bits)
        launch.start("pooling", "window_scatter", types, grid, g, numbers, out, *rest)
    return out


def window_gather(
    x: Any, numbers: Any, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Any:
    """The element of each window that its number names."""
    order, last = images(numbers, x)
    x, numbers = arranged(x, order), _numbered(numbers, kernel, order)
    out = empty(numbers.shape, x.dtype, order)
    if out.size:
        windows = numbers.shape[2:]
        options = (x.shape[2:], windows, kernel, stride, padding, dilation)
        grid, bits, rest = _plan(x.shape[:2], _pack(x, last), *options, windows)
        types = (x.dtype, numbers.dtype, bits)
        launch.start("pooling", "window_gather", types, grid, x, numbers, out, *rest)
    return out


def _numbered(numbers: Any, kernel: Sizes, order: Order) -> Any:
    """Numbers in an order, of the type that those of a kernel have."""
    dtype = _index_type(kernel)
    return arranged(numbers if numbers.dtype == dtype else numbers.astype(dtype), order)


# --- sums -----------------------------------------------------------------------------------------


def _counted(
    sizes: Sizes, windows: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes,
    counts_padding: bool | None,
) -> int:  # fmt: skip
    """Which elements `pool_sums.cu` counts, if any."""
    if counts_padding is None:
        return 0
    short = shortness(sizes, windows, kernel, stride, padding, counts_padding)
    return 0 if short is None else 2 if counts_padding else 1


def sum_pool(
    x: Any, kernel: Sizes, stride: Sizes, padding: Sizes, shape: Sizes, scale: float,
    counts_padding: bool | None = None,
) -> Any:  # fmt: skip
    """scale · the sum of each window, times its `shortness` if `counts_padding` is given."""
    (order, last), scale = images(x), float(scale)
    x = arranged(x, order)
    out = empty((*x.shape[:2], *shape), x.dtype, order)
    if not out.size:
        return out
    sizes, n = x.shape[2:], math.prod(x.shape[2:])
    options = (sizes, tuple(shape), kernel, stride, padding, (1,) * len(shape))
    grid, bits, rest = _plan(x.shape[:2], _pack(x, last), *options, tuple(shape))
    if kernel != sizes or any(padding):
        counted = _counted(*options[:-1], counts_padding)
        launch.start("pool_sums", "window_sums", (x.dtype, bits), grid, x, out, scale, counted,
                     *rest)  # fmt: skip
    elif last:
        return column_sums(x, x.shape[0], n, x.shape[1], x.dtype, scale=scale, out=out)
    else:
        planes, threads = math.prod(x.shape[:2]), (32, 8) if n <= _WARP else (launch.THREADS, 1)
        grid = launch.items(-(-planes // threads[1]), threads)
        launch.start("pool_sums", "plane_sums", (x.dtype, bits), grid, x, out, scale, planes, n)
    return out


def spread_pool(
    g: Any, kernel: Sizes, stride: Sizes, padding: Sizes, shape: Sizes, scale: float,
    counts_padding: bool | None = None,
) -> Any:  # fmt: skip
    """The adjoint of `sum_pool`: each value, scaled likewise, at all elements of its window."""
    (order, last), scale = images(g), float(scale)
    g = arranged(g, order)
    out = empty((*g.shape[:2], *shape), g.dtype, order)
    if out.size:
        options = (tuple(shape), g.shape[2:], kernel, stride, padding, (1,) * len(shape))
        grid, bits, rest = _plan(g.shape[:2], _pack(g, last), *options, tuple(shape))
        counted = _counted(*options[:-1], counts_padding)
        launch.start("pool_sums", "spread_windows", (g.dtype, bits), grid, g, out, scale, counted,
                     *rest)  # fmt: skip
    return out
