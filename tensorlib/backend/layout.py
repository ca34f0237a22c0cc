"""The order in which an array's elements lie in memory: its strides, and nothing else, say it.

An *order* names the dimensions from the outermost to the innermost in memory. Images of shape
(N, C, H, W) have a plane for each channel, or the channels of a pixel side by side::

    (0, 1, 2, 3)   contiguous       n0: c0: y0: x0 x1 ..  y1: x0 x1 ..   c1: ...
    (0, 2, 3, 1)   channels last    n0: y0: x0: c0 c1 ..  x1: c0 c1 ..   y1: ...

Functions here see arrays of any backend. Where a dimension has size 1 its stride says nothing of
where elements lie; `prefers_channels_last` takes it as a wish, as torch does.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .fused import find

_LARGE = 4096  # elements that are worth a kernel

Shape = tuple[int, ...]
Order = tuple[int, ...]


def contiguous_order(ndim: int) -> Order:
    """The dimensions as they stand."""
    return tuple(range(ndim))


def channels_last_order(ndim: int) -> Order:
    """Dimension 1, the channels, behind all others."""
    return (0, *range(2, ndim), 1)


@functools.lru_cache(4096)
def _inverse(order: Order) -> Order:
    return tuple([order.index(d) for d in range(len(order))])


@functools.lru_cache(4096)
def _dense_order(shape: Shape, strides: Shape, itemsize: int) -> Order | None:
    # Among equal strides, dimensions of size 1 come last: so they get their strides again.
    order = sorted(range(len(shape)), key=lambda d: (-strides[d], shape[d] == 1))
    return tuple(order) if _is_packed(shape, strides, itemsize, tuple(order)) else None


@functools.lru_cache(4096)
def _is_packed(shape: Shape, strides: Shape, itemsize: int, order: Order) -> bool:
    if 0 in shape:
        return True
    expected = itemsize
    for d in reversed(order):
        if shape[d] != 1:
            if strides[d] != expected:
                return False
            expected *= shape[d]
    return True


def dense_order(x: Any) -> Order | None:
    """The order of an array whose elements fill their memory; None where it has gaps."""
    return _dense_order(x.shape, x.strides, x.itemsize)


def lies_in(x: Any, order: Order) -> bool:
    """Whether an array's elements fill their memory in this order."""
    return _is_packed(x.shape, x.strides, x.itemsize, order)


@functools.lru_cache(4096)
def _prefers_channels_last(shape: Shape, strides: Shape) -> bool:
    least = 0
    for d in reversed(channels_last_order(len(shape))):
        if shape[d] == 0 or strides[d] < least or strides[1] == 0:
            return False
        # N images of one number, all strides equal: no wish.
        if d == 0 and least == strides[1]:
            return False
        least = strides[d] * max(shape[d], 1)
    return True


def prefers_channels_last(x: Any) -> bool:
    """Whether an array's strides, also those of dimensions of size 1, ask for channels last.

    Source: torch's ``suggest_memory_format``.
    """
    ndim = x.ndim
    if ndim != 4 and ndim != 5:
        return False
    strides = x.strides
    return strides[1] <= strides[-1] and _prefers_channels_last(x.shape, strides)


def order_of_images(*arrays: Any) -> Order:
    """Channels last if one of the arrays (or None) asks for it, else contiguous."""
    for x in arrays:
        if x is not None and prefers_channels_last(x):
            return channels_last_order(x.ndim)
    return contiguous_order(arrays[0].ndim)


def empty(b: Any, shape: Shape, dtype: Any, order: Order) -> Any:
    """Memory of a shape whose elements lie in an order."""
    return b.empty([shape[d] for d in order], dtype).transpose(_inverse(order))


def in_memory_order(x: Any, order: Order) -> Any:
    """A view with the dimensions as they lie: C-contiguous if `x` lies in this order."""
    return x.transpose(order)


def from_memory_order(x: Any, order: Order) -> Any:
    """The view that `in_memory_order` undoes."""
    return x.transpose(_inverse(order))


def as_it_lies(x: Any) -> Any:
    """A C-contiguous view of a dense array, its dimensions permuted; one with gaps as it is."""
    order = None if x.flags.c_contiguous else dense_order(x)
    return x if order is None else x.transpose(order)


def copied(b: Any, x: Any, order: Order | None = None) -> Any:
    """A copy whose elements lie in an order; None keeps the layout."""
    if order is None:
        if x.flags.c_contiguous and not prefers_channels_last(x):
            return x.copy()
        order = kept_order(x)
    fused = None if x.__class__ is np.ndarray else b.kernel("copied")
    if fused:
        return fused(x, order)
    out = empty(b, x.shape, x.dtype, order)
    assign(out, x)
    return out


def assign(out: Any, x: Any) -> None:
    """``out[...] = x`` for arrays of one shape; on the host by square blocks if one is turned."""
    fused = None
    if x.__class__ is np.ndarray and x.size > _LARGE and x.dtype == out.dtype:
        fused = find("transpose", (x,))
    before, after = (dense_order(x), dense_order(out)) if fused else (None, None)
    matrices = turned(x.shape, before, after) if before and after else None
    if fused and before and after and matrices:
        n, rows, columns = matrices
        source = in_memory_order(x, before).reshape(n, rows, columns)
        fused(source, in_memory_order(out, after).reshape(n, columns, rows))
    else:
        out[...] = x


@functools.lru_cache(4096)
def turned(shape: Shape, before: Order, after: Order) -> Shape | None:
    """(matrices, rows, columns) if transposing so many leads from one order to the other."""
    source, target = ([d for d in order if shape[d] != 1] for order in (before, after))
    if source == target:
        return None
    shared = 0
    while source[shared] == target[shared]:
        shared += 1
    matrices = math.prod([shape[d] for d in source[:shared]])
    source, target = source[shared:], target[shared:]
    split = source.index(target[0])
    if target != source[split:] + source[:split]:
        return None
    rows, columns = (math.prod([shape[d] for d in p]) for p in (source[:split], source[split:]))
    return matrices, rows, columns


def arranged(b: Any, x: Any, order: Order) -> Any:
    """The array if it lies in this order, else a copy that does."""
    return x if lies_in(x, order) else copied(b, x, order)


def asking(x: Any, order: Order) -> Any:
    """A view of an array that lies in an order, whose strides also ask for it where sizes are 1."""
    flat = in_memory_order(x, order)
    return from_memory_order(flat.reshape(-1).reshape(flat.shape), order)


def kept_order(x: Any) -> Order:
    """The order of a copy that keeps the layout: that of a dense array, else by strides.

    Dimensions of stride 0 (expanded ones) stay where they stand, as in torch.
    """
    found = dense_order(x)
    return _by_strides(x.shape, x.strides) if found is None else found


@functools.lru_cache(1024)
def _by_strides(shape: Shape, strides: Shape) -> Order:
    order = list(reversed(range(len(shape))))  # from the innermost on
    for i in range(1, len(order)):
        for j in range(i - 1, -1, -1):
            (a, n), (z, m) = [(abs(strides[d]), shape[d]) for d in (order[j], order[i])]
            if not a or not z:
                continue  # says nothing; the next one may
            if a < z:
                break
            if a > z or n > m:
                order[i], order[j] = order[j], order[i]
                i = j
    return tuple(reversed(order))
