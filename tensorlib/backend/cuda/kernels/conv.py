"""Convolution as implicit matrix products, on arrays; see `conv.cu`.

Results are channels last if one of the two arrays is.
"""

from __future__ import annotations

import math
from typing import Any

from ...windows import Pairs, Sizes, count
from .. import launch
from .arrays import accumulator, arranged, empty, images, typed
from .reduction import column_sums, split

_SIDE = 64  # of the square of elements that a block makes, as in `conv.cu`
_PART = 1 << 10  # positions from which on several blocks share a weight's gradient
DIMENSIONS = 3


def _three(values: Any, filler: int) -> tuple[int, ...]:
    return (*(filler,) * (DIMENSIONS - len(values)), *values)


def _shape(
    count: int, channels: tuple[int, int], groups: int, last: bool, sizes: Sizes, windows: Sizes,
    kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes,
) -> tuple[int, ...]:  # fmt: skip
    """The numbers that the kernels take, in their order."""
    before = tuple([a for a, _ in padding])
    rows = ((sizes, 1), (windows, 1), (kernel, 1), (stride, 1), (before, 0), (dilation, 1))
    found = [n for values, filler in rows for n in _three(values, filler)]
    return (count, *channels, groups, int(last), *[int(n) for n in found])


def _grid(groups: int, rows: int, columns: int, parts: int = 1) -> launch.Grid:
    return launch.items(groups * parts * -(-rows // _SIDE) * -(-columns // _SIDE))


def convolve(
    x: Any, weight: Any, bias: Any, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int
) -> Any:
    """The cross-correlation of x (N, C, *sizes) with weight (O, C / groups, *kernel), plus bias."""
    n, c, *sizes = x.shape
    o, _, *kernel = weight.shape
    axes = zip(sizes, kernel, stride, padding, dilation, strict=True)
    windows = tuple([count(*axis) for axis in axes])
    order, last = images(x, weight)
    x, weight = arranged(x, order), arranged(weight, order)
    bias = None if bias is None else typed(bias, x.dtype)
    out = empty((n, o, *windows), x.dtype, order)
    if out.size:
        shape = _shape(n, (c, o), groups, last, sizes, windows, kernel, stride, padding, dilation)
        grid = _grid(groups, o // groups, n * math.prod(windows))
        launch.start("conv", "convolve", (x.dtype,), grid, x, weight, bias, out, *shape)
    return out


def convolve_data(
    y: Any, weight: Any, shape: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int
) -> Any:
    """The adjoint of `convolve` in its input, of spatial sizes `shape`."""
    n, o, *windows = y.shape
    c, kernel = weight.shape[1] * groups, weight.shape[2:]
    order, last = images(y, weight)
    y, weight = arranged(y, order), arranged(weight, order)
    out = empty((n, c, *shape), y.dtype, order)
    if out.size:
        numbers = _shape(n, (c, o), groups, last, shape, windows, kernel, stride, padding, dilation)
        grid = _grid(groups, c // groups, n * math.prod(shape))
        launch.start("conv", "convolve_data", (y.dtype,), grid, y, weight, out, *numbers)
    return out


def convolve_weight(
    x: Any, y: Any, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int
) -> Any:
    """The adjoint of `convolve` in its weight, of spatial sizes `kernel`."""
    n, c, *sizes = x.shape
    o, *windows = y.shape[1:]
    order, last = images(x, y)
    x, y = arranged(x, order), arranged(y, order)
    rows, columns, deep = o // groups, c // groups * math.prod(kernel), n * math.prod(windows)
    tiles = groups * -(-rows // _SIDE) * -(-columns // _SIDE)
    parts, length = split(deep, tiles, _PART)
    sums = launch.runner().xp.empty((parts, groups * rows * columns), accumulator(x.dtype))
    numbers = _shape(n, (c, o), groups, last, sizes, windows, kernel, stride, padding, dilation)
    launch.start("conv", "convolve_weight", (x.dtype,), _grid(groups, rows, columns, parts), x, y,
                 sums, parts, length, *numbers)  # fmt: skip
    out = empty((o, c // groups, *kernel), x.dtype, order)
    return column_sums(sums, 1, parts, sums.shape[1], x.dtype, out=out)
