"""Normalization forward and backward, on arrays.

======  =====================  ==============================  ===================================
kind    x                      one mean and variance           weight and bias
======  =====================  ==============================  ===================================
rows    (rows, n)              per row                         (n)
planes  (N, C, P), batch norm  per channel: N planes           (C)
        (rows, S, P), groups   per row: S planes               of plane q: q modulo their size
======  =====================  ==============================  ===================================

Statistics are in float32 at least; weight and bias may be so where x is of a half precision.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from .. import launch
from .arrays import accumulator, contiguous, shaped, typed
from .losses import steps
from .reduction import column_sums, columns, split

Shape = tuple[int, ...]
NARROW = 64  # planes of fewer positions are summed as columns, and written by elements
_ROWS = 64  # rows whose part of the parameters' gradients a block sums, at least


class Layout(NamedTuple):
    """How x is seen; planes q = 0 ... of `positions` elements, of group ``q // apart % groups``."""

    kind: str  # "rows" or "planes"
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
) -> tuple[Layout | None, Shape]:
    """The layout, and the shape of the statistics."""
    shape = x.shape if shape is None else tuple(shape)
    kept = tuple([1 if d in axes else n for d, n in enumerate(shape)])
    one = bias if weight is None else weight
    if one is None:
        return layout_of(shape, tuple(axes), None), kept
    if bias is not None and (one.shape != bias.shape or one.dtype != bias.dtype):
        return None, kept
    affine = one.shape if affine is None else tuple(affine)
    return layout_of(shape, tuple(axes), affine), kept


def _types(x: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
    one = bias if weight is None else weight
    return x.dtype, x.dtype if one is None else one.dtype


def _size(weight: Any, bias: Any) -> int:
    one = bias if weight is None else weight
    return 1 if one is None else one.size


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
    seen, kept = _find(x, weight, bias, axes, shape, affine)
    if seen is None:
        return None
    xp, wide, x = launch.runner().xp, accumulator(x.dtype), contiguous(x)
    weight, bias = (None if a is None else contiguous(a) for a in (weight, bias))
    out, mean, var = xp.empty(x.shape, x.dtype), xp.empty(kept, wide), xp.empty(kept, wide)
    types, flag = _types(x, weight, bias), int(centred)
    if seen.kind == "rows":
        launch.start(
            "normalization", "normalize_rows", types, _rows(seen, x.itemsize), x, weight, bias,
            mean, var, out, seen.planes, seen.positions, float(eps), flag,
        )  # fmt: skip
        return out, mean, var
    _moments(x, mean, var, seen, types, flag)
    by_rows, grid = _writing(seen, x)
    launch.start(
        "planes", "normalize_planes" if by_rows else "normalize_each", types, grid, x, weight,
        bias, mean, var, out, seen.planes, seen.positions, seen.apart, seen.groups,
        _size(weight, bias), float(eps),
    )  # fmt: skip
    return out, mean, var


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


def normalize_back(
    g: Any, g_mean: Any, g_var: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any,
    axes: Shape, eps: float, centred: bool, shape: Shape | None = None,
    affine: Shape | None = None,
) -> tuple[Any, Any, Any] | None:  # fmt: skip
    """The gradients of x, weight and bias (if there are any); None where no kernel fits.

    Those of mean and variance may be None, which stands for 0.
    """
    seen, _ = _find(x, weight, bias, axes, shape, affine)
    if seen is None:
        return None
    wide, x, g = accumulator(x.dtype), contiguous(x), typed(g, x.dtype)
    weight, bias = (None if a is None else contiguous(a) for a in (weight, bias))
    mean, var = typed(mean, wide), typed(var, wide)
    given = [v for a in (g_mean, g_var) for v in ((None, 0) if a is None else steps(a, wide))]
    run = _rows_back if seen.kind == "rows" else _planes_back
    return run(g, given, x, weight, bias, mean, var, seen, float(eps), int(centred))


def _rows_back(
    g: Any, given: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, seen: Layout,
    eps: float, centred: int,
) -> tuple[Any, Any, Any]:  # fmt: skip
    xp, types = launch.runner().xp, _types(x, weight, bias)
    dx = xp.empty(x.shape, x.dtype)
    rows, n = seen.planes, seen.positions
    launch.start(
        "normalization", "normalize_rows_back", types, _rows(seen, x.itemsize), g, x, weight,
        mean, var, *given, dx, rows, n, eps, centred,
    )  # fmt: skip
    if weight is None and bias is None:
        return dx, None, None
    wide = mean.dtype
    parts, length = split(rows, -(-n // 32), _ROWS)
    dw, db = xp.empty((parts, n), wide), xp.empty((parts, n), wide)
    launch.start(
        "normalization", "normalize_affine_back", types, columns(parts, length, n), g, x, mean,
        var, dw, db, rows, n, parts, length, eps,
    )  # fmt: skip
    found = (
        None if p is None else shaped(column_sums(d, 1, parts, n, p.dtype), p.shape)
        for p, d in ((weight, dw), (bias, db))
    )
    return (dx, *found)  # type: ignore[return-value]


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


def scale_channels(x: Any, scale: Any, shift: Any) -> Any:
    """x · scale + shift with one scale and shift per channel of x (N, C, ...)."""
    x, scale = contiguous(x), contiguous(scale)
    shift = typed(shift, scale.dtype)
    out = launch.runner().xp.empty(x.shape, x.dtype)
    if not x.size:
        return out
    n, channels, positions = x.shape[0], x.shape[1], math.prod(x.shape[2:])
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
