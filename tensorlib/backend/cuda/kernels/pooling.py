"""Pooling over windows, and its adjoints, on arrays; see `pooling.cu` and `pool_sums.cu`.

A thread works at one place of several planes at a time. Windows of 2 × 2 that tile their planes go
by 16 bytes.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ...windows import Sizes, shortness
from .. import launch
from .arrays import contiguous, typed

_PLANES = 4  # of a thread, `PLANES` in `windows.cuh`
_BUSY = 1 << 20  # places from which on threads have several planes, enough for all of a GPU's
_SHORT = (1 << 31) - (1 << 28)  # where 32-bit indices end: a step of the largest grid is left
_WARP = 1 << 10  # elements up to which a warp sums a plane


def _three(values: Any, filler: int) -> tuple[int, ...]:
    return (*(filler,) * (3 - len(values)), *[int(v) for v in values])


@functools.lru_cache(maxsize=1024)
def _plan(
    planes: int, sizes: Sizes, windows: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes,
    dilation: Sizes, worked: Sizes,
) -> tuple[launch.Grid, int, tuple[int, ...]]:  # fmt: skip
    """The grid for planes of size `worked`, the bits of an index, and the kernels' numbers."""
    size = math.prod(worked)
    each = _PLANES if planes * size >= _BUSY else 1
    places = -(-planes // each) * size
    # A lone window has no next one, and a lone element neither: how far those are may be anything.
    stride = tuple([s if n > 1 else 1 for s, n in zip(stride, windows, strict=True)])
    dilation = tuple([d if k > 1 else 1 for d, k in zip(dilation, kernel, strict=True)])
    behind = [4 * (n + 2 * p) for n, p in zip(sizes, padding, strict=True)]  # no tap is further
    large = max(planes * size, *behind, *map(math.prod, (sizes, windows, kernel)))
    rows = ((sizes, 1), (windows, 1), (kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
    numbers = [n for values, filler in rows for n in _three(values, filler)]
    return launch.elements(places), 32 if large < _SHORT else 64, (planes, each, *numbers)


def _index_type(kernel: Sizes) -> Any:
    """The type that numbers of a window's elements have."""
    return np.dtype(np.uint8 if math.prod(kernel) <= 256 else np.int32)


# --- the largest element --------------------------------------------------------------------------


def max_pool(
    x: Any, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, shape: Sizes
) -> tuple[Any, Any]:
    """The largest element of each window, and its number in the window."""
    xp, x = launch.runner().xp, contiguous(x)
    out = xp.empty((*x.shape[:2], *shape), x.dtype)
    numbers = xp.empty(out.shape, _index_type(kernel))
    if out.size:
        options = (x.shape[2:], tuple(shape), kernel, stride, padding, dilation)
        grid, bits, rest = _plan(math.prod(x.shape[:2]), *options, tuple(shape))
        types = (x.dtype, numbers.dtype, bits)
        launch.start("pooling", "max_pool", types, grid, x, out, numbers, *rest)
    return out, numbers


def window_scatter(
    g: Any, numbers: Any, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes,
    shape: Sizes,
) -> Any:  # fmt: skip
    """Zeros with the value of each window added at the element that its number names."""
    g, numbers = contiguous(g), typed(numbers, _index_type(kernel))
    out = launch.runner().xp.empty((*g.shape[:2], *shape), g.dtype)
    if out.size:
        options = (tuple(shape), g.shape[2:], kernel, stride, padding, dilation)
        grid, bits, rest = _plan(math.prod(g.shape[:2]), *options, tuple(shape))
        types = (g.dtype, numbers.dtype, bits)
        launch.start("pooling", "window_scatter", types, grid, g, numbers, out, *rest)
    return out


def window_gather(
    x: Any, numbers: Any, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Any:
    """The element of each window that its number names."""
    x, numbers = contiguous(x), typed(numbers, _index_type(kernel))
    out = launch.runner().xp.empty(numbers.shape, x.dtype)
    if out.size:
        windows = numbers.shape[2:]
        options = (x.shape[2:], windows, kernel, stride, padding, dilation)
        grid, bits, rest = _plan(math.prod(x.shape[:2]), *options, windows)
        types = (x.dtype, numbers.dtype, bits)
        launch.start("pooling", "window_gather", types, grid, x, numbers, out, *rest)
    return out


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
    x, scale = contiguous(x), float(scale)
    out = launch.runner().xp.empty((*x.shape[:2], *shape), x.dtype)
    if not out.size:
        return out
    planes, sizes = math.prod(x.shape[:2]), x.shape[2:]
    options = (sizes, tuple(shape), kernel, stride, padding, (1,) * len(shape))
    grid, bits, rest = _plan(planes, *options, tuple(shape))
    if kernel == sizes and not any(padding):
        n = math.prod(sizes)
        threads = (32, 8) if n <= _WARP else (launch.THREADS, 1)
        grid = launch.items(-(-planes // threads[1]), threads)
        launch.start("pool_sums", "plane_sums", (x.dtype, bits), grid, x, out, scale, planes, n)
    else:
        counted = _counted(*options[:-1], counts_padding)
        launch.start("pool_sums", "window_sums", (x.dtype, bits), grid, x, out, scale, counted,
                     *rest)  # fmt: skip
    return out


def spread_pool(
    g: Any, kernel: Sizes, stride: Sizes, padding: Sizes, shape: Sizes, scale: float,
    counts_padding: bool | None = None,
) -> Any:  # fmt: skip
    """The adjoint of `sum_pool`: each value, scaled likewise, at all elements of its window."""
    g, scale = contiguous(g), float(scale)
    out = launch.runner().xp.empty((*g.shape[:2], *shape), g.dtype)
    if out.size:
        options = (tuple(shape), g.shape[2:], kernel, stride, padding, (1,) * len(shape))
        grid, bits, rest = _plan(math.prod(g.shape[:2]), *options, tuple(shape))
        counted = _counted(*options[:-1], counts_padding)
        launch.start("pool_sums", "spread_windows", (g.dtype, bits), grid, g, out, scale, counted,
                     *rest)  # fmt: skip
    return out
