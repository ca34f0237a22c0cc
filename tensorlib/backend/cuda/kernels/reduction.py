"""Sums over any dimensions: neighbouring ones are joined, and rows or columns summed in turn.

::

    (N, C, H, W) over (0, 2, 3)  =  (N, C, P) over P: rows  →  (N, C) over N: columns  →  (C)

Dimensions are taken in the order in which they lie in memory, and those that are left lie so in the
result: channels last, the sum above is over the columns of (N P, C) alone. How a sum is split
depends on shapes alone, so that its bits are the same in every run.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from ... import layout
from ...layout import Shape
from .. import launch
from .arrays import DOUBLE, SINGLE, dense, shaped

_PART = 1 << 14  # elements of a row from which on several blocks share it
_BLOCKS = 1 << 10  # blocks that fill a large GPU
_FEW = 8  # rows up to which a thread has columns alone


class Split(NamedTuple):
    """How many parts a sum has, and how long each is; the last may be shorter."""

    parts: int
    length: int


def split(n: int, others: int, least: int) -> Split:
    """The parts of a sum over `n` of which `others` run beside it, each of `least` at least."""
    parts = max(1, min(-(-n // least), -(-_BLOCKS // max(1, others))))
    length = max(1, -(-n // parts))
    return Split(max(1, -(-n // length)), length)


def column_threads(n: int) -> tuple[int, int]:
    """Threads of a block over columns of `n` rows: columns side by side, threads of a column."""
    return (32, 8) if n >= 32 else (128, 1)


def columns(outer: int, n: int, inner: int) -> launch.Grid:
    """A grid whose blocks take columns of (outer, n, inner)."""
    threads = column_threads(n)
    return launch.items(outer * -(-inner // threads[0]), threads)


class Strips(NamedTuple):
    """How (outer, rows, columns) is shared out by `columns.cuh`."""

    grid: launch.Grid
    parts: int
    length: int


@functools.lru_cache(maxsize=4096)
def strips(outer: int, rows: int, columns: int, pack: int, most: int = 32) -> Strips:
    """Blocks with `pack` columns to a thread if rows are whole packs.

    Args:
        outer: How many matrices there are.
        rows: Of a matrix.
        columns: Of a matrix.
        pack: Elements in 16 bytes, or 1.
        most: Threads of a block side by side; with fewer of them more share the rows.
    """
    wanted = -(-columns // (1 if columns % pack else pack))
    across = launch.THREADS
    if rows > _FEW:
        across = min(most, 1 << (wanted - 1).bit_length())
    down, count = launch.THREADS // across, outer * -(-wanted // across)
    parts, length = split(rows, count, _FEW * down)
    return Strips(launch.items(count * parts, (across, down)), parts, length)


@functools.lru_cache(maxsize=4096)
def steps_of(
    shape: Shape, dim: Shape, keepdim: bool, order: layout.Order
) -> tuple[Shape, list[Shape], Shape]:
    """What a sum is made of, where dimensions lie in an order.

    Returns:
        The result's shape as it lies, steps (outer, n, inner), each a sum over n, the last one
        first, and how the result's dimensions are put back.
    """
    reduced = {d % len(shape) for d in dim}
    kept = [d for d in order if keepdim or d not in reduced]
    left = tuple([1 if d in reduced else shape[d] for d in kept])
    axes = tuple([kept.index(d) for d in sorted(kept)])
    groups: list[tuple[int, bool]] = []
    for d in order:
        n = shape[d]
        if n == 1:
            continue
        if groups and groups[-1][1] == (d in reduced):
            groups[-1] = (groups[-1][0] * n, groups[-1][1])
        else:
            groups.append((n, d in reduced))
    steps: list[Shape] = []
    inner = 1
    for i in range(len(groups) - 1, -1, -1):
        n, is_reduced = groups[i]
        if is_reduced:
            steps.append((math.prod([m for m, _ in groups[:i]]), n, inner))
        else:
            inner *= n
    return left, steps, axes


def _wide(x: Any, dtype: Any, square: bool) -> Any:
    """What a sum is made in: double precision if one of the types is, or for squares."""
    return DOUBLE if square or DOUBLE in (x.dtype, dtype) else SINGLE


def row_sums(x: Any, count: int, n: int, dtype: Any, square: bool, root: bool) -> Any:
    """The sums of `count` contiguous rows of `n`, as a vector of `dtype`."""
    parts, length = split(n, count, _PART)
    xp, middle = launch.runner().xp, _wide(x, dtype, square)
    out = xp.empty(count * parts, middle if parts > 1 else dtype)
    grid = launch.rows(count * parts, length, 32 // x.itemsize)
    last = parts == 1
    types = (x.dtype, out.dtype, middle)
    launch.start("reduction", "sum_rows", types, grid, x, out, count, n, parts, length,
                 int(square), int(root and last))  # fmt: skip
    return out if last else row_sums(out, count, parts, dtype, False, root)


def column_sums(
    x: Any, outer: int, n: int, inner: int, dtype: Any, square: bool = False, root: bool = False,
    scale: float = 1.0, out: Any = None,
) -> Any:  # fmt: skip
    """Contiguous (outer, n, inner) summed over n and scaled, as (outer · inner) of `dtype`.

    Or in `out`, which is of that dtype and size, and without gaps.
    """
    middle = _wide(x, dtype, square)
    grid, parts, length = strips(outer, n, inner, 16 // x.itemsize)
    last, to = parts == 1, out
    if not last or out is None:
        to = launch.runner().xp.empty(outer * parts * inner, dtype if last else middle)
    types = (x.dtype, to.dtype, middle)
    launch.start("reduction", "sum_columns", types, grid, x, to, outer, n, inner, parts, length,
                 int(square), int(root and last), scale if last else 1.0)  # fmt: skip
    return to if last else column_sums(to, outer, parts, inner, dtype, False, root, scale, out)


def _reduce(x: Any, dim: Shape | None, keepdim: bool, square: bool, root: bool) -> Any:
    """Σ x or Σ x² over dimensions, or its root, in the dtype of x."""
    xp, wide = launch.runner().xp, _wide(x, x.dtype, square)
    dim = tuple(range(x.ndim)) if dim is None else dim
    x = dense(x)
    order = layout.dense_order(x) or ()
    left, steps, axes = steps_of(x.shape, tuple(dim), keepdim, order)
    if not x.size:
        return xp.zeros(left, x.dtype).transpose(axes)
    x, dtype = layout.in_memory_order(x, order), x.dtype
    if not steps:
        return (xp.abs(x) if square else x.copy()).reshape(left).transpose(axes)
    for i, (outer, n, inner) in enumerate(steps):
        last, first = i == len(steps) - 1, i == 0
        to = dtype if last else wide
        if inner == 1:
            x = row_sums(x, outer, n, to, square and first, root and last)
        else:
            x = column_sums(x, outer, n, inner, to, square and first, root and last)
    x = shaped(x, left)
    return x if axes == tuple(range(len(axes))) else x.transpose(axes)


def sum(x: Any, dim: Shape | None, keepdim: bool) -> Any:
    """The sum over dimensions (None for all), in the dtype of x."""
    if x.size and 0 in x.strides and not x.flags.c_contiguous:  # expanded: fewer elements to read
        dim = tuple(range(x.ndim)) if dim is None else dim
        repeated = [d for d in {d % x.ndim for d in dim} if x.strides[d] == 0 < x.shape[d] - 1]
        if repeated:
            times = math.prod([x.shape[d] for d in repeated])
            once = x[tuple([slice(0, 1 if d in repeated else None) for d in range(x.ndim)])]
            wide = _wide(x, x.dtype, False)  # halves hold neither all counts nor all sums
            total = sum(once.astype(wide, copy=False), dim, keepdim) * float(times)
            return total.astype(x.dtype, copy=False)
    return _reduce(x, dim, keepdim, False, False)


def norm2(x: Any, dim: Shape | None, keepdim: bool) -> Any:
    """√Σ x² over dimensions (None for all), in the dtype of x."""
    return _reduce(x, dim, keepdim, True, True)
