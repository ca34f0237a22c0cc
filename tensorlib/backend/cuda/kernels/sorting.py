"""The order of elements along a dimension, on arrays; unlike CuPy's, a CUDA graph can hold it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....errors import ShapeError
from .. import launch
from .arrays import INT64, contiguous

SMALLEST, TILE = 64, 1024  # elements that a block sorts; two kilobytes' worth of threads do it
# Types that have a wider one of the same order among the kernels'.
_WIDER = {"int8": "int32", "int16": "int32", "uint16": "int32", "uint32": "int64"}


def argsort(x: Any, dim: int, descending: bool) -> Any:
    """The indices that sort along a dimension, stably; NaN counts as largest."""
    xp = launch.runner().xp
    if x.shape[dim] >= 1 << 32:
        raise ShapeError(f"argsort: {x.shape[dim]} elements in a row, which may have 2**32 - 1")
    x = x.astype(_WIDER.get(x.dtype.name, x.dtype), copy=False)
    rows = contiguous(x.swapaxes(dim, -1))
    order = xp.empty(rows.shape, INT64)
    if order.size:
        _run(rows, order, descending)
    return contiguous(order.swapaxes(dim, -1))


def _run(x: Any, order: Any, descending: bool) -> None:
    xp, n = launch.runner().xp, x.shape[-1]
    rows = x.size // n
    tile = SMALLEST if n <= SMALLEST else TILE
    grid, types = launch.items(rows * -(-n // tile), (max(32, tile // 2), 1)), (x.dtype, tile)
    # Passes write to two buffers in turn, and the last to the result.
    kind = np.dtype(np.uint64 if x.itemsize == 8 else np.uint32)
    buffers = [
        (xp.empty(x.size, kind), xp.empty(x.size, np.uint32))
        for _ in range((n > tile) + (n > 2 * tile))
    ]
    to = buffers[0] if n > tile else (None, None)
    launch.start("sorting", "sort_tiles", types, grid, x, *to, None if n > tile else order, rows,
                 n, int(descending))  # fmt: skip
    run = tile
    while run < n:
        source, last = to, 2 * run >= n
        to = (None, None) if last else next(b for b in buffers if b is not source)
        launch.start("sorting", "merge_runs", types, grid, *source, *to, order if last else None,
                     rows, n, run)  # fmt: skip
        run *= 2
