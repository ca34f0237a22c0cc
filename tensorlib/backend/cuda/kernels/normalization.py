"""Normalization forward and backward, on arrays.

========  =====================  ============================  ===================================
kind      x                      one mean and variance         weight and bias
========  =====================  ============================  ===================================
rows      (rows, n)              per row                       (n)
planes    (N, C, P), batch norm  per channel: N planes         (C)
          (rows, S, P), groups   per row: S planes             of plane q: q modulo their size
channels  (rows, C), batch norm  per column                    (C)
========  =====================  ============================  ===================================

Statistics are in float32 at least; weight and bias may be so where x is of a half precision. Images
that are channels last are rows of channels to batch norm; the others become contiguous, and their
results what they were.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from ....dtypes import HALF
from ...layout import Order, contiguous_order
from .. import launch
from .arrays import (
    SINGLE,
    accumulator,
    address,
    arranged,
    contiguous,
    empty,
    empty_like,
    images,
    typed,
)
from .losses import steps
from .reduction import columns, split, strips

Shape = tuple[int, ...]
NARROW = 64  # planes of fewer positions are summed as columns, and written by elements
_ROWS = 64  # rows whose part of the parameters' gradients a block sums, at least
_WIDEST, _TOGETHER = 512, 4  # threads of a row, and its rows at a time, as in `normalization.cu`
_BLOCKS = 264  # that sum the gradients of parameters: two for each multiprocessor of a large GPU


class Layout(NamedTuple):
    """How x is seen; planes q = 0 ... of `positions` elements, of group ``q // apart % groups``.

    Where it is rows of channels, each element is a plane of its own.
    """

    kind: str  # "rows", "planes" or "channels"
    planes: int
    positions: int
    apart: int
    groups: int

    @property
    def elements(self) -> int:
        """Elements of one mean."""
        return self.planes * self.positions // self.groups

    @property
    def by_columns(self) -> bool:
        """Whether planes are so short that their sums are better taken over columns."""
        return self.positions < NARROW and self.apart == 1


@functools.lru_cache(maxsize=4096)
def layout_of(shape: Shape, axes: Shape, affine: Shape | None) -> Layout | None:
    """The layout for a mean over `axes` and a weight of shape `affine`, if there is one."""
    ndim, size = len(shape), math.prod(shape)
    full = None if affine is None else (1,) * (ndim - len(affine)) + affine
    first = ndim - len(axes)
    if not size:
        return None
    if axes == tuple(range(first, ndim)):
        rows, n = math.prod(shape[:first]), math.prod(shape[first:])
        if full is None or full == (1,) * first + shape[first:]:
            return Layout("rows", rows, n, 1, rows)
        if ndim >= 3 and full == (1, *shape[1:-1], 1) and first == 2:
            return Layout("planes", size // shape[-1], shape[-1], n // shape[-1], rows)
        return None
    if axes in ((0,), (0, 2)) and ndim == len(axes) + 1:
        n, channels, positions = (*shape, 1)[:3]
        if full is None or full == (1, channels, 1)[:ndim]:
            return Layout("planes", n * channels, positions, 1, channels)
    return None


def _find(
    x: Any, weight: Any, bias: Any, axes: Shape, shape: Shape | None, affine: Shape | None
) -> tuple[Layout | None, Shape, Order]:
    """The layout, the shape of the statistics, and the order of x that the layout is of."""
    shape = x.shape if shape is None else tuple(shape)
    kept = tuple([1 if d in axes else n for d, n in enumerate(shape)])
    order = contiguous_order(x.ndim)
    one = bias if weight is None else weight
    if one is not None and affine is None:
        affine = one.shape
    if weight is not None and bias is not None and (weight.shape, weight.dtype) != (
        bias.shape, bias.dtype,
    ):  # fmt: skip
        return None, kept, order
    seen = layout_of(shape, tuple(axes), None if one is None else tuple(affine or ()))
    if seen is not None and seen.kind == "planes" and seen.apart == 1:
        wanted, last = images(x)
        by_channel = seen.groups == x.shape[1] and seen.planes == x.shape[0] * x.shape[1]
        if by_channel and (last or seen.positions == 1):
            rows = seen.planes // seen.groups * seen.positions
            return Layout("channels", rows * seen.groups, 1, 1, seen.groups), kept, wanted
    return seen, kept, order


def _types(x: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
    one = bias if weight is None else weight
    return x.dtype, x.dtype if one is None else one.dtype


def _strips(x: Any, channels: int) -> tuple[launch.Grid, tuple[int, ...]]:
    """The grid for rows of channels, and what the kernels are told: (rows, C, parts, length)."""
    rows = x.size // channels
    grid, parts, length = strips(1, rows, channels, 16 // x.itemsize)
    return grid, (rows, channels, parts, length)


def _size(weight: Any, bias: Any) -> int:
    one = bias if weight is None else weight
    return 1 if one is None else one.size


def _across(n: int, itemsize: int, *arrays: Any) -> int:
    """The threads of a row of n if each takes 16 bytes and all rows lie so; 0 if they do not."""
    size = 16 // itemsize
    fits = n % size == 0 and n <= _WIDEST * size
    if not fits or any(address(a) % 16 for a in arrays if a is not None):
        return 0
    return -(-n // (32 * size)) * 32


def _rows(x: Layout, itemsize: int) -> launch.Grid:
    return launch.rows(x.planes, x.positions, 16 // itemsize)


def _writing(seen: Layout, x: Any) -> tuple[bool, launch.Grid]:
    """Whether x is written by planes (else by elements, across planes), and the grid for it."""
    by_rows = seen.positions >= NARROW
    grid = _rows(seen, x.itemsize) if by_rows else launch.elements(x.size, 16 // x.itemsize)
    return by_rows, grid


def normalize(
    x: Any, weight: Any, bias: Any, axes: Shape, eps: float, centred: bool,
    shape: Shape | None = None, affine: Shape | None = None,
) -> tuple[Any, Any, Any] | None:  # fmt: skip
    """(out, mean, var) of x over `axes` of `shape`; None where no kernel fits the shapes."""
    seen, kept, order = _find(x, weight, bias, axes, shape, affine)
    if seen is None:
        return None
    lying, _ = images(x)
    xp, wide, x = launch.runner().xp, accumulator(x.dtype), arranged(x, order)
    weight, bias = (None if a is None else contiguous(a) for a in (weight, bias))
    out, mean, var = empty(x.shape, x.dtype, order), xp.empty(kept, wide), xp.empty(kept, wide)
    types, flag = _types(x, weight, bias), int(centred)
    if seen.kind == "channels":
        grid, sizes = _strips(x, seen.groups)
        _channel_moments(x, mean, var, grid, sizes, types, flag)
        launch.start("channels", "normalize_channels", types, grid, x, weight, bias, mean, var,
                     out, *sizes, float(eps))  # fmt: skip
        return out, mean, var
    if seen.kind == "rows":
        across = _across(seen.positions, x.itemsize, x, out)
        grid = launch.items(-(-seen.planes // _TOGETHER), (across, 1)) if across else (
            _rows(seen, x.itemsize))  # fmt: skip
        launch.start(
            "normalization", "normalize_together" if across else "normalize_rows",
            (*types, x.dtype), grid, x, weight, bias, mean, var, out, seen.planes, seen.positions,
            float(eps), flag,
        )  # fmt: skip
        return arranged(out, lying), mean, var
    _moments(x, mean, var, seen, types, flag)
    by_rows, grid = _writing(seen, x)
    launch.start(
        "planes", "normalize_planes" if by_rows else "normalize_each", types, grid, x, weight,
        bias, mean, var, out, seen.planes, seen.positions, seen.apart, seen.groups,
        _size(weight, bias), float(eps),
    )  # fmt: skip
    return arranged(out, lying), mean, var


class _Parts(NamedTuple):
    """Sums over parts of planes or columns: two arrays (outer, groups, inner)."""

    first: Any
    second: Any
    chunks: int  # of a plane
    outer: int
    inner: int


def _parts(
    name: str, arrays: tuple[Any, ...], extra: tuple[int, ...], seen: Layout, types: Any
) -> _Parts:
    """Start the first launch of a sum of groups: `plane_NAME` or `column_NAME`."""
    xp, wide = launch.runner().xp, accumulator(types[0])
    if seen.by_columns:
        n, across = seen.planes // seen.groups, seen.groups * seen.positions
        parts, length = split(n, -(-across // 32), _ROWS)
        first, second = xp.empty((parts, across), wide), xp.empty((parts, across), wide)
        launch.start(
            "planes", f"column_{name}", types, columns(parts, length, across), *arrays, first,
            second, n, across, seen.positions, parts, length, *extra,
        )  # fmt: skip
        return _Parts(first, second, seen.positions, parts, seen.positions)
    chunks, length = split(seen.positions, seen.planes, 4096)
    first, second = (xp.empty(seen.planes * chunks, wide) for _ in range(2))
    grid = launch.rows(seen.planes * chunks, length, 16 // types[0].itemsize)
    launch.start(
        "planes", f"plane_{name}", types, grid, *arrays, first, second, seen.planes,
        seen.positions, chunks, length, seen.apart, seen.groups, *extra,
    )  # fmt: skip
    return _Parts(first, second, chunks, seen.planes // (seen.groups * seen.apart),
                  seen.apart * chunks)  # fmt: skip


def _moments(x: Any, mean: Any, var: Any, seen: Layout, types: Any, centred: int) -> None:
    parts = _parts("moments", (x,), (centred,), seen, types)
    grid = launch.rows(seen.groups, parts.outer * parts.inner, 4)
    launch.start(
        "planes", "join_moments", types, grid, parts.first, parts.second, x, mean, var,
        parts.outer, seen.groups, parts.inner, seen.apart * seen.positions, seen.elements, centred,
    )  # fmt: skip


def _channel_moments(
    x: Any, mean: Any, var: Any, grid: launch.Grid, sizes: tuple[int, ...], types: Any, centred: int
) -> None:
    xp, (rows, channels, parts, _) = launch.runner().xp, sizes
    first, second = (xp.empty((parts, channels), mean.dtype) for _ in range(2))
    launch.start("channels", "channel_moments", types, grid, x, first, second, *sizes, centred)
    grid, _, _ = strips(1, parts, channels, 1, 4)
    launch.start("channels", "join_channel_moments", types, grid, first, second, x, mean, var,
                 channels, parts, rows, centred)  # fmt: skip


def normalize_back(
    g: Any, g_mean: Any, g_var: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any,
    axes: Shape, eps: float, centred: bool, shape: Shape | None = None,
    affine: Shape | None = None, added: Any = None,
) -> tuple[Any, Any, Any] | None:  # fmt: skip
    """The gradients of x, weight and bias (if there are any); None where no kernel fits.

    Args:
        g: The gradient of the output; where x has rows of float32, it may be of a half precision.
        g_mean: Of the means, or None, which stands for 0.
        g_var: Of the variances, or None.
        x: The input.
        weight: Or None.
        bias: Or None.
        mean: As `normalize` returned them.
        var: The same.
        axes: The dimensions of one mean.
        eps: Added to variances.
        centred: Whether means were taken off.
        shape: That x is seen in.
        affine: That weight and bias are seen in.
        added: An array that is added to the gradient of x, or None.
    """
    seen, _, order = _find(x, weight, bias, axes, shape, affine)
    if seen is None:
        return None
    lying, _ = images(x)
    wide, x = accumulator(x.dtype), arranged(x, order)
    is_read = seen.kind == "rows" and x.dtype == SINGLE and g.dtype in HALF
    g = arranged(g if is_read or g.dtype == x.dtype else g.astype(x.dtype), order)
    weight, bias = (None if a is None else contiguous(a) for a in (weight, bias))
    mean, var = typed(mean, wide), typed(var, wide)
    given = [v for a in (g_mean, g_var) for v in ((None, 0) if a is None else steps(a, wide))]
    options = seen, float(eps), int(centred)
    if seen.kind == "rows":
        dx, dw, db = _rows_back(g, given, x, weight, bias, mean, var, added, *options)
    else:
        run = _planes_back if seen.kind == "planes" else _channels_back
        dx, dw, db = run(g, given, x, weight, bias, mean, var, *options)
        dx = dx if added is None else dx + added
    return arranged(dx, lying), dw, db


def _rows_back(
    g: Any, given: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, added: Any,
    seen: Layout, eps: float, centred: int,
) -> tuple[Any, Any, Any]:  # fmt: skip
    xp, types, wide = launch.runner().xp, (*_types(x, weight, bias), g.dtype), mean.dtype
    dx, rows, n = xp.empty(x.shape, x.dtype), seen.planes, seen.positions
    added = None if added is None else contiguous(added)
    affine = weight is not None or bias is not None
    across = _across(n, x.itemsize, x, g, added, dx)
    inputs = (g, x, weight, mean, var, *given, added, dx)
    if across:
        threads = (across, _WIDEST // across)
        together = threads[1] * (1 if x.itemsize == 2 else 2)
        parts = min(_BLOCKS, -(-rows // together))
        sums = xp.empty((parts, 2, n), wide) if affine else None
        launch.start(
            "normalization", "normalize_together_back", types, launch.items(parts, threads),
            *inputs, sums, rows, n, eps, centred,
        )  # fmt: skip
    else:
        grid = _rows(seen, x.itemsize)
        launch.start("normalization", "normalize_rows_back", types, grid, *inputs, rows, n, eps,
                     centred)  # fmt: skip
        parts, length = split(rows, -(-n // 32), _ROWS)
        sums = xp.empty((parts, 2, n), wide) if affine else None
        if affine:
            launch.start(
                "normalization", "normalize_affine_back", types, columns(parts, length, n), g, x,
                mean, var, sums, rows, n, parts, length, eps,
            )  # fmt: skip
    if not affine:
        return dx, None, None
    dw, db = (None if p is None else xp.empty(p.shape, p.dtype) for p in (weight, bias))
    grid = launch.items(-(-2 * n // 32), (32, 16))
    launch.start("normalization", "normalize_affine_join", types, grid, sums, dw, db, n, parts)
    return dx, dw, db


def _planes_back(
    g: Any, given: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, seen: Layout,
    eps: float, centred: int,
) -> tuple[Any, Any, Any]:  # fmt: skip
    xp, types, wide = launch.runner().xp, _types(x, weight, bias), mean.dtype
    parts = _parts("dots", (g, x, mean), (), seen, types)
    size, apart, groups = _size(weight, bias), seen.apart, seen.groups
    # Whether there is one weight per group.
    shared = apart == 1 and (seen.planes != groups or size == groups)

    def join(outer: int, kept: int, inner: int, w: Any, v: Any) -> Any:
        sums, dots = xp.empty(kept, wide), xp.empty(kept, wide)
        grid = launch.rows(kept, outer * inner, 4)
        launch.start(
            "planes", "join_dots", types, grid, parts.first, parts.second, sums, dots, outer, kept,
            inner, parts.chunks, w, size, v, apart, groups, eps,
        )  # fmt: skip
        return sums, dots

    dw, db = (None if p is None else xp.empty(p.shape, p.dtype) for p in (weight, bias))
    sums, dots = join(parts.outer, groups, parts.inner, None if shared else weight, None)
    slope, shift = xp.empty(groups, wide), xp.empty(groups, wide)
    outputs = (weight, dw, db) if shared else (None, None, None)
    launch.start(
        "planes", "coefficients", types, launch.elements(groups), sums, dots, outputs[0], var,
        *given, slope, shift, *outputs[1:], groups, seen.elements, eps, centred,
    )  # fmt: skip
    if not shared and (weight is not None or bias is not None):
        sums, dots = join(seen.planes // size, size, parts.chunks, None, var)
        dw = None if weight is None else typed(dots, weight.dtype).reshape(weight.shape)
        db = None if bias is None else typed(sums, bias.dtype).reshape(bias.shape)
    dx = xp.empty(x.shape, x.dtype)
    by_rows, grid = _writing(seen, x)
    launch.start(
        "planes", "normalize_planes_back" if by_rows else "normalize_each_back", types, grid, g, x,
        weight, mean, var, slope, shift, dx, seen.planes, seen.positions, apart, groups, size, eps,
    )  # fmt: skip
    return dx, dw, db


def _channels_back(
    g: Any, given: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, seen: Layout,
    eps: float, centred: int,
) -> tuple[Any, Any, Any]:  # fmt: skip
    xp, types, wide = launch.runner().xp, _types(x, weight, bias), mean.dtype
    grid, sizes = _strips(x, seen.groups)
    rows, channels, parts, _ = sizes
    sums, dots = (xp.empty((parts, channels), wide) for _ in range(2))
    launch.start("channels", "channel_dots", types, grid, g, x, mean, sums, dots, *sizes)
    slope, shift = xp.empty(channels, wide), xp.empty(channels, wide)
    dw, db = (None if p is None else xp.empty(p.shape, p.dtype) for p in (weight, bias))
    few, _, _ = strips(1, parts, channels, 1, 4)
    launch.start(
        "channels", "join_channel_dots", types, few, sums, dots, weight, var, *given, slope, shift,
        dw, db, channels, parts, rows, eps, centred,
    )  # fmt: skip
    dx = empty_like(x)
    launch.start("channels", "normalize_channels_back", types, grid, g, x, weight, mean, var,
                 slope, shift, dx, *sizes, eps)  # fmt: skip
    return dx, dw, db


def scale_channels(x: Any, scale: Any, shift: Any) -> Any:
    """x · scale + shift with one scale and shift per channel of x (N, C, ...)."""
    order, last = images(x)
    x, scale = arranged(x, order), contiguous(scale)
    shift = typed(shift, scale.dtype)
    out = empty(x.shape, x.dtype, order)
    if not x.size:
        return out
    n, channels, positions = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    if last or positions == 1:
        grid, sizes = _strips(x, channels)
        types = x.dtype, scale.dtype
        launch.start("channels", "scale_channels", types, grid, x, scale, shift, out, *sizes)
        return out
    by_rows, grid = _writing(Layout("planes", n * channels, positions, 1, channels), x)
    launch.start(
        "planes", "scale_planes" if by_rows else "scale_each", (x.dtype, scale.dtype), grid, x,
        scale, shift, out, n * channels, positions, channels,
    )  # fmt: skip
    return out


def track_statistics(
    running_mean: Any, running_var: Any, batches: Any, mean: Any, var: Any,
    momentum: float | None, correction: float,
) -> None:  # fmt: skip
    """Take a batch into running statistics, and count it, in place.

    Args:
        running_mean: (C), contiguous.
        running_var: (C), contiguous, of the same dtype.
        batches: The count, an int64; or None.
        mean: Of the batch, C elements.
        var: The same.
        momentum: The share of the batch; None for 1 / count.
        correction: What the batch's variance is multiplied by.
    """
    wide, channels = accumulator(running_mean.dtype), running_mean.size
    launch.start(
        "planes", "track_statistics", (running_mean.dtype,) * 2,
        launch.items(1, (launch.width(channels), 1)), running_mean, running_var, batches,
        typed(mean, wide), typed(var, wide), channels, float(momentum or 0.0), float(correction),
        int(momentum is None),
    )  # fmt: skip
